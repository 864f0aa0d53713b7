"""Run a dataset through a pipeline from Python: the counterpart of `ravqa run`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole

from ravqa.core.errors import UserError, near_matches
from ravqa.runs.console import Console
from ravqa.runs.options import RunRequest
from ravqa.runs.run import run

_PATHS = ("data", "output")
_NAMED = ("dataset", "pipeline", "overrides")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished run.

    Attributes:
        folder: the run's folder, for `ravqa report` and `compare`.
        results: the content of `results.json`.
    """

    folder: Path
    results: Mapping[str, Any]


def evaluate(
    dataset: str,
    pipeline: str = "sample",
    *overrides: str,
    console: Console | None = None,
    **options: Any,
) -> Evaluation:
    """Run a dataset through a pipeline and score it.

    Args:
        dataset: a registered dataset, such as "okvqa" (`ravqa ls datasets`).
        pipeline: a YAML file or a name in `pipelines/`.
        overrides: "key.path=value", as `--set` of `ravqa run`.
        console: shows progress and results; None for no output.
        options: other fields of `ravqa.runs.options.RunRequest`: data, corpus, split, limit,
            output, controls, retrieval_only, on_error, ... (see `ravqa run --help`).

    Raises:
        UserError: an unknown option; any mistake in what was asked for, or in the data.
    """
    known = [f.name for f in fields(RunRequest) if f.name not in _NAMED]
    for name in options:
        if name not in known:
            raise UserError(f"evaluate: no option {name!r}: {near_matches(name, known)}")
    paths = {n: Path(options[n]) for n in _PATHS if options.get(n) is not None}
    corpus = options.get("corpus", ())
    several = [corpus] if isinstance(corpus, str | Path) else corpus
    request = RunRequest(
        **options
        | paths
        | {"dataset": dataset, "pipeline": pipeline, "overrides": overrides}
        | {"corpus": tuple(map(Path, several))}
    )
    folder = run(request, console or _silent())
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return Evaluation(folder, results)


def _silent() -> Console:
    quiet = RichConsole(quiet=True)
    return Console(out=quiet, err=quiet)
