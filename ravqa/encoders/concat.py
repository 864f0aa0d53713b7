"""The vectors of several encoders in one: one search compares image and text together.

A passage's vector is that of its picture and that of its text, each multiplied by its weight, one
after the other, scaled to unit length; so is a question's. If both have both, their product is the
mean of the cosines, weighted by the weights' squares. PMSR (arXiv 2509.00798) searches so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from ravqa.core.errors import UserError
from ravqa.core.factory import Session, build_part, check_weighted
from ravqa.core.records import Passage, Question
from ravqa.core.settings import Part, Strict, fingerprint
from ravqa.core.texts import with_instruction
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoded, Encoder, Span, Vectors, checked_vectors

_WHY = "the encoder concat"


class ConcatEncoder(Encoder):
    """One vector per passage and question: those of several encoders, one after the other.

    An encoder that has no vector of an item, such as that of images for a passage without one,
    adds zeros; where none has any, there is no vector.
    """

    class Config(Strict):
        """Options.

        Attributes:
            encoders: at least two, which make one vector per item; each with its own options.
            weights: one per encoder, by which its unit vectors are multiplied; empty for equal
                ones.
        """

        builds_parts: ClassVar[bool] = True
        encoders: tuple[Part, ...] = Field(min_length=2)
        weights: tuple[float, ...] = ()

        @model_validator(mode="after")
        def _check_parts(self) -> Self:
            check_weighted(ENCODERS, self.encoders, self.weights, _where)
            return self

    config: Config

    def __init__(self, config: Config, *, session: Session | None = None):
        """Build the encoders, or take them from the session.

        Raises:
            UserError: one of them cannot be built.
        """
        self.config = config
        self._encoders: list[Encoder] = [
            build_part(ENCODERS, part, _where(i), session=session)
            for i, part in enumerate(config.encoders)
        ]
        self._weights = config.weights or (1.0,) * len(self._encoders)
        self.dim = sum(encoder.dim for encoder in self._encoders)
        self.weights = ", ".join(filter(None, (encoder.weights for encoder in self._encoders)))
        self.fingerprint = self._print([encoder.fingerprint for encoder in self._encoders])

    def _print(self, parts: Sequence[str]) -> str:
        return fingerprint("concat/1", parts, self._weights)

    @property
    def passages_fingerprint(self) -> str:
        """A fingerprint of what can change passages' vectors."""
        return self._print([encoder.passages_fingerprint for encoder in self._encoders])

    @property
    def supports_images(self) -> bool:
        """Whether one of the encoders looks at questions' images."""
        return any(encoder.supports_images for encoder in self._encoders)

    @property
    def supports_passage_images(self) -> bool:
        """Whether one of the encoders looks at passages' images."""
        return any(encoder.supports_passage_images for encoder in self._encoders)

    def encode_document(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return [1, dim] for each text, [0, dim] where no encoder has a vector of it."""
        found = self._of_each(len(texts), lambda encoder: encoder.encode_document(texts))
        if progress:
            progress(len(texts))
        return found

    def encode_passages(
        self, passages: Sequence[Passage], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return [1, dim] for each passage, from its text and its image.

        Raises:
            DataError: an image cannot be decoded.
        """
        found = self._of_each(len(passages), lambda encoder: encoder.encode_passages(passages))
        if progress:
            progress(len(passages))
        return found

    def encode_query(self, queries: Sequence[Sequence[Span]]) -> Encoded:
        """Return [1, dim] for each query, [0, dim] where no encoder has a vector of it."""
        return self._of_each(len(queries), lambda encoder: encoder.encode_query(queries))

    def encode_question(self, questions: Sequence[Question]) -> Encoded:
        """Return [1, dim] for each question, from its text and its image.

        Raises:
            DataError: an image cannot be decoded.
        """
        texts = [[Span(with_instruction(q.instruction or "", q.question))] for q in questions]
        return self._of_each(
            len(questions),
            lambda encoder: (
                encoder.encode_question(questions)
                if encoder.supports_images
                else encoder.encode_query(texts)
            ),
        )

    def _of_each(self, items: int, encode: Callable[[Encoder], Sequence[Vectors]]) -> Encoded:
        """Return the concatenated vectors of what each encoder gives for the items."""
        rows = np.zeros((items, self.dim), np.float32)
        start = truncated = tokens = neutralised = 0
        for part, encoder, weight in zip(
            self.config.encoders, self._encoders, self._weights, strict=True
        ):
            made = checked_vectors(encoder, encode(encoder), items)
            for row, array in zip(rows, made, strict=True):
                if len(array) > 1:
                    raise UserError(
                        f"{_WHY}: it joins encoders with one vector per item; {part.name} has "
                        f"{len(array)} of one"
                    )
                if len(array):
                    unit = array[0] / np.linalg.norm(array[0].astype(np.float32))
                    row[start : start + encoder.dim] = weight * unit
            start += encoder.dim
            truncated += made.stats.truncated
            tokens += made.stats.tokens
            neutralised += made.stats.neutralised
        lengths = np.linalg.norm(rows, axis=1)
        rows[lengths > 0] /= lengths[lengths > 0, None]
        arrays = [row[None][: int(length > 0)] for row, length in zip(rows, lengths, strict=True)]
        return Encoded(arrays, truncated=truncated, tokens=tokens, neutralised=neutralised)


def _where(number: int) -> str:
    return f"retriever.encoder.encoders.{number}"
