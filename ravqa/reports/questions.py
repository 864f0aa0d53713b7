"""Questions of a run in the page's form: an index of all, and the rest in blocks.

The page reads the index when it opens, and a block only when one of its items is viewed. Items that
many questions share (passages, lines of prompts, photos) are stored once and referred to by number.
What does not fit into a file's bounds is left out, least important first: texts of low-ranked
passages, then prompts of drafts that were not chosen; `notes` reports it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ravqa.core.progress import Progress
from ravqa.core.records import Passage
from ravqa.core.texts import number_of
from ravqa.evaluation.schema import Draft, Ranking, Sample
from ravqa.metrics.evqa import single_answers
from ravqa.metrics.prrecall import answer_spans
from ravqa.reports.figures import condition_name, first_rank, stage_name
from ravqa.reports.page import utf16
from ravqa.reports.photos import thumbnails
from ravqa.reports.run import Run
from ravqa.runs.folder import MAIN
from ravqa.runs.prompts import PROMPTS, read_prompts

BLOCKS = {"questions": 40, "passages": 100, "photos": 25, "lines": 500, "matches": 1}
"""Number of items per block, by kind."""
_LONGEST = 6000  # letters of a passage, or of a generation


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most bytes of photos, texts of passages and prompts in a file."""

    photos: int = 16_000_000
    passages: int = 8_000_000
    prompts: int = 4_000_000


@dataclass(slots=True)
class Content:
    """Content embedded in one file.

    Attributes:
        index: one small object for each question.
        tables: items that are read in blocks, by kind.
        notes: what was left out.
    """

    index: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, list[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def blocks(self) -> Iterable[tuple[str, list[Any]]]:
        """Yield each block's name ("passages-3") and items."""
        for kind, items in self.tables.items():
            size = BLOCKS[kind]
            for number, start in enumerate(range(0, len(items), size)):
                yield f"{kind}-{number}", items[start : start + size]


class QuestionTables:
    """Builds files' content from a run, caching what does not depend on the file."""

    def __init__(
        self,
        run: Run,
        bounds: Bounds,
        progress: Progress | None = None,
        matches: Mapping[str, Any] | None = None,
    ):
        """Read the run's prompts.

        Args:
            matches: matches by question id, in the page's form.

        Raises:
            DataError: the file of prompts is broken.
        """
        self._run = run
        self._bounds = bounds
        self._progress = progress
        self._matches = matches or {}
        self._prompts = read_prompts(run.folder / PROMPTS)

    def content(self, questions: Sequence[int | str]) -> Content:
        """Return the content of a file about these questions."""
        content = Content()
        photos, urls = self._photos(questions)
        depth = self._depth(questions)
        passages = _Table(self._passage)
        lines = _Lines(self._bounds.prompts)
        if self._run.corpus is not None:
            self._note_depth(content, questions, depth)
        for question in questions:
            content.index.append(self._row(question, photos.get(question, -1)))
        matched = [row for row in content.index if row["id"] in self._matches]
        for number, row in enumerate(matched):
            row["match"] = number
        if 0 < len(matched) < len(questions):
            content.notes.append(
                "What matched in retrieval is shown for the first "
                f"{number_of(len(matched), 'question')} (ravqa report --matches N shows more)."
            )
        details = [self._detail(question, depth, passages) for question in questions]
        for chosen in (True, False):  # prompts of the answers first, the others if there is room
            for question, detail in zip(questions, details, strict=True):
                self._add_prompts(question, detail, lines, chosen)
        if lines.left_out:
            content.notes.append(
                f"{number_of(lines.left_out, 'prompt is', 'prompts are')} left out to keep this "
                f"file small; {PROMPTS} in the run's folder has all."
            )
        content.tables = {
            "questions": details,
            "passages": passages.items,
            "photos": urls,
            "lines": lines.items,
            "matches": [self._matches[row["id"]] for row in matched],
        }
        return content

    def _photos(
        self, questions: Sequence[int | str]
    ) -> tuple[dict[int | str, int], list[str | None]]:
        """Return each question's photo by number, and the photos."""
        numbers: dict[Path | bytes, int] = {}
        own: dict[int | str, int] = {}
        for name in questions:
            question = self._run.questions.get(name)
            if question is not None and question.image is not None:
                own[name] = numbers.setdefault(question.image, len(numbers))

        urls = thumbnails(list(numbers), self._bounds.photos, self._progress)
        return {q: n for q, n in own.items() if urls[n] is not None}, urls

    def _depth(self, questions: Sequence[int | str]) -> int:
        """Return how many passages per question fit into the file with their texts."""
        corpus = self._run.corpus
        if corpus is None:
            return 0
        deepest = max((len(self._run.main[q]["hits"]) for q in questions), default=0)
        seen: set[str] = set()
        size = 0
        for depth in range(deepest):
            for question in questions:
                hits = self._run.main[question]["hits"]
                if depth < len(hits) and hits[depth][0] not in seen:
                    seen.add(hits[depth][0])
                    passage = corpus.get(hits[depth][0])
                    size += len(passage.content[:_LONGEST].encode()) if passage else 0
            if size > self._bounds.passages and depth:
                return depth
        return deepest

    def _note_depth(self, content: Content, questions: Sequence[int | str], depth: int) -> None:
        deepest = max((len(self._run.main[q]["hits"]) for q in questions), default=0)
        if depth < deepest:
            content.notes.append(
                f"Texts are shown for the first {depth} of {deepest} passages of a question, and "
                "for those that were read, to keep this file small."
            )

    def _passage(self, passage: Passage) -> dict[str, Any]:
        content = passage.content
        item: dict[str, Any] = {
            "id": passage.passage_id,
            "text": content[:_LONGEST] + ("\u2026" if len(content) > _LONGEST else ""),
            "head": utf16(content[: len(content) - len(passage.text)]),
        }
        if passage.url and passage.url.startswith(("http://", "https://")):
            item["url"] = passage.url
        return item

    def _row(self, name: int | str, photo: int) -> dict[str, Any]:
        sample = self._run.main[name]
        row: dict[str, Any] = {
            "id": str(name),
            "q": sample["question"],
            "type": sample["question_type"],
            "refs": list(dict.fromkeys(sample["answers"])),
            "a": sample.get("answer"),
            "s": sample.get("score"),
            "rank": first_rank(self._run, sample),
            "photo": photo,
        }
        without = self._run.samples.get("none", {}).get(name)
        if without is not None and "score" in without and "score" in sample:
            row["gain"] = round(sample["score"] - without["score"], 6)
            row["turned"] = self._run.turned(name)
        if sample["hits"]:
            row["top"] = sample["hits"][0][1]
        return {key: value for key, value in row.items() if value is not None}

    def _detail(self, name: int | str, depth: int, passages: _Table) -> dict[str, Any]:
        sample = self._run.main[name]
        drafts = sample.get("drafts", [])
        ranks = _ranks(sample)
        read = {passage_id for draft in drafts for passage_id in draft["passage_ids"]}
        detail: dict[str, Any] = {
            "refs": [[answer, count] for answer, count in Counter(sample["answers"]).most_common()],
            "hits": self._hits(name, sample, depth, read, passages),
            "read": sorted(ranks[p] for p in read if p in ranks),
            "drafts": [_draft(draft, ranks) for draft in drafts],
            "chosen": _chosen(sample),
            "others": [
                [condition_name(self._run, condition), own["answer"], own.get("score")]
                for condition, samples in self._run.samples.items()
                if condition != MAIN and (own := samples.get(name)) and "answer" in own
            ],
            "seconds": [[stage_name(s), v] for s, v in sample["seconds"].items()],
        }
        raw = sample.get("raw")
        if raw is not None and raw.strip() != sample.get("answer"):
            detail["raw"] = raw[:_LONGEST]
        for key in ("choices", "decision", "tags", "caption", "ocr", "cut", "error"):
            if sample.get(key):
                detail[key] = sample[key]
        stages = sample.get("stages")
        if stages:
            detail["stages"] = [
                [stage["stage"], len(stage["hits"]), first_rank(self._run, stage)]
                for stage in stages
            ]
            before = _ranks(stages[0])
            detail["before"] = [before.get(passage_id, 0) for passage_id in ranks]
        return detail

    def _hits(
        self,
        name: int | str,
        sample: Sample,
        depth: int,
        read: set[str],
        passages: _Table,
    ) -> list[list[Any]]:
        """Return per hit: passage, score, whether and where it contains an answer.

        The passage is its number, or its id if it has no text. Places are pairs of start and length
        in UTF-16 units, flattened.
        """
        question = self._run.questions.get(name)
        kind = question.question_type if question else None
        wanted = single_answers(sample["answers"], kind)
        holding = sample["answer_ranks"][self._run.rule] if sample["answer_ranks"] else []
        rows: list[list[Any]] = []
        for rank, (passage_id, score) in enumerate(sample["hits"], 1):
            passage = None
            if self._run.corpus is not None and (rank <= depth or passage_id in read):
                passage = self._run.corpus.get(passage_id)
            row: list[Any] = [passage_id, score, int(rank in holding)]
            if passage is not None:
                row[0] = passages.number(passage)
                row.append(_marks(passage.content[:_LONGEST], wanted, self._run))
            rows.append(row)
        return rows

    def _add_prompts(
        self, name: int | str, detail: dict[str, Any], lines: _Lines, chosen: bool
    ) -> None:
        """Add the prompt of the chosen draft, or those of the others, while there is room."""
        for i, draft in enumerate(self._run.main[name].get("drafts", [])):
            text = self._prompts.get(draft["prompt_hash"])
            if text is not None and (i == detail["chosen"]) is chosen:
                numbers = lines.numbers(text)
                if numbers is not None:
                    detail["drafts"][i]["prompt"] = numbers


def _chosen(sample: Sample) -> int:
    """Return the position of the answer's draft: the best of those with its text."""
    drafts = list(enumerate(sample.get("drafts", [])))
    same = [(i, d) for i, d in drafts if d["text"] == sample.get("answer")] or drafts
    scores = {i: -math.inf if d["score"] is None else d["score"] for i, d in same}
    return max(scores, key=lambda i: scores[i], default=0)


def _draft(draft: Draft, ranks: Mapping[str, int]) -> dict[str, Any]:
    read = [ranks.get(passage_id, 0) for passage_id in draft["passage_ids"]]
    # JSON has no infinity.
    numbers = {key: draft[key] for key in ("log_prob", "tokens", "score", "prior", "posterior")}
    finite = {k: v for k, v in numbers.items() if v is not None and math.isfinite(v)}
    return {"text": draft["text"], "read": read, **finite}


def _ranks(ranking: Ranking) -> dict[str, int]:
    return {passage_id: rank for rank, (passage_id, _) in enumerate(ranking["hits"], 1)}


def _marks(text: str, answers: Sequence[str], run: Run) -> list[int]:
    """Return start and length of each answer in a text, in UTF-16 units as in browsers."""
    spans = answer_spans(text, answers, run.rule)
    plain = text.isascii() or max(text, default="") <= "\uffff"
    flat: list[int] = []
    for begin, end in spans:
        start = begin if plain else utf16(text[:begin])
        flat += [start, end - begin if plain else utf16(text[begin:end])]
    return flat


class _Table:
    """Table of unique items, each with a number."""

    def __init__(self, make: Callable[[Passage], dict[str, Any]]):
        self.items: list[Any] = []
        self._make = make
        self._numbers: dict[str, int] = {}

    def number(self, passage: Passage) -> int:
        """Return the passage's number, adding it to the table if needed."""
        number = self._numbers.get(passage.passage_id)
        if number is None:
            number = self._numbers[passage.passage_id] = len(self.items)
            self.items.append(self._make(passage))
        return number


class _Lines:
    """Unique lines of prompts, within a bound."""

    def __init__(self, budget: int):
        self.items: list[str] = []
        self.left_out = 0
        self._left = budget
        self._numbers: dict[str, int] = {}

    def numbers(self, lines: Sequence[str]) -> list[int] | None:
        """Return the lines' numbers; None if there is no room for new ones."""
        new = {line for line in lines if line not in self._numbers}
        size = sum(len(line.encode("utf-8", "replace")) for line in new)
        if size > self._left:
            self.left_out += 1
            return None
        self._left -= size
        for line in lines:
            if line not in self._numbers:
                self._numbers[line] = len(self.items)
                self.items.append(line)
        return [self._numbers[line] for line in lines]
