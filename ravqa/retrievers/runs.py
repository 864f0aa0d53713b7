"""Retrieval results as files: TREC runs and RA-VQA's static results.

TREC: one line per passage, `QUESTION Q0 PASSAGE RANK SCORE NAME`. RA-VQA (the format in which its
retriever passes passages to its reader; rag_model_blip.py, FLMR_executor.py):

    {"output": [{"question_id", "top_ranking_passages":
                 [{"passage_index", "passage_id", "content", "score"}, ...],
                 "answers", "gold_answer", "pos_item_ids"}, ...]}
"""

from __future__ import annotations

import itertools
import json
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from ravqa.core.errors import DataError
from ravqa.core.files import written_beside
from ravqa.core.records import Hit, Passage, Question
from ravqa.corpora import kb
from ravqa.corpora.tables import JSON_LINES, open_text, suffix_of
from ravqa.corpora.values import identity
from ravqa.evaluation.schema import Retrieved, numbered_lines, parsed

_WHITE = re.compile(r"\s")


def trec_lines(question_id: int | str, hits: Sequence[tuple[str, float]]) -> list[str]:
    """Return a question's ranking in TREC's run format: six columns, scores falling with rank.

    White space in ids is percent-encoded. Readers of this format sort by the score; if a
    retriever's scores do not fall with its ranks (the oracle's), 1 / rank replaces them.
    """
    falling = all(a[1] >= b[1] for a, b in itertools.pairwise(hits))
    return [
        f"{column(question_id)} Q0 {column(passage_id)} {rank} "
        f"{score if falling else round(1 / rank, 6)} ravqa\n"
        for rank, (passage_id, score) in enumerate(hits, 1)
    ]


def column(value: object) -> str:
    """Return an id as written in a TREC run, with white space percent-encoded."""
    return _WHITE.sub(lambda m: quote(m.group()), str(value))


def decoded(value: str) -> str:
    """Return the id that `column` encoded, if it had white space; else the value as it is."""
    plain = unquote(value)
    return plain if column(plain) == value else value


@dataclass(slots=True)
class Ranking:
    """Passages of one question with their scores, best first; sixteen bytes per passage."""

    ids: list[str] = field(default_factory=list)
    scores: array[float] = field(default_factory=lambda: array("d"))

    def add(self, passage_id: str, score: float) -> None:
        """Append a passage."""
        self.ids.append(passage_id)
        self.scores.append(score)

    def pairs(self) -> list[tuple[str, float]]:
        """Return pairs (id, score), best first."""
        return list(zip(self.ids, self.scores, strict=True))

    def sort(self) -> None:
        """Sort by falling score; equal scores keep their order."""
        order = sorted(range(len(self.ids)), key=lambda i: -self.scores[i])
        self.ids = [self.ids[i] for i in order]
        self.scores = array("d", (self.scores[i] for i in order))


def read_run(path: Path) -> dict[str, Ranking]:
    """Return rankings by question id (a string) from RA-VQA's .json, our samples.jsonl, or TREC.

    Ids of TREC runs are kept as in the file (see `decoded`).

    Raises:
        DataError: the file is missing, broken (the message names the line or question) or empty,
            or a passage occurs twice in a ranking.
        MissingExtraError: the file is RA-VQA's and ijson is not installed.
    """
    suffix = suffix_of(path)
    if suffix == ".json":
        rows = _static_rows(path)
    elif suffix in JSON_LINES:
        rows = _sample_rows(path)
    else:
        rows = _trec_rows(path)
    rankings: dict[str, Ranking] = {}
    known: dict[str, str] = {}  # ids recur; keep one copy of each
    for where, question_id, pairs in rows:
        ranking = rankings.setdefault(question_id, Ranking())
        for passage_id, score in pairs:
            if not math.isfinite(score):
                raise DataError(f"{where}: the score {score} is not a number")
            ranking.add(known.setdefault(passage_id, passage_id), score)
    if not rankings:
        raise DataError(f"{path}: there are no rankings")
    for question_id, ranking in rankings.items():
        if len(set(ranking.ids)) < len(ranking.ids):
            raise DataError(f"{path}: a passage occurs twice for question {question_id}")
        if suffix not in (".json", *JSON_LINES):
            ranking.sort()  # TREC's evaluation ranks by score
    return rankings


_Rows = Iterator[tuple[str, str, list[tuple[str, float]]]]


def _trec_rows(path: Path) -> _Rows:
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            columns = line.split()
            if not columns:
                continue
            if len(columns) != 6:
                raise DataError(f"{where}: six columns are expected (QUESTION Q0 PASSAGE RANK ...)")
            yield where, columns[0], [(columns[2], _score(columns[4], where))]


def _sample_rows(path: Path) -> _Rows:
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        row = parsed(Retrieved, line, where)
        yield where, str(row["question_id"]), row["hits"]


def _static_rows(path: Path) -> _Rows:
    for number, item in enumerate(kb.static_items(path), 1):
        where = f"{path}, question {number}"
        entries = kb.top_passages(item, where)
        pairs = [(_id(e, "passage_id", where), _score(e.get("score"), where)) for e in entries]
        yield where, _id(item, "question_id", where), pairs


def _id(row: Mapping[str, object], key: str, where: str) -> str:
    try:
        found = identity(row, key)
    except DataError as e:
        raise DataError(f"{where}: {e}") from None
    if found is None:
        raise DataError(f"{where}: no {key!r}")
    return str(found)


def _score(value: object, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: the score {value!r} is not a number") from None


def write_trec(path: Path, rankings: Iterable[tuple[int | str, Sequence[Hit]]]) -> None:
    """Write a TREC run to a file beside `path`, then rename it."""
    with written_beside(path) as beside, beside.open("w", encoding="utf-8") as out:
        for question_id, hits in rankings:
            out.writelines(trec_lines(question_id, [(h.passage_id, h.score) for h in hits]))


def write_static(
    path: Path,
    results: Iterable[tuple[Question, Sequence[Hit]]],
    corpus: Mapping[str, Passage],
) -> None:
    """Write RA-VQA's static results beside `path`, then rename; holds one question in memory.

    `passage_index` is the passage's position in the corpus, as in RA-VQA.

    Raises:
        KeyError: a passage is not in the corpus.
    """
    rows = {passage_id: row for row, passage_id in enumerate(corpus)}
    with written_beside(path) as beside, beside.open("w", encoding="utf-8") as out:
        out.write('{"output": [')
        for number, (question, hits) in enumerate(results):
            answers = list(question.answers)
            item = {
                "question_id": str(question.question_id),
                "top_ranking_passages": [
                    {
                        "passage_index": rows[hit.passage_id],
                        "passage_id": hit.passage_id,
                        "content": corpus[hit.passage_id].content,
                        "score": hit.score,
                    }
                    for hit in hits
                ],
                "answers": answers,
                "gold_answer": gold_answer(question),
                "pos_item_ids": list(question.pos_item_ids),
            }
            out.write(f"{',' if number else ''}\n{json.dumps(item, ensure_ascii=False)}")
        out.write("\n]}\n")


def gold_answer(question: Question) -> str:
    """Return the dataset's gold answer, else the first of the most common ones; "" without answers.

    RA-VQA picks any of equally common ones, which differs between processes.
    """
    given = question.extra.get("gold_answer")
    answers = question.answers
    return str(given) if given else max(answers, key=answers.count) if answers else ""
