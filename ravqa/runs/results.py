"""What a run writes of itself: `config.yaml`, which a resumed run must match, and the results."""

from __future__ import annotations

import json
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import ravqa
from ravqa.core.cache import Use
from ravqa.core.settings import PipelineConfig, fingerprint
from ravqa.corpora.corpus import Corpus
from ravqa.datasets.base import Dataset, Problems
from ravqa.evaluation.scores import answer_section, dataset_section, retrieval_ks, retrieval_section
from ravqa.images.decode import image_digest
from ravqa.metrics.judges.cached import CachedJudge
from ravqa.pipeline import Pipeline
from ravqa.retrievers.base import Retriever
from ravqa.retrievers.runs import trec_lines
from ravqa.runs.conditions import shared_out
from ravqa.runs.console import Console
from ravqa.runs.folder import MAIN, SCHEMA_VERSION, RunDir
from ravqa.runs.options import RunRequest
from ravqa.runs.request import overrides_of

_PACKAGES = ("torch", "transformers", "numpy", "pillow", "accelerate", "gguf")


def resolved_config(
    request: RunRequest,
    settings: Mapping[str, Any],
    dataset: Dataset,
    corpus: Corpus | None,
    pipeline: Pipeline,
) -> dict[str, Any]:
    """What `config.yaml` says: all that the samples of a run depend on."""
    return {
        "schema_version": SCHEMA_VERSION,
        "ravqa": ravqa.__version__,
        "dataset": {
            "name": dataset.name,
            "label": dataset.label,
            "data": str(request.data) if request.data else None,
            "split": dataset.split,
            "options": list(request.dataset_options),
            "metric_options": list(request.metric_options),
            "limit": request.limit,
            "on_error": request.on_error,
            "fingerprint": dataset.fingerprint,
            "images": _images_fingerprint(dataset) if pipeline.sees_images else None,
        },
        "corpus": {
            "files": [str(p) for p in request.corpus],
            "passages": len(corpus) if corpus else 0,
            "fingerprint": corpus.fingerprint if corpus else None,
        },
        "run": {
            "retrieval_only": request.retrieval_only,
            "predict_only": request.predict_only,
            "controls": list(request.controls),
            "seed": request.seed,
        },
        "pipeline": dict(settings),
        # A resumed run must not mix two prompts or models of the same name.
        "fingerprints": dict(pipeline.fingerprints),
    }


def results_of(
    request: RunRequest,
    dataset: Dataset,
    corpus: Corpus | None,
    config: PipelineConfig,
    pipeline: Pipeline,
    samples: Mapping[str, Mapping[int | str, Mapping[str, Any]]],
    problems: Problems,
    judge: CachedJudge | None,
) -> dict[str, Any]:
    """What `results.json` says: both sections of scores, and where they come from."""
    ks = retrieval_ks(dataset, pipeline.top_k)
    scored = not request.predict_only
    answered = scored and pipeline.answerer is not None
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": {
            **dataset_section(dataset),
            "limit": request.limit,
            "skipped": [
                {"question_id": p.question_id, "where": p.where, "reason": p.reason}
                for p in problems.found
            ],
        },
        "answers": answer_section(dataset, samples, seed=request.seed, judge=judge)
        if answered
        else None,
        "retrieval": retrieval_section(dataset, samples, ks, seed=request.seed) if scored else None,
        "provenance": {
            "pipeline": request.pipeline,
            "chosen_on": config.chosen_on,
            "overrides": overrides_of(request),
            "stand_ins": dict(config.stand_ins),
            "weights": pipeline.weights,
            "answering": _answering(pipeline),
            "corpus": {"source": corpus.source, "passages": len(corpus)} if corpus else None,
            "fingerprints": {
                "dataset": dataset.fingerprint,
                "corpus": corpus.fingerprint if corpus else None,
                "settings": fingerprint(config.model_dump()),
                **pipeline.fingerprints,
            },
            "seed": request.seed,
            "versions": _versions(),
            "platform": f"{platform.system()} {platform.machine()}, {_device()}",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def timing_of(
    seconds: float,
    dataset: Dataset,
    pipeline: Pipeline,
    samples: Mapping[int | str, Mapping[str, Any]],
    describing: Use,
) -> dict[str, Any]:
    """What the run took, as a whole and by stages of the pipeline itself, without controls."""
    return {
        "seconds": round(seconds, 2),
        **_reader_calls(pipeline),
        "describe": shared_out(describing, len(dataset.questions)),
        "peak_memory_mb": round(_peak_memory_mb()),
        "stages": _stage_seconds(samples),
    }


def add_encoding(results: dict[str, Any], retriever: Retriever, console: Console) -> None:
    """What an encoder cut, into the results; a note if it cut any."""
    encoded = retriever.encoded
    if "passages" in encoded and results["retrieval"]:
        results["retrieval"]["passages"] = asdict(encoded["passages"])
    if "queries" in encoded:  # in this run; those of an earlier one came from the cache
        results["timing"]["queries"] = asdict(encoded["queries"])
    for what, stats in encoded.items():
        if stats.truncated:
            console.note(
                f"{stats.truncated:,} of {stats.items:,} {what} were longer than the encoder "
                "takes, and were cut"
            )


def reranker_counts(pipeline: Pipeline) -> dict[str, dict[str, int]]:
    """What each reranker has scored so far, caches apart, and cut."""
    return {name: part.counts() for name, part in pipeline.rerankers.items()}


def add_reranking(
    results: dict[str, Any],
    pipeline: Pipeline,
    before: Mapping[str, Mapping[str, int]],
    console: Console,
) -> None:
    """What each reranker scored and cut in this run; a note if it cut any."""
    counts = {
        name: {key: value - before[name][key] for key, value in count.items()}
        for name, count in reranker_counts(pipeline).items()
    }
    if counts:
        results["timing"]["reranking"] = counts
    for name, count in counts.items():
        if count.get("truncated"):
            console.note(
                f"{count['truncated']:,} pairs of question and passage were longer than the "
                f"reranker {name} takes, and were cut"
            )


def note_cuts(results: Mapping[str, Any], console: Console) -> None:
    """A note if passages did not fit into prompts."""
    if results["answers"]:
        cut = results["answers"]["conditions"][MAIN]["cut"]
        if cut["passages"]:
            console.note(
                f"{cut['passages']:,} passages of {cut['questions']:,} questions did not fit into "
                "the reader's context, and were left out of the prompt"
            )


def write_results(
    run_dir: RunDir,
    dataset: Dataset,
    samples: Mapping[int | str, Mapping[str, Any]],
    results: Mapping[str, Any],
) -> None:
    """The ranking, the predictions as the benchmark takes them, and the results."""
    trec = "".join(line for q, sample in samples.items() for line in trec_lines(q, sample["hits"]))
    run_dir.write("run.trec", trec)
    if all("answer" in sample for sample in samples.values()):
        answers = {q: s["answer"] or "" for q, s in samples.items()}
        submission = dataset.submission_form.submission(answers)
        run_dir.write(submission.file, submission.text)
    run_dir.write("results.json", json.dumps(results, ensure_ascii=False, indent=1) + "\n")


def _images_fingerprint(dataset: Dataset) -> str:
    images = {q.image for q in dataset.questions if isinstance(q.image, Path)}
    return fingerprint([image_digest(p) for p in sorted(images)])


def _answering(pipeline: Pipeline) -> dict[str, Any] | None:
    """The decision rule with all its settings, the prompt, and the examples that it shows."""
    answerer = pipeline.answerer
    if answerer is None:
        return None
    return {
        **answerer.config.model_dump(mode="json", exclude={"examples", "cache"}),
        "prompt": {"name": answerer.template.name, "sha256": answerer.template.sha256},
        "examples": {
            "source": pipeline.examples.label,
            **pipeline.examples.config.model_dump(mode="json"),
            "question_ids": [e.question.question_id for e in pipeline.shown_examples([])],
        }
        if pipeline.examples
        else None,
    }


def _reader_calls(pipeline: Pipeline) -> dict[str, int]:
    """What the reader itself did, the cache apart."""
    reader = pipeline.answerer.cached if pipeline.answerer else None
    return {
        "prompts_generated": reader.generated if reader else 0,
        "answers_scored": reader.scored if reader else 0,
        "mixtures_decoded": reader.decoded if reader else 0,
    }


def _versions() -> dict[str, str]:
    found = {"ravqa": ravqa.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _stage_seconds(samples: Mapping[int | str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds a question of every stage, on average, earlier parts of a resumed run included."""
    total: dict[str, float] = {}
    for sample in samples.values():
        for stage, seconds in sample["seconds"].items():
            total[stage] = total.get(stage, 0.0) + seconds
    return {stage: round(seconds / len(samples), 4) for stage, seconds in total.items()}


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
