"""Search with single questions, from any thread or task, in a collection or prepared pipeline."""

from __future__ import annotations

import inspect
from collections import abc
from collections.abc import Callable, Sequence
from typing import Any

from ravqa.collections import Collection
from ravqa.core.errors import UserError, check_number, check_text
from ravqa.core.outcomes import Failure, succeeded
from ravqa.core.records import Hit, Passage, Question
from ravqa.corpora.corpus import Corpus
from ravqa.integrations.threads import Batcher
from ravqa.pipeline import Pipeline, Ranked

Found = list[tuple[Hit, Passage]]


class Searcher:
    """Describes questions, retrieves and reranks; concurrent questions share a batch."""

    def __init__(
        self, source: Collection | Pipeline, where: Callable[[Passage], bool] | None = None
    ):
        """Store what is searched.

        Args:
            where: only passages that it accepts are searched.

        Raises:
            UserError: a pipeline without passages, or one that cannot search a subset of them.
        """
        self.collection = source if isinstance(source, Collection) else None
        self._fixed = source if isinstance(source, Pipeline) else None
        self._where = where
        self._allowed: tuple[Corpus, frozenset[str]] | None = None
        self._batcher = Batcher(self._search)
        if self._fixed is not None:
            _check(self._fixed, where is not None)

    def search(self, question: Question, k: int) -> Found:
        """Return the k best passages, best first.

        Raises:
            DataError: the image cannot be decoded.
            UserError: the question is no text, or k no number of at least 1.
        """
        _check_asked(question, k)
        return succeeded(self._batcher.call((question, k)))

    async def asearch(self, question: Question, k: int) -> Found:
        """Async version of `search`."""
        _check_asked(question, k)
        return succeeded(await self._batcher.acall((question, k)))

    def pipeline(self, *, answering: bool = False) -> Pipeline:
        """Return a pipeline of the current state of what is searched.

        Args:
            answering: whether to include a collection's reader; a pipeline stays as it is.
        """
        if self.collection is not None:
            return self.collection.pipeline(where=self._where, answering=answering)
        assert self._fixed is not None
        return self._fixed

    def _search(self, asked: Sequence[tuple[Question, int]]) -> list[Found | Failure]:
        pipeline = self.collection.pipeline() if self.collection is not None else self.pipeline()
        options: dict[str, Any] = {}
        if self._where is not None:
            options["allowed_ids"] = self._ids(pipeline.corpus, self._where)
        questions = pipeline.describe([question for question, _ in asked])
        depth = max(k for _, k in asked)
        if pipeline.rerankers:  # they get as many passages as in the pipeline's own runs
            depth = max(depth, pipeline.top_k)
        retriever: Any = pipeline.retriever
        hits: Sequence[Ranked] = retriever.retrieve(questions, depth, **options)
        for stage in pipeline.rerank(questions, hits):
            hits = stage.hits
        pairs = zip(hits, asked, strict=True)
        return [
            found if isinstance(found, Failure) else pipeline.passages(found[:k])
            for found, (_, k) in pairs
        ]

    def _ids(self, corpus: Corpus | None, where: Callable[[Passage], bool]) -> abc.Collection[str]:
        """Return ids of the passages that may be found, computed once per corpus or state."""
        assert corpus is not None
        if self._allowed is None or self._allowed[0] is not corpus:
            # Passages on disk are read in the order of their files.
            passages = corpus.stream()
            self._allowed = (corpus, frozenset(p.passage_id for p in passages if where(p)))
        return self._allowed[1]


def _check_asked(question: Question, k: int) -> None:
    check_text("the question", question.question)
    check_number("the number of passages", k)


def _check(pipeline: Pipeline, filtered: bool) -> None:
    if pipeline.corpus is None:
        raise UserError("the pipeline has no passages: call pipeline.prepare(corpus) first")
    known = inspect.signature(pipeline.retriever.retrieve).parameters
    if filtered and "allowed_ids" not in known:
        kind = type(pipeline.retriever).__name__
        raise UserError(f"{kind} searches all passages: it cannot be used with filters")
