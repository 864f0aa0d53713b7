"""`ravqa selective`: when a finished run should rather not answer, without a model.

A threshold of a confidence is chosen on one run and applied to another. On the questions it was
chosen on, it looks better than it is, so that runs which share questions or images are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ravqa.core.errors import DataError, UserError
from ravqa.core.files import atomic_write
from ravqa.core.texts import encodable, number_of
from ravqa.evaluation.schema import SCHEMA_VERSION, AnswerSection, Sample, SelectiveResults
from ravqa.evaluation.selective import selective_section, threshold_scores
from ravqa.metrics.prrecall import DEFAULT_RULE
from ravqa.runs.console import Console, condition_name, short_name
from ravqa.runs.finished import Id, RunFiles, folder_and_condition
from ravqa.runs.folder import MAIN, check_output
from ravqa.runs.options import SelectiveRequest
from ravqa.runs.plan import check_seed
from ravqa.runs.report import now, versions
from ravqa.runs.selective_tables import confidence_table, outcome_table, threshold_table

TARGET_RISK = 0.2
"""What a threshold is chosen for unless something else is asked for."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """A finished run whose answers were scored.

    Attributes:
        condition: the run itself, or the control that was named.
        samples: by condition: all of them, or only the control that was named.
    """

    name: str
    condition: str
    files: RunFiles
    answers: AnswerSection
    samples: Mapping[str, Mapping[Id, Sample]]

    @property
    def first(self) -> Mapping[Id, Sample]:
        """The samples of the first condition."""
        return next(iter(self.samples.values()))


def selective(request: SelectiveRequest, console: Console) -> SelectiveResults:
    """Measure, print and write; return the results.

    Raises:
        UserError: a run that is not finished, not scored, or has no such control; two runs that
            share questions or images, or are of different pipelines; a bad target risk.
        DataError: a file of a run is broken.
    """
    check_seed(request.seed)
    if request.target_risks and request.calibrate is None:
        raise UserError("--target-risk chooses thresholds on another run: --calibrate RUN names it")
    for risk in request.target_risks:
        if not 0 <= risk <= 1:
            raise UserError(f"--target-risk {risk:g}: numbers from 0 to 1 are expected")
    if request.output is not None:
        check_output(request.output, overwrite=request.overwrite)
    run = _read(request.run)
    calibration = None if request.calibrate is None else _calibration(request.calibrate, run)
    results = run.files.results
    retrieval = results["retrieval"]
    found: SelectiveResults = {
        "schema_version": SCHEMA_VERSION,
        "run": request.run,
        "calibrated_on": request.calibrate,
        "dataset": results["dataset"],
        "selective": selective_section(
            run.answers,
            run.samples,
            retrieval["rule"] if retrieval else DEFAULT_RULE,
            seed=request.seed,
        ),
        "thresholds": []
        if calibration is None
        else threshold_scores(
            calibration.first, run.first, request.target_risks or (TARGET_RISK,), seed=request.seed
        ),
        "provenance": {
            "fingerprints": {"dataset": run.files.config["dataset"]["fingerprint"]},
            "seed": request.seed,
            "versions": versions(),
            "date": now(),
        },
    }
    _print(found, run, calibration, console)
    if request.output is not None:
        text = json.dumps(found, ensure_ascii=False, indent=1) + "\n"
        try:
            atomic_write(request.output, encodable(text))
        except OSError as e:
            raise UserError(
                f"the output file {request.output} cannot be written: {e.strerror or e}"
            ) from None
    return found


def _read(name: str) -> _Scored:
    folder, condition = folder_and_condition(name)
    files = RunFiles.read(folder)
    answers = files.results["answers"]
    if answers is None:
        raise UserError(f"the answers of the run in {folder} were not scored")
    named = files.conditions if condition == MAIN else (condition,)
    samples = {c: {s["question_id"]: s for s in files.samples(c)} for c in named}
    for c, found in samples.items():
        lacking = next((q for q, sample in found.items() if "score" not in sample), None)
        if lacking is not None:
            raise DataError(f"{folder}, {c}: question {lacking} has no score")
    if not all(samples.values()):
        raise UserError(f"the run in {folder} has no questions")
    return _Scored(name, condition, files, answers, samples)


def _calibration(name: str, run: _Scored) -> _Scored:
    """Return the run to choose thresholds on, if it says something about the other one."""
    folder, condition = folder_and_condition(name)
    if condition == MAIN and not folder.exists():
        dataset = run.files.results["dataset"]["name"]
        raise UserError(
            f"--calibrate {name}: no such folder; a finished run is expected, such as that of "
            f"ravqa run --dataset {dataset} --split {folder.name} --output DIR"
        )
    found = _read(name)
    first, second = run.files, found.files
    if run.answers["metric"] != found.answers["metric"]:
        raise UserError(
            f"{run.name} was scored by {run.answers['metric']}, {name} by "
            f"{found.answers['metric']}: a threshold of one says nothing about the other"
        )
    # A ranking from a file is another file for every split.
    mine, theirs = (
        {part: value for part, value in files.config["fingerprints"].items() if part != "retriever"}
        for files in (first, second)
    )
    differing = [part for part in (mine | theirs) if mine.get(part) != theirs.get(part)]
    names = [files.results["provenance"]["retriever"] for files in (first, second)]
    differing += ["retriever"] if names[0] != names[1] else []
    if differing:
        raise UserError(
            f"{run.name} and {name} are of different pipelines ({', '.join(sorted(differing))}): a "
            "threshold of one says nothing about the other"
        )
    if run.condition != found.condition:
        ran = [condition_name(each.condition, names[0]) for each in (run, found)]
        raise UserError(
            f"the answers of {run.name} are {ran[0]}, those of {name} {ran[1]}: a threshold of "
            "one says nothing about the other"
        )
    shared = {"question": len(_questions(run.first) & _questions(found.first))}
    if first.config["dataset"]["name"] == second.config["dataset"]["name"]:
        shared["image"] = len(_images(run.first) & _images(found.first))
    for what, both in shared.items():
        if both:
            raise UserError(
                f"--calibrate {name}: {number_of(both, what)} of it "
                f"{'is' if both == 1 else 'are'} in {run.name} too; thresholds are chosen on "
                "other questions, about other images, than they are applied to"
            )
    return found


def _questions(samples: Mapping[Id, Sample]) -> set[tuple[str, str]]:
    """Return ids with the questions' words, since data of one's own may be numbered alike."""
    return {(str(q), sample["question"]) for q, sample in samples.items()}


def _images(samples: Mapping[Id, Sample]) -> set[str]:
    return {str(s["image_id"]) for s in samples.values() if s["image_id"] is not None}


def _print(
    found: SelectiveResults, run: _Scored, calibration: _Scored | None, console: Console
) -> None:
    dataset, section = found["dataset"], found["selective"]
    count = number_of(section["questions"], "question")
    of = f"{dataset['label']}, {dataset['split']}, {count}"
    retriever = run.files.results["provenance"]["retriever"]
    console.out.print(outcome_table(section, lambda c: short_name(c, retriever), of))
    if section["confidences"]:
        console.out.print(confidence_table(section, of))
    else:
        console.note("the samples have no confidence that differs between questions")
    if calibration is not None and found["thresholds"]:
        chosen = f"{calibration.name}, {number_of(len(calibration.first), 'question')}"
        console.out.print(threshold_table(found["thresholds"], chosen, of))
