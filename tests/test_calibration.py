"""Probabilities: curves beside scikit-learn's, patterns of parts, priors, and the record in a header."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hpnet.calibration import (
    FEWEST_PAIRS,
    MOST_PHOTOS,
    Calibration,
    CalibrationError,
    Curve,
    KnownPeople,
    calibration_of,
    fit,
    logistic_curve,
)
from hpnet.distance import part_distance
from hpnet.parts import Part, PartFeatures

STEP = 0.001
PATTERNS = [f"{number:04b}" for number in range(1, 16)]


def made_up() -> Calibration:
    """Another curve for each pattern."""
    return Calibration(4, {text: Curve(10.0 + n, 9 + n / 3, 200, 300) for n, text in enumerate(PATTERNS)})


def counted(same: Tensor, different: Tensor) -> Tensor:
    return torch.stack([torch.bincount((each / STEP).long(), minlength=2000).double() for each in (same, different)])


def crowd(identities: int = 30, seen: str | None = None, spread: float = 1.4, seed: int = 0) -> KnownPeople:
    """Eight photos of each person, by four cameras, scattered around a direction of the person's own in each part."""
    random = torch.Generator().manual_seed(seed)
    identity = torch.arange(identities).repeat_interleave(8)
    centre = torch.nn.functional.normalize(torch.randn(identities, 4, 16, generator=random), dim=-1)
    noise = torch.randn(len(identity), 4, 16, generator=random) / 4
    features = torch.nn.functional.normalize(centre[identity] + spread * noise, dim=-1)
    visibility = torch.rand(len(identity), 4, generator=random) < 0.8
    if seen is not None:
        visibility = torch.tensor([digit == "1" for digit in seen]).repeat(len(identity), 1)
    return KnownPeople(PartFeatures(features, visibility), identity, torch.arange(len(identity)) % 4)


# --- one curve


def test_a_curve_is_what_scikit_learn_finds() -> None:
    random = torch.Generator().manual_seed(0)
    same = (0.8 + 0.15 * torch.randn(3_000, generator=random)).clamp(0, 1.99)
    different = (1.2 + 0.1 * torch.randn(40_000, generator=random)).clamp(0, 1.99)
    intercept, slope = logistic_curve(counted(same, different), STEP)
    rows = torch.cat([same, different])[:, None].numpy()
    labels = torch.cat([torch.ones(len(same)), torch.zeros(len(different))]).numpy()
    theirs = LogisticRegression(C=1e6, class_weight="balanced", tol=1e-8).fit(rows, labels)
    assert slope == pytest.approx(-theirs.coef_[0, 0], rel=0.01)
    assert intercept == pytest.approx(theirs.intercept_[0], rel=0.01)


@settings(deadline=None, max_examples=60)
@given(
    same=st.lists(st.floats(0, 1.99), min_size=1, max_size=30),
    different=st.lists(st.floats(0, 1.99), min_size=1, max_size=30),
)
def test_no_pairs_whatever_make_a_curve_that_rises_or_bursts(same: list[float], different: list[float]) -> None:
    intercept, slope = logistic_curve(counted(torch.tensor(same), torch.tensor(different)), STEP)
    assert math.isfinite(intercept)
    assert 0 <= slope < 1e4


def test_distance_that_speaks_the_wrong_way_round_says_nothing() -> None:
    near, far = torch.full((500,), 0.3), torch.full((500,), 1.2)
    intercept, slope = logistic_curve(counted(far, near), STEP)
    assert (intercept, slope) == (pytest.approx(0, abs=1e-9), 0)


def test_few_pairs_that_one_distance_parts_do_not_make_it_sure() -> None:
    def at_once(pairs: int) -> float:
        same, different = torch.full((pairs,), 0.5), torch.full((pairs,), 1.0)
        intercept, slope = logistic_curve(counted(same, different), STEP)
        return intercept - slope * 0.5

    assert at_once(4) == pytest.approx(math.log(5), abs=0.05)  # Platt's target: (4 + 1) / (4 + 2)
    assert at_once(4) < at_once(100) < 10


# --- the fit


def test_known_people_get_curves_that_fit_them() -> None:
    people, others = crowd(seed=1), crowd(seed=2)
    calibration = fit(people)
    assert calibration is not None
    assert all(curve.fitted_on == "pattern" for curve in calibration.curves.values())
    shown = others.features.visibility
    chance = calibration.log_odds(part_distance(others.features, others.features), shown, shown).sigmoid()
    first, second, match = others.pairs()
    assert float(chance[first, second][match].mean()) > 0.7
    assert float(chance[first, second][~match].mean()) < 0.3
    # More parts tell more: the whole body parts people more steeply than a head.
    assert calibration.curves["1111"].slope > calibration.curves["1000"].slope


def test_every_choice_among_the_common_parts_counts() -> None:
    """Two people, whole, two photos each: one pair of one person each, four of two; every pattern has them."""
    features = torch.nn.functional.normalize(torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    seen = torch.ones(4, 4, dtype=torch.bool)
    seen[3, 0] = False
    people = KnownPeople(PartFeatures(features, seen), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    calibration = fit(people)
    assert calibration is not None
    # Far too few: all patterns of a size are taken together, and as those are too few as well, all there are.
    # Of 15 patterns all have pairs 01, 02, 12; the seven without a head have 03, 13, 23 too.
    assert {(c.same, c.different, c.fitted_on) for c in calibration.curves.values()} == {(15 + 7, 30 + 14, "all")}


def test_patterns_that_nobody_shows_take_the_nearest_curve() -> None:
    calibration = fit(crowd(seen="1100"))
    assert calibration is not None
    own = {pattern: curve for pattern, curve in calibration.curves.items() if curve.fitted_on == "pattern"}
    assert set(own) == {"1000", "0100", "1100"}
    assert calibration.curves["0010"].fitted_on == "size"
    assert calibration.curves["0010"].same == own["1000"].same + own["0100"].same
    assert calibration.curves["0011"].slope == own["1100"].slope
    assert calibration.curves["0111"].fitted_on == calibration.curves["1111"].fitted_on == "all"
    assert all(min(curve.same, curve.different) >= FEWEST_PAIRS for curve in calibration.curves.values())


def test_one_camera_does_not_vouch_for_one_person() -> None:
    people = crowd(identities=3)
    first, second, match = people.pairs()
    same = people.identity[first] == people.identity[second]
    assert torch.equal(match, same)
    assert not bool((same & (people.camera[first] == people.camera[second])).any())
    # Each of 3 people has 8 photos, two by each of four cameras: 28 pairs, 4 of them by one camera.
    assert (int(match.sum()), int((~match).sum())) == (3 * 24, 3 * 64)
    unknown = KnownPeople(people.features, people.identity, torch.full_like(people.camera, -1))
    assert int(unknown.pairs()[2].sum()) == 3 * 28


def test_a_fit_is_bounded_and_repeatable() -> None:
    many = crowd(identities=MOST_PHOTOS // 8 + 5)
    assert len(many.some().identity) == MOST_PHOTOS
    assert torch.equal(many.some(3).identity, many.some(3).identity)
    assert not torch.equal(many.some(3).identity, many.some(4).identity)


@pytest.mark.parametrize("rows", [[0], [0, 8], [0, 1], []])
def test_without_both_kinds_of_pairs_there_is_nothing_to_fit(rows: list[int]) -> None:
    assert fit(crowd(seen="1111")[torch.tensor(rows, dtype=torch.int64)]) is None


def test_a_global_descriptor_has_one_curve() -> None:
    people = crowd()
    whole = PartFeatures(people.features.features[:, :1], torch.ones(len(people.identity), 1, dtype=torch.bool))
    calibration = fit(KnownPeople(whole, people.identity, people.camera))
    assert calibration is not None
    assert list(calibration.curves) == ["1"]
    assert calibration.probability(0.5, tuple(Part)) == calibration.probability(0.5, [0])


# --- asking


@settings(deadline=None, max_examples=60)
@given(
    parts=st.sets(st.sampled_from(list(Part)), min_size=1),
    distance=st.floats(0, 2),
    nearer=st.floats(0.01, 2),
    prior=st.floats(1e-6, 1 - 1e-6),
)
def test_nearer_is_likelier_and_so_is_what_was_likelier_before(
    parts: set[Part], distance: float, nearer: float, prior: float
) -> None:
    calibration = made_up()
    chance = calibration.probability(distance, parts, prior)
    assert chance is not None
    assert 0 <= chance <= 1
    assert calibration.probability(max(0.0, distance - nearer), parts, prior) >= chance  # type: ignore[operator]
    assert calibration.probability(distance, parts, prior / 2) <= chance  # type: ignore[operator]
    even = calibration.threshold(parts, prior)
    assert even is not None
    if even > 0:
        assert calibration.probability(even, parts, prior) == pytest.approx(0.5)


def test_the_prior_is_bayes() -> None:
    """Odds before, times what the distance says, are odds after."""
    calibration = made_up()
    even, rare = (calibration.probability(0.9, [0], prior) for prior in (0.5, 0.001))
    assert even is not None
    assert rare is not None
    assert rare / (1 - rare) == pytest.approx(even / (1 - even) * 0.001 / 0.999)


def test_a_matrix_says_what_each_pair_says() -> None:
    random = torch.Generator().manual_seed(0)
    query, gallery = (torch.rand(count, 4, generator=random) < 0.5 for count in (20, 30))
    distance = 2 * torch.rand(20, 30, generator=random)
    common = query[:, None] & gallery
    distance[~common.any(2)] = torch.inf
    calibration = made_up()
    odds = calibration.log_odds(distance, query, gallery, prior=0.2)
    for row in range(20):
        for column in range(30):
            parts = common[row, column].nonzero()[:, 0].tolist()
            chance = calibration.probability(float(distance[row, column]), parts, 0.2)
            expected = 0.2 if chance is None else chance
            assert float(odds[row, column].double().sigmoid()) == pytest.approx(expected, abs=1e-5)


def test_without_a_common_part_nothing_was_learnt() -> None:
    calibration = made_up()
    assert calibration.probability(torch.inf, []) is None
    assert calibration.probability(torch.inf, [1]) is None
    assert calibration.threshold([]) is None


def test_a_flat_curve_knows_no_threshold() -> None:
    assert Calibration(1, {"1": Curve(0.0, 0.0, 100, 100)}).threshold([0]) is None


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.5, 2.0, math.nan])
def test_a_prior_is_neither_0_nor_1(prior: float) -> None:
    with pytest.raises(ValueError, match="prior must lie between 0 and 1"):
        made_up().probability(0.5, [0], prior)


def test_features_of_other_parts_are_refused() -> None:
    seen = torch.ones(2, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="calibration is of 4 parts, not of 1 and 1"):
        made_up().log_odds(torch.ones(2, 2), seen, seen)


# --- the record


def test_the_record_survives_a_header() -> None:
    calibration = made_up()
    told = json.loads(json.dumps({"calibration": calibration.as_record()}))
    assert calibration_of(told, "w.safetensors") == calibration
    assert calibration_of({}, "w.safetensors") is None


def spoilt(**changes: Any) -> dict[str, Any]:
    return made_up().as_record() | changes


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([], "not a record of curves"),
        ({}, "not a record of curves"),
        (spoilt(parts="many"), "not a record of curves"),
        (spoilt(parts=0), "parts must be 1..8, not 0"),
        (spoilt(parts=3), "each pattern of 3 parts once"),
        (spoilt(curves={}), "each pattern of 4 parts once"),
        (spoilt(curves={"1111": [1, 2]}), "not a record of curves"),
        (spoilt(curves={text: [1, -1, 5, 5, "size"] for text in PATTERNS}), "slope of at least 0"),
        (spoilt(curves={text: [math.nan, 1, 5, 5, "size"] for text in PATTERNS}), "finite numbers"),
        (spoilt(curves={text: [1, 1, 5, 5, "guess"] for text in PATTERNS}), "not a record of curves"),
    ],
)
def test_a_broken_record_is_named(record: Any, said: str) -> None:
    with pytest.raises(CalibrationError, match=rf"^w\.safetensors: calibration: .*{said}"):
        calibration_of({"calibration": record}, "w.safetensors")
