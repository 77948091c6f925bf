"""How far probabilities are off, beside a case by hand and a count pair by pair."""

from __future__ import annotations

import pytest
import torch

from hpnet.evaluation.reliability import BINS, Reliability, Tally


def told(chance: list[float], match: list[bool], counted: list[bool] | None = None) -> Reliability | None:
    tally = Tally()
    tally.add(torch.tensor(chance), torch.tensor(match), torch.tensor(counted or [True] * len(chance)))
    return tally.reliability()


def test_a_case_by_hand() -> None:
    # Two pairs of one person (0.9 and 0.3), one of two (0.3): each of the first weighs 1/4, the last 1/2.
    outcome = told([0.9, 0.3, 0.3], [True, True, False])
    assert outcome is not None
    assert (outcome.same, outcome.different) == (2, 1)
    # Bin of 0.9: |0.9 - 1| x 1/4. Bin of 0.3: a third of its weight is of one person: |0.3 - 1/3| x 3/4.
    assert outcome.ece == pytest.approx(0.1 / 4 + (1 / 3 - 0.3) * 3 / 4, abs=2e-4)
    assert outcome.brier == pytest.approx(0.01 / 4 + 0.49 / 4 + 0.09 / 2, abs=2e-4)
    assert [weight for _, _, weight in outcome.by_bin] == pytest.approx([0.75, 0.25])
    assert outcome.as_record()["bins"][0] == {
        "probability": pytest.approx(0.3, abs=2e-4), "same": pytest.approx(1 / 3), "weight": pytest.approx(0.75),
    }  # fmt: skip


def test_honest_probabilities_are_hardly_off_and_bold_ones_are() -> None:
    random = torch.Generator().manual_seed(0)
    chance = torch.rand(200_000, generator=random, dtype=torch.float64)
    match = torch.rand(200_000, generator=random, dtype=torch.float64) < chance
    outcomes = []
    for said in (chance, (chance > 0.5).double() * 0.98 + 0.01):
        tally = Tally()
        tally.add(said, match, torch.ones_like(match))
        outcomes.append(tally.reliability())
    honest, bold = outcomes
    assert honest is not None
    assert bold is not None
    assert honest.ece < 0.01
    assert bold.ece == pytest.approx(0.24, abs=0.01)
    assert honest.brier < bold.brier


def test_knowing_nothing_has_the_score_that_is_said_of_it() -> None:
    outcome = told([0.5] * 10, [True] + [False] * 9)
    assert outcome is not None
    assert outcome.brier == pytest.approx(0.25, abs=1e-4)
    assert outcome.ece == pytest.approx(0, abs=2e-4)


def test_pieces_and_groups_add_up() -> None:
    random = torch.Generator().manual_seed(1)
    chance, group = torch.rand(40, 50, generator=random), torch.randint(3, (40, 50), generator=random)
    match, counted = torch.rand(40, 50, generator=random) < chance, torch.rand(40, 50, generator=random) < 0.7
    tally = Tally(3)
    for rows in (slice(0, 13), slice(13, 40)):
        tally.add(chance[rows], match[rows], counted[rows], group[rows])
    for wanted in (0, 1, 2, None):
        here = counted if wanted is None else counted & (group == wanted)
        assert tally.reliability(wanted) == told(chance[here].tolist(), match[here].tolist())
        # Pair by pair, bin by bin.
        weight = torch.where(match, 0.5 / (match & here).sum(), 0.5 / (~match & here).sum()) * here
        bins = (chance * BINS).long().clamp(max=BINS - 1)
        off = sum(abs(float((weight * (chance - match.float()) * (bins == number)).sum())) for number in range(BINS))
        outcome = tally.reliability(wanted)
        assert outcome is not None
        assert outcome.ece == pytest.approx(off, abs=3e-4)


@pytest.mark.parametrize("match", [[True, True], [False, False]])
def test_one_kind_of_pairs_alone_says_nothing(match: list[bool]) -> None:
    assert told([0.2, 0.8], match) is None


def test_the_ends_of_the_range_have_a_bin() -> None:
    outcome = told([0.0, 1.0], [False, True])
    assert outcome is not None
    assert outcome.ece == pytest.approx(0, abs=2e-4)
