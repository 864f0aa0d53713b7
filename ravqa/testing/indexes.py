"""The conformance suite of indexes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ravqa.core.errors import UserError
from ravqa.indexes.base import (
    Array,
    Index,
    Ranking,
    build_index,
    checked_index,
    checked_rankings,
)
from ravqa.testing.asserting import conformance, refused, require, require_json

_DIM = 16
_NOWHERE = "nowhere"


@conformance(Index)
def check_index(kind: type[Index], config: Any = None, *, atol: float = 0.02) -> None:
    """Check a class of indexes: it is built, opened, searched and changed in temporary folders.

    Args:
        kind: the class.
        config: an instance of its `Config`; None for the defaults.
        atol: how far a score may be from MaxSim of the vectors that were given, per query vector:
            what the index's storage rounds.

    Raises:
        AssertionError: the class breaks the contract of `ravqa.indexes.base.Index`.
    """
    name = kind.__name__
    if kind.commits:
        require(kind.grows, f"{name} sets `commits`, and so `grows` too")
    config = kind.Config() if config is None else config
    require_json(kind.fixed(config), f"what {name}.fixed returns")
    passages = _passages(np.random.default_rng(7), 12)
    with tempfile.TemporaryDirectory(prefix="ravqa-") as folder:
        index = _check_build(kind, config, Path(folder) / "index", passages)
        _check_search(index, passages, atol)
        _check_refused_queries(index)
        if kind.grows:
            _check_growth(kind, config, Path(folder) / "growing", atol)
        else:
            refused(UserError, lambda: index.add(["new"], [passages["p0"]]), _fixed(name, "add"))
            refused(UserError, lambda: index.delete(["p0"]), _fixed(name, "delete"))
        if kind.commits:
            _check_commits(kind, config, Path(folder) / "committing")
        _check_refused_builds(kind, config, Path(folder), passages)


def _fixed(name: str, method: str) -> str:
    return f"{name} does not set `grows`: `{method}` raises UserError"


def _passages(rng: np.random.Generator, count: int) -> dict[str, Array]:
    """Unit vectors by id; one passage has none, and two are alike."""
    made = {}
    for i in range(count):
        rows = rng.normal(size=(1 + i % 5, _DIM))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        made[f"p{i}"] = rows.astype(np.float32)
    made["p3"] = made["p3"][:0]
    made["p8"] = made["p5"]
    return made


def _build(
    kind: type[Index], config: Any, path: Path, passages: Mapping[str, Array], fingerprint: str
) -> Index:
    seen: list[tuple[str, int, int]] = []
    made = build_index(
        kind,
        list(passages),
        iter(passages.values()),
        path,
        dim=_DIM,
        config=config,
        fingerprint=fingerprint,
        progress=lambda *step: seen.append(step),
    )
    require(
        bool(seen) and all(0 <= done <= total for _, done, total in seen),
        f"{kind.__name__}, which sets `reports`, calls progress(what, done, total) in `build`",
    )
    require(isinstance(made, Index), f"{kind.__name__}.build returns the index, opened")
    return checked_index(made, kind)


def _check_build(
    kind: type[Index], config: Any, path: Path, passages: Mapping[str, Array]
) -> Index:
    name = kind.__name__
    require(kind.built(path) is False, f"{name}.built is False of a folder that does not exist")
    refused(UserError, lambda: kind.open(path, config), f"{name}.open refuses an empty place")
    made = _build(kind, config, path, passages, "from a")
    require(kind.built(path) is True, f"{name}.built is True once `build` has returned")
    made.close()
    refused(
        UserError,
        lambda: kind.open(path, config, fingerprint="from b"),
        f"{name}.open refuses an index that was built from something else",
    )
    index = kind.open(path, config, fingerprint="from a")
    require(index.dim == _DIM, f"{name}.dim is the length of a vector: {_DIM}, got {index.dim}")
    require(
        list(index.ids) == list(passages),
        f"{name}.ids are the passages in the order in which they were given",
    )
    require(len(index) == len(passages), f"len({name}) is the number of passages")
    require("p0" in index and _NOWHERE not in index, f"`in` says which passages {name} has")
    require_json(index.stats(), f"what {name}.stats returns")
    faults = index.verify()
    require(faults == [], f"{name}.verify finds no fault in a new index, got {faults}")
    index.refresh()
    return index


def _maxsim(query: Array, passage: Array) -> float:
    """The definition, in float64."""
    if not len(passage):
        return -np.inf
    return float((query.astype(np.float64) @ passage.astype(np.float64).T).max(1).sum())


def _queries() -> list[Array]:
    rng = np.random.default_rng(11)
    return [rng.normal(size=(n, _DIM)).astype(np.float32) / 4 for n in (1, 3, 9)]


def _check_search(index: Index, passages: Mapping[str, Array], atol: float) -> None:
    name, queries = type(index).__name__, _queries()
    truth = [{i: _maxsim(q, p) for i, p in passages.items()} for q in queries]
    if index.scores_all:
        scores = np.asarray(index.scores(queries))
        require(
            scores.shape == (len(queries), len(passages)),
            f"{name}.scores returns [queries, passages], got {list(scores.shape)}",
        )
        for query, row, expected in zip(queries, scores, truth, strict=True):
            _close_to(f"{name}.scores", row, list(expected.values()), atol * len(query))
    for k in (1, 4, 100):
        rankings = _ranked(index, queries, k)
        for query, ranking, expected in zip(queries, rankings, truth, strict=True):
            _check_ranking(name, ranking, expected, k, atol * len(query))
    allowed = ["p2", _NOWHERE, "p9", "p3"]
    for query, ranking, expected in zip(
        queries, _ranked(index, queries, 5, allowed), truth, strict=True
    ):
        own = {i: expected[i] for i in ("p2", "p9", "p3")}
        _check_ranking(f"{name} with allowed_ids", ranking, own, 5, atol * len(query))
    nothing = _ranked(index, queries, 5, [])
    require(nothing == [[], [], []], f"{name}.search finds nothing where no passage is allowed")
    require(list(index.search([], 3)) == [], f"{name}.search returns [] for no queries")
    wanted = [["p1"], [], ["p11", "p3", "p0"]]
    found = index.score(queries, wanted)
    require([len(own) for own in found] == [1, 0, 3], f"{name}.score returns a list for each query")
    for query, got, ids, expected in zip(queries, found, wanted, truth, strict=True):
        _close_to(f"{name}.score", got, [expected[i] for i in ids], atol * len(query))
    refused(
        KeyError,
        lambda: index.score(queries[:1], [[_NOWHERE]]),
        f"{name}.score raises KeyError for a passage that is not in the index",
    )


def _ranked(
    index: Index, queries: Sequence[Array], k: int, allowed: Sequence[str] | None = None
) -> Sequence[Ranking]:
    found = index.search(queries, k, allowed_ids=allowed)
    return checked_rankings(index, found, len(queries), k)


def _close_to(what: str, got: Any, expected: Sequence[float], atol: float) -> None:
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    require(not np.isnan(a).any(), f"{what} returns numbers, got nan")
    require(
        bool((np.isneginf(a) == np.isneginf(b)).all()),
        f"{what} is minus infinity for a passage without vectors, and for no other",
    )
    far = np.abs(np.where(np.isneginf(b), 0, a - np.where(np.isneginf(b), 0, b)))
    require(
        len(far) == 0 or far.max() <= atol,
        f"{what} is MaxSim within {atol:g}: {b.tolist()} is expected, got {a.tolist()}",
    )


def _check_ranking(
    name: str, ranking: Ranking, expected: Mapping[str, float], k: int, atol: float
) -> None:
    matching = sorted((s for s in expected.values() if s > -np.inf), reverse=True)[:k]
    require(
        len(ranking) == len(matching),
        f"{name}.search finds {len(matching)} passages for k = {k}, got {len(ranking)}: a passage "
        "without vectors is never found, and all others are",
    )
    unknown = [i for i, _ in ranking if i not in expected]
    require(not unknown, f"{name}.search finds {unknown}, which it must not")
    scores = [score for _, score in ranking]
    _close_to(f"{name}.search", scores, [expected[i] for i, _ in ranking], atol)
    _close_to(f"{name}.search (the k best)", scores, matching, atol)


def _check_refused_queries(index: Index) -> None:
    name, good = type(index).__name__, np.ones((2, _DIM), np.float32)
    bad = {
        "another width": np.ones((2, _DIM + 1), np.float32),
        "values that are not finite": np.full((2, _DIM), np.nan, np.float32),
        "nothing but zeros": np.zeros((2, _DIM), np.float32),
    }
    for what, query in bad.items():
        sentence = f"{name}.search raises ValueError for a query of {what}"
        refused(ValueError, partial(index.search, [query], 3), sentence)
    refused(ValueError, lambda: index.search([good], 0), f"{name}.search raises ValueError for k 0")
    refused(
        (ValueError, UserError),
        lambda: index.search([good], 3, no_such_setting=1),
        f"{name}.search refuses a setting that does not exist",
    )


def _check_growth(kind: type[Index], config: Any, path: Path, atol: float) -> None:
    name = kind.__name__
    passages = _passages(np.random.default_rng(13), 10)
    first = {i: passages[i] for i in list(passages)[:7]}
    index = _build(kind, config, path, first, "from a")
    index.add(["p7", "p9"], [passages["p7"], passages["p9"]])
    index.update(["p1"], [passages["p8"]])
    index.delete(["p0"])
    now = {i: p for i, p in first.items() if i != "p0"}
    now |= {"p7": passages["p7"], "p9": passages["p9"], "p1": passages["p8"]}
    for state in ("after add, update and delete", "after compact"):
        require(len(index) == len(now), f"{name} has {len(now)} passages {state}, got {len(index)}")
        require(sorted(index.ids) == sorted(now), f"{name}.ids are the passages that are there")
        for query in _queries():
            expected = {i: _maxsim(query, p) for i, p in now.items()}
            [ranking] = _ranked(index, [query], 20)
            _check_ranking(f"{name} {state}", ranking, expected, 20, atol * len(query))
        index.compact()
    vectors = passages["p2"]
    refused(ValueError, lambda: index.add(["p2"], [vectors]), f"{name}.add refuses an id it has")
    refused(KeyError, lambda: index.delete([_NOWHERE]), f"{name}.delete raises KeyError")
    require(index.verify() == [], f"{name}.verify finds no fault after changes")
    index.close()
    again = kind.open(path, config, fingerprint="from a")
    require(
        sorted(again.ids) == sorted(now), f"{name} has what was changed when it is opened again"
    )
    again.close()


def _check_commits(kind: type[Index], config: Any, path: Path) -> None:
    name = kind.__name__
    passages = _passages(np.random.default_rng(17), 9)
    build: Any = kind.build  # which takes `attached` too
    made: Index = build(
        ["p0", "p1"],
        [passages["p0"], passages["p1"]],
        path,
        dim=_DIM,
        config=config,
        fingerprint="from a",
        attached={"state": 1},
    )
    require(made.attached == {"state": 1}, f"{name}.attached is what `build` was given")
    before, content = kind.generation(path), made.content
    made.change(["p2"], [passages["p2"]], delete=["p0"], attached={"state": 2})
    again = kind.open(path, config)
    require(list(again.ids) == ["p1", "p2"], f"{name}.change deletes and adds in one step")
    require(again.attached == {"state": 2}, f"{name}.attached is what the last change was given")
    require(kind.generation(path) > before, f"{name}.generation grows with a change")
    require(again.content not in ("", content), f"{name}.content changes with a change")


def _check_refused_builds(
    kind: type[Index], config: Any, folder: Path, passages: Mapping[str, Array]
) -> None:
    name, good = kind.__name__, passages["p4"]
    bad: dict[str, tuple[list[str], list[Array]]] = {
        "an id that is there twice": (["a", "a"], [good, good]),
        "more ids than arrays": (["a", "b"], [good]),
        "vectors of another width": (["a"], [good[:, :-1]]),
        "vectors that are not finite": (["a"], [good * np.float32(np.nan)]),
        "vectors that are not of unit length": (["a"], [good * 2]),
    }
    for number, (what, (ids, arrays)) in enumerate(bad.items()):
        path = folder / f"refused-{number}"
        refused(
            ValueError,
            partial(kind.build, ids, arrays, path, dim=_DIM, config=config),
            f"{name}.build raises ValueError for {what} (`checked_passages` does)",
        )
        require(not kind.built(path), f"{name}.built is False after a build that failed: {what}")
    refused(
        UserError,
        lambda: kind.build(list(passages), passages.values(), folder / "index", dim=_DIM),
        f"{name}.build raises UserError where an index is already",
    )
