"""The text that FLMR reads of a question, and the marks that separate its parts.

RA-VQA (configs/okvqa/FLMR_base_preload_vision_features.jsonnet) writes a query as

    <BOQ> question <EOQ> <BOC> caption <EOC> <BOV> red wooden chair <SOV> dog <SOV> EXIT <EOV>

with the objects first, then the strings that were read in the image, and a passage as
<BOK> passage <EOK>. FLMR's example (examples/example_use_flmr.py) has the caption last. The marks
are tokens that were added to BERT's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ravqa.core.control_tokens import Mark
from ravqa.core.records import Description, Question
from ravqa.core.settings import Strict
from ravqa.encoders.base import Span

QUESTION = (Mark("<BOQ>"), Mark("<EOQ>"))
CAPTION = (Mark("<BOC>"), Mark("<EOC>"))
VISION = (Mark("<BOV>"), Mark("<EOV>"))
OBJECT_END = Mark("<SOV>")
PASSAGE = (Mark("<BOK>"), Mark("<EOK>"))
MARKS = (*QUESTION, *CAPTION, *VISION, OBJECT_END, *PASSAGE)


class TextPrompt(Strict):
    """The parts of an image's description in FLMR's query.

    Attributes:
        caption, objects, ocr: weight of the vectors of the caption, the objects with their
            attributes, and the text read in the image: 1 as published; 0 leaves the part out.
        caption_last: the caption stands after objects and text, as in FLMR's example; RA-VQA has
            it before them.
    """

    caption: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    objects: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    ocr: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    caption_last: bool = False

    @property
    def describes(self) -> bool:
        """Whether a query has any part of the description."""
        return bool(self.caption or self.objects or self.ocr)


def query_spans(question: Question, text: str, prompt: TextPrompt) -> list[Span]:
    """Return the marks and texts of a query, with the weights of their vectors.

    A question without a description has its own text alone. Parts that are blank keep their marks,
    as in RA-VQA.
    """
    spans = _marked(QUESTION, [Span(text)])
    if question.description is None:
        return spans
    caption, seen = _caption(question.description, prompt), _seen(question.description, prompt)
    return [*spans, *seen, *caption] if prompt.caption_last else [*spans, *caption, *seen]


def passage_spans(text: str) -> list[Span]:
    """Return the marks and the text of a passage."""
    return _marked(PASSAGE, [Span(text)])


def _caption(found: Description, prompt: TextPrompt) -> list[Span]:
    weight = prompt.caption
    return _marked(CAPTION, [Span(found.caption, weight)], weight) if weight else []


def _seen(found: Description, prompt: TextPrompt) -> list[Span]:
    if not (prompt.objects or prompt.ocr):
        return []
    inside: list[Span] = []
    if prompt.objects:
        for region in found.objects:
            inside += [Span(text, prompt.objects) for text in (region.name, OBJECT_END)]
    if prompt.ocr:
        inside += [Span(text, prompt.ocr) for text in found.ocr]
    return _marked(VISION, inside, max(prompt.objects, prompt.ocr))


def _marked(marks: tuple[Mark, Mark], inside: Sequence[Span], weight: float = 1.0) -> list[Span]:
    return [Span(marks[0], weight), *inside, Span(marks[1], weight)]
