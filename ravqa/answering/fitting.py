"""Prompts that fit into the reader's context: whole passages are left out, the last first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ravqa.core.records import Hit, Passage
from ravqa.readers.base import Prompt, Reader

Pair = tuple[Hit, Passage]


def fit(
    groups: Sequence[Sequence[Pair]],
    render: Callable[[int, Sequence[Pair]], Prompt],
    reader: Reader,
) -> list[tuple[list[Pair], Prompt]]:
    """For each group the passages that fit into one prompt, from the first on, and that prompt.

    A reader that cannot count tokens, or does not know its context, is given all passages.

    Args:
        groups: passages that are to stand in one prompt.
        render: the prompt of the group at a position, from some of its passages.
    """
    kept = [list(group) for group in groups]
    prompts = [render(i, group) for i, group in enumerate(kept)]
    room = None
    if "count" in reader.abilities and reader.context is not None:
        room = reader.context - reader.max_new_tokens
    rows = [i for i, group in enumerate(kept) if group]
    while room is not None and rows:
        counts = reader.count_tokens([prompts[i] for i in rows])
        rows = [i for i, tokens in zip(rows, counts, strict=True) if tokens > room]
        for i in rows:
            kept[i].pop()
            prompts[i] = render(i, kept[i])
        rows = [i for i in rows if kept[i]]
    return list(zip(kept, prompts, strict=True))
