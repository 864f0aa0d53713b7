"""Refusals: answers that say that there is no answer ("I don't know").

They are recognised by phrases, which `refusals.json` lists by language. Some make a refusal only as
the whole answer ("unknown"), the others wherever they stand in it ("cannot be determined"). Texts
are compared in lower case, without apostrophes, and with a space for other punctuation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import cast
from unicodedata import normalize

RULE = (
    "the answer is or contains a phrase listed in refusals.json, or is what the prompt asks for "
    "where there is no answer; a right answer never counts"
)
"""What counts as a refusal, in words, for results."""
RULE_WITH_JUDGE = (
    "the answer is or contains a phrase listed in refusals.json, or is what the prompt asks for "
    "where there is no answer, or the judge calls it not attempted; a right answer never counts"
)
"""The same where a judge with three labels was asked."""

# Their words are not divided by spaces, or (Korean) have endings.
_UNDIVIDED = frozenset({"zh", "ja", "ko"})
_OTHER = re.compile(r"[\W_]+")


def is_refusal(answer: str, own: Collection[str] = ()) -> bool:
    """Return whether an answer says that there is none.

    Args:
        answer: the short answer.
        own: whole answers that the prompt asks for where there is none.

    >>> is_refusal("I don\u2019t know."), is_refusal("unknown soldier")
    (True, False)
    """
    text = _plain(answer)
    if not text:
        return False
    if text in _whole() or text in map(_plain, own):
        return True
    return _within().search(text) is not None


def _plain(text: str) -> str:
    """Return a text in the form that is compared."""
    text = re.sub("['\u2019\u02bc`\u00b4]", "", normalize("NFKC", text).casefold())
    return _OTHER.sub(" ", text).strip()


@cache
def _phrases() -> dict[str, dict[str, list[str]]]:
    text = files("ravqa.metrics").joinpath("refusals.json").read_text(encoding="utf-8")
    return cast(dict[str, dict[str, list[str]]], json.loads(text))


@cache
def _whole() -> frozenset[str]:
    return frozenset(_plain(p) for found in _phrases()["whole"].values() for p in found)


@cache
def _within() -> re.Pattern[str]:
    parts = []
    for language, phrases in _phrases()["within"].items():
        for phrase in phrases:
            words = re.escape(_plain(phrase))
            parts.append(words if language in _UNDIVIDED else rf"(?<!\w){words}(?!\w)")
    return re.compile("|".join(parts))
