"""Commands for files before and after a run: passages, vectors, checkpoints, predictions."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ravqa.cli.shared import (
    MetricOptions,
    Overrides,
    Passages,
    Pipeline,
    Split,
    opened_console,
)


class NormalizationChoice(StrEnum):
    """When VQA accuracy normalises answers."""

    official = "official"
    always = "always"


DatasetOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset-option", metavar="KEY=VALUE", help="Option of the dataset. Repeatable."
    ),
]


def encode(
    corpus: Passages = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Encode the passages that come with this dataset, instead of --corpus.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the dataset. Default: the bundled sample."),
    ] = None,
    pipeline: Pipeline = "sample",
    overrides: Overrides = None,
    dataset_options: DatasetOptions = None,
) -> None:
    """Encode passages before `ravqa run`; if interrupted, repeat the command to resume.

    With several GPUs: torchrun --nproc-per-node N -m ravqa encode ...
    """
    with opened_console() as console:
        from ravqa.cli.encode import EncodeRequest
        from ravqa.cli.encode import encode as encode_request

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


def passages(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE...", help="Knowledge bases or other files of passages."),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="The .jsonl file to write; use it with --corpus.")
    ],
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep only the articles named in this file: a .txt, a .csv with a column "
            "wikipedia_url, or a withkb.jsonl.",
        ),
    ] = None,
    words: Annotated[
        int | None, typer.Option(metavar="N", help="Cut sections into passages of at most N words.")
    ] = None,
    quotes: Annotated[
        bool | None,
        typer.Option(
            "--quotes/--no-quotes",
            help="Remove quotes around the fields of a .tsv, or keep them as text.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --output.")
    ] = False,
) -> None:
    """Cut the articles of a knowledge base into passages with title and URL."""
    from ravqa.core.settings import validate
    from ravqa.corpora.corpus import write_passages
    from ravqa.corpora.kb import Sections
    from ravqa.runs.console import Console

    options = {"keep": keep, "words": words, "quotes": quotes}
    sections = validate(Sections, options, "ravqa passages")
    with Console().status(f"reading {', '.join(path.name for path in sources)}"):
        written, articles = write_passages(sources, output, sections, overwrite=overwrite)
    print(f"{written:,} passages of {articles:,} articles: {output}")


def score(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="VQA results (.json), InfoSeek predictions (.jsonl), or a run's samples.jsonl.",
        ),
    ],
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Dataset that was answered (ravqa ls datasets lists all)."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder with the official files. Default: the bundled sample."
        ),
    ] = None,
    split: Split = None,
    options: DatasetOptions = None,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial",
            help="Count missing predictions as wrong, use the last of several for one question, "
            "ignore unknown ids, and print the numbers of each.",
        ),
    ] = False,
    metric_options: MetricOptions = None,
    normalization: Annotated[
        NormalizationChoice | None,
        typer.Option(help="For VQA accuracy: short for --metric-option normalization=..."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Judge for E-VQA: bem or llm. Default: exact match only."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="judge.KEY=VALUE", help="Option of the judge. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the intervals.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the results to this file too, as JSON."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --output.")
    ] = False,
) -> None:
    """Score a file of predictions by the rules of a run; no model is needed."""
    options_of_metric = [*(metric_options or ())]
    if normalization is not None:
        options_of_metric.append(f"normalization={normalization.value}")
    with opened_console() as console:
        from ravqa.runs.scoring import ScoreRequest
        from ravqa.runs.scoring import score as score_request

        score_request(
            ScoreRequest(
                predictions=predictions,
                dataset=dataset,
                data=data,
                split=split,
                options=tuple(options or ()),
                allow_partial=allow_partial,
                metric_options=tuple(options_of_metric),
                judge=judge,
                overrides=tuple(overrides or ()),
                seed=seed,
                output=output,
                overwrite=overwrite,
            ),
            console,
        )


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="A .bin, .safetensors or Lightning .ckpt file, or a folder."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new checkpoint.")],
    vision: Annotated[
        str | None,
        typer.Option(metavar="DIR|NAME", help="CLIP weights, if the .ckpt lacks the vision tower."),
    ] = None,
) -> None:
    """Convert an FLMR or PreFLMR checkpoint to safetensors with the released key names."""
    from ravqa.flmr import convert as convert_checkpoint

    unexpected = convert_checkpoint(source, target, vision=vision)
    print(f"written: {target}")
    for name in unexpected:
        print(f"left out, unknown name: {name}")
