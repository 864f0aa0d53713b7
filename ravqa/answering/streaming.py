"""Streamed answers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from ravqa.core.records import Answer


class AnswerStream(Iterator[str]):
    """Iterator over the reader's words as they are written; joined, they are the generation.

    Attributes:
        answer: the answer extracted from them once all have been read; None before.
    """

    def __init__(self, pieces: Generator[str, None, None], extract: Callable[[str], Answer]):
        """Take a reader's stream.

        Args:
            extract: extracts the answer from a generation.
        """
        self.answer: Answer | None = None
        self._pieces = pieces
        self._extract = extract
        self._text = ""

    def __next__(self) -> str:
        try:
            piece = next(self._pieces)
        except StopIteration:
            if self.answer is None:
                self.answer = self._extract(self._text)
            raise
        self._text += piece
        return piece

    def close(self) -> None:
        """Stop the generation."""
        self._pieces.close()
