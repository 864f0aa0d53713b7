"""From validated configuration to parts, each built once where parts are shared."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from ravqa.core.registry import Registry
from ravqa.core.settings import Part, fingerprint, validate

T = TypeVar("T")

Key = tuple[str, Hashable]
"""The kind of a thing, and what tells it from others of its kind."""

# What holds weights and nothing of a run. Retrievers hold the corpus that they were prepared for.
_SHARED = frozenset({"describer", "encoder", "judge", "reader", "reranker"})


class Shared:
    """What was built for several pipelines; see `sharing`.

    Attributes:
        loads: how often a part of each kind ("encoder", "reader", ...) was really built.
    """

    def __init__(self) -> None:
        self._made: dict[Key, Any] = {}
        self.loads: dict[str, int] = {}

    def get(self, key: Key, make: Callable[[], T]) -> T:
        """What was made for this key, or what `make` gives."""
        if key not in self._made:
            self._made[key] = make()
            self.loads[key[0]] = self.loads.get(key[0], 0) + 1
        found: T = self._made[key]
        return found

    def only(self, *kinds: str) -> None:
        """Forget everything but the parts of these kinds: also what was read, which is no part."""
        self._made = {key: made for key, made in self._made.items() if key[0] in kinds}

    def keep(self, keys: Collection[Key]) -> None:
        """Forget all other parts, so that their memory is free for what is built next."""
        unwanted = [key for key in self._made if key[0] in _SHARED and key not in keys]
        for key in unwanted:
            del self._made[key]
        if unwanted:
            gc.collect()
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_available():
                torch.cuda.empty_cache()


_shared: ContextVar[Shared | None] = ContextVar("shared", default=None)
_noted: ContextVar[set[Key] | None] = ContextVar("noted", default=None)


@contextmanager
def sharing(shared: Shared | None = None) -> Iterator[Shared]:
    """Inside, parts with the same settings are the same object, and so is what `once` makes.

    Args:
        shared: what was built before; None begins anew.
    """
    shared = Shared() if shared is None else shared
    token = _shared.set(shared)
    try:
        yield shared
    finally:
        _shared.reset(token)


def shared_now() -> Shared | None:
    """What is shared here; None outside of `sharing`."""
    return _shared.get()


@contextmanager
def noting() -> Iterator[set[Key]]:
    """Notes the keys of the parts whose settings are validated inside (for `Shared.keep`)."""
    keys: set[Key] = set()
    token = _noted.set(keys)
    try:
        yield keys
    finally:
        _noted.reset(token)


def once(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """`make()`; where parts are shared, made once for this kind and key."""
    shared = _shared.get()
    return make() if shared is None else shared.get((kind, key), make)


def part_config(registry: Registry, part: Part, where: str) -> Any:
    """The part's own validated configuration.

    Raises:
        UserError: no such part, or options that its `Config` refuses (the key's path is named).
    """
    config = validate(registry.get(part.name).Config, part.options, where)
    config.refuse_secrets(where)
    noted = _noted.get()
    if noted is not None and registry.kind in _SHARED:
        noted.add(_key(registry, part, config))
    return config


def build_part(registry: Registry, part: Part, where: str, **needs: Any) -> Any:
    """The part itself; `needs` are other parts that its constructor takes.

    Raises:
        UserError: as `part_config`, and whatever the part cannot be built without.
    """
    config = part_config(registry, part, where)
    shared = _shared.get()
    if shared is None or needs or registry.kind not in _SHARED:
        return registry.get(part.name)(config, **needs)
    key = _key(registry, part, config)
    return shared.get(key, lambda: registry.get(part.name)(config))


def _key(registry: Registry, part: Part, config: Any) -> Key:
    return registry.kind, fingerprint(part.name, config.model_dump(mode="json"))
