"""The demo's answers as HTML. Whatever came from people, data or models is escaped by jinja2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ravqa.core.outcomes import Failure
from ravqa.core.records import Answer, Passage
from ravqa.core.texts import encodable, printable
from ravqa.metrics.prrecall import answer_spans
from ravqa.pipeline import Response
from ravqa.reports.photos import thumbnails

_TEMPLATES = Path(__file__).parent / "templates"
_STAGES = {
    "describe": "photo described",
    "retrieve": "passages found",
    "answer": "answered with passages",
    "unaided": "answered without",
}
_LONGEST = 1500
"""Letters of a passage that are shown."""
_PICTURES = 400_000
"""Bytes for the pictures of all passages."""


def source(name: str) -> str:
    """Return a file of `templates/`."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def head(stand_ins: Sequence[str]) -> str:
    """Return the top of the page.

    Args:
        stand_ins: the parts of the pipeline that stand in for larger ones.
    """
    return _render("head.html.jinja", stand_ins="; ".join(stand_ins))


def empty(sample: bool) -> str:
    """Return what is shown before the first question."""
    return _render("empty.html.jinja", sample=sample)


def waiting(what: str) -> str:
    """Return what is shown while there is nothing to show; `what` is being done."""
    return _render("waiting.html.jinja", what=what)


def failed(problem: str) -> str:
    """Return an error for people, one line."""
    return _render("failed.html.jinja", problem=problem)


def said(text: str, kind: str = "good") -> str:
    """Return one line about a verdict; kind "good" or "bad"."""
    return _render("said.html.jinja", text=text, kind=kind)


def answers(response: Response, blind: bool = False) -> str:
    """Return the answers with and without passages, and the time of each stage so far.

    Args:
        blind: whether there is a photo that no part of the pipeline looks at.
    """
    unaided = response.unaided
    total = sum(response.seconds.values()) or 1.0
    times = [
        (_STAGES.get(stage, stage), _time(seconds), seconds / total)
        for stage, seconds in response.seconds.items()
    ]
    return _render(
        "answers.html.jinja",
        answer=response.answer,
        blind=blind,
        unaided=None if isinstance(unaided, Failure) else unaided,
        failure=unaided.reason if isinstance(unaided, Failure) else None,
        times=times,
        total=None if unaided is None else _time(sum(response.seconds.values())),
    )


def passages(response: Response, k: int) -> str:
    """Return the passages that were found, at most k, with the answer marked in them."""
    pairs = list(zip(response.hits[:k], response.passages[:k], strict=True))
    pictures = [passage.image for _, passage in pairs if passage.image is not None]
    urls = dict(zip(pictures, thumbnails(pictures, _PICTURES), strict=True)) if pictures else {}
    read = set(response.answer.passage_ids) if response.answer else set()
    shown = [
        {
            "rank": hit.rank,
            "score": f"{hit.score:.3f}",
            "title": " - ".join(filter(None, (passage.title, passage.section))) or hit.passage_id,
            "pieces": _pieces(passage, response.answer),
            "read": hit.passage_id in read,
            "picture": urls.get(passage.image) if passage.image else None,
        }
        for hit, passage in pairs
    ]
    return _render("passages.html.jinja", passages=shown)


def match_frame(page: str | None) -> str:
    """Return the folded page of what matched, in a frame that cannot reach the page around it."""
    return _render("match.html.jinja", page=page)


def _pieces(passage: Passage, answer: Answer | None) -> Sequence[tuple[str, bool]]:
    """Return a passage's text in pieces, each with whether it is the answer."""
    text = passage.text[:_LONGEST] + ("…" if len(passage.text) > _LONGEST else "")
    wanted = [answer.text] if answer and answer.text.strip() else []
    pieces, at = [], 0
    for begin, end in answer_spans(text, wanted, "word") if wanted else ():
        pieces += [(text[at:begin], False), (text[begin:end], True)]
        at = end
    return [*pieces, (text[at:], False)]


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _render(template: str, **values: Any) -> str:
    return encodable(_environment().get_template(template).render(**values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    return environment
