"""Losses of retrievers: contrastive and distilled, of late-interaction scores.

With queries i and documents j of a batch, s_ij the sum over the query's vectors of the largest
product with a vector of the document, t the temperature, and p(i) the relevant document of i:

    contrastive: mean over i of -log( exp(s_ip(i) / t) / sum over j of exp(s_ij / t) )

The sum runs over all documents of all processes, without those that are relevant to i too. With t
= 1 and nothing left out, this is the family's own loss.

    distilled: mean over i of KL( softmax over own j of r_ij || softmax over own j of s_ij / t )

where own j are the documents that were given with i, and r_ij a reranker's scores, divided by their
own temperature. Queries without such scores do not count.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def interaction(model: Any, q: Tensor, d: Tensor, mask: Tensor) -> Tensor:
    """Return the scores of all queries with all documents, [queries, documents].

    The products of one query are in memory at a time, also for the gradients.

    Args:
        q, d, mask: as for the model's `score`.
    """
    # Most queries and documents end in vectors that count nothing.
    counting = q.detach().ne(0).any(-1).any(0)
    kept = mask.reshape(*d.shape[:2]).any(0)
    q, d, mask = q[:, counting], d[:, kept], mask[:, kept]
    return torch.stack(
        [
            checkpoint(
                model.score, one[None], d, mask, use_reentrant=False, preserve_rng_state=False
            ).reshape(-1)
            for one in q
        ]
    )


def contrastive(
    scores: Tensor, labels: Tensor, left_out: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Return the contrastive loss.

    Args:
        scores: [queries, documents].
        labels: the number of each query's relevant document.
        left_out: bool [queries, documents]; True for documents that are no negatives of a query.
        temperature: t.
    """
    scores = scores / temperature
    if left_out is not None:
        own = functional.one_hot(labels, scores.shape[1]).bool()
        scores = scores.masked_fill(left_out & ~own, -torch.inf)
    return functional.cross_entropy(scores, labels)


def distilled(
    scores: Tensor, teacher: Tensor, temperature: float = 1.0, teacher_temperature: float = 1.0
) -> tuple[Tensor, int]:
    """Return the sum over queries of the distilled loss, and the number of queries that count.

    Args:
        scores: of each query with its own documents, [queries, documents].
        teacher: the reranker's, of the same shape; NaN where there is none. Queries with fewer than
            two do not count.
        temperature, teacher_temperature: of `scores` and of `teacher`.
    """
    known = ~teacher.isnan()
    counted = known.sum(1) > 1
    if not counted.any():
        return scores.sum() * 0.0, 0
    known, scores, teacher = known[counted], scores[counted], teacher[counted]
    nothing = torch.finfo(scores.dtype).min
    own = (scores / temperature).masked_fill(~known, nothing).log_softmax(1)
    wanted = (teacher / teacher_temperature).masked_fill(~known, nothing).log_softmax(1)
    divergence = functional.kl_div(own, wanted, reduction="none", log_target=True)
    return divergence.masked_fill(~known, 0.0).sum(), int(counted.sum())
