"""The E-VQA score against its definition."""

import json
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_judge import ByTable

from ravqa.metrics import evqa, evqa_score, evqa_scores

DATA = Path(__file__).parents[1] / "data"
TABLES = json.loads((DATA / "vqa_normalization_tables.json").read_text(encoding="utf-8"))
OFFICIAL = json.loads((DATA / "evqa_exact_match.json").read_text(encoding="utf-8"))["cases"]


def by_definition(text):
    """The clean-up as it is published, contractions included."""
    text = text.lower().replace("\n", " ").replace("\t", " ").strip()
    if text.startswith("<extra_id_0> "):
        text = text.replace("<extra_id_0> ", "")
    gone = set(string.punctuation) | set("\u2018\u2019\u00b4`_")
    text = "".join(c for c in text if c not in gone)
    text = re.sub(r"\b(the answer is|a|an|the)\b", " ", text)
    words = {**TABLES["number_words"], "true": "yes", "entailment": "yes"}
    words |= {"false": "no", "contradiction": "no"}
    mapped = (words.get(word, word) for word in text.split())
    return " ".join(TABLES["contractions"].get(word, word) for word in mapped)


PIECES = [
    *["the answer is ", "The ", "a ", "an", " ", "\n", ".", ",", "'", "\u2019", "-", "_", "&&"],
    *["<extra_id_0> ", "dont", "don't", "cant", "Two", "2", "none", "0", "true", "yes", "False"],
    *["no", "entailment", "state-of-the-art", "contradiction", "oak", "elm", "wont", "won't"],
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


def test_exact_match_equals_the_official_code():
    assert {c["question_type"] for c in OFFICIAL} == set(evqa.QUESTION_TYPES)
    found = [
        evqa.exact_match(c["prediction"], c["reference"], c["question_type"]) for c in OFFICIAL
    ]
    assert found == [c["exact_match"] for c in OFFICIAL]
    for case in OFFICIAL:  # equal but for the contractions' apostrophes
        assert evqa.normalise(case["prediction"]) == case["cleaned"].replace("'", "")


@given(TEXTS, TEXTS)
def test_exact_match_equals_the_definition(prediction, reference):
    if not by_definition(reference):
        with pytest.raises(ValueError, match="empty after the clean-up"):
            evqa.exact_match(prediction, reference, "automatic")
        return
    expected = by_definition(prediction) == by_definition(reference)
    assert evqa.exact_match(prediction, reference, "automatic") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is Two!", "2"),
        ("<extra_id_0> an Oak-tree", "oaktree"),
        ("True", "yes"),
        ("The \u2018Menger\u2019 family\n", "menger family"),
    ],
)
def test_clean_up_by_hand(text, expected):
    assert evqa.normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("oak, elm", 1),
        ("the elm and an oak", 1),
        ("oak & elm & ash & fir", 1),  # 2 of 4
        ("oak, ash", 0),  # 1 of 3
        ("oak", 1),  # 1 of 2
        ("oak elm", 0),
        ("", 0),
    ],
)
def test_lists_overlap_by_half(prediction, right):
    assert evqa_score(prediction, ["Oak&&elm"], "q", "multi_answer") == right


def test_official_example_with_a_judge():
    question = "Where does this hotel derive its name from?"
    judge = ByTable({("the Menger family", "William and Mary Menger"): 0.98})
    references = ["the Menger family"]
    assert evqa_score("William and Mary Menger", references, question, judge=judge) == 1
    assert evqa_score("the Baker family", references, question, judge=judge) == 0
    assert evqa_score("William and Mary Menger", references, question) == 0
    assert judge.asked[0] == [(question, "the Menger family", "William and Mary Menger")]


def test_single_answers_are_the_items_of_multi_answer_references():
    references = ["Oak && elm&&", "ash", "elm"]
    assert evqa.single_answers(references, "multi_answer") == ["Oak", "elm", "ash"]
    assert evqa.single_answers(references, "templated") == references
    assert evqa.single_answers(references, None) == references


def test_the_judge_is_asked_once_for_what_is_open():
    judge = ByTable({("b,c", "x"): 0.5, ("d", "y"): 0.49})
    scores = evqa_scores(
        ["f", "x", "y"],
        [["z", "F!"], ["b&&c", "e"], ["d"]],
        ["q1", "q2", "q3"],
        ["automatic", "multi_answer", "2_hop"],
        judge,
    )
    assert scores == [1, 1, 0]
    assert judge.asked == [[("q2", "b,c", "x"), ("q2", "e", "x"), ("q3", "d", "y")]]
    assert evqa_scores(["f"], [["f"]], ["q"], ["automatic"], judge) == [1]
    assert len(judge.asked) == 1


def test_a_judge_without_verdict_accepts_nothing():
    assert evqa_score("x", ["y"], judge=ByTable({("y", "x"): float("nan")})) == 0


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="unknown question type 'three_hop'"):
        evqa_score("a", ["a"], question_type="three_hop")
    with pytest.raises(ValueError, match="at least one reference"):
        evqa_score("a", [])
    with pytest.raises(ValueError, match="empty after"):
        evqa_score("a", [" && "], question_type="multi_answer")
