"""Building of stages from a pipeline's `reranking` list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ravqa.core.errors import ContractError, UserError
from ravqa.core.factory import Session, build_part, part_config
from ravqa.core.settings import Part
from ravqa.readers.base import Reader
from ravqa.rerankers import RERANKERS
from ravqa.rerankers.base import Reranker, RerankerConfig


def stage_names(parts: Iterable[str]) -> list[str]:
    """Return a name per reranker; repeated ones get a number ("threshold-2")."""
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
        passages: number of passages that are read.

    Raises:
        UserError: an unknown reranker or option (the key's path is named); fewer passages are
            rescored than are read.
    """
    for i, part in enumerate(parts):
        config = reranker_config(part, f"{where}: reranking.{i}")
        depth = config.scored_hits
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
    """Build the stages by name, in order.

    Args:
        reader: returns the reader that a reranker names, or the pipeline's own for None.
        session: shares rerankers, except those that are given a reader.

    Raises:
        UserError: something that a part needs is missing.
    """
    built: dict[str, Reranker] = {}
    for i, (name, part) in enumerate(zip(stage_names(p.name for p in parts), parts, strict=True)):
        place = f"{where}: reranking.{i}"
        needs: dict[str, Any] = {}
        config = reranker_config(part, place)
        if config.asks_reader:
            needs["reader"] = reader(config.reader_part)
        built[name] = build_part(RERANKERS, part, place, session=session, **needs)
    return built


def asks_own_reader(parts: Sequence[Part]) -> bool:
    """Return whether one of the rerankers asks the pipeline's reader."""
    configs = [reranker_config(part, "reranking") for part in parts]
    return any(config.asks_reader and config.reader_part is None for config in configs)


def reranker_config(part: Part, where: str) -> RerankerConfig:
    """Return a reranker's validated options.

    Raises:
        UserError: an unknown reranker or option.
        ContractError: options that are not derived from `RerankerConfig`.
    """
    config = part_config(RERANKERS, part, where)
    if not isinstance(config, RerankerConfig):
        base = f"{RerankerConfig.__module__}.{RerankerConfig.__name__}"
        raise ContractError(
            f"{where}: the reranker {part.name!r}: its Config is not derived from {base}"
        )
    return config
