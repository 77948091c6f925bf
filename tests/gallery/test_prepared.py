"""Pruned search: bounds that never lie, answers that are those of computing every distance."""

from __future__ import annotations

import time
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from hpnet.distance import Metric, Visibility, part_distance
from hpnet.gallery import bounds, prepared
from hpnet.gallery.bounds import PRODUCTS, Bounds, Question, Sketches, fit, sketched
from hpnet.gallery.nearest import Block, Nearest
from hpnet.gallery.prepared import Held, nearest_among
from hpnet.parts import PartFeatures

DIMENSIONS = 64


def crowd(
    count: int, seed: int, *, spread: float = 0.4, seen: float = 0.8, half: bool = True, odd: bool = True
) -> PartFeatures:
    """People around a few centres, as embeddings lie; what a photo does not show may be of any length if odd."""
    chance = torch.Generator().manual_seed(seed)
    centres = torch.randn(6, 4, DIMENSIONS, generator=torch.Generator().manual_seed(7)) * torch.logspace(
        0, -2, DIMENSIONS
    )
    chosen = normalize(centres, dim=-1)[torch.randint(6, (count,), generator=chance)]
    noise = torch.randn(count, 4, DIMENSIONS, generator=chance) / DIMENSIONS**0.5
    features = normalize(chosen + spread * noise, dim=-1)
    visibility = torch.rand(count, 4, generator=chance) < seen
    if odd:
        features[~visibility] *= 10 ** torch.randint(-3, 4, (int((~visibility).sum()), 1), generator=chance).float()
    return PartFeatures(features.half() if half else features, visibility)


def held(people: PartFeatures, ids: list[int] | None = None) -> Held:
    everybody = Held()
    everybody.add(Block(np.array(ids or range(len(people)), np.int64), people))
    return everybody


def question(query: PartFeatures, k: int = 5, metric: Any = "euclidean", visibility: Any = "common") -> Question:
    return Question(query, (0, 1, 2, 3), k, metric, visibility)


def answer(best: Nearest, count: int) -> list[list[tuple[int, float]]]:
    return best.rows(count)


def by_definition(asked: Question, people: PartFeatures, ids: list[int]) -> list[list[tuple[int, float]]]:
    """Every distance in double precision, sorted; equal ones by id."""
    distance = asked.distances(people.to(torch.float64)).round(decimals=7).float().tolist()
    ranked = [sorted((each, number) for each, number in zip(row, ids, strict=True) if each < 1e9) for row in distance]
    return [[(number, each) for each, number in row[: asked.k]] for row in ranked]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a few hundred people make many blocks and tiles."""
    monkeypatch.setattr(prepared, "FEW", 1)
    monkeypatch.setattr(prepared, "BLOCK", 128)
    monkeypatch.setattr(bounds, "_TILE", 1)
    monkeypatch.setattr(prepared, "_FEW_PAIRS", 100)
    monkeypatch.setattr(prepared, "_MANY_PAIRS", 200)


# Bounds


def whole(people: PartFeatures) -> Sketches:
    """What bounds people closely."""
    rotation = fit(people)
    assert rotation is not None
    return sketched(people, rotation)._replace(numbers=people.features.transpose(0, 1), rounded=0.0)


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("visibility", get_args(Visibility))
@pytest.mark.parametrize("metric", get_args(Metric))
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("odd", [False, True])
def test_bounds_are_never_above_the_distance(
    product: str, metric: Any, visibility: Any, close: bool, odd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "fastest_product", lambda *_: PRODUCTS[product])
    people, query = crowd(600, 1, odd=odd), crowd(40, 2, half=False, odd=odd)
    people.features[:40] = query.features.half() * torch.where(query.visibility, 1.0, float(not odd))[..., None]
    people = PartFeatures(people.features, torch.cat([query.visibility, people.visibility[40:]]))
    rotation = fit(people)
    assert rotation is not None
    for chosen in ((0, 1, 2, 3), (2,), (0, 3)):
        columns = list(chosen)
        asked = Question(
            PartFeatures(query.features[:, columns], query.visibility[:, columns]), chosen, 5, metric, visibility
        )
        least_of, sketches = (
            (Bounds(asked, None), whole(people)) if close else (Bounds(asked, rotation), sketched(people, rotation))
        )
        assert least_of.hold(sketches) == (visibility == "common" or not odd)
        if not least_of.hold(sketches):
            continue
        least, distance = least_of(sketches), asked.distances(people.to(torch.float64))
        ranked = distance.isfinite()
        assert bool((least[ranked] <= distance[ranked]).all())
        assert float((least / distance)[ranked & (distance > 0.3)].median()) > (0.9 if close else 0.6), "prune nothing"
        assert not bool((least[~ranked] < 1e9).any()), "who is not ranked is passed over"


def test_a_product_is_as_exact_as_it_says() -> None:
    # What it multiplies by has been rounded before: that loss is counted apart.
    query, people = normalize(torch.randn(4, 64, 48), dim=-1).bfloat16().float(), torch.randn(4, 4096, 48)
    people = normalize(people, dim=-1)
    people[:, :64] = query  # the greatest products
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        stored = people.to(dtype)
        exact = query.double() @ stored.double().transpose(1, 2)
        for name, product in PRODUCTS.items():
            for some in (slice(None), slice(1)):
                lost = (product.multiply(query[:, some], stored) - exact[:, some]).abs().max()
                assert float(lost) < 1.01 * product.error(dtype), (name, dtype)


def test_a_product_that_errs_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = PRODUCTS["float32"]
    wrong = exact._replace(multiply=lambda query, people: exact.multiply(query, people) + 0.01)
    slow = exact._replace(multiply=lambda query, people: time.sleep(0.01) or exact.multiply(query, people))
    monkeypatch.setattr(bounds, "PRODUCTS", {"wrong": wrong, "slow": slow})
    assert bounds.fastest_product.__wrapped__(1, 32, torch.float16) is slow


def test_a_rotation_is_one() -> None:
    rotation = fit(crowd(500, 3))
    assert rotation is not None
    assert torch.allclose(
        rotation.transpose(1, 2) @ rotation, torch.eye(rotation.shape[2]).expand(4, -1, -1), atol=1e-6
    )
    assert fit(crowd(0, 3)) is None
    assert fit(PartFeatures(normalize(torch.randn(5, 4, 8), dim=-1), torch.ones(5, 4, dtype=torch.bool))) is None


def test_sketches_take_a_fifth_of_the_features() -> None:
    people = PartFeatures(normalize(torch.randn(300, 4, 256), dim=-1).half(), torch.ones(300, 4, dtype=torch.bool))
    rotation = fit(people)
    assert rotation is not None
    sketches = sketched(people, rotation)
    features = people.features.nbytes
    assert (sketches.numbers.nbytes + sketches.shown.nbytes + 2 * 8 * 300 + features) / features < 1.2


# Searching what is held


@pytest.mark.usefixtures("small")
@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 700),
    queries=st.integers(1, 9),
    seed=st.integers(0, 1000),
    k=st.sampled_from([1, 3, 40, 5000]),
    seen=st.sampled_from([0.1, 0.7, 1.0]),
    spread=st.sampled_from([0.0, 0.2, 2.0]),
    metric=st.sampled_from(get_args(Metric)),
    visibility=st.sampled_from(get_args(Visibility)),
    chosen=st.sets(st.integers(0, 3), min_size=1),
    half=st.booleans(),
    some=st.booleans(),
    odd=st.booleans(),
)
def test_pruned_or_not_the_answer_is_the_same(
    count: int,
    queries: int,
    seed: int,
    k: int,
    seen: float,
    spread: float,
    metric: Any,
    visibility: Any,
    chosen: set[int],
    half: bool,
    some: bool,
    odd: bool,
) -> None:
    # Without spread people are exactly alike: their ids decide.
    people = crowd(count, seed, spread=spread, seen=seen, half=half, odd=odd)
    query, columns = crowd(queries, seed + 1, spread=0.2, seen=0.8, half=False, odd=odd), sorted(chosen)
    asked = Question(
        PartFeatures(query.features[:, columns], query.visibility[:, columns]), tuple(columns), k, metric, visibility
    )
    ids = np.random.default_rng(seed).permutation(3 * count)[:count]
    everybody = Held()
    for start in range(0, count, 50):
        everybody.add(Block(ids[start : start + 50], people[start : start + 50]))
    allowed = ids[::3] if some else None
    searched = people[::3] if some else people
    expected = by_definition(asked, searched, (ids[::3] if some else ids).tolist())
    for pruned in (True, False):
        found = answer(everybody.nearest(asked, allowed, pruned=pruned), queries)
        assert [[number for number, _ in row] for row in found] == [[number for number, _ in row] for row in expected]
        for row, right in zip(found, expected, strict=True):
            assert [each for _, each in row] == pytest.approx([each for _, each in right], abs=2e-7)


@pytest.mark.usefixtures("small")
def test_most_people_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    people, asked = crowd(2000, 1, spread=0.2), question(crowd(1, 2, spread=0.2, seen=1.0, half=False))
    everybody, measured = held(people), []
    offer = prepared.offer

    def counted(best: Nearest, asked: Question, block: Block) -> None:
        measured.append(len(block.ids))
        offer(best, asked, block)

    monkeypatch.setattr(prepared, "offer", counted)
    everybody.nearest(asked)
    assert 0 < sum(measured) < 500


@pytest.mark.parametrize("waiting", [0, 10, 1 << 22])
def test_those_who_wait_are_not_forgotten(monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    # Bounds so loose that the nearest is seldom the one who promised most.
    people, asked = crowd(900, 1, spread=0.9), question(crowd(40, 2, spread=0.9, half=False), k=1)
    expected = by_definition(asked, people, list(range(900)))
    monkeypatch.setattr(prepared, "FEW", 1)
    monkeypatch.setattr(prepared, "_WAITING", waiting)
    monkeypatch.setattr(prepared, "_WORTH", 1)
    assert answer(held(people).nearest(asked), 40) == expected


@pytest.mark.usefixtures("small")
@settings(max_examples=25, deadline=None)
@given(changes=st.lists(st.tuples(st.booleans(), st.integers(1, 90)), max_size=12), seed=st.integers(0, 100))
def test_what_comes_and_goes(changes: list[tuple[bool, int]], seed: int) -> None:
    pool, asked = crowd(1200, seed), question(crowd(3, seed + 1, half=False), k=20)
    everybody, present, came = Held(), [], 0
    chance = np.random.default_rng(seed)
    for comes, count in changes:
        if comes:
            new = list(range(came, came + count))
            everybody.add(Block(np.array(new), pool[came : came + count]))
            present, came = present + new, came + count
        else:
            gone = chance.choice(np.array([*present, 9999]), min(count, len(present) + 1), replace=False)
            everybody.remove(gone)
            present = [number for number in present if number not in set(gone.tolist())]
        assert len(everybody) == len(present)
        assert all(len(block.ids) for block in everybody.blocks)
        expected = by_definition(asked, pool[present], present)
        assert answer(everybody.nearest(asked), 3) == expected


def test_small_blocks_are_put_together() -> None:
    everybody, people = Held(), crowd(200, 1)
    for row in range(200):
        everybody.add(Block(np.array([row]), people[row]))
    assert len(everybody) == 200
    assert len(everybody.blocks) < 10
    assert np.concatenate([block.ids for block in everybody.blocks]).tolist() == list(range(200))


@pytest.mark.usefixtures("small")
def test_the_rotation_follows_those_who_come(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []
    monkeypatch.setattr(prepared, "fit", lambda people: fitted.append(len(people)) or fit(people))
    monkeypatch.setattr(prepared, "FIT", 100)
    everybody, people = Held(), crowd(400, 1)
    for start in range(0, 400, 20):
        everybody.add(Block(np.arange(start, start + 20), people[start : start + 20]))
        everybody.prepare()
    assert fitted == [20, 40, 80, 80]  # the last from every second of 160


def test_streamed_blocks_give_the_same_answer() -> None:
    people, asked = crowd(300, 4), question(crowd(5, 5, half=False))
    blocks = [Block(np.arange(start, start + 30), people[start : start + 30]) for start in range(0, 300, 30)]
    (best,) = nearest_among(iter(blocks), [asked])
    assert answer(best, 5) == by_definition(asked, people, list(range(300)))
    (nobody,) = nearest_among([], [asked])
    assert answer(nobody, 5) == [[]] * 5


def test_distances_are_those_of_part_distance() -> None:
    people, asked = crowd(400, 6), question(crowd(8, 7, half=False), k=400)
    distance = part_distance(asked.query, people)
    for row, found in enumerate(answer(held(people).nearest(asked), 8)):
        numbers = [number for number, _ in found]
        assert [each for _, each in found] == pytest.approx(distance[row, numbers].tolist(), abs=2e-5)
        assert len(found) == int(distance[row].isfinite().sum())
