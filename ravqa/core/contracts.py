"""Checks of what parts return: a part that breaks its contract is named in a one-line error."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Real
from typing import Any

from ravqa.core.errors import broken
from ravqa.core.outcomes import Failure


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
