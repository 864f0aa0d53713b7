"""The training loop: batches, gradients, updates, validation, checkpoints.

A run is exact: neither a kill and resumption nor the number of processes changes its losses, apart
from rounding in the latter case. Several processes average their gradients before each update.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ravqa.core.devices import own_device, processes
from ravqa.core.errors import DamagedError, UserError, first_line
from ravqa.core.progress import Progress
from ravqa.training.folder import BEST, LAST, RESULTS, TrainingFolder
from ravqa.training.report import write_report
from ravqa.training.sampling import Drawn, batches, step_seed
from ravqa.training.settings import LoopConfig
from ravqa.training.task import Task
from ravqa.training.tracking import check_trackers, open_trackers

_STATE = "training.pt"
_NOTE = Callable[[str], object]


def train(
    task: Task,
    config: LoopConfig,
    folder: TrainingFolder,
    *,
    progress: Progress,
    note: _NOTE,
) -> Mapping[str, Any]:
    """Train, or continue to train, and write the folder.

    Args:
        folder: held by the caller (`TrainingFolder.held`) in the main process.

    Returns:
        The content of results.json.

    Raises:
        UserError: the run to resume was another one; the batch cannot be shared by the processes;
            no parameter trains; the loss is not a number.
    """
    return _Training(task, config, folder, progress, note).run()


def device_of(config: LoopConfig) -> str:
    """Return the device that a task's model must be on.

    Raises:
        UserError: it does not exist.
    """
    return own_device(config.device, "training")


class _Training:
    """One run of the loop."""

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        folder: TrainingFolder,
        progress: Progress,
        note: _NOTE,
    ):
        check_trackers(config.trackers)
        self.task, self.config, self.folder = task, config, folder
        self.progress, self.note = progress, note
        self.state = processes()
        self.main = self.state.is_main_process
        world = self.state.num_processes
        if config.batch_size % world:
            raise UserError(
                f"loop.batch_size {config.batch_size} cannot be shared by {world} processes: "
                "it must be a multiple"
            )
        task.rank, task.world = self.state.process_index, world
        task.autocast, task.upcoming = self._autocast, self._upcoming
        self.steps = config.steps or self._steps_of_epochs()
        self.named = {n: p for n, p in task.model.named_parameters() if p.requires_grad}
        if not self.named:
            raise UserError("no parameter is trained: all are frozen")
        self.device = next(iter(self.named.values())).device
        self.optimizer = _optimizer(self.named, config, task.parts)
        self.scheduler = _scheduler(self.optimizer, config, self.steps)
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.waited = 0  # validations since the best
        self.stopped = False

    def _autocast(self) -> Any:
        import torch

        on = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on)

    def _steps_of_epochs(self) -> int:
        assert self.config.epochs is not None
        examples = self.config.epochs * sum(self.task.sizes)
        return max(1, math.ceil(examples / (self.config.batch_size * self.config.accumulation)))

    def _batches(self, step: int) -> Iterator[list[Drawn]]:
        """Return the batches from a step on."""
        config = self.config
        each = batches(self.task.sizes, self.task.ratios, config.batch_size, config.seed)
        return itertools.islice(each, step * config.accumulation, None)

    def _upcoming(self, step: int, steps: int) -> frozenset[Drawn]:
        steps = min(steps, self.steps - step)
        several = itertools.islice(self._batches(step), steps * self.config.accumulation)
        return frozenset(itertools.chain.from_iterable(several))

    # -- the run -----------------------------------------------------------------------------

    def run(self) -> Mapping[str, Any]:
        config, task = self.config, self.task
        self._begin()
        with ExitStack() as stack:
            trackers = stack.enter_context(
                open_trackers(config.trackers if self.main else (), self.folder.path, task.identity)
            )
            each = self._batches(self.step)
            if self.step == 0 and config.validate_every is not None:
                self._validate(trackers)
            while self.step < self.steps and not self.stopped:
                started = time.monotonic()
                task.before_step(self.step, self.progress)
                figures = self._update(each)
                self.step += 1
                figures["seconds"] = round(time.monotonic() - started, 4)
                self._log(figures, trackers)
                self.progress(f"training the {task.kind}", self.step, self.steps)
                every = config.validate_every
                if self.step == self.steps or (every and self.step % every == 0):
                    self._validate(trackers)
                    self._save()
                elif self.step % config.save_every == 0:
                    self._save()
            return self._end()

    def _begin(self) -> None:
        identity = {
            "training": self.task.kind,
            **self.task.identity,
            "loop": self.config.model_dump(mode="json", exclude={"trackers", "device"}),
        }
        if self.main:
            self.folder.begin(identity)
        self.state.wait_for_everyone()
        last = self.folder.last() if self.folder.resume else None
        if last is not None:
            self._restore(last)
        self.state.wait_for_everyone()
        if self.main and self.folder.resume:
            self.folder.figures(until=self.step if last is not None else -1)
            if last is not None:
                self.note(f"resumed after step {self.step} of {self.steps}")

    def _update(self, each: Any) -> dict[str, float]:
        """Do one update; return its figures, the means over all processes."""
        import torch

        config, task = self.config, self.task
        task.model.train()
        _still(task.model)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for part in range(config.accumulation):
            seed = step_seed(config.seed, self.step, part)
            losses = task.backward(next(each), 1 / config.accumulation, seed)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value / config.accumulation
        self._average_gradients()
        sums = self._mean_of_all(sums)
        if not math.isfinite(sums["loss"]):
            raise UserError(
                f"step {self.step + 1}: the loss is {sums['loss']}: a lower loop.learning_rate, a "
                "longer loop.warmup, or loop.precision: float32 may help"
            )
        if all(p.grad is None for p in self.named.values()):
            raise UserError(
                f"step {self.step + 1}: no parameter that trains takes part in the loss (does what "
                "trains see images, and the examples have none?)"
            )
        limit = config.max_grad_norm if config.max_grad_norm is not None else math.inf
        norm = torch.nn.utils.clip_grad_norm_(list(self.named.values()), limit)
        rate = max(self.scheduler.get_last_lr())
        self.optimizer.step()
        self.scheduler.step()
        return {**sums, "learning_rate": rate, "gradient": float(norm)}

    def _average_gradients(self) -> None:
        """Average the gradients over all processes; parameters that none uses get none."""
        if self.task.world == 1:
            return
        import torch
        from accelerate.utils import reduce

        parameters = list(self.named.values())
        used = torch.tensor([float(p.grad is not None) for p in parameters])
        used = reduce(used.to(self.device), reduction="sum")
        parameters = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = reduce(torch.cat([p.grad.reshape(-1) for p in parameters]), reduction="mean")
        place = 0
        for parameter in parameters:
            size = parameter.numel()
            parameter.grad.copy_(flat[place : place + size].view_as(parameter))
            place += size

    def _mean_of_all(self, figures: dict[str, float]) -> dict[str, float]:
        if self.task.world == 1:
            return figures
        import torch
        from accelerate.utils import reduce

        values = torch.tensor(list(figures.values()), device=self.device)
        return dict(zip(figures, reduce(values, reduction="mean").tolist(), strict=True))

    def _log(self, figures: Mapping[str, Any], trackers: Any) -> None:
        if self.main:
            self.folder.log({"step": self.step, **figures})
            trackers.log({k: v for k, v in figures.items() if k != "validation"}, self.step)

    # -- validation and checkpoints ----------------------------------------------------------

    def _validate(self, trackers: Any) -> None:
        import torch

        task = self.task
        task.model.eval()
        with torch.no_grad():
            found = dict(task.evaluate(self.progress))
        if not found:
            return
        if self.main:
            self.folder.log({"step": self.step, "validation": found})
            trackers.log({f"validation/{k}": v for k, v in found.items()}, self.step)
        sign = 1 if task.higher_is_better else -1
        if (
            self.best is None
            or sign * found[task.metric] > sign * self.best["figures"][task.metric]
        ):
            self.best, self.waited = {"step": self.step, "figures": found}, 0
            if self.main:
                with self.folder.replaced(BEST) as filled:
                    task.save(filled)
        else:
            self.waited += 1
            patience = self.config.patience
            self.stopped = patience is not None and self.waited >= patience
        self.state.wait_for_everyone()

    def _save(self) -> None:
        """Write `last`: the model, and all that continues its training."""
        import torch

        if self.main:
            self.folder.flush()
            with self.folder.replaced(LAST) as filled:
                self.task.save(filled)
                self.task.write_state(filled)
                state = {
                    "step": self.step,
                    "best": json.dumps(self.best),
                    "waited": self.waited,
                    "stopped": self.stopped,
                    "weights": {n: p.detach() for n, p in self.named.items()},
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.scheduler.state_dict(),
                }
                torch.save(state, filled / _STATE)
            self._report()
        self.state.wait_for_everyone()

    def _restore(self, last: Path) -> None:
        import torch

        path = last / _STATE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            with torch.no_grad():
                for name, parameter in self.named.items():
                    parameter.copy_(state["weights"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.step, self.waited = int(state["step"]), int(state["waited"])
            self.stopped, self.best = bool(state["stopped"]), json.loads(state["best"])
            self.task.read_state(last)
        except UserError:
            raise
        except Exception as e:  # torch and zipfile fail in many ways on changed bytes
            raise DamagedError(
                f"{path} is damaged ({first_line(e)}): the training cannot be resumed"
            ) from None

    # -- the end -----------------------------------------------------------------------------

    def _results(self) -> dict[str, Any]:
        trained = sum(p.numel() for p in self.named.values())
        return {
            "training": self.task.kind,
            "steps": self.step,
            "planned_steps": self.steps,
            "stopped_early": self.stopped,
            "metric": self.task.metric,
            "best": self.best,
            "parameters": {
                "trained": trained,
                "all": sum(p.numel() for p in self.task.model.parameters()),
            },
            **self.task.facts,
        }

    def _report(self) -> None:
        results = self._results()
        self.folder.write(RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        write_report(self.folder.path, results, self.folder.figures())

    def _end(self) -> Mapping[str, Any]:
        if self.main:
            if self.best is None:  # without validation, the last is the best that is known
                with self.folder.replaced(BEST) as filled:
                    self.task.save(filled)
            self._report()
        self.state.wait_for_everyone()
        return self._results()


def matching(
    names: Mapping[str, Any], pattern: str, parts: Mapping[str, Any], setting: str
) -> list[str]:
    """Return the parameters that a part's name or a pattern of their names means.

    Args:
        names: all parameters, by name.
        pattern: the name of a part, a parameter's or module's name, or a pattern with * and ?.
        parts: patterns by part.
        setting: where the pattern was set, for the message.

    Raises:
        UserError: there are none.
    """
    patterns = parts.get(pattern, (pattern,))
    found = [
        name
        for name in names
        if any(fnmatch(name, p) or name.startswith(f"{p}.") for p in patterns)
    ]
    if not found:
        modules = sorted({name.partition(".")[0] for name in names})
        raise UserError(
            f"{setting}: {pattern!r} matches no parameter of the model (parts: "
            f"{', '.join(parts) or 'none'}; modules: {', '.join(modules)})"
        )
    return found


def _still(model: Any) -> None:
    """Put modules of which nothing trains into evaluation mode: they draw no dropout."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def _optimizer(named: Mapping[str, Any], config: LoopConfig, parts: Mapping[str, Any]) -> Any:
    import torch

    rates = dict.fromkeys(named, config.learning_rate)
    for pattern, rate in config.learning_rates.items():
        for name in matching(named, pattern, parts, "loop.learning_rates"):
            rates[name] = rate
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in named.items():
        decay = config.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((rates[name], decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "lr": rate, "weight_decay": decay}
            for (rate, decay), params in groups.items()
        ],
        betas=config.betas,
        eps=config.epsilon,
    )


def _scheduler(optimizer: Any, config: LoopConfig, steps: int) -> Any:
    from transformers import get_scheduler

    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    return get_scheduler(name, optimizer, num_warmup_steps=config.warmup, num_training_steps=steps)
