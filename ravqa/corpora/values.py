"""Conversion of a record's values to texts and ids, by the same rules for every file format.

    null, NaN, NaT, NA, blank text    blank: no value
    text                              unchanged
    whole number                      its digits: 1998 is "1998"
    number with a fraction            as Python writes it: 3.5 is "3.5"
    anything else                     rejected: it is never turned into text

Printed bytes ("b'...'") and Python objects ("tensor(5)", "<NA>") are rejected as these are. A cell
of a table has no type: one that looks like a number with .0, or like a printed list or object, is
rejected too.

A number such as 1998.0 is rejected too. pandas writes whole numbers this way if a column has gaps,
and then "1998" is meant; in a column of measurements "1998.0" is. Nothing in the file tells which.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ravqa.core.errors import DataError

_HINT = (
    "write it as text or as a whole number (pandas turns whole numbers in a column with gaps "
    'into floats: astype("Int64") before writing prevents this)'
)
# The text of a list or object, as Python, JSON and NumPy print it: a whole value in brackets, or,
# among other texts, brackets that contain a quoted text or further brackets.
_BRACKETS = re.compile(r"\s*(?:\[.*\]|\{.*\})\s*", re.DOTALL)
_PRINTED = re.compile(
    r"""\s*(?:array\(.*\)|[\[{]\s*['"\[{].*[\]}]|\(\s*['"].*['"]\s*(?:,\s*)?\))\s*""", re.DOTALL
)
# How a list or object begins that is a whole cell: [[Koala]] and ["Koala" is ...] are wiki markup
# and a quotation, so that a quoted text must end where the next item may begin.
_PRINTED_CELL = re.compile(
    r"""\s*(?:array\(|[\[{]+\s*(?:b?(['"]).*?\1\s*[]},:'"]|(?:None|nan)\s*[]},]|np\.\w+\()
    |\(\s*(?:'[^']*'|"[^"]*")(?:\s*,\s*(?:'[^']*'|"[^"]*"))*\s*(?:,\s*)?\)\s*\Z)""",
    re.DOTALL | re.VERBOSE,
)
_PRINTED_BYTES = re.compile(r"""b'(?:[^'\\]|\\.)*'|b"(?:[^"\\]|\\.)*\"""", re.DOTALL)
# Objects of Python and its libraries, as `str` writes them into tables, or json with default=str;
# and what pandas prints for a missing value.
_PRINTED_OBJECT = re.compile(
    r"""\s*(?:<[A-Za-z_][^<>]{0,200}\ at\ 0x[0-9A-Fa-f]{4,16}>|<class\ '[\w.]+'>|<NA>|NaT
    |(?:tensor|(?:np|numpy|datetime)\.\w+|Timestamp|Decimal|OrderedDict|defaultdict|frozenset
    |dict_(?:keys|values|items)|bytearray)\(.*\))\s*""",
    re.DOTALL | re.VERBOSE,
)
_WHOLE_FLOAT = re.compile(r"\s*-?\d+\.0+\s*")


class Cell(str):
    """A table's cell whose text may be the printed form of something else."""

    __slots__ = ()


def cell(value: str) -> str:
    """Return a table's cell, as a `Cell` if it may be a printed number, list or object."""
    printed = value.rstrip().endswith(("]", "}", ")")) and _PRINTED_CELL.match(value)
    return Cell(value) if printed or _WHOLE_FLOAT.fullmatch(value) else value


def is_blank(value: Any) -> bool:
    """Return whether a value is missing: None, NaN, NaT, NA, or only whitespace."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list | tuple | dict | bytes) or hasattr(value, "tolist"):
        value = _plain(value)
        return value is None or (isinstance(value, float) and math.isnan(value))
    try:
        return bool(value != value)  # noqa: PLR0124  # NaN of every kind, and pandas's NaT
    except TypeError:  # pandas's NA is neither true nor false
        return True


def text_of(value: Any, column: str) -> str | None:
    """Return a value as text; None if it is blank.

    Args:
        column: the value's column, for the message.

    Raises:
        DataError: it is neither text nor a number with only one way to write it.
    """
    value = _plain(value)
    if is_blank(value):
        return None
    if isinstance(value, str):
        if _PRINTED_BYTES.fullmatch(value):
            raise DataError(f"{column!r}: text is expected, not printed bytes: {_short(value)}")
        if _PRINTED_OBJECT.fullmatch(value):
            raise DataError(f"{column!r}: text is expected, not a printed object: {_short(value)}")
        if isinstance(value, Cell):
            _check_cell(value, column)
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal):
        return _number(value, column)
    raise DataError(f"{column!r}: text is expected, not {kind_of(value)}")


def id_of(value: Any, column: str) -> int | str | None:
    """Return a value as an id, whole numbers unchanged; None if it is blank.

    Raises:
        DataError: it is neither text nor a whole number.
    """
    value = _plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float | Decimal) and not is_blank(value):
        raise DataError(f"{column!r} is the number {value}, but ids are whole: {_HINT}")
    return text_of(value, column)


def list_of(value: Any, column: str) -> list[Any] | dict[Any, Any]:
    """Return a value as a list or object; the text of a JSON list or object is parsed.

    Raises:
        DataError: it is the text of a list, but not JSON.
    """
    value = _plain(value)
    if isinstance(value, str) and _BRACKETS.fullmatch(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _written(value, column) from None
    return value if isinstance(value, list | dict) else [value]


def cell_items(value: Any) -> Any:
    """Split a table's `one|two` into a list; return other values and JSON lists unchanged."""
    bars = isinstance(value, str) and "|" in value and not value.lstrip().startswith(("[", "{"))
    return value.split("|") if bars else value


def texts_of(value: Any, column: str, field: str | None = None) -> tuple[str, ...]:
    """Return a value as a list of texts, without blank ones.

    A single text becomes a list of one, and the text of a JSON list is parsed.

    Args:
        field: the field to take from objects, such as "answer" from {"answer", "answer_id"}; None
            to reject objects. An object of lists, as `datasets` stores a list of objects, also
            works.

    Raises:
        DataError: something in it is not text (see `text_of`), or is an object without `field`; a
            text is a list or object as Python or NumPy prints it.
    """
    value = list_of(value, column)
    if isinstance(value, dict):
        held = _field(value, column, field)
        value = held if isinstance(held, list) else [held]
    found = []
    for item in map(_plain, value):
        if isinstance(item, list | dict) and (field is None or isinstance(item, list)):
            raise DataError(f"{column!r}: a list of strings is expected, not of {kind_of(item)}")
        text = text_of(_field(item, column, field) if isinstance(item, dict) else item, column)
        if text is None:
            continue
        if _PRINTED.fullmatch(text):
            raise _written(text, column)
        found.append(text)
    return tuple(found)


def text(row: Mapping[str, Any], *columns: str) -> str | None:
    """Return the first of these columns that is not blank, as text.

    Raises:
        DataError: as `text_of`.
    """
    return next((t for c in columns if (t := text_of(row.get(c), c)) is not None), None)


def identity(row: Mapping[str, Any], *columns: str) -> int | str | None:
    """Return the first of these columns that is not blank, as an id.

    Raises:
        DataError: as `id_of`.
    """
    return next((i for c in columns if (i := id_of(row.get(c), c)) is not None), None)


def texts(row: Mapping[str, Any], column: str, field: str | None = None) -> tuple[str, ...]:
    """Return a column as a list of texts, without blank ones.

    Raises:
        DataError: as `texts_of`.
    """
    return texts_of(row.get(column), column, field)


def kind_of(value: Any) -> str:
    """Describe a value's type in words, for messages."""
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, dict):
        return f"an object ({', '.join(map(str, list(value)[:8])) or 'empty'})"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes"
    if isinstance(value, int | float | Decimal):
        return f"the number {value}"
    return f"a value of type {type(value).__name__}"


def _plain(value: Any) -> Any:
    """Convert NumPy scalars and arrays, and tuples, to plain Python values."""
    if not isinstance(value, str) and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Decimal) and value.as_tuple().exponent == 0:
        return int(value)  # databases write whole numbers like this
    return list(value) if isinstance(value, tuple) else value


def _number(value: float | Decimal, column: str) -> str:
    written = str(value)
    if not math.isfinite(value):
        raise DataError(f"{column!r}: text is expected, not the number {written}")
    if value == int(value) or "e" in written.lower():
        raise DataError(f"{column!r} is the number {written}, which may not be as written: {_HINT}")
    if isinstance(value, float) and len(written) > 10:
        # 3.4 in single precision is 3.4000000953674316 in double precision.
        try:
            single = struct.unpack("f", struct.pack("f", value))[0] == value
        except OverflowError:
            single = False
        if single:
            raise DataError(
                f"{column!r} is the number {written}, in single precision: write it as text"
            )
    return written


def _field(record: dict[Any, Any], column: str, field: str | None) -> Any:
    if field is None:
        raise DataError(f"{column!r}: a list of strings is expected, not {kind_of(record)}")
    if field not in record:
        raise DataError(f"{column!r}: objects with {field!r} are expected, not {kind_of(record)}")
    return record[field]


def _check_cell(value: Cell, column: str) -> None:
    if _WHOLE_FLOAT.fullmatch(value):
        raise DataError(
            f"{column!r} is the number {value.strip()}, which may not be as written: write a whole "
            'number (pandas: astype("Int64") before writing), or keep it as text in a .jsonl file'
        )
    raise _written(value, column)


def _short(value: str) -> str:
    return repr(value if len(value) <= 40 else f"{value[:40]}...")


def _written(value: str, column: str) -> DataError:
    return DataError(
        f"{column!r}: {_short(value)} is the text of a list or object: write a list (in tables "
        'one|two, or a JSON list such as ["one", "two"])'
    )
