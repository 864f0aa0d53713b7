"""PRRecall@K for `evaluate`; see ravqa.metrics.prrecall."""

from typing import Any

import datasets
import evaluate

from ravqa.metrics import pseudo_recall_at_k

_CITATION = """\
Luo et al. 2021, Weakly-Supervised Visual-Retriever-Reader for Knowledge-based Question Answering;
Lin et al. 2023 (FLMR). Code: github.com/LinWeizheDragon/FLMR.
"""


class PseudoRecall(evaluate.Metric):  # type: ignore[misc]
    """Percent, two decimals, for each of `ks`; `rule` is "flmr", "ravqa", "word" or "nfkc"."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of questions with an answer string in the first K passages.",
            citation=_CITATION,
            inputs_description="predictions: ranked passages, best first; references: answers.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(
        self, predictions: Any, references: Any, ks: Any = (1, 5, 10, 20), rule: Any = "flmr"
    ) -> dict[str, Any]:
        found = [
            pseudo_recall_at_k(passages, answers, ks, rule)
            for passages, answers in zip(predictions, references, strict=True)
        ]
        means = {k: round(100 * sum(values[k] for values in found) / len(found), 2) for k in ks}
        return {"rule": rule, **{f"pseudo_recall@{k}": mean for k, mean in means.items()}}
