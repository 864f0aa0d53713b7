"""The interface of encoders, and the types of their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ravqa.core.contracts import check_count
from ravqa.core.errors import UserError, broken
from ravqa.core.records import Passage, Question
from ravqa.core.settings import Strict
from ravqa.core.stored import as_type

if TYPE_CHECKING:
    from PIL.Image import Image

Vectors = npt.NDArray[np.floating[Any]]
"""Token vectors of one item, [vectors, dim], float32 or float16."""

Output = Literal["float32", "float16"]
"""Type of the vectors that an encoder returns."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of query text and the weight of its token vectors.

    MaxSim is linear in the query vectors, so a token of weight w counts w times.
    """

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EncodingStats:
    """Statistics of an encoding; those of several lists can be added.

    Attributes:
        items: texts encoded.
        truncated: number of texts that were cut, being longer than the encoder's limit.
        tokens: tokens given to the model, including special ones but not padding.
        vectors: vectors returned.
        neutralised: control tokens of the model in the texts ("[SEP]"), read as plain text.
    """

    items: int = 0
    truncated: int = 0
    tokens: int = 0
    vectors: int = 0
    neutralised: int = 0

    @classmethod
    def read(cls, value: Any) -> EncodingStats:
        """Return statistics that were kept on disk, as `asdict` writes them.

        Raises:
            ValueError: they are something else.
        """
        found = as_type(dict[str, Annotated[int, Field(ge=0)]], value)
        names = {field.name for field in fields(cls)}
        if found.keys() | {"neutralised"} != names:  # older versions did not count them
            raise ValueError("not the statistics of an encoding")
        return cls(**found)

    def __add__(self, other: EncodingStats) -> EncodingStats:
        return EncodingStats(*map(sum, zip(astuple(self), astuple(other), strict=True)))


class Encoded(list[Vectors]):
    """Arrays [vectors, dim], one per item, without zero rows, and their statistics."""

    def __init__(
        self,
        arrays: Iterable[Vectors] = (),
        *,
        truncated: int = 0,
        tokens: int = 0,
        neutralised: int = 0,
    ):
        super().__init__(arrays)
        vectors = sum(map(len, self))
        self.stats = EncodingStats(len(self), truncated, tokens, vectors, neutralised)

    @classmethod
    def of(cls, arrays: Iterable[Vectors]) -> Encoded:
        """Return the arrays with statistics; only counted if the encoder gave a plain list."""
        return arrays if isinstance(arrays, cls) else cls(arrays)


@dataclass(frozen=True, slots=True)
class Label:
    """The meaning of one vector of a text or an image.

    Attributes:
        kind: "word": a token of the text; "mark": one that the encoder added ([CLS], [SEP], the
            marker of queries); "filler": a [MASK] that pads a query; "global": the whole text
            or image; "patch": a patch of the image.
        name: the token, or what it stands for, for display.
        span: for a word's token: its start and end in the text.
        word: for a word's token: start and end of the whole word in the text.
        place: for a patch: row and column in the grid.
    """

    kind: Literal["word", "mark", "filler", "global", "patch"]
    name: str
    span: tuple[int, int] | None = None
    word: tuple[int, int] | None = None
    place: tuple[int, int] | None = None


WHOLE_IMAGE = Label("global", "the whole image")
"""The label of a vector that an image has as a whole."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """The text that an encoder received, and a label for each vector that it made, in order."""

    text: str
    labels: Sequence[Label]


class Encoder(ABC):
    """A model that turns texts, and for some models images, into token vectors, in order.

    Attributes:
        labels: whether the encoder can label its vectors (`label_passage` and so on).
        dim: length of a vector.
        fingerprint: changes with everything that can change a vector.
        weights: the weights' name, for display; "" without weights.
    """

    class Config(Strict):
        """The encoder's options; a subclass with options overrides this class."""

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

    @classmethod
    def described_by(cls, config: Any) -> str:
        """Return the option that needs descriptions of questions' images; "" if none does."""
        return ""

    @property
    def passages_fingerprint(self) -> str:
        """A fingerprint of what can change passages' vectors, without query-only settings.

        It equals `fingerprint`, unless the encoder has such settings.
        """
        return self.fingerprint

    @property
    def supports_images(self) -> bool:
        """Whether the encoder looks at questions' images, and so defines `encode_question`."""
        return False

    @property
    def supports_passage_images(self) -> bool:
        """Whether the encoder looks at passages' images, and so defines `encode_passages`."""
        return False

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of an image's patches with a vector each; None without such vectors."""
        return None

    @abstractmethod
    def encode_document(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return one array [vectors, dim] per passage, with rows of unit length and no zero rows.

        Args:
            texts: `Passage.content` of each passage.
            progress: called as progress(n) after n more passages.
        """

    @abstractmethod
    def encode_query(self, queries: Sequence[Sequence[Span]]) -> Encoded:
        """Return one array [vectors, dim] per query; each row's length is its span's weight.

        A query without a word that counts has no rows.
        """

    def encode_question(self, questions: Sequence[Question]) -> Encoded:
        """Return one array [vectors, dim] per question, from text and image; see `supports_images`.

        Raises:
            DataError: an image cannot be decoded.
        """
        raise broken(self, "encoder", "it sees images and does not define `encode_question`")

    def seen_beside(self, question: Question) -> Any:
        """Return what `encode_question` sees of a question beside text, instruction and image.

        Rankings are kept by it too. None if there is nothing; otherwise JSON.
        """
        return None

    def encode_passages(
        self, passages: Sequence[Passage], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return one array [vectors, dim] per passage, from its text and, if seen, images.

        Raises:
            DataError: an image cannot be decoded.
        """
        return self.encode_document([passage.content for passage in passages], progress)

    def label_passage(self, passage: Passage) -> Labelled:
        """Return the meaning of each of a passage's vectors.

        Raises:
            UserError: the encoder cannot label its vectors; see `labels`.
        """
        raise self._without_labels()

    def label_query(self, spans: Sequence[Span]) -> Labelled:
        """Return the meaning of each vector of `encode_query`.

        Raises:
            UserError: as `label_passage`.
        """
        raise self._without_labels()

    def label_question(self, question: Question) -> Labelled:
        """Return the meaning of each vector of `encode_question`.

        Raises:
            UserError: as `label_passage`.
        """
        raise self._without_labels()

    def seen_image(self, image: Path | bytes) -> Image:
        """Return an image as the model receives it, if the encoder has a `grid`.

        Raises:
            DataError: the image cannot be decoded.
            UserError: it has none.
        """
        raise UserError(f"the encoder {type(self).__name__} has no vectors of patches of images")

    def _without_labels(self) -> UserError:
        return UserError(
            f"the encoder {type(self).__name__} cannot say which words its vectors are for"
        )


def checked_vectors(encoder: Encoder, arrays: Sequence[Vectors], items: int) -> Encoded:
    """Return the arrays that an encoder gave for a number of items, checked, with statistics.

    Raises:
        ContractError: not one array [vectors, dim] per item, or one that is not finite.
    """
    check_count("encoder", encoder, "encoding", arrays, items)
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.shape[1:] != (encoder.dim,):
            got = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
            expected = f"arrays [vectors, {encoder.dim}] are expected"
            raise broken(encoder, "encoder", f"{expected}, got {got}")
        if not np.isfinite(array).all():
            raise broken(encoder, "encoder", "a vector is not finite")
    return Encoded.of(arrays)


def without_zero_rows(vectors: Vectors, output: Output) -> Vectors:
    """Return the nonzero rows, in the requested type."""
    return vectors[np.any(vectors != 0, axis=1)].astype(output, copy=False)


def word_label(text: str, name: str, span: tuple[int, int], word: tuple[int, int]) -> Label:
    """Return the label of a word's token; spaces at a span's start belong to no word."""

    def trimmed(begin: int, end: int) -> tuple[int, int]:
        while begin < end and text[begin].isspace():
            begin += 1
        return begin, end

    return Label("word", name, trimmed(*span), trimmed(*word))
