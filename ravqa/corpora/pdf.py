"""PDF files page by page: their text (through pypdf), and pictures of them (through pypdfium2).

Ligatures and other compatibility forms are replaced by what they stand for (Unicode's NFKC), except
superscripts, subscripts and fractions, which would become other numbers (10² would be 102).

A hyphen at the end of a line either breaks a word or belongs to it. It is removed if it is a soft
one. It is kept before and after digits, where lower case meets upper case ("Franco-Prussian"), and
in "pre- and post-war". Otherwise the other words of the document decide. If the word occurs there
with its hyphen, without it, or both, the more frequent form is right. If neither occurs, the hyphen
is kept in a word that has more of them ("state-of-the-art"), and between two parts of three letters
or more which are both words of the document; in every other case it is removed.
"""

from __future__ import annotations

import io
import logging
import math
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ravqa.core.errors import DataError, UserError, first_line, import_extra
from ravqa.core.files import LONGEST_LINE, check_file
from ravqa.corpora.titles import real_title

_AS_WRITTEN = "¼-¾²³¹ªº⁰-ⁿ₀-ₜ⅐-↉"
_OTHERS = re.compile(f"[^{_AS_WRITTEN}]+")
_SOFT = "\u00ad"
_SOFT_MARKS = (_SOFT, b"\xfe\xff\x00\xad")
_BREAK = re.compile(rf"([\w-]*\w)(-| ?[\u2010{_SOFT}])[ \t]*\n[ \t]*(?=(\w+(?:-\w+)*))")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_SHORTEST_PART = 3

PagesAs = Literal["text", "images", "both"]
"""What pages are read as; see `PageForm`."""

DPI = 150
"""Default resolution of pictures of pages, in dots per inch."""
_LEAST_DPI, _MOST_DPI = 20, 1200
MOST_PIXELS = 2**24
"""A larger page is rendered at the lower resolution at which it has this many pixels."""
_POINTS = 72  # of a PDF file's own units in an inch
_PDFIUM = threading.Lock()  # the library may be used by one thread at a time


@dataclass(frozen=True, slots=True)
class PageForm:
    """What pages of PDF files are read as.

    Attributes:
        pages: passages of their "text"; "images", each with all the text of its page; or "both":
            passages of their text, each with the image of its page. A page without text is its
            image alone.
        dpi: resolution of the images, and of what OCR reads; None for DPI.
        ocr: whether the text of pages without any, such as scans, is read by OCR.

    Raises:
        UserError: a resolution without images, or out of range.
    """

    pages: PagesAs = "text"
    dpi: int | None = None
    ocr: bool = False

    def __post_init__(self) -> None:
        if self.dpi is None:
            return
        if not self.images and not self.ocr:
            raise UserError(
                "dpi is the resolution of images of pages: choose pages images or both, or ocr"
            )
        if not _LEAST_DPI <= self.dpi <= _MOST_DPI:
            raise UserError(f"dpi {self.dpi}: {_LEAST_DPI} to {_MOST_DPI} are possible")

    @property
    def images(self) -> bool:
        """Whether pages are rendered."""
        return self.pages != "text"


def read(
    path: Path, scanned: Callable[[Sequence[int]], Mapping[int, str]] | None = None
) -> tuple[str | None, list[tuple[int, str]]]:
    """Return a file's title, and the number (from 1) and text of each page.

    The text of a page without any (a scan) is "". Lines are joined into paragraphs. The title is
    that of the file's properties; None if it is blank or the name of a file.

    Args:
        scanned: given the numbers of the pages without text, returns their text by other means.

    Raises:
        DataError: the file is broken, or needs a password, or has too much text.
        MissingExtraError: pypdf is not installed.
    """
    library: Any = import_extra("pypdf", "pdf", why=f"reading {path.name}")
    errors: Any = import_extra("pypdf.errors", "pdf", why=f"reading {path.name}")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns about every untidy file
    texts: list[str] = []
    check_file(path)
    if not path.stat().st_size:
        raise DataError("an empty file")
    try:
        with path.open("rb") as file:
            reader = library.PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                raise DataError("encrypted: it needs a password")
            size = 0
            for page in reader.pages:
                text = page.extract_text(visitor_operand_before=_SoftHyphens())
                texts.append(_plain(text))
                size += len(texts[-1])
                if size > LONGEST_LINE:
                    raise DataError(f"more than {LONGEST_LINE:,} characters of text: split it")
            title = reader.metadata and reader.metadata.title
    except DataError:
        raise
    except errors.DependencyError:
        raise DataError("encrypted with AES: pip install cryptography to read it") from None
    except RecursionError:
        raise DataError("broken: its parts refer to each other in a circle") from None
    except Exception as e:  # pypdf raises errors of many types on broken bytes
        where = f" after page {len(texts)}" if texts else ""
        reason = str(e).strip().partition("\n")[0] or type(e).__name__
        raise DataError(f"no PDF file that can be read{where} ({reason})") from None
    blank = [number for number, text in enumerate(texts, 1) if not text.strip()]
    for number, text in scanned(blank).items() if scanned and blank else ():
        texts[number - 1] = _plain(text)
    words = _words(texts)
    pages = [(number, _paragraphs(_unbroken(text, words))) for number, text in enumerate(texts, 1)]
    return real_title(_plain(title) if isinstance(title, str) else None), pages


def render_pages(
    path: Path, pages: Iterable[int] | None = None, *, dpi: int = DPI
) -> Iterator[tuple[int, bytes]]:
    """Yield pages' numbers (from 1) and pictures of them, as PNG in RGB.

    Args:
        pages: the numbers of the wanted pages; None for all.
        dpi: dots per inch; fewer if a page had more than MOST_PIXELS.

    Raises:
        DataError: the file or a page is broken, or the file needs a password.
        MissingExtraError: pypdfium2 is not installed.
    """
    library: Any = import_extra("pypdfium2", "pdf", why=f"rendering {path.name}")
    check_file(path)
    try:
        with _PDFIUM:
            document = library.PdfDocument(path)
    except (library.PdfiumError, OSError) as e:
        if "password" in str(e):
            raise DataError("encrypted: it needs a password") from None
        raise DataError(f"no PDF file that can be rendered ({first_line(e)})") from None
    try:
        for number in range(1, len(document) + 1) if pages is None else pages:
            with _PDFIUM:
                try:
                    picture = _render(document[number - 1], dpi / _POINTS)
                except Exception as e:  # damaged pages fail in many ways
                    reason = f"page {number} cannot be rendered ({first_line(e)})"
                    raise DataError(reason) from None
            yield number, picture
    finally:
        with _PDFIUM:
            document.close()


def _render(page: Any, scale: float) -> bytes:
    width, height = page.get_size()
    scale = min(scale, math.sqrt(MOST_PIXELS / (width * height)))
    out = io.BytesIO()
    page.render(scale=scale).to_pil().convert("RGB").save(out, "PNG")
    page.close()
    return out.getvalue()


class _SoftHyphens:
    """Takes out the soft hyphens of browsers' PDF files, which pypdf would read as spaces.

    They are drawn as a space that is marked to stand for a soft hyphen.
    """

    def __init__(self) -> None:
        self._within = False

    def __call__(self, operator: bytes, operands: list[Any], *position: Any) -> None:
        """Change what is about to be drawn."""
        if operator == b"BDC":
            marks = operands[1] if len(operands) > 1 else None
            self._within = isinstance(marks, dict) and marks.get("/ActualText") in _SOFT_MARKS
        elif operator == b"EMC":
            self._within = False
        elif operator == b"Tj" and self._within and operands:
            operands[0] = type(operands[0])()


def _plain(text: str) -> str:
    """Return a text without compatibility forms, and with characters that UTF-8 can encode."""
    text = text.replace("\0", " ").encode("utf-8", "replace").decode()
    return _OTHERS.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)


def _words(texts: Sequence[str]) -> Counter[str]:
    """Count the words of a document, in lower case, without those that a line's end breaks.

    A word with hyphens counts as a whole, and so does each of its parts.
    """
    found: Counter[str] = Counter()
    for text in texts:
        whole = re.sub(rf"{_BREAK.pattern}\3", " ", text).replace(_SOFT, "")
        for word in _WORD.findall(whole.lower().replace("\u2010", "-")):
            parts = word.split("-")
            found.update([word, *parts] if len(parts) > 1 else parts)
    return found


def _unbroken(text: str, words: Counter[str]) -> str:
    """Return a text with the words whole that the ends of its lines break."""

    def joined(match: re.Match[str]) -> str:
        first, mark, rest = match.groups()
        return first + ("" if _SOFT in mark else _hyphen(first, rest, words))

    return _BREAK.sub(joined, text).replace(_SOFT, "")


def _hyphen(first: str, rest: str, words: Counter[str]) -> str:
    """Return what stands between two parts of a word that a hyphen at a line's end separates."""
    lower = first[-1].islower() and rest[0].islower()
    if not lower and not (first.isupper() and rest.isupper()):
        return "-"
    first, rest = first.lower(), rest.lower()
    last, after = first.rpartition("-")[2], rest.partition("-")[0]
    compound = words[f"{first}-{rest}"]
    single = words[f"{first}{rest}"] or words[f"{last}{after}"]
    if compound or single:
        return "-" if compound > single else ""
    if rest in {"and", "or", "und", "oder"}:
        return "- "
    both = last in words and after in words and min(len(last), len(after)) >= _SHORTEST_PART
    return "-" if "-" in first + rest or both else ""


def _paragraphs(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).strip()
