"""Where passages come from: files, folders of pages and pictures, and splits of the hub.

Files are JSON lines, CSV, TSV (each also gzipped) or Parquet, by suffix. The column names of the
published corpora are recognized:

    passage_id | id | _id | kid                      unique
    text | passage_content | content | contents      not blank
    title, section, article, entity, url             optional; other columns go to `extra`
    image (images, img, image_path, ...)             a path below the file's folder, or the image
                                                     itself (see `ravqa.corpora.row_images`)

Values follow the rules of `ravqa.corpora.values`: anything but text and plain numbers is rejected.
Folders of pages and pictures (`ravqa.corpora.pages`) and single pages are sources too. Knowledge
bases of whole articles (`ravqa.corpora.kb`) are cut into passages as they are read, and
RA-VQA's static retrieval files yield the passages that they hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from ravqa.core.errors import DataError, UserError
from ravqa.core.files import check_file, written_beside
from ravqa.core.locations import file_digest
from ravqa.core.records import Passage
from ravqa.core.settings import fingerprint
from ravqa.corpora import hub, kb
from ravqa.corpora.pages import READ, Pages, is_collection, is_pages
from ravqa.corpora.remarks import Remarks
from ravqa.corpora.rows import row_passage, whole
from ravqa.corpora.tables import JSON_LINES, PARQUET, TABLES, read_rows, suffix_of
from ravqa.images.folder import ImageFolder

PASSAGE_BYTES = 1000
"""Rough size of a passage, in bytes, in a table of unknown size."""

_COLUMNS = ("passage_id", "title", "section", "text", "article", "entity", "url")
_UNPACKED = 4  # rough expansion factor of compressed files


class Source(Protocol):
    """A source of passages."""

    @property
    def size(self) -> int:
        """The approximate size of the passages in bytes."""
        ...

    def key(self) -> str:
        """Return a key that changes with everything that the passages depend on."""
        ...

    def passages(self) -> Iterator[Passage]:
        """Yield the passages, one at a time."""
        ...


def find_sources(
    paths: Iterable[Path],
    sections: kb.Sections,
    remarks: Remarks | None = None,
    *,
    uncaptioned: bool = False,
    numbered: bool = False,
    prefixes: Mapping[Path, str] = MappingProxyType({}),
) -> list[Source]:
    """Return the sources of a corpus (see `ravqa.corpora.corpus.Corpus.read`)."""
    sources: list[Source] = []
    for path in paths:
        if hub.hub_name(path):
            sources.append(_Hub(path, remarks))
        elif is_pages(path):
            if is_collection(path):
                raise DataError(f"{path} is a collection: it must be the only corpus")
            pages = Pages(
                path,
                words=sections.words,
                form=sections.form,
                page_form=sections.page_form,
                remarks=remarks,
                uncaptioned=uncaptioned,
            )
            prefix = prefixes.get(path)
            sources.append(_Prefixed(pages, prefix) if prefix else pages)
        else:
            sources.append(_File(path, sections, remarks, numbered=numbered))
    return sources


def is_folder(path: Path) -> bool:
    """Return whether a source is a folder of pages and pictures."""
    return not hub.hub_name(path) and is_pages(path) and path.is_dir()


class _Prefixed:
    """A folder whose passages and files have ids that begin with a prefix."""

    def __init__(self, pages: Pages, prefix: str):
        self._pages = pages
        self._prefix = prefix
        self.size = pages.size

    def key(self) -> str:
        return fingerprint(self._prefix, self._pages.key())

    def passages(self) -> Iterator[Passage]:
        for passage in self._pages.passages():
            new = replace(passage, passage_id=f"{self._prefix}{passage.passage_id}")
            if f"{passage.passage_id}#".startswith(f"{passage.article}#"):  # it is the file
                new = replace(new, article=f"{self._prefix}{passage.article}")
            yield new


class _File:
    """One file of a corpus."""

    def __init__(
        self,
        path: Path,
        sections: kb.Sections,
        remarks: Remarks | None = None,
        *,
        numbered: bool = False,
    ):
        self._path = path
        self._numbered = numbered
        self._sections = sections
        self._remarks = remarks
        try:
            there = path.exists()
        except OSError as e:
            raise DataError(f"{path} cannot be read: {e.strerror}") from None
        if not there:
            raise DataError(f"no such file: {path}")
        check_file(path)
        packed = path.suffix.lower() in {".gz", ".zip", PARQUET}
        self.size = path.stat().st_size * (_UNPACKED if packed else 1)

    def key(self) -> str:
        keep = self._sections.keep
        return fingerprint(
            file_digest(self._path),
            self._path.name,  # its suffix decides how it is read
            self._sections.words,
            *astuple(self._sections.form),
            *(["numbered"] if self._numbered else []),
            file_digest(keep) if keep else None,
        )

    def passages(self) -> Iterator[Passage]:
        found = read_passages(self._path, self._sections, self._remarks, numbered=self._numbered)
        return found if self._remarks is None else whole(found, self._path, self._remarks)


class _Hub:
    """One split of a dataset on the hub."""

    def __init__(self, path: Path, remarks: Remarks | None = None):
        self._remarks = remarks
        name, *names = (hub.hub_name(path) or "").split(":")
        if not 1 <= len(names) <= 2:
            raise UserError(f"{path}: hf:OWNER/NAME:SPLIT or hf:OWNER/NAME:CONFIG:SPLIT expected")
        config = names[0] if len(names) == 2 else None
        data = Path(f"{hub.PREFIX}{name}")
        self._table = hub.Table(data, config, names[-1])
        self._images = hub.image_folder(data, None)
        self.size = self._table.rows * PASSAGE_BYTES

    def key(self) -> str:
        return self._table.key

    def passages(self) -> Iterator[Passage]:
        found = self._found()
        return found if self._remarks is None else whole(found, self._table.where, self._remarks)

    def _found(self) -> Iterator[Passage]:
        for where, row in self._table.read():
            with _may_be_left_out(where, self._remarks):
                yield row_passage(row, self._images)


def read_passages(
    path: Path,
    sections: kb.Sections,
    remarks: Remarks | None = None,
    *,
    numbered: bool = False,
) -> Iterator[Passage]:
    """Yield the passages of a file, one at a time.

    Args:
        remarks: records articles without text, and rows and articles that cannot be used.
        numbered: make ids of the numbers of rows if a table has no column of ids.

    Raises:
        DataError: see `Corpus.read`.
    """
    if is_pages(path):
        form, page_form = sections.form, sections.page_form
        yield from Pages(path, words=sections.words, form=form, page_form=page_form).passages()
        return
    suffix = suffix_of(path)
    keep = kb.read_names(sections.keep) if sections.keep else None

    def of_article(article: kb.Article) -> Iterator[Passage]:
        if not kb.is_kept(article, keep):
            return
        passages = list(kb.passages_of(article, sections.words))
        yield from passages
        if not passages and remarks is not None:
            remarks.blank.append(f"{path}, {article.article_id}")

    if suffix in {".json", ".zip"}:
        if kb.is_static(path):
            seen: set[str] = set()
            for where, entry in kb.static_entries(path):
                with _may_be_left_out(where, remarks):
                    if passage := kb.static_passage(entry, seen):
                        yield passage
            return
        for where, url, page in kb.read_pages(path):
            with _may_be_left_out(where, remarks):
                yield from of_article(kb.page_article(url, page))
    elif suffix in (*JSON_LINES, *TABLES, PARQUET):
        images = ImageFolder(path.parent)
        for number, (where, row) in enumerate(read_rows(path, form=sections.form), 1):
            with _may_be_left_out(where, remarks):
                if "wikipedia_title" in row:
                    yield from of_article(kb.article_of(row))
                else:
                    name = f"{path.name}#row={number}" if numbered else None
                    yield row_passage(row, images, name)
    else:
        kind = f"{suffix} is" if suffix else "files without a suffix are"
        raise DataError(
            f"{path}: {kind} not read: {READ}, knowledge bases (.json, .zip, .jsonl.gz) and "
            "folders of these are"
        )


@contextmanager
def _may_be_left_out(where: str, remarks: Remarks | None) -> Iterator[None]:
    """Report a record that cannot be used.

    Raises:
        DataError: there are no remarks to report it to; else as `Remarks.break_off`.
    """
    try:
        yield
    except DataError as e:
        if remarks is None:
            raise DataError(f"{where}: {e}") from None
        remarks.break_off(where, str(e))


def write_passages(
    paths: Sequence[Path], target: Path, sections: kb.Sections, *, overwrite: bool = False
) -> tuple[int, int]:
    """Cut knowledge bases (or other corpora) once into JSON lines for later runs.

    Returns:
        The number of passages written, and the number of their articles.

    Raises:
        UserError: `target` exists, or cannot be written.
        DataError: see `Corpus.read`; or no article is kept.
    """
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists: --overwrite replaces it")
    if suffix_of(target) != ".jsonl":
        raise UserError(f"{target}: the name must end in .jsonl")
    passages = articles = 0
    last: str | None = None
    try:
        with written_beside(target) as part, part.open("w", encoding="utf-8") as out:
            for passage in (p for path in paths for p in read_passages(path, sections)):
                values = {name: getattr(passage, name) for name in _COLUMNS}
                row = {**passage.extra, **{k: v for k, v in values.items() if v is not None}}
                out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                passages += 1
                articles += passage.article is None or passage.article != last
                last = passage.article
            if not passages:
                raise DataError(f"{', '.join(map(str, paths))}: none of the wanted articles")
    except OSError as e:
        raise UserError(f"{target} cannot be written: {e.strerror or e}") from None
    return passages, articles
