"""What every index offers, and the checks they share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ravqa.encoders.base import Vectors

Ranking = list[tuple[str, float]]
"""(passage id, MaxSim), best first."""

Array = np.ndarray[Any, Any]

_NORM_TOLERANCE = 0.01  # float16 rounding moves the norm of a unit vector by less


class Index(Protocol):
    """A searchable collection of passages, each an array of unit vectors [vectors, dim].

    The score of a passage is MaxSim: over the query's vectors, the sum of the greatest dot product
    with any of the passage's vectors (Khattab & Zaharia 2020, arXiv 2004.12832). A passage without
    vectors matches nothing and is never found.
    """

    dim: int

    def __len__(self) -> int:
        """Passages that can be found."""
        ...

    def search(
        self,
        queries: Sequence[Vectors],
        k: int,
        *,
        allowed_ids: Iterable[str] | None = None,
        **params: Any,
    ) -> list[Ranking]:
        """The k best passages per query, best first.

        Args:
            queries: arrays [vectors, dim] of any length; zero rows do not count.
            allowed_ids: only these passages; ids that are not there are passed over.
            params: settings of the kind's `Config` for this search.

        Raises:
            ValueError: k below 1, a query of another width, not finite, or all zero.
        """
        ...

    def score(self, queries: Sequence[Vectors], ids: Sequence[Sequence[str]]) -> list[list[float]]:
        """MaxSim of each query with its own list of passages.

        Raises:
            KeyError: an id is not in the index.
        """
        ...


def checked_query(query: Vectors, dim: int) -> Array:
    """The query's vectors that are not zero, float32.

    Raises:
        ValueError: another width, not finite, or nothing but zeros.
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
    """Pairs of id and array [vectors, dim], lazily.

    Raises:
        ValueError: an id twice, not one array per id, or vectors of another width, not finite or
            not of unit length; the id is named.
    """
    seen: set[str] = set()
    for passage_id, vectors in itertools.zip_longest(ids, embeddings):
        if passage_id is None or vectors is None:
            what = "arrays" if passage_id is None else "ids"
            raise ValueError(f"ids and embeddings differ in number: more {what} after {len(seen)}")
        if passage_id in seen:
            raise ValueError(f"passage id {passage_id!r} is there twice: ids must be unique")
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
