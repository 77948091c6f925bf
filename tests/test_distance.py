"""Distances against a float64 loop over pairs and parts, written from Eq. 1 and the authors' notes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hpnet import distance as distance_file
from hpnet.distance import common_part_count, part_distance, visible_mean
from hpnet.parts import PartFeatures

METRICS = ("euclidean", "cosine")
VISIBILITIES = ("common", "query", "authors", "ignore")
ALL = [*product(METRICS, VISIBILITIES)]


def people(n: int, seed: int = 0, *, d: int = 16, hidden: float = 0.4, zeros: bool = False) -> PartFeatures:
    """Random unit vectors; hidden parts hold zeros or a vector that is the same for all, as a neck of zeros gives."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(n, 4, d))
    visibility = random.random((n, 4)) >= hidden
    constant = np.random.default_rng(99).normal(size=(4, d))
    features = np.where(visibility[..., None], features, constant)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    if zeros:
        features *= visibility[..., None]
    return PartFeatures(torch.from_numpy(features).float(), torch.from_numpy(visibility))


def expected(query: PartFeatures, gallery: PartFeatures, metric: str, visibility: str) -> np.ndarray:
    """One pair and one part at a time, in float64."""
    mine, theirs = query.features.double().numpy(), gallery.features.double().numpy()
    seen, others_seen = query.visibility.numpy(), gallery.visibility.numpy()
    result = np.empty((len(query), len(gallery)))
    for i, k in np.ndindex(*result.shape):
        by_query, by_both, everything = [], [], []
        for j in range(mine.shape[1]):
            a, b = mine[i, j], theirs[k, j]
            apart = np.sqrt(((a - b) ** 2).sum()) if metric == "euclidean" else max(0.0, 1 - (a * b).sum())
            everything.append(apart)
            if seen[i, j]:
                by_query.append(apart)
                if others_seen[k, j]:
                    by_both.append(apart)
        if visibility == "ignore":
            result[i, k] = np.mean(everything)
        elif visibility == "query":
            result[i, k] = np.mean(by_query) if by_query else np.inf
        elif visibility == "common":
            result[i, k] = np.mean(by_both) if by_both else np.inf
        else:
            result[i, k] = (np.mean(by_query) if by_query else 0.0) + (np.mean(by_both) if by_both else 10_000.0)
    return result


def close(actual: Tensor, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    assert tuple(actual.shape) == wanted.shape
    # 10,000 + x has steps of 0.001 in float32, so that is where the relative tolerance is needed.
    np.testing.assert_allclose(actual.double().numpy(), wanted, rtol=1e-7, atol=tolerance)


@pytest.mark.parametrize(("metric", "visibility"), ALL)
@pytest.mark.parametrize("zeros", [False, True])
def test_equals_the_equations_in_float64(metric: Any, visibility: Any, zeros: bool) -> None:
    query, gallery = people(23, 1, zeros=zeros), people(31, 2, zeros=zeros)
    assert not query.visibility.any(1).all(), "somebody must show nothing for this test to be worth it"
    result = part_distance(query, gallery, metric, visibility)
    assert result.dtype == torch.float32
    close(result, expected(query, gallery, metric, visibility))


@pytest.mark.parametrize(("metric", "visibility"), ALL)
def test_crosses_the_borders_of_tiles(metric: Any, visibility: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = people(11, 3), people(17, 4)
    whole = part_distance(query, gallery, metric, visibility)
    for tile in [(1, 1), (4, 5), (11, 17), (3, 100), (10, 16), (12, 4)]:
        monkeypatch.setattr(distance_file, "TILE", tile)
        close(part_distance(query, gallery, metric, visibility), expected(query, gallery, metric, visibility))
        torch.testing.assert_close(part_distance(query, gallery, metric, visibility), whole, rtol=1e-6, atol=1e-6)


def test_eq_1_by_hand() -> None:
    def someone(*rows: tuple[list[float], bool]) -> PartFeatures:
        return PartFeatures(torch.tensor([[row for row, _ in rows]]), torch.tensor([[seen for _, seen in rows]]))

    east, north, west, hidden = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]
    query = someone((east, True), (east, True), (east, True), (hidden, False))
    other = someone((west, True), (north, True), (hidden, False), (east, True))
    # In common: parts 0 (length 2) and 1 (length sqrt 2).
    assert part_distance(query, other).item() == pytest.approx((2 + 2**0.5) / 2, abs=1e-6)
    assert part_distance(query, other, "cosine").item() == pytest.approx((2 + 1) / 2, abs=1e-6)
    # The query's parts are 0, 1, 2; the zeros of part 2 are sqrt 1 away, their cosine is 0.
    assert part_distance(query, other, visibility="query").item() == pytest.approx((2 + 2**0.5 + 1) / 3, abs=1e-6)
    assert part_distance(query, other, "cosine", "authors").item() == pytest.approx(4 / 3 + 3 / 2, abs=1e-6)
    assert part_distance(query, other, "cosine", "ignore").item() == pytest.approx((2 + 1 + 1 + 1) / 4, abs=1e-6)


@pytest.mark.parametrize("dimensions", [2, 64, 2048])
def test_identical_people_are_at_distance_zero(dimensions: int) -> None:
    same = people(40, 5, d=dimensions, hidden=0.2)
    comparable = same.visibility.any(1)
    for metric, visibility in product(METRICS, ("common", "ignore")):
        diagonal = part_distance(same, same, metric, visibility).diagonal()[comparable]
        assert diagonal.min() >= 0
        assert diagonal.max() < (1e-6 if metric == "euclidean" else 1e-5)


@pytest.mark.parametrize("step", [1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 3.1e-2, 3.2e-2, 1e-1])
def test_near_duplicates_keep_their_digits(step: float) -> None:
    random = np.random.default_rng(6)
    features = random.normal(size=(30, 4, 256))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    moved = features + step * random.normal(size=features.shape) / 16
    moved /= np.linalg.norm(moved, axis=-1, keepdims=True)
    seen = torch.ones(30, 4, dtype=torch.bool)
    query, gallery = (PartFeatures(torch.from_numpy(each).float(), seen) for each in (features, moved))
    wanted = expected(query, gallery, "euclidean", "common")
    close(part_distance(query, gallery), wanted, 4e-6)
    assert np.diag(wanted).max() < 1.2 * step + 1e-6, "these were to be near"


def test_no_common_part_is_infinitely_far_or_ten_thousand() -> None:
    features = people(2, 7, hidden=0.0).features
    upper, lower = torch.tensor([[True, True, False, False]]), torch.tensor([[False, False, True, True]])
    query, other = PartFeatures(features[:1], upper), PartFeatures(features[1:], lower)
    for metric in METRICS:
        assert part_distance(query, other, metric).item() == torch.inf
        assert part_distance(query, other, metric, "query").isfinite().all()
        alone = expected(query, other, metric, "query").item()
        assert part_distance(query, other, metric, "authors").item() == pytest.approx(10_000 + alone, abs=1e-3)


def test_who_shows_nothing_is_far_from_everybody() -> None:
    nobody = PartFeatures(torch.zeros(1, 4, 16), torch.zeros(1, 4, dtype=torch.bool))
    gallery = people(5, 8)
    for metric in METRICS:
        assert part_distance(nobody, gallery, metric).eq(torch.inf).all()
        assert part_distance(nobody, gallery, metric, "query").eq(torch.inf).all()
        assert part_distance(nobody, gallery, metric, "authors").eq(10_000).all()
        assert part_distance(nobody, gallery, metric, "ignore").isfinite().all()
        assert part_distance(gallery, nobody, metric).eq(torch.inf).all()


@pytest.mark.parametrize(("metric", "visibility"), ALL)
def test_nobody_to_compare(metric: Any, visibility: Any) -> None:
    some, none = people(3), people(0)
    assert part_distance(none, some, metric, visibility).shape == (0, 3)
    assert part_distance(some, none, metric, visibility).shape == (3, 0)
    assert part_distance(none, none, metric, visibility).shape == (0, 0)


@pytest.mark.parametrize(("metric", "visibility"), ALL)
def test_other_float_types(metric: Any, visibility: Any) -> None:
    query, gallery = people(9, 9), people(8, 10)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = [PartFeatures(side.features.to(dtype), side.visibility) for side in (query, gallery)]
        result = part_distance(rounded[0], rounded[1], metric, visibility)
        assert result.dtype == torch.float32
        close(result, expected(rounded[0], rounded[1], metric, visibility))
    finer = query.to(torch.float64)
    assert part_distance(finer, gallery, metric, visibility).dtype == torch.float64
    exact = part_distance(finer, gallery.to(torch.float64), metric, visibility)
    close(exact, expected(finer, gallery, metric, visibility), 1e-9 if metric == "cosine" else 1e-7)


def test_the_baseline_has_one_part() -> None:
    query, gallery = people(5, 11, hidden=0.0), people(6, 12, hidden=0.0)
    ours, theirs = (PartFeatures(side.features[:, :1], side.visibility[:, :1]) for side in (query, gallery))
    wanted = np.linalg.norm(ours.features.numpy()[:, None, 0] - theirs.features.numpy()[None, :, 0], axis=-1)
    for visibility in ("common", "query", "ignore"):
        close(part_distance(ours, theirs, visibility=visibility), wanted)


@st.composite
def pairs(draw: Callable[..., Any]) -> tuple[PartFeatures, PartFeatures]:
    seed, hidden = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    d = draw(st.integers(1, 5))  # few dimensions, so that equal and opposite vectors do occur
    zeros = draw(st.booleans())
    sides = [people(draw(st.integers(1, 7)), seed + side, d=d, hidden=hidden, zeros=zeros) for side in (0, 1)]
    return sides[0], sides[1]


@given(pairs(), st.sampled_from(ALL))
@settings(max_examples=150, deadline=None)
def test_any_pair_equals_the_equations(sides: tuple[PartFeatures, PartFeatures], way: Any) -> None:
    close(part_distance(*sides, *way), expected(*sides, *way), 2e-6)


@given(pairs(), st.sampled_from(METRICS), st.sampled_from(["common", "ignore"]))
@settings(max_examples=60, deadline=None)
def test_it_does_not_matter_who_asks(sides: tuple[PartFeatures, PartFeatures], metric: Any, visibility: Any) -> None:
    forth, back = part_distance(*sides, metric, visibility), part_distance(sides[1], sides[0], metric, visibility).T
    torch.testing.assert_close(forth, back, rtol=0, atol=2e-6)


@given(pairs(), st.sampled_from(ALL), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_people_and_of_parts_does_not_matter(
    sides: tuple[PartFeatures, PartFeatures], way: Any, random: Any
) -> None:
    query, gallery = sides
    plain = part_distance(query, gallery, *way)
    rows, columns, parts = (random.sample(range(n), n) for n in (len(query), len(gallery), 4))
    moved = part_distance(query[rows], gallery[columns], *way)
    torch.testing.assert_close(moved, plain[rows][:, columns], rtol=1e-6, atol=2e-6)
    shuffled = [PartFeatures(side.features[:, parts], side.visibility[:, parts]) for side in sides]
    torch.testing.assert_close(part_distance(*shuffled, *way), plain, rtol=1e-6, atol=2e-6)


@given(pairs(), st.sampled_from(METRICS))
@settings(max_examples=60, deadline=None)
def test_hidden_parts_do_not_count(sides: tuple[PartFeatures, PartFeatures], metric: Any) -> None:
    scribbled = [
        PartFeatures(torch.where(side.visibility[..., None], side.features, 3.5), side.visibility) for side in sides
    ]
    plain = part_distance(*sides, metric)
    torch.testing.assert_close(part_distance(*scribbled, metric), plain, rtol=0, atol=2e-6)


def test_nothing_that_comes_in_is_changed() -> None:
    query, gallery = people(5, 13), people(6, 14)
    before = [query.features.clone(), gallery.features.clone(), query.visibility.clone(), gallery.visibility.clone()]
    for way in ALL:
        part_distance(query, gallery, *way)
    after = [query.features, gallery.features, query.visibility, gallery.visibility]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_what_lies_beside_the_result_is_no_larger_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance_file, "TILE", (16, 32))
    query, gallery = people(100, 15, d=8), people(300, 16, d=8)
    given = {side.features.untyped_storage().data_ptr() for side in (query, gallery)}
    made: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = operation(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
                made.append(out.untyped_storage().nbytes() // out.element_size())
            return out

    for way in ALL:
        with Watch():
            part_distance(query, gallery, *way)
    result, one_part = 100 * 300, 300 * 8
    assert result in made
    assert max(size for size in made if size != result) <= max(16 * 32, one_part)


def test_errors_are_one_clear_line() -> None:
    query = people(2)
    with pytest.raises(ValueError, match=r"differ in \(parts, dimensions\): \(4, 16\) and \(4, 8\)$"):
        part_distance(query, people(2, d=8))
    fewer = PartFeatures(query.features[:, :1], query.visibility[:, :1])
    with pytest.raises(ValueError, match=r"\(1, 16\) and \(4, 16\)$"):
        part_distance(fewer, query)


def test_unknown_options_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the shape checker's own refusal, as users run it.
    plain = getattr(part_distance, "__wrapped__", part_distance)
    with pytest.raises(ValueError, match=r"unknown metric 'manhattan': choose one of euclidean, cosine$"):
        plain(people(2), people(2), "manhattan")
    with pytest.raises(ValueError, match=r"unknown visibility 'all': choose one of common, query, authors, ignore$"):
        plain(people(2), people(2), "cosine", "all")


def test_common_part_count() -> None:
    query, gallery = people(7, 17), people(5, 18)
    wanted = (query.visibility.numpy()[:, None] & gallery.visibility.numpy()[None]).sum(-1)
    assert np.array_equal(common_part_count(query.visibility, gallery.visibility).numpy(), wanted)


def test_visible_mean_and_its_gradient() -> None:
    distances = torch.tensor([[[1.0, 2.0]], [[3.0, 7.0]]], requires_grad=True)
    shown = torch.tensor([[[True, False]], [[True, False]]])
    mean = visible_mean(distances, shown, otherwise=-5.0)
    assert mean.tolist() == [[2.0, -5.0]]
    mean.sum().backward()
    assert distances.grad is not None
    assert distances.grad.tolist() == [[[0.5, 0.0]], [[0.5, 0.0]]]
