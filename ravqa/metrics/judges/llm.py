"""A language model as judge, on any server with OpenAI's chat-completions interface.

Examples are vLLM, SGLang, Ollama, llama.cpp's llama-server, and OpenAI. The model is asked for
"yes" or "no". Its judgements differ from BEM's: results name the judge, and scores by different
judges are not comparable.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from ravqa.clients.openai import ChatServerConfig, Client, NoAnswerError
from ravqa.clients.replies import Reply
from ravqa.core.control_tokens import COMMON
from ravqa.core.errors import UserError
from ravqa.core.marks import is_no_answer, split_thinking, without_tokens
from ravqa.core.outcomes import Failure
from ravqa.core.settings import Text, fingerprint
from ravqa.metrics.judges.base import Judge, NotAttempted
from ravqa.metrics.judges.parsers import PARSERS, Name

PROMPT = """\
Question about an image: {question}
Reference answer: {reference}
Candidate answer: {candidate}

Given the question, does the candidate answer mean the same as the reference answer? Wording, \
units and more or less detail may differ as long as both answer the question in the same way.
Reply with one word: yes or no.
"""

THREE_LABELS = """\
Question about an image: {question}
Reference answer: {reference}
Candidate answer: {candidate}

Given the question, is the candidate answer correct? It is "correct" if it means the same as the \
reference answer or is more precise, whatever the wording and the units; "incorrect" if it \
contradicts the reference answer or is less precise; "not attempted" if it gives no answer, for \
instance because it says that it does not know.
Reply with the label alone: correct, incorrect, or not attempted.
"""

_WHY = "the judge llm"
_CONNECTION = {"url", "model", "workers", "timeout", "retries", "api_key_env", "prices"}
_VERDICTS = (  # the first one that is found counts
    re.compile(
        r"\W*(yes|no)\b(?!\s+and\s+(?:yes|no)\b|\s+(?:problem|doubt|worries|idea|one)\b)",
        re.IGNORECASE,
    ),
    re.compile(
        r"\b(?:answer|verdict|judge?ment|conclusion)\b[*_\s]*(?:is\b|would be\b|:)\W*(yes|no)\b"
        r"(?=\s*(?:[^\w\s]|\n|\Z|because\b|since\b))",
        re.IGNORECASE,
    ),
    re.compile(r"(?:\*\*|\\boxed\{(?:\\text\{)?|<\|begin_of_box\|>)\W*(yes|no)\b", re.IGNORECASE),
    re.compile(r"(?:^|\n)\W*(yes|no)\W*\Z", re.IGNORECASE),
)
_CHOICE = re.compile(r"\A\W*yes\s*(?:or\b|[/|])\s*no\b\W*", re.IGNORECASE)  # "Yes or no? No."


_LABEL = re.compile(
    r"\A\W*(?:(?:the\s+)?(?:label|verdict|answer)(?:\s+is)?\b\W*)?"
    r"(correct|incorrect|not[\s_-]+correct|not[\s_-]+attempted|unattempted)\b",
    re.IGNORECASE,
)


class LLMJudge(Judge):
    """Asks one question per triple, several at a time."""

    charges = True
    thread_safe = True

    class Config(ChatServerConfig):
        """Options, beyond those of how a server is asked.

        Attributes:
            labels: 2 asks for yes or no; 3 for correct, incorrect or not attempted.
            prompt: text with {question}, {reference} and {candidate}, asking for these labels.
            parser: how replies are read; "ravqa" takes only what is clear. The others read as the
                judge that they are named after, and unless `prompt` is given, ravqa's own words
                ask for replies of that form.
            max_tokens: longest reply, thinking apart; by default 8, with another parser 1,000,
                since some read a reply that was cut as "wrong".
        """

        labels: Literal[2, 3] = 2
        prompt: Text | None = None
        parser: Literal["ravqa", Name] = "ravqa"
        max_tokens: int | None = Field(default=None, ge=1)

    config: Config

    def __init__(self, config: Config):
        """Store the settings; the server is first contacted by the first triple.

        Raises:
            MissingExtraError: the package openai is not installed.
            UserError: the address or the key is invalid, the prompt has unknown fields, or the
                parser is for another number of labels.
        """
        self._parser = None if config.parser == "ravqa" else PARSERS[config.parser]
        own = {2: PROMPT, 3: THREE_LABELS}[config.labels]
        if self._parser is not None:
            own = self._parser.prompt
            if self._parser.labels != config.labels:
                labels = self._parser.labels
                raise UserError(f"{_WHY}: parser {config.parser}: it is for labels: {labels}")
        self._prompt = config.prompt or own
        try:
            self._prompt.format(question="", reference="", candidate="")
        except (KeyError, ValueError, IndexError) as e:
            raise UserError(
                f"{_WHY}: prompt: only {{question}}, {{reference}} and {{candidate}} can be filled "
                f"in ({e})"
            ) from None
        config.refuse_own(_WHY)
        self.config = config
        self.labels = config.labels
        self.client = Client(config, why=_WHY)
        self.name = f"llm ({config.model})"
        if self._parser is not None:
            asked = "a prompt of one's own" if config.prompt else "ravqa's prompt"
            self.name = f"llm ({config.model}; {asked}, parser {config.parser})"
        self.prices = config.prices
        self.workers = config.workers
        # Without the address: the same model elsewhere is the same judge.
        self._longest = config.max_tokens or (8 if self._parser is None else 1000)
        parts: list[Any] = ["llm/4", config.model, self._prompt, self._longest]
        asking = config.model_dump(include=set(ChatServerConfig.model_fields) - _CONNECTION)
        parts += ["3 labels"] if config.labels == 3 else []
        parts += [] if self._parser is None else [f"parser {config.parser}"]
        self.fingerprint = fingerprint(*parts, asking)

    def judge(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> list[float | Failure]:
        """Return per triple, in order, 1.0 for yes, 0.0 for no, NaN for a reply that is neither.

        With three labels: 1.0 for correct, 0.0 for incorrect, `NotAttempted`.

        A triple without a reply gets a `Failure`; a fatal one if the server is gone.
        """
        judged = dict(self.judge_each(questions, references, candidates))
        return [judged[place] for place in range(len(candidates))]

    def judge_each(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> Iterator[tuple[int, float | Failure]]:
        """Yield each triple's position and judgement, as they arrive."""
        prompts = [
            self._prompt.format(
                question=COMMON.neutral(q)[0],
                reference=COMMON.neutral(r)[0],
                candidate=COMMON.neutral(c)[0],
            )
            for q, r, c in zip(questions, references, candidates, strict=True)
        ]
        return self.client.each(self._ask, prompts)

    async def _ask(self, prompt: str, stop: asyncio.Event) -> float:
        form = self.config.prompt_form
        chat = {"messages": self.config.messages(prompt)}
        asked = chat if form == "chat" else {"prompt": prompt}
        body = self.config.request(self._longest) | self.config.extra_body | asked
        return await self.client.ask(form, body, self._verdict, stop)

    def _verdict(self, reply: Mapping[str, Any]) -> float:
        longest = self._longest + self.config.max_thinking_tokens
        read = Reply(self.config.prompt_form, longest, "max_tokens or max_thinking_tokens")
        text = split_thinking(read.whole(reply)).answer
        read.check()
        if self._parser is not None:
            return self._parser.read(without_tokens(text))
        if is_no_answer(text):
            raise NoAnswerError("the model ended before the first word")
        if self.config.labels == 3:
            return _of_label(without_tokens(text))
        text = _CHOICE.sub("", without_tokens(text))
        found = _VERDICTS[0].match(text) or next(
            filter(None, (verdict.search(text) for verdict in _VERDICTS[1:])), None
        )
        return float(found.group(1).lower() == "yes") if found else math.nan


def _of_label(text: str) -> float:
    """Return the judgement of a reply that begins with one of three labels; NaN for any other."""
    found = _LABEL.match(text)
    if found is None:
        return math.nan
    label = found[1].lower()
    return NotAttempted() if label.endswith("attempted") else float(label == "correct")
