"""From validated configuration to parts."""

from __future__ import annotations

from typing import Any

from ravqa.config import Part, validate
from ravqa.registry import Registry


def part_config(registry: Registry, part: Part, where: str) -> Any:
    """The part's own validated configuration.

    Raises:
        UserError: no such part, or options that its `Config` refuses (the key's path is named).
    """
    return validate(registry.get(part.name).Config, part.options, where)


def build_part(registry: Registry, part: Part, where: str, **needs: Any) -> Any:
    """The part itself; `needs` are other parts that its constructor takes.

    Raises:
        UserError: as `part_config`, and whatever the part cannot be built without.
    """
    return registry.get(part.name)(part_config(registry, part, where), **needs)
