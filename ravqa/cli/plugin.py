"""`ravqa plugin new`: a working file for a part of your own, and its test."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from ravqa.cli.shared import say
from ravqa.core.errors import UserError

app = typer.Typer(help="Begin a part of your own.", no_args_is_help=True)

Kind = Literal[
    "dataset", "describer", "encoder", "index", "judge", "metric", "reader", "reranker",
    "retriever", "rule",
]  # fmt: skip

_TEMPLATES = Path(__file__).with_name("plugins")
_TEST = "# --- test ---\n"
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_PLURALS = {"index": "indexes"}


@app.callback()
def group() -> None:
    """Begin a part of your own."""


@app.command()
def new(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="Kind of part.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in settings: shared-words.")],
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="Where to write the two files.")
    ] = Path(),
) -> None:
    """Write a part that works, and its test; change both into what you want.

    KIND is one of dataset, describer, encoder, index, judge, metric, reader, reranker, retriever,
    rule.
    """
    module = _module(kind, name)
    part, test = _TEMPLATES.joinpath(f"{kind}.txt").read_text(encoding="utf-8").split(_TEST)
    files = {folder / f"{module}.py": part, folder / f"test_{module}.py": test}
    for path in files:
        if path.exists():
            raise UserError(f"{path} exists: choose another name, or --folder DIR")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(_renamed(text, name, module), encoding="utf-8")
    part_file, test_file = map(str, files)
    say(f"wrote {part_file} and {test_file}")
    say(f"  python -m pytest {test_file}    (pip install pytest, if it is missing)")
    say(f"  PYTHONPATH={folder} RAVQA_PLUGINS={module} ravqa ls {_plural(kind)}")


def _module(kind: str, name: str) -> str:
    """Return the name of the file's module.

    Raises:
        UserError: the name has another form, or belongs to a part or a module that exists.
    """
    from ravqa.core.registry import table

    if not _NAME.fullmatch(name):
        raise UserError(f"NAME {name!r}: lower-case letters, digits and hyphens are expected")
    if name in table(_plural(kind)):
        raise UserError(f"there is a {kind} {name!r} already: choose another name")
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or importlib.util.find_spec(module) is not None:
        raise UserError(f"NAME {name!r}: Python has a module or word {module!r} already")
    return module


def _plural(kind: str) -> str:
    return _PLURALS.get(kind, f"{kind}s")


def _renamed(text: str, name: str, module: str) -> str:
    words = re.split("[-_]", name)
    named = text.replace("MyPart", "".join(map(str.capitalize, words)))
    named = named.replace("my_part", module).replace("my-part", name)
    return named.replace("My part", " ".join(words).capitalize())
