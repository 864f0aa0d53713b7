"""The interface of indexes, and the checks that they share."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np

from ravqa.core.contracts import check_count, raised_by
from ravqa.core.errors import DamagedError, UserError, broken
from ravqa.core.progress import Progress, silent
from ravqa.core.settings import Strict
from ravqa.encoders.base import Vectors

Ranking = list[tuple[str, float]]
"""Pairs (passage id, MaxSim), best first."""

Array = np.ndarray[Any, Any]

T = TypeVar("T")

_BUILDING = "building the index"
_NORM_TOLERANCE = 0.01  # float16 rounding changes the norm of a unit vector by less


class Footprint(NamedTuple):
    """What building an index needs at the most, in bytes.

    Attributes:
        disk: in its folder, per vector; 0 if its data is elsewhere.
        memory: per vector, without files that are mapped; None if it is not known.
        base: of memory, whatever the number of vectors.
    """

    disk: float
    memory: float | None
    base: float = 0.0


class Index(ABC):
    """A searchable set of passages, each an array of unit vectors [vectors, dim], in a folder.

    The score of a passage is MaxSim: for each query vector, the greatest dot product with any of
    the passage's vectors, summed over the query (Khattab & Zaharia 2020, arXiv 2004.12832). A
    passage without vectors matches nothing and is never found.

    An index defines `built`, `open`, `build` and `ids`, and one of two ways to search: either
    `scores` for every passage, from which `search` and `score` follow; or `search` and `score`,
    which find the best passages without scoring all of them.

    An index that can change after it is built sets `grows` and defines `add`, `update`, `delete`
    and `compact`. One that also sets `commits` defines `change` and `attached`, and accepts
    `attached` in `build`: a change of vectors and passages of a collection then takes effect
    entirely or not at all. In any other index a collection's change takes effect step by step.

    An index whose data is not in its folder says so by `elsewhere`, accepts `replaces` in `build`,
    and defines `named`, `publish` and `drop`.

    An index whose `build` (and `change`, if it defines it) accepts `progress`, to which it reports
    its stages, sets `reports`. For any other, `build_index` counts the passages that `build` reads.

    Attributes:
        kind: the registered name, shown in `stats` and messages.
        grows: whether passages can be added, replaced and deleted after the index is built.
        commits: whether `change` exists, which commits a change together with attached data.
        reports: whether `build` and `change` accept `progress`.
        dim: length of a vector.
        ids: the passages' ids, in order: first as built, then as added.
    """

    class Config(Strict):
        """The index's options; a subclass with options overrides this class."""

    kind: ClassVar[str] = ""
    grows: ClassVar[bool] = False
    commits: ClassVar[bool] = False
    reports: ClassVar[bool] = False

    if TYPE_CHECKING:  # an index may set these as attributes or define them as properties

        @property
        def dim(self) -> int:
            """Length of a vector."""

        @property
        def ids(self) -> Sequence[str]:
            """The passages' ids, in order."""

    # -- making and opening -------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def built(path: Path) -> bool:
        """Return whether `path` holds a complete index; False while it is being built."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, config: Any = None, *, fingerprint: str | None = None) -> Index:
        """Open the index in a folder.

        Args:
            config: an instance of `Config`; None for the options that the index was built with, or
                for the defaults.
            fingerprint: what the index must have been built from; None accepts any.

        Raises:
            UserError: the folder holds no complete index.
            DamagedError: its files cannot be used, or it was built from something else; an index
                in the cache is then built again.
        """

    @classmethod
    @abstractmethod
    def build(
        cls,
        ids: Sequence[str],
        embeddings: Iterable[Vectors],
        path: Path,
        *,
        dim: int,
        config: Any = None,
        fingerprint: str = "",
    ) -> Index:
        """Build an index of passages and open it.

        Args:
            ids: passage ids, without duplicates.
            embeddings: one array [vectors, dim] of unit vectors per id, float32 or float16; a
                passage may have no vectors. Read one by one; `checked_passages` checks them.
            path: folder to create. An interrupted build leaves no index, and can be repeated.
            config: an instance of `Config`; None for the defaults.
            fingerprint: what the vectors depend on; stored with the index.

        Raises:
            UserError: the folder already holds an index, or another process is building there.
            ValueError: see `checked_passages`.
        """

    @classmethod
    def fixed(cls, config: Any) -> dict[str, Any]:
        """Return the options that cannot change once the index is built; by default all.

        Other values of these need a new index; all other options may differ between searches.
        """
        options: dict[str, Any] = config.model_dump()
        return options

    @classmethod
    def built_together(cls, config: Any) -> bool:
        """Return whether all cooperating processes must call `build`, not only the first."""
        return False

    @classmethod
    def footprint(cls, config: Any, dim: int, passages: int) -> Footprint | None:
        """Return what building an index of so many passages needs; None if that is not known."""
        return None

    @classmethod
    def elsewhere(cls, config: Any) -> bool:
        """Return whether the index's data is outside its folder, such as on a server."""
        return False

    @classmethod
    def named(cls, config: Any, name: str) -> Any:
        """Return the options with a name for data that is elsewhere, unless they have one."""
        return config

    @classmethod
    def generation(cls, path: Path) -> int:
        """Return a number that grows with every change of the index in `path`; 0 if none can occur.

        Raises:
            UserError: the folder holds no complete index.
        """
        return 0

    # -- reading ------------------------------------------------------------------------------

    @property
    def scores_all(self) -> bool:
        """Whether the index defines `scores`, and so scores every passage."""
        return type(self).scores is not Index.scores

    @property
    def can_change(self) -> bool:
        """Whether `add`, `update` and `delete` work; as `grows`, unless it depends on options."""
        return self.grows

    @property
    def packed(self) -> Sequence[str] | None:
        """The files in its folder that are the index; None if copies of them are not an index."""
        return None

    @property
    def content(self) -> str:
        """A fingerprint of all that a search depends on; "" for an index that never changes."""
        return ""

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self.ids)

    def __contains__(self, passage_id: object) -> bool:
        return passage_id in self.ids

    def scores(self, queries: Sequence[Vectors]) -> Array:
        """Return the MaxSim of each query and passage, float32 [queries, passages], as `ids`.

        A passage without vectors scores minus infinity.

        Args:
            queries: arrays [vectors, dim] of any length, float32 or float16; rows need not have
                unit length, and rows of zeros are ignored (`checked_query`).

        Raises:
            ValueError: a query has another width, is not finite, or is all zero.
        """
        raise broken(self, "index", "it defines neither `scores` nor `search` and `score`")

    def search(
        self,
        queries: Sequence[Vectors],
        k: int,
        *,
        allowed_ids: Iterable[str] | None = None,
        **params: Any,
    ) -> list[Ranking]:
        """Return the k best passages per query, best first; ties in passage order.

        Args:
            queries: as for `scores`.
            k: at least 1.
            allowed_ids: search only these passages; ids that are not in the index are ignored.
            params: settings of the index's `Config` for this search.

        Raises:
            ValueError: k is below 1; see also `scores`.
            ValueError, UserError: a setting that does not exist.
        """
        check_k(k)
        if params:
            raise ValueError(f"the index {self.kind} takes no search settings: {', '.join(params)}")
        ids = self.ids
        allowed = None if allowed_ids is None else set(allowed_ids)
        found = []
        for row in self._every(queries):
            order = np.argsort(-row, kind="stable")
            best = (i for i in order if row[i] > -np.inf and (allowed is None or ids[i] in allowed))
            found.append([(ids[i], float(row[i])) for i in itertools.islice(best, k)])
        return found

    def score(self, queries: Sequence[Vectors], ids: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the MaxSim of each query with each passage of its own list.

        Minus infinity for a passage without vectors.

        Raises:
            KeyError: an id is not in the index.
            ValueError: see `scores`.
        """
        rows = {passage_id: row for row, passage_id in enumerate(self.ids)}
        pairs = zip(self._every(queries), ids, strict=True)
        return [[float(own[rows[i]]) for i in wanted] for own, wanted in pairs]

    def _every(self, queries: Sequence[Vectors]) -> Array:
        kept = [checked_query(query, self.dim) for query in queries]
        return checked_scores(self, self.scores(kept), len(kept))

    def stats(self) -> dict[str, Any]:
        """Return statistics of the index, with `segments` and `deleted` if it can change."""
        return {"kind": self.kind, "passages": len(self)}

    def verify(self) -> list[str]:
        """Reread every file and return one line per fault; an empty list if all is well.

        Raises:
            UserError: the index no longer exists or is incomplete.
        """
        return []

    def refresh(self) -> None:
        """Pick up changes by other processes; does nothing for an index that never changes."""
        return

    def close(self) -> None:
        """Release open resources; does nothing for an index whose files any process can open."""
        return

    # -- data elsewhere -----------------------------------------------------------------------

    def publish(self) -> None:
        """Take over the name of the index that this one was built to replace, and remove that.

        The owner calls it once it has recorded the new index; repeated calls do nothing.
        """
        return

    def drop(self) -> None:
        """Remove what is outside the index's folder; the index cannot be used afterwards."""
        return

    # -- changing -----------------------------------------------------------------------------

    @property
    def attached(self) -> Mapping[str, Any]:
        """The data that the index's owner committed with its state; see `commits`."""
        return {}

    def add(self, ids: Iterable[str], embeddings: Iterable[Vectors]) -> None:
        """Add passages after the existing ones.

        Raises:
            UserError: the index cannot change, or another process is writing.
            ValueError: an id is already in the index; see also `checked_passages`.
        """
        raise self._unchangeable()

    def update(self, ids: Iterable[str], embeddings: Iterable[Vectors]) -> None:
        """Replace passages, or add those that are not in the index.

        Raises:
            UserError, ValueError: as `add`.
        """
        raise self._unchangeable()

    def delete(self, ids: Iterable[str]) -> None:
        """Delete passages; they are never found again.

        Raises:
            UserError: as `add`.
            KeyError: an id is not in the index.
        """
        raise self._unchangeable()

    def compact(self) -> None:
        """Rewrite the index without the deleted passages.

        Raises:
            UserError: as `add`.
        """
        raise self._unchangeable()

    def change(
        self,
        ids: Iterable[str] = (),
        embeddings: Iterable[Vectors] = (),
        *,
        delete: Iterable[str] | None = (),
        attached: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Delete and add passages in one change, applied entirely or not at all; see `commits`.

        Args:
            ids, embeddings: passages to add, as in `build`.
            delete: ids to delete; None for those of `ids` that exist.
            attached: data that belongs to the index's new state, committed with it (JSON); None
                keeps what is attached.
            progress: called as progress(what, done, total) if the index `reports`.

        Raises:
            UserError, KeyError, ValueError: as `add` and `delete`.
        """
        raise self._unchangeable()

    def _unchangeable(self) -> UserError:
        name = self.kind or type(self).__name__
        return UserError(f"the index {name} cannot change once it is built: build it again")


class StoredIndex(Index):
    """An index that its constructor opens, and that records what it was built from."""

    def __init__(self, path: Path, config: Any = None, *, fingerprint: str | None = None):
        """Open the index in `path`; see `Index.open`."""
        self.path = Path(path)
        self.config: Any = config
        self._wanted = fingerprint

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The fingerprint that was passed to `build`."""

    @classmethod
    def open(cls, path: Path, config: Any = None, *, fingerprint: str | None = None) -> Self:
        """Open the index; see the constructor."""
        return cls(path, config, fingerprint=fingerprint)

    def _check_source(self, found: str, what: str = "", mend: str = "build it again") -> None:
        """Raise DamagedError if the index was built from something other than what is wanted.

        Args:
            found: the fingerprint that it was built from.
            what, mend: parts of the message; by default they name the index's folder.
        """
        if self._wanted is not None and self._wanted != found:
            raise DamagedError(
                f"{what or f'the index in {self.path}'} was built from another corpus or with "
                f"another encoder: {mend}"
            )


def build_index(
    kind: type[Index],
    ids: Sequence[str],
    embeddings: Iterable[Vectors],
    path: Path,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Index:
    """Build an index as `Index.build` does, and report progress, whether or not the kind does.

    Args:
        kind: the index's class.
        ids, embeddings, path, options: as for `build`.
        progress: called with passages that are read, unless the kind reports its own stages.
    """
    if kind.reports:
        options["progress"] = progress
        with raised_by("index", kind, "from build"):
            return kind.build(ids, embeddings, path, **options)
    report = progress or silent
    total = len(ids)
    report(_BUILDING, 0, total)
    # The last passage counts once the index is ready.
    read = counted(embeddings, lambda n: report(_BUILDING, min(n, total - 1), total))
    with raised_by("index", kind, "from build"):
        made = kind.build(ids, read, path, **options)
    report(_BUILDING, total, total)
    return made


def counted(items: Iterable[T], report: Callable[[int], object]) -> Iterator[T]:
    """Yield the items; after each, report how many there were."""
    for number, item in enumerate(items, 1):
        yield item
        report(number)


def checked_index(index: Any, kind: type[Index]) -> Index:
    """Return the result of `Index.open`, checked.

    Raises:
        ContractError: it is not an index, or lacks `dim` or `ids`.
    """
    if not isinstance(index, Index):
        raise broken(kind, "index", f"`open` returns a {type(index).__name__}, not an index")
    for name in ("dim", "ids"):
        if not hasattr(index, name):
            raise broken(index, "index", f"it has no `{name}`")
    return index


def checked_scores(index: Index, scores: Any, queries: int) -> Array:
    """Return the result of `Index.scores` for a number of queries, checked.

    Raises:
        ContractError: a score for a query and passage is missing, or a score is not a number.
    """
    found = np.asarray(scores)
    if found.size and found.dtype.kind not in "fiu":
        got = type(found.flat[0].item() if hasattr(found.flat[0], "item") else found.flat[0])
        raise broken(index, "index", f"a score of type {got.__name__}, not a number")
    if found.shape != (queries, len(index.ids)):
        shape = f"[{queries}, {len(index.ids)}]"
        raise broken(index, "index", f"scores {shape} are expected, got {list(found.shape)}")
    if np.isnan(found).any():
        raise broken(index, "index", "a score is not a number (nan)")
    return found


def checked_rankings(
    index: Index, rankings: Sequence[Ranking], queries: int, k: int
) -> Sequence[Ranking]:
    """Return the result of `Index.search` for a number of queries, checked.

    Raises:
        ContractError: not one ranking per query, more than k passages, a duplicate passage, a
            score that is not a number, or scores that are not sorted.
    """
    check_count("index", index, "search", rankings, queries)
    for ranking in rankings:
        scores = [score for _, score in ranking]
        if len(ranking) > k:
            raise broken(index, "index", f"at most {k} passages are expected, got {len(ranking)}")
        if len({passage_id for passage_id, _ in ranking}) != len(ranking):
            raise broken(index, "index", "a passage is in a ranking twice")
        if np.isnan(scores).any():
            raise broken(index, "index", "a score is not a number (nan)")
        if any(a < b for a, b in itertools.pairwise(scores)):
            raise broken(index, "index", "a ranking does not begin with its best passage")
    return rankings


def checked_query(query: Vectors, dim: int) -> Array:
    """Return the query's nonzero vectors, float32.

    Raises:
        ValueError: the query has another width, is not finite, or is all zero.
    """
    query = np.asarray(query, dtype=np.float32)
    if query.ndim != 2 or query.shape[1] != dim:
        raise ValueError(f"a query is an array [vectors, {dim}], got {query.shape}")
    if not np.isfinite(query).all():
        raise ValueError("a query has values that are not finite")
    kept: Array = query[np.any(query != 0, axis=1)]
    if not len(kept):
        raise ValueError("a query has no vector that is not zero")
    return np.ascontiguousarray(kept)


def check_k(k: int) -> None:
    """Raise ValueError unless k is at least 1."""
    if k < 1:
        raise ValueError("k must be at least 1")


def checked_passages(
    ids: Iterable[str], embeddings: Iterable[Vectors], dim: int
) -> Iterator[tuple[str, Array]]:
    """Yield pairs of id and array [vectors, dim] lazily.

    Raises:
        ValueError: a duplicate id, not one array per id, or vectors that have another width, are
            not finite or not of unit length; the message names the id.
    """
    seen: set[str] = set()
    for passage_id, vectors in itertools.zip_longest(ids, embeddings):
        if passage_id is None or vectors is None:
            what = "arrays" if passage_id is None else "ids"
            raise ValueError(f"ids and embeddings differ in number: more {what} after {len(seen)}")
        if passage_id in seen:
            raise ValueError(f"passage id {passage_id!r} occurs twice: ids must be unique")
        seen.add(passage_id)
        array = np.asarray(vectors)
        if array.ndim != 2 or array.shape[1] != dim:
            raise ValueError(
                f"passage {passage_id!r}: an array [vectors, {dim}] is expected, got {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"passage {passage_id!r} has vectors that are not finite")
        norms = np.linalg.norm(array.astype(np.float64), axis=1)
        if np.any(np.abs(norms - 1) > _NORM_TOLERANCE):
            raise ValueError(
                f"passage {passage_id!r} has a vector of length "
                f"{norms[np.argmax(np.abs(norms - 1))]:.3f}: vectors must be normalised"
            )
        yield passage_id, array
