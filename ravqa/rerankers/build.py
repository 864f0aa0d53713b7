"""From a pipeline's `reranking` list to its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ravqa.core.errors import UserError
from ravqa.core.factory import Session, build_part, part_config
from ravqa.core.settings import Part
from ravqa.readers.base import Reader
from ravqa.rerankers import RERANKERS
from ravqa.rerankers.base import Reranker


def stage_names(parts: Iterable[str]) -> list[str]:
    """A name per reranker: its own; a repeated one with a number ("threshold-2")."""
    names: list[str] = []
    for part in parts:
        name, number = part, 1
        while name in names:
            number += 1
            name = f"{part}-{number}"
        names.append(name)
    return names


def check_rerankers(parts: Sequence[Part], where: str, passages: int) -> None:
    """Validate every reranker's options without building it.

    Args:
        passages: how many passages are read.

    Raises:
        UserError: an unknown reranker or option (the key's path is named); fewer passages are
            rescored than are read.
    """
    for i, part in enumerate(parts):
        config = part_config(RERANKERS, part, f"{where}: reranking.{i}")
        depth = getattr(config, "depth", None)
        if depth is not None and depth < passages:
            raise UserError(
                f"{where}: reranking.{i}: the depth {depth} of {part.name} is less than the "
                f"{passages} passages that are read: set reranking.{i}.depth to {passages} or more"
            )


def build_rerankers(
    parts: Sequence[Part],
    where: str,
    reader: Callable[[Part | None], Reader],
    *,
    session: Session | None = None,
) -> dict[str, Reranker]:
    """The stages by name, in order.

    Args:
        reader: gives the reader that a reranker names, or the pipeline's own for None.
        session: what shares rerankers, but for those that are given a reader.

    Raises:
        UserError: whatever a part cannot be built without.
    """
    built: dict[str, Reranker] = {}
    for i, (name, part) in enumerate(zip(stage_names(p.name for p in parts), parts, strict=True)):
        place = f"{where}: reranking.{i}"
        needs: dict[str, Any] = {}
        config = part_config(RERANKERS, part, place)
        if getattr(config, "asks_reader", False):
            needs["reader"] = reader(config.reader)
        built[name] = build_part(RERANKERS, part, place, session=session, **needs)
    return built


def asks_own_reader(parts: Sequence[Part]) -> bool:
    """Whether one of the rerankers asks the pipeline's reader."""
    configs = [part_config(RERANKERS, part, "reranking") for part in parts]
    return any(getattr(c, "asks_reader", False) and c.reader is None for c in configs)
