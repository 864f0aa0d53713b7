"""What several groups of commands share: options, and the console that they print to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ravqa.core.texts import printable

if TYPE_CHECKING:
    from ravqa.runs.console import Console


Pipelines = Annotated[
    list[str] | None,
    typer.Option(
        "--pipeline",
        metavar="NAME|PATH",
        help="A pipeline to choose from; repeatable, the first one by default. Default: all in "
        "pipelines/ that can answer on this machine.",
    ),
]
Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address to listen at; 0.0.0.0 lets others in.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Change one key of the pipeline. Repeatable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def say(text: str, *, error: bool = False) -> None:
    """Print a line that may contain foreign text."""
    print(printable(text), file=sys.stderr if error else sys.stdout)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON, with escapes where a character cannot be shown or encoded."""
    text = printable(json.dumps(value, ensure_ascii=False, indent=indent, default=str))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # what Python would write for "\U0001f428" is not JSON
        text = json.dumps(value, indent=indent, default=str)
    print(text)


@contextmanager
def opened_console() -> Iterator[Console]:
    """Open a console whose progress bars end with the command, however it ends."""
    quiet_libraries()
    from ravqa.runs.console import Console

    console = Console()
    try:
        yield console
    finally:
        console.close()


def quiet_libraries() -> None:
    """Turn off other libraries' progress bars and fork warnings; call before importing them.

    Threads of torch that have nothing to do wait without using the processor.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
