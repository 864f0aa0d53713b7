"""Commands for files on either side of a run: passages, their vectors, checkpoints, predictions."""

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
    """When VQA accuracy cleans answers up."""

    official = "official"
    always = "always"


DatasetOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset-option", metavar="KEY=VALUE", help="An option of the dataset; repeatable."
    ),
]


def encode(
    corpus: Passages = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead: the passages that come with a dataset."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The dataset's folder; else the sample."),
    ] = None,
    pipeline: Pipeline = "sample",
    overrides: Overrides = None,
    dataset_options: DatasetOptions = None,
) -> None:
    """Encode passages ahead of `ravqa run`; goes on where a killed one was.

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
    quotes: Annotated[
        bool | None,
        typer.Option(
            "--quotes/--no-quotes",
            help="Whether quotes around fields of a .tsv belong to its form, or to the text.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --output.")
    ] = False,
) -> None:
    """Cut articles of a knowledge base into passages, each with its article, title and URL."""
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
        str, typer.Option(metavar="NAME", help="Whose questions they are for (ravqa ls datasets).")
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with the official files; else the sample."),
    ] = None,
    split: Split = None,
    options: DatasetOptions = None,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial",
            help="Count missing predictions as wrong, take the last of several for a question, "
            "pass over unknown ids; and say how many.",
        ),
    ] = False,
    metric_options: MetricOptions = None,
    normalization: Annotated[
        NormalizationChoice | None,
        typer.Option(help="Of VQA accuracy; the same as --metric-option normalization=..."),
    ] = None,
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
