"""A corpus of passages: ids to passages, in the order of its files.

What is read as a corpus is listed in `ravqa.corpora.sources`. Small corpora are in memory; large
ones are stored in the cache folder (`ravqa.corpora.disk`), keyed by the content of their files.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    ValuesView,
)
from functools import cached_property
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError, UserError
from ravqa.core.files import folder_written_beside
from ravqa.core.locations import cache_dir
from ravqa.core.records import Passage
from ravqa.core.settings import fingerprint
from ravqa.corpora import kb
from ravqa.corpora.disk import Digest, PassageFolder, Repeats, twice
from ravqa.corpora.origins import Origin, folder_prefixes
from ravqa.corpora.remarks import Remarks
from ravqa.corpora.sources import find_sources, is_folder

IN_MEMORY = 2**25
"""Files with a total of more bytes than this become a corpus on disk."""


class Corpus(Mapping[str, Passage]):
    """A mapping of ids to passages, in order.

    Attributes:
        source: where they come from, for people to read.
        fingerprint: changes with every id, title, section, text and image, and with their order.
        repeated: passages that were left out because their id had been there before.
        left_out: what was left out because it cannot be used: each record's place, and why.
        origins: the sources, in order, each with the number of its passages, which follow one
            another; empty if they are not known.
    """

    source: str
    fingerprint: str
    repeated: int
    left_out: Sequence[str] = ()
    origins: Sequence[tuple[Origin, int]] = ()

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

    @property
    def ids(self) -> Sequence[str]:
        """The ids in order, by their places; of a corpus on disk, none is kept in memory."""
        return list(self)

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
        numbered: bool = False,
        prefixes: Mapping[Path, str] | None = None,
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
            numbered: make ids of the numbers of rows where a table has no column of ids; tables in
                folders always get them.
            prefixes: what the ids of a folder's passages begin with; None for its name if there
                are several folders (`ravqa.corpora.origins`).

        Raises:
            DataError: a missing file, an unknown suffix, a bad line (file and line are named), a
                folder that is given twice.
            MissingExtraError: a file format needs a package that is not installed.
            UserError: the hub has no such dataset.
        """
        sections = sections or kb.Sections()
        places = [Path(path) for path in paths]
        folders = [place for place in places if is_folder(place)]
        if prefixes is None:
            several = folder_prefixes(folders) if len(folders) > 1 else [""] * len(folders)
            prefixes = dict(zip(folders, several, strict=True))
        sources = find_sources(
            places,
            sections,
            remarks,
            uncaptioned=uncaptioned,
            numbered=numbered,
            prefixes=prefixes,
        )
        skips = remarks is not None and remarks.on_error == "skip"
        counts = [0] * len(sources)

        def passages() -> Iterator[Passage]:
            faults = []  # of files that cannot be left out
            for i, source in enumerate(sources):
                try:
                    for passage in source.passages():
                        counts[i] += 1
                        yield passage
                except DataError as e:
                    if remarks is None or remarks.on_error == "skip" or remarks.is_full:
                        raise
                    faults.append(str(e))
            if remarks is not None and faults:
                raise DataError("; ".join([*remarks.broken, *faults]))

        corpus = cls.build(
            passages(),
            source=", ".join(str(p) for p in paths),
            size=sum(source.size for source in sources),
            key=lambda: fingerprint([*(["skip"] if skips else []), *(s.key() for s in sources)]),
            repeats=repeats,
            remarks=remarks,
            counts=counts,
        )
        if not corpus.repeated:
            origins = [
                Origin(str(place), prefixes.get(place, "") if place in folders else None)
                for place in places
            ]
            corpus.origins = tuple(zip(origins, counts, strict=True))
        return corpus

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        *,
        source: str,
        size: int,
        key: Callable[[], str],
        repeats: Repeats = "fail",
        remarks: Remarks | None = None,
        counts: list[int] | None = None,
    ) -> Corpus:
        """Build a corpus in memory, or on disk if it is large.

        Args:
            size: approximate size of the passages in bytes.
            key: returns a key that changes with everything that `passages` depends on; called only
                if the corpus is stored on disk.
            remarks: records what `passages` leaves out; a corpus that is already on disk adds what
                could not be used when it was made.
            counts: numbers that change while `passages` is read; those of a corpus that is already
                on disk become what they were when it was made.

        Raises:
            DataError: an id occurs twice, or there are no passages, or none that can be used; or
                something cannot be used (`Remarks.check`).
        """
        remarks = remarks or Remarks()
        broken = remarks.broken

        def some() -> Iterator[Passage]:
            empty = True
            for passage in passages:
                empty = False
                yield passage
            remarks.check()
            if empty and broken:
                raise DataError(f"no passage can be used: {broken[0]}")
            if empty and remarks.without_text:
                raise DataError(f"no text in {remarks.without_text}")

        if size <= IN_MEMORY:
            corpus = cls(some(), source=source, repeats=repeats)
        else:
            name = fingerprint("corpus/3", repeats, key())
            corpus = DiskCorpus(
                name, some(), source=source, repeats=repeats, broken=broken, counts=counts
            )
        remarks.check()  # a corpus on disk may be older than a folder that cannot be listed
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


class DiskCorpus(Corpus):
    """A corpus in the cache folder, with at most a few dozen bytes per passage in memory."""

    def __init__(
        self,
        key: str,
        passages: Iterable[Passage],
        *,
        source: str,
        repeats: Repeats = "fail",
        broken: list[str] | None = None,
        counts: list[int] | None = None,
    ):
        """Open the corpus `key` in the cache folder, or build it from `passages`.

        Args:
            key: changes with everything that `passages` depends on.
            broken: what `passages` leaves out because it cannot be used; what is read from the
                cache adds what was left out when it was made.
            counts: as for `Corpus.build`.

        Raises:
            DataError: as `Corpus`.
            UserError: the cache folder cannot be written.
        """
        self.source = source
        folder = cache_dir("corpora") / key
        if not PassageFolder.exists(folder):
            left_out = [] if broken is None else broken  # grows while the passages are read
            try:
                # The first of two builders wins.
                with folder_written_beside(folder, first_wins=True) as made:
                    PassageFolder.write(
                        made,
                        passages,
                        source=source,
                        repeats=repeats,
                        broken=left_out,
                        counts=[] if counts is None else counts,
                    )
            except OSError as e:
                raise UserError(
                    f"the cache folder {folder.parent} cannot be written: {e}"
                ) from None
            broken = None  # the folder holds them already
        self._folder = PassageFolder(folder)
        if broken is not None:
            broken += self._folder.broken
        if counts is not None:
            counts[:] = self._folder.counts
        self.fingerprint = self._folder.fingerprint
        self.repeated = self._folder.repeated

    def __getitem__(self, passage_id: str) -> Passage:
        passage = self._folder.get(passage_id)
        if passage is None:
            raise KeyError(passage_id)
        return passage

    def __iter__(self) -> Iterator[str]:
        return iter(self._folder.ids)

    @property
    def ids(self) -> Sequence[str]:
        """The ids in order, each read from disk when it is asked for."""
        return self._folder.ids

    def __len__(self) -> int:
        return len(self._folder)

    def values(self) -> ValuesView[Passage]:
        """Return a view of the passages in order, read sequentially."""
        return _Values(self)

    def items(self) -> ItemsView[str, Passage]:
        """Return a view of ids and passages in order, read sequentially."""
        return _Items(self)

    def stream(self) -> Iterator[Passage]:
        """Yield the passages in order."""
        return self._folder.stream()


class _Values(ValuesView[Passage]):
    _mapping: DiskCorpus

    def __iter__(self) -> Iterator[Passage]:
        return self._mapping.stream()


class _Items(ItemsView[str, Passage]):
    _mapping: DiskCorpus

    def __iter__(self) -> Iterator[tuple[str, Passage]]:
        return ((p.passage_id, p) for p in self._mapping.stream())
