"""The metrics, one module per rule; nothing here imports torch.

`vqa`, `infoseek`, `evqa` and `exact_match` score answers: pure functions, and over them the answer
metrics (`base`) that datasets name and that runs, studies and reports work with. `prrecall` and
`ranking` score retrieval; `diagnostics` says how both work together; `intervals` gives confidence
intervals and paired tests over questions; `hub` holds the same metrics for the library `evaluate`.
"""

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
