"""Scores against a naive loop over fully sorted rankings, against scikit-learn, and against examples worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from hpnet.evaluation import metrics
from hpnet.evaluation.metrics import RANKS, Scores, score, score_queries

APS = ("rectangle", "trapezoid")
TIES = ("worst", "index")
RULES = [*product(APS, TIES)]


def naive(distance: np.ndarray, match: np.ndarray, ignore: np.ndarray, ap: str, ties: str) -> list[dict[str, Any]]:
    """Sort every ranking in full and walk down it; None for a query without a right answer."""
    results = []
    for row, gone in enumerate(ignore):
        apart, right = distance[row, ~gone], match[row, ~gone]
        # worst: among equals the wrong ones go first; index: a stable sort.
        order = np.lexsort((right, apart)) if ties == "worst" else np.argsort(apart, kind="stable")
        answers = right[order]
        total = int(answers.sum())
        if not total:
            results.append({"first": 0, "ap": math.nan, "inp": math.nan})
            continue
        area, found, last = 0.0, 0, 0
        for place, is_right in enumerate(answers, start=1):
            if not is_right:
                continue
            # Precision of the list that ends just before this entry; an empty list has made no mistake yet.
            before = found / (place - 1) if place > 1 else 1.0
            found += 1
            precision = found / place
            area += (precision if ap == "rectangle" else (before + precision) / 2) / total
            last = place
        results.append({"first": int(np.flatnonzero(answers)[0]) + 1, "ap": area, "inp": total / last})
    return results


def check(distance: np.ndarray, match: np.ndarray, ignore: np.ndarray, ap: Any, ties: Any) -> None:
    wanted = naive(distance, match, ignore, ap, ties)
    tensors = (torch.from_numpy(distance).float(), torch.from_numpy(match), torch.from_numpy(ignore))
    each = score_queries(*tensors, ap, ties)
    assert each.first_rank.tolist() == [row["first"] for row in wanted]
    np.testing.assert_allclose(each.ap.numpy(), [row["ap"] for row in wanted], rtol=0, atol=1e-12)
    np.testing.assert_allclose(each.inp.numpy(), [row["inp"] for row in wanted], rtol=0, atol=1e-12)
    valid = [row for row in wanted if row["first"]]
    if not valid:
        with pytest.raises(ValueError, match=r"no query has a right answer"):
            score(*tensors, ap, ties)
        return
    scores = score(*tensors, ap, ties)
    assert scores.valid_queries == len(valid)
    assert scores.mean_ap == pytest.approx(np.mean([row["ap"] for row in valid]), abs=1e-12)
    assert scores.mean_inp == pytest.approx(np.mean([row["inp"] for row in valid]), abs=1e-12)
    assert scores.cmc.keys() == set(RANKS) == {1, 3, 5, 10}
    for rank in RANKS:
        assert scores.cmc[rank] == pytest.approx(np.mean([row["first"] <= rank for row in valid]), abs=1e-12)


def ranking(answers: str) -> tuple[Tensor, Tensor, Tensor]:
    """One query; R right, w wrong, i ignored (same person, same camera), j ignored (junk), nearest first."""
    distance = torch.arange(float(len(answers)))[None]
    match = torch.tensor([[letter in "Ri" for letter in answers]])
    return distance, match, torch.tensor([[letter in "ij" for letter in answers]])


# Worked by hand. Market-1501's own script adds (recall gained) x (precision before + precision here) / 2, where the
# precision before the first entry of all is 1.
@pytest.mark.parametrize(
    ("answers", "rectangle", "trapezoid", "inverse_penalty"),
    [
        # right at 1: (1 + 1) / 2 = 1
        ("Rww", 1.0, 1.0, 1.0),
        # right at 2: precision 1/2, before it 0/1
        ("wR", 1 / 2, 1 / 4, 1 / 2),
        # right at 3: precision 1/3, before it 0/2
        ("wwR", 1 / 3, 1 / 6, 1 / 3),
        # at 1: precision 1, before 1. At 3: precision 2/3, before it 1/2
        ("RwR", (1 + 2 / 3) / 2, (1 + (1 / 2 + 2 / 3) / 2) / 2, 2 / 3),
        # at 2: 1/2, before 0. At 3: 2/3, before 1/2. At 5: 3/5, before 2/4
        (
            "wRRwR",
            (1 / 2 + 2 / 3 + 3 / 5) / 3,
            ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2 + (1 / 2 + 3 / 5) / 2) / 3,
            3 / 5,
        ),
        # What is ignored takes no place: as "wR".
        ("ijwjiRi", 1 / 2, 1 / 4, 1 / 2),
        ("RRR", 1.0, 1.0, 1.0),
    ],
)
def test_average_precision_worked_by_hand(
    answers: str, rectangle: float, trapezoid: float, inverse_penalty: float
) -> None:
    for ties in TIES:
        assert score(*ranking(answers), ap="rectangle", ties=ties).mean_ap == pytest.approx(rectangle, abs=1e-12)
        assert score(*ranking(answers), ap="trapezoid", ties=ties).mean_ap == pytest.approx(trapezoid, abs=1e-12)
        assert score(*ranking(answers), ties=ties).mean_inp == pytest.approx(inverse_penalty, abs=1e-12)


def test_cmc_worked_by_hand() -> None:
    rankings = ["R" + "w" * 11, "wwR" + "w" * 9, "wwwR" + "w" * 8, "w" * 9 + "Rww", "w" * 10 + "Rw"]
    distance, match, ignore = (torch.cat(column) for column in zip(*map(ranking, rankings), strict=True))
    scores = score(distance, match, ignore)
    assert scores.cmc == {1: 1 / 5, 3: 2 / 5, 5: 3 / 5, 10: 4 / 5}
    assert scores.valid_queries == 5
    assert score_queries(distance, match, ignore).first_rank.tolist() == [1, 3, 4, 10, 11]


def test_ranks_beyond_the_gallery() -> None:
    assert score(*ranking("wR")).cmc == {1: 0.0, 3: 1.0, 5: 1.0, 10: 1.0}
    assert score(*ranking("R")).cmc == {1: 1.0, 3: 1.0, 5: 1.0, 10: 1.0}


def test_a_query_without_a_right_answer_is_left_out() -> None:
    distance = torch.tensor([[0.1, 0.2], [0.1, 0.2], [0.2, 0.1]])
    match = torch.tensor([[False, False], [True, False], [True, False]])
    ignore = torch.tensor([[False, False], [True, False], [False, False]])
    scores = score(distance, match, ignore)
    assert (scores.valid_queries, scores.cmc[1], scores.cmc[3], scores.mean_ap) == (1, 0.0, 1.0, 0.5)
    each = score_queries(distance, match, ignore)
    assert each.first_rank.tolist() == [0, 0, 2]
    assert each.ap.isnan().tolist() == each.inp.isnan().tolist() == [True, True, False]


def test_ties_by_hand() -> None:
    distance = torch.tensor([[1.0, 1.0, 1.0]])
    match, ignore = torch.tensor([[True, False, True]]), torch.zeros(1, 3, dtype=torch.bool)
    worst = score(distance, match, ignore, ties="worst")  # w R R
    assert worst.mean_ap == pytest.approx((1 / 2 + 2 / 3) / 2)
    by_index = score(distance, match, ignore, ties="index")  # R w R
    assert by_index.mean_ap == pytest.approx((1 + 2 / 3) / 2)
    assert (worst.cmc[1], by_index.cmc[1]) == (0.0, 1.0)


def test_infinities_tie_too() -> None:
    far = torch.inf
    distance, ignore = torch.tensor([[far, 0.3, far, far]]), torch.zeros(1, 4, dtype=torch.bool)
    match = torch.tensor([[True, False, False, True]])
    assert score(distance, match, ignore, ties="worst").mean_ap == pytest.approx((1 / 3 + 2 / 4) / 2)  # w w R R
    assert score(distance, match, ignore, ties="index").mean_ap == pytest.approx((1 / 2 + 2 / 4) / 2)  # w R w R


@pytest.mark.parametrize(("ap", "ties"), RULES)
@pytest.mark.parametrize("levels", [3, 40, 10**6])
def test_equals_the_naive_loop(ap: str, ties: str, levels: int) -> None:
    random = np.random.default_rng(levels)
    distance = random.integers(0, levels, (30, 200)) / 16
    distance[random.random(distance.shape) < 0.05] = np.inf
    match = random.random(distance.shape) < random.choice([0.0, 0.02, 0.3, 1.0], (30, 1))
    ignore = random.random(distance.shape) < random.choice([0.0, 0.2, 0.95], (30, 1))
    check(distance, match, ignore, ap, ties)


@pytest.mark.parametrize(("ap", "ties"), RULES)
def test_chunks_do_not_show(ap: Any, ties: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    distance = random.integers(0, 9, (23, 17)) / 4
    match, ignore = random.random((23, 17)) < 0.2, random.random((23, 17)) < 0.2
    match[5:9] = False  # with chunks of few rows, some chunk has no right answer at all
    for cells in (1, 17, 60, 10**6):
        monkeypatch.setattr(metrics, "CELLS_PER_CHUNK", cells)
        check(distance, match, ignore, ap, ties)


def test_equals_scikit_learn_where_nothing_ties() -> None:
    random = np.random.default_rng(1)
    distance = random.permuted(np.tile(np.arange(300.0), (40, 1)), axis=1)
    match, ignore = random.random(distance.shape) < 0.05, random.random(distance.shape) < 0.3
    wanted = [
        average_precision_score(right[~gone], -apart[~gone])
        for apart, right, gone in zip(distance, match, ignore, strict=True)
    ]
    each = score_queries(torch.from_numpy(distance), torch.from_numpy(match), torch.from_numpy(ignore))
    np.testing.assert_allclose(each.ap.numpy(), wanted, rtol=0, atol=1e-12)


@st.composite
def judged(draw: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Few distinct distances, so that there are many ties; also infinite ones and rows with nothing right."""
    q, g = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    values = st.one_of(
        st.sampled_from([0.0, 0.5, 0.5, 1.0, 2.0, math.inf]), st.floats(width=32, allow_nan=False, allow_infinity=True)
    )
    table = [draw(st.lists(of, min_size=q * g, max_size=q * g)) for of in (values, st.booleans(), st.booleans())]
    distance, match, ignore = (np.array(column).reshape(q, g) for column in table)
    return distance.astype(float), match, ignore & draw(st.booleans())


def tensors(case: tuple[np.ndarray, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(each)) for each in case)


@given(judged(), st.sampled_from(RULES))
@settings(max_examples=300, deadline=None)
def test_any_case_equals_the_naive_loop(case: tuple[np.ndarray, np.ndarray, np.ndarray], rules: Any) -> None:
    check(*case, *rules)


@given(judged(), st.sampled_from(APS), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_worst_ties_do_not_see_the_gallery_order(case: Any, ap: Any, random: Any) -> None:
    columns = random.sample(range(case[0].shape[1]), case[0].shape[1])
    plain = score_queries(*tensors(case), ap, "worst")
    moved = score_queries(*tensors([each[:, columns] for each in case]), ap, "worst")
    assert torch.equal(plain.first_rank, moved.first_rank)
    torch.testing.assert_close(plain.ap, moved.ap, equal_nan=True, rtol=0, atol=1e-12)
    torch.testing.assert_close(plain.inp, moved.inp, equal_nan=True, rtol=0, atol=1e-12)


@given(judged(), st.sampled_from(APS))
@settings(max_examples=100, deadline=None)
def test_file_order_never_helps(case: Any, ap: Any) -> None:
    worst, by_index = (score_queries(*tensors(case), ap, ties) for ties in TIES)
    assert bool((worst.first_rank >= by_index.first_rank).all())
    assert bool((worst.ap.nan_to_num() <= by_index.ap.nan_to_num() + 1e-12).all())
    assert bool((worst.inp.nan_to_num() <= by_index.inp.nan_to_num() + 1e-12).all())


@given(judged(), st.sampled_from(RULES))
@settings(max_examples=100, deadline=None)
def test_a_perfect_ranking_scores_one(case: Any, rules: Any) -> None:
    distance, match, ignore = case
    assume((match & ~ignore).any())
    perfect = np.where(match, distance.clip(max=2.0), 3.0)
    scores = score(*tensors((perfect, match, ignore)), *rules)
    assert (scores.mean_ap, scores.mean_inp) == (pytest.approx(1.0), pytest.approx(1.0))
    assert set(scores.cmc.values()) == {1.0}


@given(judged(), st.sampled_from(RULES), st.data())
@settings(max_examples=150, deadline=None)
def test_a_nearer_wrong_entry_never_raises_a_score(case: Any, rules: Any, data: Any) -> None:
    distance, match, ignore = case
    wrong = np.argwhere(~match & ~ignore)
    assume(len(wrong) and (match & ~ignore).any())
    row, column = wrong[data.draw(st.integers(0, len(wrong) - 1))]
    nearer = distance.copy()
    nearer[row, column] = data.draw(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 1.0]))
    assume(nearer[row, column] < distance[row, column])
    before, after = (score(*tensors((each, match, ignore)), *rules) for each in (distance, nearer))
    assert after.mean_ap <= before.mean_ap + 1e-12
    assert after.mean_inp <= before.mean_inp + 1e-12
    assert all(after.cmc[rank] <= before.cmc[rank] for rank in RANKS)


@given(judged(), st.sampled_from(RULES))
@settings(max_examples=60, deadline=None)
def test_what_is_ignored_does_not_show(case: Any, rules: Any) -> None:
    distance, match, ignore = case
    plain = score_queries(*tensors(case), *rules)
    other = score_queries(*tensors((np.where(ignore, -5.0, distance), match ^ ignore, ignore)), *rules)
    assert torch.equal(plain.first_rank, other.first_rank)
    torch.testing.assert_close(plain.ap, other.ap, equal_nan=True)


def test_chosen_queries_are_averaged_by_themselves() -> None:
    distance, match, ignore = (torch.cat(column) for column in zip(*map(ranking, ["Rw", "wR", "ww"]), strict=True))
    each = score_queries(distance, match, ignore)
    assert each.mean(torch.tensor([False, True, True])).mean_ap == 0.5
    assert each.mean(torch.tensor([True, False, False])).cmc[1] == 1.0
    nobody = each.mean(torch.tensor([False, False, True]))
    assert nobody.valid_queries == 0
    assert math.isnan(nobody.mean_ap)


def test_nothing_to_score() -> None:
    none = torch.zeros(0, 3, dtype=torch.bool)
    assert len(score_queries(torch.zeros(0, 3), none, none).ap) == 0
    for q, g in ((0, 3), (3, 0)):
        empty = torch.zeros(q, g, dtype=torch.bool)
        with pytest.raises(ValueError, match="no query has a right answer"):
            score(torch.zeros(q, g), empty, empty)


def test_nan_is_refused() -> None:
    distance, match, ignore = ranking("Rw")
    distance[0, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        score(distance, match, ignore)


def test_shapes_and_rules_are_checked() -> None:
    # Without the shape checker's own refusal, as users run it.
    plain = getattr(score_queries, "__wrapped__", score_queries)
    distance, match, ignore = ranking("Rww")
    with pytest.raises(ValueError, match=r"one shape \(q, g\), not \(1, 3\), \(1, 2\), \(1, 3\)$"):
        plain(distance, match[:, :2], ignore)
    with pytest.raises(ValueError, match="not 'area' and 'worst'"):
        plain(distance, match, ignore, "area")
    with pytest.raises(ValueError, match="not 'rectangle' and 'best'"):
        plain(distance, match, ignore, "rectangle", "best")


def test_prints_as_the_papers_do() -> None:
    scores = Scores({1: 0.5, 3: 0.625, 5: 0.75, 10: 1.0}, 0.4321, 0.1, 7)
    assert str(scores) == "R1 50.0%  R3 62.5%  R5 75.0%  R10 100.0%  mAP 43.2%  mINP 10.0%  (7 queries)"


def test_nothing_that_comes_in_is_changed() -> None:
    given = ranking("wRiRj")
    copies = [each.clone() for each in given]
    for rules in RULES:
        score(*given, *rules)
    assert all(torch.equal(one, other) for one, other in zip(given, copies, strict=True))
