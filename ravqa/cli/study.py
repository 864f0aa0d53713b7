"""`ravqa study`, `compare` and `power`: run and compare variants of a pipeline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ravqa.cli.options import from_request
from ravqa.cli.shared import Limit, quiet_libraries
from ravqa.studies.options import CompareRequest, PowerRequest

EXAMPLES = """
Examples:

  ravqa study decision --dry-run

  ravqa study decision --output runs/decision

  ravqa study mine.yaml --data DIR --corpus passages.jsonl --limit 100 --jobs 2

docs/studies.md describes the file; ravqa ls studies lists the bundled studies.
"""


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


@from_request(CompareRequest)
def compare(request: CompareRequest) -> None:
    """Compare finished runs, and show where retrieval or another run helps or hurts."""
    from ravqa.runs.console import Console
    from ravqa.studies.compare import compare_and_print

    compare_and_print(request, Console())


@from_request(PowerRequest)
def power(request: PowerRequest) -> None:
    """Estimate from finished runs how many questions are needed to detect a difference."""
    from ravqa.runs.console import Console
    from ravqa.studies.power import power_of

    power_of(request, Console())
