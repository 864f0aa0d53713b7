"""Objects in images, found by detection models of transformers.

Two kinds: models with classes of their own (DETR, RT-DETR, YOLOS, ...), and models that look for
labels given in words (Grounding DINO, OWLv2, ...).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ravqa.core.checkpoints import load_config, load_model, load_processor
from ravqa.core.errors import UserError
from ravqa.core.failures import failures
from ravqa.core.records import Description, Region
from ravqa.core.settings import Text
from ravqa.describers.models import ModelDescriber
from ravqa.images.decode import open_for_library

if TYPE_CHECKING:
    from PIL.Image import Image

_WHY = "the describer objects"
_WORD_SCORE = 0.25  # Grounding DINO: words of a label of which it is less sure are left out

_MARKS = re.compile(r"\[[A-Z]+\]|\.(?=\s|$)")


class ObjectDetector(ModelDescriber):
    """A describer that finds objects: labels, boxes and scores.

    Images go through the model one by one: padding to the largest of several would change boxes.
    """

    class Config(ModelDescriber.Config):
        """Options, besides those of the base class.

        Attributes:
            labels: what a model that looks for labels given in words looks for.
            min_score: objects of which the model is less sure are left out.
            most: most objects of an image; the surest are kept.
        """

        labels: tuple[Text, ...] = ()
        min_score: float = Field(default=0.3, ge=0, le=1)
        most: int = Field(default=40, ge=1)

    WHY = _WHY
    VERSION = "objects/1"
    COUNTING = frozenset({"labels", "min_score", "most"})

    config: Config

    def _load(self, path: str) -> None:
        from transformers import AutoModelForObjectDetection, AutoModelForZeroShotObjectDetection

        kind = type(load_config(path, trust_remote_code=False))
        self._in_words = kind in AutoModelForZeroShotObjectDetection._model_mapping
        auto = (
            AutoModelForZeroShotObjectDetection if self._in_words else AutoModelForObjectDetection
        )
        if not self._in_words and kind not in AutoModelForObjectDetection._model_mapping:
            raise UserError(f"{_WHY}: {self.config.model} is not a model that detects objects")
        if self._in_words and not self.config.labels:
            raise UserError(f"{_WHY}: {self.config.model} finds what `labels` name: set labels")
        if self.config.labels and not self._in_words:
            raise UserError(f"{_WHY}: {self.config.model} has classes of its own: leave out labels")
        self._processor = load_processor(path, trust_remote_code=False)
        self._model: Any = load_model(auto, path, trust_remote_code=False)
        self._model.to(self._device).eval()

    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return the objects of each image, the surest first; boxes are in pixels of the image.

        Raises:
            DataError: an image cannot be decoded.
            PromptError: the model cannot process one.
        """
        out = []
        for image in images:
            opened = open_for_library(image)
            with failures(_WHY):
                found = self._found(opened)
            out.append(Description(objects=tuple(found)))
        return out

    def _found(self, image: Image) -> list[Region]:
        import torch

        words = {"text": [list(self.config.labels)]} if self._in_words else {}
        inputs = self._processor(images=image, return_tensors="pt", **words).to(self._device)
        with torch.inference_mode():
            outputs = self._model(**inputs)
        given = {
            "input_ids": inputs.get("input_ids"),
            "threshold": self.config.min_score,
            "text_threshold": min(_WORD_SCORE, self.config.min_score),
            "target_sizes": [(image.height, image.width)],
            "text_labels": [list(self.config.labels)],
        }
        [result] = _read_out(self._processor, outputs, given, in_words=self._in_words)
        names = self._names(result)
        rows = zip(names, result["boxes"].tolist(), result["scores"].tolist(), strict=True)
        found = [
            Region(name.strip(), _within(box, image), score=round(score, 4))
            for name, box, score in rows
            if name.strip() and name != "N/A"  # COCO's numbers without a class, in DETR
        ]
        found = [one for one in found if one.box[0] < one.box[2] and one.box[1] < one.box[3]]
        found.sort(key=lambda region: -(region.score or 0.0))
        return found[: self.config.most]

    def _names(self, result: Mapping[str, Any]) -> list[str]:
        if self._in_words:
            return [label_of(text or "", self.config.labels) for text in result["text_labels"]]
        classes = self._model.config.id2label
        return [str(classes[i]) for i in result["labels"].tolist()]


def label_of(text: str, labels: Sequence[str]) -> str:
    """Return the label that a model means by the words that it returns.

    Grounding DINO returns those of its words that fit an object: some of one label or several, with
    the marks between and after them.

    Returns:
        The longest label that is in the words, else the words.
    """
    words = " ".join(_MARKS.sub(" ", text).split())
    there = [label for label in labels if f" {label.lower()} " in f" {words.lower()} "]
    return max(there, key=len, default=words)


def _read_out(processor: Any, outputs: Any, given: Mapping[str, Any], *, in_words: bool) -> Any:
    """Return what a processor's method finds in a model's outputs, one mapping per image.

    The methods of different processors take different arguments of the same names.
    """
    kind = "grounded_object" if in_words else "object"
    method = getattr(processor, f"post_process_{kind}_detection")
    wanted = inspect.signature(method).parameters
    return method(outputs, **{name: value for name, value in given.items() if name in wanted})


def _within(box: Sequence[float], image: Image) -> tuple[float, float, float, float]:
    """Return a box cut off at the image's edges, in hundredths of a pixel."""
    xmin, ymin, xmax, ymax = box
    across = [round(min(max(x, 0.0), float(image.width)), 2) for x in (xmin, xmax)]
    down = [round(min(max(y, 0.0), float(image.height)), 2) for y in (ymin, ymax)]
    return across[0], down[0], across[1], down[1]
