"""Training examples: questions with relevant passages, and passages that are surely not.

A passage is relevant to a question if the data say so, if it is of an article that they say so of,
or if it holds an answer (the rule of PRRecall): it is never used as a negative.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import file_digest
from ravqa.core.records import Passage, Question
from ravqa.core.settings import fingerprint
from ravqa.corpora.corpus import Corpus
from ravqa.datasets.base import DatasetRequest, Problems, load_dataset
from ravqa.metrics.evqa import single_answers
from ravqa.metrics.prrecall import answer_ranks
from ravqa.training.example_file import FEATURES, StoredFeatures, read_examples
from ravqa.training.negatives import read_negatives
from ravqa.training.sources import SourceConfig, TrainingSource

_REMEMBERED = 1_000_000  # pairs of answers and passages
_PSEUDO = 100  # pseudo-positives of a question


@dataclass(frozen=True, slots=True)
class Example:
    """A question with passages, by their ids.

    Attributes:
        positives: relevant passages.
        negatives: hard negatives, the hardest first, none of them relevant.
        scores: a reranker's scores of some of the passages, if there are any.
    """

    question: Question
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


class Relevance:
    """Which of a corpus's passages are relevant to a question; each pair is looked at once."""

    def __init__(self, corpus: Mapping[str, Passage]):
        self._corpus = corpus
        self._held: dict[tuple[tuple[str, ...], str], bool] = {}
        self._found: dict[str, Sequence[int]] = {}

    def relevant(self, question: Question, passage_id: str, positives: Iterable[str] = ()) -> bool:
        """Return whether a passage is relevant.

        Args:
            positives: passages that are known to be.
        """
        if passage_id in positives or passage_id in question.pos_item_ids:
            return True
        articles = question.pos_articles
        if articles and not set(articles).isdisjoint(self._corpus[passage_id].article_names):
            return True
        return self.holds(question, passage_id)

    def holds(self, question: Question, passage_id: str) -> bool:
        """Return whether a passage holds an answer to a question."""
        answers = answers_of(question)
        if not answers:
            return False
        key = (tuple(answers), passage_id)
        if key not in self._held:
            if len(self._held) > _REMEMBERED:
                self._held.clear()
            self._held[key] = bool(answer_ranks([self._corpus[passage_id].content], answers))
        return self._held[key]

    def holding(self, question: Question) -> list[str]:
        """Return all passages that hold an answer, in the corpus's order."""
        answers = answers_of(question)
        found = sorted({i for answer in answers for i in self._places(answer)})
        ids = [self._ids[i] for i in found]
        texts = [self._corpus[passage_id].content for passage_id in ids]
        return [ids[rank - 1] for rank in answer_ranks(texts, answers)]

    def _places(self, answer: str) -> Sequence[int]:
        """Return the numbers of the passages that may hold an answer."""
        wanted = answer.strip().lower()
        if wanted not in self._found:
            self._found[wanted] = tuple(self._search(wanted)) if wanted else ()
        return self._found[wanted]

    def _search(self, wanted: str) -> Iterator[int]:
        text = self._text
        place = text.find(wanted)
        while place >= 0:
            number = bisect.bisect_right(self._starts, place) - 1
            yield number
            if number + 1 == len(self._starts):
                return
            place = text.find(wanted, self._starts[number + 1])

    @cached_property
    def _ids(self) -> list[str]:
        return list(self._corpus)

    @cached_property
    def _texts(self) -> list[str]:
        return [self._corpus[passage_id].content.lower() for passage_id in self._ids]

    @cached_property
    def _text(self) -> str:
        # One long text is searched a hundred times faster than many short ones.
        return "\0".join(self._texts)

    @cached_property
    def _starts(self) -> list[int]:
        starts, place = [], 0
        for text in self._texts:
            starts.append(place)
            place += len(text) + 1
        return starts


@dataclass(frozen=True)
class Examples:
    """The examples of one source, and the passages that they name.

    Attributes:
        name: of the source.
        pseudo: number of examples whose positives hold an answer, but are not known to be relevant.
        broken: number of questions that were left out because they or their images are broken.
        without: number of questions that were left out because no passage is relevant to them.
        fingerprint: changes with questions, passages and negatives.
    """

    name: str
    corpus: Mapping[str, Passage]
    examples: Sequence[Example]
    ratio: float
    instruction: str | None
    pseudo: int
    broken: int
    without: int
    fingerprint: str
    relevance: Relevance

    @property
    def facts(self) -> dict[str, Any]:
        """What results tell about the source."""
        return {
            "source": self.name,
            "examples": len(self.examples),
            "passages": len(self.corpus),
            "pseudo_positives": self.pseudo,
            "left_out_broken": self.broken,
            "left_out_without_positives": self.without,
            "with_hard_negatives": sum(bool(e.negatives) for e in self.examples),
        }

    @cached_property
    def ids(self) -> Sequence[str]:
        """The ids of the corpus, in its order."""
        return list(self.corpus)


def load_examples(config: SourceConfig, where: str) -> Examples:
    """Read a source.

    Args:
        where: the setting that names it, for messages.

    Raises:
        UserError: no passages; no question has a relevant passage.
        DataError: a broken record (file and line are named).
    """
    problems = Problems(config.on_error)
    if config.file is not None:
        corpus, examples, print_ = _of_file(config, where)
    else:
        corpus, examples, print_ = _of_dataset(config, where, problems)
    relevance = Relevance(corpus)
    kept: list[Example] = []
    pseudo = 0
    for number, example in enumerate(examples):
        positives = tuple(i for i in example.positives if i in corpus)
        if config.positives == "pseudo" or (config.positives == "auto" and not positives):
            positives = _some(relevance.holding(example.question), number)
            pseudo += bool(positives)
        if not positives:
            continue
        negatives = tuple(
            i for i in example.negatives if not relevance.relevant(example.question, i, positives)
        )
        kept.append(Example(example.question, positives, negatives, example.scores))
    if not kept:
        hint = (
            ""
            if config.positives != "known"
            else " (positives: auto also takes those that hold an answer)"
        )
        raise UserError(
            f"{where}: none of the {len(examples)} questions of {config.name} has a relevant "
            f"passage among the {len(corpus)} of its corpus{hint}"
        )
    found = Examples(
        config.name,
        corpus,
        kept,
        float(len(kept)),
        config.instruction,
        pseudo,
        len(problems.found),
        len(examples) - len(kept),
        print_,
        relevance,
    )
    if isinstance(config, TrainingSource):
        if config.ratio is not None:
            found = replace(found, ratio=config.ratio)
        if config.negatives is not None:
            found = _with_negatives(found, config.negatives)
    return found


def answers_of(question: Question) -> Sequence[str]:
    """Return the answers that PRRecall looks for in passages."""
    return single_answers(question.answers, question.question_type)


def _some(ids: Sequence[str], seed: int) -> tuple[str, ...]:
    """Return all ids, or `_PSEUDO` of them at random, in order."""
    if len(ids) <= _PSEUDO:
        return tuple(ids)
    chosen = np.random.default_rng(seed).choice(len(ids), size=_PSEUDO, replace=False)
    return tuple(ids[int(i)] for i in sorted(chosen))


def _of_dataset(
    config: SourceConfig, where: str, problems: Problems
) -> tuple[Mapping[str, Passage], list[Example], str]:
    assert config.dataset is not None
    request = DatasetRequest(
        data=config.data,
        split=config.split,
        limit=config.limit,
        problems=problems,
        options=config.options,
    )
    try:
        dataset = load_dataset(config.dataset, request)
    except UserError as e:  # its messages name the options of `ravqa run`
        said = str(e).replace("--on-error skip", "on_error: skip")
        raise type(e)(f"{where}: {said.replace('--dataset-option', 'options')}") from None
    corpus = Corpus.read(*config.corpus) if config.corpus else dataset.corpus
    if corpus is None:
        raise UserError(f"{where}: {config.dataset} comes without passages: set corpus")
    examples = [Example(q, q.pos_item_ids) for q in dataset.questions]
    if not examples:
        raise UserError(f"{where}: {config.dataset} has no questions")
    return corpus, examples, fingerprint(dataset.fingerprint, corpus.fingerprint, _of(config))


def _of_file(config: SourceConfig, where: str) -> tuple[Mapping[str, Passage], list[Example], str]:
    assert config.file is not None
    corpus = Corpus.read(*config.corpus) if config.corpus else None
    rows, passages = read_examples(config.file, corpus, config.limit)
    if not rows:
        raise UserError(f"{where}: {config.file} holds no examples")
    examples = [Example(r.question, r.positives, r.negatives, r.scores) for r in rows]
    print_ = corpus.fingerprint if corpus is not None else ""
    extras = [r.question.extra for r in rows] + [p.extra for p in passages.values()]
    files = {e[FEATURES].file for e in extras if isinstance(e.get(FEATURES), StoredFeatures)}
    digests = [file_digest(file) for file in sorted({config.file, *files})]
    return passages, examples, fingerprint(digests, print_, _of(config))


def _of(config: SourceConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include={"limit", "positives", "split", "options"})


def _with_negatives(found: Examples, path: Path) -> Examples:
    """Return examples with the negatives of a file or a run in front of their own."""
    mined, print_ = read_negatives(path)
    known = {str(example.question.question_id) for example in found.examples}
    if not known & mined.keys():
        raise UserError(f"{path}: it has no question of {found.name}")
    examples = []
    for example in found.examples:
        question = example.question
        rows = mined.get(str(question.question_id), [])
        if missing := next((i for i, _ in rows if i not in found.corpus), None):
            raise DataError(
                f"{path}: question {question.question_id}: the passage {missing!r} is not in the "
                f"corpus of {found.name}"
            )
        hard = [i for i, _ in rows if not found.relevance.relevant(question, i, example.positives)]
        scores = {**example.scores, **{i: s for i, s in rows if s is not None}}
        negatives = tuple(dict.fromkeys([*hard, *example.negatives]))
        examples.append(Example(question, example.positives, negatives, scores))
    return replace(found, examples=examples, fingerprint=fingerprint(found.fingerprint, print_))
