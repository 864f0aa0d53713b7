"""The compressed index's search in torch: on GPUs, and on processors without numba.

The stages of `compressed.index`, as they suit a device that multiplies dense matrices faster than
it picks single runs:

1. a table of the products of all centroids and the vectors of several queries, lifted as there;
2. the scan: for every passage the best entry per query vector, summed, and corrected by the mean
   residual. `embedding_bag` finds these maxima without a copy of the entries;
3. MaxSim of the candidates over all stored vectors in half precision, which only chooses those
4. that are scored in float32: MaxSim over the stored vectors, which gives ranking and scores.

The CPU computes 1 and 2 in float32, and 4 for all candidates, since its half precision is slow.

A device keeps what the scan needs (two bytes for each run and each vector). Of the stored vectors
it keeps as many passages as its share of memory holds; the others' are gathered on the host and
copied over when they are scored. The host plans: it knows all lengths, so that no operation has a
size that depends on values on the device. For a group of queries it waits three times at most: for
candidates, for the best of them, and for scores.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ravqa.core.errors import UserError, first_line
from ravqa.indexes.base import Array
from ravqa.indexes.compressed.codec import SCALE_UNIT, Codec, blocks
from ravqa.indexes.segmented.index import Segment, State, top

_log = logging.getLogger(__name__)

_GIB = 2**30
_SHARE = 0.25
"""Of a device's free memory, for stored vectors: encoders and readers need some too."""
_FEW = 100  # passages beyond k that are scored in float32
_TABLES = 2**28  # bytes of the table of a group of queries, and of its scores of all rows
_AT_ONCE = {"cpu": 2**24}
"""Bytes of intermediate results; on the CPU, as many as fit in its caches."""
_AT_ONCE_ELSEWHERE = 2**28
_COPIED = 2**26  # bytes copied to the device at a time
_NO_MEMORY = ("out of memory", "ALLOC_FAILED")  # in messages of torch and of CUDA's libraries


@dataclass(frozen=True, eq=False)
class _Part:
    """Consecutive passages of a segment; places count from the first of them.

    Attributes:
        lengths: int64 [passages], on the host.
        offsets: int64 [passages + 1], where each passage's vectors begin; on the host, and `begins`
            on the device.
        bounds: int64 [passages + 1], where each passage's runs begin; on the host, and `runs` on
            the device.
        codes: int16 [runs], the runs' centroids; all codes have the bits of uint16.
        of_vectors: int16 [vectors], the vectors' centroids; empty if vectors are stored whole.
        means: int8 [passages, dim], mean residuals, and their units, int16 [passages].
        stored: what vectors are decoded from, by its name in the segment: tensors on the device, or
            the segment's arrays.
        resident: whether they are on the device.
    """

    lengths: Array
    offsets: Array
    begins: torch.Tensor
    bounds: Array
    runs: torch.Tensor
    codes: torch.Tensor
    of_vectors: torch.Tensor
    means: tuple[torch.Tensor, torch.Tensor]
    stored: Mapping[str, Any]
    resident: bool


@dataclass(frozen=True)
class _Loaded:
    """A state of the index on the device.

    Attributes:
        parts: each with the row of its first passage.
        by_segment: the same, by what identifies a segment's files.
        centers: [centroids, dim], in float32 and, which is exact, in float16.
        lift: float32 [centroids], what is added to a centroid's products with unit vectors.
    """

    state: State
    parts: Sequence[tuple[int, _Part]]
    by_segment: Mapping[Any, Sequence[_Part]]
    centers: Mapping[torch.dtype, torch.Tensor]
    lift: torch.Tensor

    @property
    def resident(self) -> bool:
        """Whether all stored vectors are on the device."""
        return all(part.resident for _, part in self.parts)


class TorchSearch:
    """Searches states of one index on one device; for many threads at a time."""

    def __init__(self, device: torch.device, lift: float, mean: float, gib: float | None):
        """Load nothing yet.

        Args:
            lift: standard deviations of a centroid's vectors by which its products are raised.
            mean: share of the product with a passage's mean residual that is added to the scan.
            gib: GiB of stored vectors to keep on the device, which is not the CPU; None for a
                quarter of its free memory.
        """
        self._device = device
        self._lift = lift
        self._mean = mean
        self._gib = gib
        self._half = device.type != "cpu"
        self._at_once = _AT_ONCE.get(device.type, _AT_ONCE_ELSEWHERE)
        self._lock = threading.Lock()
        self._known: _Loaded | None = None
        self._share: int | None = None
        self._said = False

    def resident(self, state: State) -> bool:
        """Return whether searches of the state read no file; loads it."""
        with self._memory():
            return self._loaded(state).resident

    def search(
        self,
        state: State,
        queries: Sequence[Array],
        k: int,
        allowed: Array,
        wanted: Sequence[int],
    ) -> list[tuple[Array, Array]]:
        """Return rows (int64) and scores (float32) of each query's k best, best first.

        Args:
            queries: float32 [vectors, dim] each.
            allowed: bool [rows], passages that may be found; each has vectors.
            wanted: number of candidates of each query.

        Raises:
            UserError: the device has too little memory.
        """
        rows = np.flatnonzero(allowed)
        nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
        out = [nothing for _ in queries]
        if not len(rows):
            return out
        with self._memory():
            loaded = self._loaded(state)
            on_device = self._there(allowed)
            for group in self._groups(queries, len(loaded.lift), len(allowed)):
                some = _Queries(self, loaded, [queries[i] for i in group])
                counts = [min(wanted[i], len(rows)) for i in group]
                candidates = [rows] * len(group)
                if min(counts) < len(rows):
                    candidates = self._candidates(loaded, some, on_device, counts)
                found = self._best(loaded, some, candidates, k)
                for i, best in zip(group, found, strict=True):
                    out[i] = best
        return out

    def score(self, state: State, query: Array, rows: Array) -> Array:
        """Return the MaxSim over the stored vectors of the rows, float32.

        Raises:
            UserError: the device has too little memory.
        """
        with self._memory():
            loaded = self._loaded(state)
            some = _Queries(self, loaded, [query])
            scores: Array = self._scores(loaded, some.whole[0], rows).cpu().numpy()
        return scores

    # -- the stages ---------------------------------------------------------------------------

    def _groups(self, queries: Sequence[Array], centroids: int, rows: int) -> Iterator[list[int]]:
        """Yield the queries' numbers: those of about equal length together, with one table."""
        group: list[int] = []
        for i in sorted(range(len(queries)), key=lambda i: len(queries[i])):
            values = (len(group) + 1) * max(len(queries[i]) * centroids, rows)
            if group and 4 * values > _TABLES:
                yield group
                group = []
            group.append(i)
        if group:
            yield group

    def _candidates(
        self, loaded: _Loaded, queries: _Queries, allowed: torch.Tensor, counts: Sequence[int]
    ) -> list[Array]:
        """Return the rows of each query's candidates, as many as `counts` says, in order."""
        scores = self._scan(loaded, *self._table(loaded, queries))
        scores.masked_fill_(~allowed, -torch.inf)
        found = scores.topk(max(counts)).indices.cpu().numpy()
        return [np.sort(row[:count]) for row, count in zip(found, counts, strict=True)]

    def _table(self, loaded: _Loaded, queries: _Queries) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lifted products [centroids, queries x the longest's vectors].

        In half precision each query's are divided by the greatest, which changes no order. The
        second result is to be multiplied by mean residuals, float32 [queries, dim]: the sum of a
        query's vectors, in the table's units and times the share that counts.
        """
        toward = queries.rotated.sum(1) * (self._mean * SCALE_UNIT)
        table = loaded.centers[torch.float32] @ queries.rotated.flatten(0, 1).T
        table.addcmul_(loaded.lift[:, None], queries.rotated.norm(dim=2).flatten())
        if self._half:
            each = table.view(len(table), *queries.rotated.shape[:2])
            greatest = each.abs().amax((0, 2)).clamp_min(1e-30)[:, None]
            each /= greatest
            toward /= greatest
            table = table.half()
        return table, toward

    def _scan(self, loaded: _Loaded, table: torch.Tensor, toward: torch.Tensor) -> torch.Tensor:
        """Return approximate scores of all rows, float32 [queries, rows]; 0 without vectors."""
        queries = len(toward)
        out = torch.zeros((queries, len(loaded.state.alive)), device=self._device)
        step = max(1, self._at_once // (12 * table.shape[1]))
        for row, part in loaded.parts:
            for first in range(0, len(part.lengths), step):
                last = min(first + step, len(part.lengths))
                begin, end = int(part.bounds[first]), int(part.bounds[last])
                if begin == end:
                    continue
                best = torch.nn.functional.embedding_bag(
                    _unsigned(part.codes[begin:end]),
                    table,
                    (part.runs[first:last] - begin).int(),
                    mode="max",
                )
                sums = best.view(last - first, queries, -1).sum(2, dtype=torch.float32)
                means, units = (values[first:last] for values in part.means)
                sums.addcmul_(means.float() @ toward.T, _unsigned(units)[:, None])
                out[:, row + first : row + last] = sums.T
        return out

    def _best(
        self, loaded: _Loaded, queries: _Queries, candidates: Sequence[Array], k: int
    ) -> list[tuple[Array, Array]]:
        """Return rows and scores of each query's k best candidates."""
        near = k + _FEW
        kept = list(candidates)
        many = [j for j, rows in enumerate(candidates) if self._half and len(rows) > near]
        if many:
            rough = (self._scores(loaded, queries.half(j), candidates[j]) for j in many)
            places = torch.stack([scores.topk(near).indices for scores in rough]).cpu().numpy()
            for j, chosen in zip(many, places, strict=True):
                kept[j] = candidates[j][np.sort(chosen)]
        pairs = zip(queries.whole, kept, strict=True)
        scores = torch.cat([self._scores(loaded, query, rows) for query, rows in pairs]).cpu()
        parts = np.split(scores.numpy(), np.cumsum([len(rows) for rows in kept])[:-1])
        places = [top(part, k) for part in parts]
        return [(r[p], s[p]) for r, s, p in zip(kept, parts, places, strict=True)]

    def _scores(self, loaded: _Loaded, query: torch.Tensor, rows: Array) -> torch.Tensor:
        """Return the MaxSim of one query with rows, computed in the query's type, float32 [rows].

        Minus infinity for a row without vectors.
        """
        out = torch.full((len(rows),), -torch.inf, device=self._device)
        size = self._at_once // (query.element_size() * (2 * query.shape[1] + len(query)))
        for row, part in loaded.parts:
            places = np.flatnonzero((rows >= row) & (rows < row + len(part.lengths)))
            lengths = part.lengths[rows[places] - row]
            order = np.argsort(lengths, kind="stable")
            order = order[np.searchsorted(lengths[order], 1) :]
            if not len(order):
                continue
            places, lengths = places[order], lengths[order]
            local = rows[places] - row
            there, where = self._there(local), self._there(places)
            # Sorting by length keeps padding small; a passage is padded with its last vector,
            # which changes no maximum.
            for first, last in _by_length(lengths, size):
                vectors = self._vectors(
                    part,
                    local[first:last],
                    there[first:last],
                    int(lengths[last - 1]),
                    loaded.centers[query.dtype],
                )
                products = vectors @ query.T
                best = products.view(last - first, -1, len(query)).amax(1)
                out.index_copy_(0, where[first:last], best.sum(1, dtype=torch.float32))
        return out

    def _vectors(
        self, part: _Part, local: Array, there: torch.Tensor, width: int, centers: torch.Tensor
    ) -> torch.Tensor:
        """Return stored vectors [passages x width, dim].

        Args:
            local: passages of the part, each with vectors; there: the same on the device.
            width: number of vectors per passage; shorter ones repeat their last.
            centers: [centroids, dim], of the type that is wanted.
        """
        begins = part.begins.index_select(0, there)
        lasts = part.begins.index_select(0, there + 1) - 1
        steps = torch.arange(width, device=self._device)
        places = torch.minimum(begins[:, None] + steps, lasts[:, None]).flatten()
        if part.resident:
            taken = {name: t.index_select(0, places) for name, t in part.stored.items()}
        else:
            on_host = np.minimum(
                part.offsets[local, None] + np.arange(width), part.offsets[local + 1, None] - 1
            ).ravel()
            taken = {name: self._there(a, on_host) for name, a in part.stored.items()}
        if "vectors" in taken:
            return taken["vectors"].to(centers.dtype)
        codes = _unsigned(part.of_vectors.index_select(0, places))
        return _decode(centers.index_select(0, codes), **taken)

    # -- what is on the device ----------------------------------------------------------------

    def _there(self, array: Array, rows: Array | None = None) -> torch.Tensor:
        """Copy an array to the device, or some of its rows; a GPU copies from pinned memory."""
        signed = np.asarray(array).view(np.int16) if array.dtype == np.uint16 else array
        count = len(array) if rows is None else len(rows)
        kind = torch.from_numpy(np.empty(0, signed.dtype)).dtype
        host = torch.empty(
            (count, *array.shape[1:]), dtype=kind, pin_memory=self._device.type == "cuda"
        )
        if rows is None:
            host.numpy()[...] = signed
        else:
            np.take(signed, rows, axis=0, out=host.numpy(), mode="clip")
        return host.to(self._device, non_blocking=True)

    def _resident(self, array: Array) -> torch.Tensor:
        """Copy a large array to the device, piece by piece."""
        signed = np.asarray(array).view(np.int16) if array.dtype == np.uint16 else array
        kind = torch.from_numpy(np.empty(0, signed.dtype)).dtype
        out = torch.empty(array.shape, dtype=kind, device=self._device)
        step = max(1, _COPIED // max(1, _width(array)))
        for first in range(0, len(array), step):
            out[first : first + step] = self._there(array[first : first + step])
        return out

    def _loaded(self, state: State) -> _Loaded:
        with self._lock:
            if self._known is None or self._known.state is not state:
                self._known = self._load(state)
            return self._known

    def _load(self, state: State) -> _Loaded:
        """Load a state; segments that the one before also had stay as they are."""
        known = {} if self._known is None else self._known.by_segment
        keys = [_key(state, segment) for segment in state.segments]
        kept = {key: known[key] for key in keys if key in known}
        self._known = None  # what no segment has any more is freed before others are loaded
        del known
        if self._share is None:
            self._share = self._room()
        room = self._share - sum(
            _bytes(part) for parts in kept.values() for part in parts if part.resident
        )
        by_segment: dict[Any, Sequence[_Part]] = {}
        for key, segment in zip(keys, state.segments, strict=True):
            if key not in kept:
                kept[key] = self._parts(segment, max(0, room))
                room -= sum(_bytes(part) for part in kept[key] if part.resident)
            by_segment[key] = kept[key]
        parts = []
        for key, segment in zip(keys, state.segments, strict=True):
            row = segment.first
            for part in by_segment[key]:
                parts.append((row, part))
                row += len(part.lengths)
        codec: Codec = state.shared
        centers = self._there(codec.centers)
        loaded = _Loaded(
            state,
            parts,
            by_segment,
            {torch.float32: centers, torch.float16: centers.half()},
            self._there(codec.spread * np.float32(self._lift)),
        )
        self._say(loaded)
        return loaded

    def _room(self) -> int:
        """Return how many bytes of stored vectors the device may keep, asked before it has any."""
        if self._device.type == "cpu":
            return 0  # files are mapped
        if self._gib is not None:
            return int(self._gib * _GIB)
        return int(_SHARE * _free(self._device))

    def _parts(self, segment: Segment, room: int) -> Sequence[_Part]:
        """Load a segment: first the passages whose vectors fit into `room`, then the others."""
        names = ("vectors",) if "vectors" in segment.arrays else ("residuals", "fine", "scales")
        arrays = {name: segment.arrays[name] for name in names if name in segment.arrays}
        of_vectors = np.zeros(0, np.uint16) if "vectors" in arrays else _codes_of_vectors(segment)
        width = sum(map(_width, arrays.values()))
        count = len(segment.ids)
        fitting = int(np.searchsorted(segment.offsets, room // width, side="right")) - 1
        cuts = [0, fitting, count] if 0 < fitting < count else [0, count]
        return [
            self._part(segment, first, last, arrays, of_vectors, resident=last <= fitting)
            for first, last in itertools.pairwise(cuts)
        ]

    def _part(
        self,
        segment: Segment,
        first: int,
        last: int,
        arrays: Mapping[str, Array],
        of_vectors: Array,
        *,
        resident: bool,
    ) -> _Part:
        offsets = segment.offsets[first : last + 1]
        bounds = np.asarray(segment.arrays["run_offsets"][first : last + 1])
        vectors = slice(offsets[0], offsets[-1])
        stored = {name: array[vectors] for name, array in arrays.items()}
        means, units = (segment.arrays[name][first:last] for name in ("means", "mean_scales"))
        return _Part(
            lengths=segment.arrays["lengths"][first:last],
            offsets=offsets - offsets[0],
            begins=self._resident(offsets - offsets[0]),
            bounds=bounds - bounds[0],
            runs=self._resident(bounds - bounds[0]),
            codes=self._resident(segment.arrays["centroids"][bounds[0] : bounds[-1]]),
            of_vectors=self._resident(of_vectors[vectors] if len(of_vectors) else of_vectors),
            means=(self._resident(means), self._resident(units)),
            stored={k: self._resident(a) for k, a in stored.items()} if resident else stored,
            resident=resident,
        )

    def _say(self, loaded: _Loaded) -> None:
        """Log, once, how much is not on a device that could hold it."""
        if self._said or self._device.type == "cpu" or loaded.resident:
            return
        self._said = True
        sizes = [_bytes(part) / _GIB for _, part in loaded.parts]
        there = [_bytes(part) / _GIB for _, part in loaded.parts if part.resident]
        _log.warning(
            "index: %.2f of %.2f GiB of vectors are not kept on %s, whose share for them they "
            "exceed, but read from files at each search: index.device_gib (with "
            "index.name=compressed) sets the share",
            sum(sizes) - sum(there),
            sum(sizes),
            self._device,
        )

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Name the setting that helps if the device's memory is exhausted inside."""
        try:
            yield
        except Exception as e:
            if not any(sign in str(e) for sign in _NO_MEMORY):
                raise
            known = self._known
            held = sum(_bytes(p) for _, p in known.parts if p.resident) if known else 0
            less = f" below {held / _GIB:.2f}" if held else ""
            raise UserError(
                f"index: out of memory on {self._device} ({first_line(e)}): set "
                f"index.device_gib{less}, or index.device=cpu (with index.name=compressed)"
            ) from None


class _Queries:
    """Queries on the device, padded to the longest one's length with zeros.

    Attributes:
        rotated: float32 [queries, longest, dim].
        lengths: number of vectors of each.
        whole: float32 [vectors, dim] of each, turned as the stored vectors are.
    """

    def __init__(self, search: TorchSearch, loaded: _Loaded, queries: Sequence[Array]):
        self.lengths = [len(query) for query in queries]
        padded = np.zeros((len(queries), max(self.lengths), queries[0].shape[1]), np.float32)
        for place, query in zip(padded, queries, strict=True):
            place[: len(query)] = query
        codec: Codec = loaded.state.shared
        self.rotated = search._there(padded @ codec.rotation)
        whole = any("vectors" in part.stored for _, part in loaded.parts)
        stored = search._there(padded) if whole else self.rotated
        self.whole = [s[:n] for s, n in zip(stored, self.lengths, strict=True)]

    def half(self, number: int) -> torch.Tensor:
        """Return a query in float16, scaled so that no component is too great or too small."""
        query = self.whole[number]
        return (query / query.abs().max().clamp_min(1e-30)).half()


def _key(state: State, segment: Segment) -> Any:
    """Return what identifies the content of a segment's files, apart from deletions."""
    folder = f"{segment.entry.name}/"
    files = state.manifest.files.items()
    return tuple(sorted((n, v) for n, v in files if n.startswith(folder) and "/gone-" not in n))


def _width(array: Array) -> int:
    """Return the bytes of a row."""
    return array.itemsize * int(np.prod(array.shape[1:]))


def _bytes(part: _Part) -> int:
    """Return the bytes of what a part's vectors are decoded from."""
    return sum(int(stored.nbytes) for stored in part.stored.values())


def _free(device: torch.device) -> int:
    """Return the bytes of memory that are free, or only held by torch; 0 if it cannot say."""
    module: Any = getattr(torch, device.type, None)
    if not hasattr(module, "mem_get_info"):
        return 0
    held = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + held)


def _unsigned(stored: torch.Tensor) -> torch.Tensor:
    """Return as int32 what has the bits of uint16."""
    return stored.int().bitwise_and_(0xFFFF)


def _codes_of_vectors(segment: Segment) -> Array:
    """Return the centroid of each vector, that of its run, uint16 [vectors]."""
    arrays = segment.arrays
    out = np.empty(segment.offsets[-1], np.uint16)
    bounds = arrays["run_offsets"]
    for first, last in blocks(np.diff(bounds), 2**20):
        runs = slice(bounds[first], bounds[last])
        counts = np.diff(bounds[first : last + 1])
        starts = np.repeat(segment.offsets[first:last], counts) + arrays["run_starts"][runs]
        begin, end = segment.offsets[first], segment.offsets[last]
        spans = np.diff(np.append(starts, end))
        out[begin:end] = np.repeat(arrays["centroids"][runs], spans)
    return out


def _by_length(lengths: Array, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of at most `size` vectors, padded to the last one's length; one at least.

    Args:
        lengths: int64 [passages], in ascending order.
    """
    first = 0
    while first < len(lengths):
        start = first

        def padded(i: int, start: int = start) -> int:
            return (i + 1 - start) * int(lengths[i])

        first += 1
        first += bisect.bisect_right(range(first, len(lengths)), size, key=padded)
        yield start, first


def _decode(
    centers: torch.Tensor, residuals: torch.Tensor, fine: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Return the stored vectors, rotated, [n, dim], in the centroids' type; see `codec.decode`.

    Args:
        centers: [n, dim], each vector's centroid.
        residuals, fine, scales: see `codec.Coded`; scales as int16 with the bits of uint16.
    """
    dim = centers.shape[1]
    four = residuals.dtype == torch.uint8
    if four:
        rest = torch.cat([residuals & 15, residuals >> 4], 1).to(centers.dtype).sub_(7.5)
    else:
        rest = residuals.to(centers.dtype)
    if fine.shape[1]:
        shifts = torch.arange(8, dtype=torch.uint8, device=fine.device)[:, None]
        bits = ((fine[:, None] >> shifts) & 1).flatten(1)[:, :dim]
        rest[:, : bits.shape[1]].add_(bits, alpha=0.5)
        if four:
            rest[:, : bits.shape[1]].sub_(0.25)
    steps = _unsigned(scales) * SCALE_UNIT
    return torch.addcmul(centers, rest, steps.to(centers.dtype)[:, None])
