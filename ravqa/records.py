"""The records that stages hand to each other. Frozen, light, nothing heavy imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Tag:
    """One thing a classifier sees in an image.

    Attributes:
        names: the class's names (synonyms), the commonest first.
        probability: softmax probability of the class, 0 to 1.
        kinds: more general words for it ("lemur", "primate", ..., "animal"), nearest first.
    """

    names: tuple[str, ...]
    probability: float
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """What is seen in an image, as text; every part is optional."""

    tags: tuple[Tag, ...] = ()
    caption: str = ""
    ocr: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image.

    Attributes:
        question_id: unique in its dataset; kept as the file has it (int or str).
        image: path of the image, its encoded bytes, or None for a text-only question.
        answers: reference answers; ten annotators' strings for OK-VQA.
        answer_eval: InfoSeek's evaluation forms: strings, or one {"wikidata", "range"}.
        pos_item_ids: ids of passages known to be relevant, where a dataset has them.
    """

    question_id: int | str
    question: str
    image: Path | bytes | None = None
    image_id: int | str | None = None
    answers: tuple[str, ...] = ()
    answer_eval: tuple[Any, ...] = ()
    instruction: str | None = None
    question_type: str | None = None
    split: str | None = None
    pos_item_ids: tuple[str, ...] = ()
    description: Description | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Passage:
    """One unit of the corpus: what is retrieved and read."""

    passage_id: str
    text: str
    title: str | None = None
    image: Path | None = None
    entity: str | None = None
    url: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> str:
        """Title and text as one string: what is encoded, read and searched for answers."""
        return f"{self.title}: {self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage: its id, its score (higher is better) and its rank from 1."""

    passage_id: str
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class Draft:
    """One generated answer.

    Attributes:
        text: the short answer extracted from `raw`.
        raw: what the reader generated, untouched.
        log_prob: sum of the generated tokens' log-probabilities (natural log), if known.
        tokens: number of generated tokens that `log_prob` sums over.
        passage_ids: the passages in the prompt.
        prompt_hash: hash of the full prompt.
        score: what the decision rule compared, if it compares.
    """

    text: str
    raw: str
    log_prob: float | None = None
    tokens: int = 0
    passage_ids: tuple[str, ...] = ()
    prompt_hash: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The chosen answer, the drafts it was chosen from, and the rule that chose it."""

    text: str
    drafts: Sequence[Draft]
    decision: str
