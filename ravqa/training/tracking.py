"""Programs that follow a training's figures, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ravqa.core.errors import import_extra
from ravqa.training.settings import Tracker

_CLASSES = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker"}


class Trackers:
    """The trackers of one run; none is fine."""

    def __init__(self, trackers: Sequence[Any]):
        self._trackers = trackers

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures of a step."""
        for tracker in self._trackers:
            tracker.log(dict(figures), step=step)


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raise MissingExtraError if a tracker's package is not installed."""
    for name in names:
        import_extra(name, "trackers", why=f"the tracker {name}")


@contextmanager
def open_trackers(
    names: Sequence[Tracker], folder: Path, settings: Mapping[str, Any]
) -> Iterator[Trackers]:
    """Yield the trackers with these names, and finish them at the end.

    Args:
        folder: of the run; TensorBoard's files go into `trackers` in it.
        settings: what Weights & Biases shows as the run's configuration.
    """
    made = []
    for name in names:
        from accelerate import tracking

        kind = getattr(tracking, _CLASSES[name])
        if name == "tensorboard":
            made.append(kind(folder.name, logging_dir=folder / "trackers"))
        else:
            made.append(kind("ravqa", name=folder.name, dir=str(folder), config=dict(settings)))
    try:
        for tracker in made:
            if hasattr(tracker, "start"):
                tracker.start()
        yield Trackers(made)
    finally:
        for tracker in made:
            tracker.finish()
