"""The text of PDF files, page by page (through pypdf)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError, import_extra
from ravqa.core.files import check_file


def pages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and text of each page; a page without text (a scan) yields "".

    Lines are joined into paragraphs, and words hyphenated at line ends are rejoined.

    Raises:
        DataError: the file is broken, or needs a password.
        MissingExtraError: pypdf is not installed.
    """
    library: Any = import_extra("pypdf", "pdf", why=f"reading {path.name}")
    errors: Any = import_extra("pypdf.errors", "pdf", why=f"reading {path.name}")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns about every untidy file
    number = 0
    check_file(path)
    try:
        with path.open("rb") as file:
            reader = library.PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                raise DataError("encrypted: it needs a password")
            for number, page in enumerate(reader.pages, 1):
                yield number, _clean(page.extract_text())
    except DataError:
        raise
    except errors.DependencyError:
        raise DataError("encrypted with AES: pip install cryptography to read it") from None
    except RecursionError:
        raise DataError("broken: its parts refer to each other in a circle") from None
    except Exception as e:  # pypdf raises errors of many types on broken bytes
        where = f" after page {number}" if number else ""
        reason = str(e).strip().partition("\n")[0] or type(e).__name__
        raise DataError(f"no PDF file that can be read{where} ({reason})") from None


def _clean(text: str) -> str:
    text = text.replace("\0", " ").encode("utf-8", "replace").decode()
    text = re.sub(r"(?<=[a-zà-ÿ])-\n(?=[a-zà-ÿ])", "", text)
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).strip()
