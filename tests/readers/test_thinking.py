"""Local models that think before they answer; the tests know what the tiny models write."""

import json

import numpy as np
import pytest
import reader_models
from cases import slow_but
from reader_models import CHAT

from ravqa.answering.answerer import Answerer
from ravqa.answering.config import AnsweringConfig
from ravqa.core.errors import PromptError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.core.settings import validate
from ravqa.readers.base import Prompt
from ravqa.readers.cached import CachedReader
from ravqa.readers.transformers_llm import TransformersLLM

ASKED = [Prompt("What is it?"), Prompt("Question: what is the capital of France? Answer:")]
PAIRS = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|channel>", "<channel|>"),
]
SOME_PAIRS = slow_but([PAIRS[0], PAIRS[-1]], PAIRS)


def load(folder, **options):
    options = {"device": "cpu", "prompt_form": "chat", "stop_at_newline": False, **options}
    options.setdefault("max_new_tokens", 4)
    config = validate(TransformersLLM.Config, {"model": str(folder), **options}, "reader")
    return TransformersLLM(config)


def opening_template(mark):
    return CHAT.replace("ASSISTANT:", f"ASSISTANT:{mark}")


@pytest.mark.parametrize("stop_at_newline", slow_but([False], [False, True]))
@pytest.mark.parametrize(("opening", "closing"), SOME_PAIRS)
def test_thinking_that_the_template_opens_is_no_answer(
    tmp_path, opening, closing, stop_at_newline, fresh_cache
):
    reader_models.chained(
        tmp_path,
        [opening, "h", "m", "\n", closing, "K", "o"],
        special=(opening, closing),
        chat=opening_template(opening),
    )
    tested = load(tmp_path, stop_at_newline=stop_at_newline)
    assert tested.max_thinking_tokens == 254  # half of the context without the answer
    reader = CachedReader(tested)
    for _ in range(2):  # also from the cache
        for made in reader.generate(ASKED):
            assert (made.text, made.tokens) == ("Ko", 3)
            assert made.thinking == "hm"
            assert made.log_prob > -0.1
    assert reader.generated == 2
    assert "".join(tested.stream(ASKED[0])) == "Ko"


@pytest.mark.parametrize(("opening", "closing"), SOME_PAIRS)
def test_thinking_that_the_model_opens_is_no_answer(tmp_path, opening, closing):
    reader_models.chained(
        tmp_path, [":", opening, "h", "m", closing, "K", "o"], special=(opening, closing)
    )
    tested = load(tmp_path)
    assert tested.max_thinking_tokens
    [made, _] = tested.generate(ASKED)
    assert (made.text, made.thinking, made.tokens) == ("Ko", "hm", 3)
    assert "".join(tested.stream(ASKED[0])) == "Ko"


def test_marks_that_a_tokenizer_declares_are_known(tmp_path):
    marks = ("<~cot~>", "<~/cot~>")
    fields = {"thinking": {"open": marks[0], "close": marks[1]}, "content": {}}
    for folder, chat, chain in (
        (tmp_path / "template", opening_template(marks[0]), []),
        (tmp_path / "model", CHAT, [":"]),
    ):
        reader_models.chained(
            folder, [*chain, marks[0], "h", "m", marks[1], "\n", "K", "o"], special=marks, chat=chat
        )
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps(settings | {"response_template": {"fields": fields}}))
        tested = load(folder)
        [made, _] = tested.generate(ASKED)
        assert (made.text, made.thinking, made.tokens) == ("Ko", "hm", 3)
        assert "".join(tested.stream(ASKED[0])) == "Ko"
        [row] = tested.next_token_logprobs(ASKED[:1], [()])
        assert tested.decode([int(row.argmax())]).strip() in ("K", "")


def test_thinking_without_tokens_of_its_own_leaves_no_log_probability(tmp_path, monkeypatch):
    """The sum would be of the thinking's tokens too."""
    reader_models.chained(tmp_path, ["K", "o"])
    tested = load(tmp_path)
    for text, wanted in (("Ko", True), ("<think>hm</think>Ko", False), ("hm</think>Ko", False)):
        monkeypatch.setattr(tested, "decode", lambda tokens, text=text: text)
        [made] = tested.generate(ASKED[:1])
        assert made.text == "Ko"
        assert (made.log_prob is not None) == (made.tokens > 0) == wanted


def test_the_budgets_are_apart(tmp_path):
    marks = ("<think>", "</think>")
    texts = ["<think>", *"abcdefghij", "</think>", *"KLMNOPQR"]
    reader_models.chained(tmp_path, texts, special=marks, chat=opening_template("<think>"))
    for budget in (11, 12, 100):
        [made] = load(tmp_path, max_thinking_tokens=budget).generate(ASKED[:1])
        assert (made.text, made.tokens) == ("KLMN", 4)
        assert made.thinking == "abcdefghij"
    tested = load(tmp_path, max_thinking_tokens=10)
    message = "spent all 10 tokens on thinking: raise max_thinking_tokens"
    for failure in (
        *tested.generate(ASKED),
        *load(tmp_path, max_thinking_tokens=5).generate(ASKED),
    ):
        assert isinstance(failure, Failure)
        assert "on thinking: raise max_thinking_tokens" in failure.reason
    with pytest.raises(PromptError, match=message):
        list(tested.stream(ASKED[0]))
    [answer] = Answerer(AnsweringConfig(decision="none"), tested).answer([Question(1, "?")], [[]])
    assert message in answer.reason


def test_a_model_that_ends_within_its_thinking_has_not_answered(tmp_path):
    marks = ("<think>", "</think>")
    reader_models.chained(
        tmp_path, ["<think>", "h", "m"], special=marks, chat=opening_template("<think>")
    )
    [failure] = load(tmp_path).generate(ASKED[:1])
    assert "is reasoning without an answer" in failure.reason


def test_scores_stand_after_closed_thinking(tmp_path):
    marks = ("<think>", "</think>")
    chain = ["<think>", "h", "m", "</think>", "K", "o"]
    reader_models.chained(tmp_path, chain, special=marks, chat=opening_template("<think>"))
    tested = load(tmp_path)
    rows = tested.next_token_logprobs(ASKED, [(), ()])
    assert [tested.decode([int(row.argmax())]) for row in rows] == ["K", "K"]
    good, bad = tested.score(ASKED[:1] * 2, ["K", "m"])
    assert good > bad
    # A model that opens the mark itself: an empty thought stands before the answer.
    own = tmp_path / "own"
    reader_models.chained(own, [":", *chain[:4], "\n", "K", "o"], special=marks)
    rows = load(own).next_token_logprobs(ASKED, [(), ()])
    assert [load(own).decode([int(row.argmax())]) for row in rows] == ["K", "K"]


def test_without_a_budget_the_model_answers_at_once(tmp_path):
    marks = ("<think>", "</think>")
    chain = ["<think>", "h", "m", "</think>", "K", "o"]
    reader_models.chained(tmp_path, chain, special=marks, chat=opening_template("<think>"))
    [made, _] = load(tmp_path, max_thinking_tokens=0).generate(ASKED)
    assert (made.text, made.thinking) == ("Ko", "")


def test_a_model_that_could_think_and_does_not_answers_as_ever(tmp_path):
    marks = ("<think>", "</think>")
    reader_models.chained(tmp_path, [":", "K", "o", "\n", "a", "l"], special=marks)
    for stop, text, tokens in ((False, "Ko\na", 4), (True, "Ko", 3)):
        tested = load(tmp_path, stop_at_newline=stop)
        assert tested.max_thinking_tokens == 0
        [made, _] = tested.generate(ASKED)
        assert (made.text.rstrip(), made.tokens, made.thinking) == (text, tokens, "")
        assert "".join(tested.stream(ASKED[0])).rstrip() == text
    # A line break first is an answer without a word.
    reader_models.chained(tmp_path / "silent", [":", "\n", "K", "o"], special=marks)
    [silence, _] = load(tmp_path / "silent", stop_at_newline=True).generate(ASKED)
    assert isinstance(silence, Failure)
    assert silence.tokens == 1


def test_a_box_stands_around_the_answer(tmp_path):
    boxes = ("<|begin_of_box|>", "<|end_of_box|>")
    reader_models.chained(tmp_path, [":", "a", boxes[0], "K", "o", boxes[1]], special=boxes)
    tested = load(tmp_path, max_new_tokens=8)
    [answer] = Answerer(AnsweringConfig(decision="none"), tested).answer([Question(1, "?")], [[]])
    assert answer.raw == "a<|begin_of_box|>Ko<|end_of_box|>"
    assert answer.text == "ko"


def test_rows_of_a_batch_end_by_themselves(tmp_path):
    marks = ("<think>", "</think>")
    chain = ["<think>", "h", "m", "</think>", "K", "o"]
    reader_models.chained(tmp_path, chain, special=marks, chat=opening_template("<think>"))
    tested = load(tmp_path)
    asked = [*ASKED, Prompt("x " * 40)]
    together = tested.generate(asked)
    assert together == [tested.generate([prompt])[0] for prompt in asked]
    values = [made.log_prob for made in together]
    np.testing.assert_allclose(values, values[0], atol=1e-4)
