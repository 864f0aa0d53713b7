"""`ravqa run`, and `ravqa report` for its report."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ravqa.cli.options import arguments_of, from_request
from ravqa.cli.shared import opened_console, say
from ravqa.core.errors import UserError
from ravqa.runs.options import RunRequest

EXAMPLES = """
Examples:

  python run_vqa.py --dataset okvqa

  python run_vqa.py --dataset okvqa --controls none,oracle,wrong-image

  python run_vqa.py --dataset okvqa --data DIR --corpus passages.jsonl --limit 100

  python run_vqa.py --dataset infoseek --set answering.decision=concat --set answering.passages=3

Without --data the bundled sample is used; scores on it are not benchmark scores.
"""

Matches = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Show in the report, for the first N questions, which words and image patches of the "
        "question match which words of the passages. Default: 10 for late interaction, else 0.",
    ),
]


Subset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Subset of m2kr; all runs every subset (with --retrieval-only) and prints one "
        "table with the published scores.",
    ),
]


def with_subset(request: RunRequest, subset: str | None) -> RunRequest:
    """Return a request for a subset of the dataset; None is the whole one."""
    if subset is None:
        return request
    return replace(request, dataset_options=(*request.dataset_options, f"subset={subset}"))


@from_request(RunRequest)
def run(
    request: RunRequest,
    subset: Subset = None,
    matches: Matches = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html.")] = False,
) -> None:
    """Run a dataset through a pipeline, and score answers and retrieval."""
    request = with_subset(request, subset)
    with opened_console() as console:
        from ravqa.core.factory import Session
        from ravqa.reports.report import report_runs
        from ravqa.runs.plan import default_output
        from ravqa.runs.run import run as run_request
        from ravqa.runs.subsets import asks_for_all, run_subsets

        if request.output is None and not request.resume:
            request = replace(request, output=default_output(request))
        begun = _begun(request.output)
        try:
            if asks_for_all(request):
                folder = run_subsets(request, console)
                if not no_report:
                    report_runs(folder, console, match=matches)
                return
            session = Session()
            folder = run_request(request, console, session)
            session.only("describer", "encoder")  # the report computes matches with these
            if not no_report:
                report_runs(folder, console, match=matches, session=session)
        except KeyboardInterrupt:
            # Until the old run is replaced, it is not this one that --resume would continue.
            if request.overwrite and _begun(request.output) != begun:
                request = replace(request, overwrite=False)
            again = replace(request, resume=not request.overwrite)
            command = shlex.join(["ravqa", "run", *arguments_of(again)])
            say(f"to continue: {command}", error=True)
            raise


def _begun(output: Path | None) -> int | None:
    """Return when the settings in a run's folder were written, in nanoseconds; None without any."""
    try:
        return None if output is None else (output / "config.yaml").stat().st_mtime_ns
    except OSError:
        return None


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run or study.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write. Default: report.html in RUN."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --output.")
    ] = False,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="N|IDS",
            help="The questions to show: at most N, those that retrieval helped or hurt first and "
            "then a random sample of the others; or ids, comma-separated (a single one: ID,). "
            "Default: 2000.",
        ),
    ] = None,
    matches: Matches = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the dataset is now, if it was moved."),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="Where the passages are now, if they were moved. Repeatable."
        ),
    ] = None,
    trust_settings: Annotated[
        bool,
        typer.Option(
            "--trust-settings",
            help="Read the files and load the models that the run's settings name, even if the run "
            "was made elsewhere. The choice is remembered.",
        ),
    ] = False,
) -> None:
    """Rebuild the HTML report of a finished run, or of a study.

    The only model that is loaded is the retriever's, for --matches.
    """
    with opened_console() as console:
        from ravqa.reports.report import parse_questions, write_report
        from ravqa.studies.run import StudyFolder, rebuild_report

        if (run / StudyFolder.marker).is_file():
            if output or questions or matches is not None or data or corpus:
                raise UserError(
                    f"{run} is the folder of a study, whose report has no options: "
                    f"those of its runs have ({run}/runs/...)"
                )
            say(f"report: {rebuild_report(run)}")
            return
        path = write_report(
            run,
            output=output,
            overwrite=output is None or overwrite,
            data=data,
            corpus=tuple(corpus or ()),
            questions=parse_questions(questions),
            match=matches,
            progress=console.progress,
            note=console.note,
            trust_settings=trust_settings,
        )
    say(f"report: {path}")
