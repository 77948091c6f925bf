"""Visibility accuracy against a naive loop, and by hand."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpnet.evaluation.visibility import ACCURACY, accuracy_by_part, visibility_accuracy
from hpnet.parts import PARTS


def rows(*texts: str) -> Tensor:
    return torch.tensor([[each == "1" for each in text] for text in texts])


def test_by_hand() -> None:
    """One part, eight pictures; the last two are unsure."""
    predicted, visible = rows("11100111")[0], rows("11010010")[0]
    sure = rows("11111100")[0]
    found = visibility_accuracy(predicted, visible, sure)
    assert (found.visible, found.hidden, found.unsure) == (3, 3, 2)
    assert found.precision == pytest.approx(2 / 4)
    assert found.recall == pytest.approx(2 / 3)
    assert found.hidden_recall == pytest.approx(1 / 3)
    assert found.cells() == ["3", "3", "2", "50.0", "66.7", "33.3"]
    assert len(found.cells()) == len(ACCURACY)


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=4, max_size=4), max_size=12))
@settings(max_examples=150, deadline=None)
def test_against_a_naive_loop(cases: list[list[tuple[bool, bool, bool]]]) -> None:
    predicted, visible, sure = (
        torch.tensor([[part[which] for part in row] for row in cases], dtype=torch.bool).view(-1, 4)
        for which in range(3)
    )
    found = accuracy_by_part(predicted, visible, sure)
    assert list(found) == ["head", "torso", "upper_legs", "lower_legs", "all"]
    for name, parts in [*((part.name.lower(), [part]) for part in PARTS), ("all", list(PARTS))]:
        right = said = seen = hidden = found_hidden = unsure = 0
        for row in cases:
            for part in parts:
                predicts, is_visible, is_sure = row[part]
                if not is_sure:
                    unsure += 1
                elif is_visible:
                    seen, said, right = seen + 1, said + predicts, right + predicts
                else:
                    hidden, said, found_hidden = hidden + 1, said + predicts, found_hidden + (not predicts)
        ours = found[name]
        assert (ours.visible, ours.hidden, ours.unsure) == (seen, hidden, unsure)
        assert ours.precision == (right / said if said else None)
        assert ours.recall == (right / seen if seen else None)
        assert ours.hidden_recall == (found_hidden / hidden if hidden else None)


def test_what_cannot_be_divided_is_told_and_is_no_number() -> None:
    nothing = visibility_accuracy(rows("00")[0], rows("11")[0], rows("00")[0])
    assert nothing.cells() == ["0", "0", "2", "-", "-", "-"]
    assert json.loads(json.dumps(nothing.as_record(), allow_nan=False))["precision"] is None


def test_all_visible_scores_well_but_finds_nothing_hidden() -> None:
    visible = rows("1111", "1110", "1111")
    found = accuracy_by_part(torch.ones_like(visible), visible, torch.ones_like(visible))["all"]
    assert (found.precision, found.recall, found.hidden_recall) == (pytest.approx(11 / 12), 1.0, 0.0)


def test_a_model_without_parts_has_no_accuracy() -> None:
    assert accuracy_by_part(rows("1", "1"), rows("1111", "1010"), rows("1111", "1111")) == {}
