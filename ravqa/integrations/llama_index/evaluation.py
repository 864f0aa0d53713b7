"""PRRecall and VQA accuracy as LlamaIndex evaluation metrics.

PRRecall is registered under "prrecall" (K = 5) and "prrecall@K" for K of 1, 5, 10, 20, 50 and 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from llama_index.core.evaluation import (
    BaseEvaluator,
    EvaluationResult,
    RetrievalEvalResult,
    RetrieverEvaluator,
)
from llama_index.core.evaluation.retrieval.base import RetrievalEvalMode
from llama_index.core.evaluation.retrieval.metrics import METRIC_REGISTRY
from llama_index.core.evaluation.retrieval.metrics_base import (
    BaseRetrievalMetric,
    RetrievalMetricResult,
)
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import QueryBundle

from ravqa.integrations.llama_index.nodes import read_of
from ravqa.metrics.prrecall import DEFAULT_RULE, Rule, answer_ranks, recall_from_ranks
from ravqa.metrics.vqa import Normalization, vqa_accuracy

KS = (1, 5, 10, 20, 50, 100)


class PRRecall(BaseRetrievalMetric):
    """Pseudo-relevance recall: 1 if one of the first `k` texts contains an answer, else 0.

    `expected_texts` are the accepted answers; ids are ignored. The definition is that of
    `ravqa.metrics.prrecall`.
    """

    metric_name: ClassVar[str] = "prrecall"
    k: int = 5
    rule: Rule = DEFAULT_RULE

    def compute(
        self,
        query: str | None = None,
        expected_ids: list[str] | None = None,
        retrieved_ids: list[str] | None = None,
        expected_texts: list[str] | None = None,
        retrieved_texts: list[str] | None = None,
        **kwargs: Any,
    ) -> RetrievalMetricResult:
        """Return one question's score; its metadata has the ranks of all texts with an answer.

        Raises:
            ValueError: no answers, no texts, or K below 1.
        """
        if not expected_texts or retrieved_texts is None:
            raise ValueError("PRRecall needs answers as expected_texts, and retrieved_texts")
        ranks = answer_ranks(retrieved_texts, expected_texts, self.rule)
        score = recall_from_ranks(ranks, [self.k])[self.k]
        return RetrievalMetricResult(score=score, metadata={"k": self.k, "ranks": ranks})


def _at(k: int) -> type[PRRecall]:
    """Return PRRecall@k as a class: LlamaIndex builds metrics only from names."""
    fields = {"__module__": __name__, "__annotations__": {"k": int}, "k": k}
    return type(f"PRRecallAt{k}", (PRRecall,), {**fields, "metric_name": f"prrecall@{k}"})


METRIC_REGISTRY.update({"prrecall": PRRecall, **{f"prrecall@{k}": _at(k) for k in KS}})


class ImageRetrieverEvaluator(RetrieverEvaluator):
    """A `RetrieverEvaluator` for questions about images.

    The query may be a `QueryBundle`. Texts are compared with their titles, as everywhere in this
    project; LlamaIndex's own evaluator sees only texts.
    """

    async def aevaluate(
        self,
        query: str | QueryBundle,
        expected_ids: list[str] | None = None,
        expected_texts: list[str] | None = None,
        mode: RetrievalEvalMode = RetrievalEvalMode.TEXT,
        **kwargs: Any,
    ) -> RetrievalEvalResult:
        """Retrieve and compute every metric.

        Args:
            expected_ids: ids of relevant passages, for metrics that compare ids.
            expected_texts: the accepted answers, for PRRecall.
        """
        bundle = QueryBundle(query) if isinstance(query, str) else query
        found = await self.retriever.aretrieve(bundle)
        for postprocessor in self.node_postprocessors or ():
            found = postprocessor.postprocess_nodes(found, query_bundle=bundle)
        ids = [hit.node_id for hit in found]
        texts = [read_of(hit.node).content for hit in found]
        expected_ids = expected_ids or []
        results = {
            metric.metric_name: metric.compute(
                bundle.query_str, expected_ids, ids, expected_texts, texts
            )
            for metric in self.metrics
        }
        return RetrievalEvalResult(
            query=bundle.query_str,
            expected_ids=expected_ids,
            expected_texts=expected_texts,
            retrieved_ids=ids,
            retrieved_texts=texts,
            mode=mode,
            metric_dict=results,
        )

    def evaluate(
        self,
        query: str | QueryBundle,
        expected_ids: list[str] | None = None,
        expected_texts: list[str] | None = None,
        mode: RetrievalEvalMode = RetrievalEvalMode.TEXT,
        **kwargs: Any,
    ) -> RetrievalEvalResult:
        """Blocking version of `aevaluate`."""
        result: RetrievalEvalResult = super().evaluate(
            query,  # type: ignore[arg-type]  # handed on as it is
            expected_ids or [],
            expected_texts,
            mode,
            **kwargs,
        )
        return result


class VQAAccuracyEvaluator(BaseEvaluator):
    """Official VQA accuracy of a response, 0 to 1; see `ravqa.metrics.vqa`.

    A response passes with at least `threshold` (0.6: two of ten annotators agree with it).
    """

    def __init__(self, threshold: float = 0.6, normalization: Normalization = "official"):
        self.threshold = threshold
        self.normalization: Normalization = normalization

    def _get_prompts(self) -> PromptDictType:
        """Return no prompts: no language model is asked."""
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        """Do nothing; see `_get_prompts`."""

    async def aevaluate(
        self,
        query: str | QueryBundle | None = None,
        response: str | None = None,
        contexts: Sequence[str] | None = None,
        reference: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Score one response.

        Args:
            reference: the annotators' answers, ten in OK-VQA.

        Raises:
            ValueError: no response, or no answers.
        """
        if response is None or not reference:
            raise ValueError("VQA accuracy needs a response, and answers as reference")
        answers = [reference] if isinstance(reference, str) else list(reference)
        score = vqa_accuracy(response, answers, self.normalization)
        return EvaluationResult(
            query=None if query is None else str(query),
            response=response,
            contexts=contexts,
            score=score,
            passing=score >= self.threshold,
            feedback=f"VQA accuracy {score:.2f} against {len(answers)} answers",
        )
