"""Fitting of prompts into the reader's context.

Pictures are dropped first, then whole passages, the last first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Passage
from ravqa.readers.base import Prompt, Reader

Pair = tuple[Hit, Passage]


def fit(
    groups: Sequence[Sequence[Pair]],
    render: Callable[[int, Sequence[Pair], int], Prompt],
    reader: Reader,
    pictures: int = 0,
) -> list[tuple[list[Pair], Prompt]]:
    """Return for each group the first passages that fit into one prompt, and that prompt.

    A reader that cannot count tokens, or does not know its context, is given all passages; so is
    one that cannot count a prompt, which then fails when it is read.

    Args:
        groups: passages per prompt.
        render: renders the prompt of the group at a position from some of its passages and at most
            so many pictures.
        reader: counts the tokens.
        pictures: most pictures of a prompt.
    """
    kept = [list(group) for group in groups]
    prompts = [render(i, group, pictures) for i, group in enumerate(kept)]
    room = None
    if reader.counts_tokens and reader.context is not None:
        room = reader.context - reader.max_new_tokens - reader.max_thinking_tokens
    rows = [i for i, group in enumerate(kept) if group]
    while room is not None and rows:
        counts = reader.count_tokens([prompts[i] for i in rows])
        rows = [
            i
            for i, tokens in zip(rows, counts, strict=True)
            if not isinstance(tokens, Failure) and tokens > room
        ]
        for i in rows:
            shown = len(prompts[i].pictures)
            if not shown:
                kept[i].pop()
            prompts[i] = render(i, kept[i], max(shown - 1, 0))
        rows = [i for i in rows if kept[i]]
    return list(zip(kept, prompts, strict=True))
