"""People's joints in the files that pose estimators and annotators write: OpenPose's json and COCO's.

In: a json file. Out: the poses it holds, in a layout of `skeletons.SKELETONS`, ready to be drawn; `main_pose` says
whose crop it is where several people are in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hpnet.data.photos import PIXELS_MAX

# OpenPose's BODY_25 in the order of its older COCO model: without the middle of the hips (8) and the feet (19..24).
BODY25: Final = (*range(8), *range(9, 19))
_OPENPOSE_JOINTS: Final = {18: tuple(range(18)), 25: BODY25}
_COCO_JOINTS: Final = 17
_PAIRS: Final = ((5, 6), (11, 12))  # COCO's shoulders and hips
_HIDDEN, _VISIBLE = 1, 2  # COCO's flags; 0 is not labelled
FULL_SHARE: Final = 0.5  # who shows less than this share of the most joints is no rival for the crop


class PoseError(ValueError):
    """A pose file, or one entry of it, that cannot be used; the text names the file and the reason."""


@dataclass(frozen=True, eq=False)
class Pose:
    """The joints of one person.

    Attributes:
        points: x, y in pixels of the photo.
        seen: which joints were seen.
        skeleton: the layout, a key of `skeletons.SKELETONS`.
    """

    points: Float[Tensor, "k 2"]
    seen: Bool[Tensor, " k"]
    skeleton: str


class CocoPhoto(NamedTuple):
    """A photo of a COCO json: file name, (height, width), and the annotations as they stand there."""

    name: str
    size: tuple[int, int]
    annotations: list[dict[str, Any]]


def read_json(path: Path) -> Any:
    """What a json file holds.

    Raises:
        PoseError: missing, unreadable, or not json.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PoseError(f"{path}: no such file, or it may not be read") from error
    except (ValueError, RecursionError) as error:
        raise PoseError(f"{path}: not a json file ({str(error).splitlines()[0]})") from error


def read_openpose(path: Path) -> list[Pose]:
    """The people in one of OpenPose's files, `<photo>_keypoints.json`; those without a joint are left out.

    Both of its models are known: COCO (18 joints) and BODY_25, whose feet are not used. A confidence of 0 means that a
    joint was not seen.

    Raises:
        PoseError: not OpenPose's json, another number of joints, or coordinates that are not pixels.
    """
    content = read_json(path)
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list):
        raise PoseError(f"{path}: not OpenPose's json: it has no list `people`")
    poses = [_openpose_person(person, f"{path}: people[{number}]") for number, person in enumerate(people)]
    return [pose for pose in poses if bool(pose.seen.any())]


def read_coco(path: Path) -> list[CocoPhoto]:
    """The photos of a COCO json and their annotations with `keypoints`, in the json's order.

    Raises:
        PoseError: not json, not COCO's format, or no annotation has keypoints.
    """
    content = read_json(path)
    try:
        sized = {
            photo["id"]: (str(photo["file_name"]), (photo["height"], photo["width"])) for photo in content["images"]
        }
        labelled = [entry for entry in content["annotations"] if entry.get("keypoints")]
        by_photo: dict[Any, list[dict[str, Any]]] = {number: [] for number in sized}
        for entry in labelled:
            by_photo[entry["image_id"]].append(entry)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise PoseError(f"{path}: not annotations in COCO's format ({reason})") from error
    if not labelled:
        raise PoseError(f"{path}: no annotation has keypoints")
    return [CocoPhoto(*sized[number], entries) for number, entries in by_photo.items()]


def coco_poses(photo: CocoPhoto, path: Path) -> list[Pose]:
    """The people of one photo of a COCO json; those without a visible joint are left out.

    A joint counts as seen when it is flagged visible (2), not when it is hidden (1). A hidden shoulder or hip counts
    all the same when its partner is visible: a body seen from the side hides its own far half.

    Args:
        photo: one of `read_coco`.
        path: the json, for messages.

    Raises:
        PoseError: the photo's size or an annotation is damaged.
    """
    if (
        not all(isinstance(side, int) and side >= 1 for side in photo.size)
        or photo.size[0] * photo.size[1] > PIXELS_MAX
    ):
        raise PoseError(f"{path}: {photo.name} has no usable height and width ({photo.size[0]}, {photo.size[1]})")
    poses = []
    for entry in photo.annotations:
        where = f"{path}: annotation {entry.get('id', 'without id')} ({photo.name})"
        table = _table(entry["keypoints"], where, (_COCO_JOINTS,))
        flag = table[:, 2]
        if not bool(torch.isin(flag, torch.tensor([0.0, _HIDDEN, _VISIBLE])).all()):
            raise PoseError(f"{where}: flags of keypoints must be 0, 1 or 2 (visible)")
        seen = flag == _VISIBLE
        for left, right in _PAIRS:
            pair = [left, right]
            seen[pair] |= (flag[pair] == _HIDDEN) & seen[pair].any()
        poses.append(_pose(table, seen, "coco17", where))
    return [pose for pose in poses if bool(pose.seen.any())]


def main_pose(poses: Sequence[Pose], size: tuple[int, int]) -> Pose | None:
    """The person whose crop it is: the one nearest the middle among those that show about as much as anybody.

    Fragments, as estimators see them in clothes and bags, show fewer than half as many joints (`FULL_SHARE`) as the
    fullest person; they are no rivals.

    Args:
        poses: the people of a photo, each with a joint that was seen.
        size: (height, width) of the photo in pixels.

    Returns:
        None where there is nobody.
    """
    most = max((int(pose.seen.sum()) for pose in poses), default=0)
    rivals = [pose for pose in poses if int(pose.seen.sum()) >= FULL_SHARE * most]
    return min(rivals, key=lambda pose: _off_middle(pose, size), default=None)


def _off_middle(pose: Pose, size: tuple[int, int]) -> float:
    """How far the middle of a person's box lies from the photo's middle, in pixels."""
    points = pose.points[pose.seen]
    middle = (points.amin(0) + points.amax(0)) / 2
    return float((middle - torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2])).norm())


def _openpose_person(person: Any, where: str) -> Pose:
    values = person.get("pose_keypoints_2d", person.get("pose_keypoints")) if isinstance(person, dict) else None
    table = _table(values, where, tuple(_OPENPOSE_JOINTS))
    table = table[list(_OPENPOSE_JOINTS[len(table)])]
    pose = _pose(table, table[:, 2] > 0, "openpose18", where)
    points = pose.points[pose.seen]
    if len(points) > 1 and float((points.amax(0) - points.amin(0)).max()) <= 1 and float(points.abs().max()) <= 1:
        raise PoseError(f"{where}: joints lie between -1 and 1, not in pixels; run OpenPose with --keypoint_scale 0")
    return pose


def _table(values: Any, where: str, joints: tuple[int, ...]) -> Float[Tensor, "k 3"]:
    """Triples x, y, flag or confidence, of one of the numbers of joints."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise PoseError(f"{where}: keypoints must be a list of numbers") from error
    if numbers.ndim != 1 or len(numbers) not in [3 * each for each in joints]:
        counts = " or ".join(f"{each} x 3" for each in joints)
        raise PoseError(f"{where}: keypoints must be {counts} numbers, not an array of shape {numbers.shape}")
    table = torch.from_numpy(numbers).float().reshape(-1, 3)
    if not bool(table[:, 2].isfinite().all()):
        raise PoseError(f"{where}: holds values that are not finite")
    return table


def _pose(table: Float[Tensor, "k 3"], seen: Bool[Tensor, " k"], skeleton: str, where: str) -> Pose:
    if not bool(table[seen].isfinite().all()):
        raise PoseError(f"{where}: holds values that are not finite")
    return Pose(table[:, :2], seen, skeleton)
