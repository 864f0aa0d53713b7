"""The section of retrieval in the results: what is marked of a ranking, and what becomes of it."""

import io
import itertools
import math
from dataclasses import replace

import pytest
from rich.console import Console as RichConsole

from ravqa.core.records import Passage, Question
from ravqa.datasets.base import Dataset, RetrievalMetric
from ravqa.evaluation.retrieval import Marker, retrieval_ks, retrieval_section
from ravqa.runs.console import Console

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
