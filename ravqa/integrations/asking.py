"""Answers from given passages, for questions from any thread or task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from ravqa.answering.streaming import AnswerStream
from ravqa.core.errors import UserError, check_text
from ravqa.core.outcomes import Failure, succeeded
from ravqa.core.records import Answer, Hit, Passage, Question
from ravqa.integrations.shared import shared_readers
from ravqa.integrations.threads import Batcher
from ravqa.pipeline import Pipeline

Pair = tuple[Hit, Passage]


class Asker:
    """Describes and answers questions; concurrent ones share a batch."""

    def __init__(self, pipeline: Pipeline):
        """Use the describer and reader of a pipeline.

        Raises:
            UserError: the pipeline has no reader.
        """
        if pipeline.answerer is None:
            raise UserError("the pipeline was built for retrieval only: it has no reader")
        self.pipeline = pipeline
        self.answerer = pipeline.answerer
        reader = self.answerer.reader
        # Readers that work on several prompts at once are of servers, and have no state.
        several = reader.workers > 1
        self._turn: AbstractContextManager[object]
        self._turn = nullcontext() if several else shared_readers().turns(reader)
        self._batcher: Batcher[tuple[Question, Sequence[Pair]], Answer | Failure]
        self._batcher = Batcher(self._answer)

    @classmethod
    def load(cls, pipeline: str, overrides: Sequence[str] = ()) -> Asker:
        """Load a named pipeline, without its retriever and rerankers.

        Its reader is that of all others in this process that have the same settings for it.

        Raises:
            UserError: see `Pipeline.load`.
        """
        changes = (*overrides, "retriever={name: none}", "reranking=[]")
        return cls(Pipeline.load(pipeline, *changes, session=shared_readers()))

    def ask(self, question: Question, passages: Sequence[Pair]) -> Answer:
        """Answer from the passages, best first; without passages, from the reader's own knowledge.

        Raises:
            DataError: the image cannot be decoded.
            PromptError, ServerError: the reader fails on the question.
            UserError: the question is no text.
        """
        check_text("the question", question.question)
        return succeeded(self._batcher.call((question, passages)))

    async def aask(self, question: Question, passages: Sequence[Pair]) -> Answer:
        """Async version of `ask`."""
        check_text("the question", question.question)
        return succeeded(await self._batcher.acall((question, passages)))

    def stream(self, question: Question, passages: Sequence[Pair]) -> AnswerStream:
        """Stream an answer, without batching.

        Raises:
            UserError: the reader or the decision rule does not stream; or as `ask`.
        """
        [described] = self.pipeline.describe([question])
        examples = self.pipeline.shown_examples([described])
        return self.answerer.stream(described, passages, examples)

    def _answer(self, asked: Sequence[tuple[Question, Sequence[Pair]]]) -> list[Answer | Failure]:
        questions = self.pipeline.describe([question for question, _ in asked])
        examples = self.pipeline.shown_examples(questions)
        with self._turn:
            return self.answerer.answer(questions, [passages for _, passages in asked], examples)
