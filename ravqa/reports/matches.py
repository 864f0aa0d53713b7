"""For a report: matches of a question's words and image patches with words of its passages.

The retriever's and the describer's models are loaded for it, but no index is opened: the few
passages that are shown are encoded again.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ravqa.collections.trust import listed
from ravqa.core.errors import UserError
from ravqa.core.factory import Session, part_config
from ravqa.core.progress import Progress
from ravqa.core.records import Passage, Question
from ravqa.core.settings import Part, PipelineConfig, validate
from ravqa.encoders.base import Label
from ravqa.pipeline import Pipeline
from ravqa.reports.page import render, safe_json, utf16
from ravqa.reports.photos import data_url
from ravqa.reports.run import Run
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever
from ravqa.retrievers.explain import Explanation, QueryPart

QUESTIONS = 10
"""Default number of explained questions."""
PASSAGES = 3
"""Number of first passages per question that are explained."""
_ROOM = 4_000_000  # bytes of these; with long passages or many patches, fewer questions fit
_WHERE = "config.yaml"
_SIDE = 384  # side of the image below the patches, in pixels
_LEVELS = 127  # levels of a product in a byte


Id = int | str
Matches = dict[str, dict[str, Any]]
"""Matches shown on the page, by question id."""


def matches(
    run: Run,
    shown: Sequence[Id],
    count: int,
    progress: Progress | None = None,
    session: Session | None = None,
) -> Matches:
    """Return the matches of the first `count` questions that are shown.

    Raises:
        UserError: a retriever without late interaction, or without the run's passages; a missing
            model.
    """
    _check_own(run)
    if run.corpus is None:
        raise UserError("--matches needs the run's passages: give them with --corpus")
    if not _asked(run, shown):
        raise UserError("--matches needs the run's questions: give their folder with --data")
    if not _explainable(_config(run).retriever):
        raise UserError("--matches: only a late-interaction retriever has matches to show")
    return _matches(run, _asked(run, shown)[:count], progress, session)


def default_matches(
    run: Run,
    shown: Sequence[Id],
    progress: Progress | None = None,
    session: Session | None = None,
) -> tuple[Matches, str | None]:
    """Return the matches of the first shown questions, if any; or why there are none.

    A report must not fail because of something not requested.
    """
    try:
        _check_own(run)
        asked = _asked(run, shown)[:QUESTIONS]
        if run.corpus is None or not asked or not _explainable(_config(run).retriever):
            return {}, None
        return _matches(run, asked, progress, session, _ROOM), None
    except UserError as e:
        return {}, f"What matched in retrieval is not shown: {e}."


def match_page(pipeline: Pipeline, question: Question, passages: Sequence[Passage]) -> str | None:
    """Return a page of what of a question and its photo matched in passages.

    Like a report, it loads nothing and runs only its own script. In a frame, it posts
    {height: pixels} to the page around it.

    Args:
        pipeline: its retriever found the passages.
        question: with the description of its image.
        passages: the best first.

    Returns:
        HTML; None if the retriever has no matches to show, or there is no passage.

    Raises:
        DataError: an image cannot be decoded.
    """
    retriever = pipeline.retriever.explainer
    if retriever is None or not passages:
        return None
    data = safe_json(_question(retriever, question, passages))
    scripts = ("match.js", "match_page.js")
    return render("match.html.jinja", scripts=scripts, title="What matched", data=data)


def _asked(run: Run, shown: Sequence[Id]) -> list[Id]:
    return [q for q in shown if q in run.questions and run.main[q]["hits"]]


def _check_own(run: Run) -> None:
    """Raise UserError if third-party settings name parts of the retriever."""
    built = ("pipeline.describer", "pipeline.retriever")
    if withheld := [s for s in run.withheld if s.path.startswith(built)]:
        raise UserError(
            f"the run was made elsewhere, and names {listed(withheld)}: --trust-settings allows it"
        )


def _settings(run: Run) -> dict[str, Any]:
    keep = {"describer", "retriever", "reader", "top_k"}
    return {key: value for key, value in run.config["pipeline"].items() if key in keep}


def _config(run: Run) -> PipelineConfig:
    return validate(PipelineConfig, _settings(run), _WHERE)


def _explainable(part: Part) -> bool:
    """Return whether a retriever, or one fused into it, can be explained; load no model."""
    config = part_config(RETRIEVERS, part, f"{_WHERE}: retriever")
    return RETRIEVERS.get(part.name).explains(config)


def _matches(
    run: Run,
    asked: Sequence[Id],
    progress: Progress | None,
    session: Session | None,
    room: float = math.inf,
) -> Matches:
    assert run.corpus is not None
    pipeline = Pipeline.from_config(
        _settings(run), where=_WHERE, retrieval_only=True, session=session
    )
    retriever = pipeline.retriever.explainer
    assert retriever is not None  # `_explainable`
    found: Matches = {}
    for done, name in enumerate(asked, 1):
        [question] = pipeline.describe([run.questions[name]])
        hits = run.main[name]["hits"][:PASSAGES]
        passages = [passage for hit in hits if (passage := run.corpus.get(hit[0])) is not None]
        if not passages:
            continue
        shown = _question(retriever, question, passages)
        room -= len(json.dumps(shown))
        if room < 0:
            break
        found[str(name)] = shown
        if progress:
            progress("matches of the report", done, len(asked))
    return found


def _question(
    retriever: Retriever, question: Question, passages: Sequence[Passage]
) -> dict[str, Any]:
    explained = retriever.explain_passages(question, passages)
    shown: dict[str, Any] = {"passages": [_passage(explanation) for explanation in explained]}
    if question.image is not None:
        shown |= _seen(retriever, question.image)
    for given, explanation, passage in zip(shown["passages"], explained, passages, strict=True):
        if passage.image is not None and any(label.place for label in explanation.labels):
            given |= _seen(retriever, passage.image)
    return shown


def _seen(retriever: Retriever, source: Path | bytes) -> dict[str, Any]:
    """Return an image as the model sees it and its rows and columns of patches, if it has any."""
    seen = retriever.seen_image(source)
    if seen is None:
        return {}
    image, (rows, columns) = seen
    large = image.resize((_SIDE, _SIDE * image.height // image.width))
    return {"image": data_url(large), "grid": [rows, columns]}


def _passage(explanation: Explanation) -> dict[str, Any]:
    return {
        "id": explanation.passage_id,
        "score": round(explanation.score, 6),
        "text": explanation.text,
        "labels": [_label(label, explanation.text) for label in explanation.labels],
        "parts": [_part(part) for part in explanation.parts],
    }


def _part(part: QueryPart) -> dict[str, Any]:
    """Return products as bytes, row by row, scaled so that the largest magnitude is 127."""
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
