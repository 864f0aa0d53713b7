"""From a raw generation to a short answer, by stated rules."""

from __future__ import annotations

import re

from ravqa.config import Strict

_LEAD = re.compile(r"^(?:(?:short )?answer\s*:|the answer is\b:?)\s*", re.IGNORECASE)


class Extraction(Strict):
    """Rules, applied in this order.

    Attributes:
        first_line: keep the first line that is not blank.
        strip_lead: drop "Answer:" and "The answer is" at the beginning.
        strip_end: drop spaces, quotes and ".,;:!" at both ends.
        lower: lower case. OK-VQA's answers are lower-case, and the official code compares as
            written where all ten annotators agree.
    """

    first_line: bool = True
    strip_lead: bool = True
    strip_end: bool = True
    lower: bool = True


def short_answer(raw: str, rules: Extraction) -> str:
    """The short answer in a generation; may be empty.

    >>> short_answer(" The answer is Paris.\\nQuestion: ...", Extraction())
    'paris'
    """
    text = raw.strip()
    if rules.first_line:
        text = text.split("\n", 1)[0].strip()
    if rules.strip_lead:
        text = _LEAD.sub("", text)
    if rules.strip_end:
        text = text.strip(" \t\n\"'`\u2018\u2019\u201c\u201d.,;:!")
    return text.lower() if rules.lower else text
