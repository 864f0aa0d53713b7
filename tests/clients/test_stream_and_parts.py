"""Streamed replies, echoes of the key, and the parts that the client is made of."""

import json
import math
import threading

import pytest
from asking import now
from scripted_server import begin, chat, completion, streamed

from ravqa.clients import openai as module
from ravqa.clients.openai import (
    DEEPEST,
    ChatServerConfig,
    Client,
    NoAnswerError,
    ServerConfig,
    UnusableReplyError,
    is_deep,
    message_in,
    one_line,
)
from ravqa.core.errors import PromptError, ServerError, UserError

KEY = "sk-verysecret0123456789"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "top_k": 3}


def client(server, **options):
    url = server if isinstance(server, str) else server.url
    options = {"model": "m", "timeout": 10, "retries": 0, **options}
    return Client(ServerConfig(url=url, **options), why="the test")


def event(text, **choice):
    return {"choices": [{"index": 0, "finish_reason": None, "delta": {"content": text}, **choice}]}


def sent(*lines):
    """A stream of lines as they are."""
    return 200, "".join(lines), {"Content-Type": "text/event-stream"}


def data(value):
    return f"data: {json.dumps(value)}\n\n"


END = event("", finish_reason="stop")


# --- streams


def test_a_stream_is_asked_for_where_it_belongs(serve):
    server = serve(lambda *_: streamed("a", " b"))
    found = list(client(server).stream(BODY, chat=True))
    assert [e["choices"][0]["delta"].get("content") for e in found] == ["a", " b", None]
    plain = {"model": "m", "prompt": "hello"}
    assert len(list(client(server).stream(plain, chat=False))) == 3
    assert [path for path, _, _ in server.requests] == ["/v1/chat/completions", "/v1/completions"]
    assert server.bodies == [BODY | {"stream": True}, plain | {"stream": True}]


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([data(event("a")), data(END), "data: [DONE]\n\n", data(event("b"))], 2),
        ([data(event("a")), data(END)], 2),  # not every server says that it is done
        ([data(event("a")), data(END), data({"usage": {}})], 3),
        ([data(event("a")), data(END), data(event("b"))], 3),
        ([data(event("a")), "data: [DONE]\n\n"], 1),
        ([data(event("a")), "data:[DONE]"], 1),
        ([": hi\n\n", "event: message\n", data(event("a")), "id: 7\n\n", "data:  [DONE] \n"], 1),
        ([data(event("a")).replace("\n", "\r\n"), "data: [DONE]\r\n"], 1),
        (["event: error\n", "event: message\n", data(event("a")), "data: [DONE]\n"], 1),
        (["data: [DONE]\n"], 0),
    ],
)
def test_events_are_read_up_to_the_end(serve, lines, found):
    events = list(client(serve(lambda *_: sent(*lines))).stream(BODY, chat=True))
    assert len(events) == found
    assert events == [event("a"), END, events[2] if found == 3 else None][:found]


FAILED = "a streamed reply failed: "


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (sent(data(event("a"))), "it did not end"),
        (sent(data(event("a")), ": [DONE]\n"), "it did not end"),
        (sent(data({"choices": []}), data({"choices": "x"}), data({})), "it did not end"),
        (sent(data(event("a", finish_reason=""))), "it did not end"),
        (sent(data({"choices": [1]})), "it did not end"),
        (sent(data(event("a")), "data: {\n"), "the reply is not JSON"),
        (sent("data: [1]\n"), "the reply is not a JSON object"),
        (sent('data: {"error": {"message": "no\\nGPU"}}\n'), "the server reports: no GPU"),
        (sent("event: error\n", data({"code": 7})), "the server reports an error"),
        (sent("event:error\n\n", data({"message": "x"})), "the server reports: x"),
        (chat("hi"), "it was not sent as events"),
        (sent("data: " + "[" * 200 + "]" * 200), "the reply is nested more than 100 levels deep"),
    ],
)
def test_a_stream_that_fails_says_how(serve, reply, said):
    tested = client(serve(lambda *_: reply))
    with pytest.raises(PromptError) as error:
        list(tested.stream(BODY, chat=True))
    assert str(error.value) == f"the test: {tested.url}: {FAILED}{said}"


def test_a_stream_that_is_cut_off_says_so(serve):
    read = threading.Event()

    def cut(handler):
        begin(handler, 1000)
        handler.wfile.write(data(event("a")).encode())
        read.wait(20)

    found = client(serve(lambda *_: cut)).stream(BODY, chat=True)
    assert next(found) == event("a")
    read.set()
    with pytest.raises(PromptError, match=rf"{FAILED}it was cut off \(.+ before its end\)$"):
        next(found)


def test_a_stream_that_is_refused_is_refused_before_it_begins(serve, waits):
    with pytest.raises(PromptError, match=r"HTTP 400 Bad Request \(no streams\)$"):
        client(serve(lambda *_: (400, "no streams"))).stream(BODY, chat=True)
    server = serve(lambda n, _: (503, "") if n < 3 else streamed("a"))
    assert len(list(client(server, retries=2).stream(BODY, chat=True))) == 2
    assert len(waits) == 2
    server.stop()
    with pytest.raises(ServerError, match="cannot be reached"):
        client(server).stream(BODY, chat=True)


def test_lines_may_be_cut_anywhere(serve):
    text = (data(event("\u00fc\u4e2d")) + data(END)).encode()

    def one_by_one(handler):
        begin(handler, len(text))
        for i in range(0, len(text), 7):
            handler.wfile.write(text[i : i + 7])
            handler.wfile.flush()

    found = list(client(serve(lambda *_: one_by_one)).stream(BODY, chat=True))
    assert found == [event("\u00fc\u4e2d"), END]


# --- echoes of the key


def test_an_echo_of_the_key_is_masked_and_told_once(serve, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    tested = client(serve(lambda *_: chat(f"it is {KEY}")))
    for _ in range(3):
        assert now(tested, BODY, lambda r: r["choices"][0]["message"]["content"]) == "it is ***"
    [record] = caplog.records
    told = f"the test: {tested.url}: a reply contains the key: it is shown as *** from here on"
    assert record.getMessage() == told
    caplog.clear()
    tested = client(serve(lambda *_: streamed(f"a{KEY}")))
    found = list(tested.stream(BODY, chat=True))
    assert found[0]["choices"][0]["delta"]["content"] == "a***"
    pieces = tested.pieces()
    text = "".join([pieces.next(KEY[:5]), pieces.next(KEY[5:] + "!"), pieces.rest()])
    assert text == "***!"
    assert len(caplog.records) == 1
    plain = client(serve(lambda *_: chat("hi")))
    now(plain, BODY, lambda r: r)
    assert len(caplog.records) == 1


# --- tries


def test_a_reply_without_an_answer_shows_that_the_server_is_there(serve, waits):
    def none(reply):
        raise NoAnswerError("refused")

    server = serve(lambda *_: chat("hi"))
    tested = client(server, retries=2)
    with pytest.raises(PromptError, match=f"^the test: {tested.url}: refused$"):
        now(tested, BODY, none)
    assert len(server.requests) == 1
    server.stop()
    with pytest.raises(ServerError, match="after 3 tries: is the server running"):
        now(tested, BODY, none)  # it may be on its way back
    assert len(waits) == 2


@pytest.mark.parametrize("between", ["an answer", "no answer", "a refusal"])
def test_only_failures_in_a_row_show_that_a_server_is_gone(serve, waits, between):
    replies = {"an answer": chat("hi"), "no answer": chat("hi"), "a refusal": (400, "no")}

    def read(reply):
        if between == "no answer":
            raise NoAnswerError("nothing")
        return reply

    server = serve(lambda n, _: replies[between] if n == 3 else (500, "oops"))
    tested = client(server)
    for n in range(1, 6):
        if n == 3 and between == "an answer":
            now(tested, BODY, read)
            continue
        with pytest.raises(PromptError, match=r"oops|nothing|no\)"):
            now(tested, BODY, read)
    with pytest.raises(ServerError, match=r"\(oops\), for several requests in a row$"):
        now(tested, BODY, read)


def test_a_reply_that_cannot_be_used_is_asked_for_again(serve, waits):
    def unusable(reply):
        raise UnusableReplyError("it is blue")

    server = serve(lambda *_: chat("hi"))
    with pytest.raises(PromptError, match=r": it is blue, after 3 tries$"):
        now(client(server, retries=2), BODY, unusable)
    assert len(server.requests) == 3


def test_a_tunnel_that_a_proxy_refuses_is_named(serve, waits, monkeypatch):
    proxy = serve(lambda *_: chat("hi"))  # it knows no CONNECT
    address = proxy.url.removesuffix("/v1")
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, address)
    with pytest.raises(ServerError) as error:
        now(client("https://models.example/v1"), BODY, lambda r: r)
    where = address.removeprefix("http://")
    assert f"cannot be reached through the proxy {where} (501 " in str(error.value)
    assert str(error.value).endswith("NO_PROXY=models.example reaches the server without it")


# --- what a server says


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({"error": {"message": "a"}, "message": "b", "detail": "c"}, "a"),
        ({"message": "b", "detail": "c"}, "b"),
        ({"error": {}, "detail": "c"}, "c"),
        ({"error": {"message": {"detail": "d"}}}, "d"),
        ({"error": {"message": {"detail": {"error": "e"}}}}, '{"error": "e"}'),
        ({"detail": [{"msg": "\u00fc"}]}, '[{"msg": "\u00fc"}]'),
        ({"error": {"code": 7}}, ""),
        ({}, ""),
        ("plain", "plain"),
        (["x"], '["x"]'),
    ],
)
def test_a_message_is_found_in_an_error(reply, said):
    assert message_in(reply) == said


def test_a_servers_text_is_one_line_of_at_most_300_characters():
    assert one_line(" a\n\tb  c ") == "a b c"
    assert one_line("\ud83d") == "?"
    assert one_line(5) == "5"
    assert one_line("x" * 300) == "x" * 300
    assert one_line("x" * 301) == "x" * 297 + "..."


def test_depth_is_counted_over_lists_and_objects():
    value = 0
    for depth in range(1, DEEPEST + 2):
        value = [1, value] if depth % 2 else {"a": "x", "b": value}
        assert is_deep(value) is (depth > DEEPEST - 1), depth
    assert not is_deep("x" * 1000)
    assert not is_deep([])


@pytest.mark.parametrize(
    ("reply", "fails"),
    [
        ({"error": "x", "choices": []}, True),
        ({"object": "error"}, True),
        ({"message": "x"}, True),
        ({"detail": ["x"]}, True),
        ({"message": "x", "choices": []}, False),
        ({"message": {"content": "x"}}, False),
        ({"message": "", "detail": []}, False),
        ({"error": None, "object": "chat"}, False),
    ],
)
def test_an_error_is_known_by_its_form(reply, fails):
    assert module._is_error(reply) is fails


@pytest.mark.parametrize(
    ("body", "codes"),
    [
        ({"error": {"code": "a", "type": "b"}}, "a b"),
        ({"code": "a", "type": "b"}, "a b"),
        ({"error": "x"}, ""),
        ([], ""),
        ("x", ""),
    ],
)
def test_the_names_of_an_error(body, codes):
    assert module._codes(body).replace("None", "").strip() == codes


@pytest.mark.parametrize(
    "error",
    [
        {"message": "no", "type": "context_length_exceeded"},
        {"message": "Too many tokens"},
        {"message": "prompt is too long"},
        {"message": "It exceeds the maximum input"},
        {"message": "context window"},
    ],
)
def test_a_prompt_is_too_long_by_the_names_of_the_error_too(serve, error):
    server = serve(lambda *_: (413, json.dumps({"error": error})))
    with pytest.raises(PromptError, match="the prompt is too long for the model: HTTP 413"):
        now(client(server), BODY, lambda r: r)


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"plain \xff", "plain \ufffd"),
        (b" <!DOCTYPE html><p>hi", ""),
        (b"<HTML>", ""),
        (b"<?xml?>", ""),
        (b"<p>", "<p>"),
    ],
)
def test_the_body_of_an_error_is_json_or_text_but_no_page(body, read):
    assert module._json(body) == read


def test_deep_bodies_of_errors_are_text():
    deep = b"[" * 101 + b"]" * 101
    assert module._json(deep) == deep.decode()
    assert module._json(b"[" * 99 + b"]" * 99) == json.loads(b"[" * 99 + b"]" * 99)


# --- settings


def test_an_address_is_refused_with_the_reason():
    def said(url):
        with pytest.raises(UserError) as error:
            client(url)
        return str(error.value)

    password = "the test: url: it must not contain a name or password: use api_key_env"
    assert said("http://me:word@host/v1") == said("me@host") == said("//me@host/a") == password
    after = "the test: url: nothing may follow its path; for a key, use api_key_env"
    assert said("http://host/v1?key=x") == said("http://host/v1#x") == after
    assert said("http://host/v1?api-version=1#x") == after
    none = "the test: url: an http address is expected, got "
    for url in ("ftp://host", "http:///v1", "http://host/a b", "host/v1?api-version=1"):
        assert said(url) == f"{none}{url!r}"
    for fine in (
        "http://host",
        "https://host:80/v1/",
        "http://host/a@b",
        "http://h?api-version=2-b",
    ):
        assert client(fine).url == fine.rstrip("/")


def test_keys_are_refused_where_they_do_not_belong(monkeypatch):
    with pytest.raises(UserError) as error:
        client("http://host", api_key_env="lower")
    assert str(error.value) == (
        "the test: api_key_env: the name of an environment variable is expected, in capitals"
    )
    config = ChatServerConfig(url="http://host", model="m", extra_body={"api_key": KEY})
    with pytest.raises(UserError) as error:
        config.refuse_secrets("the judge x")
    assert str(error.value).startswith("the judge x: extra_body")
    assert str(error.value).endswith("settings must not contain a key: use api_key_env")
    assert KEY not in str(error.value)
    monkeypatch.setenv("MY_KEY", "  ")
    with pytest.raises(UserError) as error:
        client("http://host", api_key_env="MY_KEY")
    assert str(error.value) == (
        "the test: the environment variable MY_KEY (api_key_env) is not set"
    )
    for bad in ("two words", "\u00fc", "a\x07b"):
        monkeypatch.setenv("MY_KEY", bad)
        with pytest.raises(UserError) as error:
            client("http://host", api_key_env="MY_KEY")
        assert str(error.value) == (
            "the test: the environment variable MY_KEY has characters no key can have"
        )


def test_a_key_is_sent_without_the_spaces_around_it(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    server = serve(lambda *_: chat("hi"))
    now(client(server), BODY, lambda r: r)
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"


def test_a_request_as_the_settings_say():
    def request(longest=16, **options):
        return ChatServerConfig(url="http://host", model="m", **options).request(longest)

    assert request() == {"model": "m", "max_tokens": 16, "temperature": 0.0}
    assert request(max_thinking_tokens=100, seed=0, temperature=0.5) == {
        "model": "m", "max_tokens": 116, "temperature": 0.5, "seed": 0,
    }  # fmt: skip
    named = request(max_tokens_name="max_completion_tokens", temperature=None, seed=5)
    assert named == {"model": "m", "max_completion_tokens": 16, "seed": 5}
    plain = ChatServerConfig(url="http://host", model="m")
    assert plain.messages("x") == [{"role": "user", "content": "x"}]
    system = ChatServerConfig(url="http://host", model="m", system="Be brief.")
    assert system.messages("x") == [
        {"role": "system", "content": "Be brief."},
        *plain.messages("x"),
    ]
    assert plain.packages() == [("openai", "openai"), ("aiohttp", "openai")]
    assert plain.servers() == ["http://host"]
    assert plain.models() == ()


@pytest.mark.parametrize(
    "name",
    "model messages prompt stop max_tokens max_completion_tokens temperature seed n stream "
    "logprobs top_logprobs echo prompt_logprobs".split(),
)
def test_keys_of_the_parts_own_are_refused(name):
    config = ChatServerConfig(url="http://host", model="m", extra_body={"top_k": 1, name: 1})
    with pytest.raises(UserError) as error:
        config.refuse_own("the judge llm")
    said = f"the judge llm: extra_body: {name} comes from the judge's own settings"
    assert str(error.value) == said
    ChatServerConfig(url="http://host", model="m", extra_body={"top_k": 1}).refuse_own("the x")


def test_status_is_told_with_its_phrase_and_reason(serve, waits):
    def said(reply, **options):
        tested = client(serve(lambda *_: reply), **options)
        with pytest.raises((PromptError, ServerError)) as error:
            now(tested, BODY, lambda r: r)
        return type(error.value), str(error.value).removeprefix(f"the test: {tested.url}: ")

    assert said((400, "")) == (PromptError, "HTTP 400 Bad Request")
    assert said((500, "oops")) == (PromptError, "HTTP 500 Internal Server Error (oops)")
    assert said((500, "no mmproj")) == (PromptError, "HTTP 500 Internal Server Error (no mmproj)")
    moved = said((302, "", {"Location": "/v2"}))
    assert moved == (ServerError, "HTTP 302: the server redirects to /v2: set url to it")
    lost = said((301, ""))
    assert lost == (ServerError, "HTTP 301: the server redirects to another address: set url to it")
    refused = "no key was sent: $OPENAI_API_KEY is not set"
    assert said((401, "no")) == (ServerError, f"HTTP 401 Unauthorized (no): {refused}")
    assert said((403, "no")) == (module.ForbiddenError, f"HTTP 403 Forbidden (no): {refused}")
    quota = '{"error": {"message": "pay", "code": "insufficient_quota"}}'
    assert said((429, quota)) == (ServerError, "HTTP 429 Too Many Requests (pay)")
    wrong = "url is the address before /chat/completions, usually ending in /v1"
    assert said((404, ""), model="m") == (ServerError, f"HTTP 404 Not Found: {wrong}")
    other = said((404, "gone"), model="other")
    assert other == (ServerError, "the server has no model 'other': known: m")


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 599])
def test_what_passes_is_tried_again_and_counted(serve, waits, status):
    server = serve(lambda *_: (status, "x"))
    with pytest.raises(PromptError, match=rf"HTTP {status} .*\(x\), after 3 tries$"):
        now(client(server, retries=2), BODY, lambda r: r)
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 410, 413, 422, 499])
def test_what_stays_is_not_tried_again(serve, waits, status):
    server = serve(lambda *_: (status, "x"))
    with pytest.raises(PromptError, match=rf"HTTP {status}"):
        now(client(server, retries=2), BODY, lambda r: r)
    assert len(server.requests) == 1


def test_the_longest_wait_that_is_waited_for(serve, waits):
    server = serve(lambda n, _: (429, "", {"Retry-After": "600"}) if n == 1 else chat("hi"))
    now(client(server, retries=1), BODY, lambda r: r)
    assert waits == [pytest.approx(600, abs=2)]
    server = serve(lambda *_: (429, "", {"Retry-After": "601"}))
    with pytest.raises(ServerError) as error:
        now(client(server, retries=1), BODY, lambda r: r)
    assert str(error.value).endswith("Requests; the server asks to wait 601 s")


def test_plain_text_is_completed_at_its_own_address(serve):
    server = serve(lambda *_: completion("x"))
    asked = {"model": "m", "prompt": "p", "echo": True}
    now(client(server), asked, lambda r: r, form="plain")
    assert server.requests[0][0] == "/v1/completions"
    assert server.bodies == [asked]


def test_limits_are_what_they_are():
    assert module._too_large(2**24) == "the reply is larger than 16 MB"
    assert math.isinf(client("http://host")._told)
