"""`ravqa mine`: hard negatives from a finished run, in a file for training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ravqa.core.errors import UserError
from ravqa.core.files import atomic_write
from ravqa.core.texts import encodable
from ravqa.reports.run import Run, read_run
from ravqa.runs.folder import check_output
from ravqa.training.examples import Relevance
from ravqa.training.negatives import line
from ravqa.training.options import MineRequest


@dataclass(frozen=True, slots=True)
class Mined:
    """What was written: numbers of questions, of those with negatives, and of negatives."""

    questions: int
    with_negatives: int
    negatives: int


def mine(request: MineRequest) -> Mined:
    """Write the passages that a run found and that are not relevant (see `negatives`).

    Raises:
        UserError: the output exists; the run is not finished; its questions or passages cannot be
            read; it retrieved nothing.
    """
    check_output(request.output, overwrite=request.overwrite)
    run = read_run(
        request.run,
        data=request.data,
        corpus=request.corpus,
        trust_settings=request.trust_settings,
    )
    if run.corpus is None or not run.questions:
        why = run.notes[0] if run.notes else "it retrieved nothing"
        raise UserError(f"{request.run}: its questions and passages are needed: {why}")
    lines = list(_lines(run, request))
    counts = [len(row["negatives"]) for row in lines]
    if not sum(counts):
        raise UserError(f"{request.run}: every passage that it found is relevant")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
    request.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(request.output, encodable(text))
    return Mined(len(lines), sum(count > 0 for count in counts), sum(counts))


def _lines(run: Run, request: MineRequest) -> Iterator[dict[str, Any]]:
    assert run.corpus is not None
    relevance = Relevance(run.corpus)
    for question_id, question in run.questions.items():
        hits = run.main[question_id]["hits"]
        relevant = [i for i, _ in hits if relevance.relevant(question, i)]
        hard = [(i, float(s)) for i, s in hits[request.skip :] if i not in relevant]
        scores = dict(hits)
        yield line(question_id, hard[: request.limit], {i: float(scores[i]) for i in relevant})
