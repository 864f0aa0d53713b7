"""What released scoring code gave for made-up predictions, as `Question`s and records."""

import gzip
import json
from functools import cache
from pathlib import Path

from ravqa.core.records import Question
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.judges.base import Judge

DATA = Path(__file__).parent.parent / "data" / "scoring-rules"
FORMS = ("infoseek", "okvqa", "evqa")


@cache
def given(form):
    return json.loads(gzip.decompress((DATA / f"{form}.json.gz").read_bytes()))


def question_of(form, example):
    if form == "infoseek":
        return Question(
            example["data_id"],
            example["question"],
            answers=tuple(example["answer"]),
            answer_eval=tuple(example["answer_eval"]),
            question_type=example["question_type"],
            split=example["data_split"],
        )
    if form == "okvqa":
        return Question(
            example["question_id"], example["question"], answers=tuple(example["answers"])
        )
    answers = tuple(example["answer"].split("|"))
    kind = example["question_type"]
    return Question(example["id"], example["question"], answers=answers, question_type=kind)


@cache
def examples(form):
    """The questions of a file and the records of their predictions."""
    rows = given(form)["examples"]
    return [question_of(form, e) for e in rows], [AnswerRecord(e["prediction"]) for e in rows]


def rule_of(name):
    """The metric that a rule of the files is, and the scripted judge it was run with."""
    metric, _, verdicts = name.partition(".judge_")
    judge = ContainsJudge(verdicts == "contains") if verdicts else None
    return METRICS.get("pixelrag.judge" if metric == "pixelrag" else metric)(), judge


def percent_of(aggregate):
    """The score in percent of a rule's aggregate, which the codes name and scale as they like."""
    named = (
        aggregate[key] for key in ("final_score", "reward", "all", "score") if key in aggregate
    )
    value = next(named, None) or next(iter(aggregate.values()))
    return value if value > 1 else 100 * value


class ContainsJudge(Judge):
    """Accepts what contains the reference, lower-cased; or nothing."""

    name = "scripted"
    fingerprint = "scripted"

    def __init__(self, accepts=True):
        self.accepts = accepts

    def judge(self, questions, references, candidates):
        return [
            float(self.accepts and reference.lower() in candidate.lower())
            for reference, candidate in zip(references, candidates, strict=True)
        ]
