"""What a search says of people: those it found, with what is known of them, and those it cannot compare.

In: a commit of the gallery, and ids with distances or the parts that queries show. Out: `Match` and `Apart` values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from torch import Tensor

from hpnet.distance import Visibility
from hpnet.gallery.columns import ATTRIBUTES, Attribute, Moment, Value, among, free_attributes, part_columns
from hpnet.gallery.listing import Entry, entries, joined
from hpnet.gallery.nearest import is_compared
from hpnet.parts import PARTS, Part

if TYPE_CHECKING:
    from lance import LanceDataset


@dataclass(frozen=True)
class Match:
    """A person of the gallery, as found by a search.

    Attributes:
        id: the gallery's number for this photo; stays the same until it is removed, and is never given again.
        path: where the photo lies, as it was given.
        distance: to the query, at least 0.
        parts: the parts that were compared.
        identity, camera, time: as they were given (a time with a zone comes back in UTC); None if unknown.
        attributes: the user's own, by name; those that are unknown of this person are left out.
    """

    id: int
    path: str
    distance: float
    parts: tuple[Part, ...]
    identity: Value | None
    camera: Value | None
    time: Moment | None
    attributes: Mapping[str, Attribute] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Apart:
    """The people whom a query cannot be compared with: how many, and the first of them, by id."""

    count: int
    people: list[Entry]


def matches(
    snapshot: LanceDataset,
    found: list[list[tuple[int, float]]],
    query_shows: Bool[Tensor, "q p"],
    chosen: tuple[int, ...],
    visibility: Visibility,
) -> list[list[Match]]:
    """What is known of the people found."""
    names = part_columns(snapshot.schema)
    known = [name for name in ATTRIBUTES if name in snapshot.schema.names]
    free = free_attributes(snapshot.schema)
    wanted = among({number for row in found for number, _ in row})
    table = snapshot.to_table(columns=["path", *known, *names, *free], filter=wanted, with_row_id=True)
    people: dict[int, dict[str, Any]] = {row["_rowid"]: row for row in table.to_pylist()}

    def match(number: int, distance: float, shows: list[bool]) -> Match:
        person = people[number]
        seen = [person[names[part]] for part in chosen]
        pairs = zip(chosen, shows, seen, strict=True)
        parts = [part for part, mine, theirs in pairs if is_compared(visibility, mine, theirs)]
        compared = PARTS if len(names) == 1 and parts else tuple(Part(part) for part in parts)
        own = {name: person[name] for name in free if person[name] is not None}
        known_of = {name: person.get(name) for name in ATTRIBUTES}
        return Match(number, person["path"], distance, compared, **known_of, attributes=own)

    rows = zip(found, query_shows.tolist(), strict=True)
    return [[match(number, distance, shows) for number, distance in row] for row, shows in rows]


def apart(
    snapshot: LanceDataset,
    query_shows: Bool[Tensor, "q p"],
    chosen: tuple[int, ...],
    condition: str | None,
    limit: int,
) -> list[Apart]:
    """Who shows none of the parts that a query shows, for each query."""
    names = part_columns(snapshot.schema)
    patterns = [tuple(row) for row in query_shows.tolist()]
    known: dict[tuple[bool, ...], Apart] = {}
    for pattern in set(patterns) if names else ():
        hidden = [f"NOT {names[part]}" for part, shows in zip(chosen, pattern, strict=True) if shows]
        further = joined(condition, *hidden)
        count = snapshot.count_rows(further)
        known[pattern] = Apart(count, entries(snapshot, further, limit, False, None) if count else [])
    return [known.get(pattern, Apart(0, [])) for pattern in patterns]
