"""A file is whole or not there; and which weights make the same features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from hpnet.files import fingerprint, sha256_of, write_json, written_whole


def test_what_was_written_stands_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    with written_whole(path) as beside:
        beside.write_text("whole")
        assert beside.suffix == ".html"
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def fail_half_way() -> None:
        with written_whole(path) as beside:
            beside.write_text("ha")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "scores.json", {"value": object()})
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "scores.json", {"value": 1})
    assert json.loads((tmp_path / "scores.json").read_text()) == {"value": 1}


def weights_file(path: Path, value: float = 1.0, **texts: str) -> Path:
    about = {"format": "hpnet-weights/1", "config": "{}", "training": "{}", "version": "1"}
    path.write_bytes(save({"a": torch.full((3,), value)}, metadata=about | texts))
    return path


def test_the_fingerprint_follows_what_features_depend_on(tmp_path: Path) -> None:
    first = fingerprint(weights_file(tmp_path / "a"))
    assert len(first) == 64
    told = fingerprint(weights_file(tmp_path / "b", training='{"calibration": {}}', version="2"))
    assert told == first, "what a header tells of training and version makes no other features"
    others = [weights_file(tmp_path / "c", 2.0), weights_file(tmp_path / "d", config='{"threshold": 0.4}')]
    others.append(weights_file(tmp_path / "e", parts='["HEAD"]'))
    assert len({first, *map(fingerprint, others)}) == 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\xff" * 40,
        (4).to_bytes(8, "little") + b"[1] and more",
        (2).to_bytes(8, "little") + b"{}",
        save({"a": torch.zeros(1)}),
        save({"a": torch.zeros(1)}, metadata={"format": "hpnet-teacher/1", "training": "x"}),
    ],
)
def test_the_fingerprint_of_any_other_file_is_its_sha256(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(content)
    assert fingerprint(tmp_path / "other") == sha256_of(tmp_path / "other")
