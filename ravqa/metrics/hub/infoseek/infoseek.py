"""The InfoSeek score for `evaluate`; see ravqa.metrics.infoseek."""

from typing import Any

import datasets
import evaluate

from ravqa.metrics.infoseek import aggregate, infoseek_score

_CITATION = """\
Chen et al. 2023, Can Pre-trained Vision and Language Models Answer Visual Information-Seeking
Questions? Code: github.com/edchengg/infoseek_eval.
"""


class InfoSeek(evaluate.Metric):  # type: ignore[misc]
    """The official toolkit's result; None where a split has no question."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="InfoSeek score as the official toolkit computes it.",
            citation=_CITATION,
            inputs_description="predictions: answers; references: data_split, question_type, and "
            "answer_eval (accepted strings) or, for Numerical, range (low, high).",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": {
                        "data_split": datasets.Value("string"),
                        "question_type": datasets.Value("string"),
                        "answer_eval": datasets.Sequence(datasets.Value("string")),
                        "range": datasets.Sequence(datasets.Value("float64")),
                    },
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        rows = []
        for prediction, reference in zip(predictions, references, strict=True):
            accepted = reference["answer_eval"]
            if reference["range"]:
                accepted = [{"range": reference["range"]}]
            value = infoseek_score(prediction, accepted, reference["question_type"])
            rows.append((reference["data_split"], reference["question_type"], value))
        return aggregate(rows)
