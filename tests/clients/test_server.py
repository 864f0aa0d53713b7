"""The client of OpenAI-compatible servers: trying again, waiting, stopping, and what it says."""

import json
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from asking import now
from scripted_server import begin, chat

import ravqa.core.errors
from ravqa.clients.flow import Flow
from ravqa.clients.openai import Client, ServerConfig, UnusableReplyError
from ravqa.core.errors import PromptError, ServerError, UserError
from ravqa.core.outcomes import Failure

KEY = "sk-verysecret0123456789"


def client(server, **options):
    options.setdefault("model", "m")
    options.setdefault("timeout", 10)
    url = server if isinstance(server, str) else server.url
    return Client(ServerConfig(url=url, **options), why="the test")


def text_of(reply):
    try:
        return reply["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        raise UnusableReplyError("a reply without choices") from None


def ask(server, prompt="hello", **options):
    asker = server if isinstance(server, Client) else client(server, **options)
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "top_k": 3}
    return now(asker, body, text_of)


def said(body):
    return body["messages"][0]["content"]


# --- one request


def test_a_request_is_sent_as_it_is_and_without_a_key_that_is_not_there(serve):
    server = serve(lambda *_: chat("hi"))
    assert ask(server) == "hi"
    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "top_k": 3,
    }
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/openai", "/openai/deployments/m/chat/completions?api-version=2024-10-21"),
        ("/openai/deployments/d/", "/openai/deployments/d/chat/completions?api-version=2024-10-21"),
    ],
)
def test_azures_addresses_have_their_version_and_their_header(serve, monkeypatch, path, asked):
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "another secret")
    server = serve(lambda *_: chat("hi"))
    host = server.url.removesuffix("/v1")
    url = f"{host}{path}?api-version=2024-10-21"
    assert ask(client(url)) == "hi"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert ask(client(url)) == "hi"
    assert [request[0] for request in server.requests] == [asked] * 2
    without, with_key = (headers for _, headers, _ in server.requests)
    assert with_key["Api-Key"] == KEY
    for headers in (without, with_key):
        assert "Authorization" not in headers
    assert "Api-Key" not in without
    for query in ("?key=x", "?api-version=1&key=x", "?api-version=", "?"):
        with pytest.raises(UserError, match="nothing may follow its path"):
            client(f"{host}{path}{query}")


def test_plain_completions_have_their_own_address(serve):
    server = serve(lambda *_: (200, '{"choices": [{"text": " there"}]}'))
    found = now(
        client(server), {"model": "m", "prompt": "hello"}, lambda r: r["choices"], form="plain"
    )
    assert found == [{"text": " there"}]
    assert server.requests[0][0] == "/v1/completions"
    assert server.bodies == [{"model": "m", "prompt": "hello"}]


FAULTS = {
    "rate limit": lambda _: (429, '{"error": {"message": "slow down"}}'),
    "server error": lambda _: (500, "oops"),
    "bad gateway": lambda _: (502, "<html><body>Bad gateway</body></html>"),
    "overloaded": lambda _: (529, ""),
    "cut connection": lambda server: server.cut,
    "dropped connection": lambda server: server.drop,
    "hanging": lambda server: server.hang,
    "malformed JSON": lambda _: (200, '{"choices": [{"mess'),
    "JSON of another kind": lambda _: (200, "[1, 2]"),
    "empty choices": lambda _: (200, '{"choices": []}'),
    "an error with status 200": lambda _: (200, '{"error": {"message": "no GPU left"}}'),
    "an empty reply": lambda _: (200, ""),
    "no UTF-8": lambda _: (200, b'"\xfc"'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_only_a_delay(serve, waits, fault):
    server = serve(lambda n, _: FAULTS[fault](server) if n < 3 else chat("hi"))
    assert ask(server, timeout=0.3 if fault == "hanging" else 10) == "hi"
    assert len(server.requests) == 3
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("rate limit", r"HTTP 429 Too Many Requests \(slow down\)"),
        ("server error", r"HTTP 500 Internal Server Error"),
        ("cut connection", "the connection was cut in the middle of a reply"),
        ("dropped connection", "the connection was cut"),
        ("hanging", r"no answer within 0\.3 s"),
        ("malformed JSON", "the reply is not JSON"),
        ("JSON of another kind", "the reply is not a JSON object"),
        ("empty choices", "a reply without choices"),
        ("an error with status 200", "the server reports: no GPU left"),
    ],
)
def test_a_fault_that_stays_is_one_line_and_costs_one_prompt(serve, waits, fault, message):
    server = serve(lambda n, _: FAULTS[fault](server))
    with pytest.raises(PromptError, match=rf"the test: {server.url}: {message}.*, after 2 tries"):
        ask(server, retries=1, timeout=0.3 if fault == "hanging" else 10)
    assert len(server.requests) == 2


def test_waits_double_from_one_second_to_a_minute_and_are_not_all_the_same(serve, waits):
    with pytest.raises(PromptError):
        ask(serve(lambda *_: (503, "")), retries=9)
    wanted = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert waits == [pytest.approx(w, rel=0.25) for w in wanted]
    assert all(w != round(w) for w in waits)


def in_future(seconds):
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0.25"}, 0.25),
        ({"Retry-After": lambda: in_future(90)}, 90),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"Retry-After": "soon"}, 1),  # not to be understood: as if it said nothing
        ({"Retry-After": "nan"}, 1),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 +99999999999999"}, 1),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_server_says_how_long_to_wait(serve, waits, headers, seconds, status):
    def reply(n, _):
        return (status, "", {k: v() if callable(v) else v for k, v in headers.items()})

    server = serve(lambda n, b: chat("hi") if n > 1 else reply(n, b))
    assert ask(server) == "hi"
    assert waits == [pytest.approx(seconds, rel=0.26 if seconds == 1 else 0, abs=1.2)]


@pytest.mark.parametrize("after", ["0", "-5", "Mon, 01 Jan 2024 00:00:00 GMT"])
def test_a_wait_that_is_over_is_none(serve, waits, after):
    server = serve(lambda n, _: (429, "", {"Retry-After": after}) if n < 2 else chat("hi"))
    assert ask(server) == "hi"
    assert waits == []


def test_a_busy_server_that_always_says_now_is_not_hurried(serve, waits):
    server = serve(lambda n, _: (429, "", {"Retry-After": "0"}) if n < 4 else chat("hi"))
    assert ask(server) == "hi"
    assert waits == [pytest.approx(1, rel=0.26), pytest.approx(2, rel=0.26)]


def test_a_wait_of_hours_is_not_waited_for(serve, waits):
    server = serve(lambda *_: (429, "", {"Retry-After": "7200"}))
    with pytest.raises(ServerError, match="the server asks to wait 7200 s"):
        ask(server)
    assert len(server.requests) == 1
    assert waits == []


def test_a_huge_reply_is_not_read_to_its_end(serve, waits, monkeypatch):
    monkeypatch.setattr("ravqa.clients.openai._LARGEST", 2**20)
    sent = []

    def flood(handler):
        begin(handler, 2**40)
        block = b" " * 2**16
        for _ in range(2**12):  # ends early: the client hangs up
            handler.wfile.write(block)
            sent.append(len(block))

    server = serve(lambda *_: flood)
    with pytest.raises(PromptError, match="the reply is larger than 1 MB"):
        ask(server, retries=0)
    assert sum(sent) < 2**27


def test_a_reply_that_trickles_is_given_up_too(serve, waits):
    def trickle(handler):
        begin(handler, 1000)
        while not server.ending.wait(0.05):
            handler.wfile.write(b" ")

    server = serve(lambda *_: trickle)
    with pytest.raises(PromptError, match=r"no answer within 0\.3 s"):
        ask(server, retries=0, timeout=0.3)


# --- refusals


def error(message, **more):
    return json.dumps({"error": {"message": message, **more}})


def test_a_refused_prompt_is_not_asked_again(serve):
    server = serve(lambda *_: (400, error("I do not\n  like it")))
    with pytest.raises(PromptError, match=r"HTTP 400 Bad Request \(I do not like it\)$"):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        # OpenAI, vLLM, llama.cpp's llama-server, SGLang
        error("Your input exceeds the limit", code="context_length_exceeded"),
        error("This model's maximum context length is 8192 tokens. However, you requested 9000"),
        error("the request exceeds the available context size, try increasing it"),
        '{"object": "error", "message": "The input is longer than the model\'s context length"}',
    ],
)
def test_a_prompt_beyond_the_context_is_said_to_be_too_long(serve, body):
    with pytest.raises(PromptError, match="the prompt is too long for the model: HTTP 400"):
        ask(serve(lambda *_: (400, body)))


@pytest.mark.parametrize(
    "body",
    [
        '{"detail": "because"}',
        '{"error": "because"}',
        '{"message": "because"}',
        "because",
        '"because"',
    ],
)
def test_reasons_are_found_in_every_kind_of_error(serve, body):
    with pytest.raises(PromptError, match=r"HTTP 422 .*because"):
        ask(serve(lambda *_: (422, body)))


def test_a_long_reason_is_cut(serve):
    with pytest.raises(PromptError) as caught:
        ask(serve(lambda *_: (400, error("x" * 5000))))
    assert len(str(caught.value)) < 450


def test_a_refused_key_names_its_variable_and_nothing_else(serve, monkeypatch):
    server = serve(lambda *_: (401, error(f"Incorrect API key provided: {KEY}.")))
    with pytest.raises(ServerError, match=r"no key was sent: .OPENAI_API_KEY is not set"):
        ask(server)
    monkeypatch.setenv("MY_KEY", KEY)
    asker = client(server, api_key_env="MY_KEY")
    with pytest.raises(ServerError, match=r"the key in .MY_KEY was refused") as caught:
        ask(asker)
    assert server.requests[-1][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value) + repr(caught.value) + repr(asker)
    assert "Incorrect API key provided: ***." in str(caught.value)
    assert caught.value.__cause__ is None  # a traceback shows nothing else
    assert caught.value.__context__ is None
    assert len(server.requests) == 2


def test_an_unknown_model_is_told_what_there_is(serve):
    gone = (404, error("The model does not exist"))
    server = serve(lambda *_: gone, models=["llava-1.5-7b-hf", "qwen2-vl"])
    with pytest.raises(
        ServerError, match=r"no model 'llava-1\.5-7b': did you mean llava-1\.5-7b-hf"
    ):
        ask(server, model="llava-1.5-7b")
    with pytest.raises(ServerError, match=r"HTTP 404 .* url is the address before /chat"):
        ask(serve(lambda *_: gone, models=()))  # nothing is listed: a wrong address
    with pytest.raises(ServerError, match="url is the address before"):
        ask(server, model="qwen2-vl")


def test_no_credit_is_not_waited_for(serve, waits):
    server = serve(lambda *_: (429, error("You exceeded your quota", code="insufficient_quota")))
    with pytest.raises(ServerError, match="You exceeded your quota"):
        ask(server)
    assert len(server.requests) == 1


def test_a_web_page_is_no_server_of_this_kind(serve, waits):
    server = serve(lambda *_: (200, "<!DOCTYPE html><html>Welcome!</html>"))
    with pytest.raises(ServerError, match="not JSON: url is the address before /chat/completions"):
        ask(server)
    assert len(server.requests) == 1


def test_an_address_where_nobody_listens_is_said_at_once(serve, waits):
    server = serve(lambda *_: chat("hi"))
    asker = client(server)
    assert ask(asker) == "hi"
    server.stop()
    with pytest.raises(ServerError, match=rf"{server.url}: cannot be reached \(.*refused"):
        ask(client(server))
    assert waits == []
    # A server that has answered before may be on its way back.
    with pytest.raises(ServerError, match=r"cannot be reached .* after 7 tries: is the server run"):
        ask(asker)
    assert len(waits) == 6
    with pytest.raises(ServerError, match=r"http://no\.such\.host\.invalid/v1: cannot be reached"):
        ask("http://no.such.host.invalid/v1")


def test_a_proxy_that_is_in_the_way_is_named(serve, waits, monkeypatch):
    server = serve(lambda *_: chat("hi"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://user:secret@127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ServerError) as error:
        ask(server)
    message = str(error.value)
    assert "cannot be reached through the proxy 127.0.0.1:9 (" in message
    assert message.endswith("NO_PROXY=127.0.0.1 reaches the server without it")
    assert "secret" not in message
    assert "through the proxy 127.0.0.1:9" in client(server).problem()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert ask(server) == "hi"
    server.stop()
    with pytest.raises(ServerError, match=r"cannot be reached \(.*is the server running\?$"):
        ask(server)


def test_a_look_tells_whether_the_server_is_there(serve, monkeypatch):
    server = serve(lambda *_: chat("hi"))
    asker = client(server)
    assert asker.problem() == ""
    assert client(serve(lambda *_: chat("hi"), models=())).problem() == ""  # it lists none
    server.stop()
    assert asker.problem().startswith(f"the test: {server.url}: cannot be reached (")
    refusing = serve(lambda *_: chat("hi"), key=KEY)
    assert "no key was sent" in client(refusing).problem()
    monkeypatch.setenv("MY_KEY", KEY)
    assert client(refusing, api_key_env="MY_KEY").problem() == ""


def test_long_waits_are_told_of_once(serve, waits, caplog):
    server = serve(lambda n, _: (429, "", {"Retry-After": "30"}) if n <= 4 else chat("ok"))
    assert len(list(each(client(server, workers=4), list("abcd")))) == 4
    [message] = [record.getMessage() for record in caplog.records]
    assert message == (f"the test: {server.url}: HTTP 429 Too Many Requests: waiting 30 s")
    caplog.clear()
    assert ask(serve(lambda n, _: (503, "") if n < 3 else chat("hi"))) == "hi"
    assert not caplog.records  # seconds are nothing to tell of


# --- settings


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "an http address is expected, got 'localhost:8000/v1'"),
        ("http://", "an http address is expected"),
        ("http://a b/v1", "an http address is expected"),
        ("https://me:word@host/v1", "it must not contain a name or password"),
    ],
)
def test_an_address_that_is_none_is_refused(url, message):
    with pytest.raises(UserError, match=f"the test: url: {message}") as caught:
        client(url)
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize("name", [KEY, "gsk_abcdefg1234567", "AIzaSyD3adBeef", ""])
def test_a_key_in_place_of_its_variables_name_is_not_printed(name):
    with pytest.raises(UserError, match="the name of an environment variable") as caught:
        client("http://host/v1", api_key_env=name)
    assert not name or name not in str(caught.value)


def test_a_variable_that_was_named_has_to_be_there_and_to_hold_a_key(monkeypatch):
    with pytest.raises(UserError, match=r"environment variable NO_SUCH_KEY .* is not set"):
        client("http://host/v1", api_key_env="NO_SUCH_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", " two words\u00fc ")
    with pytest.raises(UserError, match="OPENAI_API_KEY has characters no key can have") as caught:
        client("http://host/v1")
    assert "words" not in str(caught.value)


def test_without_the_package_its_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(ravqa.core.errors.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'ravqa\[openai\]'"):
        client("http://host/v1")


# --- many requests


def each(asker, prompts):
    def one(prompt, stop):
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
        return asker.ask("chat", body, text_of, stop)

    return asker.each(one, prompts)


def outcomes(asker, prompts):
    """Results and failures, by position."""
    made = dict(each(asker, prompts))
    failed = {i: outcome for i, outcome in made.items() if isinstance(outcome, Failure)}
    return {i: text for i, text in made.items() if i not in failed}, failed


def test_so_many_requests_are_under_way_and_no_more(serve):
    full = threading.Barrier(4)

    def reply(_, body):
        full.wait(10)  # goes on when four are there, so that fewer would fail
        return chat(said(body).upper())

    server = serve(reply)
    prompts = [f"p{i}" for i in range(20)]
    found = dict(each(client(server, workers=4), prompts))
    assert found == {i: f"P{i}" for i in range(20)}
    assert server.busiest == 4


def test_nothing_asked_is_nothing_sent(serve):
    server = serve(lambda *_: chat("hi"))
    assert list(each(client(server), [])) == []
    assert server.requests == []


def test_results_come_as_they_are_made(serve):
    def reply(_, body):
        return server.hang if said(body) == "slow" else chat("quick")

    server = serve(reply)
    found = each(client(server, workers=2), ["slow", "a", "b", "c"])
    assert [next(found) for _ in range(3)] == [(1, "quick"), (2, "quick"), (3, "quick")]
    found.close()  # and who does not want the rest does not wait for it


def test_a_prompt_that_fails_costs_no_other(serve, waits):
    def reply(_, body):
        return (400, error("not this")) if said(body) in {"p3", "p5"} else chat("ok")

    server = serve(reply)
    prompts = [f"p{i}" for i in range(9)]
    found, failed = outcomes(client(server, workers=3), prompts)
    assert sorted(found) == [0, 1, 2, 4, 6, 7, 8]
    assert sorted(failed) == [3, 5]
    assert failed[5].reason.endswith("(not this)")
    assert not failed[5].fatal


def test_a_server_that_is_gone_is_not_asked_to_the_end(serve, waits):
    server = serve(lambda n, _: chat("ok") if n <= 10 else (500, "not enough memory"))
    prompts = [f"p{i}" for i in range(100)]
    found, failed = outcomes(client(server, workers=2, retries=2), prompts)
    assert len(found) == 10
    assert len(found) + len(failed) == 100
    [failure] = {failure for failure in failed.values() if failure.fatal}
    # Before it was known to be gone, a few requests failed by themselves.
    assert sum(not failure.fatal for failure in failed.values()) < 5
    assert re.search(
        "not enough memory.*after 3 tries, for several requests in a row", failure.reason
    )
    # Three were given up, while two were sent and two waited to be repeated.
    assert len(server.requests) <= 10 + 3 * 7


def test_one_poisoned_prompt_does_not_stop_the_others(serve, waits):
    def reply(_, body):
        return (500, "crash") if said(body).endswith("7") else chat("ok")

    server = serve(reply)
    prompts = [f"p{i}" for i in range(60)]
    found, failed = outcomes(client(server, workers=1, retries=1), prompts)
    assert sorted(failed) == [7, 17, 27, 37, 47, 57]
    assert len(found) == 54


def test_when_one_worker_is_told_to_wait_all_wait(serve, waits, monkeypatch):
    told = threading.Event()
    slow_down = Flow.slow_down
    monkeypatch.setattr(Flow, "slow_down", lambda *given: (slow_down(*given), told.set()))

    def reply(n, _):
        if n == 1:
            return 429, "", {"Retry-After": "30"}
        told.wait(10)
        return chat("ok")

    asker = client(serve(reply), workers=4)
    assert len(list(each(asker, list("abcdefgh")))) == 8
    # The one that was told, and all that came after.
    assert len(waits) >= 5
    assert all(25 < w <= 30 for w in waits)


def test_a_stop_ends_long_waits(serve):
    def reply(_, body):
        if said(body) == "busy":
            return 503, ""
        while len(server.requests) < 2:
            time.sleep(0.005)
        return 401, ""

    server = serve(reply)
    asker = client(server, workers=2)
    asker.first_wait = 1000
    began = time.monotonic()
    made = dict(each(asker, ["busy", "denied", "x", "y"]))
    assert all(made[i].fatal and "HTTP 401" in made[i].reason for i in range(4))
    assert time.monotonic() - began < 20  # of a wait of a thousand
    assert len(server.requests) <= 3  # x may go on while the busy one waits
