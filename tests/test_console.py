"""Results go to standard output, everything else to standard error."""

from __future__ import annotations

import pytest
from rich.table import Table

from hpnet.console import remark, say, tell_skipped, tracked


def test_results_and_remarks_go_separate_ways(capsys: pytest.CaptureFixture[str]) -> None:
    long = "[bold] " + "word " * 100
    say(long)
    remark("look at [this]")
    tell_skipped(["a.jpg: damaged"])
    printed = capsys.readouterr()
    assert printed.out == long + "\n"  # neither wrapped nor taken for markup
    assert printed.err == "look at [this]\nskipped a.jpg: damaged\n"


def test_names_are_neither_markup_nor_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[b]head", title="[x]a.jpg")
    table.add_row("cam:100:5 [red]")
    say(table)
    say('{"path": "a:cat:b.jpg"}')
    remark("a:cat:b.jpg")
    printed = capsys.readouterr()
    for name in ("[x]a.jpg", "[b]head", "cam:100:5 [red]", "a:cat:b.jpg"):
        assert name in printed.out
    assert printed.err == "a:cat:b.jpg\n"


def test_progress_passes_every_item_on_and_stays_off_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert list(tracked(iter("ab"), "counting", 2, quiet=True)) == ["a", "b"]
    assert capsys.readouterr().out == ""
