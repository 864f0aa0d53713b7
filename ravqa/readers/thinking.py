"""Local models that think before they answer.

A model thinks if its chat template opens a mark of thinking, or if it writes one itself. Both are
seen in text that still has its special tokens. Thinking has a budget of its own, and is no part of
the answer, nor of its log-probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ravqa.core.marks import (
    closing_mark,
    has_thinking_mark,
    may_open_thinking,
    open_thinking,
    split_thinking,
)

_TAIL = 24  # tokens that surely hold a whole closing mark
_HEAD = 16  # tokens within which a model that thinks begins to


class Thought:
    """Follows one generation, token by token: where its thinking ends and its answer begins.

    Attributes:
        tokens: the tokens so far; nothing is added once it is done.
        start: number of tokens before the answer; None while the model thinks or may begin to.
        done: the generation has ended or reached a limit.
        thinks: the model thinks, or has thought.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        opened: bool,
        budget: int,
        longest: int,
        ends: frozenset[int],
        stops: frozenset[int],
    ):
        """Begin before the first token.

        Args:
            decode: returns the text of tokens, special ones included.
            opened: the prompt ends within an open mark of thinking.
            budget: most tokens of thinking.
            longest: most tokens of the answer.
            ends: tokens that end any text.
            stops: tokens that end an answer, but not thinking; `ends` among them.
        """
        self._decode = decode
        self._opened = opened
        self._budget = budget
        self._longest = longest
        self._ends = ends
        self._stops = stops
        self.tokens: list[int] = []
        self.start: int | None = None
        self.thinks = opened
        self.done = False

    def feed(self, token: int) -> None:
        """Take the next token."""
        if self.done:
            return
        self.tokens.append(token)
        count = len(self.tokens)
        if self.start is None:
            self._look()
        elif self.thinks and self.start == count - 1 and self._decode([token]).isspace():
            self.start = count  # white space after the thinking belongs to its mark
        if self.done or token in self._ends:
            self.done = True
        elif self.start is None:
            self.done = count >= (self._budget if self.thinks else self._longest)
        else:
            ended = token in self._stops and self.start < count
            self.done = ended or count - self.start >= self._longest

    def _look(self) -> None:
        if self.thinks:
            found = split_thinking(self._decode(self.tokens[-_TAIL:]), opened=True)
            if not found.cut:
                self.start = len(self.tokens)
            return
        text = self._decode(self.tokens)
        self.thinks = split_thinking(text).cut
        if not self.thinks and (len(self.tokens) >= _HEAD or not may_open_thinking(text)):
            self.start = 0
            ended = [i for i, token in enumerate(self.tokens) if token in self._stops]
            if ended:  # an end mark that thinking could still have followed
                self.tokens = self.tokens[: ended[0] + 1]
                self.done = True

    @property
    def answer(self) -> list[int]:
        """The answer's tokens, the end mark included; none while the model thinks."""
        if self.start is None:
            return [] if self.thinks else self.tokens
        return self.tokens[self.start :]

    @property
    def cut(self) -> bool:
        """Whether the thinking has not ended."""
        return self.thinks and self.start is None

    @property
    def text(self) -> str:
        """The text of the thinking."""
        if not self.thinks:
            return ""
        whole = self._decode(self.tokens[: self.start])
        return split_thinking(whole, opened=self._opened).thinking


def may_think(tokenizer: Any, template: str | None) -> bool:
    """Return whether a model may think: its vocabulary or its chat template has a mark for it."""
    texts = [template or "", *tokenizer.get_added_vocab()]
    return any(map(has_thinking_mark, texts))


def closed_thinking(text: str, opening: str = "") -> str:
    """Return a prompt after which the answer follows at once: with its thinking closed, and empty.

    Args:
        text: the prompt as it is given to the model.
        opening: the mark that the model would write itself.
    """
    if closing := open_thinking(text):
        return f"{text}\n{closing}\n\n" if text.endswith("\n") else f"{text}{closing}"
    if opening:
        return f"{text}{opening}\n\n{closing_mark(opening)}\n\n"
    return text
