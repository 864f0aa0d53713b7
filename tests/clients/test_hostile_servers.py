"""Servers that never end, send far too much, or nest without end: one line, soon."""

import json
import time

import pytest
from asking import now
from scripted_server import begin, chat

from ravqa.clients.openai import Client, ServerConfig
from ravqa.core.errors import PromptError, ServerError

TIMEOUT = 0.3
SOON = 5  # seconds; far less than the servers below go on


def client(server, **options):
    options = {"retries": 0, "timeout": TIMEOUT, **options}
    return Client(ServerConfig(url=server.url, model="m", **options), why="the test")


def ask(server):
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    return now(client(server), body, lambda reply: reply["choices"][0]["message"]["content"])


def streamed(server, **options):
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    return list(client(server, **options).stream(body, chat=True))


def trickle(server, before, piece=b" "):
    def reply(handler):
        handler.wfile.write(before)
        for _ in range(400):
            if server().ending.wait(0.05):
                return
            handler.wfile.write(piece)

    return reply


def flood(before, block):
    """Some 256 MB, unless the client hangs up."""

    def reply(handler):
        handler.wfile.write(before)
        for _ in range(4096):
            handler.wfile.write(block)

    return reply


OK = b"HTTP/1.1 200 OK\r\n"
BROKEN = b"HTTP/1.1 500 Oops\r\n\r\n"
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'


@pytest.mark.parametrize(
    ("before", "piece", "message"),
    [
        (b"HTTP/1.1 200 O", b"K", "no answer within"),  # not even a status
        (b"", b"H", r"the connection was cut \(Bad status line"),
        (OK + b"X-Slow: ", b"x", "no answer within"),
        (OK, b"X-More: x\r\n", "no answer within"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", "no answer within"),
        (OK + b"\r\n{", b" ", "no answer within"),
        (BROKEN, b"x", "HTTP 500 Oops"),
        (b"HTTP/1.1 400 No\r\nContent-Length: 100000\r\n\r\n", b"x", r"HTTP 400 No \(x+\)"),
        (b"HTTP/1.1 307 Away\r\nLocation: /v2\r\n\r\n", b"x", "redirects to /v2: set url to it"),
    ],
)
def test_a_reply_that_trickles_ends_at_the_deadline(serve, before, piece, message):
    server = serve(lambda *_: trickle(lambda: server, before, piece))
    began = time.monotonic()
    with pytest.raises((PromptError, ServerError), match=message):
        ask(server)
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        (b"HTTP/1.1 200 O", b"K"),
        (OK + b"\r\n", b": a comment\n\n"),
        (OK + b"\r\n", EVENT),
        (OK + b"\r\ndata: ", b"x"),
    ],
)
def test_a_stream_that_never_ends_ends_at_the_deadline(serve, before, piece):
    server = serve(lambda *_: trickle(lambda: server, before, piece))
    began = time.monotonic()
    with pytest.raises(PromptError, match="no answer within"):
        streamed(server)
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize(
    ("before", "block", "message"),
    [
        (OK + b"\r\n", b": a comment\n" * 5000, "the reply is larger than 1 MB"),
        (OK + b"\r\n", EVENT * 1000, "the reply is larger than 1 MB"),
        (OK + b"\r\ndata: ", b"x" * 2**16, "the reply is larger than 1 MB"),  # one line
    ],
)
def test_a_stream_is_read_up_to_its_limit(serve, monkeypatch, before, block, message):
    monkeypatch.setattr("ravqa.clients.openai._LARGEST", 2**20)
    server = serve(lambda *_: flood(before, block))
    with pytest.raises(PromptError, match=message):
        streamed(server, timeout=20)


def test_of_an_error_only_the_beginning_is_read(serve):
    sent = []

    def endless(handler):
        handler.wfile.write(BROKEN)
        for _ in range(4096):
            handler.wfile.write(b"no " * 2**14)
            sent.append(3 * 2**14)

    with pytest.raises(PromptError, match=r"HTTP 500 Oops \(no no .*\.\.\.\)$"):
        ask(serve(lambda *_: endless))
    assert sum(sent) < 2**26


def deep(depth, value):
    return '{"a":' * depth + value + "}" * depth


@pytest.mark.parametrize("depth", [101, 990, 5000, 200_000])
@pytest.mark.parametrize("shape", [deep, lambda depth, value: "[" * depth + value + "]" * depth])
def test_a_reply_that_is_nested_too_deep_is_one_line(serve, shape, depth):
    text = json.dumps({"choices": [{"message": {"content": "hi"}}], "more": 0})
    text = text.replace('"more": 0', f'"more": {shape(depth, "0")}')
    with pytest.raises(PromptError, match="nested more than 100 levels deep"):
        ask(serve(lambda *_: (200, text)))


@pytest.mark.parametrize("depth", [101, 990, 5000, 20_000])
@pytest.mark.parametrize("status", [400, 500])
def test_an_error_that_is_nested_too_deep_is_one_line(serve, status, depth):
    with pytest.raises(PromptError, match=f"HTTP {status}"):
        ask(serve(lambda *_: (status, '{"error": ' + deep(depth, "0") + "}")))


MODELS = {
    "no ids": {"data": [{"name": "a"}, {}, None, 3, "m2", {"id": None}, {"id": 7}]},
    "no list": {"data": "m"},
    "nothing": {},
    "another kind": [1, 2],
    "too many": {"data": [{"id": f"m{i}"} for i in range(5000)]},
    "a long name": {"data": [{"id": "m" * 10**6}]},
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_strange_list_of_models_is_one_short_line(serve, kind):
    server = serve(lambda *_: (404, '{"error": "what?"}'))
    server.listed = (200, json.dumps(MODELS[kind]))
    with pytest.raises(ServerError, match=r"url is the address|has no model 'm'") as caught:
        ask(server)
    assert len(str(caught.value)) < 500
    assert client(server).problem() == ""


def test_a_list_of_models_that_never_ends_is_given_up(serve, monkeypatch):
    server = serve(lambda *_: (404, '{"error": "what?"}'))
    server.listed = trickle(lambda: server, OK + b'\r\n{"data": [', b" ")
    began = time.monotonic()
    with pytest.raises(ServerError, match="url is the address"):
        ask(server)
    monkeypatch.setattr("ravqa.clients.openai._LOOK_S", TIMEOUT)
    assert client(server).problem() == ""
    server.listed = flood(OK + b'\r\n{"data": [', b" " * 2**16)
    with pytest.raises(ServerError, match="url is the address"):
        ask(server)
    assert time.monotonic() - began < 2 * SOON


def test_a_reply_in_an_encoding_that_was_not_asked_for_is_not_expanded(serve):
    data = chat("hi")[1]
    with pytest.raises(PromptError, match="answer in the encoding zstd"):
        ask(serve(lambda *_: (200, data, {"Content-Encoding": "zstd"})))


def test_a_request_that_cannot_be_written_is_one_line(serve):
    server = serve(lambda *_: chat("hi"))
    body = {"model": "m", "messages": [{"role": "user", "content": "half \ud83d"}]}
    with pytest.raises(PromptError, match="text that UTF-8 cannot encode"):
        now(client(server), body, lambda reply: reply)


def test_a_reply_within_the_deadline_is_read(serve):
    def slow(handler):
        data = chat("hi")[1].encode()
        begin(handler, len(data))
        for i in range(0, len(data), 20):
            handler.wfile.write(data[i : i + 20])
            time.sleep(0.01)

    assert ask(serve(lambda *_: slow)) == "hi"
