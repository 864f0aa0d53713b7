"""Web pages (HTML) as sections: a passage per heading (through lxml).

What is read is the page's one `main` element, else its one `article`, else its body. Left out are
navigation, forms' controls, scripts, what is marked as hidden, and outside of `main` and `article`
also asides, footers, and headers without a heading. A heading that has an `id` gives it to its
passage, so that `page.html#install` is also the link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError, import_extra
from ravqa.corpora.documents import Document, Heading, divided, file_title, page_bytes
from ravqa.corpora.encodings import bytes_encoding
from ravqa.corpora.titles import real_title

_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = frozenset(
    [
        *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "dialog"),
        *("details", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form"),
        *("header", "hgroup", "hr", "legend", "li", "main", "menu", "ol", "p", "pre", "section"),
        *("summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul", *_HEADINGS),
    ]
)
_NEVER = frozenset(
    [
        *("audio", "button", "canvas", "embed", "head", "iframe", "input", "map", "nav", "object"),
        *("noscript", "option", "script", "select", "style", "svg", "template", "textarea"),
        "video",
    ]
)
_ASIDE = frozenset(["aside", "footer", "header"])
_ROLES = frozenset(["banner", "complementary", "contentinfo", "navigation", "search"])
_LINKS_TO_SELF = re.compile(r"[\s#¶§🔗]*")
_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_LARGER = {
    "iso8859-1": "cp1252",
    "gb2312": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
"""What browsers take some names of encodings for: one that has more letters."""

_BAD = 0.01  # most characters that may be broken; browsers show such pages too
_HEAD = 4096  # bytes in which a page says what its encoding is


def read(path: Path, encoding: str | None = None) -> Document:
    """Read a page.

    Args:
        encoding: None for that of its byte order mark, else UTF-8 if it is, else what it says.

    Raises:
        DataError: it is too large or too deep, or not in the encoding.
        MissingExtraError: lxml is not installed.
    """
    html: Any = import_extra("lxml.html", "html", why=f"reading {path.name}")
    etree: Any = import_extra("lxml.etree", "html", why=f"reading {path.name}")
    text = _decoded(page_bytes(path), path, encoding)
    text = text.replace("\0", " ")  # where it would be cut off
    if not text.strip():
        return Document(file_title(path), [])
    parser = html.HTMLParser(
        encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True
    )
    try:
        root = html.document_fromstring(text.encode("utf-8", "replace"), parser=parser)
    except (etree.ParserError, ValueError) as e:
        raise DataError(f"no page that can be read ({e})") from None
    if any(error.level_name == "FATAL" for error in parser.error_log):
        raise DataError(f"no page that can be read ({parser.error_log.last_error.message})")
    lines = _Lines()
    lines.read(_content(root), etree)
    first = [heading.words for heading in lines.headings if heading.level == 1]
    named = real_title(" ".join(root.xpath("//head/title[1]//text()")))
    title = "" if len(first) == 1 else named or file_title(path)
    return divided(lines.lines, lines.headings, title, file_title(path), url=_address(root))


def _decoded(content: bytes, path: Path, encoding: str | None) -> str:
    if encoding is None:
        match = _CHARSET.search(content[:_HEAD])
        said = match[1].decode() if match else None
        if said and said.lower().startswith(("utf-16", "utf-32")):
            said = None  # it could not be read if it were true
        found = bytes_encoding(content, path.name, said)
        encoding = _LARGER.get(found, found)
    text = content.decode(encoding, "replace")
    if text.count("\ufffd") > _BAD * len(text):
        raise DataError(f"not a text in {encoding}; --encoding can name another")
    return text


def _content(root: Any) -> Any:
    """Return the element that has the page's own text."""
    for path in ("//main|//*[@role='main']", "//article"):
        found = root.xpath(path)
        if len(found) == 1:
            return found[0]
    body = root.find("body")
    return root if body is None else body


def _address(root: Any) -> str | None:
    """Return the address that a page says is its own."""
    for url in root.xpath("//head/link[@rel='canonical']/@href"):
        if re.match(r"https?://\S+\Z", url.strip()):
            return str(url.strip())
    return None


class _Lines:
    """The lines of a page, and which of them are headings."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.headings: list[Heading] = []
        self._texts: list[str] = []
        self._cells = 0  # tables of data around the current element
        self._written = 0  # `pre` elements around it
        self._begun = 0  # the line at which the last heading began

    def read(self, content: Any, etree: Any) -> None:
        """Read an element; iteratively, since elements may be nested deeply."""
        inside = content.tag in {"main", "article"} or content.get("role") == "main"
        data: set[Any] = set()
        walk = etree.iterwalk(content, events=("start", "end"))
        skipped: set[Any] = set()
        for event, element in walk:
            tag = element.tag
            if event == "start":
                if _is_left_out(element, inside=inside):
                    walk.skip_subtree()
                    skipped.add(element)
                    continue
                self._begin(element, tag, data)
                self._texts.append(element.text or "")
            else:
                if element not in skipped:
                    self._end(element, tag, data)
                if element is not content:
                    self._texts.append(element.tail or "")
        self._flush()

    def _begin(self, element: Any, tag: str, data: set[Any]) -> None:
        if tag == "table" and _is_data(element):
            self._flush()
            data.add(element)
            self._cells += 1
        elif self._cells:
            if tag in {"td", "th"} and element.getprevious() is not None:
                self._texts.append(" | ")
            elif tag in _BLOCKS or tag == "br":
                self._texts.append(" ")
        elif tag == "br":
            self._flush() if not self._written else self._texts.append("\n")
        elif tag in _BLOCKS:
            self._flush()
            if tag == "li":
                self._texts.append("- ")
            elif tag in _HEADINGS:
                self._begun = len(self.lines)
        self._written += tag == "pre"

    def _end(self, element: Any, tag: str, data: set[Any]) -> None:
        if element in data or (self._cells and tag in {"tr", "caption"}):
            self._flush()
            self._cells -= element in data
        elif tag in _HEADINGS and not self._cells:
            # A heading may have several lines; one in another one ends before it.
            at = max(self._begun, self.headings[-1].last if self.headings else 0)
            self._flush()
            if len(self.lines) > at:
                anchor = element.get("id") or _section_id(element)
                words = " ".join(self.lines[at:])
                self.lines[at:] = [words]
                self.headings.append(Heading(int(tag[1]), words, at, at + 1, anchor))
        elif tag in _BLOCKS and not self._cells:
            self._flush()
        elif tag in _BLOCKS:
            self._texts.append(" ")
        self._written -= tag == "pre"

    def _flush(self) -> None:
        text = "".join(self._texts)
        self._texts = []
        if self._written and not self._cells:
            self.lines += [line.rstrip() for line in text.strip("\n").split("\n") if line.strip()]
        elif (line := " ".join(text.split())) not in {"", "-"}:
            self.lines.append(line)


def _is_left_out(element: Any, *, inside: bool) -> bool:
    """Return whether an element is no part of a page's own text."""
    tag = element.tag
    if tag in _NEVER or element.get("hidden") is not None or element.get("aria-hidden") == "true":
        return True
    if tag == "a" and _LINKS_TO_SELF.fullmatch("".join(element.itertext())):
        return any(above.tag in _HEADINGS for above in _above(element))
    if element.get("role") in _ROLES or tag in _ASIDE:
        if inside or any(above.tag in {"main", "article"} for above in _above(element)):
            return element.get("role") in {"navigation", "search"}
        return next(element.iter(*_HEADINGS), None) is None or tag != "header"
    return False


def _above(element: Any) -> Iterator[Any]:
    return element.iterancestors()  # type: ignore[no-any-return]


def _is_data(table: Any) -> bool:
    """Return whether a table holds data: many older pages are laid out by tables."""
    return next(table.iterdescendants("table", "ul", "ol", "pre", *_HEADINGS), None) is None


def _section_id(heading: Any) -> str | None:
    """Return the id of the section that a heading begins, as in Sphinx's pages."""
    above = heading.getparent()
    begins = above is not None and above.tag == "section" and heading.getprevious() is None
    return above.get("id") if begins else None
