"""`ravqa ls` and `ravqa doctor`: which parts exist, and whether they work on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from ravqa.cli.options import from_request
from ravqa.cli.run import Subset, with_subset
from ravqa.cli.shared import Json, say
from ravqa.runs.options import RunRequest

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

    from ravqa.cli.doctor import Report

Kind = Literal[
    "datasets", "pipelines", "studies", "prompts", "describers", "encoders", "indexes",
    "retrievers", "rerankers", "readers", "rules", "metrics", "judges",
]  # fmt: skip


def ls(
    kind: Annotated[
        Kind | None,
        typer.Argument(help="What to list. Default: everything.", metavar="KIND"),
    ] = None,
) -> None:
    """List the available datasets, pipelines, prompts, readers, retrievers, and so on."""
    from rich.text import Text

    from ravqa.core.terminal import Terminal

    terminal = Terminal()
    kinds: tuple[Kind, ...] = get_args(Kind)
    for one in (kind,) if kind else kinds:
        if kind is None:
            terminal.print(Text(one, style="bold"))
        listed = _two_columns()
        for name, summary in _listed(one):
            listed.add_row(name if kind else f"  {name}", summary)
        terminal.print(listed)


def _listed(kind: Kind) -> list[tuple[str, str]]:
    """Return names and summaries of everything of one kind."""
    from ravqa.core.locations import PIPELINES, PROMPTS, STUDIES
    from ravqa.core.registry import table
    from ravqa.core.settings import read_yaml

    folders = {"pipelines": PIPELINES, "studies": STUDIES}
    if kind in folders:
        return [
            (path.stem, str(read_yaml(path).get("description", "")))
            for path in sorted(folders[kind].glob("*.yaml"))
        ]
    if kind == "prompts":
        return [(path.stem, _first_sentence(path)) for path in sorted(PROMPTS.glob("*.jinja"))]
    rows = list(table(kind))
    return [*rows, *table("retrieval metrics")] if kind == "metrics" else rows


@from_request(RunRequest, optional=("dataset", "pipeline"))
def doctor(request: RunRequest, subset: Subset = None, as_json: Json = False) -> None:
    """Show installed packages, what each extra would add, devices and caches.

    With --pipeline, also what would stop the pipeline from running. With --dataset, what would stop
    `ravqa run` with the same options; its questions and passages are read. Exit code 1 means that
    something would stop it.
    """
    from ravqa.cli import doctor as examination
    from ravqa.runs.console import Console

    asked = bool(request.dataset or request.pipeline)
    request = with_subset(replace(request, pipeline=request.pipeline or "sample"), subset)
    report = examination.examine(request if asked else None, Console())
    if as_json:
        say(examination.as_json(report))
    else:
        print_report(report, Console().out)
    if report.pipeline is not None and report.pipeline.stops:
        raise typer.Exit(1)


def print_report(report: Report, console: RichConsole) -> None:
    """Print what `ravqa doctor` found, for people."""
    from rich.text import Text

    from ravqa.cli.doctor import lines

    for title, rows in lines(report):
        console.print(Text(title, style="bold"))
        table = _two_columns()
        for name, value in rows:
            style = "red" if name == "stops" or value.startswith("- missing") else ""
            table.add_row(Text(f"  {name}"), Text(value, style=style))
        console.print(table)


def _two_columns() -> Table:
    """Return a table of names, which are never broken, and of texts, which are folded."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _first_sentence(prompt: Path) -> str:
    """Return the first sentence of the comment at the start of a template."""
    comment = prompt.read_text(encoding="utf-8").removeprefix("{#").partition("#}")[0]
    return " ".join(comment.split()).partition(". ")[0].removesuffix(".")
