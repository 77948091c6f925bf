"""The history of a gallery: every commit is a version, and stays one until `Gallery.compact` deletes it.

In: a commit of the gallery. Out: what happened when, and what tidying up saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lance import LanceDataset

# What Lance calls a commit, in the words of a gallery.
_EVENTS: Final = {
    "Overwrite": "created",
    "Append": "people added",
    "Delete": "people removed",
    "Merge": "a column added",
    "ReserveFragments": "compaction begun",
    "BaseOperation": "compaction begun",  # the same, as Lance's reader calls it
    "Rewrite": "compacted",
    "Restore": "an older version restored",
}
_SHORTEST: Final = timedelta(microseconds=1)  # no age at all means two weeks to Lance


@dataclass(frozen=True)
class Version:
    """A state of the gallery.

    Attributes:
        number: counts from 1; `Gallery.open(path, version=number)` shows it.
        time: when it was committed, in UTC.
        event: what made it.
        people: how many are in it.
        change: how many more than in the version before; None if that one is not there any more.
    """

    number: int
    time: datetime
    event: str
    people: int
    change: int | None


@dataclass(frozen=True)
class Compaction:
    """What `Gallery.compact` did.

    Attributes:
        bytes_before, bytes_after: of all files in the gallery's folder.
        versions_deleted: how many older states cannot be opened any more.
        leftovers_kept: true where the file system has no locks, so that it is not certain that nobody else is writing:
            what killed writers left is deleted once it is a week old.
    """

    bytes_before: int
    bytes_after: int
    versions_deleted: int
    leftovers_kept: bool


def history(snapshot: LanceDataset, limit: int | None) -> list[Version]:
    """The versions, newest first: see `Gallery.history`."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    states = sorted(snapshot.versions(), key=lambda state: int(state["version"]))
    people = [int(state["metadata"]["total_rows"]) for state in states]
    first = 0 if states[0]["version"] == 1 else None
    changes = [first, *(now - then for then, now in pairwise(people))]
    rows = list(zip(states, people, changes, strict=True))[::-1][:limit]
    return [
        Version(
            number := int(state["version"]),
            state["timestamp"].astimezone(UTC),
            _event(snapshot, number),
            count,
            change,
        )
        for state, count, change in rows
    ]


def _event(snapshot: LanceDataset, number: int) -> str:
    transaction = snapshot.read_transaction(number)
    if transaction is None:
        return "unknown"
    name = type(transaction.operation).__name__
    return f"version {transaction.operation.version} restored" if name == "Restore" else _EVENTS.get(name, name)


def rewrite(snapshot: LanceDataset) -> None:
    """Write few large files instead of many small ones, without those who were removed. Ids stay."""
    snapshot.optimize.compact_files(materialize_deletions_threshold=0.0)


def delete_older(snapshot: LanceDataset, keep: timedelta, *, leftovers: bool) -> int:
    """Delete older versions, and what killed writers left if nobody is writing; returns how many versions.

    Raises:
        OSError: a file could not be deleted; what is in it must not be thought gone.
    """
    stats = snapshot.cleanup_old_versions(max(keep, _SHORTEST), delete_unverified=leftovers)
    if stats.failed_deletes:
        raise OSError(f"{stats.failed_deletes} files of older versions could not be deleted: permission denied?")
    return int(stats.old_versions)


def bytes_in(folder: Path) -> int:
    """The size of all files below a folder; those that vanish meanwhile do not count."""
    return sum(_size(file) for file in folder.rglob("*"))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0
