"""Filtering of a collection's passages by their metadata.

A mapping names what a passage must have: its fields (`passage_id`, `title`, `section`, `article`,
`entity`, `url`) or any other metadata (`Passage.extra`). A list, tuple or set allows any of its
values; a passage with a list has each of its items. "1999" and 1999 are equal, because tables only
have strings.

    {"author": "Linnaeus", "page": [1, 2]}

For anything else, use a function of the passage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ravqa.core.errors import UserError, near_matches
from ravqa.core.records import Passage

Where = Mapping[str, object] | Callable[[Passage], bool]
"""Filter of passages: required metadata values, or a function that accepts passages."""

FIELDS = ("passage_id", "title", "section", "article", "entity", "url")


def matching(passages: Iterable[Passage], where: Where) -> frozenset[str]:
    """Return the ids of the passages that `where` accepts.

    Raises:
        UserError: it names a key that no passage has.
    """
    if not isinstance(where, Mapping):
        return frozenset(p.passage_id for p in passages if where(p))
    wanted = {name: _values(value) for name, value in where.items()}
    known: set[str] = set()
    found = []
    for passage in passages:
        if all(_values(value_of(passage, name)) & values for name, values in wanted.items()):
            found.append(passage.passage_id)
        elif not found:
            known.update(passage.extra)
    if not found:
        for name in wanted:
            if name not in FIELDS and name not in known:
                raise UserError(f"no passage has {name!r}: {near_matches(name, {*FIELDS, *known})}")
    return frozenset(found)


def value_of(passage: Passage, name: str) -> Any:
    """Return a field of the passage, or other metadata under this name; None if it has neither."""
    return getattr(passage, name) if name in FIELDS else passage.extra.get(name)


def _values(value: object) -> set[str]:
    if value is None:
        return set()
    several = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    return {str(item) for item in several}
