"""`ravqa doctor`: what is installed, and what would stop a pipeline or a run.

No model is loaded and nothing is downloaded. What stops a run is not decided here: its own checks
are called (`ravqa.runs.plan`, `ravqa.runs.needs`, `ravqa.runs.load`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

import ravqa
from ravqa.core.devices import torch_build
from ravqa.core.errors import UserError
from ravqa.core.files import leftovers
from ravqa.core.locations import cache_dir
from ravqa.core.texts import number_of, readable_size
from ravqa.runs import needs
from ravqa.runs.needs import Needs, total_memory

if TYPE_CHECKING:
    from ravqa.runs.console import Console
    from ravqa.runs.options import RunRequest
    from ravqa.runs.plan import PipelinePlan

CORE = ("torch", "transformers", "accelerate", "numpy", "pillow", "pydantic")
"""Packages whose versions matter most."""

EXTRAS = {
    "sample": "the default pipeline's models: EfficientNet-Lite0, MiniLM, GGUF files",
    "cpu": "faiss and numba: the index faiss, and compressed indexes built sooner",
    "gpu": "faiss for GPUs, instead of cpu",
    "bm25": "the retriever bm25",
    "ocr": "the describer ocr, which reads what is written in photos",
    "datasets": "Parquet files, datasets on the hub, large knowledge bases",
    "demo": "the page of ravqa demo, in Gradio",
    "serve": "ravqa serve: over HTTP, and the Model Context Protocol",
    "docs": "the documentation as a site",
    "evaluate": "ravqa's metrics for the library evaluate",
    "sentence-transformers": "encoders multi-vector and dense, the reranker cross-encoder",
    "qdrant": "the index qdrant: a server's collection, or its embedded engine",
    "ray": "searching, encoding and answering on a Ray cluster",
    "openai": "the reader openai and the judge llm: models on a server",
    "vision": "readers whose processors need torchvision: Qwen-VL, InternVL, SmolVLM, Gemma 4",
    "lora": "LoRA adapters of readers",
    "train": "training of readers by LoRA (retrievers need no extra)",
    "trackers": "figures of a training in TensorBoard or Weights & Biases",
    "quantization": "readers in 8 and 4 bits",
    "llama-index": "LlamaIndex retrievers and query engines",
    "langchain": "a LangChain retriever",
    "haystack": "a Haystack retriever",
    "pdf": "PDF files as passages",
    "html": "web pages as passages",
    "office": "documents and slides of office programs as passages",
}
"""What each extra adds."""


@dataclass(frozen=True, slots=True)
class Extra:
    """An extra, what it adds, and its packages that are not installed."""

    name: str
    adds: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of results or models that can be computed or downloaded again."""

    name: str
    path: str
    bytes: int


@dataclass
class PipelineReport(Needs):
    """What a pipeline, or a run of it, needs.

    Attributes:
        name: the pipeline's file.
    """

    name: str = ""


@dataclass
class Report:
    """The content of `ravqa doctor`."""

    versions: dict[str, str | None]
    extras: list[Extra]
    devices: dict[str, str]
    caches: list[Cache]
    offline: bool
    pipeline: PipelineReport | None = None


def examine(request: RunRequest | None = None, console: Console | None = None) -> Report:
    """Examine the installation and, if a run is given, what would stop it.

    Args:
        request: the run. Without a dataset (""), its pipeline alone is examined.
        console: shows notes on the data.

    Raises:
        UserError: no such pipeline, or settings that are not valid.
    """
    report = Report(versions(), extras(), devices(), caches(), constants.is_offline_mode())
    if request is not None:
        report.pipeline = examine_run(request, console)
    return report


# -- the installation -------------------------------------------------------------------------


def versions() -> dict[str, str | None]:
    """Return versions of Python, this project and the main packages; None if missing."""
    return {
        "python": platform.python_version(),
        "ravqa": ravqa.__version__,
        **{name: _version(name) for name in CORE},
    }


def extras() -> list[Extra]:
    """Return every extra of the project, without those for development."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("ravqa") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return [Extra(name, adds, ("unknown",)) for name, adds in EXTRAS.items()]
    needed = [Requirement(line) for line in lines]

    def missing(extra: str) -> Iterator[str]:
        for requirement in needed:
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": ""}):
                continue
            if not marker.evaluate({"extra": extra}):
                continue
            if requirement.name == "ravqa":  # an extra made of others
                for other in requirement.extras:
                    yield from missing(other)
            elif _version(requirement.name) is None:
                yield requirement.name

    return [Extra(name, adds, tuple(missing(name))) for name, adds in EXTRAS.items()]


def devices() -> dict[str, str]:
    """Return processors, memory, free disk space, kernels, and accelerators that torch can use."""
    found = {
        "cpu": f"{_processors()} processors",
        "memory": readable_size(total_memory()),
        "disk": _disk(),
        "kernels": _kernels(),
    }
    return found | _accelerators()


def _kernels() -> str:
    """Say what searches compressed indexes on the processors."""
    from ravqa.indexes.compressed import native

    if native.library() is not None:
        return f"compiled from C, for {native.SETS[native.best_set()]}"
    other = "torch" if find_spec("numba") is None else "numba"
    return f"not compiled: compressed indexes are searched by {other}, more slowly"


def _disk() -> str:
    try:
        return f"{readable_size(shutil.disk_usage(cache_dir()).free)} free in the cache folder"
    except UserError as e:
        return str(e)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _accelerators() -> dict[str, str]:
    if _version("torch") is None:
        return {"accelerator": "none: torch is not installed"}
    build = torch_build()
    if not build and sys.platform != "darwin":
        return {"accelerator": "none: this build of torch is for CPUs only"}
    import torch

    if torch.cuda.is_available():
        return {
            f"cuda:{i}": f"{p.name}, {readable_size(p.total_memory)}"
            for i in range(torch.cuda.device_count())
            for p in [torch.cuda.get_device_properties(i)]
        }
    if torch.backends.mps.is_available():
        return {"mps": "Apple GPU"}
    return {"accelerator": f"none: torch is built for {build or 'Apple GPUs'} but finds no device"}


def caches() -> list[Cache]:
    """Return the parts of the cache folder, and the hub's cache."""
    try:
        listed = _parts_of(cache_dir())
    except UserError:  # reported by `devices`
        listed = []
    hub = Path(constants.HF_HUB_CACHE)
    if hub.is_dir():
        listed.append(Cache("Hugging Face hub", str(hub), _bytes(hub)))
    return listed


def _parts_of(root: Path) -> list[Cache]:
    found: dict[str, int] = {}
    for entry in sorted(root.iterdir()):
        if not entry.name.startswith("."):
            name = entry.name.partition(".sqlite")[0]
            found[name] = found.get(name, 0) + _bytes(entry)
    listed = [Cache(name, str(root / name), size) for name, size in found.items()]
    if left := list(leftovers(root)):
        name = f"left by {number_of(len(left), 'killed writer')}"
        listed.append(Cache(name, str(root), sum(map(_bytes, left))))
    return listed


def _bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, without links."""
    if not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                stat = os.lstat(os.path.join(folder, name))
            except OSError:  # removed meanwhile
                continue
            total += stat.st_size
    return total


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


# -- a run ------------------------------------------------------------------------------------


def examine_run(request: RunRequest, console: Console | None = None) -> PipelineReport:
    """Return what would stop a run, by the same checks that it begins with.

    Arguments and errors as for `examine`.
    """
    from ravqa.runs.plan import needs_of, pipeline_alone, plan_folder, plan_pipeline

    planned = plan_pipeline(request) if request.dataset else pipeline_alone(request)
    found = [needs_of(request, planned.config)]
    try:
        plan_folder(request, planned)
    except UserError as e:
        found.append(Needs(stops=[str(e)]))
    if request.dataset:
        found.append(_needs_of_data(request, planned, console))
    elif not (request.retrieval_only or request.predict_only):
        found.append(needs.examine(planned.config, {"judge"}))
    report = PipelineReport(name=planned.where)
    for part in found:
        report.models += part.models
        report.notes += part.notes
        report.stops += [*part.stops, *part.silent]
    report.stops = list(dict.fromkeys(report.stops))
    return report


def _needs_of_data(request: RunRequest, planned: PipelinePlan, console: Console | None) -> Needs:
    """Read the data of a run as the run does, and return what would stop it then."""
    if request.download or str(request.data or "").startswith("hf:"):
        return Needs(notes=["the dataset is not examined, since it would be downloaded"])
    from ravqa.core.factory import Session
    from ravqa.runs.console import Console
    from ravqa.runs.folder import RunDir
    from ravqa.runs.load import needs_of_data, read_data
    from ravqa.runs.plan import known_config
    from ravqa.runs.subsets import asks_for_all, check_subsets

    try:
        if asks_for_all(request):
            check_subsets(request)
            return Needs(notes=["the subsets' data are not examined"])
        data = read_data(request, planned.config, Session(), console or Console())
        if request.output is not None and request.resume:
            run_dir = RunDir(request.output, resume=True)
            run_dir.check_resumed(known_config(request, planned.settings, data))
    except UserError as e:
        return Needs(stops=[str(e)])
    return needs_of_data(request, planned.config, data)


# -- printing ---------------------------------------------------------------------------------


def as_json(report: Report) -> str:
    """Return the report as JSON."""
    return json.dumps(asdict(report), indent=1)


def lines(report: Report) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the report for people: titles, and rows of two columns."""
    yield "Versions", [(name, v or "not installed") for name, v in report.versions.items()]
    yield (
        "Extras",
        [
            (
                e.name,
                f"- missing: {', '.join(e.missing)}; adds {e.adds}" if e.missing else f"✓ {e.adds}",
            )
            for e in report.extras
        ],
    )
    offline = "HF_HUB_OFFLINE is set: nothing is downloaded" if report.offline else "allowed"
    yield "Devices", [*report.devices.items(), ("hub", offline)]
    yield "Caches", [(c.name, f"{readable_size(c.bytes):>8}  {c.path}") for c in report.caches]
    found = report.pipeline
    if found is not None:
        rows = []
        for model in found.models:
            size = "not here" if model.bytes is None else readable_size(model.bytes)
            rows.append((model.part, f"{model.name}: {size}"))
        rows += [("note", note) for note in found.notes]
        rows += [("stops", stop) for stop in found.stops]
        missing = [model.name for model in found.models if model.bytes is None]
        after = f" after a download of {', '.join(dict.fromkeys(missing))}" if missing else ""
        rows += [] if found.stops else [("", f"ready to run{after}")]
        yield f"Pipeline {found.name}", rows
