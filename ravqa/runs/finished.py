"""Finished runs: reading and checking their folders, and measuring them.

`RunFiles` is the only reader of a run's folder. A measure gives one number per question:

- `score`: the dataset's own answer metric (VQA accuracy, InfoSeek's score, ...);
- `exact_match`: whether the answer is a reference;
- `truthfulness`: 100 for a right answer, 0 for a refusal or no answer, -100 for a wrong one;
- `PRRecall@K`, `Recall@K`, `ArticleRecall@K`: whether one of the first K passages (articles) holds
  an answer, or is known to be relevant by its id or its article;
- `seconds`: per question, as measured in the run, without the time to load models and to encode
  the corpus;
- `requests`: per question, those sent to servers;
- `tokens` and `cost`: tokens of prompts and completions per question, and their price, with what
  results from the cache had cost when they were made.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ravqa.core.accounts import Cost, total
from ravqa.core.errors import DataError, UserError, near_matches
from ravqa.core.records import Question
from ravqa.core.settings import PipelineConfig, read_yaml
from ravqa.core.texts import number_of
from ravqa.datasets.base import Dataset
from ravqa.evaluation.costs import cost_of
from ravqa.evaluation.schema import (
    Described,
    RunConfig,
    RunResults,
    Sample,
    parsed,
    read_samples,
    validated,
)
from ravqa.evaluation.sections import RECALLS
from ravqa.evaluation.selective import confidences_of, outcome, truthfulness
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerMetric
from ravqa.metrics.prrecall import DEFAULT_RULE
from ravqa.metrics.statistics import intervals
from ravqa.metrics.statistics.intervals import Estimate, PairedTest
from ravqa.runs.console import CONDITIONS, condition_name, retrieves
from ravqa.runs.folder import CONFIG, MAIN, RESULTS, check_version, samples_name

_log = logging.getLogger(__name__)

Id = int | str

_TOP_K: int = PipelineConfig.model_fields["top_k"].default
SECONDS, REQUESTS, TOKENS, COST = "seconds", "requests", "tokens", "cost"
COSTS = (REQUESTS, TOKENS, COST)
"""The measures of what was asked of models."""
_PLAIN = ("score", "exact_match", "truthfulness", SECONDS, *COSTS)
_REPORTED = {
    "pseudo_recall_at_k": "PRRecall",
    "recall_at_k": "Recall",
    "article_recall_at_k": "ArticleRecall",
}


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a finished run, checked against their schema.

    Attributes:
        conditions: the run itself (`main`) and its controls, in the order in which they are shown.
        missing: controls in the results whose samples are not there; reading says so.
    """

    folder: Path
    config: RunConfig
    results: RunResults
    conditions: tuple[str, ...]
    missing: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read all but the samples.

        Raises:
            UserError: there is no run, it is not finished, or it is of another version.
            DataError: a file is broken (file and key are named).
        """
        if not (folder / CONFIG).is_file():
            below = sorted(str(path.parent) for path in folder.glob(f"*/{RESULTS}"))
            hint = f"; {below[0]} is one" if below else ""
            raise UserError(f"{folder} contains no run: there is no {RESULTS}{hint}")
        path = folder / RESULTS
        if not path.is_file():
            raise UserError(
                f"the run in {folder} is not finished: --resume --output {folder} resumes it"
            )
        try:
            found = parsed(dict[str, Any], path.read_bytes(), str(path))
        except OSError as e:
            raise DataError(f"{path} cannot be read: {e.strerror or e}") from None
        check_version(found, folder)
        names = {name.name.split(".")[1] for name in folder.glob("samples.*.jsonl")}
        known = [name for name in CONDITIONS if name in names]
        config = validated(RunConfig, read_yaml(folder / CONFIG), str(folder / CONFIG))
        results = validated(RunResults, found, str(path))
        asked = {
            name: None
            for section in (results["answers"], results["retrieval"])
            for name in (section or {"conditions": {}})["conditions"]
        }
        missing = tuple(name for name in asked if name not in names | {MAIN})
        for name in missing:
            _log.warning(
                "%s is missing: the control %s is left out", folder / samples_name(name), name
            )
        return cls(folder, config, results, (MAIN, *known, *sorted(names - set(known))), missing)

    def samples(self, condition: str = MAIN) -> Iterator[Sample]:
        """Yield the samples of the run, or of one of its controls.

        Raises:
            UserError: the run has no such control.
            DataError: a line is broken (file and line are named), or the file is cut off.
        """
        path = self.folder / samples_name(condition)
        if not path.is_file():
            raise UserError(f"the run in {self.folder} has no {path.name}")
        number = 0
        for _, sample in read_samples(path):
            number += 1
            yield sample
        asked = self.results["dataset"]["questions"]
        if number != asked:
            raise DataError(
                f"{path}: {number_of(number, 'question')}, and {RESULTS} has {asked}: is it cut "
                "off?"
            )


def dataset_of(results: RunResults, samples: Iterable[Sample], folder: Path) -> Dataset:
    """Return the questions that were asked, as far as a run's folder has them, with their metric.

    There are no images, and no passages that are known to be relevant.

    Raises:
        UserError: the run's answers were not scored, no such metric is registered here, or an
            older run lacks what the metric reads.
    """
    answers, about = results["answers"], results["dataset"]
    if answers is None:
        raise UserError(f"the run in {folder} has no answers that were scored")
    METRICS.check(answers["metric"], str(folder))
    options = METRICS.get(answers["metric"]).Config.model_fields
    dataset = Dataset(
        name=about["name"],
        label=about["label"],
        split=str(about["split"]),
        sample=about["sample"],
        questions=[question_of(sample) for sample in samples],
        metric=answers["metric"],
        metric_options={k: v for k, v in answers["rule"].items() if k in options},
        fingerprint=str(results["provenance"]["fingerprints"].get("dataset", "")),
    )
    metric = dataset.answer_metric
    for question in dataset.questions:
        if problem := metric.problem(question):
            raise UserError(
                f"the run in {folder} cannot be scored again: question {question.question_id}: "
                f"{problem}"
            )
    return dataset


def question_of(sample: Sample) -> Question:
    """Return the question of a sample, without its image."""
    return Question(
        question_id=sample["question_id"],
        question=sample["question"],
        image_id=sample["image_id"],
        answers=tuple(sample["answers"]),
        answer_eval=tuple(sample.get("answer_eval", ())),
        question_type=sample["question_type"],
        split=sample["split"],
        choices=tuple(sample.get("choices", ())),
        correct_choice=sample.get("correct_choice"),
    )


def folder_and_condition(name: str) -> tuple[Path, str]:
    """Return the folder and the condition of a run as the command line names it.

    Args:
        name: FOLDER, or FOLDER:CONTROL.
    """
    folder, colon, control = name.rpartition(":")
    if colon and control in CONDITIONS[1:] and not Path(name).exists():
        return Path(folder), control
    return Path(name), MAIN


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure by its name in a study's file ("score", "PRRecall@5").

    Attributes:
        k: of measures of retrieval.
    """

    name: str
    k: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the measure with this name.

        Raises:
            UserError: there is no such measure.
        """
        if text in _PLAIN:
            return cls(text)
        found = re.fullmatch(r"([A-Za-z]+)@([1-9][0-9]{0,8})", text)
        if found is None or found[1] not in RECALLS:
            known = [*_PLAIN, *(f"{name}@5" for name in RECALLS)]
            raise UserError(f"metrics: no metric {text!r}: {near_matches(text, known)}")
        return cls(found[1], int(found[2]))

    @property
    def key(self) -> str:
        """Name in files."""
        return self.name if self.k is None else f"{self.name}@{self.k}"

    @property
    def of_answers(self) -> bool:
        """Whether it measures answers."""
        return self.name in {"score", "exact_match", "truthfulness"}

    @property
    def in_percent(self) -> bool:
        """Whether its unit is percent (all but seconds and costs)."""
        return self.name not in (SECONDS, *COSTS)

    def title(self, run: FinishedRun) -> str:
        """Return its title for people, with the unit."""
        if self.name == "score":
            return f"{run.label_of_score} %"
        if self.name == "exact_match":
            return "exact match %"
        if self.name == "truthfulness":
            return "truthfulness (+1/0/-1) %"
        if self.name == COST:
            return f"{run.currency} per question"
        return f"{self.key} %" if self.in_percent else f"{self.key} per question"


@dataclass(frozen=True, slots=True)
class Asked:
    """The small part of a sample (about 10 KB) that measures need.

    Attributes:
        question, answers: hashes of the question and of its references and choices, to tell other
            data apart.
        image: what intervals and tests resample.
        kind: question type.
        score: of the answer, 0 to 1; None if nothing was scored.
        right: whether the answer counts as right by its rule; None if nothing was scored.
        exact: whether it is a reference; None if nothing was scored.
        truthful: 1 for a right answer, 0 for a refusal or no answer, -1 for a wrong one; None if
            nothing was scored.
        confidences: those on record, by name; empty if nothing was scored.
        ranks: by kind of recall, the first relevant rank, or 0 if there is none; kinds that do not
            apply are left out.
        failed: whether the reader could not answer it, which counts as wrong.
        read: whether a passage in a prompt contains an answer; None if there was no passage.
        seconds: time of its stages in this run, which is short for what was in the cache.
        cached: the largest share of a stage that was found in the cache, 0 to 1.
        batch: the same for questions that were timed together.
        requests: sent to servers for it; None if the run did not count them.
        tokens: of prompts and completions, with those of results from the cache; None if unknown.
        cost: their price; None if unknown, or without prices.
    """

    question: int
    answers: int
    image: Hashable
    kind: str | None
    split: str
    score: float | None
    right: bool | None
    exact: bool | None
    truthful: int | None
    confidences: Mapping[str, float]
    ranks: Mapping[str, int]
    failed: bool
    read: bool | None
    seconds: float
    cached: float
    batch: int
    requests: float | None
    tokens: float | None
    cost: float | None


def _asked(sample: Sample, described: Described, prepared: Cost) -> Asked:
    """Return what measures need of a sample.

    Args:
        described: its share of the time that describing images took.
        prepared: its share of what was asked of models before the questions.
    """
    answer_ranks, scored = sample["answer_ranks"], "score" in sample
    recalls = {
        "PRRecall": answer_ranks and answer_ranks[DEFAULT_RULE],
        "Recall": sample["id_ranks"],
        "ArticleRecall": sample["article_ranks"],
    }
    ranks = {name: min(found, default=0) for name, found in recalls.items() if found is not None}
    read = sample.get("read")
    held = None
    if read is not None and read["hits"] and read["answer_ranks"] is not None:
        held = bool(read["answer_ranks"][DEFAULT_RULE])
    stages = [(seconds, sample["cached"][stage]) for stage, seconds in sample["seconds"].items()]
    stages.append((described["seconds"], described["cached"]))
    image = sample["image_id"]
    return Asked(
        question=hash(sample["question"]),
        answers=hash(
            (*sample["answers"], *sample.get("choices", ()), sample.get("correct_choice"))
        ),
        image=("question", sample["question_id"]) if image is None else image,
        kind=sample["question_type"],
        split=str(sample["split"] or ""),
        score=sample.get("score"),
        right=sample.get("right"),
        exact=sample.get("exact_match"),
        truthful=truthfulness(outcome(sample, DEFAULT_RULE)) if scored else None,
        confidences=confidences_of(sample) if scored else {},
        ranks=ranks,
        failed="error" in sample,
        read=held,
        seconds=sum(seconds for seconds, _ in stages),
        cached=max(cached["share"] for _, cached in stages),
        batch=hash(json.dumps([sample["seconds"], sample["cached"]])),
        **_costs(sample, prepared),
    )


def _costs(sample: Sample, prepared: Cost) -> dict[str, float | None]:
    """Return requests, tokens and money of a question, each None if it is not known."""
    records = sample.get("cost", {}).values()
    cost = total([prepared, *map(cost_of, records)])
    if not cost:
        return dict.fromkeys(COSTS)
    known = not cost.unknown and not cost.reused_unknown
    read = cost.prompt_tokens + cost.reused_prompt_tokens
    written = cost.completion_tokens + cost.reused_completion_tokens
    priced = cost.money is not None or cost.reused_money is not None
    return {
        REQUESTS: cost.requests,
        TOKENS: read + written if known else None,
        COST: (cost.money or 0.0) + (cost.reused_money or 0.0) if known and priced else None,
    }


class FinishedRun:
    """A finished run, or one of its controls.

    Attributes:
        questions: per question id, what the run made of it.
        stand_ins: by part, what it stands in for.
        what_ran: "with retrieval", "without retrieval", "random passages", ...
        retrieves: whether there were passages.
        currency: of what questions cost; None without prices.
    """

    def __init__(self, folder: Path, condition: str = MAIN):
        """Read the run's folder.

        Args:
            condition: a control of the run instead of the run itself.

        Raises:
            UserError: as `RunFiles.read`, or the run has no such control, or no questions.
            DataError: a file is broken.
        """
        self.folder = folder
        self.condition = condition
        files = RunFiles.read(folder)
        results = files.results
        answers, retrieval = results["answers"], results["retrieval"]
        self.label, self.split = results["dataset"]["label"], str(results["dataset"]["split"])
        self.metric = answers["metric"] if answers else "score"
        self.label_of_score = answers["label"] if answers else "score"
        self.stand_ins = results["provenance"]["stand_ins"]
        retriever = results["provenance"]["retriever"]
        self.what_ran = condition_name(condition, retriever)
        self.retrieves = retrieves(condition, retriever)
        self.top_k = files.config["pipeline"].get("top_k", _TOP_K)
        self._reported = retrieval["reported"] if retrieval else []
        described = results["timing"]["describe"]
        section = results.get("cost")
        self.currency = section["currency"] if section else None
        prepared = cost_of(section["prepared"]) if section else Cost()
        prepared /= max(1, results["dataset"]["questions"])
        self.questions: Mapping[Id, Asked] = {
            sample["question_id"]: _asked(sample, described, prepared)
            for sample in files.samples(condition)
        }
        if not self.questions:
            raise UserError(f"the run in {folder} has no questions")
        self._values: dict[Measure, dict[Id, float]] = {}

    @property
    def answer_metric(self) -> AnswerMetric:
        """The rule by which the answers were scored.

        Raises:
            UserError: no metric of that name is registered here.
        """
        METRICS.check(self.metric, str(self.folder))
        metric: AnswerMetric = METRICS.get(self.metric)()
        return metric

    @property
    def is_main(self) -> bool:
        """Whether this is the run itself, not one of its controls."""
        return self.condition == MAIN

    @property
    def has_control(self) -> bool:
        """Whether it was also run without retrieval."""
        return self.is_main and (self.folder / samples_name("none")).is_file()

    @property
    def right(self) -> dict[Id, bool] | None:
        """Whether the answer to each question is right; None unless all were scored."""
        right = {q: asked.right for q, asked in self.questions.items() if asked.right is not None}
        return right if len(right) == len(self.questions) else None

    def values(self, measure: Measure) -> dict[Id, float]:
        """Return the measure of each question that has it, in percent or seconds.

        Without retrieval there is no recall.
        """
        if measure not in self._values:
            values = ((q, self._value(asked, measure)) for q, asked in self.questions.items())
            self._values[measure] = {q: value for q, value in values if value is not None}
        return self._values[measure]

    def _value(self, asked: Asked, measure: Measure) -> float | None:
        taken = {
            SECONDS: asked.seconds,
            REQUESTS: asked.requests,
            TOKENS: asked.tokens,
            COST: asked.cost,
        }
        if measure.name in taken:
            return taken[measure.name]
        if measure.name == "score":
            return None if asked.score is None else 100 * asked.score
        if measure.name == "exact_match":
            return None if asked.exact is None else 100.0 * asked.exact
        if measure.name == "truthfulness":
            return None if asked.truthful is None else 100.0 * asked.truthful
        rank = asked.ranks.get(measure.name)
        assert measure.k is not None
        # Without retrieval, and beyond top_k, there was nothing that could be relevant.
        if rank is None or not self.retrieves or measure.k > self.top_k:
            return None
        return 100.0 * (0 < rank <= measure.k)

    def default_measures(self) -> list[Measure]:
        """Return the score, recall as the benchmark reports it (else PRRecall@5), and seconds.

        Tokens and money follow where they are known.
        """
        measures = [Measure("score")] if self.values(Measure("score")) else []
        if self._reported and self.retrieves:
            name, k = self._reported[0]["metric"], int(self._reported[0]["k"])
            measures.append(Measure(_REPORTED[name], k))
        elif self.values(Measure("PRRecall", 1)):
            measures.append(Measure("PRRecall", min(5, self.top_k)))
        costs = [Measure(name) for name in (TOKENS, COST) if self.values(Measure(name))]
        return [*measures, Measure(SECONDS), *costs]

    # -- statistics over some of the questions -----------------------------------------------------

    def estimate(self, measure: Measure, ids: Collection[Id], seed: int) -> Estimate | None:
        """Return the measure over the questions that have it, with a 95 % interval."""
        values = {q: value for q, value in self.values(measure).items() if q in ids}
        if not values:
            return None
        scores = list(values.values())
        asked = [self.questions[q] for q in values]
        images = [question.image for question in asked]
        if measure.name == "score":
            splits = [question.split for question in asked]
            found = self.answer_metric.interval(scores, splits, images, seed=seed)
        else:
            if measure.name == SECONDS:  # times were measured per batch
                images = [question.batch for question in asked]
            found = intervals.bootstrap(scores, images, seed=seed)
        return intervals.estimate(found, images)

    def against(
        self, other: FinishedRun, measure: Measure, ids: Collection[Id], seed: int
    ) -> tuple[Estimate, PairedTest] | None:
        """Compare this run with another, over the questions for which both have the measure.

        Returns:
            The difference, with its interval if that means something, and the test; None if no
            question has the measure in both.
        """
        mine, theirs = self.values(measure), other.values(measure)
        both = [q for q in mine if q in theirs and q in ids]
        if not both:
            return None
        first, second = {q: mine[q] for q in both}, {q: theirs[q] for q in both}
        images = self.images(both)
        if measure.name == "score":
            splits = {q: self.questions[q].split for q in both}
            test = self.answer_metric.paired_test(first, second, splits, images, seed=seed)
        else:
            test = intervals.paired_test(first, second, images, seed=seed)
        return intervals.estimate_of_difference(test, first, second, images), test

    def images(self, ids: Iterable[Id]) -> dict[Id, Hashable]:
        """Return the image of each question, which intervals and tests resample."""
        return {q: self.questions[q].image for q in ids}

    def cached_share(self, ids: Collection[Id]) -> float:
        """Return the largest share of any stage of these questions that was cached, 0 to 1."""
        shares = (asked.cached for q, asked in self.questions.items() if q in ids)
        return max(shares, default=0.0)


def common_questions(runs: Mapping[str, FinishedRun], *, intersect: bool) -> dict[Id, None]:
    """Return the questions that all runs asked, in the order of the first run.

    Args:
        runs: by name, for messages.
        intersect: leave out questions that some runs did not ask; if False, refuse them.

    Raises:
        UserError: the runs asked different questions, or scored them by different rules or
            references; no question is common to all.
    """
    (first_name, first), *others = runs.items()
    common = dict.fromkeys(first.questions)
    for name, run in others:
        if run.metric != first.metric and "score" not in (run.metric, first.metric):
            raise UserError(
                f"{first_name} was scored by {first.metric}, {name} by {run.metric}: they cannot "
                "be compared"
            )
        lacking = [q for q in first.questions if q not in run.questions]
        extra = [q for q in run.questions if q not in first.questions]
        if (lacking or extra) and not intersect:
            shared = len(first.questions) - len(lacking)
            raise UserError(
                f"{name} asked other questions than {first_name}: {shared} are common, "
                f"{len(lacking)} only in {first_name}, {len(extra)} only in {name}; --common "
                "compares those that are common"
            )
        for question in lacking:
            common.pop(question, None)
        for question in first.questions.keys() & run.questions.keys():
            mine, theirs = first.questions[question], run.questions[question]
            if (mine.question, mine.answers) != (theirs.question, theirs.answers):
                what = "words" if mine.question != theirs.question else "references"
                raise UserError(
                    f"question {question} has different {what} in {name} and in {first_name}: they "
                    "are not about the same data"
                )
    if not common:
        raise UserError("no question is common to all runs")
    return common
