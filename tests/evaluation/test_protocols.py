"""The table of protocols against the paper, and its masks against the rules read pair by pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpnet.data.occluders import KINDS
from hpnet.data.reid import DATA_SETS, DISTRACTOR, JUNK, Person
from hpnet.evaluation.protocols import PROTOCOLS, find_protocol, masks, numbered, one_per_identity


def person(identity: int | str | None, camera: int | str | None = None, name: str = "photo") -> Person:
    return Person(Path(f"{name}.jpg"), identity, camera)


# The table


def test_every_set_of_the_papers_tables_has_a_row_of_each_kind() -> None:
    table_2, table_3_and_4 = ["partial_reid-single"], ["partial_reid", "partial_ilids19", "occluded_reid"]
    for name in [*table_2, *table_3_and_4, "partial_ilids18", "market1501", "occluded_duke"]:
        ours, theirs = PROTOCOLS[name], PROTOCOLS[f"{name}-authors"]
        # Eq. 1 and the field's AP; the authors' sum of cosine means, trapezoids, and stable sort.
        assert (ours.metric, ours.visibility, ours.ap, ours.ties) == ("euclidean", "common", "rectangle", "worst")
        assert (theirs.metric, theirs.visibility) == ("cosine", "authors")
        assert (theirs.ap, theirs.ties) == ("trapezoid", "index")
        assert (ours.data_set, ours.query, ours.gallery) == (theirs.data_set, theirs.query, theirs.gallery)
        assert (ours.trials, ours.published) == (theirs.trials, theirs.published)


def test_every_row_names_a_split_that_exists() -> None:
    for name, row in PROTOCOLS.items():
        assert row.name == name
        assert {row.query, row.gallery} <= DATA_SETS[row.data_set].splits.keys()
        assert row.held_out == 0 or row.query == row.gallery == "train"


def test_occluded_queries_have_a_row_for_all_kinds_and_one_for_each() -> None:
    wanted = {"": KINDS, **{f"-{kind}": (kind,) for kind in KINDS}}
    for suffix, kinds in wanted.items():
        for rule in ("", "-authors"):
            row, whole = PROTOCOLS[f"market1501-occluded{suffix}{rule}"], PROTOCOLS[f"market1501{rule}"]
            assert row.occluded == kinds
            # All but the queries is as on Market-1501, but nobody has published anything.
            assert replace(row, name=whole.name, occluded=(), published=whole.published) == whole
            assert row.published == {}
    assert {name for name, row in PROTOCOLS.items() if row.occluded and not row.held_out} == {
        f"market1501-occluded{suffix}{rule}" for suffix in wanted for rule in ("", "-authors")
    }


def test_single_gallery_shot_is_a_hundred_trials() -> None:
    assert {name for name, row in PROTOCOLS.items() if row.trials} == {
        "partial_reid-single",
        "partial_reid-single-authors",
    }
    assert PROTOCOLS["partial_reid-single"].trials == 100


# Copied from the paper's tables, cell by cell.
PAPER = {
    ("partial_reid-single", "AMC+SWM"): {"R1": 37.3, "R3": 46.0},
    ("partial_reid-single", "DSR"): {"R1": 56.9, "R3": 78.5},
    ("partial_reid-single", "VPM"): {"R1": 67.7, "R3": 81.9},
    ("partial_reid-single", "HPNet"): {"R1": 80.6, "R3": 91.7},
    ("partial_ilids18", "AMC+SWM"): {"R1": 21.0, "R3": 32.8},
    ("partial_ilids18", "DSR"): {"R1": 63.9, "R3": 74.8},
    ("partial_ilids18", "VPM"): {"R1": 65.5, "R3": 74.8},
    ("partial_ilids18", "HPNet"): {"R1": 68.9, "R3": 80.7},
    ("occluded_reid", "AMC+SWM"): {"R1": 31.1, "mAP": 27.3},
    ("occluded_reid", "PCB"): {"R1": 41.3, "mAP": 38.9},
    ("occluded_reid", "DSR"): {"R1": 72.8, "mAP": 62.8},
    ("occluded_reid", "FPR"): {"R1": 78.3, "mAP": 68.0},
    ("occluded_reid", "HPNet"): {"R1": 87.3, "R5": 93.9, "R10": 96.3, "mAP": 77.4},
    ("occluded_reid", "Baseline"): {"R1": 62.1, "R5": 79.3, "R10": 85.2, "mAP": 54.0},
    ("occluded_reid", "HPNet, test w/o vis"): {"R1": 46.4, "R5": 82.6, "R10": 94.4, "mAP": 54.8},
    ("occluded_reid", "HPNet, share Conv5"): {"R1": 86.5, "R5": 93.6, "R10": 96.3, "mAP": 76.3},
    ("occluded_reid", "HPNet, lambda_tri = 0"): {"R1": 84.4, "R5": 93.2, "R10": 96.0, "mAP": 74.3},
    ("occluded_reid", "HPNet, lambda_seg^coco = 0"): {"R1": 82.4, "R5": 90.2, "R10": 93.4, "mAP": 70.9},
    ("partial_reid", "AMC+SWM"): {"R1": 34.3, "mAP": 31.3},
    ("partial_reid", "PCB"): {"R1": 56.3, "mAP": 54.7},
    ("partial_reid", "PGFA"): {"R1": 68.0, "mAP": 61.8},
    ("partial_reid", "DSR"): {"R1": 73.7, "mAP": 68.1},
    ("partial_reid", "FPR"): {"R1": 81.0, "mAP": 76.6},
    ("partial_reid", "HPNet"): {"R1": 85.7, "mAP": 81.8},
    ("partial_ilids19", "AMC+SWM"): {"R1": 38.7, "mAP": 31.3},
    ("partial_ilids19", "PCB"): {"R1": 46.8, "mAP": 40.2},
    ("partial_ilids19", "DSR"): {"R1": 64.3, "mAP": 58.1},
    ("partial_ilids19", "FPR"): {"R1": 68.1, "mAP": 61.8},
    ("partial_ilids19", "HPNet"): {"R1": 72.0, "mAP": 58.9},
}
# What the authors' released weights print.
RELEASED = {
    ("market1501", "HPNet"): {"R1": 91.2, "R5": 97.0, "R10": 98.0, "mAP": 74.6},
    ("market1501", "Baseline"): {"R1": 90.0, "R5": 95.8, "R10": 97.1, "mAP": 72.8},
    ("partial_reid", "HPNet"): {"R1": 85.7, "R5": 95.0, "R10": 96.3, "mAP": 81.8},
    ("partial_reid", "Baseline"): {"R1": 53.3, "R5": 75.0, "R10": 86.3, "mAP": 54.5},
    ("partial_ilids18", "HPNet"): {"R1": 68.9, "R5": 82.4, "R10": 89.1, "mAP": 72.2},
    ("partial_ilids18", "Baseline"): {"R1": 48.7, "R5": 71.4, "R10": 79.8, "mAP": 53.8},
    ("partial_ilids19", "HPNet"): {"R1": 72.0, "R5": 85.3, "R10": 91.3, "mAP": 58.9},
    ("partial_ilids19", "Baseline"): {"R1": 53.2, "R5": 72.9, "R10": 79.8, "mAP": 44.4},
}


@pytest.mark.parametrize("suffix", ["", "-authors"])
def test_published_numbers_are_the_papers(suffix: str) -> None:
    wanted = {
        **{(name + suffix, who): values for (name, who), values in PAPER.items()},
        **{(name + suffix, f"{who}, released"): values for (name, who), values in RELEASED.items()},
    }
    rows = {name: row for name, row in PROTOCOLS.items() if name.endswith("-authors") == bool(suffix)}
    found = {(name, who): values for name, row in rows.items() for who, values in row.published.items()}
    assert found == wanted


def test_an_unknown_protocol_names_the_known_ones() -> None:
    assert find_protocol("occluded_reid") is PROTOCOLS["occluded_reid"]
    with pytest.raises(ValueError, match="unknown protocol 'market': choose one of market1501, market1501-authors, "):
        find_protocol("market")


# Masks


def test_masks_by_hand() -> None:
    query = [person(1, 1)]
    gallery = [person(1, 1), person(1, 2), person(2, 1), person(2, 2), person(DISTRACTOR, 1), person(JUNK, 2)]
    match, ignore = masks(query, gallery)
    # Oneself at one's own camera and junk do not count; a distractor is a wrong answer.
    assert match.tolist() == [[True, True, False, False, False, False]]
    assert ignore.tolist() == [[True, False, False, False, False, True]]


def test_where_no_camera_is_known_every_pair_counts() -> None:
    match, ignore = masks([person(1), person(2)], [person(1), person(2), person(3), person(1, 4)])
    assert match.tolist() == [[True, False, False, True], [False, True, False, False]]
    assert not ignore.any()


def test_people_without_a_name_match_nobody() -> None:
    match, ignore = masks([person(None, 1)], [person(None, 1), person(None, 2), person(1, 1)])
    assert not match.any()
    assert not ignore.any()


def test_junk_as_a_query_has_no_right_answer() -> None:
    match, ignore = masks([person(JUNK, 1)], [person(JUNK, 2), person(1, 2)])
    assert not (match & ~ignore).any()


names = st.sampled_from([JUNK, DISTRACTOR, 1, 2, "anna", "1", None])
cameras = st.sampled_from([None, None, 0, 1, "door"])
crowds = st.lists(st.builds(person, names, cameras), max_size=9)


@given(crowds, crowds)
@settings(max_examples=150, deadline=None)
def test_masks_follow_the_rule_pair_by_pair(query: list[Person], gallery: list[Person]) -> None:
    match, ignore = masks(query, gallery)
    assert match.shape == ignore.shape == (len(query), len(gallery))
    for i, asked in enumerate(query):
        for k, other in enumerate(gallery):
            same = asked.identity is not None and asked.identity == other.identity
            here = asked.camera is not None and asked.camera == other.camera
            junk = other.identity == JUNK
            assert bool(ignore[i, k]) == (junk or (same and here))
            assert bool(match[i, k] & ~ignore[i, k]) == (same and not here and not junk)


@given(st.lists(names, max_size=12))
def test_numbered(values: list[Any]) -> None:
    numbers = numbered(values).tolist()
    assert [number for n, number in enumerate(numbers) if number not in numbers[:n]] == list(range(len(set(values))))
    assert all((numbers[i] == numbers[k]) == (values[i] == values[k]) for i in range(len(values)) for k in range(i))


# Single-gallery-shot


@st.composite
def trials(draw: Callable[..., Any]) -> tuple[torch.Tensor, torch.Tensor, int]:
    q, g = draw(st.integers(1, 5)), draw(st.integers(1, 20))
    ignore = draw(st.lists(st.booleans(), min_size=q * g, max_size=q * g))
    identity = draw(st.lists(st.integers(0, 5), min_size=g, max_size=g))
    return torch.tensor(ignore).view(q, g), torch.tensor(identity), draw(st.integers(0, 2**40))


@given(trials())
@settings(max_examples=150, deadline=None)
def test_one_photo_of_each_identity_counts(case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    ignore, identity, seed = case
    hidden = one_per_identity(ignore, identity, torch.Generator().manual_seed(seed))
    assert bool((hidden | ~ignore).all()), "what did not count before must not count now"
    for before, after in zip(ignore, hidden, strict=True):
        may, counts = set(identity[~before].tolist()), Counter(identity[~after].tolist())
        assert counts == dict.fromkeys(may, 1)


def test_every_photo_is_drawn_as_often_and_each_query_draws_for_itself() -> None:
    identity = torch.tensor([0, 1, 0, 1, 1, 0, 2])
    ignore = torch.zeros(400, 7, dtype=torch.bool)
    ignore[:, 5] = True
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([~one_per_identity(ignore, identity, generator) for _ in range(25)])
    share = draws.double().mean((0, 1))
    wanted = torch.tensor([1 / 2, 1 / 3, 1 / 2, 1 / 3, 1 / 3, 0, 1], dtype=torch.float64)
    assert (share - wanted).abs().max() < 0.02, "10,000 draws: four standard deviations"
    assert (draws[0] != draws[0][0]).any(), "queries must not share one draw"
    assert (draws[0] != draws[1]).any(), "trials must not repeat"


def test_a_seed_repeats_its_draws() -> None:
    ignore, identity = torch.zeros(9, 30, dtype=torch.bool), torch.arange(30) % 4
    once, again, other = (one_per_identity(ignore, identity, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_equal_draws_do_not_let_two_photos_count() -> None:
    """So many photos that draws of 24 bits do tie for the first place, with one of these seeds."""
    identity = torch.zeros(32_000, dtype=torch.long)
    ignore = torch.zeros(30, 32_000, dtype=torch.bool)
    for seed in range(500, 516):
        hidden = one_per_identity(ignore, identity, torch.Generator().manual_seed(seed))
        assert (~hidden).sum(1).eq(1).all()
