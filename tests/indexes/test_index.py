"""Every kind of index against MaxSim written out with numpy: scores, order, edges, bad input."""

import math
import os
import shutil
import weakref

import numpy as np
import pytest
import torch
from cases import slow_but
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_files import (
    KINDS,
    assert_ranking,
    build,
    files,
    kind_of,
    maxsim,
    names,
    ranking,
    stored,
    units,
)
from torch.overrides import TorchFunctionMode

from ravqa.core.errors import UserError
from ravqa.indexes.auto import AutoIndex
from ravqa.indexes.base import checked_passages
from ravqa.indexes.compressed.index import CompressedIndex
from ravqa.indexes.exact import ExactIndex
from ravqa.indexes.maxsim import maxsim as kernel


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


SMALL = [("exact", "float16"), ("compressed", "9bit")]
every_kind = pytest.mark.parametrize(("kind", "storage"), slow_but(SMALL, KINDS))
both_kinds = pytest.mark.parametrize(("kind", "storage"), SMALL)

# One vector's product with a stored vector is off by the length of what storing changed: half a
# step in each component (int8: 1/254 of the largest one), which are independent of each other.
LOSS = {"float32": 1e-6, "float16": 2**-11, "int8": 0.015, "9bit": 0.01, "4bit": 0.12}


def assert_searches(index, path, queries, k=10, atol=1e-4):
    """Rankings are those of brute force over what the files hold."""
    passages = stored(path)
    for query, hits in zip(queries, index.search(queries, k), strict=True):
        assert_ranking(hits, ranking(query, passages), k, atol)


# Unit vectors whose components are exact in float16; with queries of multiples of 1/4 products and
# sums are exact in float32 whatever the order of summation. So scores must be equal, and ties are
# real ties.
GRID = st.integers(-8, 8).map(lambda n: n / 4)
SIGN = st.sampled_from([-1.0, 1.0])


@st.composite
def exact_units(draw, dim, most):
    rows = np.zeros((draw(st.integers(0, most)), dim), dtype=np.float32)
    for row in rows:
        if draw(st.booleans()):
            row[draw(st.integers(0, dim - 1))] = draw(SIGN)
        else:
            row[:4] = [draw(SIGN) / 2 for _ in range(4)]
    return rows


@st.composite
def cases(draw):
    dim = draw(st.integers(4, 6))
    passages = draw(st.lists(exact_units(dim, 4), min_size=1, max_size=8))
    # copies elsewhere in the corpus, and zero rows in queries, are not left to chance
    passages += [passages[i].copy() for i in draw(st.lists(st.integers(0, len(passages) - 1)))]

    def query():
        rows = draw(st.integers(1, 4))
        values = draw(st.lists(GRID, min_size=rows * dim, max_size=rows * dim))
        array = np.array(values, dtype=np.float32).reshape(rows, dim)
        array[draw(st.lists(st.integers(0, rows - 1), max_size=2))] = 0
        array[0, 0] = array[0, 0] or 1
        return array

    queries = [query() for _ in range(draw(st.integers(1, 4)))]
    allowed = draw(st.lists(st.sampled_from([*names(len(passages)), "nowhere"])))
    storage = draw(st.sampled_from(["float16", "float32"]))
    return dim, passages, queries, storage, draw(st.integers(1, 12)), allowed


@given(case=cases())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_rankings_and_ties_equal_brute_force(tmp_path, case):
    dim, passages, queries, storage, k, allowed = case
    shutil.rmtree(tmp_path / "index", ignore_errors=True)
    index = build(tmp_path / "index", passages, dim=dim, storage=storage)
    expected = [[maxsim(q, p) for p in passages] for q in queries]
    ids = names(len(passages))

    scores = index.scores(queries)
    assert scores.dtype == np.float32
    assert scores.tolist() == expected
    assert index.score(queries, [ids] * len(queries)) == expected
    wanted = [ids[::-2] for _ in queries]
    assert index.score(queries, wanted) == [row[::-1][::2] for row in expected]
    by_id = dict(zip(ids, passages, strict=True))
    assert index.search(queries, k) == [ranking(q, by_id, k) for q in queries]
    some = {i: p for i, p in by_id.items() if i in allowed}
    assert index.search(queries, k, allowed_ids=allowed) == [ranking(q, some, k) for q in queries]
    # a query's scores do not depend on the others in the call
    assert [index.scores([q])[0].tolist() for q in queries] == expected


def test_scores_equal_a_computation_in_plain_python(tmp_path):
    passages = [[[1.0, 0.0], [0.6, 0.8]], [[0.0, 1.0]], [], [[-1.0, 0.0], [0.0, -1.0]]]
    query = [[1.0, 2.0], [0.0, 0.0], [0.5, -1.0]]
    arrays = [np.array(p, dtype=np.float32).reshape(-1, 2) for p in passages]
    index = build(tmp_path / "index", arrays, dim=2, storage="float32")

    expected = []
    for passage in passages:
        total = 0.0
        for q in query:
            if any(q):
                total += max(
                    (sum(a * b for a, b in zip(q, d, strict=True)) for d in passage),
                    default=-math.inf,
                )
        expected.append(total)
    # by hand: 2.2 + 0.5; 2 - 1; nothing to match; -1 + 1
    assert expected == pytest.approx([2.7, 1.0, -math.inf, 0.0])

    [got] = index.search([np.array(query, dtype=np.float32)], 4)
    assert [i for i, _ in got] == ["p0", "p1", "p3"]
    assert [s for _, s in got] == pytest.approx([2.7, 1.0, 0.0], abs=1e-6)


@every_kind
def test_rankings_equal_brute_force_over_what_is_stored(tmp_path, kind, storage):
    rng = np.random.default_rng(1)
    passages = [units(rng, n, 48) for n in rng.integers(0, 40, size=60)]
    queries = [units(rng, n, 48) for n in (1, 7, 33)]
    index = build(tmp_path / "index", passages, kind=kind, storage=storage)
    assert_searches(index, tmp_path / "index", queries)

    by_id = dict(zip(names(60), passages, strict=True))
    found = stored(tmp_path / "index")
    assert list(found) == list(by_id)
    for query in queries:
        for i, passage in by_id.items():
            if len(passage):
                loss = abs(maxsim(query, found[i]) - maxsim(query, passage))
                assert loss <= len(query) * LOSS[storage]
    scores = index.score(queries, [list(by_id)] * 3)
    expected = [[maxsim(q, p) for p in found.values()] for q in queries]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "small", "share"),
    [("exact", "int8", 0.53), ("exact", "float16", 1.01), ("compressed", "4bit", 0.41)],
)
def test_storage_takes_the_bytes_that_it_promises(tmp_path, kind, small, share):
    rng = np.random.default_rng(2)
    passages = [units(rng, 60, 128) for _ in range(200)]
    index = build(tmp_path / "index", passages, kind=kind, storage=small)
    size = sum((tmp_path / "index" / name).stat().st_size for name in files(tmp_path / "index"))
    assert size < share * 200 * 60 * 128 * 2
    assert 0.8 * size < index.stats()["bytes"] <= size


def test_a_small_block_changes_nothing(tmp_path):
    rng = np.random.default_rng(3)
    dim = 4096  # one megabyte holds 64 vectors
    lengths = [0, 1, 63, 64, 65, 200, 64, 0, 1, 31, 33, 64, 2, 2, 2]
    passages = [np.eye(dim, dtype=np.float32)[rng.integers(0, dim, n)] for n in lengths]
    passages.append(passages[5].copy())
    queries = [(rng.integers(-2, 3, size=(n, dim)) / 2).astype(np.float32) for n in (3, 1)]
    index = build(tmp_path / "index", passages, block_mb=1)
    expected = [[maxsim(q, p) for p in passages] for q in queries]
    assert index.scores(queries).tolist() == expected
    ids = names(len(passages))
    assert index.score(queries, [ids, ids[::-1]]) == [expected[0], expected[1][::-1]]
    whole = ExactIndex(tmp_path / "index", ExactIndex.Config(block_mb=4096))
    assert whole.search(queries, 16) == index.search(queries, 16)
    by_id = dict(zip(ids, passages, strict=True))
    assert index.search(queries, 16) == [ranking(q, by_id) for q in queries]
    index.compact()
    assert index.search(queries, 16) == whole.search(queries, 16)


@both_kinds
def test_ties_come_in_passage_order_also_across_lengths(tmp_path, kind, storage):
    one = np.array([[1, 0]], dtype=np.float32)
    passages = [np.repeat(one, n, axis=0) for n in (3, 1, 2, 1, 3)]
    index = build(tmp_path / "index", passages, kind=kind, storage=storage)
    [hits] = index.search([one], 5)
    assert [i for i, _ in hits] == names(5)
    assert [s for _, s in hits] == pytest.approx([1.0] * 5, abs=1e-3)
    assert index.search([one], 2) == [hits[:2]]


# --- edges


@every_kind
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_dimensions(tmp_path, kind, storage, dim):
    rng = np.random.default_rng(dim)
    passages = [units(rng, n, dim) for n in (1, 4, 9, 30, 2)]
    index = build(tmp_path / "index", passages, kind=kind, storage=storage)
    assert index.dim == dim
    assert_searches(index, tmp_path / "index", [units(rng, 12, dim)])


@every_kind
@pytest.mark.parametrize(
    "lengths",
    [[1], [512], [1] * 30, [512] * 3, [1, 512, 0, 70, 0, 1], [0, 5], [700]],
    ids=lambda n: "x".join(map(str, n[:6])),
)
def test_lengths_of_passages(tmp_path, kind, storage, lengths):
    rng = np.random.default_rng(4)
    passages = [units(rng, n, 16) for n in lengths]
    index = build(tmp_path / "index", passages, kind=kind, storage=storage)
    assert len(index) == len(lengths)
    queries = [units(rng, n, 16) for n in (1, 40)]
    for k in (1, 2, 1000):
        assert_searches(index, tmp_path / "index", queries, k)
    assert index.verify() == []


@every_kind
def test_a_query_of_a_thousand_vectors_some_of_them_zero(tmp_path, kind, storage):
    rng = np.random.default_rng(5)
    passages = [units(rng, n, 32) for n in rng.integers(1, 30, size=40)]
    index = build(tmp_path / "index", passages, kind=kind, storage=storage)
    query = units(rng, 1000, 32)
    query[rng.integers(0, 1000, size=100)] = 0
    assert_searches(index, tmp_path / "index", [query], atol=1e-3)
    dense = query[query.any(axis=1)]
    assert len(dense) < 1000
    assert index.search([query, dense], 7)[0] == index.search([dense], 7)[0]


@both_kinds
def test_only_allowed_passages_are_found(tmp_path, kind, storage):
    rng = np.random.default_rng(6)
    passages = [units(rng, n, 16) for n in rng.integers(0, 9, size=50)]
    index = build(tmp_path / "index", passages, kind=kind, storage=storage)
    found = stored(tmp_path / "index")
    query = units(rng, 6, 16)
    for count in (1, 3, 20, 49):
        some = [str(i) for i in rng.choice(names(50), count, replace=False)]
        expected = ranking(query, {i: found[i] for i in found if i in some})
        for allowed in (some, set(some), iter([*some, *some, "nowhere"])):
            [hits] = index.search([query], 8, allowed_ids=allowed)
            assert_ranking(hits, expected, 8, 1e-4)
    assert index.search([query, query], 8, allowed_ids=[]) == [[], []]
    assert index.search([query], 8, allowed_ids=["nowhere"]) == [[]]
    without = [i for i, p in found.items() if not len(p)]
    assert without
    assert index.search([query], 8, allowed_ids=without) == [[]]


@both_kinds
def test_without_queries_there_are_no_rankings(tmp_path, kind, storage):
    index = build(tmp_path / "index", [np.eye(3)], kind=kind, storage=storage)
    assert index.search([], 1) == []
    assert index.score([], []) == []
    assert index.score([np.eye(3)], [[]]) == [[]]


@pytest.mark.parametrize("kind", ["exact", "compressed", "sharded", "qdrant"])
def test_there_is_a_list_of_passages_for_every_query(tmp_path, kind):
    if kind == "qdrant":
        pytest.importorskip("qdrant_edge", reason="pip install 'ravqa[qdrant]'")
    index = build(tmp_path / "index", [np.eye(3)], kind=kind)
    for queries, ids in (
        ([np.eye(3)], []),
        ([], [["p0"]]),
        ([np.eye(3)], [["p0"], ["p0"]]),
        ([np.eye(3)] * 2, [["p0"]]),
    ):
        with pytest.raises(ValueError, match=r"zip\(\)"):
            index.score(queries, ids)
    index.close()


def test_without_queries_there_are_no_scores(tmp_path):
    assert build(tmp_path / "index", [np.eye(3)]).scores([]).shape == (0, 1)


@every_kind
def test_an_index_may_begin_empty(tmp_path, kind, storage):
    rng = np.random.default_rng(7)
    path = tmp_path / "index"
    index = build(path, [], kind=kind, storage=storage, dim=16)
    query = units(rng, 5, 16)
    assert len(index) == 0
    assert index.ids == []
    assert index.search([query], 3) == [[]]
    assert kind_of(kind)(path).search([query], 3, allowed_ids=["a"]) == [[]]
    index.compact()
    assert index.verify() == []
    index.add(["a", "b"], [units(rng, 4, 16), units(rng, 3, 16)])
    assert_searches(index, path, [query])
    index.compact()
    assert_searches(index, path, [query])
    assert index.ids == ["a", "b"]


@every_kind
def test_passages_without_vectors_are_there_and_never_found(tmp_path, kind, storage):
    rng = np.random.default_rng(8)
    path = tmp_path / "index"
    none = np.zeros((0, 16), np.float32)
    index = build(path, [none, none], kind=kind, storage=storage)
    query = units(rng, 5, 16)
    assert len(index) == 2
    assert index.search([query], 3) == [[]]
    assert index.score([query], [["p1"]]) == [[-math.inf]]
    index.add(["a"], [units(rng, 4, 16)])
    for _ in range(2):
        [[(found, score)]] = index.search([query], 3)
        assert found == "a"
        assert score == pytest.approx(maxsim(query, stored(path)["a"]), abs=1e-4)
        scores = [-math.inf, pytest.approx(score, abs=1e-5)]
        assert index.score([query], [["p0", "a"]]) == [scores]
        index.compact()
    assert index.ids == ["p0", "p1", "a"]


@both_kinds
def test_ids_are_any_text_and_come_back_after_opening(tmp_path, kind, storage):
    rng = np.random.default_rng(9)
    ids = ["zwei", "ein s", "д", "4/../x", "", "line\nbreak", "\u2028", "0"]
    passages = [units(rng, n, 8) for n in (3, 0, 1, 9, 2, 2, 2, 1)]
    path = tmp_path / "deep" / "index"
    queries = [units(rng, 4, 8)]
    built = build(path, passages, kind=kind, storage=storage, ids=ids, fingerprint="f1")
    again = kind_of(kind).open(path)
    assert again.search(queries, 8) == built.search(queries, 8)
    assert again.ids == ids
    assert len(again) == 8
    assert "д" in again
    assert "w" not in again
    assert again.fingerprint == "f1"
    assert again.dim == 8


@both_kinds
def test_inputs_may_be_of_any_numbers_and_are_left_alone(tmp_path, kind, storage):
    rng = np.random.default_rng(10)
    vectors, query = units(rng, 12, 8), units(rng, 3, 8)
    forms = {
        "f32": vectors,
        "f64": vectors.astype(np.float64),
        "f16": vectors.astype(np.float16),
        "strided": np.repeat(vectors, 2, axis=0)[::2],
        "fortran": np.asfortranarray(vectors),
        "list": vectors.tolist(),
        "torch": torch.from_numpy(vectors.copy()),
    }
    kept = vectors.copy(), query.copy()
    vectors.flags.writeable = query.flags.writeable = False
    index = build(
        tmp_path / "index", list(forms.values()), kind=kind, storage=storage, ids=forms, dim=8
    )
    scores = index.score([query] * len(forms), [[name] for name in forms])
    assert np.ptp(scores) < 0.01
    for given_as in (query, query.astype(np.float64), query.tolist(), torch.from_numpy(kept[1])):
        assert [i for i, _ in index.search([given_as], 3)[0]] == list(forms)[:3]
    assert (vectors == kept[0]).all()
    assert (query == kept[1]).all()


@both_kinds
def test_passages_are_taken_one_by_one(tmp_path, kind, storage):
    rng = np.random.default_rng(11)
    alive, most = weakref.WeakSet(), 0

    class Watched(np.ndarray):  # plain arrays cannot be in a WeakSet
        __hash__ = object.__hash__

    def passages():
        nonlocal most
        for _ in range(50):
            array = units(rng, 5, 8).view(Watched)
            alive.add(array)
            most = max(most, len(alive))
            yield array

    index = build(
        tmp_path / "index", passages(), ids=(f"p{i}" for i in range(50)), dim=8, kind=kind
    )
    index.add((f"q{i}" for i in range(50)), passages())
    index.update((f"q{i}" for i in range(50)), passages())
    assert len(index) == 100
    assert most <= 3


# --- what is refused


def bad_vectors():
    good = np.eye(4, dtype=np.float32)
    spoilt = {name: good.copy() for name in ("nan", "inf", "-inf", "zero", "long", "short", "huge")}
    spoilt["nan"][2, 1] = np.nan
    spoilt["inf"][0, 0] = np.inf
    spoilt["-inf"][3, 0] = -np.inf
    spoilt["zero"][1] = 0
    spoilt["long"][3] *= 1.1
    spoilt["short"][3] *= 0.9
    spoilt["huge"][3] *= 1e30
    messages = dict.fromkeys(spoilt, "normalised") | dict.fromkeys(
        ["nan", "inf", "-inf"], "not finite"
    )
    for name, array in spoilt.items():
        yield pytest.param(array, messages[name], id=name)
    for shape in ((2, 5), (2, 3), (4,), (1, 2, 4)):
        yield pytest.param(np.ones(shape, np.float32), r"\[vectors, 4\]", id=str(shape))


@both_kinds
@pytest.mark.parametrize(("bad", "message"), list(bad_vectors()))
def test_bad_vectors_are_refused_by_id_and_nothing_is_changed(
    tmp_path, kind, storage, bad, message
):
    path = tmp_path / "index"
    good = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match=message) as caught:
        build(path, [good, bad], kind=kind, storage=storage, ids=["fine", "bad one"])
    assert "'bad one'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not kind_of(kind).built(path)
    assert files(path) == set()
    index = build(path, [good, good], kind=kind, storage=storage)
    before = index.search([good], 9), files(path)
    for change in (index.add, index.update):
        with pytest.raises(ValueError, match=message) as caught:
            change(["p3", "bad one"], [good, bad])
        assert "'bad one'" in str(caught.value)
        with pytest.raises(ValueError, match=message):
            index.update(["p1"], [bad])
        assert (index.search([good], 9), files(path)) == before
    assert index.ids == ["p0", "p1"]


def test_rounding_is_no_lack_of_normalisation():
    rng = np.random.default_rng(12)
    vectors = units(rng, 100, 128)
    for dtype in (np.float16, np.float32):
        assert len(list(checked_passages(["a"], [vectors.astype(dtype)], 128))) == 1
    bfloat16 = torch.from_numpy(vectors).bfloat16().float().numpy()
    assert len(list(checked_passages(["a"], [bfloat16], 128))) == 1


@both_kinds
@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_ids_and_arrays_must_be_as_many(tmp_path, kind, storage, count):
    path = tmp_path / "index"
    arrays = [np.eye(2)] * count
    message = f"differ in number: more {'ids' if count < 2 else 'arrays'} after {min(count, 2)}"
    with pytest.raises(ValueError, match=message):
        build(path, iter(arrays), ids=iter(["a", "b"]), kind=kind, storage=storage, dim=2)
    assert files(path) == set()
    index = build(path, [np.eye(2)], kind=kind, storage=storage)
    for change in (index.add, index.update):
        with pytest.raises(ValueError, match=message):
            change(["a", "b"], arrays)
    assert index.ids == ["p0"]


@both_kinds
def test_repeated_and_unknown_ids_are_refused(tmp_path, kind, storage):
    path = tmp_path / "index"
    two = [np.eye(2)] * 2
    with pytest.raises(ValueError, match="'a' occurs twice"):
        build(path, two, ids=["a", "a"], kind=kind, storage=storage)
    index = build(path, two, ids=["a", "b"], kind=kind, storage=storage)
    for change in (index.add, index.update):
        with pytest.raises(ValueError, match="'c' occurs twice"):
            change(["c", "c"], two)
    with pytest.raises(ValueError, match="'b' is already in the index"):
        index.add(["c", "b"], two)
    with pytest.raises(KeyError, match="other"):
        index.score([np.eye(2)], [["other"]])
    with pytest.raises(KeyError, match="other"):
        index.delete(["a", "other"])
    index.delete(["a", "a"])
    with pytest.raises(KeyError, match="a"):
        index.score([np.eye(2)], [["a"]])
    with pytest.raises(KeyError, match="a"):
        index.delete(["a"])
    assert index.ids == ["b"]
    assert [i for i, _ in index.search([np.eye(2)], 5)[0]] == ["b"]


@both_kinds
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((2, 4), np.nan), "not finite"),
        (np.array([[1, 0, 0, np.inf]]), "not finite"),
        (np.zeros((3, 4)), "no vector that is not zero"),
        (np.zeros((0, 4)), "no vector that is not zero"),
        (np.ones((2, 3)), r"array \[vectors, 4\]"),
        (np.ones(4), r"array \[vectors, 4\]"),
        (np.ones((1, 2, 4)), r"array \[vectors, 4\]"),
    ],
)
def test_bad_queries_are_refused(tmp_path, kind, storage, bad, message):
    index = build(tmp_path / "index", [np.eye(4)], kind=kind, storage=storage)
    calls = [
        lambda: index.search([np.eye(4), bad], 1),
        lambda: index.score([bad], [["p0"]]),
    ]
    if kind == "exact":
        calls.append(lambda: index.scores([bad]))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@both_kinds
def test_a_k_of_nought_and_unknown_settings_are_refused(tmp_path, kind, storage):
    index = build(tmp_path / "index", [np.eye(4)], kind=kind, storage=storage)
    for k in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            index.search([np.eye(4)], k)
    with pytest.raises((ValueError, UserError), match="candidats") as caught:
        index.search([np.eye(4)], 1, candidats=3)
    assert "\n" not in str(caught.value)


class Interruption(BaseException):
    """Like KeyboardInterrupt: no subclass of Exception."""


@both_kinds
@pytest.mark.parametrize("error", [RuntimeError, Interruption])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_build_leaves_no_index_and_can_be_repeated(
    tmp_path, kind, storage, error, after
):
    passages = [np.eye(3)[: i + 1] for i in range(3)]

    def failing():
        yield from passages[:after]
        raise error

    path = tmp_path / "index"
    with pytest.raises(error):
        build(path, failing(), ids=names(3), dim=3, kind=kind, storage=storage)
    assert files(tmp_path) <= {"index/lock"}
    with pytest.raises(UserError, match="no index"):
        kind_of(kind)(path)
    assert len(build(path, passages, kind=kind, storage=storage)) == 3


@both_kinds
def test_an_existing_index_is_not_overwritten(tmp_path, kind, storage):
    path = tmp_path / "index"
    index = build(path, [np.eye(2)[:1]], kind=kind, storage=storage)
    before = index.search([np.eye(2)], 1)
    for other, other_storage in SMALL:
        with pytest.raises(UserError, match="already has an index"):
            build(path, [np.eye(2)[1:]], kind=other, storage=other_storage)
    assert kind_of(kind)(path).search([np.eye(2)], 1) == before
    assert index.verify() == []


# --- the kind that suits the size


def test_large_corpora_are_compressed_and_both_kinds_are_opened(tmp_path):
    config = AutoIndex.Config(above=10)
    rng = np.random.default_rng(13)
    passages = [units(rng, 3, 8) for _ in range(10)]
    query = units(rng, 2, 8)
    for count, kind in ((0, ExactIndex), (9, ExactIndex), (10, CompressedIndex)):
        path = tmp_path / str(count)
        assert not AutoIndex.built(path)
        made = AutoIndex.build(
            names(count), iter(passages[:count]), path, dim=8, config=config, fingerprint="f"
        )
        opened = AutoIndex.open(path, config, fingerprint="f")
        assert type(made) is type(opened) is kind
        assert AutoIndex.built(path)
        assert opened.search([query], 4) == made.search([query], 4)
        with pytest.raises(UserError, match="another corpus"):
            AutoIndex.open(path, config, fingerprint="g")
    with pytest.raises(UserError, match="no index"):
        AutoIndex.open(tmp_path / "nowhere")


# --- devices


class OneDevice(TorchFunctionMode):
    """No operation may mix the CPU's tensors with the device's; what comes back is zeros."""

    def __init__(self, device):
        self.device = torch.device(device)
        self.products = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.cpu and args[0].device == self.device:
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        flat = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        if len({tensor.device for tensor in flat}) > 1:
            raise AssertionError(f"{function} mixes devices")
        if "matmul" in function.__name__ and flat[0].device == self.device:
            self.products += 1
        return function(*args, **kwargs)


@every_kind
def test_products_stay_on_the_device_that_was_chosen(tmp_path, kind, storage):
    rng = np.random.default_rng(14)
    passages = [units(rng, 1 + i % 7, 16) for i in range(60)]
    query = units(rng, 9, 16)
    options = {"storage": storage, "device": "meta"}
    if kind == "compressed":
        options["candidates"] = 5
    with OneDevice("meta") as mode:
        index = build(tmp_path / "index", passages, kind=kind, **options)
        index.add(["a"], passages[:1])
        built = mode.products
        assert len(index.search([query], 2)[0]) == 2
        searched = mode.products
        index.score([query], [["p1", "a"]])
        assert mode.products > searched > built
        assert (built > 0) == (kind == "compressed")


@both_kinds
def test_a_device_that_is_not_there_is_the_users_error(tmp_path, kind, storage):
    build(tmp_path / "index", [np.eye(4)], kind=kind, storage=storage)
    index = kind_of(kind)(tmp_path / "index", kind_of(kind).Config(device="no such device"))
    with pytest.raises(UserError, match="no such device"):
        index.search([np.eye(4)], 1)


# --- the kernel


@pytest.mark.parametrize(
    "lengths", [[0, 3, 0, 0, 1, 5, 0], [0], [], [0, 0, 2], [2, 0], [4, 4, 4], [1, 9000, 0, 2]]
)
def test_passages_without_vectors_have_no_score_and_move_no_other(lengths):
    rng = np.random.default_rng(len(lengths))
    parts = [rng.normal(size=(n, 8)).astype(np.float32) for n in lengths]
    query = rng.normal(size=(5, 8)).astype(np.float32)
    whole = np.concatenate([np.zeros((0, 8), np.float32), *parts])
    found = kernel(torch.from_numpy(query), torch.from_numpy(whole), np.array(lengths, np.int64))
    expected = [(query @ p.T).max(1).sum() if len(p) else -np.inf for p in parts]
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-5)
