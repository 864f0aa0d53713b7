"""What every dataset loader takes and gives, and how it reports broken records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ravqa.datasets.corpus import Corpus
from ravqa.errors import DataError, UserError, near_matches
from ravqa.records import Question

OnError = Literal["fail", "skip"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that cannot be used: where it stands and why."""

    where: str
    reason: str
    question_id: int | str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Problems:
    """Collects broken records, or stops at the first one."""

    def __init__(self, on_error: OnError = "fail"):
        self.on_error = on_error
        self.found: list[Problem] = []

    def report(self, where: str, reason: str, question_id: int | str | None = None) -> None:
        """Note a broken record.

        Raises:
            DataError: unless broken records are to be skipped.
        """
        problem = Problem(where, reason, question_id)
        if self.on_error == "fail":
            raise DataError(f"{problem} (--on-error skip leaves such questions out)")
        self.found.append(problem)


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """What a loader is asked for.

    Attributes:
        data: folder with the official files; None for the bundled sample.
        split: name of the split; None for the loader's default.
        limit: only the first so many questions.
        need_images: check that every image is there and can be decoded.
    """

    data: Path | None = None
    split: str | None = None
    limit: int | None = None
    problems: Problems = field(default_factory=Problems)
    need_images: bool = True


@dataclass(frozen=True, slots=True)
class Dataset:
    """Questions with their scoring rule.

    Attributes:
        name: registered name.
        label: what results call it; a sample says that it is one.
        sample: True for the bundled sample: its scores are no benchmark's.
        metric: name of the answer metric ("vqa_accuracy", "infoseek"); None without answers.
        corpus: passages that come with the dataset, if any.
        info: facts for the results: version of the files, answer field, ...
        notes: remarks for the user, printed once.
        question_types: names of `Question.question_type` codes.
    """

    name: str
    label: str
    split: str
    questions: Sequence[Question]
    metric: str | None
    fingerprint: str
    sample: bool = False
    corpus: Corpus | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    question_types: Mapping[str, str] = field(default_factory=dict)


def read_json(path: Path) -> Any:
    """A whole JSON file.

    Raises:
        DataError: missing, unreadable, or not JSON (the line is named).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{path}, line {e.lineno}: not JSON ({e.msg}); is it cut off?") from None
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
    if _has_half_character(text, document):
        raise DataError(f"{path}: {_HALF}")
    return document


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON-lines file; blank lines are passed over.

    Raises:
        DataError: missing, unreadable, or a line that is not a JSON object (the line is named).
    """
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as e:
                    raise DataError(f"{path}, line {number}: not JSON ({e.msg})") from None
                except (ValueError, RecursionError) as e:
                    raise DataError(f"{path}, line {number} cannot be read: {e}") from None
                if not isinstance(record, dict):
                    raise DataError(f"{path}, line {number}: an object is expected")
                if _has_half_character(line, record):
                    raise DataError(f"{path}, line {number}: {_HALF}")
                yield number, record
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None


_HALF = 'text that is cut inside a character (a lone "\\ud83d" or the like)'


def _has_half_character(text: str, value: Any) -> bool:
    # JSON can hold one half of a surrogate pair; such a string can be neither hashed nor written.
    if "\\ud" not in text and "\\uD" not in text:
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def pick_split(
    wanted: str | None,
    default: str,
    aliases: Mapping[str, str],
    present: Sequence[str],
    where: Path,
) -> tuple[str, list[str]]:
    """The split to use and remarks about the choice.

    With no split asked for, the default is taken if its files are there, else the only one that is.

    Args:
        aliases: accepted names to official ones, the official ones included.
        present: official names whose files are in `where`.

    Raises:
        UserError: no such split, or its files are not there.
    """
    found = ", ".join(present)
    if wanted is None:
        if default in present or not present:
            return default, []
        if len(present) == 1:
            return present[0], [f"{where} holds the split {found} only: taking it"]
        raise UserError(f"{where} holds the splits {found}: choose one with --split")
    if wanted not in aliases:
        raise UserError(f"no split {wanted!r}: {near_matches(wanted, aliases)}")
    split = aliases[wanted]
    if split not in present:
        raise UserError(f"{where} has no files of split {split}; it holds: {found or 'no split'}")
    return split, []
