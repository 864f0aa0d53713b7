"""What a run reads: questions with their images, passages, and descriptions of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ravqa.collections import Collection
from ravqa.core.errors import DataError, PromptError, UserError
from ravqa.core.factory import Session
from ravqa.core.records import Question
from ravqa.core.settings import PipelineConfig
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.pages import Remarks
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    Problem,
    Problems,
    load_dataset,
    parse_options,
)
from ravqa.datasets.checks import gather
from ravqa.pipeline import Pipeline
from ravqa.runs.console import Console
from ravqa.runs.options import RunRequest
from ravqa.runs.request import check_corpus


def read_dataset(
    request: RunRequest,
    config: PipelineConfig,
    problems: Problems,
    console: Console,
    session: Session,
) -> Dataset:
    """The questions; a dataset is read once for all runs of a session that ask for it.

    What was read with its images, none of them missing, also serves those that need no images.

    Raises:
        UserError: files that are missing or broken; answers are needed and there are none.
    """
    if request.download:
        _download(request, console)
    need_images = config.describer is not None  # else asked of the parts, once built

    def read() -> tuple[Dataset, list[Problem]]:
        found = Problems(request.on_error)
        with console.status("reading the dataset"):
            dataset = load_dataset(
                request.dataset,
                DatasetRequest(
                    data=request.data,
                    split=request.split,
                    limit=request.limit,
                    problems=found,
                    need_images=need_images,
                    options=parse_options(request.dataset_options),
                ),
            )
        for note in dataset.notes:
            console.note(note)
        return dataset, found.found

    which = (request.dataset, request.data, request.split, request.limit, request.on_error)
    known: dict[bool, tuple[Dataset, list[Problem]]] = session.get(
        "dataset", (*which, tuple(request.dataset_options)), dict
    )
    whole = True in known and not known[True][1]
    if need_images not in known and (need_images or not whole):
        known[need_images] = read()
    dataset, found = known[need_images if need_images in known else True]
    problems.found += found
    if dataset.metric is None and not (request.predict_only or request.retrieval_only):
        raise UserError(
            f"the split {dataset.split} has no answers to score with: use --predict-only"
        )
    options = parse_options(request.metric_options, "--metric-option")
    return replace(dataset, metric_options=options) if options else dataset


def read_corpus(
    request: RunRequest,
    config: PipelineConfig,
    dataset: Dataset,
    console: Console,
    session: Session,
) -> Corpus | None:
    """The passages that were named, or those that come with the dataset; read once as it is.

    Raises:
        UserError: passages are needed and there are none; a file is missing or broken.
    """
    files = tuple(request.corpus)
    if not files:
        if request.data is not None and dataset.corpus is None:
            check_corpus(request, config)
        return dataset.corpus

    def read() -> Corpus:
        if len(files) == 1 and Collection.exists(files[0]):
            return Collection.open(files[0]).corpus
        remarks = Remarks(request.on_error)
        corpus = Corpus.read(*files, remarks=remarks)
        for line in remarks.lines():
            console.note(line)
        return corpus

    return session.get("corpus", files, read)


def with_images(dataset: Dataset, problems: Problems, session: Session) -> Dataset:
    """The dataset without questions whose image is missing or broken; those are reported."""

    def read() -> tuple[Sequence[Question], str, list[Problem]]:
        found = Problems(problems.on_error)
        asked = DatasetRequest(problems=found)
        return *gather(dataset.questions, asked, dataset.label), found.found

    key = (dataset.fingerprint, problems.on_error)
    questions, digest, found = session.get("images", key, read)
    problems.found += found
    return replace(dataset, questions=questions, fingerprint=digest)


def described(
    pipeline: Pipeline, dataset: Dataset, problems: Problems, console: Console
) -> Dataset:
    """The dataset with descriptions; where an image fails only now, its questions are reported."""
    if pipeline.describer is None:
        return dataset
    total = len({q.image for q in dataset.questions if q.image is not None})
    done = 0

    def progress(n: int) -> None:
        nonlocal done
        done += n
        console.progress("describing images", done, total)

    try:
        return replace(dataset, questions=pipeline.describe(dataset.questions, progress))
    except (DataError, PromptError):
        kept: list[Question] = []
        for question in dataset.questions:
            try:
                kept += pipeline.describe([question])
            except (DataError, PromptError) as e:
                problems.report(f"question {question.question_id}", str(e), question.question_id)
        if not kept:
            raise
        return replace(dataset, questions=kept)


def _download(request: RunRequest, console: Console) -> None:
    from ravqa.datasets.download import download, remarks

    if request.data is None:
        raise UserError("--download needs --data: the folder to fetch the official files into")
    for remark in remarks(request.dataset, request.data):
        console.note(remark)
    download(
        request.dataset,
        request.data,
        request.split,
        limit=request.limit,
        console_progress=console.progress,
    )
    console.close()  # what comes next has a display of its own
