"""Checks of what parts return: a part that breaks its contract is named in a one-line error."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

from ravqa.core.errors import UserError, broken, first_line
from ravqa.core.outcomes import Failure


@contextmanager
def raised_by(
    kind: str, part: object, where: str, *, but: type[Exception] = UserError
) -> Iterator[None]:
    """Turn an exception that somebody else's part raises into a one-line error that names it.

    Errors about files keep their own lines, and parts of this project their tracebacks.

    Args:
        part: the part, or its class.
        where: what it was asked, as in "it raises ValueError when built".
        but: an exception that the contract allows.

    Raises:
        ContractError: the part raised something other than a UserError or OSError.
    """
    try:
        yield
    except (UserError, OSError, but):
        raise
    except Exception as e:
        own = part if isinstance(part, type) else type(part)
        if own.__module__.startswith("ravqa."):
            raise
        what = f"it raises {type(e).__name__} {where}: {first_line(e)}"
        raise broken(part, kind, what) from e


def check_declared(kind: str, part: object, contract: type, *, constants: bool) -> None:
    """Check that a part sets the attributes that its contract declares.

    Args:
        part: the part, or its class.
        constants: whether attributes of the class are checked, or those of an object.

    Raises:
        ContractError: one is not set.
    """
    for name, type_ in contract.__annotations__.items():
        constant = str(type_).startswith("ClassVar")
        if constant == constants and not hasattr(part, name):
            raise broken(part, kind, f"it does not set `{name}`")


def check_count(kind: str, part: object, call: str, found: Any, expected: int) -> None:
    """Check that a call returned one result per item.

    Raises:
        ContractError: it returned a different number, or something that cannot be counted.
    """
    if not isinstance(found, Collection) or isinstance(found, str | bytes):
        got = type(found).__name__
        raise broken(part, kind, f"it returned {got} from {call}: a list is expected")
    if len(found) != expected:
        raise broken(
            part, kind, f"it returned {len(found)} results from {call} for {expected} items"
        )


def check_each(
    kind: str,
    part: object,
    call: str,
    found: Any,
    expected: int,
    problem: Callable[[Any], str],
) -> list[Any]:
    """Check that a call returned a valid result, or a `Failure`, for each item.

    Args:
        problem: returns what is wrong with a result ("a score that is not a number"), or "".

    Returns:
        The results as a list.

    Raises:
        ContractError: there are too few or too many results, or an invalid one.
    """
    check_count(kind, part, call, found, expected)
    out = list(found)
    for outcome in out:
        if not isinstance(outcome, Failure) and (what := problem(outcome)):
            raise broken(part, kind, f"it returned from {call} {what}")
    return out


def number_problem(value: Any, what: str) -> str:
    """Return what is wrong with a value that should be a number; infinity is allowed."""
    if isinstance(value, bool) or not isinstance(value, Real):  # includes NumPy's numbers
        return f"{what} of type {type(value).__name__}, not a number"
    return f"{what} that is not a number" if math.isnan(value) else ""
