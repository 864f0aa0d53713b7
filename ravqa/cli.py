"""The command line. Nothing heavy is imported before a command really runs."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ravqa import index_commands
from ravqa.errors import UserError
from ravqa.index_commands import OnErrorChoice

_EXAMPLES = """
Examples:

  python run_vqa.py --dataset okvqa

  python run_vqa.py --dataset okvqa --controls none,oracle,wrong-image

  python run_vqa.py --dataset okvqa --data DIR --corpus passages.jsonl --limit 100

  python run_vqa.py --dataset infoseek --set answering.decision=concat --set answering.passages=3

Without --data the bundled sample is run; a score on it is no benchmark score.
"""

# typer brings a copy of click in newer releases and uses click itself in older ones: the errors to
# catch are those of the module that it raises from.
_usage: Any = sys.modules[typer.BadParameter.__module__]
_INTERRUPTED = 130

app = typer.Typer(
    name="ravqa",
    help="Retrieval-augmented generation for knowledge-based visual question answering.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Kind(StrEnum):
    """What `ravqa ls` lists."""

    datasets = "datasets"
    pipelines = "pipelines"
    studies = "studies"
    prompts = "prompts"
    readers = "readers"
    retrievers = "retrievers"
    rerankers = "rerankers"
    metrics = "metrics"
    judges = "judges"


Dataset = Annotated[
    str, typer.Option(metavar="NAME", help="okvqa, infoseek, ... (ravqa ls datasets).")
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder with the official files, or hf:OWNER/NAME; else the sample."
    ),
]
Passages = Annotated[
    list[Path] | None,
    typer.Option(
        "--corpus",
        metavar="PATH",
        help="Passages: .jsonl, .csv, .tsv, .parquet, or a knowledge base; repeatable.",
    ),
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Split of the dataset.")]
Subset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of m2kr: one of its subsets; for retrieval alone also all, with one table.",
    ),
]
Pipeline = Annotated[
    str, typer.Option(metavar="NAME|PATH", help="A name in pipelines/, or a YAML file.")
]
Retriever = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Replaces the pipeline's retriever: none, oracle, random, static:FILE, ...",
    ),
]
Reader = Annotated[str | None, typer.Option(metavar="NAME", help="Replaces the pipeline's reader.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Changes one key of the pipeline; repeatable."
    ),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Only the first N questions.")]
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
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no report.html.")]
DatasetOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset-option",
        metavar="KEY=VALUE",
        help="An option of the dataset, as subset=OKVQA or images=DIR; repeatable.",
    ),
]


@app.command(epilog=_EXAMPLES)
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
    no_report: NoReport = False,
) -> None:
    """Run a dataset through a pipeline and score it: answers, and retrieval apart."""
    _run(
        not no_report,
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
        controls=_listed(controls),
        on_error=on_error.value,
        seed=seed,
        download=download,
        dataset_options=_with_subset(dataset_options, subset),
    )


@app.command()
def evaluate_retrieval(
    dataset: Dataset,
    data: Data = None,
    corpus: Passages = None,
    split: Split = None,
    subset: Subset = None,
    pipeline: Pipeline = "sample",
    retriever: Retriever = None,
    overrides: Overrides = None,
    limit: Limit = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    controls: Controls = "",
    on_error: OnError = OnErrorChoice.fail,
    seed: Seed = 0,
    download: Download = False,
    dataset_options: DatasetOptions = None,
    no_report: NoReport = False,
) -> None:
    """Score retrieval alone: the same as ravqa run --retrieval-only."""
    _run(
        not no_report,
        dataset=dataset,
        data=data,
        corpus=tuple(corpus or ()),
        split=split,
        pipeline=pipeline,
        retriever=retriever,
        overrides=tuple(overrides or ()),
        limit=limit,
        output=output,
        resume=resume,
        overwrite=overwrite,
        retrieval_only=True,
        controls=_listed(controls),
        on_error=on_error.value,
        seed=seed,
        download=download,
        dataset_options=_with_subset(dataset_options, subset),
    )


def _listed(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _with_subset(options: list[str] | None, subset: str | None) -> tuple[str, ...]:
    return (*(options or ()), *((f"subset={subset}",) if subset is not None else ()))


def _run(report: bool, **asked: Any) -> None:
    # Before the libraries are imported: one progress display is enough, and tokenizers would warn
    # of every fork.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ravqa.console import Console
    from ravqa.run import RunRequest
    from ravqa.run import run as run_request
    from ravqa.studies.report import report_runs
    from ravqa.subsets import asks_for_all, run_subsets

    request = RunRequest(**asked)
    console = Console()
    try:
        folder = (run_subsets if asks_for_all(request) else run_request)(request, console)
        if report:
            report_runs(folder, console)
    except KeyboardInterrupt:
        print("--resume --output DIR goes on with this run", file=sys.stderr)
        raise
    finally:
        console.close()


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Else report.html in the run's folder, made anew."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --output.")
    ] = False,
    matches: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Show of the first N questions which words and image patches matched which words "
            "of the passages; loads the late-interaction retriever.",
        ),
    ] = 0,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the dataset is now, if it has been moved."),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Where the passages are now; repeatable."),
    ] = None,
) -> None:
    """Make the report of a run once more: one file to look at, without any model."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ravqa.console import Console
    from ravqa.studies.report import write_report

    console = Console()
    try:
        first, *others = write_report(
            run,
            output=output,
            overwrite=output is None or overwrite,
            data=data,
            corpus=tuple(corpus or ()),
            match=matches,
            progress=console.progress,
        )
    finally:
        console.close()
    print(f"report: {first}" + (f" and {len(others)} more files" if others else ""))


@app.command()
def encode(
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Passages: .jsonl, .csv, .tsv, .parquet, or a knowledge base; repeatable.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead: the passages that come with a dataset."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The dataset's folder; else the sample."),
    ] = None,
    pipeline: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="A name in pipelines/, or a YAML file.")
    ] = "sample",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY.PATH=VALUE", help="Changes one key of the pipeline; repeatable."
        ),
    ] = None,
    dataset_options: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset-option", metavar="KEY=VALUE", help="An option of the dataset; repeatable."
        ),
    ] = None,
) -> None:
    """Encode passages ahead of `ravqa run`; goes on where a killed one was.

    With several GPUs: torchrun --nproc-per-node N -m ravqa encode ...
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ravqa.console import Console
    from ravqa.encode import EncodeRequest
    from ravqa.encode import encode as encode_request

    console = Console()
    try:
        encode_request(
            EncodeRequest(
                pipeline=pipeline,
                corpus=tuple(corpus or ()),
                dataset=dataset,
                data=data,
                overrides=tuple(overrides or ()),
                dataset_options=tuple(dataset_options or ()),
            ),
            console,
        )
    finally:
        console.close()


@app.command()
def passages(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE...", help="Knowledge bases, or other passage files."),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="The .jsonl file to write, for --corpus.")
    ],
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only articles named here: a .txt, a csv with wikipedia_url, a withkb.jsonl.",
        ),
    ] = None,
    words: Annotated[
        int | None, typer.Option(metavar="N", help="Cut sections into passages of N words.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --output.")
    ] = False,
) -> None:
    """Cut articles of a knowledge base into passages, each with its article, title and URL."""
    from ravqa.config import validate
    from ravqa.console import Console
    from ravqa.datasets.corpus import write_passages
    from ravqa.datasets.kb import Sections

    options = {"keep": keep, "words": words}
    sections = validate(Sections, options, "ravqa passages")
    with Console().status(f"reading {', '.join(path.name for path in sources)}"):
        written, articles = write_passages(sources, output, sections, overwrite=overwrite)
    print(f"{written:,} passages of {articles:,} articles: {output}")


class NormalizationChoice(StrEnum):
    """When VQA accuracy cleans answers up."""

    official = "official"
    always = "always"


@app.command()
def score(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="VQA results (.json), InfoSeek predictions (.jsonl), or a run's samples.jsonl.",
        ),
    ],
    dataset: Annotated[
        str, typer.Option(metavar="NAME", help="Whose questions they are for (ravqa ls datasets).")
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with the official files; else the sample."),
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Split of the dataset.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset-option", metavar="KEY=VALUE", help="An option of the dataset; repeatable."
        ),
    ] = None,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial",
            help="Count missing predictions as wrong, take the last of several for a question, "
            "pass over unknown ids; and say how many.",
        ),
    ] = False,
    normalization: Annotated[
        NormalizationChoice, typer.Option(help="Of VQA accuracy: official, or always clean up.")
    ] = NormalizationChoice.official,
    judge: Annotated[
        str | None, typer.Option(metavar="NAME", help="For E-VQA: bem or llm; else exact match.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="judge.KEY=VALUE", help="Option of the judge; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="For intervals.")] = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the results, as JSON.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --output.")
    ] = False,
) -> None:
    """Score a file of predictions as a run is scored, without any model."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ravqa.console import Console
    from ravqa.scoring import ScoreRequest
    from ravqa.scoring import score as score_request

    console = Console()
    try:
        score_request(
            ScoreRequest(
                predictions=predictions,
                dataset=dataset,
                data=data,
                split=split,
                options=tuple(options or ()),
                allow_partial=allow_partial,
                normalization=normalization.value,
                judge=judge,
                overrides=tuple(overrides or ()),
                seed=seed,
                output=output,
                overwrite=overwrite,
            ),
            console,
        )
    finally:
        console.close()


_STUDY_EXAMPLES = """
Examples:

  ravqa study decision --dry-run

  ravqa study decision --output runs/decision

  ravqa study mine.yaml --data DIR --corpus passages.jsonl --limit 100 --jobs 2

The form of the file: docs/studies.md; ravqa ls studies lists those that come with the project.
"""


@app.command(epilog=_STUDY_EXAMPLES)
def study(
    study_file: Annotated[
        str, typer.Argument(metavar="STUDY", help="A YAML file, or a name in studies/.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY.PATH=VALUE",
            help="Changes one key of every variant, before its own changes; repeatable.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Replaces the study's data folder.")
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Replaces the study's passages; repeatable."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Replaces the study's split.")
    ] = None,
    limit: Limit = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Study folder; else a new one in runs/.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the study in --output; variants may have been added."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the study in --output.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the variants and what would run.")
    ] = False,
    jobs: Annotated[int, typer.Option(metavar="N", help="Run variants in N processes.")] = 1,
) -> None:
    """Run every variant of a study and compare them; what variants share is run once.

    Exit code 1: some variants failed (the others have run).
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ravqa.studies.plan import Changes
    from ravqa.studies.quiet import StudyConsole
    from ravqa.studies.study import StudyRequest
    from ravqa.studies.study import study as run_study

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
        print("--resume --output DIR goes on with this study", file=sys.stderr)
        raise
    finally:
        console.close()
    for name, reason in outcome.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if outcome.failures:
        raise typer.Exit(1)


Common = Annotated[
    bool, typer.Option("--common", help="Compare on the questions that all runs have asked.")
]


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, the reference first; FOLDER:CONTROL is a control of a run.",
        ),
    ],
    control: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="The run without retrieval; else each run's control none."
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Columns, comma-separated: score, exact_match, PRRecall@K, Recall@K, "
            "ArticleRecall@K, seconds.",
        ),
    ] = "",
    common: Common = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write table.csv, .md, .tex, .json, report.html."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files in --output.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="For intervals and tests.")] = 0,
) -> None:
    """Compare finished runs, and say where retrieval (or one run) helps or hurts."""
    from ravqa.console import Console
    from ravqa.studies.compare import CompareRequest
    from ravqa.studies.compare import compare as compare_runs

    compare_runs(
        CompareRequest(
            runs=tuple(runs),
            control=control,
            metrics=_listed(metrics),
            common=common,
            output=output,
            overwrite=overwrite,
            seed=seed,
        ),
        Console(),
    )


@app.command()
def power(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, the reference first; one alone is compared with its control none.",
        ),
    ],
    difference: Annotated[
        str, typer.Option(metavar="LIST", help="Points to be seen, comma-separated.")
    ] = "1,2,5",
    power_wanted: Annotated[
        float, typer.Option("--power", metavar="P", help="Chance of seeing them.")
    ] = 0.8,
    alpha: Annotated[
        float, typer.Option(metavar="P", help="Chance of seeing a difference that is not there.")
    ] = 0.05,
    comparisons: Annotated[
        int, typer.Option(metavar="N", help="Comparisons that are corrected for.")
    ] = 1,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="score, exact_match, PRRecall@K, ...")
    ] = "score",
    common: Common = False,
) -> None:
    """Say how many questions show a difference of so many points, from runs at hand."""
    from ravqa.console import Console
    from ravqa.studies.power import PowerRequest, power_of

    try:
        differences = tuple(float(text) for text in _listed(difference))
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


@app.command()
def ls(
    kind: Annotated[Kind, typer.Argument(help="What to list.", metavar="KIND")],
) -> None:
    """List datasets, pipelines, studies, prompts, readers, retrievers, rerankers, and more."""
    from rich.console import Console
    from rich.table import Table

    from ravqa import registry
    from ravqa.config import read_yaml
    from ravqa.paths import PIPELINES, PROMPTS, STUDIES

    folders = {Kind.pipelines: PIPELINES, Kind.studies: STUDIES}
    if kind in folders:
        rows = [
            (path.stem, str(read_yaml(path).get("description", "")))
            for path in sorted(folders[kind].glob("*.yaml"))
        ]
    elif kind is Kind.prompts:
        rows = [(path.stem, _first_sentence(path)) for path in sorted(PROMPTS.glob("*.jinja"))]
    else:
        registries = {
            Kind.datasets: registry.DATASETS,
            Kind.readers: registry.READERS,
            Kind.retrievers: registry.RETRIEVERS,
            Kind.rerankers: registry.RERANKERS,
            Kind.metrics: registry.METRICS,
            Kind.judges: registry.JUDGES,
        }
        rows = list(registries[kind])
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _first_sentence(prompt: Path) -> str:
    """Of the comment that a template begins with."""
    comment = prompt.read_text(encoding="utf-8").removeprefix("{#").partition("#}")[0]
    return " ".join(comment.split()).partition(". ")[0].removesuffix(".")


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="A .bin, .safetensors or Lightning .ckpt, or a folder."),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new checkpoint.")],
    vision: Annotated[
        str | None,
        typer.Option(metavar="DIR|NAME", help="CLIP weights for a .ckpt without its vision tower."),
    ] = None,
) -> None:
    """Rewrite a FLMR or PreFLMR checkpoint as safetensors under the released key names."""
    from ravqa.flmr import convert as convert_checkpoint

    unexpected = convert_checkpoint(source, target, vision=vision)
    print(f"written: {target}")
    for name in unexpected:
        print(f"left out, of unknown name: {name}")


@app.command()
def doctor(
    pipeline: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Also say what would stop this pipeline."),
    ] = None,
    overrides: Overrides = None,
    as_json: index_commands.Json = False,
) -> None:
    """Say what is installed, what each extra would add, devices, caches and their sizes.

    Exit code 1: something stops the pipeline from running.
    """
    from rich.table import Table
    from rich.text import Text

    from ravqa import doctor as examination
    from ravqa.console import Console

    report = examination.examine(pipeline, overrides or ())
    if as_json:
        print(examination.as_json(report))
    else:
        console = Console().out
        for title, rows in examination.lines(report):
            console.print(Text(title, style="bold"))
            table = Table(show_header=False, box=None, pad_edge=False)
            table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
            for name, value in rows:
                style = "red" if name == "stops" or value.startswith("lacks") else ""
                table.add_row(Text(f"  {name}"), Text(value, style=style))
            console.print(table)
    if report.pipeline is not None and report.pipeline.stops:
        raise typer.Exit(1)


app.add_typer(index_commands.app, name="index")
app.command()(index_commands.search)
app.command()(index_commands.ask)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `ravqa`: a user's mistake is one line on stderr and exit code 2."""
    _guarded(app, arguments, "ravqa")


def run_main(arguments: list[str] | None = None) -> None:
    """Entry point of `run_vqa.py`: `ravqa run` without the word run."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(epilog=_EXAMPLES)(run)
    _guarded(single, arguments, "run_vqa.py")


def _guarded(application: typer.Typer, arguments: list[str] | None, name: str) -> None:
    try:
        code = application(args=arguments, prog_name=name, standalone_mode=False)
        if code == _INTERRUPTED:  # newer releases of typer turn the exception into the code
            _interrupted()
    except getattr(_usage, "NoArgsIsHelpError", ()) as e:
        e.show()
        code = 2
    except _usage.ClickException as e:
        code = _fail(f"{e.format_message()} ({name} --help lists the options)")
    except UserError as e:
        code = _fail(str(e))
    except (typer.Abort, KeyboardInterrupt):
        code = _interrupted()
    except OSError as e:
        # A full disk or a folder without access is the user's to mend; a closed pipe is no error
        # of a file, and what has no number comes from a library.
        if e.errno is None or isinstance(e, BrokenPipeError):
            raise
        code = _fail(f"{e.filename or 'writing or reading a file'}: {e.strerror}")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> int:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    return 2


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return _INTERRUPTED
