"""Markdown as sections: a passage per heading, and what stands before them as metadata."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ravqa.core.errors import DataError
from ravqa.core.yaml_loader import DuplicateKeyError, StrictLoader
from ravqa.corpora.documents import Document, Heading, divided, file_title, page_text
from ravqa.corpora.tables import lines_of
from ravqa.corpora.values import is_blank, text_of

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_UNCLOSED = re.compile(r"^[\w-]+:[ \t]*(?:\[[^\]]*|\{[^}]*)\Z", re.MULTILINE)


def read(path: Path, encoding: str | None = None) -> Document:
    """Split a document into sections by its headings; its first line may be its title."""
    text = page_text(path, encoding)
    metadata = None
    if front := _FRONT_MATTER.match(text):
        metadata = _front_matter(front[1])
        if metadata is None:  # text between two rules; the second must not underline a heading
            text = f"{text[: front.end(1)]}\n{text[front.end(1) :]}"
        else:
            text = text[front.end() :]
    metadata = metadata or {}
    title = metadata.pop("title", None) or ""
    return divided(lines_of(text), _headings(text), title, file_title(path), metadata)


def _headings(text: str) -> Iterator[Heading]:
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").parse(text)
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:
            words = "".join(child.content for child in inline.children or ()).strip()
            if words:
                yield Heading(int(token.tag[1:]), words, token.map[0], token.map[1])


_NAME = re.compile(r"[^\W\d][\w.-]*")


class _FrontMatter(StrictLoader):
    """A loader that takes values as written: 12:30, 0123, yes and 2024-01-31 are texts."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


for _tag, _pattern, _first in (  # YAML 1.2's core schema, without its other bases
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:0|[1-9][0-9]*)?\.[0-9]+|[-+]?\.inf|\.nan|\.NaN", list("-+.0123456789")),
):
    _FrontMatter.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
    )


def _front_matter(text: str) -> dict[str, Any] | None:
    """Return the values of a page's front matter; None if it is text between two rules.

    Front matter is a YAML mapping of names that does not start with a blank line (Pandoc's rule).
    Without a title, keys that are not single words mean that it is text with a colon in it.

    Raises:
        DataError: a list or object in it is not closed; it has aliases, which can expand a few
            lines to gigabytes; a key occurs twice; a value is neither text nor a number, nor made
            of them; or the title is not text.
    """
    if not text.partition("\n")[0].strip():
        return None
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise DataError("aliases (*NAME) in the part between --- at its start are refused")
        found = yaml.load(text, _FrontMatter)
        written = yaml.load(text, yaml.BaseLoader)
    except DuplicateKeyError as e:
        raise DataError(f"{e.problem} in the part between --- at its beginning") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        if _UNCLOSED.search(text):
            raise DataError("the part between --- at its start is not YAML") from None
        return None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        return None
    if "title" not in found and not all(map(_NAME.fullmatch, found)):
        return None  # "The lion is fed: at noon." and "12:30: lions" are mappings too
    try:
        json.dumps(found)
    except TypeError:  # a set or bytes, by an explicit tag
        raise DataError(
            "a value in the part between --- at its start is neither text nor a number"
        ) from None
    found = {key: value for key, value in found.items() if not is_blank(value)}
    if "title" in found:  # 1.10 is a title as written
        found["title"] = text_of(written["title"], "title")
    return found
