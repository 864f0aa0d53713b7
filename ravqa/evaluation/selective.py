"""Knowing when not to answer: refusals, and what each confidence on record is worth.

All is computed from the samples of a finished run. A question is one of four: answered right,
answered wrong, refused although a retrieved passage contains an answer, or refused rightly; what
the reader could not answer is counted apart. A right answer is never a refusal, whatever its words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ravqa.evaluation.schema import (
    AnswerSection,
    ConfidenceScores,
    Estimated,
    Outcomes,
    Sample,
    SelectiveSection,
    ThresholdScores,
)
from ravqa.evaluation.sections import DECIMALS, Id, interval_of
from ravqa.metrics import refusals, vqa
from ravqa.metrics.base import percent
from ravqa.metrics.prrecall import Rule
from ravqa.metrics.statistics import intervals, selective
from ravqa.metrics.statistics.intervals import Estimate, Interval

TARGET_RISKS = (1, 5, 10, 20)
"""Risks in percent for which results give a coverage, as in Whitehead et al. 2022."""
COVERAGES = tuple(range(5, 101, 5))
"""Coverages in percent at which results give the risk."""
TRUTHFULNESS = "+1 for a right answer, 0 for a refusal or no answer, -1 for a wrong one (CRAG-MM's)"
"""The rule of the score `truthfulness`, in words."""

Outcome = Literal[
    "answered_right",
    "answered_wrong",
    "refused_answerable",
    "refused_rightly",
    "refused_unknown",
    "unanswered",
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_POINTS = {"answered_right": 1, "answered_wrong": -1}


def outcome(sample: Sample, rule: Rule) -> Outcome:
    """Return what became of a question.

    Args:
        sample: a scored sample.
        rule: PRRecall's rule for what containing an answer means.
    """
    if sample["answer"] is None:
        return "unanswered"
    if sample["right"]:
        return "answered_right"
    if not is_refused(sample):
        return "answered_wrong"
    ranks = sample["answer_ranks"]
    if ranks is None:
        return "refused_unknown"
    return "refused_answerable" if ranks[rule] else "refused_rightly"


def is_refused(sample: Sample) -> bool:
    """Return whether the answer is a refusal, by its words or by the third label of a judge.

    In runs of earlier versions, by its words alone.
    """
    answer = sample["answer"]
    return answer is not None and (
        sample.get("refused", False)
        or sample.get("not_attempted", False)
        or refusals.is_refusal(answer)
    )


def truthfulness(found: Outcome) -> int:
    """Return +1 for a right answer, 0 for a refusal or no answer, -1 for a wrong answer."""
    return _POINTS.get(found, 0)


# -- confidences -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Confidence:
    """A number of a sample that may tell whether its answer is right.

    Attributes:
        about: what it is.
        of: returns it, higher for more confident; None if the sample has none.
        probability: turns it into a probability; None if it is no such thing.
    """

    about: str
    of: Callable[[Sample], float | None]
    probability: Callable[[float], float] | None = None


def _log_prob(sample: Sample) -> float | None:
    return sample.get("log_prob")


def _token_log_prob(sample: Sample) -> float | None:
    """Return the log-probability of the chosen generation, per token."""
    drafts, raw = sample["drafts"], sample["raw"]
    if sample.get("joint"):
        tokens, total = drafts[0]["tokens"], sample["log_prob"]
    else:
        # Drafts hold the beginning of a long generation; the longest beginning is the generation's.
        chosen = [draft for draft in drafts if raw is not None and raw.startswith(draft["raw"])]
        best = max(chosen, key=lambda d: (_or_lowest(d["score"]), len(d["raw"])), default=None)
        if best is None:
            return None
        tokens, total = best["tokens"], best["log_prob"]
    return None if total is None or not tokens else total / tokens


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None else value


def _self_check(sample: Sample) -> float | None:
    return sample.get("self_check")


def _agreement(sample: Sample) -> float | None:
    """Return the share of the drafts with the same answer, after VQA's clean-up."""
    texts = [vqa.normalise(draft["text"]) for draft in sample["drafts"]]
    if len(texts) < 2 or sample.get("joint") or sample["answer"] is None:
        return None
    return texts.count(vqa.normalise(sample["answer"])) / len(texts)


def _answer_share(sample: Sample) -> float | None:
    """Return the chosen answer's share of the probability of all answers."""
    drafts = sample["drafts"]
    if len(drafts) < 2 or sample.get("joint") or any(d["posterior"] is None for d in drafts):
        return None
    totals = {vqa.normalise(d["text"]): _or_lowest(d["score"]) for d in drafts}
    best = max(totals.values())
    if best == -math.inf:
        return None
    return 1 / sum(math.exp(total - best) for total in totals.values())


def _posteriors(sample: Sample) -> list[float]:
    found = [draft["posterior"] for draft in sample["drafts"] if draft["posterior"] is not None]
    return found if len(found) == len(sample["drafts"]) > 1 else []


def _passage_posterior(sample: Sample) -> float | None:
    return max(_posteriors(sample), default=None)


def _entropy(sample: Sample) -> float | None:
    found = _posteriors(sample)
    return sum(p * math.log(p) for p in found if p > 0) if found else None


def _retrieval_score(sample: Sample) -> float | None:
    stages = sample.get("stages")
    hits = stages[0]["hits"] if stages else sample["hits"]
    return hits[0][1] if hits else None


def _reranker_score(sample: Sample) -> float | None:
    return sample["hits"][0][1] if sample.get("stages") and sample["hits"] else None


CONFIDENCES: Mapping[str, Confidence] = {
    "log_prob": Confidence(
        "log-probability of the answer under the decision rule", _log_prob, math.exp
    ),
    "token_log_prob": Confidence(
        "log-probability of the chosen generation, per token", _token_log_prob, math.exp
    ),
    "agreement": Confidence("share of the drafts with the chosen answer", _agreement, float),
    "answer_share": Confidence(
        "share of the chosen answer in the probability of all answers", _answer_share, float
    ),
    "passage_posterior": Confidence(
        "largest posterior of a passage, p(z | x, y)", _passage_posterior
    ),
    "posterior_entropy": Confidence("entropy of the posterior over passages, negative", _entropy),
    "self_check": Confidence(
        "probability by the reader itself that its answer is right", _self_check, float
    ),
    "retrieval_score": Confidence("score of the first retrieved passage", _retrieval_score),
    "reranker_score": Confidence("score of the first passage after all rerankers", _reranker_score),
}
"""By name, what samples may have; a result names each."""


def confidences_of(sample: Sample) -> dict[str, float]:
    """Return the confidences that a sample has; -inf for a refusal that is not right.

    Without an answer, there are none.
    """
    if sample.get("answer") is None:
        return {}
    found = {name: confidence.of(sample) for name, confidence in CONFIDENCES.items()}
    refused = not sample["right"] and is_refused(sample)
    return {
        name: -math.inf if refused else value for name, value in found.items() if value is not None
    }


def confidences(samples: Mapping[Id, Sample]) -> dict[str, dict[Id, float]]:
    """Return each confidence that some questions have, by question.

    One that is the same for all of them tells nothing, and is left out.
    """
    return by_confidence({q: confidences_of(sample) for q, sample in samples.items()})


def by_confidence(found: Mapping[Id, Mapping[str, float]]) -> dict[str, dict[Id, float]]:
    """Return what `confidences_of` gave for every question, as `confidences` does."""
    names = [name for name in CONFIDENCES if any(name in own for own in found.values())]
    columns = {name: {q: own[name] for q, own in found.items() if name in own} for name in names}
    return {
        name: values
        for name, values in columns.items()
        if len({value for value in values.values() if value > -math.inf}) > 1
    }


def standing(questions: Iterable[Id], values: Mapping[Id, float]) -> list[float]:
    """Return the confidence of every question, -inf where it has none."""
    return [values.get(q, -math.inf) for q in questions]


def losses(samples: Mapping[Id, Sample]) -> list[float]:
    """Return 1 minus the score of each answer, 0 to 1."""
    return [1 - sample["score"] for sample in samples.values()]


# -- results ---------------------------------------------------------------------------------------


def selective_section(
    answers: AnswerSection,
    conditions: Mapping[str, Mapping[Id, Sample]],
    rule: Rule,
    *,
    seed: int,
) -> SelectiveSection:
    """Return the section of results: refusals of every condition, confidences of the first.

    Args:
        answers: the section of answers, for its rule.
        conditions: scored samples of the run itself, then of its controls.
        rule: PRRecall's rule, for what is answerable.
    """
    shared = [
        q for q in next(iter(conditions.values())) if all(q in s for s in conditions.values())
    ]
    labelled = answers["rule"].get("judge_labels") == 3
    kept = {name: {q: samples[q] for q in shared} for name, samples in conditions.items()}
    section: SelectiveSection = {
        "metric": answers["metric"],
        "right": answers["right"],
        "refusals": refusals.RULE_WITH_JUDGE if labelled else refusals.RULE,
        "answerable": f"a retrieved passage contains a reference answer (PRRecall's rule {rule})",
        "truthfulness": TRUTHFULNESS,
        "questions": len(shared),
        "outcomes": {},
        "scores": {},
        "confidences": confidence_scores(next(iter(kept.values())), seed=seed),
    }
    for name, samples in kept.items():
        outcomes = {q: outcome(sample, rule) for q, sample in samples.items()}
        counts = Counter(outcomes.values())
        read = sum(
            found == "refused_answerable" and _is_read(samples[q], rule)
            for q, found in outcomes.items()
        )
        counted: Outcomes = {
            "answered_right": counts["answered_right"],
            "answered_wrong": counts["answered_wrong"],
            "refused_answerable": counts["refused_answerable"],
            "refused_read": read,
            "refused_rightly": counts["refused_rightly"],
            "refused_unknown": counts["refused_unknown"],
            "unanswered": counts["unanswered"],
        }
        points = {q: 100.0 * truthfulness(found) for q, found in outcomes.items()}
        images = {q: sample["image_id"] for q, sample in samples.items()}
        section["outcomes"][name] = counted
        section["scores"][name] = {
            "value": round(sum(points.values()) / len(points), DECIMALS),
            "interval_95": interval_of(points, images, seed),
        }
    return section


def _is_read(sample: Sample, rule: Rule) -> bool:
    read = sample.get("read")
    return bool(read and read["answer_ranks"] and read["answer_ranks"][rule])


def confidence_scores(samples: Mapping[Id, Sample], *, seed: int) -> dict[str, ConfidenceScores]:
    """Return what each confidence on record is worth.

    Args:
        samples: scored samples, at least one.
    """
    images = [sample["image_id"] for sample in samples.values()]
    loss, right = losses(samples), [sample["right"] for sample in samples.values()]
    found = {}
    for name, values in confidences(samples).items():
        confidence = CONFIDENCES[name]
        place = np.array(standing(samples, values))
        chances = None
        if confidence.probability is not None:
            chances = [0.0 if v == -math.inf else confidence.probability(v) for v in place]

        measures = _measures(place, loss, right, chances)
        rows = zip(*selective.bootstrap(measures, images, seed=seed), strict=True)
        made = iter([_estimated(Interval(*map(float, row)), images) for row in rows])
        auroc, aurc = next(made), next(made)
        scores: ConfidenceScores = {
            "about": confidence.about,
            "questions": sum(value > -math.inf for value in values.values()),
            "AUROC": None if math.isnan(auroc["value"]) else auroc,
            "AURC": aurc,
            "coverage_at_risk": {str(risk): next(made) for risk in TARGET_RISKS},
            "curve": [],
        }
        for coverage in COVERAGES:
            point = next(made)
            scores["curve"].append(
                {
                    "coverage": coverage,
                    "risk": point["value"],
                    "interval_95": point["interval_95"],
                }
            )
        if chances is not None:
            scores["ECE"], scores["Brier"] = next(made), next(made)
        found[name] = scores
    return found


def threshold_scores(
    calibration: Mapping[Id, Sample],
    samples: Mapping[Id, Sample],
    target_risks: Sequence[float],
    *,
    seed: int,
) -> list[ThresholdScores]:
    """Choose a threshold of every confidence on some questions, and apply it to others.

    Args:
        calibration: scored samples to choose on: the largest coverage at the target risk.
        samples: scored samples to apply it to.
        target_risks: 0 to 1.
    """
    images = [sample["image_id"] for sample in samples.values()]
    loss, known = np.array(losses(samples)), confidences(samples)
    found: list[ThresholdScores] = []
    for name, values in confidences(calibration).items():
        if name not in known:
            continue
        chosen = standing(calibration, values), losses(calibration)
        place = np.array(standing(samples, known[name]))
        for risk in target_risks:
            threshold = selective.risk_coverage(*chosen).threshold_at(risk)
            taken = place >= (math.inf if threshold is None else threshold)
            before = np.array(chosen[0]) >= (math.inf if threshold is None else threshold)

            def shares(weights: np.ndarray, taken: np.ndarray = taken) -> np.ndarray:
                answered = weights @ taken
                with np.errstate(invalid="ignore"):
                    risks = weights @ (taken * loss) / answered
                return 100 * np.stack([answered / weights.sum(-1), risks], axis=-1)

            rows = zip(*selective.bootstrap(shares, images, seed=seed), strict=True)
            coverage, left = (_estimated(Interval(*map(float, row)), images) for row in rows)
            found.append(
                {
                    "confidence": name,
                    "target_risk": round(100 * risk, DECIMALS),
                    "threshold": threshold,
                    "chosen_with": {
                        "coverage": percent([float(x) for x in before]),
                        "risk": percent(list(np.array(chosen[1])[before])) if any(before) else None,
                    },
                    "coverage": coverage,
                    "risk": left if any(taken) else None,
                }
            )
    return found


def aurc_difference(
    first: tuple[Sequence[float], Sequence[float]],
    second: tuple[Sequence[float], Sequence[float]],
    images: Sequence[Hashable],
    *,
    seed: int,
) -> Estimate:
    """Return the first AURC minus the second, in points, with the interval of the difference.

    Args:
        first, second: confidence and loss of each question; the questions are the same.
        images: image of each question: both systems get the same resamples of images.
    """
    found = selective.bootstrap_interval(
        lambda w: 100 * (selective.aurc(*first, w) - selective.aurc(*second, w)), images, seed=seed
    )
    return intervals.estimate(found, images)


def _measures(
    place: np.ndarray,
    loss: Sequence[float],
    right: Sequence[bool],
    chances: Sequence[float] | None,
) -> selective.Statistic:
    """Return the statistic with all numbers of a confidence, in percent, in one column each.

    They are AUROC, AURC, coverages, risks and, for a probability, calibration error and Brier
    score, so that all share the resamples.
    """

    def statistic(weights: np.ndarray) -> np.ndarray:
        curve = selective.risk_coverage(place, loss, weights)
        columns = [
            selective.auroc(place, right, weights),
            curve.area(),
            *(curve.coverage_at(risk / 100) for risk in TARGET_RISKS),
            *curve.risk_at([coverage / 100 for coverage in COVERAGES]).T,
        ]
        if chances is not None:
            columns += [
                selective.calibration_error(chances, right, weights),
                selective.brier(chances, right, weights),
            ]
        table: np.ndarray = 100 * np.stack(columns, axis=-1)
        return table

    return statistic


def _estimated(found: Interval, images: Sequence[Id | None]) -> Estimated:
    value: Estimate = intervals.estimate(found, images)
    return {"value": round(value.value, DECIMALS), "interval_95": value.bounds(DECIMALS)}
