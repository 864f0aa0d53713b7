"""What every command that trains does around the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from ravqa.core.devices import processes
from ravqa.core.errors import UserError
from ravqa.runs.console import Console
from ravqa.training.folder import TrainingFolder
from ravqa.training.loop import train
from ravqa.training.options import TrainRequest
from ravqa.training.settings import LoopConfig
from ravqa.training.task import Task


def run_task(
    request: TrainRequest, loop: LoopConfig, console: Console, kind: str, make: Callable[[], Task]
) -> Path:
    """Make a task, train it in the folder that the request names, and return the folder.

    Args:
        kind: of the task, for the folder's default name.
        make: loads data and model. It is called after the folder was checked, and before anything
            of an old run is removed.

    Raises:
        UserError: any mistake in the options, the settings or the data.
    """
    if request.resume and request.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if request.resume and request.output is None:
        raise UserError("--resume needs --output: the folder of the training to resume")
    state = processes()
    if request.output is None and state.num_processes > 1:
        raise UserError("several processes need --output: a folder that all of them know")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    path = request.output or Path("runs") / f"train-{kind}-{stamp}"
    with ExitStack() as stack:
        with state.main_process_first():
            folder = TrainingFolder(
                path,
                resume=request.resume,
                overwrite=request.overwrite,
                dry_run=not state.is_main_process,  # only the main process writes
            )
        task = make()
        if state.is_main_process:
            stack.enter_context(folder.held())
        train(task, loop, folder, progress=console.progress, note=console.note)
    return path
