"""Third phase of a run: ask every question under every condition, writing samples at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from ravqa.core.accounts import shared_costs
from ravqa.core.ahead import in_order
from ravqa.core.cache import SharedTime, Use, claims_told, measured
from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure, first_failure, or_empty
from ravqa.core.records import RETRIEVED, Answer, Hit, Question
from ravqa.core.settings import fingerprint
from ravqa.datasets.base import Dataset
from ravqa.evaluation.answers import is_exact, points, record_of, score_answers, score_raw
from ravqa.evaluation.costs import cost_record
from ravqa.evaluation.retrieval import Marker
from ravqa.evaluation.schema import (
    Described,
    Ranking,
    RunConfig,
    Sample,
    StageRanking,
)
from ravqa.evaluation.schema import Draft as DraftRecord
from ravqa.evaluation.sections import type_name
from ravqa.images.decode import image_digest
from ravqa.metrics.diagnostics import is_in_document
from ravqa.metrics.judges.base import NotAttempted, NoVerdict
from ravqa.metrics.judges.cached import CachedJudge
from ravqa.metrics.refusals import is_refusal
from ravqa.pipeline import Pipeline, Ranked, Stage
from ravqa.retrievers.base import Retriever
from ravqa.runs.conditions import wrong_images
from ravqa.runs.console import Console
from ravqa.runs.folder import MAIN
from ravqa.runs.lanes import Lane, Lanes
from ravqa.runs.load import Loaded
from ravqa.runs.plan import known_config
from ravqa.runs.samples import SampleLog
from ravqa.runs.stages import mark

# The other controls choose the passages for the reader, so no reranker may change them.
_RERANKED = (MAIN, "wrong-image")
_MAX_RAW = 300  # longest generation of a draft in the samples, in characters
_MIN_ALL_FAILED = 8  # if all of at least this many questions fail, a setting is wrong
_CHUNK = 32  # questions retrieved, answered and written at a time; more for more `workers`
_AHEAD = 32  # chunks that may be answered while an earlier one waits for a server


@dataclass(frozen=True, slots=True)
class Executed:
    """A run whose questions have all been asked.

    Attributes:
        samples: of the run itself (`MAIN`) and of each control, by question id.
    """

    loaded: Loaded
    samples: Mapping[str, SampleLog]


def execute(
    loaded: Loaded,
    console: Console,
    answered: Callable[[Executed], None] | None = None,
    lane: Lane | None = None,
) -> Executed:
    """Begin or resume the run's folder, and ask the questions that are not answered there.

    The caller holds the folder's lock.

    Args:
        answered: called with the run's own samples, before the controls are run, if there are any.
        lane: the run's place among those that are under way at the same time; None if it is alone.

    Raises:
        UserError: the run to resume had other settings; a question cannot be answered and
            `--on-error fail` is set; a server is gone.
    """
    loaded.plan.run_dir.begin(_resolved_config(loaded))
    runner = Runner(loaded, console, lane or Lanes().open())
    samples: dict[str, SampleLog] = {}
    for name, found in runner.run(loaded.conditions):
        samples[name] = found
        if answered and name == MAIN and len(loaded.conditions) > 1:
            answered(Executed(loaded, dict(samples)))
    for stage, stores in {"describe": loaded.describing.stores, **runner.stores}.items():
        mark(loaded.stages, stage, stores)
    return Executed(loaded, samples)


class _UnreadPicture(Failure):
    """A question whose prompt lacks the picture of a passage, because it cannot be read."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Condition:
    """A condition of the run, and what of it is done.

    Attributes:
        done: its samples by question id, those of an interrupted run included.
    """

    name: str
    retriever: Retriever
    done: SampleLog

    @property
    def what(self) -> str:
        """Return what the console calls its questions."""
        return "questions" if self.name == MAIN else f"control {self.name}"


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What became of some questions under a condition.

    Attributes:
        samples: of the answered questions.
        error: why the run must stop, if it must.
        prompts: texts of the prompts, by hash.
        uses: what each stage used.
    """

    condition: _Condition
    samples: Sequence[Sample]
    error: str
    prompts: Mapping[str, str]
    uses: Mapping[str, Use]


class Runner:
    """Runs conditions over the dataset chunk by chunk, and writes the samples of each chunk.

    While a reader of a server works on a chunk, the next ones are begun, also those of the next
    condition: the server always has as many requests as it may (`workers`). Chunks are written in
    their order.
    """

    def __init__(self, loaded: Loaded, console: Console, lane: Lane):
        self.pipeline = loaded.pipeline
        self.dataset = loaded.data.dataset
        self.run_dir = loaded.plan.run_dir
        self.request = loaded.plan.request
        self.judge = CachedJudge(loaded.judge) if loaded.judge else None
        self.console = console
        answerer = loaded.pipeline.answerer
        self._declines = answerer.template.declines if answerer else ()
        judge_safe = loaded.judge is None or loaded.judge.thread_safe
        safe = judge_safe and (
            loaded.data.dataset.metric is None or self.dataset.answer_metric.thread_safe
        )
        self._judging = nullcontext() if safe else loaded.pipeline.turn
        self._lane = lane
        lane.uses("answer", _makers(loaded.pipeline))
        lane.uses("judge", [loaded.judge.fingerprint] if loaded.judge else ())
        self._answering = SharedTime()
        self.stores: dict[str, set[str]] = {}  # caches that each stage of the run itself used

    def run(self, conditions: Mapping[str, Retriever]) -> Iterator[tuple[str, SampleLog]]:
        """Yield each condition's samples of every question, including those of an interrupted run.

        Raises:
            UserError: the run must stop.
        """
        questions = self.dataset.questions
        parts = [
            _Condition(name, retriever, self.run_dir.read_samples(name))
            for name, retriever in conditions.items()
        ]
        several = self.pipeline.reads_at_once
        chunks = in_order(self._tasks(parts, max(_CHUNK, several)), _AHEAD if several > 1 else 0)
        with closing(chunks):
            for part in parts:
                finished = sum(q.question_id in part.done for q in questions)
                self.console.progress(part.what, finished, len(questions))
                while finished < len(questions):
                    finished += self._finish(next(chunks), finished)
                part.done.sort(q.question_id for q in questions)
                yield part.name, part.done

    def _tasks(self, parts: Sequence[_Condition], size: int) -> Iterator[Callable[[], _Chunk]]:
        """Yield what is to be done of each condition, chunk by chunk, the passages being found."""
        questions = self.dataset.questions
        for part in parts:
            missing = [q.question_id not in part.done for q in questions]
            asked: Sequence[Question] = questions
            if part.name == "wrong-image" and any(missing):
                asked = wrong_images(questions, self.request.seed)
            for start in range(0, len(questions), size):
                rows = [i for i in range(start, min(start + size, len(questions))) if missing[i]]
                if rows:
                    chosen = [asked[i] for i in rows]
                    with measured(part.retriever.stores) as use:
                        found = self.pipeline.retrieve(chosen, part.retriever)
                    self._lane.begin()
                    yield partial(
                        self._chunk, part, [questions[i] for i in rows], chosen, found, use
                    )
        self._lane.all_begun()

    def _finish(self, chunk: _Chunk, finished: int) -> int:
        """Write what became of a chunk; return how many questions are answered.

        Raises:
            UserError: the run must stop.
        """
        part, total = chunk.condition, len(self.dataset.questions)
        self.run_dir.prompts.add(chunk.prompts)
        if part.name == MAIN:
            for stage, use in chunk.uses.items():
                self.stores.setdefault(stage.partition(" ")[0], set()).update(use.stores)
        part.done.append(chunk.samples)
        finished += len(chunk.samples)
        self.console.progress(part.what, finished, total)
        if chunk.error:
            raise UserError(
                f"{chunk.error} ({part.what}: {finished} of {total} are answered and kept: "
                f"continue with --resume --output {self.run_dir.path})"
            )
        return len(chunk.samples)

    def _chunk(
        self,
        condition: _Condition,
        questions: Sequence[Question],
        asked: Sequence[Question],
        retrieved: Sequence[Ranked],
        retrieving: Use,
    ) -> _Chunk:
        """Answer questions from what was retrieved for them; several threads may do so."""
        reranked: list[Stage] = []
        answerer = self.pipeline.answerer
        reads = answerer is not None
        prompts: Mapping[str, str] = {}
        with self._lane.stage("answer") as through:
            if condition.name in _RERANKED:
                reranked = self.pipeline.rerank(asked, retrieved)
            ranked: Sequence[Ranked] = reranked[-1].hits if reranked else retrieved
            # Without a reader, the hits are the outcome.
            outcomes: Sequence[Answer | Ranked] = ranked
            with measured(
                answerer.cached.stores if answerer else (),
                shared=self._answering,
                items=len(questions),
            ) as answering:
                if answerer is not None:
                    with claims_told(through) if answerer.asks_once else nullcontext():
                        found = self.pipeline.answer(questions, ranked)
                    outcomes = self._read_or_failed(found)
                    prompts = answerer.asked
        error = self._ends(outcomes, questions)
        uses = {"retrieve": retrieving}
        uses |= {f"rerank {stage.name}": stage.use for stage in reranked}
        uses |= {"answer": answering}
        costs = {stage: shared_out(use, len(questions)) for stage, use in uses.items()}
        samples: list[Sample] = []
        for i, question in enumerate(questions):
            outcome, hits = outcomes[i], or_empty(ranked[i])
            if error and isinstance(outcome, Failure):
                continue  # a resumed run asks it again
            marker = Marker(question)
            sample = self._sample(marker, hits, costs)
            if reranked:
                rankings = {RETRIEVED: retrieved[i]} | {s.name: s.hits[i] for s in reranked}
                sample["stages"] = [
                    StageRanking(stage=name, **self._ranking(marker, or_empty(found)))
                    for name, found in rankings.items()
                ]
            if isinstance(outcome, Answer):
                self._add_answer(sample, marker, outcome, hits)
            elif isinstance(outcome, Failure):
                if reads:
                    self._add_nothing(sample, marker)
                sample["error"] = outcome.reason
            samples.append(sample)
        used = dict(uses)
        if reads and not self.request.predict_only:
            with self._lane.stage("judge"), self._judging, measured(()) as used["judge"]:
                samples, unscored = self._scored(questions, samples)
            error = error or unscored
        self._add_costs(samples, questions, used)
        return _Chunk(condition, samples, error, prompts, uses)

    def _read_or_failed(self, answers: Sequence[Answer | Failure]) -> Sequence[Answer | Failure]:
        """Return the answers; with `--on-error fail`, failures for those without a picture."""
        if self.request.on_error != "fail":
            return answers
        return [
            _UnreadPicture(f"the picture of {a.pictures.unread[0]}")
            if isinstance(a, Answer) and a.pictures and a.pictures.unread
            else a
            for a in answers
        ]

    def _add_costs(
        self, samples: Sequence[Sample], questions: Sequence[Question], uses: Mapping[str, Use]
    ) -> None:
        """Add to each sample what its question cost, by stage."""
        by_id = {sample["question_id"]: sample for sample in samples}
        ids = [question.question_id for question in questions]
        for stage, use in uses.items():
            for question_id, cost in zip(ids, shared_costs(use.costs, ids), strict=True):
                if cost and question_id in by_id:
                    by_id[question_id].setdefault("cost", {})[stage] = cost_record(cost)

    def _scored(
        self, questions: Sequence[Question], samples: Sequence[Sample]
    ) -> tuple[list[Sample], str]:
        """Add to each sample the scores of its answer and of its raw generation.

        Returns:
            The samples; and why the run must stop if the judge failed, in which case the samples
            on which it failed are left out.
        """
        by_id = {q.question_id: q for q in questions}
        asked = [by_id[sample["question_id"]] for sample in samples]
        records = [record_of(sample) for sample in samples]
        metric = self.dataset.answer_metric
        scores = score_answers(self.dataset, asked, records, judge=self.judge)
        raws = score_raw(self.dataset, asked, records, scores, judge=self.judge)
        judged = [
            first_failure(f for f in pair if not isinstance(f, NoVerdict))
            for pair in zip(scores, raws, strict=True)
        ]
        error = self._ends([failure or () for failure in judged], asked)
        kept = []
        for row, sample in enumerate(samples):
            if error and judged[row]:
                continue  # a resumed run asks it again
            kept.append(sample)
            question, record, score = asked[row], records[row], points(scores[row])
            sample["score"], sample["raw_score"] = score, points(raws[row])
            if isinstance(failure := scores[row], Failure):
                sample["unjudged"] = failure.reason
            if isinstance(scores[row], NotAttempted):
                sample["not_attempted"] = True
            if isinstance(failure := raws[row], Failure):
                sample["raw_unjudged"] = failure.reason
            sample["exact_match"] = is_exact(metric, question, record)
            sample["right"] = record.answer is not None and metric.is_right(question, record, score)
        return kept, error

    def _ends(self, outcomes: Sequence[Answer | Ranked], questions: Sequence[Question]) -> str:
        """Return why the run must stop, if it must: the server is gone, or a question failed."""
        failed = {i: f for i, f in enumerate(outcomes) if isinstance(f, Failure)}
        first = first_failure(failed.values())
        if first is None or first.fatal:
            return first.reason if first else ""
        if self.request.on_error == "fail":
            skipped = "counts such questions as wrong"
            if isinstance(first, _UnreadPicture):
                skipped = "leaves such pictures out"
            return (
                f"question {questions[min(failed)].question_id}: {first.reason}; --on-error skip "
                f"{skipped}"
            )
        # If no question can be answered, the questions are not to blame.
        return first.reason if len(failed) == len(questions) >= _MIN_ALL_FAILED else ""

    def _sample(
        self, marker: Marker, hits: Sequence[Hit], costs: Mapping[str, Described]
    ) -> Sample:
        question = marker.question
        seen = question.description
        ranking = self._ranking(marker, hits)
        sample: Sample = {
            "question_id": question.question_id,
            "question": question.question,
            "question_type": type_name(self.dataset, question),
            "image_id": question.image_id,
            "split": question.split,
            "answers": list(question.answers),
            "tags": [(t.names[0], t.probability) for t in seen.tags] if seen else [],
            "caption": seen.caption if seen else "",
            "ocr": list(seen.ocr) if seen else [],
            "hits": ranking["hits"],
            "answer_ranks": ranking["answer_ranks"],
            "id_ranks": ranking["id_ranks"],
            "article_ranks": ranking["article_ranks"],
            "seconds": {stage: cost["seconds"] for stage, cost in costs.items()},
            "cached": {stage: cost["cached"] for stage, cost in costs.items()},
        }
        if question.answer_eval:
            sample["answer_eval"] = list(question.answer_eval)
        if question.choices:
            sample["choices"] = list(question.choices)
            sample["correct_choice"] = question.correct_choice
        return sample

    def _ranking(self, marker: Marker, hits: Sequence[Hit]) -> Ranking:
        passages = [passage for _, passage in self.pipeline.passages(hits)]
        return {
            "hits": [(hit.passage_id, round(hit.score, 6)) for hit in hits],
            **marker.marks(passages),
        }

    def _read(self, marker: Marker, answer: Answer, hits: Sequence[Hit]) -> Ranking:
        """Return the ranking of the passages that were in a prompt, in the order of the hits."""
        shown = {passage_id for draft in answer.drafts for passage_id in draft.passage_ids}
        return self._ranking(marker, [hit for hit in hits if hit.passage_id in shown])

    def _add_answer(
        self, sample: Sample, marker: Marker, answer: Answer, hits: Sequence[Hit]
    ) -> None:
        sample["read"] = self._read(marker, answer, hits)
        sample["answer"] = answer.text
        sample["raw"] = answer.raw
        sample["decision"] = answer.decision
        sample["log_prob"] = answer.log_prob
        sample["cut"] = answer.cut
        if answer.neutralised:
            sample["neutralised"] = answer.neutralised
        if answer.pictures is not None:
            found = answer.pictures
            unread = list(found.unread)
            sample["pictures"] = {"shown": found.shown, "cut": found.cut, "unread": unread}
        if answer.joint:
            sample["joint"] = True
        if answer.self_check is not None:
            sample["self_check"] = round(answer.self_check, 6)
        if is_refusal(answer.text, self._declines):
            sample["refused"] = True
        sample["drafts"] = self._drafts(answer, hits)

    def _add_nothing(self, sample: Sample, marker: Marker) -> None:
        sample["read"] = self._ranking(marker, [])
        sample["answer"] = sample["raw"] = sample["decision"] = sample["log_prob"] = None
        sample["cut"] = 0
        sample["drafts"] = []

    def _drafts(self, answer: Answer, hits: Sequence[Hit]) -> list[DraftRecord]:
        """Return the drafts, each with whether a passage in its prompt contains it.

        Generations are cut; that of the chosen answer is also stored whole in the sample.
        """
        texts = {p.passage_id: p.content for _, p in self.pipeline.passages(hits)}
        return [
            {
                "text": draft.text,
                "raw": draft.raw[:_MAX_RAW],
                "thinking": draft.thinking[:_MAX_RAW],
                "log_prob": draft.log_prob,
                "tokens": draft.tokens,
                "passage_ids": list(draft.passage_ids),
                "prompt_hash": draft.prompt_hash,
                "score": draft.score,
                "prior": draft.prior,
                "posterior": draft.posterior,
                "in_passages": any(
                    is_in_document(draft.text, texts[passage_id])
                    for passage_id in draft.passage_ids
                ),
            }
            for draft in answer.drafts
        ]


def _makers(pipeline: Pipeline) -> set[str]:
    """Return the fingerprints of the readers whose results are kept.

    Rerankers without a reader are named by their stores: those of other options share scores.
    """
    parts = pipeline.rerankers.values()
    kept = {store.name for part in parts if part.reader is None for store in part.stores}
    asked = {part.reader.fingerprint for part in parts if part.reader is not None}
    if pipeline.answerer is not None and pipeline.answerer.cached.stores:
        asked.add(pipeline.answerer.reader.fingerprint)
    return kept | asked


def shared_out(use: Use, questions: int) -> Described:
    """Return the share of one question in what a batch of questions took.

    Returns:
        `seconds`; and the `share` of the stage's cache look-ups that were found, 0 to 1.
    """
    share = round(use.found / use.asked, 4) if use.asked else 0.0
    return {"seconds": round(use.seconds / questions, 4), "cached": {"share": share}}


def _resolved_config(loaded: Loaded) -> RunConfig:
    """Return the content of `config.yaml`: everything that the samples of a run depend on."""
    pipeline, dataset = loaded.pipeline, loaded.data.dataset
    known = known_config(loaded.plan.request, loaded.plan.pipeline.settings, loaded.data)
    images = _images_fingerprint(dataset) if pipeline.supports_images else None
    judge = {"judge": loaded.judge.fingerprint} if loaded.judge else {}
    found = {
        **known,
        "dataset": {**known["dataset"], "fingerprint": dataset.fingerprint, "images": images},
        # A resumed run must not mix two prompts or models of the same name.
        "fingerprints": {**pipeline.fingerprints, **judge},
    }
    return cast(RunConfig, found)


def _images_fingerprint(dataset: Dataset) -> str:
    images = {q.image for q in dataset.questions if isinstance(q.image, Path)}
    return fingerprint([image_digest(p) for p in sorted(images)])
