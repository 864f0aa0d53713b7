"""From a generation to one of a question's choices, by stated rules.

    equal    the generation, its first line or the short answer equals one choice: as it is, without
             regard to letter case, or after the clean-up of VQA accuracy
    named    as `equal`; or the short answer is a choice's letter ("B", "(b)", "b. rain"), which
             stands for its place; or it contains exactly one of the choices, as whole words
    free     as generated: nothing is mapped

A generation that gives no choice, or several, is never turned into the nearest one: it stays as it
is and is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from ravqa.answering.merging import Merge, merge_key

ChoiceRule = Literal["named", "equal", "free"]

_WORD = re.compile(r"\w+")
_LETTER = re.compile(
    r"\(?([A-Za-z])(?:\)|[.:]\)?)?\Z|\(?([A-Za-z])[).:]\s+(?P<text>\S.*)", re.DOTALL
)


def choice_of(raw: str, short: str, choices: Sequence[str], rule: ChoiceRule) -> str | None:
    """Return the choice that a generation gives; None if it gives none, or more than one.

    Args:
        raw: the generation.
        short: the short answer extracted from it.
        choices: the question's choices.
        rule: what counts as giving a choice.
    """
    if rule == "free" or not choices:
        return None
    texts = (raw.strip(), raw.strip().partition("\n")[0], short)
    if found := _equal(texts, choices, ("exact", "lower")):
        return _only(found)
    letter = _LETTER.match(short.strip())
    if rule == "named" and letter is not None:
        return _lettered(letter, choices)
    if found := _equal(texts, choices, ("vqa",)):
        return _only(found)
    return _contained(short, choices) if rule == "named" else None


def _equal(texts: Sequence[str], choices: Sequence[str], merges: Sequence[Merge]) -> set[str]:
    """Return the choices that equal the first text that equals any."""
    for text in texts:
        for merge in merges:
            key = merge_key(text, merge)
            found = {choice for choice in choices if merge_key(choice, merge) == key}
            if found and key:
                return found
    return set()


def _only(found: set[str]) -> str | None:
    return found.pop() if len(found) == 1 else None


def _lettered(letter: re.Match[str], choices: Sequence[str]) -> str | None:
    """Return the choice at a letter's place, unless the text after the letter is another one."""
    place = ord((letter[1] or letter[2]).lower()) - ord("a")
    text = letter["text"]
    said = choice_of(text, text, choices, "named") if text else None
    return choices[place] if place < len(choices) and said in (None, choices[place]) else None


def _contained(text: str, choices: Sequence[str]) -> str | None:
    """Return the only choice that stands in a text as whole words.

    A choice inside of a longer one that was found ("dog" in "hot dog") does not count there.
    """
    left = f" {_words(text)} "
    found: set[str] = set()
    for choice in sorted(choices, key=lambda choice: -len(_words(choice))):
        words = _words(choice)
        if words and f" {words} " in left:
            found.add(choice)
            left = left.replace(f" {words} ", " | ")
    return _only(found)


def _words(text: str) -> str:
    """Return the words of a text after the clean-up of VQA accuracy, joined by spaces."""
    return " ".join(_WORD.findall(merge_key(text, "vqa")))
