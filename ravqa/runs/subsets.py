"""Retrieval runs over all subsets of M2KR, in one table with the published scores.

    SUBSET/       the run of each subset (see `ravqa.runs.folder`)
    table.json    every score, "measured" or "published" (`ravqa.datasets.published`)
    table.csv     the scores alone

Every subset has its own passages and its own reported metrics.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from ravqa.core.errors import UserError
from ravqa.core.files import atomic_write
from ravqa.core.texts import encodable
from ravqa.corpora import hub
from ravqa.datasets import m2kr
from ravqa.datasets.base import parse_options
from ravqa.datasets.published import published_scores
from ravqa.evaluation.schema import RunResults
from ravqa.runs.console import Console
from ravqa.runs.finished import RunFiles
from ravqa.runs.folder import MAIN
from ravqa.runs.options import RunRequest
from ravqa.runs.plan import default_output, limits_of, overrides_of, plan_pipeline
from ravqa.runs.run import run

ALL = "all"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Score:
    """One number of the table.

    Attributes:
        model: its published name; of a run, the pipeline and what was changed of it.
        percent: 0 to 100.
        low_95, high_95: its 95 % interval, if it was measured here.
        questions: number of questions asked.
        of: number of questions in the published test split.
        source: the run's folder, or where the number was published.
    """

    model: str
    status: Literal["measured", "published"]
    subset: str
    metric: str
    k: int
    percent: float
    low_95: float | None
    high_95: float | None
    questions: int | None
    of: int | None
    source: str


def asks_for_all(request: RunRequest) -> bool:
    """Return whether a request is for every subset of a benchmark."""
    options = parse_options(request.dataset_options)
    return request.dataset in m2kr.BENCHMARKS and str(options.get("subset")).lower() == ALL


def run_subsets(request: RunRequest, console: Console) -> Path:
    """Run every subset, print and write the table, and return the folder.

    With `resume`, answered questions are not asked again.

    Raises:
        UserError: any mistake in what was asked for, or in the data of a subset.
    """
    check_subsets(request)
    split = request.split or "test"
    subsets = _present(request, split, console)
    root = request.output or default_output(request)
    _check_output(root, request)
    options = [o for o in request.dataset_options if o.partition("=")[0] != "subset"]
    measured: list[Score] = []
    for number, subset in enumerate(subsets, 1):
        console.note(f"subset {subset}, {number} of {len(subsets)}")
        folder = root / subset
        asked = replace(
            request,
            dataset_options=[*options, f"subset={subset}"],
            output=folder,
        )
        try:
            run(asked, console)
        except UserError as e:
            raise UserError(f"subset {subset}: {e}") from None
        measured += _measured(request, subset, RunFiles.read(folder).results, folder)
    scores = [*measured, *(_published(request.dataset) if split == "test" else ())]
    _write(root, request, split, scores)
    title = f"{request.dataset}, split {split}"
    columns = [(s, m.name, m.k) for s, p in m2kr.SUBSETS.items() for m in p.retrieval_metrics]
    console.benchmark(title, columns, [asdict(score) for score in scores])
    console.out.print(f"table: {root / 'table.csv'}", soft_wrap=True, highlight=False)
    return root


def check_subsets(request: RunRequest) -> None:
    """Raise UserError for a mistake in a request for every subset, before any data are read."""
    plan_pipeline(request)
    if not request.retrieval_only:
        raise UserError("--subset all scores retrieval only: add --retrieval-only")
    if request.data is None:
        hub_name = m2kr.BENCHMARKS[request.dataset].hub
        raise UserError(
            f"--dataset {request.dataset} needs --data: a folder with the files of {hub_name}, or "
            f"hf:{hub_name} to read it from the hub"
        )
    for flag in limits_of(request):
        raise UserError(f"{flag} is for one run: it cannot be used with --subset all")
    if request.corpus:
        raise UserError("--corpus with subset=all: every subset has its own passages")


def _present(request: RunRequest, split: str, console: Console) -> list[str]:
    """Return the subsets with files that are scored on this split; print a note on the others."""
    present: list[str] = []
    absent: list[str] = []
    data = request.data or Path()
    reason = f"{data} has no subset of {request.dataset} with a split {split}"
    for subset, published in m2kr.SUBSETS.items():
        if split not in published.splits or not published.retrieval_metrics:
            continue
        try:
            found = split in hub.split_names(data, f"{subset}_data")
        except UserError as e:  # the hub has no such configuration, or cannot be reached
            found, reason = False, str(e)
        (present if found else absent).append(subset)
    if not present:
        raise UserError(reason)
    if absent:
        console.note(f"missing subsets: {', '.join(absent)}")
    return present


def _check_output(root: Path, request: RunRequest) -> None:
    runs = [s for s in m2kr.SUBSETS if (root / s / "config.yaml").is_file()]
    if runs and not request.resume and not request.overwrite:
        raise UserError(
            f"the output folder {root} has runs of subsets: --resume continues them, "
            "--overwrite replaces them"
        )


def _measured(
    request: RunRequest, subset: str, results: RunResults, folder: Path
) -> Iterator[Score]:
    """Yield the scores that a subset reports."""
    model = ", ".join([Path(request.pipeline).stem, *overrides_of(request)])
    retrieval = results["retrieval"]
    for reported in retrieval["reported"] if retrieval else ():
        if MAIN in reported["conditions"]:
            low, high = reported["intervals_95"][MAIN]
            yield Score(
                model=model,
                status="measured",
                subset=subset,
                metric=reported["metric"],
                k=reported["k"],
                percent=reported["conditions"][MAIN],
                low_95=low,
                high_95=high,
                questions=reported["questions"],
                of=m2kr.BENCHMARKS[request.dataset].test_queries(subset),
                source=str(folder),
            )


def _published(dataset: str) -> list[Score]:
    return [
        Score(
            model=score.model,
            status="published",
            subset=score.subset,
            metric=score.metric.name,
            k=score.metric.k,
            percent=score.percent,
            low_95=None,
            high_95=None,
            questions=None,
            of=None,
            source=score.source,
        )
        for score in published_scores(dataset)
    ]


def _write(root: Path, request: RunRequest, split: str, scores: Sequence[Score]) -> None:
    table = {
        "schema_version": SCHEMA_VERSION,
        "dataset": request.dataset,
        "split": split,
        "pipeline": request.pipeline,
        "overrides": overrides_of(request),
        "limit": request.limit,
        "scores": [asdict(score) for score in scores],
    }
    document = json.dumps(table, ensure_ascii=False, indent=1) + "\n"
    atomic_write(root / "table.json", encodable(document))
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    atomic_write(root / "table.csv", encodable(text.getvalue()))
