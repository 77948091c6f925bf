from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpnet.data.labelkinds import KINDS, find_files, recognised

OPENPOSE = {"version": 1.3, "people": []}
IMAGE = {"id": 1, "file_name": "a.jpg", "height": 8, "width": 4}
COCO = {"images": [IMAGE], "annotations": [{"id": 1, "image_id": 1, "keypoints": [1, 1, 2] * 17}]}
DENSEPOSE = {
    "images": [IMAGE],
    "annotations": [{"id": 1}, {"id": 2, "image_id": 1, "dp_masks": [[]], "keypoints": [1]}],
}


def write(path: Path, content: Any) -> None:
    """A label of the kind that its suffix says; content is an array, json, or bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        Image.fromarray(np.array(content, np.uint8)).save(path)


def folder(root: Path, **files: Any) -> Path:
    """A folder of files; `__` in a name stands for a folder, the last `_` for the dot."""
    root.mkdir()
    for name, content in files.items():
        stem, _, suffix = name.replace("__", "/").rpartition("_")
        write(root / f"{stem}.{suffix}", content)
    return root


FIELDS = np.zeros((36, 3, 2), np.float32)
UP_TO = {label: [[0, 1], [min(label, 2), label]] for label in range(256)}


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"train__a_png": UP_TO[7]}, "authors"),
        ({"a_png": UP_TO[3], "b_png": UP_TO[5], "deep__c_png": UP_TO[7]}, "authors"),  # one file of many tells
        ({"a_png": UP_TO[9], "b_png": b"no picture", "c_png": UP_TO[7]}, "authors"),  # a damaged one does not
        ({"a_png": UP_TO[255], "c_png": UP_TO[7]}, "authors"),
        ({"train__a_npy": FIELDS}, "bpbreid"),
        ({"a_npy": b"", "b_npy": FIELDS}, "bpbreid"),
        ({"a_npy": FIELDS.astype(np.float64), "a_jpg": [[1]], "a_png": UP_TO[7]}, "bpbreid"),
        ({"a_keypoints_json": OPENPOSE}, "openpose"),
        ({"a_json": b"{", "b_json": {"people": [{"pose_keypoints_2d": []}]}}, "openpose"),
        ({"JPEGImages__a_jpg": [[1]], "part_masks__a_png": UP_TO[6], "train_id_txt": b"a\n"}, "pascal"),
    ],
)
def test_folders_are_recognised_by_their_content(tmp_path: Path, files: dict[str, Any], kind: str) -> None:
    assert recognised(folder(tmp_path / "some", **files)) == kind


@pytest.mark.parametrize(("content", "kind"), [(COCO, "coco-keypoints"), (DENSEPOSE, "densepose")])
@pytest.mark.parametrize("name", ["a.json", "labels.txt"])
def test_files_are_recognised_by_their_content(tmp_path: Path, content: Any, kind: str, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    assert recognised(tmp_path / name) == kind


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no labels: neither .npy nor .json nor .png"),
        ({"a_jpg": [[1]]}, "holds no labels"),
        ({"a_png": UP_TO[4], "b_png": UP_TO[0]}, "without a label above 4: .*use them as they are; say --kind authors"),
        ({"a_png": UP_TO[4], "manifest_json": {"kind": "x"}}, "not OpenPose's: .*manifest.json: .*'kind'; label maps"),
        ({"a_png": UP_TO[6], "b_png": UP_TO[255]}, "labels up to 6: .*Pascal-Person-Part; say --kind authors"),
        ({"a_png": UP_TO[14]}, "labels up to 14, which no labelling"),
        ({"a_png": [[[1, 2, 3]]]}, "1 .png files, but no label maps: .*a.png: a part map must be"),
        ({"a_npy": FIELDS[:5]}, r"1 .npy files, but no confidence fields: .*a.npy: .*\(5, 3, 2\)"),
        ({"a_json": COCO}, "a.json: annotations: give this file itself"),
        ({"a_json": [1, 2]}, "a.json: a list of 2"),
        ({"a_json": b"{"}, "a.json: not a json file"),
    ],
)
def test_other_folders_are_one_line_that_says_what_they_hold(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    source = folder(tmp_path / "some", **files)
    with pytest.raises(ValueError, match=message) as error:
        recognised(source)
    assert str(error.value).startswith(f"{source}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", FIELDS, "a single label: give the folder"),
        ("a.png", UP_TO[7], "a single label: give the folder"),
        ("a_keypoints.json", OPENPOSE, "one photo's file of OpenPose: give the folder"),
        ("a.json", {"images": [], "annotations": []}, "without labels that are known: an object with 'images', 'anno"),
        ("a.json", [{"image_id": 1, "keypoints": [1]}], "without labels that are known: a list of 1"),
        ("a.json", {}, "an object with nothing in it"),
        ("a.json", 3, "known: a int"),
        ("a.csv", b"path,identity\n", "not a json file"),
    ],
)
def test_other_files_are_one_line_that_says_what_to_do(tmp_path: Path, name: str, content: Any, message: str) -> None:
    write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as error:
        recognised(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")


def test_a_keypoint_file_is_sent_to_its_verb(tmp_path: Path) -> None:
    path = tmp_path / "keypoints.npz"
    np.savez(path, **{"query/names": np.array(["a"]), "query/points14": np.zeros((1, 14, 2), np.int16)})
    with pytest.raises(ValueError, match=r"use `hpnet keypoints-to-parts .*keypoints.npz OUT`"):
        recognised(path)
    np.savez(path, features=np.zeros(3))
    with pytest.raises(ValueError, match="an archive: unpack it"):
        recognised(path)
    with pytest.raises(ValueError, match="no such file or folder"):
        recognised(tmp_path / "gone")


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "some", a_npy=FIELDS, b__c_npy=FIELDS)
    for hidden in ("._a.npy", ".cache/a.npy", "x/.y/z.npy"):
        write(root / hidden, FIELDS)
    (root / "b" / "c.npy").rename(root / "b" / "c.NPY")
    assert find_files(root, ".npy") == [root / "a.npy", root / "b" / "c.NPY"]


def test_every_kind_is_told() -> None:
    assert set(KINDS) == {"authors", "bpbreid", "pascal", "densepose", "openpose", "coco-keypoints"}
