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

from hpnet.gallery import Gallery, GalleryError, columns, nearest, store
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
    monkeypatch.setattr(store, "ROWS_AT_ONCE", 32)
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


@pytest.mark.parametrize(
    ("name", "value"), [("camera", 1.0), ("identity", b"x"), ("time", "noon"), ("time", True), ("camera", np.bool_(1))]
)
def test_a_value_of_no_known_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(GalleryError, match=f"^{name}: row 1 must be "):
        columns.typed_column(name, [None, value])


def test_numbers_of_numpy_are_numbers() -> None:
    for name, value in (("camera", np.int64(3)), ("time", np.float32(1.5)), ("time", np.int16(7))):
        column = columns.typed_column(name, [value, None])
        assert column is not None
        assert column.to_pylist() == [value, None]


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
        "newer": "has format 2, this hpnet reads up to 1; update hpnet",
    }.items():
        with pytest.raises(GalleryError, match=message) as caught:
            Gallery.open(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_damaged_file_is_named(gallery: Gallery) -> None:
    gallery.add(people(100), names(100))
    (file,) = (gallery.path / "data").iterdir()
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(GalleryError) as caught:
        Gallery.open(gallery.path).search(people(1))
    assert str(gallery.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    for manifest in (gallery.path / "_versions").iterdir():
        manifest.write_bytes(b"broken")
    with pytest.raises(GalleryError, match=str(gallery.path)):
        Gallery.open(gallery.path)


# Several processes


def test_a_commit_that_collides_is_begun_anew(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    append, other = Gallery._append, Gallery.open(gallery.path)
    collisions = []

    def colliding(self: Gallery, snapshot: Any, people: Any) -> list[int]:
        if self is gallery and len(collisions) < 3:
            collisions.append(len(other))
            raise OSError("Retryable commit conflict for version 7: preempted, /src/lance/commit.rs:1:1")
        return append(self, snapshot, people)

    monkeypatch.setattr(Gallery, "_append", colliding)
    assert gallery.add(people(2), names(2)) == [0, 1]
    assert collisions == [0, 0, 0]
    monkeypatch.setattr(store, "_COMMIT_ATTEMPTS", 2)
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
    scanned = Gallery._scanned

    def counted(self: Gallery, snapshot: Any, condition: Any, fragments: Any = None) -> Any:
        for block in scanned(self, snapshot, condition, fragments):
            read.append(len(block.ids))
            yield block

    monkeypatch.setattr(Gallery, "_scanned", counted)
    gallery.search(kept)
    assert read == []
    gallery.add(kept[:5], names(5))
    gallery.search(kept)
    assert read == [5]
    gallery.remove([31])
    assert 31 not in {match.id for match in gallery.search(kept[31], k=99)[0]}
    assert read == [5, 29]


# One process that imports once and forks writers, each killed a little later in its work than the one before.
KILLED_WRITERS = """
import os, signal, sys, time, torch
from hpnet.gallery import Gallery
from hpnet.parts import PartFeatures
torch.set_num_threads(1)
features = torch.zeros(300, 4, 64)
features[..., 0] = 1
people = PartFeatures(features, torch.ones(300, 4, dtype=torch.bool))

def write(attempt, ready):
    gallery = Gallery.open(sys.argv[1])
    os.write(ready, b"x")
    for batch in range(1000):
        name = f"{attempt}/{batch}"
        ids = gallery.add(people, [name] * 300, cameras=[batch] * 300 if attempt > 1 else None)
        os.write(1, f"{name} {ids[0]} {ids[-1]}\\n".encode())

for attempt in range(8):
    heard, ready = os.pipe()
    writer = os.fork()
    if writer == 0:
        write(attempt, ready)
    os.read(heard, 1)
    time.sleep(0.01 + 0.013 * attempt)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
"""


def test_a_killed_writer_leaves_whole_batches(gallery: Gallery) -> None:
    command = [sys.executable, "-c", KILLED_WRITERS, str(gallery.path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    acknowledged: dict[str, list[int]] = {}
    for line in answer.stdout.splitlines():
        name, first, last = line.split()
        acknowledged[name] = list(range(int(first), int(last) + 1))
    again = Gallery.open(gallery.path)
    found: dict[str, list[int]] = {}
    for match in again.search(_person(), k=10**6)[0]:
        found.setdefault(match.path, []).append(match.id)
    assert acknowledged
    for name, ids in acknowledged.items():
        assert sorted(found[name]) == ids, "an acknowledged batch is not whole"
    assert all(len(ids) == 300 for ids in found.values()), "half a batch is seen"
    assert again.add(_person(), ["after.jpg"])


def test_import_stays_quick() -> None:
    program = "import sys, hpnet.gallery; print([name for name in ('lance', 'pyarrow', 'PIL') if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
