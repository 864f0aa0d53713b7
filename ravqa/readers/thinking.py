"""Local models that think before they answer.

A model thinks if its chat template opens a mark of thinking, or if it writes one itself. Both are
seen in text that still has its special tokens. Thinking has a budget of its own, and is no part of
the answer, nor of its log-probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ravqa.core.marks import has_thinking_mark, may_open_thinking, open_thinking, split_thinking

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


class Marks:
    """The marks of thinking that a model uses: the known ones, and those that it declares.

    A tokenizer declares them for the parsing of its responses (transformers' `parse_response`), in
    the fields "thinking", "reasoning" or "reasoning_content" of its `response_template`.
    """

    def __init__(self, tokenizer: Any, template: str | None):
        """Collect them.

        Args:
            tokenizer: the tokenizer.
            template: the chat template, if the model has one.
        """
        self._tokenizer = tokenizer
        self._declared = list(_declared(tokenizer))
        texts = [template or "", *tokenizer.get_added_vocab()]
        self.some = bool(self._declared) or any(map(has_thinking_mark, texts))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones included, with declared marks as <think>."""
        text = str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))
        for opening, closing in self._declared:
            text = text.replace(opening, "<think>").replace(closing, "</think>")
        return text

    def closing(self, text: str) -> str:
        """Return the mark that closes the thinking within which a text ends; blank if none does."""
        for opening, closing in self._declared:
            if text.rstrip().endswith(opening.rstrip()):
                return closing
        return open_thinking(text)

    def closed(self, text: str, opening: str = "") -> str:
        """Return a prompt with closed, empty thinking: the answer follows at once.

        Args:
            text: the prompt as it is given to the model.
            opening: the mark that the model would write itself.
        """
        if closing := self.closing(text):
            return f"{text}\n{closing}\n\n" if text.endswith("\n") else f"{text}{closing}"
        return f"{text}{opening}\n\n{self.closing(opening)}\n\n" if opening else text


def _declared(tokenizer: Any) -> Iterator[tuple[str, str]]:
    template = getattr(tokenizer, "response_template", None)
    fields = template.get("fields") if isinstance(template, dict) else None
    for name in ("thinking", "reasoning", "reasoning_content"):
        field = fields.get(name) if isinstance(fields, dict) else None
        if not isinstance(field, dict):
            continue
        openings, closings = (
            [value] if isinstance(value, str) else list(value or ())
            for value in (field.get("open"), field.get("close"))
        )
        if closings:
            yield from ((opening, closings[0]) for opening in openings)
