"""The metrics, one module per rule; nothing here imports torch.

`vqa`, `infoseek`, `evqa`, `aokvqa`, `multiple_choice` and `exact_match` score answers: pure
functions, and over them the answer metrics (`base`) that datasets name and that runs, studies and
reports work with. `prrecall` and `ranking` score retrieval; `diagnostics` measures how both work
together; `intervals` gives confidence intervals and paired tests over questions; `hub` holds the
same metrics for the library `evaluate`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ravqa.core.registry import Registry
from ravqa.metrics.released import RELEASED

if TYPE_CHECKING:
    from ravqa.metrics.aokvqa import aokvqa_direct_answer
    from ravqa.metrics.base import AnswerMetric
    from ravqa.metrics.diagnostics import (
        free_success_ratio,
        hit_success_ratio,
        hit_table,
    )
    from ravqa.metrics.evqa import evqa_score, evqa_scores
    from ravqa.metrics.infoseek import infoseek_score, infoseek_scores
    from ravqa.metrics.prrecall import pseudo_precision_at_k, pseudo_recall_at_k
    from ravqa.metrics.ranking import (
        article_recall_at_k,
        ndcg_at_k,
        precision_at_k,
        recall_at_k,
        reciprocal_rank,
    )
    from ravqa.metrics.vqa import exact_match_at_n, vqa_accuracies, vqa_accuracy

__all__ = [
    "METRICS",
    "RETRIEVAL_METRICS",
    "aokvqa_direct_answer",
    "article_recall_at_k",
    "evqa_score",
    "evqa_scores",
    "exact_match_at_n",
    "free_success_ratio",
    "hit_success_ratio",
    "hit_table",
    "infoseek_score",
    "infoseek_scores",
    "ndcg_at_k",
    "precision_at_k",
    "pseudo_precision_at_k",
    "pseudo_recall_at_k",
    "recall_at_k",
    "reciprocal_rank",
    "vqa_accuracies",
    "vqa_accuracy",
]

METRICS: Registry[type[AnswerMetric]] = Registry(
    "metric",
    {
        "vqa_accuracy": ("ravqa.metrics.vqa:VQAAccuracy", "official VQA accuracy (OK-VQA)"),
        "infoseek": ("ravqa.metrics.infoseek:InfoSeek", "official InfoSeek score"),
        "evqa_score": ("ravqa.metrics.evqa:EVQAScore", "official E-VQA score, with a judge"),
        "aokvqa_multiple_choice": (
            "ravqa.metrics.aokvqa:AOKVQAMultipleChoice",
            "official A-OKVQA score of choices",
        ),
        "aokvqa_direct_answer": (
            "ravqa.metrics.aokvqa:AOKVQADirectAnswer",
            "official A-OKVQA score of direct answers",
        ),
        "multiple_choice": (
            "ravqa.metrics.multiple_choice:MultipleChoice",
            "equality with the right choice, for questions of your own",
        ),
        "exact_match": (
            "ravqa.metrics.exact_match:ExactMatch",
            "equality with an accepted answer, for questions of your own",
        ),
        "judge": ("ravqa.metrics.judged:Judged", "a judge's verdict alone, for any question"),
        **RELEASED,
    },
    contract="ravqa.metrics.base:AnswerMetric",
)

RETRIEVAL_METRICS: Registry[Callable[..., Any]] = Registry(
    "retrieval metric",
    {
        "prrecall": (
            "ravqa.metrics.prrecall:pseudo_recall_at_k",
            "pseudo-relevance recall at K (retrieval)",
        ),
        "recall": (
            "ravqa.metrics.ranking:recall_at_k",
            "recall at K by passage ids or by articles (retrieval)",
        ),
    },
)

# The functions come with numpy, which is not needed to list the metrics.
_MODULES = {
    "aokvqa_direct_answer": "aokvqa",
    "free_success_ratio": "diagnostics",
    "hit_success_ratio": "diagnostics",
    "hit_table": "diagnostics",
    "evqa_score": "evqa",
    "evqa_scores": "evqa",
    "infoseek_score": "infoseek",
    "infoseek_scores": "infoseek",
    "pseudo_precision_at_k": "prrecall",
    "pseudo_recall_at_k": "prrecall",
    "article_recall_at_k": "ranking",
    "ndcg_at_k": "ranking",
    "precision_at_k": "ranking",
    "recall_at_k": "ranking",
    "reciprocal_rank": "ranking",
    "exact_match_at_n": "vqa",
    "vqa_accuracies": "vqa",
    "vqa_accuracy": "vqa",
}


def __getattr__(name: str) -> Any:
    """Import a function of the package on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
