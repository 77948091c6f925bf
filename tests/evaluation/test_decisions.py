"""Decisions beside the doors they are made of, and the same whatever is looked at together."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from hpnet.calibration import Calibration, KnownPeople, fit
from hpnet.distance import part_distance
from hpnet.evaluation import decisions
from hpnet.evaluation.decisions import Pairs, decide
from hpnet.evaluation.metrics import score
from hpnet.evaluation.openset import halves_of, nearest, open_set
from hpnet.parts import PartFeatures


def seen(who: torch.Tensor, random: torch.Generator) -> PartFeatures:
    """Photos of made-up people, half of whose parts are hidden."""
    centre = torch.randn(40, 4, 16, generator=torch.Generator().manual_seed(5))
    features = centre[who] + 1.2 * torch.randn(len(who), 4, 16, generator=random)
    visibility = torch.rand(len(who), 4, generator=random) < 0.5
    return PartFeatures(torch.nn.functional.normalize(features, dim=-1), visibility)


@cache
def calibration() -> Calibration:
    """Fitted on others than the crowd."""
    who = torch.arange(14, 40).repeat(8)
    fitted = fit(KnownPeople(seen(who, torch.Generator().manual_seed(1)), who, torch.full_like(who, -1)))
    assert fitted is not None
    return fitted


def crowd() -> tuple[Pairs, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    query, gallery = torch.arange(10).repeat(3), torch.arange(14).repeat(5)
    mine, theirs = seen(query, random), seen(gallery, random)
    match = query[:, None] == gallery
    ignore = torch.rand(match.shape, generator=random) < 0.1
    pairs = Pairs(part_distance(mine, theirs), match, ignore, mine.visibility, theirs.visibility)
    assert bool(pairs.distance.isinf().any()), "some pairs must have nothing in common"
    return pairs, query, gallery


@pytest.mark.parametrize("cells", [1, 70 * 7, 1 << 20])
def test_decisions_are_the_doors_they_are_made_of(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "CELLS_PER_CHUNK", cells)
    pairs, query, gallery = crowd()
    outcome = decide(pairs, (query, gallery), ("rectangle", "worst"), calibration(), seed=3)
    halves = halves_of(query, gallery, 3)
    able = (pairs.match & ~pairs.ignore).any(1)

    def opened(distance: torch.Tensor) -> decisions.OpenSet | None:
        return open_set(nearest(distance, pairs.match, pairs.ignore, halves.gallery), able, halves.query)

    assert outcome.open_set == opened(pairs.distance)
    by = outcome.by_probability
    assert by is not None
    odds = calibration().log_odds(pairs.distance, pairs.query, pairs.gallery)
    unlikely = (-odds).masked_fill(pairs.distance.isinf(), torch.inf)
    assert by.scores == score(unlikely, pairs.match, pairs.ignore)
    assert by.scores.mean_ap > score(pairs.distance, pairs.match, pairs.ignore).mean_ap, "few parts win by chance"
    expected = opened(unlikely)
    assert by.open_set is not None
    assert expected is not None
    assert (by.open_set.tpir, by.open_set.fpir) == (expected.tpir, expected.fpir)
    assert all(0 < threshold < 1 for threshold in by.open_set.thresholds)
    counted = pairs.distance.isfinite() & ~pairs.ignore
    assert by.reliability is not None
    assert (by.reliability.same, by.reliability.different) == (
        int((counted & pairs.match).sum()),
        int((counted & ~pairs.match).sum()),
    )
    assert sum(each.same for each in by.by_common_parts.values()) == by.reliability.same


def test_without_a_calibration_the_distance_alone_decides() -> None:
    pairs, query, gallery = crowd()
    outcome = decide(pairs, (query, gallery), ("rectangle", "worst"), None, seed=3)
    assert outcome.by_probability is None
    assert set(outcome.as_record()) == {"open_set"}
    [table] = outcome.tables(score(pairs.distance, pairs.match, pairs.ignore))
    assert [row[0] for row in table.rows] == ["by distance"]


def test_the_tables_say_what_the_record_says() -> None:
    pairs, query, gallery = crowd()
    outcome = decide(pairs, (query, gallery), ("rectangle", "worst"), calibration(), seed=3)
    record = outcome.as_record()
    closed, off = outcome.tables(score(pairs.distance, pairs.match, pairs.ignore))
    by_distance, by_probability = closed.rows
    assert by_probability[1] == f"{record['ranked_by_probability']['R1']:.1f}"
    assert by_distance[-1] == f"{record['open_set']['by_distance']['tpir']:.1f}"
    assert by_probability[-1] == f"{record['open_set']['by_probability']['tpir']:.1f}"
    assert off.rows[0][3:] == [f"{record['calibration']['ece']:.1f}", f"{record['calibration']['brier']:.3f}"]
    assert [row[0].strip()[0] for row in off.rows[1:]] == list(record["calibration"]["by_common_parts"])
