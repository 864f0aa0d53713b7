"""A corpus of passages: ids to passages, in the order of its files.

Files are JSON lines, CSV, TSV (each also gzipped) or Parquet, by suffix. The column names of the
published corpora are recognized:

    passage_id | id | _id | kid                      unique
    text | passage_content | content | contents      not blank
    title, section, article, entity, url             optional; other columns go to `extra`
    image (images, img, image_path, ...)             a path below the file's folder, or the image
                                                     itself (see `ravqa.corpora.row_images`)

Values follow the rules of `ravqa.corpora.values`: anything but text and plain numbers is rejected.
Folders of pages and pictures (`ravqa.corpora.pages`) and single pages are corpora too. Knowledge
bases of whole articles (`ravqa.corpora.kb`) are cut into passages as they are read, and
RA-VQA's static retrieval files yield the passages that they hold. Small corpora are in memory;
large ones are stored in the cache folder (`ravqa.corpora.disk`), keyed by the content of their
files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import file_digest
from ravqa.core.records import Passage
from ravqa.core.settings import fingerprint
from ravqa.corpora import hub, kb, row_images
from ravqa.corpora.pages import Pages, Remarks, is_collection, is_pages
from ravqa.corpora.tables import JSON_LINES, PARQUET, TABLES, Row, read_rows, suffix_of
from ravqa.corpora.values import id_of, is_blank, text_of
from ravqa.images.decode import ImageFolder, broken_images, image_digest, is_image_file

ID_COLUMNS = ("passage_id", "id", "_id", "kid")
TEXT_COLUMNS = ("text", "passage_content", "content", "contents")

_IMAGES = (*row_images.HELD, "image_path")
_COLUMNS = ("passage_id", "title", "section", "text", "article", "entity", "url")

Repeats = Literal["fail", "first"]

IN_MEMORY = 2**25
"""Files with a total of more bytes than this become a corpus on disk."""
PASSAGE_BYTES = 1000
"""Rough size of a passage, in bytes, in a table of unknown size."""
_CHECKED = 256  # passages whose images are checked together
_UNPACKED = 4  # rough expansion factor of compressed files


class Corpus(Mapping[str, Passage]):
    """A mapping of ids to passages, in order.

    Attributes:
        source: where they come from, for people to read.
        fingerprint: changes with every id, title, section, text and image, and with their order.
        repeated: passages that were left out because their id had been there before.
        left_out: what was left out because it cannot be used: each record's place, and why.
    """

    source: str
    fingerprint: str
    repeated: int
    left_out: Sequence[str] = ()

    def __init__(
        self, passages: Iterable[Passage], *, source: str = "memory", repeats: Repeats = "fail"
    ):
        """Store `passages` in memory.

        Args:
            repeats: whether an id that occurs twice is an error, or its first passage is kept.

        Raises:
            DataError: an id occurs twice, or there are no passages.
        """
        self.source = source
        self.repeated = 0
        self._by_id: dict[str, Passage] = {}
        digest = Digest()
        for passage in passages:
            if passage.passage_id in self._by_id:
                if repeats == "fail":
                    raise twice(source, passage.passage_id)
                self.repeated += 1
                continue
            self._by_id[passage.passage_id] = passage
            digest.add(passage)
        if not self._by_id:
            raise DataError(f"{source}: the corpus is empty")
        self.fingerprint = digest.value

    def __getitem__(self, passage_id: str) -> Passage:
        return self._by_id[passage_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def stream(self) -> Iterator[Passage]:
        """Yield every passage once, in the order that is fastest to read."""
        return iter(self.values())

    def index_for(self, encoder: str, kind: str) -> Any:
        """Return an existing index of exactly these passages, or None.

        Args:
            encoder: fingerprint of the encoder that made its vectors.
            kind: the index's registered name.
        """
        return None

    @classmethod
    def read(
        cls,
        *paths: Path | str,
        sections: kb.Sections | None = None,
        repeats: Repeats = "fail",
        remarks: Remarks | None = None,
        uncaptioned: bool = False,
    ) -> Corpus:
        """Read one corpus from one or more files.

        Args:
            paths: files, folders of pages and pictures, or splits of the hub's datasets:
                "hf:OWNER/NAME:SPLIT" or "hf:OWNER/NAME:CONFIG:SPLIT".
            sections: how articles of knowledge bases, and pages, are selected and cut.
            repeats: as for `Corpus`.
            remarks: records what was left out, and decides whether unusable pages, rows and
                articles may be left out; if given, images in tables are checked too.
            uncaptioned: include images without a caption, as passages without text.

        Raises:
            DataError: a missing file, an unknown suffix, a bad line (file and line are named).
            MissingExtraError: a file format needs a package that is not installed.
            UserError: the hub has no such dataset.
        """
        sections = sections or kb.Sections()
        sources: list[_Source] = []
        for path in map(Path, paths):
            if hub.hub_name(path):
                sources.append(_Hub(path, remarks))
            elif is_pages(path):
                if is_collection(path):
                    raise DataError(f"{path} is a collection: it must be the only corpus")
                sources.append(
                    Pages(path, words=sections.words, remarks=remarks, uncaptioned=uncaptioned)
                )
            else:
                sources.append(_File(path, sections, remarks))
        skips = remarks is not None and remarks.on_error == "skip"
        broken = remarks.broken if remarks is not None else []

        def passages() -> Iterator[Passage]:
            empty = True
            for passage in itertools.chain.from_iterable(s.passages() for s in sources):
                empty = False
                yield passage
            if empty and broken:
                raise DataError(f"no passage can be used: {broken[0]}")

        return cls.build(
            passages(),
            source=", ".join(str(p) for p in paths),
            size=sum(source.size for source in sources),
            key=lambda: fingerprint([*(["skip"] if skips else []), *(s.key() for s in sources)]),
            repeats=repeats,
            broken=broken,
        )

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        *,
        source: str,
        size: int,
        key: Callable[[], str],
        repeats: Repeats = "fail",
        broken: list[str] | None = None,
    ) -> Corpus:
        """Build a corpus in memory, or on disk if it is large.

        Args:
            size: approximate size of the passages in bytes.
            key: returns a key that changes with everything that `passages` depends on; called only
                if the corpus is stored on disk.
            broken: what `passages` leaves out because it cannot be used; a corpus that is already
                on disk adds what was left out when it was made.

        Raises:
            DataError: an id occurs twice, or there are no passages.
        """
        broken = [] if broken is None else broken
        if size <= IN_MEMORY:
            corpus = cls(passages, source=source, repeats=repeats)
        else:
            from ravqa.corpora.disk import DiskCorpus

            name = fingerprint("corpus/2", repeats, key())
            corpus = DiskCorpus(name, passages, source=source, repeats=repeats, broken=broken)
        corpus.left_out = tuple(broken)
        return corpus


class Selection(Corpus):
    """Some passages of a corpus, in the order of their ids."""

    repeated = 0

    def __init__(
        self, corpus: Corpus, ids: Sequence[str], others: Mapping[str, Passage] | None = None
    ):
        """Select passages of `corpus` by id; passages in `others` take precedence."""
        self.source = corpus.source
        self._corpus = corpus
        self._ids = dict.fromkeys(ids)
        self._others = others or {}

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """The same fingerprint as that of a corpus of only these passages."""
        digest = Digest()
        for passage in self.values():
            digest.add(passage)
        return digest.value

    def __getitem__(self, passage_id: str) -> Passage:
        if passage_id not in self._ids:
            raise KeyError(passage_id)
        return self._others.get(passage_id) or self._corpus[passage_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


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
        raise UserError(f"{target}: a name that ends in .jsonl is expected")
    part = target.with_name(f".{target.name}.part")
    passages = articles = 0
    last: str | None = None
    try:
        with part.open("w", encoding="utf-8") as out:
            for passage in (p for path in paths for p in read_passages(path, sections)):
                values = {name: getattr(passage, name) for name in _COLUMNS}
                row = {**passage.extra, **{k: v for k, v in values.items() if v is not None}}
                out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                passages += 1
                articles += passage.article is None or passage.article != last
                last = passage.article
        if not passages:
            raise DataError(f"{', '.join(map(str, paths))}: no article that is wanted")
        part.replace(target)
    except OSError as e:
        raise UserError(f"{target} cannot be written: {e.strerror or e}") from None
    finally:
        part.unlink(missing_ok=True)
    return passages, articles


class Digest:
    """An incremental fingerprint of passages."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, passage: Passage, image: str | None = None) -> None:
        """Add the next passage.

        Args:
            image: SHA-256 of its image's bytes, if already known.
        """
        self._sha.update(f"{passage.passage_id}\0{passage.content}\0".encode())
        if passage.image is not None:
            self._sha.update(f"{image or image_digest(passage.image)}\0".encode())

    @property
    def value(self) -> str:
        """The fingerprint: 128 bits, in hex."""
        return self._sha.hexdigest()[:32]


def twice(source: str, passage_id: str) -> DataError:
    """Return the error for an id that two passages share."""
    return DataError(f"{source}: passage id {passage_id!r} occurs twice")


class _Source(Protocol):
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


class _File:
    """One file of a corpus."""

    def __init__(self, path: Path, sections: kb.Sections, remarks: Remarks | None = None):
        self._path = path
        self._sections = sections
        self._remarks = remarks
        if not path.exists():
            raise DataError(f"no such file: {path}")
        packed = path.suffix.lower() in {".gz", ".zip", PARQUET}
        self.size = path.stat().st_size * (_UNPACKED if packed else 1)

    def key(self) -> str:
        keep = self._sections.keep
        return fingerprint(
            file_digest(self._path),
            self._path.name,  # its suffix decides how it is read
            self._sections.words,
            self._sections.quotes,
            file_digest(keep) if keep else None,
        )

    def passages(self) -> Iterator[Passage]:
        found = read_passages(self._path, self._sections, self._remarks)
        return found if self._remarks is None else self._whole(found, self._remarks)

    def _whole(self, passages: Iterable[Passage], remarks: Remarks) -> Iterator[Passage]:
        """Yield the passages except those whose image is broken."""
        left = iter(passages)
        while several := list(itertools.islice(left, _CHECKED)):
            broken = broken_images([p.image for p in several if p.image is not None])
            for passage in several:
                reason = broken.get(passage.image) if passage.image else None
                if reason is None:
                    yield passage
                else:
                    remarks.break_off(f"{self._path}, passage {passage.passage_id!r}", reason)


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
        for where, row in self._table.read():
            with _may_be_left_out(where, self._remarks):
                yield _row_passage(row, self._images)


def read_passages(
    path: Path, sections: kb.Sections, remarks: Remarks | None = None
) -> Iterator[Passage]:
    """Yield the passages of a file, one at a time.

    Args:
        remarks: records articles without text, and rows and articles that cannot be used.

    Raises:
        DataError: see `Corpus.read`.
    """
    if is_pages(path):
        yield from Pages(path, words=sections.words).passages()
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
            seen: set[int | str] = set()
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
        for where, row in read_rows(path, quotes=sections.quotes):
            with _may_be_left_out(where, remarks):
                if "wikipedia_title" in row:
                    yield from of_article(kb.article_of(row))
                else:
                    yield _row_passage(row, images)
    else:
        raise DataError(
            f"{path}: a corpus is a .jsonl, .csv or .tsv file (or .parquet, a knowledge base as "
            ".json, .zip or .jsonl.gz, or a folder of pages)"
        )


@contextmanager
def _may_be_left_out(where: str, remarks: Remarks | None) -> Iterator[None]:
    """Report a record that cannot be used.

    Raises:
        DataError: unless such records are skipped; the message names the place.
    """
    try:
        yield
    except DataError as e:
        if remarks is None:
            raise DataError(f"{where}: {e}") from None
        remarks.break_off(where, str(e))


def _row_passage(row: Row, images: ImageFolder) -> Passage:
    names, row = list(row), dict(row)

    def take(*columns: str) -> str | None:
        return next((t for c in columns if (t := text_of(row.pop(c, None), c)) is not None), None)

    def needed(what: str, value: int | str | None, columns: Sequence[str]) -> str:
        if value is None:
            raise DataError(
                f"no {what} (column {' or '.join(columns)}); the columns are {', '.join(names)}"
            )
        return str(value)

    ids = (id_of(row.pop(column, None), column) for column in ID_COLUMNS)
    passage_id = needed("passage id", next((i for i in ids if i is not None), None), ID_COLUMNS)
    text = needed("text", take(*TEXT_COLUMNS), TEXT_COLUMNS)
    image = row_images.image_of(row, images, _IMAGES)
    if image.missing:
        raise DataError(image.missing)
    if image.path is not None and not image.held:
        if not row_images.is_there(image.path):
            raise DataError(f"no image {image.name!r} below {images.root}")
        if not is_image_file(image.path):
            raise DataError(f"{image.path} is not an image")
    for column in (*_IMAGES, *row_images.held_columns(row)):
        row.pop(column, None)
    title, article = take("title"), take("article")
    if title and text.startswith(f"title: {title}"):
        # M2KR's texts begin with their title: it must not be prepended again.
        title, article = None, article or title
    return Passage(
        passage_id=passage_id,
        text=text,
        title=title,
        image=image.path,
        section=take("section"),
        article=article,
        entity=take("entity"),
        url=take("url"),
        # Bytes are vectors and the like.
        extra={k: v for k, v in row.items() if not isinstance(v, bytes) and not is_blank(v)},
    )
