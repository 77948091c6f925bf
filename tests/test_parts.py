from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from hpnet.parts import FOLDINGS, PARTS, Part, PartFeatures, fold, part_masks, visible_parts

quickly = settings(deadline=None, max_examples=50)

# What each labelling calls its labels, in order, and the part each belongs to: written here a second time, by name.
LABELLINGS: dict[str, list[tuple[str, Part | None]]] = {
    "parts": [("background", None), *((part.title, part) for part in Part)],
    "densepose": [
        ("background", None), ("torso", Part.TORSO), ("right hand", Part.TORSO), ("left hand", Part.TORSO),
        ("left foot", Part.LOWER_LEGS), ("right foot", Part.LOWER_LEGS), ("upper leg right", Part.UPPER_LEGS),
        ("upper leg left", Part.UPPER_LEGS), ("lower leg right", Part.LOWER_LEGS), ("lower leg left", Part.LOWER_LEGS),
        ("upper arm left", Part.TORSO), ("upper arm right", Part.TORSO), ("lower arm left", Part.TORSO),
        ("lower arm right", Part.TORSO), ("head", Part.HEAD),
    ],
    "authors": [
        ("background", None), ("head", Part.HEAD), ("torso", Part.TORSO), ("upper arm", Part.TORSO),
        ("lower arm", Part.TORSO), ("upper leg", Part.UPPER_LEGS), ("lower leg", Part.LOWER_LEGS),
        ("foot", Part.LOWER_LEGS),
    ],
    "pascal": [
        ("background", None), ("lower arm", Part.TORSO), ("torso", Part.TORSO), ("lower leg", Part.LOWER_LEGS),
        ("head", Part.HEAD), ("upper leg", Part.UPPER_LEGS), ("upper arm", Part.TORSO),
    ],
}  # fmt: skip
LABEL_TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


@st.composite
def label_maps(draw: st.DrawFn, largest: int = 4, dimensions: int = 2) -> Tensor:
    shape = draw(st.lists(st.integers(1, 6), min_size=dimensions, max_size=dimensions))
    values = draw(st.lists(st.integers(0, largest), min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(values, dtype=draw(st.sampled_from(LABEL_TYPES))).reshape(shape)


@st.composite
def people(draw: st.DrawFn, smallest: int = 0) -> PartFeatures:
    n, p, d = draw(st.integers(smallest, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    features = normalize(torch.randn(n, p, d, generator=generator) + 1e-3, dim=-1)
    visibility = torch.rand(n, p, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    if draw(st.booleans()):
        features = torch.where(visibility[..., None], features, 0.0)
    return PartFeatures(features, visibility)


def same(one: PartFeatures, other: PartFeatures) -> bool:
    return torch.equal(one.features, other.features) and torch.equal(one.visibility, other.visibility)


def test_the_parts_are_the_papers_in_its_order() -> None:
    assert [part.title for part in PARTS] == ["head", "torso and arms", "upper legs", "lower legs and feet"]
    assert [part.label for part in PARTS] == [1, 2, 3, 4]
    assert [int(part) for part in PARTS] == [0, 1, 2, 3]
    assert len({part.colour for part in PARTS}) == 4
    assert all(0 <= value <= 255 for part in PARTS for value in part.colour)


@pytest.mark.parametrize("folding", FOLDINGS)
def test_each_label_folds_to_its_part(folding: str) -> None:
    labelling = LABELLINGS[folding]
    labels = torch.arange(len(labelling))
    expected = [0 if part is None else part.label for _, part in labelling]
    assert fold(labels, folding).tolist() == expected
    with pytest.raises(ValueError, match=rf"\[{len(labelling)}\] are unknown .* 0\.\.{len(labelling) - 1}"):
        fold(torch.tensor([0, len(labelling)]), folding)


def test_every_folding_has_a_labelling() -> None:
    assert FOLDINGS.keys() == LABELLINGS.keys()


@quickly
@given(data=st.data(), folding=st.sampled_from(sorted(FOLDINGS)), dimensions=st.integers(0, 4))
def test_folding_keeps_the_shape_and_commutes_with_indexing(data: st.DataObject, folding: str, dimensions: int) -> None:
    labels = data.draw(label_maps(len(FOLDINGS[folding]) - 1, dimensions))
    before = labels.clone()
    folded = fold(labels, folding)
    assert folded.shape == labels.shape
    assert folded.dtype == torch.uint8
    assert torch.equal(labels, before)
    assert torch.equal(folded.flatten(), torch.tensor(FOLDINGS[folding], dtype=torch.uint8)[labels.flatten().long()])
    assert torch.equal(fold(folded, "parts"), folded)  # nothing is left to fold
    assert torch.equal(folded == 0, labels == 0)  # no foreground is lost, none invented


@quickly
@given(labels=label_maps(6))
def test_void_is_background(labels: Tensor) -> None:
    labels = labels.long()
    labels[0, 0] = 255
    folded = fold(labels, "pascal")
    assert folded[0, 0] == 0
    labels[0, 0] = 0
    assert torch.equal(folded, fold(labels, "pascal"))


def test_wrong_labels_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown folding 'coco'.*densepose"):
        fold(torch.zeros(2, dtype=torch.uint8), "coco")
    with pytest.raises(ValueError, match=r"\[-3, 9, 254\] are unknown to the 'pascal' labelling, which has 0\.\.6"):
        fold(torch.tensor([0, 9, -3, 254, 255, 9]), "pascal")
    assert fold(torch.zeros(0, dtype=torch.int64), "authors").shape == (0,)


@quickly
@given(data=st.data(), dimensions=st.integers(2, 4))
def test_masks_take_the_map_apart(data: st.DataObject, dimensions: int) -> None:
    part_map = data.draw(label_maps(4, dimensions))
    masks = part_masks(part_map)
    assert masks.shape == (*part_map.shape[:-2], 4, *part_map.shape[-2:])
    labels = torch.tensor([part.label for part in Part])[:, None, None]
    assert torch.equal(
        (masks * labels).sum(-3), part_map.long()
    )  # each pixel in one mask at most, and in the right one
    visible = visible_parts(part_map)
    assert visible.shape == (*part_map.shape[:-2], 4)
    flat_maps, flat_visible = part_map.reshape(-1, *part_map.shape[-2:]), visible.reshape(-1, 4)
    for one_map, one_visible in zip(flat_maps, flat_visible, strict=True):
        assert {part.label for part in Part if one_visible[part]} == set(one_map.unique().tolist()) - {0}


def test_a_value_that_is_no_part_is_in_no_mask() -> None:
    assert not part_masks(torch.tensor([[5, 255], [0, 9]])).any()


@quickly
@given(person=people(smallest=1), data=st.data())
def test_slices_like_an_array(person: PartFeatures, data: st.DataObject) -> None:
    n = len(person)
    row = data.draw(st.integers(-n, n - 1))
    assert same(person[row], PartFeatures(person.features[[row]], person.visibility[[row]]))
    bounds = [data.draw(st.none() | st.integers(-n - 2, n + 2)) for _ in range(2)]
    piece = slice(*bounds, data.draw(st.sampled_from([None, 1, 2, 3])))
    assert same(person[piece], PartFeatures(person.features[piece], person.visibility[piece]))
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=8))
    chosen = torch.tensor(rows, dtype=torch.long)
    assert same(person[chosen], PartFeatures(person.features[chosen], person.visibility[chosen]))
    if rows:
        assert same(person[rows], person[chosen])
    wanted = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    assert len(person[wanted]) == int(wanted.sum())


@quickly
@given(person=people(), data=st.data())
def test_pieces_concatenate_to_the_whole(person: PartFeatures, data: st.DataObject) -> None:
    rows = list(person)
    assert len(rows) == len(person)  # iteration ends
    assert all(len(row) == 1 for row in rows)
    cut = data.draw(st.integers(0, len(person)))
    assert same(PartFeatures.concatenate([person[:cut], person[cut:]]), person)
    if rows:
        assert same(PartFeatures.concatenate(rows), person)


def test_concatenating_nothing_and_rows_past_the_end() -> None:
    with pytest.raises(ValueError, match="empty"):
        PartFeatures.concatenate([])
    person = PartFeatures(torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool))
    for row in (3, -4):
        with pytest.raises(IndexError):
            person[row]


@quickly
@given(person=people(smallest=1), factor=st.sampled_from([0.0, 0.5, 0.99, 1.01, 30.0]), data=st.data())
def test_only_visible_parts_must_have_unit_length(person: PartFeatures, factor: float, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(person) - 1))
    part = data.draw(st.integers(0, person.visibility.shape[1] - 1))
    features, visibility = normalize(person.features + 1e-3, dim=-1), person.visibility.clone()
    features[row, part] *= factor
    visibility[row, part] = False
    PartFeatures(features, visibility)
    visibility[row, part] = True
    with pytest.raises(ValueError, match=rf"row {row}, part {part} has {factor:.2f}"):
        PartFeatures(features, visibility)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("visible", [True, False])
def test_values_that_are_not_finite_are_refused(value: float, visible: bool) -> None:
    features = torch.tensor([[[1.0, 0.0]], [[value, 0.0]]])
    with pytest.raises(ValueError, match="not finite"):
        PartFeatures(features, torch.full((2, 1), visible))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_welcome(dtype: torch.dtype) -> None:
    features = normalize(torch.randn(20, 4, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    visibility = torch.rand(20, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    person = PartFeatures(features, visibility).to(dtype)
    assert person.features.dtype == dtype
    assert person.visibility.dtype == torch.bool
    assert torch.allclose(person.to(torch.float32).features, features, atol=4e-3)
    assert same(person.to("cpu"), person)


@pytest.mark.parametrize(
    ("features", "visibility", "message"),
    [
        (
            torch.ones(2, 1),
            torch.ones(2, 1, dtype=torch.bool),
            "features must be floats of shape (n, p, d), not float32",
        ),
        (torch.ones(2, 1, 1, dtype=torch.int64), torch.ones(2, 1, dtype=torch.bool), "not int64 of shape (2, 1, 1)"),
        (torch.ones(2, 1, 1), torch.ones(2, 2, dtype=torch.bool), "visibility must be bool of shape (2, 1), not bool"),
        (torch.ones(2, 1, 1), torch.ones(2, 1), "not float32 of shape (2, 1)"),
        (np.ones((2, 1, 1), np.float32), np.ones((2, 1), bool), "wrap arrays with torch.from_numpy"),
    ],
)
def test_wrong_shapes_and_types_are_named(features: Tensor, visibility: Tensor, message: str) -> None:
    # Tests run under a type checker, which would speak first; users have none.
    unchecked = object.__new__(PartFeatures)
    object.__setattr__(unchecked, "features", features)
    object.__setattr__(unchecked, "visibility", visibility)
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        unchecked.__post_init__()


def test_it_cannot_be_changed() -> None:
    person = PartFeatures(torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(AttributeError):
        person.features = torch.zeros(1, 1, 1)  # type: ignore[misc]
