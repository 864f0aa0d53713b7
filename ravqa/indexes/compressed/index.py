"""Late interaction on few bytes: a scan of all passages by centroid, then finer and finer stages.

A vector is stored as the number of its nearest centroid and the residual in 8 or 4 bits per
component (`compressed.codec`). A passage's vectors are sorted by centroid, so that those which
share one, a run, are adjacent. A query of W vectors passes through

1. a table of all products of centroids and query vectors, [centroids, W], raised a little for
   centroids whose vectors are far from it;
2. the scan: for **every** passage and query vector the best entry of the passage's centroids, as
   bytes, summed. A query for an image has hundreds of vectors, so inverted lists would exclude
   almost nothing, and the scan costs about a microsecond per passage. A passage's vectors lie, in
   part, on the same side of their centroids; the product of its mean residual with the sum of the
   query's vectors, which costs little, corrects the scan's score by that;
3. the refinement: per query vector, exact products with only those runs whose entries come near
   the best one, which gives a lower bound of MaxSim. For a long query first with a sample of its
   vectors, for the best `candidates` of 2 at most; then with all vectors for the best of these.
   Both stop when the others' guesses, raised by what refining has added to guesses so far, no
   longer reach the k-th value. The guesses are sums of what is known by then (the scan's score, the
   mean residual's product, the sample's gain), with the weights that fit the bounds so far;
4. MaxSim over the stored vectors for passages whose bound comes near the k-th score: they are
   scored in the order of their bounds, until the remaining ones no longer reach it likewise.

The ranking is that of 4; scores are MaxSim over the stored vectors. Nothing here assumes that query
vectors cluster. On the CPU the stages' loops are `native`'s or, where that could not be compiled,
numba's (`kernels`). Without both, or on another device, `torch_search` searches instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from ravqa.core.errors import UserError, import_extra, near_matches
from ravqa.core.progress import Progress
from ravqa.core.settings import Strict, Text, validate
from ravqa.indexes.base import Array, Footprint
from ravqa.indexes.compressed import native
from ravqa.indexes.compressed.codec import (
    SCALE_UNIT,
    Codec,
    Coded,
    blocks,
    decode,
    each,
    fine_width,
)
from ravqa.indexes.compressed.threads import alone, pool, threads
from ravqa.indexes.maxsim import device_of
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

    from ravqa.indexes.compressed.torch_search import TorchSearch

_LANES = 32  # rows of the byte table are padded to a multiple: kernels then need no remainder
_LIFT = 2.0
"""Standard deviations of a centroid's vectors by which its products are raised for the scan.

The best of a passage's vectors is likelier above its centroid than below, the more so the more
its vectors spread.
"""
_MEAN = 1.0
"""Share of the product with a passage's mean residual that the scan's score is raised by."""
_BOTH = (0.375, 0.45)
"""The same where a sample of the query's vectors was refined, and the share of its gain, taken for
all vectors. Both predict the same: where vectors cluster, the gain would do alone. What is best for
a query is seen when the first passages are refined by all vectors."""
_MARGIN, _WIDE = 0.1, 0.14
"""Of the refinement, in units of a product of two vectors: by a sample, and by all vectors."""
_NEAR = 400  # passages beyond k that are too few to be sampled, of 10,000
_FEW = 100  # passages beyond k that are all scored
_SAMPLED = (300, 256)  # passages refined by a sample beyond k at once, and then at a time
_REFINED = (20, 48)  # likewise, by all vectors
_SCORED = (12, 16)  # likewise, those that are scored
_FOR_EACH = 8  # candidates at least for each of the k, where a search does not name their number
_BY_TORCH = 15  # x the root of the corpus: candidates at most, where torch reads them from files
_STORED = {"9bit": 1.4, "4bit": 0.8, "float16": 3.3}  # bytes of a component, with all tables
_MAX_VECTORS = 65535  # of one passage: positions in it have 16 bits
_BLOCK = 2048  # vectors scored at a time: their products fit in the cache
_OUTGROWN = 4  # times the vectors that the centroids were chosen for
_DRIFT = 0.05  # a segment with a mean fit lower by this is strange to the centroids
_STRANGE = 0.25  # such vectors, relative to those the centroids were chosen for
_BITS = {"9bit": 9, "4bit": 4, "float16": 8}  # of the residuals' components, by storage
_SEARCH = ("effort", "candidates")  # what a single search may set


class _Effort(NamedTuple):
    """How thorough a search is.

    Attributes:
        candidates: number of passages to refine, relative to the default.
        sampled, refined: standard deviations by which guesses may err before refinement stops, by
            a sample and by all vectors; scored: likewise the bounds, before scoring does.
    """

    candidates: float
    sampled: float
    refined: float
    scored: float


_EFFORTS = {
    "fast": _Effort(0.5, 3.0, 1.0, 1.0),
    "default": _Effort(1.0, 5.0, 2.75, 3.0),
    "careful": _Effort(3.0, 6.0, 4.0, 5.0),
}


def _sampled(lanes: int) -> int:
    """Return how many of a query's vectors are enough to predict a passage's gain by refinement."""
    return next((some for many, some in ((128, 64), (64, 32)) if lanes > many), lanes)


def _sample_first(lanes: int) -> Array:
    """Return an order of a query's vectors that starts with an evenly spaced sample."""
    some = _sampled(lanes)
    chosen = np.arange(some) * lanes // some
    return np.concatenate([chosen, np.delete(np.arange(lanes), chosen)])


def _along(rows: Array, scales: Array, vector: Array, out: Array) -> None:
    """Compute products of a vector and scaled rows of bytes, in parallel."""

    def some(first: int) -> None:
        part = slice(first, first + _BLOCK)
        # Without numpy's threads for products, which would wait on the kernels' processors.
        out[part] = np.einsum("nh,h->n", rows[part].astype(np.float32), vector) * scales[part]

    firsts = range(0, len(rows), _BLOCK)
    together = len(firsts) > 1 and threads() > 1
    for _ in pool().map(some, firsts) if together else map(some, firsts):
        pass


def _best(values: Array, count: int) -> Array:
    """Return positions of the `count` greatest, in order; all positions if there are no more."""
    if len(values) <= count:
        return np.arange(len(values))
    cut = len(values) - count
    places: Array = np.sort(np.argpartition(values, cut)[cut:])
    return places


def _until(
    guesses: Array,
    measure: Callable[[Array], Array],
    k: int,
    slack: float,
    sizes: tuple[int, int],
    parts: Array | None = None,
) -> tuple[Array, Array]:
    """Measure values, the most promising first, until no other can be among the k greatest.

    The guesses of the others are raised by what measuring has added to guesses so far, on average,
    and by `slack` standard deviations.

    Args:
        guesses: float32 [n], of the values.
        measure: returns the values at some places.
        sizes: how many are measured at first, beyond k; and then at a time.
        parts: [n, some], what the guesses are weighted sums of. If given, the others are guessed
            anew, by the weights that fit best what was measured: after the first measuring, and
            whenever twice as many are.

    Returns:
        The places that were measured, in that order, and their values.
    """
    left = np.argsort(-guesses, kind="stable")
    places, found = left[:0], np.zeros(0, np.float32)
    size = fit = k + sizes[0]
    while len(left):
        some, left = left[:size], left[size:]
        places, found = np.concatenate([places, some]), np.concatenate([found, measure(some)])
        size = sizes[1]
        if not len(left):
            break
        if parts is not None and len(found) >= fit:
            fit = 2 * len(found)
            guesses = np.einsum("nf,f->n", parts, _weights(parts[places], found))
            left = left[np.argsort(-guesses[left], kind="stable")]
        gaps = found - guesses[places]
        least = np.partition(found, len(found) - k)[len(found) - k]
        if guesses[left[0]] + gaps.mean() + slack * gaps.std() < least:
            break
    return places, found


def _weights(parts: Array, values: Array) -> Array:
    """Return the weights of parts [n, some] whose sums fit values [n] best, up to a constant."""
    parts = parts - parts.mean(0, dtype=np.float64)
    # Not by numpy's products, whose threads would keep the kernels waiting.
    squares = np.einsum("nf,ng->fg", parts, parts)
    toward = np.einsum("nf,n->f", parts, values - values.mean())
    weights: Array = np.linalg.lstsq(squares, toward, rcond=1e-9)[0]
    return weights


def _growth(passages: int) -> float:
    """Return by how much candidates must outgrow the root of the corpus beyond 10,000 passages."""
    return float(max(1.0, passages / 10_000) ** 0.25)


def default_candidates(passages: int, vectors: int) -> int:
    """Return how many passages are refined, by a query's vectors, at the default effort.

    15 x the root of the corpus if a sample of the vectors is used, else 14 x, and more from 10,000
    passages on (`benchmarks/search.py`).
    """
    share = 14 if _sampled(vectors) == vectors else 15
    return int(share * np.sqrt(passages) * _growth(passages))


def kernels_in_use(
    config: CompressedIndex.Config, device: torch.device
) -> Literal["native", "numba", "torch"]:
    """Return what searches: the compiled loops, those of numba, or torch.

    Raises:
        UserError: what is configured is not there.
    """
    if config.kernels == "auto":
        if device.type != "cpu":
            return "torch"
        if native.library() is not None:
            return "native"
        return "torch" if find_spec("numba") is None else "numba"
    if config.kernels == "numba":
        import_extra("numba", "cpu", why="index.kernels=numba")
    if config.kernels == "native" and native.library() is None:
        raise UserError(
            "index.kernels=native: this installation was made without a C compiler, or from other "
            "sources: install ravqa again where there is one, or choose numba or torch"
        )
    return config.kernels


def _builds(config: CompressedIndex.Config, device: torch.device) -> bool:
    """Return whether numba's kernels help to build."""
    return kernels_in_use(config, device) != "torch" and find_spec("numba") is not None


@dataclass(frozen=True)
class _Query:
    """A query and its tables.

    Attributes:
        vectors: float32 [W, dim], rotated; plain: as given.
        exact: float32 [centroids, W], products; without rows if no tables are needed.
        table: uint8 [centroids, W and padding], lifted, see `_LIFT`; scale: its units in 1.
        norm: the vectors' mean length.
        rounded: the query for `native.refine`, if that searches.
    """

    plain: Array
    vectors: Array
    exact: Array
    table: Array
    scale: float
    norm: float
    rounded: native.Rounded | None = None


class CompressedIndex(SegmentedIndex):
    """Centroid codes and residuals in a folder; see the module for how it is searched."""

    kind: ClassVar[str] = "compressed"

    class Config(Strict):
        """Options.

        Attributes:
            storage: of the residuals: 9bit (default), 4bit (half the bytes), or float16: 8 bits
                and, for the final scores, the vectors in float16. Fixed when the index is built.
            centroids: number of centroids; null for `codec.default_centroids`. Fixed likewise.
            seed: seed of rotation and k-means. Fixed likewise.
            effort: how many candidates are examined, and how soon scoring stops.
            candidates: minimum number of passages to refine; null for `default_candidates` times
                the effort's factor, and not less than 8 k.
            retrain: choose new centroids when added passages fit the old ones badly, or are many.
            kernels: what computes: native, which was compiled from C at installation; numba;
                torch; or auto: on the CPU the first of these that is there, else torch.
            device: auto, cpu, cuda, ...
            device_gib: GiB of a GPU's memory for stored vectors; null for a quarter of what is
                free at the first search. The vectors of other passages are read from files.
        """

        storage: Literal["9bit", "4bit", "float16"] = "9bit"
        centroids: int | None = Field(default=None, ge=1, le=65536)
        seed: int = Field(default=0, ge=0)
        effort: Literal["fast", "default", "careful"] = "default"
        candidates: int | None = Field(default=None, ge=1)
        retrain: bool = True
        kernels: Literal["auto", "native", "numba", "torch"] = "auto"
        device: Text = "auto"
        device_gib: float | None = Field(default=None, ge=0)

        def packages(self) -> Sequence[tuple[str, str]]:
            """numba, if it is configured."""
            return [("numba", "cpu")] if self.kernels == "numba" else []

    config: Config

    def __init__(self, path: Path, config: Config | None = None, *, fingerprint: str | None = None):
        """Open the index as `SegmentedIndex` does."""
        self._by_torch: TorchSearch | None = None
        self._room = _Room()
        super().__init__(path, config, fingerprint=fingerprint)

    @classmethod
    def footprint(cls, config: Config, dim: int, passages: int) -> Footprint:
        """Return the vectors in float16 while centroids are chosen, and as they are stored.

        Measured: files of 60 vectors of 128 dimensions a passage; memory as in docs/scaling.md, of
        0.8 and 8 million vectors.
        """
        return Footprint(dim * (2 + _STORED[config.storage]), 48.0, 0.65e9)

    @cached_property
    def _device(self) -> torch.device:
        return device_of(self.config.device)

    @cached_property
    def _kernels(self) -> Literal["native", "numba", "torch"]:
        return kernels_in_use(self.config, self._device)

    @cached_property
    def _compiled(self) -> bool:
        return self._kernels != "torch"

    @cached_property
    def _numba(self) -> bool:
        return _builds(self.config, self._device)

    # -- writing ------------------------------------------------------------------------------

    @classmethod
    def fixed(cls, config: Config) -> dict[str, Any]:
        """See `SegmentedIndex`."""
        return {"storage": config.storage, "centroids": config.centroids, "seed": config.seed}

    @classmethod
    def _arrays(cls, manifest: Manifest) -> Mapping[str, Stored]:
        dim, storage = manifest.dim, manifest.settings["storage"]
        bits = _BITS[storage]
        packed = Stored(np.uint8, "vectors", dim // 2)
        arrays = {
            "run_offsets": Stored(np.int64, "bounds", small=True),
            "centroids": Stored(np.uint16, "runs", small=True),
            "run_starts": Stored(np.uint16, "runs", small=True),
            "residuals": packed if bits == 4 else Stored(np.int8, "vectors", dim),
            "scales": Stored(np.uint16, "vectors"),
            "means": Stored(np.int8, "passages", dim),
            "mean_scales": Stored(np.uint16, "passages"),
        }
        if storage == "float16":
            return arrays | {"vectors": Stored(np.float16, "vectors", dim)}
        return arrays | {"fine": Stored(np.uint8, "vectors", fine_width(dim, bits))}

    @classmethod
    def _fill(cls, writer: Writer, passages: Passages, config: Config, progress: Progress) -> None:
        if config.storage == "4bit" and writer.manifest.dim % 2:
            raise ValueError("storage 4bit is for vectors of even length")
        with _Spool(writer, passages) as spool:
            device = device_of(config.device)
            _train_and_write(writer, spool, device, _builds(config, device), progress)

    def _append(
        self, writer: Writer, state: State, passages: Passages, progress: Progress
    ) -> SegmentEntry | None:
        with _Spool(writer, passages) as spool:
            return _write_segment(writer, spool, state.shared, self._device, self._numba, progress)

    def _wants_compact(self, state: State) -> bool:
        codec: Codec = state.shared
        trained = max(1, codec.trained_on)
        strange = sum(
            s.vectors
            for s in state.manifest.segments
            if s.fit is not None and s.fit < codec.fit - _DRIFT
        )
        outgrown = state.manifest.vectors > _OUTGROWN * trained or strange > _STRANGE * trained
        return self.config.retrain and outgrown

    def _compact(self, writer: Writer, state: State, progress: Progress) -> None:
        if self._wants_compact(state) or not state.shared.trained_on:
            with _Spool(writer, self._all(state)) as spool:
                _train_and_write(writer, spool, self._device, self._numba, progress)
        else:
            segment = _copy_segments(writer, state)
            writer.commit(segments=(segment,) if segment else ())

    def _all(self, state: State) -> Passages:
        """Yield every passage that is not deleted, as stored."""
        for segment in state.segments:
            alive = np.flatnonzero(segment.alive)
            lengths = segment.arrays["lengths"][alive]
            for first, last in blocks(lengths):
                rows = alive[first:last]
                vectors, rotated = self._stored(state, segment, rows)
                if rotated:
                    vectors = vectors @ state.shared.rotation.T
                parts = np.split(vectors, np.cumsum(lengths[first:last])[:-1])
                yield from zip((segment.ids[i] for i in rows), parts, strict=True)

    @classmethod
    def _open_shared(cls, path: Path, manifest: Manifest) -> Codec:
        return Codec.load(path / manifest.settings["shared"], manifest.dim)

    def _check_segment(self, segment: Segment, shared: Codec) -> None:
        # The kernels check no bounds: places beyond an array would be read from anywhere.
        bounds, lengths = segment.arrays["run_offsets"], segment.arrays["lengths"]
        runs = np.diff(bounds)
        if bounds[0] != 0 or np.any(runs < 0) or np.any((runs == 0) != (lengths == 0)):
            raise ValueError("run_offsets.npy does not give every passage its runs")
        if segment.arrays["centroids"].max(initial=0) >= len(shared.centers):
            raise ValueError(f"centroids.npy names more than {len(shared.centers)} centroids")
        for first, last in blocks(runs):
            starts = segment.arrays["run_starts"][bounds[first] : bounds[last]].astype(np.int64)
            places = np.repeat(segment.offsets[first:last], runs[first:last]) + starts
            first_runs = (bounds[first:last] - bounds[first])[runs[first:last] > 0]
            ends = np.append(places[1:], segment.offsets[last])
            if np.any(starts[first_runs] != 0) or np.any(ends <= places):
                raise ValueError("run_starts.npy does not divide the passages' vectors")

    # -- searching ----------------------------------------------------------------------------

    def _search_all(
        self,
        state: State,
        queries: Sequence[Array],
        k: int,
        allowed: Array,
        params: Mapping[str, Any],
    ) -> list[tuple[Array, Array]]:
        if self._compiled:
            # A processor per query loses nothing to waiting, as the stages of one query do.
            count = len(queries) // threads() * threads() if threads() > 1 else 0
            found = alone(
                lambda query: self._search(state, query, k, allowed, params), queries[:count]
            )
            rest = super()._search_all(state, queries[count:], k, allowed, params)
            return found + rest
        config = self._asked(params)
        wanted = [self._count(config, state, len(query), k) for query in queries]
        return self._torch().search(state, queries, k, allowed & state.matchable, wanted)

    def _torch(self) -> TorchSearch:
        from ravqa.indexes.compressed.torch_search import TorchSearch

        with self._mutex:
            if self._by_torch is None:
                self._by_torch = TorchSearch(self._device, _LIFT, _MEAN, self.config.device_gib)
            return self._by_torch

    def _search(
        self, state: State, query: Array, k: int, allowed: Array, params: Mapping[str, Any]
    ) -> tuple[Array, Array]:
        config = self._asked(params)
        wanted = self._count(config, state, len(query), k)
        rows = np.flatnonzero(allowed & state.matchable)
        with self._prepared(state, query) as prepared:
            return self._cascade(state, prepared, rows, k, wanted, _EFFORTS[config.effort])

    def _asked(self, params: Mapping[str, Any]) -> Config:
        """Return the options of a search with these settings."""
        if not params:
            return self.config
        for name in params:
            if name not in _SEARCH:
                raise UserError(f"search: no setting {name!r}: {near_matches(name, _SEARCH)}")
        return validate(self.Config, self.config.model_dump() | dict(params), "search")

    def _count(self, config: Config, state: State, vectors: int, k: int) -> int:
        """Return the number of candidates for a query of so many vectors."""
        factor = _EFFORTS[config.effort].candidates
        usual = factor * default_candidates(len(state.alive), vectors)
        if not self._compiled and not self._torch().resident(state):
            usual = min(usual, _BY_TORCH * factor * np.sqrt(len(state.alive)))
        return max(config.candidates or int(max(usual, _FOR_EACH * k)), 2 * k)

    def _cascade(
        self,
        state: State,
        prepared: _Query,
        rows: Array,
        k: int,
        wanted: int,
        effort: _Effort,
    ) -> tuple[Array, Array]:
        """Run the stages after the tables; see the module."""
        count, lanes = len(prepared.plain), _sampled(len(prepared.plain))
        near = int(k + _NEAR * effort.candidates * _growth(len(state.alive)))
        known: Array | None = None
        if len(rows) > min(wanted, near):
            both = np.stack([values[rows] for values in self._scan(state, prepared)], axis=1)
            guesses = both[:, 0] + np.float32(_MEAN) * both[:, 1]
            kept = _best(guesses, wanted)
            unit = np.float32(1 / prepared.scale)
            rows, guesses = rows[kept], guesses[kept] * unit
            known = both = both[kept] * unit
            if lanes < count and len(rows) > near:
                gains = np.empty(len(rows), np.float32)

                def sampled(places: Array) -> Array:
                    bounds, coarse = self._refined(state, prepared, rows[places], _MARGIN, lanes)
                    gains[places] = (bounds - coarse * unit) * np.float32(count / lanes)
                    found: Array = both[places, 0] + np.float32(_BOTH[0]) * both[places, 1]
                    found += np.float32(_BOTH[1]) * gains[places]
                    return found

                places, guesses = _until(guesses, sampled, k, effort.sampled, _SAMPLED)
                rows, known = rows[places], np.column_stack([both[places], gains[places]])
        if len(rows) <= k + _FEW:
            scores = self._scores(state, prepared, rows)
            best = top(scores, k)
            return rows[best], scores[best]

        def refined(places: Array) -> Array:
            return self._refined(state, prepared, rows[places], _WIDE)[0]

        if known is None:
            bounds = refined(np.arange(len(rows)))
        else:
            # Without a sample, two weights fitted to few values are no better than those above.
            fitted = known if known.shape[1] > 2 else None
            places, bounds = _until(guesses, refined, k, effort.refined, _REFINED, fitted)
            rows = rows[places]
        places, scores = _until(
            bounds,
            lambda some: self._scores(state, prepared, rows[some]),
            k,
            effort.scored,
            _SCORED,
        )
        best = top(scores, k)
        return rows[places[best]], scores[best]

    def _score(self, state: State, query: Array, rows: Array) -> Array:
        if not self._compiled:
            return self._torch().score(state, query, rows)
        with self._prepared(state, query, tables=False) as prepared:
            return self._scores(state, prepared, rows)

    @contextmanager
    def _prepared(self, state: State, query: Array, tables: bool = True) -> Iterator[_Query]:
        """Yield the query with what the kernels need, which run inside."""
        codec: Codec = state.shared
        query = query[_sample_first(len(query))]
        with ExitStack() as stack:
            if self._kernels == "native":
                rotated = np.empty_like(query)
                native.products(query, np.ascontiguousarray(codec.rotation.T), rotated)
            else:
                from ravqa.indexes.compressed import kernels

                rotated = query @ codec.rotation
                stack.enter_context(kernels.lone_products())
            if not tables:
                yield _Query(query, rotated, codec.centers[:0], np.zeros((0, 0), np.uint8), 1, 1)
                return
            count, lanes = len(codec.centers), -(-len(query) // _LANES) * _LANES
            exact = stack.enter_context(self._room.for_array(count, len(query)))
            room = stack.enter_context(self._room.for_array(count, lanes // 4))
            yield self._tables(state, query, rotated, exact, room.view(np.uint8))

    def _tables(
        self, state: State, query: Array, rotated: Array, exact: Array, table: Array
    ) -> _Query:
        """Return the query with tables for the kernels; `exact` and `table` are filled."""
        codec: Codec = state.shared
        norms = np.linalg.norm(query, axis=1)
        lift = _LIFT * codec.spread
        # A passage's best is among the upper entries of a query vector: values below the mean of
        # all centroids are clipped to 0.
        low = np.einsum("h,wh->w", codec.middle, rotated) + lift.mean() * norms
        if self._kernels == "native":
            lifted = native.Lifted(lift, norms, low, 0.0)
            highest = native.table_products(codec.centers, rotated, lifted, exact)
            scale = 255 / max(1e-30, float(highest.max()))
            lifted = lifted._replace(scale=scale)
            native.quantise(exact, lifted, table)
            four = state.manifest.settings["storage"] == "4bit"
            whole = native.rounded(rotated, table.shape[1], four, lifted)
            return _Query(query, rotated, exact, table, scale, float(norms.mean()), whole)
        from ravqa.indexes.compressed import kernels

        kernels.run(kernels.multiply, len(exact), codec.centers, rotated.T, exact, grain=256)
        highest = np.empty(len(exact), np.float32)
        kernels.run(kernels.greatest, len(exact), exact, lift, norms, low, highest)
        scale = 255 / max(1e-30, float(highest.max()))
        table[:, len(query) :] = 0
        kernels.run(kernels.quantise, len(exact), exact, lift, norms, low, scale, table)
        return _Query(query, rotated, exact, table, scale, float(norms.mean()))

    def _scan(self, state: State, query: _Query) -> tuple[Array, Array]:
        """Return approximate scores of all rows, and the query's products with mean residuals.

        Both are float32 [rows], in units of the table; the first has an arbitrary zero.
        """
        out = np.zeros((2, len(state.alive)), np.float32)
        toward = query.vectors.sum(0) * np.float32(query.scale * SCALE_UNIT)
        for s in state.segments:
            seen, added = out[:, s.first : s.first + len(s.ids)]
            means = s.arrays["means"], s.arrays["mean_scales"]
            counted = np.zeros(len(s.ids), np.int32)
            if self._kernels == "native":
                native.scan(query.table, s.arrays, counted)
                native.along(*means, toward, added)
            else:
                from ravqa.indexes.compressed import kernels

                arrays = s.arrays["centroids"], s.arrays["run_offsets"]
                kernels.run(kernels.scan, len(s.ids), query.table, *arrays, counted)
                _along(*means, toward, added)
            seen[:] = counted
        return out[0], out[1]

    def _refined(
        self, state: State, query: _Query, rows: Array, margin: float, lanes: int | None = None
    ) -> tuple[Array, Array]:
        """Return lower bounds of the rows' scores, float32, and the scan's result for the same.

        Args:
            lanes: number of query vectors to use, the first ones; a multiple of 32.
        """
        width = query.table.shape[1] if lanes in {None, len(query.plain)} else lanes
        vectors = query.vectors[:lanes]
        out, coarse = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.int32)
        exact, near = query.exact, min(255, int(margin * query.scale * query.norm))
        four = state.manifest.settings["storage"] == "4bit"
        for s, places, local in state.by_segment(rows):
            part, seen = np.zeros(len(local), np.float32), np.zeros(len(local), np.int32)
            if query.rounded is not None:
                some = query.rounded, len(vectors), s.arrays, s.offsets, self.dim
                native.refine(local, query.table, near, exact, *some, part, seen)
                out[places], coarse[places] = part, seen
                continue
            from ravqa.indexes.compressed import kernels

            kernels.run(
                kernels.refine,
                len(local),
                local,
                query.table,
                near,
                exact,
                vectors,
                s.arrays["centroids"],
                s.arrays["run_offsets"],
                s.arrays["run_starts"],
                s.offsets,
                s.arrays["residuals"],
                s.arrays["scales"],
                SCALE_UNIT,
                four,
                width,
                part,
                seen,
            )
            out[places], coarse[places] = part, seen
        return out, coarse

    def _scores(self, state: State, query: _Query, rows: Array) -> Array:
        """Return the MaxSim over the stored vectors of the rows, float32."""
        if self._kernels == "native":
            return self._native_scores(state, query, rows)
        from ravqa.indexes.compressed import kernels

        def score(
            first: int, last: int, segment: Segment, rows: Array, places: Array, parts: Any
        ) -> None:
            for part in parts[first:last]:
                begins = np.concatenate([[0], np.cumsum(segment.arrays["lengths"][rows[part]])])
                count = int(begins[-1])
                sums = np.empty(len(part), np.float32)
                with (
                    self._room.for_array(count, self.dim) as room,
                    self._room.for_array(count, len(query.plain)) as scores,
                ):
                    vectors, rotated = self._stored(state, segment, rows[part], room)
                    right = query.vectors if rotated else query.plain
                    kernels.multiply(0, count, vectors, right.T, scores)
                    kernels.best_sums(0, len(part), scores, begins, sums)
                out[places[part]] = sums

        out = np.full(len(rows), -np.inf, dtype=np.float32)
        for segment, places, local in state.by_segment(rows):
            lengths = segment.arrays["lengths"][local]
            some = np.flatnonzero(lengths)
            parts = [some[a:b] for a, b in blocks(lengths[some], _BLOCK)]
            kernels.run(score, len(parts), segment, local, places, parts, grain=1)
        return out

    def _native_scores(self, state: State, query: _Query, rows: Array) -> Array:
        out = np.full(len(rows), -np.inf, dtype=np.float32)
        centers = state.shared.centers
        for s, places, local in state.by_segment(rows):
            vectors = query.plain if "vectors" in s.arrays else query.vectors
            part = np.empty(len(local), np.float32)
            native.score(local, vectors, centers, s.arrays, s.offsets, part)
            out[places] = part
        return out

    def _stored(
        self, state: State, segment: Segment, rows: Array, room: Array | None = None
    ) -> tuple[Array, bool]:
        """Return vectors of passages, float32 [vectors, dim], and whether they are rotated.

        Args:
            room: an array that may be used for them. If given, this thread, which may be one of
                the kernels', does all the work.
        """
        lengths = segment.arrays["lengths"][rows]
        begins = segment.offsets[rows] - (np.cumsum(lengths) - lengths)
        places = np.repeat(begins, lengths) + np.arange(lengths.sum())
        if "vectors" in segment.arrays:
            return segment.arrays["vectors"][places].astype(np.float32), False
        # Each vector's centroid is that of its run.
        a = segment.arrays
        first, last = a["run_offsets"][rows], a["run_offsets"][rows + 1]
        counts = last - first
        runs = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        starts = a["run_starts"][runs].astype(np.int64) + np.repeat(
            np.cumsum(lengths) - lengths, counts
        )
        spans = np.diff(np.append(starts, lengths.sum()))
        codes = np.repeat(a["centroids"][runs], spans)
        centers, fine = state.shared.centers, a.get("fine", np.zeros((1, 0), np.uint8))
        if not self._numba:
            rest = fine[places] if fine.shape[1] else np.zeros((len(places), 0), np.uint8)
            coded = Coded(codes, a["residuals"][places], rest, a["scales"][places])
            return decode(centers, coded), True
        from ravqa.indexes.compressed import kernels

        out = np.empty((len(places), self.dim), np.float32) if room is None else room
        arguments = (
            places,
            codes,
            centers,
            a["residuals"],
            fine,
            a["scales"],
            SCALE_UNIT,
            a["residuals"].dtype == np.uint8,
            out,
        )
        if room is None:
            kernels.run(kernels.decode, len(places), *arguments, grain=1024)
        else:
            kernels.decode(0, len(places), *arguments)
        return out, True


class _Room:
    """Arrays that searches reuse: allocating a large one costs as much as filling it."""

    def __init__(self) -> None:
        self._free: list[Array] = []

    @contextmanager
    def for_array(self, rows: int, columns: int) -> Iterator[Array]:
        """Yield an uninitialised float32 array [rows, columns] for this block alone.

        It begins at a multiple of 64 bytes, as the cache's lines do.
        """
        try:
            flat = self._free.pop()
        except IndexError:
            flat = np.empty(0, np.float32)
        if len(flat) < rows * columns:
            flat = np.empty(rows * columns + 16, np.float32)
            flat = flat[-(flat.ctypes.data // 4) % 16 :]
        try:
            yield flat[: rows * columns].reshape(rows, columns)
        finally:
            self._free.append(flat)


class _Spool:
    """Passages on disk in float16 while centroids are chosen; vectors are read block by block."""

    def __init__(self, writer: Writer, passages: Passages):
        self._path = writer.path / SPOOL
        dim = writer.manifest.dim
        self.ids: list[str] = []
        counts: list[int] = []
        with self._path.open("wb") as raw:
            for passage_id, array in passages:
                if len(array) > _MAX_VECTORS:
                    raise ValueError(
                        f"passage {passage_id!r} has {len(array)} vectors; at most {_MAX_VECTORS}"
                    )
                raw.write(np.ascontiguousarray(array, dtype=np.float16).tobytes())
                self.ids.append(passage_id)
                counts.append(len(array))
        self.lengths = np.array(counts, dtype=np.int64)
        self.vectors: Array = np.zeros((0, dim), np.float16)
        if sum(counts):
            self.vectors = np.memmap(self._path, np.float16, "r", shape=(sum(counts), dim))

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


def _train_and_write(
    writer: Writer, spool: _Spool, device: Any, compiled: bool, progress: Progress
) -> None:
    """Choose centroids for the spooled passages, write them as the only segment, commit."""
    settings = dict(writer.manifest.settings)
    wanted = settings["centroids"]
    size = Codec.sample_size(len(spool.vectors), wanted)
    rng = np.random.default_rng(settings["seed"])
    rows = np.sort(rng.choice(len(spool.vectors), size, replace=False))
    sample = spool.vectors[rows].astype(np.float32)
    codec = Codec.train(
        sample, len(spool.vectors), wanted, settings["seed"], device, progress, compiled
    )
    del sample
    settings["shared"] = writer.new_folder("shared")
    codec.save(writer.path / settings["shared"])
    writer.seal(settings["shared"])
    segment = _write_segment(writer, spool, codec, device, compiled, progress)
    writer.commit(segments=(segment,) if segment else (), settings=settings)


def _write_segment(
    writer: Writer,
    spool: _Spool,
    codec: Codec,
    device: Any,
    compiled: bool,
    progress: Progress,
) -> SegmentEntry | None:
    """Encode the spooled passages into a new segment; return None if there are none."""
    if not spool.ids:
        return None
    storage = writer.manifest.settings["storage"]
    bits = _BITS[storage]
    dim = writer.manifest.dim
    count = len(spool.vectors)
    name = writer.new_folder("segment")
    folder = writer.path / name
    kind, width = (np.uint8, dim // 2) if bits == 4 else (np.int8, dim)

    def array(key: str, dtype: Any, *shape: int) -> Array:
        return _array(folder / f"{key}.npy", dtype, shape)

    residuals = array("residuals", kind, count, width)
    scales = array("scales", np.uint16, count)
    means, mean_scales = (
        array("means", np.int8, len(spool.ids), dim),
        array("mean_scales", np.uint16, len(spool.ids)),
    )
    fine = array("fine", np.uint8, count, fine_width(dim, bits)) if bits != 8 else None
    whole = array("vectors", np.float16, count, dim) if storage == "float16" else None
    offsets = np.concatenate([[0], np.cumsum(spool.lengths)])
    centroids, starts, runs = [], [], []
    rest = 0.0

    def write(passages: tuple[int, int]) -> tuple[int, Array, Array, Array, float]:
        first, last = passages
        begin, end = offsets[first], offsets[last]
        block = spool.vectors[begin:end].astype(np.float32)
        coded = codec.encode(block, bits, device, compiled)
        means[first:last], mean_scales[first:last] = codec.mean_residuals(
            block, coded.codes, spool.lengths[first:last]
        )
        owner = np.repeat(np.arange(last - first), spool.lengths[first:last])
        order = np.lexsort((coded.codes, owner))
        residuals[begin:end], scales[begin:end] = coded.residuals[order], coded.scales[order]
        if fine is not None:
            fine[begin:end] = coded.fine[order]
        if whole is not None:
            whole[begin:end] = spool.vectors[begin:end][order]
        codes = coded.codes[order]
        new = np.ones(len(codes), bool)
        new[1:] = (codes[1:] != codes[:-1]) | (owner[1:] != owner[:-1])
        places = np.flatnonzero(new)
        within = places - (offsets[first:last] - begin)[owner[places]]
        counts = np.bincount(owner[places], minlength=last - first)
        return int(end), codes[places], within.astype(np.uint16), counts, coded.rest

    progress("compressing vectors", 0, count)
    for end, codes, within, counts, energy in each(write, blocks(spool.lengths), compiled):
        centroids.append(codes)
        starts.append(within)
        runs.append(counts)
        rest += energy
        progress("compressing vectors", end, count)
    np.save(folder / "centroids.npy", np.concatenate(centroids))
    np.save(folder / "run_starts.npy", np.concatenate(starts))
    np.save(folder / "run_offsets.npy", np.concatenate([[0], np.cumsum(np.concatenate(runs))]))
    for mapped in (residuals, scales, means, mean_scales, fine, whole):
        if isinstance(mapped, np.memmap):
            mapped.flush()
    write_ids(folder, spool.ids, spool.lengths)
    writer.seal(name)
    return SegmentEntry(name, len(spool.ids), count, fit=1 - rest / 2 / count if count else None)


def _copy_segments(writer: Writer, state: State) -> SegmentEntry | None:
    """Copy passages that are not deleted to a new segment, byte for byte; None if there are none.

    Encoding them again would round what is already rounded.
    """
    kept = [(s, np.flatnonzero(s.alive)) for s in state.segments if s.alive.any()]
    if not kept:
        return None
    name = writer.new_folder("segment")
    folder = writer.path / name
    offsets = np.concatenate([[0], *(np.diff(s.arrays["run_offsets"])[rows] for s, rows in kept)])
    np.save(folder / "run_offsets.npy", np.cumsum(offsets))
    ids = [s.ids[i] for s, rows in kept for i in rows]
    lengths = np.concatenate([s.arrays["lengths"][rows] for s, rows in kept])
    write_ids(folder, ids, lengths)
    count = int(lengths.sum())
    for key in ("means", "mean_scales"):
        np.save(folder / f"{key}.npy", np.concatenate([s.arrays[key][rows] for s, rows in kept]))
    for key in set(kept[0][0].arrays) - {"lengths", "run_offsets", "means", "mean_scales"}:
        of_runs = key in {"centroids", "run_starts"}
        first = kept[0][0].arrays[key]
        shape = (int(offsets.sum()) if of_runs else count, *first.shape[1:])
        out = _array(folder / f"{key}.npy", first.dtype, shape)
        at = 0
        for s, rows in kept:
            bounds = s.arrays["run_offsets"] if of_runs else s.offsets
            for row in rows:
                some = s.arrays[key][bounds[row] : bounds[row + 1]]
                out[at : at + len(some)] = some
                at += len(some)
        if isinstance(out, np.memmap):
            out.flush()
    writer.seal(name)
    fits = [(s.entry.fit, s.entry.vectors) for s, _ in kept if s.entry.fit is not None]
    fit = sum(fit * n for fit, n in fits) / sum(n for _, n in fits) if fits and count else None
    return SegmentEntry(name, len(ids), count, fit=fit)


def _array(file: Path, dtype: Any, shape: tuple[int, ...]) -> Array:
    """Create an npy file, mapped for writing."""
    if 0 in shape:  # nothing can be mapped
        np.save(file, np.zeros(shape, dtype))
        return np.zeros(shape, dtype)
    mapped: Array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    return mapped
