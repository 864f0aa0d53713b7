"""Readers without a model: their scores are a floor for real readers.

They find question and passages in a prompt by the marks that the templates in `prompts/` write:
"Question:", and "Passage:", "Knowledge:" or "[1]" before each passage.
"""

from __future__ import annotations

import csv
import json
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from ravqa.core.errors import DataError, UserError
from ravqa.core.model_files import resolve
from ravqa.core.outcomes import Failure
from ravqa.core.settings import PackagedFile, Strict, Text, fingerprint
from ravqa.readers.base import Abilities, Generation, Prompt, Reader


class Control(Reader):
    """Base class of readers that answer by a rule and can do nothing else."""

    has_model = False
    deterministic = True
    charges = True  # nothing
    thread_safe = True
    weights = "none (a rule)"
    name: str

    @classmethod
    def declared(cls, config: Any) -> Abilities:
        """Return no abilities."""
        return Abilities(False, False, False, False)

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation | Failure]:
        """Return one answer per prompt, in order, without log-probabilities."""
        return [Generation(self._answer(prompt.text)) for prompt in prompts]

    @abstractmethod
    def _answer(self, text: str) -> str:
        """Return the answer to a prompt's text."""

    def _unable(self, what: str) -> UserError:
        return UserError(f"the reader {self.name} cannot {what}: it has no model")


# Each example's answer is on its own line; the question comes after the last one.
_EXAMPLE = re.compile(r"^Answer: +\S.*$", re.MULTILINE)
_QUESTION = re.compile(
    r"^(?:Question:|\u95ee\u9898\uff1a) *(.*?)(?= Caption:| Objects:| Knowledge:| Answer:|$)",
    re.MULTILINE,
)
# A passage may have several lines: it ends at a line that begins the prompt's next part.
_NEXT = (
    r"Passage:|\[\d+\] |Question:|Answer:|The image:|Seen in the image:|Written in the image:"
    r"|\u95ee\u9898\uff1a|\u56fe\u7247"
)
_PASSAGE = re.compile(
    rf"^(?:Passage:|\[\d+\]) *(.*?)(?=^(?:{_NEXT})|\Z)"
    r"|\bKnowledge: *(.*?)(?= Knowledge:| *Answer:\s*\Z|\Z)",
    re.MULTILINE | re.DOTALL,
)


def _read(text: str) -> tuple[str, list[str]]:
    """Return question and passages of a prompt, without its examples."""
    start = max((found.end() for found in _EXAMPLE.finditer(text)), default=0)
    block = text[start:]
    asked = _QUESTION.findall(block)
    passages = [(found[1] or found[2] or "").strip() for found in _PASSAGE.finditer(block)]
    return (asked[-1].strip() if asked else ""), [passage for passage in passages if passage]


class FirstWords(Control):
    """Answers with the first words of the prompt's first passage; "unknown" without passages."""

    name = "first-words"

    class Config(Strict):
        """Options.

        Attributes:
            words: number of words.
        """

        words: int = Field(default=3, ge=1)

    def __init__(self, config: Config):
        self.config = config
        self.fingerprint = fingerprint("first-words/3", config.words)

    def _answer(self, text: str) -> str:
        _, passages = _read(text)
        return " ".join(passages[0].split()[: self.config.words]) if passages else "unknown"


class Majority(Control):
    """Answers every question with the most common answer of a training split."""

    name = "majority"

    class Config(Strict):
        """Options, exactly one of which is set.

        Attributes:
            answers: a file with training answers, or "package:MODULE/path": VQA annotations
                (.json), JSON lines or a CSV file with `answers` or `answer`, or a text file with
                one answer a line. All annotators' answers count; ties go to the first in the file.
            answer: the answer itself.
        """

        answers: PackagedFile | None = None
        answer: Text | None = None

        @model_validator(mode="after")
        def _check_source(self) -> Self:
            if (self.answers is None) == (self.answer is None):
                raise ValueError("the reader majority needs answers (a file) or answer (a text)")
            return self

    def __init__(self, config: Config):
        """Count the file's answers.

        Raises:
            DataError: the file cannot be read, or has no answers.
        """
        self.config = config
        self.answer = config.answer if config.answer is not None else _commonest(config.answers)
        self.fingerprint = fingerprint("majority/1", self.answer)

    def _answer(self, text: str) -> str:
        return self.answer


def _commonest(name: str | None) -> str:
    path = Path(resolve(str(name), extra="sample", why="the reader majority"))
    try:
        counts = Counter(a for answer in _answers(path) if (a := answer.strip().lower()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as e:
        raise DataError(f"{path}: no training answers in a known format ({e!r})") from None
    if not counts:
        raise DataError(f"{path} has no answers")
    return counts.most_common(1)[0][0]


def _answers(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".json":
            for annotation in json.load(file)["annotations"]:
                yield from (answer["answer"] for answer in annotation["answers"])
        elif path.suffix in {".jsonl", ".csv", ".tsv"}:
            rows: Any = (json.loads(line) for line in file if line.strip())
            if path.suffix != ".jsonl":
                rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            for row in rows:
                given = row["answers"] if "answers" in row else row["answer"]
                yield from [given] if isinstance(given, str) else given
        else:
            yield from file


_WORD = re.compile(r"\w+(?:[.,'\u2019-]\w+)*")
_FUNCTION = (
    "a an and are as at be been but by can could did do does for from had has have he her his how "
    "i in into is it its may not of on or she should so such than that the their them then there "
    "these they this those to was we were what when where which who whose why will with would you"
)
_FUNCTION_WORDS = frozenset(_FUNCTION.split())


class BestSpan(Control):
    """Answers with the words of a passage that are nearest to the question's words.

    A span is a run of adjacent words, ended by punctuation, that are neither function words nor
    words of the question; a longer run is cut to its first `words`. Its score is the sum, over the
    question's words that occur in the passage, of 1 / (1 + words between the span and the nearest
    occurrence). Ties go to the first span. This is a variant of MCTest's sliding window (Richardson
    et al. 2013), with distances in place of a window. The answer is "unknown" without passages.
    """

    name = "best-span"

    class Config(Strict):
        """Options.

        Attributes:
            words: length of the longest answer, in words.
        """

        words: int = Field(default=3, ge=1)

    def __init__(self, config: Config):
        self.config = config
        self.fingerprint = fingerprint("best-span/2", config.words)

    def _answer(self, text: str) -> str:
        question, passages = _read(text)
        asked = {word.lower() for word in _WORD.findall(question)} - _FUNCTION_WORDS
        best, answer = -1.0, "unknown"
        for passage in passages:
            words = list(_WORD.finditer(passage))
            at: dict[str, list[int]] = {}
            for position, word in enumerate(words):
                if word[0].lower() in asked:
                    at.setdefault(word[0].lower(), []).append(position)
            for start, end in _runs(passage, words, asked, self.config.words):
                score = sum(
                    1 / (1 + min(start - p - 1 if p < start else p - end for p in places))
                    for places in at.values()
                )
                if score > best:
                    best, answer = score, passage[words[start].start() : words[end - 1].end()]
        return answer


def _runs(
    passage: str, words: Sequence[re.Match[str]], asked: set[str], longest: int
) -> Iterator[tuple[int, int]]:
    """Yield start and end (exclusive) of each run of words that may be an answer."""
    start: int | None = None
    for position, word in enumerate(words):
        good = word[0].lower() not in asked | _FUNCTION_WORDS
        joined = position > 0 and passage[words[position - 1].end() : word.start()].isspace()
        if start is not None and not (good and joined):
            yield start, min(position, start + longest)
            start = None
        if good and start is None:
            start = position
    if start is not None:
        yield start, min(len(words), start + longest)
