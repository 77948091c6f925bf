"""Who is in a gallery: people page by page, and how many there are of each kind.

In: a commit of the gallery, and a condition. Out: `Entry`s in the order of their ids, or counts. No features are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from hpnet.gallery.columns import (
    ATTRIBUTES,
    Attribute,
    GalleryError,
    Moment,
    Value,
    among,
    free_attributes,
    part_columns,
    parts_shown,
)
from hpnet.parts import Part

if TYPE_CHECKING:
    from lance import LanceDataset

_QUOTED: Final = r"'[^']*'|\"[^\"]*\"|`[^`]*`"  # in SQL; a bracket in it is none
PART: Final = "part"  # counts by the parts that are visible; not a column


@dataclass(frozen=True)
class Entry:
    """A person of the gallery, without the features.

    Attributes:
        id, path, identity, camera, time: as in `Match`.
        added: when the person was put into the gallery, in UTC.
        visible: the parts the photo shows.
        attributes: the user's own, by name; those that are unknown of this person are left out.
    """

    id: int
    path: str
    identity: Value | None
    camera: Value | None
    time: Moment | None
    added: datetime
    visible: tuple[Part, ...]
    attributes: Mapping[str, Attribute] = field(hash=False)


def entries(snapshot: LanceDataset, condition: str | None, limit: int, newest: bool, after: int | None) -> list[Entry]:
    """A page of people: see `Gallery.entries`."""
    further = f"_rowid {'<' if newest else '>'} {after}" if after is not None else None
    chosen = _first_ids(snapshot, joined(condition, further), limit, newest)
    free = free_attributes(snapshot.schema)
    known = [name for name in ATTRIBUTES if name in snapshot.schema.names]
    columns = ["path", "added", *known, *part_columns(snapshot.schema), *free]
    table = snapshot.to_table(columns=columns, filter=among(chosen.tolist()), with_row_id=True)
    rows = {row["_rowid"]: row for row in table.to_pylist()}
    return [_entry(rows[number], free) for number in chosen.tolist()]


def joined(condition: str | None, *further: str | None) -> str | None:
    """A filter and what else must hold. Raises GalleryError where the filter would get out of its brackets."""
    depth = 0
    for character in re.sub(_QUOTED, "", condition or ""):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            raise GalleryError(f"filter {condition!r}: a bracket is closed that was not opened")
    return " AND ".join(f"({each})" for each in (condition, *further) if each is not None) or None


def _first_ids(snapshot: LanceDataset, condition: str | None, limit: int, newest: bool) -> NDArray[np.int64]:
    """The lowest ids, or the highest, in that order; however many there are, only these are kept in memory."""
    chosen = np.empty(0, np.int64)
    scanner = snapshot.scanner(columns=[], filter=condition, with_row_id=True)
    for batch in scanner.to_batches():
        together = np.sort(np.concatenate([chosen, batch["_rowid"].to_numpy().astype(np.int64)]))
        chosen = together[::-1][:limit] if newest else together[:limit]
    return chosen


def _entry(row: Mapping[str, object], free: tuple[str, ...]) -> Entry:
    known = {name: row.get(name) for name in ("path", *ATTRIBUTES, "added")}
    given = {name: row[name] for name in free if row[name] is not None}
    return Entry(id=row["_rowid"], visible=parts_shown(row), attributes=given, **known)  # type: ignore[arg-type]


def counts(snapshot: LanceDataset, by: str, condition: str | None) -> dict[Attribute | None, int]:
    """How many people there are of each kind: see `Gallery.counts`."""
    import pyarrow.compute as arithmetic

    names = part_columns(snapshot.schema) if by == PART else (by,)
    if by != PART and by not in (free := (*ATTRIBUTES, *free_attributes(snapshot.schema))):
        raise GalleryError(f"by: {by!r} is unknown; choose from {', '.join((PART, *free))}")
    if not set(names) <= set(snapshot.schema.names):
        everybody = snapshot.count_rows(condition)
        return {None: everybody} if everybody else {}
    total: Counter[Attribute | None] = Counter()
    for batch in snapshot.scanner(columns=[*names], filter=condition).to_batches():
        for name in names:
            if by == PART:
                total[name] += arithmetic.sum(batch[name]).as_py() or 0
                continue
            found = arithmetic.value_counts(batch[name])
            total.update(dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True)))
    return dict(total) if by == PART else dict(total.most_common())
