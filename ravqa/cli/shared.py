"""What several groups of commands share: options, and the console that they print to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ravqa.core.texts import printable

if TYPE_CHECKING:
    from ravqa.runs.console import Console


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Change one key of the pipeline. Repeatable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def say(text: str, *, error: bool = False) -> None:
    """Print a line, or JSON, that may contain foreign text."""
    print(printable(text), file=sys.stderr if error else sys.stdout)


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
    """Turn off other libraries' progress bars and fork warnings; call before importing them."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
