"""The decision over k passages.

With z_1..z_K the passages read, s_k their retrieval scores, y_k the reader's answer to the prompt
with passage k, and T the temperature:

- `top1`: one prompt with the best passage.
- `concat`: one prompt with all K passages.
- `joint_max`: K prompts with one passage each; the answer is y_k with the largest

      log softmax(s / T)_k + log p(y_k | x, z_k) / |y_k|

  as in RA-VQA (Lin and Byrne 2022, arXiv 2210.03809; the code's length-normalised form is in
  LinWeizheDragon/Retrieval-Augmented-Visual-Question-Answering, rag_model_blip.py), where T = 1.
  Equal answers are not merged: it is a maximum, not a sum.

Without passages (no retrieval) every rule is one prompt without passages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from ravqa.answering.extract import Extraction, short_answer
from ravqa.answering.prompt import PromptTemplate
from ravqa.cache import Store
from ravqa.config import Strict, fingerprint
from ravqa.errors import UserError
from ravqa.images import image_bytes
from ravqa.readers.base import Generation, Prompt, Reader
from ravqa.records import Answer, Draft, Hit, Passage, Question


class AnsweringConfig(Strict):
    """Options.

    Attributes:
        prompt: a template in `prompts/`, or a file.
        decision: how k passages become one answer (see the module).
        passages: how many of the retrieved passages are read (K).
        temperature: T of `joint_max`.
        extract: rules from the generation to the short answer.
        cache: keep generations on disk; the same prompt to the same reader is answered once.
    """

    prompt: str = "short-answer"
    decision: Literal["top1", "concat", "joint_max"] = "joint_max"
    passages: int = Field(default=1, ge=1)
    temperature: float = Field(default=1.0, gt=0)
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


class Answerer:
    """Answers questions from passages with a reader.

    Attributes:
        generated: how many prompts the reader really answered.
        asked: the texts of the last call's prompts, by their hashes.
    """

    def __init__(self, config: AnsweringConfig, reader: Reader):
        """Load the prompt.

        Raises:
            UserError: no such prompt or a bad one; a rule that the reader has not the ability for.
        """
        self.config = config
        self.reader = reader
        self.template = PromptTemplate.load(config.prompt)
        compares = config.decision == "joint_max" and config.passages > 1
        if compares and "log_probs" not in reader.abilities:
            raise UserError(
                "answering.decision joint_max compares log-probabilities, which this reader does "
                "not give: choose top1 or concat"
            )
        self._store = Store("generations") if config.cache else None
        self.fingerprint = fingerprint(
            "answerer/1",
            config.model_dump(exclude={"cache", "prompt"}),
            self.template.source,
            reader.fingerprint,
        )
        self.generated = 0
        self.asked: dict[str, str] = {}

    def answer(
        self,
        questions: Sequence[Question],
        passages: Sequence[Sequence[tuple[Hit, Passage]]],
    ) -> list[Answer]:
        """One answer per question; `passages` are its retrieved ones, best first."""
        plans = [self._plan(q, found) for q, found in zip(questions, passages, strict=True)]
        prompts = [
            Prompt(
                self.template.render(question, [passage for _, passage in group]),
                question.image if "images" in self.reader.abilities else None,
            )
            for question, groups in zip(questions, plans, strict=True)
            for group in groups
        ]
        keys = [prompt_hash(prompt, self.reader.fingerprint) for prompt in prompts]
        self.asked = {key: prompt.text for key, prompt in zip(keys, prompts, strict=True)}
        generations = self._generate(prompts, keys)
        answers = []
        position = 0
        for groups in plans:
            drafts = []
            for group in groups:
                drafts.append(self._draft(generations[position], keys[position], group))
                position += 1
            answers.append(self._decide(drafts, groups))
        return answers

    def _plan(
        self, question: Question, found: Sequence[tuple[Hit, Passage]]
    ) -> list[list[tuple[Hit, Passage]]]:
        read = list(found[: self.config.passages])
        if not read:
            return [[]]
        if self.config.decision == "top1":
            return [read[:1]]
        if self.config.decision == "concat":
            return [read]
        return [[pair] for pair in read]

    def _draft(
        self, generation: Generation, key: str, group: Sequence[tuple[Hit, Passage]]
    ) -> Draft:
        return Draft(
            text=short_answer(generation.text, self.config.extract),
            raw=generation.text,
            log_prob=generation.log_prob,
            tokens=generation.tokens,
            passage_ids=tuple(hit.passage_id for hit, _ in group),
            prompt_hash=key,
        )

    def _decide(
        self, drafts: list[Draft], groups: Sequence[Sequence[tuple[Hit, Passage]]]
    ) -> Answer:
        if len(drafts) == 1:
            return Answer(drafts[0].text, drafts, self.config.decision)
        priors = log_softmax([group[0][0].score for group in groups], self.config.temperature)
        scored = [
            Draft(
                text=d.text,
                raw=d.raw,
                log_prob=d.log_prob,
                tokens=d.tokens,
                passage_ids=d.passage_ids,
                prompt_hash=d.prompt_hash,
                score=prior + (d.log_prob or 0.0) / max(1, d.tokens),
            )
            for d, prior in zip(drafts, priors, strict=True)
        ]
        best = max(scored, key=lambda d: d.score if d.score is not None else -math.inf)
        return Answer(best.text, scored, self.config.decision)

    def _generate(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> list[Generation]:
        known: dict[str, Generation] = {}
        if self._store is not None:
            for key, value in self._store.get(keys).items():
                known[key] = Generation(value["text"], value["log_prob"], value["tokens"])
        new = {k: p for k, p in zip(keys, prompts, strict=True) if k not in known}
        if new:
            made = self.reader.generate(list(new.values()))
            self.generated += len(made)
            known.update(zip(new, made, strict=True))
            if self._store is not None:
                self._store.put(
                    {
                        key: {"text": g.text, "log_prob": g.log_prob, "tokens": g.tokens}
                        for key, g in zip(new, made, strict=True)
                    }
                )
        return [known[key] for key in keys]


def prompt_hash(prompt: Prompt, reader_fingerprint: str) -> str:
    """What generations are kept by, and what a draft's `prompt_hash` is.

    Raises:
        DataError: the image cannot be read.
    """
    image = b"" if prompt.image is None else image_bytes(prompt.image)
    return fingerprint(reader_fingerprint, prompt.text, image)


def log_softmax(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Natural log of softmax(scores / temperature)."""
    scaled = [score / temperature for score in scores]
    top = max(scaled)
    norm = top + math.log(sum(math.exp(s - top) for s in scaled))
    return [s - norm for s in scaled]
