"""Records that the stages pass to each other: frozen, light, without heavy imports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError

RETRIEVED, READ = "retrieved", "read"
"""Names in results for the passages before reranking, and for those in the prompts."""

_MIN_ATTRIBUTE = 0.05  # RA-VQA's prompts name an object's attributes with higher scores, ...
_MAX_ATTRIBUTES = 3  # ... and no more than three of them


def _check_texts(what: str, texts: Iterable[Any]) -> None:
    """Raise DataError if a text holds half a character: nothing can encode, hash or write it."""
    for text in texts:
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as e:
                raise DataError(
                    f"{what}: the text {text[max(e.start - 20, 0) : e.end]!r} is not UTF-8 at "
                    f"character {e.start + 1} (a name or argument in another encoding, or a text "
                    "that is cut inside a character)"
                ) from None


@dataclass(frozen=True, slots=True)
class Tag:
    """One class that a classifier sees in an image.

    Attributes:
        names: the class's names (synonyms), the most common first.
        probability: softmax probability of the class, 0 to 1.
        kinds: more general words for it ("lemur", "primate", ..., "animal"), nearest first.
    """

    names: tuple[str, ...]
    probability: float
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Region:
    """A box in an image and what a detector sees in it.

    Attributes:
        box: xmin, ymin, xmax, ymax in pixels.
        attributes: words with their scores ("red", 0.9), as the detector returns them.
        ocr: strings read inside the box.
        score: how sure the detector is, 0 to 1; None if it is not known.
    """

    label: str
    box: tuple[float, float, float, float]
    attributes: tuple[tuple[str, float], ...] = ()
    ocr: tuple[str, ...] = ()
    score: float | None = None

    @property
    def name(self) -> str:
        """The label after its attributes, as RA-VQA's prompts have it ("red wooden chair")."""
        words = [word for word, score in self.attributes if score > _MIN_ATTRIBUTE]
        return " ".join([*words[:_MAX_ATTRIBUTES], self.label])


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of text in an image.

    Attributes:
        box: xmin, ymin, xmax, ymax in pixels.
        score: how sure its reader is of it, 0 to 1.
    """

    text: str
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, slots=True)
class Description:
    """A description of an image as text; every part is optional.

    Attributes:
        ocr: strings read in the whole image, each once.
        objects: everything that a detector found.
        regions: the boxes chosen to be encoded as separate images (FLMR's ROIs).
        lines: where the strings of `ocr` stand, in reading order, if the describer says so.
    """

    tags: tuple[Tag, ...] = ()
    caption: str = ""
    ocr: tuple[str, ...] = ()
    objects: tuple[Region, ...] = ()
    regions: tuple[Region, ...] = ()
    lines: tuple[TextLine, ...] = ()

    @property
    def object_names(self) -> tuple[str, ...]:
        """Names of the objects with their attributes, each once."""
        return tuple(dict.fromkeys(region.name for region in self.objects))

    @property
    def texts(self) -> tuple[str, ...]:
        """Strings read in the whole image and inside of objects, each once."""
        inside = (text for region in self.objects for text in region.ocr)
        return tuple(dict.fromkeys([*self.ocr, *inside]))


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image.

    Attributes:
        question_id: unique in its dataset; kept as in the file (int or str).
        image: path of the image (possibly inside a zip or tar archive, see `ravqa.images`), its
            encoded bytes, or None for a text-only question.
        answers: reference answers; ten annotators' strings for OK-VQA.
        answer_eval: InfoSeek's evaluation forms: strings, or one {"wikidata", "range"}.
        pos_item_ids: ids of passages known to be relevant, where a dataset has them.
        pos_articles: names of the articles known to be relevant: URL, entity or title, whichever
            the dataset has (see `Passage.article_names`).
        choices: the answers to choose from, in order; empty for an open question.
        correct_choice: position of the right one in `choices`, from 0; None if it is not known.

    Raises:
        DataError: a text holds half a character, or the right choice is none of the choices.
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
    pos_articles: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    correct_choice: int | None = None

    def __post_init__(self) -> None:
        """Refuse texts that cannot be encoded, and a right choice that does not exist."""
        texts = (self.question_id, self.question, self.image_id, self.instruction, *self.answers)
        _check_texts("question", (*texts, *self.choices))
        if self.correct_choice is not None and not 0 <= self.correct_choice < len(self.choices):
            raise DataError(
                f"the right choice is number {self.correct_choice}, counted from 0, but there are "
                f"{len(self.choices)} choices"
            )

    @property
    def right_choice(self) -> str | None:
        """The text of the right choice, if it is known."""
        return None if self.correct_choice is None else self.choices[self.correct_choice]


@dataclass(frozen=True, slots=True)
class Passage:
    """One unit of the corpus, which is retrieved and read.

    Attributes:
        title: title of the article, prepended to the text.
        entity: the subject of the article: a Wikidata id ("Q42") or a name.
        section: heading of the section that the passage comes from.
        article: id of the article that the passage comes from.

    Raises:
        DataError: a text holds half a character.
    """

    passage_id: str
    text: str
    title: str | None = None
    image: Path | None = None
    entity: str | None = None
    url: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    section: str | None = None
    article: str | None = None

    def __post_init__(self) -> None:
        """Refuse texts that cannot be encoded."""
        names = (self.title, self.section, self.article, self.entity, self.url)
        _check_texts("passage", (self.passage_id, self.text, *names))

    @property
    def content(self) -> str:
        """Title, section and text as one string, to be encoded, read and searched for answers."""
        heading = " - ".join(part for part in (self.title, self.section) if part)
        return ": ".join(part for part in (heading, self.text) if part)

    @property
    def article_names(self) -> tuple[str, ...]:
        """All identifiers of the article; `Question.pos_articles` contains one of them."""
        names = (self.article, self.url, self.entity, self.title)
        return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage.

    Attributes:
        score: higher is better; a reranker's, if one gave it.
        rank: position in the ranking, from 1.
        retrieval_score: the retriever's score, if `score` is a reranker's.
    """

    passage_id: str
    score: float
    rank: int
    retrieval_score: float | None = None

    @property
    def as_retrieved(self) -> float:
        """The retriever's score, even after reranking."""
        return self.score if self.retrieval_score is None else self.retrieval_score


@dataclass(frozen=True, slots=True)
class Draft:
    """One generated answer.

    Attributes:
        text: the short answer extracted from `raw`.
        raw: the reader's unmodified output.
        log_prob: sum of the generated tokens' log-probabilities (natural log), if known.
        tokens: number of generated tokens that `log_prob` sums over.
        passage_ids: the passages in the prompt.
        prompt_hash: hash of the full prompt.
        score: the value that the decision rule compared, if it compares.
        prior: probability of the passage before reading, p(z | x), if the rule weighs passages.
        posterior: the same after the chosen answer y was read, p(z | x, y), if the rule has it.
        thinking: what the reader's model thought before it answered; blank if it did not.
    """

    text: str
    raw: str
    log_prob: float | None = None
    tokens: int = 0
    passage_ids: tuple[str, ...] = ()
    prompt_hash: str = ""
    score: float | None = None
    prior: float | None = None
    posterior: float | None = None
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class Pictures:
    """What became of the pictures of a question's passages.

    Attributes:
        shown: number of pictures in its prompts, those of several passages counted once a prompt.
        cut: number of passages whose picture was left out because it did not fit.
        unread: passages whose picture cannot be read, each with the reason.
    """

    shown: int = 0
    cut: int = 0
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """The chosen answer, the drafts it was chosen from, and the rule that chose it.

    Attributes:
        text: the short answer.
        drafts: one per prompt, the best passage first.
        decision: the rule's name.
        raw: the reader's unmodified output for the chosen answer.
        log_prob: log-probability (natural log) of the answer under the rule, if it has one.
        cut: number of passages that did not fit into the reader's context and were omitted.
        neutralised: number of control tokens in question and passages that became plain text.
        joint: whether the answer was decoded from several prompts together: it then belongs to no
            single one, and the drafts are copies of it.
        pictures: what became of the passages' pictures; None if prompts show none.
        self_check: probability by the reader itself that the answer is right, if it was asked.
    """

    text: str
    drafts: Sequence[Draft]
    decision: str
    raw: str = ""
    log_prob: float | None = None
    cut: int = 0
    neutralised: int = 0
    joint: bool = False
    pictures: Pictures | None = None
    self_check: float | None = None

    @property
    def passage_ids(self) -> tuple[str, ...]:
        """The ids of the passages used in prompts, in the order of the drafts."""
        return tuple(dict.fromkeys(i for draft in self.drafts for i in draft.passage_ids))
