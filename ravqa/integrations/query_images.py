"""Images of questions in other libraries' forms: paths, file URLs, data URIs, web addresses."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import urllib.request
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from ravqa.core.errors import DataError, UserError
from ravqa.core.http import Fetcher, FetchError
from ravqa.images.archives import MAX_BYTES

Source = str | os.PathLike[str] | bytes

_DEADLINE_S = 60.0
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # two letters: C:\ is a drive


def query_image(source: Source | None, *, allow_http: bool = False) -> Path | bytes | None:
    """Return a question's image as a path or encoded bytes; None without an image.

    Args:
        source: a path, a file:// URL, a data: URI, an http(s) address, or encoded bytes.
        allow_http: fetch http(s) addresses.

    Raises:
        UserError: an address that may not be fetched or is of an unknown kind, or another type.
        DataError: a broken data URI, or an address that cannot be fetched.
    """
    if isinstance(source, bytes):
        return source or None
    if source is not None and not isinstance(source, str | os.PathLike):
        raise UserError(
            f"an image as {type(source).__name__}: a path, encoded bytes, a file:// URL, a data: "
            "URI or a web address is expected"
        )
    text = "" if source is None else os.fspath(source)
    if not text:
        return None
    found = _SCHEME.match(text)
    scheme = found.group()[:-1].lower() if found else ""
    if scheme == "data":
        return _decoded(text)
    if scheme == "file":
        return _local(text)
    if scheme in ("http", "https"):
        if not allow_http:
            raise UserError(
                f"the image {text} is an address of the web: pass allow_http=True to have such "
                "images fetched, or give a path"
            )
        return _fetched(text)
    if "://" in text:
        raise UserError(f"the image {text}: a path, file://, data: or http(s):// is expected")
    return Path(text)


def data_uri(image: bytes) -> str:
    """Return encoded bytes as a data URI; its consumers detect the image format from the bytes."""
    return f"data:image/*;base64,{base64.b64encode(image).decode('ascii')}"


def _decoded(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise DataError("a data URI without a comma: data:image/png;base64,... is expected")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    return from_base64(unquote(body))


def from_base64(text: str) -> bytes:
    """Return the bytes of base64 text, which may have line breaks.

    Raises:
        DataError: it is not base64.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as e:
        raise DataError(f"broken base64 data: {e}") from None


def _local(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"the image {url} is on another machine: file:///PATH is expected")
    return Path(urllib.request.url2pathname(parts.path))


def _fetched(url: str) -> bytes:
    out = io.BytesIO()
    try:
        Fetcher(limit=MAX_BYTES, deadline=_DEADLINE_S).fetch(url, out)
    except FetchError as e:
        raise DataError(f"the image {url} cannot be fetched: {e}") from None
    return out.getvalue()
