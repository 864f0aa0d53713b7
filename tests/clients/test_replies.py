"""Replies of servers: which are answers, and why the others are not."""

import itertools

import pytest

from ravqa.clients.openai import NoAnswerError, UnusableReplyError
from ravqa.clients.replies import Reply, choice_of

FILTERED = "the server's content filter withheld the answer"


def chat(content, finish="stop", usage=None, **message):
    choice = {"message": {"content": content, **message}, "finish_reason": finish}
    return {"choices": [choice], **({} if usage is None else {"usage": usage})}


def plain(text, finish="stop"):
    return {"choices": [{"text": text, "finish_reason": finish}]}


def events(*deltas, finish="stop"):
    last = {"choices": [{"delta": {}, "finish_reason": finish}]}
    return [*({"choices": [{"delta": delta}]} for delta in deltas), last]


def read(reply, form="chat"):
    """The text of a reply that is an answer, and its thinking."""
    made = Reply(form, 16, "max_tokens")
    text = made.whole(reply)
    made.check()
    assert made.text == text
    return text, made.thinking


def streamed(replies, form="chat"):
    made = Reply(form, 16, "max_tokens")
    text = "".join(made.event(event) for event in replies)
    made.check()
    assert made.text == text
    return text, made.thinking


def refused(call, *arguments):
    with pytest.raises((NoAnswerError, UnusableReplyError)) as error:
        call(*arguments)
    return type(error.value), str(error.value)


# --- choices


@pytest.mark.parametrize(
    "reply", [{}, {"choices": None}, {"choices": []}, {"choices": {"0": 1}}, {"choices": ["x"]}]
)
def test_a_reply_without_choices_may_be_asked_for_again(reply):
    assert refused(choice_of, reply) == (UnusableReplyError, "a reply without choices")
    assert refused(read, reply) == (UnusableReplyError, "a reply without choices")


def test_the_first_choice_counts():
    first, second = {"text": "a", "error": None}, {"text": "b", "error": "x"}
    assert choice_of({"choices": [first, second]}) is first


@pytest.mark.parametrize(
    ("code", "lasting"),
    [
        (400, True), (404, True), (422, True), (499, True),
        (399, False), (500, False), (408, False), (409, False), (425, False), (429, False),
        ("400", False), (None, False),
    ],
)  # fmt: skip
def test_an_error_of_the_choice_is_reported_and_asked_again_unless_it_stays(code, lasting):
    error = {"message": "no\n GPU", "code": code}
    kind = NoAnswerError if lasting else UnusableReplyError
    found = refused(choice_of, {"choices": [{"text": "a", "error": error}]})
    assert found == (kind, "the server reports: no GPU")


def test_an_error_may_be_a_text():
    found = refused(choice_of, {"choices": [{"error": "overloaded"}]})
    assert found == (UnusableReplyError, "the server reports: overloaded")


FAILED = (
    "error abort aborted cancelled canceled failed timeout network_error server_error "
    "insufficient_system_resource malformed_response other language"
).split()
WITHHELD = (
    "content_filter content_filtered sensitive safety recitation blocklist prohibited_content spii "
    "image_safety image_prohibited_content guardrail_intervened blocked content_policy_violation"
).split()


@pytest.mark.parametrize("key", ["finish_reason", "native_finish_reason"])
@pytest.mark.parametrize("name", [*FAILED, *WITHHELD])
def test_what_broke_off_or_was_withheld_is_no_answer(key, name):
    for written in (name, name.upper(), f" {name} : MORE"):
        choice = {"message": {"content": "a koala"}, "finish_reason": "stop", key: written}
        found = refused(read, {"choices": [choice]})
        if name in FAILED:
            said = f"the reply broke off (finish_reason {name!r})"
            assert found == (UnusableReplyError, said)
        else:
            assert found == (NoAnswerError, FILTERED)


SOUND = {"filtered": False, "severity": "safe"}


@pytest.mark.parametrize(
    ("results", "names"),
    [
        ({"hate": SOUND, "violence": {"filtered": True, "severity": "high"}}, "violence"),
        ({"hate": {"filtered": True}, "custom_blocklists": {"filtered": True}}, None),
        ({"custom_blocklists": [{"filtered": False}, {"filtered": True, "id": "x"}]}, None),
        ({"protected_material_text": {"filtered": True, "detected": True}}, None),
        ({"a\nb": {"filtered": True}}, "a b"),
    ],
)
def test_what_azure_filtered_is_no_answer_whatever_the_finish_reason(results, names):
    names = names or ", ".join(results)
    choice = {**chat("a koala")["choices"][0], "content_filter_results": results}
    expected = (NoAnswerError, f"{FILTERED} ({names})")
    assert refused(read, {"choices": [choice]}) == expected
    late = {"choices": [{"delta": {}, "content_filter_results": results}]}
    message = {"content": "a koala"}
    assert refused(streamed, [*events(message), late]) == expected


@pytest.mark.parametrize(
    "results",
    [
        {},
        None,
        "none",
        {"hate": SOUND, "jailbreak": {"filtered": False, "detected": True}},
        {"error": {"code": "content_filter_error", "message": "not run"}},
        {"custom_blocklists": [], "hate": None, "violence": {"filtered": "no"}},
    ],
)
def test_a_filter_that_let_the_answer_pass_changes_nothing(results):
    choice = {**chat("a koala")["choices"][0], "content_filter_results": results}
    assert read({"choices": [choice]}) == ("a koala", "")


# --- answers


PARTS = [
    {"type": "thinking", "thinking": "hm, "},
    {"type": "redacted_thinking", "data": "x"},
    {"type": "text", "text": "a "},
    {"type": "reasoning", "summary": [{"text": "so"}, "?", {"reasoning": [{"thinking": "."}]}]},
    {"type": "output_text", "text": "koala"},
]


@pytest.mark.parametrize(
    ("reply", "text", "thinking"),
    [
        (chat("a koala"), "a koala", ""),
        (chat(" a\n", "length"), " a\n", ""),
        (chat("a", None), "a", ""),
        (chat("a", reasoning_content="r"), "a", "r"),
        (chat("a", reasoning="r"), "a", "r"),
        (chat("a", reasoning_content="r", reasoning="r"), "a", "r"),
        (chat("a", reasoning={"x": 1}), "a", ""),
        (chat("<think>b</think>a"), "<think>b</think>a", ""),
        (chat(PARTS), "a koala", "hm, so."),
        (chat("\ud83d a", reasoning="\ud83d"), "? a", "?"),
        (chat("a", refusal=""), "a", ""),
        (chat("a", tool_calls=[], function_call=None), "a", ""),
    ],
)
def test_the_text_of_a_whole_reply(reply, text, thinking):
    assert read(reply) == (text, thinking)
    message = reply["choices"][0]["message"]
    if reply["choices"][0]["finish_reason"]:
        finish = reply["choices"][0]["finish_reason"]
        assert streamed(events(message, finish=finish)) == (text, thinking)


def test_the_text_of_a_plain_reply():
    assert read(plain(" koala"), "plain") == (" koala", "")
    pieces = [{"choices": [{"text": text}]} for text in (" ko", "ala")]
    last = {"choices": [{"text": "", "finish_reason": "stop"}]}
    assert streamed([*pieces, last], "plain") == (" koala", "")
    without = refused(read, {"choices": [{"message": {"content": "a"}}]}, "plain")
    assert without == (UnusableReplyError, "a choice without text")
    assert refused(read, plain(None), "plain") == (UnusableReplyError, "a choice without text")
    assert refused(read, plain("a")) == (UnusableReplyError, "a choice without a message")


def test_events_add_up():
    deltas = [
        {"role": "assistant"},
        {"reasoning": "h"},
        {"reasoning": "m"},
        {"content": "a "},
        {"content": None},
        {"content": "koala"},
    ]
    tokens = {"choices": [], "usage": {"completion_tokens": 5}}
    assert streamed([*events(*deltas), tokens, {}]) == ("a koala", "hm")
    odd = [{"choices": [{"delta": None}]}, *events({"content": "a"})]
    assert streamed(odd) == ("a", "")


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (5, UnusableReplyError, "a choice without text"),
        ({"text": "a"}, UnusableReplyError, "a choice without text"),
        (["a"], UnusableReplyError, "a choice without text"),
        ([{"text": "a"}], UnusableReplyError, "a choice without text"),
        ([{"type": "text", "text": None}], UnusableReplyError, "a choice without text"),
        (
            [{"type": "text", "text": "a"}, {"type": "image\nurl"}],
            NoAnswerError,
            "the answer has a part of the unknown type 'image url'",
        ),
        ([{"type": 7}], NoAnswerError, "the answer has a part of the unknown type '7'"),
    ],
)
def test_what_is_no_text_is_no_answer(content, kind, said):
    assert refused(read, chat(content)) == (kind, said)


# --- no answers, and why


@pytest.mark.parametrize("content", ["", "a koala", None])
def test_a_refusal_is_no_answer_whatever_was_written(content):
    plainly = (NoAnswerError, "the model refused to answer")
    told = (NoAnswerError, "the model refused to answer (I must not)")
    assert refused(read, chat(content, "refusal")) == plainly
    assert refused(read, chat(content, refusal="I must\nnot")) == told
    assert refused(streamed, events({"refusal": "I must "}, {"refusal": "not"})) == told
    part = {"type": "refusal", "refusal": "I must not"}
    assert refused(read, chat([part, {"type": "text", "text": content or ""}])) == told
    assert refused(read, chat([{"type": "refusal"}], "refusal")) == plainly
    found = refused(read, chat(content, refusal={"why": "x"}))
    assert found == (NoAnswerError, 'the model refused to answer ({"why": "x"})')


CALLED = (
    "tool_calls function_call tool_use malformed_function_call unexpected_tool_call "
    "too_many_tool_calls"
)


@pytest.mark.parametrize("call", [{"tool_calls": [{"id": 1}]}, {"function_call": {"name": "f"}}])
def test_a_call_of_a_tool_is_no_answer_whatever_was_written(call):
    for content, finish in itertools.product(("", "Let me look it up."), ("stop", "Tool_Calls")):
        said = f"the model called a tool instead of answering (finish_reason {finish.lower()!r})"
        assert refused(read, chat(content, finish, **call)) == (NoAnswerError, said)
        assert refused(streamed, events(call, {"content": content}, finish=finish)) == (
            NoAnswerError,
            said,
        )
    called = "tool_calls function_call tool_use malformed_function_call unexpected_tool_call"
    for finish in called.split():
        said = f"the model called a tool instead of answering (finish_reason {finish!r})"
        assert refused(read, chat("a", finish)) == (NoAnswerError, said)


SPENT = "the model spent all 16 tokens on {}: raise max_tokens"
CUT = "length max_tokens max_output_tokens model_length incomplete model_context_window_exceeded"


@pytest.mark.parametrize("finish", CUT.split())
def test_a_reply_that_was_cut_before_its_answer_says_what_to_raise(finish):
    thought = (NoAnswerError, SPENT.format("thinking"))
    for content in ("", None, "<think>hm", "<think>hm</think>", "<think>hm</think> "):
        assert refused(read, chat(content, finish)) == thought
    assert refused(read, chat(" \n", finish, reasoning="hm")) == thought
    usage = {"completion_tokens": 16, "completion_tokens_details": {"reasoning_tokens": 9}}
    assert refused(read, chat(" ", finish, usage=usage)) == thought
    blank = (NoAnswerError, SPENT.format("white space"))
    assert refused(read, chat(" \n", finish)) == blank
    none = {"completion_tokens": 16, "completion_tokens_details": {"reasoning_tokens": 0}}
    assert refused(read, chat(" ", finish, usage=none)) == blank
    assert refused(streamed, events({"content": " "}, finish=finish)) == blank


@pytest.mark.parametrize("finish", ["stop", "eos", "odd"])
def test_thinking_without_an_answer_is_none(finish):
    said = (NoAnswerError, f"the model reasoned but gave no answer (finish_reason {finish!r})")
    details = {"completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 7}}
    for reply in (
        chat("<think>hm</think>", finish),
        chat("<think>hm", finish),
        chat("", finish, reasoning="hm"),
        chat(None, finish, reasoning_content="hm"),
        chat([{"type": "thinking", "thinking": "hm"}], finish),
        chat("", finish, usage=details),
    ):
        assert refused(read, reply) == said


def test_a_reply_without_text_and_without_a_reason_may_be_asked_for_again():
    said = (UnusableReplyError, "a reply without text and without finish_reason")
    for reply in (chat("", None), chat("", ""), chat(None, None), chat(" ", None)):
        assert refused(read, reply) == said
    assert refused(streamed, events({"content": ""}, finish=None)) == said


@pytest.mark.parametrize("finish", ["stop", "eos", "eos_token", "end_turn", "stop_sequence"])
def test_a_model_may_stop_before_its_first_word(finish):
    """The caller decides what that means, unless nothing at all was written."""
    for text in ("", " ", "</s>"):
        assert read(chat(text, finish)) == (text, "")
        assert read(chat(text, finish, usage={"completion_tokens": 1})) == (text, "")
        assert read(plain(text, finish), "plain") == (text, "")
    nothing = (NoAnswerError, f"the model wrote nothing (finish_reason {finish!r})")
    assert refused(read, chat(None, finish)) == nothing
    assert refused(read, chat("", finish, usage={"completion_tokens": 0})) == nothing
    odd = {"completion_tokens": 0, "completion_tokens_details": None}
    assert refused(read, chat("", finish, usage=odd)) == nothing
    for usage in ({"completion_tokens": None}, {}, "none"):
        assert read(chat("", finish, usage=usage)) == ("", "")
    unknown = (NoAnswerError, "the model wrote nothing (finish_reason 'odd one')")
    assert refused(read, chat("", "Odd\none: x")) == unknown


def test_the_last_reason_of_a_stream_counts_and_an_empty_one_changes_nothing():
    deltas = [
        {"choices": [{"delta": {"content": " "}, "finish_reason": "length"}]},
        {"choices": [{"delta": {}, "finish_reason": None}]},
    ]
    assert refused(streamed, deltas) == (NoAnswerError, SPENT.format("white space"))
    assert streamed([*deltas, *events({"content": ""})]) == (" ", "")
