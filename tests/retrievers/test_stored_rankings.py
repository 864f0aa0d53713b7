"""Rankings in files: how they are written and read, and every message as a whole."""

import json

import pytest
from messages import said

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import file_digest
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import fingerprint, validate
from ravqa.corpora.corpus import Corpus
from ravqa.retrievers import runs
from ravqa.retrievers.runs import (
    Ranking,
    column,
    decoded,
    gold_answer,
    read_run,
    trec_lines,
    write_static,
)
from ravqa.retrievers.static import StaticRetriever

pytestmark = pytest.mark.usefixtures("fresh_cache")


def test_rankings_are_sorted_by_score_and_equal_ones_stay():
    ranking = Ranking()
    for passage_id, score in (("a", 1.0), ("b", 3.0), ("c", 1.0), ("d", 2.0)):
        ranking.add(passage_id, score)
    assert ranking.pairs() == [("a", 1.0), ("b", 3.0), ("c", 1.0), ("d", 2.0)]
    ranking.sort()
    assert ranking.pairs() == [("b", 3.0), ("d", 2.0), ("a", 1.0), ("c", 1.0)]
    assert (ranking.ids, list(ranking.scores)) == (["b", "d", "a", "c"], [3.0, 2.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("value", "written", "read"),
    [
        ("a b", "a%20b", "a b"),
        ("a\tb", "a%09b", "a\tb"),
        ("a%20b", "a%20b", "a b"),
        ("a%41", "a%41", "a%41"),
        (7, "7", "7"),
        ("\u00a0", "%C2%A0", "\u00a0"),
    ],
)
def test_white_space_in_ids_is_encoded(value, written, read):
    assert column(value) == written
    assert decoded(written) == read


def test_lines_of_a_trec_run():
    assert trec_lines("q 1", [("a", 2.0), ("b c", 2.0), ("d", -1.5)]) == [
        "q%201 Q0 a 1 2.0 ravqa\n",
        "q%201 Q0 b%20c 2 2.0 ravqa\n",
        "q%201 Q0 d 3 -1.5 ravqa\n",
    ]
    assert trec_lines(1, [("a", 1.0), ("b", 2.0), ("c", 0.0)]) == [
        "1 Q0 a 1 1.0 ravqa\n",
        "1 Q0 b 2 0.5 ravqa\n",
        "1 Q0 c 3 0.333333 ravqa\n",
    ]
    assert trec_lines(1, []) == []


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (
            "r.trec",
            "\n1 Q0 a 1\n",
            ", line 2: six columns are expected (QUESTION Q0 PASSAGE RANK ...)",
        ),
        ("r.trec", "1 Q0 a 1 x r\n", ", line 1: the score 'x' is not a number"),
        ("r.trec", "1 Q0 a 1 inf r\n", ", line 1: the score inf is not a number"),
        ("r.trec", "1 Q0 a 1 1 r\n1 Q0 a 2 0 r\n", ": a passage occurs twice for question 1"),
        ("r.trec", "\n", ": there are no rankings"),
        ("r.jsonl", "", ": there are no rankings"),
        ("r.json", '{"output": []}', ": there are no rankings"),
        (
            "r.json",
            '{"output": [{"question_id": 1, "top_ranking_passages": [{"passage_id": "a"}]}]}',
            ", question 1: the score None is not a number",
        ),
        (
            "r.json",
            '{"output": [{"top_ranking_passages": []}]}',
            ", question 1: no 'question_id'",
        ),
        (
            "r.json",
            '{"output": [{"question_id": 1, "top_ranking_passages": [{"passage_id": null}]}]}',
            ", question 1: no 'passage_id'",
        ),
    ],
)
def test_rankings_that_cannot_be_read(tmp_path, name, text, reason):
    pytest.importorskip("ijson")
    path = tmp_path / name
    path.write_text(text)
    assert said(DataError, read_run, path) == f"{path}{reason}"


def test_rankings_of_a_question_may_stand_apart(tmp_path):
    path = tmp_path / "r.trec"
    path.write_text("1 Q0 a 1 1 r\n2 Q0 a 1 5 r\n1 Q0 b 2 3 r\n")
    found = {question: ranking.pairs() for question, ranking in read_run(path).items()}
    assert found == {"1": [("b", 3.0), ("a", 1.0)], "2": [("a", 5.0)]}
    samples = tmp_path / "s.jsonl"
    samples.write_text('{"question_id": 1, "hits": [["a", 1.0], ["b", 3.0]]}\n')
    assert read_run(samples)["1"].pairs() == [("a", 1.0), ("b", 3.0)]  # in the run's own order
    expected = "here: the score True is not a number"
    assert said(DataError, runs._score, True, "here") == expected


def test_the_gold_answer_of_a_question():
    answers = ("x", "y", "y", "z", "z")
    assert gold_answer(Question(1, "?", answers=answers)) == "y"
    assert gold_answer(Question(1, "?", answers=answers, extra={"gold_answer": "g"})) == "g"
    assert gold_answer(Question(1, "?", answers=answers, extra={"gold_answer": ""})) == "y"
    assert gold_answer(Question(1, "?")) == ""


def test_static_results_are_written_line_by_line(tmp_path):
    corpus = Corpus([Passage("a", "one"), Passage("b", "zw\u00f6lf", title="T")])
    first = Question("q", "?", answers=("x", "y"), pos_item_ids=("b",))
    path = tmp_path / "r.json"
    write_static(path, [(first, [Hit("b", 0.5, 1)]), (Question(2, "?"), [])], corpus)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1], len(lines)) == ('{"output": [', "]}", 4)
    assert "zw\u00f6lf" in lines[1]
    assert lines[1].endswith(",")
    assert json.loads(lines[1].removesuffix(",")) == {
        "question_id": "q",
        "top_ranking_passages": [
            {"passage_index": 1, "passage_id": "b", "content": "T: zw\u00f6lf", "score": 0.5}
        ],
        "answers": ["x", "y"],
        "gold_answer": "x",
        "pos_item_ids": ["b"],
    }
    assert len(json.loads(path.read_text(encoding="utf-8"))["output"]) == 2
    assert said(KeyError, write_static, path, [(first, [Hit("z", 1.0, 1)])], corpus) == "'z'"


def stored(path, **options):
    return StaticRetriever(validate(StaticRetriever.Config, {"file": str(path), **options}, "x"))


def test_stored_rankings_say_what_they_need(tmp_path):
    path = tmp_path / "r.trec"
    path.write_text("".join(f"1 Q0 p{i} {i} {-i} r\n" for i in range(6)))
    tested = stored(path)
    assert tested.fingerprint == fingerprint("static/1", file_digest(path), "fail")
    assert said(UserError, tested.prepare, None) == (
        "the retriever static needs the passages that its file names: add them with --corpus "
        f"(RA-VQA's results hold theirs: --corpus {path})"
    )
    for count, listed in ((6, "p0, p1, p2, p3, p4, ..."), (5, "p0, p1, p2, p3, p4"), (1, "p0")):
        path.write_text("".join(f"1 Q0 p{i} {i} {-i} r\n" for i in range(count)))
        expected = f"{path}: {count} of its passages are not in the corpus here: {listed}"
        corpus = Corpus([Passage("other", "x")], source="here")
        assert said(DataError, stored(path).prepare, corpus) == expected
    corpus = Corpus([Passage("p0", "x")])
    tested = stored(path)
    tested.prepare(corpus)
    assert tested.retrieve([Question(1, "?")], 5) == [[Hit("p0", 0.0, 1)]]
    expected = (
        f"{path} has no results for question 7 (--set retriever.missing=empty asks it without "
        "passages)"
    )
    assert said(DataError, tested.retrieve, [Question(7, "?")], 5) == expected
    assert stored(path, missing="empty").retrieve([Question(7, "?")], 5) == [[]]


def test_ids_of_stored_rankings_are_those_of_the_corpus(tmp_path):
    path = tmp_path / "r.trec"
    path.write_text("q%201 Q0 a%20b 1 2 r\nq%201 Q0 c%20d 2 1 r\n2 Q0 a%20b 1 2 r\n")
    tested = stored(path)
    tested.prepare(Corpus([Passage("a b", "x"), Passage("c%20d", "y")]))
    [first, second] = tested.retrieve([Question("q 1", "?"), Question(2, "?")], 5)
    assert [h.passage_id for h in first] == ["a b", "c%20d"]
    assert [h.passage_id for h in second] == ["a b"]
