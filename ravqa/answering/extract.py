"""Extraction of a short answer from a generation, by stated rules.

Official scores compare strings, so an answer within a sentence counts as wrong. The rules know the
phrases and marks that language models put around an answer. They do not know the references and
never choose between two answers. A rule that finds nothing changes nothing.
"""

from __future__ import annotations

import json
import re

from ravqa.core.marks import is_no_answer, split_thinking, without_tokens
from ravqa.core.settings import Strict


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NEXT_EXAMPLE = re.compile(
    r"\n\s*+(?:question|passage|knowledge|q|问题)\s*+[:\uff1a]", re.IGNORECASE
)

_KIND = r"(?:(?:final|short|correct|best|direct|likely)\s+)*"
_ENCLOSED = (
    re.compile(
        r"<(answer|final_answer|final|conclusion|response|output)>(?P<said>.*?)(?:</\1>|\Z)",
        re.DOTALL | re.IGNORECASE,
    ),
    re.compile(r"\A(?P<said>.*?)</(?:final_)?answer>", re.DOTALL | re.IGNORECASE),
    re.compile(r"<\|begin_of_box\|>(?P<said>.*?)(?:<\|end_of_box\|>|\Z)", re.DOTALL),
    re.compile(r"\\boxed\{(?P<said>(?:[^{}]|\{[^{}]*\})*)\}?"),
    re.compile(
        r"[\"'](?:(?:short[_ ]|final[_ ])?answer|response|prediction)[\"']\s*:\s*"
        r"(?P<said>\"(?:[^\"\\]|\\.)*\"?|\[[^\]]*\]?|'[^'\n]*'?|[^,}\n]+)",
        re.IGNORECASE,
    ),
    re.compile(r"\A\s*(?P<said>\[\s*\"[^\[\]{}]*\"\s*\])\s*\Z"),
)
_LEADING = (
    # "Answer:", "**Final answer**: ", "[ANSWER]", "### Answer" at the beginning of a line
    re.compile(
        rf"^[^\w\n]*(?:(?:so|thus|therefore|hence)\b,?\s*)?(?:(?:the|my)\s+)?{_KIND}answer"
        r"[*_\s]*(?:is\b|would be\b|[:\uff1a\]]|\s[-\u2013\u2014]\s|(?<=[*_])\s*$)"
        r"(?:[*_\]]*\s*[:\uff1a])?[*_\]]*"
        r"|^#+\s*(?:final\s+|short\s+)?answer\s*$"
        r"|^(?:final|short)\s+answer\s*$|\Aanswer\s*$"
        r"|(?<=\.)[ \t]+(?:final[ \t]+)?answer:"
        r"|\A\W*(?:assistant|response)[*_]*\s*(?::|\n)"
        r"|\Aa\s*:"
        r"|^[^\w\n]*(?:最终|正确|简短)?(?:答案|答)\s*[*_]*[:\uff1a][*_]*",
        re.MULTILINE | re.IGNORECASE,
    ),
    # "..., so the answer is"
    re.compile(
        rf"\b(?:the|my)\s+{_KIND}answer(?:\s+to\s+(?:the|this|your)\s+question)?\s+"
        r"(?:is|would be|must be|should be)\b\s*[:\uff1a]?"
        rf"|\b(?:the|here(?:['\u2019]s|\s+is)\s+(?:a|my|your))\s+{_KIND}answer\s*[:\uff1a]"
        r"|(?:最终|正确)?答案\s*(?:应该|应|就)?(?:是|为)\s*[:\uff1a]?",
        re.IGNORECASE,
    ),
)
_MOST_MARKS = 8  # nested ones
_LONGEST = 4000  # characters at each end of a longer text; some patterns take quadratic time
_BOLD = re.compile(r"\*\*(?=\S)([^*\n]+?)(?<![\s:\uff1a])\*\*")

_MARKDOWN = (
    (re.compile(r"^\s*+```.*$", re.MULTILINE), ""),
    (re.compile(r"^\s*+(?:#{1,6}|[-*•>])\s+", re.MULTILINE), ""),
    (re.compile(r"\A\s*1[.)]\s+(?=[^\n]*\n\s*2[.)])"), ""),
    (re.compile(r"\[([^\]\n]+)\]\([^)\s]*\)"), r"\1"),
    (re.compile(r"(\*\*|__|`)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])"), r"\1"),
)

# Phrases such as "Sure!", which say nothing; "Hello, Dolly!" and "OK, USA" may be answers.
_COURTESY = re.compile(
    r"\A(?:[\W_]*(?:sure(?:\s+thing)?|certainly|of\s+course|absolutely|definitely|okay|alright|gladly"
    r"|(?:great|good)\s+question|no\s+problem|happy\s+to\s+help|with\s+pleasure)"
    r"[*_`]*\s*[,.!:\u2013\u2014-]+(?:[*_`\"']*\s+|(?<=!)(?=\w))"
    r"|[\W_]*(?:当然(?:可以)?|好的)[*_]*[\uff01!\uff0c,。][*_]*\s*)+(?=\W*\w)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[^\W_]{2})[.!?](?=\s+[\"'“(]?[A-Z])|[。\uff01\uff1f](?=.)")
_ABBREVIATIONS = _set(
    "st mt dr mr mrs ms jr sr prof no nos vs ca approx fig ft lt gen col capt sgt rev co"
)
_YES_NO = re.compile(r"(yes|no)(?:\s*[,;:!]|\s+[\u2013\u2014-])\s", re.IGNORECASE)
_BECAUSE = re.compile(r"(?<=\S),?\s+because\b.*", re.IGNORECASE | re.DOTALL)
_IT_IS_ZH = re.compile(r"(?:这|它|图片?中的?[^\uff0c。]{0,8}?)(?:是|叫做?)")

_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_PRONOUNS = _set("it this that they these those he she")
_VERBS = _set("is are was were has have had can does did do")
_FUNCTION = _VERBS | _set(
    "a an the and in on at of to by from for with as be been its their image picture photo shown "
    "seen called named known located found likely probably mainly mostly usually typically "
    "commonly generally originally"
)
_ENDINGS = ("ing", "es", "ed", "s", "e")


class Extraction(Strict):
    """Rules, applied in this order (but "Sure!" is dropped before `marked`).

    The middle of a text of more than 8,000 characters is left out first.

    Attributes:
        reasoning: drop reasoning (such as `<think>...</think>`); if it was cut short, nothing is
            left.
        next_example: drop what follows the answer: a special token that a server left in (`</s>`,
            `<|im_end|>`; those before the answer are dropped too), or a line that begins another
            example ("Question:", "Passage:"), as plain language models write.
        marked: keep what the generation marks as its answer. These marks are tried in order, and
            the last one of a kind counts: `<answer>` (or `<conclusion>`, `<output>`, ...),
            `<|begin_of_box|>`, `\\boxed{}`, a JSON key "answer", "Answer:" at the beginning of a
            line or sentence, "Assistant:" at the beginning, "the answer is", the only bold words.
        markdown: drop emphasis, code marks, headings and bullets.
        first_line: keep the first line that is not blank.
        sentence: reduce a sentence to its answer. Drop phrases such as "Sure!" before it. Keep the
            first sentence, or "yes" or "no" at its beginning. Drop "because ...", and phrases such
            as "It is" or words that repeat the question at the beginning, if a verb is among them.
        strip_end: drop spaces, quotes and ".,;:!" at both ends.
        lower: lower case. OK-VQA's answers are lower-case, and the official code compares as
            written where all ten annotators agree.
    """

    reasoning: bool = True
    next_example: bool = True
    marked: bool = True
    markdown: bool = True
    first_line: bool = True
    sentence: bool = True
    strip_end: bool = True
    lower: bool = True


def short_answer(raw: str, rules: Extraction, question: str = "") -> str:
    """Return the short answer in a generation; may be empty.

    Args:
        raw: the generation.
        rules: the rules to apply.
        question: the question's text, whose words a sentence may repeat.

    >>> short_answer("It grows in *Asia*.\\n\\n**Answer:** The answer is Japan.", Extraction())
    'japan'
    >>> short_answer("The koala mainly eats leaves.", Extraction(), "What does the koala eat?")
    'leaves'
    """
    text = _said(raw, rules)
    if len(text) > 2 * _LONGEST:
        text = f"{text[:_LONGEST]}\n{text[-_LONGEST:]}"
    if rules.next_example:
        text = without_tokens(text)
        text = _NEXT_EXAMPLE.split(text, maxsplit=1)[0]
    if rules.sentence:
        text = _COURTESY.sub("", text)
    if rules.marked:
        text = "" if is_no_answer(text) else _marked(text)
    if rules.markdown:
        for pattern, kept in _MARKDOWN:
            text = pattern.sub(kept, text).strip()
    if rules.first_line:
        text = text.split("\n", 1)[0].strip()
    if rules.sentence:
        text = _from_sentence(text, question)
    if rules.strip_end:
        text = text.strip(
            _ZERO_WIDTH + " \t\r\n\"'`\u2018\u2019“”「」『』《》.,;:!。\uff0c、\uff1b\uff1a\uff01"
        )
    return text.lower() if rules.lower else text


def is_shortened(raw: str, rules: Extraction) -> bool:
    """Return whether `short_answer` leaves out the middle of a generation."""
    return len(raw) > 2 * _LONGEST and len(_said(raw, rules)) > 2 * _LONGEST


def _said(raw: str, rules: Extraction) -> str:
    return (split_thinking(raw).answer if rules.reasoning else raw).strip()


def _marked(text: str, within: int = 0) -> str:
    """Return what the text marks as its answer, or the text itself if it marks nothing.

    Args:
        within: number of marks around the text; models may repeat a mark endlessly.
    """
    if within > _MOST_MARKS:
        return text
    for pattern in _ENCLOSED:
        found = [m["said"].strip() for m in pattern.finditer(text)]
        if any(found):
            return _first_marked(_unquoted([f for f in found if f][-1]), within)
    for pattern in _LEADING:
        marks = list(pattern.finditer(text))
        for mark in reversed(marks):
            if rest := text[mark.end() :].strip():
                return _first_marked(rest, within)
        if marks:  # nothing follows the mark: the text before it may be an answer
            return text[: marks[0].start()].strip()
    bold = _BOLD.findall(text)
    return str(bold[0]) if len(bold) == 1 else text


def _first_marked(text: str, within: int) -> str:
    """Return the text after a mark; its first line may have another ("Answer: the answer is")."""
    line, newline, rest = text.partition("\n")
    return _marked(line, within + 1) + newline + rest


def _unquoted(value: str) -> str:
    """Return a JSON value as text, a list's items joined; a box's text without `\\text{}`."""
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):  # endlessly nested lists
        return re.sub(r"\\\w+\{([^{}]*)\}", r"\1", value).strip("\"'[] ")
    items = read if isinstance(read, list) else [read]
    return ", ".join(map(str, items))


def _from_sentence(text: str, question: str) -> str:
    for end in _SENTENCE_END.finditer(text):
        words = text[: end.start()].split()
        if not words:
            continue  # a generation that begins with a full stop
        if words[-1].strip("(\"'").lower() not in _ABBREVIATIONS:
            text = text[: end.end()]
            break
    if found := _YES_NO.match(text):
        return found.group(1)
    text = _BECAUSE.sub("", text)
    if found := _IT_IS_ZH.match(text):
        return text[found.end() :] or text
    return _without_echo(text, question)


def _without_echo(text: str, question: str) -> str:
    """Return a sentence without its beginning that repeats the question, verb included."""
    words = [word.lower() for word in _WORD.findall(question)]
    asked = {_stem(word) for word in words if word not in _FUNCTION | _PRONOUNS}
    end = subjects = verbs = 0
    for found in _WORD.finditer(text):
        word, _, short = found.group().lower().replace("\u2019", "'").partition("'")
        subject = _stem(word) in asked or (word in _PRONOUNS and not subjects)
        if not subject and word not in _FUNCTION | _PRONOUNS:
            break
        is_short = short in {"s", "re"} and word in _PRONOUNS
        verbs += word in _VERBS or is_short
        subjects += subject
        end = found.end()
    rest = text[end:].strip(" ,:")
    # A second word of the question may be the verb: "The koala eats" where it has "eat".
    if not subjects or not (verbs or subjects > 1) or not _WORD.search(rest):
        return text
    return rest


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) > 2:
            return word[: -len(ending)]
    return word
