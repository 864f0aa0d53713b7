"""The guard before Gradio: what the page needs passes, and nothing else; asked without a server."""

import asyncio
import json

import pytest

from ravqa.doors.asgi import LOOPBACK
from ravqa.doors.demo.guard import Guard

HERE = {"host": "127.0.0.1:7860"}
LARGEST = 1000


@pytest.fixture
def ask(tmp_path):
    """Asks a guard; returns the status, and the body that the application got."""
    uploads = tmp_path / "uploads"
    (uploads / "abc").mkdir(parents=True)
    (uploads / "abc" / "photo.jpg").write_bytes(b"photo")
    (tmp_path / "secret").write_bytes(b"secret")
    (uploads / "link").symlink_to(tmp_path / "secret")

    def asked(method, path, headers=HERE, body=b"", *, hosts=LOOPBACK, parts=1):
        got, sent = [], []

        async def app(scope, receive, send):
            message = await receive()
            got.append(message["body"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        size = -(-len(body) // parts) or 1
        chunks = [body[i : i + size] for i in range(0, max(len(body), 1), size)]
        waiting = [
            {"type": "http.request", "body": chunk, "more_body": i < len(chunks)}
            for i, chunk in enumerate(chunks, 1)
        ]

        async def receive():
            return waiting.pop(0)

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path.format(uploads=uploads)}
        scope["headers"] = [(k.encode(), v.encode()) for k, v in headers.items()]
        guard = Guard(app, uploads=uploads, most_bytes=LARGEST, hosts=hosts)
        asyncio.run(guard(scope, receive, send))
        policy = dict(sent[0]["headers"])[b"content-security-policy"]
        assert b"default-src 'self'" in policy
        return sent[0]["status"], got[0] if got else None

    asked.uploads = uploads
    return asked


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/config",
        "/theme.css",
        "/assets/index-abc.js",
        "/static/fonts/a-b.woff2",
        "/gradio_api/queue/data",
        "/gradio_api/heartbeat/abc",
        "/gradio_api/file={uploads}/abc/photo.jpg",
    ],
)
def test_what_the_page_needs_passes(ask, path):
    assert ask("GET", path)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file={uploads}/../secret",
        "/gradio_api/file={uploads}/link",
        "/gradio_api/file={uploads}",
        "/gradio_api/file=abc/photo.jpg",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/file=\x00",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/stream/a/b/c/playlist.m3u8",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/vibe-code/",
        "/assets/../../../etc/passwd",
        "/static/..",
        "/custom_component/a",
        "/monitoring",
        "/docs",
        "//etc/passwd",
    ],
)
def test_everything_else_is_not_here(ask, path):
    assert ask("GET", path) == (404, None)


@pytest.mark.parametrize(
    "path", ["/gradio_api/run/x", "/gradio_api/api/x", "/gradio_api/call/x", "/"]
)
def test_other_calls_are_not_here(ask, path):
    assert ask("POST", path, body=b"{}") == (404, None)
    assert ask("DELETE", path) == (405, None)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {},
        HERE | {"origin": "http://evil.example"},
        HERE | {"origin": "null"},
        HERE | {"origin": "http://127.0.0.1:9999"},
        HERE | {"sec-fetch-site": "cross-site"},
    ],
)
def test_other_websites_can_ask_nothing(ask, headers):
    assert ask("POST", "/gradio_api/queue/join", headers, b"{}") == (403, None)
    assert ask("GET", "/config", headers) == (403, None)


def test_links_elsewhere_may_lead_here_and_hosts_may_be_any_where_others_are_let_in(ask):
    assert ask("GET", "/", HERE | {"sec-fetch-site": "cross-site"})[0] == 200
    named = {"host": "demo.example", "origin": "https://demo.example"}
    assert ask("POST", "/gradio_api/queue/join", named, b"{}", hosts=None) == (200, b"{}")


@pytest.mark.parametrize("parts", [1, 3])
def test_events_reach_the_application_as_they_were_read(ask, parts):
    event = {"data": [{"path": f"{ask.uploads}/abc/photo.jpg", "url": None}, "Où?", 3]}
    status, got = ask(
        "POST", "/gradio_api/queue/join", body=json.dumps(event).encode(), parts=parts
    )
    assert (status, json.loads(got)) == (200, event)
    twice = b'{"data": [{"path": "/etc/passwd", "path": "' + str(ask.uploads).encode()
    status, got = ask("POST", "/gradio_api/queue/join", body=twice + b'/abc/photo.jpg"}]}')
    assert (status, b"passwd" in got) == (200, False)


@pytest.mark.parametrize(
    "data",
    [
        {"path": "/etc/passwd"},
        {"path": ""},
        {"path": None},
        {"path": "{uploads}/link"},
        {"path": "http://127.0.0.1:1/", "url": "http://127.0.0.1:1/"},
        {"path": "/gradio_api/file=/etc/passwd"},
        [[{"deep": [{"path": "/etc/passwd"}]}]],
    ],
)
def test_events_with_files_that_are_no_uploads_are_refused(ask, data):
    body = json.dumps({"data": [data]}).replace("{uploads}", str(ask.uploads)).encode()
    assert ask("POST", "/gradio_api/queue/join", body=body) == (403, None)


@pytest.mark.parametrize("body", [b"", b"data=1", b"[" * 90_000, b'{"a": "\xff"}'])
def test_events_that_are_no_json_are_refused(ask, body):
    assert ask("POST", "/gradio_api/queue/join", body=body) == (403, None)


@pytest.mark.parametrize("parts", [1, 7])
def test_large_bodies_are_refused(ask, parts):
    event = json.dumps({"data": ["x" * 100_001]}).encode()
    assert ask("POST", "/gradio_api/queue/join", body=event, parts=parts) == (413, None)
    form = bytes(LARGEST + 10_001)
    assert ask("POST", "/gradio_api/upload", body=form, parts=parts) == (413, None)
    assert ask("POST", "/gradio_api/upload", body=form[1:], parts=parts) == (200, form[1:])
