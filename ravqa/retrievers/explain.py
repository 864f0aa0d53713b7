"""Explanations of MaxSim scores: which part of a query matched which part of a passage.

The score of a passage is a sum over the query's vectors, each compared with the passage's most
similar vector. So every word and image patch of a query has a known share of the score, and a word
of the passage that it matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ravqa.encoders.base import Label

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QueryPart:
    """One form of a query, in the wording that matched the passage best.

    Attributes:
        text: the text that the labels' spans refer to.
        weight: weight of the form in the query.
        labels: one label per query vector.
        products: float32 [vectors of the query, vectors of the passage]: dot products, times all
            weights. The maximum of each row is that vector's contribution to the score.
    """

    text: str
    weight: float
    labels: Sequence[Label]
    products: Array

    @property
    def gains(self) -> Array:
        """The contribution of each query vector to the score."""
        gains: Array = self.products.max(1)
        return gains

    @property
    def found(self) -> npt.NDArray[np.intp]:
        """The index of the passage vector that is most similar to each query vector."""
        found: npt.NDArray[np.intp] = self.products.argmax(1)
        return found


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of one passage's score.

    Attributes:
        text: the passage's text, as it was encoded.
        labels: one label per passage vector.
        parts: the query's forms, without those that have no vectors.
    """

    passage_id: str
    text: str
    labels: Sequence[Label]
    parts: Sequence[QueryPart]

    @property
    def score(self) -> float:
        """The sum of all gains: the passage's score, up to the rounding of stored vectors."""
        return float(sum(part.gains.astype(np.float64).sum() for part in self.parts))
