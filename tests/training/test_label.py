from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from hpnet.data.photos import read_part_map
from hpnet.data.synthetic import draw
from hpnet.training import label as module
from hpnet.training.label import LabellingError, label, middle_person
from hpnet.training.teacher import Teacher, TeacherConfig, save_teacher
from hpnet.weights import WeightsError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that has learnt nothing but says every label somewhere."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = Teacher(TeacherConfig(trunk="resnet18", layer4=False, size=(64, 32)))
    for classify in model.classifiers:
        torch.nn.init.normal_(classify[1].weight, std=0.5)  # type: ignore[index, arg-type]
    save_teacher(model, path, {})
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of two sizes in two folders."""
    root = tmp_path / "photos"
    for number in range(6):
        size = (128, 64) if number % 2 else (96, 40)
        photo = Image.fromarray(draw(number, 0, 0, seed=1, size=size).photo.permute(1, 2, 0).numpy())
        target = root / ("a" if number < 4 else "b/c") / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        photo.save(target)
    return root


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_maps_mirror_the_photos_at_their_own_sizes(
    teacher: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    assert label(str(teacher), photos, out, overlay=True, batch_size=4, json=True) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((out / "manifest.json").read_text())
    paths = sorted(photos.rglob("*.jpg"))
    maps = {path: read_part_map((out / path.relative_to(photos)).with_suffix(".png")) for path in paths}
    for path, part_map in maps.items():
        with Image.open(path) as photo:
            assert tuple(part_map.shape) == (photo.height, photo.width)
        with Image.open(out / "overlays" / path.relative_to(photos)) as overlaid:
            assert overlaid.size == photo.size
    rows = rows_of(out)
    assert [row["photo"] for row in rows] == [path.relative_to(photos).as_posix() for path in paths]
    for row, part_map in zip(rows, maps.values(), strict=True):
        seen = [str(int((part_map == value).any())) for value in (1, 2, 3, 4)]
        assert [row[name] for name in ("head", "torso", "upper_legs", "lower_legs")] == seen
        assert 0.2 <= float(row["certainty"]) <= 1
    assert manifest["maps"] == 6
    assert manifest["visible"]["TORSO"] == pytest.approx(sum(row["torso"] == "1" for row in rows) / 6, abs=1e-4)
    assert any(bool(each.any()) for each in maps.values())
    assert (out / "sheet.jpg").is_file()


def test_a_stopped_run_goes_on_and_writes_nothing_twice(
    teacher: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "maps"
    label(str(teacher), photos, whole)
    real, pieces = module._part_maps, []

    def stops(*given: Any) -> Any:
        pieces.append(given)
        if len(pieces) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(module, "_part_maps", stops)
    with pytest.raises(KeyboardInterrupt):
        label(str(teacher), photos, out, batch_size=2)
    monkeypatch.setattr(module, "_part_maps", real)
    with (out / "labels.csv").open("a") as file:
        file.write("a/2.jpg,0.5,1")  # a torn row
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(before) == 2
    capsys.readouterr()
    assert label(str(teacher), photos, out, batch_size=2) == 0
    assert "2 of 6 photos are labelled already" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert rows_of(out) == rows_of(whole)
    assert (out / "manifest.json").read_text() == (whole / "manifest.json").read_text()
    for path in whole.rglob("*.png"):
        assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes()


def test_labels_of_two_teachers_do_not_mix(teacher: Path, photos: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "maps", tmp_path / "other.safetensors"
    label(str(teacher), photos, out)
    save_teacher(Teacher(TeacherConfig(trunk="resnet18", layer4=False, size=(64, 32))), other, {})
    with pytest.raises(LabellingError, match="was labelled with other weights"):
        label(str(other), photos, out)
    assert label(str(other), photos, out, overwrite=True) == 0
    (out / "manifest.json").write_text("{")
    with pytest.raises(LabellingError, match=r"manifest\.json: damaged"):
        label(str(other), photos, out)


def test_what_cannot_be_read_is_named_and_left_out(
    teacher: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a" / "broken.jpg").write_bytes(b"nothing")
    out = tmp_path / "maps"
    assert label(str(teacher), photos, out, json=True) == 1
    told = capsys.readouterr()
    assert "broken.jpg" in told.err
    manifest = json.loads(told.out)
    assert manifest["maps"] == 6
    assert len(manifest["unreadable"]) == 1
    assert not (out / "a" / "broken.png").exists()


def test_bad_arguments_are_named(teacher: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        label("gone.safetensors", photos, tmp_path / "maps")
    with pytest.raises(LabellingError, match="batch_size must be at least 1"):
        label(str(teacher), photos, tmp_path / "maps", batch_size=0)
    used = tmp_path / "used"
    used.mkdir()
    (used / "letter.txt").write_text("mine")
    with pytest.raises(LabellingError, match="used: holds something else"):
        label(str(teacher), photos, used)
    Image.new("RGB", (8, 16)).save(photos / "a" / "0.png")
    with pytest.raises(LabellingError, match="share a map, a/0 first"):
        label(str(teacher), photos, tmp_path / "maps")


# --- the person in the middle


def person(canvas: NDArray[np.uint8], left: int, top: int = 2) -> NDArray[np.uint8]:
    """A person of 6 x 20 pixels: head 4, torso 6, thighs 5, shins 5 high."""
    for part, (start, end) in enumerate([(0, 4), (4, 10), (10, 15), (15, 20)], start=1):
        canvas[top + start : top + end, left : left + 6] = part
    return canvas


def empty() -> NDArray[np.uint8]:
    return np.zeros((26, 30), np.uint8)


def test_the_one_in_the_middle_is_kept() -> None:
    alone = person(empty(), 12)
    kept, others = middle_person(person(alone.copy(), 23))
    np.testing.assert_array_equal(kept, alone)
    assert others == "apart"
    kept, others = middle_person(alone)
    np.testing.assert_array_equal(kept, alone)
    assert others == ""


def test_a_speck_is_no_person() -> None:
    dirty = person(empty(), 12)
    dirty[24:26, 1:3] = 4
    kept, others = middle_person(dirty)
    np.testing.assert_array_equal(kept, person(empty(), 12))
    assert others == ""


def test_pieces_behind_a_bag_belong_to_the_person() -> None:
    cut = person(empty(), 12)
    cut[12:14] = 0
    kept, others = middle_person(cut)
    np.testing.assert_array_equal(kept, cut)
    assert others == ""


def test_a_second_head_in_line_is_another_person() -> None:
    canvas = np.zeros((50, 30), np.uint8)
    below = person(canvas.copy(), 12, top=27)
    kept, others = middle_person(person(below.copy(), 13, top=2))
    assert others == "apart"
    assert np.count_nonzero(kept) == 120


def test_two_heads_in_one_piece_touch() -> None:
    kept, others = middle_person(person(person(empty(), 9), 16)[:, :] | _bridge())
    assert others == "touching"
    assert np.count_nonzero(kept) == 246


def _bridge() -> NDArray[np.uint8]:
    bridge = empty()
    bridge[6:12, 15] = 2
    return bridge


def test_nobody() -> None:
    kept, others = middle_person(empty())
    assert not kept.any()
    assert others == ""


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_nothing_is_invented(seed: int) -> None:
    random = np.random.default_rng(seed)
    part_map = random.integers(0, 5, (12, 8), dtype=np.uint8) * (random.random((12, 8)) < 0.4).astype(np.uint8)
    kept, _ = middle_person(part_map)
    assert bool(((kept == part_map) | (kept == 0)).all())
    assert bool(kept.any()) == bool(part_map.any())
    again, _ = middle_person(kept)
    assert again.dtype == np.uint8
    assert bool(((again == kept) | (again == 0)).all())
