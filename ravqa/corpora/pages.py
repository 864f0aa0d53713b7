"""Folders of pages, tables and pictures as passages.

    notes.txt          split into pieces: notes.txt#0, notes.txt#1
    guide.md           a passage per heading: guide.md#install, if split: guide.md#install.1
    paper.pdf          a passage per page: paper.pdf#page=3, if split: paper.pdf#page=3.1; with
                       its image, and of a scan what OCR reads, if wanted
    koala.jpg          one passage: koala.jpg; its text is the caption
    page.html          as Markdown: page.html#install
    report.docx        as Markdown: report.docx#results
    talk.pptx          a passage per slide: talk.pptx#slide=3, if split: talk.pptx#slide=3.1
    zoo.csv            a passage per row: zoo.csv#ID, without a column of ids zoo.csv#row=3

Ids are paths below the folder, so that they stay the same while a file is edited. A caption is the
text of `koala.txt` next to `koala.jpg`, or is listed in a `metadata.jsonl` or `metadata.csv` of the
same folder (columns `file_name`, and `text` or `caption`; others become metadata), as in the hub's
image folders. An image without a caption that a row of a table names is that row's alone. A table
without a column of text is left out.

Hidden files and folders are skipped, and so are links that lead out of the folder and collections
(`ravqa.collections`), whose images are copies. Files with identical bytes are read once.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError
from ravqa.core.locations import file_digest, real_path
from ravqa.core.records import Passage
from ravqa.core.settings import fingerprint
from ravqa.corpora import markdown, office, pdf, web
from ravqa.corpora.documents import Document, Section, file_title, numbered, page_text
from ravqa.corpora.kb import cut
from ravqa.corpora.remarks import Remarks
from ravqa.corpora.rows import TEXT_COLUMNS, row_passage, whole
from ravqa.corpora.scans import ScanReader
from ravqa.corpora.tables import TABULAR, Row, TableForm, read_rows, suffix_of
from ravqa.corpora.values import is_blank, text_of
from ravqa.images.decode import SUFFIXES, broken_images, is_image, is_image_file, kept_image
from ravqa.images.folder import ImageFolder, composed

PAGE_WORDS = 150
"""Words per passage (about 200 tokens, below the 256 of the default encoder)."""

MARKDOWN = (".md", ".markdown")
HTML = (".html", ".htm", ".xhtml")
TEXTS = (".txt", *MARKDOWN, *HTML, ".pdf", ".docx", ".pptx")
PAGES = (*TEXTS, *SUFFIXES)
"""Suffixes of pages and pictures; images are also recognized by their first bytes."""

READ = ", ".join((*TEXTS, *TABULAR, "images"))
"""Everything that is read in a folder, for messages."""

MANIFESTS = ("collection.json", "library.json")
"""Files that mark a folder as a collection (`ravqa.collections`): current and older name."""

_PACKAGES = {
    **dict.fromkeys(HTML, ("lxml", "html")),
    ".pdf": ("pypdf", "pdf"),
    ".docx": ("docx", "office"),
    ".pptx": ("pptx", "office"),
}
"""The module that reads a kind of file, and the extra that installs it."""

_METADATA = ("metadata.jsonl", "metadata.csv")
_CAPTIONS = ("text", "caption")
_PICTURE_BYTES = 500  # rough size of a picture's passage


def is_pages(path: Path) -> bool:
    """Return whether a path is a folder, or a single page or picture."""
    try:
        if path.is_dir():
            return True
        return path.is_file() and (path.suffix.lower() in PAGES or is_image_file(path))
    except OSError:  # a name that no file system allows, or a folder without access
        return False


def is_collection(folder: Path) -> bool:
    """Return whether a folder is a collection; other programs use files of that name too."""
    for name in MANIFESTS:
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            return True  # perhaps a damaged collection
        if isinstance(found, dict) and {"settings", "encoder", "checksum"} <= found.keys():
            return True
    return False


class Pages:
    """A folder, or a single file, whose pages become passages."""

    def __init__(
        self,
        root: Path,
        *,
        words: int | None = None,
        form: TableForm | None = None,
        page_form: pdf.PageForm | None = None,
        remarks: Remarks | None = None,
        uncaptioned: bool = False,
    ):
        """List the files to read.

        Args:
            words: longest passage in whitespace-separated words; None for PAGE_WORDS.
            form: how tables are written; its encoding is that of texts too.
            page_form: what pages of PDF files are read as; None for text.
            uncaptioned: include images without a caption (and of pages without text), as passages
                without text.

        Raises:
            DataError: there is nothing to read.
        """
        self._root = root if root.is_dir() else root.parent
        self._words = words or PAGE_WORDS
        self._form = form or TableForm()
        self._page_form = page_form or pdf.PageForm()
        self._uncaptioned = uncaptioned
        self.remarks = remarks or Remarks()
        self._checks = remarks is None
        self._files = self._found() if root.is_dir() else [root]
        if not self._files:
            self.remarks.check()
            there = f", not {others}" if (others := self.remarks.unsupported) else ""
            raise DataError(f"{root}: nothing to read: {READ} are read{there}")

    @property
    def size(self) -> int:
        """The approximate size of the passages in bytes."""
        return sum(
            _PICTURE_BYTES if _is_image(path) else path.stat().st_size for path in self._files
        )

    def key(self) -> str:
        """Return a key that changes with everything that the passages depend on."""
        files = [[self._name(path), file_digest(path)] for path in self._files]
        form = astuple(self._form)
        pages = self._page_form
        if pages.images or pages.ocr:
            form += (pages.pages, pages.dpi, *(["ocr"] if pages.ocr else []))
        return fingerprint("pages/4", files, self._words, self._uncaptioned, *form)

    def passages(self) -> Iterator[Passage]:
        """Yield every passage, file by file in order of name.

        Raises:
            DataError: files cannot be read, unless such files are skipped. If `remarks` were given,
                `Remarks.check` raises it.
            MissingExtraError: the package for the only file is not installed; in folders, its kind
                is one of those that cannot be read.
        """
        written = {_letters(p): p for p in self._files}  # the files by composed names
        metadata = self._metadata(written)
        captions = {
            written.get(_letters(p.with_suffix(".txt"))) for p in self._files if _is_image(p)
        }
        captions -= {p for p in captions if p is not None and _is_image(p)}
        broken = broken_images([path for path in self._files if _is_image(path)])
        seen: dict[str, str] = {}
        shown: set[Path] = set()  # images of tables, which are read first
        for path in sorted(self._files, key=lambda path: not _is_table(path)):
            if path.name in _METADATA or path in captions:
                continue
            name = self._name(path)
            try:
                first = seen.setdefault(_digest(path), name)
                if first != name and path.stat().st_size:
                    self.remarks.copies.append(f"{name} ({first})")
                    continue
                if path in broken:
                    raise DataError(broken[path])
                if _is_table(path):
                    for passage in self._rows(path):
                        shown |= {real_path(passage.image)} if passage.image else set()
                        yield passage
                elif _is_image(path):
                    beside = path.with_suffix(".txt")
                    beside = written.get(_letters(beside), beside)
                    described = metadata.get(path, {})
                    if described or beside.is_file() or real_path(path) not in shown:
                        yield from self._picture(path, beside, described)
                else:
                    yield from self._cut(path)
            except DataError as e:
                self.remarks.break_off(name, str(e).removeprefix(f"{path}: "))
        if self._checks:
            self.remarks.check()

    def _found(self) -> list[Path]:
        real = real_path(self._root)
        found = []
        unread: Counter[str] = Counter()  # by suffixes for which a package is missing
        for folder, folders, names in os.walk(self._root, onerror=self._unreadable):
            if Path(folder) != self._root and is_collection(Path(folder)):
                self.remarks.collections.append(self._name(Path(folder)))
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith((".", "~$")):  # Word's and Excel's marks of open files
                    continue
                if not real_path(path).is_relative_to(real):
                    self.remarks.links.append(self._name(path))
                elif not path.is_file():
                    self.remarks.others["pipe, device or broken link"] += 1
                elif not os.access(path, os.R_OK):
                    self.remarks.break_off(self._name(path), "cannot be read: no permission")
                elif not _has_package(path):
                    unread[path.suffix.lower()] += 1
                elif (
                    name in _METADATA
                    or _is_table(path)
                    or path.suffix.lower() in PAGES
                    or is_image_file(path)
                ):
                    found.append(path)
                else:
                    self.remarks.others[path.suffix.lower() or "without suffix"] += 1
            self.remarks.links += [
                self._name(Path(folder, name))
                for name in folders
                if not real_path(Path(folder, name)).is_relative_to(real)
            ]
        if unread:
            suffixes = [suffix for suffix in _PACKAGES if suffix in unread]
            kinds = ", ".join(f"{unread[suffix]} {suffix}" for suffix in suffixes)
            extras = ",".join(dict.fromkeys(_PACKAGES[suffix][1] for suffix in suffixes))
            reason = f"{kinds} cannot be read: pip install 'ravqa[{extras}]'"
            self.remarks.break_off(str(self._root), reason)
        return found

    def _unreadable(self, error: OSError) -> None:
        """Report a folder that cannot be listed: its content would be missing silently."""
        name = self._name(Path(error.filename))
        self.remarks.break_off(name, f"cannot be read: {error.strerror}")

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    # -- pictures -----------------------------------------------------------------------------

    def _metadata(self, written: Mapping[str, Path]) -> dict[Path, Mapping[str, Any]]:
        """Return the metadata that metadata files give for images."""
        found: dict[Path, Mapping[str, Any]] = {}
        for path in self._files:
            if path.name not in _METADATA:
                continue
            for where, row in read_rows(path):
                with self.remarks.may_be_left_out(where):
                    name = row.pop("file_name", None)
                    if not isinstance(name, str) or not name:
                        raise DataError("no 'file_name'")
                    named = path.parent / name
                    below = real_path(path.parent) in real_path(named).parents
                    if _letters(named) not in written and not (below and named.is_file()):
                        self.remarks.absent.append(self._name(named) if below else name)
                    image = written.get(_letters(named), named)
                    if found.setdefault(image, row) != row:
                        raise DataError(f"{name!r} already has another row")
        return found

    def _picture(self, path: Path, beside: Path, metadata: Mapping[str, Any]) -> Iterator[Passage]:
        name = self._name(path)
        extra = {k: v for k, v in metadata.items() if not is_blank(v) and not isinstance(v, bytes)}
        column = next((c for c in _CAPTIONS if c in extra), "")
        text = (text_of(extra.pop(column, None), column) or "").strip()
        if beside != path and beside.is_file():
            caption = page_text(beside, self._form.encoding).strip()
            if text and caption not in {text, ""}:
                self.remarks.second.append(self._name(beside))
            text = text or caption
        if text or self._uncaptioned:
            title = text_of(extra.pop("title", None), "title")
            yield Passage(name, text, title, path, article=name, extra=extra)
        else:
            raise DataError(
                f"no caption: write one into {beside.name} or metadata.jsonl; a collection "
                "(ravqa collection build) describes images itself"
            )

    # -- tables -------------------------------------------------------------------------------

    def _rows(self, path: Path) -> Iterator[Passage]:
        name = self._name(path)
        for _ in read_rows(path, form=self._form):
            pass  # raises before any row is a passage: a table is left out as a whole
        rows = read_rows(path, form=self._form)
        first = next(rows, None)
        if first is None:
            self.remarks.blank.append(name)
        elif not any(column in first[1] for column in TEXT_COLUMNS):
            self.remarks.textless.append(f"{name} ({', '.join(map(str, first[1]))})")
        else:
            found = self._passages(name, itertools.chain([first], rows), ImageFolder(path.parent))
            yield from whole(found, name, self.remarks)

    def _passages(
        self, name: str, rows: Iterable[tuple[str, Row]], images: ImageFolder
    ) -> Iterator[Passage]:
        for number, (where, row) in enumerate(rows, 1):
            place = where.removeprefix(str(self._root)).lstrip("/")
            with self.remarks.may_be_left_out(place):
                found = row_passage(row, images, f"row={number}")
                article = found.article or name
                yield replace(found, passage_id=f"{name}#{found.passage_id}", article=article)

    # -- pages --------------------------------------------------------------------------------

    def _cut(self, path: Path) -> Iterator[Passage]:
        name = self._name(path)
        document = self._document(path)
        images = self._rendered(path) if document.sections else {}  # pdfium fails without pages
        empty = True
        for section in document.sections:
            image = images.get(section.labels.get("page", 0))
            as_one = image is not None and self._page_form.pages == "images"
            pieces = list(cut(section.text, None if as_one else self._words))
            if not pieces and image is not None and self._uncaptioned:
                pieces = [""]
            if not pieces and section.labels:
                scan = "page" in section.labels and not self._page_form.ocr
                found = self.remarks.scans if scan else self.remarks.blank
                found.append(f"{name}#{section.place}")
            for number, piece in enumerate(pieces):
                empty = False
                place = section.place
                if number or not place:
                    place = f"{place}.{number}" if place else str(number)
                extra = {**document.metadata, **section.labels}
                yield Passage(
                    f"{name}#{place}",
                    piece,
                    document.title,
                    image,
                    section=section.heading,
                    article=name,
                    url=document.url,
                    extra=extra,
                )
        if empty and not any(section.labels for section in document.sections):
            self.remarks.blank.append(name)

    def _rendered(self, path: Path) -> dict[int, Path]:
        """Return files with the images of a PDF file's pages, by page, if they are wanted."""
        if path.suffix.lower() != ".pdf" or not self._page_form.images:
            return {}
        dpi = self._page_form.dpi or pdf.DPI
        return {number: kept_image(png) for number, png in pdf.render_pages(path, dpi=dpi)}

    def _document(self, path: Path) -> Document:
        if path.suffix.lower() != ".pdf":
            return _read(path, self._form.encoding)
        scanned: dict[int, str] = {}

        def read(pages: Sequence[int]) -> dict[int, str]:
            scanned.update(self._scans.texts(path, pages))
            return scanned

        title, pages = pdf.read(path, read if self._page_form.ocr else None)
        sections = [numbered("page", number, text) for number, text in pages]
        sections = [
            replace(s, labels={**s.labels, "ocr": True}) if number in scanned else s
            for (number, _), s in zip(pages, sections, strict=True)
        ]
        return Document(title or file_title(path), sections)

    @cached_property
    def _scans(self) -> ScanReader:
        return ScanReader(self._page_form.dpi or pdf.DPI)


def _read(path: Path, encoding: str | None) -> Document:
    suffix = path.suffix.lower()
    if suffix in HTML:
        return web.read(path, encoding)
    if suffix == ".docx":
        return office.read_docx(path)
    if suffix == ".pptx":
        return office.read_pptx(path)
    if suffix in MARKDOWN:
        return markdown.read(path, encoding)
    return Document(file_title(path), [Section("", page_text(path, encoding))])


def _letters(path: Path) -> str:
    return composed(str(path))


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}") from None


def _has_package(path: Path) -> bool:
    """Return whether the package that reads a file is installed, if it needs one."""
    module, _ = _PACKAGES.get(path.suffix.lower(), (None, None))
    return module is None or find_spec(module) is not None or _is_image(path)


def _is_table(path: Path) -> bool:
    return suffix_of(path) in TABULAR and path.name not in _METADATA


def _is_image(path: Path) -> bool:
    if path.suffix.lower() not in TEXTS:
        return is_image_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError:
        return False
    return is_image(head) and b"\0" in head  # "GIF89a" may be the first word of a text
