from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpnet.data import synthetic
from hpnet.data.dolls import Doll
from hpnet.data.photos import read_part_map, read_photo
from hpnet.data.reid import read_split
from hpnet.data.scenes import OBSTACLES
from hpnet.data.synthetic import (
    CUTS,
    OCCLUSIONS,
    VISIBLE_SHARE,
    Drawing,
    SyntheticConfig,
    draw,
    synth,
    write_market1501,
)
from hpnet.parts import PARTS, Part, part_masks

SMALL = (64, 32)
TINY = SyntheticConfig(
    identities=3, test_identities=2, cameras=2, shots=2, distractors=3, junk=2, size=(64, 32), occluded_train=0.5
)
SPLITS = ("bounding_box_train", "query", "query_whole", "bounding_box_test")


def same(one: Drawing, other: Drawing) -> bool:
    return torch.equal(one.photo, other.photo) and torch.equal(one.part_map, other.part_map)


def digest() -> str:
    drawings = [draw(5, 2, 7, seed=11, size=SMALL, occlusion=occlusion) for occlusion in ("none", *OCCLUSIONS)]
    return sha256(b"".join(d.photo.numpy().tobytes() + d.part_map.numpy().tobytes() for d in drawings)).hexdigest()


@settings(max_examples=40, deadline=None)
@given(
    identity=st.integers(0, 10**6),
    camera=st.integers(0, 50),
    shot=st.integers(0, 10**6),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([(32, 16), (64, 32), (77, 41), (48, 96)]),
    occlusion=st.sampled_from(["none", None, *OCCLUSIONS]),
)
def test_every_drawing_keeps_its_promises(
    identity: int, camera: int, shot: int, seed: int, size: tuple[int, int], occlusion: str | None
) -> None:
    drawing = draw(identity, camera, shot, seed=seed, size=size, occlusion=occlusion)
    assert drawing.photo.shape == (3, *size)
    assert drawing.part_map.shape == size
    assert set(drawing.part_map.unique().tolist()) <= {0, *(part.label for part in PARTS)}
    covered = [int((drawing.part_map == part.label).sum()) for part in PARTS]
    assert drawing.visibility.tolist() == [count >= VISIBLE_SHARE * size[0] * size[1] for count in covered]
    assert (drawing.identity, drawing.camera) == (identity, camera)
    assert drawing.occlusion == occlusion or (occlusion is None and drawing.occlusion in OCCLUSIONS)
    assert same(drawing, draw(identity, camera, shot, seed=seed, size=size, occlusion=occlusion))


def test_a_picture_does_not_depend_on_what_was_drawn_before_or_on_the_process() -> None:
    here = digest()
    draw(1, 0, 0, seed=11, size=SMALL)
    assert digest() == here
    program = "import test_synthetic; print(test_synthetic.digest())"
    folders = os.pathsep.join([str(Path(__file__).parent), str(Path(synthetic.__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": folders, "PYTHONHASHSEED": "77"}
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == here


@pytest.mark.parametrize("change", [{"seed": 1}, {"identity": 4}, {"camera": 2}, {"shot": 5}])
def test_another_number_is_another_picture(change: dict[str, int]) -> None:
    numbers = {"identity": 3, "camera": 1, "shot": 2, "seed": 0}
    assert not same(draw(**numbers, size=SMALL), draw(**(numbers | change), size=SMALL))


def test_an_unoccluded_drawing_shows_all_parts_in_their_order_from_top_to_bottom() -> None:
    rows = torch.arange(SMALL[0], dtype=torch.float32)[:, None]
    for number in range(30):
        drawing = draw(number, number % 7, number % 5, size=SMALL)
        assert drawing.visibility.all()
        masks = part_masks(drawing.part_map).float()
        heights = ((masks * rows).sum((1, 2)) / masks.sum((1, 2))).tolist()
        assert heights == sorted(heights)


@pytest.mark.parametrize("occlusion", [*OBSTACLES, "passer-by"])
def test_an_obstacle_hides_a_third_to_two_thirds_and_uncovers_nothing(occlusion: str) -> None:
    kept = []
    for number in range(15):
        whole = draw(number, number % 4, number, size=SMALL)
        hidden = draw(number, number % 4, number, size=SMALL, occlusion=occlusion)
        body, left = whole.part_map > 0, hidden.part_map > 0
        # The person behind the obstacle is the same, in the same place: what shows is a subset, with the same labels.
        assert torch.equal(hidden.part_map[left], whole.part_map[left])
        kept.append(float(left.sum() / body.sum()))
    assert 1 / 3 < np.mean(kept) < 2 / 3
    assert np.std(kept) > 0.02  # no template


@pytest.mark.parametrize(
    ("occlusion", "gone", "stays"),
    [("cut-below", Part.LOWER_LEGS, Part.HEAD), ("cut-above", Part.HEAD, Part.LOWER_LEGS)],
)
def test_a_cut_takes_one_end_and_stretches_the_rest_over_the_frame(occlusion: str, gone: Part, stays: Part) -> None:
    cut = [draw(number, number % 4, number, size=SMALL, occlusion=occlusion) for number in range(20)]
    whole = [draw(number, number % 4, number, size=SMALL) for number in range(20)]
    assert sum(bool(drawing.visibility[gone]) for drawing in cut) <= 4
    assert all(bool(drawing.visibility[stays]) for drawing in cut)
    grown = [
        (c.part_map == stays.label).sum() / (w.part_map == stays.label).sum() for c, w in zip(cut, whole, strict=True)
    ]
    assert float(torch.stack(grown).mean()) > 1.3


def test_a_side_cut_leaves_a_body_that_touches_one_side_of_the_frame() -> None:
    for number in range(20):
        body = draw(number, number % 4, number, size=SMALL, occlusion="cut-side").part_map > 0
        assert int(body[:, 0].sum() > SMALL[0] // 4) + int(body[:, -1].sum() > SMALL[0] // 4) == 1


def test_occlusions_by_chance_are_of_every_kind_and_never_none() -> None:
    kinds = {draw(number, 0, 0, size=(32, 16), occlusion=None).occlusion for number in range(80)}
    assert kinds == set(OCCLUSIONS)


def test_each_part_alone_tells_people_apart() -> None:
    """By the mean colour of any one part, before one camera, the same person is nearer than most other people."""
    colours = torch.full((20, 2, len(PARTS), 3), torch.nan)
    for identity in range(20):
        for shot in range(2):
            drawing = draw(identity, 0, shot, size=SMALL)
            for part in PARTS:
                colours[identity, shot, part] = drawing.photo[:, drawing.part_map == part.label].float().mean(1)
    for part in PARTS:
        distance = torch.cdist(colours[:, 0, part], colours[:, 1, part])
        better_than_own = (distance < distance.diagonal()[:, None]).float().mean(1)
        assert better_than_own.mean() < 0.25, part


def test_cameras_share_no_background() -> None:
    edges = [[draw(9, camera, shot, size=SMALL).photo[:, :, :6].float() for shot in range(6)] for camera in range(6)]
    corners = [torch.stack([edge.mean((1, 2)) for edge in shots]) for shots in edges]
    middles = torch.stack([corner.mean(0) for corner in corners])
    spread = torch.stack([(corner - corner.mean(0)).norm(dim=1).mean() for corner in corners]).mean()
    between = torch.pdist(middles).mean()
    assert between > 1.5 * spread


def test_people_differ_and_one_seed_makes_the_same_people() -> None:
    assert Doll.born(0, 5) == Doll.born(0, 5)
    assert len({Doll.born(0, name) for name in range(500)}) == 500
    assert Doll.born(0, 5) != Doll.born(1, 5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"identity": -1}, "identity, camera and shot must be 0 or more"),
        ({"size": (8, 64)}, "size must be at least"),
        ({"occlusion": "fog"}, "unknown occlusion 'fog'"),
    ],
)
def test_wrong_numbers_are_refused_in_words(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw(**({"identity": 0, "camera": 0, "shot": 0} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cameras": 0}, "cameras must be 1 or more"),
        ({"junk": -1}, "junk must be 0 or more"),
        ({"occluded_train": 1.5}, "occluded_train must be a share"),
        ({"identities": 9999}, "four digits"),
        ({"size": (16, 16)}, "size must be at least"),
    ],
)
def test_a_wrong_config_is_refused_in_words(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SyntheticConfig(**wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "dolls"
    counts = write_market1501(out, TINY)
    assert counts == {"bounding_box_train": 12, "query": 4, "query_whole": 4, "bounding_box_test": 8 + 3 + 2}
    return out


def test_the_written_set_reads_as_market1501(drawn: Path) -> None:
    assert {path.name for path in drawn.iterdir()} == {*SPLITS, "part_maps", "visibility.csv"}
    train, query, gallery = (read_split("market1501", drawn, split) for split in ("train", "query", "gallery"))
    assert (len(train), len(query), len(gallery)) == (12, 4, 13)
    assert {person.identity for person in train} == {1, 2, 3}
    assert {person.identity for person in query} == {4, 5}
    assert sorted({person.identity for person in gallery}) == [-1, 0, 4, 5]
    assert {person.camera for person in [*train, *query, *gallery]} == {1, 2}
    # Every query has something right to be found: the same person before another camera.
    for asked in query:
        assert any(one.identity == asked.identity and one.camera != asked.camera for one in gallery)


def test_every_photo_has_its_part_map_and_its_row_of_truth(drawn: Path) -> None:
    with (drawn / "visibility.csv").open(newline="") as file:
        rows = {row.pop("photo"): row for row in csv.DictReader(file)}
    photos = {path.relative_to(drawn).as_posix() for split in SPLITS for path in (drawn / split).iterdir()}
    assert set(rows) == photos
    for name, row in rows.items():
        part_map = read_part_map(drawn / "part_maps" / Path(name).with_suffix(".png"))
        assert read_photo(drawn / name).shape[1:] == part_map.shape == TINY.size
        shows = part_masks(part_map).flatten(1).sum(1) >= VISIBLE_SHARE * part_map.numel()
        assert [row[part.name.lower()] for part in PARTS] == [str(int(seen)) for seen in shows.tolist()]
    kinds = {
        split: {row["occlusion"] for name, row in rows.items() if name.startswith(f"{split}/")} for split in SPLITS
    }
    assert kinds["query"] <= set(OCCLUSIONS)
    assert kinds["query_whole"] == {"none"}
    assert "none" in kinds["bounding_box_train"]
    assert kinds["bounding_box_train"] & set(OCCLUSIONS)
    junk = [row["occlusion"] for name, row in rows.items() if "/-1_" in name]
    assert set(junk) <= set(CUTS)


def test_queries_are_the_whole_queries_hidden(drawn: Path) -> None:
    names = sorted(path.name for path in (drawn / "query").iterdir())
    assert names == sorted(path.name for path in (drawn / "query_whole").iterdir())
    for name in names:
        whole = draw(int(name[:4]), int(name[6]), 0, size=TINY.size)
        stored = read_photo(drawn / "query_whole" / name).float()
        assert (stored - whole.photo.float()).abs().mean() < 12  # JPEG
        stem = Path(name).stem
        assert torch.equal(read_part_map(drawn / "part_maps" / "query_whole" / f"{stem}.png"), whole.part_map)


def test_the_same_seed_writes_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    write_market1501(tmp_path / "again", TINY)
    for path in drawn.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(drawn)).read_bytes() == path.read_bytes()


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="the folder is not empty"):
        write_market1501(tmp_path, TINY)
    with pytest.raises(ValueError, match="is a file"):
        write_market1501(tmp_path / "mine.txt", TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def interrupted(*numbers: int, **options: object) -> Drawing:
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(numbers)
        return draw(*numbers, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(synthetic, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_market1501(tmp_path / "out", TINY)
    assert list(tmp_path.iterdir()) == []


def test_synth_tells_people_and_machines_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "identities": 1,
        "test_identities": 1,
        "cameras": 1,
        "shots": 1,
        "distractors": 0,
        "height": 64,
        "width": 32,
    }
    (tmp_path / "empty").mkdir()
    assert synth(tmp_path / "empty", **options) == 0
    assert "bounding_box_test" in capsys.readouterr().out
    assert synth(tmp_path / "other", **options, seed=3, json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["photos"]["query"] == 1
    assert told["config"]["seed"] == 3
    with Image.open(next((tmp_path / "other" / "query").iterdir())) as photo:
        assert photo.size == (32, 64)


def test_speed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    for number in range(40):
        draw(number, number % 4, 0, size=(128, 64), occlusion=None if number % 2 else "none")
    with capsys.disabled():
        sys.stdout.write(f"\n1,000 drawings of 128 x 64: {25 * (time.perf_counter() - started):.0f} s, types checked\n")
