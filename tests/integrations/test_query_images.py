"""Images as other libraries name them."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.errors import DataError, UserError
from ravqa.integrations.query_images import data_uri, query_image


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, None),
        ("", None),
        (b"", None),
        (b"\x89PNG", b"\x89PNG"),
        ("photos/a.jpg", Path("photos/a.jpg")),
        (Path("photos/a b.jpg"), Path("photos/a b.jpg")),
        ("C:\\photos\\a.jpg", Path("C:\\photos\\a.jpg")),
        ("odd:name.jpg", Path("odd:name.jpg")),
        ("file:///photos/a%20b.jpg", Path("/photos/a b.jpg")),
        ("file://localhost/a.jpg", Path("/a.jpg")),
        ("FILE:///a.jpg", Path("/a.jpg")),
        ("data:image/png;base64,iVBO", b"\x89PN"),
        ("data:image/png;base64,iV\nBO", b"\x89PN"),
        ("data:image/png;base64,iVBO%0A", b"\x89PN"),
        ("data:,a%20b", b"a b"),
    ],
)
def test_what_names_an_image(source, expected):
    assert query_image(source) == expected


@given(st.binary(min_size=1, max_size=50))
def test_bytes_go_into_a_data_uri_and_come_back(data):
    assert query_image(data_uri(data)) == data
    assert base64.b64encode(data).decode() in data_uri(data)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("https://example.org/a.jpg", UserError, "pass allow_http=True"),
        ("s3://bucket/a.jpg", UserError, "a path, file://, data: or http"),
        ("file://elsewhere/a.jpg", UserError, "on another machine"),
        ("data:image/png;base64", DataError, "without a comma"),
        ("data:image/png;base64,a*b", DataError, "broken base64"),
    ],
)
def test_what_does_not(source, error, message):
    with pytest.raises(error, match=message):
        query_image(source)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.jpg"])
def test_a_redirect_leads_to_no_other_kind_of_address(target):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Redirect(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Redirect)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(DataError, match="cannot be fetched"):
            query_image(f"http://127.0.0.1:{server.server_port}/a.jpg", allow_http=True)
    finally:
        server.shutdown()
        server.server_close()
