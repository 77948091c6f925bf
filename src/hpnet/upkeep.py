"""The verbs of keeping a gallery: who is in it, remove, expire, compact, and what happened to it.

In: a gallery's folder. Out: tables or JSON, and a gallery with fewer people or smaller files.
"""

from __future__ import annotations

import json as json_format
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from rich.filesize import decimal as in_bytes
from rich.table import Table

from hpnet.console import remark, say
from hpnet.gallery import Entry, Gallery, Moment, Version
from hpnet.parts import PARTS

_LAST_SECOND: Final = datetime.max.replace(tzinfo=UTC).timestamp()
_UNITS: Final = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def list_people(
    gallery: Path,
    *,
    filter: str | None = None,  # noqa: A002  (the word of the gallery's door)
    limit: int = 20,
    newest: bool = False,
    after: int | None = None,
    by: str | None = None,
    version: int | None = None,
    json: bool = False,
) -> int:
    """List who is in a gallery, page by page; or count them.

    Args:
        gallery: the gallery's folder.
        filter: a condition on the people listed, such as "camera = 2 AND head".
        limit: people on a page.
        newest: the last added first.
        after: the id of the last person of the page before.
        by: count instead of listing: by camera, identity, part (who shows it) or an attribute's name.
        version: look at an older version, as history numbers them.
        json: print as JSON.
    """
    store = Gallery.open(gallery, version=version)
    if by is not None:
        _say_counts(by, store.counts(by, filter), as_json=json)
        return 0
    people = store.entries(filter, limit, newest=newest, after=after)
    matching = store.count(filter)
    if json:
        say(json_format.dumps({"people": matching, "entries": [_entry_as_json(entry) for entry in people]}))
        return 0
    say(_people_table(people, f"{gallery.name}: {matching} people" + (" match" if filter else "")))
    if len(people) == limit < matching:
        remark(f"the next page: --after {people[-1].id}")
    return 0


def remove(
    gallery: Path,
    *,
    ids: list[int] | None = None,
    filter: str | None = None,  # noqa: A002  (the word of the gallery's door)
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Remove people from a gallery. Their features stay on disk, in older versions, until compact.

    Args:
        gallery: the gallery's folder.
        ids: of the people, such as [3,17].
        filter: instead of ids, a condition; everybody it is true of is removed, such as "identity = 12".
        dry_run: say how many it would be, and remove nobody.
        json: print what was done as JSON.
    """
    if (ids is None) == (filter is None):
        raise ValueError("give either --ids or --filter")
    store = Gallery.open(gallery)
    if dry_run:
        listed = ",".join(str(number) for number in ids or () if number >= 0)
        condition = filter if ids is None else f"_rowid IN ({listed})" if listed else "false"
        count = store.count(condition)
    else:
        count = store.remove(ids, filter=filter)
    _say_removed(store, count, dry_run=dry_run, as_json=json)
    missing = 0 if ids is None else len(set(ids)) - count
    if missing:
        remark(f"{missing} of the ids {'is' if missing == 1 else 'are'} not in the gallery")
    return 1 if missing else 0


def expire(gallery: Path, before: str, *, dry_run: bool = False, json: bool = False) -> int:
    """Remove everybody last seen before a moment; who has no time counts by the moment of being added.

    Args:
        gallery: the gallery's folder.
        before: an age (30d, 12h; w d h m s), a date or moment (2024-05-01, 2024-05-01T12:00:00+02:00; without a zone:
            local time), or a number of seconds on the clock of the gallery's times.
        dry_run: say how many it would be, and remove nobody.
        json: print what was done as JSON.
    """
    store = Gallery.open(gallery)
    moment = _moment(before)
    count = store.count(store.seen_before(moment)) if dry_run else store.expire(moment)
    _say_removed(store, count, dry_run=dry_run, as_json=json)
    return 0


def compact(gallery: Path, *, keep: str = "0s", json: bool = False) -> int:
    """Tidy a gallery up: few large files, and of those who were removed nothing. Ids stay, older versions go.

    Args:
        gallery: the gallery's folder.
        keep: the age up to which older versions stay (30d, 12h; w d h m s), and with them who was removed since.
        json: print what was done as JSON.
    """
    age = _age(keep)
    if age is None:
        raise ValueError(f"keep: {keep!r} is no age; write it like 30d or 12h")
    done = Gallery.open(gallery).compact(age)
    if json:
        say(json_format.dumps(asdict(done)))
        return 0
    say(f"{in_bytes(done.bytes_before)} before, {in_bytes(done.bytes_after)} now")
    say(f"{done.versions_deleted} older versions deleted")
    if done.leftovers_kept:
        remark("this file system has no locks: what killed writers left is deleted once it is a week old")
    return 0


def history(gallery: Path, *, limit: int = 20, restore: int | None = None, json: bool = False) -> int:
    """Tell what happened to a gallery, newest first; or bring an older version back.

    Args:
        gallery: the gallery's folder.
        limit: versions to list.
        restore: the version to make the newest again: who was removed since is back, who was added since is gone.
        json: print as JSON.
    """
    store = Gallery.open(gallery)
    if restore is not None:
        store.restore(restore)
    versions = store.history(limit)
    if json:
        say(json_format.dumps([{**asdict(each), "time": each.time.isoformat()} for each in versions]))
    else:
        say(_history_table(versions, gallery.name))
    return 0


def _moment(text: str) -> Moment:
    """The moment that a person wrote."""
    if (age := _age(text)) is not None:
        with suppress(OverflowError):
            return datetime.now(UTC) - age
        raise ValueError(f"before: {text!r} is longer ago than there are years")
    if re.fullmatch(r"(19|20)[0-9]{6}", text):  # in August 1970, if these were seconds
        raise ValueError(f"before: {text!r} may be a date; write it like 2024-05-01, or seconds like {text}.0")
    for read in (float, datetime.fromisoformat):
        with suppress(ValueError):
            moment = read(text)
            if isinstance(moment, datetime) or abs(moment) <= _LAST_SECOND:
                return moment
    message = "is no age (30d, 12h), no moment (2024-05-01, 2024-05-01T12:00) and no number of seconds"
    raise ValueError(f"before: {text!r} {message}")


def _age(text: str) -> timedelta | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([wdhms])", text.strip())
    try:
        return timedelta(**{_UNITS[found[2]]: float(found[1])}) if found else None
    except OverflowError:
        raise ValueError(f"{text!r} is longer ago than there are years") from None


def _say_removed(store: Gallery, count: int, *, dry_run: bool, as_json: bool) -> None:
    left = len(store)
    if as_json:
        say(json_format.dumps({"would_remove" if dry_run else "removed": count, "people": left}))
    elif dry_run:
        say(f"{count} of {left} would be removed from {store.path}; nobody was")
    else:
        say(f"{count} removed; {store.path} holds {left}")
        if count:
            remark(f"their features are on disk until: hpnet compact {store.path}")


def _say_counts(by: str, counts: Mapping[Any, int], *, as_json: bool) -> None:
    if as_json:
        say(json_format.dumps([{by: _plain(kind), "people": count} for kind, count in counts.items()]))
        return
    table = Table()
    table.add_column(by)
    table.add_column("people", justify="right")
    for kind, count in counts.items():
        table.add_row("unknown" if kind is None else str(kind), str(count))
    say(table)


def _people_table(people: list[Entry], title: str) -> Table:
    rows = [_cells(entry) for entry in people]
    # What is unknown of everybody has no column.
    names = dict.fromkeys(["id", "path", "added (UTC)", "visible", *(name for row in rows for name in row)])
    table = Table(title=title)
    for name in names:
        table.add_column(name, justify="right" if name == "id" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row.get(name, "") for name in names))
    return table


def _cells(entry: Entry) -> dict[str, str]:
    attributes = ", ".join(f"{name} {value}" for name, value in entry.attributes.items())
    when = entry.time
    time = _clock(when) + (" UTC" if when.tzinfo else "") if isinstance(when, datetime) else when
    known = {"identity": entry.identity, "camera": entry.camera, "time": time, "attributes": attributes or None}
    some = ", ".join(part.name.lower().replace("_", " ") for part in entry.visible)
    visible = "all" if entry.visible == PARTS else some or "nothing"
    first = {"id": str(entry.id), "path": entry.path, "added (UTC)": _clock(entry.added), "visible": visible}
    return first | {name: str(value) for name, value in known.items() if value is not None}


def _history_table(versions: list[Version], title: str) -> Table:
    table = Table(title=title)
    for name in ("version", "time (UTC)", "event", "change", "people"):
        table.add_column(name, justify="right" if name in ("version", "change", "people") else "left")
    for each in versions:
        change = "" if not each.change else f"{each.change:+}"
        table.add_row(str(each.number), _clock(each.time), each.event, change, str(each.people))
    return table


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    own = {name: _plain(value) for name, value in entry.attributes.items()}
    visible = [part.name for part in entry.visible]
    return {**asdict(entry), "time": _plain(entry.time), "added": _plain(entry.added), "visible": visible} | {
        "attributes": own
    }


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
