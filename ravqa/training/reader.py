"""Training of a pipeline's reader on its own prompts: an adapter, or all of its weights.

Each question has the prompts that the pipeline would ask the reader, and the answers that its
passages hold are the targets (`ravqa.training.targets`). The loss is the mean of -log p over the
targets' tokens of a batch, their end marks included. Validation answers held-out questions as the
pipeline does and scores them by their dataset's rule.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ravqa.answering.answerer import Answerer
from ravqa.answering.rules import answering_config
from ravqa.core.errors import UserError, import_extra
from ravqa.core.outcomes import Failure
from ravqa.core.progress import Progress
from ravqa.core.settings import Strict, Text, fingerprint, load_pipeline
from ravqa.core.stored import parsed_json
from ravqa.evaluation.answers import score_answers
from ravqa.evaluation.sections import DECIMALS, Id
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.statistics.intervals import Estimate, estimate, estimate_of_difference
from ravqa.pipeline import Pipeline, check_settings
from ravqa.readers import READERS
from ravqa.readers.adapters import EXTRA, LoraConfig, add_adapter, merged_weights, train_all
from ravqa.readers.local import LocalReader
from ravqa.runs.console import Console
from ravqa.training.command import run_task
from ravqa.training.options import TrainRequest
from ravqa.training.reader_data import (
    Found,
    Passages,
    ReaderExample,
    Source,
    SourceConfig,
    check_apart,
    check_images,
    find_passages,
    make_examples,
    read_source,
)
from ravqa.training.sampling import Drawn
from ravqa.training.settings import LoopConfig, read_settings
from ravqa.training.targets import TargetConfig
from ravqa.training.task import Task

_STATE = "reader.json"
_CHECKED = 3  # prompts on which the forward pass is compared with answering
_ANSWERED = 64  # questions that are answered between two reports of progress


class TrainSource(SourceConfig):
    """Questions to train on.

    Attributes:
        ratio: share of the examples drawn from here, up to a common factor; null for as many as it
            has.
    """

    ratio: float | None = Field(default=None, gt=0)


class ReaderTraining(Strict):
    """The settings of `ravqa train reader`.

    Attributes:
        pipeline: a file, or the name of a pipeline in `pipelines/`: its reader is trained, on its
            prompts.
        set: changes to it, as "key.path=value".
        train: the questions to train on.
        validation: questions that are answered to see what training changes; null for none.
        targets: which answers are wanted.
        method: train a LoRA adapter, or all weights.
        lora: options of the adapter.
        merged: save the whole model with the adapter in it, instead of the adapter alone.
        vision: with method full, train the vision encoder too.
        batch_size: most examples per forward pass; a batch of `loop` is read in such parts, with
            the same loss.
        checkpointing: compute a layer's values again in the backward pass instead of keeping them:
            less memory, more time.
        loop: the loop's settings.
    """

    pipeline: Text = "sample"
    set: tuple[Text, ...] = ()
    train: tuple[TrainSource, ...] = Field(min_length=1)
    validation: SourceConfig | None = None
    targets: TargetConfig = TargetConfig()
    method: Literal["lora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()
    merged: bool = False
    vision: bool = False
    batch_size: int = Field(default=4, ge=1)
    checkpointing: bool = False
    loop: LoopConfig

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.method == "full" and (self.merged or "lora" in self.model_fields_set):
            raise ValueError("merged and lora are settings of the method lora")
        if self.method == "lora" and self.vision:
            raise ValueError("vision is a setting of the method full: name layers under lora")
        return self


@dataclass(frozen=True, slots=True)
class _Held:
    """Held-out questions, and their passages under each condition."""

    source: Source
    conditions: Mapping[Passages, Found]


Scores = dict[str, dict[Id, float]]
"""Each question's score, 0 to 1, by condition."""


class ReaderTask(Task):
    """Trains the reader of a pipeline."""

    kind: ClassVar[str] = "reader"

    def __init__(self, config: ReaderTraining, where: str, *, progress: Progress):
        """Read the questions, find their passages, and load the reader.

        Args:
            where: the file of the settings, for messages.

        Raises:
            MissingExtraError: a package is missing.
            UserError: any mistake in the settings or the data; nothing to train on.
        """
        self.config = config
        if config.method == "lora":
            import_extra("peft", EXTRA, why="training a LoRA adapter")
        settings, name = pipeline_settings(config)
        train = [read_source(own, f"{where}: train.{i}") for i, own in enumerate(config.train)]
        held = None
        if config.validation is not None:
            held = read_source(config.validation, f"{where}: validation")
            check_apart(train, held)
        pipeline = Pipeline.from_config(settings, where=name)
        self._answerer, self.reader = _local(pipeline)
        if pipeline.supports_images:
            train = [check_images(source) for source in train]
            held = check_images(held) if held else None
        self._adapted: Any = None
        self.model = self.reader.network
        if config.method == "lora":
            self._adapted = add_adapter(self.reader, config.lora, seed=config.loop.seed)
        else:
            train_all(self.reader, vision=config.vision)
        self.examples: list[list[ReaderExample]] = []
        self.facts: dict[str, Any] = {
            "pipeline": config.pipeline,
            "reader": self.reader.weights,
            "method": config.method,
            "train": [self._prepare(pipeline, source, progress) for source in train],
        }
        self.sizes = [len(own) for own in self.examples]
        ratios = [source.ratio for source in config.train]
        self.ratios = [size if r is None else r for size, r in zip(self.sizes, ratios, strict=True)]
        seed = config.loop.seed
        self._held: _Held | None = None
        self.metric = "loss"
        if held is not None:
            assert config.validation is not None
            kinds = config.validation.passages
            found = {k: find_passages(pipeline, held, k, seed, progress) for k in kinds}
            self._held = _Held(held, found)
            self.metric = kinds[0]
        self._kept: dict[str, Scores] = {}  # of the validations "before", "best" and "last"
        self._highest = -math.inf
        self._fingerprints = {
            **pipeline.fingerprints,
            "train": fingerprint([source.fingerprint for source in train]),
            "validation": held.fingerprint if held else "",
        }
        self._check(progress)
        if config.checkpointing:
            # Older releases of transformers call it otherwise.
            enable = getattr(self.model, "activation_checkpointing_enable", None)
            (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})

    def _prepare(self, pipeline: Pipeline, source: Source, progress: Progress) -> Mapping[str, Any]:
        """Add the examples of a source; return what results tell about it.

        Raises:
            UserError: there are none.
        """
        seed = self.config.loop.seed
        examples: dict[Any, ReaderExample] = {}  # without passages, several conditions ask the same
        left_out: dict[str, int] = {}
        if source.broken:
            left_out["broken questions"] = source.broken
        for which in source.config.passages:
            found = find_passages(pipeline, source, which, seed, progress)
            made, missing = make_examples(found, self._answerer, self.config.targets)
            made, too_long = self._fitting(made)
            for reason, count in {**missing, **too_long}.items():
                left_out[reason] = left_out.get(reason, 0) + count
            examples |= {(e.question_id, e.prompt, e.target): e for e in made}
        if not examples:
            why = "; ".join(f"{reason}: {count}" for reason, count in left_out.items())
            raise UserError(f"{source.where}: nothing to train on ({why})")
        self.examples.append(list(examples.values()))
        return {
            "dataset": source.dataset.label,
            "split": source.dataset.split,
            "questions": len({e.question_id for e in examples.values()}),
            "prompts": len(examples),
            "targets_in_passages": sum(e.held for e in examples.values()),
            "left_out": left_out,
        }

    def _fitting(
        self, examples: Sequence[ReaderExample]
    ) -> tuple[list[ReaderExample], Mapping[str, int]]:
        """Return the examples that the reader can read and answer, and how many are too long."""
        from ravqa.readers.training import target_lengths

        prompts = [e.prompt for e in examples]
        targets = target_lengths(self.reader, prompts, [e.target for e in examples])
        context, longest = self.reader.context, self.reader.max_new_tokens
        kept: list[ReaderExample] = []
        left_out = {"a prompt is too long": 0, "a target is longer than an answer": 0}
        for example, count, length in zip(
            examples, self.reader.count_tokens(prompts), targets, strict=True
        ):
            if length > longest:
                left_out["a target is longer than an answer"] += 1
            elif isinstance(count, Failure) or (context is not None and count + length > context):
                left_out["a prompt is too long"] += 1
            else:
                kept.append(replace(example, tokens=length))
        return kept, {reason: count for reason, count in left_out.items() if count}

    def _check(self, progress: Progress) -> None:
        """Refuse a model whose forward pass is not what it answers with."""
        from ravqa.readers.training import check_training

        progress("checking the reader", 0, 1)
        self.model.eval()
        examples = [example for own in self.examples for example in own]
        check_training(self.reader, [example.prompt for example in examples[:_CHECKED]])
        self.reader.forget()
        progress("checking the reader", 1, 1)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Settings, and fingerprints of pipeline and data."""
        return {
            **self.config.model_dump(mode="json", exclude={"loop", "batch_size", "checkpointing"}),
            "fingerprints": self._fingerprints,
        }

    # --- training

    def backward(self, batch: Sequence[Drawn], weight: float, seed: int) -> dict[str, float]:
        """Add the gradients of `weight` times the batch's loss, a part at a time."""
        import torch

        torch.manual_seed(seed)
        scale = self._scale(batch)
        # Parts of similar length have little padding.
        own = sorted(self._own(batch), key=lambda example: len(example.prompt.text))
        # Padding changes what some models compute.
        size = 1 if "batches" in self.reader.switched_off else self.config.batch_size
        total = 0.0
        for start in range(0, len(own), size):
            with self.autocast():
                part = self._sum(own[start : start + size]) * scale
            (part * weight).backward()
            total += float(part.detach())
        return {"loss": total}

    def _own(self, batch: Sequence[Drawn]) -> list[ReaderExample]:
        """Return the examples of this process's part of a batch."""
        return [self.examples[source][place] for source, place in self.share(batch)]

    def _scale(self, batch: Sequence[Drawn]) -> float:
        """Return what a sum of losses is multiplied with, so that all processes' mean is right."""
        tokens = sum(self.examples[source][place].tokens for source, place in batch)
        return self.world / tokens

    def _sum(self, examples: Sequence[ReaderExample]) -> Any:
        """Return the summed -log p of the targets' tokens: a scalar tensor."""
        from ravqa.readers.training import answer_losses, training_batches

        prompts, targets = [e.prompt for e in examples], [e.target for e in examples]
        batches = training_batches(self.reader, prompts, targets)
        return sum(answer_losses(self.reader, batch).sum() for batch in batches)

    # --- validation

    def evaluate(self, progress: Progress) -> Mapping[str, float]:
        """Return the score of the validation under each condition, in percent."""
        if self._held is None:
            return {}
        self.reader.forget()
        scores: Scores = {}
        for name, found in self._held.conditions.items():
            scores[name] = self._scores(name, found, progress)
        self.reader.forget()
        metric = self._held.source.dataset.answer_metric
        figures: dict[str, float] = {}
        for name, found in self._held.conditions.items():
            own = [scores[name][question.question_id] for question in found.questions]
            figures[name] = float(metric.summary(found.questions, own)["score"])
        self._keep(scores, figures)
        return figures

    def _scores(self, name: str, found: Found, progress: Progress) -> dict[Id, float]:
        """Return each question's score, 0 to 1."""
        assert self._held is not None
        # The cache of answers knows nothing of weights that change.
        answerer = Answerer(self._answerer.config.model_copy(update={"cache": False}), self.reader)
        records: list[AnswerRecord] = []
        total = len(found.questions)
        for start in range(0, total, _ANSWERED):
            part = slice(start, start + _ANSWERED)
            pairs = found.passages[part]
            rows = [i for i, own in enumerate(pairs) if not isinstance(own, Failure)]
            answers = answerer.answer(
                [found.questions[part][i] for i in rows],
                [pairs[i] for i in rows],  # type: ignore[misc]
                found.examples,
            )
            made = dict(zip(rows, answers, strict=True))
            for i in range(len(pairs)):
                answer = made.get(i)
                if answer is None or isinstance(answer, Failure):
                    records.append(AnswerRecord(None))
                else:
                    records.append(AnswerRecord(answer.text, answer.raw))
            progress(f"answering ({name})", len(records), total)
        scored = score_answers(self._held.source.dataset, found.questions, records)
        return {
            question.question_id: 0.0 if isinstance(score, Failure) else score
            for question, score in zip(found.questions, scored, strict=True)
        }

    def _keep(self, scores: Scores, figures: Mapping[str, float]) -> None:
        """Keep the scores of the first, the best and the last validation, for the results."""
        if not self._kept and self.config.loop.validate_every is not None:
            self._kept["before"] = scores  # the loop validates before its first step
        else:
            self._kept["last"] = scores
        if figures[self.metric] > self._highest:
            self._highest = figures[self.metric]
            self._kept["best"] = scores
        self._tell()

    def _tell(self) -> None:
        """Put the kept scores into the results, and into the notes of the report."""
        found = self.facts["validation"] = self._validation()
        self.facts["notes"] = [
            f"{name}: " + "; ".join(f"{when} {_shown(own)}" for when, own in scores.items())
            for name, scores in found["conditions"].items()
        ]
        if "best" in self._kept:
            self.facts["notes"].append(
                "The best checkpoint was chosen on these questions, so that its score is too high "
                "for others."
            )

    def _validation(self) -> Mapping[str, Any]:
        """Return the kept scores as results: percent, with 95 % intervals that resample images."""
        assert self._held is not None
        dataset, seed = self._held.source.dataset, self.config.loop.seed
        conditions: dict[str, Any] = {}
        for name, found in self._held.conditions.items():
            images = {q.question_id: q.image_id for q in found.questions}
            splits = {q.question_id: q.split or "" for q in found.questions}
            percents = {
                when: {i: 100 * score for i, score in kept[name].items()}
                for when, kept in self._kept.items()
            }
            own: dict[str, Any] = {}
            for when, scores in percents.items():
                clusters = [images[i] for i in scores]
                interval = dataset.answer_metric.interval(
                    list(scores.values()), [splits[i] for i in scores], clusters, seed=seed
                )
                score = estimate(interval, clusters)
                own[when] = {
                    "score": round(score.value, DECIMALS),
                    "interval_95": score.bounds(DECIMALS),
                }
                if when != "before" and "before" in percents:
                    test = dataset.answer_metric.paired_test(
                        scores, percents["before"], splits, images, seed=seed
                    )
                    change = estimate_of_difference(test, scores, percents["before"], images)
                    own[when] |= {
                        "change": round(change.value, DECIMALS),
                        "change_interval_95": change.bounds(DECIMALS),
                        "p_value": round(test.p_value, 5),
                    }
            conditions[name] = own
        return {
            "dataset": dataset.label,
            "split": dataset.split,
            "metric": dataset.metric,
            "questions": len(dataset.questions),
            "images": len({q.image_id for q in dataset.questions}),
            "conditions": conditions,
        }

    # --- checkpoints

    def save(self, folder: Path) -> None:
        """Write an adapter in peft's format, or the model in transformers' format."""
        if self._adapted is None:
            self.reader.save(folder)
        elif self.config.merged:
            self.reader.save(folder, merged_weights(self.reader))
        else:
            self._adapted.save_pretrained(folder, save_embedding_layers=False)

    def write_state(self, folder: Path) -> None:
        """Write the scores of the validations so far."""
        kept = {
            when: {name: list(own.items()) for name, own in scores.items()}
            for when, scores in self._kept.items()
        }
        state = {"highest": self._highest if kept else None, "scores": kept}
        (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")

    def read_state(self, folder: Path) -> None:
        """Read the scores of the validations so far."""
        state = parsed_json((folder / _STATE).read_bytes())
        self._kept = {
            when: {name: dict(map(tuple, own)) for name, own in scores.items()}
            for when, scores in state["scores"].items()
        }
        if self._kept:
            self._highest = float(state["highest"])
            self._tell()


def _shown(score: Mapping[str, Any]) -> str:
    """Return a score, and its change, with their intervals: "18.7 [12.7, 25.3]"."""
    text = Estimate(score["score"], *score["interval_95"]).text()
    if "change" not in score:
        return text
    low, high = score["change_interval_95"]
    between = "" if low is None else f" [{low:+.1f}, {high:+.1f}]"
    return f"{text}, change {score['change']:+.1f}{between}"


def pipeline_settings(config: ReaderTraining) -> tuple[dict[str, Any], str]:
    """Return the settings of the pipeline whose reader is trained, and where they were read.

    Raises:
        UserError: a mistake in them; a reader that cannot be trained.
    """
    settings, where = load_pipeline(config.pipeline, config.set)
    checked = check_settings(settings, where)
    reader = checked.reader
    if not issubclass(READERS.get(reader.name), LocalReader):
        raise UserError(
            f"{where}: the reader {reader.name} cannot be trained: transformers-llm, "
            "transformers-vlm and transformers-seq2seq can"
        )
    if answering_config(checked.answering, f"{where}: answering").passage_images:
        raise UserError(
            f"{where}: answering.passage_images: readers are trained without pictures of passages: "
            "set it to 0"
        )
    # Weights that train are kept in float32; `loop.precision` says how they are multiplied.
    if config.method == "full" and reader.options.get("dtype", "auto") == "auto":
        settings["reader"] = {**settings["reader"], "dtype": "float32"}
    if config.loop.device != "auto":
        settings["reader"] = {**settings["reader"], "device": config.loop.device}
    return settings, where


def _local(pipeline: Pipeline) -> tuple[Answerer, LocalReader]:
    """Return a pipeline's answerer and its reader, of which is known that it is a local one."""
    assert pipeline.answerer is not None
    assert isinstance(pipeline.answerer.reader, LocalReader)
    return pipeline.answerer, pipeline.answerer.reader


def train_reader(request: TrainRequest, console: Console) -> Path:
    """Train a reader as a settings file says, and return the folder of the training.

    Raises:
        UserError: any mistake in the options, the settings or the data.
    """
    config = read_settings(request, ReaderTraining)
    pipeline_settings(config)

    def make() -> Task:
        return ReaderTask(config, Path(request.config).name, progress=console.progress)

    return run_task(request, config.loop, console, ReaderTask.kind, make)
