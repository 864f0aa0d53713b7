"""The kernels in C against numpy, for every set of instructions that this processor has."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_files import units

from ravqa.core.errors import UserError
from ravqa.indexes.compressed import native
from ravqa.indexes.compressed.codec import SCALE_UNIT, Coded, decode, fine_width
from ravqa.indexes.compressed.index import CompressedIndex, kernels_in_use

ROOT = Path(__file__).parents[2]
STORAGES = ["9bit", "4bit", "float16"]
few = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory):
    """The installed library; a new one where this checkout has none and can be compiled."""
    if native.library() is None:
        sys.path.insert(0, str(ROOT))
        hatch_build = pytest.importorskip("hatch_build")
        sys.path.remove(str(ROOT))
        if not hatch_build.compiler():
            pytest.skip("there is no C compiler")
        made = tmp_path_factory.mktemp("native") / "kernels.so"
        hatch_build.compile_kernels(made)
        found = native.load(made)
        assert found is not None
        patch = pytest.MonkeyPatch()
        patch.setattr(native, "library", lambda: found)
        native.best_set.cache_clear()
        yield
        patch.undo()
        native.best_set.cache_clear()
    else:
        yield


def sets():
    return range(native.best_set() + 1)


class Segment:
    """Random passages as a segment stores them."""

    def __init__(self, rng, dim, storage, count=9, centroids=7, longest=12):
        lengths = rng.integers(0, longest, count)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        total = int(self.offsets[-1])
        bounds, codes, starts, self.codes = [0], [], [], []
        for length in lengths:
            begins = np.unique(np.concatenate([[0], rng.integers(0, length, 4)]) if length else [])
            chosen = np.sort(rng.choice(centroids, min(len(begins), centroids), replace=False))
            begins = begins[: len(chosen)].astype(np.uint16)
            codes.extend(chosen)
            starts.extend(begins)
            self.codes.extend(np.repeat(chosen, np.diff(np.append(begins, length))))
            bounds.append(len(codes))
        self.codes = np.array(self.codes, np.uint16)
        four = storage == "4bit"
        shape = (total, dim // 2 if four else dim)
        low, high, kind = (0, 256, np.uint8) if four else (-127, 128, np.int8)
        fine = fine_width(dim, {"9bit": 9, "4bit": 4, "float16": 8}[storage])
        self.arrays = {
            "run_offsets": np.array(bounds, np.int64),
            "centroids": np.array(codes, np.uint16),
            "run_starts": np.array(starts, np.uint16),
            "residuals": rng.integers(low, high, shape).astype(kind),
            "scales": rng.integers(1, 400 if four else 60, total).astype(np.uint16),
        }
        if storage == "float16":
            self.arrays["vectors"] = units(rng, total, dim).astype(np.float16)
        else:
            self.arrays["fine"] = rng.integers(0, 256, (total, fine)).astype(np.uint8)
        self.centers = units(rng, centroids, dim) * np.float32(0.8)

    def __len__(self):
        return len(self.offsets) - 1

    def runs(self, d):
        """The codes of a passage's runs, and each run's vectors, counted over all passages."""
        a = self.arrays
        places = slice(*a["run_offsets"][d : d + 2])
        begins = self.offsets[d] + a["run_starts"][places].astype(np.int64)
        ends = np.append(begins[1:], self.offsets[d + 1])[: len(begins)]
        return a["centroids"][places], [np.arange(*both) for both in zip(begins, ends, strict=True)]


@given(seeds, st.integers(1, 60), st.integers(1, 75), st.integers(1, 40))
@few
def test_products_are_those_of_numpy(seed, rows, lanes, dim):
    rng = np.random.default_rng(seed)
    left, right = units(rng, rows, dim), units(rng, lanes, dim)
    lifted = native.Lifted(*(units(rng, 1, n)[0] for n in (rows, lanes, lanes)), 0.0)
    expected = left @ right.T
    raised = expected + lifted.lift[:, None] * lifted.norms - lifted.low
    for which in sets():
        out = np.full((rows, lanes), np.nan, np.float32)
        native.products(left, right, out, which)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)
        out[:] = np.nan
        highest = native.table_products(left, right, lifted, out, which)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(highest, raised.max(1), rtol=0, atol=1e-6)


@given(seeds, st.integers(1, 40), st.integers(1, 75))
@few
def test_entries_of_the_byte_table_are_scaled_and_clipped(seed, rows, lanes):
    rng = np.random.default_rng(seed)
    exact = rng.uniform(-1, 1, (rows, lanes)).astype(np.float32)
    lifted = native.Lifted(*(units(rng, 1, n)[0] for n in (rows, lanes, lanes)), 200.0)
    expected = (exact + lifted.lift[:, None] * lifted.norms - lifted.low) * np.float32(200)
    for which in sets():
        table = np.full((rows, 96), 7, np.uint8)
        native.quantise(exact, lifted, table, which)
        assert not table[:, lanes:].any()
        # Not rounded, but cut: whole numbers may come out on either side.
        off = table[:, :lanes] + 0.5 - np.clip(expected, 0, 255)
        assert np.abs(off).max() <= 0.501


@given(seeds, st.integers(1, 40), st.integers(1, 40))
@few
def test_products_with_rows_of_bytes_are_those_of_numpy(seed, count, dim):
    rng = np.random.default_rng(seed)
    rows = rng.integers(-127, 128, (count, dim)).astype(np.int8)
    scales, vector = rng.integers(0, 2**16, count).astype(np.uint16), units(rng, 1, dim)[0]
    expected = (rows.astype(np.float64) @ vector) * scales
    for which in sets():
        out = np.full(count, np.nan, np.float32)
        native.along(rows, scales, vector, out, which)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1)


@given(seeds, st.sampled_from([32, 64, 96, 160]))
@few
def test_the_scan_sums_the_best_entries(seed, lanes):
    rng = np.random.default_rng(seed)
    segment = Segment(rng, 8, "9bit", count=70)
    table = rng.integers(0, 256, (7, lanes)).astype(np.uint8)
    rows = [table[segment.runs(d)[0]] for d in range(len(segment))]
    expected = [row.max(0).sum(dtype=int) if len(row) else 0 for row in rows]
    for which in sets():
        out = np.full(len(segment), -1, np.int32)
        native.scan(table, segment.arrays, out, which)
        np.testing.assert_array_equal(out, expected)


def bounds_of(segment, docs, table, query, lanes, margin, exact, dim):
    """What the refinement computes, in numpy: bounds, and the scan's result."""
    residuals, four = segment.arrays["residuals"], segment.arrays["residuals"].dtype == np.uint8
    halves = query.values.reshape(len(query.values), 2 if four else 1, -1)
    whole = halves[:, :, : dim // halves.shape[1]].reshape(len(halves), dim).astype(int)
    if four:
        residuals = np.hstack([residuals & 15, residuals >> 4]) - 7.5
    sizes = segment.arrays["scales"] * SCALE_UNIT
    bounds, scanned = [], []
    for d in docs:
        codes, runs = segment.runs(d)
        entries = table[codes][:, :lanes].astype(int)
        counted = entries > np.maximum(entries.max(0) - margin - 1, 0)
        products = query.low - query.lift[codes, None] * query.norms + query.entry * table[codes]
        best = np.full(lanes, -np.inf)
        for n, run in enumerate(runs):
            dots = (residuals[run] @ whole.T) * query.steps * sizes[run, None]
            found = (products[n] + dots.max(0))[:lanes]
            best = np.where(counted[n], np.maximum(best, found), best)
        bounds.append(np.where(counted.any(0), best, exact[codes].max(0)[:lanes]).sum())
        scanned.append(entries.max(0).sum())
    return bounds, scanned


@given(
    seeds,
    st.sampled_from(STORAGES),
    st.sampled_from([2, 12, 40, 64, 128]),
    st.sampled_from([(1, None), (33, None), (70, None), (70, 32), (130, 64)]),
    st.sampled_from([0, 9, 60, 255]),
)
@settings(max_examples=30, deadline=None)
def test_the_refinement_is_right_to_the_last_whole_number(seed, storage, dim, vectors, margin):
    rng = np.random.default_rng(seed)
    count, lanes = vectors[0], vectors[1] or vectors[0]
    longest = 200 if seed % 4 == 0 else 12
    segment = Segment(rng, dim, storage, centroids=300 if longest > 12 else 7, longest=longest)
    vectors = units(rng, count, dim) * rng.uniform(0, 1, (count, 1)).astype(np.float32)
    vectors[0] = 0
    n = len(segment.centers)
    exact = segment.centers @ vectors.T
    lift, low = rng.uniform(0, 0.1, n).astype(np.float32), exact.mean(0)
    lifted = native.Lifted(lift, np.linalg.norm(vectors, axis=1), low, 180.0)
    table = np.zeros((n, -(-count // 32) * 32), np.uint8)
    native.quantise(exact, lifted, table)
    query = native.rounded(vectors, table.shape[1], storage == "4bit", lifted)
    docs = np.flatnonzero(np.diff(segment.offsets))[::-1].copy()
    expected, scanned = bounds_of(segment, docs, table, query, lanes, margin, exact, dim)
    for which in sets():
        out, coarse = np.empty(len(docs), np.float32), np.empty(len(docs), np.int32)
        rest = segment.arrays, segment.offsets, dim, out, coarse, which
        native.refine(docs, table, margin, exact, query, lanes, *rest)
        np.testing.assert_array_equal(coarse, scanned)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("four", [False, True])
def test_a_rounded_query_is_the_query_but_for_a_part_of_a_step(four):
    rng = np.random.default_rng(0)
    query = units(rng, 5, 40)
    query[2] = 0
    lifted = native.Lifted(np.zeros(1, np.float32), *np.ones((2, 5), np.float32), 2.0)
    found = native.rounded(query, 32, four, lifted)
    values = found.values[:, np.r_[0:20, 32:52] if four else np.r_[0:40]]
    assert found.values.shape == (32, 64)
    assert np.abs(found.values).max() == 63
    assert np.abs(values).sum() == np.abs(found.values.astype(int)).sum()  # the rest is 0
    np.testing.assert_allclose(values[:5] * found.steps[:5, None], query, rtol=0, atol=0.5 / 63)
    np.testing.assert_allclose(found.low[:5], 1.25)
    assert not found.steps[5:].any()


@given(seeds, st.sampled_from(STORAGES), st.sampled_from([2, 12, 40, 128]), st.integers(1, 70))
@few
def test_scores_are_maxsim_over_what_is_stored(seed, storage, dim, count):
    rng = np.random.default_rng(seed)
    segment = Segment(rng, dim, storage)
    arrays, query = segment.arrays, units(rng, count, dim)
    if storage == "float16":
        held = arrays["vectors"].astype(np.float32)
    else:
        names = "residuals", "fine", "scales"
        held = decode(segment.centers, Coded(segment.codes, *(arrays[name] for name in names)))
    products = held @ query.T
    docs = rng.permutation(len(segment))
    parts = [products[segment.offsets[d] : segment.offsets[d + 1]] for d in docs]
    expected = [part.max(0).sum() if len(part) else -np.inf for part in parts]
    for which in sets():
        out = np.empty(len(docs), np.float32)
        native.score(docs, query, segment.centers, arrays, segment.offsets, out, which)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * count)


def test_halves_of_all_sizes_are_widened_exactly():
    bits = np.arange(2**16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))]
    whole = bits.view(np.float16)[:, None]
    rng = np.random.default_rng(0)
    segment = Segment(rng, 1, "float16", count=1)
    segment.arrays |= {
        "run_offsets": np.arange(len(bits) + 1),
        "centroids": np.zeros(len(bits), np.uint16),
        "run_starts": np.zeros(len(bits), np.uint16),
        "vectors": whole,
    }
    docs, query = np.arange(len(bits)), np.ones((1, 1), np.float32)
    for which in sets():
        out = np.empty(len(bits), np.float32)
        offsets = np.arange(len(bits) + 1)
        native.score(docs, query, segment.centers, segment.arrays, offsets, out, which)
        np.testing.assert_array_equal(out, whole[:, 0].astype(np.float32))


def test_several_threads_share_one_call(monkeypatch):
    rng = np.random.default_rng(0)
    segment = Segment(rng, 8, "9bit", count=1000)
    table = rng.integers(0, 256, (7, 64)).astype(np.uint8)
    one, many = np.zeros((2, len(segment)), np.int32)
    monkeypatch.setattr(native, "threads", lambda: 1)
    native.scan(table, segment.arrays, one)
    monkeypatch.setattr(native, "threads", lambda: 3)
    native.scan(table, segment.arrays, many)
    np.testing.assert_array_equal(one, many)
    assert one.any()


def test_arrays_of_another_type_or_order_are_refused():
    rows = np.ones((4, 4), np.float32)
    for bad in (rows.astype(np.float64), rows[:, ::2]):
        with pytest.raises(TypeError, match="contiguous array of float32"):
            native.products(rows, bad, rows)


def test_a_library_that_is_damaged_or_of_other_sources_is_not_used(tmp_path, monkeypatch):
    assert native.load(tmp_path / "missing.so") is None
    (tmp_path / "bad.so").write_bytes(b"no library")
    assert native.load(tmp_path / "bad.so") is None
    (tmp_path / "other.c").write_text("other")
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    assert native.load(Path(native.library()._name)) is None


def test_what_searches_is_chosen_by_what_is_there(monkeypatch):
    config, cpu = CompressedIndex.Config, SimpleNamespace(type="cpu")
    assert kernels_in_use(config(), cpu) == "native"
    for kernels in ("native", "torch"):
        assert kernels_in_use(config(kernels=kernels), cpu) == kernels
    monkeypatch.setattr(native, "library", lambda: None)
    assert kernels_in_use(config(), cpu) in {"numba", "torch"}
    with pytest.raises(UserError, match=r"^index\.kernels=native: .*C compiler"):
        kernels_in_use(config(kernels="native"), cpu)
