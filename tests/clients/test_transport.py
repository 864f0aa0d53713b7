"""Requests on the wire: their headers, their proxy, and what becomes of connections."""

import gc
import ssl
import time

import pytest
from asking import now
from scripted_server import chat

from ravqa.clients.openai import Client, ServerConfig
from ravqa.clients.transport import Transport, TransportError
from ravqa.core.errors import PromptError, UserError

LONG = 20  # seconds after which a test that waits in vain fails
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def client(url):
    return Client(ServerConfig(url=url, model="m", timeout=10, retries=0), why="the test")


def asked(tested):
    return now(tested, BODY, lambda reply: reply["choices"][0]["message"]["content"])


def without_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_headers_are_those_of_the_package(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    server = serve(lambda *_: chat("hi"))
    assert asked(client(server.url)) == "hi"
    [(_, headers, body)] = server.requests
    assert body == BODY
    assert headers["Openai-Organization"] == "org-1"
    assert headers["Openai-Project"] == "proj-1"
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"].startswith("OpenAI/Python")
    assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_compressed_reply_is_refused(serve, encoding):
    server = serve(lambda *_: (200, b"\x1f\x8b", {"Content-Encoding": encoding}))
    with pytest.raises(PromptError, match=f"an answer in the encoding {encoding}, which was not"):
        asked(client(server.url))


def test_a_connection_is_kept_and_closed_with_its_client(serve):
    server = serve(lambda *_: chat("hi"))
    tested = client(server.url)
    asked(tested)
    [connection] = server.open
    for _ in range(3):
        asked(tested)
    assert server.open == {connection}
    del tested
    gc.collect()
    end = time.monotonic() + LONG
    while server.open:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_proxy_is_asked_for_the_whole_address_with_its_own_password(serve, monkeypatch):
    without_proxies(monkeypatch)
    proxy = serve(lambda *_: chat("from the proxy"))
    host = proxy.url.removeprefix("http://").removesuffix("/v1")
    monkeypatch.setenv("http_proxy", f"me:word@{host}")  # http is meant
    assert asked(client("http://models.example/v1")) == "from the proxy"
    [(path, headers, _)] = proxy.requests
    assert path == "http://models.example/v1/chat/completions"
    assert headers["Proxy-Authorization"].startswith("Basic ")
    assert "Authorization" not in headers


def test_another_kind_of_proxy_is_one_line(monkeypatch):
    without_proxies(monkeypatch)
    monkeypatch.setenv("all_proxy", "socks5://me:secret@127.0.0.1:9")
    with pytest.raises(UserError) as error:
        client("http://models.example/v1")
    assert (
        str(error.value) == "the test: the environment sets a proxy that is none of http or https"
    )


def untrusted(why):
    error = ssl.SSLCertVerificationError("[SSL: CERTIFICATE_VERIFY_FAILED] it failed")
    error.verify_message = why
    return error


@pytest.mark.parametrize(
    ("error", "reason", "unreachable"),
    [
        (lambda a: a.ClientOSError(104, "[Errno 104] whatever"), "Connection reset by peer", False),
        (lambda a: a.ServerDisconnectedError(), "Server disconnected", False),
        (lambda a: a.ClientPayloadError("x\ny"), "the server hung up before its end", False),
        (lambda a: a.ClientConnectorDNSError(None, OSError(-2, "no such name")), "no such name", 1),
        (
            lambda a: a.ClientConnectorCertificateError(None, untrusted("self-signed")),
            "the certificate is not trusted: self-signed",
            True,
        ),
    ],
)
def test_exceptions_have_a_short_reason(error, reason, unreachable):
    aiohttp = pytest.importorskip("aiohttp")
    found = Transport(None, why="the test").failure(error(aiohttp))
    assert isinstance(found, TransportError)
    assert str(found) == reason
    assert found.unreachable == bool(unreachable)
    assert not found.late
    assert Transport(None, why="the test").failure(TimeoutError()).late
