"""The answerer: from questions and their passages to answers, with any reader.

The template determines what a prompt says (`ravqa.answering.prompt`), the decision rule how k
passages become one answer (`ravqa.answering.rules`), and the extraction which part of a generation
is the answer (`ravqa.answering.extract`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ravqa.answering.config import AnsweringConfig
from ravqa.answering.fitting import Pair, fit
from ravqa.answering.prompt import Example, PromptTemplate
from ravqa.answering.rules import answering_config, build_rule, reader_problem, rule_class
from ravqa.answering.rules.base import Case
from ravqa.answering.self_check import load_self_check, self_checks
from ravqa.answering.streaming import AnswerStream
from ravqa.core.contracts import check_each, raised_by
from ravqa.core.errors import PromptError, UserError, broken
from ravqa.core.failures import by_halves
from ravqa.core.outcomes import Failure
from ravqa.core.records import Answer, Pictures, Question
from ravqa.core.settings import fingerprint
from ravqa.corpora.galleries import ArticlePictures, gallery_key
from ravqa.images.decode import unusable_images
from ravqa.readers.base import Generation, Prompt, Reader
from ravqa.readers.cached import CachedReader

_PICTURES = ("passage_images", "article_images", "article_folder")


class _Counts(NamedTuple):
    """What an answer says of how its prompts were made; see `Answer`."""

    cut: int
    neutralised: int
    pictures: Pictures | None


class Answerer:
    """Answers questions from passages with a reader.

    Attributes:
        reader: the reader as given.
        cached: the reader with its cache; it counts what the reader itself made.
        rule: the decision rule.
        asked: the texts of the prompts of this thread's last call, by the hashes that drafts refer
            to.
        fingerprint: changes with prompt, settings and reader, but not with examples.
    """

    def __init__(self, config: AnsweringConfig, reader: Reader):
        """Load the prompt.

        Args:
            config: options of the decision rule that it names, or only those of answering.
            reader: answers the prompts.

        Raises:
            UserError: an unknown or bad rule or prompt; a rule that needs what the reader does not
                provide.
        """
        rule = rule_class(config.decision)
        self.config = (
            config
            if isinstance(config, rule.Config)
            else answering_config(config.model_dump(exclude_unset=True))
        )
        self.template = load_template(config)
        self._self_check = load_self_check(config.self_check) if config.self_check else None
        self.rule = build_rule(self.config)
        if problem := reader_problem(self.config, reader.abilities):
            raise UserError(problem)
        self.reader = reader
        self.cached = CachedReader(reader, keep=config.cache)
        self._asked = threading.local()
        self._articles = ArticlePictures(config.article_images, config.article_folder)
        apart = {"cache", "prompt", "examples", "batch_size", "self_check"}
        # Not settings when runs were first resumed.
        apart |= {name for name in _PICTURES if not getattr(config, name)}
        self.fingerprint = fingerprint(
            "answerer/3",
            config.model_dump(mode="json", exclude=apart),
            self.template.source,
            reader.fingerprint,
            *([self._self_check.source] if self._self_check else []),
            *([gallery_key(config.article_images)] if config.article_images else []),
        )

    @property
    def asked(self) -> dict[str, str]:
        """See the class."""
        found: dict[str, str] = getattr(self._asked, "prompts", {})
        return found

    @property
    def thread_safe(self) -> bool:
        """Whether several threads may call `answer` at the same time."""
        return self.reader.thread_safe and self.rule.thread_safe

    @property
    def asks_once(self) -> bool:
        """Whether `answer` asks the reader in one call for all questions."""
        return self.rule.asks_once and self._self_check is None

    @property
    def choice_rule(self) -> str:
        """The name of the rule by which an answer becomes a choice, for questions with choices."""
        return self.config.decision if self.rule.needs_choices else self.config.choices

    def answer(
        self,
        questions: Sequence[Question],
        passages: Sequence[Sequence[Pair]],
        examples: Sequence[Example] = (),
    ) -> list[Answer | Failure]:
        """Return one answer per question, in order; a failed question does not affect the others.

        Args:
            questions: the questions.
            passages: retrieved passages per question, best first.
            examples: examples in few-shot prompts, the same for all questions.

        Raises:
            DataError: an image cannot be read.
            UserError: the reader cannot be used at all, or breaks its contract.
        """
        given = list(zip(questions, passages, strict=True))
        made = self._made(given, examples)
        good = [case for case in made if not isinstance(case, Failure)]
        cases = [case for case, _ in good]
        self._asked.prompts = {
            key: prompt.text
            for case in cases
            for key, prompt in zip(case.keys, case.prompts, strict=True)
        }

        def decide(rows: Sequence[int]) -> list[Answer | Failure]:
            found = self.rule.answer([cases[i] for i in rows], self.cached)
            return check_each("decision rule", self.rule, "answer", found, len(rows), _problem)

        why = f"answering.decision {self.config.decision}"
        answered = iter(zip(by_halves(range(len(cases)), decide, why), good, strict=True))
        found = [case if isinstance(case, Failure) else _joined(*next(answered)) for case in made]
        return found if self._self_check is None else self._checked(found, given, self._self_check)

    def _checked(
        self,
        found: Sequence[Answer | Failure],
        given: Sequence[tuple[Question, Sequence[Pair]]],
        template: PromptTemplate,
    ) -> list[Answer | Failure]:
        """Return answers with the reader's own verdict on each, from the passages that it read.

        An answer on which the reader gives none keeps its place, unless the reader is gone.
        """
        out = list(found)
        answers = {i: answer for i, answer in enumerate(found) if isinstance(answer, Answer)}
        verdicts = self_checks(
            template,
            self.cached,
            [given[i][0] for i in answers],
            [
                [pair for pair in given[i][1] if pair[0].passage_id in answer.passage_ids]
                for i, answer in answers.items()
            ],
            [answer.text for answer in answers.values()],
        )
        for (i, answer), verdict in zip(answers.items(), verdicts, strict=True):
            if not isinstance(verdict, Failure):
                out[i] = replace(answer, self_check=verdict)
            elif verdict.fatal:
                out[i] = verdict
        return out

    def _made(
        self, given: Sequence[tuple[Question, Sequence[Pair]]], examples: Sequence[Example]
    ) -> list[tuple[Case, _Counts] | Failure]:
        """Return the rule's input and its counts per question (see `_cases`), or a failure."""
        questions, passages = [q for q, _ in given], [found for _, found in given]
        try:
            return list(zip(*self._cases(questions, passages, examples), strict=True))
        except PromptError as e:  # the template fails on the values of one question
            if len(given) == 1:
                return [Failure.of(e)]
        return [case for pair in given for case in self._made([pair], examples)]

    def cases(
        self,
        questions: Sequence[Question],
        passages: Sequence[Sequence[Pair]],
        examples: Sequence[Example] = (),
    ) -> list[Case | Failure]:
        """Return what the reader is asked about each question, without asking it.

        Arguments as for `answer`. The place of a question whose prompt cannot be made holds a
        failure.
        """
        made = self._made(list(zip(questions, passages, strict=True)), examples)
        return [case if isinstance(case, Failure) else case[0] for case in made]

    def check_streams(self) -> None:
        """Raise UserError unless answers can be streamed."""
        if not self.reader.streams:
            raise UserError(f"the reader {self.reader.weights} does not stream")
        if self.rule.chooses:
            raise UserError(
                f"answering.decision {self.config.decision} needs the answers for all passages "
                "before it chooses: only top1, concat and none can stream"
            )

    def stream(
        self, question: Question, passages: Sequence[Pair], examples: Sequence[Example] = ()
    ) -> AnswerStream:
        """Return a stream of one answer; arguments as for `answer`.

        Raises:
            UserError: see `check_streams`.
        """
        self.check_streams()
        [case], [counts] = self._cases([question], [passages], examples)

        def extract(text: str) -> Answer:
            return _counted(self.rule.single(case, Generation(text)), counts)

        return AnswerStream(self.cached.stream(case.prompts[0]), extract)

    def _cases(
        self,
        questions: Sequence[Question],
        passages: Sequence[Sequence[Pair]],
        examples: Sequence[Example],
    ) -> tuple[list[Case], list[_Counts]]:
        """Return the rule's inputs, and what was counted for each."""
        most = self.config.passage_images
        if most:
            passages = [
                [(hit, replace(p, image=self._articles.of(p))) for hit, p in found]
                for found in passages
            ]
        wanted: list[list[list[Pair]]] = [
            self._groups(found[: self.config.passages]) if found else [[]] for found in passages
        ]
        owners = [i for i, groups in enumerate(wanted) for _ in groups]

        unread = _unread(group for groups in wanted for group in groups) if most else {}
        neutralised: dict[Prompt, int] = {}

        def render(place: int, group: Sequence[Pair], most: int) -> Prompt:
            passages = [passage for _, passage in group]
            images = dict.fromkeys(p.image for p in passages if p.image is not None)
            prompt, count = self.template.prompt(
                questions[owners[place]],
                passages,
                examples,
                reader=self.reader,
                pictures=[image for image in images if image not in unread][:most],
            )
            neutralised[prompt] = count
            return prompt

        flat = [group for groups in wanted for group in groups]
        fitted = iter(fit(flat, render, self.cached, most))
        asked, cut = [], []
        for groups in wanted:
            prompts = [next(fitted) for _ in groups]
            cut.append(sum(map(len, groups)) - sum(len(group) for group, _ in prompts))
            # A prompt that has lost its only passage adds nothing to the others.
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
        counts = [
            _Counts(
                cut[i],
                sum(neutralised[prompt] for prompt in case.prompts),
                _pictures(wanted[i], asked[i], unread) if most else None,
            )
            for i, case in enumerate(cases)
        ]
        return cases, counts

    def _groups(self, found: Sequence[Pair]) -> list[list[Pair]]:
        """Return the passages of each prompt, as the rule distributes them.

        Raises:
            ContractError: the rule raises an exception, or returns something else.
        """
        with raised_by("decision rule", self.rule, "from groups"):
            groups: Any = self.rule.groups(found)
        for value in [groups] if not isinstance(groups, list) else groups:
            if not isinstance(value, list) or not all(pair in found for pair in value):
                got = type(value).__name__
                what = f"it returned from groups {got} instead of a list of lists of what was found"
                raise broken(self.rule, "decision rule", what)
        return list(groups)

    def _log_priors(self, groups: Sequence[Sequence[Pair]]) -> tuple[float, ...]:
        best = [group[0][0] if group else None for group in groups]
        scores = [None if hit is None else (hit.score, hit.as_retrieved) for hit in best]
        return tuple(self.rule.log_priors(scores))


def _problem(answer: object) -> str:
    return "" if isinstance(answer, Answer) else f"{type(answer).__name__} instead of an Answer"


def _joined(answer: Answer | Failure, case: tuple[Case, _Counts]) -> Answer | Failure:
    return answer if isinstance(answer, Failure) else _counted(answer, case[1])


def _counted(answer: Answer, counts: _Counts) -> Answer:
    return replace(answer, **counts._asdict())


def _unread(groups: Iterable[Sequence[Pair]]) -> dict[Path, str]:
    """Return the passages' pictures that cannot be shown, and why."""
    return unusable_images(
        list(dict.fromkeys(p.image for group in groups for _, p in group if p.image is not None))
    )


def _pictures(
    wanted: Sequence[Sequence[Pair]],
    asked: Sequence[tuple[Sequence[Pair], Prompt]],
    unread: Mapping[Path, str],
) -> Pictures:
    """Return what became of the pictures of a question's passages.

    Args:
        wanted: the passages of each prompt before they were fitted into the reader's context.
        asked: those that did fit, and the prompt.
        unread: pictures that cannot be shown, and why.
    """
    given = [p for group in wanted for _, p in group if p.image is not None]
    broken = [p for p in given if p.image in unread]
    shown = sum(p.image in prompt.pictures for group, prompt in asked for _, p in group)
    return Pictures(
        shown=sum(len(prompt.pictures) for _, prompt in asked),
        cut=len(given) - len(broken) - shown,
        unread=tuple(f"passage {p.passage_id}: {unread[p.image]}" for p in broken if p.image),
    )


def load_template(config: AnsweringConfig) -> PromptTemplate:
    """Load the configured prompt.

    Raises:
        UserError: an unknown or bad prompt; a prompt that shows examples without configured ones,
            or the reverse.
    """
    template = PromptTemplate.load(config.prompt)
    if "examples" in template.uses and config.examples is None:
        raise UserError(
            f"prompt {template.name} shows examples: set answering.examples, for instance "
            "{dataset: okvqa, split: train, count: 4}"
        )
    if config.passage_images and not template.names_pictures:
        raise UserError(
            f"answering.passage_images is set, but prompt {template.name} does not say which "
            "passage a picture belongs to (passage.picture)"
        )
    if config.examples is not None and "examples" not in template.uses:
        raise UserError(f"answering.examples is set, but prompt {template.name} shows no examples")
    if config.self_check is not None:
        load_self_check(config.self_check)
    return template
