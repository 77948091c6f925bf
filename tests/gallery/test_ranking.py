"""Search ranked by P(same): exactly what computing every pair's odds gives, whatever was passed over on the way."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from hpnet.calibration import Calibration, CalibrationError, Curve
from hpnet.distance import part_distance
from hpnet.gallery import Gallery, GalleryError, Match, bounds, prepared
from hpnet.gallery.bounds import PRODUCTS, Bounds, Question, fit, sketched
from hpnet.gallery.nearest import Block, Nearest
from hpnet.gallery.prepared import Held
from hpnet.parts import PARTS, Part, PartFeatures

WEIGHTS, DIMENSIONS = "0" * 64, 32
CHOICES = [(0, 1, 2, 3), (2,), (0, 3), (1, 2, 3)]

curve = st.tuples(
    st.integers(-3000, 3000).map(lambda n: n / 100) | st.sampled_from([0.0, 1e6]),
    st.integers(0, 3000).map(lambda n: n / 100) | st.sampled_from([0.0, 1e-6, 500.0]),
)
curves = st.lists(curve, min_size=15, max_size=15)


def calibration(numbers: list[tuple[float, float]], parts: int = 4) -> Calibration:
    patterns = [f"{number:0{parts}b}" for number in range(1, 1 << parts)]
    return Calibration(parts, {name: Curve(*pair, 100, 100) for name, pair in zip(patterns, numbers, strict=False)})


def drawn(seed: int, steepest: float = 30) -> Calibration:
    chance = np.random.default_rng(seed)
    return calibration(list(zip(chance.uniform(-9, 9, 15), chance.uniform(0, steepest, 15), strict=True)))


def crowd(count: int, seed: int, *, spread: float = 0.4, seen: float = 0.7) -> PartFeatures:
    """People around a few centres; without spread many are exactly alike."""
    chance = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(5, 4, DIMENSIONS, generator=torch.Generator().manual_seed(7)), dim=-1)
    noise = torch.randn(count, 4, DIMENSIONS, generator=chance) / DIMENSIONS**0.5
    features = normalize(centres[torch.randint(5, (count,), generator=chance)] + spread * noise, dim=-1)
    return PartFeatures(features, torch.rand(count, 4, generator=chance) < seen)


def of_parts(people: PartFeatures, chosen: tuple[int, ...]) -> PartFeatures:
    return PartFeatures(people.features[:, list(chosen)], people.visibility[:, list(chosen)])


def odds_by_definition(
    query: PartFeatures, people: PartFeatures, chosen: tuple[int, ...], by: Calibration
) -> list[list[Fraction | None]]:
    """Log-odds of each pair, without rounding; None where nothing is common. Distances as a search tells them."""
    apart = part_distance(of_parts(query, chosen).to(torch.float64), of_parts(people, chosen).to(torch.float64))
    told = apart.round(decimals=7).float().double().tolist()
    mine, theirs = query.visibility.tolist(), people.visibility.tolist()

    def odds(row: int, column: int) -> Fraction | None:
        common = [part for part in chosen if mine[row][part] and theirs[column][part]]
        pattern = by.curves["".join("1" if part in common else "0" for part in range(4))] if common else None
        if pattern is None:
            return None
        return Fraction(pattern.intercept) - Fraction(pattern.slope) * Fraction(told[row][column])

    return [[odds(row, column) for column in range(len(people))] for row in range(len(query))]


def assert_likeliest(found: list[int], odds: dict[int, Fraction], k: int) -> None:
    """The k of greatest odds in order, by id where they are equal; what differs by rounding alone may change places."""
    expected = sorted(odds, key=lambda number: (-odds[number], number))[:k]
    assert len(found) == len(set(found)) == len(expected)
    for mine, right in zip(found, expected, strict=True):
        assert float(odds[mine]) == pytest.approx(float(odds[right]), rel=1e-9, abs=1e-9), (found, expected)
    alike = dict[Fraction, list[int]]()
    for number in found:
        alike.setdefault(odds[number], []).append(number)
    for value, numbers in alike.items():
        assert numbers == sorted(number for number in odds if odds[number] == value)[: len(numbers)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a few hundred people make many blocks and tiles."""
    monkeypatch.setattr(bounds, "_TILE", 1)
    for name, size in (("FEW", 1), ("BLOCK", 128), ("_FEW_PAIRS", 100), ("_MANY_PAIRS", 200)):
        monkeypatch.setattr(prepared, name, size)


# What is held in memory


@pytest.mark.usefixtures("small")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 500),
    queries=st.integers(1, 6),
    seed=st.integers(0, 1000),
    k=st.sampled_from([1, 3, 40, 5000]),
    seen=st.sampled_from([0.2, 0.7, 1.0]),
    spread=st.sampled_from([0.0, 0.2, 2.0]),
    numbers=curves,
    chosen=st.sampled_from(CHOICES),
    half=st.booleans(),
    some=st.booleans(),
)
def test_pruned_or_not_the_likeliest_are_found(
    count: int,
    queries: int,
    seed: int,
    k: int,
    seen: float,
    spread: float,
    numbers: list[tuple[float, float]],
    chosen: tuple[int, ...],
    half: bool,
    some: bool,
) -> None:
    people = crowd(count, seed, spread=spread, seen=seen).to(torch.float16 if half else torch.float32)
    query, by = crowd(queries, seed + 1, spread=spread and 0.2), calibration(numbers)
    ids = np.random.default_rng(seed).permutation(3 * count)[:count]
    everybody = Held()
    for start in range(0, count, 50):
        everybody.add(Block(ids[start : start + 50], people[start : start + 50]))
    step = 3 if some else 1
    odds = odds_by_definition(query, people[::step], chosen, by)
    asked = Question(of_parts(query, chosen), chosen, k, "euclidean", "common", by.of_parts(chosen).in_proportion())
    for pruned in (True, False):
        found = everybody.nearest(asked, ids[::step] if some else None, pruned=pruned).rows(queries)
        for row, each in zip(found, odds, strict=True):
            known = {n: value for n, value in zip(ids[::step].tolist(), each, strict=True) if value is not None}
            assert_likeliest([number for number, _ in row], known, k)


@settings(max_examples=30, deadline=None)
@given(numbers=curves, chosen=st.sampled_from(CHOICES), product=st.sampled_from(sorted(PRODUCTS)))
def test_bounds_are_never_above_the_cost(
    numbers: list[tuple[float, float]], chosen: tuple[int, ...], product: str
) -> None:
    people, query = crowd(300, 1).to(torch.float16), crowd(20, 2)
    people.features[:20] = query.features.half()  # the least distances
    rotation = fit(people)
    assert rotation is not None
    curves = calibration(numbers).of_parts(chosen).in_proportion()
    asked = Question(of_parts(query, chosen), chosen, 5, "euclidean", "common", curves)
    sketches = sketched(people, rotation)
    whole = sketches._replace(numbers=people.features.transpose(0, 1), rounded=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "fastest_product", lambda *_: PRODUCTS[product])
        both = [Bounds(asked, rotation)(sketches).double(), Bounds(asked, None)(whole).double()]
    cost = asked.cost(asked.distances(people.to(torch.float64)), people.visibility)
    ranked = cost.isfinite()
    assert bool((cost[ranked] >= 0).all())
    for least in both:
        assert bool((least <= cost * (1 + 5e-7) + 1e-9)[ranked].all()), "below, but for rounding to float32"
        assert not bool((least[~ranked] < 1e9).any()), "who is not ranked is passed over"


@pytest.mark.usefixtures("small")
def test_most_people_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    people, measured, offer = crowd(3000, 1, spread=0.2), [], prepared.offer
    everybody = Held()
    everybody.add(Block(np.arange(3000), people))

    def counted(best: Nearest, asked: Question, block: Block) -> None:
        measured.append(len(block.ids))
        offer(best, asked, block)

    monkeypatch.setattr(prepared, "offer", counted)
    by = calibration([(2.0 * f"{number:04b}".count("1"), 12.0) for number in range(1, 16)])
    query = crowd(1, 2, spread=0.2, seen=1.0)
    everybody.nearest(Question(query, (0, 1, 2, 3), 5, "euclidean", "common", by.in_proportion()))
    assert 0 < sum(measured) < 900


# The calibration's two changes


@settings(deadline=None)
@given(numbers=curves, chosen=st.sampled_from(CHOICES))
def test_in_proportion_the_order_is_the_same(numbers: list[tuple[float, float]], chosen: tuple[int, ...]) -> None:
    whole = calibration(numbers)
    some = whole.of_parts(chosen)
    even = some.in_proportion()
    assert len(some.curves) == (1 << len(chosen)) - 1
    scale = max(1.0, *(each.slope for each in some.curves.values()))
    greatest = max(each.intercept for each in some.curves.values())
    for pattern, each in some.curves.items():
        parts = {chosen[at] for at, digit in enumerate(pattern) if digit == "1"}
        assert each is whole.curves["".join("1" if part in parts else "0" for part in range(4))]
        assert even.curves[pattern].intercept == pytest.approx((each.intercept - greatest) / scale)
        assert even.curves[pattern].slope == pytest.approx(each.slope / scale)
        assert even.curves[pattern].intercept <= 0
        assert 0 <= even.curves[pattern].slope <= 1


def test_parts_that_are_not_there() -> None:
    with pytest.raises(CalibrationError, match="of 4 parts"):
        drawn(0).of_parts((1, 4))


# The gallery


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(0, 60),
    seed=st.integers(0, 1000),
    k=st.sampled_from([1, 4, 100]),
    numbers=curves,
    chosen=st.none() | st.sampled_from(CHOICES),
    filtered=st.booleans(),
)
def test_a_gallery_from_memory_and_from_disk(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    seed: int,
    k: int,
    numbers: list[tuple[float, float]],
    chosen: tuple[int, ...] | None,
    filtered: bool,
) -> None:
    people, query, by = crowd(count, seed, spread=0.3), crowd(4, seed + 1), calibration(numbers)
    gallery = Gallery.create(tmp_path_factory.mktemp("g"), WEIGHTS)
    ids = gallery.add(people, [f"{number}.jpg" for number in range(count)], cameras=[n % 2 for n in range(count)])
    kept = range(1, count, 2) if filtered else range(count)
    parts, condition = None if chosen is None else [Part(part) for part in chosen], "camera = 1" if filtered else None
    stored = gallery.fetch([ids[number] for number in kept]) if len(kept) else people[:0]
    odds = odds_by_definition(query, stored, chosen or (0, 1, 2, 3), by)
    distance = gallery.search(query, 1000, parts=parts, filter=condition if count else None)
    for memory in (0, 1 << 20):
        again = Gallery.open(gallery.path, memory=memory)
        found = again.search(query, k, parts=parts, filter=condition if count else None, calibration=by)
        for row, near, each in zip(found, distance, odds, strict=True):
            known = {ids[n]: value for n, value in zip(kept, each, strict=True) if value is not None}
            assert_likeliest([match.id for match in row], known, k)
            same = {match.id: match for match in near}
            assert row == [same[match.id] for match in row], "ids, distances and parts are those of any search"


def likeliest(gallery: Gallery, query: PartFeatures, **options: Any) -> list[Match]:
    return gallery.search(query, **options)[0]


def shows(*parts: Part, toward: tuple[float, float]) -> PartFeatures:
    features = torch.zeros(1, 4, 8)
    features[..., 0], features[..., 1] = toward
    return PartFeatures(normalize(features, dim=-1), torch.tensor([[part in parts for part in PARTS]]))


def test_a_part_alone_that_comes_close_by_chance_gives_way(tmp_path: Any) -> None:
    gallery = Gallery.create(tmp_path / "g", WEIGHTS)
    shoes, whole, other = (
        shows(Part.LOWER_LEGS, toward=(1, 0.1)), shows(*PARTS, toward=(1, 0.3)), shows(Part.HEAD, toward=(1, 0))
    )  # fmt: skip
    gallery.add(PartFeatures.concatenate([shoes, whole, whole, other]), ["shoes", "whole", "twin", "head"])
    query = shows(Part.TORSO, Part.UPPER_LEGS, Part.LOWER_LEGS, toward=(1, 0))
    by = calibration([(3.0 * f"{number:04b}".count("1"), 10.0) for number in range(1, 16)])
    assert [match.path for match in likeliest(gallery, query)] == ["shoes", "whole", "twin"]
    found = likeliest(gallery, query, calibration=by)
    assert [match.path for match in found] == ["whole", "twin", "shoes"], "equal ones by id; nobody without a part"
    chances = [by.probability(match.distance, match.parts) or 0 for match in found]
    assert chances == sorted(chances, reverse=True)
    assert likeliest(gallery, query, calibration=by, parts=["LOWER_LEGS"])[0].path == "shoes"
    level = calibration([(1.0, 0.0)] * 15)  # distance says nothing
    assert [match.id for match in likeliest(gallery, query, calibration=level)] == [0, 1, 2]


def test_whole_people_have_one_curve(tmp_path: Any) -> None:
    gallery = Gallery.create(tmp_path / "g", WEIGHTS)
    whole = of_parts(crowd(20, 1, seen=1.0), (0,))
    gallery.add(whole, [f"{number}.jpg" for number in range(20)])
    assert gallery.search(whole, 5, calibration=calibration([(2.0, 8.0)], parts=1)) == gallery.search(whole, 5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "cosine"}, "not of cosine and common"),
        ({"visibility": "query"}, "not of euclidean and query"),
        ({"calibration": calibration([(1.0, 1.0)], parts=1)}, "calibration: is of 1 parts, and the features have 4"),
    ],
)
def test_a_calibration_of_something_else(options: dict[str, Any], said: str, tmp_path: Any) -> None:
    with pytest.raises(GalleryError, match=said):
        Gallery.create(tmp_path / "g", WEIGHTS).search(crowd(1, 1), **{"calibration": drawn(1), **options})
