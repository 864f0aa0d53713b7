"""What a finished run is measured by: one number per question, and what it is called.

- `score`: the dataset's own answer metric (VQA accuracy, InfoSeek's score, ...);
- `exact_match`: whether the answer is a reference;
- `PRRecall@K`, `Recall@K`, `ArticleRecall@K`: whether one of the first K passages (articles) holds
  an answer, or is known to be relevant by its id or its article;
- `seconds`: per question, without the time to load models and to encode the corpus.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ravqa.config import read_yaml
from ravqa.console import METRICS
from ravqa.datasets.reading import read_json
from ravqa.errors import DataError, UserError, near_matches
from ravqa.metrics import diagnostics, intervals
from ravqa.metrics.harmonic import harmonic_bootstrap, harmonic_paired_test
from ravqa.metrics.infoseek import SPLITS
from ravqa.metrics.intervals import PairedTest
from ravqa.metrics.prrecall import DEFAULT_RULE
from ravqa.rundir import MAIN, read_samples
from ravqa.studies.figures import Estimate

Id = int | str
Sample = Mapping[str, Any]

_RANKS = {"PRRecall": "answer_ranks", "Recall": "id_ranks", "ArticleRecall": "article_ranks"}
_PLAIN = ("score", "exact_match", "seconds")
_REPORTED = {
    "pseudo_recall_at_k": "PRRecall",
    "recall_at_k": "Recall",
    "article_recall_at_k": "ArticleRecall",
}
SECONDS = "seconds"


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
        """From its name.

        Raises:
            UserError: there is no such measure.
        """
        if text in _PLAIN:
            return cls(text)
        found = re.fullmatch(r"([A-Za-z]+)@([1-9]\d*)", text)
        if found is None or found[1] not in _RANKS:
            known = [*_PLAIN, *(f"{name}@5" for name in _RANKS)]
            raise UserError(f"metrics: no metric {text!r}: {near_matches(text, known)}")
        return cls(found[1], int(found[2]))

    @property
    def key(self) -> str:
        """Its name in files."""
        return self.name if self.k is None else f"{self.name}@{self.k}"

    @property
    def of_answers(self) -> bool:
        """Whether it measures answers."""
        return self.name in {"score", "exact_match"}

    @property
    def in_percent(self) -> bool:
        """All but seconds are."""
        return self.name != SECONDS

    def title(self, run: FinishedRun) -> str:
        """For people, with the unit."""
        if self.name == "score":
            return f"{METRICS.get(run.metric, run.metric)} %"
        if self.name == "exact_match":
            return "exact match %"
        return "seconds per question" if self.name == SECONDS else f"{self.key} %"


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one question, and how much of them came from the cache.

    Attributes:
        seconds: what its stages take without the cache: what they took in this run, and for what
            was found in the cache, what it took when it was made.
            None if that is not known.
        cached: the largest share of a stage that was found in the cache, 0 to 1.
        batch: the same for questions that were timed together.
    """

    seconds: float | None
    cached: float
    batch: Hashable


class FinishedRun:
    """A run's folder, read.

    Attributes:
        samples: of the run itself, by question id.
        stand_ins: by part, what it stands in for.
    """

    def __init__(self, folder: Path, condition: str = MAIN):
        """Read it.

        Args:
            condition: a control of the run instead of the run itself.

        Raises:
            UserError: there is no run, or it is not finished; its files are broken.
        """
        self.folder = folder
        self.condition = condition
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder} holds no run")
        if not (folder / "results.json").is_file():
            raise UserError(
                f"the run in {folder} is not finished: --resume --output {folder} goes on with it"
            )
        self.config = read_yaml(folder / "config.yaml")
        results = read_json(folder / "results.json")
        file = folder / ("samples.jsonl" if condition == MAIN else f"samples.{condition}.jsonl")
        if not file.is_file():
            raise UserError(f"the run in {folder} has no {file.name}")
        self.samples: Mapping[Id, Sample] = read_samples(file)
        try:
            self.results: dict[str, Any] = dict(results)
            self.top_k = int(self.config["pipeline"].get("top_k", 20))
            self.label = str(results["dataset"]["label"])
            self.split = str(results["dataset"]["split"])
            self.metric = str((results["answers"] or {}).get("metric", "score"))
            self.stand_ins = dict(results["provenance"]["stand_ins"])
            self._described = results["timing"]["describe"]
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise DataError(
                f"{folder}: its files are not those of a run of this version ({e!r})"
            ) from None
        if not self.samples:
            raise UserError(f"the run in {folder} has no questions")

    @property
    def is_main(self) -> bool:
        """Whether it is the run itself, not one of its controls."""
        return self.condition == MAIN

    @property
    def has_control(self) -> bool:
        """Whether it was also run without retrieval."""
        return self.is_main and (self.folder / "samples.none.jsonl").is_file()

    @cached_property
    def clusters(self) -> dict[Id, Hashable]:
        """Per question its image: what intervals and tests resample."""
        return {
            q: ("question", q) if s["image_id"] is None else s["image_id"]
            for q, s in self.samples.items()
        }

    @cached_property
    def right(self) -> dict[Id, bool] | None:
        """Per question whether its answer is right; None where nothing was scored.

        By exact match for VQA accuracy, which gives parts of a point; else by a score of 1.
        """
        if any("score" not in sample for sample in self.samples.values()):
            return None
        if self.metric == "vqa_accuracy":
            return {
                q: s["answer"] is not None and diagnostics.is_answer(s["answer"], s["answers"])
                for q, s in self.samples.items()
            }
        return {q: s["score"] == 1 for q, s in self.samples.items()}

    @cached_property
    def costs(self) -> dict[Id, Cost]:
        """What each question took."""
        return {q: self._cost(sample) for q, sample in self.samples.items()}

    def _cost(self, sample: Sample) -> Cost:
        parts = [self._described, *self._stages(sample)]
        earlier = [part["cached"]["seconds"] for part in parts]
        return Cost(
            seconds=None
            if None in earlier
            else sum(part["seconds"] for part in parts) + sum(earlier),
            cached=max(part["cached"]["share"] for part in parts),
            batch=json.dumps([sample["seconds"], sample["cached"]]),
        )

    @staticmethod
    def _stages(sample: Sample) -> list[dict[str, Any]]:
        return [
            {"seconds": seconds, "cached": sample["cached"][stage]}
            for stage, seconds in sample["seconds"].items()
        ]

    def values(self, measure: Measure) -> dict[Id, float]:
        """The measure of each question that has one: percent, or seconds. Empty if none has."""
        if measure.name == SECONDS:
            return {q: c.seconds for q, c in self.costs.items() if c.seconds is not None}
        if measure.name == "score":
            return {q: 100 * s["score"] for q, s in self.samples.items() if "score" in s}
        if measure.name == "exact_match":
            return {q: 100.0 * right for q, right in (self.right or {}).items()}
        assert measure.k is not None
        if measure.k > self.top_k:  # passages that were not asked for would count as misses
            return {}
        found = {q: self._ranks(sample, measure.name) for q, sample in self.samples.items()}
        return {
            q: 100.0 * any(rank <= measure.k for rank in ranks)
            for q, ranks in found.items()
            if ranks is not None
        }

    @staticmethod
    def _ranks(sample: Sample, name: str) -> list[int] | None:
        ranks = sample.get(_RANKS[name])
        return ranks[DEFAULT_RULE] if ranks is not None and name == "PRRecall" else ranks

    def default_measures(self) -> list[Measure]:
        """The answers' score, recall as the benchmark reports it (else PRRecall@5), and seconds."""
        measures = [Measure("score")] if self.values(Measure("score")) else []
        retrieval = self.results["retrieval"] or {}
        reported = next(iter(retrieval.get("reported", ())), None)
        if reported is not None:
            measures.append(Measure(_REPORTED[reported["metric"]], int(reported["k"])))
        elif self.values(Measure("PRRecall", 1)):
            measures.append(Measure("PRRecall", min(5, self.top_k)))
        return [*measures, Measure(SECONDS)]

    # -- statistics over some of the questions -----------------------------------------------------

    def estimate(self, measure: Measure, ids: Collection[Id], seed: int) -> Estimate | None:
        """The measure over those of the questions that have it, with a 95 % interval."""
        values = {q: value for q, value in self.values(measure).items() if q in ids}
        if not values:
            return None
        if self._in_splits(measure, values):
            found = harmonic_bootstrap(
                list(values.values()),
                [self._split(q) for q in values],
                [self.clusters[q] for q in values],
                seed=seed,
            )
        else:
            # Times are known of batches only: these are what is resampled.
            groups = self.clusters
            if measure.name == SECONDS:
                groups = {q: self.costs[q].batch for q in values}
            found = intervals.bootstrap(
                list(values.values()), [groups[q] for q in values], seed=seed
            )
        return Estimate(found.mean, found.low, found.high)

    def against(
        self, other: FinishedRun, measure: Measure, ids: Collection[Id], seed: int
    ) -> PairedTest | None:
        """This run minus another, over those of the questions that both have the measure of."""
        mine, theirs = self.values(measure), other.values(measure)
        both = [q for q in mine if q in theirs and q in ids]
        if not both:
            return None
        first, second = {q: mine[q] for q in both}, {q: theirs[q] for q in both}
        if self._in_splits(measure, first):
            splits = {q: self._split(q) for q in both}
            return harmonic_paired_test(first, second, splits, self.clusters, seed=seed)
        return intervals.paired_test(first, second, self.clusters, seed=seed)

    def cached_share(self, ids: Collection[Id]) -> float:
        """The largest share of a stage of these questions that came from the cache, 0 to 1."""
        return max((cost.cached for q, cost in self.costs.items() if q in ids), default=0.0)

    def _in_splits(self, measure: Measure, values: Mapping[Id, float]) -> bool:
        """Whether the measure is InfoSeek's: a harmonic mean over its two splits."""
        return (
            measure.name == "score"
            and self.metric == "infoseek"
            and len({self._split(q) for q in values}) == len(SPLITS)
        )

    def _split(self, question: Id) -> str:
        split = str(self.samples[question]["split"] or "")
        return SPLITS[0] if split.endswith(SPLITS[0]) else SPLITS[1]


def common_questions(runs: Mapping[str, FinishedRun], *, intersect: bool) -> dict[Id, None]:
    """The questions of all runs, in the first one's order.

    Args:
        runs: by name, for messages.
        intersect: leave out what some runs did not ask, instead of refusing it.

    Raises:
        UserError: the runs asked different questions, or scored them by different rules or
            references; no question is common to all.
    """
    (first_name, first), *others = runs.items()
    common = dict.fromkeys(first.samples)
    for name, run in others:
        if run.metric != first.metric and "score" not in (run.metric, first.metric):
            raise UserError(
                f"{first_name} was scored by {first.metric}, {name} by {run.metric}: they cannot "
                "be compared"
            )
        lacking = [q for q in first.samples if q not in run.samples]
        extra = [q for q in run.samples if q not in first.samples]
        if (lacking or extra) and not intersect:
            shared = len(first.samples) - len(lacking)
            raise UserError(
                f"{name} asked other questions than {first_name}: {shared} are common, "
                f"{len(lacking)} only in {first_name}, {len(extra)} only in {name}"
            )
        for question in lacking:
            common.pop(question, None)
        for question in first.samples.keys() & run.samples.keys():
            mine, theirs = first.samples[question], run.samples[question]
            for key in ("question", "answers"):
                if mine[key] != theirs[key]:
                    raise UserError(
                        f"question {question} has another {key.removesuffix('s')} in {name} than "
                        f"in {first_name}: they are not about the same data"
                    )
    if not common:
        raise UserError("no question is common to all runs")
    return common
