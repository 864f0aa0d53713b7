"""The codec of the compressed index: a vector's nearest centroid, and the residual in few bits.

Vectors are first turned by a fixed random rotation, which preserves scores and spreads the residual
evenly over the components, so that one scale per vector fits all of them.

Components are rounded from the last to the first, and each compensates for the effect of the
earlier roundings on products with vectors like the corpus's own: errors remain in directions that
few vectors have. GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds weights this way. It costs no
bytes, and matters where hundreds of query vectors are alike, because their errors add up. What is
rounded last is compensated least: with 4 bits those components, the first, have the fifth bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ravqa.core.arrays import load_array
from ravqa.core.progress import Progress, silent
from ravqa.core.stored import as_type, read_json
from ravqa.indexes.base import Array

_T = TypeVar("_T")
_R = TypeVar("_R")

_SAMPLE = 40
"""Number of training vectors per centroid."""
_ROUNDS = 6
_CHOOSING = "choosing centroids (rounds)"
_NEAR_CELLS = 16
_LARGE = 2048
"""From this number of centroids on, the nearest is searched only among those of near cells."""
_BLOCK = 2**16  # vectors in memory at a time, for each processor
_PRODUCTS = 2**19  # of vectors and centroids computed at a time: they fit in the cache
_TINY = np.float32(1e-30)
_ROWS, _PANEL = 2048, 16  # vectors, and components, rounded at a time: both fit in the cache


def default_centroids(vectors: int) -> int:
    """Return the number of centroids: the power of two below 8 x the root of the vectors' number.

    Half of ColBERT's rule (Santhanam et al. 2022, arXiv 2205.09707): a full scan needs no short
    lists, and a query's table grows with the centroids. At most 65,536, so that a code has 16 bits.
    """
    wanted = min(8 * np.sqrt(max(1, vectors)), max(1, vectors / 4), 65536)
    return int(2 ** np.floor(np.log2(max(1, wanted))))


_CLIPS = (2.5, 2.8, 3.1)
"""With 4 bits, components beyond this multiple of the root mean square are clipped, which is best
for the vector."""
_DAMPING = 0.1
"""Added to the second moments that shape errors, relative to their mean, because queries also have
vectors unlike the corpus's."""
_LAYOUT = 2
"""Of the files of index and codec; each change that others cannot read takes the next number."""
SCALE_UNIT = 2.0**-17
"""The value of 1 in a stored scale: scales are uint16, up to 1/2."""


class Coded(NamedTuple):
    """Vectors as they are stored.

    Attributes:
        codes: uint16 [n], the nearest centroid.
        residuals: int8 [n, dim]; of 4 bits uint8 [n, dim / 2], where the low half of byte h is
            component h, the high half component h + dim / 2, both plus 7.5.
        fine: uint8 [n, width], one bit more for the first 8 x width components, worth half a step:
            bit k of byte b is that of component k x width + b. Of 9 bits, width is dim / 8; of 4
            bits 3 / 64 x dim, and these components are a quarter of a step less; else 0.
        scales: uint16 [n], a step of the residuals in units of `SCALE_UNIT`.
        rest: the sum of the squared lengths of the residuals before rounding.
    """

    codes: Array
    residuals: Array
    fine: Array
    scales: Array
    rest: float = 0.0


def fine_width(dim: int, bits: int) -> int:
    """Return the number of bytes for a vector's further bits."""
    return {9: -(-dim // 8), 4: 3 * dim // 64}.get(bits, 0)


def _planes(bits: Array) -> Array:
    """Pack bits [n, components] as `Coded.fine`."""
    width = -(-bits.shape[1] // 8)
    padded = np.zeros((len(bits), 8 * width), np.uint8)
    padded[:, : bits.shape[1]] = bits
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    packed: Array = np.bitwise_or.reduce(padded.reshape(len(bits), 8, width) << shifts, axis=1)
    return packed


def decode(centers: Array, coded: Coded) -> Array:
    """Return the stored vectors, rotated, float32 [n, dim]; `kernels.decode` does the same."""
    dim = centers.shape[1]
    four = coded.residuals.dtype == np.uint8
    if four:
        nibbles = np.concatenate([coded.residuals & 15, coded.residuals >> 4], axis=1)
        rest = nibbles.astype(np.float32) - np.float32(7.5)
    else:
        rest = coded.residuals.astype(np.float32)
    if coded.fine.shape[1]:
        shifts = np.arange(8, dtype=np.uint8)[None, :, None]
        bits = ((coded.fine[:, None, :] >> shifts) & 1).reshape(len(rest), -1)[:, :dim]
        rest[:, : bits.shape[1]] += bits * np.float32(0.5) - np.float32(0.25 if four else 0)
    scales = coded.scales.astype(np.float32) * np.float32(SCALE_UNIT)
    return centers[coded.codes] + scales[:, None] * rest


@dataclass(frozen=True)
class Codec:
    """The rotation and the centroids.

    Attributes:
        rotation: float32 [dim, dim], orthogonal.
        centers: float32 [centroids, dim], rotated: each is the mean of the vectors nearest to it
            by direction, so it is shorter than 1, and residuals are as short as possible.
        spread: float32 [centroids], standard deviation of a component of the residual.
        feedback: float32 [dim, dim], lower triangular: row h is the change that an error of 1 in
            component h makes to the components before it, which are rounded after it; the diagonal
            is what its square adds to the mean square error of products with the corpus's vectors.
        fit: 1 - half of the mean squared length of the training vectors' residuals.
        trained_on: number of vectors in the corpus that the centroids were chosen for.
    """

    rotation: Array
    centers: Array
    spread: Array
    feedback: Array
    fit: float
    trained_on: int

    @classmethod
    def train(
        cls,
        sample: Array,
        vectors: int,
        centroids: int | None,
        seed: int,
        device: Any,
        progress: Progress = silent,
        compiled: bool = False,
    ) -> Codec:
        """Choose centroids by spherical k-means.

        Args:
            sample: float32 [some, dim], drawn from all `vectors`.
            device: where products are computed.
            progress: called as progress(what, done, total) after each round.
            compiled: whether the processors share the work, by numba's kernels.
        """
        dim = sample.shape[1]
        rng = np.random.default_rng(seed)
        rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
        count = max(1, min(centroids or default_centroids(vectors), len(sample)))
        rotated = np.empty_like(sample)
        for first in range(0, len(sample), _BLOCK):
            np.matmul(sample[first : first + _BLOCK], rotation, out=rotated[first : first + _BLOCK])
        directions = np.full((1, dim), dim**-0.5, np.float32)
        if len(sample):
            directions = kmeans(rotated, count, seed, device, progress=progress, compiled=compiled)
        spread = np.full(len(directions), 0.0, np.float32)
        codec = cls(rotation, directions, spread, _feedback(rotated), 1.0, vectors)
        return codec._with_means(rotated, device, compiled)

    def _with_means(self, rotated: Array, device: Any, compiled: bool = False) -> Codec:
        """Return a codec with the means of the vectors that are nearest to each direction."""
        counts, sums, codes = _clusters(rotated, self.finder, device, compiled)
        found = counts > 0
        centers = self.centers.copy()
        centers[found] = sums[found] / counts[found, None]
        centers = centers.astype(np.float16).astype(np.float32)  # as they are saved
        squares = np.empty(len(rotated), np.float32)
        for first in range(0, len(rotated), _BLOCK):
            rest = rotated[first : first + _BLOCK] - centers[codes[first : first + _BLOCK]]
            squares[first : first + _BLOCK] = np.einsum("nd,nd->n", rest, rest)
        energy = np.bincount(codes, squares, minlength=len(centers))
        spread = np.sqrt(energy / np.maximum(counts, 1) / rotated.shape[1]).astype(np.float32)
        fit = 1 - float(squares.mean()) / 2 if len(squares) else 1.0
        return replace(self, centers=centers, spread=spread, fit=fit)

    @staticmethod
    def sample_size(vectors: int, centroids: int | None) -> int:
        """Return the number of vectors to train on."""
        return min(vectors, _SAMPLE * (centroids or default_centroids(vectors)))

    @cached_property
    def middle(self) -> Array:
        """The mean of the centroids, float32 [dim]."""
        mean: Array = self.centers.mean(0)
        return mean

    @cached_property
    def _directions(self) -> Array:
        """The centroids as unit vectors."""
        lengths = np.linalg.norm(self.centers, axis=1, keepdims=True)
        units: Array = self.centers / np.maximum(lengths, np.float32(1e-6))
        return units

    @cached_property
    def finder(self) -> Finder:
        """What finds a vector's nearest centroid by direction."""
        return Finder(self._directions)

    def encode(self, vectors: Array, bits: int, device: Any, compiled: bool = False) -> Coded:
        """Encode vectors [n, dim] in `bits` (4, 8 or 9) per component besides the centroid.

        Args:
            compiled: whether numba's kernel rounds.
        """
        rotated = vectors.astype(np.float32) @ self.rotation
        codes = self.finder(rotated, device)
        rest = rotated - self.centers[codes]
        energy = float((rest**2).sum())
        if bits == 4:
            return self._four_bits(codes, rest, compiled)._replace(rest=energy)
        scales = _steps(rest)
        steps = (scales * np.float32(SCALE_UNIT))[:, None]
        if bits == 8:
            limits = np.full(rest.shape[1], 127, np.float32)
            packed, _ = _round(rest / steps, self.feedback, limits, compiled=compiled)
            fine = np.zeros((len(vectors), 0), np.uint8)
            return Coded(codes, packed.astype(np.int8), fine, scales, energy)
        limits = np.full(rest.shape[1], 254, np.float32)
        rounded, _ = _round(rest / steps * 2, self.feedback, limits, compiled=compiled)
        halves = rounded.astype(np.int16)
        fine = _planes((halves & 1).astype(np.uint8))
        return Coded(codes, (halves >> 1).astype(np.int8), fine, scales, energy)

    def mean_residuals(self, vectors: Array, codes: Array, lengths: Array) -> tuple[Array, Array]:
        """Return the mean residual of each passage, before rounding, in eight bits.

        The vectors of one passage lie, in part, on the same side of their centroids, since a token
        knows of the text around it.

        Args:
            vectors: float32 [vectors, dim], of consecutive passages; codes: their centroids.
            lengths: int64 [passages], their numbers of vectors.

        Returns:
            int8 [passages, dim], 0 for passages without vectors, and uint16 [passages], a step of
            each row in units of `SCALE_UNIT`.
        """
        means = np.zeros((len(lengths), vectors.shape[1]), np.float32)
        some = np.flatnonzero(lengths)
        if len(some):
            begins = (np.cumsum(lengths) - lengths)[some]
            sums = np.add.reduceat(vectors, begins, axis=0) @ self.rotation
            sums -= np.add.reduceat(self.centers[codes], begins, axis=0)
            means[some] = sums / lengths[some, None]
        scales = _steps(means)
        rounded = np.rint(means / (scales * np.float32(SCALE_UNIT))[:, None])
        return rounded.astype(np.int8), scales

    def _four_bits(self, codes: Array, rest: Array, compiled: bool) -> Coded:
        """Encode the residuals, in 4 bits per component and in 5 for some."""
        dim = rest.shape[1]
        finer = 8 * fine_width(dim, 4)
        # Odd multiples of half a unit, which is a step, or half of one if there is a fifth bit.
        units = np.where(np.arange(dim) < finer, 0.5, 1).astype(np.float32)
        limits = np.float32(7.5) + (1 - units) / 2
        widest, spread = np.abs(rest).max(1, initial=0.0), np.sqrt(np.square(rest).mean(1))
        values, scales = np.empty_like(rest), np.empty(len(rest), np.uint16)
        least = np.full(len(rest), np.inf, np.float32)
        for clip in _CLIPS:
            wanted = np.minimum(widest, clip * spread) / 7.5 / SCALE_UNIT
            tried = np.clip(np.rint(wanted), 1, 65535).astype(np.uint16)
            steps = tried * np.float32(SCALE_UNIT)
            rounded, costs = _round(
                rest / steps[:, None], self.feedback, limits, units, 0.5, compiled
            )
            better = costs * steps**2 < least
            values[better], scales[better] = rounded[better], tried[better]
            least[better] = (costs * steps**2)[better]
        halves = np.rint(values[:, :finer] * 2 + 15.5).astype(np.uint8)
        nibbles = np.concatenate(
            [halves >> 1, np.rint(values[:, finer:] + 7.5).astype(np.uint8)], axis=1
        )
        packed = nibbles[:, : dim // 2] | (nibbles[:, dim // 2 :] << 4)
        return Coded(codes, packed, _planes(halves & 1), scales)

    def save(self, folder: Path) -> None:
        """Write the codec's files into `folder`."""
        np.save(folder / "rotation.npy", self.rotation)
        np.save(folder / "centers.npy", self.centers.astype(np.float16))
        np.save(folder / "spread.npy", self.spread)
        np.save(folder / "feedback.npy", self.feedback)
        values = {"layout": _LAYOUT, "fit": self.fit, "trained_on": self.trained_on}
        (folder / "codec.json").write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, dim: int) -> Codec:
        """Read what `save` wrote, for vectors of this length.

        Raises:
            OSError, ValueError: a file is missing, or its content does not fit.
        """
        values = as_type(dict[str, float], read_json(folder / "codec.json"))
        if values.pop("layout", 1) != _LAYOUT:
            raise ValueError("another version of ravqa wrote it")
        centers = load_array(folder / "centers.npy")
        shapes = {"rotation": (dim, dim), "spread": (len(centers),), "feedback": (dim, dim)}
        arrays = {name: load_array(folder / f"{name}.npy") for name in shapes}
        if (
            centers.dtype != np.float16
            or centers.shape != (min(max(1, len(centers)), 2**16), dim)
            or any(arrays[n].dtype != np.float32 or arrays[n].shape != shapes[n] for n in shapes)
            or values.keys() != {"fit", "trained_on"}
        ):
            raise ValueError("it does not contain the arrays of a codec")
        fit, trained_on = values["fit"], int(values["trained_on"])
        return cls(centers=centers.astype(np.float32), fit=fit, trained_on=trained_on, **arrays)


def _steps(rows: Array) -> Array:
    """Return the step of each row that is stored in eight bits, uint16, in `SCALE_UNIT`."""
    most = np.abs(rows).max(1, initial=0.0)
    # Rounded up, so that the greatest component still fits.
    steps: Array = np.clip(np.ceil(most / 127 / SCALE_UNIT), 1, 65535).astype(np.uint16)
    return steps


def _feedback(rotated: Array) -> Array:
    """Return `Codec.feedback` for vectors with the second moments of `rotated`, [some, dim]."""
    dim = rotated.shape[1]
    moments = np.zeros((dim, dim))
    for first in range(0, len(rotated), _ROWS):  # sums of few are exact enough in float32
        rows = rotated[first : first + _ROWS]
        moments += rows.T @ rows
    moments = moments / len(rotated) if len(rotated) else np.eye(dim) / dim
    moments += _DAMPING * np.trace(moments) / dim * np.eye(dim)
    # The components in the order in which they are rounded, from the last to the first.
    upper = np.linalg.cholesky(np.linalg.inv(moments[::-1, ::-1])).T
    found = np.triu(upper / np.diag(upper)[:, None], 1)
    np.fill_diagonal(found, np.diag(upper) ** -2)
    return found[::-1, ::-1].astype(np.float32)


def _round(
    values: Array,
    feedback: Array,
    limits: Array,
    units: Array | None = None,
    offset: float = 0.0,
    compiled: bool = False,
) -> tuple[Array, Array]:
    """Return values [n, dim] on a grid, float32, and what the errors cost, float32 [n].

    See the module for how errors are passed on, and `Codec.feedback` for their costs.

    Args:
        limits: float32 [dim], the greatest value of each component.
        units: float32 [dim], the grid's units; None for 1.
        offset: offset of the grid from 0, in units.
        compiled: whether numba's kernel does the work.
    """
    dim = values.shape[1]
    units = np.ones(dim, np.float32) if units is None else units
    values, limits, units = (np.ascontiguousarray(a[..., ::-1]) for a in (values, limits, units))
    feedback = np.ascontiguousarray(feedback[::-1, ::-1])
    out, costs = np.empty_like(values), np.empty(len(values), np.float32)
    if compiled:
        from ravqa.indexes.compressed import kernels

        kernels.round_rows(values, feedback, limits, units, offset, out, costs)
        return out[:, ::-1], costs
    for first in range(0, len(values), _ROWS):
        left = values[first : first + _ROWS].T.copy()
        kept = np.empty_like(left)
        for begin in range(0, dim, _PANEL):
            end = min(begin + _PANEL, dim)
            for h in range(begin, end):
                row = (np.rint(left[h] / units[h] - offset) + offset) * units[h]
                kept[h] = np.clip(row, -limits[h], limits[h])
                left[h] -= kept[h]
                left[h + 1 : end] -= feedback[h, h + 1 : end, None] * left[h]
            left[end:] -= feedback[begin:end, end:].T @ left[begin:end]
        out[first : first + _ROWS] = kept.T
        costs[first : first + _ROWS] = np.diag(feedback) @ np.square(left)
    return out[:, ::-1], costs


def kmeans(
    points: Array,
    count: int,
    seed: int,
    device: Any,
    rounds: int = _ROUNDS,
    progress: Progress = silent,
    compiled: bool = False,
) -> Array:
    """Return centres of `count` clusters of unit vectors, float32 [count, dim], by Lloyd's method.

    The mean of a cluster is scaled to unit length; an empty cluster begins anew at a random vector.

    Args:
        points: float32 [vectors, dim].
        device, compiled: see `Codec.train`.
        progress: called as progress(what, done, total) after each round.
    """
    progress(_CHOOSING, 0, rounds)
    rng = np.random.default_rng(seed)
    centers = points[rng.choice(len(points), count, replace=False)]
    for done in range(1, rounds + 1):
        counts, sums, _ = _clusters(points, Finder(centers), device, compiled)
        empty = np.flatnonzero(counts == 0)
        sums[empty] = points[rng.choice(len(points), len(empty))]
        centers = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), _TINY)
        progress(_CHOOSING, done, rounds)
    return centers


class Finder:
    """The nearest of many unit vectors, by direction.

    If there are many, only those in the sixteen nearest of the coarse cells, whose number is the
    root of theirs, are searched on the CPU. The result rarely differs, and takes a product per cell
    instead of one with all.

    Attributes:
        centers: float32 [centers, dim], the vectors.
        cells: float32 [cells, dim], unit vectors; no cells if there are few vectors.
        near: for each cell, the numbers of the vectors in the cells nearest to it.
    """

    def __init__(self, centers: Array):
        self.centers, self.cells = centers, centers[:0]
        if len(centers) >= _LARGE:
            self.cells = kmeans(centers, int(np.sqrt(len(centers))), 0, "cpu", rounds=4)
        owner = _nearest(centers, self.cells, "cpu") if len(self.cells) else np.zeros(0)
        order = np.argsort(-(self.cells @ self.cells.T), axis=1)[:, :_NEAR_CELLS]
        self.near = [np.flatnonzero(np.isin(owner, row)) for row in order]

    def __call__(self, points: Array, device: Any) -> Array:
        """Return the number of the nearest vector for each of `points`, uint16 [points]."""
        if not (len(self.cells) and _on_cpu(device)):
            return _nearest(points, self.centers, device).astype(np.uint16)
        cell = _nearest(points, self.cells, device)
        order = np.argsort(cell, kind="stable")
        bounds = np.searchsorted(cell[order], np.arange(len(self.cells) + 1))
        out = np.empty(len(points), np.uint16)
        for c, near in enumerate(self.near):
            rows = order[bounds[c] : bounds[c + 1]]
            if len(rows):
                out[rows] = near[_nearest(points[rows], self.centers[near], device)]
        return out


def _clusters(
    points: Array, finder: Finder, device: Any, compiled: bool
) -> tuple[Array, Array, Array]:
    """Assign vectors to their nearest centres.

    Returns:
        The number of vectors nearest to each centre, int64 [centers]; their sums, float32
        [centers, dim]; and the nearest centre of each of `points`, uint16 [points].
    """

    def assigned(first: int) -> tuple[Array, Array, Array]:
        rows = points[first : first + _BLOCK]
        codes = finder(rows, device)
        order = np.argsort(codes, kind="stable")
        found, begins = np.unique(codes[order], return_index=True)
        return codes, found, np.add.reduceat(rows[order], begins, axis=0)

    sums = np.zeros(finder.centers.shape, np.float32)
    parts = [np.zeros(0, np.uint16)]
    for codes, found, part in each(assigned, range(0, len(points), _BLOCK), compiled):
        sums[found] += part
        parts.append(codes)
    codes = np.concatenate(parts)
    return np.bincount(codes, minlength=len(sums)), sums, codes


def each(function: Callable[[_T], _R], items: Iterable[_T], compiled: bool) -> Iterator[_R]:
    """Apply `function` to `items`, like `map`; if `compiled`, in parallel, a few at a time."""
    if not compiled:
        return map(function, items)
    from ravqa.indexes.compressed import kernels

    return kernels.in_order(function, items)


def _on_cpu(device: Any) -> bool:
    return str(device) == "cpu"


def _nearest(points: Array, centers: Array, device: Any) -> Array:
    """Return the index of the centre with the greatest dot product, int64 [points]."""
    out = np.empty(len(points), np.int64)
    if _on_cpu(device):
        right = np.ascontiguousarray(centers.T)
        step = max(1, _PRODUCTS // max(1, len(centers)))
        for start in range(0, len(points), step):
            np.argmax(points[start : start + step] @ right, axis=1, out=out[start : start + step])
        return out
    import torch

    there = torch.from_numpy(np.ascontiguousarray(centers)).to(device).T
    step = max(1, 2**26 // max(1, len(centers)))  # products in memory: 256 MB
    for start in range(0, len(points), step):
        left = torch.from_numpy(np.ascontiguousarray(points[start : start + step])).to(device)
        out[start : start + step] = (left @ there).argmax(1).cpu().numpy()
    return out


def blocks(lengths: Array, size: int = _BLOCK) -> Iterator[tuple[int, int]]:
    """Yield ranges of passages with about `size` vectors each."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + size, side="right")))
        yield start, end
        start = end
