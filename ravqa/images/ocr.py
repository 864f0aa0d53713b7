"""Text in images, read by RapidOCR: PaddleOCR's detector and recogniser in ONNX, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ravqa.core.checkpoints import reading
from ravqa.core.errors import import_extra
from ravqa.core.failures import failures
from ravqa.core.locations import file_digest
from ravqa.core.records import TextLine
from ravqa.images.decode import open_for_library

EXTRA = "ocr"
MODULES = ("rapidocr", "onnxruntime")
MIN_SCORE = 0.5
"""Default of `min_score`."""
SIDE = 736
"""Default of `side`."""


class OCR:
    """Reads the lines of text in images.

    The weights come with the package rapidocr: one recogniser for Latin, Chinese and Japanese
    script. Another recogniser in ONNX format reads others.

    Attributes:
        weights: a hash of each file of weights.
    """

    def __init__(
        self,
        why: str,
        *,
        min_score: float = MIN_SCORE,
        side: int = SIDE,
        recogniser: Path | None = None,
        threads: int | None = None,
        turns: bool = False,
    ):
        """Find the weights; those of the package are loaded with the first image.

        Args:
            why: who reads, for messages.
            min_score: lines whose mean probability per letter is lower are left out.
            side: pixels to which the shorter side of smaller images is scaled up to find lines.
            recogniser: an ONNX file that reads another script; None for the one of the package.
            threads: threads of the computation; None for one per core.
            turns: whether lines that seem to be upside down are turned. What decides it errs on
                some upright lines, which are then garbled or lost.

        Raises:
            MissingExtraError: rapidocr or onnxruntime is not installed.
            UserError: the recogniser is no ONNX model.
        """
        library, runtime = (import_extra(module, EXTRA, why=why) for module in MODULES)
        if recogniser is not None:  # else images with text would fail, one by one
            with reading(why, str(recogniser), str(recogniser)):
                runtime.InferenceSession(recogniser, providers=["CPUExecutionProvider"])
        values: dict[str, Any] = {
            "Global.log_level": "critical",
            "Global.text_score": min_score,
            "Det.limit_side_len": side,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads or -1,
            "Global.use_cls": turns,
        }
        files = sorted((Path(str(library.__file__)).parent / "models").glob("*.onnx"))
        if recogniser is not None:
            values["Rec.model_path"] = str(recogniser)
            files.append(recogniser)
        self._why = why
        self._engine: Any = library.RapidOCR(params=values)
        self.weights: Sequence[str] = [file_digest(file) for file in files]

    def lines(self, image: Path | bytes) -> tuple[TextLine, ...]:
        """Return the lines in an image in reading order; boxes are in pixels of the upright image.

        Raises:
            DataError: the image cannot be decoded.
            PromptError: RapidOCR cannot process it, for instance because it is far too thin.
        """
        import numpy as np

        pixels = np.asarray(open_for_library(image))[:, :, ::-1]  # as OpenCV has them: BGR
        with failures(self._why):
            found = self._engine(np.ascontiguousarray(pixels))
        if found.boxes is None:
            return ()
        lines = [
            TextLine(text.strip(), _around(corners.tolist()), round(float(score), 4))
            for text, corners, score in zip(found.txts, found.boxes, found.scores, strict=True)
        ]
        return in_reading_order([line for line in lines if line.text])


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
