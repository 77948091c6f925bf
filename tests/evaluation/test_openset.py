"""Open set: a case by hand, and the definition followed query by query."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpnet.evaluation.openset import OpenSet, halves_of, nearest, open_set


def by_definition(
    distance: Tensor, match: Tensor, ignore: Tensor, halves: tuple[Tensor, Tensor], rate: float
) -> tuple[float, float]:
    """TPIR and FPIR, with a gallery that really lacks the strangers, and a threshold found by trying all."""
    found = []
    for half in (0, 1):
        present = halves[1] != half
        shown = distance.masked_fill(ignore, torch.inf)[:, present]
        best = {row: shown[row].min().item() for row in range(len(shown))}
        strangers = [best[row] for row in range(len(shown)) if halves[0][row] == half]
        able = [
            row for row in range(len(shown))
            if halves[0][row] == 1 - half and bool((match[row] & ~ignore[row]).any())
        ]  # fmt: skip
        allowed = [t for t in strangers if sum(each < t for each in strangers) <= rate * len(strangers)]
        threshold = max(allowed)
        right = 0
        for row in able:
            here = match[row][present] & ~ignore[row][present]
            wrong = ~match[row][present] & ~ignore[row][present]
            mine = shown[row][here].min().item() if bool(here.any()) else torch.inf
            theirs = shown[row][wrong].min().item() if bool(wrong.any()) else torch.inf
            right += mine < theirs and mine < threshold
        found.append((right / len(able), sum(each < threshold for each in strangers) / len(strangers)))
    return sum(a for a, _ in found) / 2, sum(b for _, b in found) / 2


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), rate=st.sampled_from([0.0, 0.01, 0.1, 0.25, 1.0]))
def test_the_definition_is_followed(seed: int, rate: float) -> None:
    random = torch.Generator().manual_seed(seed)
    query, gallery = torch.arange(12).repeat(4), torch.randint(-1, 16, (60,), generator=random)
    gallery[:12] = torch.arange(12)
    match = query[:, None] == gallery
    distance = torch.randint(1, 30, match.shape, generator=random) / 10 - 0.8 * match
    distance[torch.rand(match.shape, generator=random) < 0.1] = torch.inf
    ignore = torch.rand(match.shape, generator=random) < 0.1
    halves = halves_of(query, gallery, seed)
    outcome = open_set(nearest(distance, match, ignore, halves.gallery), (match & ~ignore).any(1), halves.query, rate)
    assert outcome is not None
    expected = by_definition(distance, match, ignore, (halves.query, halves.gallery), rate)
    assert (outcome.tpir, outcome.fpir) == pytest.approx(expected)
    assert outcome.fpir <= rate
    assert outcome.strangers == len(query)


def test_the_halves_are_drawn_by_identity() -> None:
    query, gallery = torch.tensor([3, 3, 5, 7, 9, -1]), torch.tensor([9, 7, 5, 3, 100, -1, 3])
    halves = halves_of(query, gallery, seed=0)
    assert halves.query[0] == halves.query[1]
    assert sorted(halves.query[[0, 2, 3, 4]].tolist()) == [0, 0, 1, 1]
    assert halves.gallery.tolist() == [*halves.query[[4, 3, 2, 0]].tolist(), 2, 2, int(halves.query[0])]
    assert halves.query[5] == 2, "an unknown query is neither stranger nor at home"
    drawn = {tuple(halves_of(query, gallery, seed).query.tolist()) for seed in range(30)}
    assert len(drawn) == 6


def test_a_stranger_who_is_near_costs_those_who_are_at_home() -> None:
    query, gallery = torch.tensor([0, 1]), torch.tensor([0, 1])
    halves = halves_of(query, gallery, seed=0)
    match, nothing = query[:, None] == gallery, torch.zeros(2, 2, dtype=torch.bool)
    able = torch.ones(2, dtype=torch.bool)

    def at(distance: Tensor) -> OpenSet | None:
        return open_set(nearest(distance, match, nothing, halves.gallery), able, halves.query)

    # Each is a stranger in turn, the other's photo is what is left.
    apart = at(torch.tensor([[0.2, 0.9], [0.8, 0.1]]))
    assert apart is not None
    assert (apart.tpir, apart.fpir, apart.strangers, apart.genuine) == (1.0, 0.0, 2, 2)
    assert sorted(apart.thresholds) == pytest.approx([0.8, 0.9])
    # Query 1 as a stranger is 0.1 from photo 0: nearer than query 0 itself.
    near = at(torch.tensor([[0.2, 0.9], [0.1, 0.05]]))
    assert near is not None
    assert near.tpir == 0.5
    assert near.as_record()["tpir"] == 50


def test_too_few_identities_have_no_open_set() -> None:
    one = torch.tensor([4, 4])
    halves = halves_of(one, one, seed=0)
    match, nothing = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)
    near = nearest(torch.rand(2, 2), match, nothing, halves.gallery)
    assert open_set(near, torch.ones(2, dtype=torch.bool), halves.query) is None


def test_an_empty_gallery_has_no_nearest() -> None:
    nothing = torch.zeros(3, 0, dtype=torch.bool)
    near = nearest(torch.zeros(3, 0), nothing, nothing, torch.zeros(0, dtype=torch.int64))
    assert near.isinf().all()
    assert near.shape == (3, 4)
