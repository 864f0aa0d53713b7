"""An extension of griffe: entries of docstrings that describe several names at once.

Docstrings here may say "first, second: two runs." The reference shows this text for each name.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SHARED = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:,\s+\w+)+):\s+(?P<text>\S.*(?:\n(?P=indent) +\S.*)*)",
    re.MULTILINE,
)


def one_each(docstring: str) -> str:
    """Return a docstring with an entry for each name."""

    def split(entry: re.Match[str]) -> str:
        names = re.split(r",\s+", entry["names"])
        return "\n".join(f"{entry['indent']}{name}: {entry['text']}" for name in names)

    return _SHARED.sub(split, docstring)


class SharedEntries(griffe.Extension):
    """Applies `one_each` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change an object's docstring, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = one_each(obj.docstring.value)
