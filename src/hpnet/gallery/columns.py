"""How people lie on disk: the columns of a gallery, their types, and conditions on them.

In: values as users give them. Out: Arrow columns, or one clear line that names the row which does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from hpnet.parts import PARTS

if TYPE_CHECKING:
    import pyarrow as pa

Value = int | str
Moment = float | int | datetime
# What a photo shows stands in one yes/no column per part, so that filters can ask for it: "head AND camera = 2".
# A global baseline's gallery has one feature for the whole person instead.
LAYOUTS: Final = (tuple(part.name.lower() for part in PARTS), ("whole",))
ATTRIBUTES: Final = ("identity", "camera", "time")
# Arrow's types of the attributes, in words.
KINDS: Final = {
    "int64": "whole numbers",
    "string": "text",
    "double": "seconds",
    "timestamp[us]": "datetimes without a zone",
    "timestamp[us, tz=UTC]": "datetimes with a zone",
}


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


def new_fields(path: Path, kept: pa.Schema, given: pa.Schema) -> list[pa.Field]:
    """The columns to make; a column that is there must have the type of what is given."""
    for field in given:
        if field.name in kept.names and kept.field(field.name).type != field.type:
            has, comes = (KINDS.get(str(kind), str(kind)) for kind in (kept.field(field.name).type, field.type))
            raise GalleryError(f"{path}: {field.name} holds {has} here, not {comes}")
    return [field for field in given if field.name not in kept.names]


def typed_column(name: str, values: Sequence[object]) -> pa.Array | None:
    """The values as a column of the one type they have; None if there are none."""
    import pyarrow as pa

    kinds: dict[str, int] = {}
    for row, value in enumerate(values):
        if value is not None:
            kinds.setdefault(_kind(name, row, value), row)
    if len(kinds) > 1:
        words = " and ".join(f"{KINDS[kind]} (row {row})" for kind, row in kinds.items())
        raise GalleryError(f"{name}: mixes {words}")
    if not kinds:
        return None
    kind = next(iter(kinds))
    types = {"int64": pa.int64(), "string": pa.string(), "double": pa.float64(), "timestamp[us]": pa.timestamp("us")}
    try:
        # An array of objects would guess; numbers of NumPy are taken as the numbers they are.
        plain = [value.item() if isinstance(value, np.generic) else value for value in values]
        return pa.array(plain, types.get(kind, pa.timestamp("us", "UTC")))
    except (OverflowError, ValueError) as error:
        raise GalleryError(f"{name}: a value cannot be stored ({error})") from error


def _kind(name: str, row: int, value: object) -> str:
    if name == "time":
        if isinstance(value, datetime):
            return "timestamp[us]" if value.tzinfo is None else "timestamp[us, tz=UTC]"
        if isinstance(value, (float, int, np.floating, np.integer)) and type(value) is not bool and isfinite(value):
            return "double"
        raise GalleryError(f"time: row {row} must be seconds, a datetime or None, not {value!r}")
    if isinstance(value, (int, np.integer)) and type(value) is not bool:
        return "int64"
    if isinstance(value, str):
        return "string"
    raise GalleryError(f"{name}: row {row} must be a whole number, text or None, not {value!r}")


def sql_moment(moment: datetime) -> str:
    """A moment as SQL writes it."""
    return f"timestamp '{moment.isoformat(timespec='microseconds')}'"


def among(ids: Iterable[int]) -> str:
    """The condition of being one of these ids."""
    listed = ",".join(str(number) for number in sorted(ids))
    return f"_rowid IN ({listed})" if listed else "false"
