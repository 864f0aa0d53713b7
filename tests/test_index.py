"""The exact index against MaxSim written out with numpy and with plain Python."""

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ravqa.errors import UserError
from ravqa.index.exact import ExactIndex, read_meta

Config = ExactIndex.Config

# Multiples of 1/4 up to 2 are exact in float16; their products and sums are exact in float32
# whatever the order of summation. So scores must be equal, and ties are real ties.
GRID = st.integers(-8, 8).map(lambda n: n / 4)


def maxsim(query, passage):
    """The definition, in float64: sum over query vectors of the best product; zero rows out."""
    if len(passage) == 0:
        return -math.inf
    rows = query[(query != 0).any(axis=1)].astype(np.float64)
    return float((rows @ passage.astype(np.float64).T).max(axis=1).sum())


def ranking(query, ids, passages):
    scores = [maxsim(query, p) for p in passages]
    order = sorted(range(len(ids)), key=lambda i: (-scores[i], i))
    return [(ids[i], scores[i]) for i in order]


def names(n):
    return [f"p{i}" for i in range(n)]


def build(path, passages, dim, **options):
    return ExactIndex.build(names(len(passages)), passages, path, dim=dim, config=Config(**options))


def unit_rows(rng, count, dim):
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)


@st.composite
def cases(draw):
    dim = draw(st.integers(1, 5))

    def array(most):
        rows = draw(st.integers(0, most))
        values = draw(st.lists(GRID, min_size=rows * dim, max_size=rows * dim))
        return np.array(values, dtype=np.float32).reshape(rows, dim)

    passages = [array(4) for _ in range(draw(st.integers(1, 8)))]
    # copies elsewhere in the corpus, and zero rows in queries, are not left to chance
    passages += [passages[i].copy() for i in draw(st.lists(st.integers(0, len(passages) - 1)))]
    queries = [array(4) for _ in range(draw(st.integers(1, 4)))]
    for query in queries:
        if len(query):
            query[draw(st.lists(st.integers(0, len(query) - 1), max_size=2))] = 0
    storage = draw(st.sampled_from(["float16", "float32"]))
    return dim, passages, queries, storage, draw(st.integers(1, 12))


@given(case=cases())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_rankings_and_ties_equal_brute_force(tmp_path, case):
    dim, passages, queries, storage, k = case
    shutil.rmtree(tmp_path / "index", ignore_errors=True)
    index = build(tmp_path / "index", passages, dim, storage=storage)
    expected = [[maxsim(q, p) for p in passages] for q in queries]
    ids = names(len(passages))

    scores = index.scores(queries)
    assert scores.dtype == np.float32
    assert scores.tolist() == expected
    assert index.score(queries, [ids] * len(queries)) == expected
    wanted = [ids[::-2] for _ in queries]
    assert index.score(queries, wanted) == [row[::-1][::2] for row in expected]
    assert index.search(queries, k) == [ranking(q, ids, passages)[:k] for q in queries]
    # a query's scores do not depend on the others in the call
    assert [index.scores([q])[0].tolist() for q in queries] == expected


def test_scores_equal_a_computation_in_plain_python(tmp_path):
    passages = [[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0]], [], [[-1.0, 0.25], [0.0, 0.0]]]
    query = [[1.0, 2.0], [0.0, 0.0], [0.5, -1.0]]
    arrays = [np.array(p, dtype=np.float32).reshape(-1, 2) for p in passages]
    index = build(tmp_path / "index", arrays, 2)

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
    # by hand: 1.5 + 0.5; 2 - 1; nothing to match; 0 + 0
    assert expected == [2.0, 1.0, -math.inf, 0.0]

    got = index.search([np.array(query, dtype=np.float32)], 4)[0]
    assert got == [("p0", 2.0), ("p1", 1.0), ("p3", 0.0), ("p2", -math.inf)]


def test_real_numbers_agree_with_float64(tmp_path):
    rng = np.random.default_rng(1)
    passages = [unit_rows(rng, n, 48) for n in rng.integers(0, 60, size=200)]
    queries = [unit_rows(rng, n, 48) for n in (1, 7, 0, 33)]
    index = build(tmp_path / "index", passages, 48, storage="float32")
    expected = [[maxsim(q, p) for p in passages] for q in queries]
    np.testing.assert_allclose(index.scores(queries), expected, rtol=0, atol=1e-4)
    ids = names(200)
    np.testing.assert_allclose(
        index.score(queries, [ids] * len(queries)), expected, rtol=0, atol=1e-4
    )
    for query, hits in zip(queries, index.search(queries, 10), strict=True):
        best = [score for _, score in ranking(query, ids, passages)[:10]]
        np.testing.assert_allclose([score for _, score in hits], best, rtol=0, atol=1e-4)


def test_float16_storage_loses_no_more_than_its_rounding(tmp_path):
    rng = np.random.default_rng(2)
    passages = [unit_rows(rng, n, 32) for n in (1, 5, 40, 0, 12)]
    query = unit_rows(rng, 20, 32)
    half = build(tmp_path / "half", passages, 32, storage="float16").scores([query])[0]
    full = build(tmp_path / "full", passages, 32, storage="float32").scores([query])[0]
    # A component is off by at most 2**-11 of itself, so a product of unit vectors by 2**-11.
    bound = 20 * 2**-11
    filled = [0, 1, 2, 4]
    difference = np.abs(half[filled] - full[filled]).max()
    assert 0 < difference <= bound
    assert half[3] == full[3] == -np.inf
    vectors = [p.stat().st_size for p in sorted((tmp_path / "half").glob("vectors*"))]
    assert sum(vectors) < 0.6 * sum(p.stat().st_size for p in (tmp_path / "full").glob("vectors*"))


def test_a_small_block_changes_nothing(tmp_path):
    rng = np.random.default_rng(3)
    dim = 4096  # one megabyte holds 64 vectors
    lengths = [0, 1, 63, 64, 65, 200, 64, 0, 1, 31, 33, 64, 2, 2, 2]
    passages = [(rng.integers(-2, 3, size=(n, dim)) / 2).astype(np.float32) for n in lengths]
    passages.append(passages[5].copy())
    queries = [(rng.integers(-2, 3, size=(n, dim)) / 2).astype(np.float32) for n in (3, 1)]
    index = build(tmp_path / "index", passages, dim, block_mb=1)
    expected = [[maxsim(q, p) for p in passages] for q in queries]
    assert index.scores(queries).tolist() == expected
    whole = ExactIndex(tmp_path / "index", Config(block_mb=4096))
    assert whole.search(queries, 16) == index.search(queries, 16)
    assert index.search(queries, 16) == [
        ranking(q, names(len(passages)), passages) for q in queries
    ]


def test_ties_come_in_passage_order_also_across_lengths(tmp_path):
    one = np.array([[1, 0]], dtype=np.float32)
    passages = [np.repeat(one, n, axis=0) for n in (3, 1, 2, 1, 3)]
    index = build(tmp_path / "index", passages, 2)
    assert index.search([one], 5)[0] == [(f"p{i}", 1.0) for i in range(5)]
    assert index.search([one], 2)[0] == [("p0", 1.0), ("p1", 1.0)]
    assert index.search([np.zeros((0, 2), dtype=np.float32)], 3)[0] == [
        (f"p{i}", 0.0) for i in range(3)
    ]


def test_without_queries_there_are_no_rankings(tmp_path):
    index = build(tmp_path / "index", [np.ones((2, 3), dtype=np.float32)], 3)
    assert index.search([], 1) == []
    assert index.score([], []) == []
    assert index.scores([]).shape == (0, 1)


def test_a_reopened_index_answers_the_same(tmp_path):
    rng = np.random.default_rng(4)
    ids = ["zwei", "ein s", "д", "4/../x", ""]
    passages = [unit_rows(rng, n, 8) for n in (3, 0, 1, 9, 2)]
    queries = [unit_rows(rng, 4, 8)]
    built = ExactIndex.build(ids, passages, tmp_path / "deep" / "index", dim=8, fingerprint="f1")
    before = built.search(queries, 5)
    again = ExactIndex(tmp_path / "deep" / "index")
    assert again.search(queries, 5) == before
    assert again.ids == ids
    assert len(again) == 5
    assert again.meta["fingerprint"] == "f1"
    assert again.dim == 8


def test_inputs_are_left_alone(tmp_path):
    passage = np.array([[1, 2], [3, 4]], dtype=np.float32)
    query = np.array([[0, 0], [1, 1]], dtype=np.float32)
    kept = passage.copy(), query.copy()
    index = build(tmp_path / "index", [passage], 2)
    index.search([query], 1)
    index.score([query], [["p0"]])
    assert (passage == kept[0]).all()
    assert (query == kept[1]).all()


class Interruption(BaseException):
    """Like KeyboardInterrupt: no subclass of Exception."""


@pytest.mark.parametrize("error", [RuntimeError, Interruption])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_build_leaves_nothing_and_can_be_repeated(tmp_path, error, after):
    passages = [np.full((i + 1, 2), i, dtype=np.float32) for i in range(3)]

    def failing():
        yield from passages[:after]
        raise error

    path = tmp_path / "index"
    with pytest.raises(error):
        build_from(failing(), path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no index"):
        ExactIndex(path)
    assert len(build_from(iter(passages), path)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def build_from(embeddings, path):
    return ExactIndex.build(names(3), embeddings, path, dim=2)


def test_a_failed_rename_leaves_no_index(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("disk full")

    path = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr("ravqa.index.exact.os.rename", refuse)
        with pytest.raises(OSError, match="disk full"):
            build(path, [np.ones((1, 2), dtype=np.float32)], 2)
    assert list(tmp_path.iterdir()) == []
    assert len(build(path, [np.ones((1, 2), dtype=np.float32)], 2)) == 1


def test_leftovers_without_meta_are_no_index_and_are_replaced(tmp_path):
    path = tmp_path / "index"
    build(path, [np.ones((1, 2), dtype=np.float32)] * 2, 2)
    (path / "meta.json").unlink()  # what a killed process may leave
    assert read_meta(path) is None
    with pytest.raises(UserError, match="no index"):
        ExactIndex(path)
    assert len(build(path, [np.ones((1, 2), dtype=np.float32)], 2)) == 1


def test_an_existing_index_is_not_overwritten(tmp_path):
    path = tmp_path / "index"
    build(path, [np.ones((1, 2), dtype=np.float32)], 2)
    with pytest.raises(UserError, match="holds an index already"):
        build(path, [np.zeros((1, 2), dtype=np.float32)], 2)
    assert ExactIndex(path).search([np.ones((1, 2), dtype=np.float32)], 1) == [[("p0", 2.0)]]


@pytest.mark.parametrize(
    "bad",
    [
        np.ones((2, 3), dtype=np.float32),
        np.ones((2, 1), dtype=np.float32),
        np.ones(2, dtype=np.float32),
        np.ones((1, 2, 2), dtype=np.float32),
    ],
    ids=lambda a: str(a.shape),
)
def test_arrays_of_a_wrong_shape_are_refused(tmp_path, bad):
    good = np.ones((2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="are expected"):
        build(tmp_path / "bad", [good, bad], 2)
    assert list(tmp_path.iterdir()) == []
    index = build(tmp_path / "index", [good], 2)
    with pytest.raises(ValueError, match="a query is an array"):
        index.search([good, bad], 1)
    with pytest.raises(ValueError, match="a query is an array"):
        index.scores([bad])
    with pytest.raises(ValueError, match="a query is an array"):
        index.score([bad], [["p0"]])


@pytest.mark.parametrize("count", [1, 3])
def test_ids_and_arrays_must_be_as_many(tmp_path, count):
    with pytest.raises(ValueError, match=f"2 ids but {count} arrays"):
        ExactIndex.build(
            ["a", "b"], [np.ones((1, 2), dtype=np.float32)] * count, tmp_path / "index", dim=2
        )
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_repeated_ids_and_a_k_of_nought_are_refused(tmp_path):
    one = np.ones((1, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="unique"):
        ExactIndex.build(["a", "a"], [one, one], tmp_path / "index", dim=2)
    index = build(tmp_path / "index", [one], 2)
    with pytest.raises(KeyError):
        index.score([one], [["other"]])
    with pytest.raises(ValueError, match="at least 1"):
        index.search([one], 0)


DAMAGES = {
    "cut in half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "emptied": lambda p: p.write_bytes(b""),
    "deleted": lambda p: p.unlink(),
    "overwritten": lambda p: p.write_bytes(b"\x80not what was here\xff" * 50),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_to_any_file_is_one_clear_error(tmp_path, damage):
    rng = np.random.default_rng(5)
    build(tmp_path / "whole", [unit_rows(rng, n, 16) for n in (3, 1, 7)], 16)
    files = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert len(files) >= 4
    for i, name in enumerate(files):
        path = tmp_path / str(i)
        shutil.copytree(tmp_path / "whole", path)
        damage(path / name)
        with pytest.raises(UserError) as caught:
            ExactIndex(path)
        assert str(path) in str(caught.value), name
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vectors.npy", "lengths.npy", "ids.json"])
def test_a_file_of_another_index_is_noticed(tmp_path, name):
    rng = np.random.default_rng(6)
    build(tmp_path / "one", [unit_rows(rng, n, 16) for n in (3, 1)], 16)
    build(tmp_path / "other", [unit_rows(rng, n, 12) for n in (3, 1, 2)], 12)
    shutil.copy(tmp_path / "other" / name, tmp_path / "one" / name)
    with pytest.raises(UserError, match="damaged"):
        ExactIndex(tmp_path / "one")


def test_vectors_of_another_width_are_noticed(tmp_path):
    rng = np.random.default_rng(7)
    build(tmp_path / "one", [unit_rows(rng, n, 16) for n in (3, 1)], 16)
    build(tmp_path / "other", [unit_rows(rng, n, 12) for n in (3, 1)], 12)
    shutil.copy(tmp_path / "other" / "vectors.npy", tmp_path / "one" / "vectors.npy")
    with pytest.raises(UserError, match="damaged"):
        ExactIndex(tmp_path / "one")


def test_meta_without_its_keys_is_noticed(tmp_path):
    build(tmp_path / "index", [np.ones((1, 2), dtype=np.float32)], 2)
    meta = json.loads((tmp_path / "index" / "meta.json").read_text(encoding="utf-8"))
    del meta["dim"]
    (tmp_path / "index" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        ExactIndex(tmp_path / "index")


def test_a_folder_that_is_not_there_is_no_index(tmp_path):
    with pytest.raises(UserError, match="no index"):
        ExactIndex(tmp_path / "nowhere")
