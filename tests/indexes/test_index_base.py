"""What every index shares: the least that a class must define, and the checks of its results."""

import math
import re

import numpy as np
import pytest

from ravqa.core.errors import ContractError, DamagedError, UserError
from ravqa.indexes.base import (
    Index,
    StoredIndex,
    build_index,
    check_k,
    checked_index,
    checked_passages,
    checked_query,
    checked_rankings,
    checked_scores,
)


class Flat(Index):
    """An index in memory that defines `scores` alone; the last passage has no vectors."""

    kind = "flat"
    dim = 2
    ids = ("a", "b", "c", "d", "none")
    vectors = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]], np.float32)

    built = staticmethod(lambda path: False)

    @classmethod
    def open(cls, path, config=None, *, fingerprint=None):
        return cls()

    @classmethod
    def build(cls, ids, embeddings, path, *, dim, config=None, fingerprint=""):
        return cls()

    def scores(self, queries):
        self.seen = queries
        rows = [(query @ self.vectors.T).sum(0) for query in queries]
        return np.array([[*row, -np.inf] for row in rows], np.float32).reshape(-1, 5)


class Bare(Flat):
    """An index that defines no way to search."""

    scores = Index.scores


def test_an_index_that_scores_all_is_searched_by_its_scores():
    index = Flat()
    assert index.scores_all
    query = np.array([[0, 0], [2, 1]], np.float64)
    assert index.search([query], 9) == [[("a", 2.0), ("c", 2.0), ("b", 1.0), ("d", -2.0)]]
    assert [s.dtype for s in index.seen] == [np.float32]
    assert index.seen[0].tolist() == [[2, 1]]
    assert index.search([query], 1) == [[("a", 2.0)]]
    allowed = iter(["d", "c", "none", "nowhere"])
    assert index.search([query, query], 2, allowed_ids=allowed) == [[("c", 2.0), ("d", -2.0)]] * 2
    assert index.search([query], 2, allowed_ids=[]) == [[]]
    assert index.search([], 2) == []
    assert all(type(score) is float for _, score in index.search([query], 9)[0])
    scores = index.score([query, -query], [["c", "none", "c"], []])
    assert scores == [[2.0, -math.inf, 2.0], []]
    assert all(type(score) is float for score in scores[0])
    with pytest.raises(KeyError, match="nowhere"):
        index.score([query], [["nowhere"]])
    with pytest.raises(ValueError, match=r"zip|shorter|longer"):
        index.score([query], [])
    with pytest.raises(ValueError, match=r"^k must be at least 1$"):
        index.search([query], 0)
    with pytest.raises(ValueError, match=r"^the index flat takes no search settings: x, y$"):
        index.search([query], 1, x=1, y=2)


def test_what_an_index_has_without_defining_it(tmp_path):
    index = Flat()
    assert len(index) == 5
    assert "a" in index
    assert "nowhere" not in index
    assert index.stats() == {"kind": "flat", "passages": 5}
    assert index.verify() == []
    assert index.refresh() is None
    assert index.close() is None
    assert index.content == ""
    assert index.attached == {}
    assert (Flat.grows, Flat.commits) == (False, False)
    assert Flat.generation(tmp_path) == 0
    assert Flat.elsewhere(Flat.Config()) is False
    assert Flat.named(3, "name") == 3
    assert (index.can_change, index.packed) == (False, None)
    assert index.publish() is index.drop() is None
    assert Flat.built_together(Flat.Config()) is False

    class Options(Flat):
        class Config(Index.Config):
            size: int = 3

    assert Options.fixed(Options.Config()) == {"size": 3}
    assert not Bare().scores_all
    with pytest.raises(ContractError, match=r"Bare breaks its contract: it defines neither `sco"):
        Bare().search([np.ones((1, 2))], 1)


@pytest.mark.parametrize("kind", ["flat", ""])
def test_an_index_that_cannot_change_says_so(monkeypatch, kind):
    monkeypatch.setattr(Flat, "kind", kind)
    index = Flat()
    message = f"^the index {kind or 'Flat'} cannot change once it is built: build it again$"
    for change in (
        lambda: index.add(["x"], [np.eye(2)]),
        lambda: index.update(["x"], [np.eye(2)]),
        lambda: index.delete(["a"]),
        index.compact,
        index.change,
    ):
        with pytest.raises(UserError, match=message):
            change()


class Stored(StoredIndex, Flat):
    """An index that was built from what "mine" stands for."""

    fingerprint = "mine"


def test_an_index_on_disk_is_compared_with_what_is_wanted(tmp_path):
    index = Stored.open(tmp_path, "config")
    assert isinstance(index, Stored)
    assert (index.path, index.config) == (tmp_path, "config")
    index._check_source("anything")
    wanted = Stored.open(str(tmp_path), fingerprint="mine")
    assert wanted.path == tmp_path
    wanted._check_source("mine")
    end = "was built from another corpus or with another encoder"
    with pytest.raises(DamagedError) as caught:
        wanted._check_source("other")
    assert str(caught.value) == f"the index in {tmp_path} {end}: build it again"
    with pytest.raises(DamagedError) as caught:
        Stored(tmp_path, fingerprint="")._check_source("other", "this", "do that")
    assert str(caught.value) == f"this {end}: do that"


def said(call, *arguments):
    with pytest.raises(ContractError) as caught:
        call(*arguments)
    whole, _, what = str(caught.value).partition(" breaks its contract: ")
    assert re.fullmatch(rf"the index {re.escape(__name__)}\.(\w+\.<locals>\.)?\w+", whole)
    return what


def test_what_opening_gives_is_an_index():
    index = Flat()
    assert checked_index(index, Flat) is index
    assert said(checked_index, None, Flat) == "`open` returns a NoneType, not an index"

    class Lacking(Flat):
        dim = property(lambda self: getattr(self, "nothing"))  # noqa: B009

    assert said(checked_index, Lacking(), Lacking) == "it has no `dim`"

    class Nameless(Flat):
        ids = property(lambda self: getattr(self, "nothing"))  # noqa: B009

    assert said(checked_index, Nameless(), Nameless) == "it has no `ids`"


def test_scores_are_numbers_for_every_query_and_passage():
    index = Flat()
    good = [[1, 2, 3, 4, -np.inf]]
    assert checked_scores(index, good, 1).tolist() == good
    assert said(checked_scores, index, good, 2) == "scores [2, 5] are expected, got [1, 5]"
    assert said(checked_scores, index, [[1]], 1) == "scores [1, 5] are expected, got [1, 1]"
    assert said(checked_scores, index, [1], 1) == "scores [1, 5] are expected, got [1]"
    spoilt = [[1, 2, 3, np.nan, 5]]
    assert said(checked_scores, index, spoilt, 1) == "a score is not a number (nan)"


@pytest.mark.parametrize(
    ("rankings", "message"),
    [
        ([[("a", 2.0), ("b", 2.0)], [("c", -1.0)]], None),
        ([[("a", 2.0)]], "it returned 1 results from search for 2 items"),
        ([[], [], []], "it returned 3 results from search for 2 items"),
        ([[], [("a", 3.0), ("b", 2.0), ("c", 1.0)]], "at most 2 passages are expected, got 3"),
        ([[], [("a", 3.0), ("a", 3.0)]], "a passage is in a ranking twice"),
        ([[("a", math.nan)], []], "a score is not a number (nan)"),
        ([[("a", 1.0), ("b", 1.5)], []], "a ranking does not begin with its best passage"),
    ],
)
def test_rankings_are_sorted_and_of_different_passages(rankings, message):
    if message is None:
        assert checked_rankings(Flat(), rankings, 2, 2) is rankings
    else:
        assert said(checked_rankings, Flat(), rankings, 2, 2) == message


def test_queries_keep_their_rows_that_are_not_zero():
    found = checked_query([[0, 0], [0, -1], [3, 0]], 2)
    assert found.tolist() == [[0, -1], [3, 0]]
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    for bad, message in (
        (np.ones((1, 3)), r"^a query is an array \[vectors, 2\], got \(1, 3\)$"),
        (np.ones(2), r"^a query is an array \[vectors, 2\], got \(2,\)$"),
        ([[1, np.inf]], r"^a query has values that are not finite$"),
        (np.zeros((2, 2)), r"^a query has no vector that is not zero$"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_query(bad, 2)
    check_k(1)


def test_passages_are_of_unit_vectors_within_a_hundredth():
    """Rounding to float16 changes a length by less."""
    vectors = [np.array([[length, 0], [0, 1]]) for length in (0.991, 1.009)]
    found = list(checked_passages(iter(["a", "b"]), iter(vectors), 2))
    assert [i for i, _ in found] == ["a", "b"]
    assert [array is given for (_, array), given in zip(found, vectors, strict=True)] == [True] * 2
    for length in (0.989, 1.011):
        message = f"^passage 'a' has a vector of length {length:.3f}: vectors must be normalised$"
        with pytest.raises(ValueError, match=message):
            list(checked_passages(["a"], [np.array([[0, 1.001], [length, 0]])], 2))
    array = np.eye(2)
    for ids, arrays, message in (
        (["a"], [array, array], "ids and embeddings differ in number: more arrays after 1"),
        (["a", "b"], [array], "ids and embeddings differ in number: more ids after 1"),
        (["a", "a"], [array] * 2, "passage id 'a' occurs twice: ids must be unique"),
        (["a"], [np.eye(3)], "passage 'a': an array [vectors, 2] is expected, got (3, 3)"),
        (["a"], [array * np.nan], "passage 'a' has vectors that are not finite"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            list(checked_passages(ids, arrays, 2))


@pytest.mark.parametrize("reports", [False, True])
def test_an_index_of_somebody_else_that_raises_is_named(reports, tmp_path):
    class Broken(Flat):
        @classmethod
        def build(cls, *parts, **options):
            raise RuntimeError("no such table\nmore")

    Broken.reports = reports
    with pytest.raises(ContractError) as error:
        build_index(Broken, ["a"], [], tmp_path, dim=2)
    assert str(error.value) == (
        f"the index {__name__}.{Broken.__qualname__} breaks its contract: it raises RuntimeError "
        "from build: no such table"
    )
