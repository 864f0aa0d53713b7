"""A study's file: a base pipeline, its variations and the data; and the resulting runs.

pipeline: sample                  # a name in pipelines/, or a file
set: {answering.passages: 5}      # changes that every variant has
axes:
  top_k: [5, 20]                  # a key of the pipeline and its values,
  decision rule:                  # or levels with names, each of any keys
    first passage: {answering.decision: top1, answering.passages: 1}
    best of five: {answering.decision: joint_max}
design: grid                      # every combination; or one-at-a-time
variants:                         # beside the axes
  no passages: {retriever: {name: none}}
reference: top_k=20, first passage
datasets: [{name: okvqa, limit: 100}]
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ravqa.core.errors import UserError, near_matches
from ravqa.core.factory import Key, model_keys, part_config, shared_keys
from ravqa.core.locations import STUDIES, packaged
from ravqa.core.registry import table
from ravqa.core.settings import (
    Strict,
    as_override,
    fingerprint,
    inline_yaml,
    read_yaml,
    split_override,
    validate,
)
from ravqa.datasets.base import OnError
from ravqa.runs.finished import Measure
from ravqa.runs.options import RunRequest
from ravqa.runs.plan import PipelinePlan, plan_pipeline
from ravqa.studies.options import StudyRequest

_LABEL = 48  # longest value in a variant's name
_FOLDER = 80  # longest name of a run's folder


class StudyDataset(Strict):
    """Questions of a study, as options of `ravqa run`.

    Attributes:
        name: name of the dataset.
        label: name in tables; the dataset's name if None.
        data: its folder or file; None for the bundled sample.
        corpus: passage files.
        corpus_options: how they are read, as `--corpus-option`.
        split: its split; None for the dataset's default.
        limit: only the first so many questions; None for all.
        options: the dataset's own options, as `--dataset-option`.
        metric_options: options of its answer metric, as `--metric-option`.
        on_error: stop at broken records and images ("fail"), or leave their questions out ("skip").
    """

    name: str
    label: str | None = None
    data: Path | None = None
    corpus: tuple[Path, ...] = ()
    corpus_options: dict[str, Any] = Field(default_factory=dict)
    split: str | None = None
    limit: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    metric_options: dict[str, Any] = Field(default_factory=dict)
    on_error: OnError = "fail"


class StudyConfig(Strict):
    """A study's file.

    Attributes:
        description: one sentence about the study, for lists.
        pipeline: the base: a name in `pipelines/`, or a file.
        set: changes to the base in every variant, by key.
        axes: levels per axis: a list of values, for a key of that name; or a mapping from names to
            changes. The key `pipeline` selects another base.
        design: "grid" runs every combination of levels; "one-at-a-time" the first levels together,
            and each other level with the first ones of the other axes.
        exclude: combinations to leave out, each a level per axis; unnamed axes match any level.
        variants: further variants, as changes by name.
        reference: name of the variant that the others are compared with; the first if None.
        datasets: the questions of every variant.
        metrics: columns, see `ravqa.runs.finished`; empty for score, PRRecall@5 and seconds.
        controls: run with every variant, as `ravqa run --controls`.
        retrieval_only: whether to run without a reader.
        seed: of the controls, bootstrap intervals and permutation tests.
    """

    description: str = ""
    pipeline: str = "sample"
    set: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, Any] = Field(default_factory=dict)
    design: Literal["grid", "one-at-a-time"] = "grid"
    exclude: tuple[dict[str, Any], ...] = ()
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    reference: str | None = None
    datasets: tuple[StudyDataset, ...] = Field(default=(StudyDataset(name="okvqa"),), min_length=1)
    metrics: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    retrieval_only: bool = False
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class Level:
    """One level of an axis.

    Attributes:
        label: its part of a variant's name.
        value: its value, if the axis is a plain list.
    """

    label: str
    changes: Mapping[str, Any]
    value: Any = None

    @property
    def text(self) -> str:
        """Text that distinguishes it from the axis's other levels: 2 for "words=2"."""
        return self.label if self.value is None else self.label.partition("=")[2]


@dataclass(frozen=True, slots=True, eq=False)
class PlannedRun:
    """A variant on a dataset.

    Attributes:
        folder: name of its folder among the study's runs.
        request: the request for `ravqa.runs.run.run`, without the output folder.
        pipeline: the variant's pipeline.
        parts: keys of the parts that it builds (see `ravqa.core.factory.shared_keys`).
        models: keys of the parts that load a model on this machine.
        reader: key of the reader, equal for runs with the same reader.
        servers: addresses that the reader asks; empty without a reader, or if it asks none.
    """

    variant: str
    dataset: str
    folder: str
    request: RunRequest
    pipeline: PipelinePlan
    parts: frozenset[Key]
    models: frozenset[Key]
    reader: str
    servers: frozenset[str]

    @property
    def name(self) -> str:
        """Name of the run, for messages."""
        return f"{self.variant!r} on {self.dataset}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A study, ready to run.

    Attributes:
        title: the file's name.
        variants: their names, in the order of the tables, each with its level of every axis; no
            levels for variants beside the axes.
        datasets: their labels.
        runs: runs of every variant on every dataset, dataset by dataset.
    """

    title: str
    config: StudyConfig
    variants: Mapping[str, Mapping[str, str]]
    reference: str
    datasets: Sequence[str]
    measures: Sequence[Measure]
    runs: Sequence[PlannedRun]


def load_plan(request: StudyRequest) -> Plan:
    """Read a study's file and validate every variant's pipeline without building it.

    Raises:
        UserError: an unknown key, axis, level or variant (near ones are listed), or a variant whose
            pipeline does not validate (the variant is named).
    """
    path = _find(request.study)
    config = validate(StudyConfig, read_yaml(path), path.name)
    config = _changed(config, request, path.name)
    try:
        made = list(_variants(config))
        variants = {name: changes for name, changes, _ in made}
        labels = _labels(config.datasets)
        runs = list(_runs(config, variants, labels))
        reference = config.reference if config.reference is not None else next(iter(variants))
        if reference not in variants:
            raise UserError(
                f"no reference variant {reference!r}: {near_matches(reference, variants)}"
            )
        measures = [Measure.parse(metric) for metric in config.metrics]
        _check_measures(measures, runs, config)
    except UserError as e:
        raise UserError(f"{path.name}: {e}") from None
    levels = {name: of_axes for name, _, of_axes in made}
    return Plan(path.stem, config, levels, reference, labels, measures, runs)


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    found = packaged(STUDIES, f"{name}.yaml")
    if found is None:
        known = [p.stem for p in STUDIES.glob("*.yaml")]
        raise UserError(f"no study {name!r}: {near_matches(name, known)}")
    return found


def _changed(config: StudyConfig, changes: StudyRequest, where: str) -> StudyConfig:
    """Return the study with the command line's changes to its data."""
    new: dict[str, Any] = {}
    if changes.data is not None:
        new["data"] = changes.data
    if changes.corpus:
        new["corpus"] = tuple(changes.corpus)
    if changes.split is not None:
        new["split"] = changes.split
    if new and len(config.datasets) > 1:
        raise UserError(
            f"{where} has {len(config.datasets)} datasets: --data, --corpus and --split are for "
            "studies with one"
        )
    if changes.limit is not None:
        if changes.limit < 1:
            raise UserError(f"--limit {changes.limit}: at least one question is needed")
        new["limit"] = changes.limit
    datasets = tuple(dataset.model_copy(update=new) for dataset in config.datasets)
    given = dict(split_override(override) for override in changes.overrides)
    return config.model_copy(update={"datasets": datasets, "set": {**config.set, **given}})


# -- variants ------------------------------------------------------------------------------------


def _variants(config: StudyConfig) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Yield names, changes (those of `set` first), and the level of every axis."""
    seen: set[str] = set()
    axes = {name: _levels(name, given) for name, given in config.axes.items()}
    _check_keys(axes)
    for name, levels in _combinations(config, axes):
        texts = dict(zip(axes, (level.text for level in levels), strict=True))
        yield _checked(name, seen), _together(config, levels), texts
    for name, changes in config.variants.items():
        yield _checked(name, seen), {**config.set, **changes}, {}
    if not seen:
        raise UserError("nothing to vary: axes or variants are needed")


def _checked(name: str, seen: set[str]) -> str:
    if name in seen:
        raise UserError(f"two variants are called {name!r}")
    if not name.strip():
        raise UserError("a variant needs a name")
    seen.add(name)
    return name


def _together(config: StudyConfig, levels: Sequence[Level]) -> dict[str, Any]:
    changes = dict(config.set)
    for level in levels:
        changes |= level.changes
    return changes


def _levels(axis: str, given: Any) -> list[Level]:
    if isinstance(given, list) and given:
        levels = [Level(_label(axis, value), {axis: value}, value) for value in given]
    elif isinstance(given, dict) and given:
        for label, changes in given.items():
            if not isinstance(changes, dict):
                raise UserError(
                    f"axes.{axis}.{label}: a mapping from keys to values is expected, got "
                    f"{inline_yaml(changes)}"
                )
        levels = [Level(str(label), changes) for label, changes in given.items()]
    else:
        raise UserError(
            f"axes.{axis}: a list of values, or a mapping from names to changes, is expected"
        )
    labels = [level.label for level in levels]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(
            f"axes.{axis}: two values would be called {twice!r}: give them names, as in "
            f"{axis.rpartition('.')[2]}: {{NAME: {{{axis}: VALUE}}}}"
        )
    return levels


def _label(axis: str, value: Any) -> str:
    """ "passages=5" for the key answering.passages, "index=exact" for retriever.index.name."""
    steps = axis.split(".")
    key = steps[-2] if steps[-1] == "name" and len(steps) > 1 else steps[-1]
    named = isinstance(value, dict) and "name" in value
    text = str(value["name"]) if named else inline_yaml(value)
    if len(text) > _LABEL:
        raise UserError(
            f"axes.{axis}: {text[:_LABEL]}... is too long for a name: give the value one, as in "
            f"{key}: {{NAME: {{{axis}: VALUE}}}}"
        )
    return f"{key}={text}"


def _check_keys(axes: Mapping[str, Sequence[Level]]) -> None:
    """Reject two axes that set the same key, since one would override the other."""
    owner: dict[str, str] = {}
    for axis, levels in axes.items():
        for key in {key for level in levels for key in level.changes}:
            if owner.setdefault(key, axis) != axis:
                raise UserError(f"the axes {owner[key]!r} and {axis!r} both set {key}")


def _combinations(
    config: StudyConfig, axes: Mapping[str, Sequence[Level]]
) -> Iterator[tuple[str, Sequence[Level]]]:
    """Yield every combination of the design that is not excluded, with its name.

    A name leaves out the axes with one level, unless there are no others.
    """
    if not axes:
        return
    varied = {id(level) for levels in axes.values() if len(levels) > 1 for level in levels}
    excluded = [_exclusion(given, axes) for given in config.exclude]
    used: set[int] = set()
    for levels, named in _design(config.design, list(axes.values())):
        labels = dict(zip(axes, (level.label for level in levels), strict=True))
        hit = [
            i
            for i, exclusion in enumerate(excluded)
            if all(labels[axis] == label for axis, label in exclusion.items())
        ]
        used.update(hit)
        if not hit:
            telling = [level for level in named if id(level) in varied] or named
            yield ", ".join(level.label for level in telling), levels
    for i, given in enumerate(config.exclude):
        if i not in used:
            raise UserError(f"exclude.{i}: there is no combination {inline_yaml(given)}")


def _design(
    design: str, axes: Sequence[Sequence[Level]]
) -> Iterator[tuple[Sequence[Level], Sequence[Level]]]:
    """Yield combinations of levels, each with the levels in its name."""
    if design == "grid":
        for combined in itertools.product(*axes):
            yield combined, combined
        return
    first = [levels[0] for levels in axes]
    yield first, first
    for place, levels in enumerate(axes):
        for level in levels[1:]:
            yield [*first[:place], level, *first[place + 1 :]], [level]


def _exclusion(given: Mapping[str, Any], axes: Mapping[str, Sequence[Level]]) -> dict[str, str]:
    """Return labels by axis, from levels given by their label or value."""
    labels = {}
    for axis, wanted in given.items():
        if axis not in axes:
            raise UserError(f"exclude: no axis {axis!r}: {near_matches(str(axis), axes)}")
        found = [x.label for x in axes[axis] if wanted in (x.label, x.value) and wanted is not None]
        if not found:
            known = [level.label for level in axes[axis]]
            raise UserError(
                f"exclude: the axis {axis!r} has no level {inline_yaml(wanted)}: "
                f"{near_matches(str(wanted), known)}"
            )
        labels[axis] = found[0]
    return labels


# -- runs ----------------------------------------------------------------------------------------


def _labels(datasets: Sequence[StudyDataset]) -> list[str]:
    labels = [dataset.label or dataset.name for dataset in datasets]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(f"two datasets are called {twice!r}: give one of them a label")
    return labels


def _runs(
    config: StudyConfig,
    variants: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
) -> Iterator[PlannedRun]:
    folders: set[str] = set()
    same: dict[tuple[str, str], str] = {}
    for label, dataset in zip(labels, config.datasets, strict=True):
        for variant, given in variants.items():
            keys = dict(given)
            request = RunRequest(
                dataset=dataset.name,
                data=dataset.data,
                corpus=dataset.corpus,
                split=dataset.split,
                pipeline=str(keys.pop("pipeline", config.pipeline)),
                overrides=[as_override(k, v) for k, v in keys.items()],
                limit=dataset.limit,
                retrieval_only=config.retrieval_only,
                controls=config.controls,
                on_error=dataset.on_error,
                seed=config.seed,
                dataset_options=[as_override(k, v) for k, v in dataset.options.items()],
                metric_options=[as_override(k, v) for k, v in dataset.metric_options.items()],
                corpus_options=[as_override(k, v) for k, v in dataset.corpus_options.items()],
            )
            try:
                pipeline = plan_pipeline(request)
            except UserError as e:
                raise UserError(f"variant {variant!r}: {e}") from None
            twin = same.setdefault((label, fingerprint(pipeline.config.model_dump())), variant)
            if twin != variant:
                raise UserError(f"the variants {twin!r} and {variant!r} have the same settings")
            name = variant if len(labels) == 1 else f"{label} {variant}"
            yield PlannedRun(
                variant=variant,
                dataset=label,
                folder=_folder(name, folders),
                request=request,
                pipeline=pipeline,
                parts=shared_keys(pipeline.config),
                models=model_keys(pipeline.config),
                reader=""
                if config.retrieval_only
                else fingerprint(pipeline.config.reader.model_dump()),
                servers=frozenset()
                if config.retrieval_only
                else frozenset(
                    part_config(table("readers"), pipeline.config.reader, "reader").servers()
                ),
            )


def _folder(name: str, taken: set[str]) -> str:
    """Return a folder name like the run's, in plain characters; unique, ignoring case."""
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", "-", name).strip("-.")[:_FOLDER] or "run"
    folder, number = plain, 1
    while folder.lower() in taken:
        number += 1
        folder = f"{plain}-{number}"
    taken.add(folder.lower())
    return folder


def _check_measures(
    measures: Sequence[Measure], runs: Sequence[PlannedRun], config: StudyConfig
) -> None:
    deepest = max(run.pipeline.config.top_k for run in runs)
    for measure in measures:
        if measure.k is not None and measure.k > deepest:
            raise UserError(f"metrics: {measure.key}, but top_k is {deepest} at the most")
        if measure.of_answers and config.retrieval_only:
            raise UserError(f"metrics: {measure.key} needs answers, but retrieval_only is set")
    keys = [measure.key for measure in measures]
    if len(set(keys)) < len(keys):
        raise UserError("metrics: a metric is named twice")
