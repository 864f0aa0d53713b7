"""The parts of the reader of servers: log-probabilities, echoes, requests, what is refused."""

import asyncio
import json
import math
from io import BytesIO

import pytest
from PIL import Image

from ravqa.answering.prompt import PromptTemplate
from ravqa.clients.openai import ForbiddenError, NoAnswerError, UnusableReplyError
from ravqa.clients.transport import run
from ravqa.core.errors import UserError
from ravqa.core.factory import build_part
from ravqa.core.records import Passage, Question
from ravqa.core.settings import Part, fingerprint
from ravqa.readers import READERS
from ravqa.readers import openai as served
from ravqa.readers.base import Prompt


def reader(**options):
    return build_part(READERS, Part(name="openai", url="http://h/v1", model="m", **options), "r")


def refused(call, *arguments):
    with pytest.raises((UserError, UnusableReplyError, NoAnswerError)) as error:
        call(*arguments)
    return type(error.value), str(error.value)


NONE = "the reader openai: the server gives no log-probabilities: set {} to {}"


@pytest.mark.parametrize(
    ("logprobs", "said"),
    [
        (None, NONE.format("log_probs", "false")),
        ([], NONE.format("log_probs", "false")),
        ({"token_logprobs": "x"}, "log-probabilities that are not a list"),
        (
            {"token_logprobs": [-1.0], "tokens": ["a", "b"]},
            "1 log-probabilities for 2 tokens",
        ),
        ({"token_logprobs": [True]}, "a log-probability that is not a number"),
        ({"token_logprobs": ["-1"]}, "a log-probability that is not a number"),
        ({"token_logprobs": [0.02]}, "a log-probability above 0"),
        ({"token_logprobs": [-9999]}, "a log-probability that is not a number"),
        ({"token_logprobs": [math.nan]}, "a log-probability that is not a number"),
        ({"content": [7]}, "a log-probability that is not a number"),
    ],
)
def test_listed_log_probabilities_that_are_none_say_why(logprobs, said):
    assert refused(served._log_probs, {"logprobs": logprobs}, "log_probs")[1] == said


def test_listed_log_probabilities_in_both_forms():
    def found(logprobs):
        return served._log_probs({"logprobs": logprobs}, "log_probs")

    assert found({"token_logprobs": [-1, 0.01, -9998.0]}) == [
        (b"", -1.0),
        (b"", 0.01),
        (b"", -9998.0),
    ]
    assert found({"token_logprobs": [-1], "tokens": ["\u00e9"]}) == [("\u00e9".encode(), -1.0)]
    assert found({"token_logprobs": None}) == found({"content": []}) == []
    content = [
        {"token": "a", "logprob": -1, "bytes": [0, 255]},
        {"token": "a", "logprob": -2, "bytes": [256]},
        {"token": "b", "logprob": -3, "bytes": [-1]},
        {"token": None, "logprob": -4, "bytes": None},
        {"token": "\ud83d", "logprob": -5},
    ]
    assert found({"content": content, "token_logprobs": [-9]}) == [
        (b"\x00\xff", -1.0), (b"a", -2.0), (b"b", -3.0), (b"", -4.0), (b"?", -5.0),
    ]  # fmt: skip
    for setting, off in (("scoring", "none"), ("log_probs", "false")):
        assert refused(served._log_probs, {}, setting)[1] == NONE.format(setting, off)


def echo(offsets, values, tokens=None):
    return {"logprobs": {"text_offset": offsets, "token_logprobs": values, "tokens": tokens}}


def test_an_echo_is_summed_over_the_answers_tokens():
    text = "ask me"
    for start, expected in ((0, -15.0), (3, -14.0), (4, -12.0), (5, -8.0)):
        offsets, values = [0, 3, 4, 5], [-1.0, -2.0, -4.0, -8.0]
        assert served._echoed(echo(offsets, values), text, start) == expected
        names = ["ask", " ", "m", "e"]
        assert served._echoed(echo(offsets, values, names), text, start) == expected
    # A token that begins before the answer and ends within it is of the answer.
    assert served._echoed(echo([0, 2], [-1.0, -2.0]), text, 3) == -2.0
    assert served._echoed(echo([0, 3], [None, -2.0]), text, 3) == -2.0
    # What is generated after the text is not.
    assert served._echoed(echo([0, 3, 6], [-1.0, -2.0, -4.0]), text, 3) == -2.0
    assert served._echoed(echo([0, 3], [-1.0, -2.0], ["ask", "me"]), text, 3) == -2.0
    assert served._echoed(echo([0, 3], [-1.0, -2.0], ["ask"]), text, 3) == -2.0


@pytest.mark.parametrize(
    ("choice", "kind", "said"),
    [
        (
            {},
            UserError,
            "the reader openai: the server does not score what it echoes: set scoring to none",
        ),
        (
            {"logprobs": {"text_offset": [0]}},
            UnusableReplyError,
            "log-probabilities without the positions of their tokens",
        ),
        (
            echo([0], [-1.0, -2.0]),
            UnusableReplyError,
            "log-probabilities without the positions of their tokens",
        ),
        (
            echo([0, 3.0], [-1.0] * 2),
            UnusableReplyError,
            "positions of tokens that are not numbers",
        ),
        (echo([0, 9], [-1.0] * 2), UnusableReplyError, "no log-probabilities of the answer"),
        (
            echo([0, 3], [-1.0] * 2, ["ask", "you"]),
            NoAnswerError,
            "the token 'you' is not at its position in the text: answers cannot be scored",
        ),
        (echo([0, 3], [-1.0, None]), UnusableReplyError, "a log-probability that is not a number"),
    ],
)
def test_an_echo_that_cannot_be_used_says_why(choice, kind, said):
    text, start = ("ask me", 3) if said[:2] != "no" else ("ask me", 9)
    assert refused(served._echoed, choice, text, start) == (kind, said)


def test_log_probabilities_of_a_prompts_tokens():
    listed = [None, {"5": {"logprob": -1}}, {"7": {"logprob": 0.0}}]
    expected = [("", 0.0), ("5", -1.0), ("7", 0.0)]
    assert served._prompt_tokens({"prompt_logprobs": listed}) == expected
    within = {"choices": [{"prompt_logprobs": listed}]}
    assert served._prompt_tokens(within) == expected
    none = "the reader openai: the server scores no prompts: set scoring to none"
    for reply in ({"choices": [{}]}, {"prompt_logprobs": []}, {"prompt_logprobs": {"5": 1}}):
        assert refused(served._prompt_tokens, reply) == (UserError, none)
    for entry in ([], {}, {"5": {"logprob": -1}, "6": {"logprob": -1}}):
        said = refused(served._prompt_tokens, {"prompt_logprobs": [entry]})
        assert said == (UnusableReplyError, "a prompt token without its log-probability")
    said = refused(served._prompt_tokens, {"prompt_logprobs": [{"5": -1.0}]})
    assert said == (UnusableReplyError, "a log-probability that is not a number")


def test_beginnings_are_compared_by_tokens():
    first, second = [("a", -1.0), ("b", -2.0)], [("a", -7.0)]
    assert served._begins(first, second)
    assert served._begins(first, [])
    assert not served._begins(second, first)
    assert not served._begins(first, [("b", -2.0)])


def test_places_of_a_part():
    assert list(served._places("abcabcab", "ab", 0)) == [0, 3, 6]
    assert list(served._places("abcabcab", "ab", 1)) == [3, 6]
    assert list(served._places("abcabcab", "ab", 0, last=True)) == [6, 3, 0]
    assert list(served._places("abcabcab", "ab", 1, last=True)) == [6, 3]
    assert list(served._places("aaa", "aa", 0)) == [0, 1]
    assert list(served._places("aaa", "aa", 0, last=True)) == [1, 0]
    assert len(list(served._places("a" * 100, "a", 0))) == 64


def test_a_request_without_log_probabilities():
    body = {"model": "m", "logprobs": 1, "top_logprobs": 1, "prompt_logprobs": 0, "echo": True}
    assert served._without_log_probs(body) == {"model": "m"}


def chat(text, logprobs=None, **message):
    choice = {"message": {"content": text, **message}, "finish_reason": "stop"}
    return {"choices": [{**choice, "logprobs": logprobs}]}


def test_a_generation_keeps_its_thinking_with_and_without_log_probabilities():
    reply = chat("a", {"content": []}, reasoning=" hm ")
    for log_probs in (False, True):
        made = reader(log_probs=log_probs)._generation(reply)
        assert (made.text, made.thinking, made.log_prob, made.tokens) == ("a", "hm", None, 0)
    both = chat("<think>so</think>a", {"content": []}, reasoning="hm")
    assert reader()._generation(both).thinking == "hm\nso"
    listed = {"content": [{"token": "a", "logprob": -1.5}, {"token": "", "logprob": -0.5}]}
    made = reader(log_probs=True)._generation(chat("a", listed, reasoning="hm"))
    assert (made.log_prob, made.tokens, made.thinking) == (-2.0, 2, "hm")


@pytest.mark.parametrize(
    ("stops", "text", "kept"),
    [
        (True, "a\nb", "a"),
        (True, "a", "a"),
        (True, "\nb", "\n"),
        (True, " \nb", " \n"),
        (False, "a\nb", "a\nb"),
    ],
)
def test_an_answer_ends_at_the_line_break_if_it_is_set(stops, text, kept):
    assert reader(stop_at_newline=stops)._ended(text) == kept


def test_a_request_of_the_reader():
    plain = reader(prompt_form="plain")._body()
    assert plain == {"model": "m", "max_tokens": 32, "temperature": 0.0, "stop": ["\n"]}
    assert reader()._body() == {"model": "m", "max_tokens": 32, "temperature": 0.0}
    thinking = reader(stop_at_newline=True, max_thinking_tokens=10)._body()
    assert thinking == {"model": "m", "max_tokens": 42, "temperature": 0.0}
    logs = reader(log_probs=True, extra_body={"top_k": 1})._body()
    assert {k: logs[k] for k in ("logprobs", "top_logprobs", "top_k")} == {
        "logprobs": True, "top_logprobs": 1, "top_k": 1,
    }  # fmt: skip
    assert reader(prompt_form="plain", log_probs=True)._body()["logprobs"] == 1
    scoring = reader(extra_body={"top_k": 1}, max_tokens_name="max_completion_tokens")
    assert scoring._scoring_body() == {
        "top_k": 1, "model": "m", "max_completion_tokens": 1, "temperature": 0,
    }  # fmt: skip


def test_settings_of_a_server_that_do_not_go_together_say_why():
    def said(**options):
        with pytest.raises(UserError) as error:
            reader(**options)
        return str(error.value)

    assert said(images=True, prompt_form="plain") == (
        "the reader openai: images: the plain form takes no images: set prompt_form to chat"
    )
    assert said(scoring="echo") == (
        "the reader openai: scoring echo needs the plain form, but prompt_form is chat"
    )
    assert said(scoring="prompt_logprobs", prompt_form="plain") == (
        "the reader openai: scoring prompt_logprobs needs the chat form, but prompt_form is plain"
    )
    with pytest.raises(UserError) as error:
        reader().score([Prompt("a")], ["b"])
    assert str(error.value) == "the reader openai: scoring answers needs the setting scoring"
    with pytest.raises(UserError) as error:
        reader().count_tokens([Prompt("a")])
    assert str(error.value) == "the reader openai: counting tokens needs the setting tokenizer"
    with pytest.raises(UserError) as error:
        reader().decode([1])
    assert str(error.value) == "the reader openai cannot decode tokens"


def test_a_served_readers_fingerprint_is_the_same_in_every_version():
    made = reader(revision="2")
    apart = {"workers", "timeout", "retries", "api_key_env", "context", "tokenizer"}
    apart |= {"image_tokens", "scoring", "max_thinking_tokens", "prices"}
    meant = {"url": "http://h/v1", "images": True, "stop_at_newline": False}
    settings = made.config.model_dump(exclude=apart) | meant
    assert made.fingerprint == fingerprint("openai/2", settings)
    assert reader(max_thinking_tokens=5).fingerprint != reader().fingerprint
    prices = {"prompt": 1, "completion": 2, "currency": "USD"}
    assert reader(prices=prices).fingerprint == reader().fingerprint


def test_every_request_can_be_stopped(monkeypatch):
    """A worker that waits for its next try learns that all others have ended."""
    stop, stops = object(), []

    def each(ask, items):
        for position, item in enumerate(items):
            yield position, run(ask(item, stop))

    def send(reply):
        async def call(form, body, read, given, payer):
            stops.append(given)
            return read(reply(body))

        return call

    def watched(reply, **options):
        tested = reader(**options)
        monkeypatch.setattr(tested.client, "each", each)
        monkeypatch.setattr(tested.client, "ask", send(reply))
        return tested

    asked = [Prompt("a")]
    assert watched(lambda body: chat("b")).generate(asked)[0].text == "b"
    assert stops == [stop]

    def echoes(body):
        listed = {"text_offset": [0, 1], "token_logprobs": [-1.0, -1.0]}
        return {"choices": [{"text": " b", "logprobs": listed}]}

    plain = watched(echoes, prompt_form="plain", scoring="echo")
    assert plain.score(asked, ["b"]) == [-1.0]
    assert stops == [stop] * 4  # what is generated, its echo, the answer's echo

    def tokens(body):
        count = len(body["messages"]) + body.get("add_generation_prompt", True)
        count += body.get("continue_final_message") is False
        return {"prompt_logprobs": [{str(i): {"logprob": -1.0}} for i in range(count)]}

    found = watched(tokens, scoring="prompt_logprobs").score(asked, ["b"])
    assert found == [-1.0]
    assert stops == [stop] * 7


def plain_server(replies):
    """A reader of the plain form; the requests that it makes."""
    tested = reader(prompt_form="plain", scoring="echo")
    asked = []

    async def send(body, read, stop, setting, payer):
        asked.append((body["prompt"], bool(body.get("echo")), setting))
        return read(replies(body))

    tested._send = send
    return tested, asked


@pytest.mark.parametrize("token", [None, "", "\n", " "])
def test_an_end_mark_is_not_echoed(token):
    listed = {"text_offset": [0, 2], "token_logprobs": [-3.0, -1.0]}

    def reply(body):
        text = token if not body.get("echo") else "x"
        return {"choices": [{"text": text, "logprobs": listed}]}

    tested, asked = plain_server(reply)
    assert run(tested._score_plain(Prompt("ab"), "c", None)) == -1.0
    assert asked == [("ab", False, "scoring"), ("ab c\n", True, "scoring")]
    assert not tested._echo_checked  # the next prompt may be checked


def test_an_echo_is_checked_once_within_a_tolerance():
    def reply(body):
        value = -1.0 - off if body.get("echo") else -1.0
        listed = {"text_offset": [0, 2], "token_logprobs": [-3.0, value], "tokens": None}
        if not body.get("echo"):
            listed = {"token_logprobs": [value]}
        return {"choices": [{"text": "d", "logprobs": listed}]}

    for off in (0.0, 0.49, -0.49):
        tested, asked = plain_server(reply)
        for _ in range(2):
            assert run(tested._score_plain(Prompt("ab"), "c", None)) == -1.0 - off
        assert [echo for _, echo, _ in asked] == [False, True, True, True]
        assert asked[1][0] == "abd"
    for off in (0.51, -0.51):
        tested, _ = plain_server(reply)
        with pytest.raises(UserError) as error:
            run(tested._score_plain(Prompt("ab"), "c", None))
        assert str(error.value) == (
            "the reader openai: the server gives 'd' the log-probability -1.00 when it generates "
            f"it and {-1 - off:.2f} when it echoes it: answers cannot be scored"
        )


def test_a_server_that_forbids_log_probabilities_is_told_from_one_that_refuses_the_key():
    tested = reader(log_probs=True)
    sent = []

    def forbidding(say, also=()):
        async def ask(form, body, read, stop, payer):
            sent.append(body)
            if "logprobs" in body or also:
                raise ForbiddenError(say)
            return read({})

        tested.client.ask = ask
        sent.clear()

    def send(*given):
        return run(tested._send(*given))

    forbids = "the reader openai: the server forbids log-probabilities (HTTP 403): set {} to {}"
    forbidding("no LogProbs here")
    body = {"model": "m", "logprobs": True}
    assert refused(send, body, dict, None) == (
        UserError, forbids.format("log_probs", "false"),
    )  # fmt: skip
    assert len(sent) == 1
    said = refused(send, body, dict, None, "scoring")
    assert said == (UserError, forbids.format("scoring", "none"))
    forbidding("no")  # without a reason, the request is made once without them
    assert refused(send, body, dict, None)[1] == forbids.format("log_probs", "false")
    assert sent == [body, {"model": "m"}]
    forbidding("no", also=True)
    assert refused(send, body, dict, None) == (ForbiddenError, "no")
    forbidding("no", also=True)
    assert refused(send, {"model": "m"}, dict, None) == (ForbiddenError, "no")
    assert len(sent) == 1


# --- what prefix caches can use


def test_requests_about_one_question_differ_in_their_passages_alone(tmp_path):
    data = BytesIO()
    Image.linear_gradient("L").save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    asking = reader(system="Be brief.", image_size=64)
    template = PromptTemplate.load("chat-question-first")
    passages = [Passage(str(i), f"It eats {what}.") for i, what in enumerate(["leaves", "bark"])]
    bodies = []
    for image in (tmp_path / "a.png", data.getvalue()):  # each in a call of its own
        question = Question(1, "What does it eat?", image=image)
        prompts = [template.prompt(question, [p], reader=asking)[0] for p in passages]
        images = served._Images(64, [prompt.images for prompt in prompts])
        for prompt in prompts:
            uris = run(images.uris(prompt.images))
            bodies.append(json.dumps(asking._request(prompt, uris)))
    first, other, *others = bodies
    assert others == [first, other]
    common = first[: first.index("leaves")]
    assert other.startswith(f"{common}bark")
    places = [common.index(part) for part in ("Be brief.", "data:image", "What does it eat?")]
    assert places == sorted(places)


def test_an_image_is_made_once_for_prompts_under_way_and_kept_until_its_last_one(monkeypatch):
    made = []
    monkeypatch.setattr(served, "_uri", lambda image, longest: f"{image}{made.append(image) or ''}")
    images = served._Images(64, [["a", "b"], ["a"], ["b"], ["a"]])

    async def ask():
        both = [images.uris(["a", "b"]), images.uris(["a"])]
        found = await asyncio.gather(*both)
        left = [await images.uris(["b"]), sorted(images._made), await images.uris(["a"])]
        return found, left

    assert run(ask()) == ([["a", "b"], ["a"]], [["b"], ["a"], ["a"]])
    assert sorted(made) == ["a", "b"]
    assert not images._made
