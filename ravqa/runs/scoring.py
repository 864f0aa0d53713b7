"""`ravqa score`: score a file of predictions like a run, without a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError, UserError
from ravqa.core.factory import build_part
from ravqa.core.files import atomic_write, check_file
from ravqa.core.locations import file_digest
from ravqa.core.marks import bare
from ravqa.core.settings import Part, apply_override, validate
from ravqa.core.texts import encodable, number_of
from ravqa.corpora.tables import read_json, read_jsonl
from ravqa.datasets import DATASETS
from ravqa.datasets.base import Dataset, DatasetRequest
from ravqa.evaluation.answers import answer_section
from ravqa.evaluation.retrieval import rankings, retrieval_ks, retrieval_section
from ravqa.evaluation.rules import check_rules, rules_section
from ravqa.evaluation.schema import (
    SCHEMA_VERSION,
    Predicted,
    ScoreResults,
    check_ranks,
    validated,
)
from ravqa.evaluation.sections import dataset_section
from ravqa.metrics.judges import JUDGES
from ravqa.metrics.judges.cached import CachedJudge
from ravqa.runs.console import Console
from ravqa.runs.finished import RunFiles, dataset_of
from ravqa.runs.folder import MAIN, check_output, samples_name
from ravqa.runs.load import read_questions, with_metric_options
from ravqa.runs.options import ScoreRequest
from ravqa.runs.plan import check_seed
from ravqa.runs.report import now, versions
from ravqa.runs.rule_tables import show_rules

_ID_KEYS = ("question_id", "data_id")
_ANSWER_KEYS = ("answer", "prediction")
_EXPECTED = (
    "a list or lines of records are expected, each with 'question_id' or 'data_id', and with "
    "'answer' or 'prediction'"
)
_NAMED = 5  # ids or keys that an error message lists


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for the questions of a dataset, as read from a file.

    Attributes:
        samples: by question id; the answer is None if there is no prediction.
        given: number of records in the file.
        missing, duplicates, unknown: ids of questions without a prediction, with several, and of
            predictions without a question.
        answered: whether the records have answers.
        retrieved: whether the records are samples of a run, with rankings that can be scored.
        marked: how many of the answers have thinking, special tokens or calls of tools.
        unmarked: whether the run had no references, so that its rankings cannot be scored.
    """

    samples: Mapping[int | str, Predicted]
    given: int
    missing: Sequence[int | str]
    duplicates: Sequence[int | str]
    unknown: Sequence[str]
    answered: bool
    retrieved: bool
    marked: int = 0
    unmarked: bool = False


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """A score that can begin.

    Attributes:
        judge: the judge's settings; None for exact match.
        run: the finished run whose answers are scored; None for a file of predictions.
    """

    request: ScoreRequest
    judge: Part | None
    run: RunFiles | None = None

    @property
    def file(self) -> Path:
        """The file of predictions."""
        return self.run.folder / samples_name(MAIN) if self.run else self.request.predictions


@dataclass(frozen=True, slots=True)
class ScoreLoaded:
    """Predictions that can be scored."""

    plan: ScorePlan
    dataset: Dataset
    judge: CachedJudge | None
    predictions: Predictions


def score(request: ScoreRequest, console: Console) -> ScoreResults:
    """Score, print and write; return the results.

    Its phases are those of a run (`ravqa.runs.run`), without the one that asks the questions.

    Raises:
        UserError: any mistake in the request or the files.
    """
    return _report(_load(_plan(request), console), console)


def _plan(request: ScoreRequest) -> ScorePlan:
    """Check the request before any data is read."""
    run = RunFiles.read(request.predictions) if request.predictions.is_dir() else None
    _check_dataset(request, run)
    check_seed(request.seed)
    check_rules(request.rules)
    if request.output is not None:
        check_output(request.output, overwrite=request.overwrite)
    settings: dict[str, Any] = {"judge": {"name": request.judge}}
    for override in request.overrides:
        if not override.startswith("judge.") or request.judge is None:
            raise UserError(f"--set {override!r}: judge.KEY=VALUE is expected, with --judge")
        apply_override(settings, override)
    judge = validate(Part, settings["judge"], "--judge") if request.judge is not None else None
    return ScorePlan(request, judge, run)


def _check_dataset(request: ScoreRequest, run: RunFiles | None) -> None:
    """Refuse predictions without a dataset, and a dataset beside a run, which has one."""
    if run is None:
        if request.dataset is None:
            raise UserError(
                "--dataset NAME is missing: the dataset that was answered (ravqa ls datasets)"
            )
        DATASETS.check(request.dataset)
        return
    given = {
        "--dataset": request.dataset,
        "--data": request.data,
        "--split": request.split,
        "--dataset-option": request.dataset_options,
    }
    for option, value in given.items():
        if value:
            raise UserError(f"{option}: {request.predictions} has questions of its own")


def _questions(plan: ScorePlan, console: Console) -> Dataset:
    if plan.run is not None:
        return dataset_of(plan.run.results, plan.run.samples(), plan.run.folder)
    asked = DatasetRequest(need_images=False, find_images=False)
    return read_questions(plan.request, asked, console)


def _load(plan: ScorePlan, console: Console) -> ScoreLoaded:
    """Read questions and predictions, and build the judge."""
    request = plan.request
    dataset = with_metric_options(_questions(plan, console), request)
    judge = None
    if plan.judge is not None:
        if not (dataset.answer_metric.uses_judge or request.rules):
            raise UserError(
                f"--judge: the scores of {dataset.name} use no judge (metric {dataset.metric}); "
                "some of --rules do"
            )
        judge = CachedJudge(
            build_part(JUDGES, plan.judge, "--judge"),
            lambda done, total: console.progress("judging", done, total),
        )
    predictions = read_predictions(plan.file, dataset, strip_marks=request.strip_marks)
    problems = {
        "missing": predictions.missing,
        "predicted more than once": predictions.duplicates,
        f"not in {dataset.label}, split {dataset.split}": predictions.unknown,
    }
    found = [
        f"{number_of(len(ids), 'id is', 'ids are')} {what} ({_named(ids)})"
        for what, ids in problems.items()
        if ids
    ]
    if found and not request.allow_partial:
        raise UserError(f"{request.predictions}: {'; '.join(found)}: see --allow-partial")
    if predictions.unmarked:
        found.append("retrieval is not scored: the run had no references to look for in passages")
    if predictions.marked:
        what = (
            f"{number_of(predictions.marked, 'prediction')} with thinking or special tokens in "
            "the text"
        )
        found.append(
            f"{what}: these were taken off, as no official rule does"
            if request.strip_marks
            else f"{what}, scored with them, as the official rules do: --strip-marks takes them off"
        )
    for problem in found:
        console.note(problem)
    return ScoreLoaded(plan, dataset, judge, predictions)


def _report(loaded: ScoreLoaded, console: Console) -> ScoreResults:
    """Compute, print and, if requested, write the results."""
    results, output = _results(loaded), loaded.plan.request.output
    console.close()
    console.tables(results)
    console.unanswered(results, "" if output is None else str(output))
    console.unjudged(results)
    if section := results.get("rules"):
        show_rules(section, console)
    if output is not None:
        try:
            text = json.dumps(results, ensure_ascii=False, indent=1) + "\n"
            atomic_write(output, encodable(text))
        except OSError as e:
            raise UserError(
                f"the output file {output} cannot be written: {e.strerror or e}"
            ) from None
    return results


_NOTHING: Predicted = {
    "answer": None,
    "raw": None,
    "cut": 0,
    "hits": [],
    "answer_ranks": None,
    "id_ranks": None,
    "article_ranks": None,
    "drafts": [],
    "stages": None,
    "read": None,
}


def read_predictions(path: Path, dataset: Dataset, *, strip_marks: bool = False) -> Predictions:
    """Read a JSON list (VQA's results) or JSON lines (InfoSeek's, or a run's samples.jsonl).

    If the dataset's metric has a `prediction_key`, the file may also be one object (A-OKVQA's).

    A record has "question_id" or "data_id", and "answer" or "prediction". Ids are the same if
    their strings are. Of several predictions for a question, the last one counts; those for
    questions that the metric leaves out are ignored.

    Args:
        strip_marks: take thinking, special tokens and calls of tools off the answers.

    Raises:
        DataError: a broken file; a record without id or answer, or with two different ones; a
            sample of a run that is not complete (its place is named).
    """
    records = list(_records(path, dataset.submission_form.prediction_key))
    if not records:
        raise DataError(f"{path} contains no predictions")
    retrieved = any("hits" in record for _, record in records)
    # Samples of a run with --retrieval-only have no answers.
    answered = not retrieved or any(key in r for _, r in records for key in _ANSWER_KEYS)
    ids = {str(q.question_id): q.question_id for q in dataset.questions}
    left_out = set(map(str, dataset.left_out))
    referenced = {q.question_id for q in dataset.questions if q.answers}
    unmarked: dict[bool, str] = {}  # where, by whether the run knew the references
    samples: dict[int | str, Predicted] = {}
    duplicates: dict[int | str, None] = {}
    unknown: dict[str, None] = {}
    marked: dict[int | str, bool] = {}
    for where, record in records:
        name = str(_value(record, _ID_KEYS, int | str, where))
        sample = _NOTHING
        if retrieved:  # then all of them are samples
            sample = validated(Predicted, record, where)
            check_ranks(sample, where)
        # A question that the reader could not answer has an error instead.
        given = answered and not sample.get("error")
        answer = _value(record, _ANSWER_KEYS, str, where) if given else None
        if name not in ids:
            if name not in left_out:
                unknown[name] = None
            continue
        if ids[name] in samples:
            duplicates[ids[name]] = None
        said = None if answer is None else bare(answer)
        marked[ids[name]] = answer is not None and said != answer.strip()
        if strip_marks and marked[ids[name]]:
            answer = said
        samples[ids[name]] = {**sample, "answer": answer}
        if retrieved and ids[name] in referenced:
            unmarked[sample["answer_ranks"] is not None] = where
    if len(unmarked) == 2:
        raise DataError(f"{unmarked[False]}: not a sample of a run ('answer_ranks' is null)")
    return Predictions(
        samples={q: samples.get(q, _NOTHING) for q in ids.values()},
        given=len(records),
        missing=[q for q in ids.values() if q not in samples],
        duplicates=list(duplicates),
        unknown=list(unknown),
        answered=answered,
        retrieved=retrieved and False not in unmarked,
        marked=sum(marked.values()),
        unmarked=False in unmarked,
    )


def _records(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield records and their places, from a JSON list, from JSON lines, or from one object.

    Args:
        key: the metric's `prediction_key`.
    """
    check_file(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = next((line.lstrip()[:1] for line in file if line.strip()), "")
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
    if start not in ("", "[", "{"):
        raise DataError(f"{path} is neither a JSON list nor JSON lines: {_EXPECTED}")
    if start != "[":
        if found := _whole_object(path, key):
            yield from _entries(path, found, key)
            return
        for number, record in read_jsonl(path):
            yield f"{path}, line {number}", record
        return
    for number, record in enumerate(read_json(path), 1):
        if not isinstance(record, dict):
            raise DataError(f"{path}, record {number}: an object is expected")
        yield f"{path}, record {number}", record


def _whole_object(path: Path, key: str) -> dict[str, Any]:
    """Return the file if all of it is one object of predictions; empty if it is lines of records.

    Raises:
        DataError: it is one object of another kind, such as {"results": [...]}.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # several lines, or none of JSON, which reading them says
        return {}
    if any(key in found for key in _ID_KEYS):
        return {}
    if key and found and all(isinstance(v, str | dict) for v in found.values()):
        return found
    raise DataError(f"{path} is one JSON object (its keys: {_keys(found)}): {_EXPECTED}")


def _entries(
    path: Path, found: Mapping[str, Any], key: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the predictions of a file {id: answer} or {id: {key: answer}}, as records."""
    for question_id, value in found.items():
        if isinstance(value, dict):
            if key not in value:
                continue  # an answer for the other of the benchmark's scores
            value = value[key]
        yield f"{path}, key {question_id!r}", {"question_id": question_id, "answer": value}


def _keys(record: Mapping[str, Any]) -> str:
    return _named([repr(key) for key in record]) or "none"


def _value(record: Mapping[str, Any], keys: Sequence[str], kind: Any, where: str) -> Any:
    found = [key for key in keys if key in record]
    if not found:
        wanted = " or ".join(map(repr, keys))
        raise DataError(f"{where}: no {wanted}; its keys are {_keys(record)}")
    for key in found:
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            raise DataError(f"{where}: {key!r} is {record[key]!r}: a string is expected")
    value = record[found[0]]
    if any(record[key] != value for key in found):
        raise DataError(f"{where}: {found[0]!r} and {found[1]!r} differ: which one is meant?")
    return value


def _named(ids: Sequence[int | str]) -> str:
    more = ", ..." if len(ids) > _NAMED else ""
    return ", ".join(map(str, ids[:_NAMED])) + more


def _results(loaded: ScoreLoaded) -> ScoreResults:
    request, dataset, predictions = loaded.plan.request, loaded.dataset, loaded.predictions
    conditions = {MAIN: predictions.samples}
    depth = max(
        (len(r["hits"]) for s in predictions.samples.values() for r in rankings(s)), default=0
    )
    answers = retrieval = None
    if predictions.answered and dataset.metric is not None:
        answers = answer_section(dataset, conditions, seed=request.seed, judge=loaded.judge)
        if request.strip_marks:
            answers["rule"] = {**answers["rule"], "marks": "removed"}
    # A run's own results have its retrieval, and more of it than its samples tell.
    if predictions.retrieved and depth and loaded.plan.run is None:
        ks = retrieval_ks(dataset, depth)
        # A missing prediction is a wrong answer, but says nothing of retrieval.
        missing = set(predictions.missing)
        found = {q: s for q, s in predictions.samples.items() if q not in missing}
        retrieval = retrieval_section(dataset, {MAIN: found}, ks, seed=request.seed)
    if answers is None and retrieval is None and dataset.metric is not None:
        raise UserError(
            f"{request.predictions}: the samples have neither answers nor passages: there is "
            "nothing to score"
        )
    if answers is None and retrieval is None:
        raise UserError(f"the split {dataset.split} has no answers to score with")
    results: ScoreResults = {
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset_section(dataset),
        "predictions": {
            "file": str(loaded.plan.file),
            "sha256": file_digest(loaded.plan.file),
            "given": predictions.given,
            "missing": list(predictions.missing),
            "duplicates": list(predictions.duplicates),
            "unknown": list(predictions.unknown),
            "marked": predictions.marked,
            "marks_removed": request.strip_marks,
        },
        "answers": answers,
        "retrieval": retrieval,
        "provenance": {
            "fingerprints": {"dataset": dataset.fingerprint},
            "seed": request.seed,
            "versions": versions(),
            "date": now(),
        },
    }
    if request.rules:
        if answers is None:
            raise UserError(f"--rules: {request.predictions} has no answers to score")
        results["rules"] = rules_section(
            dataset,
            predictions.samples,
            request.rules,
            seed=request.seed,
            judge=loaded.judge,
            examples=request.examples,
        )
    return results
