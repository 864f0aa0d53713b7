"""What the conformance suites share."""

from __future__ import annotations

import functools
import inspect
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from ravqa.core.errors import MissingExtraError, first_line

F = TypeVar("F", bound=Callable[..., None])
T = TypeVar("T")

_ROUNDS = 3  # of calls by several threads
_SWITCH_S = 1e-5  # between two of them, so that they get into each other's way


@contextmanager
def named(part: str, contract: str) -> Iterator[None]:
    """Turn whatever a part raises in a suite into an AssertionError that names the contract.

    Only the error for a package that is not installed stays as it is.
    """
    try:
        yield
    except AssertionError as e:
        raise AssertionError(f"{e} (the contract of {contract})") from e.__cause__
    except MissingExtraError:
        raise
    except Exception as e:
        raise AssertionError(
            f"{part} raises {type(e).__name__}: {first_line(e)} (the contract of {contract})"
        ) from e


def conformance(contract: type) -> Callable[[F], F]:
    """Decorate a suite: its first argument must be a `contract`, or a concrete class of them."""
    base = f"{contract.__module__}.{contract.__name__}"

    def decorate(check: F) -> F:
        @functools.wraps(check)
        def checked(part: Any, *arguments: Any, **options: Any) -> None:
            kind: Any = part if isinstance(part, type) else type(part)
            with named(kind.__name__, base):
                require(issubclass(kind, contract), f"{kind.__name__} is a subclass of {base}")
                lacking = ", ".join(sorted(kind.__abstractmethods__))
                require(not inspect.isabstract(kind), f"{kind.__name__} defines {lacking}")
                check(part, *arguments, **options)

        return cast(F, checked)

    return decorate


def require(condition: object, sentence: str) -> None:
    """Raise AssertionError with the sentence unless the condition holds, also under `python -O`."""
    if not condition:
        raise AssertionError(sentence)


def refused(
    error: type[Exception] | tuple[type[Exception], ...],
    call: Callable[[], object],
    sentence: str,
) -> None:
    """Raise AssertionError with the sentence unless `call` raises this error, or one of these."""
    try:
        call()
    except error:
        return
    except Exception as e:
        raise AssertionError(f"{sentence}; {type(e).__name__} is raised: {e}") from e
    raise AssertionError(f"{sentence}; nothing is raised")


def require_thread_safe(
    part: Any, method: str, calls: Sequence[Callable[[], T]], alike: Callable[[T, T], bool]
) -> None:
    """Check that calls by several threads at the same time return what they return in turn.

    A part that does not say that it is `thread_safe` is never called so.
    """
    name, safe = type(part).__name__, part.thread_safe
    require(isinstance(safe, bool), f"{name}.thread_safe is True or False, got {safe!r}")
    if not safe:
        return
    in_turn = [call() for call in calls]
    sentence = (
        f"{name} is `thread_safe`: {method} returns the same when several threads call it at the "
        "same time"
    )
    for _ in range(_ROUNDS):
        try:
            found = _at_once(calls)
            mixed = [pair for pair in zip(in_turn, found, strict=True) if not alike(*pair)]
        except Exception as e:
            raise AssertionError(f"{sentence}; {type(e).__name__} is raised: {e}") from e
        if mixed:
            one, other = mixed[0]
            raise AssertionError(f"{sentence}, got {one} in turn and {other} at once")


def _at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Return what each call returns, in a thread of its own."""
    begin = threading.Barrier(len(calls))

    def work(call: Callable[[], T]) -> T:
        begin.wait()
        return call()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        with ThreadPoolExecutor(len(calls)) as threads:
            return list(threads.map(work, calls))
    finally:
        sys.setswitchinterval(interval)


def require_json(value: Any, what: str) -> None:
    """Raise AssertionError unless a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError) as e:
        raise AssertionError(f"{what} cannot be written as JSON: {e}") from None


def require_names(part: Any, *names: str) -> None:
    """Raise AssertionError unless the part has these attributes, each a text that is not blank."""
    for name in names:
        value = getattr(part, name, None)
        require(
            isinstance(value, str) and value,
            f"{type(part).__name__}.{name} is a text that is not blank, got {value!r}",
        )


def picture(width: int, height: int, shade: int) -> bytes:
    """Return a PNG image of one colour."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 255 - shade, shade // 2)).save(out, "PNG")
    return out.getvalue()
