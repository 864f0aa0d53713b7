"""The files of a collection, and how they change while staying consistent.

    collection.json    settings, encoder, and which index is current
    lock               held by the one process that writes
    index-000001/      vectors (`ravqa.indexes`); its manifest names the folders of passages
    passages-000001/   passages (`ravqa.corpora.disk.PassageFolder`), and which source each came
                       from (`ravqa.collections.sources`); a change writes one more
    images/            the passages' images, named by their bytes

Folders of older versions have library.json in place of collection.json, and keep it.

If the index commits (`Index.commits`), it is authoritative: a passage exists if its id is in the
index, and its text is that in the newest folder of passages. A change first writes passages and
images, then commits the index, whose manifest names both vectors and passages: a single rename
makes the change, so that vectors and texts always match.

With any other index (shards, a Qdrant collection), collection.json names the folders of passages,
and these are authoritative; each may have a `gone.json` of ids that its change deleted from older
ones. A change writes its folder, records in collection.json that it has begun, changes the index
step by step, and records that it has ended. What a killed writer left undone is done again from the
texts by the next one. So the folder knows what the index should have, wherever that is, and an
index that was lost is built again from it (`Writer.rebuild`).

An index of another kind is built beside the old one, and then collection.json is replaced. The next
writer removes files that nothing names.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import secrets
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
from ravqa.core.errors import DamagedError, DataError, UserError, first_line
from ravqa.core.factory import part_config
from ravqa.core.files import atomic_write
from ravqa.core.locations import flush_to_disk, real_path, remove
from ravqa.core.progress import Progress
from ravqa.core.records import Passage
from ravqa.core.settings import Part, fingerprint
from ravqa.core.stored import as_type, read_json
from ravqa.core.texts import number_of, printable
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

_log = logging.getLogger(__name__)

FORMAT = 2
LIVE_FORMAT = 3
"""Of collections whose manifest is `live`, which older versions cannot read."""
FIRST_FORMAT = 1
"""Collections of this format do not know the sources of the passages that they were made with, and
ids in them never begin with a folder's name; they keep it, so that their ids stay valid."""

IMAGES = "images"
_REMEMBERED = 16
_OWN_FOLDER = re.compile(r"(index|passages)-\d{6}")
_OWN_FILE = re.compile(r"\w+\.(npy|jsonl?)")
_GONE = "gone.json"
_STEP = 2**25  # components of vectors that an index is given at a time
_NAMED = 40  # characters of the folder's name in the name of its index


@dataclass(frozen=True)
class Live:
    """What collection.json says of an index that does not commit changes itself.

    Attributes:
        name: what its data is called where it is, if that is not in the collection's folder.
        built: the fingerprint that it was built with.
        state: another text for every state.
        begun: None, or the number of passages of the newest folder, from its first, that get
            vectors in a change that has begun and not ended.
    """

    name: str
    built: str
    state: str
    begun: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True)
class Manifest:
    """Content of collection.json.

    Attributes:
        settings: settings of the pipeline that the collection was made with.
        encoder: "fingerprint", "weights" and "dim" of the encoder.
        index: name of the current folder; None before the first passage.
        words: default length of passages of pages and articles, in words.
        pages, dpi, ocr: how pages of PDF files are read, if it was chosen (`ravqa.corpora.pdf`).
        passages: the folders of passages, if the index does not commit them with its state, and
        live: what else is known of such an index; None if an older version built it.
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
    live: Live | None = None
    format: int = FORMAT

    @property
    def begun(self) -> bool:
        """Whether a change has begun and not ended."""
        return self.live is not None and self.live.begun is not None


@dataclass(frozen=True)
class Layer:
    """An opened folder of passages: what a change wrote, and which older passages it deleted."""

    passages: PassageFolder | None
    origins: Origins
    gone: frozenset[str] = frozenset()


class CollectionCorpus(Corpus):
    """The passages of one state of a collection: those in an index that commits, in its order; else
    those in the folders, in theirs."""

    repeated = 0

    def __init__(
        self,
        path: Path,
        encoder: str,
        index: Index | None,
        kind: str,
        layers: Iterable[Layer],
        left_out: Sequence[str] = (),
        *,
        begun: bool = False,
    ):
        """Combine index and folders.

        Args:
            index: None for none, or one that cannot be opened.
            layers: newest first.
            begun: whether a change of the index has begun and not ended.
        """
        self.left_out = left_out
        self.source = str(path)
        self._encoder = encoder
        self._index = index
        self._ids = index if index is not None and index.commits else None
        self._kind = kind
        self._layers = tuple(layers)
        self._begun = begun

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
        if self._ids is not None and passage_id not in self._ids:
            raise KeyError(passage_id)
        found = self._newest(passage_id)
        if found is not None:
            return found
        if self._ids is None:
            raise KeyError(passage_id)
        raise DamageError(
            f"{self.source}: the text of passage {passage_id!r} is missing or was changed: "
            f"ravqa collection verify {self.source} lists what is wrong"
        )

    def _newest(self, passage_id: object) -> tuple[Passage, Origin | None] | None:
        for layer in self._layers:
            found = layer.passages.find(passage_id) if layer.passages else None
            if found is not None:
                return found[1], layer.origins[found[0]]
            if passage_id in layer.gone:
                return None
        return None

    @cached_property
    def known_origins(self) -> Mapping[str, Origin]:
        """The sources that are remembered, by name; perhaps without a passage left."""
        return {o.source: o for layer in reversed(self._layers) for o in layer.origins}

    def __contains__(self, passage_id: object) -> bool:
        if self._ids is not None:
            return passage_id in self._ids
        return self._newest(passage_id) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids.ids if self._ids is not None else self._listed)

    def __len__(self) -> int:
        return len(self._ids) if self._ids is not None else len(self._listed)

    @cached_property
    def _listed(self) -> list[str]:
        """Ids of the passages in the folders, in the order in which these were written."""
        found: list[list[str]] = []
        hidden: set[str] = set()
        for i, layer in enumerate(self._layers, 1):
            own = [p for p in (layer.passages.ids if layer.passages else ()) if p not in hidden]
            found.append(own)
            if i < len(self._layers):
                hidden.update(own, layer.gone)
        return list(itertools.chain.from_iterable(reversed(found)))

    def index_for(self, encoder: str, kind: str) -> Index | None:
        """Return the collection's index, if it is of this encoder and kind, and complete."""
        if self._index is None or encoder != self._encoder or self._begun:
            return None
        return self._index if kind in ("auto", self._kind, self._index.kind) else None

    def check_images(self) -> None:
        """Check that every image is in the collection's folder.

        Raises:
            DataError: one is not.
        """
        for layer in self._layers:
            with suppress(DamageError):  # reported when the passage is read, and by `verify`
                if layer.passages:
                    layer.passages.check_images()

    def stream(self) -> Iterator[Passage]:
        """Yield every passage once, in the order of the files."""
        return (passage for passage, _ in self.with_origins())

    def with_origins(self) -> Iterator[tuple[Passage, Origin | None]]:
        """Yield as `stream`, each with where it came from, if that is known."""
        seen: set[str] = set()
        for i, layer in enumerate(self._layers, 1):
            for place, passage in enumerate(layer.passages.stream() if layer.passages else ()):
                name = passage.passage_id
                if name not in seen and (self._ids is None or name in self._ids):
                    yield passage, layer.origins[place]
                    if i < len(self._layers):
                        seen.add(name)
            seen |= layer.gone


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
        if self.index is None:
            return True
        whole = self.pieces <= 1 and not self.manifest.begun
        return whole and not self.index.stats().get("deleted")

    @property
    def pieces(self) -> int:
        """Return the number of pieces of vectors or passages; each costs time and open files."""
        if self.index is None:
            return 0
        return max(int(self.index.stats().get("segments", 1)), len(self.passages))

    @property
    def passages(self) -> list[dict[str, Any]]:
        """Return the folders of passages: name and files of each, oldest first."""
        return _entries(self.manifest, self.index)

    @property
    def content(self) -> str:
        """Return a hash of all that a search depends on, except the encoder."""
        if self.index is None:
            return ""
        return self.index.content or fingerprint(self.passages, self.manifest.live)


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
        self._opened: tuple[tuple[str, Part], Index] | None = None  # and changes with its data
        self._noted: Manifest | None = None

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
            readable = version if version in (FIRST_FORMAT, FORMAT) else LIVE_FORMAT
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
        if manifest.index is None:
            return self._state(manifest, None, part)
        state = self._state(manifest, self._open(manifest, part), part)
        if not self._complete(state):
            found, expected = len(state.index or ()), len(state.corpus)
            raise UserError(
                f"the index of {self.path} has {number_of(found, 'passage')} instead of "
                f"{expected:,}: {self._again}"
            )
        if manifest.begun and manifest != self._noted:
            self._noted = manifest
            _log.warning("the last change of %s did not end: the next one completes it", self.path)
        return state

    @property
    def _again(self) -> str:
        return f"ravqa collection rebuild {self.path} makes it again"

    @staticmethod
    def _complete(state: State) -> bool:
        """Return whether an index that may be elsewhere has as many passages as it should."""
        index, manifest = state.index, state.manifest
        if index is None or manifest.live is None or manifest.begun:
            return True
        return len(index) == len(state.corpus)

    def _open(self, manifest: Manifest, part: Part) -> Index:
        """Open the current index; one that is its data's present state is kept open."""
        assert manifest.index is not None
        kind = INDEXES.get(part.name)
        if kind.commits != (manifest.passages is None):
            raise UserError(
                f"the index of {self.path} is of another kind than {part.name!r}: ravqa "
                f"collection rebuild {self.path} --set retriever.index.name={part.name} replaces it"
            )
        mark = manifest.index, part
        if self._opened is not None and self._opened[0] == mark:
            index = self._opened[1]
            index.refresh()
            return index
        config = part_config(INDEXES, part, "retriever.index")
        source = manifest.encoder["fingerprint"]
        if manifest.live is not None:
            config, source = kind.named(config, manifest.live.name), manifest.live.built
        try:
            index = checked_index(
                kind.open(self.path / manifest.index, config, fingerprint=source), kind
            )
        except DamagedError as e:
            if manifest.live is None:
                raise
            raise UserError(f"{e}; {self._again}") from None
        self._opened = None if index.commits else (mark, index)
        return index

    def listed(self, part: Part) -> State:
        """Return the state without its index, for one that may be lost; as `read` if it commits.

        Raises:
            UserError: as `read`.
        """
        manifest = self.manifest()
        return self.read(part) if manifest.live is None else self._state(manifest, None, part)

    def _state(self, manifest: Manifest, index: Index | None, part: Part) -> State:
        layers = [self._layer(entry) for entry in reversed(_entries(manifest, index))]
        left_out = tuple(itertools.chain.from_iterable(manifest.left_out.values()))
        corpus = CollectionCorpus(
            self.path,
            manifest.encoder["fingerprint"],
            index,
            part.name,
            layers,
            left_out,
            begun=manifest.begun,
        )
        return State(manifest, index, corpus)

    def _layer(self, entry: Mapping[str, Any]) -> Layer:
        """Open what a change wrote; raises as `_passages`."""
        names = entry["files"]
        passages = self._passages(entry)
        folder = self.path / entry["name"]
        origins = Origins()  # none is known, or an older version wrote it
        if passages is not None and sources.FILE in names:
            origins = Origins.read(folder, len(passages))
        gone = as_type(list[str], read_json(folder / _GONE)) if _GONE in names else ()
        return Layer(passages, origins, frozenset(gone))

    def _passages(self, entry: Mapping[str, Any]) -> PassageFolder | None:
        """Open a folder of passages, whose tables must be as they were written; None without any.

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
        if set(entry["files"]) == {_GONE}:
            return None
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
    def writing(self, part: Part, *, listed: bool = False) -> Iterator[Writer]:
        """Lock the collection for writing.

        Args:
            listed: whether to begin with `listed`, for `Writer.rebuild`.

        Raises:
            UserError: another process (or object) is writing; see `read`.
        """
        self.manifest()  # else a lock would be created in a wrong folder
        with sole_writer(self.path):
            writer = Writer(self, self.listed(part) if listed else self.read(part), part)
            writer.sweep()
            yield writer

    def image_place(self, source: Path, data: bytes) -> Path:
        """Return where the copy of an image is, or would be."""
        digest = hashlib.sha256(data).hexdigest()
        suffix = source.suffix.lower()
        name = f"{digest}{suffix if suffix in SUFFIXES else ''}"
        return self.path / IMAGES / digest[:2] / name

    def newest(self, state: State) -> Layer:
        """Return what the last change wrote."""
        return self._layer(state.passages[-1])

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
        ids = set(state.index.ids)
        missing, lost = set(ids), []
        try:
            for passage in state.corpus.stream():
                missing.discard(passage.passage_id)
                lost += [passage.passage_id] if passage.passage_id not in ids else []
                if passage.image is not None and image_digest(passage.image) != passage.image.stem:
                    name = passage.image.relative_to(self.path)
                    yield f"{name}, image of {passage.passage_id!r}, is missing or was changed"
        except DataError as e:  # its bytes are intact: it was written like this
            yield str(e)
            return
        yield from (f"passage {i!r} is in the index but has no text" for i in sorted(missing))
        yield from (f"passage {i!r} is not in the index: {self._again}" for i in lost)


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
        index, entries = self.state.index, self.state.passages
        if index is not None and not index.commits:
            self._begin(len(ids), self._write(put or (), delete))
            self._complete(index, ids, embeddings, delete, progress)
            return
        attached = None if put is None else {"passages": [*entries, self._write(put)]}
        if index is None:
            self._build(ids, embeddings, self._part, attached, progress)
        else:
            old = [i for i in ids if i in index]
            watched: dict[str, Any] = {"progress": progress} if index.reports else {}
            index.change(ids, embeddings, delete=[*old, *delete], attached=attached, **watched)
        self._settle()

    def check_growth(self) -> None:
        """Raise UserError if there is already an index and it cannot be changed."""
        index = self.state.index
        if index is not None and not index.can_change:
            raise UserError(
                f"the collection in {self._path} has an index of kind {self._part.name!r}, which "
                f"cannot change once it is built: ravqa collection rebuild {self._path} --set "
                "retriever.index.name=auto makes one that can, or build another collection"
            )

    # -- indexes that do not commit -----------------------------------------------------------

    @property
    def _live(self) -> Live:
        """What is known of the index; of one that an older version built, what it goes by."""
        manifest = self.state.manifest
        return manifest.live or Live("", manifest.encoder["fingerprint"], "")

    def _begin(self, encoded: int, entry: Mapping[str, Any]) -> None:
        live = replace(self._live, state=secrets.token_hex(8), begun=encoded)
        self._record(live, [*self.state.passages, dict(entry)])

    def _record(self, live: Live, passages: list[dict[str, Any]]) -> None:
        format = _format(self.state.manifest, live)
        self._folder.put(replace(self.state.manifest, live=live, passages=passages, format=format))
        self.state = replace(self.state, manifest=self._folder.manifest())

    @property
    def unfinished(self) -> Sequence[str] | None:
        """Ids of the passages whose vectors a killed writer may not have written.

        None if the last change ended.
        """
        live = self.state.manifest.live
        if live is None or live.begun is None:
            return None
        passages = self._folder.newest(self.state).passages
        return list(itertools.islice(passages.ids, live.begun)) if passages else []

    def finish(
        self, ids: Sequence[str], embeddings: Iterable[Vectors], progress: Progress | None = None
    ) -> None:
        """Complete the change of a killed writer.

        Args:
            ids: those of `unfinished`.
            embeddings: their vectors.
        """
        index = self.state.index
        assert index is not None
        gone = [i for i in self._folder.newest(self.state).gone if i in index]
        self._complete(index, ids, embeddings, gone, progress)

    def _complete(
        self,
        index: Index,
        ids: Sequence[str],
        embeddings: Iterable[Vectors],
        gone: Sequence[str],
        progress: Progress | None,
    ) -> None:
        """Change the index step by step, and record that the change has ended."""
        done = 0
        for step in _steps(zip(ids, embeddings, strict=True)):
            index.update([i for i, _ in step], [vectors for _, vectors in step])
            done += len(step)
            if progress:
                progress("changing the index", done, len(ids))
        if gone:
            index.delete(gone)
        live = replace(self._live, state=secrets.token_hex(8), begun=None)
        self._record(live, self.state.passages)
        self._settle()

    # -- all of the collection ----------------------------------------------------------------

    def compact(self) -> None:
        """Rewrite index and passages without what was deleted or replaced."""
        index, corpus = self.state.index, self.state.corpus
        if index is None or not index.can_change:
            return
        entries = [self._write(map(corpus.present, corpus))] if len(corpus) else []
        if index.commits:
            index.change(attached={"passages": entries})
        else:
            self._record(replace(self._live, state=secrets.token_hex(8)), entries)
        index.compact()
        self._settle()
        used = {p.image for p in self.state.corpus.stream() if p.image is not None}
        for file in (self._path / IMAGES).glob("*/*"):
            if file not in used:
                file.unlink()

    def rebuild(
        self,
        part: Part,
        settings: Mapping[str, Any],
        ids: Sequence[str],
        embeddings: Iterable[Vectors],
        progress: Progress | None = None,
    ) -> None:
        """Replace the index, and what is written of passages, by new ones.

        Args:
            part: the new index's kind and options, from
            settings: the settings that the collection has from now on.
            ids, embeddings: all passages.
        """
        old = self._opened_elsewhere()
        corpus = self.state.corpus
        attached = {"passages": [self._write(map(corpus.present, ids))] if ids else []}
        self._build(ids, embeddings, part, attached, progress, settings)
        self._part = part
        self._settle()
        if old is not None:
            old.drop()

    def _opened_elsewhere(self) -> Index | None:
        """Return the present index, if its data is elsewhere and there."""
        config = part_config(INDEXES, self._part, "retriever.index")
        if INDEXES.get(self._part.name).elsewhere(config):
            with suppress(UserError):
                return self._folder.read(self._part).index
        return None

    def convert(self, part: Part, progress: Progress | None = None) -> None:
        """Replace an exact index by one of another kind, from its vectors."""
        index = self.state.index
        if not isinstance(index, ExactIndex):
            raise ValueError("only an exact index keeps the vectors that another index needs")
        self._build(index.ids, index.embeddings(), part, index.attached, progress)
        self._settle()

    def sweep(self) -> None:
        """Remove leftovers of killed writers, and files that nothing names any more."""
        kept = {self.state.manifest.index, *(entry["name"] for entry in self.state.passages)}
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
        if self.state.index is not None:
            self.state.index.publish()
        self.sweep()

    def _build(
        self,
        ids: Sequence[str],
        embeddings: Iterable[Vectors],
        part: Part,
        attached: Mapping[str, Any] | None,
        progress: Progress | None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Build a new index beside the current one, then replace that."""
        manifest = self.state.manifest
        name = self._new_name("index")
        kind = INDEXES.get(part.name)
        config = part_config(INDEXES, part, "retriever.index")
        attached = attached or {"passages": []}
        live, source = None, manifest.encoder["fingerprint"]
        options: dict[str, Any] = {"attached": attached}
        if not kind.commits:
            called = manifest.live.name if manifest.live else ""
            live = Live(
                called or self._own_name(),
                fingerprint(source, attached["passages"], secrets.token_hex(8)),
                secrets.token_hex(8),
            )
            config, source = kind.named(config, live.name), live.built
            options = {}
            if kind.elsewhere(config):
                options["replaces"] = manifest.live.built if manifest.live else None
        build_index(
            kind,
            ids,
            embeddings,
            self._path / name,
            dim=manifest.encoder["dim"],
            config=config,
            fingerprint=source,
            progress=progress,
            **options,
        )
        made = replace(
            manifest,
            settings=dict(manifest.settings if settings is None else settings),
            index=name,
            passages=None if kind.commits else attached["passages"],
            live=live,
            format=_format(manifest, live),
        )
        self._folder.put(made)

    def _own_name(self) -> str:
        """Return a name that no other collection has."""
        folder = re.sub(r"[^A-Za-z0-9]+", "-", real_path(self._path).name)[:_NAMED].strip("-")
        return f"ravqa-{folder}-{secrets.token_hex(4)}"

    def _write(
        self, passages: Iterable[tuple[Passage, Origin | None]], gone: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Write a new folder of passages to disk; return its entry for the manifest.

        Args:
            passages: may be none if `gone`, ids that are deleted from older folders, is not empty.
        """
        name = self._new_name("passages")
        folder = self._path / name
        folder.mkdir()
        ahead = iter(passages)
        first = next(ahead, None)
        if first is not None:
            recorder = Recorder(itertools.chain((first,), ahead))
            PassageFolder.write(folder, map(self._stored, recorder), source="collection")
            recorder.write(folder)
        if gone:
            (folder / _GONE).write_text(json.dumps(list(gone)), encoding="utf-8")
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


_OPTIONAL = ("pages", "dpi", "ocr", "passages", "left_out", "live")
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


def _entries(manifest: Manifest, index: Index | None) -> list[dict[str, Any]]:
    """Return name and files of each folder of passages, oldest first.

    Raises:
        KeyError, ValueError: they are something else.
    """
    found = manifest.passages
    if found is None:
        found = [] if index is None else index.attached["passages"]
    as_type(list[_Entry], found)
    return list(found)


def _format(manifest: Manifest, live: Live | None) -> int:
    """Return the format of a collection with such an index."""
    if manifest.format == FIRST_FORMAT:  # how its ids are made
        return FIRST_FORMAT
    return FORMAT if live is None else LIVE_FORMAT


def _steps(
    passages: Iterable[tuple[str, Vectors]],
) -> Iterator[list[tuple[str, Vectors]]]:
    """Yield passages in lists of a bounded size."""
    found: list[tuple[str, Vectors]] = []
    size = 0
    for passage_id, vectors in passages:
        found.append((passage_id, vectors))
        size += vectors.size
        if size > _STEP:
            yield found
            found, size = [], 0
    if found:
        yield found


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
