"""`ravqa study`, `compare` and `power`: run and compare variants of a pipeline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ravqa.cli.shared import Limit, listed, quiet_libraries
from ravqa.core.errors import UserError

EXAMPLES = """
Examples:

  ravqa study decision --dry-run

  ravqa study decision --output runs/decision

  ravqa study mine.yaml --data DIR --corpus passages.jsonl --limit 100 --jobs 2

docs/studies.md describes the file; ravqa ls studies lists the bundled studies.
"""

Common = Annotated[
    bool, typer.Option("--common", help="Compare only the questions that all runs have.")
]


def study(
    study_file: Annotated[
        str, typer.Argument(metavar="STUDY", help="A YAML file, or a name in studies/.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY.PATH=VALUE",
            help="Change one key of all variants; a variant's own changes come after. Repeatable.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Replace the study's data folder.")
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Replace the study's passages. Repeatable."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Replace the study's split.")
    ] = None,
    limit: Limit = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the study. Default: a new one in runs/."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the study in --output; variants may be added."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the study in --output.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the variants and what would run, then stop.")
    ] = False,
    jobs: Annotated[
        int, typer.Option(metavar="N", help="Run variants in N parallel processes.")
    ] = 1,
) -> None:
    """Run all variants of a study and compare them; shared work is done once.

    Exit code 1 means that some variants failed; the others have run.
    """
    quiet_libraries()
    from ravqa.studies.plan import Changes
    from ravqa.studies.quiet import StudyConsole
    from ravqa.studies.run import StudyRequest
    from ravqa.studies.run import study as run_study

    changes = Changes(
        overrides=tuple(overrides or ()),
        data=data,
        corpus=tuple(corpus or ()),
        split=split,
        limit=limit,
    )
    console = StudyConsole()
    try:
        outcome = run_study(
            StudyRequest(
                study=study_file,
                changes=changes,
                output=output,
                resume=resume,
                overwrite=overwrite,
                dry_run=dry_run,
                jobs=jobs,
            ),
            console,
        )
    except KeyboardInterrupt:
        print("--resume --output DIR resumes this study", file=sys.stderr)
        raise
    finally:
        console.close()
    for name, reason in outcome.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if outcome.failures:
        raise typer.Exit(1)


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, the reference first. FOLDER:CONTROL means a control of a run.",
        ),
    ],
    control: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="A run without retrieval. Default: each run's control none."
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Columns, separated by commas: score, exact_match, PRRecall@K, Recall@K, "
            "ArticleRecall@K, seconds.",
        ),
    ] = "",
    common: Common = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write table.csv, .md, .tex, .json and report.html here."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files in --output.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of intervals and tests.")] = 0,
) -> None:
    """Compare finished runs, and show where retrieval or another run helps or hurts."""
    from ravqa.runs.console import Console
    from ravqa.studies.compare import CompareRequest, compare_and_print

    compare_and_print(
        CompareRequest(
            runs=tuple(runs),
            control=control,
            metrics=listed(metrics),
            common=common,
            output=output,
            overwrite=overwrite,
            seed=seed,
        ),
        Console(),
    )


def power(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, the reference first. A single run is compared with its control "
            "none.",
        ),
    ],
    difference: Annotated[
        str,
        typer.Option(metavar="LIST", help="Differences to detect, in points, separated by commas."),
    ] = "1,2,5",
    power_wanted: Annotated[
        float,
        typer.Option(
            "--power", metavar="P", help="Probability of detecting them (statistical power)."
        ),
    ] = 0.8,
    alpha: Annotated[
        float,
        typer.Option(metavar="P", help="Probability of a false positive (significance level)."),
    ] = 0.05,
    comparisons: Annotated[
        int, typer.Option(metavar="N", help="Number of comparisons to correct for.")
    ] = 1,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="score, exact_match, PRRecall@K, ...")
    ] = "score",
    common: Common = False,
) -> None:
    """Estimate from finished runs how many questions are needed to detect a difference."""
    from ravqa.runs.console import Console
    from ravqa.studies.power import PowerRequest, power_of

    try:
        differences = tuple(float(text) for text in listed(difference))
    except ValueError:
        raise UserError(f"--difference {difference!r}: numbers are expected") from None
    power_of(
        PowerRequest(
            runs=tuple(runs),
            differences=differences,
            power=power_wanted,
            alpha=alpha,
            comparisons=comparisons,
            metric=metric,
            common=common,
        ),
        Console(),
    )
