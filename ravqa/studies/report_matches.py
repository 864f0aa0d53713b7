"""For a report: which words and image patches of a question matched which words of its passages."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ravqa.encoders.base import Label
from ravqa.errors import UserError
from ravqa.pipeline import Pipeline
from ravqa.records import Question
from ravqa.retrieval.explain import Explanation, QueryPart
from ravqa.studies.report_images import data_url
from ravqa.studies.report_page import utf16
from ravqa.studies.report_questions import Progress
from ravqa.studies.report_run import Run

PASSAGES = 3
"""Passages of a question that are explained: the first ones."""
_SIDE = 384  # pixels of the image below the patches
_LEVELS = 127  # of a product, in a byte


def matches(run: Run, count: int, progress: Progress | None = None) -> dict[str, dict[str, Any]]:
    """What the page shows of the first `count` questions' matches, by question id.

    Builds the run's describer and retriever: models are loaded.

    Raises:
        UserError: a retriever without late interaction, or without the run's passages; a model
            that is missing.
    """
    if run.corpus is None:
        raise UserError("--matches needs the run's passages: name them with --corpus")
    keep = {"describer", "retriever", "reader", "top_k"}
    settings = {key: value for key, value in run.pipeline.items() if key in keep}
    pipeline = Pipeline.from_config(settings, where="config.yaml", retrieval_only=True)
    retriever = _explaining(pipeline.retriever)
    retriever.prepare(run.corpus, progress)
    asked = [q for q in run.main if q in run.questions][:count]
    if not asked:
        raise UserError("--matches needs the run's questions: name their folder with --data")
    found = {}
    for done, name in enumerate(asked, 1):
        [question] = pipeline.describe([run.questions[name]])
        hits = (run.main[name].get("hits") or ())[:PASSAGES]
        found[str(name)] = _question(retriever, question, hits)
        if progress:
            progress("matches of the report", done, len(asked))
    return found


def _explaining(retriever: Any) -> Any:
    """The retriever, or the first one that it is fused of, which can be explained."""
    for part in (retriever, *getattr(retriever, "retrievers", ())):
        if hasattr(part, "explain"):
            return part
    raise UserError("--matches: only a late-interaction retriever has matches to show")


def _question(retriever: Any, question: Question, hits: Sequence[Sequence[Any]]) -> dict[str, Any]:
    explained: list[Explanation] = retriever.explain(question, [hit[0] for hit in hits])
    shown: dict[str, Any] = {"passages": [_passage(explanation) for explanation in explained]}
    seen = retriever.seen_image(question.image) if question.image is not None else None
    if seen is not None:
        image, (rows, columns) = seen
        large = image.resize((_SIDE, _SIDE * image.height // image.width))
        shown |= {"image": data_url(large), "grid": [rows, columns]}
    return shown


def _passage(explanation: Explanation) -> dict[str, Any]:
    return {
        "id": explanation.passage_id,
        "score": round(explanation.score, 6),
        "text": explanation.text,
        "labels": [_label(label, explanation.text) for label in explanation.labels],
        "parts": [_part(part) for part in explanation.parts],
    }


def _part(part: QueryPart) -> dict[str, Any]:
    """Products in bytes: -127 to 127 for the greatest absolute value, row by row."""
    scale = float(np.abs(part.products).max()) or 1.0
    levels = np.rint(part.products / scale * _LEVELS).astype(np.int8)
    return {
        "text": part.text,
        "weight": round(part.weight, 4),
        "labels": [_label(label, part.text) for label in part.labels],
        "scale": scale,
        "products": base64.b64encode(levels.tobytes()).decode(),
        "gains": [round(float(gain), 6) for gain in part.gains],
        "found": part.found.tolist(),
    }


def _label(label: Label, text: str) -> Mapping[str, Any]:
    shown: dict[str, Any] = {"kind": label.kind}
    if label.word is not None:
        shown["word"] = [utf16(text[:place]) for place in label.word]
    elif label.place is not None:
        shown["place"] = list(label.place)
    else:
        shown["name"] = label.name
    return shown
