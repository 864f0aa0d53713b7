"""The contract between the loop and what is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from ravqa.core.progress import Progress
from ravqa.training.sampling import Drawn


class Task(ABC):
    """What is trained: a model, its examples and loss, its validation, and its format on disk.

    Every process of a run has its own task with the same model and examples.

    Attributes:
        kind: its name: "retriever".
        metric: the figure of `evaluate` that decides which checkpoint is best.
        higher_is_better: whether more of it is better.
        model: the torch module that is trained, on its device; parameters with `requires_grad` are.
        sizes: number of examples of each dataset.
        ratios: share of the examples drawn from each dataset, up to a common factor.
        parts: patterns of parameters' names (as for `fnmatch`) by the names of parts.
        facts: what results should tell about data and model: JSON values.
        autocast: the context of forward passes in mixed precision; set by the loop.
        rank, world: number of this process, and of all; set by the loop.
        upcoming: returns the examples of so many steps from a step on; set by the loop.
    """

    kind: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    parts: ClassVar[Mapping[str, Sequence[str]]] = {}

    metric: str
    model: Any
    sizes: Sequence[int]
    ratios: Sequence[float]
    facts: Mapping[str, Any]
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    rank: int = 0
    world: int = 1
    upcoming: Callable[[int, int], frozenset[Drawn]]

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the outcome apart from the loop's settings, as JSON values.

        Settings and fingerprints of model and data; a resumed run must have the same.
        """

    @abstractmethod
    def backward(self, batch: Sequence[Drawn], weight: float, seed: int) -> dict[str, float]:
        """Add the gradients of `weight` times the batch's loss; return the losses.

        Args:
            batch: the batch of all processes, in the same order everywhere. `share` returns a
                process's own part. The mean over the processes is the loss of the batch.
            weight: factor of the loss.
            seed: for all that is drawn at random, the same in every process.

        Returns:
            Losses by name: "loss" is what is minimised, without `weight`; others are recorded.
        """

    def share(self, batch: Sequence[Drawn]) -> Sequence[Drawn]:
        """Return this process's part of a batch; the loop makes all parts equally long."""
        size = len(batch) // self.world
        return batch[self.rank * size : (self.rank + 1) * size]

    def before_step(self, step: int, progress: Progress) -> None:  # noqa: B027
        """Do what must be done before a step (counted from 0), such as mining negatives."""

    @abstractmethod
    def evaluate(self, progress: Progress) -> Mapping[str, float]:
        """Return the validation's figures, `metric` among them, the same in every process.

        Empty without validation data: the last checkpoint is then the best.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model in its usual format into an empty folder. Only one process is asked."""

    def write_state(self, folder: Path) -> None:  # noqa: B027
        """Write what `read_state` needs, beside the model. Only one process is asked."""

    def read_state(self, folder: Path) -> None:  # noqa: B027
        """Read what `write_state` wrote: what training has changed besides the weights."""
