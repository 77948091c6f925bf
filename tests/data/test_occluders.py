"""Covers: where they slide, what they hide, what they may be cut from."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpnet.data import occluders
from hpnet.data.occluders import Cover, Donors, Side, slide
from hpnet.data.photos import write_part_map, write_picture
from hpnet.data.reid import Person
from hpnet.data.synthetic import draw

SIZE = (128, 64)


def solid(size: tuple[int, int], side: Side, across: int = 0) -> Cover:
    shape = Image.new("L", (size[1], size[0]), 255)
    return Cover(Image.new("RGB", shape.size), shape, side, across, "slab")


def block(top: int, bottom: int, left: int, right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    body = np.zeros(size, bool)
    body[top:bottom, left:right] = True
    return body


# slide


@pytest.mark.parametrize(
    ("side", "share", "corner"),
    [
        # A body of 100 x 20 pixels, rows 10..109 and columns 22..41.
        ("below", 0.3, (0, 80)),
        ("above", 0.3, (0, 40 - 128)),
        ("left", 0.5, (32 - 64, 0)),
        ("right", 0.25, (37, 0)),
        ("below", 1.0, (0, 10)),
    ],
)
def test_it_comes_in_until_it_hides_enough(side: Side, share: float, corner: tuple[int, int]) -> None:
    body = block(10, 110, 22, 42)
    cover = solid(SIZE, side)
    assert slide(cover, body, share) == corner
    assert np.count_nonzero(cover.over(corner, SIZE) & body) == share * 2000


def test_a_cover_that_is_too_small_never_hides_enough() -> None:
    body = block(10, 110, 22, 42)
    assert slide(solid((30, 64), "left", across=50), body, 0.3) is not None
    assert slide(solid((30, 64), "left", across=50), body, 0.31) is None
    assert slide(solid((30, 64), "left", across=110), body, 0.01) is None, "it goes past below the feet"


@given(st.integers(0, 2**32), st.sampled_from(["left", "right", "above", "below"]), st.floats(0.01, 0.9))
@settings(max_examples=60, deadline=None)
def test_one_pixel_less_hides_too_little(seed: int, side: Side, share: float) -> None:
    random = np.random.default_rng(seed)
    body = random.random((24, 16)) < 0.5
    shape = Image.fromarray((random.random((20, 14)) * 255).astype(np.uint8))
    cover = Cover(Image.new("RGB", shape.size), shape, side, int(random.integers(-5, 9)), "rag")
    total = np.count_nonzero(body)

    def hidden(step: int) -> int:
        return np.count_nonzero(cover.over(cover.corner(step, body.shape), body.shape) & body)

    shares = [hidden(step) / total for step in range(1, 45)]
    enough = [step for step, each in enumerate(shares, start=1) if each >= share]
    corner = slide(cover, body, share)
    assert corner == (cover.corner(enough[0], body.shape) if enough else None)


# Donors


@pytest.fixture
def donors(tmp_path: Path) -> Donors:
    """Ten drawn people, whole, five before each of two cameras."""
    people = []
    for number in range(10):
        camera = 1 + number % 2
        drawing = draw(number + 1, camera, 0, size=SIZE)
        name = f"{number + 1:04d}_c{camera}s1_000001_00"
        path = tmp_path / "train" / f"{name}.png"
        write_picture(path, Image.fromarray(drawing.photo.permute(1, 2, 0).numpy()))
        write_part_map(tmp_path / "maps" / "train" / f"{name}.png", drawing.part_map)
        people.append(Person(path, number + 1, camera))
    return Donors(people, tmp_path, tmp_path / "maps")


BODY = block(8, 120, 18, 46)


def cut_all(donors: Donors, kind: str, count: int = 60) -> list[Cover]:
    cuts = [donors.cut(kind, Random(f"{kind} {seed}"), 1, BODY) for seed in range(count)]
    return [cut for cut in cuts if cut is not None]


def test_donors_come_from_the_same_camera(donors: Donors) -> None:
    for kind in ("person", "object"):
        sources = {cut.source for cut in cut_all(donors, kind)}
        assert len(sources) > 2
        assert {name[:6] for name in sources} == {"train/"}
        assert all("_c1s1_" in name for name in sources)
    unknown = [donors.cut("object", Random(seed), None, BODY) for seed in range(40)]
    cameras = {cut.source.partition("_c")[2][0] for cut in unknown if cut is not None}
    assert cameras == {"1", "2"}, "no camera known: anybody will do"


def test_a_person_is_cut_along_the_part_map(donors: Donors) -> None:
    covers = cut_all(donors, "person")
    assert {cover.side for cover in covers} == {"left", "right", "below"}
    for cover in covers:
        labels = np.asarray(Image.open(donors.part_maps / Path(cover.source).with_suffix(".png")))
        assert cover.box == Image.fromarray(labels > 0).getbbox()
        tall = np.count_nonzero((np.asarray(cover.shape) >= 128).any(1))
        assert 0.97 * 112 <= tall <= 1.63 * 112, "as large as the person behind, or nearer"
        share = np.mean(np.asarray(cover.shape) >= 128)
        left, top, right, bottom = cover.box
        assert share == pytest.approx(np.mean(labels[top:bottom, left:right] > 0), abs=0.03)


def test_things_are_covered_with_background_alone(donors: Donors) -> None:
    covers = cut_all(donors, "object", 100)
    assert {cover.title for cover in covers} == {"vehicle", "plant", "wall", "post"}
    for cover in covers:
        labels = np.asarray(Image.open(donors.part_maps / Path(cover.source).with_suffix(".png")))
        left, top, right, bottom = cover.box or (0, 0, 0, 0)
        assert right - left == bottom - top >= 0.3 * SIZE[1]
        assert not (labels[top:bottom, left:right] > 0).any()
        assert cover.paint.size == cover.shape.size


def test_each_thing_has_its_shape(donors: Donors) -> None:
    """A wall's edge is straight, a plant's is not; a car has wheels below its body; a post is a band."""
    rough: dict[str, list[float]] = {"wall": [], "plant": []}
    for cover in cut_all(donors, "object", 150):
        opaque = np.asarray(cover.shape) >= 128
        if cover.title == "post":
            assert opaque.all()
            assert opaque.shape[1] < 0.75 * SIZE[1]
        elif cover.title == "vehicle":
            assert cover.side == "below"
            assert not opaque[-1].all(), "there is air below a car"
        else:
            # How the edge jumps from one row or column to the next.
            if cover.side in ("above", "below"):
                edge = np.argmax(opaque if cover.side == "below" else opaque[::-1], 0)
            else:
                edge = np.argmax(opaque if cover.side == "right" else opaque[:, ::-1], 1)
            rough[cover.title].append(np.abs(np.diff(edge.astype(int))).max())
    assert max(rough["wall"]) <= 1
    assert min(rough["plant"]) > 1


def test_a_torn_part_map_gives_no_person(donors: Donors) -> None:
    labels = np.zeros(SIZE, np.uint8)
    labels[10:30, 25:40], labels[30:70, 20:44], labels[70:95, 22:42], labels[95:120, 22:42] = 1, 2, 3, 4
    assert occluders._whole(labels)
    for rows, why in ((slice(0, 30), "no head"), (slice(95, 128), "no feet"), (slice(60, 70), "two pieces")):
        torn = labels.copy()
        torn[rows] = 0
        assert not occluders._whole(torn), why
    thin = labels.copy()
    thin[70:120, 26:] = 0
    assert not occluders._whole(thin), "legs are missing in part"


def test_a_photo_without_background_gives_no_thing(donors: Donors) -> None:
    for person in donors.people:
        full = np.ones(SIZE, np.uint8)
        full[0:15, 0:15] = 0  # less than three tenths of the width
        Image.fromarray(full).save(donors.part_maps / person.path.relative_to(donors.root))
    assert cut_all(donors, "object") == []


def test_an_unreadable_donor_is_remembered_and_passed_over(donors: Donors) -> None:
    bad = donors.people[0].path
    bad.write_bytes(b"no picture")
    covers = cut_all(donors, "object")
    assert covers
    assert all(Path(cover.source).name != bad.name for cover in covers)
    assert list(donors.failures) == [bad]
    assert bad.name in donors.failures[bad]


def test_a_frame_is_cut_from_every_side_without_a_donor() -> None:
    donors = Donors([], Path(), Path())
    covers = [donors.cut("frame", Random(seed), 1, BODY) for seed in range(40)]
    assert {cover.side for cover in covers if cover} == {"left", "right", "above", "below"}
    assert all(cover and cover.source == "" and cover.box is None for cover in covers)
