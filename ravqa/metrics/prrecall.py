"""Pseudo-relevance recall (PRRecall@K): is an answer string in one of the first K passages?

    PRRecall@K = mean over questions of max_{i <= K} [ some answer a is in text_i ]

This is a success rate, not a fraction of relevant passages. The rule defines "is in":

- `flmr` (the default): the answer, stripped and lower-cased, is a substring of the lower-cased text
  (LinWeizheDragon/FLMR, examples/example_use_preflmr.py);
- `ravqa`: the same without stripping (RA-VQA, src/metrics/metrics_processors.py,
  compute_DPR_scores): an answer with a space at its end misses "party." and hits "party on";
- `word` (ours): as `flmr`, and no letter, digit or underscore stands directly before or after, so
  that "art" is not in "party"; any white space in the answer matches any in the text;
- `nfkc` (ours): as `flmr`, with answers and texts in Unicode's form NFKC, so that "first" is in a
  text whose "fi" is one character (a ligature, as in PDF files).

Blank answers are dropped under every rule, as RA-VQA does; they would match every passage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args
from unicodedata import category, normalize

from ravqa.metrics.ranking import DEFAULT_KS, checked

Rule = Literal["ravqa", "flmr", "word", "nfkc"]
RULES: tuple[Rule, ...] = get_args(Rule)
DEFAULT_RULE: Rule = "flmr"
_LONG = 1000  # characters of an answer


def answer_ranks(
    passages: Sequence[str], answers: Sequence[str], rule: Rule = DEFAULT_RULE
) -> list[int]:
    """Return the ranks (from 1) of the passages that contain an answer.

    Args:
        passages: the searched texts, best first.
        answers: accepted strings.

    Raises:
        ValueError: the rule is unknown.
    """
    wanted = _wanted(answers, rule)
    if rule == "nfkc":
        passages = [normalize("NFKC", passage) for passage in passages]
    lowered = (passage.lower() for passage in passages)
    if rule == "word":
        patterns = [_whole_words(answer) for answer in wanted]
        return [i for i, text in enumerate(lowered, 1) if any(p.search(text) for p in patterns)]
    return [i for i, text in enumerate(lowered, 1) if any(answer in text for answer in wanted)]


def answer_spans(
    passage: str, answers: Sequence[str], rule: Rule = DEFAULT_RULE
) -> list[tuple[int, int]]:
    """Return start and end of each answer in a passage, in order, overlaps joined.

    There is at least one if and only if `answer_ranks` counts the passage.

    Raises:
        ValueError: the rule is unknown.
    """
    text, source = _lowered(passage, nfkc=rule == "nfkc")
    found = sorted(
        (source[begin][0], source[end - 1][1]) if source else (begin, end)
        for answer in _wanted(answers, rule)
        for place in (_whole_words if rule == "word" else _anywhere)(answer).finditer(text)
        for begin, end in [place.span(place.lastindex or 0)]
    )
    joined: list[tuple[int, int]] = []
    for begin, end in found:
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _lowered(text: str, *, nfkc: bool) -> tuple[str, list[tuple[int, int]]]:
    """Return a text in lower case, and where each of its letters is in the text as written.

    The places are left out if no letter is elsewhere: a few are longer in lower case, or in NFKC.
    """
    lowered = text.lower()
    if (not nfkc and len(lowered) == len(text)) or text.isascii():
        return lowered, []
    pieces = [(c, i, i + 1) for i, c in enumerate(text)]
    if nfkc:
        pieces = [(normalize("NFKC", m[0]), *m.span()) for m in _clusters().finditer(text)]
        whole = normalize("NFKC", text)
        if "".join(piece for piece, *_ in pieces) != whole:
            pieces = [(whole, 0, len(text))]
        lowered = whole.lower()
    return lowered, [(a, b) for piece, a, b in pieces for letter in piece for _ in letter.lower()]


def _wanted(answers: Sequence[str], rule: Rule) -> set[str]:
    """Return the answers in the form that a rule searches for."""
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}: {', '.join(RULES)}")
    given = (normalize("NFKC", a) if rule == "nfkc" else a for a in answers)
    wanted = {answer.lower() for answer in given if answer.strip()}
    return wanted if rule == "ravqa" else {answer.strip() for answer in wanted}


def first_hit(answers: Sequence[str], texts: Sequence[str]) -> int | None:
    """Return the rank (from 1) of the first passage with an answer (default rule), or None."""
    return next(iter(answer_ranks(texts, answers)), None)


def pseudo_recall_at_k(
    passages: Sequence[str],
    answers: Sequence[str],
    ks: Sequence[int] = DEFAULT_KS,
    rule: Rule = DEFAULT_RULE,
) -> dict[int, float]:
    """Return one question's PRRecall: 1.0 for each K with an answer in the first K, else 0.0.

    Args:
        passages: the searched texts, best first.
        answers: accepted strings.
        rule: ravqa, flmr, word or nfkc.

    Raises:
        ValueError: the rule is unknown, or a K is below 1.
    """
    return recall_from_ranks(answer_ranks(passages, answers, rule), ks)


def pseudo_precision_at_k(
    passages: Sequence[str],
    answers: Sequence[str],
    ks: Sequence[int] = DEFAULT_KS,
    rule: Rule = DEFAULT_RULE,
) -> dict[int, float]:
    """Return the share of the first K passages that contain an answer; missing ones are misses.

    Raises:
        ValueError: as `pseudo_recall_at_k`.
    """
    return precision_from_ranks(answer_ranks(passages, answers, rule), ks)


def recall_from_ranks(ranks: Sequence[int], ks: Sequence[int]) -> dict[int, float]:
    """Return `pseudo_recall_at_k` from the ranks of the passages that contain an answer."""
    return {k: float(any(rank <= k for rank in ranks)) for k in checked(ks)}


def precision_from_ranks(ranks: Sequence[int], ks: Sequence[int]) -> dict[int, float]:
    """Return `pseudo_precision_at_k` from the ranks of passages that contain an answer."""
    return {k: sum(rank <= k for rank in ranks) / k for k in checked(ks)}


@lru_cache(maxsize=1)
def _clusters() -> re.Pattern[str]:
    """Return the pattern of a letter and of what may become one letter with it.

    These are marks, Korean vowels and final consonants, and the halfwidth forms of both.
    """
    marks = "".join(chr(c) for c in range(0x20000) if category(chr(c))[0] == "M")
    return re.compile(rf".[{marks}\u1160-\u11ff\uff9e\uff9f\uffa0-\uffdc]*", re.DOTALL)


@lru_cache(maxsize=4096)
def _anywhere(answer: str) -> re.Pattern[str]:
    # The lookahead also finds overlapping matches; of a long answer, these would take too long.
    overlapping = len(answer) <= _LONG
    return re.compile(rf"(?=({re.escape(answer)}))" if overlapping else f"({re.escape(answer)})")


@lru_cache(maxsize=4096)
def _whole_words(answer: str) -> re.Pattern[str]:
    words = r"\s+".join(re.escape(word) for word in answer.split())
    return re.compile(rf"(?<!\w){words}(?!\w)")
