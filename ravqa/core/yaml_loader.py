"""YAML as people write it, read strictly: nothing is dropped, and nothing multiplies."""

from __future__ import annotations

import itertools
import math
from typing import Any

import yaml

_REPEATED = 100_000
"""Characters that aliases may repeat in all; a few lines of them could expand to gigabytes."""

_BITS = 14_000
"""Of the largest whole number: Python writes no number of more than 4,300 digits."""


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A mapping has two values for one key."""


class StrictLoader(yaml.SafeLoader):
    """A loader of plain values that refuses duplicate keys, and aliases that multiply."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        # Of each node: its values and their characters, with those that aliases repeat.
        self._sizes: dict[int, float] = {}
        self._repeated = 0.0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, as PyYAML does, and check it.

        Raises:
            DuplicateKeyError: a key occurs twice; 1 and "1" are one key.
            yaml.MarkedYAMLError: a value contains itself, or aliases repeat too much.
        """
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        node: Any = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            self._repeated += self._sizes.get(id(node), math.inf)
            if self._repeated > _REPEATED:
                raise yaml.MarkedYAMLError(
                    problem=f"the alias *{event.anchor} repeats too much",
                    problem_mark=mark,
                )
            return node
        size: float = 1
        if isinstance(node, yaml.ScalarNode):
            size += len(node.value)
        else:
            pairs = isinstance(node, yaml.MappingNode)
            inner = itertools.chain.from_iterable(node.value) if pairs else node.value
            size += sum(self._sizes[id(child)] for child in inner)
            keys: set[str] = set()
            for key, _ in node.value if pairs else ():
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        raise DuplicateKeyError(
                            problem=f"the key {key.value!r} occurs twice",
                            problem_mark=key.start_mark,
                        )
                    keys.add(key.value)
        self._sizes[id(node)] = size
        return node


def _whole(loader: StrictLoader, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if abs(value).bit_length() > _BITS:
        raise yaml.MarkedYAMLError(
            problem="a number has too many digits", problem_mark=node.start_mark
        )
    return value


StrictLoader.add_constructor("tag:yaml.org,2002:int", _whole)


def reason_of(error: Exception) -> str:
    """Return what is wrong with a YAML value, in brackets after a space; "" if it is not said."""
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
    return f" ({problem})" if problem else ""


def load_yaml(text: str) -> Any:
    """Return the plain values of a YAML document.

    Raises:
        yaml.YAMLError: it is not YAML, a key occurs twice, or aliases repeat too much.
        ValueError: a value has the form of a number or date, but is none.
        RecursionError: it is nested too deeply.
    """
    return yaml.load(text, StrictLoader)
