"""Options of answering."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ravqa.answering.extract import Extraction
from ravqa.answering.merging import Merge
from ravqa.answering.priors import Prior
from ravqa.core.errors import UserError
from ravqa.core.settings import LocalPath, Names, Options, Strict, TemplateName, Text

Decision = Literal["none", "top1", "concat", "joint_max", "marginal", "vote", "mixture"]


# Part of a file's name in some datasets.
SplitName = Annotated[str, Names("a local path", lambda value: str(value).isidentifier())]


class ExamplesConfig(Strict):
    """Which questions a few-shot prompt shows as examples; see `ravqa.answering.examples`.

    Attributes:
        dataset: name of the dataset that they come from.
        data: its folder or file; None for the bundled sample.
        split: its split, null for all of a file of yours; one that no score is reported on.
        options: the dataset's own options.
        count: how many examples.
        choose: by lot (the same one for the same seed), or the first ones.
        seed: of the lot.
        passages: how many passages an example shows, where the question has passages.
    """

    dataset: Text = "okvqa"
    data: LocalPath | None = None
    split: SplitName | None = "train"
    options: Options = Field(default_factory=dict)
    count: int = Field(default=4, ge=1)
    choose: Literal["lot", "first"] = "lot"
    seed: int = Field(default=0, ge=0)
    passages: int = Field(default=1, ge=0)


class AnsweringConfig(Strict):
    """Options. Those of another decision rule than the chosen one have no effect.

    Attributes:
        prompt: a template in `prompts/`, or a file.
        decision: how k passages become one answer (see `ravqa.answering.rules`).
        passages: how many of the retrieved passages are read (K).
        prior: p(z | x) of `joint_max`, `marginal` and `mixture`: softmax of the passages' scores,
            which are a reranker's where one gave them, of the retriever's own scores
            ("retrieval"), or the same for every passage.
        temperature: T of that softmax; higher makes the passages more equal.
        empty_passage: no passage competes as one more passage (`joint_max`, `marginal`, `vote`,
            `mixture`); its score is the mean of the others' scores.
        marginal: `fast` counts an answer under the passages that it was read from, `thorough`
            scores every answer under every passage.
        merge: which answers are the same one (`marginal`, `vote`).
        prune: `mixture` goes on with the fewest passages that hold this share of the posterior;
            None keeps all.
        batch_size: prompts that `mixture` steps through at a time; at least one question's.
        examples: of few-shot prompts.
        extract: rules from the generation to the short answer.
        cache: keep generations on disk; the same prompt to the same reader is answered once.
    """

    prompt: TemplateName = "short-answer"
    decision: Decision = "joint_max"
    passages: int = Field(default=1, ge=1)
    prior: Prior = "scores"
    temperature: float = Field(default=1.0, gt=0)
    empty_passage: bool = False
    marginal: Literal["fast", "thorough"] = "fast"
    merge: Merge = "vqa"
    prune: float | None = Field(default=None, gt=0, le=1)
    batch_size: int = Field(default=16, ge=1)
    examples: ExamplesConfig | None = None
    extract: Extraction = Extraction()
    cache: bool = True

    @model_validator(mode="after")
    def _check_passages(self) -> Self:
        if self.decision == "top1" and self.passages > 1:
            raise UserError(
                f"answering.passages is {self.passages}, but answering.decision top1 reads one: "
                "set the decision to joint_max or concat"
            )
        return self
