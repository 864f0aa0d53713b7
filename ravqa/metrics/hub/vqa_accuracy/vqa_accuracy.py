"""VQA accuracy for `evaluate`; see ravqa.metrics.vqa."""

from typing import Any

import datasets
import evaluate

from ravqa.metrics import vqa_accuracies

_CITATION = """\
Antol et al. 2015, VQA: Visual Question Answering. Code: github.com/GT-Vision-Lab/VQA.
"""


class VQAAccuracy(evaluate.Metric):  # type: ignore[misc]
    """Percent, two decimals; `normalization` is "official" or "always"."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="VQA accuracy as the official code computes it (OK-VQA, VQAv2).",
            citation=_CITATION,
            inputs_description="predictions: answers; references: ten annotators' answers each.",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(
        self, predictions: Any, references: Any, normalization: Any = "official"
    ) -> dict[str, Any]:
        scores = vqa_accuracies(predictions, references, normalization)
        return {"vqa_accuracy": round(100 * sum(scores) / len(scores), 2)}
