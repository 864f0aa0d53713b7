"""The interface of encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
"""Token vectors of one item, [tokens, dim]."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of query text and the weight of its token vectors.

    MaxSim is linear in the query vectors, so a token of weight w counts w times.
    """

    text: str
    weight: float = 1.0


class Encoder(Protocol):
    """Texts to token vectors, in the order given."""

    dim: int
    fingerprint: str
    weights: str

    def encode_document(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> list[Vectors]:
        """One array per passage, rows L2-normalised; `progress(n)` is called after n more."""
        ...

    def encode_query(self, queries: Sequence[Sequence[Span]]) -> list[Vectors]:
        """One array per query; rows have the length of their span's weight."""
        ...
