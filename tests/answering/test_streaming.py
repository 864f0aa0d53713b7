"""A streamed answer is the answer that is given at once."""

import pytest

from ravqa.answering.answerer import Answerer
from ravqa.answering.config import AnsweringConfig
from ravqa.core.records import Hit, Passage, Question


@pytest.mark.slow
def test_a_streamed_answer_is_the_answer(reader, fresh_cache):
    answerer = Answerer(AnsweringConfig(decision="top1", passages=1), reader)
    question = Question(1, "What does the koala eat?")
    pairs = [(Hit("k", 1.0, 1), Passage("k", "The koala eats leaves.", title="Koala"))]
    stream = answerer.stream(question, pairs)
    pieces = list(stream)
    [answer] = answerer.answer([question], [pairs])
    assert "".join(pieces) == answer.raw
    assert stream.answer.text == answer.text
    assert stream.answer.passage_ids == answer.passage_ids == ("k",)
    assert stream.answer.drafts[0].prompt_hash == answer.drafts[0].prompt_hash
