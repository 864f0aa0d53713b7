"""A run's prompts, each once, in `prompts.jsonl`: what the reader was really asked.

Prompts repeat each other: the same examples, the same passages. So each line of text is written
once: a record's `lines` holds new lines as strings, and earlier ones as their numbers, counted from
0 in the order in which they stand in the file.

    {"prompt_hash": "34d7...", "lines": ["Passage: The koala ...", "Question: What ...", "Answer:"]}
    {"prompt_hash": "09ab...", "lines": [0, "Question: Where ...", 2]}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ravqa.core.errors import DataError


class PromptLog:
    """Appends prompts to a file that may hold some already."""

    def __init__(self, path: Path):
        """Take up what the file holds; a last line that was torn by a kill is cut off.

        Raises:
            DataError: another line is broken (file and line are named).
        """
        self.path = path
        self._numbers: dict[str, int] = {}
        self._known: set[str] = set()
        if path.is_file():
            for name, lines in _records(path, whole_lines(path, cut=True)):
                self._known.add(name)
                for line in lines:
                    self._numbers.setdefault(line, len(self._numbers))

    def add(self, prompts: Mapping[str, str]) -> None:
        """Append the prompts, by hash, that are not there yet, and see them to the disk."""
        new = {name: text for name, text in prompts.items() if name not in self._known}
        if not new:
            return
        records = "".join(self._record(name, text) for name, text in new.items())
        with self.path.open("a", encoding="utf-8") as out:
            out.write(records)
            out.flush()
            os.fsync(out.fileno())
        self._known.update(new)

    def _record(self, name: str, text: str) -> str:
        lines: list[str | int] = []
        for line in text.split("\n"):
            number = self._numbers.get(line)
            lines.append(line if number is None else number)
            if number is None:
                self._numbers[line] = len(self._numbers)
        record = {"prompt_hash": name, "lines": lines}
        written = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        try:
            written.encode()
        except UnicodeEncodeError:  # half characters of broken data have a place as escapes only
            written = json.dumps(record, separators=(",", ":"))
        return written + "\n"


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Each prompt's lines, by its hash; equal lines are one object. Empty if there is no file.

    Raises:
        DataError: the file cannot be read, or a line but the last is broken.
    """
    return dict(_records(path, whole_lines(path))) if path.is_file() else {}


def whole_lines(path: Path, *, cut: bool = False) -> bytes:
    """Return a file's lines but for a last one without its end, which a kill tore off.

    Args:
        cut: cut such a line off the file too.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
        length = data.rfind(b"\n") + 1
        if cut and length < len(data):
            os.truncate(path, length)
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror or e}") from None
    return data[:length]


def _records(path: Path, data: bytes) -> Iterator[tuple[str, list[str]]]:
    known: list[str] = []
    for number, text in enumerate(data.splitlines(), 1):
        try:
            record = json.loads(text)
            lines = []
            for line in record["lines"]:
                if isinstance(line, str):
                    known.append(line)
                lines.append(line if isinstance(line, str) else known[line])
            yield str(record["prompt_hash"]), lines
        except (ValueError, TypeError, LookupError, RecursionError):
            raise DataError(f"{path}, line {number}: not a prompt") from None
