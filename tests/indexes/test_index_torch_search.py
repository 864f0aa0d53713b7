"""The compressed index's search in torch, as a GPU does it: on the CPU, and on torch's `meta`.

`meta` has no values, so that an operation whose size depends on one fails there.
"""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from index_files import Topics, assert_ranking, build, names, ranking, stored, units
from torch.overrides import TorchFunctionMode

from ravqa.core.errors import UserError
from ravqa.indexes.compressed import codec, torch_search
from ravqa.indexes.compressed.codec import SCALE_UNIT
from ravqa.indexes.compressed.torch_search import TorchSearch

DIM = 24
STORAGES = ["9bit", "4bit", "float16"]
LIFT, MEAN = 2.0, 0.75  # another share than searches use
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=STORAGES)
def made(request, tmp_path_factory):
    """An index of three segments with deletions, and its passages as stored, by id.

    Some passages have no vector, some have one, one has many; one segment has no vectors at all.
    """
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("torch") / "index"
    passages = Topics(seed=6, dim=DIM).passages(70)
    empty = np.zeros((0, DIM), np.float32)
    passages += [units(rng, 1, DIM) for _ in range(10)] + [empty, units(rng, 400, DIM), empty]
    options = {"centroids": 32, "retrain": False, "storage": request.param, "kernels": "torch"}
    index = build(path, [empty, *passages[:60]], kind="compressed", **options)
    index.add(["none", "nor this"], [empty, empty])
    index.add([f"q{i}" for i in range(23)], passages[60:])
    index.delete(["p3", "q7", "nor this"])
    return index, stored(path)


one_storage = pytest.mark.parametrize("made", ["9bit"], indirect=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several would wait for each other longer than these small tensors take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def queries():
    topics = Topics(seed=6, dim=DIM)
    some = topics.queries(topics.passages(70), 3, vectors=40)
    return [*some, units(np.random.default_rng(1), 1, DIM), some[0][:7] * np.float32(1e-3)]


def searcher(monkeypatch, *, room=0, half=False, device=CPU):
    """A search that may keep `room` bytes of stored vectors on the device."""
    monkeypatch.setattr(TorchSearch, "_room", lambda self: room)
    found = TorchSearch(device, LIFT, MEAN, None)
    found._half = half
    return found


def hits(index, found):
    ids = index._state.ids
    return [[(ids[i], float(s)) for i, s in zip(*pair, strict=True)] for pair in found]


def matchable(index):
    return index._state.alive & index._state.matchable


# -- ranking


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16 first"])
@pytest.mark.parametrize("room", [0, 6_000, 2**30], ids=["in files", "in part", "resident"])
def test_all_candidates_are_ranked_as_what_is_stored(made, queries, monkeypatch, room, half):
    index, held = made
    monkeypatch.setattr(torch_search, "_FEW", 3)
    search = searcher(monkeypatch, room=room, half=half)
    expected = [ranking(query, held) for query in queries]
    for k in (1, 10, 1000):
        found = search.search(index._state, queries, k, matchable(index), [1000] * len(queries))
        for best, truth in zip(hits(index, found), expected, strict=True):
            assert_ranking(best, truth, k, 1e-4)
    parts = [part for _, part in search._loaded(index._state).parts]
    kept = sum(torch_search._bytes(part) for part in parts if part.resident)
    whole = sum(map(torch_search._bytes, parts))
    assert kept <= room
    assert kept == {0: 0, 2**30: whole}.get(room, pytest.approx(room, abs=24 * 2 * DIM))
    assert search.resident(index._state) == (kept == whole)


@pytest.mark.parametrize("room", [0, 2**30], ids=["in files", "resident"])
def test_scores_of_any_rows_are_maxsim_of_what_is_stored(made, queries, monkeypatch, room):
    index, held = made
    rows = np.flatnonzero(index._state.alive)[::-2]
    rows = np.concatenate([rows, rows[:3]])
    search = searcher(monkeypatch, room=room, half=True)
    for query in queries:
        scores = search.score(index._state, query, rows)
        truth = dict(ranking(query, held))
        expected = [truth.get(index._state.ids[i], -np.inf) for i in rows]
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    assert not len(search.score(index._state, queries[0], rows[:0]))


def scanned(index, query):
    """The scan by its definition: per query vector the best lifted product of centroids, and the
    products of all with a share of the passage's mean residual."""
    shared = index._state.shared
    lift = LIFT * shared.spread[:, None] * np.linalg.norm(query, axis=1)
    rotated = query @ shared.rotation
    table = shared.centers @ rotated.T + lift
    for segment in index._state.segments:
        bounds = segment.arrays["run_offsets"]
        for i in range(len(segment.ids)):
            codes = segment.arrays["centroids"][bounds[i] : bounds[i + 1]]
            mean = segment.arrays["means"][i] * (segment.arrays["mean_scales"][i] * SCALE_UNIT)
            added = MEAN * (rotated @ mean).sum()
            yield table[codes].max(0).sum() + added if len(codes) else -np.inf


@pytest.mark.parametrize("half", [False, True])
def test_candidates_are_the_best_of_the_scan(made, queries, monkeypatch, half):
    index, held = made
    state = index._state
    search = searcher(monkeypatch, half=half)
    allowed = matchable(index) & (np.arange(len(state.alive)) % 5 > 0)
    counts = [1, 9, 30, 4, 9]
    [*found] = search.search(state, queries, 1000, allowed, counts)
    for query, count, (rows, _) in zip(queries, counts, found, strict=True):
        expected = np.array(list(scanned(index, query)))
        expected[~allowed] = -np.inf
        assert len(rows) == count
        assert allowed[rows].all()
        # Rounding may exchange candidates that hardly differ.
        least = np.sort(expected)[::-1][count - 1]
        assert expected[rows].min() >= least - 2e-3 * np.linalg.norm(query, axis=1).sum()
    few = np.flatnonzero(allowed)[:5]
    only = np.isin(np.arange(len(allowed)), few)
    for query, best in zip(
        queries, hits(index, search.search(state, queries, 3, only, [40] * 5)), strict=True
    ):
        some = {state.ids[i]: held[state.ids[i]] for i in few}
        assert_ranking(best, ranking(query, some), 3, 1e-4)


@one_storage
def test_where_nothing_can_be_found_nothing_is(made, queries, tmp_path, monkeypatch):
    index, _ = made
    search = searcher(monkeypatch)
    nowhere = np.zeros(len(index._state.alive), bool)
    found = search.search(index._state, queries, 3, nowhere, [5] * 5)
    assert [(len(rows), len(scores)) for rows, scores in found] == [(0, 0)] * 5
    assert search.search(index._state, [], 3, matchable(index), []) == []
    for passages in ([], [np.zeros((0, DIM), np.float32)] * 2):
        path = tmp_path / str(len(passages))
        empty = build(path, passages, kind="compressed", dim=DIM, kernels="torch")
        assert empty.search(queries, 3) == [[]] * 5
        assert empty.score(queries[:1], [empty.ids]) == [[-np.inf] * len(passages)]


def test_ties_are_in_the_order_of_passages(tmp_path, monkeypatch):
    same = np.eye(DIM, dtype=np.float32)[:2]
    index = build(tmp_path / "index", [same] * 9, kind="compressed", kernels="torch")
    monkeypatch.setattr(torch_search, "_FEW", 1)
    search = searcher(monkeypatch, half=True)
    [(rows, _)] = search.search(index._state, [same], 9, matchable(index), [9])
    assert rows.tolist() == list(range(9))


# -- the index


def test_the_index_uses_it(made, queries):
    index, held = made
    some = {i: passage for i, passage in held.items() if i.startswith("q")}
    for query, a, b in zip(
        queries,
        index.search(queries, 10),
        index.search(queries, 10, allowed_ids=some),
        strict=True,
    ):
        assert_ranking(a, ranking(query, held), 10, 1e-4)
        assert_ranking(b, ranking(query, some), 10, 1e-4)
    assert index.search(queries, 10, candidates=1) != index.search(queries, 10)
    [scores] = index.score(queries[:1], [["q3", "q22"]])
    assert scores[0] == pytest.approx(dict(ranking(queries[0], some))["q3"], abs=1e-4)
    assert scores[1] == -np.inf


@one_storage
def test_a_search_of_many_queries_is_that_of_each(made, queries, monkeypatch):
    index, _ = made
    state, allowed = made[0]._state, matchable(made[0])
    search = searcher(monkeypatch)
    wanted = [20, 40, 20, 60, 30]
    together = search.search(state, queries, 10, allowed, wanted)
    alone = [
        search.search(state, [query], 10, allowed, [count])[0]
        for query, count in zip(queries, wanted, strict=True)
    ]
    # Small enough for a group per query and a block per passage.
    monkeypatch.setattr(torch_search, "_TABLES", 1)
    search._at_once = 1
    apart = search.search(state, queries, 10, allowed, wanted)
    for a, b, c in zip(*(hits(index, found) for found in (together, alone, apart)), strict=True):
        assert_ranking(a, b, 10, 1e-5)
        assert_ranking(c, b, 10, 1e-5)


# -- what is on the device


def test_a_change_loads_only_what_is_new_within_the_room(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    options = {"retrain": False, "kernels": "torch"}
    index = build(tmp_path / "index", [units(rng, 9, DIM)] * 40, kind="compressed", **options)
    width = DIM + DIM // 8 + 2
    search = searcher(monkeypatch, room=40 * 9 * width + 100 * width)

    def parts():
        return [part for _, part in search._loaded(index._state).parts]

    def resident():
        return sum(torch_search._bytes(part) for part in parts() if part.resident)

    [first] = parts()
    assert first.resident
    # What is free later does not change the share.
    monkeypatch.setattr(TorchSearch, "_room", lambda self: 0)
    assert parts() == [first]
    index.add(names(60)[40:], [units(rng, 9, DIM)] * 20)
    index.delete(["p1", "p41"])
    assert [len(part.lengths) for part in parts()] == [40, 11, 9]
    assert parts()[0] is first
    assert resident() == 51 * 9 * width
    index.compact()
    assert first not in parts()
    assert [len(part.lengths) for part in parts()] == [51, 7]


@one_storage
def test_threads_share_what_is_loaded_once(made, queries, monkeypatch):
    index, _ = made
    search = searcher(monkeypatch, room=2**30, half=True)
    loads = []
    load = search._load
    search._load = lambda state: loads.append(state) or load(state)

    def find(number):
        query = queries[number % len(queries)]
        return search.search(index._state, [query], 5, matchable(index), [20])[0]

    expected = [find(i) for i in range(len(queries))]
    search._known = None
    loads.clear()
    with ThreadPoolExecutor(4) as pool:
        for i, (rows, scores) in enumerate(pool.map(find, range(20))):
            np.testing.assert_array_equal(rows, expected[i % len(queries)][0])
            np.testing.assert_array_equal(scores, expected[i % len(queries)][1])
    assert len(loads) == 1


class OnMeta(TorchFunctionMode):
    """No operation may mix devices; counts how often something comes back, as zeros."""

    def __init__(self):
        self.waits = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.cpu and args[0].is_meta:
            self.waits += 1
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        flat = [*args, *kwargs.values()]
        flat += [item for a in flat if isinstance(a, list | tuple) for item in a]
        devices = {item.device.type for item in flat if isinstance(item, torch.Tensor)}
        assert len(devices) <= 1, f"{function} mixes devices"
        return function(*args, **kwargs)


def test_a_device_is_waited_for_three_times_however_much_there_is_to_do(made, queries, monkeypatch):
    index, _ = made
    state, allowed = index._state, matchable(index)
    monkeypatch.setattr(torch_search, "_FEW", 1)
    # Some vectors are resident, the others in files.
    search = searcher(monkeypatch, room=6_000, half=True, device=torch.device("meta"))
    with OnMeta() as mode:
        search.resident(state)
        assert mode.waits == 0
        for at_once in (2**20, 1):
            search._at_once = at_once
            mode.waits = 0
            search.search(state, queries[3:], 2, allowed, [9, 9])
            assert mode.waits == 3
        monkeypatch.setattr(torch_search, "_TABLES", 1)
        mode.waits = 0
        search.search(state, queries[3:], 2, allowed, [9, 9])
        assert mode.waits == 3 * 2
        mode.waits = 0
        search.score(state, queries[0], np.arange(5))
        assert mode.waits == 1


@one_storage
def test_what_does_not_fit_is_said_once_with_its_setting(made, monkeypatch, caplog):
    index, _ = made
    search = TorchSearch(torch.device("meta"), LIFT, MEAN, 1e-9)
    assert not search.resident(index._state)
    search._known = None
    search.resident(index._state)
    [record] = caplog.records
    assert "index.device_gib" in record.getMessage()
    assert "\n" not in record.getMessage()
    caplog.clear()
    assert TorchSearch(torch.device("meta"), LIFT, MEAN, 1.0).resident(index._state)
    TorchSearch(CPU, LIFT, MEAN, None).resident(index._state)  # has no share to exceed
    assert not caplog.records


def test_a_devices_share_is_a_quarter_of_what_is_free(monkeypatch):
    module = SimpleNamespace(
        mem_get_info=lambda device: (1000, 9000),
        memory_reserved=lambda device: 300,
        memory_allocated=lambda device: 100,
    )
    monkeypatch.setattr(torch, "cuda", module)
    assert TorchSearch(torch.device("cuda"), LIFT, MEAN, None)._room() == 300
    assert TorchSearch(torch.device("cuda"), LIFT, MEAN, 0.5)._room() == 2**29
    assert TorchSearch(torch.device("meta"), LIFT, MEAN, None)._room() == 0  # unknown
    assert TorchSearch(CPU, LIFT, MEAN, 0.5)._room() == 0


@one_storage
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."),
    ],
)
def test_exhausted_memory_is_one_line_with_the_setting(made, queries, monkeypatch, error):
    index, _ = made
    search = searcher(monkeypatch, room=2**30)
    search.resident(index._state)

    def fail(*arguments):
        raise error

    search._scan = fail
    with pytest.raises(UserError, match=r"^index: out of memory on cpu .*index\.device_gib ") as e:
        search.search(index._state, queries, 3, matchable(index), [5] * 5)
    assert "\n" not in str(e.value)
    error = ValueError("something else")
    with pytest.raises(ValueError, match="something else"):
        search.search(index._state, queries, 3, matchable(index), [5] * 5)


# -- its parts


def test_groups_of_queries_of_like_length_are_bounded_by_tables_and_scores(monkeypatch):
    monkeypatch.setattr(torch_search, "_TABLES", 4 * 1000)
    lengths = [30, 10, 200, 11, 20]
    queries = [np.zeros((n, DIM), np.float32) for n in lengths]
    group = TorchSearch(CPU, LIFT, MEAN, None)._groups
    assert list(group(queries, 10, 1)) == [[1, 3, 4], [0], [2]]
    assert list(group(queries, 1, 400)) == [[1, 3], [4, 0], [2]]
    assert list(group(queries, 10**6, 10**6)) == [[1], [3], [4], [0], [2]]
    assert list(group([], 10, 1)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bits", [4, 8, 9])
@pytest.mark.parametrize("dim", [2, 12, 65, 100, 128])
def test_decoding_is_that_of_the_codec(dim, bits, dtype):
    rng = np.random.default_rng(dim)
    if bits == 4 and dim % 2:
        return
    kind, width = (np.uint8, dim // 2) if bits == 4 else (np.int8, dim)
    centers = units(rng, 50_000, 1) @ units(rng, 1, dim)
    centers = centers.astype(np.float16).astype(np.float32)
    coded = codec.Coded(
        rng.integers(0, len(centers), 40).astype(np.uint16),
        rng.integers(0, 256, (40, width), np.uint8).view(kind),
        rng.integers(0, 256, (40, codec.fine_width(dim, bits)), np.uint8),
        rng.choice([1, 40, 700, 65535], 40).astype(np.uint16),
    )
    codes = torch_search._unsigned(torch.from_numpy(coded.codes.view(np.int16)))
    found = torch_search._decode(
        torch.from_numpy(centers).to(dtype)[codes],
        torch.from_numpy(coded.residuals),
        torch.from_numpy(coded.fine),
        torch.from_numpy(coded.scales.view(np.int16)),
    )
    expected = codec.decode(centers, coded)
    assert found.dtype == dtype
    within = 1e-6 if dtype == torch.float32 else 2e-3
    np.testing.assert_allclose(found.float().numpy(), expected, rtol=within, atol=within)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_ranges_of_lengths_cover_all_and_stay_within_the_size(lengths, size):
    ordered = np.sort(np.array(lengths, np.int64))
    ranges = list(torch_search._by_length(ordered, size))
    assert [i for first, last in ranges for i in range(first, last)] == list(range(len(lengths)))
    for first, last in ranges:
        assert last - first == 1 or (last - first) * ordered[last - 1] <= size
        if last < len(ordered):
            assert (last + 1 - first) * ordered[last] > size


def test_the_free_memory_of_a_device_that_says_nothing_counts_as_none():
    assert torch_search._free(torch.device("meta")) == 0
