"""A limit on the nesting of JSON that is read as a stream.

ijson keeps the path of each value as a text: at a depth of 100,000 it reads for over a minute.
"""

from __future__ import annotations

import itertools
from typing import IO

from ravqa.core.errors import DataError

DEEPEST = 500
"""Most objects and lists within each other; published files have less than ten."""

_OTHERS = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class Shallow:
    """A binary file of JSON whose reading fails as soon as it is nested too deeply."""

    def __init__(self, file: IO[bytes], name: str):
        """Wrap an open file.

        Args:
            name: of the file, for messages.
        """
        self._file = file
        self._name = name
        self._depth = 0
        self._quoted = 0  # 1 within a text
        self._escape = b""  # a backslash at the end of the last part

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; see `io.RawIOBase.read`.

        Raises:
            DataError: objects and lists are more than `DEEPEST` deep.
        """
        data = self._file.read(size)
        whole = self._escape + data
        whole = whole.replace(rb"\\", b"").replace(rb"\"", b"")  # escaped: they end no text
        self._escape = b"\\" if whole.endswith(b"\\") else b""
        parts = whole.translate(None, _OTHERS).split(b'"')
        outside = b"".join(parts[self._quoted :: 2])
        self._quoted ^= ~len(parts) & 1
        opened = outside.count(b"[") + outside.count(b"{")
        if self._depth + opened > DEEPEST:
            depths = itertools.accumulate(map(_STEPS.__getitem__, outside), initial=self._depth)
            if max(depths) > DEEPEST:
                raise DataError(
                    f"{self._name}: objects and lists are nested more than {DEEPEST} deep"
                )
        self._depth += 2 * opened - len(outside)
        return data
