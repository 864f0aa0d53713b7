"""Registries: names of parts and the locations of their classes.

A registry holds import targets ("ravqa.readers.transformers_llm:TransformersLLM"), so that listing
names imports nothing heavy. Each kind of part has a registry in its own package
(`ravqa.readers.READERS`); `TABLES` lists them all.

Plugins add parts with `READERS.add(name, target, summary)`. Plugins are modules that installed
packages declare as entry points in the group "ravqa.plugins", or that the environment variable
RAVQA_PLUGINS names (comma-separated). They are imported before names are listed and before an
unknown name is rejected.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Generic, TypeVar

from ravqa.core.errors import ContractError, UserError, broken, first_line, near_matches

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered name: the class's or function's location, and a one-line summary."""

    target: str
    summary: str


_PLUGINS = "ravqa.plugins"
_VARIABLE = "RAVQA_PLUGINS"


@cache
def load_plugins() -> None:
    """Import the plugin modules that add third-party parts, once.

    Raises:
        UserError: one of them cannot be imported.
    """
    found = {e.value: f"the entry point {e.name}" for e in metadata.entry_points(group=_PLUGINS)}
    named = (name.strip() for name in os.environ.get(_VARIABLE, "").split(","))
    found |= {name: _VARIABLE for name in named if name}
    for module, where in found.items():
        try:
            importlib.import_module(module)
        except Exception as e:  # a plugin is third-party code
            reason = str(e).strip().partition("\n")[0] or type(e).__name__
            raise UserError(f"{where}: the plugin {module} cannot be imported: {reason}") from None


class Registry(Generic[T]):
    """Named parts of one kind.

    `T` is what `get` returns: `Registry[type[Reader]]` holds classes, `Registry[Loader]` functions.
    """

    def __init__(self, kind: str, entries: dict[str, tuple[str, str]], contract: str | None = None):
        """Create a registry with these entries.

        Args:
            kind: what a part is called ("reader").
            entries: import target ("module:name") and summary of each part, by name.
            contract: import target of the base class that every part must have, if any.
        """
        self.kind = kind
        self._contract = contract
        self._entries = {name: Entry(*entry) for name, entry in entries.items()}

    def add(self, name: str, target: str, summary: str) -> None:
        """Register `name`.

        Raises:
            ValueError: the name is taken by another target.
        """
        if name in self._entries and self._entries[name].target != target:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = Entry(target, summary)

    @property
    def contract(self) -> type | None:
        """The base class that every part must have, if any."""
        return None if self._contract is None else imported(self._contract)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        load_plugins()
        return ((name, entry.summary) for name, entry in self._entries.items())

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_plugins()
        return name in self._entries

    def check(self, name: str, where: str = "") -> str:
        """Return `name` if it is registered.

        Args:
            where: where the name is used, for the message.

        Raises:
            UserError: it is not registered; similar names are listed.
        """
        if name not in self._entries:
            load_plugins()
        if name not in self._entries:
            place = f"{where}: " if where else ""
            near = near_matches(name, self._entries)
            raise UserError(f"{place}no {self.kind} {name!r}: {near}")
        return name

    def get(self, name: str) -> T:
        """Return the class or function registered as `name`; imports its module.

        Raises:
            UserError: no part has this name.
            ContractError: the part cannot be imported, does not have the base class of its kind, or
                lacks methods that this class requires.
        """
        target = self._entries[self.check(name)].target
        what = f"the {self.kind} {name!r} ({target})"
        try:
            found: T = imported(target)
        except (ImportError, AttributeError) as e:
            raise ContractError(f"{what} cannot be imported: {first_line(e)}") from None
        if self._contract is not None:
            contract = imported(self._contract)
            base = f"{contract.__module__}.{contract.__name__}"
            if not (inspect.isclass(found) and issubclass(found, contract)):
                raise ContractError(f"{what} is not a subclass of {base}")
            if lacking := sorted(getattr(found, "__abstractmethods__", ())):
                raise ContractError(f"{what} lacks {', '.join(lacking)}, which {base} requires")
            _check_class(self.kind, found, contract)
        return found


def _check_class(kind: str, part: Any, contract: type) -> None:
    """Raise ContractError if a class lacks constants of its contract, or has unchecked options."""
    from ravqa.core.contracts import check_declared
    from ravqa.core.settings import Strict

    check_declared(kind, part, contract, constants=True)
    config = getattr(part, "Config", Strict)
    if not (inspect.isclass(config) and issubclass(config, Strict)):
        base = f"{Strict.__module__}.{Strict.__name__}"
        raise broken(part, kind, f"its Config is not a subclass of {base}")


def imported(target: str) -> Any:
    """Return the object that an import target ("module:name") names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


TABLES: Mapping[str, str] = {
    "datasets": "ravqa.datasets:DATASETS",
    "describers": "ravqa.describers:DESCRIBERS",
    "encoders": "ravqa.encoders:ENCODERS",
    "indexes": "ravqa.indexes:INDEXES",
    "retrievers": "ravqa.retrievers:RETRIEVERS",
    "rerankers": "ravqa.rerankers:RERANKERS",
    "readers": "ravqa.readers:READERS",
    "rules": "ravqa.answering:RULES",
    "metrics": "ravqa.metrics:METRICS",
    "retrieval metrics": "ravqa.metrics:RETRIEVAL_METRICS",
    "judges": "ravqa.metrics.judges:JUDGES",
}
"""The kinds of parts, and the location of each registry."""

PARTS: Mapping[str, str] = {
    "describer": "describers",
    "describers": "describers",
    "retriever": "retrievers",
    "retrievers": "retrievers",
    "base": "retrievers",
    "encoder": "encoders",
    "encoders": "encoders",
    "index": "indexes",
    "shard": "indexes",
    "reranking": "rerankers",
    "reader": "readers",
    "judge": "judges",
}
"""Keys of settings that hold parts, and the kind of part."""


def table(kind: str) -> Registry[Any]:
    """Return the registry of a kind in `TABLES`; imports its package."""
    found: Registry[Any] = imported(TABLES[kind])
    return found


def register(kind: str, name: str, target: str, summary: str) -> None:
    """Add a part, which can then be named in settings and on the command line.

    Args:
        kind: as in `ravqa ls KIND`, such as "readers".
        target: the class or function as "package.module:Name"; imported when first used.
        summary: one line about it, for `ravqa ls`.

    Raises:
        UserError: no such kind, or the target does not have that form.
        ValueError: the name is taken by another target.
    """
    if kind not in TABLES:
        raise UserError(f"no kind of part {kind!r}: {near_matches(kind, TABLES)}")
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise UserError(f"register: the target {target!r} is not of the form 'package.module:Name'")
    table(kind).add(name, target, summary)


def __getattr__(name: str) -> Any:
    """Report the new location of a registry that used to be in this module."""
    for target in TABLES.values():
        module, _, attribute = target.partition(":")
        if name == attribute:
            raise ImportError(f"{name} is in {module}: write `from {module} import {name}`")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
