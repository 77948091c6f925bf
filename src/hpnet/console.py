"""What the program says: results on standard output, everything else (progress, remarks) on standard error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import track

Item = TypeVar("Item")


def say(result: RenderableType) -> None:
    """Print a result: a table, or text as it is, unwrapped."""
    # ":100:" in a name is no emoji, and "[x]" no markup.
    Console(markup=False, emoji=False).print(result, highlight=False, soft_wrap=isinstance(result, str))


def remark(text: str) -> None:
    """Print what a person may want to know and a machine need not."""
    Console(stderr=True, markup=False, emoji=False).print(text, highlight=False, soft_wrap=True)


def tell_skipped(reasons: Iterable[str]) -> None:
    """Name files that were left out, a line each."""
    for reason in reasons:
        remark(f"skipped {reason}")


def tracked(items: Iterable[Item], title: str, total: int | None = None, *, quiet: bool = False) -> Iterable[Item]:
    """The items, with a progress bar while they are gone through."""
    return track(items, title, total=total, console=Console(stderr=True), disable=quiet)
