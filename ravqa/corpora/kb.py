"""Knowledge bases of whole articles, cut into passages that keep their article's identity.

    encyclopedic_kb_wiki.json      Encyclopedic-VQA: {url: {title, section_titles, section_texts,
                                   image_urls, ...}}, 2 million pages; also as published in a .zip.
                                   EchoSight's 100,000 articles for InfoSeek have the same layout.
    Wiki6M_ver_1_0.jsonl.gz        OVEN and InfoSeek: {wikidata_id, wikipedia_title,
                                   wikipedia_content, ...}, one page per line, 6 million pages

Both are streamed: one article is in memory at a time. A passage knows its article, and the
article's title, URL and entity, so that recall can be measured over passages and over articles.
"""

from __future__ import annotations

import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from ravqa.core.errors import DataError, first_line, import_extra
from ravqa.core.files import check_file
from ravqa.core.records import Passage
from ravqa.core.settings import Strict
from ravqa.corpora.nesting import Shallow
from ravqa.corpora.pdf import PageForm, PagesAs
from ravqa.corpora.tables import TableForm, lines_of, open_text, read_rows, suffix_of
from ravqa.corpora.values import identity, text, text_of

WIKI_WORDS = 300
"""Words per passage of an article without sections (about 400 tokens, below PreFLMR's 512)."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_RANKING = "top_ranking_passages"
_STATIC = "output"  # the one key of RA-VQA's retrieval results, where a knowledge base has URLs


class Sections(Strict):
    """Options for turning a knowledge base into a corpus.

    Attributes:
        words: longest passage in whitespace-separated words; None for whole sections (for
            WIKI_WORDS in articles without sections, for pages.PAGE_WORDS in pages).
        keep: file that names the wanted articles by URL, entity or title; None for all. One name
            per line, or a CSV with the column wikipedia_url (Encyclopedic-VQA's questions), or JSON
            lines with entity_id (InfoSeek's withkb files).
        quotes: whether quotes around a field of a TSV file are part of its syntax; None if it can
            be read in only one way.
        encoding: of CSV and TSV files and of pages; None to recognize it.
        delimiter: the character between the fields of a CSV file, or "tab"; None to recognize it.
        pages: what pages of PDF files are read as: "text" (the default), "images" or "both"
            (`ravqa.corpora.pdf.PageForm`).
        dpi: resolution of the images of pages; None for pdf.DPI.
        ocr: whether pages of PDF files without text, such as scans, are read by OCR; None for no.
    """

    words: int | None = Field(default=None, ge=1)
    keep: Path | None = None
    quotes: bool | None = None
    encoding: str | None = None
    delimiter: str | None = None
    pages: PagesAs | None = None
    dpi: int | None = None
    ocr: bool | None = None

    @property
    def page_form(self) -> PageForm:
        """What pages of PDF files are read as.

        Raises:
            UserError: as `PageForm`.
        """
        return PageForm(self.pages or "text", self.dpi, bool(self.ocr))

    @property
    def form(self) -> TableForm:
        """How CSV and TSV files are written.

        Raises:
            UserError: as `TableForm`.
        """
        return TableForm(self.quotes, self.encoding, self.delimiter)


@dataclass(frozen=True, slots=True)
class Article:
    """An article: its id, its names, and the (heading, text) of each section, the lead first."""

    article_id: str
    title: str
    sections: Sequence[tuple[str | None, str]]
    url: str | None = None
    entity: str | None = None
    sectioned: bool = True


def read_names(path: Path) -> frozenset[str]:
    """Read a file of article names (see `Sections.keep`).

    Raises:
        DataError: missing, unreadable, or without any names.
    """
    names: set[str] = set()
    if suffix_of(path) == ".txt":
        with open_text(path) as lines:
            names.update(line.strip() for line in lines)
    else:
        for where, row in read_rows(path):
            column = next((c for c in ("wikipedia_url", "entity_id") if c in row), None)
            if column is None:
                raise DataError(f"{where}: no 'wikipedia_url' and no 'entity_id'")
            try:
                name = text(row, column) or ""
            except DataError as e:
                raise DataError(f"{where}: {e}") from None
            names.update(name.split("|") if column == "wikipedia_url" else [name])
    names.discard("")
    if not names:
        raise DataError(f"{path}: no article is listed")
    return frozenset(names)


def is_kept(article: Article, keep: frozenset[str] | None) -> bool:
    """Return whether one of the article's names is wanted."""
    if keep is None:
        return True
    names = (article.article_id, article.url, article.entity, article.title)
    return any(name in keep for name in names)


def article_of(row: dict[str, Any]) -> Article:
    """Return the article in one line of Wiki6M; a blank article has no text.

    Raises:
        DataError: no id; no text field (as in the published title-only file); or a value that
            should be text but is not.
    """
    if "wikipedia_content" not in row:
        raise DataError("no 'wikipedia_content'; is this the file with titles only?")
    entity = text(row, "wikidata_id")
    if entity is None:
        raise DataError("no 'wikidata_id'")
    return Article(
        entity,
        text(row, "wikipedia_title") or "",
        [(None, text(row, "wikipedia_content") or "")],
        url=text(row, "wikipedia_url"),
        entity=entity,
        sectioned=False,
    )


def read_pages(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield location, URL and value of each article of an Encyclopedic-VQA .json, .json.gz or .zip.

    Raises:
        DataError: missing, unreadable or truncated.
        MissingExtraError: ijson is not installed.
    """
    number = 0
    for number, (url, page) in enumerate(_stream(path, "kvitems", ""), 1):
        yield f"{path}, article {number} ({url})", url, page
    if not number:
        raise DataError(f"{path}: an object of articles by URL is expected")


def page_article(url: str, page: Any) -> Article:
    """Return the article of a value from `read_pages`.

    Raises:
        DataError: it has a different layout.
    """
    if page is None:
        return Article(url, "", [], url=url)  # known, but without text
    if not isinstance(page, dict):
        raise DataError("an object is expected")
    titles, texts = page.get("section_titles", 0), page.get("section_texts", 0)
    if texts is None:  # an article without text
        titles = texts = []
    if not isinstance(texts, list) or not isinstance(titles, list) or len(texts) != len(titles):
        raise DataError("'section_titles' and 'section_texts' of equal length expected")
    title = text(page, "title") or ""
    sections = []
    for heading, content in zip(titles, texts, strict=True):
        name = text_of(heading, "section_titles")
        # The first section has the article's title.
        name = None if name == title else name
        sections.append((name, text_of(content, "section_texts") or ""))
    return Article(url, title, sections, url=url)


def passages_of(article: Article, words: int | None) -> Iterator[Passage]:
    """Yield the article's sections as passages, without blank ones.

    A section's passage has the id ARTICLE#NUMBER, counting sections from 0 as the published
    evidence_section_id does; further parts of a split section are ARTICLE#NUMBER.1, .2, ...
    """
    for number, (heading, content) in enumerate(article.sections):
        limit = words or (None if article.sectioned else WIKI_WORDS)
        for part, piece in enumerate(cut(content, limit)):
            place = [number, part] if article.sectioned and part else [number + part]
            yield Passage(
                passage_id=f"{article.article_id}#{'.'.join(map(str, place))}",
                text=piece,
                title=article.title or None,
                entity=article.entity,
                url=article.url,
                section=heading or None,
                article=article.article_id,
            )


def cut(text: str, words: int | None) -> Iterator[str]:
    """Yield pieces of at most `words` words: whole paragraphs, else whole sentences, else words.

    Nothing but whitespace is lost; blank text yields nothing.
    """
    text = text.strip()
    if words is None or len(text.split()) <= words:
        if text:
            yield text
        return
    piece: list[str] = []
    count = 0
    for glue, unit in _units(text, words):
        length = len(unit.split())
        if piece and count + length > words:
            yield "".join(piece)
            piece, count = [], 0
        piece += [glue, unit] if piece else [unit]
        count += length
    if piece:
        yield "".join(piece)


def _units(text: str, words: int) -> Iterator[tuple[str, str]]:
    """Yield the units that are not cut further, each with the separator before it."""
    for paragraph in filter(None, (line.strip() for line in lines_of(text))):
        glue = "\n"
        if len(paragraph.split()) <= words:
            yield glue, paragraph
            continue
        for sentence in _SENTENCE_END.split(paragraph):
            tokens = sentence.split()
            for start in range(0, len(tokens), words):
                yield glue, " ".join(tokens[start : start + words])
                glue = " "


def is_static(path: Path) -> bool:
    """Return whether a JSON file is a static retrieval file of RA-VQA, not a knowledge base."""
    for _, event, value in _stream(path, "parse"):
        if event == "map_key":
            return bool(value == _STATIC)
        if event != "start_map":
            break
    return False


def static_items(path: Path) -> Iterator[Any]:
    """Yield the questions of a static retrieval file of RA-VQA, one at a time.

    Raises:
        DataError: missing, unreadable or truncated.
        MissingExtraError: ijson is not installed.
    """
    return _stream(path, "items", f"{_STATIC}.item")


def static_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the entries of all rankings of a static retrieval file of RA-VQA, each with its place.

    Raises:
        DataError: as `static_items`.
    """
    for number, item in enumerate(static_items(path), 1):
        entries = item.get(_RANKING) if isinstance(item, dict) else None
        for entry in entries if isinstance(entries, list) else [entries]:
            yield f"{path}, question {number}", entry


def static_passage(entry: Any, seen: set[str]) -> Passage | None:
    """Return the passage of an entry; FLMR's marks are cut off.

    Args:
        seen: ids of passages that were returned before, for which it is None.

    Raises:
        DataError: the entry is not in the published form, or has no passage id and content.
    """
    if not isinstance(entry, dict) or "passage_id" not in entry:
        raise DataError(f"{_RANKING!r} with 'passage_id' is expected")
    passage_id, content = identity(entry, "passage_id"), entry.get("content")
    if str(passage_id) in seen:
        return None
    if passage_id is None or not isinstance(content, str):
        raise DataError(f"passage {passage_id!r} has no id or no 'content'")
    seen.add(str(passage_id))
    return Passage(str(passage_id), content.removeprefix("<BOK>").removesuffix("<EOK>").strip())


def top_passages(item: Any, where: str) -> Iterable[dict[str, Any]]:
    """Return the ranking of one question of a static retrieval file.

    Raises:
        DataError: it is not in the published format.
    """
    entries = item.get(_RANKING) if isinstance(item, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and "passage_id" in e for e in entries
    ):
        raise DataError(f"{where}: {_RANKING!r} with 'passage_id' is expected")
    return entries


def _stream(path: Path, function: str, *arguments: str) -> Iterator[Any]:
    ijson: Any = import_extra("ijson", "datasets", why=f"reading {path.name} as a stream")
    with _open_json(path) as file:
        try:
            # use_float: decimals are slow, and nothing here needs them.
            shallow = Shallow(file, str(path))
            yield from getattr(ijson, function)(shallow, *arguments, use_float=True)
        except ijson.JSONError as e:
            raise DataError(f"{path}: not JSON ({first_line(e)}); is it cut off?") from None


@contextmanager
def _open_json(path: Path) -> Iterator[IO[bytes]]:
    check_file(path)
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                yield file  # type: ignore[misc]
        elif path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [n for n in archive.namelist() if n.lower().endswith(".json")]
                if len(names) != 1:
                    raise DataError(f"{path}: it must contain one .json file, not {len(names)}")
                with archive.open(names[0]) as file:
                    yield io.BufferedReader(file)  # type: ignore[type-var]
        else:
            with path.open("rb") as file:
                if file.read(3) != b"\xef\xbb\xbf":  # a byte order mark
                    file.seek(0)
                yield file
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
