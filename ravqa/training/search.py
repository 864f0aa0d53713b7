"""Exact search with a model that is being trained, for validation and for mining negatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ravqa.core.progress import Progress
from ravqa.core.records import Passage, Question
from ravqa.training.inputs import Inputs

_PRODUCTS = 2**25  # in memory at a time: 128 MB
Ranking = list[tuple[str, float]]
"""Ids and scores of passages, the best first."""


class Searcher:
    """Searches passages with the current weights; the processes share the passages.

    Attributes:
        batch: questions or passages that are encoded together.
    """

    def __init__(
        self,
        model: Any,
        inputs: Inputs,
        autocast: Callable[[], Any],
        rank: int,
        world: int,
        batch: int = 32,
    ):
        self._model, self._inputs, self._autocast = model, inputs, autocast
        self._rank, self._world = rank, world
        self.batch = batch

    def search(
        self,
        questions: Sequence[Question],
        corpus: Mapping[str, Passage],
        ids: Sequence[str],
        k: int,
        progress: Progress,
        what: str,
    ) -> list[Ranking]:
        """Return the `k` best passages of each question; equal scores keep the order of `ids`.

        Args:
            ids: the passages of the corpus that are searched.
            what: for the progress bar.
        """
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                best, places = self._best(questions, corpus, ids, k, progress, what)
        finally:
            self._model.train(training)
        return [
            [(ids[i], score) for i, score in zip(row, values, strict=True)]
            for row, values in zip(places.tolist(), best.tolist(), strict=True)
        ]

    def _best(
        self,
        questions: Sequence[Question],
        corpus: Mapping[str, Passage],
        ids: Sequence[str],
        k: int,
        progress: Progress,
        what: str,
    ) -> tuple[Tensor, Tensor]:
        """Return scores and places in `ids` of the best passages, [questions, k] on the CPU."""
        queries = self._queries(questions)
        best = torch.full((len(questions), 0), 0.0, device=self._model.device)
        places = torch.zeros((len(questions), 0), dtype=torch.long, device=self._model.device)
        own = list(range(self._rank, len(ids), self._world))
        for start in range(0, len(own), self.batch):
            part = own[start : start + self.batch]
            with self._autocast():
                found = self._model.doc(
                    **self._inputs.documents([corpus[ids[i]] for i in part]), return_dict=True
                )
            scores = self._scores(queries, found.late_interaction_output, found.context_mask)
            numbers = torch.tensor(part, device=places.device).expand(len(questions), -1)
            best, places = _merged([best, scores], [places, numbers], k)
            progress(what, min(start + self.batch, len(own)), len(own))
        return self._of_all(best.cpu(), places.cpu(), k)

    def _queries(self, questions: Sequence[Question]) -> list[Tensor]:
        found = []
        for start in range(0, len(questions), self.batch):
            batch = questions[start : start + self.batch]
            with self._autocast():
                inputs = self._inputs.queries(batch)
                output = self._model.query(**inputs, return_dict=True)
            found.append(output.late_interaction_output)
        return found

    def _scores(self, queries: Sequence[Tensor], d: Tensor, mask: Tensor) -> Tensor:
        """Return [questions, documents]."""
        rows = []
        for batch in queries:
            step = max(1, _PRODUCTS // (batch.shape[1] * d.shape[0] * d.shape[1]))
            for q in batch.split(step):
                products = torch.einsum("qid,pjd->qpji", q.float(), d.float())
                products = products.masked_fill(~mask.reshape(1, *d.shape[:2], 1), -torch.inf)
                rows.append(products.amax(2).sum(-1))
        return torch.cat(rows)

    def _of_all(self, best: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self._world == 1:
            return best, places
        from accelerate.utils import gather_object

        both = gather_object([(best, places)])
        return _merged([b for b, _ in both], [p for _, p in both], k)


def _merged(scores: Sequence[Tensor], places: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` best scores of each row and their places; of equal ones, the first place."""
    all_scores, all_places = torch.cat(list(scores), 1), torch.cat(list(places), 1)
    order = all_places.argsort(dim=1, stable=True)
    all_scores, all_places = all_scores.gather(1, order), all_places.gather(1, order)
    order = all_scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return all_scores.gather(1, order), all_places.gather(1, order)
