"""A generation given piece by piece, as it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ravqa.core.outcomes import succeeded
from ravqa.readers.base import Prompt, Reader

# Up to the last white space (without it), or with the last letter of a script that has none.
_WHOLE_WORDS = re.compile(
    r".*(?:(?=\s)|[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])", re.DOTALL
)


def whole_words(text: str) -> str:
    """The beginning of a text that more text behind it does not change: its complete words.

    >>> whole_words("the golden gat")
    'the golden'
    """
    found = _WHOLE_WORDS.match(text)
    return found.group() if found else ""


def greedy(reader: Reader, prompt: Prompt) -> Iterator[str]:
    """The greedy generation of a reader that gives next-token distributions, word by word.

    Joined, the pieces are the text that the reader's own greedy generation has. Who stops reading
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
