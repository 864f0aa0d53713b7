"""The E-VQA score for `evaluate`; see ravqa.metrics.evqa."""

from typing import Any

import datasets
import evaluate

from ravqa.metrics import evqa_scores
from ravqa.metrics.judges.asking import certain

_CITATION = """\
Mensink et al. 2023, Encyclopedic VQA. Code: github.com/google-research/google-research,
encyclopedic_vqa.
"""


class EVQA(evaluate.Metric):  # type: ignore[misc]
    """Percent, two decimals; `judge` is one of `metrics.judges`, or None for exact match alone."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="E-VQA accuracy: exact match, else what a judge says.",
            citation=_CITATION,
            inputs_description="predictions: answers; references: answers (accepted ones), "
            "question and question_type.",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": {
                        "answers": datasets.Sequence(datasets.Value("string")),
                        "question": datasets.Value("string"),
                        "question_type": datasets.Value("string"),
                    },
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, judge: Any = None) -> dict[str, Any]:
        found = evqa_scores(
            predictions,
            [reference["answers"] for reference in references],
            [reference["question"] for reference in references],
            [reference["question_type"] for reference in references],
            judge,
        )
        scores = [certain(score) for score in found]
        return {
            "evqa_score": round(100 * sum(scores) / len(scores), 2),
            "judge": judge.name if judge else "none (exact match only)",
        }
