"""Retrieval metrics against ir_measures and by hand."""

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, P, R, Success, nDCG

from ravqa.metrics import (
    article_recall_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
)

KS = (1, 3, 5, 10)
IDS = [f"p{i}" for i in range(12)]


def per_query(measures, relevant, rankings):
    qrels = [
        ir_measures.Qrel(q, passage, 1) for q, passages in relevant.items() for passage in passages
    ]
    run = [
        ir_measures.ScoredDoc(q, passage, -float(rank))
        for q, ranking in rankings.items()
        for rank, passage in enumerate(ranking)
    ]
    found = {m: {} for m in measures}
    for value in ir_measures.iter_calc(measures, qrels, run):
        found[value.measure][value.query_id] = value.value
    return found


@given(
    st.lists(st.tuples(st.permutations(IDS), st.sets(st.sampled_from(IDS), min_size=1)), max_size=6)
)
def test_equal_to_ir_measures(rows):
    rankings = {str(i): ranking[:9] for i, (ranking, _) in enumerate(rows)}  # shorter than K = 10
    relevant = {str(i): wanted for i, (_, wanted) in enumerate(rows)}
    measures = [m @ k for m in (Success, P, nDCG) for k in KS] + [RR]
    theirs = per_query(measures, relevant, rankings)
    for q, ranking in rankings.items():
        recall = recall_at_k(ranking, relevant[q], KS)
        precision = precision_at_k(ranking, relevant[q], KS)
        ndcg = ndcg_at_k(ranking, relevant[q], KS)
        for k in KS:
            assert recall[k] == pytest.approx(theirs[Success @ k][q])
            assert precision[k] == pytest.approx(theirs[P @ k][q])
            assert ndcg[k] == pytest.approx(theirs[nDCG @ k][q])
        assert reciprocal_rank(ranking, relevant[q]) == pytest.approx(theirs[RR][q])


@given(st.permutations(IDS), st.sampled_from(IDS))
def test_with_one_relevant_passage_recall_is_the_share_of_relevant_passages_too(ranking, wanted):
    theirs = per_query([R @ k for k in KS], {"q": {wanted}}, {"q": ranking})
    assert recall_at_k(ranking, {wanted}, KS) == {k: theirs[R @ k]["q"] for k in KS}


def test_a_passage_ranked_twice_counts_once():
    ranking = ["a", "a", "a", "b"]  # RA-VQA fills short rankings with the last passage
    assert precision_at_k(ranking, {"a", "b"}, [4]) == {4: 0.5}
    assert ndcg_at_k(ranking, {"a"}, [4]) == {4: 1}


def test_recall_of_articles_counts_articles():
    article_of = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}
    ranking = ["a1", "a2", "b1", "c1"]
    assert article_recall_at_k(ranking, {"b"}, article_of, [1, 2, 3]) == {1: 0, 2: 1, 3: 1}
    assert recall_at_k(ranking, {"b1"}, [1, 2, 3]) == {1: 0, 2: 0, 3: 1}
    with pytest.raises(KeyError):
        article_recall_at_k(["x"], {"b"}, article_of, [1])


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="at least one relevant"):
        recall_at_k(["a"], [], [1])
    with pytest.raises(ValueError, match="at least 1"):
        precision_at_k(["a"], ["a"], [0])
    assert recall_at_k([], ["a"], [1]) == {1: 0}
    assert reciprocal_rank([], ["a"]) == 0
