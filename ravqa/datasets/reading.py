"""Files into plain records, one at a time: JSON, JSON lines, CSV, TSV, Parquet; gzip as well."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ravqa.errors import DataError, import_extra
from ravqa.models import first_line

Row = dict[str, Any]

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
PARQUET = ".parquet"
_LINE_END = re.compile(r"\r\n|\r|\n")


def suffix_of(path: Path) -> str:
    """Lower-case suffix of a file, that before .gz if it is compressed."""
    name = path.name.lower().removesuffix(".gz")
    dot = name.rfind(".")
    return name[dot:] if dot >= 0 else ""


def lines_of(text: str) -> list[str]:
    r"""A text's lines, which end with \n, \r\n or \r alone.

    `str.splitlines` ends them at seven other characters too (U+2028, form feed, ...), as neither
    files nor Markdown do.
    """
    return _LINE_END.split(text)


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Row]]:
    """Places ("FILE, line 3") and records of a file, by its suffix.

    Args:
        columns: only these, where the form allows to leave the others unread (Parquet).

    Raises:
        DataError: an unknown suffix, a missing file, a broken line (file and line are named).
        MissingExtraError: Parquet without its package.
    """
    suffix = suffix_of(path)
    if suffix in JSON_LINES:
        for number, row in read_jsonl(path):
            yield f"{path}, line {number}", row
    elif suffix in TABLES:
        for number, row in read_table(path):
            yield f"{path}, line {number}", row
    elif suffix == PARQUET:
        for number, row in read_parquet(path, columns):
            yield f"{path}, row {number}", row
    else:
        raise DataError(f"{path}: a .jsonl, .csv, .tsv or .parquet file is expected")


def read_json(path: Path) -> Any:
    """A whole JSON file.

    Raises:
        DataError: missing, unreadable, or not JSON (the line is named).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{path}, line {e.lineno}: not JSON ({e.msg}); is it cut off?") from None
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
    if _has_half_character(text, document):
        raise DataError(f"{path}: {_HALF}")
    return document


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A text file in UTF-8, with or without a byte order mark, unpacked if it ends in .gz.

    Raises:
        DataError: missing or unreadable, now or while it is read.
    """
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as lines:
                yield lines
        else:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                yield lines
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None


def read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """Line numbers and objects of a JSON-lines file; blank lines are passed over.

    Raises:
        DataError: missing, unreadable, or a line that is not a JSON object (the line is named).
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as e:
                raise DataError(f"{path}, line {number}: not JSON ({e.msg})") from None
            except (ValueError, RecursionError) as e:
                raise DataError(f"{path}, line {number} cannot be read: {e}") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: an object is expected")
            if _has_half_character(line, record):
                raise DataError(f"{path}, line {number}: {_HALF}")
            yield number, record


def read_table(path: Path) -> Iterator[tuple[int, Row]]:
    """Line numbers and rows of a CSV file with a header (of a TSV file, by its suffix).

    Raises:
        DataError: missing, unreadable, or a row with another number of fields than the header.
    """
    csv.field_size_limit(2**31 - 1)  # passages can be longer than csv's 128 KiB
    delimiter = "\t" if suffix_of(path) == ".tsv" else ","
    with open_text(path) as lines:
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(reader.fieldnames or ())} fields "
                        "are expected as in the header"
                    )
                yield reader.line_num, row
        except csv.Error as e:
            # line_num is where the last whole row ended.
            raise DataError(f"{path}, line {reader.line_num + 1}: {e}") from None


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Numbers (from 1) and rows of a Parquet file, a few in memory at a time.

    Args:
        columns: only those of these that the file has.

    Raises:
        DataError: missing, or no Parquet file.
        MissingExtraError: pyarrow is not installed.
    """
    number = 0
    with _parquet(path) as file:
        there = file.schema_arrow.names
        wanted = None if columns is None else [name for name in columns if name in there]
        for batch in file.iter_batches(batch_size=256, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def parquet_rows(path: Path) -> int:
    """How many rows a Parquet file has.

    Raises:
        DataError: as `read_parquet`.
    """
    with _parquet(path) as file:
        return int(file.metadata.num_rows)


def parquet_columns(path: Path) -> list[str]:
    """Names of a Parquet file's columns.

    Raises:
        DataError: as `read_parquet`.
    """
    with _parquet(path) as file:
        return list(file.schema_arrow.names)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    parquet: Any = import_extra("pyarrow.parquet", "datasets", why=f"reading {path.name}")
    arrow: Any = import_extra("pyarrow", "datasets", why=f"reading {path.name}")
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, arrow.ArrowException) as e:
        raise DataError(f"{path} cannot be read: {first_line(e)}") from None


_HALF = 'text that is cut inside a character (a lone "\\ud83d" or the like)'


def _has_half_character(text: str, value: Any) -> bool:
    # JSON can hold one half of a surrogate pair; such a string can be neither hashed nor written.
    if "\\ud" not in text and "\\uD" not in text:
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
