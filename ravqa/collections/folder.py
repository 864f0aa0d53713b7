"""The files of a collection, and how they change while staying consistent.

    collection.json    settings, encoder, and which index is current
    lock               held by the one process that writes
    index-000001/      vectors (`ravqa.indexes`); its manifest names the folders of passages
    passages-000001/   passages (`ravqa.corpora.disk.PassageFolder`), and which source each came
                       from (`ravqa.collections.sources`); a change writes one more
    images/            the passages' images, named by their bytes

Folders of older versions have library.json in place of collection.json, and keep it.

The index is authoritative: a passage exists if its id is in the index, and its text is that in the
newest folder of passages. A change first writes passages and images, then commits the index, whose
manifest names both vectors and passages: a single rename makes the change, so that vectors and
texts always match. An index of another kind is built beside the old one, and then collection.json
is replaced. The next writer removes files that nothing names.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ravqa.collections import sources
from ravqa.collections.filters import Where, matching
from ravqa.collections.sources import Origins, Recorder
from ravqa.core.errors import DataError, UserError, first_line
from ravqa.core.factory import part_config
from ravqa.core.files import atomic_write
from ravqa.core.locations import flush_to_disk, real_path, remove
from ravqa.core.progress import Progress
from ravqa.core.records import Passage
from ravqa.core.settings import Part, fingerprint
from ravqa.core.stored import as_type, read_json
from ravqa.core.texts import printable
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.disk import DamageError, Digest, PassageFolder
from ravqa.corpora.kb import Sections
from ravqa.corpora.origins import Origin
from ravqa.corpora.pages import MANIFESTS
from ravqa.corpora.pdf import PagesAs
from ravqa.encoders.base import Vectors
from ravqa.images.decode import SUFFIXES, image_bytes, image_digest
from ravqa.indexes import INDEXES
from ravqa.indexes.base import Index, build_index, checked_index
from ravqa.indexes.exact import ExactIndex
from ravqa.indexes.segmented.store import check_format, file_checksum, sole_writer

FORMAT = 2
FIRST_FORMAT = 1
"""Collections of this format do not know the sources of the passages that they were made with, and
ids in them never begin with a folder's name; they keep it, so that their ids stay valid."""

IMAGES = "images"
_REMEMBERED = 16
_OWN_FOLDER = re.compile(r"(index|passages)-\d{6}")
_OWN_FILE = re.compile(r"\w+\.(npy|jsonl?)")


@dataclass(frozen=True)
class Manifest:
    """Content of collection.json.

    Attributes:
        settings: settings of the pipeline that the collection was made with.
        encoder: "fingerprint", "weights" and "dim" of the encoder.
        index: name of the current folder; None before the first passage.
        words: default length of passages of pages and articles, in words.
        pages, dpi, ocr: how pages of PDF files are read, if it was chosen (`ravqa.corpora.pdf`).
        passages: the folders of passages, if the index does not commit them with its state.
        left_out: by the sources of each change, what of them cannot be used, and why.
        format: version of the folder's format.
    """

    settings: dict[str, Any]
    encoder: dict[str, Any]
    index: str | None = None
    words: Annotated[int, Field(ge=1)] | None = None
    pages: PagesAs | None = None
    dpi: int | None = None
    ocr: bool | None = None
    passages: list[dict[str, Any]] | None = None
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    format: int = FORMAT


class CollectionCorpus(Corpus):
    """The passages of one state of a collection, in the index's order."""

    repeated = 0

    def __init__(
        self,
        path: Path,
        encoder: str,
        index: Index | None,
        kind: str,
        parts: Iterable[tuple[PassageFolder, Origins]],
        left_out: Sequence[str] = (),
    ):
        self.left_out = left_out
        self.source = str(path)
        self._encoder = encoder
        self._index = index
        self._kind = kind
        self._parts = tuple(parts)  # newest first

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Return the same fingerprint as a corpus of these passages in memory."""
        digest = Digest()
        for passage in self.values():
            # An image's copy is named by the hash of its bytes.
            digest.add(passage, passage.image.stem if passage.image else None)
        return digest.value

    def __getitem__(self, passage_id: str) -> Passage:
        return self.present(passage_id)[0]

    def present(self, passage_id: str) -> tuple[Passage, Origin | None]:
        """Return a passage and where it came from, if that is known.

        Raises:
            KeyError: there is no such passage.
            DamageError: its text is missing or was changed.
        """
        if passage_id not in self:
            raise KeyError(passage_id)
        for part, origins in self._parts:
            found = part.find(passage_id)
            if found is not None:
                return found[1], origins[found[0]]
        raise DamageError(
            f"{self.source}: the text of passage {passage_id!r} is missing or was changed: "
            f"ravqa collection verify {self.source} lists what is wrong"
        )

    @cached_property
    def known_origins(self) -> Mapping[str, Origin]:
        """The sources that are remembered, by name; perhaps without a passage left."""
        return {o.source: o for _, origins in reversed(self._parts) for o in origins}

    def __contains__(self, passage_id: object) -> bool:
        return self._index is not None and passage_id in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.ids if self._index is not None else ())

    def __len__(self) -> int:
        return len(self._index) if self._index is not None else 0

    def index_for(self, encoder: str, kind: str) -> Index | None:
        """Return the collection's index, if it is of this encoder and kind."""
        if self._index is None or encoder != self._encoder:
            return None
        return self._index if kind in ("auto", self._kind, self._index.kind) else None

    def check_images(self) -> None:
        """Check that every image is in the collection's folder.

        Raises:
            DataError: one is not.
        """
        for part, _ in self._parts:
            with suppress(DamageError):  # reported when the passage is read, and by `verify`
                part.check_images()

    def stream(self) -> Iterator[Passage]:
        """Yield every passage once, in the order of the files."""
        return (passage for passage, _ in self.with_origins())

    def with_origins(self) -> Iterator[tuple[Passage, Origin | None]]:
        """Yield as `stream`, each with where it came from, if that is known."""
        seen: set[str] = set()
        for i, (part, origins) in enumerate(self._parts, 1):
            for place, passage in enumerate(part.stream()):
                if passage.passage_id in self and passage.passage_id not in seen:
                    yield passage, origins[place]
                    if i < len(self._parts):
                        seen.add(passage.passage_id)


@dataclass(frozen=True)
class State:
    """An immutable snapshot of a collection, as a reading process sees it."""

    manifest: Manifest
    index: Index | None
    corpus: CollectionCorpus
    _matching: dict[str, frozenset[str]] = field(default_factory=dict)

    def matching(self, where: Where) -> frozenset[str]:
        """Return ids of the passages that `where` accepts; the last few mappings are cached."""
        if not isinstance(where, Mapping):
            return matching(self.corpus.stream(), where)
        key = repr(sorted(where.items()))
        found = self._matching.get(key)
        if found is None:
            found = matching(self.corpus.stream(), where)
            if len(self._matching) >= _REMEMBERED:
                self._matching.clear()
            self._matching[key] = found
        return found

    @property
    def tidy(self) -> bool:
        """Return whether no file contains a deleted or replaced passage."""
        return self.index is None or (self.pieces <= 1 and not self.index.stats().get("deleted"))

    @property
    def pieces(self) -> int:
        """Return the number of pieces of vectors or passages; each costs time and open files."""
        if self.index is None:
            return 0
        return max(int(self.index.stats().get("segments", 1)), len(self.passages))

    @property
    def passages(self) -> list[dict[str, Any]]:
        """Return the folders of passages: name and files of each, oldest first."""
        return [] if self.index is None else _entries(self.manifest, self.index)

    @property
    def content(self) -> str:
        """Return a hash of all that a search depends on, except the encoder."""
        if self.index is None:
            return ""
        return self.index.content or fingerprint(self.passages)


class CollectionFolder:
    """A collection on disk."""

    def __init__(self, path: Path, *, mend: str = "choose a new folder"):
        """Name the folder.

        Args:
            mend: what to do if a new collection is wanted and there is one, for the message.
        """
        self.path = path
        self.mend = mend
        self._sound: set[tuple[str, str]] = set()  # files that were checked, which never change

    @property
    def manifest_file(self) -> Path:
        """Return the manifest's file, under its older name if it already has that."""
        named = [self.path / name for name in MANIFESTS]
        return next((file for file in named if file.is_file()), named[0])

    def exists(self) -> bool:
        """Return whether there is a collection."""
        return self.manifest_file.is_file()

    def check_new(self, *, begun: bool = False) -> None:
        """Raise UserError if the folder already has a collection or contains something else.

        Args:
            begun: allow a collection that never had a passage, as left by a failed build.
        """
        if self.exists():
            if begun and self.manifest().index is None:
                return
            raise UserError(f"{self.path} already holds a collection: {self.mend}")
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path} already exists and is not empty: choose a new folder")

    def create(
        self,
        settings: Mapping[str, Any],
        encoder: Mapping[str, Any],
        sections: Sections | None = None,
    ) -> None:
        """Create an empty collection, also over one that never had a passage.

        Args:
            sections: how its sources are read; what `Manifest` has of it is kept.

        Raises:
            UserError: see `check_new`; another process is writing.
        """
        sections = sections or Sections()
        manifest = Manifest(
            dict(settings),
            dict(encoder),
            words=sections.words,
            pages=sections.pages,
            dpi=sections.dpi,
            ocr=sections.ocr,
        )
        self.check_new(begun=True)
        if not self.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            self.put(manifest)
            return
        with sole_writer(self.path):
            self.check_new(begun=True)  # another process may have added passages
            self.put(manifest)

    def manifest(self) -> Manifest:
        """Return the content of collection.json.

        Raises:
            UserError: there is no collection, it is damaged, or of another format.
        """
        file = self.manifest_file
        try:
            values = read_json(file)
            version = values["format"]
            readable = FIRST_FORMAT if version == FIRST_FORMAT else FORMAT
            check_format(version, readable, f"the collection in {self.path}")
            given = {name: values[name] for name in (*_FIELDS, "format")}
            more = {name: values[name] for name in _OPTIONAL if name in values}
            found = as_type(Manifest, given | more)
            as_type(_Encoder, found.encoder)
            if values["checksum"] != _checksum(found):
                raise ValueError("its checksum is wrong")
            if found.index is not None:
                _check_own(found.index)
        except FileNotFoundError:
            raise UserError(
                f"no collection in {self.path}: ravqa collection build {self.path} SOURCE makes "
                "one, as does Collection.create in Python"
            ) from None
        except OSError as e:
            raise UserError(f"{file} cannot be read: {e.strerror or e}") from None
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(
                f"{file} is damaged: delete {self.path} and build the collection again ({e})"
            ) from None
        return found

    def put(self, manifest: Manifest) -> None:
        """Replace collection.json."""
        values = {"format": manifest.format, **_values(manifest), "checksum": _checksum(manifest)}
        values |= {"left_out": manifest.left_out} if manifest.left_out else {}
        atomic_write(self.manifest_file, json.dumps(values, indent=2, ensure_ascii=False))

    def read(self, part: Part) -> State:
        """Return the current state, even if a writer replaces it meanwhile.

        Args:
            part: the index's kind and options.

        Raises:
            UserError: see `manifest`; the index is of another kind, or damaged.
        """
        while True:
            seen = self._present(part)
            try:
                return self._read(seen[0], part)
            except (OSError, UserError, ValueError, KeyError) as e:
                if self._present(part) != seen:
                    continue  # files were removed because a newer state replaced them
                if isinstance(e, UserError):
                    raise
                if isinstance(e, PermissionError):
                    raise UserError(f"{e.filename} cannot be read: {e.strerror}") from None
                raise UserError(
                    f"the collection in {self.path} is damaged ({e}): build it again"
                ) from None

    def check_links(self) -> None:
        """Reject links that lead out of the folder: they would be read, shown and packed.

        Raises:
            UserError: there is such a link.
        """
        root = real_path(self.path)
        for path in _links(self.path):
            if not real_path(path).is_relative_to(root):
                raise UserError(
                    f"{path} is a link to a place outside the collection: replace it "
                    "with the file itself"
                )

    def _present(self, part: Part) -> tuple[Manifest, int | None]:
        """Return what changes with every state: collection.json, and the index's generation."""
        manifest = self.manifest()
        if manifest.index is None:
            return manifest, 0
        try:
            return manifest, INDEXES.get(part.name).generation(self.path / manifest.index)
        except UserError:
            return manifest, None

    def _read(self, manifest: Manifest, part: Part) -> State:
        encoder = manifest.encoder["fingerprint"]
        if manifest.index is None:
            return State(manifest, None, CollectionCorpus(self.path, encoder, None, "", ()))
        kind = INDEXES.get(part.name)
        index = kind.open(
            self.path / manifest.index,
            part_config(INDEXES, part, "retriever.index"),
            fingerprint=encoder,
        )
        entries = _entries(manifest, checked_index(index, kind))
        parts = [self._part(entry) for entry in reversed(entries)]
        left_out = tuple(itertools.chain.from_iterable(manifest.left_out.values()))
        corpus = CollectionCorpus(self.path, encoder, index, part.name, parts, left_out)
        return State(manifest, index, corpus)

    def _part(self, entry: Mapping[str, Any]) -> tuple[PassageFolder, Origins]:
        """Open a folder of passages, with where they came from; raises as `_passages`."""
        part = self._passages(entry)
        if sources.FILE not in entry["files"]:  # none is known, or an older version wrote it
            return part, Origins()
        return part, Origins.read(self.path / entry["name"], len(part))

    def _passages(self, entry: Mapping[str, Any]) -> PassageFolder:
        """Open a folder of passages, whose tables must be as they were written.

        Raises:
            ValueError: one is missing or was changed.
        """
        folder = self.path / _check_own(entry["name"])
        for name, (_, checksum) in entry["files"].items():
            mark = f"{entry['name']}/{name}", checksum
            if not _OWN_FILE.fullmatch(name) or mark in self._sound:
                continue
            there = (folder / name).is_file()
            if name.endswith(".jsonl") and there:  # the texts themselves are left to `verify`
                continue
            if not there or file_checksum(folder / name) != checksum:
                raise ValueError(f"{entry['name']}/{name} is missing or was changed")
            self._sound.add(mark)
        try:
            return PassageFolder(
                folder,
                images=self.path,
                mend=f"ravqa collection verify {self.path} lists what is wrong",
            )
        except (UserError, PermissionError):
            raise
        except Exception as e:  # files that are missing from the list of checksums
            raise ValueError(f"{entry['name']}: {first_line(e)}") from None

    @contextmanager
    def writing(self, part: Part) -> Iterator[Writer]:
        """Lock the collection for writing.

        Raises:
            UserError: another process (or object) is writing; see `read`.
        """
        self.manifest()  # else a lock would be created in a wrong folder
        with sole_writer(self.path):
            writer = Writer(self, self.read(part), part)
            writer.sweep()
            yield writer

    def image_place(self, source: Path, data: bytes) -> Path:
        """Return where the copy of an image is, or would be."""
        digest = hashlib.sha256(data).hexdigest()
        suffix = source.suffix.lower()
        name = f"{digest}{suffix if suffix in SUFFIXES else ''}"
        return self.path / IMAGES / digest[:2] / name

    def faults(self, state: State) -> Iterator[str]:
        """Yield a line for each fault, for `verify`."""
        if state.index is None:
            return
        yield from (f"{state.manifest.index}/{fault}" for fault in state.index.verify())
        whole = True
        for entry in state.passages:
            for name, (size, checksum) in entry["files"].items():
                file = self.path / entry["name"] / name
                there = file.is_file() and file.stat().st_size == size
                if not there or file_checksum(file) != checksum:
                    whole = False
                    yield f"{entry['name']}/{name} is missing or was changed"
        if not whole:  # their content cannot be relied on
            return
        missing = set(state.index.ids)
        try:
            for passage in state.corpus.stream():
                missing.discard(passage.passage_id)
                if passage.image is not None and image_digest(passage.image) != passage.image.stem:
                    name = passage.image.relative_to(self.path)
                    yield f"{name}, image of {passage.passage_id!r}, is missing or was changed"
        except DataError as e:  # its bytes are intact: it was written like this
            yield str(e)
            return
        yield from (f"passage {i!r} is in the index but has no text" for i in sorted(missing))


class Writer:
    """Exclusive writer of a collection, made by `CollectionFolder.writing`."""

    def __init__(self, folder: CollectionFolder, state: State, part: Part):
        self.state = state
        self._folder = folder
        self._path = folder.path
        self._part = part

    def keep_image(self, source: Path) -> Path:
        """Copy an image into the collection; return its path there.

        Raises:
            DataError: the image cannot be read.
        """
        data = image_bytes(source)
        target = self._folder.image_place(source, data)
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(target, data)
        return target

    def commit(
        self,
        ids: Sequence[str] = (),
        embeddings: Iterable[Vectors] = (),
        *,
        put: Iterable[tuple[Passage, Origin | None]] | None = None,
        delete: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> None:
        """Change vectors and passages at once.

        Args:
            ids, embeddings: passages with new vectors, which replace their old ones.
            put: passages with new text, metadata or origin, including those of `ids`.
            delete: ids to delete.
            progress: called as progress(what, done, total).
        """
        self.check_growth()
        entries = self.state.passages
        attached = None if put is None else {"passages": [*entries, self._write(put)]}
        if self.state.index is None:
            self._build(ids, embeddings, self._part, attached, progress)
        else:
            index = self.state.index
            old = [i for i in ids if i in index]
            watched: dict[str, Any] = {"progress": progress} if index.reports else {}
            index.change(ids, embeddings, delete=[*old, *delete], attached=attached, **watched)
        self._settle()

    def check_growth(self) -> None:
        """Raise UserError if there is already an index and it cannot be changed."""
        index = self.state.index
        if index is not None and not index.commits:
            raise UserError(
                f"the collection in {self._path} has an index of kind {self._part.name!r}, which "
                "cannot change once it is built: build another collection, in a new folder"
            )

    def compact(self) -> None:
        """Rewrite index and passages without what was deleted or replaced."""
        index, corpus = self.state.index, self.state.corpus
        if index is None or not index.commits:
            return
        entries = [self._write(map(corpus.present, index.ids))] if len(index) else []
        index.change(attached={"passages": entries})
        index.compact()
        self._settle()
        used = {p.image for p in self.state.corpus.stream() if p.image is not None}
        for file in (self._path / IMAGES).glob("*/*"):
            if file not in used:
                file.unlink()

    def convert(self, part: Part, progress: Progress | None = None) -> None:
        """Replace an exact index by one of another kind, from its vectors."""
        index = self.state.index
        if not isinstance(index, ExactIndex):
            raise ValueError("only an exact index keeps the vectors that another index needs")
        self._build(index.ids, index.embeddings(), part, index.attached, progress)
        self._settle()

    def sweep(self) -> None:
        """Remove leftovers of killed writers, and files that nothing names any more."""
        kept = {self.state.manifest.index}
        if self.state.index is not None:
            kept |= {entry["name"] for entry in self.state.passages}
        for entry in self._path.iterdir():
            if _OWN_FOLDER.fullmatch(entry.name) and entry.name not in kept:
                remove(entry)
        for folder in (self._path, *(self._path / IMAGES).glob("*/")):
            for entry in folder.iterdir():
                if entry.name.startswith(".") and entry.suffix == ".part":
                    remove(entry)

    def note_left_out(self, source: str, lines: Sequence[str]) -> None:
        """Keep what of a change's sources cannot be used, in place of what was kept of them."""
        manifest = self.state.manifest
        source, *lines = map(printable, (source, *lines))  # names may be in another encoding
        kept = {name: value for name, value in manifest.left_out.items() if name != source}
        kept |= {source: list(lines)} if lines else {}
        if kept != manifest.left_out:
            self._folder.put(replace(manifest, left_out=kept))
            self._settle()

    def _settle(self) -> None:
        self.state = self._folder.read(self._part)
        self.sweep()

    def _build(
        self,
        ids: Sequence[str],
        embeddings: Iterable[Vectors],
        part: Part,
        attached: Mapping[str, Any] | None,
        progress: Progress | None,
    ) -> None:
        """Build a new index beside the current one, then replace that."""
        manifest = self.state.manifest
        name = self._new_name("index")
        kind = INDEXES.get(part.name)
        attached = attached or {"passages": []}
        committed: dict[str, Any] = {"attached": attached} if kind.commits else {}
        build_index(
            kind,
            ids,
            embeddings,
            self._path / name,
            dim=manifest.encoder["dim"],
            config=part_config(INDEXES, part, "retriever.index"),
            fingerprint=manifest.encoder["fingerprint"],
            progress=progress,
            **committed,
        )
        passages = None if kind.commits else attached["passages"]
        self._folder.put(replace(manifest, index=name, passages=passages))

    def _write(self, passages: Iterable[tuple[Passage, Origin | None]]) -> dict[str, Any]:
        """Write a new folder of passages to disk; return its entry for the index's manifest."""
        name = self._new_name("passages")
        folder = self._path / name
        folder.mkdir()
        recorder = Recorder(passages)
        PassageFolder.write(folder, map(self._stored, recorder), source="collection")
        recorder.write(folder)
        files = {}
        for file in sorted(folder.iterdir()):
            flush_to_disk(file)
            files[file.name] = [file.stat().st_size, file_checksum(file)]
        flush_to_disk(folder)
        flush_to_disk(self._path)
        return {"name": name, "files": files}

    def _stored(self, passage: Passage) -> Passage:
        """Return the passage with its image's path relative to the collection's folder."""
        if passage.image is None:
            return passage
        return replace(passage, image=passage.image.relative_to(self._path))

    def _new_name(self, prefix: str) -> str:
        numbers = [
            int(entry.name.rpartition("-")[2])
            for entry in self._path.iterdir()
            if _OWN_FOLDER.fullmatch(entry.name) and entry.name.startswith(prefix)
        ]
        return f"{prefix}-{max(numbers, default=0) + 1:06d}"


def _check_own(name: str) -> str:
    """Return the name of a collection's folder, if it cannot lead out of the collection.

    Raises:
        ValueError: another name.
    """
    if not _OWN_FOLDER.fullmatch(name):
        raise ValueError(f"it refers to the folder {name!r}")
    return name


_OPTIONAL = ("pages", "dpi", "ocr", "passages", "left_out")
_FIELDS = [e.name for e in fields(Manifest) if e.name not in {*_OPTIONAL, "format"}]


@dataclass(frozen=True)
class _Encoder:
    """What collection.json says of the encoder."""

    fingerprint: str
    weights: str
    dim: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class _Entry:
    """A folder of passages: its name, and size and checksum of its files."""

    name: str
    files: dict[str, tuple[int, str]]


def _entries(manifest: Manifest, index: Index) -> list[dict[str, Any]]:
    """Return name and files of each folder of passages, oldest first.

    Raises:
        KeyError, ValueError: they are something else.
    """
    found = index.attached["passages"] if manifest.passages is None else manifest.passages
    as_type(list[_Entry], found)
    return list(found)


def _links(folder: Path) -> Iterator[Path]:
    """Yield the symbolic links below a folder, without asking for each file's state."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry)
            elif entry.is_dir():
                yield from _links(Path(entry))


def _values(manifest: Manifest) -> dict[str, Any]:
    values = asdict(manifest)
    del values["left_out"], values["format"]  # a note, and what tells versions apart
    return {k: value for k, value in values.items() if k in _FIELDS or value is not None}


def _checksum(manifest: Manifest) -> str:
    return fingerprint(_values(manifest))
