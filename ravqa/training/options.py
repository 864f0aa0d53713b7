"""Options of `ravqa train`.

This module imports nothing heavy, because the command line's help is built from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ravqa.core.options import Option


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The options of every command that trains."""

    config: Annotated[Path, Option("The settings, a YAML file.", "CONFIG", argument=True)]
    overrides: Annotated[
        Sequence[str],
        Option("Change one setting; repeatable.", "KEY.PATH=VALUE", "--set"),
    ] = ()
    output: Annotated[
        Path | None, Option("Folder of the run. Default: a new one in runs/.", "DIR")
    ] = None
    resume: Annotated[bool, Option("Continue the run in --output, from its last checkpoint.")] = (
        False
    )
    overwrite: Annotated[bool, Option("Replace the run in --output.")] = False
