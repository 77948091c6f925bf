"""The gallery: what is added is found, by an exact search, by every process, also when a writer is killed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpnet.gallery import Gallery, GalleryError, commits, nearest, reading, store
from hpnet.parts import PARTS, Part, PartFeatures

WEIGHTS = "0" * 64


def people(count: int, seed: int = 0, dimensions: int = 8, parts: int = 4, seen: float = 0.7) -> PartFeatures:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, parts, dimensions, generator=generator)
    visibility = torch.rand(count, parts, generator=generator) < seen
    return PartFeatures(features / features.norm(dim=-1, keepdim=True), visibility)


def one(*shown: Part, direction: int = 0) -> PartFeatures:
    """A person who shows these parts, each pointing along one axis."""
    features = torch.zeros(1, 4, 8)
    features[..., direction] = 1
    visibility = torch.tensor([[part in shown for part in PARTS]])
    return PartFeatures(features, visibility)


def names(count: int, stem: str = "photo") -> list[str]:
    return [f"{stem}/{number:04d}.jpg" for number in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gallery"


@pytest.fixture
def gallery(path: Path) -> Gallery:
    return Gallery.create(path, WEIGHTS)


def distance_by_definition(
    query: PartFeatures, person: PartFeatures, metric: str, visibility: str, parts: list[int]
) -> float | None:
    """The distance of two people, part by part in float64; None where the gallery does not rank."""
    a, b = (side.features[0].double().numpy() for side in (query, person))
    mine, theirs = (side.visibility[0].tolist() for side in (query, person))
    each = [1 - a[j] @ b[j] if metric == "cosine" else float(np.linalg.norm(a[j] - b[j])) for j in range(4)]
    common = [each[j] for j in parts if mine[j] and theirs[j]]
    own = [each[j] for j in parts if mine[j]]
    everything = [each[j] for j in parts]
    counted = {"common": common, "authors": common, "query": own, "ignore": everything}[visibility]
    if not counted:
        return None
    return float(np.mean(counted)) + (float(np.mean(own)) if visibility == "authors" else 0)


# Search


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(0, 40),
    seed=st.integers(0, 1000),
    seen=st.sampled_from([0.2, 0.6, 1.0]),
    k=st.integers(1, 12),
    metric=st.sampled_from(["euclidean", "cosine"]),
    visibility=st.sampled_from(["common", "query", "authors", "ignore"]),
    parts=st.none() | st.sets(st.sampled_from(PARTS), min_size=1),
    in_memory=st.booleans(),
)
def test_search_agrees_with_the_definition(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    seed: int,
    seen: float,
    k: int,
    metric: Any,
    visibility: Any,
    parts: set[Part] | None,
    in_memory: bool,
) -> None:
    memory = 1 << 20 if in_memory else 0
    gallery = Gallery.create(tmp_path_factory.mktemp("g"), WEIGHTS, dtype="float32", memory=memory)
    kept, query = people(count, seed, seen=seen), people(3, seed + 1, seen=seen)
    ids = gallery.add(kept, names(count))
    chosen = sorted(parts or PARTS)
    for row, found in enumerate(gallery.search(query, k, metric, visibility, parts=parts)):
        expected = []
        for number, person in zip(ids, kept, strict=True):
            distance = distance_by_definition(query[row], person, metric, visibility, list(chosen))
            if distance is not None:
                expected.append((distance, number))
        expected.sort()
        assert [match.distance for match in found] == pytest.approx([d for d, _ in expected[:k]], abs=2e-6)
        assert [match.id for match in found] == [number for _, number in expected[:k]]


def test_equal_distances_are_ordered_by_id(gallery: Gallery) -> None:
    twin = one(*PARTS)
    ids = [number for _ in range(3) for number in gallery.add(PartFeatures.concatenate([twin] * 5), names(5))]
    assert [match.id for match in gallery.search(twin, k=7)[0]] == ids[:7]
    assert ids == sorted(ids)


def test_blocks_are_scored_piece_by_piece(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, query = people(200, 1), people(9, 2)
    for start in range(0, 200, 20):
        gallery.add(kept[start : start + 20], names(20))
    whole = gallery.search(query, k=15)
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 32)
    monkeypatch.setattr(nearest, "ROWS_AT_ONCE", 32)
    monkeypatch.setattr(store, "QUERIES_AT_ONCE", 2)
    for memory in (0, 1 << 20):
        again = Gallery.open(gallery.path, memory=memory)
        for row, expected in zip(again.search(query, k=15), whole, strict=True):
            assert [match.id for match in row] == [match.id for match in expected]
            assert [match.distance for match in row] == pytest.approx([m.distance for m in expected], abs=1e-6)
        some = again.search(query, k=15, filter="_rowid < 90")
        assert [[match.id for match in row] for row in some] == [
            [match.id for match in row] for row in _among_first(gallery, query, 90)
        ]


def _among_first(gallery: Gallery, query: PartFeatures, below: int) -> list[list[Any]]:
    return [[match for match in row if match.id < below][:15] for row in gallery.search(query, k=200)]


def test_without_a_common_part_nobody_is_ranked(gallery: Gallery) -> None:
    gallery.add(PartFeatures.concatenate([one(Part.HEAD), one(Part.LOWER_LEGS)]), ["head.jpg", "shoes.jpg"])
    query = one(Part.LOWER_LEGS, Part.TORSO)
    for visibility in ("common", "authors"):
        assert [match.path for match in gallery.search(query, visibility=visibility)[0]] == ["shoes.jpg"]
    assert [match.parts for match in gallery.search(query)[0]] == [(Part.LOWER_LEGS,)]
    assert [match.parts for match in gallery.search(query, visibility="query")[0]] == [
        (Part.TORSO, Part.LOWER_LEGS)
    ] * 2
    assert [match.parts for match in gallery.search(query, visibility="ignore")[0]] == [PARTS] * 2
    assert gallery.search(one(Part.UPPER_LEGS)) == [[]]
    assert gallery.search(one()) == [[]]


def test_chosen_parts_alone_decide(gallery: Gallery) -> None:
    same_head, same_legs = one(*PARTS, direction=1), one(*PARTS, direction=1)
    same_head.features[0, 0] = same_legs.features[0, 2] = torch.eye(8)[0]
    gallery.add(PartFeatures.concatenate([same_head, same_legs]), ["head.jpg", "legs.jpg"])
    query = one(*PARTS)
    for parts, expected in (([Part.HEAD], "head.jpg"), (["upper_legs"], "legs.jpg"), (["Upper legs"], "legs.jpg")):
        found = gallery.search(query, parts=parts)[0]
        assert found[0].path == expected
        assert found[0].distance == pytest.approx(0, abs=1e-6)
        assert found[1].distance == pytest.approx(2**0.5, abs=1e-3)
        assert len(found[0].parts) == 1
    for wrong in (["hat"], []):
        with pytest.raises(GalleryError, match=r"^parts: "):
            gallery.search(query, parts=wrong)


def test_a_filter_says_who_is_searched(gallery: Gallery) -> None:
    kept = people(12, seen=1.0)
    gallery.add(kept, names(12), cameras=[1, 2, None] * 4, identities=[7, None] * 6, times=list(range(12)))
    for condition, rows in {
        "camera = 2 AND identity IS NOT NULL": {4, 10},
        "camera IS NULL": {2, 5, 8, 11},
        "time >= 10": {10, 11},
        "path LIKE '%0003%'": {3},
        "camera = 99": set(),
    }.items():
        for memory in (0, 1 << 20):
            found = Gallery.open(gallery.path, memory=memory).search(kept[:2], k=99, filter=condition)
            assert [{match.id for match in row} for row in found] == [rows, rows], condition


def test_a_filter_may_ask_for_parts(gallery: Gallery) -> None:
    kept = people(50, seen=0.5)
    ids = gallery.add(kept, names(50))
    found = gallery.search(one(*PARTS), k=50, filter="head AND NOT lower_legs")[0]
    wanted = kept.visibility[:, 0] & ~kept.visibility[:, 3]
    assert {match.id for match in found} == {number for number, yes in zip(ids, wanted.tolist(), strict=True) if yes}


@pytest.mark.parametrize("condition", ["camra = 2", "path = = 2", "path", ")", "camera = 'two'", ""])
@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_wrong_filter_gets_one_line(path: Path, condition: str, memory: int) -> None:
    gallery = Gallery.create(path, WEIGHTS, memory=memory)
    gallery.add(people(3), names(3), cameras=[1, 2, 3])
    with pytest.raises(GalleryError) as caught:
        gallery.search(people(1), filter=condition)
    text = str(caught.value)
    assert text.startswith(f"filter {condition!r}: ")
    assert "\n" not in text
    assert ".rs:" not in text


def test_search_in_an_empty_gallery(gallery: Gallery) -> None:
    assert gallery.search(people(2)) == [[], []]
    gallery.add(people(2), names(2))
    assert gallery.search(people(0)) == []
    gallery.remove([0, 1])
    assert gallery.search(people(2)) == [[], []]


def test_wrong_queries_get_one_line(gallery: Gallery) -> None:
    gallery.add(people(2), names(2))
    with pytest.raises(GalleryError, match=r"\(parts, dimensions\) \(4, 8\), not \(4, 16\)"):
        gallery.search(people(1, dimensions=16))
    with pytest.raises(GalleryError, match=r"\(4, 8\), not \(1, 8\)"):
        gallery.search(people(1, parts=1))
    with pytest.raises(GalleryError, match="4 parts"):
        gallery.search(people(1, parts=3))
    with pytest.raises(ValueError, match="k must be at least 1"):
        gallery.search(people(1), k=0)


def test_whole_people_without_parts(gallery: Gallery) -> None:
    kept = people(5, parts=1, seen=1.0)
    ids = gallery.add(kept, names(5))
    found = gallery.search(kept, k=1)
    assert [row[0].id for row in found] == ids
    assert found[0][0].parts == PARTS
    with pytest.raises(GalleryError, match="no parts to choose"):
        gallery.search(kept, parts=["head"])


# What is kept


def test_float16_keeps_distances_to_a_thousandth(tmp_path: Path) -> None:
    kept, query = people(50, 3, dimensions=256, seen=1.0), people(4, 4, dimensions=256, seen=1.0)
    exact, half = (Gallery.create(tmp_path / dtype, WEIGHTS, dtype=dtype) for dtype in ("float32", "float16"))
    for gallery in (exact, half):
        gallery.add(kept, names(50))
    for one_list, other in zip(exact.search(query, 50), half.search(query, 50), strict=True):
        assert [m.distance for m in one_list] == pytest.approx([m.distance for m in other], abs=1e-3)
    size = {
        gallery: sum(file.stat().st_size for file in (gallery.path / "data").iterdir()) for gallery in (exact, half)
    }
    assert size[half] < 0.6 * size[exact]


def test_features_come_back_in_the_order_asked_for(gallery: Gallery) -> None:
    kept = people(20, dimensions=32)
    ids = gallery.add(kept, names(20))
    order = [7, 0, 19]
    back = gallery.fetch([ids[row] for row in order])
    assert back.features.dtype == torch.float32
    assert torch.equal(back.visibility, kept.visibility[order])
    assert torch.allclose(back.features, kept.features[order], atol=1e-3)
    with pytest.raises(GalleryError, match="no person with id 99"):
        gallery.fetch([ids[0], 99])
    with pytest.raises(GalleryError, match="no person with id 99"):
        gallery.fetch([99])


def test_half_precision_input_is_brought_to_unit_length(gallery: Gallery) -> None:
    kept = people(10, dimensions=64, seen=1.0)
    short = PartFeatures((kept.features * 0.992).half(), kept.visibility)
    ids = gallery.add(short, names(10))
    assert torch.allclose(gallery.fetch(ids).features.norm(dim=-1), torch.tensor(1.0), atol=6e-4)
    for query in (kept, short):
        assert gallery.search(query, k=1)[3][0].distance == pytest.approx(0, abs=2e-3)


def test_what_float16_cannot_hold_is_refused(gallery: Gallery) -> None:
    hidden = one(Part.HEAD)
    hidden.features[0, 2] = 1e6
    with pytest.raises(GalleryError, match="not visible holds values beyond float16"):
        gallery.add(hidden, ["a.jpg"])
    assert len(gallery) == 0


def test_attributes_come_back_as_given(gallery: Gallery) -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    moment = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=india)
    gallery.add(one(*PARTS), [Path("a/ä.jpg")])
    gallery.add(one(*PARTS), ["b.jpg"], cameras=["door"], identities=[41], times=[moment])
    gallery.add(one(*PARTS), ["c.jpg"], cameras=[None], identities=[42])
    found = gallery.search(one(*PARTS))[0]
    assert [match.path for match in found] == ["a/ä.jpg", "b.jpg", "c.jpg"]
    assert [match.camera for match in found] == [None, "door", None]
    assert [match.identity for match in found] == [None, 41, 42]
    assert [match.time for match in found] == [None, moment, None]
    assert type(found[2].identity) is int


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({"identities": [1]}, {"identities": ["anna"]}, "identity holds whole numbers here, not text"),
        ({"cameras": ["a"]}, {"cameras": [2]}, "camera holds text here, not whole numbers"),
        ({"times": [1.5]}, {"times": [datetime(2024, 1, 1)]}, "time holds seconds here, not datetimes without"),
        ({"times": [datetime(2024, 1, 1, tzinfo=UTC)]}, {"times": [datetime(2024, 1, 1)]}, "with a zone here"),
        ({}, {"identities": [True]}, "identity: row 0 must be a whole number, text or None, not True"),
        ({}, {"times": [float("nan")]}, "time: row 0 must be seconds"),
        ({}, {"identities": [1 << 70]}, "identity: a value cannot be stored"),
        ({}, {"cameras": [1, 2]}, "camera: 2 given for 1 people"),
        ({}, {"cameras": []}, "camera: 0 given for 1 people"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(
    gallery: Gallery, first: dict[str, Any], then: dict[str, Any], message: str
) -> None:
    gallery.add(one(*PARTS), ["a.jpg"], **first)
    with pytest.raises(GalleryError, match=message) as caught:
        gallery.add(one(*PARTS), ["b.jpg"], **then)
    assert "\n" not in str(caught.value)
    assert len(gallery) == 1


def test_mixed_types_name_the_rows(gallery: Gallery) -> None:
    with pytest.raises(GalleryError, match=r"identity: mixes whole numbers \(row 1\) and text \(row 3\)"):
        gallery.add(people(4), names(4), identities=[None, 1, 2, "anna"])


def test_paths_must_be_as_many_as_people(gallery: Gallery) -> None:
    for wrong in (names(2), names(4), []):
        with pytest.raises(GalleryError, match=f"{len(wrong)} given for 3 people"):
            gallery.add(people(3), wrong)
    with pytest.raises(GalleryError, match="is not valid text"):
        gallery.add(one(), ["bad\udcff.jpg"])
    assert gallery.add(people(0), []) == []
    assert len(gallery) == 0


def test_attributes_of_ones_own_are_kept_found_and_asked_for(gallery: Gallery) -> None:
    moment = datetime(2024, 5, 1, 12, tzinfo=UTC)
    own: dict[str, list[Any]] = {
        "shop": ["north", None, "south"],
        "speed": [1, 2.5, None],
        "staff": [True, False, None],
        "floor": [np.int64(3), 4, None],
        "seen": [moment, None, None],
        "date": [None, None, None],
    }
    ids = gallery.add(people(3, seen=1.0), names(3), attributes=own)
    ids += gallery.add(people(1, seen=1.0), ["later.jpg"], attributes={"speed": [7], "hat": [False]})
    found = {match.id: dict(match.attributes) for match in gallery.search(people(1, seen=1.0))[0]}
    assert found == {
        ids[0]: {"shop": "north", "speed": 1.0, "staff": True, "floor": 3, "seen": moment},
        ids[1]: {"speed": 2.5, "staff": False, "floor": 4},
        ids[2]: {"shop": "south"},
        ids[3]: {"speed": 7.0, "hat": False},
    }
    for condition, rows in {
        "speed >= 2.5": [1, 3],
        "shop = 'south' OR staff": [0, 2],
        "NOT staff": [1],
        "floor = 4": [1],
        "seen < timestamp '2024-05-02'": [0],
        "hat IS NULL AND speed IS NOT NULL": [0, 1],
    }.items():
        assert {match.id for match in gallery.search(people(1, seen=1.0), filter=condition)[0]} == {
            ids[row] for row in rows
        }, condition
    assert len({*gallery.search(people(1, seen=1.0))[0]}) == 4, "matches are hashable"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"shop": [1]}, "shop holds text here, not whole numbers"),
        ({"floor": [1.5]}, "floor holds whole numbers here, not real numbers"),
        ({"staff": [1]}, "staff holds yes and no here, not whole numbers"),
        ({"shop": ["a", "b"]}, "shop: 2 given for 1 people"),
        ({"camera": [1]}, "the name 'camera' is taken"),
        ({"Shop": ["a"]}, "'Shop' must be small letters"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(gallery: Gallery, attributes: dict[str, Any], message: str) -> None:
    gallery.add(one(*PARTS), ["a.jpg"], attributes={"shop": ["a"], "floor": [1], "staff": [True]})
    with pytest.raises(GalleryError, match=message) as caught:
        gallery.add(one(*PARTS), ["b.jpg"], attributes=attributes)
    assert "\n" not in str(caught.value)
    assert len(gallery) == 1


def test_no_picture_is_kept_unless_given(gallery: Gallery) -> None:
    picture = b"\xff\xd8\xff" + bytes(range(256)) * 4
    first = gallery.add(people(2), names(2))
    assert gallery.thumbnails(first) == [None, None]
    assert "thumbnail" not in gallery._latest().schema.names
    more = gallery.add(people(2), names(2), thumbnails=[None, picture])
    assert gallery.thumbnails([more[1], first[0], more[0]]) == [picture, None, None]
    assert gallery.count("thumbnail IS NOT NULL") == 1
    with pytest.raises(GalleryError, match="thumbnail: 1 given for 2 people"):
        gallery.add(people(2), names(2), thumbnails=[picture])
    with pytest.raises(GalleryError, match="no person with id 99"):
        gallery.thumbnails([99])


def test_parts_and_dimensions_cannot_be_mixed(gallery: Gallery) -> None:
    gallery.add(people(2), names(2))
    with pytest.raises(GalleryError, match=r"\(parts, dimensions\) \(4, 8\), not \(4, 16\)"):
        gallery.add(people(2, dimensions=16), names(2))
    with pytest.raises(GalleryError, match=r"\(4, 8\), not \(1, 32\)"):
        gallery.add(people(2, dimensions=32, parts=1), names(2))
    with pytest.raises(GalleryError, match="4 parts"):
        gallery.add(people(2, parts=3), names(2))
    assert len(gallery) == 2


# Who is in it


def test_people_are_listed_page_by_page(gallery: Gallery) -> None:
    kept = people(25, seen=0.6)
    for start in range(0, 25, 5):
        numbers = list(range(start, start + 5))
        names_here = [str(number) for number in numbers]
        own = {"parity": [number % 2 for number in numbers]}
        gallery.add(kept[start : start + 5], names_here, cameras=numbers, attributes=own)
    gallery.remove([3, 20])
    left = [number for number in range(25) if number not in (3, 20)]
    for newest, order in ((False, left), (True, left[::-1])):
        listed, after = [], None
        while page := gallery.entries(limit=4, newest=newest, after=after):
            assert len(page) <= 4
            listed += page
            after = page[-1].id
        assert [entry.id for entry in listed] == order
        for entry in listed:
            shown = tuple(part for part in PARTS if kept.visibility[entry.id, part])
            assert (entry.path, entry.camera, entry.visible) == (str(entry.id), entry.id, shown)
            assert (entry.identity, entry.time, entry.attributes) == (None, None, {"parity": entry.id % 2})
            assert abs(datetime.now(UTC) - entry.added) < timedelta(minutes=5)
    assert [entry.id for entry in gallery.entries("parity = 1", 3, after=2)] == [5, 7, 9]
    for wrong in ("parity = 1) OR (parity = 0", "(parity = 1)) OR (parity = 0"):
        with pytest.raises(GalleryError, match="bracket"):
            gallery.entries(wrong, after=2)
    assert gallery.entries("(path != ')') AND (parity = 1)", 1)[0].id == 1
    assert [entry.id for entry in gallery.entries("parity = 1 OR camera = 0", 2, newest=True, after=4)] == [1, 0]
    with pytest.raises(GalleryError, match=r"^filter 'nobody = 1'"):
        gallery.entries("nobody = 1")
    with pytest.raises(ValueError, match="limit must be at least 1"):
        gallery.entries(limit=0)


def test_people_are_counted(gallery: Gallery) -> None:
    assert (gallery.count(), gallery.counts("camera"), gallery.counts("part"), gallery.entries()) == (0, {}, {}, [])
    kept = people(30, seen=0.5)
    gallery.add(kept[:20], names(20), cameras=[1, 2] * 10, attributes={"shop": ["a"] * 15 + [None] * 5})
    gallery.add(kept[20:], names(10))
    assert gallery.counts("camera") == {1: 10, 2: 10, None: 10}
    assert list(gallery.counts("shop").items()) == [("a", 15), (None, 15)]
    assert gallery.counts("identity") == {None: 30}
    shows = dict(zip(("head", "torso", "upper_legs", "lower_legs"), kept.visibility.sum(0).tolist(), strict=True))
    assert gallery.counts("part") == shows
    assert gallery.counts("camera", "camera = 1 AND shop IS NULL") == {1: 2}
    assert gallery.count("shop = 'a'") == 15
    with pytest.raises(GalleryError, match="by: 'hat' is unknown; choose from part, identity, camera, time, shop"):
        gallery.counts("hat")
    with pytest.raises(GalleryError, match=r"^filter 'camera = '"):
        gallery.count("camera = ")


# Remove, expire


def test_remove(gallery: Gallery) -> None:
    kept = people(10, seen=1.0)
    ids = gallery.add(kept, names(10))
    assert gallery.search(kept[4], k=1)[0][0].id == ids[4]
    assert gallery.remove([ids[4], ids[4], ids[7], 12345, -1]) == 2
    assert gallery.remove([ids[4]]) == gallery.remove([]) == 0
    assert len(gallery) == 8
    assert {match.id for match in gallery.search(kept[4], k=99)[0]} == set(ids) - {ids[4], ids[7]}
    assert gallery.remove(ids) == 8
    assert min(gallery.add(kept, names(10))) > max(ids), "an id was given twice"


def test_remove_by_filter(gallery: Gallery) -> None:
    kept = people(12, seen=1.0)
    gallery.add(kept, names(12), cameras=[1, 2, None] * 4, attributes={"staff": [True, False] * 6})
    assert gallery.remove(filter="camera = 2 AND NOT staff") == 2
    assert gallery.remove(filter="camera = 99") == 0
    assert {match.id for match in gallery.search(kept[0], k=99)[0]} == set(range(12)) - {1, 7}
    before = gallery.history()
    for wrong in ("camra = 1", "", "camera = ", "camera"):
        with pytest.raises(GalleryError, match=f"^filter {wrong!r}: ") as caught:
            gallery.remove(filter=wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(GalleryError, match="either ids or a filter"):
        gallery.remove()
    with pytest.raises(GalleryError, match="either ids or a filter"):
        gallery.remove([1], filter="true")
    assert len(gallery) == 10
    assert gallery.history() == before, "what removes nobody leaves no trace"
    assert gallery.remove(filter="true") == 10


def test_expire_by_seconds(gallery: Gallery) -> None:
    gallery.add(people(4, seen=1.0), names(4), times=[10, 20.5, 30, None])
    assert gallery.expire(20.5) == 1
    assert gallery.expire(30) == 1
    # Who has no time counts by the moment of being added: long after second 40, before tomorrow.
    assert gallery.expire(40) == 1
    assert gallery.expire(time.time() + 86400) == 1
    assert len(gallery) == 0


def test_expire_by_datetime(tmp_path: Path) -> None:
    day = datetime(2024, 5, 1, 12)
    for name, zone in (("naive", None), ("utc", UTC), ("east", timezone(timedelta(hours=9)))):
        gallery = Gallery.create(tmp_path / name, WEIGHTS)
        times = [(day + timedelta(hours=hour)).replace(tzinfo=zone) for hour in (0, 1, 2, 3)]
        gallery.add(people(4), names(4), times=times)
        assert gallery.expire(times[1]) == 1
        assert gallery.expire(times[2].astimezone(timezone(timedelta(hours=-7)))) == 1
        assert gallery.expire(times[3].timestamp()) == 1
        assert gallery.expire(times[3]) == 0


def test_expire_without_times(gallery: Gallery) -> None:
    gallery.add(people(4), names(4))
    assert gallery.expire(datetime.now() - timedelta(minutes=5)) == 0
    assert gallery.expire(datetime.now(UTC) + timedelta(minutes=5)) == 4


def test_who_would_expire_can_be_asked_first(gallery: Gallery) -> None:
    gallery.add(people(4), names(4), times=[10, 20.5, 30, None])
    condition = gallery.seen_before(25)
    assert [entry.id for entry in gallery.entries(condition)] == [0, 1]
    assert gallery.expire(25) == gallery.counts("time", "time < 25").get(None, 2) == 2


# Compact, history


def bytes_of(gallery: Gallery) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(gallery.path.rglob("*")) if file.is_file())


def stored_bytes(features: PartFeatures) -> bytes:
    """A person's features as they stand in a data file."""
    return features.features.half().numpy().tobytes()


@pytest.mark.parametrize("how", ["ids", "filter", "expire"])
def test_compacted_nothing_is_left_of_who_was_removed(gallery: Gallery, how: str) -> None:
    kept = people(40, dimensions=64, seen=1.0)
    picture = b"\xff\xd8\xffthe picture of number 7"
    paths = [f"secret{number:02d}.jpg" for number in range(40)]
    pictures = [None if number != 7 else picture for number in range(40)]
    ids = gallery.add(kept, paths, times=[float(number != 7) for number in range(40)], thumbnails=pictures)
    stays, goes = (stored_bytes(gallery.fetch([ids[row]])) for row in (8, 7))
    here = bytes_of(gallery)
    assert all(text in here for text in (stays, goes, b"secret07", picture)), "the test looks for what is not there"
    {
        "ids": lambda: gallery.remove([ids[7]]),
        "filter": lambda: gallery.remove(filter="path = 'secret07.jpg'"),
        "expire": lambda: gallery.expire(0.5),
    }[how]()
    assert goes in bytes_of(gallery), "until then older versions have it"
    done = gallery.compact()
    here = bytes_of(gallery)
    assert stays in here
    assert b"secret08" in here
    assert not [text for text in (goes, b"secret07", picture) if text in here]
    assert len(gallery) == 39
    assert done.versions_deleted >= 3
    assert not done.leftovers_kept


def test_compacted_it_is_the_same_and_smaller(gallery: Gallery) -> None:
    kept = people(120, dimensions=32, seen=0.8)
    for start in range(0, 120, 10):
        gallery.add(kept[start : start + 10], names(10), cameras=[start] * 10 if start > 50 else None)
    gallery.remove(range(0, 120, 7))
    found = gallery.search(kept[:5], k=200)
    done = gallery.compact()
    assert len(list((gallery.path / "data").iterdir())) == 1
    assert done.bytes_after == sum(file.stat().st_size for file in gallery.path.rglob("*") if file.is_file())
    assert done.bytes_after < done.bytes_before
    for again in (gallery, Gallery.open(gallery.path), Gallery.open(gallery.path, memory=0)):
        assert again.search(kept[:5], k=200) == found
    assert min(gallery.add(kept[:3], names(3))) == 120, "an id was given twice"
    assert gallery.compact().versions_deleted > 0


def test_older_versions_stay_as_long_as_asked_for(gallery: Gallery) -> None:
    gallery.add(people(5), names(5))
    gallery.remove([1])
    assert gallery.compact(keep=timedelta(hours=1)).versions_deleted == 0
    assert [each.people for each in gallery.history()] == [4, 4, 4, 5, 0, 0]
    assert gallery.compact(keep=timedelta(0)).versions_deleted > 0
    assert [each.people for each in gallery.history()][-1] == 4


def test_history_tells_what_happened(gallery: Gallery) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    gallery.add(people(5), names(5))
    gallery.remove([1, 2])
    gallery.restore(3)
    told = [(each.number, each.event, each.change, each.people) for each in gallery.history()]
    assert told == [
        (5, "version 3 restored", 2, 5),
        (4, "people removed", -2, 3),
        (3, "people added", 5, 5),
        (2, "a column added", 0, 0),
        (1, "created", 0, 0),
    ]
    times = [each.time for each in gallery.history()]
    assert times == sorted(times, reverse=True)
    assert all(began <= each <= datetime.now(UTC) for each in times)
    assert gallery.history(2) == gallery.history()[:2]
    gallery.compact()
    (last,) = gallery.history()
    assert (last.people, last.change) == (5, None)


def test_an_older_version_can_be_searched_and_not_changed(gallery: Gallery) -> None:
    kept = people(6, seen=1.0)
    gallery.add(kept[:4], names(4))
    number = gallery.history()[0].number
    gallery.add(kept[4:], names(2), cameras=[1, 2])
    gallery.remove([0])
    older = Gallery.open(gallery.path, version=number)
    assert len(older) == 4
    assert older.search(kept[0], k=9)[0][0].id == 0
    assert [entry.id for entry in older.entries()] == [0, 1, 2, 3]
    for change in (
        lambda: older.add(kept, names(6)),
        lambda: older.remove([1]),
        lambda: older.expire(0),
        older.compact,
    ):
        with pytest.raises(GalleryError, match=f"version {number} is open for reading only"):
            change()
    assert len(gallery) == 5
    for missing in (0, -1, 99):
        with pytest.raises(GalleryError, match=f"has no version {missing}; `history` lists those there are"):
            Gallery.open(gallery.path, version=missing)


def test_restored_everybody_is_back_also_for_open_readers(gallery: Gallery) -> None:
    kept = people(5, seen=1.0)
    ids = gallery.add(kept, names(5))
    number = gallery.history()[0].number
    reader = Gallery.open(gallery.path)
    gallery.remove([ids[1]])
    gallery.add(kept[:1], ["later.jpg"])
    assert {match.id for match in reader.search(kept[0], k=9)[0]} == {0, 2, 3, 4, 5}
    gallery.restore(number)
    assert {match.id for match in reader.search(kept[0], k=9)[0]} == set(ids)
    gallery.remove([ids[3]])  # as many removed as when it was last looked at, but somebody else
    assert {match.id for match in reader.search(kept[0], k=9)[0]} == {0, 1, 2, 4}
    assert gallery.add(kept[:1], ["again.jpg"]) == [6], "an id was given twice"
    with pytest.raises(GalleryError, match="has no version 99"):
        gallery.restore(99)


# A gallery as the first release wrote it: Lance, stable row ids, format 1, columns in this order.
def test_a_gallery_of_format_1_is_read_and_written(tmp_path: Path) -> None:
    import lance
    import pyarrow as pa

    kept = people(3, seen=1.0)
    about = {"hpnet.format": "1", "hpnet.weights": WEIGHTS, "hpnet.dtype": "float16"}
    fields = [pa.field("path", pa.string()), pa.field("added", pa.timestamp("us", "UTC"))]
    folder = tmp_path / "old"
    lance.write_dataset(pa.schema(fields, metadata=about).empty_table(), folder, enable_stable_row_ids=True)
    values = pa.array(kept.features.half().numpy().reshape(-1))
    more = {
        "features": pa.FixedSizeListArray.from_arrays(values, 32),
        **{name: pa.array([True] * 3) for name in ("head", "torso", "upper_legs", "lower_legs")},
        "camera": pa.array([1, 2, None]),
    }
    dataset = lance.dataset(folder)
    dataset.add_columns([pa.field(name, column.type) for name, column in more.items()])
    added = pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 3, pa.timestamp("us", "UTC"))
    table = pa.table({"path": ["a", "b", "c"], "added": added, **more})
    lance.write_dataset(table, folder, mode="append")

    gallery = Gallery.open(folder, WEIGHTS)
    assert [(match.id, match.path, match.camera) for match in gallery.search(kept, k=1)[1]] == [(1, "b", 2)]
    assert gallery.add(kept[:1], ["d"], identities=["anna"], attributes={"shop": ["north"]}) == [3]
    assert gallery.remove(filter="camera = 1") == 1
    gallery.compact()
    assert [(entry.id, entry.path, entry.identity) for entry in Gallery.open(folder).entries()] == [
        (1, "b", None),
        (2, "c", None),
        (3, "d", "anna"),
    ]
    assert gallery.expire(datetime(2024, 1, 2, tzinfo=UTC)) == 2


# Open, create


def test_reopened_it_is_the_same(gallery: Gallery) -> None:
    kept = people(10)
    gallery.add(kept, names(10), identities=list("abcdefghij"))
    again = Gallery.open(gallery.path, weights=WEIGHTS)
    assert len(again) == 10
    assert again.search(kept) == gallery.search(kept)
    assert repr(again) == f"Gallery({str(gallery.path)!r}, 10 people, weights 000000000000)"


def test_created_empty_it_can_be_opened(gallery: Gallery) -> None:
    assert len(Gallery.open(gallery.path)) == 0
    assert [entry.name for entry in gallery.path.parent.iterdir()] == ["gallery"]


def test_create_refuses_what_is_there(gallery: Gallery, tmp_path: Path) -> None:
    file, folder, empty = tmp_path / "file", tmp_path / "folder", tmp_path / "empty"
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    empty.mkdir()
    for path in (gallery.path, file, folder):
        with pytest.raises(GalleryError, match="already exists and is not empty"):
            Gallery.create(path, WEIGHTS)
    assert (folder / "mine").read_text() == file.read_text() == "mine"
    assert len(Gallery.create(empty, WEIGHTS)) == 0
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_weights_are_a_fingerprint_or_a_file(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"numbers")
    gallery = Gallery.create(tmp_path / "g", weights)
    assert gallery.fingerprint == hashlib.sha256(b"numbers").hexdigest()
    Gallery.open(gallery.path, gallery.fingerprint)
    Gallery.open(gallery.path, str(weights))
    with pytest.raises(GalleryError, match=r"holds features of the weights .*, not of other"):
        Gallery.open(gallery.path, "other")
    with pytest.raises(GalleryError, match="holds features of the weights"):
        gallery.add(one(), ["a.jpg"], weights="other")
    with pytest.raises(GalleryError, match="missing: no such weights file"):
        Gallery.create(tmp_path / "h", tmp_path / "missing")
    with pytest.raises(GalleryError, match="fingerprint is empty"):
        Gallery.create(tmp_path / "h", "")
    assert len(Gallery.create(tmp_path / "h", "x" * 5000)) == 0


def test_what_is_no_gallery_is_not_opened(tmp_path: Path, gallery: Gallery) -> None:
    import lance
    import pyarrow as pa

    lance.write_dataset(pa.table({"path": ["a"]}), tmp_path / "foreign")
    newer = Gallery.create(tmp_path / "newer", WEIGHTS)
    newer._dataset.update_schema_metadata({"hpnet.format": "2"})
    (tmp_path / "file").write_text("text")
    for name, message in {
        "missing": "no such gallery",
        "": "not a gallery",
        "file": "not a gallery",
        "foreign": "a Lance data set, but not a gallery",
        "newer": "has format 2, this hpnet reads 1; update hpnet",
    }.items():
        with pytest.raises(GalleryError, match=message) as caught:
            Gallery.open(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


# Several processes


def test_a_commit_that_collides_is_begun_anew(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    append, other = commits.append, Gallery.open(gallery.path)
    collisions = []

    def colliding(snapshot: Any, people: Any) -> list[int]:
        if len(collisions) < 3:
            collisions.append(len(other))
            raise OSError("Retryable commit conflict for version 7: preempted, /src/lance/commit.rs:1:1")
        return append(snapshot, people)

    monkeypatch.setattr(store, "append", colliding)
    assert gallery.add(people(2), names(2)) == [0, 1]
    assert collisions == [0, 0, 0]
    monkeypatch.setattr(commits, "COMMIT_ATTEMPTS", 2)
    collisions.clear()
    with pytest.raises(GalleryError, match="other processes write all the time; nothing was changed"):
        gallery.add(people(2), names(2))
    assert len(gallery) == 2


def start(gallery: Path, body: str) -> subprocess.Popen[str]:
    program = f"""
import sys, torch
from hpnet.gallery import Gallery
from hpnet.parts import PartFeatures
torch.set_num_threads(1)
gallery = Gallery.open({str(gallery)!r})
def person(count, value):
    features = torch.zeros(count, 4, 64)
    features[..., value % 64] = 1
    return PartFeatures(features, torch.ones(count, 4, dtype=torch.bool))
print("ready", flush=True)
sys.stdin.readline()
{textwrap.dedent(body)}
"""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(*processes: subprocess.Popen[str]) -> None:
    """Let processes that are ready begin at the same moment."""
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()


def test_processes_adding_at_once_lose_nothing(gallery: Gallery) -> None:
    # The first commit of each makes the columns, in the middle another column appears: both may collide.
    body = """
    for batch in range(15):
        cameras = None if batch < 7 else [{worker}] * 4
        print(*gallery.add(person(4, batch), [f"{worker}/{{batch}}"] * 4, cameras=cameras))
    """
    workers = [start(gallery.path, body.format(worker=worker)) for worker in (0, 1)]
    go(*workers)
    given: dict[int, str] = {}
    for worker, process in enumerate(workers):
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        for batch, line in enumerate(output.split("\n")[:15]):
            ids = [int(number) for number in line.split()]
            assert len(ids) == 4
            assert not given.keys() & set(ids), "two people got one id"
            given |= dict.fromkeys(ids, f"{worker}/{batch}")
    everybody = gallery.search(_person(), k=1000)[0]
    assert {match.id: match.path for match in everybody} == given
    assert {match.camera for match in everybody} == {None, 0, 1}


def _person(count: int = 1, value: int = 0) -> PartFeatures:
    features = torch.zeros(count, 4, 64)
    features[..., value] = 1
    return PartFeatures(features, torch.ones(count, 4, dtype=torch.bool))


def test_an_open_reader_sees_what_another_process_does(gallery: Gallery) -> None:
    kept = gallery.add(_person(3, 1), ["old.jpg"] * 3)
    assert gallery.search(_person(), k=9)[0][0].path == "old.jpg"
    writer = start(gallery.path, f"gallery.add(person(1, 0), ['new.jpg']); gallery.remove([{kept[1]}])")
    go(writer)
    _, errors = writer.communicate(timeout=60)
    assert writer.returncode == 0, errors
    found = gallery.search(_person(), k=9)[0]
    assert [match.path for match in found] == ["new.jpg", "old.jpg", "old.jpg"]
    assert [match.id for match in found[1:]] == [kept[0], kept[2]]


def test_a_reader_sees_whole_batches_while_another_writes(gallery: Gallery) -> None:
    writer = start(gallery.path, "for batch in range(40): gallery.add(person(10, batch), [str(batch)] * 10)")
    go(writer)
    sizes = []
    while writer.poll() is None:
        sizes.append(len(gallery.search(_person(), k=1000)[0]))
    _, errors = writer.communicate()
    assert writer.returncode == 0, errors
    assert all(size % 10 == 0 for size in sizes)
    assert sizes == sorted(sizes)
    assert len(gallery) == 400


def test_only_what_changed_is_read_again(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = people(60, seen=1.0)
    gallery.add(kept[:30], names(30))
    gallery.add(kept[30:], names(30))
    gallery.search(kept)
    read: list[int] = []
    scanned = reading.Reader.scanned

    def counted(self: reading.Reader, snapshot: Any, condition: Any, fragments: Any = None) -> Any:
        for block in scanned(self, snapshot, condition, fragments):
            read.append(len(block.ids))
            yield block

    monkeypatch.setattr(reading.Reader, "scanned", counted)
    gallery.search(kept)
    assert read == []
    gallery.add(kept[:5], names(5))
    gallery.search(kept)
    assert read == [5]
    gallery.remove([31])
    assert 31 not in {match.id for match in gallery.search(kept[31], k=99)[0]}
    assert read == [5], "who is gone is dropped, nobody is read again"


def test_import_stays_quick() -> None:
    program = "import sys, hpnet.gallery; print([name for name in ('lance', 'pyarrow', 'PIL') if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_only_whole_numbers_are_ids(gallery: Gallery) -> None:
    gallery.add(people(3), ["a", "b", "c"])
    with pytest.raises(TypeError):
        gallery.remove([1.7])  # type: ignore[list-item]
    assert gallery.remove([2**70, -1, 99]) == 0
    assert gallery.remove([1]) == 1
    assert [entry.id for entry in gallery.entries()] == [0, 2]
