"""The truth about parts: the rule by hand, and reading back what was written."""

from __future__ import annotations

import pytest

from hpnet.data.truth import HIDDEN_BELOW, SEVERITIES, VISIBLE_FROM, part_after, part_columns

PIXELS = 128 * 64


@pytest.mark.parametrize(
    ("before", "left", "seen"),
    [
        (1000, 1000, True),
        (1000, 400, True),
        (1000, 399, None),
        (1000, 100, None),
        (1000, 99, False),
        (1000, 0, False),
        (0, 0, False),  # was not to be seen in the photo either
        (64, 64, True),
        (63, 63, None),  # less than a quarter of a small head: nobody can say
        (63, 6, False),
    ],
)
def test_a_part_is_visible_hidden_or_unsure(before: int, left: int, seen: bool | None) -> None:
    assert part_after(before, left, PIXELS) is seen


def test_severities_rise_and_do_not_touch() -> None:
    assert (HIDDEN_BELOW, VISIBLE_FROM) == (0.1, 0.4)
    bounds = [bound for level in sorted(SEVERITIES) for bound in SEVERITIES[level]]
    assert bounds == sorted(set(bounds))
    assert sorted(SEVERITIES) == [1, 2, 3]


def test_the_columns_of_the_parts() -> None:
    columns = part_columns((200, 1000, 0, 30), (0, 250, 0, 30), PIXELS)
    assert columns == {
        "head_before": "1", "head_left": "0.0000", "head_after": "0",
        "torso_before": "1", "torso_left": "0.2500", "torso_after": "",
        "upper_legs_before": "0", "upper_legs_left": "", "upper_legs_after": "0",
        "lower_legs_before": "", "lower_legs_left": "1.0000", "lower_legs_after": "",
    }  # fmt: skip
