"""First phase of a run: check the request before any data or model is read.

A mistake found here costs no work; a study plans all of its runs before the first begins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import ravqa
from ravqa.core.cluster import WorkerOptions
from ravqa.core.errors import UserError, near_matches
from ravqa.core.registry import Registry, table
from ravqa.core.settings import PipelineConfig, apply_override, load_pipeline, validate
from ravqa.corpora.corpus import Corpus
from ravqa.datasets import DATASETS
from ravqa.datasets.base import Dataset, Problem, parse_options
from ravqa.evaluation.schema import SCHEMA_VERSION
from ravqa.pipeline import Pipeline, check_settings
from ravqa.rerankers.build import asks_own_reader
from ravqa.retrievers import RETRIEVERS
from ravqa.runs.folder import RunDir
from ravqa.runs.needs import Needs, built_parts, examine
from ravqa.runs.options import EncodeRequest, RunRequest

CONTROLS = ("none", "oracle", "random", "wrong-image")
_BLIND = ("none", "random", "static")  # retrievers that use nothing but the question's id
# If --retriever names one of these, passages are not reranked, unless --set says so.
_PASSAGES = ("none", "oracle", "random")
_ARGUMENTS = {"static": "file"}  # meaning of ARGUMENT in NAME:ARGUMENT on the command line


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """The pipeline of a run.

    Attributes:
        settings: settings for `Pipeline.from_config`.
        where: file that they were read from, for messages.
        config: the same settings, validated.
    """

    settings: Mapping[str, Any]
    where: str
    config: PipelineConfig


@dataclass(frozen=True, slots=True)
class Given:
    """What a Python caller already has, used instead of what the request names.

    Attributes:
        pipeline: must have been built from settings, which the run records.
        corpus: passages; by default those that the pipeline was prepared for.
    """

    dataset: Dataset | None = None
    pipeline: Pipeline | None = None
    corpus: Corpus | None = None


@dataclass(frozen=True, slots=True)
class Data:
    """The questions and passages of a run.

    Attributes:
        corpus: None if there are no passages.
        problems: questions that were left out, and why.
    """

    dataset: Dataset
    corpus: Corpus | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that can begin.

    Attributes:
        run_dir: its folder; nothing is written to it before data and models are loaded.
        started: start of the run, by `time.monotonic`.
    """

    request: RunRequest
    pipeline: PipelinePlan
    run_dir: RunDir
    started: float
    given: Given = field(default_factory=Given)


def plan(request: RunRequest, given: Given | None = None) -> Plan:
    """Check a request, its pipeline and its folder.

    Raises:
        UserError: any mistake in the request that shows without data and models.
    """
    started = time.monotonic()
    given = given or Given()
    pipeline = plan_pipeline(request, given)
    run_dir = plan_folder(request, pipeline)
    if given.pipeline is None:
        needs_of(request, pipeline.config).refuse()
    return Plan(request, pipeline, run_dir, started, given)


def plan_folder(request: RunRequest, pipeline: PipelinePlan) -> RunDir:
    """Check the folder of a run, and the settings of a run in it that is to be resumed.

    Raises:
        UserError: as `RunDir`; the run to resume had other settings; passages are missing.
    """
    run_dir = RunDir(
        request.output or default_output(request),
        resume=request.resume,
        overwrite=request.overwrite,
    )
    run_dir.check_resumed(known_config(request, pipeline.settings))
    if request.download and request.data is not None:  # --download does not fetch passages
        check_corpus(request, pipeline.config)
    return run_dir


def needs_of(request: RunRequest, config: PipelineConfig) -> Needs:
    """Return what a run needs of this machine; the judge is left to `load`.

    Whether answers are judged depends on the dataset's metric.
    """
    reads = not request.retrieval_only
    parts = built_parts(config, retrieval_only=request.retrieval_only, scored=False)
    return examine(config, parts, answers=reads)


def known_config(
    request: RunRequest, settings: Mapping[str, Any], data: Data | None = None
) -> dict[str, Any]:
    """Return what is known of a run's `config.yaml` before its parts are built.

    Args:
        settings: of the pipeline.
        data: None if they are not read yet.
    """
    dataset: dict[str, Any] = {}
    corpus: dict[str, Any] = {}
    if data is not None:
        found, passages = data.dataset, data.corpus
        dataset = {"name": found.name, "label": found.label, "split": found.split}
        corpus = {
            "passages": len(passages) if passages else 0,
            "fingerprint": passages.fingerprint if passages else None,
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "ravqa": ravqa.__version__,
        "dataset": {
            **dataset,
            "data": str(request.data) if request.data else None,
            "options": list(request.dataset_options),
            "metric_options": list(request.metric_options),
            "limit": request.limit,
            "on_error": request.on_error,
        },
        "corpus": {
            "files": [str(p) for p in request.corpus],
            **({"options": list(request.corpus_options)} if request.corpus_options else {}),
            **corpus,
        },
        "run": {
            "retrieval_only": request.retrieval_only,
            "predict_only": request.predict_only,
            "controls": list(request.controls),
            "seed": request.seed,
        },
        "pipeline": dict(settings),
    }


def plan_pipeline(request: RunRequest, given: Given | None = None) -> PipelinePlan:
    """Read and validate the settings of the run's pipeline.

    Raises:
        UserError: any mistake in the request that shows without data and models.
    """
    given = given or Given()
    check_corpus_options(request)
    if given.dataset is None:
        DATASETS.check(request.dataset)
    return pipeline_alone(request, given.pipeline)


def pipeline_alone(request: RunRequest, built: Pipeline | None = None) -> PipelinePlan:
    """Do what `plan_pipeline` does, whatever the dataset is.

    Args:
        built: a pipeline that a Python caller has, instead of the one that the request names.
    """
    _check(request)
    settings, where = _settings(request) if built is None else _built(built)
    config = check_settings(settings, where)
    changes = overrides_of(request)
    described = any(change.startswith("description=") for change in changes)
    if not described and (changes or request.retrieval_only):
        name = Path(where).stem
        unread = request.retrieval_only
        settings["description"] = pipeline_name(name, changes, retrieval_only=unread)
        config = check_settings(settings, where)
    blind = config.retriever.name == "none" or (
        config.retriever.name in _BLIND and not config.reranking
    )
    if "wrong-image" in request.controls and blind:
        raise UserError(
            f"--controls wrong-image changes nothing with the retriever {config.retriever.name}: "
            "its passages do not depend on the image"
        )
    if "oracle" in request.controls and config.retriever.name == "none":
        raise UserError("--controls oracle needs a retriever whose order it keeps")
    return PipelinePlan(settings, where, config)


def _built(pipeline: Pipeline) -> tuple[dict[str, Any], str]:
    """Return the settings of a pipeline that was built from some."""
    if pipeline.config is None:
        raise UserError(
            "a pipeline put together from parts has no settings that results could record: build "
            "it with Pipeline.load or Pipeline.from_config, or register its parts"
        )
    return pipeline.config.model_dump(mode="json"), pipeline.name


def _check(request: RunRequest) -> None:
    if request.limit is not None and request.limit < 1:
        raise UserError(f"--limit {request.limit}: at least one question is needed")
    for name in request.controls:
        if name not in CONTROLS:
            raise UserError(f"--controls: no control {name!r}: {near_matches(name, CONTROLS)}")
    if len(set(request.controls)) != len(request.controls):
        raise UserError("--controls: a control is named twice")
    check_seed(request.seed)
    if worker_options(request) is not None and request.retrieval_only:
        raise UserError("--workers ray has readers answer, which --retrieval-only does without")
    for flag, limit in limits_of(request).items():
        if not limit > 0:
            raise UserError(f"{flag} {limit:g}: more than 0 is needed")
    if request.resume and request.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if request.resume and request.output is None:
        raise UserError("--resume needs --output: the folder of the run to resume")
    if request.retrieval_only and request.predict_only:
        raise UserError("--retrieval-only and --predict-only exclude each other")


def limits_of(request: RunRequest) -> dict[str, float]:
    """Return the limits of a run, by the options that set them."""
    limits = {"--max-requests": request.max_requests, "--max-cost": request.max_cost}
    return {flag: limit for flag, limit in limits.items() if limit is not None}


def check_seed(seed: int) -> None:
    """Raise UserError if a seed is negative."""
    if seed < 0:
        raise UserError(f"--seed {seed}: 0 or more is needed")


def _settings(request: RunRequest) -> tuple[dict[str, Any], str]:
    settings, where = load_pipeline(request.pipeline)
    own = settings.get("retriever")
    before = {key: _models(settings.get(key)) for key in ("retriever", "reranking", "reader")}
    for key, asked, registry in (
        ("retriever", request.retriever, RETRIEVERS),
        ("reader", request.reader, table("readers")),
    ):
        if asked is not None:
            settings[key] = _named(key, asked, registry, settings.get(key))
    if request.retriever in _PASSAGES:
        settings["reranking"] = []
        settings["retriever"] = _as_control(settings["retriever"], own, request.seed)
    for override in request.overrides:
        apply_override(settings, override)
    reads = not request.retrieval_only or asks_own_reader(check_settings(settings, where).reranking)
    stand_ins = settings.get("stand_ins")
    if isinstance(stand_ins, dict):
        for key, models in before.items():
            unused = key == "reader" and not reads
            if unused or not set(models) <= set(_models(settings.get(key))):
                stand_ins.pop(key, None)
    return settings, where


def _named(key: str, asked: str, registry: Registry[Any], part: Any) -> dict[str, Any]:
    """Return the settings of a part named on the command line: NAME, or NAME:ARGUMENT.

    Raises:
        UserError: no such part, or it takes no argument.
    """
    name, colon, argument = asked.partition(":")
    registry.check(name)
    # The options in the file belong to the part in the file.
    settings = part if isinstance(part, dict) and part.get("name") == name else {"name": name}
    if not colon:
        return settings
    if name not in _ARGUMENTS or not argument:
        forms = ", ".join(f"{n}:{option.upper()}" for n, option in _ARGUMENTS.items())
        raise UserError(f"--{key} {asked!r}: a name is expected, or {forms}")
    return {**settings, _ARGUMENTS[name]: argument}


def _as_control(part: dict[str, Any], own: Any, seed: int) -> dict[str, Any]:
    """Return a control's settings, so that --retriever runs exactly what --controls runs."""
    if part["name"] == "random":
        return {"seed": seed, **part}
    ordered = isinstance(own, dict) and own.get("name") not in (*_PASSAGES, None)
    return {"base": own, **part} if part["name"] == "oracle" and ordered else part


def _models(settings: Any) -> list[tuple[str, Any]]:
    """Return the name and model of every part in settings, including nested parts."""
    if isinstance(settings, list):
        return [pair for part in settings for pair in _models(part)]
    if not isinstance(settings, dict):
        return []
    own = [(k, str(v)) for k, v in settings.items() if k in {"name", "model"}]
    return own + [pair for value in settings.values() for pair in _models(value)]


def worker_options(request: RunRequest | EncodeRequest) -> WorkerOptions | None:
    """Return the options of the workers of a Ray cluster; None if this process works alone.

    Raises:
        UserError: an option is wrong, or there are options without `--workers ray`.
    """
    options = parse_options(request.worker_options, "--worker-option")
    if request.workers == "local":
        if options:
            raise UserError("--worker-option is for --workers ray, which is not given")
        return None
    return validate(WorkerOptions, options, "--worker-option")


def check_corpus_options(request: RunRequest | EncodeRequest) -> None:
    """Raise UserError if options say how passages are read, but no files are named."""
    if request.corpus_options and not request.corpus:
        raise UserError("--corpus-option says how --corpus is read, which is not given")


def check_corpus(request: RunRequest, config: PipelineConfig) -> None:
    """Check that the user's own dataset comes with passages, unless none are retrieved.

    Raises:
        UserError: it has none.
    """
    if not request.corpus and config.retriever.name != "none":
        raise UserError(
            f"--dataset {request.dataset} --data needs passages to retrieve from: name a file with "
            "--corpus, or choose --retriever none"
        )


def overrides_of(request: RunRequest) -> list[str]:
    """Return the changes that the command line made to the pipeline's file."""
    parts = (("retriever", request.retriever), ("reader", request.reader))
    return [f"{part}={name}" for part, name in parts if name] + list(request.overrides)


def pipeline_name(name: str, overrides: Sequence[str], *, retrieval_only: bool = False) -> str:
    """Return in words what runs where the description of a pipeline's file may not be true.

    Args:
        name: the pipeline's.
        overrides: the changes that the command line made to it.
        retrieval_only: whether nothing is read.
    """
    unread = ["retrieval only"] if retrieval_only else []
    changed = [f"changed: {'; '.join(overrides)}"] if overrides else []
    return ", ".join([name, *unread, *changed])


def default_output(request: RunRequest) -> Path:
    """Return a new folder in runs/, named after dataset, pipeline and time.

    Both the bundled questions and a pipeline are called "sample": the name says which is which.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    data = f"{request.dataset}-bundled" if request.data is None else request.dataset
    name = f"{data}-pipeline-{Path(request.pipeline).stem}-{stamp}"
    path = Path("runs") / name
    number = 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path
