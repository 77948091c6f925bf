"""The verbs of keeping a gallery, as they are called from the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from hpnet.gallery import Gallery
from hpnet.parts import PartFeatures
from hpnet.upkeep import compact, expire, history, list_people, remove


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Six people: cameras 1, 2, 1, ...; times an hour apart until now; the even ones show their head alone."""
    features = torch.nn.functional.normalize(torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    visibility = torch.tensor([[True, bool(row % 2), bool(row % 2), bool(row % 2)] for row in range(6)])
    now = datetime.now(UTC)
    Gallery.create(tmp_path / "people", "0" * 64).add(
        PartFeatures(features, visibility),
        [f"{row}.jpg" for row in range(6)],
        cameras=[1 + row % 2 for row in range(6)],
        times=[now - timedelta(hours=5 - row) for row in range(6)],
        identities=["anna", None, "anna", "bert", None, None],
        attributes={"seen": [now, None, None, None, None, None], "speed": [None, 1.5, None, None, None, None]},
    )
    return tmp_path / "people"


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_list_pages(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_people(path, filter="camera = 2", limit=2, json=True) == 0
    page = printed(capsys)
    assert page["people"] == 3
    assert [entry["id"] for entry in page["entries"]] == [1, 3]
    first = page["entries"][0]
    assert first["visible"] == ["HEAD", "TORSO", "UPPER_LEGS", "LOWER_LEGS"]
    assert first["attributes"] == {"speed": 1.5}
    assert datetime.fromisoformat(first["time"]) < datetime.fromisoformat(first["added"])
    list_people(path, filter="camera = 2", limit=2, after=3, json=True)
    assert [entry["id"] for entry in printed(capsys)["entries"]] == [5]
    list_people(path, newest=True, json=True)
    assert [entry["id"] for entry in printed(capsys)["entries"]] == [5, 4, 3, 2, 1, 0]


def test_list_shows_a_table(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert list_people(path, limit=2) == 0
    output = capsys.readouterr()
    assert "people: 6 people" in output.out
    assert "anna" in output.out
    assert "│ all " in output.out
    assert "speed 1.5" in output.out
    assert " UTC " in output.out
    assert output.err.strip() == "the next page: --after 1"
    list_people(path, filter="camera = 9")
    assert "people: 0 people match" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("camera", [{"camera": 1, "people": 3}, {"camera": 2, "people": 3}]),
        ("identity", [{"identity": None, "people": 3}, {"identity": "anna", "people": 2}]),
        ("part", [{"part": "head", "people": 6}, {"part": "torso", "people": 3}]),
    ],
)
def test_list_counts(path: Path, by: str, expected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_people(path, by=by, json=True) == 0
    assert printed(capsys)[:2] == expected
    assert list_people(path, by=by) == 0
    table = capsys.readouterr().out
    assert by in table
    assert ("unknown" in table) == (by == "identity")


def test_counts_by_a_moment_are_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_people(path, by="seen", json=True)
    assert [row["people"] for row in printed(capsys)] == [5, 1]


def test_remove(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert remove(path, filter="identity = 'anna'", dry_run=True, json=True) == 0
    assert printed(capsys) == {"would_remove": 2, "people": 6}
    assert remove(path, ids=[1, 99], dry_run=True) == 1
    assert "1 of 6 would be removed" in capsys.readouterr().out
    assert remove(path, filter="identity = 'anna'", json=True) == 0
    assert printed(capsys) == {"removed": 2, "people": 4}
    assert remove(path, ids=[1, 1]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == f"1 removed; {path} holds 3"
    assert output.err.strip() == f"their features are on disk until: hpnet compact {path}"
    assert remove(path, ids=[1]) == 1, "nobody has this id any more"
    for wrong in ({}, {"ids": [1], "filter": "true"}):
        with pytest.raises(ValueError, match="either --ids or --filter"):
            remove(path, **wrong)
    with pytest.raises(ValueError, match=r"^filter 'hat = 1'"):
        remove(path, filter="hat = 1", dry_run=True)
    assert len(Gallery.open(path)) == 3


@pytest.mark.parametrize(
    ("before", "gone"),
    [
        ("2.5h", 3),
        ("150m", 3),
        ("1d", 0),
        ("2020-01-01", 0),
        ("2100-01-01", 6),
        pytest.param((datetime.now(UTC) - timedelta(hours=3, minutes=30)).isoformat(), 2, id="moment"),
        ("0", 0),
    ],
)
def test_expire(path: Path, before: str, gone: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert expire(path, before, dry_run=True, json=True) == 0
    assert printed(capsys) == {"would_remove": gone, "people": 6}
    assert expire(path, before, json=True) == 0
    assert printed(capsys) == {"removed": gone, "people": 6 - gone}


@pytest.mark.parametrize(
    "before", ["soon", "30", "5x", "-1d", "", "nan", "99999999999d", "900000w", "1e300", "20240501"]
)
def test_expire_takes_no_unclear_moment(path: Path, before: str) -> None:
    if before == "30":
        assert expire(path, before) == 0, "seconds of the gallery's clock: all are later"
    else:
        with pytest.raises(ValueError, match=r"^before: |is longer ago"):
            expire(path, before)
    assert len(Gallery.open(path)) == 6


def test_compact(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remove(path, ids=[0])
    capsys.readouterr()
    assert compact(path, keep="1d", json=True) == 0
    kept = printed(capsys)
    assert kept["versions_deleted"] == 0
    assert compact(path, json=True) == 0
    done = printed(capsys)
    assert done["versions_deleted"] > 0
    assert done["bytes_after"] < done["bytes_before"]
    assert compact(path) == 0
    assert "before, " in capsys.readouterr().out
    for wrong in ("long", "99999999999d"):
        with pytest.raises(ValueError, match=wrong):
            compact(path, keep=wrong)


def test_history(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    remove(path, ids=[0, 1])
    capsys.readouterr()
    assert history(path, limit=2, json=True) == 0
    told = printed(capsys)
    assert [(each["event"], each["change"], each["people"]) for each in told] == [
        ("people removed", -2, 4),
        ("people added", 6, 6),
    ]
    list_people(path, version=told[1]["number"], json=True)
    assert printed(capsys)["people"] == 6
    monkeypatch.setenv("COLUMNS", "200")
    assert history(path, restore=told[1]["number"]) == 0
    assert f"version {told[1]['number']} restored" in capsys.readouterr().out
    assert len(Gallery.open(path)) == 6
    for limit in (0, -1):
        with pytest.raises(ValueError, match="limit must be at least 1"):
            history(path, limit=limit)
    with pytest.raises(ValueError, match="has no version 99"):
        history(path, restore=99)


@pytest.mark.parametrize("verb", [list_people, remove, expire, compact, history])
def test_a_missing_gallery_is_named(verb: Any, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {remove: {"ids": [1]}, expire: {"before": "1d"}}.get(verb, {})
    with pytest.raises(ValueError, match=f"{tmp_path / 'nowhere'}: no such gallery"):
        verb(tmp_path / "nowhere", **arguments)
