"""Sources of a report: a run's folder, and its questions and passages.

The folder alone is enough for a report. Dataset and corpus are read again for photos, passages and
prompts; what is missing or has changed is left out, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ravqa.collections import trust
from ravqa.collections.trust import Setting
from ravqa.core.errors import UserError
from ravqa.core.records import Question
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.remarks import Remarks
from ravqa.datasets.base import Dataset, DatasetRequest, Problems, load_dataset, parse_options
from ravqa.evaluation.schema import RunConfig, RunResults, Sample
from ravqa.metrics.prrecall import DEFAULT_RULE, Rule
from ravqa.runs.finished import RunFiles
from ravqa.runs.folder import MAIN, samples_name
from ravqa.runs.passages import read_corpus

_WHY = (
    "the run was made elsewhere, so what its settings name is not read: give it with ravqa report "
    "--data and --corpus, or read it with --trust-settings"
)

Samples = Mapping[int | str, Sample]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        results: content of results.json.
        config: content of config.yaml.
        samples: samples of each condition, the run itself first.
        questions: the dataset's questions by id, those that the run asked.
        corpus: the run's passages; None if missing or changed.
        notes: what is missing, for the reader of a report.
        withheld: settings of config.yaml that name something outside the folder, were not given on
            this machine, and are not followed.
    """

    folder: Path
    results: RunResults
    config: RunConfig
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
        """Return retrieval's effect on an answer: 1 if it became right (helped), -1 if wrong
        (hurt).

        Right as in `ravqa compare`. 0 if unchanged; None if unknown.
        """
        without = self.samples.get("none", {}).get(question)
        if without is None:
            return None
        before, after = without.get("right"), self.main[question].get("right")
        return None if before is None or after is None else after - before

    @property
    def rule(self) -> Rule:
        """PRRecall rule that the run was scored by."""
        retrieval = self.results["retrieval"]
        return retrieval["rule"] if retrieval else DEFAULT_RULE


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
        UserError: as `RunFiles.read`.
        DataError: a file of the run is broken.
    """
    files = RunFiles.read(folder)
    config = files.config
    samples: dict[str, Samples] = {
        name: {sample["question_id"]: sample for sample in files.samples(name)}
        for name in files.conditions
    }
    notes = [
        f"{samples_name(name)} is missing, so the answers of the control {name} are not shown."
        for name in files.missing
    ]
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
    if not any(path.startswith("corpus.") for path in unread):
        found = _corpus(config, corpus, dataset, notes)
    else:
        notes.append(f"The passages could not be read again, so their texts are missing: {_WHY}.")
    return Run(
        folder=folder,
        results=files.results,
        config=config,
        samples=samples,
        questions=_questions(dataset, samples[MAIN], notes),
        corpus=found,
        notes=notes,
        withheld=withheld,
    )


def _dataset(config: RunConfig, data: Path | None, notes: list[str]) -> Dataset | None:
    known = config["dataset"]
    where = data or (Path(known["data"]) if known["data"] else None)
    try:
        dataset = load_dataset(
            known["name"],
            DatasetRequest(
                data=where,
                split=known["split"],
                limit=known["limit"],
                problems=Problems("skip"),
                need_images=False,
                options=parse_options(known["options"]),
            ),
        )
    except UserError as e:
        notes.append(f"The dataset could not be read again, so photos are missing: {e}.")
        return None
    return dataset


def _questions(
    dataset: Dataset | None, samples: Samples, notes: list[str]
) -> dict[int | str, Question]:
    """Return those of the dataset's questions that the run asked, word for word."""
    found: dict[int | str, Question] = {}
    if dataset is None:
        return found
    for question in dataset.questions:
        sample = samples.get(question.question_id)
        if sample is not None and sample["question"] == question.question:
            found[question.question_id] = question
    if len(found) < len(samples):
        notes.append(
            f"{len(samples) - len(found):,} of {len(samples):,} questions are no longer in the "
            "dataset as they were asked: their photos are missing."
        )
    return found


def _corpus(
    config: RunConfig, files: Sequence[Path], dataset: Dataset | None, notes: list[str]
) -> Corpus | None:
    known = config["corpus"]
    if known["fingerprint"] is None:
        return None
    paths = list(files) or [Path(path) for path in known["files"]]
    remarks = Remarks("skip" if config["dataset"]["on_error"] == "skip" else "fail")
    try:
        options = known.get("options", [])
        corpus = (
            read_corpus(paths, options, remarks) if paths else dataset.corpus if dataset else None
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
