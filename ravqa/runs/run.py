"""One evaluation run: a dataset through a pipeline and its controls, into a run folder.

What is asked for stands in `ravqa.runs.request`, what is read in `ravqa.runs.load`; questions are
answered in `ravqa.runs.conditions`, and `ravqa.runs.results` says how it went.
"""

from __future__ import annotations

import time
from pathlib import Path

from ravqa.core.cache import measured
from ravqa.core.factory import Session, build_part
from ravqa.core.settings import PipelineConfig
from ravqa.datasets.base import Dataset, Problems
from ravqa.metrics.judges import JUDGES
from ravqa.metrics.judges.cached import CachedJudge
from ravqa.pipeline import Pipeline
from ravqa.runs.conditions import Runner, control, wrong_images
from ravqa.runs.console import Console
from ravqa.runs.folder import MAIN, RunDir
from ravqa.runs.load import described, read_corpus, read_dataset, with_images
from ravqa.runs.options import RunRequest
from ravqa.runs.request import check_corpus, default_output, planned
from ravqa.runs.results import (
    add_encoding,
    add_reranking,
    note_cuts,
    reranker_counts,
    resolved_config,
    results_of,
    timing_of,
    write_results,
)
from ravqa.runs.stages import mark, stage_keys


def run(request: RunRequest, console: Console, session: Session | None = None) -> Path:
    """Run, score, print; gives the run's folder.

    Raises:
        UserError: any mistake in what was asked for, or in the data.
    """
    started = time.monotonic()
    session = Session() if session is None else session
    settings, where, config = planned(request)
    run_dir = RunDir(
        request.output or default_output(request),
        resume=request.resume,
        overwrite=request.overwrite,
    )
    if request.download and request.data is not None:  # no passages are fetched
        check_corpus(request, config)
    problems = Problems(request.on_error)
    dataset = read_dataset(request, config, problems, console, session)
    if "wrong-image" in request.controls:
        wrong_images(dataset.questions, request.seed)  # a mistake should not show after the work
    corpus = read_corpus(request, config, dataset, console, session)

    console.heading(dataset, config, corpus, run_dir.path)
    with console.status("loading models"):
        pipeline = Pipeline.from_config(
            settings, where=where, retrieval_only=request.retrieval_only, session=session
        )
        judge = _judge(request, config, dataset, where, session)
        problem = pipeline.problem
    reranked = reranker_counts(pipeline)  # parts that several runs share have counted before
    if problem:  # not an error: all answers may be known
        console.note(f"{problem}: only what is in the cache can be answered")
    keys = stage_keys(
        config,
        dataset.fingerprint,
        corpus.fingerprint if corpus else None,
        retrieval_only=request.retrieval_only,
    )
    if pipeline.sees_images and config.describer is None:
        dataset = with_images(dataset, problems, session)
    pipeline.prepare(corpus, console.progress)
    with measured(pipeline.describer.stores if pipeline.describer else ()) as describing:
        dataset = described(pipeline, dataset, problems, console)
    pipeline.shown_examples(dataset.questions)  # chosen once, apart from all that is asked
    conditions = {MAIN: pipeline.retriever} | {
        name: control(name, pipeline, corpus, request.seed) for name in request.controls
    }
    resolved = resolved_config(request, settings, dataset, corpus, pipeline)
    if judge is not None:
        resolved["fingerprints"]["judge"] = judge.fingerprint
    with run_dir.held():
        run_dir.begin(resolved)
        runner = Runner(pipeline, dataset, run_dir, console, request, judge)
        samples = {name: runner.run(name, retriever) for name, retriever in conditions.items()}
        for stage, stores in {"describe": describing.stores, **runner.stores}.items():
            mark(keys, stage, stores)
        if judge is not None:
            judge.judged = judge.unclear = 0  # counted anew: every answer is scored once more
        results = results_of(request, dataset, corpus, config, pipeline, samples, problems, judge)
        seconds = time.monotonic() - started
        results["timing"] = timing_of(seconds, dataset, pipeline, samples[MAIN], describing)
        add_encoding(results, pipeline.retriever, console)
        add_reranking(results, pipeline, reranked, console)
        note_cuts(results, console)
        write_results(run_dir, dataset, samples[MAIN], results)
        console.results(results, run_dir.path)
        if judge is not None and judge.unclear:
            console.note(f"{judge.unclear} of {judge.judged} judgements gave no verdict: wrong")
    return run_dir.path


def _judge(
    request: RunRequest, config: PipelineConfig, dataset: Dataset, where: str, session: Session
) -> CachedJudge | None:
    unscored = request.retrieval_only or request.predict_only
    if config.judge is None or unscored or not dataset.answer_metric.uses_judge:
        return None
    return CachedJudge(build_part(JUDGES, config.judge, f"{where}: judge", session=session))
