"""Who is on which photo: one table of the field's data sets, and one reader for them and for a user's own crops.

In: a folder of a known data set, any folder of crops, or a CSV. Out: `Person` rows, sorted by path. A file name says
who was seen and by which camera only where the data set's authors wrote it there; what it does not say is None and is
never invented. Files that are no persons are handed out beside the persons, so that `hpnet doctor` can name them.
"""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Final, NoReturn

import torch
from jaxtyping import Int64
from torch import Tensor

from hpnet.data.photos import find_photos

Identity = int | str

JUNK: Final = -1  # Market-1501: a bad detection of somebody; neither right nor wrong as an answer
DISTRACTOR: Final = 0  # Market-1501: a false alarm or a stranger; always a wrong answer
VALIDATION_IDENTITIES: Final = 50  # of a training split, the last ones: recipes keep them out, protocols judge by them
UNLABELLED: Final = -1  # `identity_labels`' label for people who are skipped
_MORE: Final = "fields beyond the columns"  # csv's name for what a row has too much
_COLUMNS: Final = ("path", "identity", "camera", "time")
_NAMED: Final = 5  # how many culprits an error line names


class DataSetError(ValueError):
    """A folder or table that is not what was asked for; the text names it and says what to change."""


class NoDataSetError(DataSetError):
    """A folder in which no known data set lies; it may still hold a user's own crops."""


@dataclass(frozen=True)
class Person:
    """One photo of one person.

    Attributes:
        path: the picture file.
        identity: who it is, as the data set numbers or names them (`JUNK` and `DISTRACTOR` included); None = not known.
        camera: which camera took it; None = not known.
        time: when: seconds of some clock, or a date and time; None = not known.
        attributes: what else is known, by name.
    """

    path: Path
    identity: int | str | None
    camera: int | str | None
    time: float | datetime | None = None
    attributes: Mapping[str, int | float | str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Split:
    """One folder of a data set, and its published counts.

    Attributes:
        folder: its name below the root.
        identities: people in it, without junk and distractors.
        images: photos in it, without junk.
        junk: further photos, of identity `JUNK`.
        distractors: how many of `images` are of identity `DISTRACTOR`.
        optional: whether a copy of the data set is whole without it.
    """

    folder: str
    identities: int
    images: int
    junk: int = 0
    distractors: int = 0
    optional: bool = False


@dataclass(frozen=True)
class DataSet:
    """One row of the table of data sets.

    Attributes:
        title: its name for people.
        roots: what its folder is usually called; case, hyphens, underscores and dots do not count.
        pattern: regular expression of a file's path below a split's folder; groups `identity` and perhaps `camera`.
        example: such a path.
        splits: by name.
    """

    title: str
    roots: tuple[str, ...]
    pattern: str
    example: str
    splits: dict[str, Split] = field(hash=False)


@dataclass(frozen=True)
class SplitFiles:
    """What lies in a split's folder: the persons, and the files that are none by the data set's naming."""

    folder: Path
    people: list[Person]
    surplus: list[Path]


_PICTURE: Final = r"(?:\.(?:jpe?g|png|tiff?|bmp))+"  # some files of Market-1501 end in .jpg.jpg

# Counts: the paper's Table 1; Occluded-Duke's from Miao et al. 2019; junk and distractors from Market-1501's files.
DATA_SETS: Final[dict[str, DataSet]] = {
    "market1501": DataSet(
        title="Market-1501",
        roots=("Market-1501-v15.09.15", "Market-1501", "Market"),
        pattern=r"(?P<identity>-1|\d{4})_c(?P<camera>\d+)s\d+_\d+_\d+" + _PICTURE,
        example="0002_c1s1_000451_03.jpg",
        splits={
            "train": Split("bounding_box_train", 751, 12_936),
            "query": Split("query", 750, 3_368),
            "gallery": Split("bounding_box_test", 750, 15_913, junk=3_819, distractors=2_798),
        },
    ),
    "occluded_duke": DataSet(
        title="Occluded-Duke",
        roots=("Occluded_Duke", "Occluded-DukeMTMC-reID", "Occluded-DukeMTMC", "occ_duke"),
        pattern=r"(?P<identity>\d{4})_c(?P<camera>\d+)_f\d+" + _PICTURE,
        example="0001_c2_f0046182.jpg",
        splits={
            "train": Split("bounding_box_train", 702, 15_618),
            "query": Split("query", 519, 2_210),
            "gallery": Split("bounding_box_test", 1_110, 17_661),
        },
    ),
    "partial_reid": DataSet(
        title="Partial-REID",
        roots=("Partial-REID_Dataset", "Partial-REID"),
        pattern=r"(?P<identity>\d{3})_\d+" + _PICTURE,
        example="001_001.jpg",
        splits={
            "query": Split("occluded_body_images", 60, 300),
            "query_partial": Split("partial_body_images", 60, 300, optional=True),
            "gallery": Split("whole_body_images", 60, 300),
        },
    ),
    "partial_ilids18": DataSet(
        title="Partial-iLIDS'18",
        roots=("Partial_iLIDS", "partial_ilids18"),
        pattern=r"(?P<identity>\d{1,3})" + _PICTURE,
        example="7.jpg",
        splits={"query": Split("Probe", 119, 119), "gallery": Split("Gallery", 119, 119)},
    ),
    "partial_ilids19": DataSet(
        title="Partial-iLIDS'19",
        roots=("PartialILIDS", "partial_ilids19", "partial_ilids_fpr"),
        pattern=r"(?P<identity>\d{4})[^/]*?" + _PICTURE,
        example="0001*.jpg (four digits, then anything)",
        splits={"query": Split("Probe", 107, 238), "gallery": Split("Gallery", 109, 238)},
    ),
    "occluded_reid": DataSet(
        title="Occluded-REID",
        roots=("Occluded_REID",),
        # Flat, or as first released: one folder per identity, named like it.
        pattern=r"(?:(\d{3})/(?=\1_))?(?P<identity>\d{3})_\d+" + _PICTURE,
        example="001_01.jpg or 001/001_01.tif",
        splits={
            "query": Split("occluded_body_images", 200, 1_000),
            "gallery": Split("whole_body_images", 200, 1_000),
        },
    ),
}


def find_data_set(root: Path) -> str:
    """Which data set lies in a folder: in it directly, or in a folder below it that bears one of the set's names.

    Returns:
        A key of `DATA_SETS`.

    Raises:
        NoDataSetError: no data set lies there; the text says what was sought.
        DataSetError: there is no such folder, or it holds more than one data set.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataSetError(f"{root}: no such folder")
    found: dict[Path, list[str]] = {}
    for name in DATA_SETS:
        place = _locate(name, root)
        if place is not None and _persons_in(name, place):
            found.setdefault(place, []).append(name)
    if root in found:
        found = {root: found[root]}
    if not found:
        layouts = "; ".join(f"{row.title}: {_folders(row)}" for row in DATA_SETS.values())
        raise NoDataSetError(f"{root}: no known data set here, nor in a folder below that bears its name ({layouts})")
    if len(found) > 1:
        places = ", ".join(str(place) for place in found)
        raise DataSetError(f"{root}: holds {len(found)} data sets, give the folder of one: {places}")
    [(place, names)] = found.items()
    return min(names, key=lambda name: _unlikeness(name, place))


def locate(name: str, root: Path) -> Path:
    """The folder in which a data set's splits lie: root, or a folder below it that bears one of the set's names.

    Part maps mirror this folder, and `data_hash` is taken relative to it, so that neither depends on which was given.

    Raises:
        DataSetError: unknown name, or none of the splits is there.
    """
    row = _row(name)
    place = _locate(name, Path(root))
    if place is None:
        raise DataSetError(
            f"{root}: none of {row.title}'s folders ({_folders(row)}) is here, nor in a folder below called "
            f"{', '.join(row.roots)}; give the folder that holds them as root"
        )
    return place


def read_split(name: str, root: Path, split: str) -> list[Person]:
    """The persons of one split, sorted by path.

    Files whose names do not fit the data set are no persons: a warning counts them, `list_split` returns them.

    Args:
        name: a key of `DATA_SETS`.
        root: the data set's folder, or one that holds it under one of its usual names.
        split: "train", "query", "gallery"; Partial-REID also has "query_partial".

    Raises:
        DataSetError: unknown name or split, a missing folder, or a folder without a single person.
    """
    files = list_split(name, root, split)
    if not files.people:
        raise DataSetError(f"{files.folder}: no file is named like {DATA_SETS[name].example}")
    if files.surplus:
        more = f"{len(files.surplus)} files are not named like {DATA_SETS[name].example} and were left out"
        warnings.warn(f"{files.folder}: {more}, the first is {files.surplus[0].name}", stacklevel=2)
    return files.people


def list_split(name: str, root: Path, split: str) -> SplitFiles:
    """As `read_split`, with the surplus files; an empty folder gives empty lists.

    Hidden files and Windows' Thumbs.db are neither.
    """
    row = _row(name)
    if split not in row.splits:
        raise DataSetError(f"{row.title} has no split {split!r}: choose one of {', '.join(row.splits)}")
    folder = locate(name, root) / row.splits[split].folder
    if not folder.is_dir():
        raise DataSetError(f"{folder}: no such folder, {row.title}'s {split} images are sought there")
    return _sorted_out(row, folder)


def named_person(name: str, path: Path) -> Person:
    """The person that a file tells of by its name alone, in whatever folder it lies.

    Raises:
        DataSetError: unknown data set, or the file is not named like its files.
    """
    person = _named(_row(name), path.parent, path.name)
    if person is None:
        raise DataSetError(f"{path}: is not named like {DATA_SETS[name].example}")
    return person


def read_folder(folder: Path) -> list[Person]:
    """A user's own crops: all pictures below a folder, of whom nothing is known but the file.

    Raises:
        PhotoError: the folder is missing or holds no picture.
    """
    return [Person(path, None, None) for path in find_photos(folder)]


def read_table(table: Path) -> list[Person]:
    """A user's own crops with what is known of them, from a CSV; sorted by path.

    The first line names the columns: `path` (relative to the CSV, or absolute), and perhaps `identity`, `camera` and
    `time` (seconds, or a date and time as ISO 8601 writes it). An empty field or an absent column means not known.
    Whole numbers become integers. Further columns are attributes; in these, 1.5 is a number too.

    Raises:
        DataSetError: no such file, no column `path`, or rows that cannot be used: up to five are named with their line.
    """
    people, problems = list_table(table)
    if problems:
        more = f" (and {len(problems) - _NAMED} more)" if len(problems) > _NAMED else ""
        raise DataSetError("; ".join(problems[:_NAMED]) + more)
    if not people:
        raise DataSetError(f"{table}: the table has no rows")
    return people


def list_table(table: Path) -> tuple[list[Person], list[str]]:
    """As `read_table`, but rows that cannot be used come out as a list of lines that name file, line and reason."""
    table = Path(table)
    people: dict[Path, Person] = {}
    lines: dict[Path, int] = {}
    problems: list[str] = []
    for line, row in _rows(table):
        try:
            person = _person(table, row)
        except DataSetError as error:
            problems.append(f"{table}, line {line}: {error}")
            continue
        if person.path in lines:
            problems.append(f"{table}, line {line}: {row['path']} stands in line {lines[person.path]} already")
            continue
        lines[person.path] = line
        people[person.path] = person
    return [people[path] for path in sorted(people)], problems


def hold_out(people: Sequence[Person], identities: int) -> tuple[list[Person], list[Person]]:
    """Queries and gallery from the last so many identities: per identity and camera the first photo is a query."""
    names = sorted(
        {each.identity for each in people if each.identity is not None}, key=lambda n: (isinstance(n, str), n)
    )
    chosen = set(names[max(0, len(names) - identities) :])
    queries: dict[tuple[Identity | None, Identity | None], Person] = {}
    gallery = []
    for person in people:
        if person.identity not in chosen:
            continue
        if queries.setdefault((person.identity, person.camera), person) is not person:
            gallery.append(person)
    return list(queries.values()), gallery


def identity_labels(
    people: Sequence[Person], skip: Collection[Identity] = ()
) -> tuple[Int64[Tensor, " n"], list[Identity]]:
    """Number the identities 0..c-1, as a classifier needs them: integers in their order first, then names in theirs.

    Args:
        people: n persons; every identity must be known.
        skip: identities that are nobody's. Market-1501's train and query folders hold none; for its test folder give
            `(JUNK, DISTRACTOR)`. Nothing is skipped unasked, for in a user's own table 0 may be a person.

    Returns:
        (n,) int64 labels, `UNLABELLED` for those skipped; and the c identities, so that `identities[label]` is who.

    Raises:
        DataSetError: somebody's identity is None.
    """
    unknown = next((person for person in people if person.identity is None), None)
    if unknown is not None:
        raise DataSetError(f"{unknown.path}: its identity is not known, and training needs it; name it in a CSV")
    known = [person.identity for person in people if person.identity is not None]
    identities = sorted(set(known) - set(skip), key=lambda identity: (isinstance(identity, str), identity))
    label = {identity: number for number, identity in enumerate(identities)}
    return torch.tensor([label.get(identity, UNLABELLED) for identity in known], dtype=torch.int64), identities


def data_hash(people: Sequence[Person], root: Path) -> str:
    """A fingerprint of a list of photos for result files, whatever folder they lie in and in whatever order.

    It is the sha256, in hexadecimal, over one line per person, sorted: path relative to `root`, file size in bytes,
    identity and camera. It does not cover the pixels: reading all files for a stamp could take longer than the search.
    """
    lines = sorted(
        "\t".join(
            (
                Path(os.path.relpath(person.path, root)).as_posix(),
                str(person.path.stat().st_size),
                repr(person.identity),
                repr(person.camera),
            )
        )
        for person in people
    )
    return sha256("\n".join(lines).encode()).hexdigest()


def _row(name: str) -> DataSet:
    if name not in DATA_SETS:
        raise DataSetError(f"unknown data set {name!r}: choose one of {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def _folders(row: DataSet) -> str:
    return ", ".join(split.folder for split in row.splits.values())


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _bears_name(name: str, folder: Path) -> bool:
    return _plain(folder.absolute().name) in {_plain(usual) for usual in (name, *DATA_SETS[name].roots)}


def _locate(name: str, root: Path) -> Path | None:
    """As `locate`, None if there is none; also a folder of the set's name within one of its name (the authors' way)."""
    named = [folder for folder in _subfolders(root) if _bears_name(name, folder)]
    twice = [folder for parent in named for folder in _subfolders(parent) if _bears_name(name, folder)]
    folders = [split.folder for split in DATA_SETS[name].splits.values()]
    places = [place for place in (root, *named, *twice) if any((place / folder).is_dir() for folder in folders)]
    if len(places) < 2:
        return places[0] if places else None
    # Partial_iLIDS and PartialILIDS may lie side by side: the files decide.
    return max(places, key=lambda place: _persons_in(name, place))


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _persons_in(name: str, place: Path) -> int:
    row = DATA_SETS[name]
    folders = [place / split.folder for split in row.splits.values()]
    return sum(len(_sorted_out(row, folder).people) for folder in folders if folder.is_dir())


def _unlikeness(name: str, place: Path) -> tuple[bool, float]:
    """How ill a folder fits a data set, by its name and number of images; the smaller the better.

    Partial-REID and Occluded-REID have folders and files of the same names.
    """
    splits = [split for split in DATA_SETS[name].splits.values() if (place / split.folder).is_dir()]
    published = sum(split.images for split in splits)
    return not _bears_name(name, place), abs(_persons_in(name, place) / published - 1)


def _sorted_out(row: DataSet, folder: Path) -> SplitFiles:
    """Tell the persons in a split's folder from other files, by their names."""
    people: list[Person] = []
    surplus: list[Path] = []
    for below in _files(folder):
        person = _named(row, folder, below)
        if person is None:
            surplus.append(folder / below)
        else:
            people.append(person)
    return SplitFiles(folder, people, surplus)


def _named(row: DataSet, folder: Path, below: str) -> Person | None:
    """The person that a file's path below a folder tells of, if it is named like the data set's files."""
    found = re.fullmatch(row.pattern, below, re.IGNORECASE)
    if found is None:
        return None
    camera = found.groupdict().get("camera")
    return Person(folder / below, int(found["identity"]), None if camera is None else int(camera))


def _files(folder: Path) -> list[str]:
    """All files below a folder but hidden ones and Windows' Thumbs.db, as sorted relative paths."""
    found: list[str] = []
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(os.path.relpath(place, folder))
        wanted = (name for name in files if not name.startswith(".") and name.lower() != "thumbs.db")
        found.extend((relative / name).as_posix() for name in wanted)
    return sorted(found)


def _refuse(error: OSError) -> NoReturn:
    raise DataSetError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A CSV's rows with their line numbers; every row has a path."""
    if not table.is_file():
        raise DataSetError(f"{table}: no such table")
    with table.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.DictReader(text, skipinitialspace=True, restkey=_MORE, restval="")
        try:
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            if "path" not in columns:
                raise DataSetError(f"{table}: no column 'path'; the first line names {', '.join(columns) or 'none'}")
            for row in reader:
                yield reader.line_num, row
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataSetError(f"{table}: not a CSV in UTF-8 ({error})") from error


def _person(table: Path, row: dict[str, str]) -> Person:
    if _MORE in row:
        raise DataSetError(
            f"has more fields than the first line names; put quotes around a comma inside {row['path']!r}"
        )
    if not row["path"].strip():
        raise DataSetError("the path is empty")
    path = table.parent / row["path"].strip()
    if not path.is_file():
        raise DataSetError(f"{path}: no such file")
    further = {name: text for name, text in row.items() if name and name not in _COLUMNS and text.strip()}
    attributes = {name: _attribute(text) for name, text in further.items()}
    identity, camera = _known(row.get("identity", "")), _known(row.get("camera", ""))
    return Person(path, identity, camera, _moment(row.get("time", "")), attributes)


def _attribute(text: str) -> int | float | str:
    text = text.strip()
    if re.fullmatch(r"-?(0|[1-9][0-9]*)", text):  # 007 is a name
        return int(text)
    return float(text) if re.fullmatch(r"-?[0-9]*\.[0-9]+", text) else text


def _moment(text: str) -> float | datetime | None:
    if not (text := text.strip()):
        return None
    if re.fullmatch(r"(19|20)[0-9]{6}", text):  # in August 1970, if these were seconds
        raise DataSetError(f"time {text!r} may be a date; write it like 2024-05-01, or seconds like {text}.0")
    for read in (float, datetime.fromisoformat):
        try:
            moment: float | datetime = read(text)
        except ValueError:
            continue
        if isinstance(moment, datetime) or isfinite(moment):
            return moment
    raise DataSetError(f"time {text!r} is neither seconds nor a moment like 2024-05-01T12:00:00+02:00")


def _known(text: str) -> int | str | None:
    text = text.strip()
    if re.fullmatch("-?[0-9]+", text):
        return int(text)
    return text or None
