"""Failures as values: a batch returns one outcome per item, in order, and loses none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ravqa.core.errors import PromptError, ServerError, UserError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why one item of a batch has no result.

    Attributes:
        reason: one line for the user.
        fatal: not the item's fault: the server is gone, and the remaining items would fail too.
    """

    reason: str
    fatal: bool = False

    @classmethod
    def of(cls, error: UserError) -> Failure:
        """Return an error about one item as a value; a server error is fatal."""
        return cls(str(error), fatal=isinstance(error, ServerError))

    @property
    def error(self) -> UserError:
        """The failure as an exception, for callers who asked for one item."""
        return ServerError(self.reason) if self.fatal else PromptError(self.reason)


def succeeded(outcome: T | Failure) -> T:
    """Return the result of an item.

    Raises:
        PromptError, ServerError: it failed.
    """
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def first_failure(outcomes: Iterable[T | Failure]) -> Failure | None:
    """Return the first fatal failure, else the first one, else None."""
    found = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    return next((failure for failure in found if failure.fatal), found[0] if found else None)


def or_empty(outcome: Sequence[T] | Failure) -> Sequence[T]:
    """Return a list-valued result, or an empty one in place of a failure."""
    return () if isinstance(outcome, Failure) else outcome
