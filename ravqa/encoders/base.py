"""The contract of encoders, and what they give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ravqa.core.errors import UserError, broken
from ravqa.core.records import Passage, Question
from ravqa.core.settings import Strict

if TYPE_CHECKING:
    from PIL.Image import Image

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


class Encoder(ABC):
    """Texts, and images for some, to token vectors, in the order given.

    Attributes:
        labels: whether the encoder can say what its vectors stand for (`label_passage` and so on).
        dim: length of a vector.
        fingerprint: changes with everything that can change a vector.
        weights: the weights' name, for people; "" without weights.
    """

    class Config(Strict):
        """The encoder's options; none, unless it has its own."""

    labels: ClassVar[bool] = False

    dim: int
    fingerprint: str
    weights: str = ""

    def __init__(self, config: Any = None):
        """Take the encoder's validated options; None for their defaults.

        Raises:
            UserError: what the encoder needs (a package, a model, a file) does not exist.
        """
        self.config: Any = self.Config() if config is None else config

    @property
    def passages_fingerprint(self) -> str:
        """Changes with what can change passages' vectors; settings of queries alone do not count.

        `fingerprint`, unless the encoder has such settings.
        """
        return self.fingerprint

    @property
    def sees_images(self) -> bool:
        """Whether the encoder looks at questions' images, and so defines `encode_question`."""
        return False

    @property
    def sees_passage_images(self) -> bool:
        """Whether the encoder looks at passages' images, and so defines `encode_passages`."""
        return False

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of an image's patches that have a vector each; None without such."""
        return None

    @abstractmethod
    def encode_document(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return one array [vectors, dim] per passage; rows of unit length, none of them zero.

        Args:
            texts: `Passage.content` of each passage.
            progress: called as progress(n) after n more passages.
        """

    @abstractmethod
    def encode_query(self, queries: Sequence[Sequence[Span]]) -> Encoded:
        """Return one array [vectors, dim] per query; rows have the length of their span's weight.

        A query without a word that counts has no rows.
        """

    def encode_question(self, questions: Sequence[Question]) -> Encoded:
        """Return one array [vectors, dim] per question, of text and image; see `sees_images`.

        Raises:
            DataError: an image cannot be decoded.
        """
        raise broken(self, "encoder", "it sees images and does not define `encode_question`")

    def encode_passages(
        self, passages: Sequence[Passage], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return one array [vectors, dim] per passage: of its text, unless images are seen.

        Raises:
            DataError: an image cannot be decoded.
        """
        return self.encode_document([passage.content for passage in passages], progress)

    def label_passage(self, passage: Passage) -> Labelled:
        """Return what each of a passage's vectors stands for.

        Raises:
            UserError: the encoder cannot say; see `labels`.
        """
        raise self._without_labels()

    def label_query(self, spans: Sequence[Span]) -> Labelled:
        """Return what each vector of `encode_query` stands for.

        Raises:
            UserError: as `label_passage`.
        """
        raise self._without_labels()

    def label_question(self, question: Question) -> Labelled:
        """Return what each vector of `encode_question` stands for.

        Raises:
            UserError: as `label_passage`.
        """
        raise self._without_labels()

    def seen_image(self, image: Path | bytes) -> Image:
        """Return an image as the model is given it; of an encoder that has a `grid`.

        Raises:
            DataError: the image cannot be decoded.
            UserError: the encoder sees no images.
        """
        raise UserError(f"the encoder {type(self).__name__} sees no images")

    def _without_labels(self) -> UserError:
        return UserError(
            f"the encoder {type(self).__name__} cannot say which words its vectors are of"
        )


def checked_vectors(encoder: Encoder, arrays: Sequence[Vectors], items: int) -> Encoded:
    """Return what an encoder gave for a number of items, with its statistics.

    Raises:
        ContractError: not one array [vectors, dim] per item, or one that is not finite.
    """
    if len(arrays) != items:
        raise broken(encoder, "encoder", f"{items} arrays are expected, got {len(arrays)}")
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.shape[1:] != (encoder.dim,):
            got = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
            expected = f"arrays [vectors, {encoder.dim}] are expected"
            raise broken(encoder, "encoder", f"{expected}, got {got}")
        if not np.isfinite(array).all():
            raise broken(encoder, "encoder", "a vector is not finite")
    return Encoded.of(arrays)


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
