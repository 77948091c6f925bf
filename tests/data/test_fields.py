from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpnet.data.fields import CONFIDENCE_MIN, JOINTS, LIMBS, PLANES, fields_to_part_map, read_fields
from hpnet.parts import Part, visible_parts

# COCO's 17 joints of somebody who stands in a photo of 128 x 64 pixels, facing us: x, y.
STANDING = np.array(
    [[32, 16], [34, 14], [30, 14], [37, 16], [27, 16], [43, 32], [21, 32], [49, 46], [15, 46], [51, 60], [13, 60],
     [38, 64], [26, 64], [38, 88], [26, 88], [38, 112], [26, 112]],
    dtype=np.float32,
)  # fmt: skip
OPENPIFPAF = [  # its COCO_PERSON_SKELETON, counted from 1, as its documentation lists it
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9), (8, 10), (9, 11),
    (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
]  # fmt: skip


def fields_of(joints: np.ndarray[Any, Any], hidden: tuple[int, ...] = (), stride: int = 8) -> np.ndarray[Any, Any]:
    """What a network like OpenPifPaf's says of a pose: a bump on each joint and a ridge along each limb."""
    y, x = np.mgrid[0:17, 0:9] * stride

    def bump(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        along = other - one
        share = np.clip(((x - one[0]) * along[0] + (y - one[1]) * along[1]) / max(1.0, float(along @ along)), 0, 1)
        far = (x - one[0] - share * along[0]) ** 2 + (y - one[1] - share * along[1]) ** 2
        return 0.9 * np.exp(-far / (2 * 5.0**2))

    pairs = [(joint, joint) for joint in range(17)] + [limb for limb, _ in LIMBS]
    planes = [0 * x if {*pair} & {*hidden} else bump(joints[pair[0]], joints[pair[1]]) for pair in pairs]
    return np.stack(planes).astype(np.float32)


def map_of(fields: np.ndarray[Any, Any], size: tuple[int, int] = (128, 64)) -> Tensor:
    return fields_to_part_map(torch.from_numpy(fields), size)


def single(plane: int) -> set[Part]:
    fields = np.zeros((PLANES, 3, 2), np.float32)
    fields[plane] = 1
    shown = visible_parts(map_of(fields, (12, 8)))
    return {part for part in Part if bool(shown[part])}


def test_the_planes_are_openpifpafs() -> None:
    assert len(JOINTS) == 17
    assert [(one + 1, other + 1) for (one, other), _ in LIMBS] == OPENPIFPAF
    assert PLANES == 36


@pytest.mark.parametrize(
    ("planes", "parts"),
    [
        (range(5), {Part.HEAD}),  # nose, eyes, ears
        (range(5, 11), {Part.TORSO}),  # shoulders, elbows, wrists
        (range(11, 15), set()),  # hips and knees lie between two parts
        (range(15, 17), {Part.LOWER_LEGS}),  # ankles
        ((17, 19), {Part.LOWER_LEGS}),  # ankle to knee
        ((18, 20), {Part.UPPER_LEGS}),  # knee to hip
        (range(21, 29), {Part.TORSO}),  # hips, sides, shoulders, arms
        (range(29, 34), {Part.HEAD}),
        ((34, 35), set()),  # ear to shoulder
    ],
)
def test_every_plane_speaks_for_its_part(planes: Any, parts: set[Part]) -> None:
    assert all(single(plane) == parts for plane in planes)


def test_a_standing_person_lies_where_its_joints_are() -> None:
    part_map = map_of(fields_of(STANDING))
    assert part_map.dtype == torch.uint8
    for x, y, part in (
        (32, 15, Part.HEAD), (32, 32, Part.TORSO), (46, 39, Part.TORSO), (50, 53, Part.TORSO), (40, 48, Part.TORSO),
        (38, 78, Part.UPPER_LEGS), (26, 78, Part.UPPER_LEGS), (38, 100, Part.LOWER_LEGS), (26, 112, Part.LOWER_LEGS),
    ):  # fmt: skip
        assert part_map[y, x] == part.label, (x, y, part)
    for x, y in ((2, 2), (60, 10), (2, 100), (62, 126)):
        assert part_map[y, x] == 0


@pytest.mark.parametrize(("row", "column"), [(4, 2), (8, 4), (13, 6)])
def test_cells_lie_on_every_eighth_pixel(row: int, column: int) -> None:
    fields = np.zeros((PLANES, 17, 9), np.float32)
    fields[0, row, column] = 1
    where = map_of(fields).nonzero().float().mean(0)
    assert where.tolist() == pytest.approx([8 * row, 8 * column], abs=1)


@pytest.mark.parametrize("size", [(256, 128), (64, 32)])
def test_another_size_shows_the_same(size: tuple[int, int]) -> None:
    small, other = map_of(fields_of(STANDING)), map_of(fields_of(STANDING), size)
    for x, y in ((32, 15), (38, 78), (26, 100), (2, 2)):
        assert other[y * size[0] // 128, x * size[1] // 64] == small[y, x]


def test_hidden_legs_are_not_shown() -> None:
    shown = visible_parts(map_of(fields_of(STANDING, hidden=(13, 14, 15, 16))))
    assert shown.tolist() == [True, True, False, False]


def test_what_is_unsure_is_background() -> None:
    fields = np.zeros((PLANES, 2, 2), np.float32)
    fields[0] = CONFIDENCE_MIN - 0.01
    assert not map_of(fields, (4, 4)).any()
    fields[0] = CONFIDENCE_MIN + 0.01
    assert bool((map_of(fields, (4, 4)) == Part.HEAD.label).all())
    fields[5] = CONFIDENCE_MIN + 0.02
    assert bool((map_of(fields, (4, 4)) == Part.TORSO.label).all())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_a_file_is_read_whatever_its_floats(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "a.npy"
    np.save(path, fields_of(STANDING).astype(dtype))
    fields = read_fields(path)
    assert fields.dtype == torch.float32
    assert torch.allclose(fields, torch.from_numpy(fields_of(STANDING)), atol=1e-3)


def test_planes_that_are_stored_otherwise_are_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(fields_of(STANDING)))
    assert torch.equal(read_fields(tmp_path / "a.npy"), torch.from_numpy(fields_of(STANDING)))


def damaged(kind: str) -> np.ndarray[Any, Any]:
    good = fields_of(STANDING)
    changed = {
        "five planes": good[:5],
        "last plane missing": good[:-1],
        "two dimensions": good[0],
        "channels last": good.transpose(1, 2, 0),
        "no cells": good[:, :0],
        "bytes": (255 * good).astype(np.uint8),
        "logits": 8 * good,
        "nan": np.where(good > 0.89, np.nan, good),
        "objects": np.array([{"a": 1}], dtype=object),
    }
    return np.asarray(changed[kind])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("five planes", r"36 planes .* not an array of shape \(5, 17, 9\)"),
        ("last plane missing", r"\(35, 17, 9\)"),
        ("two dimensions", r"\(17, 9\)"),
        ("channels last", r"\(17, 9, 36\)"),
        ("no cells", r"\(36, 0, 9\)"),
        ("bytes", "floats, not uint8"),
        ("logits", "7.2, which is no confidence"),
        ("nan", "not finite"),
        ("objects", "nothing pickled is read"),
    ],
)
def test_other_arrays_are_one_clear_line(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, damaged(kind), allow_pickle=True)
    with pytest.raises(ValueError, match=message) as error:
        read_fields(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable .npy"),
        (b"hello", "not a readable .npy"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran", "not a readable .npy"),
        (pickle.dumps([1, 2]), "nothing pickled is read"),
        (b"PK\x05\x06" + bytes(18), "an archive"),
    ],
)
def test_other_files_are_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_fields(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_header_that_promises_a_giant_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((36, 10, 10), np.float32))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(36, 10, 10), }      ", b"(36, 99999, 999999), }"[:21]))
    with pytest.raises(ValueError, match="not a readable"):
        read_fields(path)
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="not a readable"):
        read_fields(path)
    with pytest.raises(ValueError, match="no such file"):
        read_fields(tmp_path / "gone.npy")
    with pytest.raises(ValueError, match="not a readable"):
        read_fields(tmp_path)
