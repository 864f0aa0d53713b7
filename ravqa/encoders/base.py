"""The interface of encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ravqa.core.records import Passage

Vectors = npt.NDArray[np.floating[Any]]
"""Token vectors of one item, [vectors, dim], float32 or float16."""

Output = Literal["float32", "float16"]
"""Type of the vectors that an encoder gives."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of query text and the weight of its token vectors.

    MaxSim is linear in the query vectors, so a token of weight w counts w times.
    """

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EncodingStats:
    """What encoding took and gave; statistics of several lists can be added.

    Attributes:
        items: texts encoded.
        truncated: how many of them were longer than the encoder's limit, and cut.
        tokens: that the model was given, special ones included and padding not.
        vectors: that came out.
    """

    items: int = 0
    truncated: int = 0
    tokens: int = 0
    vectors: int = 0

    def __add__(self, other: EncodingStats) -> EncodingStats:
        return EncodingStats(
            self.items + other.items,
            self.truncated + other.truncated,
            self.tokens + other.tokens,
            self.vectors + other.vectors,
        )


class Encoded(list[Vectors]):
    """One array [vectors, dim] per item, without zero rows; and the statistics of them all."""

    def __init__(self, arrays: Iterable[Vectors] = (), *, truncated: int = 0, tokens: int = 0):
        super().__init__(arrays)
        self.stats = EncodingStats(len(self), truncated, tokens, sum(map(len, self)))

    @classmethod
    def of(cls, arrays: Iterable[Vectors]) -> Encoded:
        """The same arrays; counted, if they come from an encoder that gives a plain list."""
        return arrays if isinstance(arrays, cls) else cls(arrays)


@dataclass(frozen=True, slots=True)
class Label:
    """What one vector of a text or an image stands for.

    Attributes:
        kind: "word": a token of the text; "mark": one that the encoder put there ([CLS], [SEP], the
            marker of queries); "filler": a [MASK] that fills a query up; "global": the whole text
            or image; "patch": a patch of the image.
        name: the token, or what it stands for, for people.
        span: of a word's token: begin and end in the text.
        word: the whole word that the token is of: begin and end in the text.
        place: of a patch: row and column in the grid.
    """

    kind: Literal["word", "mark", "filler", "global", "patch"]
    name: str
    span: tuple[int, int] | None = None
    word: tuple[int, int] | None = None
    place: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """The text that an encoder was given, and a label for each vector that it made, in order."""

    text: str
    labels: Sequence[Label]


class Encoder(Protocol):
    """Texts to token vectors, in the order given.

    One with settings for queries alone has a `passages_fingerprint` too (see that function). One
    that sees questions' images has `encode_question(questions)`, one that sees passages' images
    `encode_passage(passages, progress)`, which give what `encode_query`, `encode_document` do. One
    that can say what its vectors stand for has `label_passage(passage)` and `label_query(spans)`,
    each giving a `Labelled`; if it sees images, also `label_question(question)`, `grid` (rows and
    columns of patches) and `seen_image(image)`, the image as the model is given it.
    """

    dim: int
    fingerprint: str
    weights: str

    def encode_document(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """One array per passage, rows L2-normalised; `progress(n)` is called after n more."""
        ...

    def encode_query(self, queries: Sequence[Sequence[Span]]) -> Encoded:
        """One array per query; rows have the length of their span's weight."""
        ...


def passages_fingerprint(encoder: Encoder) -> str:
    """Changes with what can change passages' vectors: settings of queries alone do not count."""
    own: str = getattr(encoder, "passages_fingerprint", encoder.fingerprint)
    return own


def sees_passages(encoder: Encoder) -> bool:
    """Whether the encoder looks at passages' images."""
    return hasattr(encoder, "encode_passage")


def encode_passages(
    encoder: Encoder,
    passages: Sequence[Passage],
    progress: Callable[[int], object] | None = None,
) -> Encoded:
    """One array per passage: of text and image, if the encoder sees images, else of text."""
    if sees_passages(encoder):
        return Encoded.of(encoder.encode_passage(passages, progress))  # type: ignore[attr-defined]
    return Encoded.of(encoder.encode_document([p.content for p in passages], progress))


def without_zero_rows(vectors: Vectors, output: Output) -> Vectors:
    """The rows that count, in the type wanted."""
    return vectors[np.any(vectors != 0, axis=1)].astype(output, copy=False)


def word_label(text: str, name: str, span: tuple[int, int], word: tuple[int, int]) -> Label:
    """The label of a word's token; spaces at a span's beginning belong to no word."""

    def trimmed(begin: int, end: int) -> tuple[int, int]:
        while begin < end and text[begin].isspace():
            begin += 1
        return begin, end

    return Label("word", name, trimmed(*span), trimmed(*word))
