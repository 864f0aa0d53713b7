"""What is left out of a corpus, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from ravqa.core.errors import DataError

_LISTED = 5
_OCR = "--ocr of ravqa collection, or --corpus-option ocr=true of a run, reads scans"
_MOST_BROKEN = 20  # that are named before reading ends


@dataclass
class Remarks:
    """A record of what was left out of a corpus; with `on_error` "fail", unusable input raises.

    It raises when everything has been read, so that all of it is named at once.

    Attributes:
        broken: files, rows and articles that cannot be used, and why.
        blank: files and pages without text.
        scans: pages of PDF files without text that OCR was not to read.
        copies: files with the same bytes as another, which is named.
        links: links that lead out of the folder.
        collections: folders that are collections.
        absent: files that have a caption but do not exist.
        second: files with a caption of an image that has another in a metadata file.
        textless: tables without a column of text, each with its columns.
        others: number of files with suffixes that are not read.
    """

    on_error: Literal["fail", "skip"] = "fail"
    broken: list[str] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    scans: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    collections: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    textless: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def break_off(self, where: str, reason: str) -> None:
        """Record something that cannot be used.

        Raises:
            DataError: too much was recorded to go on, unless unusable input is skipped.
        """
        self.broken.append(f"{where}: {reason}")
        if self.is_full:
            self.check()

    @property
    def is_full(self) -> bool:
        """Whether so much cannot be used that nothing more is read, unless it is skipped."""
        return len(self.broken) >= _MOST_BROKEN

    def check(self) -> None:
        """Raise DataError if anything cannot be used, unless unusable input is skipped."""
        if self.on_error == "fail" and self.broken:
            it = "it" if len(self.broken) == 1 else "them"
            raise DataError(f"{'; '.join(self.broken)} (--on-error skip leaves {it} out)")

    @contextmanager
    def may_be_left_out(self, where: str) -> Iterator[None]:
        """Record what cannot be used, where reading it raises DataError.

        Raises:
            DataError: as `break_off`.
        """
        try:
            yield
        except DataError as e:
            self.break_off(where, str(e))

    def check_prune(self) -> None:
        """Raise DataError if not everything was read: the rest would be deleted."""
        if self.broken:
            raise DataError(
                f"{self.broken[0]}; pruning would delete its passages from the "
                "collection: fix it, or leave out --prune"
            )

    @property
    def without_text(self) -> str:
        """What has no text, for messages; blank if everything has."""
        hint = f" ({_OCR})" if self.scans else ""
        return f"{_some([*self.scans, *self.blank])}{hint}"

    def lines(self) -> list[str]:
        """Return one line for each kind of remark that occurred."""
        kinds = (
            ("cannot be read, left out", _some(self.broken)),
            ("without text", _some(self.blank)),
            (f"a page without text, perhaps a scan ({_OCR})", _some(self.scans)),
            ("a table without a column of text, left out", _some(self.textless)),
            ("a copy of another file, left out", _some(self.copies)),
            ("a link that leads out of the folder, left out", _some(self.links)),
            ("a collection, left out", _some(self.collections)),
            ("listed in a metadata file, but missing", _some(self.absent)),
            ("a caption besides one in a metadata file, left out", _some(self.second)),
            ("skipped, kind not supported", self.unsupported),
        )
        return [f"{what}: {which}" for what, which in kinds if which]

    @property
    def unsupported(self) -> str:
        """All kinds of files that are not read, with their numbers; blank if there are none."""
        return "; ".join(f"{number} {suffix}" for suffix, number in self.others.most_common())


def _some(found: list[str]) -> str:
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return "; ".join(found[:_LISTED]) + more
