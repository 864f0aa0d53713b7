"""Figures of a run's report, from its results and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ravqa.evaluation.schema import Ranking
from ravqa.metrics.ranking import DEFAULT_KS
from ravqa.metrics.statistics import intervals
from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.charts import Axis, Figure, Series, columns, curves, dots, round_steps, shares
from ravqa.reports.run import Run
from ravqa.runs import console
from ravqa.runs.folder import MAIN

_STYLES = {name: style for style, name in enumerate(console.CONDITIONS)}
_RANKS = ((1, 1), (2, 2), (3, 3), (4, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, None))
_BINS = 10
_VALUES = 8  # up to this many different scores are shown one by one
_STAGES = {"retrieve": "retrieving", "answer": "answering"}


def run_figures(run: Run) -> list[Figure]:
    """Return the figures for which the run has numbers."""
    makers: Sequence[Callable[[Run], Figure | None]] = (
        recall_curve,
        accuracy_by_type,
        accuracy_by_rank,
        score_histogram,
        retrieval_scores,
        times,
    )
    return [figure for maker in makers if (figure := maker(run)) is not None]


def condition_name(run: Run, condition: str) -> str:
    """Return a readable name of the run, by what ran, or of one of its controls."""
    return console.condition_name(condition, run.results["provenance"]["retriever"])


def _style(condition: str) -> int:
    return _STYLES.get(condition, 5)


def first_rank(run: Run, ranking: Ranking) -> int | None:
    """Return the rank of the first passage with an answer, 0 for none; None without references."""
    ranks = ranking["answer_ranks"]
    return None if ranks is None else min(ranks[run.rule], default=0)


def recall_curve(run: Run) -> Figure | None:
    """Draw PRRecall at every K, with bands; equal to the results at their Ks."""
    ranks = {
        condition: {
            q: rank for q in _shared(run) if (rank := first_rank(run, samples[q])) is not None
        }
        for condition, samples in run.samples.items()
        if any(sample["hits"] for sample in samples.values())
    }
    deepest = max((len(s["hits"]) for s in run.main.values()), default=0)
    if not ranks or not any(ranks.values()) or not deepest:
        return None
    named = _named_ks(run, deepest)
    ks = sorted({*range(1, min(deepest, 20) + 1), *range(20, min(deepest, 100) + 1, 10), *named})
    series = [
        Series(
            condition_name(run, condition),
            _style(condition),
            [_mean(run, {q: 100.0 * (0 < r <= k) for q, r in found.items()}) for k in ks],
        )
        for condition, found in ranks.items()
        if found
    ]
    return curves(
        "PRRecall@K",
        "Questions with a passage among the first K that contains a reference answer "
        f"(rule {run.rule}), with 95 % intervals.",
        ks,
        series,
        x_name="K",
        ticks=named,
    )


def _named_ks(run: Run, deepest: int) -> list[int]:
    """Return the Ks of the results."""
    retrieval = run.results["retrieval"]
    conditions = retrieval["conditions"].values() if retrieval else ()
    found = {int(k) for condition in conditions for k in condition["PRRecall"]}
    return sorted(found) or [k for k in DEFAULT_KS if k <= deepest] or [deepest]


def accuracy_by_type(run: Run) -> Figure | None:
    """Draw answer quality by question type, as in the results; all questions first."""
    answers = run.results["answers"]
    if answers is None:
        return None
    types = answers["conditions"][MAIN]["groups"]
    series = []
    for name, condition in answers["conditions"].items():
        whole = condition.get("mean", condition["score"])
        values = [None if whole is None else Estimate(whole, *condition["interval_95"])]
        for kind in types:
            group = condition["groups"].get(kind)
            values.append(Estimate(group["mean"], *group["interval_95"]) if group else None)
        series.append(Series(condition_name(run, name), _style(name), values))
    counts = [answers["questions"], *(group["questions"] for group in types.values())]
    return dots(
        f"{metric_name(run)} by question type",
        "Means with 95 % intervals over images.",
        ["All questions", *types],
        series,
        x_name="question type",
        counts=counts,
        axis=Axis(f"{metric_name(run)} %", high=100.0),
    )


def accuracy_by_rank(run: Run) -> Figure | None:
    """Draw answer quality by rank of the first passage with an answer: 1, 2, ..., or none."""
    scored = [q for q in _shared(run) if "score" in run.main[q]]
    ranks = {q: rank for q in scored if (rank := first_rank(run, run.main[q])) is not None}
    if not ranks or not any(run.main[q]["hits"] for q in ranks):
        return None
    places: list[tuple[str, list[int | str]]] = []
    for low, high in _RANKS:
        inside = [q for q, r in ranks.items() if low <= r and (high is None or r <= high)]
        label = f"{low}" if low == high else f"{low}+" if high is None else f"{low}\u2013{high}"
        places.append((label, inside))
    places.append(("none", [q for q, r in ranks.items() if r == 0]))
    places = [place for place in places if place[1]]
    shown = [c for c in (MAIN, "none") if c in run.samples and _has_scores(run, c)]
    series = [
        Series(
            condition_name(run, c),
            _style(c),
            [_mean(run, {q: 100.0 * run.samples[c][q]["score"] for q in qs}) for _, qs in places],
        )
        for c in shown
    ]
    return columns(
        f"{metric_name(run)} by rank of the first passage with an answer",
        f"By the rank of the first passage with a reference answer (rule {run.rule}); "
        "whiskers are 95 % intervals.",
        [label for label, _ in places],
        series,
        x_name="rank of the first passage with an answer",
        counts=[len(qs) for _, qs in places],
    )


def score_histogram(run: Run) -> Figure | None:
    """Draw how many questions get each score."""
    scores = {
        c: [float(run.samples[c][q]["score"]) for q in _shared(run)]
        for c in run.samples
        if _has_scores(run, c)
    }
    scores = {c: values for c, values in scores.items() if values}
    if not scores:
        return None
    different = sorted({round(v, 3) for values in scores.values() for v in values} | {0.0, 1.0})
    if len(different) <= _VALUES:
        labels = [f"{value:g}" for value in different]
        places = {value: i for i, value in enumerate(different)}
        rows = {c: [places[round(v, 3)] for v in values] for c, values in scores.items()}
    else:
        labels = [f"{i / _BINS:g}\u2013{(i + 1) / _BINS:g}" for i in range(_BINS)]
        rows = {c: [min(int(v * _BINS), _BINS - 1) for v in vs] for c, vs in scores.items()}
    return columns(
        "Scores of the answers",
        f"Share of the questions by the score of their answer ({metric_name(run)}, 0 to 1).",
        labels,
        [
            Series(condition_name(run, c), _style(c), _shares(r, len(labels)))
            for c, r in rows.items()
        ],
        x_name="score of the answer",
        axis=Axis("%"),
    )


def retrieval_scores(run: Run) -> Figure | None:
    """Draw the scores of the best passages, with and without an answer."""
    tops = [
        (float(sample["hits"][0][1]), first_rank(run, sample) == 1)
        for sample in run.main.values()
        if sample["hits"] and sample["answer_ranks"] is not None
    ]
    if not tops:
        return None
    edges = round_steps(min(score for score, _ in tops), max(score for score, _ in tops), 8)
    last = len(edges) - 2
    width = edges[1] - edges[0]
    rows = {
        holds: [min(int((s - edges[0]) / width), last) for s, held in tops if held is holds]
        for holds in (True, False)
    }
    labels = [f"{edge:g}" for edge in edges[:-1]]
    names = {True: "it contains an answer", False: "it does not"}
    return columns(
        "Score of the first passage",
        "Questions by the retrieval score of their first passage: where the two kinds lie apart, "
        "the score tells whether retrieval found an answer. Labels are the bins' lower ends.",
        labels,
        [
            Series(names[holds], 2 if holds else 4, _counts(r, len(labels)))
            for holds, r in rows.items()
        ],
        x_name="score of the first passage",
        axis=Axis("questions", decimals=0),
    )


def times(run: Run) -> Figure | None:
    """Draw seconds per question of each stage, by condition."""
    spent: dict[str, dict[str, float]] = {}
    for condition, samples in run.samples.items():
        own = spent.setdefault(condition, {})
        for sample in samples.values():
            for stage, seconds in sample["seconds"].items():
                own[stage] = own.get(stage, 0.0) + seconds / len(samples)
    found = {stage for own in spent.values() for stage, seconds in own.items() if seconds > 0}
    if not found:
        return None
    stages = list(dict.fromkeys(s for own in spent.values() for s in own if s in found))
    whole = run.results["timing"]["seconds"]
    return shares(
        "Where the time goes",
        "Mean seconds per question in this run; little for what came from the cache. The run took "
        f"{whole:,.0f} s, including loading and scoring.",
        [condition_name(run, condition) for condition in spent],
        [
            Series(
                stage_name(stage),
                i % 4,
                [Estimate(own[stage]) if stage in own else None for own in spent.values()],
            )
            for i, stage in enumerate(stages)
        ],
        x_name="condition",
        axis=Axis("seconds per question", decimals=3),
    )


def stage_name(stage: str) -> str:
    """Return a readable name of a stage."""
    return _STAGES.get(stage, stage)


def metric_name(run: Run) -> str:
    """Return a readable name of the answer metric."""
    answers = run.results["answers"]
    return answers["label"] if answers else "score"


def _shared(run: Run) -> list[int | str]:
    """Return the questions that all conditions share."""
    return [q for q in run.main if all(q in samples for samples in run.samples.values())]


def _has_scores(run: Run, condition: str) -> bool:
    return all("score" in run.samples[condition][q] for q in _shared(run))


def _mean(run: Run, values: Mapping[int | str, float]) -> Estimate | None:
    """Return the mean with the same interval as in results: resampled by image, same seed."""
    if not values:
        return None
    images = [run.main[q]["image_id"] for q in values]
    seed = run.results["provenance"]["seed"]
    found = intervals.bootstrap(list(values.values()), images, seed=seed)
    return intervals.estimate(found, images)


def _counts(places: Iterable[int], size: int) -> list[Estimate | None]:
    counts = [0] * size
    for place in places:
        counts[place] += 1
    return [Estimate(count) for count in counts]


def _shares(places: Sequence[int], size: int) -> list[Estimate | None]:
    return [Estimate(100 * found.value / len(places)) for found in _counts(places, size) if found]
