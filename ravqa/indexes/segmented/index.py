"""An index made of segments: the common base of all kinds on disk."""

from __future__ import annotations

import json
import threading
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from ravqa.core.arrays import load_array
from ravqa.core.errors import UserError, first_line
from ravqa.core.progress import Progress, silent
from ravqa.core.settings import fingerprint as fingerprint_of
from ravqa.core.settings import validate
from ravqa.core.stored import as_type, read_json
from ravqa.encoders.base import Vectors
from ravqa.indexes.base import (
    Array,
    Ranking,
    StoredIndex,
    check_k,
    checked_passages,
    checked_query,
    counted,
)
from ravqa.indexes.segmented import store
from ravqa.indexes.segmented.store import Manifest, SegmentEntry, Writer

Passages = Iterator[tuple[str, Array]]


class Stored(NamedTuple):
    """How one array of a segment is stored.

    Attributes:
        dtype: type of its values.
        rows: what it has a row for: each passage, vector, or run of vectors; or (bounds) where
            each passage begins, and where the last one ends.
        width: length of a row; None for single values.
        small: whether its content is checked when the index is opened, and not only by `verify`.
    """

    dtype: type
    rows: Literal["passages", "vectors", "runs", "bounds"]
    width: int | None = None
    small: bool = False
    mapped: Literal["r"] | None = "r"


_LENGTHS = Stored(np.int64, "passages", small=True, mapped=None)
_GONE = Stored(np.uint8, "passages", small=True, mapped=None)  # eight passages a row


@dataclass(frozen=True)
class Segment:
    """An opened segment.

    Attributes:
        first: the number of its first passage, counted over all segments.
        arrays: memory-mapped, by name.
        alive: bool [passages]: not deleted.
    """

    entry: SegmentEntry
    first: int
    ids: list[str]
    arrays: Mapping[str, Array]
    alive: Array

    @cached_property
    def offsets(self) -> Array:
        """Start of each passage's vectors, int64 [passages + 1], in the order of the ids."""
        return np.concatenate([[0], np.cumsum(self.arrays["lengths"], dtype=np.int64)])

    @cached_property
    def by_length(self) -> Array:
        """Passages ordered by their number of vectors, int64 [passages]."""
        return np.argsort(self.arrays["lengths"], kind="stable")


@dataclass(frozen=True)
class State:
    """One state of the index, which a search sees from beginning to end."""

    manifest: Manifest
    segments: tuple[Segment, ...]
    shared: Any

    @cached_property
    def alive(self) -> Array:
        """Passages that are not deleted, bool [passages of all segments]."""
        return np.concatenate([np.zeros(0, bool), *(s.alive for s in self.segments)])

    @cached_property
    def matchable(self) -> Array:
        """Rows whose passages have vectors, bool [rows]."""
        return np.concatenate(
            [np.zeros(0, bool), *(s.arrays["lengths"] > 0 for s in self.segments)]
        )

    @cached_property
    def ids(self) -> list[str]:
        """Ids of all rows, including deleted passages."""
        return [passage_id for s in self.segments for passage_id in s.ids]

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of each passage that is not deleted."""
        return {self.ids[i]: int(i) for i in np.flatnonzero(self.alive)}

    def by_segment(self, rows: Array) -> Iterator[tuple[Segment, Array, Array]]:
        """Yield per segment with some of `rows`: positions in `rows`, and rows in the segment."""
        for segment in self.segments:
            places = np.flatnonzero(
                (rows >= segment.first) & (rows < segment.first + len(segment.ids))
            )
            if len(places):
                yield segment, places, rows[places] - segment.first


class SegmentedIndex(StoredIndex):
    """A late-interaction index in a folder; see `indexes.base.Index` and `segmented.store`.

    Searches may run in many threads, and during a change: each sees the state that it began with.
    Other processes' changes are seen after `refresh`.
    """

    grows: ClassVar[bool] = True
    commits: ClassVar[bool] = True
    reports: ClassVar[bool] = True

    def __init__(self, path: Path, config: Any = None, *, fingerprint: str | None = None):
        """Open the index in `path`.

        Args:
            fingerprint: what the index must have been built from; None accepts any.

        Raises:
            UserError: the index is incomplete, of another kind or format, or built from something
                else.
        """
        super().__init__(path, config or self.Config(), fingerprint=fingerprint)
        self._sound: set[tuple[str, str]] = set()  # files that were checked: names, checksums
        self._mutex = threading.Lock()
        self._state = self._read()

    built = staticmethod(store.exists)

    @classmethod
    def generation(cls, path: Path) -> int:
        """Return the generation of the index in `path`."""
        return store.read_manifest(path).generation

    @classmethod
    def build(
        cls,
        ids: Iterable[str],
        embeddings: Iterable[Vectors],
        path: Path,
        *,
        dim: int,
        config: Any = None,
        fingerprint: str = "",
        attached: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Build an index of passages and open it; see `Index.build`.

        Args:
            ids, embeddings, path, dim, config, fingerprint: as there.
            attached: see `change`.
            progress: called as progress(what, done, total).
        """
        config = config or cls.Config()
        report = progress or silent
        start = Manifest(
            cls.kind, dim, fingerprint, settings=cls.fixed(config), attached=dict(attached or {})
        )
        with store.writing(Path(path), start) as writer:
            cls._fill(writer, _incoming(ids, embeddings, dim, report), config, report)
        return cls(path, config)

    # -- defined by each kind -----------------------------------------------------------------

    @classmethod
    @abstractmethod
    def fixed(cls, config: Any) -> dict[str, Any]:
        """Return the options that are fixed when the index is built."""

    @classmethod
    @abstractmethod
    def _arrays(cls, manifest: Manifest) -> Mapping[str, Stored]:
        """Return a segment's arrays besides `lengths`, in the order in which they are opened."""

    @classmethod
    @abstractmethod
    def _fill(cls, writer: Writer, passages: Passages, config: Any, progress: Progress) -> None:
        """Write and commit the first state."""

    @abstractmethod
    def _append(
        self, writer: Writer, state: State, passages: Passages, progress: Progress
    ) -> SegmentEntry | None:
        """Write a new segment; return None if there are no passages."""

    @abstractmethod
    def _compact(self, writer: Writer, state: State, progress: Progress) -> None:
        """Write and commit a state of one segment without deleted passages."""

    def _wants_compact(self, state: State) -> bool:
        """Return whether the index has grown so much that it should be rewritten."""
        return False

    @abstractmethod
    def _search(
        self, state: State, query: Array, k: int, allowed: Array, params: Mapping[str, Any]
    ) -> tuple[Array, Array]:
        """Return rows and scores of one query's k best among `allowed` (bool), best first."""

    @abstractmethod
    def _score(self, state: State, query: Array, rows: Array) -> Array:
        """Return the MaxSim of one query with `rows`, float32."""

    @classmethod
    def _open_shared(cls, path: Path, manifest: Manifest) -> Any:
        """Open what the segments share."""
        return None

    # -- reading ------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._state.manifest.dim

    @property
    def fingerprint(self) -> str:
        """The fingerprint that was passed to `build`."""
        return self._state.manifest.fingerprint

    @property
    def attached(self) -> Mapping[str, Any]:
        """The data that the index's owner committed with its state."""
        return self._state.manifest.attached

    @property
    def files(self) -> list[str]:
        """Names of the state's files in the index's folder, except its manifest."""
        return list(self._state.manifest.files)

    @property
    def packed(self) -> list[str]:
        """The manifest and the files that it names."""
        return [store.MANIFEST, *self.files]

    @property
    def content(self) -> str:
        """A fingerprint of all that a search depends on: vectors, deletions, settings."""
        manifest = self._state.manifest
        return fingerprint_of(
            manifest.kind, manifest.dim, manifest.settings, sorted(manifest.files.items())
        )

    def __len__(self) -> int:
        return self._state.manifest.passages

    def __contains__(self, passage_id: object) -> bool:
        return passage_id in self._state.rows

    @property
    def ids(self) -> list[str]:
        """The passages' ids, in order: as built, then as added."""
        state = self._state
        return [state.ids[i] for i in np.flatnonzero(state.alive)]

    def search(
        self,
        queries: Sequence[Vectors],
        k: int,
        *,
        allowed_ids: Iterable[str] | None = None,
        **params: Any,
    ) -> list[Ranking]:
        """Return the k best passages per query, (id, MaxSim), best first; ties in passage order.

        See `ravqa.indexes.base.Index.search`; the kind's `Config` names the `params`.
        """
        check_k(k)
        state = self._state
        allowed = state.alive
        if allowed_ids is not None:
            rows = [state.rows[i] for i in set(allowed_ids) if i in state.rows]
            allowed = np.zeros(len(state.alive), bool)
            allowed[rows] = True
        kept = [checked_query(query, self.dim) for query in queries]
        if not allowed.any():
            return [[] for _ in kept]
        return [
            [(state.ids[i], float(s)) for i, s in zip(best, scores, strict=True)]
            for best, scores in self._search_all(state, kept, k, allowed, params)
        ]

    def _search_all(
        self,
        state: State,
        queries: Sequence[Array],
        k: int,
        allowed: Array,
        params: Mapping[str, Any],
    ) -> list[tuple[Array, Array]]:
        """Return rows and scores of each query's k best; a kind may search for all at once."""
        return [self._search(state, query, k, allowed, params) for query in queries]

    def score(self, queries: Sequence[Vectors], ids: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the MaxSim of each query with each passage of its own list; see `Index.score`.

        Raises:
            KeyError: an id is not in the index.
        """
        state = self._state
        out = []
        for query, wanted in zip(queries, ids, strict=True):
            rows = np.array([state.rows[i] for i in wanted], dtype=np.int64)
            scores = self._score(state, checked_query(query, self.dim), rows)
            out.append([float(s) for s in scores])
        return out

    def stats(self) -> dict[str, Any]:
        """Return statistics: passages, vectors, bytes on disk, segments, settings."""
        manifest = self._state.manifest
        return {
            "kind": self.kind,
            "dim": manifest.dim,
            "passages": manifest.passages,
            "deleted": sum(s.deleted for s in manifest.segments),
            "vectors": manifest.vectors,
            "bytes": sum(size for size, _ in manifest.files.values()),
            "segments": len(manifest.segments),
            "generation": manifest.generation,
            "fingerprint": manifest.fingerprint,
            **{k: v for k, v in manifest.settings.items() if k != "shared"},
        }

    def verify(self) -> list[str]:
        """Reread every file and return one line per missing or changed one.

        Raises:
            UserError: the manifest itself is damaged.
        """
        return store.faults(self.path, store.read_manifest(self.path))

    def refresh(self) -> None:
        """Pick up what other processes have committed."""
        state = self._read()
        with self._mutex:
            if state.manifest.generation >= self._state.manifest.generation:
                self._state = state

    # -- changing -----------------------------------------------------------------------------

    def add(self, ids: Iterable[str], embeddings: Iterable[Vectors]) -> None:
        """Add passages after the existing ones.

        Raises:
            UserError: another process is writing.
            ValueError: an id already exists; see also `checked_passages`.
        """
        self.change(ids, embeddings)

    def delete(self, ids: Iterable[str]) -> None:
        """Delete passages; they are never found again. `compact` frees their disk space.

        Raises:
            UserError: another process is writing.
            KeyError: an id is not in the index.
        """
        self.change(delete=ids)

    def update(self, ids: Iterable[str], embeddings: Iterable[Vectors]) -> None:
        """Replace passages, or add those that do not exist, at once, after the others."""
        self.change(ids, embeddings, delete=None)

    def compact(self) -> None:
        """Rewrite everything into one segment, without the deleted passages."""
        with store.writing(self.path) as writer:
            self._rewrite(writer, silent)

    def _rewrite(self, writer: Writer, progress: Progress) -> None:
        self._compact(writer, self._opened(writer.manifest), progress)
        self._set(self._opened(writer.manifest))

    def change(
        self,
        ids: Iterable[str] = (),
        embeddings: Iterable[Vectors] = (),
        *,
        delete: Iterable[str] | None = (),
        attached: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Delete and add passages in one change, applied entirely or not at all; see `Index`."""
        report = progress or silent
        with store.writing(self.path) as writer:
            state = self._opened(writer.manifest)
            self._set(state)
            ids = list(ids)
            if delete is None:
                delete = [i for i in ids if i in state.rows]
            gone = {state.rows[i] for i in delete}
            for passage_id in ids:
                if passage_id in state.rows and state.rows[passage_id] not in gone:
                    raise ValueError(f"passage {passage_id!r} is already in the index: update it")
            segments = []
            rows = np.array(sorted(gone), dtype=np.int64)
            touched = {s.entry.name: local for s, _, local in state.by_segment(rows)}
            for segment in state.segments:
                entry = segment.entry
                if entry.name in touched:
                    dead = ~segment.alive
                    dead[touched[entry.name]] = True
                    entry = writer.mark_deleted(entry, dead)
                segments.append(entry)
            incoming = _incoming(ids, embeddings, self.dim, report)
            added = self._append(writer, state, incoming, report)
            if added is not None:
                segments.append(added)
            if added is not None or gone or attached is not None:
                new = {} if attached is None else {"attached": dict(attached)}
                self._set(self._opened(writer.commit(segments=tuple(segments), **new)))
                if self._wants_compact(self._state):
                    self._rewrite(writer, report)

    def _set(self, state: State) -> None:
        with self._mutex:
            self._state = state

    # -- opening ------------------------------------------------------------------------------

    def _read(self) -> State:
        """Return the state on disk, however often a writer replaces it meanwhile."""
        while True:
            manifest = store.read_manifest(self.path)
            if manifest.kind != self.kind:
                raise UserError(
                    f"the index in {self.path} is of kind {manifest.kind!r}, not {self.kind!r}"
                )
            try:
                state = self._opened(manifest)
            except (OSError, UserError):
                if store.read_manifest(self.path).generation == manifest.generation:
                    raise
            else:
                break
        self._check_source(manifest.fingerprint)
        return state

    def _opened(self, manifest: Manifest) -> State:
        """Open all files of a state; those that say where vectors are must be as written.

        Raises:
            DamagedError: a file is missing, cut off or changed, or does not fit the others.
        """
        store.check_files(self.path, manifest)
        own = dict(manifest.settings)
        name = str(own.pop("shared", ""))
        with self._reading(store.MANIFEST):
            if self.fixed(validate(self.Config, own, "its settings")) != own:
                raise ValueError("its settings are incomplete")
            layout = self._arrays(manifest)
        for file in manifest.files:
            if name and file.startswith(f"{name}/"):
                self._check_content(manifest, file)
        with self._reading(name or store.MANIFEST):
            shared = self._open_shared(self.path, manifest)
        segments, first = [], 0
        for entry in manifest.segments:
            segments.append(self._open_segment(manifest, entry, first, layout, shared))
            first += entry.passages
        return State(manifest, tuple(segments), shared)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Turn any exception raised inside into one line that names a file or folder."""
        try:
            yield
        except PermissionError as e:
            raise UserError(f"{self.path / name} cannot be read: {e.strerror}") from None
        except Exception as e:  # files of the right size with wrong content fail in many ways
            raise store.damaged(self.path, f"{name} cannot be read ({first_line(e)})") from None

    def _check_content(self, manifest: Manifest, name: str) -> bool:
        """Check a file's content; return False if this object did so before."""
        mark = name, manifest.files.get(name, (0, ""))[1]
        if mark in self._sound:
            return False
        if fault := store.content_fault(self.path, manifest, name):
            raise store.damaged(self.path, fault)
        self._sound.add(mark)
        return True

    def _open_segment(
        self,
        manifest: Manifest,
        entry: SegmentEntry,
        first: int,
        layout: Mapping[str, Stored],
        shared: Any,
    ) -> Segment:
        new = []

        def array(name: str, stored: Stored, rows: int) -> Array:
            if stored.small:
                new.append(self._check_content(manifest, name))
            with self._reading(name):
                found: Array = load_array(self.path / name, stored.mapped)
                shape = (rows, *([] if stored.width is None else [stored.width]))
                if (found.dtype, found.shape) != (stored.dtype, shape) or found.flags.fnc:
                    raise ValueError(f"{found.dtype} {found.shape} instead of {shape}")
            return found

        file = f"{entry.name}/ids.json"
        new.append(self._check_content(manifest, file))
        with self._reading(file):
            ids = as_type(list[str], read_json(self.path / file))
            if len(ids) != entry.passages or len(set(ids)) != len(ids):
                raise ValueError(f"it has not {entry.passages} different ids")
        lengths = array(f"{entry.name}/lengths.npy", _LENGTHS, len(ids))
        alive = np.ones(len(ids), bool)
        if entry.gone:
            gone = np.unpackbits(array(entry.gone, _GONE, -(-len(ids) // 8)), count=len(ids))
            alive = ~gone.astype(bool)
        with self._reading(entry.name):
            if lengths.min(initial=0) < 0 or lengths.sum() != entry.vectors:
                raise ValueError(f"its lengths do not make {entry.vectors} vectors")
            if len(ids) - alive.sum() != entry.deleted:
                raise ValueError(f"{entry.deleted} deleted passages are expected")
        counts = {"passages": len(ids), "vectors": entry.vectors, "bounds": len(ids) + 1}
        arrays: dict[str, Array] = {"lengths": lengths}
        for name, stored in layout.items():
            if stored.rows == "runs":
                counts["runs"] = int(arrays["run_offsets"][-1])
            arrays[name] = array(f"{entry.name}/{name}.npy", stored, counts[stored.rows])
        segment = Segment(entry, first, ids, arrays, alive)
        if any(new):
            with self._reading(entry.name):
                self._check_segment(segment, shared)
        return segment

    def _check_segment(self, segment: Segment, shared: Any) -> None:
        """Raise ValueError if what the kind's arrays say of places does not fit together."""


def _incoming(
    ids: Iterable[str], embeddings: Iterable[Vectors], dim: int, progress: Progress
) -> Passages:
    """Yield checked passages; report how many were read."""
    ids = list(ids)
    return counted(
        checked_passages(ids, embeddings, dim), lambda n: progress("reading vectors", n, len(ids))
    )


def write_ids(folder: Path, ids: Sequence[str], lengths: Array) -> None:
    """Write the two files that every segment has."""
    (folder / "ids.json").write_text(json.dumps(list(ids)), encoding="utf-8")
    np.save(folder / "lengths.npy", lengths)


def top(scores: Array, k: int) -> Array:
    """Return positions of the k greatest scores above minus infinity, best first, ties in order."""
    k = min(k, int((scores > -np.inf).sum()))
    if k == 0:
        return np.zeros(0, dtype=np.int64)
    bound = np.partition(scores, len(scores) - k)[len(scores) - k]
    places = np.flatnonzero(scores >= bound)
    best: Array = places[np.argsort(-scores[places], kind="stable")][:k]
    return best
