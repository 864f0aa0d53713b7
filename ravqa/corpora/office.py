"""Documents and slides of office programs: .docx (through python-docx) and .pptx (python-pptx).

A document is divided at its headings, which are known by their styles; a presentation into slides,
with what is said to them (notes). Of a document, headers, footers, footnotes and comments are not
read, nor is what was deleted with changes tracked; of slides, neither charts nor diagrams.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError, first_line, import_extra
from ravqa.core.files import LONGEST_LINE, check_file
from ravqa.corpora.documents import Document, Heading, divided, file_title, numbered
from ravqa.corpora.titles import real_title

LARGEST = 2**30
"""Most bytes of a file's parts together, unpacked; its texts are at most LONGEST_LINE."""

_OLDER = b"\xd0\xcf\x11\xe0"  # the container of .doc and .ppt, and of encrypted files
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_ELSEWHERE = frozenset([f"{_W}txbxContent", f"{_W}tabs", f"{_W}moveFrom"])
_HEADING = re.compile(r"heading ([1-9])", re.IGNORECASE)
_UNSEEN = frozenset(["DATE", "FOOTER", "SLIDE_NUMBER"])  # placeholders, the same on every slide


def read_docx(path: Path) -> Document:
    """Read a document.

    Its title is its paragraph of the style Title, else its only heading of level 1, else that of
    its properties.

    Raises:
        DataError: it is too large, broken or encrypted.
        MissingExtraError: python-docx is not installed.
    """
    library: Any = import_extra("docx", "office", why=f"reading {path.name}")
    lines: list[str] = []
    headings: list[Heading] = []
    title = ""
    with _readable(path):
        document = library.Document(str(path))
        levels = _levels(document.styles)
        for block in _blocks(document.element.body):
            if block.tag == f"{_W}tbl":
                lines += _table(block)
                continue
            text = _text(block)
            level = _level(block, levels)
            if level == 0 and not title:
                title = " ".join(text.split())
            elif level and text.strip():
                lines.append(" ".join(text.split()))
                headings.append(Heading(level, lines[-1], len(lines) - 1, len(lines)))
            else:
                lines += text.split("\n")
        named = real_title(document.core_properties.title)
    if not title and sum(heading.level == 1 for heading in headings) != 1:
        title = named or file_title(path)
    return divided(lines, headings, title, file_title(path))


def read_pptx(path: Path) -> Document:
    """Read a presentation: a section per slide.

    Raises:
        DataError: it is too large, broken or encrypted.
        MissingExtraError: python-pptx is not installed.
    """
    library: Any = import_extra("pptx", "office", why=f"reading {path.name}")
    sections = []
    with _readable(path):
        presentation = library.Presentation(str(path))
        named = real_title(presentation.core_properties.title)
        for number, slide in enumerate(presentation.slides, 1):
            head = slide.shapes.title
            heading = " ".join(head.text_frame.text.split()) if head is not None else ""
            others = (shape for shape in slide.shapes if head is None or shape != head)
            lines = [line for shape in others for line in _shape(shape)]
            if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame):
                lines += _lines(notes.text)
            text = "\n".join(line for line in lines if line.strip(" |"))
            shown = heading if text else None  # a slide with a title alone has it as its text
            sections.append(numbered("slide", number, text or heading, shown or None))
            named = named or (heading if number == 1 else None)
    return Document(named or file_title(path), sections)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Refuse a file that unpacks to too much, and report all errors of the libraries alike."""
    check_file(path)
    try:
        with path.open("rb") as file:
            if file.read(len(_OLDER)) == _OLDER:
                raise DataError("encrypted, or of the format before 2007: save it as a new file")
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        texts = sum(p.file_size for p in parts if p.filename.endswith((".xml", ".rels")))
        if texts > LONGEST_LINE or sum(p.file_size for p in parts) > LARGEST:
            raise DataError("unpacks to too much: split it")
        yield
    except DataError:
        raise
    except zipfile.BadZipFile:
        raise DataError("no such document: it is not packed as one; is it cut off?") from None
    except RecursionError:
        raise DataError("broken: its parts are nested too deeply") from None
    except Exception as e:  # the libraries raise errors of many types on broken parts
        raise DataError(f"broken: {first_line(e) or type(e).__name__}") from None


# -- documents --------------------------------------------------------------------------------


def _levels(styles: Any) -> Mapping[str, int]:
    """Return the level of each style of headings, by its id; 0 for titles."""
    found = {}
    for style in styles:
        above = style
        for _ in range(20):  # styles may refer to each other in a circle
            if above is None:
                break
            name = (above.name or "").lower()
            if (match := _HEADING.fullmatch(name)) or name == "title":
                found[style.style_id] = int(match[1]) if match else 0
                break
            above = getattr(above, "base_style", None)
    return found


def _level(paragraph: Any, levels: Mapping[str, int]) -> int | None:
    style = paragraph.find(f"{_W}pPr/{_W}pStyle")
    if style is not None and (level := levels.get(style.get(f"{_W}val"))) is not None:
        return level
    outline = paragraph.find(f"{_W}pPr/{_W}outlineLvl")
    value = outline.get(f"{_W}val") if outline is not None else None
    return int(value) + 1 if value in set("012345678") else None  # 9 is text


def _blocks(element: Any) -> Iterator[Any]:
    """Yield the paragraphs and tables in an element, in order; also those in text boxes."""
    for child in element:
        if child.tag == f"{_W}tbl":
            yield child
        elif child.tag == f"{_W}p":
            yield child
            for box in child.iter(f"{_W}txbxContent"):
                if not _is_within(box, child):
                    yield from _blocks(box)
        elif child.tag not in {_FALLBACK, f"{_W}del", f"{_W}sectPr"}:
            yield from _blocks(child)


def _is_within(box: Any, paragraph: Any) -> bool:
    """Return whether a text box is inside another, or stands for one of newer programs."""
    for above in box.iterancestors():
        if above is paragraph:
            return False
        if above.tag in {f"{_W}txbxContent", _FALLBACK}:
            return True
    return False


def _text(paragraph: Any) -> str:
    """Return a paragraph's text, without that of text boxes in it."""
    parts = []
    for element in paragraph.iter(f"{_W}t", f"{_W}tab", f"{_W}br", f"{_W}cr", f"{_W}noBreakHyphen"):
        if any(a.tag in _ELSEWHERE for a in _up_to(element, paragraph)):
            continue
        kind = element.tag.removeprefix(_W)
        parts.append({"t": element.text or "", "tab": " ", "noBreakHyphen": "-"}.get(kind, "\n"))
    return "".join(parts)


def _up_to(element: Any, paragraph: Any) -> Iterator[Any]:
    for above in element.iterancestors():
        if above is paragraph:
            return
        yield above


def _table(table: Any) -> list[str]:
    """Return the rows of a table, a line for each."""
    lines = []
    for row in table.iterchildren(f"{_W}tr"):
        cells = [
            " ".join(" ".join(_text(p).split()) for p in cell.iter(f"{_W}p")).strip()
            for cell in row.iter(f"{_W}tc")
            if _is_cell_of(cell, row)
        ]
        lines.append(" | ".join(cells))
    return [line for line in lines if line.strip(" |")]


def _is_cell_of(cell: Any, row: Any) -> bool:
    return next(cell.iterancestors(f"{_W}tr"), None) is row


# -- slides -----------------------------------------------------------------------------------


def _shape(shape: Any) -> Iterator[str]:
    """Yield the lines of a shape."""
    kind = shape.placeholder_format.type if shape.is_placeholder else None
    if kind is not None and kind.name in _UNSEEN:
        return
    if hasattr(shape, "shapes"):  # a group
        for inner in shape.shapes:
            yield from _shape(inner)
    elif shape.has_text_frame:
        yield from _lines(shape.text_frame.text)
    elif getattr(shape, "has_table", False):
        for row in shape.table.rows:
            yield " | ".join(" ".join(cell.text_frame.text.split()) for cell in row.cells)


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in re.split(r"[\n\v]", text)]
