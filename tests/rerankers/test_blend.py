"""The joint score of retrieval and reranking, counted by hand."""

import pytest

from ravqa.core.records import Hit, Passage, Question
from ravqa.rerankers.blend import Blend

QUESTION = Question(1, "What is this?")


def found(*rows):
    """Hits of rows (article, retriever's score, reranker's score), in this order."""
    return [
        (Hit(f"p{i}", s, i, r), Passage(f"p{i}", "text", article=article))
        for i, (article, r, s) in enumerate(rows, 1)
    ]


def blended(rows, **options):
    [hits] = Blend(Blend.Config(**options)).rerank([QUESTION], [found(*rows)])
    return [(hit.passage_id, hit.rank, round(hit.score, 6), hit.as_retrieved) for hit in hits]


def test_both_scores_are_scaled_to_one_before_they_are_joined():
    rows = [("A", 0.9, -2.0), ("A", 0.9, 2.0), ("B", 0.5, 8.0), ("C", 0.7, 3.0)]
    # Scaled: r 1, 1, 0, .5; s 0, .4, 1, .5.
    assert blended(rows, weight=0.5) == [
        ("p2", 1, 0.7, 0.9),
        ("p1", 2, 0.5, 0.9),
        ("p3", 3, 0.5, 0.5),
        ("p4", 4, 0.5, 0.7),
    ]
    assert [i for i, *_ in blended(rows, weight=0.0)] == ["p3", "p4", "p2", "p1"]
    assert [i for i, *_ in blended(rows, weight=1.0)] == ["p1", "p2", "p4", "p3"]


def test_the_best_passages_of_each_article_are_kept():
    rows = [("A", 0.9, 1.0), ("A", 0.9, 3.0), ("A", 0.9, 2.0), ("B", 0.1, 0.0)]
    assert [(i, rank) for i, rank, *_ in blended(rows, per_article=1)] == [("p2", 1), ("p4", 2)]
    assert [i for i, *_ in blended(rows, per_article=2)] == ["p2", "p3", "p4"]


def test_equal_scores_and_nothing_found():
    assert [(i, s) for i, _, s, _ in blended([("A", 0.4, 0.2)] * 2)] == [("p1", 1.0), ("p2", 1.0)]
    assert Blend().rerank([QUESTION], [[]]) == [[]]


def test_the_fingerprint_changes_with_the_options():
    made = [Blend(Blend.Config(**o)) for o in ({}, {"weight": 0.4}, {"per_article": 2})]
    assert len({blend.fingerprint for blend in made}) == 3


def test_a_weight_beyond_one_is_refused():
    with pytest.raises(ValueError, match="less than or equal to 1"):
        Blend.Config(weight=1.5)
