"""Building parts from validated configuration; a `Session` builds shared parts only once."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from pydantic import BaseModel

from ravqa.core.contracts import check_declared, raised_by
from ravqa.core.registry import PARTS, Registry, table
from ravqa.core.settings import Part, fingerprint, validate

T = TypeVar("T")

Key = tuple[str, Hashable]
"""An object's kind, and what distinguishes it from others of its kind."""

# Parts that hold weights but no state of a run. A retriever holds the corpus it was prepared for.
_SHARED = frozenset({"describer", "encoder", "judge", "reader", "reranker"})


class Session:
    """Parts and data shared by several pipelines or runs, each built or read once.

    A session is passed to whatever builds or reads: `build_part`, `Pipeline.from_config`, a run.
    Several threads may use it: an object that one of them makes is not made by another.

    Attributes:
        loads: how often each kind of object ("encoder", "reader", "corpus", ...) was really made.
    """

    def __init__(self) -> None:
        self._made: dict[Key, Any] = {}
        self.loads: dict[str, int] = {}
        self._turn = threading.RLock()

    @property
    def turn(self) -> AbstractContextManager[object]:
        """Held by a thread that uses shared parts which several threads may not use at a time."""
        return self._turn

    def get(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return the object of this kind and key; the first time, create it with `make`."""
        name = (kind, key)
        with self._turn:
            if name not in self._made:
                self._made[name] = make()
                self.loads[kind] = self.loads.get(kind, 0) + 1
            found: T = self._made[name]
            return found

    def only(self, *kinds: str) -> None:
        """Drop everything but the objects of these kinds."""
        with self._turn:
            self._made = {key: made for key, made in self._made.items() if key[0] in kinds}

    def keep(self, keys: Collection[Key]) -> None:
        """Drop all other parts to free their memory; loaded data stays."""
        with self._turn:
            unwanted = [key for key in self._made if key[0] in _SHARED and key not in keys]
            for key in unwanted:
                del self._made[key]
        if unwanted:
            gc.collect()
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_available():
                torch.cuda.empty_cache()


def part_config(registry: Registry[Any], part: Part, where: str) -> Any:
    """Return the part's own validated configuration.

    Raises:
        UserError: no such part, or options that its `Config` rejects (the key's path is named).
    """
    config = validate(registry.get(part.name).Config, part.options, where)
    config.refuse_secrets(where)
    return config


def check_weighted(
    registry: Registry[Any],
    parts: Sequence[Part],
    weights: Sequence[float],
    where: Callable[[int], str],
) -> None:
    """Check parts that are combined with one weight each, inside a `Config`.

    Args:
        weights: one per part, or none.
        where: returns the path of the part with this number.

    Raises:
        ValueError: another number of weights, or one that is not positive.
        UserError: as `part_config`.
    """
    if weights and len(weights) != len(parts):
        raise ValueError(f"{len(weights)} weights for {len(parts)} {registry.kind}s")
    if not all(weight > 0 for weight in weights):
        raise ValueError("weights are numbers above 0")
    for i, part in enumerate(parts):
        part_config(registry, part, where(i))


def build_part(
    registry: Registry[type[T]],
    part: Part,
    where: str,
    *,
    session: Session | None = None,
    **needs: Any,
) -> T:
    """Build the part, or return the same one from the session.

    Args:
        session: shares parts; also passed to parts that build others (`Strict.builds_parts`).
        needs: other parts that its constructor takes; a part that is given any is not shared.

    Raises:
        UserError: as `part_config`, or something that the part needs is missing.
    """
    config = part_config(registry, part, where)

    kind = registry.get(part.name)
    create: Callable[..., T] = kind

    def build() -> T:
        nested = {"session": session} if config.builds_parts else {}
        with raised_by(registry.kind, kind, "when built"):
            made: T = create(config, **nested, **needs)
        if registry.contract is not None:
            check_declared(registry.kind, made, registry.contract, constants=False)
        return made

    if session is None or needs or registry.kind not in _SHARED:
        return build()
    return session.get(*part_key(registry, part, config), build)


def parts_of(config: BaseModel, path: str = "") -> Iterator[tuple[str, Registry[Any], Part, Any]]:
    """Yield every part that a configuration names, including those named by other parts.

    Yields:
        The path ("retriever.encoder"), registry, part, and validated configuration of each.

    Raises:
        UserError: as `part_config`.
    """
    for name in type(config).model_fields:
        value = getattr(config, name)
        several = value if isinstance(value, list | tuple) else (value,)
        for i, part in enumerate(several):
            place = f"{path}{name}" if part is value else f"{path}{name}.{i}"
            if isinstance(part, Part):
                registry = table(PARTS[name])
                own = part_config(registry, part, place)
                yield place, registry, part, own
                yield from parts_of(own, f"{place}.")
            elif isinstance(part, BaseModel):
                yield from parts_of(part, f"{place}.")


def shared_keys(config: BaseModel) -> frozenset[Key]:
    """Return the keys of all parts in a configuration that a session shares (`Session.keep`)."""
    return frozenset(
        part_key(registry, part, own)
        for _, registry, part, own in parts_of(config)
        if registry.kind in _SHARED
    )


def model_keys(config: BaseModel) -> frozenset[Key]:
    """Return the keys of those of them (`shared_keys`) that load a model on this machine."""
    return frozenset(
        part_key(registry, part, own)
        for _, registry, part, own in parts_of(config)
        if registry.kind in _SHARED and own.models()
    )


def part_key(registry: Registry[Any], part: Part, config: Any) -> Key:
    """Return the key under which a session keeps a part with these options."""
    return registry.kind, fingerprint(part.name, config.model_dump(mode="json"))
