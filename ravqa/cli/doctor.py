"""`ravqa doctor`: what is installed, and what would stop a pipeline from running.

Nothing is loaded or downloaded: packages are found by their metadata, models by their files. torch
is imported only if its build can use an accelerator.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

import ravqa
from ravqa.core.errors import UserError
from ravqa.core.factory import parts_of
from ravqa.core.files import leftovers
from ravqa.core.locations import cache_dir
from ravqa.core.model_files import resolve
from ravqa.core.settings import Strict, load_pipeline
from ravqa.pipeline import check_settings

CORE = ("torch", "transformers", "accelerate", "numpy", "pillow", "pydantic")
"""Packages whose versions matter most."""

EXTRAS = {
    "sample": "the default pipeline's models: image tags, MiniLM, GGUF files",
    "cpu": "faiss and numba: compressed indexes search several times faster",
    "gpu": "faiss for GPUs, instead of cpu",
    "bm25": "the retriever bm25",
    "datasets": "Parquet files, datasets on the hub, large knowledge bases",
    "evaluate": "ravqa's metrics for the library evaluate",
    "sentence-transformers": "encoders multi-vector and dense, the reranker cross-encoder",
    "qdrant": "the index qdrant: a server's collection, or its embedded engine",
    "ray": "sharded indexes on a Ray cluster",
    "openai": "the reader openai and the judge llm: models on a server",
    "vision": "readers whose processors need torchvision: Qwen-VL, InternVL, SmolVLM, Gemma 4",
    "lora": "LoRA adapters of readers",
    "quantization": "readers in 8 and 4 bits",
    "llama-index": "LlamaIndex retrievers and query engines",
    "langchain": "a LangChain retriever",
    "haystack": "a Haystack retriever",
    "pdf": "PDF files as passages",
}
"""What each extra adds."""

# Model types whose processors have a video processor, which needs torchvision.
_WANTS_TORCHVISION = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl", "llava_onevision", "gemma4",
    "smolvlm", "glm4v", "minicpmv", "molmo2",
)  # fmt: skip
_VIDEO = ("video_preprocessor_config.json", "processor_config.json")
_WEIGHTS = (
    "*.safetensors",
    "*.gguf",
    "*.bin",
    "*.pt",
    "*.ckpt",
)  # the first kind that a folder has
_HALF = ("float16", "bfloat16")
_WAIT_S = 1.0


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


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a pipeline.

    Attributes:
        place: its path, or "hub" if it is not on this machine.
        bytes: size of its weights on disk; None if they are not on this machine.
        memory: approximate size of its weights in memory, in bytes; None if unknown.
    """

    part: str
    name: str
    place: str
    bytes: int | None = None
    memory: int | None = None


@dataclass
class PipelineReport:
    """What a pipeline needs.

    Attributes:
        stops: reasons why it cannot run, one line each.
        notes: other remarks.
    """

    name: str
    models: list[Model] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """The content of `ravqa doctor`."""

    versions: dict[str, str | None]
    extras: list[Extra]
    devices: dict[str, str]
    caches: list[Cache]
    offline: bool
    pipeline: PipelineReport | None = None


def examine(pipeline: str | None = None, overrides: Sequence[str] = ()) -> Report:
    """Examine the installation and, if one is named, a pipeline.

    Raises:
        UserError: no such pipeline, or settings that are not valid.
    """
    report = Report(versions(), extras(), devices(), caches(), constants.is_offline_mode())
    if pipeline is not None:
        settings, where = load_pipeline(pipeline, overrides)
        report.pipeline = examine_pipeline(settings, where)
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
    found = []
    for name, adds in EXTRAS.items():
        missing = tuple(
            requirement.name
            for requirement in needed
            if requirement.marker is not None
            and requirement.marker.evaluate({"extra": name})
            and not requirement.marker.evaluate({"extra": ""})
            and _version(requirement.name) is None
        )
        found.append(Extra(name, adds, missing))
    return found


def devices() -> dict[str, str]:
    """Return processors, memory, free disk space, and accelerators that torch can use."""
    found = {
        "cpu": f"{_processors()} processors",
        "memory": _size(_memory()),
        "disk": _disk(),
    }
    return found | _accelerators()


def _disk() -> str:
    try:
        return f"{_size(shutil.disk_usage(cache_dir()).free)} free in the cache folder"
    except UserError as e:
        return str(e)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _accelerators() -> dict[str, str]:
    if _version("torch") is None:
        return {"accelerator": "none: torch is not installed"}
    build = _torch_build()
    if not build and sys.platform != "darwin":
        return {"accelerator": "none: this build of torch is for CPUs only"}
    import torch

    if torch.cuda.is_available():
        return {
            f"cuda:{i}": f"{p.name}, {_size(p.total_memory)}"
            for i in range(torch.cuda.device_count())
            for p in [torch.cuda.get_device_properties(i)]
        }
    if torch.backends.mps.is_available():
        return {"mps": "Apple GPU"}
    return {"accelerator": f"none: torch is built for {build or 'Apple GPUs'} but finds no device"}


def _torch_build() -> str:
    """Return what torch was built for ("CUDA 12.8"), from its version file; "" for CPUs."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    # torch is not imported, since that takes seconds.
    file = Path(spec.origin).with_name("version.py")
    version = importlib.util.spec_from_file_location("torch_version_file", file)
    if version is None or version.loader is None:
        return ""
    module = importlib.util.module_from_spec(version)
    version.loader.exec_module(module)
    builds = ((name, getattr(module, name, None)) for name in ("cuda", "hip", "xpu"))
    return next((f"{name.upper()} {build}" for name, build in builds if build), "")


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
        name = f"left by {len(left)} killed writers"
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


# -- a pipeline -------------------------------------------------------------------------------


def examine_pipeline(settings: Mapping[str, Any], where: str) -> PipelineReport:
    """Return what would stop a pipeline from running.

    Raises:
        UserError: settings that are not valid.
    """
    config = check_settings(settings, where)
    report = PipelineReport(where)
    for path, _, _, part in parts_of(config):
        _examine_part(report, path, part)
    needed = sum(model.memory or 0 for model in report.models)
    there = _memory()
    if needed > there:
        report.stops.append(
            f"the models' weights need about {_size(needed)} of memory, this machine has "
            f"{_size(there)} (a GPU's own memory is not counted)"
        )
    for name, what in config.stand_ins.items():
        report.notes.append(f"stand-in {name}: {what}")
    return report


def _examine_part(report: PipelineReport, path: str, config: Strict) -> None:
    for module, extra in config.packages():
        if importlib.util.find_spec(module) is None:
            report.stops.append(
                f"{path}: the package {module!r} is not installed: pip install 'ravqa[{extra}]'"
            )
    for name in config.models():
        _examine_model(report, path, name)
    for url in config.servers():
        if not _answers(url):
            report.stops.append(f"{path}: no server answers at {url}")


def _examine_model(report: PipelineReport, path: str, name: str) -> None:
    try:
        place = resolve(name, extra="sample", why=path)
    except UserError as e:
        report.stops.append(str(e))
        return
    folder = Path(place)
    if not folder.exists():
        kept = _in_hub_cache(name)
        if kept is None:
            report.models.append(Model(path, name, "hub"))
            if constants.is_offline_mode():
                report.stops.append(
                    f"{path}: {name} is not on this machine, and HF_HUB_OFFLINE forbids "
                    "downloading it"
                )
            else:
                report.notes.append(f"{path}: {name} will be downloaded from the hub")
            return
        folder = kept
    size = _weights(folder)
    report.models.append(Model(path, name, str(folder), size, _in_memory(folder, size)))
    if size == 0:
        report.stops.append(f"{path}: there are no weights in {folder}")
    if _wants_torchvision(folder) and importlib.util.find_spec("torchvision") is None:
        report.stops.append(
            f"{path}: the processor of {name} needs the package 'torchvision', which is not "
            "installed: pip install 'ravqa[vision]'"
        )


def _in_hub_cache(name: str) -> Path | None:
    """Return the folder in the hub's cache from which a model would be loaded."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _weights(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    for pattern in _WEIGHTS:
        if files := list(path.rglob(pattern)):
            return sum(file.stat().st_size for file in files)
    return 0


def _in_memory(path: Path, size: int) -> int | None:
    """Return the size of the weights in float32, as a CPU uses them, in bytes."""
    if path.suffix == ".gguf":
        return None  # depends on the quantisation
    if path.is_file():
        return size
    settings = _json(path / "config.json")
    stored = settings.get("dtype") or settings.get("torch_dtype")
    return 2 * size if stored in _HALF else size


def _wants_torchvision(path: Path) -> bool:
    model_type = str(_json(path / "config.json").get("model_type", ""))
    if model_type.startswith(_WANTS_TORCHVISION):
        return True
    return (path / _VIDEO[0]).is_file() or "video_processor" in _json(path / _VIDEO[1])


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _answers(url: str) -> bool:
    """Return whether a server listens at the address."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_WAIT_S):
            return True
    except (OSError, ValueError):
        return False


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
    yield "Caches", [(c.name, f"{_size(c.bytes):>8}  {c.path}") for c in report.caches]
    found = report.pipeline
    if found is not None:
        rows = []
        for model in found.models:
            size = "not here" if model.bytes is None else _size(model.bytes)
            rows.append((model.part, f"{model.name}: {size}"))
        rows += [("note", note) for note in found.notes]
        rows += [("stops", stop) for stop in found.stops]
        rows += [] if found.stops else [("", "ready to run")]
        yield f"Pipeline {found.name}", rows


def _size(count: int | None) -> str:
    size = float(count or 0)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
