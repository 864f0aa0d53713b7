"""One evaluation run: a dataset through a pipeline and its controls, into a run folder."""

from __future__ import annotations

import json
import platform
import random
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import ravqa
from ravqa.build import build_part, once
from ravqa.cache import Use, watched
from ravqa.config import PipelineConfig, apply_override, fingerprint, load_pipeline
from ravqa.console import Console
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    OnError,
    Problem,
    Problems,
    parse_options,
)
from ravqa.datasets.checks import gather
from ravqa.datasets.corpus import Corpus
from ravqa.datasets.pages import Remarks
from ravqa.errors import DataError, UserError, near_matches
from ravqa.evaluation import (
    Marker,
    answer_section,
    retrieval_ks,
    retrieval_section,
    score_answers,
    score_raw,
    type_name,
)
from ravqa.images import image_digest
from ravqa.judges.cached import CachedJudge
from ravqa.library import Library
from ravqa.metrics.diagnostics import is_in_document
from ravqa.pipeline import Attempt, Pipeline, check_settings
from ravqa.records import Answer, Hit, Question
from ravqa.registry import DATASETS, JUDGES, READERS, RETRIEVERS, Registry
from ravqa.reranking.base import RETRIEVED
from ravqa.reranking.build import asks_own_reader
from ravqa.retrieval.base import Retriever
from ravqa.retrieval.controls import NoRetriever, OracleRetriever, RandomRetriever
from ravqa.retrieval.runs import trec_lines
from ravqa.rundir import MAIN, RunDir
from ravqa.stages import mark, stage_keys

SCHEMA_VERSION = 1
CONTROLS = ("none", "oracle", "random", "wrong-image")
_BLIND = ("none", "random", "static")  # retrievers that go by the question's id at most
# The other controls put passages of their own before the reader, which no reranker is to change;
# nor is one, unless --set says so, where --retriever names such a control.
_RERANKED = (MAIN, "wrong-image")
_PASSAGES = ("none", "oracle", "random")
_ARGUMENTS = {"static": "file"}  # what stands behind "NAME:" on the command line
_MAX_RAW = 300  # characters of a draft's generation in the samples
_TELLING = 8  # so many questions without an answer, and not one with, tell of a wrong setting
_CHUNK = 32  # questions retrieved, answered and written at a time
# More for a reader that answers several prompts at once: at a chunk's end it waits for its slowest.
_ROUNDS = 8
_PACKAGES = ("torch", "transformers", "numpy", "pillow", "accelerate", "gguf")


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What the command line asks for; see `ravqa run --help`."""

    dataset: str
    data: Path | None = None
    corpus: Sequence[Path] = ()
    split: str | None = None
    pipeline: str = "sample"
    retriever: str | None = None
    reader: str | None = None
    overrides: Sequence[str] = ()
    limit: int | None = None
    output: Path | None = None
    resume: bool = False
    overwrite: bool = False
    retrieval_only: bool = False
    predict_only: bool = False
    controls: Sequence[str] = ()
    on_error: OnError = "fail"
    seed: int = 0
    download: bool = False
    dataset_options: Sequence[str] = ()


def run(request: RunRequest, console: Console) -> Path:
    """Run, score, print; gives the run's folder.

    Raises:
        UserError: any mistake in what was asked for, or in the data.
    """
    started = time.monotonic()
    settings, where, config = planned(request)
    run_dir = RunDir(
        request.output or default_output(request),
        resume=request.resume,
        overwrite=request.overwrite,
    )
    if request.download and request.data is not None:  # no passages are fetched
        _check_corpus(request, config)
    problems = Problems(request.on_error)
    dataset = read_dataset(request, config, problems, console)
    if "wrong-image" in request.controls:
        wrong_images(dataset.questions, request.seed)  # a mistake should not show after the work
    corpus = read_corpus(request, config, dataset, console)

    console.heading(dataset, config, corpus, run_dir.path)
    with console.status("loading models"):
        pipeline = Pipeline.from_config(
            settings, where=where, retrieval_only=request.retrieval_only
        )
        judge = _judge(request, config, dataset, where)
        problem = pipeline.problem
    reranked = _reranked(pipeline)  # parts that several runs share have counted before
    if problem:  # not an error: all answers may be known
        console.note(f"{problem}: only what is in the cache can be answered")
    keys = stage_keys(
        config,
        dataset.fingerprint,
        corpus.fingerprint if corpus else None,
        retrieval_only=request.retrieval_only,
    )
    if pipeline.sees_images and config.describer is None:
        dataset = _with_images(dataset, problems)
    pipeline.prepare(corpus, console.progress)
    with watched() as describing:
        dataset = _described(pipeline, dataset, problems, console)
    pipeline.shown_examples(dataset.questions)  # chosen once, apart from all that is asked
    conditions = {MAIN: pipeline.retriever} | {
        name: _control(name, pipeline, corpus, request.seed) for name in request.controls
    }
    resolved = _resolved(request, settings, dataset, corpus, pipeline)
    if judge is not None:
        resolved["fingerprints"]["judge"] = judge.fingerprint
    run_dir.begin(resolved)
    runner = _Runner(pipeline, dataset, run_dir, console, request, judge)
    samples = {name: runner.run(name, retriever) for name, retriever in conditions.items()}
    for stage, stores in {"describe": describing.stores, **runner.stores}.items():
        mark(keys, stage, stores)
    if judge is not None:
        judge.judged = judge.unclear = 0  # counted anew: every answer is scored once more
    results = _results(request, dataset, corpus, config, pipeline, samples, problems, judge)
    results["timing"] = {
        "seconds": round(time.monotonic() - started, 2),
        **_reader_calls(pipeline),
        "describe": _shared_out(describing, len(dataset.questions)),
        "peak_memory_mb": round(_peak_memory_mb()),
        "stages": _stage_seconds(samples[MAIN]),
    }
    _add_encoding(results, pipeline.retriever, console)
    _add_reranking(results, pipeline, reranked, console)
    _note_cuts(results, console)
    _write(run_dir, dataset, samples[MAIN], results)
    console.results(results, run_dir.path)
    if judge is not None and judge.unclear:
        console.note(f"{judge.unclear} of {judge.judged} judgements gave no verdict: wrong")
    return run_dir.path


def planned(request: RunRequest) -> tuple[dict[str, Any], str, PipelineConfig]:
    """The settings of the pipeline that is asked for, where they were read, and validated.

    Raises:
        UserError: any mistake in what was asked for that shows without data and models.
    """
    _check(request)
    settings, where = _settings(request)
    config = check_settings(settings, where)
    blind = config.retriever.name == "none" or (
        config.retriever.name in _BLIND and not config.reranking
    )
    if "wrong-image" in request.controls and blind:
        raise UserError(
            f"--controls wrong-image changes nothing with the retriever {config.retriever.name}: "
            "its passages do not depend on the image"
        )
    return settings, where, config


def _check(request: RunRequest) -> None:
    DATASETS.check(request.dataset)
    if request.limit is not None and request.limit < 1:
        raise UserError(f"--limit {request.limit}: at least one question is needed")
    for name in request.controls:
        if name not in CONTROLS:
            raise UserError(f"--controls: no control {name!r}: {near_matches(name, CONTROLS)}")
    if len(set(request.controls)) != len(request.controls):
        raise UserError("--controls: a control is named twice")
    if request.seed < 0:
        raise UserError(f"--seed {request.seed}: a number from 0 on is needed")
    if request.resume and request.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if request.resume and request.output is None:
        raise UserError("--resume needs --output: the folder of the run to go on with")
    if request.retrieval_only and request.predict_only:
        raise UserError("--retrieval-only and --predict-only exclude each other")


def _check_corpus(request: RunRequest, config: PipelineConfig) -> None:
    if not request.corpus and config.retriever.name != "none":
        raise UserError(
            f"--dataset {request.dataset} --data needs passages to retrieve from: name a file with "
            "--corpus, or choose --retriever none"
        )


def _settings(request: RunRequest) -> tuple[dict[str, Any], str]:
    settings, where = load_pipeline(request.pipeline)
    own = settings.get("retriever")
    before = {key: _models(settings.get(key)) for key in ("retriever", "reranking", "reader")}
    for key, asked, registry in (
        ("retriever", request.retriever, RETRIEVERS),
        ("reader", request.reader, READERS),
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


def _named(key: str, asked: str, registry: Registry, part: Any) -> dict[str, Any]:
    """The settings of a part named on the command line: NAME, or NAME:ARGUMENT.

    Raises:
        UserError: no such part, or it takes no argument.
    """
    name, colon, argument = asked.partition(":")
    registry.check(name)
    # The file's options belong to the file's part.
    settings = part if isinstance(part, dict) and part.get("name") == name else {"name": name}
    if not colon:
        return settings
    if name not in _ARGUMENTS or not argument:
        forms = ", ".join(f"{n}:{option.upper()}" for n, option in _ARGUMENTS.items())
        raise UserError(f"--{key} {asked!r}: a name is expected, or {forms}")
    return {**settings, _ARGUMENTS[name]: argument}


def _as_control(part: dict[str, Any], own: Any, seed: int) -> dict[str, Any]:
    """A control's settings, so that --retriever gives what --controls gives beside a run."""
    if part["name"] == "random":
        return {"seed": seed, **part}
    ordered = isinstance(own, dict) and own.get("name") not in (*_PASSAGES, None)
    return {"base": own, **part} if part["name"] == "oracle" and ordered else part


def _models(settings: Any) -> list[tuple[str, Any]]:
    """Every part's name and model in a part's settings, or a list's; nested ones included."""
    if isinstance(settings, list):
        return [pair for part in settings for pair in _models(part)]
    if not isinstance(settings, dict):
        return []
    own = [(k, str(v)) for k, v in settings.items() if k in {"name", "model"}]
    return own + [pair for value in settings.values() for pair in _models(value)]


def overrides_of(request: RunRequest) -> list[str]:
    """What the command line changed of the pipeline's file."""
    parts = (("retriever", request.retriever), ("reader", request.reader))
    return [f"{part}={name}" for part, name in parts if name] + list(request.overrides)


def read_dataset(
    request: RunRequest, config: PipelineConfig, problems: Problems, console: Console
) -> Dataset:
    """The questions; where parts are shared, a dataset is read once for all that ask for it.

    Raises:
        UserError: files that are missing or broken; answers are needed and there are none.
    """
    load = DATASETS.get(request.dataset)
    if request.download:
        _download(request, console)
    need_images = config.describer is not None  # else asked of the parts, once built

    def read() -> tuple[Dataset, list[Problem]]:
        found = Problems(request.on_error)
        with console.status("reading the dataset"):
            dataset: Dataset = load(
                DatasetRequest(
                    data=request.data,
                    split=request.split,
                    limit=request.limit,
                    problems=found,
                    need_images=need_images,
                    options=parse_options(request.dataset_options),
                )
            )
        for note in dataset.notes:
            console.note(note)
        return dataset, found.found

    which = (request.dataset, request.data, request.split, request.limit, need_images)
    dataset, found = once(
        "dataset", (*which, request.on_error, tuple(request.dataset_options)), read
    )
    problems.found += found
    if dataset.metric is None and not (request.predict_only or request.retrieval_only):
        raise UserError(
            f"the split {dataset.split} has no answers to score with: use --predict-only"
        )
    return dataset


def read_corpus(
    request: RunRequest, config: PipelineConfig, dataset: Dataset, console: Console
) -> Corpus | None:
    """The passages that were named, or those that come with the dataset; read once as it is.

    Raises:
        UserError: passages are needed and there are none; a file is missing or broken.
    """
    files = tuple(request.corpus)
    if not files:
        if request.data is not None and dataset.corpus is None:
            _check_corpus(request, config)
        return dataset.corpus

    def read() -> Corpus:
        if len(files) == 1 and Library.exists(files[0]):
            return Library.open(files[0]).corpus
        remarks = Remarks(request.on_error)
        corpus = Corpus.read(*files, remarks=remarks)
        for line in remarks.lines():
            console.note(line)
        return corpus

    return once("corpus", files, read)


def _judge(
    request: RunRequest, config: PipelineConfig, dataset: Dataset, where: str
) -> CachedJudge | None:
    unscored = request.retrieval_only or request.predict_only
    if config.judge is None or unscored or dataset.metric != "evqa_score":
        return None
    return CachedJudge(build_part(JUDGES, config.judge, f"{where}: judge"))


def _with_images(dataset: Dataset, problems: Problems) -> Dataset:
    """The dataset without questions whose image is missing or broken; those are reported."""

    def read() -> tuple[Sequence[Question], str, list[Problem]]:
        found = Problems(problems.on_error)
        asked = DatasetRequest(problems=found)
        return *gather(dataset.questions, asked, dataset.label), found.found

    key = (dataset.fingerprint, problems.on_error)
    questions, digest, found = once("images", key, read)
    problems.found += found
    return replace(dataset, questions=questions, fingerprint=digest)


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


def _resolved(
    request: RunRequest,
    settings: Mapping[str, Any],
    dataset: Dataset,
    corpus: Corpus | None,
    pipeline: Pipeline,
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "ravqa": ravqa.__version__,
        "dataset": {
            "name": dataset.name,
            "label": dataset.label,
            "data": str(request.data) if request.data else None,
            "split": dataset.split,
            "options": list(request.dataset_options),
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


def _images_fingerprint(dataset: Dataset) -> str:
    images = {q.image for q in dataset.questions if isinstance(q.image, Path)}
    return fingerprint([image_digest(p) for p in sorted(images)])


def default_output(request: RunRequest) -> Path:
    """A new folder in runs/, named by dataset, pipeline and time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{request.dataset}-{Path(request.pipeline).stem}-{stamp}"
    path = Path("runs") / name
    number = 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def _described(
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
    except DataError:
        described: list[Question] = []
        for question in dataset.questions:
            try:
                described += pipeline.describe([question])
            except DataError as e:
                problems.report(f"question {question.question_id}", str(e), question.question_id)
        if not described:
            raise
        return replace(dataset, questions=described)


def _control(name: str, pipeline: Pipeline, corpus: Corpus | None, seed: int) -> Retriever:
    if name == "none":
        return NoRetriever()
    if name == "wrong-image":
        return pipeline.retriever  # the questions are changed instead
    control: Retriever
    if name == "random":
        control = RandomRetriever(RandomRetriever.Config(seed=seed))
    else:
        base = pipeline.retriever
        if isinstance(base, OracleRetriever):
            return base
        if isinstance(base, NoRetriever):
            raise UserError("--controls oracle needs a retriever whose order it keeps")
        control = OracleRetriever(OracleRetriever.Config(), base)
    control.prepare(corpus)
    return control


def wrong_images(questions: Sequence[Question], seed: int) -> list[Question]:
    """Each question with the image (and its description) of another one, for retrieval only.

    All questions of an image get the same other image; no image keeps its own.

    Raises:
        UserError: there is only one image.
    """
    by_image = {q.image_id: q for q in questions}
    ids = list(by_image)
    if len(ids) < 2:
        raise UserError("--controls wrong-image needs questions about at least two images")
    random.Random(seed).shuffle(ids)
    other = dict(zip(ids, ids[1:] + ids[:1], strict=True))
    return [
        replace(
            q,
            image=by_image[other[q.image_id]].image,
            description=by_image[other[q.image_id]].description,
        )
        for q in questions
    ]


class _Runner:
    """Runs conditions over the dataset, chunk by chunk, writing samples as they come."""

    def __init__(
        self,
        pipeline: Pipeline,
        dataset: Dataset,
        run_dir: RunDir,
        console: Console,
        request: RunRequest,
        judge: CachedJudge | None,
    ):
        self.pipeline = pipeline
        self.dataset = dataset
        self.run_dir = run_dir
        self.console = console
        self.request = request
        self.judge = judge
        self._marker: Marker | None = None
        self.stores: dict[str, set[str]] = {}  # that each stage of the run itself used

    def run(self, condition: str, retriever: Retriever) -> dict[int | str, dict[str, Any]]:
        """Samples of every question, those of an earlier, interrupted run included."""
        questions = list(self.dataset.questions)
        done = self.run_dir.read_samples(condition)
        asked = questions
        if condition == "wrong-image":
            asked = wrong_images(questions, self.request.seed)
        total = len(questions)
        what = "questions" if condition == MAIN else f"control {condition}"
        finished = sum(q.question_id in done for q in questions)
        self.console.progress(what, finished, total)
        size = max(_CHUNK, _ROUNDS * self.pipeline.reads_at_once)
        for start in range(0, total, size):
            rows = [
                i
                for i in range(start, min(start + size, total))
                if questions[i].question_id not in done
            ]
            if not rows:
                continue
            samples, error = self._chunk(
                condition, [questions[i] for i in rows], [asked[i] for i in rows], retriever
            )
            self.run_dir.append_samples(condition, samples)
            done.update((sample["question_id"], sample) for sample in samples)
            finished += len(samples)
            self.console.progress(what, finished, total)
            if error:
                raise UserError(
                    f"{error} ({what}: {finished} of {total} are answered and kept: go on with "
                    f"--resume --output {self.run_dir.path})"
                )
        return {q.question_id: done[q.question_id] for q in questions}

    def _chunk(
        self,
        condition: str,
        questions: Sequence[Question],
        asked: Sequence[Question],
        retriever: Retriever,
    ) -> tuple[list[dict[str, Any]], str]:
        """Samples of the questions that are done, and what ends the run if it cannot go on."""
        with watched() as retrieving:
            retrieved = self.pipeline.retrieve(asked, retriever)
        reranked = self.pipeline.rerank(asked, retrieved) if condition in _RERANKED else []
        hits = reranked[-1].hits if reranked else retrieved
        attempt = scores = raw_scores = None
        error = ""
        with watched() as answering:
            if self.pipeline.answerer is not None:
                attempt = self.pipeline.attempt(questions, hits)
                self.run_dir.prompts.add(self.pipeline.answerer.asked)
                error = self._ends(attempt, questions)
        answers = attempt.answers if attempt else [None] * len(questions)
        if attempt is not None and not self.request.predict_only:
            texts = [answer.text if answer else None for answer in answers]
            scores = score_answers(self.dataset, questions, texts, judge=self.judge)
            raws = [answer.raw if answer else None for answer in answers]
            raw_scores = score_raw(self.dataset, questions, texts, raws, scores, judge=self.judge)
        uses = {"retrieve": retrieving}
        uses |= {f"rerank {stage.name}": stage.use for stage in reranked}
        uses |= {"answer": answering}
        if condition == MAIN:
            for stage, use in uses.items():
                self.stores.setdefault(stage.partition(" ")[0], set()).update(use.stores)
        costs = {stage: _shared_out(use, len(questions)) for stage, use in uses.items()}
        samples = []
        for i, question in enumerate(questions):
            sample = self._sample(question, hits[i])
            if reranked:
                rankings = {RETRIEVED: retrieved[i]} | {s.name: s.hits[i] for s in reranked}
                sample["stages"] = [
                    {"stage": name, **self._ranking(question, found)}
                    for name, found in rankings.items()
                ]
            answer = answers[i]
            if answer is not None:
                sample |= self._answered(question, answer, hits[i])
            elif attempt is not None and error:
                continue  # a run that goes on asks again
            elif attempt is not None:
                sample |= self._unanswered(question, attempt.reasons[i])
            if scores is not None and raw_scores is not None:
                sample["score"] = scores[i]
                sample["raw_score"] = raw_scores[i]
            sample["seconds"] = {stage: cost["seconds"] for stage, cost in costs.items()}
            sample["cached"] = {stage: cost["cached"] for stage, cost in costs.items()}
            samples.append(sample)
        return samples, error

    def _ends(self, attempt: Attempt, questions: Sequence[Question]) -> str:
        """What ends the run: a server that is gone; a question without answer, if none may be."""
        if attempt.gone:
            return str(attempt.gone)
        if not attempt.reasons:
            return ""
        place, reason = min(attempt.reasons.items())
        if self.request.on_error == "fail":
            return (
                f"question {questions[place].question_id}: {reason}; --on-error skip counts such "
                "questions as wrong"
            )
        # Where none can be answered, it is not the questions.
        return reason if len(attempt.reasons) == len(questions) >= _TELLING else ""

    def _sample(self, question: Question, hits: Sequence[Hit]) -> dict[str, Any]:
        seen = question.description
        return {
            "question_id": question.question_id,
            "question": question.question,
            "question_type": type_name(self.dataset, question),
            "image_id": question.image_id,
            "split": question.split,
            "answers": list(question.answers),
            "tags": [[t.names[0], t.probability] for t in seen.tags] if seen else [],
            "caption": seen.caption if seen else "",
            "ocr": list(seen.ocr) if seen else [],
            **self._ranking(question, hits),
        }

    def _ranking(self, question: Question, hits: Sequence[Hit]) -> dict[str, Any]:
        if self._marker is None or self._marker.question is not question:
            self._marker = Marker(question)  # a question's rankings are marked one after another
        passages = [passage for _, passage in self.pipeline.passages(hits)]
        return {
            "hits": [[hit.passage_id, round(hit.score, 6)] for hit in hits],
            **self._marker.marks(passages),
        }

    def _read(self, question: Question, answer: Answer, hits: Sequence[Hit]) -> dict[str, Any]:
        """The passages that stood in a prompt, in the order of the hits."""
        shown = {passage_id for draft in answer.drafts for passage_id in draft.passage_ids}
        return self._ranking(question, [hit for hit in hits if hit.passage_id in shown])

    def _answered(self, question: Question, answer: Answer, hits: Sequence[Hit]) -> dict[str, Any]:
        return {
            "read": self._read(question, answer, hits),
            "answer": answer.text,
            "raw": answer.raw,
            "decision": answer.decision,
            "log_prob": answer.log_prob,
            "cut": answer.cut,
            "drafts": self._drafts(answer, hits),
        }

    def _unanswered(self, question: Question, reason: str) -> dict[str, Any]:
        return {
            "read": self._ranking(question, []),
            "answer": None,
            "raw": None,
            "decision": None,
            "log_prob": None,
            "cut": 0,
            "drafts": [],
            "error": reason,
        }

    def _drafts(self, answer: Answer, hits: Sequence[Hit]) -> list[dict[str, Any]]:
        """Drafts, each with whether a passage that it was read from holds it.

        The answer's own generation stands whole in the sample, those of other drafts up to a limit.
        """
        texts = {p.passage_id: p.content for _, p in self.pipeline.passages(hits)}
        return [
            asdict(draft)
            | {
                "raw": draft.raw[:_MAX_RAW],
                "in_passages": any(
                    is_in_document(draft.text, texts[passage_id])
                    for passage_id in draft.passage_ids
                ),
            }
            for draft in answer.drafts
        ]


def _shared_out(use: Use, questions: int) -> dict[str, Any]:
    """What one of the questions that were worked on together took.

    Returns:
        `seconds`: now. `cached`: what of it came from the cache: the `share` of what the stage
        looked up there, 0 to 1, and the `seconds` that this took when it was made, None if that
        is not known of all of it.
    """
    return {
        "seconds": round(use.seconds / questions, 4),
        "cached": {
            "share": round(use.found / use.asked, 4) if use.asked else 0.0,
            "seconds": None if use.unpriced else round(use.saved / questions, 4),
        },
    }


def _results(
    request: RunRequest,
    dataset: Dataset,
    corpus: Corpus | None,
    config: PipelineConfig,
    pipeline: Pipeline,
    samples: Mapping[str, Mapping[int | str, Mapping[str, Any]]],
    problems: Problems,
    judge: CachedJudge | None,
) -> dict[str, Any]:
    ks = retrieval_ks(dataset, pipeline.top_k)
    scored = not request.predict_only
    answered = scored and pipeline.answerer is not None
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": {
            "name": dataset.name,
            "label": dataset.label,
            "sample": dataset.sample,
            "split": dataset.split,
            "questions": len(dataset.questions),
            "images": len({q.image_id for q in dataset.questions}),
            "limit": request.limit,
            "skipped": [
                {"question_id": p.question_id, "where": p.where, "reason": p.reason}
                for p in problems.found
            ],
            **dataset.info,
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


def _reader_calls(pipeline: Pipeline) -> dict[str, int]:
    """What the reader itself did, the cache apart."""
    reader = pipeline.answerer.cached if pipeline.answerer else None
    return {
        "prompts_generated": reader.generated if reader else 0,
        "answers_scored": reader.scored if reader else 0,
        "mixtures_decoded": reader.decoded if reader else 0,
    }


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


def _note_cuts(results: Mapping[str, Any], console: Console) -> None:
    """A note if passages did not fit into prompts."""
    if results["answers"]:
        cut = results["answers"]["conditions"][MAIN]["cut"]
        if cut["passages"]:
            console.note(
                f"{cut['passages']:,} passages of {cut['questions']:,} questions did not fit into "
                "the reader's context, and were left out of the prompt"
            )


def _add_encoding(results: dict[str, Any], retriever: Retriever, console: Console) -> None:
    """What an encoder cut, into the results; a note if it cut any."""
    encoded = getattr(retriever, "encoded", {})
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


def _reranked(pipeline: Pipeline) -> dict[str, dict[str, int]]:
    """What each reranker has scored so far, caches apart, and cut."""
    return {
        name: {key: getattr(part, key) for key in ("scored", "truncated") if hasattr(part, key)}
        for name, part in pipeline.rerankers.items()
    }


def _add_reranking(
    results: dict[str, Any],
    pipeline: Pipeline,
    before: Mapping[str, Mapping[str, int]],
    console: Console,
) -> None:
    """What each reranker scored and cut in this run; a note if it cut any."""
    counts = {
        name: {key: value - before[name][key] for key, value in count.items()}
        for name, count in _reranked(pipeline).items()
    }
    if counts:
        results["timing"]["reranking"] = counts
    for name, count in counts.items():
        if count.get("truncated"):
            console.note(
                f"{count['truncated']:,} pairs of question and passage were longer than the "
                f"reranker {name} takes, and were cut"
            )


def _write(
    run_dir: RunDir,
    dataset: Dataset,
    samples: Mapping[int | str, Mapping[str, Any]],
    results: Mapping[str, Any],
) -> None:
    trec = "".join(line for q, sample in samples.items() for line in trec_lines(q, sample["hits"]))
    run_dir.write("run.trec", trec)
    if all("answer" in sample for sample in samples.values()):
        if dataset.name == "infoseek":
            lines = [
                json.dumps({"data_id": q, "prediction": s["answer"] or ""}, ensure_ascii=False)
                for q, s in samples.items()
            ]
            run_dir.write("predictions.jsonl", "\n".join(lines) + "\n")
        else:
            rows = [{"question_id": q, "answer": s["answer"] or ""} for q, s in samples.items()]
            run_dir.write("predictions.json", json.dumps(rows, ensure_ascii=False, indent=0))
    run_dir.write("results.json", json.dumps(results, ensure_ascii=False, indent=1) + "\n")


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
