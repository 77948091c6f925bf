"""Skeletons and the part maps drawn from them: limbs as capsules, head and torso as filled shapes.

In: joints of people in photos (where they are, which were seen), in one of the labellings of `SKELETONS`. Out: part
maps. Every width is a share of the skeleton's own torso length, so that near and far people are drawn alike. A joint
that was not seen gives no limb, so the map also says which parts are hidden.

Every labelling of joints is first brought into one layout, the 14 points (`as_points14`); one table of shapes and one
drawing routine serve them all. Shapes are painted in the table's order, later ones cover earlier ones: lower legs,
upper legs, torso, arms, head; a shirt hangs over the hips, an arm before the trunk, hair over the shoulders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Num, UInt8
from torch import Tensor

from hpnet.parts import Part

POINTS14: Final = (
    "head top", "neck",
    "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
    "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
)  # fmt: skip
(
    TOP, NECK,
    RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST, LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST,
    RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE, LEFT_HIP, LEFT_KNEE, LEFT_ANKLE,
    HIPS,  # the middle of the hips, added by the drawing routine
) = range(15)  # fmt: skip
RIGHT_ARM, LEFT_ARM = [2, 3, 4], [5, 6, 7]
RIGHT_LEG, LEFT_LEG = [8, 9, 10], [11, 12, 13]


@dataclass(frozen=True)
class Skeleton:
    """A labelling of joints and how the 14 points come out of it.

    Attributes:
        joints: how many joints the labelling has.
        points: for the neck and the twelve points of the limbs, in the order of `POINTS14`, the joints whose middle
            they are; all of them must be seen.
        face: joints of the face (nose, eyes, ears); the top of the head is laid beyond their middle. Empty where
            joint 0 is the top of the head itself.
    """

    joints: int
    points: tuple[tuple[int, ...], ...]
    face: tuple[int, ...] = ()


SKELETONS: Final[dict[str, Skeleton]] = {
    "points14": Skeleton(14, tuple((joint,) for joint in range(1, 14))),
    # OpenPose's COCO order: nose, neck, right arm 2-4, left arm 5-7, right leg 8-10, left leg 11-13, eyes, ears.
    "openpose18": Skeleton(18, tuple((joint,) for joint in range(1, 14)), face=(0, 14, 15, 16, 17)),
    # COCO's order: nose, eyes, ears, then left and right by turns; it has no neck.
    "coco17": Skeleton(
        17,
        ((5, 6), (6,), (8,), (10,), (5,), (7,), (9,), (12,), (14,), (16,), (11,), (13,), (15,)),
        face=(0, 1, 2, 3, 4),
    ),
}

# Measured on Market-1501's training photos, where the 14 points and OpenPose stand side by side (medians):
_FACE_BELOW_TOP: Final = 0.72  # the middle of the face lies at this share of the way from the neck joint to the top
_NECK_ABOVE_JOINT: Final = 0.13  # the 14 points' neck lies above OpenPose's, as a share of neck to face
HEAD, SHIN = 0.44, 0.62  # lengths from neck to top and from knee to ankle, in torso lengths
_MEASURED: Final = (  # from, to, length in torso lengths
    (NECK, HIPS, 1.0),
    (NECK, TOP, HEAD),
    (RIGHT_SHOULDER, LEFT_SHOULDER, 0.5),
    (RIGHT_HIP, RIGHT_KNEE, 0.61),
    (LEFT_HIP, LEFT_KNEE, 0.61),
    (RIGHT_KNEE, RIGHT_ANKLE, SHIN),
    (LEFT_KNEE, LEFT_ANKLE, SHIN),
)


class _Capsule(NamedTuple):
    """A limb: all within a radius of a line, the radius changing evenly from its begin to its end.

    The line runs from point `start` to point `end`, from share `begin` to share `stop` of the way; a stop beyond 1
    goes on past the joint. Radii are in torso lengths.
    """

    part: Part
    start: int
    end: int
    begin: float
    stop: float
    radius_begin: float
    radius_stop: float


class _Triangle(NamedTuple):
    """The area between three points."""

    part: Part
    corners: tuple[int, int, int]


def _of_both_sides(part: Part, right: tuple[int, int], *shape: float) -> list[_Capsule]:
    left = [point + 3 for point in right]
    return [_Capsule(part, *right, *shape), _Capsule(part, *left, *shape)]


SHAPES: Final[tuple[_Capsule | _Triangle, ...]] = (
    *_of_both_sides(Part.LOWER_LEGS, (RIGHT_KNEE, RIGHT_ANKLE), 0.0, 1.0, 0.13, 0.10),
    *_of_both_sides(Part.LOWER_LEGS, (RIGHT_KNEE, RIGHT_ANKLE), 1.0, 1.22, 0.11, 0.13),  # the foot
    *_of_both_sides(Part.UPPER_LEGS, (RIGHT_HIP, RIGHT_KNEE), 0.0, 0.85, 0.17, 0.14),
    # The trunk: the four corners whatever their order (a turned trunk crosses over), rounded, never thinner than deep.
    _Triangle(Part.TORSO, (RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP)),
    _Triangle(Part.TORSO, (RIGHT_SHOULDER, LEFT_SHOULDER, LEFT_HIP)),
    _Triangle(Part.TORSO, (RIGHT_HIP, LEFT_HIP, RIGHT_SHOULDER)),
    _Triangle(Part.TORSO, (RIGHT_HIP, LEFT_HIP, LEFT_SHOULDER)),
    _Capsule(Part.TORSO, RIGHT_SHOULDER, LEFT_SHOULDER, 0.0, 1.0, 0.10, 0.10),
    *_of_both_sides(Part.TORSO, (RIGHT_SHOULDER, RIGHT_HIP), 0.0, 1.0, 0.10, 0.10),
    _Capsule(Part.TORSO, RIGHT_HIP, LEFT_HIP, 0.0, 1.0, 0.10, 0.10),
    _Capsule(Part.TORSO, NECK, HIPS, 0.3, 0.85, 0.24, 0.24),
    _Capsule(Part.TORSO, NECK, HIPS, 0.0, 0.2, 0.10, 0.16),
    *_of_both_sides(Part.TORSO, (RIGHT_SHOULDER, RIGHT_ELBOW), 0.0, 1.0, 0.11, 0.09),
    *_of_both_sides(Part.TORSO, (RIGHT_ELBOW, RIGHT_WRIST), 0.0, 1.3, 0.08, 0.07),  # with the hand
    _Capsule(Part.HEAD, NECK, TOP, 0.42, 0.70, 0.16, 0.20),
)

_MAPS_AT_ONCE: Final = 64  # 64 maps of 128 x 64 pixels in float32 are 2 MB, which stays in the cache


def as_points14(
    points: Num[Tensor, "n k 2"], seen: Bool[Tensor, "n k"], skeleton: str
) -> tuple[Float[Tensor, "n 14 2"], Bool[Tensor, "n 14"]]:
    """Bring joints of any labelling into the layout of the 14 points.

    Args:
        points: x, y in pixels of the photo; the value of an unseen joint does not matter.
        seen: which joints were seen.
        skeleton: a key of `SKELETONS`.

    Returns:
        The 14 points and which of them are known.

    Raises:
        ValueError: the skeleton is unknown, or has another number of joints.
    """
    if skeleton not in SKELETONS:
        raise ValueError(f"unknown skeleton {skeleton!r}: choose one of {', '.join(SKELETONS)}")
    table = SKELETONS[skeleton]
    if points.shape[1] != table.joints:
        raise ValueError(f"{skeleton} has {table.joints} joints, but {points.shape[1]} were given")
    where = points.float()
    limbs = torch.stack([where[:, list(joints)].mean(1) for joints in table.points], 1)
    limbs_seen = torch.stack([seen[:, list(joints)].all(1) for joints in table.points], 1)
    if not table.face:
        return torch.cat([where[:, :1], limbs], 1), torch.cat([seen[:, :1], limbs_seen], 1)
    face, face_seen = face_middle(where, seen, table.face)
    upwards = torch.where((face_seen & limbs_seen[:, 0])[:, None], face - limbs[:, 0], 0.0)
    top = limbs[:, 0] + upwards / _FACE_BELOW_TOP
    neck = limbs[:, 0] + upwards * _NECK_ABOVE_JOINT
    known = torch.cat([(face_seen & limbs_seen[:, 0])[:, None], limbs_seen], 1)
    return torch.cat([top[:, None], neck[:, None], limbs[:, 1:]], 1), known


def draw_part_map(
    points: Num[Tensor, "k 2"], seen: Bool[Tensor, " k"], size: tuple[int, int], skeleton: str
) -> UInt8[Tensor, "H W"]:
    """Draw the part map of one person; see `draw_part_maps`."""
    return draw_part_maps(points[None], seen[None], size, skeleton)[0]


def draw_part_maps(
    points: Num[Tensor, "n k 2"], seen: Bool[Tensor, "n k"], size: tuple[int, int], skeleton: str
) -> UInt8[Tensor, "n H W"]:
    """Draw the part maps of n people.

    A limb is drawn when both its ends are seen. Points outside the picture are welcome: what lies inside is drawn.

    Args:
        points: x, y in pixels of the photo, pixel centres at whole numbers.
        seen: which joints were seen.
        size: (height, width) of the photo in pixels.
        skeleton: a key of `SKELETONS`.

    Returns:
        Part maps, 0 (background) and 1..4 (`Part.label`). A person without a limb to measure gets an empty map.

    Raises:
        ValueError: the skeleton is unknown or has another number of joints, or a seen joint is not finite.
    """
    points, seen = as_points14(points, seen, skeleton)
    points = torch.where(seen[..., None], points, 0.0)  # an unseen point may hold anything, even NaN
    if not bool(points.isfinite().all()):
        raise ValueError("a joint that was seen must have finite coordinates")
    unit = torso_length(points, seen)
    points = torch.cat([points, points[:, [RIGHT_HIP, LEFT_HIP]].mean(1, keepdim=True)], 1)
    seen = torch.cat([seen, seen[:, [RIGHT_HIP, LEFT_HIP]].all(1, keepdim=True)], 1) & (unit > 0)[:, None]
    maps = torch.zeros(len(points), *size, dtype=torch.uint8)
    for start in range(0, len(points), _MAPS_AT_ONCE):
        rows = slice(start, start + _MAPS_AT_ONCE)
        _paint(maps[rows], points[rows], seen[rows], unit[rows])
    return maps


def face_middle(
    points: Float[Tensor, "n k 2"], seen: Bool[Tensor, "n k"], joints: tuple[int, ...]
) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, " n"]]:
    """The middle of the seen joints of the face, and whether there was one."""
    weight = seen[:, list(joints), None].float()
    middle = torch.where(weight > 0, points[:, list(joints)], 0.0).sum(1) / weight.sum(1).clamp(min=1)
    return middle, seen[:, list(joints)].any(1)


def torso_length(points: Float[Tensor, "n 14 2"], seen: Bool[Tensor, "n 14"]) -> Float[Tensor, " n"]:
    """The skeleton's own unit: the median of the torso lengths that trunk, head, thighs and shins speak for; 0 = none.

    The median, since one stray joint must not change the widths of all limbs.
    """
    with_hips = torch.cat([points, points[:, [RIGHT_HIP, LEFT_HIP]].mean(1, keepdim=True)], 1)
    known = torch.cat([seen, seen[:, [RIGHT_HIP, LEFT_HIP]].all(1, keepdim=True)], 1)
    starts, ends, shares = (list(column) for column in zip(*_MEASURED, strict=True))
    lengths = (with_hips[:, starts] - with_hips[:, ends]).norm(dim=-1) / torch.tensor(shares)
    lengths = torch.where(known[:, starts] & known[:, ends], lengths, torch.nan)
    return lengths.nanmedian(1).values.nan_to_num(0.0)


def _paint(
    maps: UInt8[Tensor, "n H W"], points: Float[Tensor, "n 15 2"], seen: Bool[Tensor, "n 15"], unit: Float[Tensor, " n"]
) -> None:
    """Paint all shapes into the empty maps, in the table's order."""
    row = torch.arange(maps.shape[1], dtype=torch.float32)[:, None]
    column = torch.arange(maps.shape[2], dtype=torch.float32)
    for shape in SHAPES:
        corners = list(shape.corners if isinstance(shape, _Triangle) else (shape.start, shape.end))
        chosen = seen[:, corners].all(1).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        # Offsets of all pixels' columns and rows from each corner: (n, corners, 1, W) and (n, corners, H, 1).
        x = column - points[chosen][:, corners, 0, None, None]
        y = row - points[chosen][:, corners, 1, None, None]
        inside = _in_triangle(x, y) if isinstance(shape, _Triangle) else _in_capsule(x, y, shape, unit[chosen])
        maps[chosen] = maps[chosen].masked_fill_(inside, shape.part.label)


def _in_triangle(x: Float[Tensor, "n 3 1 W"], y: Float[Tensor, "n 3 H 1"]) -> Bool[Tensor, "n H W"]:
    """Pixels on the same side of all three edges; a flat triangle holds none."""
    edge_x, edge_y = (offset - offset.roll(-1, 1) for offset in (x[..., :1], y[..., :1, :]))
    first, second, third = (edge_x * y - edge_y * x).unbind(1)
    left = (first > 0) & (second > 0) & (third > 0)
    return left | ((first < 0) & (second < 0) & (third < 0))


def _in_capsule(
    x: Float[Tensor, "n 2 1 W"], y: Float[Tensor, "n 2 H 1"], shape: _Capsule, unit: Float[Tensor, " n"]
) -> Bool[Tensor, "n H W"]:
    """Pixels nearer to the line than its radius there."""
    unit = unit[:, None, None]
    along_x, along_y = (offset[:, 0] - offset[:, 1] for offset in (x[..., :1], y[..., :1, :]))
    off_x, off_y = x[:, 0] - shape.begin * along_x, y[:, 0] - shape.begin * along_y
    along_x, along_y = along_x * (shape.stop - shape.begin), along_y * (shape.stop - shape.begin)
    length = (along_x**2 + along_y**2).clamp(min=1e-6)
    # Both products are one row or one column per person; only their sum is as large as the picture.
    share = (off_x * (along_x / length) + off_y * (along_y / length)).clamp_(0, 1)
    radius = share * (unit * (shape.radius_stop - shape.radius_begin)) + unit * shape.radius_begin
    distance = (off_x - share * along_x).square_() + (off_y - share * along_y).square_()
    return distance <= radius.square_()
