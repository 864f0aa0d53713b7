"""The options of `ravqa run`, `ravqa encode`, `ravqa score` and `ravqa.evaluate`.

This module imports nothing heavy: the command line's help is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ravqa.core.options import Option

_PIPELINE = Option("Settings of all parts: a name in pipelines/, or a YAML file.", "NAME|PATH")
_SET = Option("Change one key of the pipeline. Repeatable.", "KEY.PATH=VALUE", "--set")
_DATASET_OPTION = Option(
    "Option of the dataset, such as subset=OKVQA or images=DIR. Repeatable.",
    "KEY=VALUE",
    "--dataset-option",
)
_CORPUS_OPTION = Option(
    "How --corpus is read, such as ocr=true, pages=images or words=100. Repeatable.",
    "KEY=VALUE",
    "--corpus-option",
)
_METRIC_OPTION = Option(
    "Option of the dataset's answer metric. Repeatable.", "KEY=VALUE", "--metric-option"
)
_WORKER_OPTION = Option(
    "With --workers ray: number=4, num_cpus=2, num_gpus=1 or memory=8000000000 of each worker. "
    "Repeatable.",
    "KEY=VALUE",
    "--worker-option",
)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The options of a run; what each means is said in its type."""

    dataset: Annotated[
        str, Option("Dataset: okvqa, infoseek, ... (ravqa ls datasets lists all).", "NAME")
    ]
    data: Annotated[
        Path | None,
        Option(
            "Folder with the official files, or hf:OWNER/NAME. Default: the bundled sample.", "DIR"
        ),
    ] = None
    corpus: Annotated[
        Sequence[Path],
        Option(
            "Passages to retrieve from: a .jsonl, .csv, .tsv or .parquet file, a knowledge base, a "
            "folder of pages, or a collection. Repeatable.",
            "PATH",
        ),
    ] = ()
    split: Annotated[
        str | None, Option("Split of the dataset. Default: the one usually reported.", "NAME")
    ] = None
    pipeline: Annotated[str, _PIPELINE] = "sample"
    retriever: Annotated[
        str | None,
        Option(
            "Replace the pipeline's retriever: none, oracle, random, static:FILE, ... (ravqa ls "
            "retrievers lists all).",
            "NAME",
        ),
    ] = None
    reader: Annotated[
        str | None,
        Option("Replace the pipeline's reader (ravqa ls readers lists all).", "NAME"),
    ] = None
    overrides: Annotated[
        Sequence[str],
        _SET,
    ] = ()
    limit: Annotated[int | None, Option("Use only the first N questions.", "N")] = None
    output: Annotated[
        Path | None, Option("Folder of the run. Default: a new one in runs/.", "DIR")
    ] = None
    resume: Annotated[bool, Option("Continue the run in --output, or begin it.")] = False
    overwrite: Annotated[bool, Option("Replace the run in --output.")] = False
    retrieval_only: Annotated[bool, Option("Score retrieval only; load no reader.")] = False
    predict_only: Annotated[bool, Option("Write predictions without scoring them.")] = False
    controls: Annotated[
        Sequence[str],
        Option(
            "Controls to run as well, separated by commas: none (no passages), oracle (passages "
            "with an answer), random, wrong-image.",
            "LIST",
            commas=True,
        ),
    ] = ()
    on_error: Annotated[
        Literal["fail", "skip"],
        Option(
            "fail: stop at a broken question, or one that the reader cannot answer. skip: leave "
            "broken questions out, count unanswered ones as wrong, and list both."
        ),
    ] = "fail"
    seed: Annotated[int, Option("Seed of controls, intervals and tests.", "N")] = 0
    download: Annotated[bool, Option("Download the official files that are missing in --data.")] = (
        False
    )
    max_requests: Annotated[
        int | None,
        Option(
            "Stop after N requests to servers; --resume continues.",
            "N",
            least=1,
        ),
    ] = None
    max_cost: Annotated[
        float | None,
        Option(
            "Stop when so much has been spent, by the prices in the settings (reader.prices); "
            "--resume continues.",
            "X",
        ),
    ] = None
    dataset_options: Annotated[Sequence[str], _DATASET_OPTION] = ()
    metric_options: Annotated[Sequence[str], _METRIC_OPTION] = ()
    corpus_options: Annotated[Sequence[str], _CORPUS_OPTION] = ()
    workers: Annotated[
        Literal["local", "ray"],
        Option("local: this process answers. ray: workers of a Ray cluster, with a reader each."),
    ] = "local"
    worker_options: Annotated[Sequence[str], _WORKER_OPTION] = ()


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """The options of `ravqa encode`."""

    corpus: Annotated[
        Sequence[Path],
        Option(
            "Passages: a .jsonl, .csv, .tsv or .parquet file, or a knowledge base. Repeatable.",
            "PATH",
        ),
    ] = ()
    dataset: Annotated[
        str | None,
        Option("Encode the passages that come with this dataset, instead of --corpus.", "NAME"),
    ] = None
    data: Annotated[
        Path | None, Option("Folder of the dataset. Default: the bundled sample.", "DIR")
    ] = None
    pipeline: Annotated[str, _PIPELINE] = "sample"
    overrides: Annotated[Sequence[str], _SET] = ()
    dataset_options: Annotated[Sequence[str], _DATASET_OPTION] = ()
    corpus_options: Annotated[Sequence[str], _CORPUS_OPTION] = ()
    workers: Annotated[
        Literal["local", "ray"],
        Option(
            "local: this process, or those of torchrun. ray: workers of a Ray cluster, with an "
            "encoder each."
        ),
    ] = "local"
    worker_options: Annotated[Sequence[str], _WORKER_OPTION] = ()


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """The options of `ravqa score`."""

    predictions: Annotated[
        Path,
        Option(
            "VQA results (.json), InfoSeek predictions (.jsonl), a run's samples.jsonl, or the "
            "folder of a run.",
            "PREDICTIONS",
            argument=True,
        ),
    ]
    dataset: Annotated[
        str | None,
        Option(
            "Dataset that was answered (ravqa ls datasets lists all); a run's folder names it.",
            "NAME",
        ),
    ] = None
    data: Annotated[
        Path | None, Option("Folder with the official files. Default: the bundled sample.", "DIR")
    ] = None
    split: Annotated[str | None, Option("Split of the dataset.", "NAME")] = None
    dataset_options: Annotated[Sequence[str], _DATASET_OPTION] = ()
    allow_partial: Annotated[
        bool,
        Option(
            "Count missing predictions as wrong, use the last of several for one question, ignore "
            "unknown ids, and print how many of each."
        ),
    ] = False
    strip_marks: Annotated[
        bool,
        Option(
            "Strip thinking, special tokens and tool calls from the predictions; no official rule "
            "does so."
        ),
    ] = False
    metric_options: Annotated[Sequence[str], _METRIC_OPTION] = ()
    judge: Annotated[
        str | None,
        Option("Judge for E-VQA and for --rules: bem or llm. Default: exact match only.", "NAME"),
    ] = None
    overrides: Annotated[
        Sequence[str], Option("Option of the judge. Repeatable.", "judge.KEY=VALUE", "--set")
    ] = ()
    rules: Annotated[
        Sequence[str],
        Option(
            "Score by these rules too, separated by commas (ravqa ls metrics lists all), or by all "
            "that fit the questions: all.",
            "LIST",
            commas=True,
        ),
    ] = ()
    examples: Annotated[
        int, Option("With --rules: questions to show on which rules disagree.", "N", least=0)
    ] = 5
    seed: Annotated[int, Option("Seed of the intervals.", "N")] = 0
    output: Annotated[
        Path | None, Option("Write the results to this file too, as JSON.", "FILE")
    ] = None
    overwrite: Annotated[bool, Option("Replace the file in --output.")] = False


@dataclass(frozen=True, slots=True)
class SelectiveRequest:
    """The options of `ravqa selective`."""

    run: Annotated[
        str,
        Option(
            "Folder of a finished run. FOLDER:CONTROL means a control of it.", "RUN", argument=True
        ),
    ]
    calibrate: Annotated[
        str | None,
        Option(
            "Run of the same pipeline on other questions, such as the split dev: thresholds are "
            "chosen on it.",
            "RUN",
        ),
    ] = None
    target_risks: Annotated[
        Sequence[float],
        Option(
            "With --calibrate: risks that the answers may have, 0 to 1, separated by commas. "
            "Default: 0.2.",
            "LIST",
            "--target-risk",
            commas=True,
        ),
    ] = ()
    seed: Annotated[int, Option("Seed of the intervals.", "N")] = 0
    output: Annotated[
        Path | None, Option("Write the results to this file too, as JSON.", "FILE")
    ] = None
    overwrite: Annotated[bool, Option("Replace the file in --output.")] = False
