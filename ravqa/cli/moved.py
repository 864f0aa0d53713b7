"""Former commands: each one stops and names the command that replaced it."""

from __future__ import annotations

import typer

from ravqa.core.errors import UserError

_ANY = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_SAME = ("build", "add", "update", "delete", "verify", "compact", "pack", "unpack")
_INDEX = {**{name: name for name in _SAME}, "show": "info"}
"""Subcommands of `ravqa index`, and what they are called now."""


def add_to(app: typer.Typer, collection: typer.Typer) -> None:
    """Register the former commands, without listing them in the help."""
    app.command("index", context_settings=_ANY, hidden=True)(_index)
    app.command("evaluate-retrieval", context_settings=_ANY, hidden=True)(_evaluate_retrieval)
    collection.command("show", context_settings=_ANY, hidden=True)(_show)


def _index(context: typer.Context) -> None:
    sub = next((_INDEX[name] for name in context.args if name in _INDEX), "--help")
    raise _moved("index", f"collection {sub}")


def _evaluate_retrieval(context: typer.Context) -> None:
    raise _moved("evaluate-retrieval", "run --retrieval-only")


def _show(context: typer.Context) -> None:
    raise _moved("collection show", "collection info")


def _moved(former: str, present: str) -> UserError:
    return UserError(f"`ravqa {former}` has been renamed: use `ravqa {present}`")
