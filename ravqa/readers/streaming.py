"""Generations streamed piece by piece."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ravqa.core.outcomes import succeeded
from ravqa.readers.base import Prompt, Reader

# Up to the last white space (exclusive), or the last letter of a script without spaces.
_WHOLE_WORDS = re.compile(
    r".*(?:(?=\s)|[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])", re.DOTALL
)


def whole_words(text: str) -> str:
    """Return the beginning of a text that later text cannot change: its complete words.

    >>> whole_words("the golden gat")
    'the golden'
    """
    found = _WHOLE_WORDS.match(text)
    return found.group() if found else ""


def greedy(reader: Reader, prompt: Prompt) -> Iterator[str]:
    """Yield, word by word, the greedy generation of a reader with next-token distributions.

    Joined, the pieces are the text of the reader's own greedy generation. Closing the iterator
    stops the generation.
    """
    tokens: list[int] = []
    given = 0
    while len(tokens) < reader.max_new_tokens and not reader.ends.intersection(tokens[-1:]):
        [row] = reader.next_token_logprobs([prompt], [tokens])
        tokens.append(int(succeeded(row).argmax()))
        words = whole_words(reader.decode(tokens))
        if len(words) > given:
            yield words[given:]
            given = len(words)
    rest = reader.decode(tokens)[given:]
    if rest:
        yield rest
