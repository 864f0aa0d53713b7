"""A library's settings: those of a pipeline, with a late-interaction retriever."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ravqa.build import part_config
from ravqa.config import PipelineConfig, apply_override
from ravqa.errors import UserError
from ravqa.pipeline import check_settings
from ravqa.registry import RETRIEVERS
from ravqa.retrieval.late_interaction import LateInteractionRetriever

KINDS = ("auto", "exact", "compressed")
"""Kinds of index that commit vectors and passages together."""

_RETRIEVER = "late-interaction"


def own_settings(own: Mapping[str, Any], overrides: Sequence[str], where: str) -> dict[str, Any]:
    """A library's settings with changes.

    It may come from somebody else: that a model's code may run is taken from the changes only.
    """
    settings = copy.deepcopy(dict(own))
    asked = list(_switched_off(settings, ""))
    for override in overrides:
        apply_override(settings, override)
    for path in asked:
        node: Any = settings
        for step in path.split("."):
            if isinstance(node, list):
                node = dict(enumerate(node)).get(int(step))
            else:
                node = node.get(step) if isinstance(node, dict) else None
        if node is False:  # else it was changed, or the part is another
            raise UserError(
                f"{where}: its settings would run code that a model brings: if you trust that "
                f"model, say so with --set {path}=true"
            )
    return settings


def _switched_off(node: Any, before: str) -> Iterator[str]:
    """Sets every `trust_remote_code` to false; gives the paths of those that were not."""
    items: Any = enumerate(node) if isinstance(node, list) else getattr(node, "items", list)()
    for key, value in list(items):
        if key == "trust_remote_code" and value:
            node[key] = False
            yield f"{before}{key}"
        elif isinstance(value, dict | list):
            yield from _switched_off(value, f"{before}{key}.")


def checked(
    settings: Mapping[str, Any], where: str
) -> tuple[PipelineConfig, LateInteractionRetriever.Config]:
    """The pipeline's configuration, and its retriever's, if they suit a library.

    Raises:
        UserError: settings that are not valid, another retriever than late-interaction, or an index
            of a kind that a library cannot have.
    """
    config = check_settings(settings, where)
    if config.retriever.name != _RETRIEVER:
        raise UserError(
            f"{where}: an index of your own passages needs the retriever {_RETRIEVER}, not "
            f"{config.retriever.name}"
        )
    late: LateInteractionRetriever.Config = part_config(
        RETRIEVERS, config.retriever, f"{where}: retriever"
    )
    if late.index.name not in KINDS:
        raise UserError(
            f"{where}: key 'retriever.index.name': one of {', '.join(KINDS)} is expected, got "
            f"{late.index.name!r}"
        )
    return config, late
