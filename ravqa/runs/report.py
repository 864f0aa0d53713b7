"""Fourth phase of a run: compute results from the samples, write and print them."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import ravqa
from ravqa.core.cluster import losses
from ravqa.core.settings import fingerprint
from ravqa.core.texts import number_of
from ravqa.corpora.corpus import Corpus
from ravqa.datasets.base import Dataset
from ravqa.evaluation.answers import answer_section, picture_notes
from ravqa.evaluation.costs import cost_section, stage_seconds
from ravqa.evaluation.retrieval import retrieval_ks, retrieval_section
from ravqa.evaluation.schema import (
    SCHEMA_VERSION,
    CorpusSource,
    EncodingCounts,
    LeftOut,
    RunResults,
    Sample,
    Timing,
)
from ravqa.evaluation.sections import dataset_section
from ravqa.evaluation.selective import selective_section
from ravqa.metrics.prrecall import DEFAULT_RULE
from ravqa.pipeline import Pipeline
from ravqa.retrievers.runs import trec_lines
from ravqa.runs.console import Console, condition_name, retrieves
from ravqa.runs.execute import Executed, shared_out
from ravqa.runs.folder import MAIN, RunDir
from ravqa.runs.load import reader_counts
from ravqa.runs.needs import currency_of
from ravqa.runs.plan import overrides_of

_LISTED = 20  # records left out of the passages that results list
_PACKAGES = ("torch", "transformers", "numpy", "pillow", "accelerate", "gguf")


def show_answered(executed: Executed, console: Console) -> None:
    """Print the tables of a run whose controls have not been run yet; write nothing."""
    console.close()
    with console.status("scoring"):
        results = _results(executed, _scored(executed))
    if results["answers"] or results["retrieval"]:
        console.answered(results)


def report(executed: Executed, console: Console) -> Path:
    """Compute results from the samples, write and print them.

    Returns:
        The run's folder.

    Raises:
        UserError: a file cannot be written.
    """
    loaded = executed.loaded
    console.close()
    with console.status("scoring"):
        samples = _scored(executed)
        results = _results(executed, samples)
    for note in (*_not_found(results), *_notes(results, loaded.pipeline)):
        console.note(note)
    run_dir = loaded.plan.run_dir
    _write(run_dir, loaded.data.dataset, samples[MAIN], results)
    console.results(results, run_dir.path)
    return run_dir.path


def _scored(executed: Executed) -> Mapping[str, Mapping[int | str, Sample]]:
    """Return the samples: in memory for scores, which look at each of them many times."""
    if executed.loaded.plan.request.predict_only:
        return executed.samples
    return {name: found.loaded() for name, found in executed.samples.items()}


def _results(executed: Executed, samples: Mapping[str, Mapping[int | str, Sample]]) -> RunResults:
    """Return the content of `results.json`: scores, provenance and timing."""
    loaded = executed.loaded
    request, config = loaded.plan.request, loaded.plan.pipeline.config
    pipeline, dataset, corpus = loaded.pipeline, loaded.data.dataset, loaded.data.corpus
    scored = not request.predict_only
    answers = retrieval = None
    if scored and pipeline.answerer is not None:
        answers = answer_section(
            dataset, samples, seed=request.seed, judge=loaded.judge, scored=True
        )
        if dataset.answer_metric.scores_choices:
            answers["rule"] = {**answers["rule"], "choices": pipeline.answerer.choice_rule}
    if scored:
        ks = retrieval_ks(dataset, pipeline.top_k)
        blind = [name for name in samples if not retrieves(name, config.retriever.name)]
        retrieval = retrieval_section(dataset, samples, ks, seed=request.seed, blind=blind)
        if passages := _encoded(pipeline, "passages"):
            retrieval["passages"] = passages
    results: RunResults = {
        "schema_version": SCHEMA_VERSION,
        "dataset": {
            **dataset_section(dataset),
            "limit": request.limit,
            "skipped": [
                {"question_id": p.question_id, "where": p.where, "reason": p.reason}
                for p in loaded.data.problems
            ],
        },
        "answers": answers,
        "retrieval": retrieval,
        "provenance": {
            "pipeline": request.pipeline,
            "retriever": config.retriever.name,
            "chosen_on": config.chosen_on,
            "overrides": overrides_of(request),
            "stand_ins": dict(config.stand_ins),
            "weights": pipeline.weights,
            "answering": _answering(pipeline),
            "corpus": _corpus(corpus) if corpus else None,
            "fingerprints": {
                "dataset": dataset.fingerprint,
                "corpus": corpus.fingerprint if corpus else None,
                "settings": fingerprint(config.model_dump(exclude={"description"})),
                **pipeline.fingerprints,
            },
            "seed": request.seed,
            "versions": versions(*_PACKAGES),
            "platform": f"{platform.system()} {platform.machine()}, {_device()}",
            "date": now(),
        },
        "timing": _timing(executed, samples[MAIN]),
    }
    if answers:
        rule = retrieval["rule"] if retrieval else DEFAULT_RULE
        results["selective"] = selective_section(answers, samples, rule, seed=request.seed)
    if cost := cost_section(samples, loaded.prepared, currency_of(config)):
        results["cost"] = cost
    if off := pipeline.switched_off:
        results["provenance"]["switched_off"] = off
    if lost := losses():
        results["provenance"]["lost_workers"] = [
            {"what": loss.what, "reason": loss.reason} for loss in lost
        ]
    if unused := pipeline.retriever.left_out:
        results["provenance"]["pictures"] = _listed(unused)
    return results


def _corpus(corpus: Corpus) -> CorpusSource:
    """Return the source of the passages, and which records were left out."""
    return {
        "source": corpus.source,
        "passages": len(corpus),
        "left_out": _listed(corpus.left_out),
    }


def _listed(left_out: Sequence[str]) -> LeftOut:
    return {"records": len(left_out), "first": list(left_out[:_LISTED])}


def _timing(executed: Executed, samples: Mapping[int | str, Sample]) -> Timing:
    """Return the time of the whole run, and of each stage without controls."""
    loaded = executed.loaded
    pipeline = loaded.pipeline
    counts = {
        name: {key: value - loaded.reranked[name][key] for key, value in count.items()}
        for name, count in pipeline.reranker_counts().items()
    }
    before, now = loaded.read, reader_counts(pipeline)
    timing: Timing = {
        "seconds": round(time.monotonic() - loaded.plan.started, 2),
        "prompts_generated": now.generated - before.generated,
        "answers_scored": now.scored - before.scored,
        "mixtures_decoded": now.decoded - before.decoded,
        "describe": shared_out(loaded.describing, len(loaded.data.dataset.questions)),
        "peak_memory_mb": round(_peak_memory_mb()),
        "stages": stage_seconds(samples),
    }
    if queries := _encoded(pipeline, "queries"):  # queries of an earlier run are in the cache
        timing["queries"] = queries
    if counts:
        timing["reranking"] = counts
    return timing


def _encoded(pipeline: Pipeline, what: str) -> EncodingCounts | None:
    """Return how many passages or queries were encoded and cut; None without an encoder."""
    encoded = pipeline.retriever.encoded.get(what)
    return cast(EncodingCounts, asdict(encoded)) if encoded else None


def _not_found(results: RunResults) -> Iterator[str]:
    """Yield notes on questions for which nothing was retrieved."""
    retriever = results["provenance"]["retriever"]
    for name, stages in results["retrieval"]["stages"].items() if results["retrieval"] else ():
        lacking = stages[0]["without_passages"]
        if lacking:
            which = "" if name == MAIN else f"{condition_name(name, retriever)}: "
            asked = results["dataset"]["questions"]
            yield f"{which}no passage found for {lacking:,} of {number_of(asked, 'question')}"


def _notes(results: RunResults, pipeline: Pipeline) -> Iterator[str]:
    """Yield notes on texts that were cut, or whose control tokens were read as plain text."""
    for what, stats in pipeline.retriever.encoded.items():
        if stats.truncated:
            yield (
                f"{stats.truncated:,} of {stats.items:,} {what} exceeded what the encoder accepts "
                "and got cut"
            )
        if stats.neutralised:
            yield (
                f"{number_of(stats.neutralised, 'control token')} of the encoder's model, in "
                f"{what}, became plain text"
            )
    for name, count in results["timing"].get("reranking", {}).items():
        if count.get("truncated"):
            yield (
                f"{number_of(count['truncated'], 'pair')} of question and passage exceeded what "
                f"the reranker {name} accepts and got cut"
            )
        if count.get("neutralised"):
            yield (
                f"{number_of(count['neutralised'], 'control token')} of the model of the reranker "
                f"{name}, in questions and passages, became plain text"
            )
    if results["answers"]:
        cut = results["answers"]["conditions"][MAIN]["cut"]
        if cut["passages"]:
            yield (
                f"{number_of(cut['passages'], 'passage')} of "
                f"{number_of(cut['questions'], 'question')} did not fit into the reader's context, "
                "and got left out of the prompt"
            )
        if pictures := results["answers"]["conditions"][MAIN].get("pictures"):
            yield from picture_notes(pictures)
        tokens = results["answers"]["conditions"][MAIN].get("neutralised")
        if tokens and tokens["tokens"]:
            yield (
                f"{number_of(tokens['tokens'], 'control token')} of the reader's model, in the "
                f"texts of {number_of(tokens['questions'], 'question')}, became plain text"
            )


def _write(
    run_dir: RunDir,
    dataset: Dataset,
    samples: Mapping[int | str, Sample],
    results: RunResults,
) -> None:
    """Write the ranking, the predictions in the benchmark's format, and the results."""
    trec = "".join(line for q, sample in samples.items() for line in trec_lines(q, sample["hits"]))
    run_dir.write("run.trec", trec)
    if all("answer" in sample for sample in samples.values()):
        answers = {q: s["answer"] or "" for q, s in samples.items()}
        submission = dataset.submission_form.submission(answers)
        run_dir.write(submission.file, submission.text)
    run_dir.write("results.json", json.dumps(results, ensure_ascii=False, indent=1) + "\n")


def _answering(pipeline: Pipeline) -> dict[str, Any] | None:
    """Return the settings of the decision rule, the prompt and its examples."""
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


def now() -> str:
    """Return the time for provenance (ISO 8601, UTC)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of ravqa, Python and those of the packages that are installed."""
    found = {"ravqa": ravqa.__version__, "python": platform.python_version()}
    return found | {p: version for p in packages if (version := _installed(p)) is not None}


@cache
def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
