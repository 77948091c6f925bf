"""The demo in small: every stage runs and leaves what it promises. Whether HPNet wins is for `make demo` to show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hpnet import demo as the_demo
from hpnet.gallery import Gallery


def test_the_whole_story_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dolls = replace(
        the_demo.DOLLS, identities=8, test_identities=3, cameras=2, shots=2, distractors=2, junk=1, size=(64, 32)
    )
    monkeypatch.setattr(the_demo, "DOLLS", dolls)
    monkeypatch.setattr(the_demo, "MODEL", replace(the_demo.MODEL, size=(64, 32), parsing_channels=8))
    assert the_demo.demo(tmp_path / "out", epochs=2, json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert printed == stored["scores"]
    assert set(printed) == {"HPNet: parts seen in both", "HPNet: visibility ignored", "baseline: whole pictures"}
    assert all(0 <= value <= 100 for scores in printed.values() for value in scores.values())
    assert len(Gallery.open(tmp_path / "out" / "gallery")) == stored["gallery"]
    assert "data:image" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(ValueError, match="not empty"):
        the_demo.demo(tmp_path / "out", epochs=2)
    assert the_demo.demo(tmp_path / "out", epochs=1, overwrite=True, json=True) == 0
