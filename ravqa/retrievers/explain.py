"""What of a query matched what of a passage: MaxSim, taken apart.

The score of a passage is a sum over the query's vectors, each with the passage's vector that it is
most like. So it can be said of every word and image patch of a query how much of the score it
brought, and which word of the passage it found.
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
        text: what the labels' spans are in.
        weight: of the form in the query.
        labels: of each vector.
        products: float32 [vectors of the query, vectors of the passage]: dot products, times all
            weights. The maximum of each row is what that vector brings to the score.
    """

    text: str
    weight: float
    labels: Sequence[Label]
    products: Array

    @property
    def gains(self) -> Array:
        """What each of the query's vectors brings to the score."""
        gains: Array = self.products.max(1)
        return gains

    @property
    def found(self) -> npt.NDArray[np.intp]:
        """The passage's vector that each of the query's vectors is most like."""
        found: npt.NDArray[np.intp] = self.products.argmax(1)
        return found


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a passage has its score.

    Attributes:
        text: of the passage, as it was encoded.
        labels: of the passage's vectors.
        parts: the query's forms; those without vectors are left out.
    """

    passage_id: str
    text: str
    labels: Sequence[Label]
    parts: Sequence[QueryPart]

    @property
    def score(self) -> float:
        """The sum of all gains: the passage's score, but for how an index rounds what it stores."""
        return float(sum(part.gains.astype(np.float64).sum() for part in self.parts))
