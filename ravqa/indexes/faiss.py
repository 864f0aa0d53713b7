"""faiss as an index: for encoders that make one vector per text or image.

The kind of search is written as a string for faiss' `index_factory` ("Flat", "IVF4096,Flat",
"HNSW32", "IVF4096,PQ32", "OPQ32,IVF4096,PQ32", ...). What faiss learns from the vectors, centroids
and codebooks, is learned once, when the index is built; every later segment uses it. A segment is
one faiss index of its passages' vectors, mapped into memory where faiss can.

A passage may have several vectors, such as those of an article's photos: its score is the greatest
dot product with any of them. A query of several vectors (a weighted sum of query forms) becomes
their sum where passages have one vector, which MaxSim does not distinguish. Otherwise the
passages of each query vector's `candidates` best matches are scored.

Deleted passages are passed over: a search asks faiss for more vectors until it has enough passages.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ravqa.core.errors import UserError, first_line, import_extra, near_matches
from ravqa.core.progress import Progress
from ravqa.core.settings import Strict, Text, validate
from ravqa.indexes.base import Array, Footprint, counted
from ravqa.indexes.compressed.codec import blocks
from ravqa.indexes.maxsim import maxsim
from ravqa.indexes.segmented.index import (
    Passages,
    Segment,
    SegmentedIndex,
    State,
    Stored,
    top,
    write_ids,
)
from ravqa.indexes.segmented.store import SPOOL, Manifest, SegmentEntry, Writer

_WHY = "the index faiss"
_TRAINED, _VECTORS = "trained.faiss", "vectors.faiss"
_SEARCH = ("nprobe", "ef_search", "candidates")  # what a single search may set
_BLOCK = 2**16  # vectors added at a time
_BYTES = 2**24  # of vectors that are decoded at a time
_CHECKED = 2**28  # bytes of a file that is compared with its checksum when the index is opened
_GPU_LIMIT = 2048  # results of one search on a GPU
_PLACE = re.compile(r"Error in .*? at \S+:\d+: ")  # with which faiss' errors begin
_KINDS = (
    *("IndexFlat", "IndexScalarQuantizer", "IndexPQ"),
    *("IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ"),
    *("IndexHNSWFlat", "IndexHNSWSQ", "IndexHNSWPQ"),
)
"""faiss' classes that give their vectors back, which scores and `compact` need."""


class FaissIndex(SegmentedIndex):
    """A faiss index in a folder; see the module for what it stores and how it is searched."""

    kind: ClassVar[str] = "faiss"

    class Config(Strict):
        """Options.

        Attributes:
            factory: the kind of search and storage, as a string for faiss' `index_factory`: of
                Flat, SQ..., PQ..., IVF... and HNSW..., also after OPQ... or PCA... and with
                Refine(...). Fixed when the index is built.
            train_vectors: most vectors, chosen at random, from which faiss learns. Fixed likewise.
            ef_construction: candidates when a graph (HNSW) is built. Fixed likewise.
            nprobe: lists that a search of IVF reads.
            ef_search: candidates of a search of HNSW; never fewer than the vectors it looks for.
            candidates: vectors that are looked for with each vector of a query of several, if
                passages have several too.
            device: where searches run: cpu, cuda, cuda:1, ..., or auto for the first GPU if faiss
                was built for GPUs and has this kind of search there. Building runs on the CPU.
        """

        factory: Text = "Flat"
        train_vectors: int = Field(default=2**18, ge=1)
        ef_construction: int = Field(default=80, ge=1)
        nprobe: int = Field(default=16, ge=1)
        ef_search: int = Field(default=64, ge=1)
        candidates: int = Field(default=1000, ge=1)
        device: Text = "auto"

        def packages(self) -> Sequence[tuple[str, str]]:
            """Return faiss."""
            return [("faiss", "cpu")]

    config: Config

    def __init__(self, path: Path, config: Config | None = None, *, fingerprint: str | None = None):
        """Open the index as `SegmentedIndex` does.

        Raises:
            MissingExtraError: faiss is not installed.
        """
        self._moved: dict[str, Any] = {}  # segments on a GPU
        self._moving = threading.Lock()
        super().__init__(path, config, fingerprint=fingerprint)

    # -- writing ------------------------------------------------------------------------------

    @classmethod
    def fixed(cls, config: Config) -> dict[str, Any]:
        """See `SegmentedIndex`."""
        return config.model_dump(include={"factory", "train_vectors", "ef_construction"})

    @classmethod
    def footprint(cls, config: Config, dim: int, passages: int) -> Footprint | None:
        """Return the vectors in float32, and their codes, which are in memory until written."""
        faiss = _faiss()
        try:
            index = faiss.index_factory(dim, config.factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError:  # a build says what is wrong with it
            return None
        code = 0.0
        for part in _parts_of(index):
            if hasattr(part, "hnsw"):  # links of the lowest level, and a few of the others
                code += faiss.downcast_index(part.storage).sa_code_size()
                code += 4 * (part.hnsw.nb_neighbors(0) + 2) + 12
            else:
                code += part.sa_code_size() + (16 if hasattr(part, "nprobe") else 0)
        return Footprint(4 * dim + code, code, 4 * dim * config.train_vectors)

    @classmethod
    def _arrays(cls, manifest: Manifest) -> Mapping[str, Stored]:
        return {}

    @classmethod
    def _fill(cls, writer: Writer, passages: Passages, config: Config, progress: Progress) -> None:
        with _Spool(writer, passages) as spool:
            empty = _trained(spool.vectors, writer.manifest.dim, config, progress)
            shared = writer.new_folder("shared")
            _faiss().write_index(empty, str(writer.path / shared / _TRAINED))
            writer.seal(shared)
            segment = _write(writer, spool, empty, progress)
        settings = writer.manifest.settings | {"shared": shared}
        writer.commit(segments=(segment,) if segment else (), settings=settings)

    def _append(
        self, writer: Writer, state: State, passages: Passages, progress: Progress
    ) -> SegmentEntry | None:
        with _Spool(writer, passages) as spool:
            path = self.path / state.manifest.settings["shared"] / _TRAINED
            return _write(writer, spool, _faiss().read_index(str(path)), progress)

    def _compact(self, writer: Writer, state: State, progress: Progress) -> None:
        segment = self._append(writer, state, self._all(state), progress)
        writer.commit(segments=(segment,) if segment else ())

    def _all(self, state: State) -> Passages:
        """Yield every passage that is not deleted, with its vectors as faiss gives them back."""
        for segment in state.segments:
            rows = np.flatnonzero(segment.alive)
            for part, lengths, vectors in self._parts(state, segment, rows):
                arrays = np.split(vectors, np.cumsum(lengths)[:-1])
                yield from zip((segment.ids[i] for i in rows[part]), arrays, strict=True)

    # -- opening ------------------------------------------------------------------------------

    @classmethod
    def _open_shared(cls, path: Path, manifest: Manifest) -> dict[str, Any]:
        """Open every segment's faiss index."""
        faiss = _faiss()
        # Lists are mapped in one way, and all else, in newer versions, in another.
        has_lists = "IVF" in str(manifest.settings["factory"])
        flags = faiss.IO_FLAG_MMAP if has_lists else getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        opened = {}
        for entry in manifest.segments:
            file = path / entry.name / _VECTORS
            index = faiss.read_index(str(file), flags)
            if (index.d, index.ntotal) != (manifest.dim, entry.vectors):
                raise ValueError(
                    f"{entry.name}/{_VECTORS} holds {index.ntotal} vectors of length {index.d}"
                )
            opened[entry.name] = index
        return opened

    def _opened(self, manifest: Manifest) -> State:
        _faiss()  # without it nothing is damaged
        for entry in manifest.segments:
            name = f"{entry.name}/{_VECTORS}"
            # faiss trusts what it reads.
            if name not in manifest.files or manifest.files[name][0] <= _CHECKED:
                self._check_content(manifest, name)
        state = super()._opened(manifest)
        with self._moving:
            self._moved = {n: i for n, i in self._moved.items() if n in state.shared}
        return state

    def _searcher(self, state: State, segment: Segment) -> tuple[Any, bool]:
        """Return a segment's faiss index where searches run, and whether that is a GPU."""
        name, faiss = segment.entry.name, _faiss()
        device = self.config.device
        gpus = getattr(faiss, "get_num_gpus", lambda: 0)()
        if device == "cpu" or (device == "auto" and not gpus):
            return state.shared[name], False
        with self._moving:
            if name not in self._moved:
                number = int(device.partition(":")[2] or 0)
                if not device.startswith(("auto", "cuda")) or number >= gpus:
                    raise UserError(
                        f"{_WHY}: the device {device!r} cannot be used: this build of faiss sees "
                        f"{gpus} GPUs"
                    )
                try:
                    moved = faiss.index_cpu_to_gpu(
                        faiss.StandardGpuResources(), number, state.shared[name]
                    )
                except RuntimeError as e:
                    if device != "auto":
                        raise UserError(
                            f"{_WHY}: {self.config.factory} cannot be searched on a GPU: "
                            f"{_reason(e)}"
                        ) from None
                    moved = None
                self._moved[name] = moved
            moved = self._moved[name]
        return (state.shared[name], False) if moved is None else (moved, True)

    # -- searching ----------------------------------------------------------------------------

    def _search(
        self, state: State, query: Array, k: int, allowed: Array, params: Mapping[str, Any]
    ) -> tuple[Array, Array]:
        return self._search_all(state, [query], k, allowed, params)[0]

    def _search_all(
        self,
        state: State,
        queries: Sequence[Array],
        k: int,
        allowed: Array,
        params: Mapping[str, Any],
    ) -> list[tuple[Array, Array]]:
        config = self._settings(params)
        rows = np.flatnonzero(allowed & state.matchable)
        if 4 * len(rows) < len(allowed):
            return [_best(rows, self._score(state, query, rows), k) for query in queries]
        one_each = all(s.arrays["lengths"].max(initial=0) <= 1 for s in state.segments)
        single = [i for i, query in enumerate(queries) if one_each or len(query) == 1]
        found: dict[int, tuple[Array, Array]] = {}
        if single:
            sums = np.stack([queries[i].sum(0) for i in single])
            found |= zip(single, self._nearest(state, sums, k, allowed, config), strict=True)
        for i, query in enumerate(queries):
            if i not in found:
                near = self._nearest(state, query, max(k, config.candidates), allowed, config)
                rows = np.unique(np.concatenate([own for own, _ in near]))
                found[i] = _best(rows, self._score(state, query, rows), k)
        return [found[i] for i in range(len(queries))]

    def _settings(self, params: Mapping[str, Any]) -> Config:
        for name in params:
            if name not in _SEARCH:
                raise UserError(f"search: no setting {name!r}: {near_matches(name, _SEARCH)}")
        if not params:
            return self.config
        return validate(self.Config, self.config.model_dump() | dict(params), "search")

    def _nearest(
        self, state: State, vectors: Array, k: int, allowed: Array, config: Config
    ) -> list[tuple[Array, Array]]:
        """Return, for each query vector, rows and scores of its k best passages, best first.

        Args:
            vectors: float32 [queries, dim].
            allowed: bool [rows]: the passages that may be found.
        """
        parts: list[list[tuple[Array, Array]]] = [[] for _ in vectors]
        for segment in state.segments:
            for place, rows, scores in self._in_segment(
                state, segment, vectors, k, allowed, config
            ):
                parts[place].append((rows, scores))
        out = []
        for own in parts:
            rows = np.concatenate([np.zeros(0, np.int64), *(r for r, _ in own)])
            scores = np.concatenate([np.zeros(0, np.float32), *(s for _, s in own)])
            out.append(_best(rows, scores, k))
        return out

    def _in_segment(
        self, state: State, segment: Segment, vectors: Array, k: int, allowed: Array, config: Config
    ) -> Iterator[tuple[int, Array, Array]]:
        """Yield for each query vector its number, and rows and scores of at least k passages.

        Fewer are found only if faiss has no more: for IVF, in the lists that are read. Rows are in
        order, and none is missing whose score equals the k-th.
        """
        index, on_gpu = self._searcher(state, segment)
        total = segment.entry.vectors
        most = min(total, _GPU_LIMIT) if on_gpu else total
        todo, wanted = np.arange(len(vectors)), min(most, 2 * k + 8)
        while len(todo) and wanted:
            options = _search_options(index, config, wanted, on_gpu)
            scores, places = index.search(vectors[todo], wanted, params=options)
            left = []
            for number, own_scores, own_places in zip(todo, scores, places, strict=True):
                there = own_places >= 0
                owners = np.searchsorted(segment.offsets, own_places[there], side="right") - 1
                rows, first = np.unique(owners + segment.first, return_index=True)
                best = own_scores[there][first]  # the first vector of a passage is its best
                rows, best = rows[allowed[rows]], best[allowed[rows]]
                whole = wanted >= most or not there.all()
                if whole or (len(rows) >= k and np.sort(best)[-k] > own_scores[-1]):
                    yield int(number), rows, best
                else:
                    left.append(number)
            todo, wanted = np.array(left, dtype=np.int64), min(most, 4 * wanted)

    def _score(self, state: State, query: Array, rows: Array) -> Array:
        import torch

        out = np.full(len(rows), -np.inf, dtype=np.float32)
        left = torch.from_numpy(query)
        for segment, places, local in state.by_segment(rows):
            for part, lengths, vectors in self._parts(state, segment, local):
                out[places[part]] = maxsim(left, torch.from_numpy(vectors), lengths)
        return out

    def _parts(
        self, state: State, segment: Segment, rows: Array
    ) -> Iterator[tuple[slice, Array, Array]]:
        """Yield slices of `rows` that fit in memory, with lengths and concatenated vectors."""
        index = state.shared[segment.entry.name]
        every = segment.arrays["lengths"][rows]
        for first, last in blocks(every, _BYTES // (4 * self.dim)):
            lengths = every[first:last]
            shifts = segment.offsets[rows[first:last]] - (np.cumsum(lengths) - lengths)
            places = np.repeat(shifts, lengths) + np.arange(lengths.sum())
            vectors = np.zeros((0, self.dim), np.float32)
            if len(places):
                vectors = index.reconstruct_batch(places.astype(np.int64))
            yield slice(first, last), lengths, vectors


class _Spool:
    """Passages' vectors in a scratch file of the writer, float32, until faiss has them."""

    def __init__(self, writer: Writer, passages: Passages):
        self._file = writer.path / SPOOL
        self._dim = writer.manifest.dim
        self._passages = passages

    def __enter__(self) -> _Spool:
        self.ids: list[str] = []
        counts: list[int] = []
        try:
            with self._file.open("wb") as stream:
                for passage_id, array in self._passages:
                    stream.write(np.ascontiguousarray(array, dtype=np.float32).tobytes())
                    self.ids.append(passage_id)
                    counts.append(len(array))
        except BaseException:
            self._file.unlink(missing_ok=True)
            raise
        self.lengths = np.array(counts, dtype=np.int64)
        self.vectors: Array = np.zeros((0, self._dim), np.float32)
        if sum(counts):  # an empty file cannot be mapped
            shape = (sum(counts), self._dim)
            self.vectors = np.memmap(self._file, np.float32, "r", shape=shape)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.unlink(missing_ok=True)


def _faiss() -> Any:
    return import_extra("faiss", "cpu", why=_WHY)


def _trained(vectors: Array, dim: int, config: FaissIndex.Config, progress: Progress) -> Any:
    """Return an empty faiss index that has learned from vectors, float32 [vectors, dim].

    Raises:
        UserError: faiss does not know the factory string, it is for no kind of index that is used
            here, or there are too few vectors for it.
    """
    faiss = _faiss()
    problem = f"{_WHY}: {config.factory!r} cannot be made of {len(vectors)} vectors of length {dim}"
    try:
        index = faiss.index_factory(dim, config.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as e:
        raise UserError(f"{problem}: {_reason(e)}") from None
    for part in _parts_of(index):
        name = type(part).__name__
        if name not in _KINDS:
            raise UserError(
                f"{_WHY}: {config.factory!r} is of kind {name}, which does not give its vectors "
                "back: choose Flat, SQ, PQ, IVF or HNSW"
            )
        if hasattr(part, "hnsw"):
            part.hnsw.efConstruction = config.ef_construction
        owners: list[Any] = [part, getattr(part, "pq", None)]
        for owner in owners:
            if hasattr(owner, "cp"):  # else faiss warns of few points for each clustering
                owner.cp.min_points_per_centroid = 1
    if index.is_trained:
        return index
    rows = len(vectors)
    if rows > config.train_vectors:
        chosen = np.random.default_rng(0).choice(rows, config.train_vectors, replace=False)
        vectors = vectors[np.sort(chosen)]
    progress("learning from vectors", 0, 1)
    try:
        index.train(np.ascontiguousarray(vectors))
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"{problem}: {_reason(e)}") from None
    progress("learning from vectors", 1, 1)
    return index


def _write(writer: Writer, spool: _Spool, empty: Any, progress: Progress) -> SegmentEntry | None:
    """Write a new segment of an index that has learned; return None if there are no passages."""
    if not spool.ids:
        return None
    faiss, index, total = _faiss(), empty, len(spool.vectors)
    starts: Iterable[int] = range(0, total, _BLOCK)
    for start in counted(
        starts, lambda n: progress("writing the index", min(n * _BLOCK, total), total)
    ):
        index.add(np.ascontiguousarray(spool.vectors[start : start + _BLOCK]))
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:  # where in its lists each vector is
        lists.set_direct_map_type(faiss.DirectMap.Array)
    name = writer.new_folder("segment")
    folder = writer.path / name
    write_ids(folder, spool.ids, spool.lengths)
    faiss.write_index(index, str(folder / _VECTORS))
    writer.seal(name)
    return SegmentEntry(name, len(spool.ids), total)


def _parts_of(index: Any) -> Iterator[Any]:
    """Yield the indexes that store vectors inside a composed one."""
    faiss = _faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        yield from _parts_of(index.index)
    elif isinstance(index, faiss.IndexRefine):
        yield from _parts_of(index.base_index)
        yield from _parts_of(index.refine_index)
    else:
        yield index


def _search_options(index: Any, config: FaissIndex.Config, wanted: int, on_gpu: bool) -> Any:
    """Return faiss' object of search settings for this kind of index; None without settings."""
    faiss = _faiss()
    if on_gpu:
        return faiss.SearchParametersIVF(nprobe=config.nprobe) if hasattr(index, "nprobe") else None
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _search_options(index.index, config, wanted, on_gpu)
        return inner and faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = _search_options(index.base_index, config, wanted, on_gpu)
        return inner and faiss.IndexRefineSearchParameters(k_factor=4, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=config.nprobe)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=max(config.ef_search, wanted))
    return None


def _best(rows: Array, scores: Array, k: int) -> tuple[Array, Array]:
    """Return the k rows with the greatest scores, best first, ties in order of the rows."""
    order = np.argsort(rows)
    rows, scores = rows[order], scores[order]
    best = top(scores, k)
    return rows[best], scores[best]


def _reason(error: Exception) -> str:
    """Return what faiss says went wrong, without the places in its code."""
    text = first_line(error)
    place = _PLACE.match(text)
    return (text[place.end() :] if place else text).rpartition(" failed: ")[2]
