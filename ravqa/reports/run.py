"""What a report is made of: a run's folder, and the questions and passages that it was about.

The folder alone is enough for a report. Dataset and corpus are read once more for photos, passages
and prompts; what is no longer there, or no longer the same, is left out, and the report says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ravqa.collections import trust
from ravqa.collections.trust import Setting
from ravqa.core.errors import UserError
from ravqa.core.records import Question
from ravqa.core.settings import read_yaml
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.pages import Remarks
from ravqa.datasets.base import Dataset, DatasetRequest, Problems, load_dataset, parse_options
from ravqa.metrics.prrecall import DEFAULT_RULE, RULES, Rule
from ravqa.runs.console import CONDITIONS
from ravqa.runs.folder import MAIN, check_version, read_samples

_WHY = (
    "the run was made elsewhere, and what its settings name is not read: ravqa report --data and "
    "--corpus say where they are, --trust-settings reads what is named"
)

Samples = Mapping[int | str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        results: results.json.
        config: config.yaml.
        samples: of each condition, the run itself first.
        questions: the dataset's questions by id, as far as they are those of the run.
        corpus: the run's passages; None if they are not there, or not the same.
        notes: what is missing, for the reader of a report.
        withheld: settings of config.yaml that name something outside of the folder, were not given
            on this machine, and are not followed.
    """

    folder: Path
    results: Mapping[str, Any]
    config: Mapping[str, Any]
    samples: Mapping[str, Samples]
    questions: Mapping[int | str, Question] = field(default_factory=dict)
    corpus: Corpus | None = None
    notes: Sequence[str] = ()
    withheld: Sequence[Setting] = ()

    @property
    def main(self) -> Samples:
        """The run's own samples."""
        return self.samples[MAIN]

    def turned(self, question: int | str) -> int | None:
        """What retrieval did to an answer: 1 if it became right (helped), -1 if wrong (hurt).

        Right as in `ravqa compare`. 0 where it stayed what it was; None where it is not known.
        """
        without = self.samples.get("none", {}).get(question)
        if without is None:
            return None
        before, after = without.get("right"), self.main[question].get("right")
        return None if before is None or after is None else after - before

    @property
    def rule(self) -> Rule:
        """The rule of PRRecall that the run was scored by."""
        rule = (self.results.get("retrieval") or {}).get("rule")
        return rule if rule in RULES else DEFAULT_RULE

    @property
    def pipeline(self) -> Mapping[str, Any]:
        """The pipeline's settings."""
        settings = self.config.get("pipeline")
        return settings if isinstance(settings, dict) else {}


def read_run(
    folder: Path,
    *,
    data: Path | None = None,
    corpus: Sequence[Path] = (),
    trust_settings: bool = False,
) -> Run:
    """Read a finished run.

    Args:
        data: where the dataset is now; None for where the run found it.
        corpus: where the passages are now; none for where the run found them.
        trust_settings: read what config.yaml names wherever the folder comes from, now and later.

    Raises:
        UserError: there is no finished run in the folder, or its files cannot be read.
    """
    path = folder / "results.json"
    if not path.is_file():
        what = "the run is not finished" if (folder / "config.yaml").is_file() else "no run"
        raise UserError(f"{folder}: {what}: there is no results.json")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}") from None
    if not isinstance(results, dict) or not isinstance(results.get("dataset"), dict):
        raise UserError(f"{path}: not the results of a run")
    check_version(results, folder)
    config = read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    samples = _samples(folder)
    notes: list[str] = []
    if trust_settings:
        trust.remember(config)
    withheld = () if trust.is_mine(config) else tuple(trust.outside_of_run(config))
    unread = {setting.path for setting in withheld}
    unread -= {"dataset.data"} if data else set()
    unread -= {"corpus.files"} if corpus else set()
    dataset = found = None
    if not any(path.startswith("dataset.") for path in unread):
        dataset = _dataset(config, data, notes)
    else:
        notes.append(f"The dataset could not be read again, so photos are missing: {_WHY}.")
    if "corpus.files" not in unread:
        found = _corpus(config, corpus, dataset, notes)
    else:
        notes.append(f"The passages could not be read again, so their texts are missing: {_WHY}.")
    return Run(
        folder=folder,
        results=results,
        config=config,
        samples=samples,
        questions=_questions(dataset, samples[MAIN], notes),
        corpus=found,
        notes=notes,
        withheld=withheld,
    )


def _samples(folder: Path) -> dict[str, Samples]:
    main = folder / "samples.jsonl"
    if not main.is_file():
        raise UserError(f"{folder}: no samples.jsonl: this is not the folder of a run")
    samples: dict[str, Samples] = {MAIN: read_samples(main)}
    found = {path.name.split(".")[1]: path for path in sorted(folder.glob("samples.*.jsonl"))}
    for name in [
        *(n for n in CONDITIONS if n in found),
        *(n for n in found if n not in CONDITIONS),
    ]:
        samples[name] = read_samples(found[name])
    return samples


def _dataset(config: Mapping[str, Any], data: Path | None, notes: list[str]) -> Dataset | None:
    known = config.get("dataset") or {}
    where = data or (Path(known["data"]) if known.get("data") else None)
    try:
        dataset = load_dataset(
            str(known.get("name")),
            DatasetRequest(
                data=where,
                split=known.get("split"),
                limit=known.get("limit"),
                problems=Problems("skip"),
                need_images=False,
                options=parse_options(known.get("options") or ()),
            ),
        )
    except UserError as e:
        notes.append(f"The dataset could not be read again, so photos are missing: {e}.")
        return None
    return dataset


def _questions(
    dataset: Dataset | None, samples: Samples, notes: list[str]
) -> dict[int | str, Question]:
    """Those of the dataset's questions that the run asked, word for word."""
    found: dict[int | str, Question] = {}
    if dataset is None:
        return found
    for question in dataset.questions:
        sample = samples.get(question.question_id)
        if sample is not None and sample.get("question") == question.question:
            found[question.question_id] = question
    if len(found) < len(samples):
        notes.append(
            f"{len(samples) - len(found):,} of {len(samples):,} questions are no longer in the "
            "dataset as they were asked: their photos are missing."
        )
    return found


def _corpus(
    config: Mapping[str, Any], files: Sequence[Path], dataset: Dataset | None, notes: list[str]
) -> Corpus | None:
    known = config.get("corpus") or {}
    if not known.get("fingerprint"):
        return None
    paths = list(files) or [Path(path) for path in known.get("files") or ()]
    skips = (config.get("dataset") or {}).get("on_error") == "skip"
    remarks = Remarks("skip" if skips else "fail")
    try:
        corpus = (
            Corpus.read(*paths, remarks=remarks) if paths else dataset.corpus if dataset else None
        )
    except UserError as e:
        notes.append(f"The passages could not be read again, so their texts are missing: {e}.")
        return None
    if corpus is None:
        notes.append("The passages came with the dataset, so their texts are missing too.")
        return None
    if corpus.fingerprint != known["fingerprint"]:
        notes.append(
            "The passages are no longer those of the run (their fingerprint differs), so their "
            "texts are left out."
        )
        return None
    return corpus
