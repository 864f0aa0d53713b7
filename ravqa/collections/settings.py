"""Settings of collections: those of a pipeline with a late-interaction retriever."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ravqa.collections import trust
from ravqa.collections.trust import Setting
from ravqa.core.errors import UserError
from ravqa.core.factory import part_config
from ravqa.core.settings import PipelineConfig, apply_override, split_override
from ravqa.pipeline import check_settings
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.late_interaction import LateInteractionRetriever

_RETRIEVER = "late-interaction"
_OPEN = {"name": "auto"}


def own_settings(
    own: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[Setting]]:
    """Return a collection's settings with changes, and those that must not be followed.

    The latter name something outside the collection (see `trust`), came with it from elsewhere, and
    are not among the changes.
    """
    settings = copy.deepcopy(dict(own))
    for override in overrides:
        apply_override(settings, override)
    if trust.is_mine(own):
        return settings, []
    said = [split_override(override)[0] for override in overrides]
    withheld = [
        setting
        for setting in trust.outside(settings)
        if not any(f"{setting.path}.".startswith(f"{key}.") for key in said)
    ]
    return settings, withheld


def with_own_index(
    settings: dict[str, Any], own: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[Setting]]:
    """Return a pipeline's settings with the collection's index, if the pipeline leaves the kind
    open, and those settings of it that must not be followed; see `own_settings`."""
    there = own["retriever"].get("index")
    retriever = settings["retriever"]
    if there is None or not isinstance(retriever, dict) or retriever.get("name") != _RETRIEVER:
        return settings, []
    said = any(split_override(override)[0].startswith("retriever.index") for override in overrides)
    if said or retriever.get("index", _OPEN) != _OPEN:
        return settings, []
    _, withheld = own_settings(own, ())
    settings = {**settings, "retriever": {**retriever, "index": copy.deepcopy(there)}}
    return settings, [s for s in withheld if s.path.startswith("retriever.index.")]


def refusal(withheld: Sequence[Setting], where: str) -> UserError:
    """Return the error for settings that are not used."""
    first = withheld[0]
    value = "true" if first.value is True else "VALUE"
    return UserError(
        f"{where}: its settings come from elsewhere and name something outside it: "
        f"{trust.listed(withheld)}: if you trust them, confirm one with --set "
        f"{first.path}={value}, or all with --trust-settings"
    )


def checked(
    settings: Mapping[str, Any], where: str
) -> tuple[PipelineConfig, LateInteractionRetriever.Config]:
    """Return the configurations of pipeline and retriever, if they suit a collection.

    Raises:
        UserError: invalid settings, or a retriever other than late-interaction.
    """
    config = check_settings(settings, where)
    if config.retriever.name != _RETRIEVER:
        raise UserError(
            f"{where}: a collection needs the retriever {_RETRIEVER}, not {config.retriever.name}"
        )
    late: LateInteractionRetriever.Config = part_config(
        RETRIEVERS, config.retriever, f"{where}: retriever"
    )
    return config, late
