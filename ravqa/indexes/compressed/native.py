"""The compressed index's inner loops in C (`csrc/`), where the installation could compile them.

They do what `kernels` does, with two differences: the refinement multiplies whole numbers and takes
the centroids' products from the byte table, so that its bounds are a little less exact; and what is
scored is decoded and multiplied passage by passage, in the cache. The library has each loop for
several sets of instructions, of which the best that the processor has is taken; what they compute
in whole numbers is equal, and sums of float32 differ by rounding. No other library is needed. The
arguments `which` name a set, for tests.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from concurrent.futures import wait
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ravqa.indexes.base import Array
from ravqa.indexes.compressed.codec import SCALE_UNIT
from ravqa.indexes.compressed.threads import pool, threads

SETS = ("plain", "avx2", "avx512")
"""Names of the sets of instructions, in the library's order."""
LANES = 32
"""The number of columns of a byte table is a multiple of this."""
_MOST = 63  # of a query's components: the sum of two products with bytes must fit in 16 bits
_FOLDER = Path(__file__).parent / "csrc"


def _struct(name: str, fields: str) -> type[ctypes.Structure]:
    """Return a structure of `native.c`: its fields are `*pointer`, `integer`, `number:f`."""
    made: list[tuple[str, Any]] = []
    for field in fields.split():
        if field.startswith("*"):
            made.append((field[1:], ctypes.c_void_p))
        else:
            plain, _, kind = field.partition(":")
            made.append((plain, ctypes.c_float if kind else ctypes.c_int64))
    return type(name, (ctypes.Structure,), {"_fields_": made})


_Scan = _struct("scan", "*table lanes *centroids *run_offsets *out")
_Refine = _struct(
    "refine",
    "*docs *table stride width margin *exact columns *query *steps *shifts *low *lift *norms "
    "entry:f lanes bytes dim *centroids *run_offsets *run_starts *offsets *residuals *scales "
    "unit:f four *out *coarse",
)
_Products = _struct("products", "*centers *query lanes dim *lift *norms *low *exact *highest")
_Quantise = _struct("quantise", "*exact lanes *lift *norms *low scale:f *table width")
_Along = _struct("along", "*rows *scales *vector dim *out")
_Score = _struct(
    "score",
    "*docs *query lanes dim *centroids *run_offsets *run_starts *offsets *centers *residuals "
    "*fine fine_width *scales *whole unit:f four *out",
)


def load(file: Path) -> ctypes.CDLL | None:
    """Load a compiled library; None if it cannot be, or was compiled from other sources."""
    try:
        found = ctypes.CDLL(str(file))
        found.source.restype = ctypes.c_char_p
        compiled_from: bytes = found.source()
    except (OSError, AttributeError):
        return None
    digest = hashlib.sha256()
    for source in sorted(_FOLDER.glob("*.[ch]")):
        digest.update(source.read_bytes())
    return found if compiled_from.decode() == digest.hexdigest() else None


@cache
def library() -> ctypes.CDLL | None:
    """Return the library that belongs to this installation; None if it has none that is right."""
    return load(_FOLDER / "kernels.so")


@cache
def best_set() -> int:
    """Return the number of the best set of instructions that this processor has, in `SETS`."""
    found = library()
    if found is None:
        raise RuntimeError("this installation has no compiled kernels")
    return int(found.sets())


def _address(array: Array, dtype: Any) -> int:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"a contiguous array of {np.dtype(dtype)} is needed, not {array.dtype}")
    return int(array.__array_interface__["data"][0])


def _run(name: str, count: int, grain: int, values: ctypes.Structure, which: int | None) -> None:
    """Let all threads work on one call; each takes `grain` of the `count` items at a time."""
    function: Any = getattr(library(), name)
    number = best_set() if which is None else which
    following = ctypes.c_int64(0)
    sizes = ctypes.c_int64(count), ctypes.c_int64(grain)
    arguments: Any = (number, ctypes.byref(following), *sizes, ctypes.byref(values))
    others = min(threads(), -(-count // grain)) - 1
    futures = [pool().submit(function, *arguments) for _ in range(others)]
    try:
        failed = function(*arguments)
    finally:
        # One that waits behind another search's work would find nothing left to do. Others may
        # still write to the arrays, also when this thread was interrupted.
        begun = [future for future in futures if not future.cancel()]
        wait(begun)
    if failed or any(future.result() for future in begun):
        raise MemoryError("no memory for the compressed index's kernels")


def _arrays(arrays: Mapping[str, Array], *names: str) -> list[int]:
    return [_address(arrays[name], arrays[name].dtype) for name in names]


class Lifted(NamedTuple):
    """How scores of centroids and query vectors become bytes; see `kernels.quantise`.

    Attributes:
        lift: float32 [centroids]; norms, low: float32 [query vectors].
        scale: the bytes' units in 1.
    """

    lift: Array
    norms: Array
    low: Array
    scale: float


class Rounded(NamedTuple):
    """A query in whole numbers, as the refinement multiplies it.

    Attributes:
        values: int8 [columns of the byte table, bytes]: components / step, padded by 0. For
            residuals of 4 bits, both halves of the components are padded.
        steps: float32 [columns], the units of the values.
        shifts: float32 [columns]: what the products with a residual are too great by, which is
            multiplied as bytes >= 0, in units of the residual's scale.
        lift: float32 [centroids]; norms, low: float32 [columns]; entry: with these, what an entry
            of the byte table stands for: low - lift x norm + entry x byte.
    """

    values: Array
    steps: Array
    shifts: Array
    lift: Array
    norms: Array
    low: Array
    entry: float


def rounded(query: Array, columns: int, four: bool, lifted: Lifted) -> Rounded:
    """Round a rotated query [vectors, dim] for the refinement of residuals of 4 or else 8 bits."""
    count, dim = query.shape
    parts = 2 if four else 1
    size = -(-dim // parts // LANES) * LANES
    values = np.zeros((columns, parts, size), np.int8)
    steps, shifts, norms, low = np.zeros((4, columns), np.float32)
    steps[:count] = np.abs(query).max(1) / np.float32(_MOST)
    whole = np.rint(query / np.maximum(steps[:count, None], np.finfo(np.float32).tiny))
    values[:count, :, : dim // parts] = whole.reshape(count, parts, dim // parts)
    shifts[:] = steps * values.sum((1, 2), dtype=np.float32) * np.float32(7.5 if four else 128)
    norms[:count] = lifted.norms
    low[:count] = lifted.low + np.float32(0.5 / lifted.scale)  # bytes were rounded down
    flat = values.reshape(columns, parts * size)
    return Rounded(flat, steps, shifts, lifted.lift, norms, low, 1 / lifted.scale)


def products(left: Array, right: Array, out: Array, which: int | None = None) -> None:
    """Compute the products of rows: float32 [n, dim] and [m, dim] give [n, m], written to `out`."""
    _products(left, right, out, (None, None, None, None), which)


def table_products(
    centers: Array, query: Array, lifted: Lifted, exact: Array, which: int | None = None
) -> Array:
    """Compute `products` and return each row's greatest as `kernels.greatest`, float32 [centers].

    `lifted.scale` is not used.
    """
    highest = np.empty(len(centers), np.float32)
    rest = lifted.lift, lifted.norms, lifted.low, highest
    _products(centers, query, exact, tuple(_address(array, np.float32) for array in rest), which)
    return highest


def _products(
    left: Array, right: Array, out: Array, rest: tuple[int | None, ...], which: int | None
) -> None:
    *lifted, highest = rest
    both = _address(left, np.float32), _address(right, np.float32)
    values = _Products(*both, *right.shape, *lifted, _address(out, np.float32), highest)
    _run("products", len(left), 192, values, which)


def quantise(exact: Array, lifted: Lifted, table: Array, which: int | None = None) -> None:
    """Fill the byte table as `kernels.quantise`, and its further columns with 0."""
    values = _Quantise(
        _address(exact, np.float32),
        exact.shape[1],
        _address(lifted.lift, np.float32),
        _address(lifted.norms, np.float32),
        _address(lifted.low, np.float32),
        lifted.scale,
        _address(table, np.uint8),
        table.shape[1],
    )
    _run("quantise", len(exact), 512, values, which)


def scan(table: Array, arrays: Mapping[str, Array], out: Array, which: int | None = None) -> None:
    """See `kernels.scan`; `arrays` are a segment's, all of whose passages are scanned."""
    values = _Scan(
        _address(table, np.uint8),
        table.shape[1],
        *_arrays(arrays, "centroids", "run_offsets"),
        _address(out, np.int32),
    )
    _run("scan", len(out), max(64, -(-len(out) // (4 * threads()))), values, which)


def along(rows: Array, scales: Array, vector: Array, out: Array, which: int | None = None) -> None:
    """Compute the products of a vector, float32 [dim], and rows of bytes, float32 [rows].

    Args:
        rows: int8 [rows, dim]; scales: uint16 [rows], the rows' units.
        out: written.
    """
    values = _Along(
        _address(rows, np.int8),
        _address(scales, np.uint16),
        _address(vector, np.float32),
        rows.shape[1],
        _address(out, np.float32),
    )
    _run("along", len(out), 4096, values, which)


def refine(
    docs: Array,
    table: Array,
    margin: int,
    exact: Array,
    query: Rounded,
    lanes: int,
    arrays: Mapping[str, Array],
    offsets: Array,
    dim: int,
    out: Array,
    coarse: Array,
    which: int | None = None,
) -> None:
    """See `kernels.refine`.

    Args:
        lanes: number of query vectors to use, the first ones: a multiple of `LANES`, or all.
        arrays, offsets: a segment's.
        dim: of the stored vectors.
    """
    values = _Refine(
        _address(docs, np.int64),
        _address(table, np.uint8),
        table.shape[1],
        -(-lanes // LANES) * LANES,
        margin,
        _address(exact, np.float32),
        exact.shape[1],
        _address(query.values, np.int8),
        _address(query.steps, np.float32),
        _address(query.shifts, np.float32),
        _address(query.low, np.float32),
        _address(query.lift, np.float32),
        _address(query.norms, np.float32),
        query.entry,
        lanes,
        query.values.shape[1],
        dim,
        *_arrays(arrays, "centroids", "run_offsets", "run_starts"),
        _address(offsets, np.int64),
        *_arrays(arrays, "residuals", "scales"),
        SCALE_UNIT,
        arrays["residuals"].dtype == np.uint8,
        _address(out, np.float32),
        _address(coarse, np.int32),
    )
    _run("refine", len(docs), 16, values, which)


def score(
    docs: Array,
    query: Array,
    centers: Array,
    arrays: Mapping[str, Array],
    offsets: Array,
    out: Array,
    which: int | None = None,
) -> None:
    """Compute MaxSim over the stored vectors of passages.

    Args:
        docs: int64, the passages.
        query: float32 [query vectors, dim]: as given if the segment has whole vectors, which are
            not rotated, else rotated.
        centers: float32 [centroids, dim].
        arrays, offsets: a segment's.
        out: float32 [docs], written; minus infinity where a passage has no vectors.
    """
    fine, whole = arrays.get("fine"), arrays.get("vectors")
    values = _Score(
        _address(docs, np.int64),
        _address(query, np.float32),
        *query.shape,
        *_arrays(arrays, "centroids", "run_offsets", "run_starts"),
        _address(offsets, np.int64),
        _address(centers, np.float32),
        *_arrays(arrays, "residuals"),
        None if fine is None else _address(fine, np.uint8),
        0 if fine is None else fine.shape[1],
        *_arrays(arrays, "scales"),
        None if whole is None else _address(whole, np.float16),
        SCALE_UNIT,
        arrays["residuals"].dtype == np.uint8,
        _address(out, np.float32),
    )
    _run("score", len(docs), 4, values, which)
