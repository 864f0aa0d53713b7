"""Text in images, read by RapidOCR: PaddleOCR's detector and recogniser in ONNX, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ravqa.core.checkpoints import reading
from ravqa.core.errors import UserError, import_extra
from ravqa.core.failures import failures
from ravqa.core.locations import file_digest
from ravqa.core.records import Description, TextLine
from ravqa.core.settings import LocalPath, Strict, fingerprint
from ravqa.describers.base import Describer
from ravqa.images.decode import open_for_library

_EXTRA = "ocr"
_WHY = "the describer ocr"
_MODULES = ("rapidocr", "onnxruntime")


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
        """

        min_score: float = Field(default=0.5, ge=0, le=1)
        side: int = Field(default=736, ge=32, le=4096)
        recogniser: LocalPath | None = None
        threads: int | None = Field(default=None, ge=1)

        def packages(self) -> Sequence[tuple[str, str]]:
            """RapidOCR, and what it computes with."""
            return [(module, _EXTRA) for module in _MODULES]

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
        library, runtime = (import_extra(module, _EXTRA, why=_WHY) for module in _MODULES)
        if config.recogniser is not None:  # else photos with text would fail, one by one
            with reading(_WHY, str(config.recogniser), str(config.recogniser)):
                runtime.InferenceSession(config.recogniser, providers=["CPUExecutionProvider"])
        values: dict[str, Any] = {
            "Global.log_level": "critical",
            "Global.text_score": config.min_score,
            "Det.limit_side_len": config.side,
            "EngineConfig.onnxruntime.intra_op_num_threads": config.threads or -1,
        }
        weights = sorted((Path(str(library.__file__)).parent / "models").glob("*.onnx"))
        if config.recogniser is not None:
            values["Rec.model_path"] = str(config.recogniser)
            weights.append(config.recogniser)
        self._engine: Any = library.RapidOCR(params=values)
        self.weights = "RapidOCR" + (f" with {config.recogniser}" if config.recogniser else "")
        self.fingerprint = fingerprint(
            "ocr/1",
            config.model_dump(mode="json", exclude={"recogniser", "threads"}),
            [file_digest(file) for file in weights],
        )

    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return the lines of each image in reading order; boxes are in pixels of the upright one.

        Raises:
            DataError: an image cannot be decoded.
            PromptError: RapidOCR cannot process one, such as one that is far too thin.
        """
        return [self._described(image) for image in images]

    def _described(self, image: Path | bytes) -> Description:
        import numpy as np

        pixels = np.asarray(open_for_library(image))[:, :, ::-1]  # as OpenCV has them: BGR
        with failures(_WHY):
            found = self._engine(np.ascontiguousarray(pixels))
        if found.boxes is None:
            return Description()
        lines = [
            TextLine(text.strip(), _around(corners.tolist()), round(float(score), 4))
            for text, corners, score in zip(found.txts, found.boxes, found.scores, strict=True)
        ]
        read = in_reading_order([line for line in lines if line.text])
        return Description(ocr=tuple(dict.fromkeys(line.text for line in read)), lines=read)


def in_reading_order(lines: Sequence[TextLine]) -> tuple[TextLine, ...]:
    """Return lines from top to bottom, and from left to right where they stand side by side.

    Two lines stand side by side if the middles of their boxes differ by less than half of the lower
    box's height. Columns are read across.
    """
    rows: list[list[TextLine]] = []
    for line in sorted(lines, key=_middle):
        first = rows[-1][0] if rows else line
        if rows and _middle(line) - _middle(first) < min(_height(line), _height(first)) / 2:
            rows[-1].append(line)
        else:
            rows.append([line])
    return tuple(line for row in rows for line in sorted(row, key=lambda one: one.box[0]))


def _middle(line: TextLine) -> float:
    return (line.box[1] + line.box[3]) / 2


def _height(line: TextLine) -> float:
    return line.box[3] - line.box[1]


def _around(corners: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return the upright box around a line's four corners."""
    across, down = zip(*corners, strict=True)
    return (
        math.floor(min(across)),
        math.floor(min(down)),
        math.ceil(max(across)),
        math.ceil(max(down)),
    )
