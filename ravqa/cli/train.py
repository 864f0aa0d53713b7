"""`ravqa train`, and `ravqa mine` for its hard negatives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ravqa.cli.options import from_request
from ravqa.cli.shared import opened_console, quiet_libraries, say
from ravqa.core.texts import number_of
from ravqa.training.options import MineRequest, TrainRequest

if TYPE_CHECKING:
    from ravqa.runs.console import Console

app = typer.Typer(help="Train parts of a pipeline from a settings file.", no_args_is_help=True)


def run_training(request: TrainRequest, train: Callable[[TrainRequest, Console], Path]) -> None:
    """Run a training with a console, and print where its results are."""
    with opened_console() as console:
        try:
            folder = train(request, console)
        except KeyboardInterrupt:
            print("--resume --output DIR resumes this training", file=sys.stderr)
            raise
    say(f"training folder: {folder}")


@app.command()
@from_request(TrainRequest)
def retriever(request: TrainRequest) -> None:
    """Train an FLMR-family retriever on questions with relevant passages."""

    def train(request: TrainRequest, console: Console) -> Path:
        from ravqa.training.retriever import train_retriever

        return train_retriever(request, console)

    run_training(request, train)


@app.command()
@from_request(TrainRequest)
def reader(request: TrainRequest) -> None:
    """Train the reader of a pipeline: a LoRA adapter, or all of its weights."""

    def train(request: TrainRequest, console: Console) -> Path:
        from ravqa.training.reader import train_reader

        return train_reader(request, console)

    run_training(request, train)


@from_request(MineRequest)
def mine(request: MineRequest) -> None:
    """Write the passages that a run found and that are not relevant, as hard negatives.

    A passage that is known to be relevant, or contains an answer, is never written.
    """
    quiet_libraries()
    from ravqa.training.mine import mine as mine_run

    found = mine_run(request)
    say(
        f"{number_of(found.negatives, 'negative')} for {found.with_negatives:,} of "
        f"{number_of(found.questions, 'question')}: {request.output}"
    )
