"""Text in images as their description (`ravqa.images.ocr`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from ravqa.core.errors import UserError
from ravqa.core.records import Description
from ravqa.core.settings import LocalPath, Strict, fingerprint
from ravqa.describers.base import Describer
from ravqa.images.ocr import EXTRA, MIN_SCORE, MODULES, OCR, SIDE

_WHY = "the describer ocr"


class OCRDescriber(Describer):
    """A describer that reads the lines of text in an image.

    The weights come with the package rapidocr: one recogniser for Latin, Chinese and Japanese
    script. Another recogniser in ONNX format reads others.
    """

    class Config(Strict):
        """Options.

        Attributes:
            min_score: lines whose mean probability per letter is lower are left out.
            side: pixels to which the shorter side of smaller images is scaled up to find lines;
                less is faster and misses small print.
            recogniser: an ONNX file that reads another script, its letters stored inside, as
                RapidOCR publishes them; null for the one of the package.
            threads: threads of the computation; null for one per core.
            turns: whether lines that seem to be upside down are turned. What decides it errs on
                some upright lines, which are then garbled or lost.
        """

        min_score: float = Field(default=MIN_SCORE, ge=0, le=1)
        side: int = Field(default=SIDE, ge=32, le=4096)
        recogniser: LocalPath | None = None
        threads: int | None = Field(default=None, ge=1)
        turns: bool = False

        def packages(self) -> Sequence[tuple[str, str]]:
            """RapidOCR, and what it computes with."""
            return [(module, EXTRA) for module in MODULES]

        def problems(self) -> Sequence[str]:
            """A recogniser's file that does not exist."""
            path = self.recogniser
            return [] if path is None or path.is_file() else [f"no such file: {path}"]

    config: Config

    def __init__(self, config: Config):
        """Find the weights; those of the package are loaded with the first image.

        Raises:
            MissingExtraError: rapidocr or onnxruntime is not installed.
            UserError: the recogniser's file does not exist, or is no ONNX model.
        """
        self.config = config
        for problem in config.problems():
            raise UserError(f"{_WHY}: {problem}")
        self._ocr = OCR(_WHY, **config.model_dump())
        self.weights = "RapidOCR" + (f" with {config.recogniser}" if config.recogniser else "")
        self.fingerprint = fingerprint(
            "ocr/1",
            config.model_dump(mode="json", exclude={"recogniser", "threads"}),
            self._ocr.weights,
        )

    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return the lines of each image in reading order; boxes are in pixels of the upright one.

        Raises:
            DataError: an image cannot be decoded.
            PromptError: RapidOCR cannot process one, such as one that is far too thin.
        """
        return [self._described(image) for image in images]

    def _described(self, image: Path | bytes) -> Description:
        lines = self._ocr.lines(image)
        return Description(ocr=tuple(dict.fromkeys(line.text for line in lines)), lines=lines)
