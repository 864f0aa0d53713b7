"""Captions of images: by models that need no prompt, and by readers that are asked for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ravqa.answering.prompt import PromptTemplate
from ravqa.core.checkpoints import (
    load_config,
    load_image_processor,
    load_model,
    load_tokenizer,
)
from ravqa.core.errors import UserError
from ravqa.core.factory import Session, build_part
from ravqa.core.failures import failures
from ravqa.core.outcomes import Failure
from ravqa.core.records import Description, Question
from ravqa.core.settings import Part, Strict, TemplateName, fingerprint
from ravqa.describers.base import Describer
from ravqa.describers.models import ModelDescriber
from ravqa.images.decode import open_for_library
from ravqa.readers import READERS
from ravqa.readers.cached import CachedReader

_WHY = "the describer caption"
_ALONE = ("blip", "git", "vision-encoder-decoder")  # types of models that need no prompt


class Captioner(ModelDescriber):
    """A describer that captions images by a model that needs no prompt: BLIP, GIT, ViT-GPT2."""

    class Config(ModelDescriber.Config):
        """Options, besides those of the base class.

        Attributes:
            max_new_tokens: longest caption, in tokens.
            beams: beams of the search for the likeliest caption; 1 takes the likeliest token.
            batch_size: images that go through the model together.
        """

        max_new_tokens: int = Field(default=40, ge=1)
        beams: int = Field(default=1, ge=1)
        batch_size: int = Field(default=8, ge=1)

    WHY = _WHY
    VERSION = "caption/1"
    COUNTING = frozenset({"max_new_tokens", "beams"})

    config: Config

    def _load(self, path: str) -> None:
        from transformers import AutoModelForImageTextToText, VisionEncoderDecoderModel

        kind = load_config(path, trust_remote_code=False).model_type
        if kind not in _ALONE:
            raise UserError(
                f"{_WHY}: {self.config.model} ({kind}) is none of the models that need no prompt "
                f"({', '.join(_ALONE)}): the describer reader-caption asks a reader"
            )
        paired = kind == "vision-encoder-decoder"
        auto = VisionEncoderDecoderModel if paired else AutoModelForImageTextToText
        self._images = load_image_processor(path, trust_remote_code=False)
        self._tokenizer = load_tokenizer(path, trust_remote_code=False)
        self._model: Any = load_model(auto, path, trust_remote_code=False)
        self._model.to(self._device).eval()

    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return the caption of each image.

        Raises:
            DataError: an image cannot be decoded.
            PromptError: the model cannot process one.
        """
        import torch

        out: list[Description] = []
        for start in range(0, len(images), self.config.batch_size):
            batch = images[start : start + self.config.batch_size]
            opened = [open_for_library(image) for image in batch]
            with failures(_WHY), torch.inference_mode():
                pixels = self._images(images=opened, return_tensors="pt")["pixel_values"]
                tokens = self._model.generate(
                    pixel_values=pixels.to(self._device),
                    max_new_tokens=self.config.max_new_tokens,
                    num_beams=self.config.beams,
                    do_sample=False,
                )
                texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
            out += [Description(caption=" ".join(text.split())) for text in texts]
        return out


class ReaderCaptioner(Describer):
    """A describer that asks a reader with a prompt for what is in an image.

    A prompt that contains the question asks for what matters to it; another one is answered once
    for all questions about an image.
    """

    class Config(Strict):
        """Options.

        Attributes:
            reader: a reader that looks at images.
            prompt: a template in `prompts/`, or a file.
        """

        builds_parts: ClassVar[bool] = True

        reader: Part
        prompt: TemplateName = "caption"

    config: Config

    def __init__(self, config: Config, session: Session | None = None):
        """Build the reader and load the prompt.

        Raises:
            UserError: the reader cannot be built, or does not look at images; the prompt does not
                exist.
        """
        self.config = config
        self._template = PromptTemplate.load(config.prompt)
        inner = build_part(READERS, config.reader, "reader", session=session)
        if not inner.supports_images:
            raise UserError(
                f"the describer reader-caption: the reader {config.reader.name} does not look at "
                "images"
            )
        # Descriptions are kept themselves, but many at a time: a run that stops loses none.
        self._reader = CachedReader(inner)
        self.readers = [inner]
        self.weights = inner.weights
        self.fingerprint = fingerprint("reader-caption/1", inner.fingerprint, self._template.sha256)

    @property
    def reads_questions(self) -> bool:
        """Whether the prompt contains the question."""
        return not self._template.uses.isdisjoint({"question", "instruction"})

    def asked(self, question: Question) -> Any:
        """Return what the prompt contains of the question."""
        return [question.question, question.instruction] if self.reads_questions else None

    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return captions of images without a question.

        Raises:
            DataError: an image cannot be decoded.
            PromptError: the reader gives no answer.
        """
        return self.describe_questions([Question(0, "", image) for image in images])

    def describe_questions(self, questions: Sequence[Question]) -> list[Description]:
        """Return what the reader answers about each question's image.

        Raises:
            DataError: an image cannot be decoded.
            PromptError: the reader gives no answer.
            ServerError: it gives none to any.
        """
        prompts = [self._template.prompt(q, (), reader=self._reader)[0] for q in questions]
        out = []
        for found in self._reader.generate(prompts):
            if isinstance(found, Failure):
                reason = f"the describer reader-caption: {found.reason}"
                raise Failure(reason, fatal=found.fatal).error
            out.append(Description(caption=" ".join(found.text.split())))
        return out
