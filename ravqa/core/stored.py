"""Small JSON files that this project wrote, checked when they are read back.

Whatever is in such a file (nothing, bytes that are no UTF-8, values of other types, brackets nested
thousands deep), its reader meets one exception, ValueError, and names the file in its message.
"""

from __future__ import annotations

import json
import stat
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def read_json(file: Path) -> Any:
    """Return the value in a regular JSON file.

    Raises:
        FileNotFoundError: there is no regular file; a pipe or device would be read for ever.
        OSError: it cannot be read.
        ValueError: it does not hold JSON.
    """
    try:
        regular = stat.S_ISREG(file.stat().st_mode)
    except NotADirectoryError:
        regular = False
    if not regular:
        raise FileNotFoundError(f"{file} is not a regular file")
    return parsed_json(file.read_text(encoding="utf-8"))


def parsed_json(data: bytes | str) -> Any:
    """Return the value of JSON text.

    Raises:
        ValueError: it is not JSON in UTF-8, or is nested too deeply.
    """
    try:
        return json.loads(data.decode() if isinstance(data, bytes) else data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def as_type(kind: type[T], value: Any) -> T:
    """Return a JSON value as a type (a dataclass, `dict[str, int]`), without conversions.

    Raises:
        ValueError: it is of another type; the message names the first key that is.
    """
    try:
        adapter: TypeAdapter[T] = _adapter(cast(Any, kind))
        found = adapter.validate_json(json.dumps(value), strict=True)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValidationError as e:
        first = e.errors()[0]
        path = ".".join(map(str, first["loc"]))
        reason = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise ValueError(f"key {path!r}: {reason}" if path else reason) from None
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
