"""Batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of items, shortest first, in batches of at most `budget` tokens, padding included.

    Items of one length keep their order. An item longer than the budget is a batch of its own.

    Args:
        lengths: tokens of each item.
        budget: items times the longest one's length, at most, in each batch.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
