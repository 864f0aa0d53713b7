"""A corpus of passages: ids to passages, in the order of its files.

Files are JSON lines, CSV or TSV (by suffix). The columns' names of the published corpora are known:

    passage_id | id | _id | kid                      unique
    text | passage_content | content | contents      not blank
    title, entity, url                               optional; other columns go to `extra`
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ravqa.errors import DataError
from ravqa.records import Passage

ID_COLUMNS = ("passage_id", "id", "_id", "kid")
TEXT_COLUMNS = ("text", "passage_content", "content", "contents")


class Corpus(Mapping[str, Passage]):
    """Passages by id, in order."""

    def __init__(self, passages: Sequence[Passage], *, source: str = "memory"):
        """Keep `passages`.

        Raises:
            DataError: an id occurs twice, or there are no passages.
        """
        self.source = source
        self._by_id: dict[str, Passage] = {}
        digest = hashlib.sha256()
        for passage in passages:
            if passage.passage_id in self._by_id:
                raise DataError(f"{source}: passage id {passage.passage_id!r} occurs twice")
            self._by_id[passage.passage_id] = passage
            digest.update(f"{passage.passage_id}\0{passage.content}\0".encode())
        if not self._by_id:
            raise DataError(f"{source}: the corpus is empty")
        self.fingerprint = digest.hexdigest()[:32]

    def __getitem__(self, passage_id: str) -> Passage:
        return self._by_id[passage_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    @classmethod
    def read(cls, *paths: Path) -> Corpus:
        """Read one corpus from one or more files.

        Raises:
            DataError: a missing file, an unknown suffix, a bad line (file and line are named).
        """
        passages = [passage for path in paths for passage in _read(path)]
        return cls(passages, source=", ".join(str(p) for p in paths))


def _read(path: Path) -> Iterator[Passage]:
    suffix = path.suffix.lower()
    if suffix in {".jsonl", ".ndjson"}:
        from ravqa.datasets.base import read_jsonl

        rows: Iterator[tuple[int, dict[str, Any]]] = read_jsonl(path)
    elif suffix in {".csv", ".tsv"}:
        rows = _read_table(path, "\t" if suffix == ".tsv" else ",")
    else:
        raise DataError(f"{path}: a corpus is a .jsonl, .csv or .tsv file")
    for number, row in rows:
        yield _passage(row, f"{path}, line {number}")


def _read_table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # passages can be longer than csv's 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(reader.fieldnames or ())} fields "
                        "are expected as in the header"
                    )
                yield reader.line_num, row
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except csv.Error as e:
        # line_num is where the last whole row ended.
        raise DataError(f"{path}, line {reader.line_num + 1}: {e}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None


def _passage(row: dict[str, Any], where: str) -> Passage:
    row = dict(row)

    def take(*columns: str) -> str | None:
        for column in columns:
            value = row.pop(column, None)
            if value is not None and str(value).strip():
                return str(value)
        return None

    def needed(what: str, columns: Sequence[str]) -> str:
        value = take(*columns)
        if value is None:
            raise DataError(f"{where}: no {what} (column {' or '.join(columns)})")
        return value

    return Passage(
        passage_id=needed("passage id", ID_COLUMNS),
        text=needed("text", TEXT_COLUMNS),
        title=take("title"),
        entity=take("entity"),
        url=take("url"),
        extra=row,
    )
