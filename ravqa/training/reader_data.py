"""The examples of a reader's training: the prompts of a pipeline, each with its target."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from ravqa.answering.answerer import Answerer
from ravqa.answering.config import SplitName
from ravqa.answering.fitting import Pair
from ravqa.answering.prompt import Example
from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
from ravqa.core.progress import Progress
from ravqa.core.records import Question
from ravqa.core.settings import LocalPath, Options, Strict, Text, fingerprint
from ravqa.corpora.corpus import Corpus
from ravqa.datasets.base import Dataset, DatasetRequest, OnError, Problems, load_dataset
from ravqa.datasets.checks import gather
from ravqa.images.decode import image_digest
from ravqa.pipeline import Pipeline, Ranked
from ravqa.readers.base import Prompt
from ravqa.retrievers.controls import NoRetriever
from ravqa.runs.conditions import control
from ravqa.training.targets import TargetConfig, candidates, target

Passages = Literal["retrieved", "oracle", "none"]
"""Which passages a prompt has: those that the pipeline finds, those of the oracle, or none."""

_CHUNK = 256  # questions whose passages are found between two reports of progress


class SourceConfig(Strict):
    """Questions with their passages.

    Attributes:
        dataset: name of the dataset.
        data: its folder or file; null for the bundled sample.
        split: its split; null for all of your own file.
        options: the dataset's own options.
        on_error: if a question or its image is broken: stop, or leave it out.
        corpus: files of passages; none for those that come with the dataset.
        limit: only the first so many questions.
        images: only questions about a part of the images. Every image has a number from 0 to 1
            which depends on its id alone; those from the first number up to the second are meant,
            so that [0, 0.8] and [0.8, 1] have no image in common.
        passages: which passages prompts have. Each question has the prompts of all that are named.
    """

    dataset: Text = "okvqa"
    data: LocalPath | None = None
    split: SplitName | None = "train"
    options: Options = Field(default_factory=dict)
    on_error: OnError = "fail"
    corpus: tuple[LocalPath, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    images: tuple[float, float] = (0.0, 1.0)
    passages: tuple[Passages, ...] = Field(default=("retrieved",), min_length=1)

    @field_validator("images")
    @classmethod
    def _check_images(cls, value: tuple[float, float]) -> tuple[float, float]:
        first, second = value
        if not 0 <= first < second <= 1:
            raise ValueError("two numbers from 0 to 1 are expected, the smaller one first")
        return value

    @field_validator("passages")
    @classmethod
    def _check_passages(cls, value: tuple[Passages, ...]) -> tuple[Passages, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a kind of passages is named twice")
        return value


@dataclass(frozen=True, slots=True)
class Source:
    """Questions and passages that were read.

    Attributes:
        where: the setting that names them, for messages.
        broken: number of questions that were left out because they or their images are broken.
    """

    where: str
    config: SourceConfig
    dataset: Dataset
    corpus: Corpus | None
    broken: int = 0

    @property
    def fingerprint(self) -> str:
        """A hash of questions, images and passages."""
        corpus = self.corpus.fingerprint if self.corpus is not None else None
        return fingerprint(self.dataset.fingerprint, list(self.config.images), corpus)


@dataclass(frozen=True, slots=True)
class Found:
    """Questions with their passages, best first, or why one has none.

    Attributes:
        examples: the examples of few-shot prompts.
    """

    questions: Sequence[Question]
    passages: Sequence[Sequence[Pair] | Failure]
    examples: Sequence[Example] = ()


@dataclass(frozen=True, slots=True)
class ReaderExample:
    """A prompt and what is to be answered.

    Attributes:
        held: whether a passage of the prompt holds the target.
        tokens: length of the target, its end mark included.
    """

    question_id: int | str
    prompt: Prompt
    target: str
    held: bool
    tokens: int = 0


def place_of_image(question: Question) -> float:
    """Return the number, from 0 up to 1, of a question's image; without one, of the question."""
    name = question.question_id if question.image_id is None else question.image_id
    digest = hashlib.sha256(str(name).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def read_source(config: SourceConfig, where: str) -> Source:
    """Read questions and passages, without looking at images.

    Args:
        where: the setting that names them, for messages.

    Raises:
        UserError: no such dataset, split or file; no questions.
        DataError: a broken record.
    """
    problems = Problems(config.on_error)
    request = DatasetRequest(
        data=config.data,
        split=config.split,
        limit=config.limit,
        problems=problems,
        need_images=False,
        options=config.options,
    )
    with _named(where):
        dataset = load_dataset(config.dataset, request)
        corpus = Corpus.read(*config.corpus) if config.corpus else dataset.corpus
    first, second = config.images
    questions: Sequence[Question] = dataset.questions
    if (first, second) != (0, 1):
        questions = [q for q in questions if first <= place_of_image(q) < second]
    if not questions:
        raise UserError(f"{where}: {dataset.label} has no questions about these images")
    chosen = replace(dataset, questions=questions)
    return Source(where, config, chosen, corpus, len(problems.found))


def check_images(source: Source) -> Source:
    """Return a source whose images can all be read; its fingerprint covers them.

    Raises:
        DataError: an image is missing or broken, unless such questions are left out.
    """
    dataset = source.dataset
    request = DatasetRequest(problems=Problems(source.config.on_error))
    with _named(source.where):
        questions, digest = gather(dataset.questions, request, dataset.label)
    chosen = replace(dataset, questions=questions, fingerprint=digest)
    return replace(source, dataset=chosen, broken=source.broken + len(request.problems.found))


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Put the setting that names the data before messages, which name options of `ravqa run`."""
    try:
        yield
    except UserError as e:
        said = str(e).replace("--on-error skip", "on_error: skip")
        raise type(e)(f"{where}: {said.replace('--dataset-option', 'options')}") from None


def check_apart(train: Sequence[Source], validation: Source) -> None:
    """Refuse validation with an image or a question that is trained on.

    Raises:
        UserError: there are some; they are counted.
    """
    trained = {mark for source in train for mark in _marks(source)}
    shared = trained & set(_marks(validation))
    if shared:
        raise UserError(
            f"{validation.where}: {len(shared)} of its images are also trained on: choose another "
            "split, or images: [0, 0.8] for the one and [0.8, 1] for the other"
        )


def _marks(source: Source) -> Iterator[tuple[str, str]]:
    """Yield what identifies the image, or else the text, of each question."""
    digests: dict[Path, str | None] = {}
    for question in source.dataset.questions:
        image = question.image
        if isinstance(image, Path):
            if image not in digests:
                digests[image] = image_digest(image)
            digest = digests[image]
        else:
            digest = None if image is None else hashlib.sha256(image).hexdigest()
        if digest is not None:
            yield "image", digest
        elif question.image_id is not None:
            yield source.dataset.name, str(question.image_id)
        else:
            yield "question", question.question


def find_passages(
    pipeline: Pipeline, source: Source, which: Passages, seed: int, progress: Progress
) -> Found:
    """Return questions, with descriptions of their images, and the passages to be read.

    The pipeline is prepared for the source's corpus.

    Raises:
        UserError: passages are needed, and there are none; a part cannot be used at all.
    """
    if which != "none" and not isinstance(pipeline.retriever, NoRetriever):
        if source.corpus is None:
            raise UserError(f"{source.where}: there are no passages: name a file as corpus")
        if pipeline.corpus is not source.corpus:
            pipeline.prepare(source.corpus, progress)
    questions = pipeline.describe(source.dataset.questions, progress)
    examples = pipeline.shown_examples(questions)
    retriever = pipeline.retriever if which == "retrieved" else None
    if retriever is None:
        retriever = control(which, pipeline, source.corpus, seed)
    passages: list[Sequence[Pair] | Failure] = []
    for start in range(0, len(questions), _CHUNK):
        part = questions[start : start + _CHUNK]
        hits: Sequence[Ranked] = pipeline.retrieve(part, retriever)
        if which == "retrieved":  # no reranker may change the others
            stages = pipeline.rerank(part, hits)
            hits = stages[-1].hits if stages else hits
        passages += [h if isinstance(h, Failure) else pipeline.passages(h) for h in hits]
        progress(f"finding passages ({which})", len(passages), len(questions))
    return Found(questions, passages, examples)


def make_examples(
    found: Found, answerer: Answerer, config: TargetConfig
) -> tuple[list[ReaderExample], Mapping[str, int]]:
    """Return the examples of questions, and how many prompts were left out, by reason."""
    left_out: Counter[str] = Counter()
    asked: list[tuple[Question, Sequence[Pair]]] = []
    for question, passages in zip(found.questions, found.passages, strict=True):
        if not candidates(question, config):
            left_out["no answer can be a target"] += 1
        elif isinstance(passages, Failure):
            left_out["no passages could be found"] += 1
        else:
            asked.append((question, passages))
    cases = answerer.cases([q for q, _ in asked], [p for _, p in asked], found.examples)
    examples = []
    for (question, pairs), case in zip(asked, cases, strict=True):
        if isinstance(case, Failure):
            left_out["the prompt could not be made"] += 1
            continue
        texts = {passage.passage_id: passage for _, passage in pairs}
        for prompt, ids in zip(case.prompts, case.passage_ids, strict=True):
            wanted = target(question, [texts[i] for i in ids], config)
            assert wanted is not None  # there are candidates
            answer, held = wanted
            if ids and not held and config.unsupported == "drop":
                left_out["no passage holds an answer"] += 1
            else:
                examples.append(ReaderExample(question.question_id, prompt, answer, held))
    return examples, left_out
