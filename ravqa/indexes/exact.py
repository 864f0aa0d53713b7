"""Exact MaxSim over every passage, in blocks, from memory-mapped files.

A segment's `vectors.npy` [all vectors, dim] holds its passages sorted by their number of vectors,
so that passages of equal length are adjacent and are scored as one dense block, without padding
or a segmented maximum. Products and sums are float32 for every storage type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ravqa.core.progress import Progress
from ravqa.core.settings import Strict, Text
from ravqa.encoders.base import Vectors
from ravqa.indexes.base import Array, Footprint, checked_query, counted
from ravqa.indexes.compressed.codec import blocks
from ravqa.indexes.maxsim import device_of, maxsim
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

if TYPE_CHECKING:
    import torch

_DTYPES = {"float16": np.float16, "float32": np.float32, "int8": np.int8}


class ExactIndex(SegmentedIndex):
    """An index that stores every vector, as given or in 8 bits, and scores all of them."""

    kind: ClassVar[str] = "exact"

    class Config(Strict):
        """Options.

        Attributes:
            storage: how vectors are stored; int8 uses one scale per vector. Fixed when the index
                is built.
            block_mb: megabytes of vectors, and of products, processed at a time.
            device: auto, cpu, cuda, ...
        """

        storage: Literal["float16", "float32", "int8"] = "float16"
        block_mb: int = Field(default=8, ge=1)
        device: Text = "auto"

    config: Config

    @cached_property
    def _device(self) -> torch.device:
        return device_of(self.config.device)

    @classmethod
    def fixed(cls, config: Config) -> dict[str, Any]:
        """See `SegmentedIndex`."""
        return {"storage": config.storage}

    @classmethod
    def footprint(cls, config: Config, dim: int, passages: int) -> Footprint:
        """Return the vectors as they are collected, and as they are stored."""
        spooled = dim * (2 if config.storage == "float16" else 4)
        scale = 4 if config.storage == "int8" else 0
        return Footprint(spooled + dim * np.dtype(_DTYPES[config.storage]).itemsize + scale, scale)

    @classmethod
    def _arrays(cls, manifest: Manifest) -> Mapping[str, Stored]:
        storage = manifest.settings["storage"]
        arrays = {"vectors": Stored(_DTYPES[storage], "vectors", manifest.dim)}
        return arrays | ({"scales": Stored(np.float32, "vectors")} if storage == "int8" else {})

    @classmethod
    def _fill(cls, writer: Writer, passages: Passages, config: Config, progress: Progress) -> None:
        segment = _write(writer, passages, progress)
        writer.commit(segments=(segment,) if segment else ())

    def _append(
        self, writer: Writer, state: State, passages: Passages, progress: Progress
    ) -> SegmentEntry | None:
        return _write(writer, passages, progress)

    def _compact(self, writer: Writer, state: State, progress: Progress) -> None:
        segment = _write(writer, self._passages(state), progress)
        writer.commit(segments=(segment,) if segment else ())

    def embeddings(self) -> Iterator[Array]:
        """Yield each passage's vectors as stored, float32 [vectors, dim], in the order of `ids`."""
        return (array for _, array in self._passages(self._state))

    def _passages(self, state: State) -> Passages:
        for segment in state.segments:
            rows = np.flatnonzero(segment.alive)
            for part, lengths, vectors in self._parts(segment, rows):
                arrays = np.split(vectors, np.cumsum(lengths)[:-1])
                yield from zip((segment.ids[i] for i in rows[part]), arrays, strict=True)

    def _search(
        self, state: State, query: Array, k: int, allowed: Array, params: Mapping[str, Any]
    ) -> tuple[Array, Array]:
        if params:
            raise ValueError(f"an exact search takes no settings: {', '.join(params)}")
        few = np.flatnonzero(allowed)
        if 4 * len(few) < len(allowed):
            scores = self._score(state, query, few)
            best = top(scores, k)
            return few[best], scores[best]
        scores = self._all_scores(state, [query])[0]
        scores[~allowed] = -np.inf
        best = top(scores, k)
        return best, scores[best]

    def scores(self, queries: Sequence[Vectors]) -> Array:
        """Return the MaxSim of each query and passage, float32 [queries, passages], as `ids`.

        A passage without vectors scores minus infinity.
        """
        state = self._state
        kept = [checked_query(query, self.dim) for query in queries]
        scores: Array = self._all_scores(state, kept)[:, state.alive]
        return scores

    def _all_scores(self, state: State, queries: Sequence[Array]) -> Array:
        """Return the scores of all rows, float32 [queries, rows]."""
        import torch

        out = np.full((len(queries), len(state.alive)), -np.inf, dtype=np.float32)
        if not queries:
            return out
        counts = [len(query) for query in queries]
        stacked = torch.from_numpy(np.concatenate(queries)).to(self._device)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        for segment in state.segments:
            for rows, begin, end in self._blocks(segment, len(stacked)):
                block = torch.from_numpy(_decoded(segment, slice(begin, end))).to(self._device)
                best = (stacked @ block.T).view(len(stacked), len(rows), -1).amax(-1)
                for i in range(len(queries)):
                    total = best[bounds[i] : bounds[i + 1]].sum(0)
                    out[i, segment.first + rows] = total.cpu().numpy()
        return out

    def _score(self, state: State, query: Array, rows: Array) -> Array:
        import torch

        out = np.full(len(rows), -np.inf, dtype=np.float32)
        left = torch.from_numpy(query).to(self._device)
        for segment, places, local in state.by_segment(rows):
            for part, lengths, vectors in self._parts(segment, local):
                right = torch.from_numpy(vectors).to(self._device)
                out[places[part]] = maxsim(left, right, lengths)
        return out

    def _parts(self, segment: Segment, rows: Array) -> Iterator[tuple[slice, Array, Array]]:
        """Yield slices of `rows` that fit in memory, with lengths and concatenated vectors."""
        place = np.empty(len(segment.ids), np.int64)
        order, begins = _layout(segment)
        place[order] = begins
        every = segment.arrays["lengths"][rows]
        for first, last in blocks(every, self.config.block_mb * 2**20 // (4 * self.dim)):
            lengths = every[first:last]
            shifts = place[rows[first:last]] - (np.cumsum(lengths) - lengths)
            places = np.repeat(shifts, lengths) + np.arange(lengths.sum())
            yield slice(first, last), lengths, _decoded(segment, places)

    def _blocks(self, segment: Segment, lanes: int) -> Iterator[tuple[Array, int, int]]:
        """Yield passages of one length and the bounds of their vectors, in bounded memory."""
        budget = max(1, self.config.block_mb * 2**20 // (4 * max(self.dim, lanes)))
        order, begins = _layout(segment)
        lengths = segment.arrays["lengths"][order]
        first = int(np.searchsorted(lengths, 1))  # passages without vectors cannot match
        while first < len(order):
            length = int(lengths[first])
            end = int(np.searchsorted(lengths, length, side="right"))
            end = min(end, first + max(1, budget // length))
            begin = int(begins[first])
            yield order[first:end], begin, begin + (end - first) * length
            first = end


def _layout(segment: Segment) -> tuple[Array, Array]:
    """Return the passages in the order of `vectors.npy`, and where each one's vectors begin."""
    lengths = segment.arrays["lengths"]
    order = segment.by_length
    ends = np.cumsum(lengths[order])
    return order, ends - lengths[order]


def _decoded(segment: Segment, places: Any) -> Array:
    vectors: Array = segment.arrays["vectors"][places].astype(np.float32)
    if "scales" in segment.arrays:
        vectors *= segment.arrays["scales"][places][:, None]
    return vectors


def _write(writer: Writer, passages: Passages, progress: Progress) -> SegmentEntry | None:
    """Write a new segment; return None if there are no passages."""
    dim, storage = writer.manifest.dim, writer.manifest.settings["storage"]
    raw = np.float16 if storage == "float16" else np.float32
    ids: list[str] = []
    counts: list[int] = []
    spool = writer.path / SPOOL
    try:
        with spool.open("wb") as stream:
            for passage_id, array in passages:
                stream.write(np.ascontiguousarray(array, dtype=raw).tobytes())
                ids.append(passage_id)
                counts.append(len(array))
        if not ids:
            return None
        name = writer.new_folder("segment")
        folder = writer.path / name
        lengths = np.array(counts, dtype=np.int64)
        write_ids(folder, ids, lengths)
        if not sum(counts):  # an empty file cannot be mapped
            _save_empty(folder, storage, dim)
        else:
            spooled: Array = np.memmap(spool, raw, "r", shape=(sum(counts), dim))
            _sort_by_length(spooled, folder, lengths, storage, progress)
        writer.seal(name)
        return SegmentEntry(name, len(ids), sum(counts))
    finally:
        spool.unlink(missing_ok=True)


def _save_empty(folder: Path, storage: str, dim: int) -> None:
    np.save(folder / "vectors.npy", np.zeros((0, dim), _DTYPES[storage]))
    if storage == "int8":
        np.save(folder / "scales.npy", np.zeros(0, np.float32))


def _sort_by_length(
    spooled: Array, folder: Path, lengths: Array, storage: str, progress: Progress
) -> None:
    """Write `vectors.npy` (and `scales.npy`), passages sorted by their number of vectors."""
    vectors = np.lib.format.open_memmap(
        folder / "vectors.npy", mode="w+", dtype=_DTYPES[storage], shape=spooled.shape
    )
    scales = np.empty(len(spooled), np.float32)
    begins = np.cumsum(lengths) - lengths
    at = 0
    order = np.argsort(lengths, kind="stable")
    for i in counted(order, lambda n: progress("writing the index", n, len(order))):
        part = spooled[begins[i] : begins[i] + lengths[i]]
        rows = slice(at, at + len(part))
        if storage == "int8":
            wide = part.astype(np.float32)
            scales[rows] = np.maximum(np.abs(wide).max(1, initial=0.0), 1e-12) / 127
            part = np.rint(wide / scales[rows, None])
        vectors[rows] = part
        at += len(part)
    vectors.flush()
    if storage == "int8":
        np.save(folder / "scales.npy", scales)
