"""Interface of dataset loaders: requests, datasets, and reports of broken records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, TypeVar, get_args

import yaml

from ravqa.core.contracts import raised_by
from ravqa.core.errors import ContractError, DataError, UserError, first_line, near_matches
from ravqa.core.records import Question
from ravqa.core.settings import Strict, validate
from ravqa.core.yaml_loader import load_yaml, reason_of
from ravqa.corpora.corpus import Corpus
from ravqa.datasets import DATASETS
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerMetric

OnError = Literal["fail", "skip"]
_LISTED = 10  # missing images that an error message lists


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that cannot be used: its location and the reason."""

    where: str
    reason: str
    question_id: int | str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Problems:
    """A collector of broken records, which raises or skips; bad images are counted first.

    Attributes:
        unavailable: names of images that are known to be missing; their questions are always
            skipped.
    """

    def __init__(self, on_error: OnError = "fail"):
        self.on_error = on_error
        self.found: list[Problem] = []
        self.unavailable: frozenset[str] = frozenset()
        self._images: list[Problem] = []

    def report(self, where: str, reason: str, question_id: int | str | None = None) -> None:
        """Report a broken record.

        Raises:
            DataError: unless broken records are skipped.
        """
        problem = Problem(where, reason, question_id)
        if self.on_error == "fail":
            raise DataError(f"{problem} (--on-error skip leaves such questions out)")
        self.found.append(problem)

    def image(
        self,
        where: str,
        reason: str,
        question_id: int | str | None = None,
        names: Iterable[object] = (),
    ) -> None:
        """Record a question whose image is missing or broken; `count_images` decides.

        Args:
            names: what the image is called: its id, its file.
        """
        if not self.unavailable.isdisjoint(_image_name(str(name)) for name in names):
            self.found.append(Problem(where, f"{reason} (listed as unavailable)", question_id))
        else:
            self._images.append(Problem(where, reason, question_id))

    def count_images(self) -> None:
        """Report all recorded images, after the last question.

        Raises:
            DataError: there are any, and broken records are not skipped.
        """
        missing, self._images = self._images, []
        if missing and self.on_error == "fail":
            first, *others = missing
            count = ""
            if others:
                listed = "; ".join(str(p) for p in others[: _LISTED - 1])
                more = f"; and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
                count = f" ({len(missing)} questions have no usable image, also: {listed}{more})"
            raise DataError(f"{first}{count} (--on-error skip leaves such questions out)")
        self.found += missing


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """A request to a dataset loader.

    Attributes:
        data: folder with the published files, a file, or "hf:NAME" for a dataset on the hub; None
            for the bundled sample.
        split: name of the split; None for the loader's default.
        limit: load only the first `limit` questions.
        need_images: check that every image exists and can be decoded.
        find_images: look for images at all; if False, a loader may leave them out.
        options: the loader's own options, checked against its `Options`.
    """

    data: Path | None = None
    split: str | None = None
    limit: int | None = None
    problems: Problems = field(default_factory=Problems)
    need_images: bool = True
    find_images: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


class ImageOptions(Strict):
    """Options of every dataset with images.

    Attributes:
        images: folder that holds the images; None for the data folder.
        unavailable: a text file with the ids or names of images that nobody can get any more, one
            per line (# begins a remark). Questions about those that are missing are left out and
            listed; any other missing image still stops the run.
    """

    images: Path | None = None
    unavailable: Path | None = None


O = TypeVar("O", bound=ImageOptions)  # noqa: E741


def options_of(model: type[O], request: DatasetRequest) -> O:
    """Return the request's validated options.

    Raises:
        UserError: an unknown option (similar ones are listed), an invalid value, or an image folder
            that does not exist.
    """
    options = validate(model, request.options, "--dataset-option")
    if options.images is not None and not options.images.is_dir():
        raise UserError(f"--dataset-option images={options.images}: no such folder")
    if options.unavailable is not None:
        request.problems.unavailable = _names_in(options.unavailable)
    return options


def _names_in(path: Path) -> frozenset[str]:
    if not path.is_file():
        raise UserError(f"--dataset-option unavailable={path}: no such file")
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return frozenset(_image_name(line) for line in lines if line)


def _image_name(image_id: str) -> str:
    """Return an image's id without folder and suffix, as files and lists differ in these."""
    return PurePosixPath(image_id).stem


def parse_options(texts: Sequence[str], option: str = "--dataset-option") -> dict[str, Any]:
    """Parse "KEY=VALUE" strings into a mapping; values are read as YAML.

    Args:
        option: the command-line option, for messages.

    Raises:
        UserError: no "=", an empty key, a key given twice, or a value that is not YAML.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"{option} {text!r}: key=value is expected")
        if key in options:
            raise UserError(f"{option}: {key!r} is given twice")
        try:
            options[key] = load_yaml(value)
        except (yaml.YAMLError, ValueError, RecursionError) as e:  # 2020-13-45 is not a date
            raise UserError(f"{option} {text!r}: the value is not YAML{reason_of(e)}") from None
    return options


RetrievalName = Literal["recall_at_k", "pseudo_recall_at_k", "article_recall_at_k"]
_RETRIEVAL: tuple[str, ...] = get_args(RetrievalName)


@dataclass(frozen=True, slots=True)
class RetrievalMetric:
    """A retrieval metric of `ravqa.metrics` and the K at which a benchmark reports it."""

    name: RetrievalName
    k: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """Questions with their scoring rule.

    Attributes:
        name: registered name.
        label: its name in results; a sample's label says so.
        questions: in order; large sets are stored on disk (`ravqa.corpora.disk`).
        sample: True for the bundled sample, whose scores are not benchmark results.
        metric: name of a registered answer metric (`ravqa ls metrics`); None without answers.
        retrieval_metrics: how the benchmark reports retrieval, the metric of its tables first.
        corpus: passages that come with the dataset, if any.
        info: facts for the results: version of the files, answer field, setting, ...
        notes: remarks for the user, printed once.
        question_types: names of `Question.question_type` codes.
        metric_options: options of the metric, checked against its `Config`.
        left_out: ids of the split's questions that the metric does not count, so that they are not
            among the questions; predictions for them are ignored.
        submission: name of the metric whose format predictions are written in, if the dataset has
            no reference answers.

    Raises:
        UserError: no such metric (similar names are listed), or it has no such option.
    """

    name: str
    label: str
    split: str
    questions: Sequence[Question]
    metric: str | None
    fingerprint: str
    sample: bool = False
    corpus: Corpus | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    question_types: Mapping[str, str] = field(default_factory=dict)
    retrieval_metrics: Sequence[RetrievalMetric] = ()
    metric_options: Mapping[str, Any] = field(default_factory=dict)
    submission: str | None = None
    left_out: Collection[int | str] = ()

    def __post_init__(self) -> None:
        """Refuse a metric that does not exist before anything is scored."""
        for name in {self.metric, self.submission} - {None}:
            METRICS.check(str(name), f"dataset {self.name}")
        for retrieval in self.retrieval_metrics:
            if retrieval.name not in _RETRIEVAL:
                raise UserError(
                    f"dataset {self.name}: no retrieval metric {retrieval.name!r}: "
                    f"{near_matches(retrieval.name, _RETRIEVAL)}"
                )
        if self.metric is not None:
            self.answer_metric  # noqa: B018 (its options are checked)
        elif self.metric_options:
            raise UserError(f"dataset {self.name}: it has no metric to take options")

    @property
    def answer_metric(self) -> AnswerMetric:
        """The metric with its options.

        Raises:
            UserError: the dataset has no reference answers.
        """
        if self.metric is None:
            raise UserError(f"the split {self.split} has no answers to score with")
        part = METRICS.get(self.metric)
        config = validate(part.Config, self.metric_options, self.metric)
        with raised_by("metric", part, "when built"):
            metric: AnswerMetric = part(config)
        return metric

    @property
    def submission_form(self) -> AnswerMetric:
        """The metric whose format predictions are written in."""
        metric: AnswerMetric = METRICS.get(self.metric or self.submission or "vqa_accuracy")()
        return metric


class Loader(Protocol):
    """A function that reads a dataset, as registered in `DATASETS`."""

    def __call__(self, request: DatasetRequest, /) -> Dataset:
        """Return the requested questions.

        A record that cannot be used is reported to `request.problems`, which stops or skips.

        Raises:
            UserError: a file or option that the request names does not exist.
            DataError: a broken record, unless these are skipped.
        """
        ...


def load_dataset(name: str, request: DatasetRequest) -> Dataset:
    """Load the dataset registered as `name`.

    Raises:
        UserError: no dataset has this name; see also `Loader`.
        DataError: see `Loader`.
    """
    loader = DATASETS.get(name)
    try:
        found = loader(request)
    except (UserError, OSError):
        raise
    except Exception as e:
        if loader.__module__.startswith("ravqa."):
            raise
        raise _broken(name, f"it raises {type(e).__name__}: {first_line(e)}") from e
    if not isinstance(found, Dataset):
        raise _broken(name, f"it returned a {type(found).__name__}, not a Dataset")
    seen: set[str] = set()
    questions: Sequence[Any] = found.questions
    for question in questions:
        if not isinstance(question, Question):
            got = type(question).__name__
            raise _broken(name, f"it returned a question of type {got}, not a Question")
        if str(question.question_id) in seen:
            raise _broken(name, f"it returned two questions with the id {question.question_id}")
        seen.add(str(question.question_id))
    return found


def _broken(name: str, what: str) -> ContractError:
    return ContractError(f"the loader of the dataset {name!r} breaks its contract: {what}")


def pick_split(
    wanted: str | None,
    default: str,
    aliases: Mapping[str, str],
    present: Sequence[str],
    where: Path,
) -> tuple[str, list[str]]:
    """Return the split to use, and remarks about the choice.

    If none is requested, use the default if its files exist, else the only split whose files exist.

    Args:
        aliases: accepted names to official ones, including the official ones.
        present: official names whose files are in `where`.

    Raises:
        UserError: no such split, or its files do not exist.
    """
    found = ", ".join(present)
    if wanted is None:
        if default in present or not present:
            return default, []
        if len(present) == 1:
            return present[0], [f"{where} has only the split {found}, which is used"]
        raise UserError(f"{where} has the splits {found}: choose one with --split")
    if wanted not in aliases:
        raise UserError(f"no split {wanted!r}: {near_matches(wanted, aliases)}")
    split = aliases[wanted]
    if split not in present:
        raise UserError(f"{where} has no files of split {split}; it has: {found or 'no split'}")
    return split, []
