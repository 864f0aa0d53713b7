"""In which encoding a text file is: by its byte order mark, else UTF-8, else by its letters."""

from __future__ import annotations

import codecs
import io
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import IO

from ravqa.core.errors import DataError, UserError

OLDER = ("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp932", "gb18030", "cp949", "big5")
"""The encodings that are recognized by their letters: Windows' for Europe and East Asia."""

HINT = "--encoding NAME decides (for the questions of a run: --dataset-option encoding=NAME)"

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as the next one does
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_SAMPLE = 2**16
_CHAOS = 0.4  # charset_normalizer's measure of unlikely letters; its default refuses short texts
_CHUNK = 2**20

_log = logging.getLogger(__name__)


def checked_encoding(name: str) -> str:
    """Return the name of an encoding as Python writes it; "utf-8-sig" for UTF-8.

    Raises:
        UserError: there is no such encoding of texts.
    """
    try:
        "a".encode(name)  # fails for codecs that are no encodings of texts
    except (LookupError, ValueError):
        raise UserError(f"no encoding {name!r}: utf-8, utf-16 and cp1252 are some") from None
    found = codecs.lookup(name).name
    return "utf-8-sig" if found == "utf-8" else found


def marked_encoding(content: bytes) -> str | None:
    """Return the encoding that a text's byte order mark stands for; None without one."""
    return next((name for mark, name in _MARKS if content.startswith(mark)), None)


def encoding_of(file: IO[bytes], where: str) -> str:
    """Return the encoding of a text file; what was not certain is logged.

    Args:
        file: open at its beginning; its position changes.
        where: the file, for messages.

    Raises:
        DataError: several encodings fit equally well, or none does.
    """
    if marked := marked_encoding(file.read(4)):
        return marked
    file.seek(0)
    if _is_utf8(iter(lambda: file.read(_CHUNK), b"")):
        return "utf-8-sig"
    file.seek(0)
    found = _guess(b"".join(_beyond_ascii(file)), where)
    _warn(where, found)
    return found


def bytes_encoding(content: bytes, where: str, said: str | None = None) -> str:
    """Return the encoding of a text: its mark's, else UTF-8 if it is, else `said`, else a guess.

    Raises:
        DataError: as `encoding_of`.
    """
    if marked := marked_encoding(content):
        return marked
    if said is not None and not _is_utf8([content]):
        with suppress(UserError):
            return checked_encoding(said)
    return encoding_of(io.BytesIO(content), where)


def _is_utf8(chunks: Iterable[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for chunk in chunks:
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _beyond_ascii(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines that tell encodings apart."""
    size = 0
    while size < _SAMPLE and (line := file.readline(_SAMPLE)):
        if not line.isascii():
            size += len(line)
            yield line


def _guess(sample: bytes, where: str) -> str:
    """Return the encoding of OLDER that fits the sample best.

    Western Europe's is preferred among those that fit equally well, as in HTML's standard.
    """
    from charset_normalizer import from_bytes

    fits = list(from_bytes(sample, cp_isolation=list(OLDER), threshold=_CHAOS))
    best = [m for m in fits if (m.chaos, m.coherence) == (fits[0].chaos, fits[0].coherence)]
    names = {name for match in best for name in match.could_be_from_charset}
    if OLDER[0] in names:
        return OLDER[0]
    if len(best) == 1:
        return best[0].encoding
    if not best:
        raise DataError(f"{where} is not in UTF-8, nor in an encoding that is recognized: {HINT}")
    which = " or ".join(match.encoding for match in best)
    raise DataError(f"{where} is not in UTF-8, and its encoding may be {which}: {HINT}")


@lru_cache(maxsize=256)  # a file may be read more than once
def _warn(where: str, found: str) -> None:
    _log.warning("%s is not in UTF-8 and is read as %s: %s", where, found, HINT)
