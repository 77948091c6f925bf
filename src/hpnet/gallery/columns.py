"""How people lie on disk: the columns of a gallery, their types, and conditions on them.

In: values as users give them. Out: Arrow columns, or one clear line that names the row which does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from hpnet.parts import PARTS, Part, PartFeatures

if TYPE_CHECKING:
    import pyarrow as pa

Value = int | str
Moment = float | int | datetime
Attribute = bool | int | float | str | datetime
# What a photo shows stands in one yes/no column per part, so that filters can ask for it: "head AND camera = 2".
# A global baseline's gallery has one feature for the whole person instead.
LAYOUTS: Final = (tuple(part.name.lower() for part in PARTS), ("whole",))
ATTRIBUTES: Final = ("identity", "camera", "time")  # those that hpnet itself knows; others are the user's own
THUMBNAIL: Final = "thumbnail"
# Names a user's attribute cannot have: what tables and answers call their own, and words that SQL reads otherwise.
RESERVED: Final = frozenset(
    ["id", "path", "added", "features", "distance", "parts", "attributes", THUMBNAIL, *ATTRIBUTES, *sum(LAYOUTS, ())]
)
SQL_WORDS: Final = frozenset(
    {"all", "and", "any", "between", "case", "cast", "current_date", "current_time", "current_timestamp", "exists"}
    | {"false", "from", "in", "interval", "is", "like", "not", "null", "or", "part", "select", "some", "trim", "true"}
    | {"where", "with"}
)
# Arrow's types of the attributes, in words.
KINDS: Final = {
    "int64": "whole numbers",
    "string": "text",
    "double": "real numbers",
    "bool": "yes and no",
    "binary": "pictures",
    "timestamp[us]": "datetimes without a zone",
    "timestamp[us, tz=UTC]": "datetimes with a zone",
}
_JPEG: Final = b"\xff\xd8\xff"


class GalleryError(ValueError):
    """A gallery that cannot be used as asked; the text is one line that names it and the reason."""


def part_columns(schema: pa.Schema) -> tuple[str, ...]:
    """The columns that say what a photo shows; none before the first `add`."""
    return next((names for names in LAYOUTS if names[0] in schema.names), ())


def stored_shape(schema: pa.Schema) -> tuple[int, int] | None:
    """(parts, dimensions) of the stored features; None before the first `add`."""
    if not (names := part_columns(schema)):
        return None
    return len(names), schema.field("features").type.list_size // len(names)


def free_attributes(schema: pa.Schema) -> tuple[str, ...]:
    """The names of the user's own attributes."""
    return tuple(name for name in schema.names if name not in RESERVED)


def parts_shown(person: Mapping[str, object]) -> tuple[Part, ...]:
    """What a row shows; a global baseline's person, known as a whole or not at all, shows every part or none."""
    if LAYOUTS[1][0] in person:
        return PARTS if person[LAYOUTS[1][0]] else ()
    return tuple(part for part, name in zip(PARTS, LAYOUTS[0], strict=True) if person.get(name))


def fitted_to(path: Path, kept: pa.Schema, people: pa.Table) -> pa.Table:
    """The people in the types of the gallery's columns: whole numbers are real numbers too, all else must fit."""
    import pyarrow as pa

    for place, field in enumerate(people.schema):
        if field.name not in kept.names or (type_kept := kept.field(field.name).type) == field.type:
            continue
        if not (pa.types.is_int64(field.type) and pa.types.is_float64(type_kept)):
            has, comes = (_in_words(field.name, kind) for kind in (type_kept, field.type))
            raise GalleryError(f"{path}: {field.name} holds {has} here, not {comes}")
        numbers = [None if value is None else float(value) for value in people[field.name].to_pylist()]
        people = people.set_column(place, field.name, pa.array(numbers, pa.float64()))
    return people


def _in_words(name: str, kind: object) -> str:
    return "seconds" if name == "time" and str(kind) == "double" else KINDS.get(str(kind), str(kind))


def attribute_columns(attributes: Mapping[str, Sequence[Attribute | None]]) -> dict[str, pa.Array | None]:
    """The user's own attributes as columns. A name must be such that a filter can ask for it."""
    for name in attributes:
        if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]{0,62}", name):
            raise GalleryError(f"attributes: {name!r} must be small letters, digits and _, and begin with a letter")
        if name in RESERVED | SQL_WORDS:
            raise GalleryError(f"attributes: the name {name!r} is taken; choose another")
    return {name: typed_column(name, values) for name, values in attributes.items()}


def thumbnail_column(thumbnails: Sequence[bytes | None]) -> pa.Array | None:
    """Small pictures, as the bytes of JPEG files; None if there are none."""
    import pyarrow as pa

    for row, picture in enumerate(thumbnails):
        if picture is not None and not (isinstance(picture, bytes) and picture.startswith(_JPEG)):
            raise GalleryError(f"thumbnails: row {row} must be the bytes of a JPEG file or None")
    return pa.array(thumbnails, pa.binary()) if any(picture is not None for picture in thumbnails) else None


def typed_column(name: str, values: Sequence[object]) -> pa.Array | None:
    """The values as a column of the one type they have; None if there are none."""
    import pyarrow as pa

    kinds: dict[str, int] = {}
    for row, value in enumerate(values):
        if value is not None:
            kinds.setdefault(_kind(name, row, value), row)
    if kinds.keys() == {"int64", "double"}:
        del kinds["int64"]
    if len(kinds) > 1:
        words = " and ".join(f"{KINDS[kind]} (row {row})" for kind, row in kinds.items())
        raise GalleryError(f"{name}: mixes {words}")
    if not kinds:
        return None
    types = {
        "int64": pa.int64(),
        "string": pa.string(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "timestamp[us]": pa.timestamp("us"),
        "timestamp[us, tz=UTC]": pa.timestamp("us", "UTC"),
    }
    try:
        # An array of objects would guess; numbers of NumPy are taken as the numbers they are.
        plain = [value.item() if isinstance(value, np.generic) else value for value in values]
        return pa.array(plain, types[next(iter(kinds))])
    except (OverflowError, ValueError) as error:
        raise GalleryError(f"{name}: a value cannot be stored ({error})") from error


def _kind(name: str, row: int, value: object) -> str:
    """Arrow's type of a value, if the column may hold it."""
    kind = _arrow_kind(value)
    if name == "time":
        if kind in ("int64", "double"):
            return "double"
        if kind is None or not kind.startswith("timestamp"):
            raise GalleryError(f"time: row {row} must be seconds, a datetime or None, not {value!r}")
    elif name in ATTRIBUTES and kind not in ("int64", "string"):
        raise GalleryError(f"{name}: row {row} must be a whole number, text or None, not {value!r}")
    elif kind is None:
        raise GalleryError(f"{name}: row {row} must be a number, text, yes or no, a datetime or None, not {value!r}")
    return kind


def _arrow_kind(value: object) -> str | None:
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (int, np.integer)):
        return "int64"
    if isinstance(value, (float, np.floating)):
        return "double" if isfinite(value) else None
    if isinstance(value, datetime):
        return "timestamp[us]" if value.tzinfo is None else "timestamp[us, tz=UTC]"
    return "string" if isinstance(value, str) else None


def person_columns(features: PartFeatures, paths: Sequence[str | Path], *, half: bool) -> dict[str, pa.Array]:
    """What everybody has: path, moment of being added, features (of unit length), and a yes or no for each part."""
    import pyarrow as pa

    values = features.features.to(torch.float16 if half else torch.float32)
    if not bool(values.isfinite().all()):
        raise GalleryError("features: a part that is not visible holds values beyond float16; set it to zero")
    count, parts, dimensions = values.shape
    names = next((names for names in LAYOUTS if len(names) == parts), ())
    shown = zip(names, features.visibility.numpy().T, strict=bool(names))
    try:
        where = pa.array([str(path) for path in paths], pa.string())
    except UnicodeEncodeError as error:
        raise GalleryError(f"paths: {error.object!r} is not valid text; rename the file") from error
    flat = pa.array(values.contiguous().numpy().reshape(-1))
    return {
        "path": where,
        "added": pa.array([datetime.now(UTC)] * count, pa.timestamp("us", "UTC")),
        "features": pa.FixedSizeListArray.from_arrays(flat, parts * dimensions),
        **{name: pa.array(column) for name, column in shown},
    }


def sql_moment(moment: datetime) -> str:
    """A moment as SQL writes it."""
    return f"timestamp '{moment.isoformat(timespec='microseconds')}'"


def among(ids: Iterable[int]) -> str:
    """The condition of being one of these ids."""
    listed = ",".join(str(number) for number in sorted(ids))
    return f"_rowid IN ({listed})" if listed else "false"
