"""A question asked in steps, with another rule, and without passages for comparison."""

from types import SimpleNamespace

import pytest
from spelling import Spelling, prompts

from ravqa.answering.answerer import Answerer
from ravqa.answering.rules import answering_config, answering_with, fitting_rules
from ravqa.core.errors import DataError, UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Passage, Question
from ravqa.pipeline import Pipeline, Stage
from ravqa.readers.base import Abilities
from ravqa.retrievers.base import Retriever


class Fixed(Retriever):
    """Finds w, x and y for every question."""

    fingerprint = "fixed"

    def prepare(self, corpus, progress=None):
        pass

    def retrieve(self, questions, k):
        return [[Hit(name, 3.0 - i, i + 1) for i, name in enumerate("wxy")][:k] for _ in questions]


@pytest.fixture
def pipeline(tmp_path):
    prompt = tmp_path / "bare.jinja"
    prompt.write_text(
        "{{ question }}[{% for p in passages %}{{ p.text }}{% endfor %}]", encoding="utf-8"
    )
    settings = {"prompt": str(prompt), "decision": "top1", "cache": False}
    made = Pipeline(Fixed(), Answerer(answering_config(settings), Spelling()))
    made.corpus = {name: Passage(name, name) for name in "wxy"}
    return made


def test_steps_grow_into_what_ask_returns(pipeline):
    question = Question(1, "Q")
    found, answered, compared = pipeline.ask_in_steps(question, unaided=True)
    assert [passage.text for passage in found.passages] == ["w", "x", "y"]
    assert (found.answer, found.unaided) == (None, None)
    assert answered.answer == pipeline.ask(question).answer
    assert answered.answer.passage_ids == ("w",)
    assert compared.answer == answered.answer
    assert isinstance(compared.unaided, Failure)  # which costs the other answer nothing
    assert list(found.seconds) == ["retrieve"]
    assert list(compared.seconds) == ["retrieve", "answer", "unaided"]
    assert all(seconds > 0 for seconds in compared.seconds.values())
    assert {k: compared.seconds[k] for k in answered.seconds} == answered.seconds


def test_the_answer_without_passages_is_that_of_a_prompt_without_any(pipeline):
    pipeline.answerer.reader.seed = 2
    *_, compared = pipeline.ask_in_steps(Question(1, "Q"), unaided=True)
    [alone] = pipeline.answerer.reader.generate(prompts(["Q[]"]))
    assert (compared.unaided.raw, compared.unaided.passage_ids) == (alone.text, ())


def test_without_a_reader_there_is_one_step(pipeline):
    searching = Pipeline(pipeline.retriever)
    searching.corpus = pipeline.corpus
    [found] = searching.ask_in_steps(Question(1, "Q"), unaided=True)
    assert (len(found.hits), found.answer) == (3, None)


def test_another_rule_reads_more_passages_with_the_same_reader(pipeline):
    other = pipeline.answering_by("concat", 2)
    assert other.ask("Q").answer.passage_ids == ("w", "x")
    assert other.answerer.reader is pipeline.answerer.reader
    assert other.answerer.config.prompt == pipeline.answerer.config.prompt
    assert pipeline.ask("Q").answer.passage_ids == ("w",)
    assert pipeline.answering_by("top1", 3).ask("Q").answer.passage_ids == ("w",)
    with pytest.raises(UserError, match="did you mean concat"):
        pipeline.answering_by("concatt", 2)


def test_rules_of_one_passage_get_one():
    assert answering_with({}, "top1", 5).passages == 1
    assert answering_with({}, "joint_max", 5).passages == 5
    with pytest.raises(UserError, match="passages"):
        answering_with({}, "joint_max", 0)


def test_rules_are_those_that_a_reader_can_serve():
    plain = fitting_rules(
        {"decision": "vote", "passages": 3}, Abilities(False, False, False, False)
    )
    assert plain[0] == "vote"
    assert set(plain) == {"vote", "top1", "concat"}


def test_many_are_answered_as_each_alone(pipeline):
    questions = [Question(i, f"Q{i}") for i in range(3)]
    for made, question in zip(pipeline.ask_all(questions), questions, strict=True):
        alone = pipeline.ask(question)
        assert (made.answer, made.hits) == (alone.answer, alone.hits)
        assert list(made.seconds) == ["retrieve", "answer"]
    assert [made.answer for made in pipeline.ask_all(questions, answering=False)] == [None] * 3
    assert pipeline.ask_all([]) == []


def test_an_image_or_a_question_that_fails_costs_the_others_nothing(pipeline, monkeypatch):
    def describe(questions, progress=None):
        if any(q.image for q in questions):
            raise DataError("no image")
        return list(questions)

    def rerank(questions, hits):
        given = zip(questions, hits, strict=True)
        found = [Failure("no") if q.question == "R" else own for q, own in given]
        return [Stage("odd", found, SimpleNamespace(seconds=0.0))]

    monkeypatch.setattr(pipeline, "describe", describe)
    monkeypatch.setattr(pipeline, "rerank", rerank)
    good, broken, refused = pipeline.ask_all(
        [Question(1, "Q"), Question(2, "Q", b"no"), Question(3, "R")]
    )
    assert good.answer is not None
    assert (broken, refused) == (Failure("no image"), Failure("no"))


def test_pieces_of_an_answer_are_handed_on_as_they_are_written(pipeline):
    reader = pipeline.answerer.reader
    assert not pipeline.streams
    assert list(pipeline.ask_in_steps(Question(1, "Q"), written=pytest.fail))[-1].answer
    reader.streams = pipeline.answerer.cached.streams = True
    reader.stream = lambda prompt: iter(["eastern ", "australia"])
    pieces = []
    *_, last = pipeline.ask_in_steps(Question(1, "Q"), written=pieces.append)
    assert pieces == ["eastern ", "australia"]
    assert (last.answer.text, last.answer.passage_ids) == ("eastern australia", ("w",))
    assert not pipeline.answering_by("vote", 2).streams
