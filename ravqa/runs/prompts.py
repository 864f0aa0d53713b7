"""The prompts of a run in `prompts.jsonl.gz`, each once.

JSON lines in gzip, which `zcat` shows; every write appends a gzip member:

    {"prompt_hash": "34d7...", "prompt": "Passage: The koala ...\\nQuestion: What ...\\nAnswer:"}
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ravqa.core.errors import DataError, UserError

PROMPTS = "prompts.jsonl.gz"
OLD_PROMPTS = "prompts.jsonl"
"""The file in which earlier versions stored prompts, in their own compression."""

_BLOCK = 2**16


class PromptLog:
    """A file of prompts, to which more are appended."""

    def __init__(self, path: Path):
        """Read the file; remove a last write that a kill left incomplete.

        Raises:
            DataError: the file is damaged elsewhere (file and line are named).
            UserError: an earlier version of ravqa has written the run's prompts.
        """
        _refuse_old(path)
        self.path = path
        self._known: set[str] = set()
        if path.is_file():
            whole = 0
            for texts, end in _members(path):
                self._known.update(name for name, _ in texts)
                whole = end
            if whole < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(whole)

    def add(self, prompts: Mapping[str, str]) -> None:
        """Append new prompts, given by hash, and flush them to disk."""
        new = {name: text for name, text in prompts.items() if name not in self._known}
        if not new:
            return
        data = b"".join(_line(name, text) for name, text in new.items())
        with self.path.open("ab") as out:
            out.write(gzip.compress(data, mtime=0))
            out.flush()
            os.fsync(out.fileno())
        self._known.update(new)


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Return the lines of each prompt by its hash; equal lines share one string.

    Without a file, there are no prompts.

    Raises:
        DataError: the file cannot be read, or is damaged, a torn last write aside.
        UserError: an earlier version of ravqa has written the run's prompts.
    """
    _refuse_old(path)
    if not path.is_file():
        return {}
    lines: dict[str, str] = {}
    return {
        name: [lines.setdefault(line, line) for line in text.split("\n")]
        for texts, _ in _members(path)
        for name, text in texts
    }


def _refuse_old(path: Path) -> None:
    old = path.with_name(OLD_PROMPTS)
    if not path.exists() and old.exists():
        raise UserError(
            f"{old} was written by an earlier version, but this one keeps prompts in {PROMPTS}: "
            "run again, or delete the file to do without these prompts"
        )


def _line(name: str, text: str) -> bytes:
    record = {"prompt_hash": name, "prompt": text}
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # lone surrogates from broken data have no UTF-8 form
        return json.dumps(record).encode() + b"\n"


def _members(path: Path) -> Iterator[tuple[list[tuple[str, str]], int]]:
    """Yield the prompts of each complete gzip member by hash, and its end in the file."""
    number = 0
    for data, end in _decompressed(path):
        texts = []
        for line in data.splitlines():
            number += 1
            try:
                record = json.loads(line)
                name, text = record["prompt_hash"], record["prompt"]
            except (ValueError, TypeError, KeyError):
                raise DataError(f"{path}, line {number}: not a prompt") from None
            if not isinstance(name, str) or not isinstance(text, str):
                raise DataError(f"{path}, line {number}: not a prompt")
            texts.append((name, text))
        yield texts, end


def _decompressed(path: Path) -> Iterator[tuple[bytes, int]]:
    try:
        with path.open("rb") as file:
            member, parts, end = _inflater(), [], 0
            while block := file.read(_BLOCK):
                while block:
                    parts.append(member.decompress(block))
                    block = member.unused_data
                    if member.eof:
                        end = file.tell() - len(block)
                        yield b"".join(parts), end
                        member, parts = _inflater(), []
    except zlib.error as e:
        raise DataError(f"{path} is damaged after byte {end} ({e})") from None
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror or e}") from None


def _inflater() -> zlib._Decompress:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # gzip's header and checksum
