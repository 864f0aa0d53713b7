"""Commands for files before and after a run: passages, vectors, checkpoints, predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from ravqa.cli.options import from_request
from ravqa.cli.shared import opened_console, say
from ravqa.core.texts import number_of
from ravqa.runs.options import EncodeRequest, ScoreRequest, SelectiveRequest


@from_request(EncodeRequest)
def encode(request: EncodeRequest) -> None:
    """Encode passages before `ravqa run`; if interrupted, repeat the command to resume.

    With several GPUs: torchrun --nproc-per-node N -m ravqa encode ...
    """
    with opened_console() as console:
        from ravqa.cli.encode import encode as encode_request

        encode_request(request, console)


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
    encoding: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Encoding of a .csv or .tsv; recognized if not given."),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            metavar="CHAR|tab",
            help="What separates the fields of a .csv; recognized if not given.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --output.")
    ] = False,
) -> None:
    """Cut the articles of a knowledge base into passages with title and URL."""
    from ravqa.core.settings import validate
    from ravqa.corpora.kb import Sections
    from ravqa.corpora.sources import write_passages
    from ravqa.runs.console import Console
    from ravqa.runs.folder import check_output

    check_output(output, overwrite=overwrite)
    form = {"quotes": quotes, "encoding": encoding, "delimiter": delimiter}
    options = {"keep": keep, "words": words, **form}
    sections = validate(Sections, options, "ravqa passages")
    with Console().status(f"reading {', '.join(path.name for path in sources)}"):
        written, articles = write_passages(sources, output, sections, overwrite=overwrite)
    say(f"{number_of(written, 'passage')} of {number_of(articles, 'article')}: {output}")


@from_request(ScoreRequest)
def score(
    request: ScoreRequest,
    normalization: Annotated[
        Literal["official", "always"] | None,
        typer.Option(help="For VQA accuracy: short for --metric-option normalization=..."),
    ] = None,
) -> None:
    """Score a file of predictions by the rules of a run; no model is needed."""
    if normalization is not None:
        options = (*request.metric_options, f"normalization={normalization}")
        request = replace(request, metric_options=options)
    with opened_console() as console:
        from ravqa.runs.scoring import score as score_request

        score_request(request, console)


@from_request(SelectiveRequest)
def selective(request: SelectiveRequest) -> None:
    """Show what a finished run refused, and what thresholds of its confidences would gain."""
    with opened_console() as console:
        from ravqa.runs.selective import selective as measure

        measure(request, console)


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
    say(f"written: {target}")
    for name in unexpected:
        say(f"skipped unknown name: {name}")
