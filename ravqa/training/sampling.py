"""Which examples each step sees: shuffled, and drawn from several datasets by their ratios."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

Drawn = tuple[int, int]
"""An example: the number of its dataset, and its place there."""


def batches(
    sizes: Sequence[int], ratios: Sequence[float], batch_size: int, seed: int
) -> Iterator[list[Drawn]]:
    """Yield batches without end; the same arguments always give the same ones.

    Each dataset is shuffled anew whenever all its examples have been drawn.

    Args:
        sizes: number of examples of each dataset, at least 1.
        ratios: each dataset's share of the examples drawn, up to a common factor.
    """
    chances = np.asarray(ratios, float) / np.sum(ratios)
    streams = [_shuffled(size, [seed, i]) for i, size in enumerate(sizes)]
    choose = np.random.default_rng([seed, len(sizes)])
    while True:
        chosen = choose.choice(len(sizes), size=batch_size, p=chances)
        yield [(int(i), next(streams[i])) for i in chosen]


def _shuffled(size: int, seed: Sequence[int]) -> Iterator[int]:
    draw = np.random.default_rng(seed)
    while True:
        yield from map(int, draw.permutation(size))


def step_seed(*numbers: int) -> int:
    """Return a seed for torch (63 bits) that depends on all the numbers: seed, step, ..."""
    high, low = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)
