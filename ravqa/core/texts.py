"""What counts as text."""

from __future__ import annotations

import unicodedata

# Control and format characters (zero-width ones among them), separators, marks without a letter.
_INVISIBLE = frozenset({"Cc", "Cf", "Mn", "Zl", "Zp", "Zs"})
# Hangul fillers and the blank Braille pattern: letters and symbols that show nothing.
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"


def is_wordless(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or white space and invisible characters alone.

    >>> is_wordless(" \\u200b\\n"), is_wordless("...")
    (True, False)
    """
    return all(unicodedata.category(c) in _INVISIBLE or c in _FILLERS for c in text)
