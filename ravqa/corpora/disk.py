"""Passages and questions stored on disk instead of in memory, with the same interfaces.

`PassageFolder` is a folder with passages, by id and in order:

    passages.jsonl   one passage per line
    offsets.npy      where each line begins (uint64), and the end of the last
    hashes.npy       64-bit hashes of the ids, sorted, and
    rows.npy         the line of each
    meta.json        written last

Collections consist of such folders, and may come from strangers: lines of JSON hold no program,
while a database file has views and triggers; and one changed byte damages one passage.

`DiskQuestions` is a sequence of questions in an unnamed temporary file of the cache.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, overload

from pydantic import TypeAdapter

from ravqa.core.arrays import load_array
from ravqa.core.errors import DataError
from ravqa.core.locations import cache_dir
from ravqa.core.records import Description, Passage, Question
from ravqa.images.decode import image_digest
from ravqa.images.folder import inside

Repeats = Literal["fail", "first"]

QUESTIONS_IN_MEMORY = 100_000
_MAPPED = 2**16  # larger tables (bytes) are memory-mapped
_BLOCK = 1024  # lines read at a time when reading all


class DamageError(DataError):
    """A file has changed since it was written; the message says how to fix that."""


class Digest:
    """An incremental fingerprint of passages."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, passage: Passage, image: str | None = None) -> None:
        """Add the next passage.

        Args:
            image: SHA-256 of its image's bytes, if already known.
        """
        self._sha.update(f"{passage.passage_id}\0{passage.content}\0".encode())
        if passage.image is not None:
            self._sha.update(f"{image or image_digest(passage.image)}\0".encode())

    @property
    def value(self) -> str:
        """The fingerprint: 128 bits, in hex."""
        return self._sha.hexdigest()[:32]


def twice(source: str, passage_id: str) -> DataError:
    """Return the error for an id that two passages share."""
    return DataError(f"{source}: passage id {passage_id!r} occurs twice")


class _Lines:
    """Lines of a file by number; threads and forked processes share no file position."""

    def __init__(
        self,
        file: IO[bytes],
        offsets: Sequence[int],
        damage: str = "a file in the cache folder was cut off: run again",
    ):
        """Take over an open file; `offsets` are the starts of the lines, and the end of the last.

        Args:
            damage: the message if lines are missing from the file.
        """
        self._damage = damage
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        return self._read(row, row + 1)

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self), _BLOCK):
            yield from self._read(start, min(start + _BLOCK, len(self))).splitlines()

    def _read(self, start: int, end: int) -> bytes:
        first, last = int(self._offsets[start]), int(self._offsets[end])
        parts = []
        while first < last:
            part = os.pread(self._descriptor, last - first, first)
            if not part:
                raise DamageError(self._damage)
            parts.append(part)
            first += len(part)
        return b"".join(parts)


def _write(out: IO[bytes], lines: Iterable[bytes]) -> array[int]:
    offsets = array("Q", [0])
    end = 0
    for line in lines:
        end += out.write(line + b"\n")
        offsets.append(end)
    out.flush()
    return offsets


_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
_decode = json.JSONDecoder().raw_decode


def _json(value: Any) -> bytes:
    # ASCII, so that no other character can count as a line break.
    return _encode(value).encode("ascii")


class PassageFolder:
    """Passages in a folder, with at most a few dozen bytes per passage in memory.

    Attributes:
        fingerprint: same as that of a `Corpus`.
        repeated: number of passages that were left out because their id had occurred before.
        broken: what was left out because it could not be used.
        counts: see `write`.
    """

    def __init__(self, folder: Path, *, images: Path | None = None, mend: str | None = None):
        """Open a folder that `write` has written.

        Args:
            images: the folder that image paths are relative to and must not leave; None to keep
                paths as written.
            mend: how to fix a damaged folder, for the message.
        """

        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.fingerprint: str = meta["fingerprint"]
        self.repeated: int = meta["repeated"]
        self.broken: list[str] = meta.get("broken", [])
        self.counts: list[int] = meta.get("counts", [])
        self._images = images
        self._file = folder / "passages.jsonl"
        self._damage = f"{self._file} is damaged: {mend or f'delete {folder} and run again'}"
        # A mapped file stays open, so small files are not mapped.
        mode: Any = "r" if (folder / "hashes.npy").stat().st_size > _MAPPED else None
        self._hashes, self._rows, offsets = (
            load_array(folder / f"{name}.npy", mode) for name in ("hashes", "rows", "offsets")
        )
        with self._file.open("rb") as file:
            self._lines = _Lines(file, offsets, self._damage)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Return whether `write` has completed there."""
        return (folder / "meta.json").is_file()

    @staticmethod
    def write(
        folder: Path,
        passages: Iterable[Passage],
        *,
        source: str,
        repeats: Repeats = "fail",
        broken: Sequence[str] = (),
        counts: Sequence[int] = (),
    ) -> None:
        """Write passages into an existing folder.

        Args:
            broken: what `passages` leaves out because it cannot be used; a list that grows while
                they are read.
            counts: the number of passages of each source; a list that changes while they are read.

        Raises:
            DataError: an id occurs twice, or there are no passages.
        """
        import numpy as np

        digest = Digest()
        hashes = array("Q")
        repeated = 0
        seen: set[int] = set()

        def lines() -> Iterator[bytes]:
            nonlocal repeated
            for passage in passages:
                code = _hash(passage.passage_id)
                if repeats == "first":
                    # Two ids with the same 64-bit hash are not expected in any corpus.
                    if code in seen:
                        repeated += 1
                        continue
                    seen.add(code)
                hashes.append(code)
                digest.add(passage)
                yield _dump_passage(passage)

        with (folder / "passages.jsonl").open("wb") as out:
            offsets = _write(out, lines())
        if not hashes:
            raise DataError(f"{source}: the corpus is empty")
        codes = np.frombuffer(hashes, np.uint64)
        rows = np.argsort(codes, kind="stable").astype(np.uint32)
        codes = codes[rows]
        with (folder / "passages.jsonl").open("rb") as file:
            written = _Lines(file, offsets)
            for place in np.flatnonzero(codes[1:] == codes[:-1]):
                ids = [json.loads(written[int(rows[place + i])])[0] for i in (0, 1)]
                if ids[0] == ids[1]:
                    raise twice(source, ids[0])
        np.save(folder / "offsets.npy", np.frombuffer(offsets, np.uint64))
        np.save(folder / "hashes.npy", codes)
        np.save(folder / "rows.npy", rows)
        meta = {"source": source, "fingerprint": digest.value, "repeated": repeated}
        meta |= {"broken": list(broken)} if broken else {}
        meta |= {"counts": list(counts)} if counts else {}
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")

    def get(self, passage_id: object) -> Passage | None:
        """Return the passage with this id, or None."""
        found = self.find(passage_id)
        return None if found is None else found[1]

    def find(self, passage_id: object) -> tuple[int, Passage] | None:
        """Return the passage with this id and its place in the order, from 0; or None."""
        import numpy as np

        if not isinstance(passage_id, str):
            return None
        wanted = np.uint64(_hash(passage_id))
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self) and self._hashes[place] == wanted:
            row = int(self._rows[place])
            passage = self._load(self._lines[row])
            if passage.passage_id == passage_id:
                return row, passage
            place += 1  # another id with the same hash
        return None

    @property
    def ids(self) -> Sequence[str]:
        """The ids in order, each read from its line when it is asked for."""
        return _Ids(self._lines, self._damage)

    def stream(self) -> Iterator[Passage]:
        """Yield the passages in order, reading sequentially."""
        return map(self._load, self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def check_images(self) -> None:
        """Check that every image path stays inside the image folder.

        Raises:
            DataError: one does not; the passages' author could otherwise have any file shown.
            DamageError: a passage cannot be read.
        """
        for line in self._lines:
            # Without these, no path can leave the folder: such lines need not be parsed.
            if b'"/' in line or b".." in line or b"\\" in line:
                self._load(line)

    def _load(self, line: bytes) -> Passage:
        try:
            passage_id, text, title, image, *others = json.loads(line)
            path = None if image is None else Path(image)
            passage = Passage(passage_id, text, title, path, *others)
            if not (isinstance(passage_id, str) and isinstance(text, str)):
                raise TypeError
        except (ValueError, TypeError, RecursionError):
            raise DamageError(self._damage) from None
        if path is not None and self._images is not None:
            try:
                path = inside(self._images, image)
            except DataError:
                raise DataError(
                    f"{self._file}: the image {image!r} of {passage_id!r} is outside of the "
                    "collection"
                ) from None
        return replace(passage, image=path) if path is not passage.image else passage


class _Ids(Sequence[str]):
    """The ids at the beginning of lines; the rest of a line is not parsed."""

    def __init__(self, lines: _Lines, damage: str):
        self._lines, self._damage = lines, damage

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        return map(self._id, self._lines)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._id(self._lines[i]) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._id(self._lines[index % len(self)])

    def _id(self, line: bytes) -> str:
        try:
            found, _ = _decode(line.decode("ascii"), 1)
            if line[:1] == b"[" and isinstance(found, str):
                return found
        except (ValueError, RecursionError):
            pass
        raise DamageError(self._damage)


def _hash(passage_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(passage_id.encode(), digest_size=8).digest(), "little")


def _dump_passage(p: Passage) -> bytes:
    image = None if p.image is None else str(p.image)
    values = [p.passage_id, p.text, p.title, image, p.entity, p.url, dict(p.extra)]
    return _json([*values, p.section, p.article])


def same_record(a: Passage, b: Passage) -> bool:
    """Return whether two passages are identical on disk."""
    return _dump_passage(a) == _dump_passage(b)


def keep(questions: Iterator[Question]) -> Sequence[Question]:
    """Return the questions as a list, or store them on disk if there are many."""
    first = list(itertools.islice(questions, QUESTIONS_IN_MEMORY + 1))
    if len(first) <= QUESTIONS_IN_MEMORY:
        return first
    return DiskQuestions(itertools.chain(first, questions))


class DiskQuestions(Sequence[Question]):
    """Questions in a temporary file of the cache folder, which is deleted with this object."""

    def __init__(self, questions: Iterable[Question]):
        self._blobs: dict[str, bytes] = {}  # images given as bytes: few, usually one
        with tempfile.TemporaryFile(dir=cache_dir()) as file:
            offsets = _write(file, map(self._dump, questions))
            self._lines = _Lines(file, offsets)

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Question]:
        return map(self._load, self._lines)

    @overload
    def __getitem__(self, index: int) -> Question: ...

    @overload
    def __getitem__(self, index: slice) -> list[Question]: ...

    def __getitem__(self, index: int | slice) -> Question | list[Question]:
        if isinstance(index, slice):
            return [self._load(self._lines[i]) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._load(self._lines[index % len(self)])

    def _dump(self, q: Question) -> bytes:
        image: Any = q.image
        if isinstance(image, bytes):
            name = base64.b85encode(hashlib.blake2b(image, digest_size=16).digest()).decode()
            self._blobs[name] = image
            image = [name]
        elif image is not None:
            image = str(image)
        description = asdict(q.description) if q.description else None
        others = {"image": image, "description": description, "extra": dict(q.extra)}
        return _json([others.get(name, getattr(q, name)) for name in _FIELDS])

    def _load(self, line: bytes) -> Question:
        values = dict(zip(_FIELDS, json.loads(line), strict=True))
        values |= {name: tuple(values[name]) for name in _TUPLES}
        if (image := values["image"]) is not None:
            values["image"] = Path(image) if isinstance(image, str) else self._blobs[image[0]]
        if values["description"] is not None:
            values["description"] = _description().validate_python(values["description"])
        return Question(**values)


_FIELDS = tuple(field.name for field in fields(Question))
_TUPLES = ("answers", "answer_eval", "pos_item_ids", "pos_articles", "choices")


@cache
def _description() -> TypeAdapter[Description]:
    return TypeAdapter(Description)
