"""Settings that every kind of training shares: the loop, and which parameters train."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, model_validator

from ravqa.core.errors import UserError, near_matches
from ravqa.core.locations import PIPELINES, packaged
from ravqa.core.settings import Strict, Text, apply_override, read_yaml, validate
from ravqa.training.options import TrainRequest

C = TypeVar("C", bound=Strict)

_BUNDLED = PIPELINES / "training"

Tracker = Literal["tensorboard", "wandb"]


class LoopConfig(Strict):
    """The loop's settings.

    Attributes:
        steps: number of updates of the weights; null if `epochs` is set.
        epochs: passes over as many examples as there are; null if `steps` is set.
        batch_size: examples that are compared or averaged together, over all processes.
        accumulation: batches whose gradients are averaged for one update.
        learning_rate: its peak.
        learning_rates: other peaks, by part or pattern of parameters' names; the last one that
            matches a parameter counts.
        schedule: how the learning rate falls after the warm-up.
        warmup: steps in which the learning rate rises to its peak.
        weight_decay: AdamW's; biases and the weights of normalisations have none.
        betas, epsilon: AdamW's.
        max_grad_norm: gradients that are longer are scaled to this length; null for no limit.
        precision: type of most products; the weights stay in float32.
        seed: sets the order of the examples and all that is drawn at random.
        validate_every: steps between validations; null for one at the end only.
        patience: stop after so many validations without a better one; null never stops early.
        save_every: steps between saves of `last`, apart from those after validations.
        trackers: programs that receive the figures too, through accelerate.
        device: "auto" for an accelerator if available.
    """

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    learning_rates: dict[str, float] = Field(default_factory=dict)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0)
    validate_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    save_every: int = Field(default=500, ge=1)
    trackers: tuple[Tracker, ...] = ()
    device: Text = "auto"

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("loop: set either steps or epochs")
        return self

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        if self.patience is not None and self.validate_every is None:
            raise ValueError("loop: patience counts validations: set validate_every too")
        return self


def read_settings(request: TrainRequest, model: type[C]) -> C:
    """Return the validated settings of a file, with the command line's changes.

    Raises:
        UserError: there is no such file or name; it cannot be read; a setting is unknown, missing
            or bad.
    """
    path = Path(request.config)
    if path.suffix not in {".yaml", ".yml"} and not path.is_file():
        found = packaged(_BUNDLED, f"{request.config}.yaml")
        if found is None:
            known = [file.stem for file in _BUNDLED.glob("*.yaml")]
            raise UserError(
                f"no training settings {request.config!r}: {near_matches(request.config, known)}"
            )
        path = found
    settings = read_yaml(path)
    for override in request.overrides:
        apply_override(settings, override)
    return validate(model, settings, path.name)
