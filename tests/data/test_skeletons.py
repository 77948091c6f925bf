from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpnet.data.skeletons import POINTS14, SKELETONS, as_points14, draw_part_map, draw_part_maps
from hpnet.parts import Part, part_masks, visible_parts

SIZE = (128, 64)
# A person facing the camera, arms a little off the body, in the layout of the 14 points: torso of 40 pixels.
STANDING = torch.tensor(
    [[32, 6], [32, 24], [22, 28], [15, 44], [12, 58], [42, 28], [49, 44], [52, 58],
     [26, 64], [26, 88], [26, 112], [38, 64], [38, 88], [38, 112]],
    dtype=torch.float32,
)  # fmt: skip
ALL_SEEN = torch.ones(14, dtype=torch.bool)
LEGS = list(range(8, 14))


def seen_without(*joints: int) -> Tensor:
    seen = ALL_SEEN.clone()
    seen[list(joints)] = False
    return seen


def shown(part_map: Tensor) -> set[Part]:
    return {part for part in Part if bool(visible_parts(part_map)[part])}


def openpose_of(points: Tensor) -> Tensor:
    """The same person as OpenPose would give it: the neck joint, twelve limb points, and a face around its middle."""
    face = points[1] + 0.72 * (points[0] - points[1])
    around = torch.stack(
        [face + torch.tensor(off) for off in ((0.0, 2.0), (-2.0, 0.0), (2.0, 0.0), (-4.0, -1.0), (4.0, -1.0))]
    )
    return torch.cat([around[:1], points[1:], around[1:]])


def coco_of(points: Tensor) -> Tensor:
    """The same person in COCO's order; its shoulders' middle takes the neck's place."""
    openpose = openpose_of(points)
    return openpose[[0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]]


def test_a_standing_person_shows_all_parts_where_they_are() -> None:
    part_map = draw_part_map(STANDING, ALL_SEEN, SIZE, "points14")
    assert part_map.shape == SIZE
    assert part_map.dtype == torch.uint8
    for x, y, part in (
        (32, 11, Part.HEAD), (32, 40, Part.TORSO), (15, 44, Part.TORSO), (12, 58, Part.TORSO), (12, 61, Part.TORSO),
        (26, 78, Part.UPPER_LEGS), (38, 78, Part.UPPER_LEGS), (26, 100, Part.LOWER_LEGS), (38, 115, Part.LOWER_LEGS),
    ):  # fmt: skip
        assert part_map[y, x] == part.label, (x, y)
    for x, y in ((2, 2), (32, 100), (60, 120), (5, 90), (32, 125)):
        assert part_map[y, x] == 0, (x, y)
    middles = [part_masks(part_map)[part].nonzero().float().mean(0)[0] for part in Part]
    assert middles == sorted(middles)  # from head to feet


def test_later_shapes_cover_earlier_ones() -> None:
    points = STANDING.clone()
    points[7] = torch.tensor([38.0, 80.0])  # the left hand hangs before the thigh
    points[6] = torch.tensor([46.0, 62.0])
    part_map = draw_part_map(points, ALL_SEEN, SIZE, "points14")
    assert part_map[80, 38] == Part.TORSO.label
    bent = STANDING.clone()
    bent[0] = torch.tensor([32.0, 42.0])  # the head bows before the chest
    assert draw_part_map(bent, ALL_SEEN, SIZE, "points14")[34, 32] == Part.HEAD.label


def test_a_limb_needs_both_ends() -> None:
    assert shown(draw_part_map(STANDING, seen_without(0), SIZE, "points14")) == set(Part) - {Part.HEAD}
    assert shown(draw_part_map(STANDING, seen_without(10, 13), SIZE, "points14")) == set(Part) - {Part.LOWER_LEGS}
    no_knees = draw_part_map(STANDING, seen_without(9, 12), SIZE, "points14")
    assert shown(no_knees) == {Part.HEAD, Part.TORSO}
    one_leg = draw_part_map(STANDING, seen_without(8, 9, 10), SIZE, "points14")
    assert one_leg[100, 38] == Part.LOWER_LEGS.label
    assert not one_leg[70:, :28].any()
    assert not draw_part_map(STANDING, ~ALL_SEEN, SIZE, "points14").any()


def test_an_unseen_joint_may_hold_anything() -> None:
    spoilt = STANDING.clone()
    spoilt[[0, 10]] = torch.tensor([[math.nan, math.inf], [-1.0, 1e30]])
    seen = seen_without(0, 10)
    assert torch.equal(draw_part_map(spoilt, seen, SIZE, "points14"), draw_part_map(STANDING, seen, SIZE, "points14"))
    with pytest.raises(ValueError, match="finite"):
        draw_part_map(spoilt, ALL_SEEN, SIZE, "points14")


def test_points_outside_the_picture_are_clipped() -> None:
    wide = draw_part_map(STANDING + torch.tensor([20.0, 40.0]), ALL_SEEN, (200, 110), "points14")
    cut = draw_part_map(STANDING + torch.tensor([20.0, 40.0]), ALL_SEEN, (90, 60), "points14")
    assert torch.equal(cut, wide[:90, :60])
    assert not draw_part_map(STANDING - 500, ALL_SEEN, SIZE, "points14").any()


def test_the_four_corners_of_the_trunk_may_cross() -> None:
    turned = STANDING[[0, 1, 5, 6, 7, 2, 3, 4, 8, 9, 10, 11, 12, 13]]  # shoulders exchanged, hips not
    torso = part_masks(draw_part_map(turned, ALL_SEEN, SIZE, "points14"))[Part.TORSO]
    plain = part_masks(draw_part_map(STANDING, ALL_SEEN, SIZE, "points14"))[Part.TORSO]
    assert bool(torso[30:62, 26:39].all())
    assert abs(int(torso.sum()) - int(plain.sum())) < 0.15 * int(plain.sum())


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.5, 3.0))
def test_widths_grow_with_the_skeleton(scale: float) -> None:
    height, width = int(128 * scale) + 1, int(64 * scale) + 1
    small = draw_part_map(STANDING, ALL_SEEN, SIZE, "points14")
    large = draw_part_map(STANDING * scale, ALL_SEEN, (height, width), "points14")
    for part in Part:
        area = (small == part.label).sum() * scale**2
        assert (large == part.label).sum() == pytest.approx(float(area), rel=0.12)


@settings(deadline=None, max_examples=30)
@given(x=st.integers(-40, 40), y=st.integers(-60, 60))
def test_a_moved_skeleton_gives_the_moved_map(x: int, y: int) -> None:
    offset = torch.tensor([100 + x, 150 + y])
    whole = draw_part_map(STANDING + offset, ALL_SEEN, (420, 260), "points14")
    still = draw_part_map(STANDING, ALL_SEEN, SIZE, "points14")
    assert torch.equal(whole[150 + y : 278 + y, 100 + x : 164 + x], still)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_batch_is_its_people_and_a_mirrored_person_the_mirrored_map(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    coordinate = st.integers(-20, 140)
    flat = data.draw(st.lists(coordinate, min_size=28 * count, max_size=28 * count))
    points = torch.tensor(flat).reshape(count, 14, 2)
    seen = torch.tensor(data.draw(st.lists(st.booleans(), min_size=14 * count, max_size=14 * count))).reshape(count, 14)
    maps = draw_part_maps(points, seen, SIZE, "points14")
    assert int(maps.max()) <= 4
    for row in range(count):
        assert torch.equal(maps[row], draw_part_map(points[row], seen[row], SIZE, "points14"))
    mirrored = points.clone()
    mirrored[..., 0] = SIZE[1] - 1 - points[..., 0]
    # Equal but for pixels exactly on an outline, where rounding decides.
    assert (draw_part_maps(mirrored, seen, SIZE, "points14").flip(-1) != maps).float().mean() < 2e-3


@pytest.mark.parametrize(("skeleton", "given_as"), [("openpose18", openpose_of), ("coco17", coco_of)])
def test_other_skeletons_give_nearly_the_same_map(skeleton: str, given_as: object) -> None:
    assert callable(given_as)
    points = given_as(STANDING)
    assert len(points) == SKELETONS[skeleton].joints
    seen = torch.ones(len(points), dtype=torch.bool)
    part_map = draw_part_map(points, seen, SIZE, skeleton)
    expected = draw_part_map(STANDING, ALL_SEEN, SIZE, "points14")
    for part in Part:
        one, other = part_map == part.label, expected == part.label
        assert (one & other).sum() / (one | other).sum() > 0.75, part


def test_where_the_points_come_from() -> None:
    points = openpose_of(STANDING)
    seen = torch.ones(18, dtype=torch.bool)
    converted, known = as_points14(points[None], seen[None], "openpose18")
    assert torch.equal(converted[0, 2:], STANDING[2:])
    assert bool(known.all())
    assert torch.allclose(converted[0, 0], STANDING[0], atol=2)
    only_an_ear = seen.clone()
    only_an_ear[[0, 14, 15, 16]] = False
    assert bool(as_points14(points[None], only_an_ear[None], "openpose18")[1][0, 0])
    only_an_ear[17] = False
    known = as_points14(points[None], only_an_ear[None], "openpose18")[1][0]
    assert not known[0]
    assert bool(known[1:].all())
    shoulder_hidden = torch.ones(17, dtype=torch.bool)
    shoulder_hidden[6] = False
    known = as_points14(coco_of(STANDING)[None], shoulder_hidden[None], "coco17")[1][0]
    assert [POINTS14[point] for point in (~known).nonzero()[:, 0]] == ["head top", "neck", "right shoulder"]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"'mpii16'.*points14, openpose18, coco17"):
        draw_part_map(STANDING, ALL_SEEN, SIZE, "mpii16")
    with pytest.raises(ValueError, match="coco17 has 17 joints, but 14"):
        draw_part_map(STANDING, ALL_SEEN, SIZE, "coco17")


def test_nobody_is_no_map() -> None:
    assert draw_part_maps(STANDING[None][:0], ALL_SEEN[None][:0], SIZE, "points14").shape == (0, *SIZE)
