"""Documents as sections: what files of text are read into before they are cut into passages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError
from ravqa.core.files import LONGEST_LINE, check_file


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a document: the id suffix after #, heading, page and text."""

    place: str
    text: str
    heading: str | None = None
    page: int | None = None


@dataclass(frozen=True)
class Document:
    """A document: its title, its sections, and metadata of each passage."""

    title: str
    sections: Iterable[Section]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def file_title(path: Path) -> str:
    """Return a title made from a file's name."""
    return re.sub(r"[-_\s]+", " ", path.stem).strip() or path.stem


def page_text(path: Path) -> str:
    """Return the content of a text file in UTF-8.

    Raises:
        DataError: it is too large, cannot be read, or is not a text.
    """
    check_file(path)
    try:
        if path.stat().st_size > LONGEST_LINE:
            raise DataError(f"a page of more than {LONGEST_LINE:,} bytes: split it")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"not a text in UTF-8 (byte {e.start})") from None
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}") from None
