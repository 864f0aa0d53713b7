"""Properties of texts: whether they show anything, and how to show them safely."""

from __future__ import annotations

import re
import unicodedata

# Control and format characters (zero-width ones among them), separators, marks without a letter.
_INVISIBLE = frozenset({"Cc", "Cf", "Mn", "Zl", "Zp", "Zs"})
# Hangul fillers and the blank Braille pattern: letters and symbols that show nothing.
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"


# Control characters other than tab and line feed, marks that reorder text, halves of characters.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Return a text that may be shown: what a terminal would obey is written as an escape.

    Whatever comes from data, models or servers passes through here before it is shown. Inside JSON
    the escapes are valid, with the same meaning.

    >>> print(printable("a\x1b[31m\u202eb"))
    a\u001b[31m\u202eb
    """
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def encodable(text: str) -> str:
    """Return text that UTF-8 can encode: lone surrogates, which JSON allows, become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def is_wordless(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or white space and invisible characters alone.

    >>> is_wordless(" \\u200b\\n"), is_wordless("...")
    (True, False)
    """
    return all(unicodedata.category(c) in _INVISIBLE or c in _FILLERS for c in text)


def readable_size(count: int | None) -> str:
    """Return a number of bytes for people.

    >>> readable_size(5), readable_size(1_500), readable_size(123_400_000)
    ('5 B', '1.5 KB', '123 MB')
    """
    size = float(count or 0)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def number_of(count: int, one: str, several: str = "") -> str:
    """Return a number with what is counted.

    Args:
        count: the number.
        one: what is counted, for one.
        several: the same for other numbers; blank for `one` and an s.

    >>> number_of(1, "question"), number_of(1_200, "question"), number_of(2, "is", "are")
    ('1 question', '1,200 questions', '2 are')
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def with_instruction(instruction: str, question: str) -> str:
    """Return the instruction, ended by a ":", followed by the question."""
    instruction = instruction.strip()
    if not instruction:
        return question
    return f"{instruction if instruction.endswith(':') else instruction + ':'} {question}"
