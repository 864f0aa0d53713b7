"""The pipeline: from questions to answers, in batches of records.

    describer -> retriever -> rerankers -> answerer (prompt, decision, reader)

`Pipeline.from_config` builds one from a YAML file's settings; `ask` answers a single question.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ravqa.answering.answerer import Answerer, load_template
from ravqa.answering.examples import ExamplePool, make_example
from ravqa.answering.prompt import Example
from ravqa.answering.rules import answering_config, answering_with
from ravqa.core.accounts import Cost, Usage, current_account
from ravqa.core.cache import SharedTime, Use, measured
from ravqa.core.contracts import raised_by
from ravqa.core.errors import (
    DataError,
    PromptError,
    ServerError,
    UserError,
    broken,
    checked_choices,
)
from ravqa.core.factory import Session, build_part, part_config
from ravqa.core.failures import by_halves
from ravqa.core.outcomes import Failure, or_empty, succeeded
from ravqa.core.progress import Progress
from ravqa.core.records import RETRIEVED, Answer, Hit, Passage, Question
from ravqa.core.registry import table
from ravqa.core.settings import Part, PipelineConfig, fingerprint, load_pipeline, validate
from ravqa.corpora.corpus import Corpus
from ravqa.describers import DESCRIBERS
from ravqa.describers.cached import CachedDescriber
from ravqa.images.decode import as_source
from ravqa.readers import READERS
from ravqa.readers.base import Reader
from ravqa.rerankers.base import Reranker, checked_rankings
from ravqa.rerankers.build import build_rerankers, check_rerankers
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever, checked_hits

Ranked = Sequence[Hit] | Failure
"""A question's hits, best first, or why it has none."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Result of one reranking stage for a batch of questions.

    Attributes:
        name: name of the reranker, numbered if several have the same ("threshold-2").
        hits: hits per question, best first; a failure if this or an earlier stage failed on the
            question.
        use: resources used for the batch, and what came from the cache.
    """

    name: str
    hits: Sequence[Ranked]
    use: Use


@dataclass(frozen=True, slots=True)
class Response:
    """Result of `Pipeline.ask`: the answer, and the passages found for it.

    Attributes:
        hits, passages: those after reranking, best first.
        stages: hits by stage: "retrieved", and each reranker's name.
        seconds: wall-clock time by stage, in order: "describe", "retrieve", each reranker's name,
            "answer", "unaided"; those that the pipeline has and that were done.
        unaided: what the reader answers without passages, or why it gives no answer; None if it was
            not asked.
        question: the question with the description of its image.
        usage: the tokens that models took for all of this, what was kept in caches included; None
            unless whoever asked counted them (`ravqa.core.accounts.tokens`), and all are known.
    """

    answer: Answer | None
    hits: Sequence[Hit]
    passages: Sequence[Passage]
    stages: Mapping[str, Sequence[Hit]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    unaided: Answer | Failure | None = None
    question: Question | None = None
    usage: Usage | None = None


class Pipeline:
    """Stages in order; each takes a batch of records and returns records in the same order.

    Args:
        retriever: finds passages.
        answerer: answers from the passages; None for retrieval only.
        describer: describes images; None for no descriptions.
        top_k: passages retrieved per question.
        rerankers: stages applied to the hits before they are read, by name, in order.
        examples: pool of examples for few-shot prompts; None for no examples.

    Attributes:
        config: settings that it was built from; None for one put together from parts.
        name: file or name that they were read from.
        overrides: changes to that file, as "key.path=value".
        turn: held while a part works that is for one thread at a time (`thread_safe`); pipelines
            of one session share it, as they share parts.
    """

    name: str = "pipeline"
    overrides: Sequence[str] = ()

    def __init__(
        self,
        retriever: Retriever,
        answerer: Answerer | None = None,
        describer: CachedDescriber | None = None,
        *,
        top_k: int = 20,
        rerankers: Mapping[str, Reranker] | None = None,
        examples: ExamplePool | None = None,
        config: PipelineConfig | None = None,
    ):
        self.retriever = retriever
        self.answerer = answerer
        self.describer = describer
        self.top_k = top_k
        self.rerankers = dict(rerankers or {})
        self.examples = examples
        self.config = config
        self.corpus: Corpus | None = None
        self._shown: dict[str, Example] = {}  # by question id, those needed so far
        self._times: defaultdict[str, SharedTime] = defaultdict(SharedTime)
        self.turn: AbstractContextManager[object] = threading.RLock()
        self._counted: defaultdict[str, Counter[str]] = defaultdict(Counter)

    @classmethod
    def from_config(
        cls,
        settings: Mapping[str, Any],
        *,
        where: str = "pipeline",
        retrieval_only: bool = False,
        session: Session | None = None,
    ) -> Pipeline:
        """Build every part that the settings name; heavy libraries are loaded here.

        Args:
            where: name of the file, for messages.
            retrieval_only: build no answerer, and no reader except for rerankers that ask one.
            session: pipelines built with the same session share their models.

        Raises:
            UserError: invalid settings, a missing package or model.
        """
        config = check_settings(settings, where)
        answerer = examples = None

        readers: dict[str, Reader] = {}  # rerankers that ask the same reader share it

        def reader(part: Part | None = None) -> Reader:
            part = part or config.reader
            key = fingerprint(part.model_dump())
            if key not in readers:
                readers[key] = build_part(READERS, part, f"{where}: reader", session=session)
            return readers[key]

        if not retrieval_only:
            answering = answering_config(config.answering, f"{where}: answering")
            answerer = Answerer(answering, reader())
            examples = ExamplePool(answering.examples) if answering.examples else None
        describer = None
        if config.describer is not None:
            part = build_part(DESCRIBERS, config.describer, f"{where}: describer", session=session)
            describer = CachedDescriber(part)
        retriever = build_part(RETRIEVERS, config.retriever, f"{where}: retriever", session=session)
        rerankers = build_rerankers(config.reranking, where, reader, session=session)
        made = cls(
            retriever,
            answerer,
            describer,
            top_k=config.top_k,
            rerankers=rerankers,
            examples=examples,
            config=config,
        )
        made.name = where
        if session is not None:
            made.turn = session.turn
        return made

    @classmethod
    def load(
        cls,
        name: str,
        *overrides: str,
        retrieval_only: bool = False,
        session: Session | None = None,
    ) -> Pipeline:
        """Build a pipeline from a YAML file, or a name in `pipelines/`.

        Args:
            overrides: "key.path=value".
            retrieval_only, session: as for `from_config`.

        Raises:
            UserError: see `from_config`.
        """
        settings, where = load_pipeline(name, overrides)
        made = cls.from_config(
            settings, where=where, retrieval_only=retrieval_only, session=session
        )
        made.name, made.overrides = name, overrides
        return made

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Make `corpus` searchable (encoded once, then opened from the cache).

        Raises:
            UserError: the retriever needs a corpus and there is none.
        """
        self.corpus = corpus
        self._shown.clear()
        with raised_by("retriever", self.retriever, "from prepare"):
            self.retriever.prepare(corpus, progress)

    def describe(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Question]:
        """Return questions with the description of their image; each image is described once.

        Raises:
            DataError: an image cannot be decoded.
        """
        if self.describer is None:
            return list(questions)
        rows = [i for i, q in enumerate(questions) if q.image is not None and q.description is None]
        seen = self.describer.describe_questions([questions[i] for i in rows], progress)
        out = list(questions)
        for i, found in zip(rows, seen, strict=True):
            out[i] = replace(out[i], description=found)
        return out

    def retrieve(
        self, questions: Sequence[Question], retriever: Retriever | None = None
    ) -> list[list[Hit] | Failure]:
        """Return at most `top_k` passages per question, by another retriever if one is given.

        If the retriever fails on a question, its place holds a failure; others are not affected.
        """
        used = retriever or self.retriever

        def find(rows: Sequence[int]) -> list[list[Hit]]:
            found = used.retrieve([questions[i] for i in rows], self.top_k)
            return checked_hits(used, found, len(rows), self.top_k)

        with nullcontext() if used.thread_safe else self.turn:
            return by_halves(range(len(questions)), find, f"the retriever {type(used).__name__}")

    def rerank(self, questions: Sequence[Question], hits: Sequence[Ranked]) -> list[Stage]:
        """Return each reranker's stage, in order; the last one's hits are to be read.

        A question on which a reranker fails does not affect the others, and skips later rerankers.

        Raises:
            DataError: an image cannot be decoded.
        """
        stages: list[Stage] = []
        for name, reranker in self.rerankers.items():
            time = self._times[name]
            with (
                measured(reranker.stores, shared=time, items=len(questions)) as use,
                nullcontext() if reranker.thread_safe else self.turn,
            ):
                before = Counter(reranker.counts())
                hits = self._reranked(reranker, questions, hits)
                if not reranker.thread_safe:  # else other threads count meanwhile
                    self._counted[name].update(Counter(reranker.counts()) - before)
            if reranker.reader is not None and current_account() is not None:
                kept = Cost.of_kept(use.found, reranker.reader.prices)
                use.costs[None] = use.costs.get(None, Cost()) + kept
            stages.append(Stage(name, hits, use))
        return stages

    def _reranked(
        self, reranker: Reranker, questions: Sequence[Question], hits: Sequence[Ranked]
    ) -> list[Ranked]:
        rows = [i for i, found in enumerate(hits) if not isinstance(found, Failure)]
        candidates = [self.passages(or_empty(hits[i])) for i in rows]
        asked = [questions[i] for i in rows]

        def rerank(part: Sequence[int]) -> list[list[Hit] | Failure]:
            given = [candidates[i] for i in part]
            return checked_rankings(
                reranker, reranker.rerank([asked[i] for i in part], given), given
            )

        new = by_halves(range(len(rows)), rerank, f"the reranker {type(reranker).__name__}")
        out: list[Ranked] = list(hits)
        for i, found in zip(rows, new, strict=True):
            out[i] = found
        return out

    def reranker_counts(self) -> dict[str, dict[str, int]]:
        """Return by reranker what it counted; without what it did for other pipelines, if shared.

        One that is shared and `thread_safe` counts for all of them.
        """
        return {
            name: part.counts()
            if part.thread_safe
            else {what: self._counted[name][what] for what in part.counts()}
            for name, part in self.rerankers.items()
        }

    def answer(
        self, questions: Sequence[Question], hits: Sequence[Ranked]
    ) -> list[Answer | Failure]:
        """Return one answer per question, read from its hits, in order.

        A question that cannot be answered does not affect the others: its place holds a failure,
        that of its hits if these already failed.

        Raises:
            ValueError: the pipeline has no reader.
        """
        if self.answerer is None:
            raise ValueError("this pipeline was built for retrieval only")
        rows = [i for i, found in enumerate(hits) if not isinstance(found, Failure)]
        asked = [questions[i] for i in rows]
        found = [self.passages(or_empty(hits[i])) for i in rows]
        out: list[Any] = list(hits)
        examples = self.shown_examples(asked)
        with nullcontext() if self.answerer.thread_safe else self.turn:
            answers = self.answerer.answer(asked, found, examples)
        for i, answer in zip(rows, answers, strict=True):
            out[i] = answer
        return out

    def shown_examples(self, asked: Sequence[Question]) -> list[Example]:
        """Return the examples for few-shot prompts, described and with their passages.

        Args:
            asked: questions that must not be examples, nor share an image with one. A run passes
                all of its questions at once, so that its examples stay the same.

        Raises:
            UserError: too few examples.
            DataError: the image of one cannot be decoded.
        """
        if self.examples is None:
            return []
        with self.turn:
            return self._examples(self.examples, asked)

    def _examples(self, pool: ExamplePool, asked: Sequence[Question]) -> list[Example]:
        chosen = pool.choose(asked)
        new = self.describe([q for q in chosen if str(q.question_id) not in self._shown])
        count = pool.config.passages
        hits: Sequence[Ranked] = [[] for _ in new]
        if count and self.corpus is not None:
            try:
                hits = self.retrieve(new)
                stages = self.rerank(new, hits)  # their passages are found like all others
                hits = list(map(succeeded, stages[-1].hits if stages else hits))
            except UserError as e:  # rankings from a file do not have them
                raise UserError(
                    f"answering.examples: {e} (answering.examples.passages=0 shows examples "
                    "without passages)"
                ) from None
        for question, found in zip(new, hits, strict=True):
            passages = [passage for _, passage in self.passages(or_empty(found))]
            self._shown[str(question.question_id)] = make_example(question, passages, count)
        return [self._shown[str(question.question_id)] for question in chosen]

    def passages(self, hits: Sequence[Hit]) -> list[tuple[Hit, Passage]]:
        """Return each hit with its passage.

        Raises:
            ValueError: the pipeline is not prepared.
            UserError: the corpus has no such passage.
        """
        if not hits:
            return []
        if self.corpus is None:
            raise ValueError("call prepare(corpus) first")
        try:
            return [(hit, self.corpus[hit.passage_id]) for hit in hits]
        except KeyError as e:
            raise broken(
                self.retriever, "retriever", f"it returned the unknown passage {e}"
            ) from None

    def ask(
        self,
        question: str | Question,
        image: Path | str | bytes | None = None,
        *,
        choices: Sequence[str] = (),
    ) -> Response:
        """Answer one question about one image.

        Args:
            question: its text, or a record, which includes its image and choices.
            choices: the answers to choose from.

        Raises:
            DataError: the image cannot be decoded.
            PromptError, ServerError: a stage fails on the question.
        """
        if isinstance(question, str):
            given = checked_choices(choices)
            question = Question(0, question, as_source(image), choices=given)
        *_, response = self.ask_in_steps(question)
        return response

    def ask_in_steps(
        self,
        question: Question,
        *,
        unaided: bool = False,
        written: Callable[[str], object] | None = None,
    ) -> Iterator[Response]:
        """Answer one question; yield what is known once passages are found, and after each answer.

        Args:
            unaided: whether to answer without passages too, for comparison.
            written: called with each piece of the answer's generation, if it can be streamed
                (`Answerer.check_streams`). What it raises ends the generation.

        Raises:
            DataError, PromptError, ServerError: as `ask`.
        """
        watch = _Watch()
        [record], ranked = self._found([question], watch)
        response = self._response(record, {name: hits[0] for name, hits in ranked.items()}, watch)
        yield response
        if self.answerer is None:
            return
        watch.start()
        if written is not None and self.streams:
            answer = self._written(record, response.hits, written)
        else:
            answer = succeeded(self.answer([record], [response.hits])[0])
        watch.note("answer")
        response = replace(response, answer=answer, seconds=watch.so_far())
        yield response
        if unaided:
            watch.start()
            [alone] = self.answer([record], [[]])
            watch.note("unaided")
            yield replace(response, unaided=alone, seconds=watch.so_far())

    def ask_all(
        self, questions: Sequence[Question], *, answering: bool = True
    ) -> list[Response | Failure]:
        """Answer several questions, each stage in one batch; one response per question, in order.

        A question that fails does not affect the others. `Response.seconds` are those of the batch.

        Args:
            answering: whether to answer; else passages alone are found.

        Raises:
            UserError: a failure that is not one question's fault.
        """
        watch = _Watch()
        try:
            records, ranked = self._found(questions, watch)
        except DataError as e:  # an image
            if len(questions) == 1:
                return [Failure.of(e)]
            return [self.ask_all([q], answering=answering)[0] for q in questions]
        out: list[Response | Failure] = []
        for i, record in enumerate(records):
            try:
                own = {name: hits[i] for name, hits in ranked.items()}
                out.append(self._response(record, own, watch))
            except (PromptError, ServerError) as e:
                out.append(Failure.of(e))
        if self.answerer is None or not answering:
            return out
        given = [found if isinstance(found, Failure) else found.hits for found in out]
        watch.start()
        answers = self.answer(records, given)
        watch.note("answer")
        for i, (found, answer) in enumerate(zip(out, answers, strict=True)):
            if isinstance(found, Response):
                done = replace(found, seconds=watch.so_far())
                out[i] = replace(done, answer=answer) if isinstance(answer, Answer) else answer
        return out

    @property
    def streams(self) -> bool:
        """Return whether answers can be streamed."""
        try:
            if self.answerer is not None:
                self.answerer.check_streams()
        except UserError:
            return False
        return self.answerer is not None

    def _written(
        self, record: Question, hits: Sequence[Hit], written: Callable[[str], object]
    ) -> Answer:
        """Return an answer, and hand on its pieces as they are generated."""
        assert self.answerer is not None
        examples = self.shown_examples([record])
        with nullcontext() if self.answerer.thread_safe else self.turn:
            stream = self.answerer.stream(record, self.passages(hits), examples)
            try:
                for piece in stream:
                    written(piece)
            finally:
                stream.close()
        assert stream.answer is not None
        return stream.answer

    def _found(
        self, questions: Sequence[Question], watch: _Watch
    ) -> tuple[list[Question], dict[str, Sequence[Ranked]]]:
        """Return questions with descriptions, and their hits by stage."""
        records = self.describe(questions)
        if self.describer is not None:
            watch.note("describe")
        retrieved = self.retrieve(records)
        ranked: dict[str, Sequence[Ranked]] = {RETRIEVED: retrieved}
        watch.note("retrieve")
        for stage in self.rerank(records, retrieved):
            ranked[stage.name] = stage.hits
            watch.seconds[stage.name] = stage.use.seconds
        return records, ranked

    def _response(self, record: Question, ranked: Mapping[str, Ranked], watch: _Watch) -> Response:
        """Return what is known of one question once passages are found.

        Raises:
            PromptError, ServerError: a stage failed on it.
        """
        stages = {name: succeeded(hits) for name, hits in ranked.items()}
        *_, hits = stages.values()
        passages = [passage for _, passage in self.passages(hits)]
        return Response(None, hits, passages, stages, watch.so_far(), question=record)

    def answering_by(self, decision: str, passages: int) -> Pipeline:
        """Return this pipeline with another decision rule, and the same models.

        Args:
            decision: a rule's name (`ravqa.answering.rules`).
            passages: number of passages that it reads; rules of one passage read one.

        Raises:
            UserError: an unknown rule, or one that the reader cannot serve.
            ValueError: the pipeline has no reader.
        """
        if self.answerer is None:
            raise ValueError("this pipeline was built for retrieval only")
        settings = self.answerer.config.model_dump(exclude_unset=True)
        config = answering_with(settings, decision, passages)
        made = copy.copy(self)
        if config != self.answerer.config:
            made.answerer = Answerer(config, self.answerer.reader)
        return made

    @property
    def supports_images(self) -> bool:
        """Return whether describer, retriever, rerankers or reader look at questions' images."""
        return (
            self.describer is not None
            or self.retriever.supports_images
            or any(part.supports_images for part in self.rerankers.values())
            or (self.answerer is not None and self.answerer.reader.supports_images)
        )

    @property
    def problem(self) -> str:
        """Return why no question can be answered now, such as a reader's server that is gone."""
        return self.answerer.reader.problem() if self.answerer else ""

    @property
    def reads_at_once(self) -> int:
        """Return how many prompts are worked on at a time, if several threads may answer."""
        if self.answerer is None or not self.answerer.thread_safe:
            return 1
        return self.answerer.reader.workers

    @property
    def weights(self) -> dict[str, str]:
        """Return the weights' name per part; parts without weights are left out."""
        parts = {
            "describer": self.describer.weights if self.describer else "",
            "retriever": self.retriever.weights,
            "reranking": ", ".join(
                dict.fromkeys(r.weights for r in self.rerankers.values() if r.weights)
            ),
            "reader": self.answerer.reader.weights if self.answerer else "",
        }
        return {part: name for part, name in parts.items() if name}

    @property
    def switched_off(self) -> dict[str, str]:
        """Return what readers do not do because their models get it wrong, with reasons.

        What a reranker's reader does not do has the reranker's name before it ("vlm: batches"),
        unless it is the pipeline's own reader.
        """
        found = dict(self.answerer.reader.switched_off) if self.answerer else {}
        for name, part in self.rerankers.items():
            other = not self.answerer or part.switched_off is not self.answerer.reader.switched_off
            found |= {f"{name}: {what}": why for what, why in part.switched_off.items() if other}
        return found

    @property
    def fingerprints(self) -> dict[str, str]:
        """Return a hash per part: of weights and every setting that can change results."""
        parts = {
            "describer": self.describer.fingerprint if self.describer else "",
            "retriever": fingerprint(self.retriever.fingerprint, self.top_k),
            "reranking": fingerprint([[n, r.fingerprint] for n, r in self.rerankers.items()])
            if self.rerankers
            else "",
            "answerer": self.answerer.fingerprint if self.answerer else "",
            "examples": self.examples.fingerprint if self.examples else "",
        }
        return {part: value for part, value in parts.items() if value}


class _Watch:
    """Times the stages of one question."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """Begin a stage."""
        self._begun = time.perf_counter()

    def note(self, stage: str) -> None:
        """End a stage, and begin the next."""
        self.seconds[stage] = time.perf_counter() - self._begun
        self.start()

    def so_far(self) -> dict[str, float]:
        """Return a copy of the times."""
        return dict(self.seconds)


def check_settings(settings: Mapping[str, Any], where: str) -> PipelineConfig:
    """Validate a pipeline's settings, the parts' options included, without building anything.

    Raises:
        UserError: an unknown key, part or option, or a wrong type; the key's path is named.
    """
    config = validate(PipelineConfig, settings, where)
    answering = answering_config(config.answering, f"{where}: answering")
    load_template(answering)
    check_rerankers(config.reranking, where, answering.passages)
    parts: list[tuple[str, Any, Part | None]] = [
        ("describer", DESCRIBERS, config.describer),
        ("retriever", RETRIEVERS, config.retriever),
        ("reader", READERS, config.reader),
        ("judge", table("judges"), config.judge),
    ]
    for name, registry, part in parts:
        if part is not None:
            part_config(registry, part, f"{where}: {name}")
    return config
