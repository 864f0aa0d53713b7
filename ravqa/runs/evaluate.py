"""Run a dataset through a pipeline from Python: the counterpart of `ravqa run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole

from ravqa.core.errors import UserError, near_matches
from ravqa.corpora.corpus import Corpus
from ravqa.datasets.base import Dataset
from ravqa.evaluation.schema import RunResults
from ravqa.pipeline import Pipeline
from ravqa.runs.console import Console
from ravqa.runs.finished import RunFiles
from ravqa.runs.options import RunRequest
from ravqa.runs.plan import Given
from ravqa.runs.run import run

_PATHS = ("data", "output")
_OWN = ("dataset", "pipeline", "overrides", "corpus")
_OF_FILES = ("data", "split", "limit", "dataset_options", "download")
_OF_SETTINGS = ("retriever", "reader", "workers", "worker_options")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished run.

    Attributes:
        folder: the run's folder, for `ravqa report` and `compare`.
        results: the content of `results.json`.
    """

    folder: Path
    results: RunResults


def evaluate(
    dataset: str | Dataset,
    pipeline: str | Pipeline = "sample",
    *overrides: str,
    corpus: Corpus | str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    console: Console | None = None,
    **options: Any,
) -> Evaluation:
    """Run a dataset through a pipeline and score it.

    Args:
        dataset: a registered dataset, such as "okvqa" (`ravqa ls datasets`), or a loaded one.
        pipeline: a YAML file, a name in `pipelines/`, or a pipeline that was built from one. A run
            prepares it for the passages. If it was built for retrieval only, so is the run.
        overrides: "key.path=value", as `--set` of `ravqa run`; for a pipeline that is named.
        corpus: passages to retrieve from, or their files; by default those that the pipeline was
            prepared for, else those that come with the dataset.
        console: shows progress and results; None for no output.
        options: other fields of `ravqa.runs.options.RunRequest`: data, split, limit, output,
            controls, retrieval_only, on_error, ... (see `ravqa run --help`).

    Raises:
        UserError: an unknown option; one that belongs to a dataset or a pipeline that is named; a
            pipeline that was not built from settings; any mistake in what was asked for, or in the
            data.
    """
    known = [f.name for f in fields(RunRequest) if f.name not in _OWN]
    for name in options:
        if name not in known:
            raise UserError(f"evaluate: no option {name!r}: {near_matches(name, known)}")
    given = Given(
        dataset=dataset if isinstance(dataset, Dataset) else None,
        pipeline=pipeline if isinstance(pipeline, Pipeline) else None,
        corpus=corpus if isinstance(corpus, Corpus) else None,
    )
    if given.dataset is not None:
        _refuse(options, _OF_FILES, "the dataset is already loaded: give it to load_dataset")
    if isinstance(pipeline, Pipeline):
        settings = options | ({"overrides": overrides} if overrides else {})
        _refuse(
            settings,
            (*_OF_SETTINGS, "overrides"),
            "the pipeline is already built: give it to Pipeline.load",
        )
        overrides = tuple(pipeline.overrides)
        if options.setdefault("retrieval_only", pipeline.answerer is None) != (
            pipeline.answerer is None
        ):
            raise UserError("evaluate: retrieval_only differs from what the pipeline was built for")
    files = (corpus,) if isinstance(corpus, str | PathLike) else corpus
    request = RunRequest(
        **options
        | {name: Path(options[name]) for name in _PATHS if options.get(name) is not None}
        | {
            "dataset": dataset.name if isinstance(dataset, Dataset) else dataset,
            "pipeline": pipeline.name if isinstance(pipeline, Pipeline) else pipeline,
            "overrides": overrides,
            "corpus": () if isinstance(files, Corpus) else tuple(map(Path, files)),
        }
    )
    folder = run(request, console or _silent(), given=given)
    return Evaluation(folder, RunFiles.read(folder).results)


def _refuse(options: dict[str, Any], names: Sequence[str], how: str) -> None:
    for name in names:
        if name in options:
            raise UserError(f"evaluate: {name}: {how}")


def _silent() -> Console:
    quiet = RichConsole(quiet=True)
    return Console(out=quiet, err=quiet)
