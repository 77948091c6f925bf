"""A file is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpnet.files import write_json, written_whole


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
