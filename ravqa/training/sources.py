"""Settings of training data: a registered dataset, or a file of examples."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ravqa.core.settings import LocalPath, Options, Strict, Text
from ravqa.datasets.base import OnError

Positives = Literal["auto", "known", "pseudo"]


class SourceConfig(Strict):
    """Where questions with relevant passages come from: `dataset` or `file`.

    Attributes:
        dataset: name of a registered dataset (`ravqa ls datasets`).
        data: its folder, as `--data`; null for the bundled sample.
        split, limit: as for `ravqa run`; null for the dataset's default split, and all questions.
        options: the dataset's own options.
        file: a JSON-lines file of examples (docs/training.md describes it).
        on_error: of a dataset, if a question or its image is broken: stop, or leave it out.
        corpus: files of passages; empty for those that come with the dataset or file.
        positives: which passages are relevant: known ones ("known"), those that hold an answer
            ("pseudo"; of more than 100, 100 at random), or for each question the known ones if it
            has some ("auto").
        instruction: put before questions without their own; null for none.
    """

    dataset: Text | None = None
    data: LocalPath | None = None
    split: Text | None = None
    limit: int | None = Field(default=None, ge=1)
    options: Options = Field(default_factory=dict)
    on_error: OnError = "fail"
    file: LocalPath | None = None
    corpus: tuple[LocalPath, ...] = ()
    positives: Positives = "auto"
    instruction: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.dataset is None) == (self.file is None):
            raise ValueError("a source needs either dataset or file")
        given = [k for k in ("data", "split", "options") if getattr(self, k)]
        if self.file is not None and given:
            raise ValueError(f"{given[0]} belongs to a dataset, not to a file")
        return self

    @property
    def name(self) -> str:
        """How messages and results call it."""
        return self.dataset or str(self.file)


class TrainingSource(SourceConfig):
    """A source of training examples.

    Attributes:
        negatives: hard negatives: what `ravqa mine` wrote, or the folder of a run.
        ratio: share of the examples drawn from this source, up to a common factor; null for its
            number of examples.
    """

    negatives: LocalPath | None = None
    ratio: float | None = Field(default=None, gt=0)
