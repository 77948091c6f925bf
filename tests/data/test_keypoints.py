from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpnet.data.keypoints import RULE, RULE_POINTS14, combine, draw_part_maps, keypoints_to_parts, read_keypoints
from hpnet.data.photos import read_part_map
from hpnet.parts import Part, visible_parts

POINTS = np.array(
    [[32, 6], [32, 24], [22, 28], [15, 44], [12, 58], [42, 28], [49, 44], [52, 58],
     [26, 64], [26, 88], [26, 112], [38, 64], [38, 88], [38, 112]],
    dtype=np.int16,
)  # fmt: skip
FACE = np.array([[32, 12], [30, 11], [34, 11], [28, 12], [36, 12]], dtype=np.int16)
OPENPOSE = np.concatenate([FACE[:1], POINTS[1:], FACE[1:]])
FACE_JOINTS = [0, 14, 15, 16, 17]
NOBODY = np.full_like(OPENPOSE, -1)


def without(*joints: int) -> np.ndarray[Any, Any]:
    hidden = OPENPOSE.copy()
    hidden[list(joints)] = -1
    return hidden


def combined(points: np.ndarray[Any, Any], openpose: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor, set[Part]]:
    where, seen = combine(torch.tensor(points[None]), torch.tensor(openpose[None]))
    part_map = draw_part_maps(where, seen, (128, 64), "points14")[0]
    return where[0], seen[0], {part for part in Part if bool(visible_parts(part_map)[part])}


@pytest.fixture
def keypoints(tmp_path: Path) -> Path:
    """Three training photos (whole, legs hidden, nobody found) and two queries without OpenPose."""
    path = tmp_path / "keypoints.npz"
    arrays = {
        "bounding_box_train/names": np.array(["0002_c1.jpg", "0002_c2.jpg", "0007_c1.jpg"]),
        "bounding_box_train/points14": np.stack([POINTS] * 3),
        "bounding_box_train/openpose18": np.stack([OPENPOSE, without(9, 10, 12, 13, 8, 11), NOBODY]),
        "query/names": np.array(["0001_c1.jpg", "0001_c2.jpg"]),
        "query/points14": np.stack([POINTS] * 2),
    }
    np.savez(path, **arrays)
    return path


def test_a_whole_person_has_all_parts() -> None:
    where, seen, parts = combined(POINTS, OPENPOSE)
    assert parts == set(Part)
    assert bool(seen.all())
    assert torch.equal(where[1:], torch.tensor(POINTS[1:]).float())


def test_openpose_says_where_if_it_saw_the_joint_else_the_14_points() -> None:
    moved = without(10)
    moved[9] = (20, 90)
    where, _, _ = combined(POINTS, moved)
    assert where[9].tolist() == [20, 90]
    assert where[10].tolist() == [26, 112]


def test_left_and_right_are_exchanged_where_that_fits() -> None:
    exchanged = POINTS[[0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 8, 9, 10]]
    where, _, _ = combined(exchanged, without(9, 10))  # the right leg's lower joints are the 14 points'
    assert where[8:14].tolist() == POINTS[8:14].tolist()


@pytest.mark.parametrize(
    ("hidden", "parts"),
    [
        ((10, 13), set(Part)),  # ankles are often missed: the knees speak for the shins
        ((9, 12), set(Part)),  # the ankles speak for shins and thighs
        ((9, 10, 12, 13), set(Part) - {Part.LOWER_LEGS}),
        ((8, 9, 10, 11, 12, 13), {Part.HEAD, Part.TORSO}),
        ((0, 14, 15, 16), set(Part)),  # one ear is a head
        ((3, 4, 6, 7), set(Part)),
    ],
)
def test_openpose_says_whether(hidden: tuple[int, ...], parts: set[Part]) -> None:
    assert combined(POINTS, without(*hidden))[2] == parts


def test_an_arm_is_drawn_as_far_as_it_was_seen() -> None:
    seen = combined(POINTS, without(4, 6, 7))[1]
    assert seen[2:8].tolist() == [True, True, False, True, False, False]


def test_a_face_that_openpose_missed_needs_room_for_a_head() -> None:
    from_behind = without(*FACE_JOINTS)
    assert Part.HEAD in combined(POINTS, from_behind)[2]
    cut = from_behind.copy()
    cut[1:14, 1] -= 22  # the neck at the picture's upper edge
    cut_points = POINTS.copy()
    cut_points[:, 1] -= 22
    cut_points[0, 1] = 1  # the 14 points squeeze the head into the picture
    assert combined(cut_points, cut)[2] == set(Part) - {Part.HEAD}


def test_a_head_that_hangs_below_its_neck_is_set_upright() -> None:
    points = POINTS.copy()
    points[0] = (32, 45)
    where, seen, _ = combined(points, without(*FACE_JOINTS))
    assert bool(seen[0])
    assert 1 < where[0, 1] < 12


def test_a_shin_cut_off_by_the_edge_goes_on_beyond_it() -> None:
    points, openpose = POINTS.copy(), without(10, 13)
    openpose[[9, 12], 1] = 118
    points[[10, 13], 1] = 124  # squeezed into the picture
    where, _, parts = combined(points, openpose)
    assert bool((where[[10, 13], 1] > 130).all())
    assert parts == set(Part)


def test_where_nobody_was_found_the_14_points_give_all_but_the_head() -> None:
    where, seen, parts = combined(POINTS, NOBODY)
    assert parts == set(Part) - {Part.HEAD}
    assert where[8:].tolist() == POINTS[8:].tolist()
    assert not bool(seen[[3, 4, 6, 7]].any())


def test_the_verb_mirrors_the_data_set(keypoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "parts"
    assert keypoints_to_parts(keypoints, out, split="all", json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert printed == {"out": str(out), **manifest}
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert names == [
        "bounding_box_train/0002_c1.png", "bounding_box_train/0002_c2.png", "bounding_box_train/0007_c1.png",
        "manifest.json", "query/0001_c1.png", "query/0001_c2.png",
    ]  # fmt: skip
    tables = read_keypoints(keypoints)
    expected = tables["bounding_box_train"].part_maps((128, 64))
    assert torch.equal(read_part_map(out / "bounding_box_train" / "0002_c2.png"), expected[1])
    train, query = manifest["splits"]["bounding_box_train"], manifest["splits"]["query"]
    assert train["visible"] == {"HEAD": 0.6667, "TORSO": 1.0, "UPPER_LEGS": 0.6667, "LOWER_LEGS": 0.6667}
    assert (train["maps"], train["rule"], query["maps"], query["rule"]) == (3, RULE, 2, RULE_POINTS14)
    assert query["visible"]["HEAD"] == 1.0  # nothing says whether: all is drawn
    assert manifest["source_sha256"] == hashlib.sha256(keypoints.read_bytes()).hexdigest()
    assert manifest["size"] == [128, 64]


def test_what_exists_is_kept_unless_asked(keypoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    keypoints_to_parts(keypoints, out)
    first, second = out / "bounding_box_train" / "0002_c1.png", out / "bounding_box_train" / "0002_c2.png"
    first.write_bytes(b"mine")
    second.unlink()
    keypoints_to_parts(keypoints, out)
    assert first.read_bytes() == b"mine"
    assert read_part_map(second).shape == (128, 64)
    assert json.loads((out / "manifest.json").read_text())["splits"]["bounding_box_train"]["written"] == 1
    keypoints_to_parts(keypoints, out, split="query")
    assert set(json.loads((out / "manifest.json").read_text())["splits"]) == {"bounding_box_train", "query"}
    keypoints_to_parts(keypoints, out, overwrite=True)
    assert read_part_map(first).shape == (128, 64)


def test_maps_of_two_sources_or_sizes_do_not_mix(keypoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    keypoints_to_parts(keypoints, out)
    with pytest.raises(ValueError, match=r"manifest\.json: .*another file or size.*--overwrite"):
        keypoints_to_parts(keypoints, out, size=(256, 128))
    (out / "manifest.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"manifest\.json: not a manifest"):
        keypoints_to_parts(keypoints, out)


def test_the_table_names_folders_and_shares(
    keypoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    keypoints_to_parts(keypoints, tmp_path / "parts")
    printed = capsys.readouterr().out
    assert "bounding_box_train" in printed
    assert "66.7" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/names": None}, "no array <split>/names"),
        ({"train/points14": None}, "lacks the array train/points14"),
        ({"train/points14": np.zeros((2, 14, 2), np.int16)}, r"train/points14 must be integers of shape \(1, 14, 2\)"),
        ({"train/points14": np.zeros((1, 14, 2))}, "train/points14 must be integers"),
        (
            {"train/openpose18": np.zeros((1, 17, 2), np.int16)},
            r"train/openpose18 must be integers of shape \(1, 18, 2\)",
        ),
        ({"train/names": np.array([b"a.jpg"])}, "train/names must be a row of strings"),
        ({"train/names": np.array(["../../a.jpg"])}, "'../../a.jpg', which is no plain file name"),
        ({"train/names": np.array(["a.jpg", "a.png"])}, "two photos that would share one map"),
        ({"train/names": np.array([object()], dtype=object)}, "pickled objects are not read"),
    ],
)
def test_a_malformed_file_is_one_clear_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {"train/names": np.array(["a.jpg"]), "train/points14": POINTS[None], "train/openpose18": OPENPOSE[None]}
    path = tmp_path / "bad.npz"
    np.savez(path, **{key: value for key, value in {**arrays, **change}.items() if value is not None})
    with pytest.raises(ValueError, match=message) as error:
        keypoints_to_parts(path, tmp_path / "out", split="train")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_keypoint_file_is_one_clear_line(keypoints: Path, tmp_path: Path) -> None:
    broken, single = tmp_path / "broken.npz", tmp_path / "single.npy"
    broken.write_bytes(keypoints.read_bytes()[:-400])
    np.save(single, POINTS)
    for path, message in (
        (tmp_path / "none.npz", "no such keypoint file"),
        (broken, "not a readable"),
        (single, "a single array"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read_keypoints(path)
        assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="no split 'gallery'; it has bounding_box_train, query"):
        keypoints_to_parts(keypoints, tmp_path / "out", split="gallery")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        keypoints_to_parts(keypoints, tmp_path / "out", size=(0, 64))
    with pytest.raises(ValueError, match="is a file; give a folder"):
        keypoints_to_parts(keypoints, broken)


@pytest.mark.real_data
def test_market_1501(real_data: Path, tmp_path: Path) -> None:
    table = read_keypoints(real_data / "market1501_keypoints.npz")["bounding_box_train"]
    assert len(table.names) == 12_936
    assert table.openpose18 is not None
    every = slice(None, None, 10)
    started = time.process_time()
    where, seen = combine(table.points14[every], table.openpose18[every])
    maps = draw_part_maps(where, seen, (128, 64), "points14")
    assert time.process_time() - started < 12  # a tenth of the set; the rest takes as long each
    share = visible_parts(maps).float().mean(0)
    for part, expected in zip(Part, (0.96, 1.0, 0.99, 0.95), strict=True):
        assert float(share[part]) == pytest.approx(expected, abs=0.015)
    covered = [float((maps == part.label).float().mean()) for part in Part]
    assert sorted(Part, key=lambda part: covered[part]) == [Part.HEAD, Part.LOWER_LEGS, Part.UPPER_LEGS, Part.TORSO]
