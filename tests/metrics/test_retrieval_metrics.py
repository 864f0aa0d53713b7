"""Retrieval metrics against ir_measures and by hand, and as the results give them."""

import io
import itertools
import math
from dataclasses import replace

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, P, R, Success, nDCG
from rich.console import Console as RichConsole

from ravqa.core.records import Passage, Question
from ravqa.datasets.base import Dataset, RetrievalMetric
from ravqa.evaluation.retrieval import Marker, retrieval_ks, retrieval_section
from ravqa.metrics import (
    article_recall_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
)
from ravqa.runs.console import Console

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


# in the results


PASSAGES = {
    "p1": Passage("p1", "The art of war.", url="u1", article="A"),
    "p2": Passage("p2", "A party.", url="u1", article="A"),
    "p3": Passage("p3", "Nothing.", url="u2"),
    "p4": Passage("p4", "art again", entity="Q4"),
}
QUESTIONS = (
    Question(1, "q", image_id=1, answers=("art",), pos_item_ids=("p3",), pos_articles=("u2",)),
    Question(2, "q", image_id=2, answers=("art",), pos_item_ids=("p9", "p4"), pos_articles=("Q9",)),
    Question(3, "q", image_id=2, question_type="x"),
)
RANKINGS = {1: ["p3", "p2", "p1"], 2: ["p2", "p1", "p4"], 3: ["p4"]}


@pytest.fixture
def dataset():
    return Dataset(
        name="d",
        label="d",
        split="test",
        questions=QUESTIONS,
        metric=None,
        fingerprint="",
        retrieval_metrics=[
            RetrievalMetric("recall_at_k", 2),
            RetrievalMetric("pseudo_recall_at_k", 3),
            RetrievalMetric("recall_at_k", 100),
        ],
    )


@pytest.fixture
def samples():
    return {
        q.question_id: {
            "hits": [[p, 1.0] for p in RANKINGS[q.question_id]],
            **Marker(q).marks([PASSAGES[p] for p in RANKINGS[q.question_id]]),
        }
        for q in QUESTIONS
    }


def test_marks_of_a_sample(samples):
    assert samples[1]["answer_ranks"] == {"ravqa": [2, 3], "flmr": [2, 3], "word": [3]}
    assert samples[1]["article_ranks"] == [1]
    assert samples[2]["article_ranks"] == []
    assert samples[3]["answer_ranks"] is None
    assert samples[3]["article_ranks"] is None
    wanted = Question(4, "q", pos_articles=("Q4",))
    ranked = [PASSAGES[p] for p in ("p1", "p2", "p3", "p4")]
    assert Marker(wanted).marks(ranked)["article_ranks"] == [3]  # A, u2, Q4


def test_a_questions_rankings_are_marked_as_if_each_were_the_only_one():
    for question in QUESTIONS:
        marker = Marker(question)
        for names in itertools.permutations(PASSAGES, 3):
            ranked = [PASSAGES[name] for name in names]
            assert marker.marks(ranked) == Marker(question).marks(ranked)
        assert marker.marks([]) == Marker(question).marks([])


def test_items_of_a_multi_answer_reference_count_one_by_one():
    ranked = [Passage("a", "Deer live here."), Passage("b", "A bear.")]
    answers = ("bear && wolf", "deer&&fox&&")

    def ranks(kind):
        question = Question(1, "q", answers=answers, question_type=kind)
        return Marker(question).marks(ranked)["answer_ranks"]

    assert ranks("multi_answer") == {"ravqa": [1, 2], "flmr": [1, 2], "word": [1, 2]}
    assert ranks("templated") == ranks(None) == {"ravqa": [], "flmr": [], "word": []}


def test_retrieval_section_by_hand(dataset, samples):
    ks = retrieval_ks(dataset, 3)
    assert ks == [1, 2, 3]
    section = retrieval_section(dataset, {"main": samples}, ks, seed=0)
    assert section["rule"] == "flmr"
    assert section["questions"] == 2
    main = section["conditions"]["main"]
    assert main["PRRecall"] == {"1": 50, "2": 100, "3": 100}
    assert main["PRRecall_by_rule"]["word"] == {"1": 0, "2": 50, "3": 100}
    assert main["PRPrecision"] == {"1": 50, "2": 75, "3": round(100 * (2 / 3 + 1) / 2, 4)}
    by_ids = section["by_ids"]["conditions"]["main"]
    assert section["by_ids"]["questions"] == 2
    assert by_ids["Recall"] == {"1": 50, "2": 50, "3": 100}
    assert by_ids["MRR"] == round(100 * (1 + 1 / 3) / 2, 4)
    assert by_ids["nDCG"]["3"] == round(
        100 * (1 + (1 / math.log2(4)) / (1 + 1 / math.log2(3))) / 2, 4
    )
    assert section["by_articles"]["conditions"]["main"]["Recall"] == {"1": 50, "2": 50, "3": 50}
    reported = {(r["metric"], r["k"]): r for r in section["reported"]}
    assert {name: r["conditions"] for name, r in reported.items()} == {
        ("recall_at_k", 2): {"main": 50},
        ("pseudo_recall_at_k", 3): {"main": 100},
    }
    assert {r["questions"] for r in section["reported"]} == {2}
    assert reported["recall_at_k", 2]["intervals_95"] == {"main": by_ids["interval_95"]["2"]}
    assert reported["pseudo_recall_at_k", 3]["intervals_95"] == {"main": [100, 100]}


def test_every_way_of_scoring_retrieval_is_printed(dataset, samples):
    out = io.StringIO()
    section = retrieval_section(dataset, {"main": samples}, [1, 2], seed=0)
    heading = {"label": "D", "split": "test"}
    console = Console(out=RichConsole(file=out, width=100))
    provenance = {"retriever": "bm25"}
    console.tables(
        {"dataset": heading, "answers": None, "retrieval": section, "provenance": provenance}
    )
    printed = out.getvalue()
    for title in ("Retrieval, 2", "Retrieval by passage ids, 2", "Retrieval by articles, 2"):
        assert f"{title} questions" in printed
    assert "PRRecall@2 %" in printed
    assert printed.count(" Recall@2 %") == 2


def test_questions_without_answers_are_scored_by_ids_alone(dataset, samples):
    questions = [replace(q, answers=()) for q in QUESTIONS[:2]]
    section = retrieval_section(
        replace(dataset, questions=questions), {"main": samples, "none": _nothing()}, [1], seed=0
    )
    assert section["conditions"] == {}
    assert list(section["by_ids"]["conditions"]) == ["main"]  # "none" retrieved nothing
    plain = [replace(q, pos_item_ids=(), pos_articles=()) for q in QUESTIONS]
    section = retrieval_section(replace(dataset, questions=plain), {"main": samples}, [1], seed=0)
    assert section["by_ids"] is None
    assert section["by_articles"] is None


def _nothing():
    return {
        q.question_id: {
            "hits": [],
            "answer_ranks": None,
            "id_ranks": None,
            "article_ranks": None,
        }
        for q in QUESTIONS
    }
