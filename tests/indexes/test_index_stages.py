"""The stages of a search and what is stored, number by number against numpy."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from index_files import Topics, build, manifest, maxsim, stored, units

from ravqa.indexes import maxsim as products
from ravqa.indexes.auto import AutoIndex
from ravqa.indexes.compressed import index as search
from ravqa.indexes.compressed import native
from ravqa.indexes.compressed import threads as shared_threads
from ravqa.indexes.compressed.codec import SCALE_UNIT
from ravqa.indexes.compressed.index import CompressedIndex
from ravqa.indexes.exact import ExactIndex
from ravqa.indexes.segmented import store

DIM = 40
NATIVE = ["native"] if native.library() is not None else []  # where they could be compiled


# -- the exact kind


def test_eight_bits_are_rounded_to_the_largest_component(tmp_path):
    rng = np.random.default_rng(0)
    passages = [units(rng, n, DIM) for n in (3, 0, 1, 2, 1)]
    build(tmp_path, passages, storage="int8")
    [segment] = manifest(tmp_path)["segments"]
    assert (segment["passages"], segment["vectors"], segment["deleted"]) == (5, 7, 0)
    folder = tmp_path / segment["name"]
    order = [1, 2, 4, 3, 0]  # the shortest first, equal ones as given
    rows = np.concatenate([passages[i] for i in order])
    scales = np.abs(rows).max(1) / 127
    np.testing.assert_allclose(np.load(folder / "scales.npy"), scales, rtol=1e-6)
    vectors = np.load(folder / "vectors.npy")
    assert vectors.dtype == np.int8
    np.testing.assert_array_equal(vectors, np.rint(rows / scales[:, None]))
    assert np.load(folder / "lengths.npy").tolist() == [3, 0, 1, 2, 1]
    index = ExactIndex(tmp_path)
    for found, i in zip(index.embeddings(), range(5), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, passages[i], rtol=0, atol=0.005)


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_other_storage_keeps_the_numbers_of_its_type(tmp_path, storage):
    passages = [units(np.random.default_rng(i), n, DIM) for i, n in enumerate((2, 0, 1))]
    build(tmp_path, passages, storage=storage)
    for found, given in zip(ExactIndex(tmp_path).embeddings(), passages, strict=True):
        np.testing.assert_array_equal(found, given.astype(storage))
    [segment] = manifest(tmp_path)["segments"]
    assert not (tmp_path / segment["name"] / "scales.npy").exists()
    assert not (tmp_path / store.SPOOL).exists()


def test_an_exact_search_refuses_settings(tmp_path):
    index = build(tmp_path, [np.eye(DIM)])
    with pytest.raises(ValueError, match=r"^an exact search takes no settings: a, b$"):
        index.search([np.eye(DIM)], 1, a=1, b=2)


def test_a_device_is_cuda_if_there_is_one(monkeypatch):
    asked = []

    def usable(name, part):
        asked.append((name, part))
        return name

    monkeypatch.setattr(products, "usable_device", usable)
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert products.device_of("auto") == torch.device(expected)
    assert products.device_of("meta") == torch.device("meta")
    assert asked == [("cuda", "index"), ("cpu", "index"), ("meta", "index")]


def test_padded_blocks_hold_a_bounded_number_of_vectors(monkeypatch):
    rng = np.random.default_rng(0)
    lengths = np.array([3, 1, 0, 5, 2, 5, 1, 4])
    rows = [units(rng, n, 8) for n in lengths]
    query = units(rng, 3, 8)
    expected = [maxsim(query, row) for row in rows]
    given = torch.from_numpy(query), torch.from_numpy(np.concatenate(rows)), lengths
    for block in (1, 5, 6, 10, 8192):
        monkeypatch.setattr(products, "_BLOCK", block)
        found = products.maxsim(*given)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_large_corpus_begins_at_five_thousand_passages(tmp_path):
    assert AutoIndex.Config().above == 5000
    assert (AutoIndex.kind, AutoIndex.grows, AutoIndex.commits) == ("auto", True, True)
    made = AutoIndex.build(["a"], [np.eye(8)], tmp_path, dim=8, fingerprint="f", attached={"b": 1})
    assert isinstance(made, ExactIndex)
    assert (made.fingerprint, made.attached) == ("f", {"b": 1})
    made.delete(["a"])
    assert AutoIndex.generation(tmp_path) == 2
    settings = manifest(tmp_path)["settings"]
    assert settings == {"storage": "float16"}


# -- the compressed kind

STORAGES = ["9bit", "4bit", "float16"]


@pytest.fixture(scope="module", params=STORAGES)
def made(request, tmp_path_factory):
    """An index of two segments with deletions, and its passages as stored, by id."""
    path = tmp_path_factory.mktemp("stages") / "index"
    passages = [*Topics(seed=6, dim=DIM).passages(120), np.zeros((0, DIM), np.float32)]
    options = {"centroids": 32, "retrain": False, "storage": request.param}
    index = build(path, passages[:80], kind="compressed", **options)
    index.add([f"q{i}" for i in range(41)], passages[80:])
    index.delete(["p3", "q7"])
    return index, stored(path)


def arrays_of(index):
    """For each row of the index: the centroids of its runs, and where each one's vectors are."""
    for segment in index._state.segments:
        bounds, starts = segment.arrays["run_offsets"], segment.arrays["run_starts"]
        for i, length in enumerate(segment.arrays["lengths"]):
            runs = slice(bounds[i], bounds[i + 1])
            ends = [*starts[runs][1:], length] if length else []
            yield segment.arrays["centroids"][runs], list(zip(starts[runs], ends, strict=True))


def test_a_passages_vectors_are_in_runs_of_one_centroid_in_order(made):
    index, _ = made
    for codes, places in arrays_of(index):
        assert np.all(np.diff(codes.astype(int)) > 0)
        assert all(begin < end for begin, end in places)
        assert [begin for begin, _ in places[:1]] == [0] * bool(places)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(places))


def means_of(segment):
    return segment.arrays["means"].astype(np.float64), segment.arrays["mean_scales"]


def way(index, kernels):
    return CompressedIndex(index.path, CompressedIndex.Config(kernels=kernels))


@pytest.mark.parametrize("kernels", ["numba", *NATIVE])
def test_the_table_of_the_kernels_is_products_lifted_and_scaled_to_bytes(made, kernels):
    index = way(made[0], kernels)
    state, codec = index._state, index._state.shared
    query = units(np.random.default_rng(1), 70, DIM) * np.float32(0.3)
    with index._prepared(state, query) as found:
        order = search._sample_first(70)
        np.testing.assert_array_equal(found.plain, query[order])
        turned = query[order] @ codec.rotation
        np.testing.assert_allclose(found.vectors, turned, rtol=0, atol=1e-6)
        exact = codec.centers @ turned.T
        np.testing.assert_allclose(found.exact, exact, rtol=0, atol=1e-5)
        lift = 2 * codec.spread[:, None] * np.linalg.norm(turned, axis=1)
        above = exact + lift - (exact + lift).mean(0)
        scale = 255 / above.max()
        assert found.scale == pytest.approx(scale, rel=1e-4)
        assert found.norm == pytest.approx(0.3, abs=1e-5)
        table = np.clip(above * scale, 0, 255).astype(np.uint8)
        assert found.table.shape == (32, 96)  # a multiple of 32
        assert np.abs(found.table[:, :70].astype(int) - table).max() <= 1
        assert not found.table[:, 70:].any()
        # The scan: per query vector the best of a passage's entries, summed.
        lanes = found.table.astype(np.int32)
        expected = [lanes[c].max(0).sum() if len(c) else 0 for c, _ in arrays_of(index)]
        seen, added = index._scan(state, found)
        np.testing.assert_array_equal(seen, expected)
        # The products of all query vectors with each passage's mean residual.
        decoded = [m * s for g in state.segments for m, s in zip(*means_of(g), strict=True)]
        products = np.array(decoded) @ turned.sum(0) * (found.scale * SCALE_UNIT)
        np.testing.assert_allclose(added, products, rtol=0, atol=1e-2)


@pytest.mark.parametrize("kernels", ["numba", *NATIVE])
def test_scores_of_rows_are_maxsim_of_what_they_hold(made, kernels):
    index, held = way(made[0], kernels), made[1]
    state = index._state
    rows = np.flatnonzero(state.alive)[::-2]
    ids = [state.ids[i] for i in rows]
    for count in (1, 70):
        query = units(np.random.default_rng(count), count, DIM)
        with index._prepared(state, query, tables=False) as found:
            scores = index._scores(state, found, rows)
        expected = [maxsim(query, held[i]) for i in ids]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def runs_of(index):
    """For each row: its runs' centroids, and each run's vectors as the refinement has them."""
    centers = index._state.shared.centers
    four = manifest(index.path)["settings"]["storage"] == "4bit"
    places = arrays_of(index)
    for segment in index._state.segments:
        arrays = segment.arrays
        for first in segment.offsets[:-1]:
            codes, runs = next(places)
            parts = []
            for code, (begin, end) in zip(codes, runs, strict=True):
                part = slice(first + begin, first + end)
                rest = arrays["residuals"][part]
                if four:
                    rest = np.hstack([rest & 15, rest >> 4]) - 7.5
                parts.append(centers[code] + (arrays["scales"][part] * SCALE_UNIT)[:, None] * rest)
            yield codes, parts


@pytest.mark.parametrize("lanes", [None, 32])
@pytest.mark.parametrize("margin", [0.0, 0.1, 1e9])
@pytest.mark.parametrize("kernels", ["numba", *NATIVE])
def test_the_refinement_looks_into_the_runs_that_come_near_the_best(made, margin, lanes, kernels):
    index = way(made[0], kernels)
    state = index._state
    query = units(np.random.default_rng(2), 70, DIM) * np.float32(0.3)
    rows = np.flatnonzero(state.alive & state.matchable)
    with index._prepared(state, query) as found:
        bounds, coarse = index._refined(state, found, rows, margin, lanes)
        table = found.table[:, : lanes or 70].astype(np.int32)
        vectors, exact = found.vectors[:lanes], found.exact[:, : lanes or 70].copy()
        near = min(255, int(margin * found.scale * found.norm))
    every = list(runs_of(index))
    expected, scanned = [], []
    for i in rows:
        codes, parts = every[i]
        entries = table[codes]
        counted = entries > np.maximum(entries.max(0) - near - 1, 0)
        products_ = np.stack([(part @ vectors.T).max(0) for part in parts])
        best = np.where(counted, products_, -np.inf).max(0)
        # Where no entry is above 0, the centroids stand for their vectors.
        expected.append(np.where(counted.any(0), best, exact[codes].max(0)).sum())
        scanned.append(entries.max(0).sum())
    np.testing.assert_array_equal(coarse, scanned)
    if kernels == "numba":
        np.testing.assert_allclose(bounds, expected, rtol=0, atol=1e-4)
        return
    # In whole numbers the query is rounded, and centroids' products are known to a byte's unit.
    errors = bounds - np.array(expected)
    assert np.sqrt((errors**2).mean()) < 0.006
    assert np.abs(errors).max() < 0.03


def test_a_segment_says_how_well_the_centroids_fit_its_vectors(tmp_path):
    topics = Topics(seed=6, dim=DIM)
    options = {"kind": "compressed", "centroids": 32, "retrain": False}
    passages = topics.passages(60), topics.passages(20)
    index = build(tmp_path, passages[0], **options)
    index.add([f"q{i}" for i in range(20)], passages[1])
    codec = index._state.shared
    directions = codec.centers / np.linalg.norm(codec.centers, axis=1, keepdims=True)
    fits, counts = [], []
    for some in passages:
        turned = np.concatenate(some) @ codec.rotation
        rest = turned - codec.centers[np.argmax(turned @ directions.T, axis=1)]
        fits.append(1 - (rest**2).sum(1).mean() / 2)
        counts.append(len(turned))
    found = [segment["fit"] for segment in manifest(tmp_path)["segments"]]
    np.testing.assert_allclose(found, fits, rtol=0, atol=1e-3)
    index.delete(["q0"])
    index.compact()
    [one] = manifest(tmp_path)["segments"]
    assert one["fit"] == pytest.approx(np.average(fits, weights=counts), abs=1e-3)
    assert (one["passages"], one["vectors"]) == (79, sum(counts) - len(passages[1][0]))
    values = json.loads((tmp_path / "shared-000001" / "codec.json").read_text())
    assert values["trained_on"] == counts[0]


def test_work_is_shared_out_in_ranges_that_make_up_the_whole(monkeypatch):
    kernels = pytest.importorskip("ravqa.indexes.compressed.kernels")
    for threads, count, grain, parts in (
        (1, 100, 1, 1),
        (3, 100, 200, 1),
        (3, 100, 32, 4),
        (3, 1000, 1, 12),
        (3, 0, 1, 1),
    ):
        monkeypatch.setattr(kernels, "threads", lambda threads=threads: threads)
        seen = []
        kernels.run(
            lambda a, b, *more, seen=seen: seen.append((a, b, more)), count, "x", grain=grain
        )
        assert len(seen) == parts
        ranges = sorted((a, b) for a, b, _ in seen)
        assert (ranges[0][0], ranges[-1][1]) == (0, count)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
        assert all(more == ("x",) for _, _, more in seen)

    def failing(first, last):
        raise RuntimeError("in a thread")

    monkeypatch.setattr(kernels, "threads", lambda: 3)
    with pytest.raises(RuntimeError, match="in a thread"):
        kernels.run(failing, 100, grain=1)
    out = np.zeros((5, 2), np.float32)
    left, right = np.arange(15, dtype=np.float32).reshape(5, 3), np.ones((3, 2), np.float32)
    kernels.multiply(1, 4, left, right, out)
    assert out.tolist() == [[0, 0], [12, 12], [21, 21], [30, 30], [0, 0]]


def test_numpy_has_its_threads_again_after_a_search(made, monkeypatch):
    kernels = pytest.importorskip("ravqa.indexes.compressed.kernels")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    index = way(made[0], "numba")

    def threads():
        pools = threadpoolctl.threadpool_info()
        return {p["num_threads"] for p in pools if "numpy" in p["filepath"]}

    seen = []
    multiply = kernels.multiply

    def watched(*arguments):
        seen.append(threads())
        multiply(*arguments)

    monkeypatch.setattr(kernels, "multiply", watched)
    query = Topics(seed=9, dim=DIM).passages(1)[0]
    with threadpoolctl.threadpool_limits(2, "blas"):
        if threads() != {2}:
            pytest.skip("numpy has no threads of its own here")
        [found] = index.search([query], 5)
        assert seen
        assert all(each == {1} for each in seen)
        assert threads() == {2}
        index.score([query], [[passage_id for passage_id, _ in found]])
        assert threads() == {2}
        with kernels.lone_products():
            index.search([query], 5)
            assert threads() == {1}  # others are still inside
        assert threads() == {2}
        with pytest.raises(ValueError, match="failed"), kernels.lone_products():
            raise ValueError("failed")
        assert threads() == {2}


@pytest.mark.parametrize("made", ["9bit"], indirect=True)
@pytest.mark.parametrize("kernels", ["numba", *NATIVE])
def test_many_queries_are_searched_at_a_time_by_one_thread_each(made, kernels, monkeypatch):
    index = way(made[0], kernels)
    queries = Topics(seed=9, dim=DIM).passages(5)
    expected = [index.search([query], 5)[0] for query in queries]
    monkeypatch.setattr(shared_threads, "_processors", lambda: 2)
    usual, both, seen = CompressedIndex._search, threading.Barrier(2, timeout=30), []

    def searched(*arguments):
        seen.append(shared_threads.threads())
        if seen[-1] == 1:
            both.wait()  # two are here at a time, or this fails
        return usual(*arguments)

    monkeypatch.setattr(CompressedIndex, "_search", searched)
    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(shared_threads, "pool", lambda: pool)
        assert index.search(queries, 5) == expected
        assert seen == [1, 1, 1, 1, 2]
        assert shared_threads.threads() == 2


def test_room_is_used_again_and_never_twice_at_once():
    room = search._Room()
    with room.for_array(2, 3) as one, room.for_array(4, 5) as other:
        assert (one.shape, other.shape, one.dtype) == ((2, 3), (4, 5), np.float32)
        assert not np.shares_memory(one, other)
        assert one.ctypes.data % 64 == other.ctypes.data % 64 == 0
    with room.for_array(1, 6) as again:
        assert again.shape == (1, 6)
        assert np.shares_memory(again, one) or np.shares_memory(again, other)
    with pytest.raises(KeyError), room.for_array(1, 1):
        raise KeyError
    assert len(room._free) == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 3000), ({"effort": "fast"}, 1500), ({"effort": "careful"}, 9000)],
)
def test_efforts_multiply_candidates(monkeypatch, options, expected):
    """`_cascade` is told how many candidates there are to be, and how much slack."""
    monkeypatch.setattr(search, "default_candidates", lambda passages, vectors: 3000)
    asked = []
    index = object.__new__(CompressedIndex)
    index.config, index.__dict__["_compiled"] = CompressedIndex.Config(), True
    index._prepared = lambda state, query: nullcontext("prepared")
    index._cascade = lambda *arguments: asked.append(arguments)
    state = SimpleNamespace(alive=np.ones(4, bool), matchable=np.array([1, 1, 0, 1], bool))
    allowed = np.array([0, 1, 1, 1], bool)
    index._search(state, np.ones((2, 3)), 5, allowed, options)
    [(_, prepared, rows, k, wanted, slack)] = asked
    assert (prepared, rows.tolist(), k) == ("prepared", [1, 3], 5)
    assert wanted == expected
    assert slack is search._EFFORTS[options.get("effort", "default")]
    for given, k, wanted in (
        ({"candidates": 7}, 2, 7),
        ({"candidates": 7}, 5, 10),
        ({}, 600, 4800),
    ):
        asked.clear()
        index._search(state, np.ones((2, 3)), k, allowed, given)
        assert asked[0][4] == wanted
    # Where all candidates are read from files there are fewer: 15 x the root of 4.
    index.__dict__["_compiled"] = False
    careful = CompressedIndex.Config(effort="careful")
    for resident, count in ((False, 90), (True, 9000)):
        torch_search = SimpleNamespace(resident=lambda state, there=resident: there)
        index._torch = lambda found=torch_search: found
        assert index._count(careful, state, 2, 1) == count
