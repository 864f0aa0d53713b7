"""`ravqa run`, and `ravqa report` for its report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ravqa.cli.shared import (
    Limit,
    MetricOptions,
    OnErrorChoice,
    Overrides,
    Passages,
    Pipeline,
    Split,
    listed,
    opened_console,
)

EXAMPLES = """
Examples:

  python run_vqa.py --dataset okvqa

  python run_vqa.py --dataset okvqa --controls none,oracle,wrong-image

  python run_vqa.py --dataset okvqa --data DIR --corpus passages.jsonl --limit 100

  python run_vqa.py --dataset infoseek --set answering.decision=concat --set answering.passages=3

Without --data the bundled sample is run; a score on it is no benchmark score.
"""

Dataset = Annotated[
    str, typer.Option(metavar="NAME", help="okvqa, infoseek, ... (ravqa ls datasets).")
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder with the official files, or hf:OWNER/NAME; else the sample."
    ),
]
Subset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of m2kr: one of its subsets; for retrieval alone also all, with one table.",
    ),
]
Retriever = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Replaces the pipeline's retriever: none, oracle, random, static:FILE, ...",
    ),
]
Reader = Annotated[str | None, typer.Option(metavar="NAME", help="Replaces the pipeline's reader.")]
Output = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Run folder; else a new one in runs/.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the interrupted run in --output.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")]
Controls = Annotated[
    str,
    typer.Option(
        metavar="LIST", help="Also run, comma-separated: none, oracle, random, wrong-image."
    ),
]
OnError = Annotated[
    OnErrorChoice,
    typer.Option(
        help="Broken questions: stop, or leave out and list; without an answer: stop, or wrong."
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="For intervals, tests, controls.")]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch what --data lacks of the official files.")
]
Matches = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Show in the report of the first N questions which words and image patches matched "
        "which words of the passages; else of 10, if the retriever is of late interaction. 0: of "
        "none.",
    ),
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no report.html.")]
DatasetOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset-option",
        metavar="KEY=VALUE",
        help="An option of the dataset, as subset=OKVQA or images=DIR; repeatable.",
    ),
]


def run(
    dataset: Dataset,
    data: Data = None,
    corpus: Passages = None,
    split: Split = None,
    subset: Subset = None,
    pipeline: Pipeline = "sample",
    retriever: Retriever = None,
    reader: Reader = None,
    overrides: Overrides = None,
    limit: Limit = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    retrieval_only: Annotated[
        bool, typer.Option("--retrieval-only", help="Score retrieval; load no reader.")
    ] = False,
    predict_only: Annotated[
        bool, typer.Option("--predict-only", help="Write predictions; score nothing.")
    ] = False,
    controls: Controls = "",
    on_error: OnError = OnErrorChoice.fail,
    seed: Seed = 0,
    download: Download = False,
    dataset_options: DatasetOptions = None,
    metric_options: MetricOptions = None,
    matches: Matches = None,
    no_report: NoReport = False,
) -> None:
    """Run a dataset through a pipeline and score it: answers, and retrieval apart."""
    _run(
        not no_report,
        matches,
        dataset=dataset,
        data=data,
        corpus=tuple(corpus or ()),
        split=split,
        pipeline=pipeline,
        retriever=retriever,
        reader=reader,
        overrides=tuple(overrides or ()),
        limit=limit,
        output=output,
        resume=resume,
        overwrite=overwrite,
        retrieval_only=retrieval_only,
        predict_only=predict_only,
        controls=listed(controls),
        on_error=on_error.value,
        seed=seed,
        download=download,
        dataset_options=_with_subset(dataset_options, subset),
        metric_options=tuple(metric_options or ()),
    )


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Else report.html in the run's folder, made anew."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --output.")
    ] = False,
    matches: Matches = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the dataset is now, if it has been moved."),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Where the passages are now; repeatable."),
    ] = None,
    trust_settings: Annotated[
        bool,
        typer.Option(
            "--trust-settings",
            help="Read the files and load the models that the run's settings name, also if the run "
            "was made elsewhere; remembered.",
        ),
    ] = False,
) -> None:
    """Make the report of a run once more: one file to look at.

    No model is loaded but the retriever's, for what matched (see --matches).
    """
    with opened_console() as console:
        from ravqa.reports.report import write_report

        first, *others = write_report(
            run,
            output=output,
            overwrite=output is None or overwrite,
            data=data,
            corpus=tuple(corpus or ()),
            match=matches,
            progress=console.progress,
            trust_settings=trust_settings,
        )
    print(f"report: {first}" + (f" and {len(others)} more files" if others else ""))


def _with_subset(options: list[str] | None, subset: str | None) -> tuple[str, ...]:
    return (*(options or ()), *((f"subset={subset}",) if subset is not None else ()))


def _run(report: bool, matches: int | None, **asked: Any) -> None:
    with opened_console() as console:
        from ravqa.core.factory import Session
        from ravqa.reports.report import report_runs
        from ravqa.runs.request import RunRequest
        from ravqa.runs.run import run as run_request
        from ravqa.runs.subsets import asks_for_all, run_subsets

        request = RunRequest(**asked)
        try:
            if asks_for_all(request):
                folder = run_subsets(request, console)
                if report:
                    report_runs(folder, console, match=matches)
                return
            session = Session()
            folder = run_request(request, console, session)
            session.only("describer", "encoder")  # what the report shows matches with
            if report:
                report_runs(folder, console, match=matches, session=session)
        except KeyboardInterrupt:
            print("--resume --output DIR goes on with this run", file=sys.stderr)
            raise
