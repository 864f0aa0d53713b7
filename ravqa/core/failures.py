"""Conversion of library exceptions about one question's input into this project's errors.

Processors, tokenizers, chat templates and models reject some inputs with their own errors: an
image too thin, a text that looks like a special token. Only that question fails; the others
continue.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ravqa.core.errors import PromptError, UserError, first_line
from ravqa.core.outcomes import Failure

T = TypeVar("T")

_log = logging.getLogger(__name__)

_DEVICE = re.compile(r"\b(CUDA|HIP|XPU|MPS) error\b|device-side assert", re.IGNORECASE)


def failure(error: Exception, why: str) -> UserError:
    """Return this project's error for an exception that a library raised about its input.

    Args:
        why: who called the library, for the message.

    Returns:
        This project's errors unchanged; UserError if memory is exhausted or a device failed, after
        which nothing on it can succeed; otherwise PromptError with the first line of the exception:
        another question may succeed.
    """
    if isinstance(error, UserError):
        return error
    line = first_line(error)
    if out_of_memory(error):
        return UserError(f"{why}: out of memory ({line})")
    if type(error).__name__ == "AcceleratorError" or _DEVICE.search(line):
        return UserError(f"{why}: the device failed ({line}): start again in a new process")
    _log.debug("%s", why, exc_info=error)
    return PromptError(f"{why}: {line}")


def out_of_memory(error: Exception) -> bool:
    """Return whether an error means that main memory or an accelerator's memory is exhausted."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch's, which need not be loaded
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def not_a_number(why: str, what: str, dtype: object) -> Failure:
    """Return the failure of an item for which a model computed NaN.

    Args:
        why: who asked the model, for the message.
        what: the value ("a score").
        dtype: the type that the model computes in.
    """
    name = str(dtype).removeprefix("torch.")
    mend = "its weights are broken" if name == "float32" else "set dtype to float32"
    return Failure(f"{why}: {what} is not a number (dtype {name}): {mend}")


@contextmanager
def failures(why: str) -> Iterator[None]:
    """Turn any exception raised inside into a one-line error; see `failure`."""
    try:
        yield
    except Exception as e:
        raise failure(e, why) from None


def by_halves(
    items: Sequence[int], run: Callable[[Sequence[int]], Sequence[T]], why: str
) -> list[T | Failure]:
    """Return one result per item of a batch; a failing batch is halved to isolate the bad items.

    Args:
        items: the batch.
        run: returns the results of some items, in order.
        why: who calls the library, for messages.

    Raises:
        UserError: a failure that is not one item's fault; see `failure`.
    """
    try:
        with failures(why):
            return list(run(items))
    except PromptError as e:
        if len(items) <= 1:
            return [Failure.of(e) for _ in items]
    half = len(items) // 2
    return [
        outcome for part in (items[:half], items[half:]) for outcome in by_halves(part, run, why)
    ]


def one_by_one(
    items: Sequence[int], ask: Callable[[list[int]], Iterable[tuple[int, T]]], why: str
) -> Iterator[tuple[int, T | Failure]]:
    """Yield positions and results of a batch as they are made; an error costs only one item.

    Args:
        items: the batch.
        ask: yields, for each of some items, its position among them and its result. If it raises,
            the items that it has not answered are asked again, in halves if there were none.
        why: who is asked, for messages.

    Raises:
        UserError: a failure that is not one item's fault; see `failure`.
    """
    waiting = dict.fromkeys(range(len(items)))
    try:
        with failures(why):
            for position, result in ask(list(items)):
                waiting.pop(position, None)
                yield position, result
            return
    except PromptError as e:
        if len(items) == 1:
            yield from ((position, Failure.of(e)) for position in waiting)
            return
    left = list(waiting)
    half = len(left) // 2 if len(left) == len(items) else len(left)
    for part in filter(None, (left[:half], left[half:])):
        for position, outcome in one_by_one([items[i] for i in part], ask, why):
            yield part[position], outcome
