"""The conformance suite of rerankers, filters and gates: whole parts pass, broken ones do not."""

from dataclasses import replace

import pytest

from ravqa.core.outcomes import Failure
from ravqa.rerankers.base import PassageFilter, Reranker, renumbered
from ravqa.rerankers.gate import Gate
from ravqa.rerankers.threshold import Threshold
from ravqa.rerankers.vlm import VLMReranker
from ravqa.testing import check_reranker
from ravqa.testing.rules import SmallReader


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Threshold, {"rule": "difference", "value": 1.0}),
        (Threshold, {"max_kept": 2}),
        (Gate, {"rule": "margin", "at_least": 0.5}),
        (Gate, {"rule": "best", "at_least": 9.0}),
    ],
)
def test_bundled_filters(kind, options):
    check_reranker(kind(kind.Config(**options)))


@pytest.mark.usefixtures("fresh_cache")
def test_rerankers_that_ask_a_reader():
    words = {"positive": ("leaves",), "negative": ("fish",)}
    for way in ("next-token", "score"):
        check_reranker(VLMReranker(VLMReranker.Config(way=way, **words), SmallReader()))
    gate = Gate.Config(rule="reader", at_least=0.5, **words)
    check_reranker(Gate(gate, SmallReader()))


@pytest.mark.usefixtures("fresh_cache")
def test_the_cross_encoder(tmp_path):
    pytest.importorskip("sentence_transformers")
    import cross_encoder_files
    import transformers

    from ravqa.rerankers.cross_encoder import CrossEncoderReranker

    model = transformers.BertForSequenceClassification(cross_encoder_files.config(num_labels=1))
    folder = cross_encoder_files.save(tmp_path, model)
    check_reranker(CrossEncoderReranker(CrossEncoderReranker.Config(model=folder)))


class Keeps(Reranker):
    """Leaves everything as it is."""

    fingerprint = "keeps/1"

    def rerank(self, questions, candidates):
        return [self._hits([hit for hit, _ in found]) for found in candidates]

    def _hits(self, hits):
        return hits


class Turns(Keeps):
    def _hits(self, hits):
        return renumbered(hits[::-1])


class Ranks(Keeps):
    def _hits(self, hits):
        return hits[1:]


class Forgets(Keeps):
    def _hits(self, hits):
        return [replace(hit, score=hit.score + 1) for hit in hits]


class Doubles(Keeps):
    def _hits(self, hits):
        return hits * 2


class Skips(Keeps):
    def rerank(self, questions, candidates):
        return super().rerank(questions, candidates[1:])


class Refuses(Keeps):
    def rerank(self, questions, candidates):
        return [Failure("no") for _ in questions]


class Best(Keeps):
    """Looks at all questions to treat one."""

    def rerank(self, questions, candidates):
        return [found[: len(questions)] for found in super().rerank(questions, candidates)]


class Odd(Keeps):
    Config = object


class Rescores(PassageFilter):
    fingerprint = "rescores/1"

    def keep(self, questions, rankings):
        return [[True] * len(hits) for hits in rankings]

    def rerank(self, questions, candidates):
        return [
            [replace(h, score=0.0, retrieval_score=h.score) for h in hits]
            for hits in super().rerank(questions, candidates)
        ]


@pytest.mark.parametrize(
    ("reranker", "sentence"),
    [
        (Turns(), "returns the best first"),
        (Ranks(), "counts ranks from 1"),
        (Forgets(), "keeps the retriever's score"),
        (Doubles(), "a passage twice for one question"),
        (Skips(), "it returned 2 results from rerank for 3 items"),
        (Refuses(), "takes the suite's questions"),
        (Best(), "alike whatever is asked with it"),
        (Odd(), "Odd.Config is derived from"),
        (Rescores(), "is a filter: scores and order stay"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_reranker_that_breaks_its_contract(reranker, sentence):
    check_reranker(Keeps())
    with pytest.raises(AssertionError, match=f"{sentence}.*ravqa.rerankers.base.Reranker"):
        check_reranker(reranker)
