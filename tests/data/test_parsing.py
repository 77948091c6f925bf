from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as run_length
from scipy import ndimage

from hpnet.data.parsing import _run_length_mask, connected, parsing_hash, read_densepose, read_pascal, stack
from hpnet.data.photos import Failure
from hpnet.parts import Part, visible_parts

Labels = np.ndarray[Any, np.dtype[np.uint8]]
Rectangles = list[tuple[int, tuple[int, int, int, int]]]

LOWER_ARM, TORSO, LOWER_LEG, HEAD, UPPER_LEG, UPPER_ARM = range(1, 7)  # Pascal-Person-Part's labels
VOID = 255
# A person as rectangles (left, top, right, bottom), 20 wide and 80 high.
STANDING: Rectangles = [
    (HEAD, (7, 0, 13, 10)),
    (TORSO, (4, 10, 16, 40)),
    (UPPER_ARM, (0, 12, 4, 24)),
    (LOWER_ARM, (16, 24, 20, 36)),
    (UPPER_LEG, (5, 40, 15, 60)),
    (LOWER_LEG, (5, 60, 15, 80)),
]


def drawn(size: tuple[int, int], *people: tuple[Rectangles, tuple[int, int]]) -> Labels:
    """A label map (height, width) with people at (x, y)."""
    image = Image.new("L", (size[1], size[0]))
    for rectangles, (x, y) in people:
        for label, (left, top, right, bottom) in rectangles:
            ImageDraw.Draw(image).rectangle((left + x, top + y, right + x - 1, bottom + y - 1), fill=label)
    return np.array(image)


def pascal_set(root: Path, masks: dict[str, Labels], split: str = "train") -> Path:
    """A data set in the real layout; a photo shows each label as its own grey."""
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    (root / "part_masks").mkdir(exist_ok=True)
    for name, labels in masks.items():
        Image.fromarray(labels).save(root / "part_masks" / f"{name}.png")
        grey = np.where(labels == VOID, 0, labels * 30).astype(np.uint8)
        Image.fromarray(np.stack([grey] * 3, -1)).save(root / "JPEGImages" / f"{name}.jpg", quality=100)
    (root / f"{split}_id.txt").write_text("\n".join(masks) + "\n")
    return root


def without(person: Rectangles, *labels: int) -> Rectangles:
    return [entry for entry in person if entry[0] not in labels]


def read_one(
    tmp_path: Path, *people: tuple[Rectangles, tuple[int, int]], size: tuple[int, int] = (200, 160)
) -> list[Any]:
    root = pascal_set(tmp_path / "set", {"photo": drawn(size, *people)})
    return list(read_pascal(root, "train", (88, 28)))


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_connected_pieces_equal_scipys(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width)))
    mask = mask.reshape(height, width)
    pieces = connected(mask)
    expected, count = ndimage.label(mask, np.ones((3, 3)))
    assert pieces.shape == mask.shape
    assert pieces.max(initial=0) == count
    assert len(set(zip(pieces.ravel().tolist(), expected.ravel().tolist(), strict=True))) == len(np.unique(expected))
    firsts = [int(np.flatnonzero(pieces == number)[0]) for number in range(1, count + 1)]
    assert firsts == sorted(firsts)  # numbered in reading order


def test_connected_pieces_of_a_large_tangle() -> None:
    mask = np.random.default_rng(0).random((300, 400)) < 0.45
    pieces = connected(mask)
    expected, count = ndimage.label(mask, np.ones((3, 3)))
    assert pieces.max() == count
    assert len(np.unique(pieces.astype(np.int64) * (count + 1) + expected)) == len(np.unique(expected))


def test_a_person_is_cut_out_with_a_margin(tmp_path: Path) -> None:
    (sample,) = read_one(tmp_path, (STANDING, (50, 60)))
    assert sample.source == "photo#0"
    assert sample.photo.shape == (3, 88, 28)
    # 80 x 20 pixels with 4 pixels of margin on all sides are 88 x 28: nothing is resized.
    expected = drawn((88, 28), ([(2, box) for _, box in STANDING], (4, 4)))
    assert torch.equal(sample.part_map > 0, torch.from_numpy(expected > 0))
    for y, x, part in ((8, 14, Part.HEAD), (24, 14, Part.TORSO), (20, 5, Part.TORSO), (32, 22, Part.TORSO),
                       (54, 14, Part.UPPER_LEGS), (74, 14, Part.LOWER_LEGS)):  # fmt: skip
        assert sample.part_map[y, x] == part.label
    grey = drawn((88, 28), (STANDING, (4, 4))).astype(int) * 30
    assert np.abs(sample.photo[0].numpy().astype(int) - grey).mean() < 4  # photo and map moved together


def test_every_person_of_a_photo_is_one_sample_and_others_are_background(tmp_path: Path) -> None:
    samples = read_one(tmp_path, (STANDING, (20, 20)), (STANDING, (42, 30)))
    assert [sample.source for sample in samples] == ["photo#0", "photo#1"]
    for sample in samples:
        assert (sample.part_map == Part.HEAD.label).sum() == pytest.approx(60, rel=0.1)


def test_headless_pieces_go_to_the_one_person_they_belong_to(tmp_path: Path) -> None:
    upper, legs = without(STANDING, LOWER_LEG), [(LOWER_LEG, (5, 70, 15, 90))]
    (sample,) = read_one(tmp_path, (upper, (50, 60)), (legs, (50, 60)))
    assert bool(visible_parts(sample.part_map).all())
    (sample,) = read_one(tmp_path / "aside", (upper, (50, 60)), (legs, (100, 60)))
    assert visible_parts(sample.part_map).tolist() == [True, True, True, False]
    between = [(LOWER_LEG, (13, 70, 23, 90))]
    samples = read_one(tmp_path / "claimed", (upper, (40, 60)), (upper, (62, 60)), (between, (43, 60)))
    assert [visible_parts(sample.part_map)[3].item() for sample in samples] == [False, False]


@pytest.mark.parametrize(
    ("person", "reason"),
    [
        (without(STANDING, HEAD), "no head"),
        (without(STANDING, TORSO, UPPER_ARM, LOWER_ARM), "no torso"),
        ([(label, (top, left, bottom, right)) for label, (left, top, right, bottom) in STANDING], "lying"),
        (
            [(label, (left, 80 - bottom, right, 80 - top)) for label, (left, top, right, bottom) in STANDING],
            "on its head",
        ),
        ([(label, tuple(value // 2 for value in box)) for label, box in STANDING], "40 pixels high"),
        ([*STANDING, (HEAD, (0, 2, 3, 10)), (UPPER_ARM, (0, 10, 4, 12))], "two heads"),
        ([(HEAD, (0, 0, 30, 40)), (TORSO, (0, 40, 30, 60))], "a portrait"),
        ([*STANDING, (LOWER_ARM, (20, 30, 70, 34))], "wider than upright"),
    ],
)
def test_who_is_left_out(tmp_path: Path, person: Rectangles, reason: str) -> None:
    assert read_one(tmp_path, (person, (40, 50))) == [], reason


@pytest.mark.parametrize(
    "person",
    [
        without(STANDING, LOWER_LEG),
        without(STANDING, LOWER_LEG, UPPER_LEG),
        [*STANDING, (HEAD, (5, 8, 6, 9)), (TORSO, (6, 8, 7, 10))],  # a speck of head beside the head
    ],
)
def test_who_is_kept_though_not_whole(tmp_path: Path, person: Rectangles) -> None:
    scaled: Rectangles = [(label, (3 * a, 3 * b, 3 * c, 3 * d)) for label, (a, b, c, d) in person]
    assert len(read_one(tmp_path, (scaled, (40, 10)), size=(300, 200))) == 1


def test_a_person_at_the_edge_keeps_the_margin_inside(tmp_path: Path) -> None:
    (sample,) = read_one(tmp_path, (STANDING, (0, 0)), size=(80, 20))
    assert bool((sample.part_map[0] == Part.HEAD.label).any())
    assert bool((sample.part_map[-1] == Part.LOWER_LEGS.label).any())


def test_void_is_background(tmp_path: Path) -> None:
    labels = drawn((200, 160), (STANDING, (50, 60)))
    labels[labels == LOWER_LEG] = VOID
    (sample,) = read_pascal(pascal_set(tmp_path, {"photo": labels}, "val"), "val", (88, 28))
    assert visible_parts(sample.part_map).tolist() == [True, True, True, False]


def test_bad_files_are_reported_and_skipped(tmp_path: Path) -> None:
    good = drawn((120, 60), (STANDING, (20, 20)))
    strange = good.copy()
    strange[0, 0] = 9
    root = pascal_set(tmp_path, {"a": good, "b": good, "c": good, "d": strange, "e": good, "f": good, "g": good})
    (root / "JPEGImages" / "a.jpg").write_bytes(b"")
    (root / "part_masks" / "b.png").write_bytes((root / "part_masks" / "b.png").read_bytes()[:60])
    Image.fromarray(good[:, :50]).save(root / "part_masks" / "c.png")
    (root / "part_masks" / "e.png").unlink()
    Image.fromarray(np.stack([good] * 3, -1)).save(root / "part_masks" / "f.png")
    failures: list[Failure] = []
    samples = list(read_pascal(root, "train", (88, 28), failures))
    assert [sample.source for sample in samples] == ["g#0"]
    reasons = {failure.path.stem: failure.reason for failure in failures}
    expected = {
        "a": "a.jpg: the file is empty",
        "b": "b.png: damaged picture",
        "c": "c.png: the mask has 120 x 50 pixels, its photo 120 x 60",
        "d": "d.png: labels [9] are unknown",
        "e": "e.png: no such file",
        "f": "f.png: a part map must be a palette or grey PNG",
    }
    assert reasons.keys() == expected.keys()
    for name, text in expected.items():
        assert text in reasons[name]
        assert "\n" not in reasons[name]
    with pytest.raises(ValueError, match=r"a\.jpg: the file is empty"):
        list(read_pascal(root, "train", (88, 28)))


def test_a_wrong_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"val_id\.txt: list of photo ids is missing"):
        read_pascal(tmp_path, "val", (88, 28))
    (tmp_path / "val_id.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"val_id\.txt: the list of photo ids is empty"):
        read_pascal(tmp_path, "val", (88, 28))


def test_stack_keeps_order_and_names_emptiness(tmp_path: Path) -> None:
    samples = read_one(tmp_path, (STANDING, (20, 20)), (without(STANDING, LOWER_LEG), (62, 30)))
    photos, part_maps = stack(iter(samples))
    assert photos.shape == (2, 3, 88, 28)
    assert torch.equal(part_maps[1], samples[1].part_map)
    with pytest.raises(ValueError, match="gives no sample"):
        stack([])


def test_the_hash_knows_names_and_sizes(tmp_path: Path) -> None:
    root = pascal_set(tmp_path / "one", {"a": drawn((120, 60), (STANDING, (20, 20)))})
    same = pascal_set(tmp_path / "two", {"a": drawn((120, 60), (STANDING, (20, 20)))})
    first = parsing_hash(root)
    assert first == parsing_hash(same)
    (same / "train_id.txt").write_text("a\nb\n")
    assert parsing_hash(same) != first
    (root / "val_id.txt").write_text("")
    assert parsing_hash(root) != first
    with pytest.raises(ValueError, match="no such file"):
        parsing_hash(tmp_path / "three")


def rle(cells: Labels) -> dict[str, Any]:
    encoded = run_length.encode(np.asfortranarray(cells))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def person(number: int, photo: int, box: list[float], **changes: Any) -> dict[str, Any]:
    """An annotation as DensePose-COCO has it: head on top, torso, upper legs, feet; left limbs empty."""
    masks: list[Any] = [[] for _ in range(14)]
    rows = {14: (0, 50), 1: (50, 130), 6: (130, 190), 8: (190, 240), 4: (240, 256)}
    for label, (top, bottom) in rows.items():
        cells = np.zeros((256, 256), np.uint8)
        cells[top:bottom, 64:192] = 1
        masks[label - 1] = rle(cells)
    return {"id": number, "image_id": photo, "bbox": box, "keypoints": [5, 5, 2] * 17, "dp_masks": masks, **changes}


DensePose = Callable[..., tuple[Path, Path]]


@pytest.fixture
def densepose(tmp_path: Path) -> DensePose:
    """Writes photos 1..n (200 x 100 pixels; each column as bright as its number) and the annotations given."""

    def write(*annotations: dict[str, Any], photos: int = 1) -> tuple[Path, Path]:
        folder = tmp_path / "train2014"
        folder.mkdir(exist_ok=True)
        names = {number: f"COCO_train2014_{number:012d}.jpg" for number in range(1, photos + 1)}
        column = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (200, 100, 3))
        for name in names.values():
            Image.fromarray(column).save(folder / name, quality=100)
        path = tmp_path / "densepose_coco_2014_train.json"
        images = [{"id": number, "file_name": name, "height": 200, "width": 100} for number, name in names.items()]
        path.write_text(json.dumps({"images": images, "annotations": list(annotations), "categories": []}))
        return path, folder

    return write


def test_densepose_labels_are_folded_and_lie_on_the_crop(densepose: DensePose) -> None:
    path, photos = densepose(person(7, 1, [20, 40, 40, 128]))
    (sample,) = read_densepose(path, photos, (128, 40))
    assert sample.source == "COCO_train2014_000000000001.jpg#7"
    assert np.abs(sample.photo[0, 60].numpy().astype(int) - np.arange(20, 60)).max() <= 3
    column = sample.part_map[:, 20].tolist()
    labels = [part.label for part in Part]
    assert column == sorted(column)
    assert [column.count(label) for label in labels] == [25, 40, 30, 33]
    assert not sample.part_map[:, :10].any()
    assert not sample.part_map[:, 30:].any()


def test_a_densepose_box_beyond_the_photo_cuts_its_labels_alike(densepose: DensePose) -> None:
    path, photos = densepose(person(7, 1, [-20, 100, 80, 200]))
    (sample,) = read_densepose(path, photos, (100, 60))
    column = sample.part_map[:, 30]
    assert column[0] == Part.HEAD.label
    assert column[-1] == Part.TORSO.label  # half of the box lies below the photo
    assert sample.part_map[50].nonzero()[:, 0].tolist() == list(range(40))  # cells 64..192 of 256 are columns 0..39


def flags(*visible: int, hidden: int = 1) -> list[int]:
    return [value for joint in range(17) for value in (5, 5, 2 if joint in visible else hidden)]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"keypoints": flags(0, 6, 11, 14, 16)}, True),
        ({"keypoints": flags(0, 6, 11, 14)}, True),  # four groups of five
        ({"keypoints": flags(0, 1, 2, 3, 4, 5, 6, 11, 12)}, False),  # three groups
        ({"keypoints": flags()}, False),  # labelled but hidden is not visible
        ({"bbox": [20, 40, 40, 72]}, False),  # not more than 1.8
        ({"bbox": [20, 40, 40, 73]}, True),
        ({"dp_masks": []}, False),
    ],
)
def test_the_authors_filter(densepose: DensePose, changes: dict[str, Any], kept: bool) -> None:
    path, photos = densepose(person(1, 1, [10, 10, 30, 100]), person(2, 1, [20, 40, 40, 128], **changes))
    sources = [sample.source.split("#")[1] for sample in read_densepose(path, photos, (64, 32))]
    assert sources == (["1", "2"] if kept else ["1"])


def test_bad_densepose_entries_are_reported_and_skipped(densepose: DensePose) -> None:
    box = [20, 40, 40, 128]
    small, torn = person(3, 3, box), person(4, 4, box)
    small["dp_masks"][0] = rle(np.ones((100, 100), np.uint8))
    torn["dp_masks"][13] = {"size": [256, 256], "counts": "1"}
    path, photos = densepose(
        person(1, 1, box), person(2, 2, box), small, torn, person(5, 5, [300, 40, 40, 128]),
        person(6, 6, box, keypoints=[1, 2, 3]), person(7, 7, ["x", 1, 2, 3]), photos=8,
    )  # fmt: skip
    (photos / "COCO_train2014_000000000002.jpg").write_bytes(b"no picture")
    failures: list[Failure] = []
    samples = list(read_densepose(path, photos, (64, 32), failures))
    assert [sample.source[-2:] for sample in samples] == ["#1"]
    reasons = {int(failure.path.stem[-2:]): failure.reason for failure in failures}
    assert reasons.keys() == {2, 3, 4, 5, 6, 7}
    assert "not a picture" in reasons[2]
    assert "annotation 3, dp_masks[0] is no run-length mask of 256 x 256" in reasons[3]
    assert "annotation 4, dp_masks[13] is no run-length mask" in reasons[4]
    assert "annotation 5 has a box outside the photo" in reasons[5]
    assert "annotation 6 must have 17 keypoints" in reasons[6]
    assert "annotation 7 has no proper bbox" in reasons[7]
    assert all("\n" not in reason and "COCO_train2014" in reason for reason in reasons.values())
    with pytest.raises(ValueError, match="not a picture"):
        list(read_densepose(path, photos, (64, 32)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such annotation file"),
        ("{", "not a json file"),
        ("[]", "not annotations in COCO's format"),
        ('{"images": []}', "lacks 'annotations'"),
        ('{"images": [], "annotations": [{"dp_masks": [1], "image_id": 3}]}', "lacks 3"),
        ('{"images": [], "annotations": [{"image_id": 3}]}', "no annotation has dp_masks"),
    ],
)
def test_a_wrong_annotation_file_is_one_clear_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "annotations.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_densepose(path, tmp_path, (64, 32))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_run_length_masks_equal_pycocotools(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    seed, density = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    mask = np.random.default_rng(seed).random((height, width)) < density
    if data.draw(st.booleans()):  # few long runs of very different lengths
        mask = np.roll(np.arange(height * width) % data.draw(st.integers(2, 700)) < 40, seed).reshape(height, width)
    counts = rle(mask.astype(np.uint8))["counts"]
    assert np.array_equal(_run_length_mask(counts, (height, width)), mask)


@settings(deadline=None)
@given(counts=st.text("".join(map(chr, range(48, 112))), max_size=30) | st.text(max_size=5))
def test_a_damaged_run_length_is_an_error_and_nothing_worse(counts: str) -> None:
    with pytest.raises(ValueError, match=r"run|ascii"):
        _run_length_mask(counts, (256, 256))


@pytest.mark.real_data
def test_pascal_person_part(pascal_root: Path, tmp_path: Path) -> None:
    for folder in ("JPEGImages", "part_masks"):
        (tmp_path / folder).symlink_to(pascal_root / folder)
    names = (pascal_root / "val_id.txt").read_text().split()
    assert len(names) == 707
    (tmp_path / "val_id.txt").write_text("\n".join(names[::5]))
    failures: list[Failure] = []
    photos, part_maps = stack(read_pascal(tmp_path, "val", (192, 96), failures))
    assert not failures
    assert 70 < len(photos) < 110
    shares = visible_parts(part_maps).float().mean(0)
    assert bool((shares[:2] == 1).all())
    assert bool((shares[2:] > 0.7).all())
    assert 0.3 < float((part_maps > 0).float().mean()) < 0.5
