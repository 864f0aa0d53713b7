"""The query text of a question: its words, and what the image shows (text-based vision).

FLMR (Lin et al. 2023, arXiv 2309.17133) appends captions and objects to the question. Here a query
is a weighted mean of forms, each scored on its own:

- `question`: the question's words alone;
- `replaced`: "this animal" replaced by the name of what the image shows ("In which country does
  the koala live?"), for the most probable tags, each weighted by its probability; of a class's
  several names, the best-scoring one counts;
- `appended`: the question followed by the tags, each tag's tokens weighted by its probability;
- `captioned`: the question followed by the image's caption;
- `described`: the question followed by several parts of the image's description (tags, caption,
  objects, text in the image), the tokens of each weighted by the part's weight;
- `choices`: the question followed by its choices, if it has any.

If the question names the kind of thing it asks about ("this bird"), tags of that kind, by
WordNet's hypernyms, are preferred.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from ravqa.core.records import Description, Question, Tag
from ravqa.core.settings import Strict
from ravqa.encoders.base import Span

_SUBJECT = re.compile(
    r"\b(?:this|that|these|those)\s+(?:(?:kind|type|sort|breed|species)\s+of\s+)?([a-z]+)\b",
    re.IGNORECASE,
)


class Parts(Strict):
    """Weights of the parts of an image's description in the form `described`; 0 omits one.

    Attributes:
        tags: names of what a classifier sees; each also counts by its probability.
        caption: the caption.
        objects: names of what a detector found, with attributes.
        ocr: text read in the image.
    """

    tags: float = Field(default=0.0, ge=0)
    caption: float = Field(default=1.0, ge=0)
    objects: float = Field(default=1.0, ge=0)
    ocr: float = Field(default=1.0, ge=0)


class QueryText(Strict):
    """Weights of the forms, and how many tags and names they use.

    Attributes:
        question, replaced, appended, captioned: weight of the form: the question alone, with the
            thing's name in it, with all tags after it, with the caption after it; 0 omits it.
        described: weight of the form: the question with `parts` of the description after it.
        parts: weights of the parts in the form `described`.
        choices: weight of the form: the question with its choices after it.
        tags: most tags that are used.
        min_share: tags after the first with less than this share of the used tags' probability are
            left out: they cost as much as the others and can change little.
        names: most names of a tag that are tried.
        prefer_kind: of the tags, use those of the kind that the question names, if there are any.
    """

    question: float = Field(default=0.0, ge=0)
    replaced: float = Field(default=1.0, ge=0)
    appended: float = Field(default=0.5, ge=0)
    captioned: float = Field(default=0.0, ge=0)
    described: float = Field(default=0.0, ge=0)
    parts: Parts = Parts()
    choices: float = Field(default=0.0, ge=0)
    tags: int = Field(default=3, ge=1)
    min_share: float = Field(default=0.1, ge=0, le=1)
    names: int = Field(default=4, ge=1)
    prefer_kind: bool = True


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a query: its score is that of the best alternative, times `weight`."""

    weight: float
    alternatives: tuple[tuple[Span, ...], ...]


def forms(question: Question, config: QueryText) -> list[Form]:
    """Return the forms of a question's query; their weights sum to 1.

    Forms whose tags, caption, parts or choices are missing are left out; if none remains, the
    question's words alone are the query.
    """
    text = question.question
    subject = _SUBJECT.search(text)
    tags = _tags(question, subject.group(1) if subject else None, config)
    found: list[Form] = []
    if config.question:
        found.append(Form(config.question, ((Span(text),),)))
    if tags and config.replaced:
        total = sum(tag.probability for tag in tags)
        for tag in tags:
            names = tuple((_replaced(text, subject, name),) for name in tag.names[: config.names])
            found.append(Form(config.replaced * tag.probability / total, names))
    if tags and config.appended:
        spans = (Span(text), *(Span(tag.names[0], tag.probability) for tag in tags))
        found.append(Form(config.appended, (spans,)))
    caption = question.description.caption if question.description else ""
    if caption and config.captioned:
        found.append(Form(config.captioned, ((Span(text), Span(caption)),)))
    if config.described and (spans := _parts(question, tags, config.parts)):
        found.append(Form(config.described, ((Span(text), *spans),)))
    if question.choices and config.choices:
        listed = Span(", ".join(question.choices))
        found.append(Form(config.choices, ((Span(text), listed),)))
    if not found:
        found.append(Form(1.0, ((Span(text),),)))
    total = sum(form.weight for form in found)
    return [Form(form.weight / total, form.alternatives) for form in found]


def _parts(question: Question, tags: Sequence[Tag], weights: Parts) -> tuple[Span, ...]:
    """Return the parts of the image's description that it has and that count."""
    seen = question.description or Description()
    spans = [Span(tag.names[0], weights.tags * tag.probability) for tag in tags]
    spans.append(Span(seen.caption, weights.caption))
    spans.append(Span(", ".join(seen.object_names), weights.objects))
    spans.append(Span(" ".join(seen.texts), weights.ocr))
    return tuple(span for span in spans if span.weight and span.text.strip())


def _replaced(text: str, subject: re.Match[str] | None, name: str) -> Span:
    if subject is None:
        return Span(f"{text} {name}")
    return Span(f"{text[: subject.start()]}the {name}{text[subject.end() :]}")


def _tags(question: Question, kind: str | None, config: QueryText) -> Sequence[Tag]:
    tags = question.description.tags if question.description else ()
    if kind and config.prefer_kind:
        kind = kind.lower()
        singular = kind[:-1] if kind.endswith("s") else kind
        fitting = tuple(
            tag
            for tag in tags
            if any(word in (kind, singular) for word in (*tag.kinds, *tag.names))
        )
        tags = fitting or tags
    tags = tags[: config.tags]
    total = sum(tag.probability for tag in tags)
    # The first tag always stays: of many equally probable tags none would be left.
    return [t for i, t in enumerate(tags) if i == 0 or t.probability >= config.min_share * total]
