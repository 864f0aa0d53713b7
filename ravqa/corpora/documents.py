"""Documents as sections: what files of text are read into before they are cut into passages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError
from ravqa.core.files import LONGEST_LINE, check_file
from ravqa.corpora.encodings import marked_encoding


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a document.

    Attributes:
        place: what follows # in its id.
        text: its text, which may be blank.
        heading: its heading, after those above it.
        labels: metadata of its passages, such as the number of the page.
    """

    place: str
    text: str
    heading: str | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


def numbered(what: str, number: int, text: str, heading: str | None = None) -> Section:
    """Return a part that is found by its number, such as a page."""
    return Section(f"{what}={number}", text, heading, {what: number})


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading among the lines of a document.

    Attributes:
        level: 1 for the highest.
        first, last: its first line, and the line after its last one, counted from 0.
        anchor: the name by which links find it, if it has one.
    """

    level: int
    words: str
    first: int
    last: int
    anchor: str | None = None


@dataclass(frozen=True)
class Document:
    """A document: its title, its sections, metadata of each passage, and its address."""

    title: str
    sections: Sequence[Section]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    url: str | None = None


def divided(
    lines: Sequence[str],
    headings: Iterable[Heading],
    title: str,
    otherwise: str,
    metadata: Mapping[str, Any] | None = None,
    url: str | None = None,
) -> Document:
    """Return a document whose sections begin at its headings.

    Args:
        title: blank if the first heading of level 1 is the title.
        otherwise: the title if there is no other.
    """
    sections: list[Section] = []
    began = 0  # where the text of the last section began

    def end(line: int, level: int) -> None:
        nonlocal began
        if above and level <= above[-1][0] and not "".join(lines[start:line]).strip():
            # Nothing follows this heading: it stays as text at the end of the section above.
            last = sections.pop()
            sections.append(replace(last, text="\n".join(lines[began:line])))
        else:
            began = start
            sections.append(Section(place, "\n".join(lines[start:line]), heading))

    places = {"top"}
    tried: Counter[str] = Counter()  # the last number tried after each slug
    above: list[tuple[int, str]] = []  # the headings above the current one
    start, place, heading = 0, "top", None
    for found in headings:
        end(found.first, found.level)
        above = [entry for entry in above if entry[0] < found.level]
        slug = found.anchor or _slug(found.words)
        place = slug
        while place in places:
            tried[slug] += 1
            place = f"{slug}-{tried[slug]}"
        places.add(place)
        start = found.last
        if found.level == 1 and not title:  # every passage contains the document's title already
            title, heading = found.words, None
            continue
        above.append((found.level, found.words))
        heading = " > ".join(entry[1] for entry in above)
    end(len(lines), 0)
    return Document(title or otherwise, sections, metadata or {}, url)


def _slug(words: str) -> str:
    """Return the heading's anchor, as on GitHub."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", words.strip().lower())) or "section"


def file_title(path: Path) -> str:
    """Return a title made from a file's name."""
    return re.sub(r"[-_\s]+", " ", path.stem).strip() or path.stem


def page_text(path: Path, encoding: str | None = None) -> str:
    """Return the content of a text file.

    Args:
        encoding: None for UTF-8, or that of its byte order mark.

    Raises:
        DataError: it is too large, cannot be read, or is not a text.
    """
    content = page_bytes(path)
    try:
        text = content.decode(encoding or marked_encoding(content) or "utf-8")
    except UnicodeError as e:
        at = f" (byte {e.start})" if isinstance(e, UnicodeDecodeError) else ""
        raise DataError(
            f"not a text in {encoding or 'UTF-8'}{at}; --encoding can name another"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def page_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: it is too large, or cannot be read.
    """
    check_file(path)
    try:
        if path.stat().st_size > LONGEST_LINE:
            raise DataError(f"a page of more than {LONGEST_LINE:,} bytes: split it")
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}") from None
