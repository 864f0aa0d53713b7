"""Options of answering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ravqa.answering.choices import ChoiceRule
from ravqa.answering.extract import Extraction
from ravqa.core.errors import UserError
from ravqa.core.settings import LocalPath, Names, Options, Strict, TemplateName, Text

DEFAULT_RULE = "joint_max"

# Part of a file's name in some datasets.
SplitName = Annotated[str, Names("a local path", lambda value: str(value).isidentifier())]


class ExamplesConfig(Strict):
    """Which questions a few-shot prompt shows as examples; see `ravqa.answering.examples`.

    Attributes:
        dataset: name of the dataset that they come from.
        data: its folder or file; None for the bundled sample.
        split: its split, one that no score is reported on; null for all of your own file.
        options: the dataset's own options.
        count: number of examples.
        choose: at random (the same ones for the same seed), or the first ones.
        seed: seed of the random choice.
        passages: number of passages per example, if the question has passages.
    """

    dataset: Text = "okvqa"
    data: LocalPath | None = None
    split: SplitName | None = "train"
    options: Options = Field(default_factory=dict)
    count: int = Field(default=4, ge=1)
    choose: Literal["random", "first"] = "random"
    seed: int = Field(default=0, ge=0)
    passages: int = Field(default=1, ge=0)


class AnsweringConfig(Strict):
    """Options of answering that every decision rule has; a rule's `Config` adds its own.

    Attributes:
        prompt: a template in `prompts/`, or a file.
        decision: the rule by which k passages become one answer (see `ravqa.answering.rules`).
        passages: number of retrieved passages that are read (K).
        passage_images: most pictures of passages in one prompt, beside the question's image; the
            prompt names each where its passage is.
        article_images: a list or folder with pictures of articles (`ravqa.corpora.galleries`), for
            passages that have none of their own.
        article_folder: where the pictures of a list lie; null for the list's own folder.
        examples: examples in few-shot prompts.
        extract: rules from the generation to the short answer.
        choices: the rule by which a generation becomes one of the question's choices, if there are
            any (see `ravqa.answering.choices`); "free" keeps the short answer.
        self_check: a template in `prompts/`, or a file, by which the reader is asked whether its
            answer is right; None to not ask. Its probability of yes is kept as a confidence.
        cache: whether generations are kept on disk, so that the same prompt to the same reader is
            answered once.
    """

    prompt: TemplateName = "short-answer"
    decision: Text = DEFAULT_RULE
    passages: int = Field(default=1, ge=1)
    passage_images: int = Field(default=0, ge=0)
    article_images: LocalPath | None = None
    article_folder: LocalPath | None = None
    examples: ExamplesConfig | None = None
    extract: Extraction = Extraction()
    choices: ChoiceRule = "named"
    self_check: TemplateName | None = None
    cache: bool = True

    @model_validator(mode="after")
    def _check_pictures(self) -> Self:
        if self.article_images is not None and not self.passage_images:
            raise UserError("answering.article_images are shown only if passage_images is set")
        if self.article_folder is not None and self.article_images is None:
            raise UserError("answering.article_folder is that of a list: set article_images to it")
        return self

    def problems(self) -> Sequence[str]:
        """Pictures of articles that are not there."""
        paths = (self.article_images, self.article_folder)
        return [f"no such file or folder: {p}" for p in paths if p is not None and not p.exists()]
