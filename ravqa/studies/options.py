"""Options of `ravqa study`, `ravqa compare` and `ravqa power`.

This module imports nothing heavy, because the command line's help is built from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ravqa.core.options import Option

_COMMON = Option("Compare only the questions that all runs have.")


@dataclass(frozen=True, slots=True)
class StudyRequest:
    """The options of `ravqa study`."""

    study: Annotated[str, Option("A YAML file, or a name in studies/.", "STUDY", argument=True)]
    overrides: Annotated[
        Sequence[str],
        Option(
            "Change one key of all variants; a variant's own changes override it. Repeatable.",
            "KEY.PATH=VALUE",
            "--set",
        ),
    ] = ()
    data: Annotated[Path | None, Option("Replace the study's data folder.", "DIR")] = None
    corpus: Annotated[
        Sequence[Path], Option("Replace the study's passages. Repeatable.", "PATH")
    ] = ()
    split: Annotated[str | None, Option("Replace the study's split.", "NAME")] = None
    limit: Annotated[int | None, Option("Use only the first N questions.", "N")] = None
    output: Annotated[
        Path | None, Option("Folder of the study. Default: a new one in runs/.", "DIR")
    ] = None
    resume: Annotated[bool, Option("Resume the study in --output; variants may be added.")] = False
    overwrite: Annotated[bool, Option("Replace the study in --output.")] = False
    dry_run: Annotated[bool, Option("Print the variants and what would run, then stop.")] = False
    jobs: Annotated[int, Option("Run variants in N parallel processes.", "N")] = 1


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """The options of `ravqa compare`."""

    runs: Annotated[
        Sequence[str],
        Option(
            "Run folders, the reference first. FOLDER:CONTROL means a control of a run.",
            "RUN...",
            argument=True,
        ),
    ]
    control: Annotated[
        str | None,
        Option("A run without retrieval. Default: each run's control none.", "RUN"),
    ] = None
    metrics: Annotated[
        Sequence[str],
        Option(
            "Columns, separated by commas: score, exact_match, truthfulness, PRRecall@K, "
            "Recall@K, ArticleRecall@K, seconds.",
            "LIST",
            commas=True,
        ),
    ] = ()
    rules: Annotated[
        Sequence[str],
        Option(
            "Compare by these scoring rules too, separated by commas, or by all that fit the "
            "questions: all.",
            "LIST",
            commas=True,
        ),
    ] = ()
    common: Annotated[bool, _COMMON] = False
    output: Annotated[
        Path | None, Option("Write table.csv, .md, .tex, .json and report.html here.", "DIR")
    ] = None
    overwrite: Annotated[bool, Option("Replace the files in --output.")] = False
    seed: Annotated[int, Option("Seed of intervals and tests.", "N")] = 0


@dataclass(frozen=True, slots=True)
class PowerRequest:
    """The options of `ravqa power`.

    `alpha` is divided by `comparisons`, as in the first step of Holm's method.
    """

    runs: Annotated[
        Sequence[str],
        Option(
            "Run folders, the reference first. A single run is compared with its control none.",
            "RUN...",
            argument=True,
        ),
    ]
    differences: Annotated[
        Sequence[float],
        Option(
            "Differences to detect, in points, separated by commas.",
            "LIST",
            "--difference",
            commas=True,
        ),
    ] = (1.0, 2.0, 5.0)
    power: Annotated[float, Option("Probability of detecting them (statistical power).", "P")] = 0.8
    alpha: Annotated[
        float, Option("Probability of a false positive (significance level).", "P")
    ] = 0.05
    comparisons: Annotated[int, Option("Number of comparisons to correct for.", "N")] = 1
    metric: Annotated[str, Option("score, exact_match, PRRecall@K, ...", "NAME")] = "score"
    common: Annotated[bool, _COMMON] = False
