"""Which passages are relevant, against a search of every passage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_files import write_rows

from ravqa.core.errors import UserError
from ravqa.core.records import Passage, Question
from ravqa.core.settings import validate
from ravqa.metrics.prrecall import answer_ranks
from ravqa.training.examples import Relevance, load_examples
from ravqa.training.sources import SourceConfig, TrainingSource

# Few letters, so that answers are found; \0 lies between texts inside, "İ" grows in lower case.
LETTERS = st.text(alphabet="abA \0İ", max_size=6)


@given(st.lists(LETTERS, min_size=1, max_size=8), st.lists(LETTERS, max_size=3))
def test_the_passages_that_hold_an_answer_are_those_of_prrecall(texts, answers):
    corpus = {str(i): Passage(str(i), text) for i, text in enumerate(texts)}
    question = Question(1, "?", answers=tuple(answers))
    relevance = Relevance(corpus)
    expected = [str(rank - 1) for rank in answer_ranks(texts, answers)]
    assert relevance.holding(question) == expected
    assert [i for i in corpus if relevance.holds(question, i)] == expected
    assert [i for i in corpus if relevance.relevant(question, i)] == expected


def test_known_passages_and_those_of_known_articles_are_relevant_too():
    corpus = {
        "a": Passage("a", "one", title="Tower"),
        "b": Passage("b", "two", url="https://example.org/tower"),
        "c": Passage("c", "three"),
        "d": Passage("d", "four"),
    }
    question = Question(
        1, "?", pos_item_ids=("c",), pos_articles=("Tower", "https://example.org/tower")
    )
    relevance = Relevance(corpus)
    assert [i for i in corpus if relevance.relevant(question, i)] == ["a", "b", "c"]
    assert relevance.relevant(question, "d", positives=("d",))
    assert relevance.holding(question) == []


@pytest.mark.parametrize(("kind", "found"), [("multi_answer", ["a", "b"]), (None, [])])
def test_several_answers_in_one_reference_are_looked_for_one_by_one(kind, found):
    corpus = {"a": Passage("a", "Oslo."), "b": Passage("b", "in Rome"), "c": Passage("c", "Bonn")}
    question = Question(1, "?", answers=("oslo && rome",), question_type=kind)
    assert Relevance(corpus).holding(question) == found


def test_of_many_pseudo_positives_some_are_taken(tmp_path):
    passages = [{"passage_id": f"p{i}", "text": "It is red."} for i in range(150)]
    write_rows(tmp_path / "passages.jsonl", [*passages, {"passage_id": "blue", "text": "Blue."}])
    asked = [{"question_id": i, "question": "?", "answers": ["red"]} for i in range(2)]
    write_rows(tmp_path / "questions.jsonl", asked)
    source = {"dataset": "jsonl", "data": str(tmp_path)}
    source["corpus"] = [str(tmp_path / "passages.jsonl")]
    found = load_examples(validate(SourceConfig, source, "test"), "test")
    one, two = (example.positives for example in found.examples)
    assert len(set(one)) == len(set(two)) == 100
    assert one != two
    assert list(one) == sorted(one, key=lambda name: int(name[1:]))
    question = found.examples[0].question
    assert all(found.relevance.relevant(question, p["passage_id"], one) for p in passages)


def test_a_file_of_examples_may_take_its_passages_from_a_corpus(tmp_path):
    rows = [{"passage_id": name, "text": f"It is {name}."} for name in ("red", "blue", "green")]
    write_rows(tmp_path / "passages.jsonl", rows)
    own = {"id": "own", "text": "It is grey."}
    asked = [
        {"id": 1, "question": "?", "positive": "red", "negatives": ["blue"]},
        {"id": 2, "question": "?", "positive": own},
    ]
    write_rows(tmp_path / "examples.jsonl", asked)
    source = {"file": str(tmp_path / "examples.jsonl")}
    corpus = {"corpus": [str(tmp_path / "passages.jsonl")]}

    def read(**options):
        return load_examples(validate(SourceConfig, {**source, **options}, "test"), "test")

    found = read(**corpus)
    assert list(found.corpus) == ["red", "blue", "green", "own"]
    assert found.corpus["red"].text == "It is red."
    assert [(e.positives, e.negatives) for e in found.examples] == [
        (("red",), ("blue",)),
        (("own",), ()),
    ]
    assert read(**corpus).fingerprint == found.fingerprint
    # What a question is compared with is part of what it is trained on.
    write_rows(tmp_path / "passages.jsonl", rows[:2])
    fewer = read(**corpus)
    assert fewer.fingerprint != found.fingerprint
    assert read(**corpus, limit=1).fingerprint != fewer.fingerprint
    with pytest.raises(UserError, match="no passage 'red' in the corpus"):
        read()


@pytest.mark.parametrize(
    ("positives", "hint"),
    [
        ("known", " (positives: auto also takes those that hold an answer)"),
        ("auto", ""),
        ("pseudo", ""),
    ],
)
def test_questions_without_a_relevant_passage_are_refused(tmp_path, positives, hint):
    write_rows(tmp_path / "passages.jsonl", [{"passage_id": "p", "text": "It is red."}])
    asked = [{"question_id": i, "question": "?", "answers": ["blue"]} for i in range(3)]
    write_rows(tmp_path / "questions.jsonl", asked)
    source = {"dataset": "jsonl", "data": str(tmp_path), "positives": positives}
    source["corpus"] = [str(tmp_path / "passages.jsonl")]
    config = validate(SourceConfig, source, "test")
    with pytest.raises(UserError) as error:
        load_examples(config, "here")
    assert str(error.value) == (
        f"here: none of the 3 questions of {config.name} has a relevant passage among the 1 of its "
        f"corpus{hint}"
    )


def test_a_source_says_what_it_has_and_what_was_left_out(tmp_path):
    passages = [{"passage_id": name, "text": f"It is {name}."} for name in ("red", "blue")]
    write_rows(tmp_path / "passages.jsonl", passages)
    asked = [
        {"question_id": 1, "question": "?", "answers": ["red"], "pos_item_ids": ["blue"]},
        {"question_id": 2, "question": "?", "answers": ["blue"]},
        {"question_id": 3, "question": "?", "answers": ["green"]},
        {"question_id": 4, "answers": ["red"]},
    ]
    write_rows(tmp_path / "questions.jsonl", asked)
    mined = [
        {"question_id": 1, "negatives": ["red"], "positives": []},
        {"question_id": 2, "negatives": [{"id": "red", "score": 2.0}], "positives": []},
    ]
    write_rows(tmp_path / "mined.jsonl", mined)
    source = {"dataset": "jsonl", "data": str(tmp_path), "on_error": "skip", "instruction": "look"}
    source["corpus"] = [str(tmp_path / "passages.jsonl")]
    found = load_examples(validate(SourceConfig, source, "test"), "test")
    assert found.facts == {
        "source": found.name,
        "examples": 2,
        "passages": 2,
        "pseudo_positives": 1,
        "left_out_broken": 1,
        "left_out_without_positives": 1,
        "with_hard_negatives": 0,
    }
    assert (found.ratio, found.instruction, found.ids) == (2.0, "look", ["red", "blue"])
    assert [e.positives for e in found.examples] == [("blue",), ("blue",)]
    more = {**source, "ratio": 0.5, "negatives": str(tmp_path / "mined.jsonl")}
    found = load_examples(validate(TrainingSource, more, "test"), "test")
    assert (found.ratio, found.facts["with_hard_negatives"]) == (0.5, 1)
    assert [e.negatives for e in found.examples] == [(), ("red",)]  # an answer is in "red"
