"""What libraries raise about one question's input, as errors of this project.

Processors, tokenizers, chat templates and models refuse some inputs with errors of their own: an
image too thin, a text that looks like a mark. Such a question fails alone; the others go on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ravqa.core.errors import PromptError, UserError, first_line
from ravqa.core.outcomes import Failure

T = TypeVar("T")

_log = logging.getLogger(__name__)

_DEVICE = re.compile(r"\b(CUDA|HIP|XPU|MPS) error\b|device-side assert", re.IGNORECASE)


def failure(error: Exception, why: str) -> UserError:
    """The error for whatever a library raised about what it was given.

    Args:
        why: who asked the library, for the message.

    Returns:
        An error of this project as it is; UserError for memory that is used up and for a device
        that failed, after which nothing on it can succeed; else PromptError, with the first line of
        what was raised: another question may succeed.
    """
    if isinstance(error, UserError):
        return error
    line = first_line(error)
    if out_of_memory(error):
        return UserError(f"{why}: the memory is used up ({line})")
    if type(error).__name__ == "AcceleratorError" or _DEVICE.search(line):
        return UserError(f"{why}: the device failed ({line}): begin again in a new process")
    _log.debug("%s", why, exc_info=error)
    return PromptError(f"{why}: {line}")


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that main memory or an accelerator's memory is used up."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch's, which need not be loaded
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def failures(why: str) -> Iterator[None]:
    """Turns whatever a library raises inside into one line; see `failure`."""
    try:
        yield
    except Exception as e:
        raise failure(e, why) from None


def by_halves(
    items: Sequence[int], run: Callable[[Sequence[int]], Sequence[T]], why: str
) -> list[T | Failure]:
    """Return one result per item of a batch; a batch that fails is halved to find who is to blame.

    Args:
        items: the batch.
        run: gives the results of some items, in order.
        why: who asks the library, for messages.

    Raises:
        UserError: whatever is not one item's fault; see `failure`.
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
