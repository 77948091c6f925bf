from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpnet.data.posefiles import CocoPhoto, Pose, coco_poses, main_pose, read_coco, read_openpose
from hpnet.data.skeletons import POINTS14, SKELETONS, as_points14

# The names of the joints in the order of each format, from OpenPose's and COCO's documentation.
COCO18 = [
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
    "right_ear", "left_ear",
]  # fmt: skip
BODY_25 = [
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye",
    "left_eye", "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel", "right_big_toe",
    "right_small_toe", "right_heel",
]  # fmt: skip
COCO17 = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
    "left_ankle", "right_ankle",
]  # fmt: skip
# Somebody who stands in a photo of 128 x 64 pixels and faces us.
STANDING = {
    "nose": (32, 16), "neck": (32, 30), "left_eye": (34, 14), "right_eye": (30, 14), "left_ear": (37, 16),
    "right_ear": (27, 16), "left_shoulder": (43, 30), "right_shoulder": (21, 30), "left_elbow": (49, 46),
    "right_elbow": (15, 46), "left_wrist": (51, 60), "right_wrist": (13, 60), "mid_hip": (32, 64),
    "left_hip": (38, 64), "right_hip": (26, 64), "left_knee": (38, 88), "right_knee": (26, 88),
    "left_ankle": (38, 112), "right_ankle": (26, 112), "left_big_toe": (40, 118), "left_small_toe": (42, 118),
    "left_heel": (37, 115), "right_big_toe": (24, 118), "right_small_toe": (22, 118), "right_heel": (27, 115),
}  # fmt: skip
SIZE = (128, 64)
ALL = set(STANDING)


def triples(order: list[str], seen: set[str] = ALL, flag: float = 2, dx: float = 0, unseen: float = 0) -> list[float]:
    """x, y, flag of each joint; what is not seen is 0, 0 and its own flag."""
    rows = [(STANDING[name][0] + dx, STANDING[name][1], flag) if name in seen else (0, 0, unseen) for name in order]
    return [value for row in rows for value in row]


def openpose(path: Path, *people: list[float], key: str = "pose_keypoints_2d") -> Path:
    """A file as OpenPose writes it."""
    entries = [
        {"person_id": [-1], key: values, "face_keypoints_2d": [], "hand_left_keypoints_2d": []} for values in people
    ]
    path.write_text(json.dumps({"version": 1.3, "people": entries}))
    return path


def coco(path: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("a.jpg",)) -> Path:
    """A file as COCO's person_keypoints."""
    images = [{"id": n, "file_name": name, "height": 128, "width": 64} for n, name in enumerate(names, start=1)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1}]}))
    return path


def pose(seen: set[str] = ALL, dx: float = 0) -> Pose:
    table = torch.tensor(triples(COCO17, seen, dx=dx), dtype=torch.float32).reshape(-1, 3)
    return Pose(table[:, :2], table[:, 2] > 0, "coco17")


# --- OpenPose


@pytest.mark.parametrize("order", [COCO18, BODY_25], ids=["coco", "body_25"])
@pytest.mark.parametrize("key", ["pose_keypoints_2d", "pose_keypoints"])
def test_both_models_of_openpose_give_the_same_joints(tmp_path: Path, order: list[str], key: str) -> None:
    (found,) = read_openpose(openpose(tmp_path / "a_keypoints.json", triples(order, flag=0.7), key=key))
    assert found.skeleton == "openpose18"
    assert found.points.tolist() == [list(map(float, STANDING[name])) for name in COCO18]
    assert bool(found.seen.all())


@pytest.mark.parametrize("order", [COCO18, BODY_25], ids=["coco", "body_25"])
def test_a_confidence_of_0_is_not_seen(tmp_path: Path, order: list[str]) -> None:
    (found,) = read_openpose(openpose(tmp_path / "a.json", triples(order, ALL - {"left_knee", "nose"}, flag=0.04)))
    assert {COCO18[joint] for joint in (~found.seen).nonzero()[:, 0].tolist()} == {"left_knee", "nose"}


def test_the_layout_is_the_one_that_is_drawn(tmp_path: Path) -> None:
    (found,) = read_openpose(openpose(tmp_path / "a.json", triples(BODY_25, flag=1)))
    points, known = as_points14(found.points[None], found.seen[None], found.skeleton)
    assert bool(known.all())
    for number, name in enumerate(POINTS14[2:], start=2):
        assert points[0, number].tolist() == list(map(float, STANDING[name.replace(" ", "_")])), name


def test_who_shows_no_joint_is_nobody(tmp_path: Path) -> None:
    assert read_openpose(openpose(tmp_path / "a.json")) == []
    assert read_openpose(openpose(tmp_path / "a.json", triples(BODY_25, set()))) == []
    assert len(read_openpose(openpose(tmp_path / "a.json", triples(BODY_25, set()), triples(BODY_25, {"nose"})))) == 1


def test_joints_that_are_not_in_pixels_are_refused(tmp_path: Path) -> None:
    small = [value / 128 if place % 3 < 2 else 1 for place, value in enumerate(triples(BODY_25))]
    with pytest.raises(ValueError, match=r"people\[0\]: .*--keypoint_scale 0"):
        read_openpose(openpose(tmp_path / "a.json", small))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a json file"),
        ("{", "not a json file"),
        ("[" * 100_000, "not a json file"),
        ("[]", "no list `people`"),
        ('{"people": 3}', "no list `people`"),
        ('{"people": [3]}', r"people\[0\]: keypoints must be"),
        ('{"people": [{}]}', r"people\[0\]: keypoints must be"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', r"18 x 3 or 25 x 3 numbers, not an array of shape \(3,\)"),
        ('{"people": [{"pose_keypoints_2d": ["x"]}]}', "a list of numbers"),
        ('{"people": [{"pose_keypoints_2d": [[1], [1, 2]]}]}', "a list of numbers"),
        ('{"people": [{"pose_keypoints_2d": {"a": 1}}]}', "a list of numbers"),
        (json.dumps({"people": [{"pose_keypoints_2d": [float("nan"), 1, 1] * 18}]}), "not finite"),
        (json.dumps({"people": [{"pose_keypoints_2d": [1, 1, float("nan")] * 18}]}), "not finite"),
        (json.dumps({"people": [{"pose_keypoints_2d": [1e300, 1, 1] * 18}]}), "not finite"),
        ('{"people": [{"pose_keypoints_2d": [' + "9" * 400 + "]}]}", "a list of numbers"),
    ],
)
def test_a_malformed_openpose_file_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a_keypoints.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_openpose(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(ValueError, match="no such file, or it may not be read"):
            read_openpose(path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a json file"):
        read_openpose(tmp_path / "binary.json")


# --- COCO


def coco_photo(values: list[Any], **changes: Any) -> CocoPhoto:
    return CocoPhoto("a.jpg", changes.pop("size", SIZE), [{"id": 7, "image_id": 1, "keypoints": values, **changes}])


def seen_of(values: list[Any]) -> set[str]:
    (found,) = coco_poses(coco_photo(values), Path("a.json"))
    return {COCO17[joint] for joint in found.seen.nonzero()[:, 0].tolist()}


def test_a_coco_json_gives_its_photos_with_their_people(tmp_path: Path) -> None:
    path = coco(
        tmp_path / "a.json",
        [
            {"id": 1, "image_id": 2, "keypoints": triples(COCO17)},
            {"id": 2, "image_id": 2, "keypoints": triples(COCO17, {"nose"})},
            {"id": 3, "image_id": 1, "keypoints": triples(COCO17, set())},
            {"id": 4, "image_id": 1},  # a box alone
        ],
        ("a.jpg", "query/b.jpg", "c.jpg"),
    )
    photos = read_coco(path)
    assert [(photo.name, photo.size, len(photo.annotations)) for photo in photos] == [
        ("a.jpg", SIZE, 1), ("query/b.jpg", SIZE, 2), ("c.jpg", SIZE, 0)
    ]  # fmt: skip
    assert [len(coco_poses(photo, path)) for photo in photos] == [0, 2, 0]
    first = coco_poses(photos[1], path)[0]
    assert (first.skeleton, SKELETONS[first.skeleton].joints) == ("coco17", 17)
    assert first.points.tolist() == [list(map(float, STANDING[name])) for name in COCO17]


def test_only_visible_joints_are_seen() -> None:
    values = triples(COCO17)
    for name in ("left_wrist", "right_knee", "nose"):
        values[3 * COCO17.index(name) + 2] = 1  # labelled, but hidden
    values[3 * COCO17.index("left_ankle") + 2] = 0
    assert seen_of(values) == {*COCO17} - {"left_wrist", "right_knee", "nose", "left_ankle"}


def test_the_far_shoulder_and_hip_of_a_turned_body_count() -> None:
    values = triples(COCO17)
    for name in ("left_shoulder", "left_hip"):
        values[3 * COCO17.index(name) + 2] = 1
    assert seen_of(values) == {*COCO17}
    values[3 * COCO17.index("right_hip") + 2] = 1  # both behind a desk
    assert seen_of(values) == {*COCO17} - {"left_hip", "right_hip"}
    values[3 * COCO17.index("left_shoulder") + 2] = 0  # nobody knows where it is
    assert seen_of(values) == {*COCO17} - {"left_hip", "right_hip", "left_shoulder"}


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (coco_photo(triples(COCO17), size=(0, 64)), "no usable height and width"),
        (coco_photo(triples(COCO17), size=(None, 64)), "no usable height and width"),
        (coco_photo(triples(COCO17), size=(100_000, 100_000)), "no usable height and width"),
        (coco_photo(triples(COCO17)[:-1]), r"annotation 7 \(a.jpg\): keypoints must be 17 x 3 numbers"),
        (coco_photo(triples(COCO18)), "keypoints must be 17 x 3"),
        (coco_photo(["x"] * 51), "a list of numbers"),
        (coco_photo([1, 1, 3] * 17), "flags of keypoints must be 0, 1 or 2"),
        (coco_photo([1, 1, 0.5] * 17), "flags of keypoints must be 0, 1 or 2"),
        (coco_photo([float("inf"), 1, 2] * 17), "not finite"),
    ],
)
def test_a_damaged_annotation_is_one_clear_line(photo: CocoPhoto, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        coco_poses(photo, Path("some.json"))
    assert str(error.value).startswith("some.json: ")
    assert "a.jpg" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a json file"),
        ("[]", "not annotations in COCO's format"),
        ('{"images": []}', "lacks 'annotations'"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": []}', "lacks 'height'"),
        ('{"images": [], "annotations": [{"image_id": 3, "keypoints": [1]}]}', "lacks 3"),
        ('{"images": [], "annotations": [{"image_id": 3}]}', "no annotation has keypoints"),
        ('{"images": [], "annotations": [4]}', "not annotations in COCO's format"),
    ],
)
def test_a_json_of_another_kind_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_coco(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(error.value)


# --- whose crop it is


def test_the_person_nearest_the_middle_is_kept() -> None:
    left, middle, right = pose(dx=-25), pose(dx=3), pose(dx=20)
    assert main_pose([left, middle, right], SIZE) is middle
    assert main_pose([left, right], SIZE) is right
    assert main_pose([], SIZE) is None


def test_fragments_in_the_middle_are_no_rivals() -> None:
    fragment, whole = pose({"left_hip", "right_hip"}), pose(dx=15)
    assert main_pose([fragment, whole], SIZE) is whole
    assert main_pose([fragment], SIZE) is fragment
    half = pose({name for name in COCO17 if "ankle" not in name and "knee" not in name and "wrist" not in name})
    assert main_pose([half, pose(dx=40)], SIZE) is half  # a person whose legs are hidden is one


@given(st.lists(st.floats(-60, 60), min_size=1, max_size=6), st.randoms())
def test_the_order_of_people_does_not_matter(offsets: list[float], chance: Any) -> None:
    people = [pose(dx=dx) for dx in offsets]
    kept = main_pose(people, SIZE)
    chance.shuffle(people)
    again = main_pose(people, SIZE)
    assert kept is not None
    assert again is not None
    assert abs(float(kept.points[0, 0]) - 31.5) == pytest.approx(abs(float(again.points[0, 0]) - 31.5), abs=1e-3)
