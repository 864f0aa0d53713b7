"""`ravqa study`, `compare` and `power`: run and compare variants of a pipeline."""

from __future__ import annotations

import sys

import typer

from ravqa.cli.options import from_request
from ravqa.cli.shared import quiet_libraries, say
from ravqa.studies.options import CompareRequest, PowerRequest, StudyRequest

EXAMPLES = """
Examples:

  ravqa study decision --dry-run

  ravqa study decision --output runs/decision

  ravqa study mine.yaml --data DIR --corpus passages.jsonl --limit 100 --jobs 2

docs/studies.md describes the file; ravqa ls studies lists the bundled studies.
"""


@from_request(StudyRequest)
def study(request: StudyRequest) -> None:
    """Run all variants of a study and compare them; shared work is done once.

    Exit code 1 means that some variants failed; the others have run.
    """
    quiet_libraries()
    from ravqa.studies.quiet import StudyConsole
    from ravqa.studies.run import study as run_study

    console = StudyConsole()
    try:
        outcome = run_study(request, console)
    except KeyboardInterrupt:
        print("--resume --output DIR resumes this study", file=sys.stderr)
        raise
    finally:
        console.close()
    for name, reason in outcome.failures.items():
        say(f"failed: {name}: {reason}", error=True)
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
