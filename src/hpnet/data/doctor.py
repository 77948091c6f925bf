"""`hpnet doctor`: which data set is this, is it whole, and what is wrong with it.

In: a folder of a known data set, any folder of crops, or a CSV. Out: a `Report`, and on the screen a table of its
splits beside the published counts, with all that is missing, unreadable or surplus by name. It changes nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from json import dumps
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from hpnet.data.photos import Failure, PhotoError, read_photos, read_size
from hpnet.data.reid import (
    DATA_SETS,
    DISTRACTOR,
    JUNK,
    DataSetError,
    NoDataSetError,
    Person,
    Split,
    find_data_set,
    list_split,
    list_table,
    read_folder,
)

_OWN_COLUMNS: Final = ("files", "identities", "cameras")
_NAMED: Final = 10  # how many files of a kind are named on the screen; --json names all
_SMALL: Final = (32, 16)  # decoded only to see whether that works


@dataclass(frozen=True)
class SplitReport:
    """What a split's folder holds.

    Attributes:
        name: of the split.
        folder: where its files lie, or should lie.
        published: the counts it should have; None for a user's own crops and for drawn people.
        found: whether the folder exists.
        files: persons' photos, junk and distractors included.
        identities: different people, without junk, distractors and the unknown.
        cameras: different cameras, without the unknown.
        junk: photos of identity `JUNK`; counted only where the data set knows such.
        distractors: photos of identity `DISTRACTOR`; likewise.
        surplus: files that are no persons by the data set's naming.
        unreadable: photos that cannot be used, and why.
    """

    name: str
    folder: Path
    published: Split | None
    found: bool = True
    files: int = 0
    identities: int = 0
    cameras: int = 0
    junk: int = 0
    distractors: int = 0
    surplus: tuple[Path, ...] = ()
    unreadable: tuple[Failure, ...] = ()

    @property
    def images(self) -> int:
        """Photos that count as the data set's: all but junk."""
        return self.files - self.junk

    @property
    def problems(self) -> list[str]:
        """What is wrong, each in a few words; empty when the split is whole."""
        if not self.found:
            optional = self.published is not None and self.published.optional
            return [] if optional else [f"folder {self.folder} is missing"]
        problems = [] if self.published is None else _deviations(self, self.published)
        if self.surplus:
            problems.append(f"{len(self.surplus):,} surplus by name")
        if self.unreadable:
            problems.append(f"{len(self.unreadable):,} unreadable")
        return problems


@dataclass(frozen=True)
class Report:
    """What `examine` found.

    Attributes:
        root: the folder or CSV that was examined.
        data_set: a key of `DATA_SETS`; None for a user's own crops.
        title: what it is, for people.
        splits: one per split; a user's own crops are one split.
        sizes: (height, width) of the photos and how many have it, the most frequent first; empty for known data sets.
        rows_refused: lines of a CSV that cannot be used, each with its reason.
        read: whether the photos were decoded.
    """

    root: Path
    data_set: str | None
    title: str
    splits: tuple[SplitReport, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...] = ()
    rows_refused: tuple[str, ...] = ()
    read: bool = True

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong, one line each; empty when all is whole."""
        lines = [f"{split.name}: {problem}" for split in self.splits for problem in split.problems]
        return [*lines, *self.rows_refused]

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, unreadable or surplus."""
        return not self.problems


def doctor(root: Path, *, read: bool = True, json: bool = False) -> int:
    """Say which data set lies in a folder, whether it is whole, and what is wrong with it.

    Market-1501, Occluded-Duke, Partial-REID, Partial-iLIDS'18 and '19 and Occluded-REID are compared with their
    published counts. Any other folder of pictures, and a CSV with columns path, identity and camera, is counted.

    Args:
        root: the data set's folder (or one that holds it), a folder of crops, or a CSV.
        read: decode every picture, to find the damaged ones; --read=false only counts.
        json: print the report as JSON, with every file named.

    Returns:
        0 whole, 1 something is missing, unreadable or surplus.

    Raises:
        DataSetError: there is no such folder or table, or no picture in it.
    """
    report = examine(root, read=read)
    if json:
        print(dumps(_as_json(report), indent=2))
    else:
        _show(report, Console())
    return 0 if report.whole else 1


def examine(root: Path, *, read: bool = True) -> Report:
    """Look through a data set, a folder of crops or a CSV.

    Args:
        root: as for `doctor`.
        read: whether to decode every picture.

    Raises:
        DataSetError: there is no such folder or table, or no picture in it.
    """
    root = Path(root)
    if root.is_file():
        return _examine_table(root, read)
    if not root.is_dir():
        raise DataSetError(f"{root}: no such folder or table")
    try:
        name = find_data_set(root)
    except NoDataSetError as unknown:
        return _examine_folder(root, read, unknown)
    title = DATA_SETS[name].title
    splits = tuple(_examine_split(name, root, split, read) for split in DATA_SETS[name].splits)
    if any(_is_drawn(split.folder.parent) for split in splits):
        title = f"drawn people in {title}'s layout, nothing published to compare with"
        splits = tuple(replace(split, published=None) for split in splits)
    return Report(root, name, title, splits, read=read)


def _examine_split(name: str, root: Path, split: str, read: bool) -> SplitReport:
    published = DATA_SETS[name].splits[split]
    try:
        files = list_split(name, root, split)
    except DataSetError:
        return SplitReport(split, Path(published.folder), published, found=False)
    counts = Counter(person.identity for person in files.people)
    knows_junk = any(row.junk for row in DATA_SETS[name].splits.values())
    junk, distractors = (counts.pop(JUNK, 0), counts.pop(DISTRACTOR, 0)) if knows_junk else (0, 0)
    return SplitReport(
        name=split,
        folder=files.folder,
        published=published,
        files=len(files.people),
        identities=len(counts),
        cameras=_different([person.camera for person in files.people]),
        junk=junk,
        distractors=distractors,
        surplus=tuple(files.surplus),
        unreadable=_unreadable([person.path for person in files.people], split) if read else (),
    )


def _is_drawn(place: Path) -> bool:
    """Whether `hpnet synth` wrote this: it leaves the truth beside the photos."""
    return (place / "visibility.csv").is_file() and (place / "part_maps").is_dir()


def _examine_folder(root: Path, read: bool, unknown: NoDataSetError) -> Report:
    try:
        people = read_folder(root)
    except PhotoError:
        raise unknown from None  # says what was sought; that there is no picture at all is plain from it
    return _own(root, "a folder of crops (no known data set)", people, read)


def _examine_table(table: Path, read: bool) -> Report:
    people, refused = list_table(table)
    if not people and not refused:
        raise DataSetError(f"{table}: the table has no rows")
    return _own(table, "a table of crops", people, read, tuple(refused))


def _own(root: Path, title: str, people: list[Person], read: bool, refused: tuple[str, ...] = ()) -> Report:
    paths = [person.path for person in people]
    sizes, headless = _sizes(paths)
    split = SplitReport(
        name="all",
        folder=root if root.is_dir() else root.parent,
        published=None,
        files=len(people),
        identities=_different([person.identity for person in people]),
        cameras=_different([person.camera for person in people]),
        unreadable=_unreadable(paths, "all") if read else headless,
    )
    return Report(root, None, title, (split,), sizes, refused, read)


def _different(values: Sequence[int | str | None]) -> int:
    return len(set(values) - {None})


def _unreadable(paths: list[Path], split: str) -> tuple[Failure, ...]:
    bar = Console(stderr=True)
    photos = track(read_photos(paths, _SMALL), f"reading {split}", total=len(paths), console=bar, transient=True)
    return tuple(photo for photo in photos if isinstance(photo, Failure))


def _sizes(paths: list[Path]) -> tuple[tuple[tuple[tuple[int, int], int], ...], tuple[Failure, ...]]:
    """How often each size occurs, and the files whose very header cannot be read."""
    counts: Counter[tuple[int, int]] = Counter()
    failures: list[Failure] = []
    for path in paths:
        try:
            counts[read_size(path)] += 1
        except PhotoError as error:
            failures.append(Failure(path, str(error)))
    return tuple(counts.most_common()), tuple(failures)


def _deviations(found: SplitReport, published: Split) -> list[str]:
    pairs = (
        ("identities", found.identities, published.identities),
        ("images", found.images, published.images),
        ("junk images", found.junk, published.junk),
        ("distractors", found.distractors, published.distractors),
    )
    return [
        f"{abs(here - there):,} {what} {'missing' if here < there else 'too many'}"
        for what, here, there in pairs
        if here != there
    ]


def _show(report: Report, console: Console) -> None:
    console.print(f"[bold]{escape(str(report.root))}[/bold]: {report.title}", soft_wrap=True)
    console.print(_table(report))
    if report.sizes:
        console.print(_size_line(report))
    for split in report.splits:
        for problem in split.problems:
            console.print(f"{split.name}: {problem}", markup=False, soft_wrap=True)
    _name_files(console, "rows that cannot be used", report.rows_refused)
    for split in report.splits:
        _name_files(console, f"{split.name}: surplus (not named like the data set's files)", split.surplus)
        _name_files(console, f"{split.name}: unreadable", [failure.reason for failure in split.unreadable])
    how = "every picture was decoded" if report.read else "pictures were counted, not decoded"
    console.print(f"[green]whole[/green]; {how}" if report.whole else f"[red]not whole[/red]; {how}")


def _table(report: Report) -> Table:
    """Narrow enough for 80 columns; what is wrong follows below it, line by line."""
    known = report.data_set is not None
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("split", no_wrap=True)
    columns = ("files", "junk", "distractors", "identities\n/ images", "published") if known else _OWN_COLUMNS
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for split in report.splits:
        table.add_row(split.name, *_cells(split, known), _verdict(split))
    return table


def _cells(split: SplitReport, known: bool) -> list[str]:
    if not known:
        return [f"{number:,}" for number in (split.files, split.identities, split.cameras)]
    return [
        f"{split.files:,}",
        f"{split.junk:,}",
        f"{split.distractors:,}",
        f"{split.identities:,} / {split.images:,}",
        f"{split.published.identities:,} / {split.published.images:,}" if split.published else "-",
    ]


def _verdict(split: SplitReport) -> str:
    if split.problems:
        return "[red]not whole[/red]"
    return "[green]whole[/green]" if split.found else "optional, absent"


def _size_line(report: Report) -> str:
    by_area = sorted(report.sizes, key=lambda row: row[0][0] * row[0][1])
    (least, _), (most, _) = by_area[0], by_area[-1]
    usual, times = report.sizes[0]
    text = "sizes (height x width): {} to {}, most often {} ({:,} of {:,} photos)"
    total = sum(count for _, count in report.sizes)
    return text.format(*(f"{height}x{width}" for height, width in (least, most, usual)), times, total)


def _name_files(console: Console, title: str, names: Sequence[Path | str]) -> None:
    if not names:
        return
    console.print(f"[bold]{title}[/bold]: {len(names):,}")
    for name in names[:_NAMED]:
        console.print(f"  {name}", markup=False, soft_wrap=True)
    if len(names) > _NAMED:
        console.print(f"  … and {len(names) - _NAMED:,} more; --json names all")


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "root": str(report.root),
        "data_set": report.data_set,
        "title": report.title,
        "whole": report.whole,
        "read": report.read,
        "problems": report.problems,
        "splits": [_split_as_json(split) for split in report.splits],
        "sizes": [{"height": height, "width": width, "files": files} for (height, width), files in report.sizes],
    }


def _split_as_json(split: SplitReport) -> dict[str, Any]:
    there = split.published
    return {
        "name": split.name,
        "folder": os.fspath(split.folder),
        "found": split.found,
        "files": split.files,
        "images": split.images,
        "identities": split.identities,
        "cameras": split.cameras,
        "junk": split.junk,
        "distractors": split.distractors,
        "published": there and {"identities": there.identities, "images": there.images,
                                "junk": there.junk, "distractors": there.distractors},
        "problems": split.problems,
        "surplus": [str(path) for path in split.surplus],
        "unreadable": [{"path": str(failure.path), "reason": failure.reason} for failure in split.unreadable],
    }  # fmt: skip
