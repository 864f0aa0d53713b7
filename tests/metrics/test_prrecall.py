"""Where answers stand in passages: the places that the rules of PRRecall count."""

import time
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravqa.metrics.prrecall import RULES, answer_ranks, answer_spans


@given(
    st.text("aAbB \u0130\u03a3-.", max_size=40),
    st.lists(st.text("aAb \u0130\u03a3", max_size=3), max_size=4),
    st.sampled_from(RULES),
)
def test_answers_are_marked_where_the_rule_finds_them(passage, answers, rule):
    spans = answer_spans(passage, answers, rule)
    assert bool(spans) == (answer_ranks([passage], answers, rule) == [1])
    assert spans == sorted(spans)
    ends = [0, *(x for span in spans for x in span)]
    assert all(a < b for a, b in spans)
    assert ends == sorted(ends)
    assert ends[-1] <= len(passage)


def test_long_answers_that_repeat_themselves_take_no_time():
    began = time.process_time()
    for rule in RULES:
        found = answer_spans("a" * 200_000, ["a" * 100_000], rule)
        assert found == ([] if rule == "word" else [(0, 200_000)])
    assert time.process_time() - began < 5  # of minutes for every place


def test_answer_spans_are_those_places():
    text = "Koalas eat leaves; the KOALA sleeps. \u0130stanbul koala"
    assert [text[a:b] for a, b in answer_spans(text, ["koala "], "flmr")] == [
        "Koala",
        "KOALA",
        "koala",
    ]
    assert [text[a:b] for a, b in answer_spans(text, ["koala"], "word")] == ["KOALA", "koala"]
    assert [text[a:b] for a, b in answer_spans(text, ["koala "], "ravqa")] == ["KOALA "]
    assert answer_spans("banana", ["ana", "nan"]) == [(1, 6)]
    assert answer_spans("ab ab", ["ab"]) == [(0, 2), (3, 5)]
    assert answer_spans("banana", [" "]) == []
    with pytest.raises(ValueError, match="unknown rule"):
        answer_spans("a", ["a"], "other")


@pytest.mark.parametrize("rule", RULES)
def test_letters_that_grow_in_lower_case_move_no_answer(rule):
    """In lower case, the capital I with a dot is two letters long."""
    text = "\u0130 \u0130: a Koala of \u0130zm\u0130r"
    assert len(text.lower()) == len(text) + 4
    assert [text[a:b] for a, b in answer_spans(text, ["koala"], rule)] == ["Koala"]
    assert [text[a:b] for a, b in answer_spans(text, ["\u0130zm\u0130r"], rule)] == [
        "\u0130zm\u0130r"
    ]
    assert answer_spans(text, ["a", "koala"], "word") == [(5, 6), (7, 12)]


def test_ligatures_and_other_forms_count_by_the_rule_of_that_name_alone():
    text = "Grease the ﬁrst slewing ring, 5 \uff4b\uff47, cafe\u0301"
    for answer in ("first", "kg", "CAF\u00c9"):
        found = [rule for rule in RULES if answer_ranks([text], [answer], rule)]
        assert found == ["nfkc"]
        [(begin, end)] = answer_spans(text, [answer], "nfkc")
        assert text[begin:end] in ("ﬁrst", "\uff4b\uff47", "cafe\u0301")
    assert answer_ranks(["first, kg"], ["ﬁrst"], "nfkc") == [1]  # both sides
    assert answer_spans("a ﬃ b", ["f", "i"], "nfkc") == [(2, 3)]
    assert answer_spans("\u1112\u1161\u11ab", ["한"], "nfkc") == [(0, 3)]


@settings(max_examples=30)
@given(
    st.text("aﬁﬃeE\u0301\u0327\u1112\u1161\u11abｶﾞ½ \u0130", max_size=12),
    st.lists(st.text("afie\u00e9\u0301\u1112ガ1 ", max_size=3), max_size=3),
)
def test_forms_of_letters_are_marked_where_the_rule_finds_them(passage, answers):
    spans = answer_spans(passage, answers, "nfkc")
    assert bool(spans) == (answer_ranks([passage], answers, "nfkc") == [1])
    plain = (a for a in answers if a.strip())
    found = any(
        normalize("NFKC", a).lower().strip() in normalize("NFKC", passage).lower() for a in plain
    )
    assert bool(spans) == found
    ends = [x for span in spans for x in span]
    assert ends == sorted(ends)
    assert all(0 <= a < b <= len(passage) for a, b in spans)
