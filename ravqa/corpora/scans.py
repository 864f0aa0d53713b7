"""The text of scanned pages: pages of PDF files, rendered and read by OCR."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from ravqa.core.cache import Memo
from ravqa.core.errors import DataError, PromptError
from ravqa.core.settings import fingerprint
from ravqa.corpora.pdf import render_pages
from ravqa.images.ocr import OCR


class ScanReader:
    """Reads scanned pages; what it reads of one is kept on disk by the pixels of the page."""

    def __init__(self, dpi: int):
        """Take the resolution at which pages are rendered, in dots per inch."""
        self._dpi = dpi
        self._memo = Memo[str]("scans", out=str, back=str)

    @cached_property
    def _ocr(self) -> OCR:
        return OCR("reading scanned pages")

    def texts(self, path: Path, pages: Sequence[int]) -> dict[int, str]:
        """Return the text of each page by its number (from 1), line by line; "" if none is found.

        Raises:
            DataError: the file or a page cannot be rendered or read.
            MissingExtraError: pypdfium2, rapidocr or onnxruntime is not installed.
        """
        return dict(self._read(path, pages))

    def _read(self, path: Path, pages: Sequence[int]) -> Iterator[tuple[int, str]]:
        for number, picture in render_pages(path, pages, dpi=self._dpi):

            def read(
                rows: Iterable[int], number: int = number, picture: bytes = picture
            ) -> Iterator[tuple[int, str]]:
                try:
                    lines = self._ocr.lines(picture)
                except PromptError as e:
                    raise DataError(f"page {number}: {e}") from None
                yield 0, "\n".join(line.text for line in lines)

            [text] = self._memo.get([fingerprint("scan/1", self._ocr.weights, picture)], read)
            yield number, text
