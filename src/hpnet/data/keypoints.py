"""Part maps from a file of body keypoints, for data sets without a human-labelled or predicted parsing.

In: an .npz of keypoints. Out: a folder of part maps that mirrors the data set. Market-1501's file holds two skeletons
per photo, one that says where the joints are and one that says whether they are seen; `combine` makes one of them.
`skeletons.py` does the drawing.
"""

from __future__ import annotations

import hashlib
import json as json_format
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Num, UInt8
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from hpnet.console import say, tracked
from hpnet.data.photos import write_part_map
from hpnet.data.skeletons import (
    HEAD,
    LEFT_ANKLE,
    LEFT_ARM,
    LEFT_HIP,
    LEFT_LEG,
    LEFT_SHOULDER,
    LEFT_WRIST,
    NECK,
    RIGHT_ARM,
    RIGHT_HIP,
    RIGHT_LEG,
    RIGHT_SHOULDER,
    SHIN,
    SKELETONS,
    TOP,
    draw_part_maps,
    face_middle,
    torso_length,
)
from hpnet.files import write_json
from hpnet.parts import PARTS, visible_parts

RULE: Final = (
    "where: OpenPose's joint if seen, else the 14 points'; legs drawn where OpenPose saw either end, "
    "arms as far as it saw them; head where it saw a joint of the face or the neck leaves room for a head; "
    "nobody found: no head"
)
RULE_POINTS14: Final = "the 14 points alone, all drawn: nothing says whether a joint was seen"
_ROWS_AT_ONCE: Final = 256
_FACE_ON_AXIS: Final = 0.65  # OpenPose's face lies at this share of the 14 points' way from neck to top (median)


def combine(
    points14: Num[Tensor, "n 14 2"], openpose18: Num[Tensor, "n 18 2"]
) -> tuple[Float[Tensor, "n 14 2"], Bool[Tensor, "n 14"]]:
    """One skeleton out of two: the 14 points, always given, and OpenPose's, given where it saw the joint.

    The rule, chosen by looking at some 400 training photos of Market-1501 (`RULE` is its short form):

    - Where: OpenPose's place of a joint it saw (where both give the knees but differ by more than 10 pixels, 9 % of
      photos, OpenPose is nearly always nearer), else the 14 points' (left and right exchanged where that fits OpenPose
      better). An unseen ankle that the 14 points squeeze against its knee was cut off by the picture's edge: the shin
      goes on in the thigh's direction.
    - Thigh and shin are drawn when OpenPose saw either of their ends, since it often misses knees (8 % of photos) and
      ankles (15 %) in plain sight. It is strict where it saw neither knee nor ankle (5 %): no shin is drawn, though
      some seven of ten such photos show one.
    - An arm is drawn only as far as OpenPose saw it, since the 14 points' hidden arms are guesses; the trunk always.
    - The head is drawn when OpenPose saw a joint of the face; also when it saw none (11 %) but the neck lies so low
      that the picture has room for a head: people from behind, dark hair before a dark door; nine of ten are right.
    - Where OpenPose found nobody (3 %), trunk and legs are drawn from the 14 points, the head not.

    Args:
        points14: x, y in pixels.
        openpose18: x, y in pixels, -1 = not seen.

    Returns:
        Skeletons in the layout of the 14 points, and which points count as seen; `draw_part_maps` draws them.
    """
    joints, joint_seen = openpose18.float(), (openpose18 >= 0).all(-1)
    anyone = joint_seen.any(1)
    where = points14.float().clone()
    for right, left in ((RIGHT_ARM, LEFT_ARM), (RIGHT_LEG, LEFT_LEG)):
        where[:, right + left] = _sides_matched(
            where[:, right + left], joints[:, right + left], joint_seen[:, right + left]
        )
    limbs = slice(RIGHT_SHOULDER, LEFT_ANKLE + 1)  # both labellings number the limbs alike
    where[:, limbs] = torch.where(joint_seen[:, limbs, None], joints[:, limbs], where[:, limbs])
    unit = torso_length(where, torch.ones_like(joint_seen[:, :14]))

    seen = torch.zeros_like(joint_seen[:, :14])
    seen[:, [NECK, RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP]] = True
    seen[:, RIGHT_SHOULDER : LEFT_WRIST + 1] |= joint_seen[:, RIGHT_SHOULDER : LEFT_WRIST + 1]
    for hip, knee, ankle in (RIGHT_LEG, LEFT_LEG):
        seen[:, ankle] = joint_seen[:, [knee, ankle]].any(1) | ~anyone
        seen[:, knee] = joint_seen[:, [hip, knee, ankle]].any(1) | ~anyone
        cut = joint_seen[:, knee] & ~joint_seen[:, ankle]
        where[:, ankle] = _shin_continued(where[:, [hip, knee, ankle]], unit, cut)
    where[:, TOP], seen[:, TOP] = _head(where, joints, joint_seen, unit)
    return where, seen


def _sides_matched(
    where: Float[Tensor, "n 6 2"], joints: Float[Tensor, "n 6 2"], seen: Bool[Tensor, "n 6"]
) -> Float[Tensor, "n 6 2"]:
    """A pair of limbs (right then left), exchanged where that lies nearer to the joints seen."""
    exchanged = where[:, [3, 4, 5, 0, 1, 2]]
    as_given = ((where - joints).norm(dim=-1) * seen).sum(1)
    other_way = ((exchanged - joints).norm(dim=-1) * seen).sum(1)
    return torch.where((other_way < as_given)[:, None, None], exchanged, where)


def _shin_continued(
    leg: Float[Tensor, "n 3 2"], unit: Float[Tensor, " n"], cut: Bool[Tensor, " n"]
) -> Float[Tensor, "n 2"]:
    """The ankle of a leg (hip, knee, ankle); in the thigh's direction where it is `cut` and squeezed to its knee."""
    hip, knee, ankle = leg.unbind(1)
    squeezed = cut & ((ankle - knee).norm(dim=-1) < 0.4 * unit)
    thigh = knee - hip
    direction = thigh / thigh.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return torch.where(squeezed[:, None], knee + direction * (SHIN * unit)[:, None], ankle)


def _head(
    where: Float[Tensor, "n 14 2"],
    joints: Float[Tensor, "n 18 2"],
    seen: Bool[Tensor, "n 18"],
    unit: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, " n"]]:
    """The top of the head (the middle of what both skeletons say) and whether the head is drawn."""
    face, face_seen = face_middle(joints, seen, SKELETONS["openpose18"].face)
    by_face = where[:, NECK] + (face - where[:, NECK]) / _FACE_ON_AXIS
    upright = where[:, NECK] - torch.stack([torch.zeros_like(unit), HEAD * unit], 1)
    plausible = where[:, NECK, 1] - where[:, TOP, 1] > 0.5 * HEAD * unit
    top = torch.where(plausible[:, None], where[:, TOP], upright)
    top = torch.where(face_seen[:, None], (by_face + where[:, TOP]) / 2, top)
    neck_height = torch.where(seen[:, 1], joints[:, 1, 1], where[:, NECK, 1])
    return top, face_seen | (seen.any(1) & (neck_height > 0.3 * unit))


class KeypointError(ValueError):
    """A keypoint file that cannot be used; the text names the file, the array and the reason."""


@dataclass(frozen=True)
class KeypointTable:
    """The keypoints of one folder of photos, row by row.

    Attributes:
        names: file names of the photos.
        points14: x, y in pixels, always given.
        openpose18: x, y in pixels, -1 = not seen; None where the file has none for this folder.
    """

    names: tuple[str, ...]
    points14: Integer[Tensor, "n 14 2"]
    openpose18: Integer[Tensor, "n 18 2"] | None

    def part_maps(self, size: tuple[int, int]) -> UInt8[Tensor, "n H W"]:
        """The part maps of all photos, by `combine` where both skeletons are known, else from the 14 points alone."""
        if self.openpose18 is None:
            return draw_part_maps(
                self.points14, torch.ones(self.points14.shape[:2], dtype=torch.bool), size, "points14"
            )
        return draw_part_maps(*combine(self.points14, self.openpose18), size, "points14")


def read_keypoints(path: Path) -> dict[str, KeypointTable]:
    """Read a keypoint file: `<split>/names`, `<split>/points14` (n,14,2) and maybe `<split>/openpose18` (n,18,2).

    Args:
        path: an .npz; nothing in it is executed (pickled arrays are refused).

    Returns:
        One table per split, which is named like the folder of its photos.

    Raises:
        KeypointError: missing, not an .npz, pickled, or an array that lacks or has another shape, type or length.
    """
    if not Path(path).is_file():
        raise KeypointError(f"{path}: no such keypoint file")
    try:
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = {key: archive[key] for key in archive.files} if isinstance(archive, np.lib.npyio.NpzFile) else None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = "pickled objects are not read" if "allow_pickle" in str(error) else str(error).split(". ")[0]
        raise KeypointError(f"{path}: not a readable .npz of keypoints ({reason})") from error
    if arrays is None:
        raise KeypointError(f"{path}: holds a single array, not an .npz of <split>/names and <split>/points14")
    splits = sorted(key.removesuffix("/names") for key in arrays if key.endswith("/names"))
    if not splits:
        raise KeypointError(f"{path}: has no array <split>/names; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    return {split: _table(path, split, arrays) for split in splits}


def keypoints_to_parts(
    keypoints: Path,
    out: Path,
    *,
    split: str = "bounding_box_train",
    size: tuple[int, int] = (128, 64),
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Draw part maps from body keypoints into a folder that mirrors the data set.

    Writes OUT/<split>/<photo's name>.png and OUT/manifest.json, which says what they were drawn from, by which rule,
    and in how many photos each part is visible. Maps that are there already are kept.

    Args:
        keypoints: .npz with <split>/names, <split>/points14 and, where known, <split>/openpose18.
        out: folder for the maps.
        split: folder of photos to draw maps for, or "all".
        size: height and width of the photos in pixels, in which the keypoints are given: --size [128,64].
        overwrite: draw again what is there already.
        json: print the manifest as JSON instead of a table.

    Returns:
        0.
    """
    tables = read_keypoints(keypoints)
    if split != "all" and split not in tables:
        raise KeypointError(f"{keypoints}: has no split {split!r}; it has {', '.join(tables)} (or choose all)")
    if min(size) < 1:
        raise KeypointError(f"size must be a height and a width of at least 1 pixel, not {size[0]} x {size[1]}")
    if out.exists() and not out.is_dir():
        raise KeypointError(f"{out}: is a file; give a folder for the maps")
    source = {"source_sha256": hashlib.sha256(Path(keypoints).read_bytes()).hexdigest(), "size": list(size)}
    manifest = _manifest_begun(out / "manifest.json", {**source, "source": Path(keypoints).name}, overwrite)
    write_json(out / "manifest.json", manifest)  # first, so that also a broken-off run says what it drew from
    for name in tables if split == "all" else (split,):
        manifest["splits"][name] = _write_split(tables[name], out / name, size, overwrite)
        write_json(out / "manifest.json", manifest)
    _report(manifest, out, json)
    return 0


def _table(path: Path, split: str, arrays: Mapping[str, NDArray[Any]]) -> KeypointTable:
    names = arrays[f"{split}/names"]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise KeypointError(f"{path}: {split}/names must be a row of strings, not {names.dtype} {names.shape}")
    if not _plain(split):
        raise KeypointError(f"{path}: {split!r} is no plain folder name")
    if strange := next((str(name) for name in names if not _plain(str(name))), None):
        raise KeypointError(f"{path}: {split}/names holds {strange!r}, which is no plain file name")
    if len({PurePath(str(name)).stem for name in names}) < len(names):
        raise KeypointError(f"{path}: {split}/names holds two photos that would share one map")
    if f"{split}/points14" not in arrays:
        raise KeypointError(f"{path}: lacks the array {split}/points14")
    found: dict[str, Tensor] = {}
    for key, joints in (("points14", 14), ("openpose18", 18)):
        if (array := arrays.get(f"{split}/{key}")) is None:
            continue
        if array.shape != (len(names), joints, 2) or array.dtype.kind not in "iu":
            raise KeypointError(
                f"{path}: {split}/{key} must be integers of shape {(len(names), joints, 2)}, "
                f"not {array.dtype} {array.shape}"
            )
        found[key] = torch.from_numpy(array.astype(np.int64))
    return KeypointTable(tuple(str(name) for name in names), found["points14"], found.get("openpose18"))


def _plain(name: str) -> bool:
    """Whether a name can be made a file of a folder without leaving it."""
    return name not in ("", ".", "..") and PurePath(name).name == name and "\0" not in name


def _write_split(table: KeypointTable, folder: Path, size: tuple[int, int], overwrite: bool) -> dict[str, Any]:
    """Write one folder of maps and return its entry in the manifest."""
    present = set() if overwrite or not folder.is_dir() else {entry.name for entry in os.scandir(folder)}
    visible = torch.zeros(len(PARTS), dtype=torch.long)
    written = 0
    for names, maps in _pieces(table, size, folder.name):
        visible += visible_parts(maps).sum(0)
        for name, part_map in zip(names, maps, strict=True):
            if (target := f"{PurePath(name).stem}.png") not in present:
                write_part_map(folder / target, part_map)
                written += 1
    both = table.openpose18 is not None
    return {
        "maps": len(table.names),
        "written": written,
        "skeleton": "points14 + openpose18" if both else "points14",
        "rule": RULE if both else RULE_POINTS14,
        "visible": {part.name: round(int(visible[part]) / max(1, len(table.names)), 4) for part in PARTS},
    }


def _pieces(
    table: KeypointTable, size: tuple[int, int], title: str
) -> Iterator[tuple[tuple[str, ...], UInt8[Tensor, "n H W"]]]:
    """Names and maps in pieces, so that memory stays bounded and the bar moves."""
    starts = range(0, len(table.names), _ROWS_AT_ONCE)
    for start in tracked(starts, f"drawing {title}"):
        rows = slice(start, start + _ROWS_AT_ONCE)
        joints = None if table.openpose18 is None else table.openpose18[rows]
        piece = KeypointTable(table.names[rows], table.points14[rows], joints)
        yield piece.names, piece.part_maps(size)


def _manifest_begun(path: Path, source: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The folder's manifest to go on with; maps of two sources or sizes must not mix in one folder."""
    if overwrite or not path.is_file():
        return {**source, "splits": {}}
    try:
        earlier: dict[str, Any] = json_format.loads(path.read_text(encoding="utf-8"))
        same = all(earlier[key] == source[key] for key in ("source_sha256", "size"))
        splits = dict(earlier["splits"])
    except (ValueError, KeyError, TypeError) as error:
        raise KeypointError(f"{path}: not a manifest of part maps; give an empty folder or --overwrite true") from error
    if not same:
        raise KeypointError(
            f"{path}: the folder holds maps drawn from another file or size; give another folder or --overwrite true"
        )
    return {**source, "splits": splits}


def _report(manifest: dict[str, Any], out: Path, json: bool) -> None:
    if json:
        say(json_format.dumps({"out": str(out), **manifest}))
        return
    table = Table("folder", "maps", "written now", *(f"{part.title} %" for part in PARTS), title=f"part maps in {out}")
    for name, entry in manifest["splits"].items():
        shares = (f"{100 * entry['visible'][part.name]:.1f}" for part in PARTS)
        table.add_row(name, f"{entry['maps']:,}", f"{entry['written']:,}", *shares)
    say(table)
