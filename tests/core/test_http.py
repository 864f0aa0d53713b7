"""Fetching: limits, deadlines, redirections that lead nowhere, proxies that are none."""

import io
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from ravqa.core import http
from ravqa.core.errors import UserError
from ravqa.core.http import Fetcher, FetchError


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.02)
            return
        if self.path == "/drip/headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
            return
        if self.path == "/endless":
            self.send_response(302)
            self.send_header("Location", "/long")
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b"x" * 2**16)
            return
        if self.path.startswith("/long"):
            self.send_response(200)
            if self.path == "/long/told":
                self.send_header("Content-Length", "1001")
            self.end_headers()
            self.wfile.write(b"x" * 1001)
            return
        self.send_response(302)
        self.send_header("Location", {"/loop": "/loop"}.get(self.path, "http://[x"))
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(http, "_BACKOFF_S", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # clients hang up
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "how", "message"),
    [
        ("/drip", {"deadline": 0.1}, r"not complete within 0\.1 s \(tried 3 times\)"),
        ("/drip/headers", {"deadline": 0.1}, r"not complete within 0\.1 s \(tried 3 times\)"),
        ("/endless", {}, "redirected with more than 65536 bytes of text"),
        ("/long", {"limit": 1000}, "larger than the limit of 1000 bytes"),
        ("/long/told", {"limit": 1000}, "larger than the limit of 1000 bytes"),
        ("/loop", {}, "redirected more than 10 times"),
        ("/broken", {}, "to an address that is refused"),
    ],
)
def test_what_does_not_come_says_why(address, path, how, message):
    with pytest.raises(FetchError, match=message):
        Fetcher(**how).fetch(address + path, io.BytesIO())


def test_a_file_of_just_the_limit_comes(address):
    out = io.BytesIO()
    Fetcher(limit=1001).fetch(f"{address}/long", out)
    assert out.getvalue() == b"x" * 1001


def test_a_proxy_of_an_unknown_kind_is_named(monkeypatch):
    monkeypatch.setenv("http_proxy", "gopher://127.0.0.1:70")
    with pytest.raises(UserError, match="proxy set in the environment cannot be used"):
        Fetcher()


@pytest.mark.parametrize("path", ["/drip", "/drip/headers"])
def test_a_download_without_a_deadline_has_to_move(address, monkeypatch, path):
    monkeypatch.setattr(http, "_STALL_S", 0.1)
    with pytest.raises(FetchError, match=r"fewer than 65536 bytes within 0\.1 s"):
        Fetcher().fetch(f"{address}{path}", io.BytesIO())
    assert len(fetched(address)) == 1001


def fetched(address):
    out = io.BytesIO()
    Fetcher().fetch(f"{address}/long", out)
    return out.getvalue()


def test_a_download_that_moves_may_take_longer_than_the_stall(address, monkeypatch):
    monkeypatch.setattr(http, "_STALL_S", 0.3)
    monkeypatch.setattr(http, "_SLOWEST", 2)
    out = io.BytesIO()
    Fetcher().fetch(f"{address}/drip", out)  # two seconds
    assert len(out.getvalue()) == 100
