"""Report pages: single files that load nothing and run only their own script.

Everything that came from data or models is text: jinja2 escapes text in the page, embedded JSON
cannot close its element, and the page's own policy (Content-Security-Policy) allows the one style
sheet and the one script by their hashes, and images that are part of the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

import ravqa
from ravqa.core.files import atomic_write
from ravqa.core.texts import encodable
from ravqa.reports.charts import mark_svg

REPORT = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, *, scripts: Sequence[str] = (), **values: Any) -> str:
    """Render a page of `templates/`, with the style sheet and the named scripts.

    Args:
        scripts: run in this order, as one.
        values: the template's variables; strings are escaped.
    """
    style, code = _source("report.css"), "".join(map(_source, scripts)) or None
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(code)}; base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            policy=policy,
            style=Markup(style),
            script=Markup(code) if code else None,
            version=ravqa.__version__,
            **values,
        )
    )


def safe_json(value: Any) -> Markup:
    """Return JSON safe inside a script element: no "<", ">", "&" or JavaScript line ends."""
    text = htmlsafe_json_dumps(value, dumps=_dumps)
    return Markup(text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def write_page(path: Path, page: str) -> None:
    """Write a page to a temporary file, then rename it; lone surrogates become "?"."""
    atomic_write(path, encodable(page))


def utf16(text: str) -> int:
    """Return the length of a text in UTF-16 units, which browsers count in."""
    return len(text) + sum(letter > "\uffff" for letter in text)


def _dumps(value: Any, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["mark_svg"] = mark_svg
    environment.filters["safe_json"] = safe_json
    return environment


@cache
def _source(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(source: str | None) -> str:
    if source is None:
        return "'none'"
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return f"'sha256-{digest}'"


Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Table for a page: the header, and the rows as text."""
