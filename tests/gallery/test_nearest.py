"""The k nearest of what is offered piece by piece, whatever the pieces."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpnet.gallery.nearest import Block, Nearest, among_these, first_of_each, merged, without
from hpnet.parts import PartFeatures


def block(*ids: int) -> Block:
    features = torch.zeros(len(ids), 4, 2)
    features[:, :, 0] = 1
    return Block(np.array(ids, np.int64), PartFeatures(features, torch.ones(len(ids), 4, dtype=torch.bool)))


@given(
    # Few different distances, so that ids must decide; some people are not ranked.
    table=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, float("inf")]), min_size=3, max_size=3), max_size=30),
    k=st.integers(1, 8),
    cut=st.integers(1, 10),
)
def test_pieces_make_no_difference(table: list[list[float]], k: int, cut: int) -> None:
    distance = torch.tensor(table).reshape(-1, 3).T.contiguous()
    ids = np.random.default_rng(0).permutation(100)[: len(table)]
    best = Nearest(k)
    for start in range(0, len(table), cut):
        best.offer(ids[start : start + cut], distance[:, start : start + cut])
    for row, found in enumerate(best.rows(3)):
        pairs = zip(distance[row].tolist(), ids.tolist(), strict=True)
        expected = sorted(pair for pair in pairs if pair[0] < float("inf"))
        assert [(each, number) for number, each in found] == expected[:k]
        farthest = expected[k - 1][0] if len(expected) >= k else float("inf")
        assert float(best.farthest(3)[row]) == farthest


def test_the_first_of_each_row() -> None:
    rows, keys = np.array([1, 0, 1, 1, 0]), np.array([3.0, 9.0, 1.0, 2.0, 8.0])
    assert first_of_each(2, rows, (keys,)).tolist() == [4, 1, 2, 3]
    assert first_of_each(1, rows[:0], (keys[:0],)).tolist() == []


def test_some_of_a_block() -> None:
    whole = block(4, 1, 7)
    assert without(whole, np.array([1, 9])).ids.tolist() == [4, 7]
    assert without(whole, np.array([9])) is whole
    assert among_these(whole, np.array([7, 1, 2])).ids.tolist() == [1, 7]
    assert [each.ids.tolist() for each in merged([block(1), block(2), block(*range(3, 40_000))])] == [
        [1, 2],
        list(range(3, 40_000)),
    ]
