"""The answerer: from questions and their passages to answers, driving any reader.

What a prompt says is its template's matter (`ravqa.answering.prompt`), how k passages become one
answer the decision rule's (`ravqa.answering.rules`), which part of a generation is the answer the
extraction's (`ravqa.answering.extract`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from ravqa.answering.config import AnsweringConfig
from ravqa.answering.fitting import Pair, fit
from ravqa.answering.priors import log_priors
from ravqa.answering.prompt import Example, PromptTemplate
from ravqa.answering.rules import RULES
from ravqa.answering.rules.base import Case, PerPassage
from ravqa.answering.streaming import AnswerStream
from ravqa.core.errors import UserError
from ravqa.core.records import Answer, Question
from ravqa.core.settings import fingerprint
from ravqa.readers.base import Generation, Prompt, Reader
from ravqa.readers.cached import CachedReader


class Answerer:
    """Answers questions from passages with a reader.

    Attributes:
        reader: as it was given.
        cached: the reader with its cache; it counts what the reader really did.
        asked: the texts of the last call's prompts, by the hashes that drafts have of them.
        fingerprint: changes with prompt, settings and reader; examples apart.
    """

    def __init__(self, config: AnsweringConfig, reader: Reader):
        """Load the prompt.

        Raises:
            UserError: no such prompt or a bad one; a rule that the reader has not the ability for.
        """
        self.config = config
        self.template = load_template(config)
        self.rule = RULES[config.decision](config)
        for ability, why in self.rule.needs.items():
            if ability not in reader.abilities:
                raise UserError(
                    f"answering.decision {config.decision} {why}, which this reader does not "
                    "give: choose top1, concat or vote"
                )
        self.reader = reader
        self.cached = CachedReader(reader, keep=config.cache)
        self.asked: dict[str, str] = {}
        self.fingerprint = fingerprint(
            "answerer/2",
            config.model_dump(exclude={"cache", "prompt", "examples", "batch_size"}),
            self.template.source,
            reader.fingerprint,
        )

    def answer(
        self,
        questions: Sequence[Question],
        passages: Sequence[Sequence[Pair]],
        examples: Sequence[Example] = (),
    ) -> list[Answer]:
        """One answer per question.

        Args:
            passages: per question its retrieved ones, best first.
            examples: what a few-shot prompt shows, the same for all questions.
        """
        self.asked = {}
        cases, cut = self._cases(questions, passages, examples)
        self.asked = {
            key: prompt.text
            for case in cases
            for key, prompt in zip(case.keys, case.prompts, strict=True)
        }
        several = len(cases) > 1  # of which one may fail after the reader was asked about all
        with self.cached.held() if several else nullcontext():
            answers = self.rule.answer(cases, self.cached)
        return [replace(answer, cut=n) for answer, n in zip(answers, cut, strict=True)]

    def check_streams(self) -> None:
        """Raise UserError unless answers can be given while they are written."""
        if "stream" not in self.reader.abilities:
            raise UserError(f"the reader {self.reader.weights} does not stream")
        if isinstance(self.rule, PerPassage) and self.rule.compares:
            raise UserError(
                f"answering.decision {self.config.decision} chooses when all passages have been "
                "read: what streams is one prompt: top1, concat, or none"
            )

    def stream(
        self, question: Question, passages: Sequence[Pair], examples: Sequence[Example] = ()
    ) -> AnswerStream:
        """One answer while it is written; arguments as those of `answer`.

        Raises:
            UserError: see `check_streams`.
        """
        self.check_streams()
        [case], [cut] = self._cases([question], [passages], examples)

        def extract(text: str) -> Answer:
            return replace(self.rule.single(case, Generation(text)), cut=cut)

        return AnswerStream(self.cached.stream(case.prompts[0]), extract)

    def _cases(
        self,
        questions: Sequence[Question],
        passages: Sequence[Sequence[Pair]],
        examples: Sequence[Example],
    ) -> tuple[list[Case], list[int]]:
        """What the rule is given, and how many of each question's passages did not fit."""
        wanted: list[list[list[Pair]]] = [
            self.rule.groups(found[: self.config.passages]) if found else [[]] for found in passages
        ]
        owners = [i for i, groups in enumerate(wanted) for _ in groups]

        def render(place: int, group: Sequence[Pair]) -> Prompt:
            question = questions[owners[place]]
            image = question.image if "images" in self.reader.abilities else None
            text = self.template.render(
                question, [passage for _, passage in group], examples, image=image is not None
            )
            return Prompt(text, image)

        fitted = iter(fit([group for groups in wanted for group in groups], render, self.reader))
        asked, cut = [], []
        for groups in wanted:
            prompts = [next(fitted) for _ in groups]
            cut.append(sum(map(len, groups)) - sum(len(group) for group, _ in prompts))
            # A prompt that has lost its only passage says nothing that the others do not.
            own = [p for p, before in zip(prompts, groups, strict=True) if p[0] or not before]
            asked.append(own or prompts[:1])
        keys = iter(self.cached.keys([prompt for own in asked for _, prompt in own]))
        cases = [
            Case(
                question=question,
                prompts=tuple(prompt for _, prompt in own),
                keys=tuple(next(keys) for _ in own),
                passage_ids=tuple(tuple(hit.passage_id for hit, _ in group) for group, _ in own),
                log_priors=self._log_priors([group for group, _ in own]),
            )
            for question, own in zip(questions, asked, strict=True)
        ]
        return cases, cut

    def _log_priors(self, groups: Sequence[Sequence[Pair]]) -> tuple[float, ...]:
        prior = self.config.prior
        scores: list[float | None] = [None] * len(groups)
        for k, group in enumerate(groups):
            if group:
                hit = group[0][0]
                scores[k] = hit.as_retrieved if prior == "retrieval" else hit.score
        return tuple(log_priors(scores, prior, self.config.temperature))


def load_template(config: AnsweringConfig) -> PromptTemplate:
    """The prompt of the settings.

    Raises:
        UserError: no such prompt or a bad one; one that shows examples without any, or the reverse.
    """
    template = PromptTemplate.load(config.prompt)
    if "examples" in template.uses and config.examples is None:
        raise UserError(
            f"prompt {template.name} shows examples: set answering.examples, for instance "
            "{dataset: okvqa, split: train, count: 4}"
        )
    if config.examples is not None and "examples" not in template.uses:
        raise UserError(f"answering.examples is set, but prompt {template.name} shows no examples")
    return template
