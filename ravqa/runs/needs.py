"""What a pipeline needs of this machine: the reasons why it cannot run here, before it tries.

Nothing is loaded or downloaded: packages are found by their metadata, models by their files. torch
is imported only to look for a device that the settings name, or for a GPU that it was built for.
`ravqa doctor` shows what is found here, and a run refuses to begin because of it.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

from ravqa.answering import RULES
from ravqa.answering.rules import answering_config, fitting_rules, reader_problem
from ravqa.core.devices import has_accelerator, own_device
from ravqa.core.errors import UserError
from ravqa.core.factory import part_config, parts_of
from ravqa.core.locations import PIPELINES
from ravqa.core.model_files import on_this_machine, resolve, settings_of
from ravqa.core.registry import Registry
from ravqa.core.settings import Part, PipelineConfig, Strict, load_pipeline
from ravqa.core.texts import readable_size
from ravqa.pipeline import check_settings
from ravqa.readers import READERS
from ravqa.readers.base import Abilities
from ravqa.rerankers.build import asks_own_reader, reranker_config

PARTS = frozenset({"describer", "retriever", "reranking", "reader", "judge"})
"""The keys of a pipeline that hold parts."""

_CACHED = frozenset({"reader", "judge"})  # whose answers may all be in the cache
_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.ckpt")  # the first kind that is there
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_WAIT_S = 3.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a pipeline.

    Attributes:
        place: its path, or "hub" if it is not on this machine.
        bytes: size of its weights on disk; None if they are not on this machine.
        memory: approximate size of its weights in this machine's memory, in bytes; None if it is
            not known, or they are loaded elsewhere.
    """

    part: str
    name: str
    place: str
    bytes: int | None = None
    memory: int | None = None


@dataclass
class Needs:
    """What a pipeline needs.

    Attributes:
        stops: reasons why it cannot run, one line each.
        silent: the same for servers of readers and judges, without which a run can only use
            answers that it has cached.
        notes: other remarks.
    """

    models: list[Model] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self) -> None:
        """Raise UserError with the first reason why the pipeline cannot run, if there is one."""
        if self.stops:
            more = len(self.stops) - 1
            others = f" ({more} more: ravqa doctor with these options lists all)" if more else ""
            raise UserError(self.stops[0] + others)


def built_parts(config: PipelineConfig, *, retrieval_only: bool, scored: bool) -> set[str]:
    """Return the keys of a pipeline whose parts a run builds.

    Args:
        scored: whether answers are scored by a metric that asks the judge.
    """
    parts = set(PARTS)
    if retrieval_only and not asks_own_reader(config.reranking):
        parts.discard("reader")
    if retrieval_only or not scored:
        parts.discard("judge")
    return parts


def check_prices(config: PipelineConfig, parts: Collection[str], limits: Collection[str]) -> None:
    """Check that money can be told: of all that is paid by the token, and in one currency.

    Args:
        parts: the keys of the pipeline whose parts are built.
        limits: the options that limit the run, such as "--max-cost".

    Raises:
        UserError: some prices are missing while others are set, or all while money is limited;
            there are two currencies; there is a limit and nothing that it limits.
    """
    bills = {
        path: prices
        for path, _, _, own in parts_of(config)
        if path.partition(".")[0] in parts
        for prices in own.bills()
    }
    given = {path: prices for path, prices in bills.items() if prices is not None}
    lacking = [path for path in bills if path not in given]
    if limits and not bills:
        raise UserError(f"{next(iter(limits))}: nothing that runs here asks a server")
    if lacking and (given or "--max-cost" in limits):
        why = f"{next(iter(given))}.prices is set" if given else "--max-cost needs prices"
        raise UserError(
            f"{why}: set {lacking[0]}.prices too (0 for a server that costs nothing), so that no "
            "cost is left out"
        )
    currencies = {prices.currency: path for path, prices in given.items()}
    if len(currencies) > 1:
        (one, first), (other, second) = list(currencies.items())[:2]
        raise UserError(
            f"{first}.prices are in {one}, {second}.prices in {other}: one currency is needed"
        )


def currency_of(config: PipelineConfig) -> str | None:
    """Return the currency of the prices in a pipeline's settings; None without prices."""
    bills = [prices for _, _, _, own in parts_of(config) for prices in own.bills()]
    return next((prices.currency for prices in bills if prices is not None), None)


def examine(
    config: PipelineConfig, parts: Collection[str] = PARTS, *, answers: bool = True
) -> Needs:
    """Return what would stop a pipeline from running here.

    Args:
        parts: the keys of the pipeline to look at.
        answers: whether the reader answers questions; else only rerankers may ask it.
    """
    needs = Needs()
    for path, registry, part, own in parts_of(config):
        if path.partition(".")[0] in parts:
            _examine_part(needs, path, registry, part, own)
    needs.stops += _abilities(config, parts, answers=answers)
    memory = sum(model.memory or 0 for model in needs.models)
    there = total_memory()
    if memory > there:
        needs.stops.append(
            f"the models' weights need about {readable_size(memory)} of memory, this machine has "
            f"{readable_size(there)}"
        )
    for name, what in config.stand_ins.items():
        if name in parts:
            needs.notes.append(f"stand-in {name}: {what}")
    return needs


def answering_pipelines(overrides: Sequence[str] = ()) -> list[str]:
    """Return the packaged pipelines in which a model can answer here now, "sample" first.

    Nothing would be downloaded for them.

    Args:
        overrides: "key.path=value"; pipelines that these do not suit are left out.
    """
    found = []
    for path in PIPELINES.glob("*.yaml"):
        try:
            config = check_settings(*load_pipeline(path.stem, overrides))
        except UserError:
            continue
        if not READERS.get(config.reader.name).has_model:
            continue
        needs = examine(config, PARTS - {"judge"})
        missing = any(model.bytes is None for model in needs.models)
        if not (needs.stops or needs.silent or missing):
            found.append(path.stem)
    return sorted(found, key=lambda name: (name != "sample", name))


def usable_rules(config: PipelineConfig) -> dict[str, str]:
    """Return the decision rules that a pipeline's reader can serve, its own first.

    Returns:
        Names and summaries.
    """
    summaries = dict(RULES)
    names = fitting_rules(config.answering, _declared(config.reader, "reader"))
    return {name: summaries[name] for name in names}


def total_memory() -> int:
    """Return the size of this machine's memory, in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)


def _examine_part(
    needs: Needs, path: str, registry: Registry[Any], part: Part, config: Strict
) -> None:
    for module, extra in config.packages():
        if importlib.util.find_spec(module) is None:
            needs.stops.append(
                f"{path}: the package {module!r} is not installed: pip install 'ravqa[{extra}]'"
            )
    for device in config.devices():
        try:
            own_device(device, path)
        except UserError as e:
            needs.stops.append(str(e))
    needs.stops += [f"{path}: {problem}" for problem in config.problems()]
    for name in config.models():
        _examine_model(needs, path, name, config)
    for url in config.servers():
        if not _answers(url):
            found = needs.silent if registry.kind in _CACHED else needs.stops
            found.append(f"{path}: no server answers at {url}")


def _abilities(config: PipelineConfig, parts: Collection[str], *, answers: bool) -> Iterator[str]:
    """Yield what answering lacks, and what it and rerankers need of readers and do not get."""
    if answers and "reader" in parts:
        answering = answering_config(config.answering, "answering")
        yield from (f"answering: {problem}" for problem in answering.problems())
        if problem := reader_problem(answering, _declared(config.reader, "reader")):
            yield problem
    for i, part in enumerate(config.reranking if "reranking" in parts else ()):
        own = reranker_config(part, f"reranking.{i}")
        if own.asks_reader:
            place = f"reranking.{i}.reader" if own.reader_part else "reader"
            able = _declared(own.reader_part or config.reader, place)
            if problem := own.reader_problem(able):
                yield f"reranking.{i}: {part.name} {problem}"


def _declared(part: Part, where: str) -> Abilities:
    return READERS.get(part.name).declared(part_config(READERS, part, where))


def _examine_model(needs: Needs, path: str, name: str, config: Strict) -> None:
    try:
        place = resolve(name, extra="sample", why=path)
    except UserError as e:
        needs.stops.append(str(e))
        return
    folder = on_this_machine(place)
    size = 0 if folder is None else _weights(folder)
    if folder is not None and (size or Path(place).exists()):
        memory = _in_memory(folder, size, config)
        needs.models.append(Model(path, name, str(folder), size, memory))
        if size == 0:
            needs.stops.append(f"{path}: there are no weights in {folder}")
        return
    needs.models.append(Model(path, name, "hub"))
    if constants.is_offline_mode():
        listed = any(key.isdigit() for key in path.split("."))
        own = not listed and getattr(config, "model", None) == name
        mend = f"use --set {path}.model=DIR" if own else "set the model to its folder"
        needs.stops.append(
            f"{path}: {name} is not on this machine, and HF_HUB_OFFLINE forbids downloading it: "
            f"download it elsewhere, and {mend}"
        )
    else:
        needs.notes.append(f"{path}: {name} will be downloaded from the hub")


def _weights(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    for pattern in _WEIGHTS:
        if files := list(path.rglob(pattern)):
            return sum(file.stat().st_size for file in files)
    return 0


def _in_memory(path: Path, size: int, config: Strict) -> int | None:
    """Return the size of the weights in main memory, in bytes; None if it is not known."""
    quantised = getattr(config, "quantization", "none") != "none"
    elsewhere = getattr(config, "device_map", None) is not None
    if path.suffix == ".gguf" or quantised or elsewhere:
        return None
    device = getattr(config, "device", "auto")
    if device != "cpu" and (device != "auto" or has_accelerator()):
        return None
    if path.is_file():
        return size
    settings = settings_of(path)
    stored = _BYTES.get(settings.get("dtype") or settings.get("torch_dtype") or "float32", 4)
    return size * _BYTES.get(getattr(config, "dtype", "auto"), 4) // stored


def _answers(url: str) -> bool:
    """Return whether a server listens at the address."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_WAIT_S):
            return True
    except (OSError, ValueError):
        return False
