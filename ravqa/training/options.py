"""Options of `ravqa train` and `ravqa mine`.

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

    config: Annotated[
        str, Option("A YAML file, or a name in pipelines/training/.", "SETTINGS", argument=True)
    ]
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


@dataclass(frozen=True, slots=True)
class MineRequest:
    """The options of `ravqa mine`."""

    run: Annotated[Path, Option("Folder of a finished run.", "RUN", argument=True)]
    output: Annotated[Path, Option("The .jsonl file to write.", "FILE")]
    limit: Annotated[int, Option("At most N negatives per question.", "N", least=1)] = 20
    skip: Annotated[
        int,
        Option("Leave out the first N passages of each ranking.", "N", least=0),
    ] = 0
    data: Annotated[Path | None, Option("Where the dataset is now, if it was moved.", "DIR")] = None
    corpus: Annotated[
        Sequence[Path], Option("Where the passages are now, if they were moved.", "PATH")
    ] = ()
    overwrite: Annotated[bool, Option("Replace the file in --output.")] = False
    trust_settings: Annotated[
        bool,
        Option("Read the files that the run's settings name, even if it was made elsewhere."),
    ] = False
