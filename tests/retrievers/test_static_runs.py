"""Rankings as files: RA-VQA's static results and TREC runs, read, written and retrieved from."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ravqa.core.errors import DataError, UserError
from ravqa.core.factory import build_part
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import Part
from ravqa.corpora.corpus import Corpus
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.runs import column, read_run, trec_lines, write_static, write_trec
from ravqa.retrievers.static import StaticRetriever

CORPUS = Corpus(
    [Passage("GS_1", "one"), Passage("GS_2", "two", title="T"), Passage("a b", "three")]
)
QUESTIONS = [
    Question(5, "?", answers=("x", "y", "y"), pos_item_ids=("GS_2",)),
    Question("q 2", "?", extra={"gold_answer": "z"}, answers=("x",)),
    Question(9, "?"),
]
HITS = [
    [Hit("GS_2", 2.5, 1), Hit("a b", 1.25, 2), Hit("GS_1", -0.5, 3)],
    [Hit("GS_1", 1e-7, 1)],
    [],
]


def pairs(path):
    return {q: ranking.pairs() for q, ranking in read_run(path).items()}


def retriever(path, **options):
    part = Part(name="static", file=str(path), **options)
    return build_part(RETRIEVERS, part, "retriever")


# RA-VQA


def test_static_results_are_written_in_ravqas_form(tmp_path):
    pytest.importorskip("ijson")
    path = tmp_path / "test_predictions.json"
    write_static(path, zip(QUESTIONS, HITS, strict=True), CORPUS)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert list(document) == ["output"]
    assert [list(item) for item in document["output"]] == [
        ["question_id", "top_ranking_passages", "answers", "gold_answer", "pos_item_ids"]
    ] * 3
    assert document["output"][0] == {
        "question_id": "5",
        "top_ranking_passages": [
            {"passage_index": 1, "passage_id": "GS_2", "content": "T: two", "score": 2.5},
            {"passage_index": 2, "passage_id": "a b", "content": "three", "score": 1.25},
            {"passage_index": 0, "passage_id": "GS_1", "content": "one", "score": -0.5},
        ],
        "answers": ["x", "y", "y"],
        "gold_answer": "y",
        "pos_item_ids": ["GS_2"],
    }
    assert [item["gold_answer"] for item in document["output"]] == ["y", "z", ""]
    assert pairs(path) == {
        "5": [("GS_2", 2.5), ("a b", 1.25), ("GS_1", -0.5)],
        "q 2": [("GS_1", 1e-7)],
        "9": [],
    }


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_static(path, [(QUESTIONS[0], [Hit("unknown", 1.0, 1)])], CORPUS)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, "there are no rankings"),
        ({"output": []}, "there are no rankings"),
        ({"output": [{"question_id": "1"}]}, "question 1: 'top_ranking_passages'"),
        ({"output": [{"top_ranking_passages": []}]}, "question 1: no 'question_id'"),
        ({"output": [5]}, "question 1: 'top_ranking_passages'"),
    ],
)
def test_a_static_file_of_another_form_is_named(tmp_path, document, reason):
    pytest.importorskip("ijson")
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=reason):
        read_run(path)


@pytest.mark.parametrize("value", [None, "", [], {}, ["a"], True, 1.5, 1.0])
@pytest.mark.parametrize("key", ["question_id", "passage_id"])
def test_an_id_that_is_none_is_named_and_not_made_a_word(tmp_path, key, value):
    pytest.importorskip("ijson")
    entry = {"passage_id": "a", "content": "x", "score": 1.0}
    item = {"question_id": "1", "top_ranking_passages": [entry]}
    (entry if key == "passage_id" else item)[key] = value
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"output": [item]}))
    with pytest.raises(DataError, match=rf"r\.json, question 1: .*'{key}'") as caught:
        read_run(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("score", [None, "high", float("nan"), True, [], {}])
def test_a_score_that_is_no_number_is_named(tmp_path, score):
    pytest.importorskip("ijson")
    entries = [{"passage_id": "a", "content": "x", "score": score}]
    item = {"question_id": "1", "top_ranking_passages": entries}
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"output": [item]}))
    with pytest.raises(DataError, match=r"r\.json"):
        read_run(path)


# TREC


IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)


@given(
    st.dictionaries(
        IDS,
        st.dictionaries(IDS, st.floats(-1e6, 1e6), min_size=1, max_size=5),
        min_size=1,
        max_size=5,
    )
)
def test_a_trec_run_comes_back_whatever_the_ids(tmp_path_factory, rankings):
    path = tmp_path_factory.getbasetemp() / "any.trec"
    hits = {
        q: [
            Hit(p, s, rank)
            for rank, (p, s) in enumerate(sorted(found.items(), key=lambda x: -x[1]), 1)
        ]
        for q, found in rankings.items()
    }
    write_trec(path, hits.items())
    corpus = Corpus([Passage(p, "x") for p in {p for found in rankings.values() for p in found}])
    static = StaticRetriever(StaticRetriever.Config(file=path))
    for ids in (rankings, corpus):  # "a b" and "a%20b" are the same in a run
        assume(len({column(name) for name in ids}) == len(ids))
    static.prepare(corpus)
    questions = [Question(q, "?") for q in rankings]
    assert static.retrieve(questions, 10) == list(hits.values())


def test_trec_runs_are_ordered_by_their_scores_as_trec_eval_does(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("1 Q0 a 1 0.5 x\n\n1 Q0 b 2 2 x\n2\tQ0\tc\t1\t1e-3\tx\n1 Q0 d 3 0.5 x\n")
    assert pairs(path) == {"1": [("b", 2.0), ("a", 0.5), ("d", 0.5)], "2": [("c", 0.001)]}


def test_a_trec_run_agrees_with_ir_measures(tmp_path):
    ir_measures = pytest.importorskip("ir_measures")
    path = tmp_path / "run.trec"
    write_trec(path, [(5, HITS[0]), (9, HITS[1])])
    theirs = {}
    for row in ir_measures.read_trec_run(str(path)):
        theirs.setdefault(row.query_id, []).append((row.doc_id, row.score))
    assert theirs == pairs(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 Q0 a 1 0.5\n", "line 1: six columns are expected"),
        ("1 Q0 a 1 x run\n", "line 1: the score 'x' is not a number"),
        ("1 Q0 a 1 nan run\n", "line 1: the score nan is not a number"),
        ("", "there are no rankings"),
        ("1 Q0 a 1 1 x\n1 Q0 a 2 0.5 x\n", "a passage occurs twice for question 1"),
    ],
)
def test_a_broken_trec_run_is_named(tmp_path, text, reason):
    path = tmp_path / "run.trec"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        read_run(path)


def test_white_space_in_ids_is_encoded_and_scores_fall():
    assert trec_lines(7, [("a b", 0.9), ("c%20", 0.5)]) == [
        "7 Q0 a%20b 1 0.9 ravqa\n",
        "7 Q0 c%20 2 0.5 ravqa\n",
    ]
    assert [line.split()[4] for line in trec_lines(7, [("x", 0.1), ("y", 0.9)])] == ["1.0", "0.5"]


# Our own samples


def test_the_samples_of_a_run_are_rankings_too(tmp_path):
    path = tmp_path / "samples.jsonl"
    sample = {"question_id": 5, "hits": [["GS_2", 0.5], ["a b", 0.7]], "answer": "x"}
    path.write_text(json.dumps(sample) + "\n")
    assert pairs(path) == {"5": [("GS_2", 0.5), ("a b", 0.7)]}  # in the run's order
    path.write_text('{"question_id": 5, "hits": [["GS_2"]]}\n')
    with pytest.raises(DataError, match=r"line 1: not a ranking of a run \(key 'hits"):
        read_run(path)


# The retriever


@pytest.mark.parametrize("form", ["trec", "json"])
def test_the_retriever_gives_each_question_its_ranking(tmp_path, form):
    path = tmp_path / f"run.{form}"
    if form == "json":
        pytest.importorskip("ijson")
        write_static(path, zip(QUESTIONS, HITS, strict=True), CORPUS)
    else:
        write_trec(path, [(q.question_id, h) for q, h in zip(QUESTIONS, HITS, strict=True)])
    static = retriever(path)
    static.prepare(CORPUS)
    asked = [QUESTIONS[1], QUESTIONS[0]]
    assert static.retrieve(asked, 2) == [HITS[1], HITS[0][:2]]
    assert static.retrieve(asked, 99) == [HITS[1], HITS[0]]


def test_passages_that_the_corpus_lacks_are_counted_and_named(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("".join(f"{q} Q0 p{i} 1 {-i} x\n" for q in (1, 2) for i in range(7)))
    static = retriever(path)
    with pytest.raises(DataError, match=r"7 of its passages are not in the corpus memory: p0, p1,"):
        static.prepare(CORPUS)
    with pytest.raises(UserError, match=r"needs the passages .*--corpus"):
        static.prepare(None)


def test_a_question_without_results_is_an_error_or_has_no_passages(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("5 Q0 GS_1 1 1 x\n")
    strict, lenient = retriever(path), retriever(path, missing="empty")
    for static in (strict, lenient):
        static.prepare(CORPUS)
    with pytest.raises(DataError, match=r"no results for question q 2 .*missing=empty"):
        strict.retrieve(QUESTIONS, 5)
    assert lenient.retrieve(QUESTIONS[::2], 5) == [[Hit("GS_1", 1.0, 1)], []]
    assert strict.fingerprint != lenient.fingerprint


def test_the_fingerprint_follows_the_file(tmp_path):
    first, second = tmp_path / "a.trec", tmp_path / "b.trec"
    first.write_text("5 Q0 GS_1 1 1 x\n")
    second.write_text("5 Q0 GS_1 1 2 x\n")
    assert retriever(first).fingerprint != retriever(second).fingerprint
    second.write_text(first.read_text())
    assert retriever(first).fingerprint == retriever(second).fingerprint


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*gone\.trec"):
        retriever(tmp_path / "gone.trec")
