"""Readers of plain records from files: JSON, JSON lines, CSV, TSV, Parquet, also gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TextIO, cast

from ravqa.core.errors import DataError, UserError, first_line, import_extra
from ravqa.core.files import LONGEST_LINE, check_file
from ravqa.corpora.encodings import HINT, checked_encoding, encoding_of
from ravqa.corpora.values import cell

Row = dict[str, Any]

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
PARQUET = ".parquet"
TABULAR = (*JSON_LINES, *TABLES, PARQUET)
DELIMITERS = (",", ";", "\t", "|")
"""What may separate the fields of a CSV file; the header shows which it is."""

_UTF8 = "utf-8-sig"
_QUOTE = re.compile(r'(?:^|\t)"')
_DOUBLED = re.compile(r'(?:^|\t)"(?:[^"\t]|"")*[^"\t](?:"")+(?:[^"\t]|"")*"(?=[\t\r\n]|$)')
_KEY = re.compile(r'"\s*:')  # the end of a key, or a part of a text that looks like one
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class TableForm:
    """How CSV and TSV files are written, where their content does not say so.

    Attributes:
        quotes: whether quotes around a field of a TSV file are syntax, as pandas writes them, or
            part of the text, as in ColBERT's and MS MARCO's files; None for the only way in which
            the file can be read. In CSV files they are always syntax.
        encoding: any name that Python knows; None to recognize it (`ravqa.corpora.encodings`).
        delimiter: the character between the fields of a CSV file, or "tab"; None to recognize it.

    Raises:
        UserError: there is no such encoding, or the delimiter is not one character.
    """

    quotes: bool | None = None
    encoding: str | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.encoding is not None:
            checked_encoding(self.encoding)
        if self.delimiter is not None and (len(self.separator) != 1 or self.separator in '"\r\n'):
            raise UserError(f"delimiter {self.delimiter!r}: one character is expected, or tab")

    @property
    def separator(self) -> str:
        """The delimiter as it stands in the file; blank if it is to be recognized."""
        return "\t" if self.delimiter == "tab" else self.delimiter or ""


def suffix_of(path: Path) -> str:
    """Return the lower-case suffix of a file, for a compressed file the one before .gz."""
    name = path.name.lower().removesuffix(".gz")
    dot = name.rfind(".")
    return name[dot:] if dot >= 0 else ""


def lines_of(text: str) -> list[str]:
    r"""Return a text's lines, which end only at \n, \r\n or \r.

    `str.splitlines` also splits at seven other characters (U+2028, form feed, ...), unlike files
    and Markdown.
    """
    return _LINE_END.split(text)


def read_rows(
    path: Path, columns: Sequence[str] | None = None, form: TableForm | None = None
) -> Iterator[tuple[str, Row]]:
    """Yield locations ("FILE, line 3") and records of a file, read according to its suffix.

    Args:
        columns: read only these, if the format allows it (Parquet).
        form: how a CSV or TSV file is written.

    Raises:
        DataError: an unknown suffix, a missing file, a broken line (file and line are named).
        MissingExtraError: the package for Parquet is not installed.
    """
    suffix = suffix_of(path)
    if suffix in JSON_LINES:
        for number, row in read_jsonl(path):
            yield f"{path}, line {number}", row
    elif suffix in TABLES:
        for number, row in read_table(path, form):
            yield f"{path}, line {number}", {name: cell(value) for name, value in row.items()}
    elif suffix == PARQUET:
        for number, row in read_parquet(path, columns):
            yield f"{path}, row {number}", row
    else:
        raise DataError(f"{path}: a .jsonl, .csv, .tsv or .parquet file is expected")


def read_json(path: Path) -> Any:
    """Read a whole JSON file.

    Raises:
        DataError: missing, unreadable, or not JSON (the line is named).
    """
    check_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = json.loads(text, object_pairs_hook=_unique)
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
def open_text(path: Path, encoding: str = _UTF8) -> Iterator[Iterator[str]]:
    """Open a text file for its lines, in UTF-8 with or without a byte order mark; unpack a .gz.

    Raises:
        DataError: missing or unreadable, on opening or while reading; a line is longer than
            `LONGEST_LINE`.
    """
    with _open_bytes(path) as raw:
        try:
            with io.TextIOWrapper(raw, encoding=encoding, newline="") as file:
                yield _lines(file, path)
        except UnicodeError as e:
            if encoding == _UTF8:
                raise
            raise DataError(f"{path} is not in {encoding} ({e}): {HINT}") from None


@contextmanager
def _open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, which is unpacked if it is a .gz; also report errors of the block within."""
    check_file(path)
    try:
        packed = path.name.lower().endswith(".gz")
        with gzip.open(path) if packed else path.open("rb") as file:
            yield cast(IO[bytes], file)
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), ""), 1):
        if len(line) > LONGEST_LINE:
            raise DataError(f"{path}, line {number}: longer than {LONGEST_LINE:,} characters")
        yield line


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's content; json alone would take the last of two values.

    Raises:
        ValueError: a key occurs twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {times.most_common(1)[0][0]!r} occurs twice")
    return found


def read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield line numbers and objects of a JSON-lines file; blank lines are skipped.

    Raises:
        DataError: missing, unreadable, or a line that is not a JSON object (the line is named).
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if len(_KEY.findall(line)) > len(record):  # a nested or a duplicate key, perhaps
                    json.loads(line, object_pairs_hook=_unique)
            except json.JSONDecodeError as e:
                raise DataError(f"{path}, line {number}: not JSON ({e.msg})") from None
            except (ValueError, RecursionError) as e:
                raise DataError(f"{path}, line {number} cannot be read: {e}") from None
            except TypeError:  # a number or the like has no length
                record = None
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: an object is expected")
            if _has_half_character(line, record):
                raise DataError(f"{path}, line {number}: {_HALF}")
            yield number, record


def read_table(path: Path, form: TableForm | None = None) -> Iterator[tuple[int, Row]]:
    """Yield line numbers and rows of a CSV or TSV file (by suffix) with a header.

    Raises:
        DataError: missing or unreadable; a row whose number of fields differs from the header's; a
            duplicate column; a file that can be read in several ways, with different texts.
    """
    csv.field_size_limit(LONGEST_LINE)  # passages can be longer than csv's 128 KiB
    form = form or TableForm()
    if form.encoding is not None:
        encoding = checked_encoding(form.encoding)
    else:
        with _open_bytes(path) as file:
            encoding = encoding_of(file, str(path))
    opened = partial(open_text, path, encoding)
    if suffix_of(path) == ".tsv":
        quotes = _has_quotes(path, opened) if form.quotes is None else form.quotes
        dialect = partial(_QUOTED, delimiter="\t") if quotes else _UNQUOTED
    else:
        dialect = partial(_QUOTED, delimiter=form.separator or _delimiter(path, opened))
    with opened() as lines:
        start, first = next(((n, x) for n, x in enumerate(lines, 1) if x.strip()), (1, ""))
        reader = dialect(itertools.chain([first] if first else [], lines))
        line = start
        try:
            header: list[str] = next(reader, [])
            line = start - 1 + reader.line_num
            if any("\0" in name for name in header):
                raise DataError(f"{path}: the header has zero bytes, as in UTF-16: {HINT}")
            twice = [name for name, times in Counter(filter(None, header)).items() if times > 1]
            if twice:
                raise DataError(f"{path}, line {line}: the column {twice[0]!r} occurs twice")
            for fields in reader:
                line = start - 1 + reader.line_num
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise DataError(
                        f"{path}, line {line}: {len(header)} fields are expected as in the header, "
                        f"not {len(fields)}"
                    )
                yield line, dict(zip(header, fields, strict=True))
        except csv.Error as e:
            # line_num is where the last complete row ended.
            raise DataError(f"{path}, line {line + 1}: {e}") from None


_Opened = Callable[[], AbstractContextManager[Iterator[str]]]
_Dialect = Callable[[Iterable[str]], Any]

_QUOTED = partial(csv.reader, strict=True)
_UNQUOTED = partial(csv.reader, delimiter="\t", quoting=csv.QUOTE_NONE)


def _delimiter(path: Path, opened: _Opened) -> str:
    """Return what separates the fields of a CSV file.

    It is the one that the header has; of several, the one with which all rows are as long as the
    header.

    Raises:
        DataError: there are several of these.
    """
    found = [d for d in DELIMITERS if len(_header(opened, partial(_QUOTED, delimiter=d))) > 1]
    if len(found) > 1:
        found = [d for d in found if _is_regular(opened, partial(_QUOTED, delimiter=d))] or found[
            :1
        ]
    if len(found) > 1:
        raise DataError(
            f"{path}: the fields can be separated by {' or '.join(map(repr, found))}: --delimiter, "
            "or the option delimiter of --dataset csv, decides"
        )
    return found[0] if found else DELIMITERS[0]


def _header(opened: _Opened, dialect: _Dialect) -> list[str]:
    """Return the names of the columns; none if they have quotes or cannot be read."""
    with opened() as lines:
        try:
            names: list[str] = next(filter(None, dialect(lines)), [])
        except csv.Error:
            return []
    return [] if any('"' in name for name in names) else names


def _has_quotes(path: Path, opened: _Opened) -> bool:
    """Return whether quotes around fields are part of a TSV file's syntax.

    Raises:
        DataError: they could equally be part of the text.
    """
    with opened() as lines:
        first = next((n for n, line in enumerate(lines, 1) if _QUOTE.search(line)), None)
    if first is None:
        return False
    quoted = partial(_QUOTED, delimiter="\t")
    if not _is_regular(opened, quoted):
        return not _is_regular(opened, _UNQUOTED)  # if neither is, reading reports the line
    if not _is_regular(opened, _UNQUOTED) or _is_written_by_csv(opened):
        return True
    raise DataError(
        f"{path}, line {first}: a field begins with a quote, and the file can be read in two ways: "
        "with quotes around fields, as pandas writes them, or with quotes as part of the text, as "
        "in ColBERT's files. Choose with the option quotes=true or quotes=false of "
        "--dataset csv; for passages, with --quotes or --no-quotes of `ravqa passages`"
    )


def _is_regular(opened: _Opened, dialect: _Dialect) -> bool:
    """Return whether every row has as many fields as the header, and no column name has a quote."""
    with opened() as lines:
        reader = dialect(lines)
        try:
            header: list[str] = next(filter(None, reader), [])
            return not any('"' in name for name in header) and all(
                len(fields) == len(header) for fields in reader if fields
            )
        except csv.Error:
            return False


def _is_written_by_csv(opened: _Opened) -> bool:
    """Return whether a quoted field contains doubled quotes, as csv and pandas write them."""
    with opened() as lines:
        return any(_DOUBLED.search(line) for line in lines)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Yield numbers (from 1) and rows of a Parquet file, with few in memory at a time.

    Args:
        columns: read only these columns, as far as they exist.

    Raises:
        DataError: missing, or not a Parquet file.
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
    """Return the number of rows in a Parquet file.

    Raises:
        DataError: as `read_parquet`.
    """
    with _parquet(path) as file:
        return int(file.metadata.num_rows)


def parquet_columns(path: Path) -> list[str]:
    """Return the names of a Parquet file's columns.

    Raises:
        DataError: as `read_parquet`.
    """
    with _parquet(path) as file:
        return list(file.schema_arrow.names)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    parquet: Any = import_extra("pyarrow.parquet", "datasets", why=f"reading {path.name}")
    arrow: Any = import_extra("pyarrow", "datasets", why=f"reading {path.name}")
    check_file(path)
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, arrow.ArrowException) as e:
        raise DataError(f"{path} cannot be read: {first_line(e)}") from None


_HALF = 'text that was cut inside a character (a lone "\\ud83d" or the like)'


def _has_half_character(text: str, value: Any) -> bool:
    # JSON can hold a lone surrogate; such a string can be neither hashed nor written.
    if "\\ud" not in text and "\\uD" not in text:
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
