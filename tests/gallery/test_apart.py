"""What a gallery searches in memory follows what is on disk, and who cannot be compared is listed apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from hpnet.gallery import Gallery, GalleryError, prepared
from hpnet.gallery.reading import Reader
from hpnet.parts import PARTS, Part, PartFeatures


def crowd(count: int, seed: int = 0, seen: float = 0.5) -> PartFeatures:
    chance = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(count, 4, 64, generator=chance) * torch.logspace(0, -2, 64), dim=-1)
    return PartFeatures(features, torch.rand(count, 4, generator=chance) < seen)


def showing(*parts: Part) -> PartFeatures:
    features = torch.zeros(1, 4, 64)
    features[..., 0] = 1
    return PartFeatures(features, torch.tensor([[part in parts for part in PARTS]]))


def names(count: int) -> list[str]:
    return [f"{number}.jpg" for number in range(count)]


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery.create(tmp_path / "gallery", "0" * 64)


@pytest.fixture
def features_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many people's features were read from disk, scan by scan."""
    read: list[int] = []
    scanned = Reader.scanned

    def counted(self: Reader, snapshot: Any, condition: Any, fragments: Any = None) -> Any:
        for block in scanned(self, snapshot, condition, fragments):
            read.append(len(block.ids))
            yield block

    monkeypatch.setattr(Reader, "scanned", counted)
    return read


def found(gallery: Gallery, query: PartFeatures, **options: Any) -> list[list[tuple[int, float]]]:
    return [[(match.id, match.distance) for match in row] for row in gallery.search(query, **options)]


# What is held in memory


def test_only_those_who_came_are_read(gallery: Gallery, features_read: list[int]) -> None:
    people, query = crowd(300), crowd(3, 1)
    ids = gallery.add(people[:200], names(200))
    gallery.search(query)
    assert sum(features_read) == 200
    gallery.add(people[200:], names(100))
    gallery.remove(ids[50:60])
    gallery.search(query)
    assert sum(features_read) == 300
    gallery.remove(ids[:20])
    gallery.compact()
    after = found(gallery, query, k=400)
    assert sum(features_read) == 300, "a compaction changes nobody's features"
    assert after == found(Gallery.open(gallery.path), query, k=400)
    assert {number for row in after for number, _ in row}.isdisjoint([*range(20), *range(50, 60)])


def test_those_restored_are_found_again(gallery: Gallery) -> None:
    people, query = crowd(200, seen=1.0), crowd(3, 1, seen=1.0)
    ids = gallery.add(people, names(200))
    version = gallery.history()[0].number
    before = found(gallery, query)
    gallery.remove(ids[:150])
    assert {number for row in found(gallery, query, k=200) for number, _ in row} == set(ids[150:])
    gallery.restore(version)
    assert found(gallery, query) == before


def test_an_interrupted_reading_is_begun_anew(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    people, query = crowd(300, seen=1.0), crowd(2, 1, seen=1.0)
    gallery.add(people[:150], names(150))
    gallery.add(people[150:], names(150))
    scanned, calls = Reader.scanned, []

    def interrupted(self: Reader, snapshot: Any, condition: Any, fragments: Any = None) -> Any:
        calls.append(fragments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        yield from scanned(self, snapshot, condition, fragments)

    monkeypatch.setattr(Reader, "scanned", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gallery.search(query)
    assert [len(row) for row in found(gallery, query, k=999)] == [300, 300]


@pytest.mark.parametrize("condition", [None, "_rowid % 3 = 0", "head", "_rowid = 7", "_rowid < 0"])
def test_from_memory_or_from_disk_the_answer_is_the_same(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, condition: str | None
) -> None:
    monkeypatch.setattr(prepared, "FEW", 1)
    monkeypatch.setattr(prepared, "BLOCK", 300)
    people, query = crowd(1000), crowd(20, 1)
    for start in range(0, 1000, 125):
        gallery.add(people[start : start + 125], names(125))
    streamed = Gallery.open(gallery.path, memory=0)
    for options in ({}, {"metric": "cosine", "visibility": "authors"}, {"parts": ["head"], "visibility": "query"}):
        expected = found(streamed, query, filter=condition, **options)
        assert found(gallery, query, filter=condition, **options) == expected
    assert len(gallery._reader.held) == 1000
    assert len(streamed._reader.held) == 0


# Who cannot be compared


def test_those_without_a_common_part_are_listed_apart(gallery: Gallery) -> None:
    people, query = crowd(200), crowd(30, 1)
    ids = np.array(gallery.add(people, names(200), cameras=[1, 2] * 100))
    for parts, columns in ((None, [0, 1, 2, 3]), (["head", "lower_legs"], [0, 3])):
        for condition, rows in ((None, slice(None)), ("camera = 1 OR camera = 3", slice(0, None, 2))):
            answers = gallery.apart(query, parts=parts, filter=condition, limit=5)
            ranked = gallery.search(query, k=200, parts=parts, filter=condition)
            for row, (answer, matches) in enumerate(zip(answers, ranked, strict=True)):
                common = people.visibility[rows][:, columns] & query.visibility[row, columns]
                alone = ids[rows][~common.any(1).numpy()]
                assert answer.count == len(alone) == len(ids[rows]) - len(matches)
                assert [entry.id for entry in answer.people] == alone[:5].tolist()


def test_who_is_apart_says_what_shows(gallery: Gallery) -> None:
    gallery.add(showing(Part.HEAD), ["head.jpg"], identities=["anna"])
    gallery.add(showing(Part.LOWER_LEGS), ["shoes.jpg"])
    (answer,) = gallery.apart(showing(Part.LOWER_LEGS, Part.TORSO))
    assert answer.count == 1
    assert answer.people[0].path == "head.jpg"
    assert answer.people[0].identity == "anna"
    assert answer.people[0].visible == (Part.HEAD,)
    assert gallery.apart(showing())[0].count == 2, "who shows nothing cannot be compared with anybody"
    assert gallery.apart(showing(*PARTS))[0] == type(answer)(0, [])


def test_apart_in_an_empty_gallery_and_with_wrong_words(gallery: Gallery) -> None:
    assert [answer.count for answer in gallery.apart(crowd(2))] == [0, 0]
    gallery.add(crowd(2), names(2))
    assert gallery.apart(crowd(0)) == []
    with pytest.raises(GalleryError, match=r"^filter 'camra = 2': "):
        gallery.apart(crowd(1), filter="camra = 2")
    with pytest.raises(GalleryError, match=r"^parts: 'hat' is unknown"):
        gallery.apart(crowd(1), parts=["hat"])
    with pytest.raises(GalleryError, match="not \\(4, 8\\)"):
        gallery.apart(PartFeatures(normalize(torch.ones(1, 4, 8), dim=-1), torch.ones(1, 4, dtype=torch.bool)))
