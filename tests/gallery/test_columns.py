"""The columns of a gallery: types, names, and what does not fit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpnet.gallery import GalleryError, columns
from hpnet.parts import PARTS, Part

KINDS: dict[str, st.SearchStrategy[Any]] = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "string": st.text(st.characters(exclude_categories=["Cs"])),
    "bool": st.booleans(),
    "timestamp[us]": st.datetimes(),
    "timestamp[us, tz=UTC]": st.datetimes(
        datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(timezone(timedelta(hours=5, minutes=30)))
    ),
}


@settings(deadline=None)  # the first one imports pyarrow
@given(kind=st.sampled_from(sorted(KINDS)), data=st.data())
def test_values_of_one_type_come_back_as_given(kind: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(KINDS[kind] | st.none(), max_size=8))
    column = columns.typed_column("weather", values)
    if all(value is None for value in values):
        assert column is None
        return
    assert column is not None
    assert str(column.type) == kind
    assert column.to_pylist() == values


def test_whole_numbers_among_real_ones_are_real() -> None:
    column = columns.typed_column("speed", [1, 2.5, None, np.float32(0.5), np.int8(3)])
    assert column is not None
    assert column.to_pylist() == [1.0, 2.5, None, 0.5, 3.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, "a", 1], r"shop: mixes text \(row 1\) and whole numbers \(row 2\)"),
        ([True, 1], r"shop: mixes yes and no \(row 0\) and whole numbers \(row 1\)"),
        ([0.5, datetime(2024, 1, 1)], r"shop: mixes real numbers \(row 0\) and datetimes without a zone \(row 1\)"),
        ([datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC)], "mixes datetimes without a zone"),
        ([1, float("nan")], "shop: row 1 must be a number, text, yes or no, a datetime or None, not nan"),
        ([float("inf")], "shop: row 0 must be"),
        ([b"bytes"], "shop: row 0 must be"),
        ([[1]], "shop: row 0 must be"),
        ([1 << 70], "shop: a value cannot be stored"),
        (["\udcff"], "shop: a value cannot be stored"),
    ],
)
def test_values_that_do_not_go_together_name_the_rows(values: list[object], message: str) -> None:
    with pytest.raises(GalleryError, match=message):
        columns.typed_column("shop", values)


@pytest.mark.parametrize(
    ("name", "value"), [("camera", 1.0), ("identity", b"x"), ("time", "noon"), ("time", True), ("camera", np.bool_(1))]
)
def test_a_value_of_no_known_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(GalleryError, match=f"^{name}: row 1 must be "):
        columns.typed_column(name, [None, value])


def test_numbers_of_numpy_are_numbers() -> None:
    for name, value in (("camera", np.int64(3)), ("time", np.float32(1.5)), ("time", np.int16(7)), ("a", np.bool_(1))):
        column = columns.typed_column(name, [value, None])
        assert column is not None
        assert column.to_pylist() == [value, None]


@pytest.mark.parametrize(
    "name", ["", "Age", "2nd", "_rowid", "a b", "a-b", "a;b", "größe", "a" * 64, 'a"', "features", "camera", "head"]
)
def test_names_that_filters_could_not_ask_for_are_refused(name: str) -> None:
    with pytest.raises(GalleryError, match=r"^attributes: "):
        columns.attribute_columns({name: [1]})


# Words of SQL that are good names for attributes all the same.
SQL_WORDS = """
alter as asc begin bigint binary both by char check column count create cross cube current_user
date day default delete desc describe distinct double drop else end escape except exec extract
fetch filter first float for full group having hour if ilike index inner insert int intersect
into join key last lateral left level limit map match max merge min minute month natural new no
number object offset old on only order outer over overlaps owner partition position primary rank
real replace returning right rows schema second set show similar start string table text then
time timestamp to top union unique unnest update upper user using value values view when window
year zone
"""


def test_every_accepted_word_of_sql_can_be_asked_for() -> None:
    import lance
    import pyarrow as pa

    words = SQL_WORDS.split()
    table = pa.table({word: pa.array([1, 2, None]) for word in words if word not in columns.RESERVED})
    kept = lance.write_dataset(table, "memory://words")
    assert columns.attribute_columns({name: [1] for name in table.column_names})
    for name in table.column_names:
        asked = f"{name} = 1 AND {name} IS NOT NULL AND NOT {name} = 2 AND {name}<2 AND 0 < {name}"
        assert kept.count_rows(asked) == 1, name
        assert kept.count_rows(f"{name} IS NULL") == 1, name
        assert kept.count_rows(f"{name} IN (1, 2)") == 2, name


def test_whole_numbers_fit_a_column_of_real_ones_and_nothing_else_changes() -> None:
    import pyarrow as pa

    kept = pa.schema({"speed": pa.float64(), "shop": pa.string()})
    given_now = pa.table({"speed": [1, None], "shop": ["a", None]}, schema=pa.schema({"speed": "int64", "shop": "str"}))
    fitted = columns.fitted_to(Path("g"), kept, given_now)
    assert fitted.schema == kept
    assert fitted.to_pylist() == [{"speed": 1.0, "shop": "a"}, {"speed": None, "shop": None}]
    for name, value, words in (("speed", "fast", "real numbers here, not text"), ("shop", 3, "text here, not whole")):
        with pytest.raises(GalleryError, match=f"^g: {name} holds {words}"):
            columns.fitted_to(Path("g"), kept, pa.table({name: [value]}))


def test_thumbnails_are_jpeg_files() -> None:
    picture = b"\xff\xd8\xff\xe0rest"
    column = columns.thumbnail_column([None, picture])
    assert column is not None
    assert column.to_pylist() == [None, picture]
    assert columns.thumbnail_column([None]) is None
    for wrong in (b"\x89PNG", b"\xff\xd8", b""):
        with pytest.raises(GalleryError, match="thumbnails: row 1 must be the bytes of a JPEG file or None"):
            columns.thumbnail_column([None, wrong])


def test_what_a_row_shows() -> None:
    assert columns.parts_shown({"head": True, "torso": False, "upper_legs": None, "lower_legs": True}) == (
        Part.HEAD,
        Part.LOWER_LEGS,
    )
    assert columns.parts_shown({"whole": True}) == PARTS
    assert columns.parts_shown({"whole": False}) == columns.parts_shown({}) == ()
