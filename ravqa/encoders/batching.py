"""Batches of items of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield indices of items, shortest first, in batches of at most `budget` padded tokens.

    Items of one length keep their order. An item longer than the budget forms its own batch.

    Args:
        lengths: tokens of each item.
        budget: maximum of items times the longest one's length in each batch.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
