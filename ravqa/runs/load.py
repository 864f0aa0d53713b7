"""Second phase of a run: read the data and build the parts of a plan.

Everything that can fail before the first question is asked fails here, so that a mistake does not
delete an old run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ravqa.answering.answerer import load_template
from ravqa.answering.examples import ExamplePool
from ravqa.answering.rules import answering_config, rule_class
from ravqa.core.accounts import Cost, total
from ravqa.core.cache import Use, measured
from ravqa.core.cluster import WorkerOptions
from ravqa.core.errors import DataError, PromptError, UserError
from ravqa.core.factory import Session, build_part, part_config, part_key, parts_of
from ravqa.core.records import Question
from ravqa.core.settings import PipelineConfig
from ravqa.core.texts import number_of
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.remarks import Remarks
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    OnError,
    Problem,
    Problems,
    load_dataset,
    parse_options,
)
from ravqa.datasets.checks import gather
from ravqa.metrics.judges import JUDGES
from ravqa.metrics.judges.base import Judge
from ravqa.pipeline import Pipeline
from ravqa.readers import READERS
from ravqa.readers.on_ray import RayReader
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever
from ravqa.runs.conditions import control, wrong_images
from ravqa.runs.console import Console
from ravqa.runs.folder import MAIN
from ravqa.runs.needs import Needs, built_parts, check_prices, examine
from ravqa.runs.options import RunRequest, ScoreRequest
from ravqa.runs.passages import read_corpus
from ravqa.runs.plan import (
    Data,
    Given,
    Plan,
    check_corpus,
    known_config,
    limits_of,
    worker_options,
)
from ravqa.runs.stages import stage_keys

Counts = Mapping[str, Mapping[str, int]]
"""By reranker, what it counted; see `Pipeline.reranker_counts`."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A run that is ready to ask its questions.

    Attributes:
        data: questions, with descriptions of their images, and passages.
        pipeline: prepared for the corpus.
        judge: the judge that the metric asks, if answers are scored and it asks one.
        conditions: retrievers by condition: the run itself (`MAIN`) and each control.
        stages: a hash of each stage (`ravqa.runs.stages.stage_keys`).
        describing: time and cache use of describing the images.
        reranked, read: work that rerankers and reader had done before this run.
        prepared: what describing images and few-shot examples cost.
    """

    plan: Plan
    data: Data
    pipeline: Pipeline
    judge: Judge | None
    conditions: Mapping[str, Retriever]
    stages: Mapping[str, str]
    describing: Use
    reranked: Counts
    read: ReaderCounts
    prepared: Cost


class ReaderCounts(NamedTuple):
    """Work of a reader, without what came from the cache."""

    generated: int = 0
    scored: int = 0
    decoded: int = 0


def load(plan: Plan, session: Session, console: Console) -> Loaded:
    """Read the data, build the parts, describe the images.

    Raises:
        UserError: any mistake in the data; a part that cannot be built.
    """
    request, config, given = plan.request, plan.pipeline.config, plan.given
    data = read_data(request, config, session, console, given)
    plan.run_dir.check_resumed(known_config(request, plan.pipeline.settings, data))
    judged = _judges(request, data.dataset)
    parts = built_parts(config, retrieval_only=request.retrieval_only, scored=judged)
    check_prices(config, parts, limits_of(request))
    if given.pipeline is None:
        needs_of_data(request, config, data).refuse()
        if not request.retrieval_only and (note := _unseen_choices(config, data.dataset)):
            console.note(note)
    stages = keys_of(request, config, data)
    console.heading(data.dataset, config, data.corpus, plan.run_dir.path)
    with console.status("loading models"):
        if (workers := worker_options(request)) is not None and given.pipeline is None:
            _share_reader(config, workers, session)
        pipeline = given.pipeline or Pipeline.from_config(
            plan.pipeline.settings,
            where=plan.pipeline.where,
            retrieval_only=request.retrieval_only,
            session=session,
        )
        judge = _judge(plan, data.dataset, session)
        problem = pipeline.problem
    if problem:  # not an error: all answers may be cached
        console.note(f"{problem}: only what is in the cache can be answered")
    reranked, read = pipeline.reranker_counts(), reader_counts(pipeline)
    if pipeline.supports_images and (given.dataset or not _need_images(config)):
        data = _with_images(data, request.on_error, session)
    pipeline.prepare(data.corpus, console.progress)
    stores = pipeline.describer.stores if pipeline.describer else ()
    with measured(stores) as describing:
        data = _described(data, pipeline, request.on_error, console)
    with measured(()) as choosing:  # once, from questions that are not asked
        pipeline.shown_examples(data.dataset.questions)
    prepared = total([*describing.costs.values(), *choosing.costs.values()])
    conditions = {MAIN: pipeline.retriever} | {
        name: control(name, pipeline, data.corpus, request.seed) for name in request.controls
    }
    return Loaded(
        plan,
        data,
        pipeline,
        judge,
        conditions,
        stages,
        describing,
        reranked,
        read,
        prepared,
    )


def _share_reader(config: PipelineConfig, workers: WorkerOptions, session: Session) -> None:
    """Give the session a reader for the pipeline whose prompts workers of a Ray cluster answer."""
    own = part_config(READERS, config.reader, "reader")
    key = part_key(READERS, config.reader, own)
    session.get(*key, lambda: RayReader(config.reader, own, workers))


def read_data(
    request: RunRequest,
    config: PipelineConfig,
    session: Session,
    console: Console,
    given: Given | None = None,
) -> Data:
    """Read questions and passages; runs of one session share what they read.

    Raises:
        UserError: files are missing or broken; there are no answers or passages although they are
            needed; a control does not apply to the questions.
    """
    given = given or Given()
    problems: tuple[Problem, ...] = ()
    if given.dataset is None:
        dataset, problems = _read_dataset(request, config, session, console)
    else:
        dataset = _scorable(given.dataset, request)
    if "wrong-image" in request.controls:
        wrong_images(dataset.questions, request.seed)  # so that a mistake shows before the work
    corpus = given.corpus
    if corpus is None and given.pipeline is not None:
        corpus = given.pipeline.corpus
    if corpus is None or request.corpus:
        corpus = _read_corpus(request, config, dataset, session, console)
    return Data(dataset, corpus, problems)


def keys_of(request: RunRequest, config: PipelineConfig, data: Data) -> dict[str, str]:
    """Return the hashes of the stages of a pipeline on this data (`stage_keys`)."""
    return stage_keys(
        config,
        data.dataset.fingerprint,
        data.corpus.fingerprint if data.corpus else None,
        retrieval_only=request.retrieval_only,
    )


def reader_counts(pipeline: Pipeline) -> ReaderCounts:
    """Return what the reader has done so far."""
    reader = pipeline.answerer.cached if pipeline.answerer else None
    return (
        ReaderCounts(reader.generated, reader.scored, reader.decoded) if reader else ReaderCounts()
    )


def needs_of_data(request: RunRequest, config: PipelineConfig, data: Data) -> Needs:
    """Return what would stop a run that only its data show: of judge, retriever and examples.

    A note counts the questions that are left out.
    """
    needs = examine(config, {"judge"}) if _judges(request, data.dataset) else Needs()
    if data.problems:
        count = number_of(len(data.problems), "question is", "questions are")
        needs.notes.append(f"{count} left out, the first for {data.problems[0]}")
    if data.corpus is not None:
        own = part_config(RETRIEVERS, config.retriever, "retriever")
        problem = RETRIEVERS.get(config.retriever.name).corpus_problem(own, data.corpus)
        needs.stops += [f"retriever: {problem}"] if problem else []
    needs.stops += _undescribed(config, data.dataset.questions)
    if request.retrieval_only:
        return needs
    answering = answering_config(config.answering, "answering")
    if answering.examples is not None:
        try:
            ExamplePool(answering.examples).choose(data.dataset.questions)
        except UserError as e:
            needs.stops.append(str(e))
    chooses = rule_class(answering.decision).needs_choices
    if chooses and not any(q.choices for q in data.dataset.questions):
        needs.stops.append(
            f"answering.decision {answering.decision} chooses among a question's choices, but no "
            f"question of {data.dataset.label} has any"
        )
    needs.notes += filter(None, [_unseen_choices(config, data.dataset)])
    return needs


def _undescribed(config: PipelineConfig, questions: Sequence[Question]) -> list[str]:
    """Return why encoders would stop at questions whose images nobody describes."""
    if config.describer is not None:
        return []
    shown = [q for q in questions if q.image is not None]
    bare = sum(q.description is None for q in shown)
    return [
        f"{place}: {option} needs a description of the images, and {bare:,} of {len(shown):,} "
        "questions with an image have none: name a describer"
        for place, registry, part, own in parts_of(config)
        if bare
        and registry.kind == "encoder"
        and (option := registry.get(part.name).described_by(own))
    ]


def _unseen_choices(config: PipelineConfig, dataset: Dataset) -> str:
    """Return a remark if the questions have choices that the reader is neither shown nor scores."""
    answering = answering_config(config.answering, "answering")
    template = load_template(answering)
    shown = "choices" in template.uses or rule_class(answering.decision).needs_choices
    if shown or not any(q.choices for q in dataset.questions):
        return ""
    return (
        f"the prompt {template.name} does not show the questions' choices: "
        "answering.prompt=multiple-choice does"
    )


def _judges(request: RunRequest, dataset: Dataset) -> bool:
    """Return whether answers are scored by a metric that asks the judge, if there is one."""
    unscored = request.retrieval_only or request.predict_only
    return not unscored and dataset.answer_metric.uses_judge


def _judge(plan: Plan, dataset: Dataset, session: Session) -> Judge | None:
    part = plan.pipeline.config.judge
    if part is None or not _judges(plan.request, dataset):
        return None
    judge: Judge = build_part(JUDGES, part, f"{plan.pipeline.where}: judge", session=session)
    return judge


def _need_images(config: PipelineConfig) -> bool:
    """Return whether it is known before the parts are built that images are looked at."""
    if config.describer is not None:
        return True
    own = part_config(RETRIEVERS, config.retriever, "retriever")
    return RETRIEVERS.get(config.retriever.name).sees_images(own)


def _read_dataset(
    request: RunRequest, config: PipelineConfig, session: Session, console: Console
) -> tuple[Dataset, tuple[Problem, ...]]:
    """Read the questions.

    Questions that were read with their images are reused by runs that need no images, unless some
    images were missing.
    """
    if request.download:
        _download(request, console)
    need_images = _need_images(config)

    def read() -> tuple[Dataset, list[Problem]]:
        found = Problems(request.on_error)
        asked = DatasetRequest(limit=request.limit, problems=found, need_images=need_images)
        return read_questions(request, asked, console), found.found

    which = (request.dataset, request.data, request.split, request.limit, request.on_error)
    known: dict[bool, tuple[Dataset, list[Problem]]] = session.get(
        "dataset", (*which, tuple(request.dataset_options)), dict
    )
    whole = True in known and not known[True][1]
    if need_images not in known and (need_images or not whole):
        known[need_images] = read()
    dataset, found = known[need_images if need_images in known else True]
    return _scorable(dataset, request), tuple(found)


def read_questions(
    request: RunRequest | ScoreRequest, asked: DatasetRequest, console: Console
) -> Dataset:
    """Read the dataset that a run or a score names, and show its notes.

    Args:
        asked: what is needed of it, beside what the request names.

    Raises:
        UserError: as `ravqa.datasets.base.load_dataset`.
    """
    assert request.dataset is not None
    options = parse_options(request.dataset_options)
    asked = replace(asked, data=request.data, split=request.split, options=options)
    with console.status("reading the dataset"):
        dataset = load_dataset(request.dataset, asked)
    for note in dataset.notes:
        console.note(note)
    return dataset


def with_metric_options(dataset: Dataset, request: RunRequest | ScoreRequest) -> Dataset:
    """Return the dataset with the options of its metric.

    Raises:
        UserError: the metric has no such option.
    """
    options = parse_options(request.metric_options, "--metric-option")
    return replace(dataset, metric_options=options) if options else dataset


def _scorable(dataset: Dataset, request: RunRequest) -> Dataset:
    """Return the dataset with its metric's options; refuse one without answers to score with."""
    if dataset.metric is None and not (request.predict_only or request.retrieval_only):
        raise UserError(
            f"the split {dataset.split} has no answers to score with: use --predict-only"
        )
    return with_metric_options(dataset, request)


def _read_corpus(
    request: RunRequest,
    config: PipelineConfig,
    dataset: Dataset,
    session: Session,
    console: Console,
) -> Corpus | None:
    """Return the passages of --corpus, or those that come with the dataset."""
    files, options = tuple(request.corpus), tuple(request.corpus_options)
    if not files:
        if request.data is not None and dataset.corpus is None:
            check_corpus(request, config)
        return dataset.corpus

    def read() -> Corpus:
        remarks = Remarks(request.on_error)
        corpus = read_corpus(files, options, remarks)
        for line in remarks.lines():
            console.note(line)
        return corpus

    return session.get("corpus", (files, options), read)


def _with_images(data: Data, on_error: OnError, session: Session) -> Data:
    """Leave out questions whose image is missing or broken."""
    dataset = data.dataset

    def read() -> tuple[Sequence[Question], str, list[Problem]]:
        found = Problems(on_error)
        asked = DatasetRequest(problems=found)
        return *gather(dataset.questions, asked, dataset.label), found.found

    key = (dataset.fingerprint, on_error)
    questions, digest, found = session.get("images", key, read)
    return replace(
        data,
        dataset=replace(dataset, questions=questions, fingerprint=digest),
        problems=(*data.problems, *found),
    )


def _described(data: Data, pipeline: Pipeline, on_error: OnError, console: Console) -> Data:
    """Add descriptions; leave out questions whose image cannot be described."""
    if pipeline.describer is None:
        return data
    questions = data.dataset.questions
    try:
        kept = pipeline.describe(questions, console.progress)
        found = Problems(on_error)
    except (DataError, PromptError):
        kept, found = [], Problems(on_error)
        for question in questions:
            try:
                kept += pipeline.describe([question])
            except (DataError, PromptError) as e:
                found.report(f"question {question.question_id}", str(e), question.question_id)
        if not kept:
            first = found.found[0]
            raise DataError(
                f"none of {number_of(len(questions), 'question')} has an image that can be "
                f"described: {first}"
            ) from None
    return replace(
        data,
        dataset=replace(data.dataset, questions=kept),
        problems=(*data.problems, *found.found),
    )


def _download(request: RunRequest, console: Console) -> None:
    from ravqa.datasets.download import download, remarks

    if request.data is None:
        raise UserError("--download needs --data: the folder to download the official files into")
    for remark in remarks(request.dataset, request.data):
        console.note(remark)
    download(
        request.dataset,
        request.data,
        request.split,
        limit=request.limit,
        console_progress=console.progress,
    )
    console.close()  # the next step has its own progress bars
