"""The line of requests that wait for the models, which one thread asks.

Requests that differ in their question alone and wait at the same time are answered in one batch.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ravqa.core.accounts import Account, Cost, Payer, charged_to, shared_costs, tokens, total
from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.doors.shelf import Shelf
from ravqa.pipeline import Pipeline, Response

T = TypeVar("T")


class BusyError(UserError):
    """Too many wait already; later there may be room."""


class LateError(UserError):
    """The time of a request is over."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and what is to be done with it.

    Attributes:
        rule: name of the decision rule; None for the pipeline's own.
        k: passages to find, and to read; None for the pipeline's own numbers.
        where: only passages with these metadata, as JSON; blank for all.
        answering: whether an answer is wanted; else passages alone.
    """

    question: Question
    collection: str
    pipeline: str
    rule: str | None = None
    k: int | None = None
    where: str = ""
    answering: bool = True

    @property
    def kind(self) -> tuple[object, ...]:
        """What requests of one batch have in common."""
        named = (self.collection, self.pipeline, self.rule, self.k)
        return (*named, self.where, self.answering)


@dataclass(eq=False, slots=True)
class _Turn:
    """A request in the line: a question, or other work, which is done alone."""

    asked: Asked | None
    work: Callable[[Shelf], Any] | None = None
    future: Future[Any] = field(default_factory=Future)


class _GoneError(Exception):
    """Nobody waits for the rest of an answer."""


class Line:
    """Requests that wait for their turn at the models.

    Attributes:
        batches: called with the number of questions of each batch.
    """

    def __init__(
        self,
        shelf: Shelf,
        *,
        most_waiting: int = 64,
        most_at_once: int = 16,
        batches: Callable[[int], object] = lambda size: None,
    ):
        """Start the thread that works; it alone uses the shelf.

        Args:
            most_waiting: requests that may wait; further ones are refused.
            most_at_once: questions of a batch.
        """
        self.batches = batches
        self._shelf = shelf
        self._most_waiting = most_waiting
        self._most_at_once = most_at_once
        self._waiting: deque[_Turn] = deque()
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._work, name="models", daemon=True).start()

    def __len__(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Let the thread end once nobody waits; whoever comes later is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    async def ask(self, asked: Asked, seconds: float) -> Response:
        """Return the response to a question.

        Args:
            seconds: for waiting and answering.

        Raises:
            BusyError, LateError: nobody has begun, or finished, in time.
            UserError: as `Pipeline.ask`, or the pipeline does not have the rule.
        """
        response: Response = await self._done(_Turn(asked), seconds)
        return response

    async def do(self, work: Callable[[Shelf], T], seconds: float) -> T:
        """Return what other work returns, which is done between batches; as `ask`."""
        done: T = await self._done(_Turn(None, work), seconds)
        return done

    async def stream(self, asked: Asked, seconds: float) -> AsyncIterator[Response | str]:
        """Yield what is known once passages are found, pieces of the answer, and the response.

        Who stops reading ends the generation. Arguments and errors as for `ask`.
        """
        loop = asyncio.get_running_loop()
        given: asyncio.Queue[Response | str | None] = asyncio.Queue()
        gone = threading.Event()

        def give(what: Response | str | None) -> None:
            if gone.is_set():
                raise _GoneError
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(given.put_nowait, what)

        def work(shelf: Shelf) -> None:
            steps = _suited(shelf, asked).ask_in_steps(asked.question, written=give)
            with suppress(_GoneError), _counted() as costs:
                for response in steps:
                    counted = replace(response, usage=tokens(total(costs.values())))
                    give(_trimmed(counted, asked.k))

        turn = _Turn(None, work)
        turn.future.add_done_callback(lambda _: loop.call_soon_threadsafe(given.put_nowait, None))
        self._enter(turn)
        try:
            async with asyncio.timeout(seconds):
                while (what := await given.get()) is not None:
                    yield what
                await asyncio.wrap_future(turn.future)
        except TimeoutError:
            raise _late(seconds) from None
        finally:
            gone.set()
            turn.future.cancel()
            self._leave(turn)

    async def _done(self, turn: _Turn, seconds: float) -> Any:
        self._enter(turn)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(turn.future), seconds)
        except TimeoutError:
            if turn.future.done() and not turn.future.cancelled():
                raise  # that of the work itself
            raise _late(seconds) from None
        finally:
            self._leave(turn)

    def _enter(self, turn: _Turn) -> None:
        with self._changed:
            if self._closed:
                raise BusyError("the service is about to end")
            if len(self._waiting) >= self._most_waiting:
                raise BusyError(f"{self._most_waiting} requests wait already: try again later")
            self._waiting.append(turn)
            self._changed.notify()

    def _leave(self, turn: _Turn) -> None:
        """Take a turn out of the line, if it has not begun."""
        with self._changed, suppress(ValueError):
            self._waiting.remove(turn)

    # -- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        while turns := self._next():
            begun = [turn for turn in turns if turn.future.set_running_or_notify_cancel()]
            try:
                self._do(begun)
            except BaseException as e:
                for turn in begun:
                    if not turn.future.done():
                        turn.future.set_exception(e)

    def _next(self) -> list[_Turn]:
        """Return the turns that are next, and can be done together; none when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            first = self._waiting.popleft()
            if first.asked is None:
                return [first]
            alike = [
                turn for turn in self._waiting if turn.asked and turn.asked.kind == first.asked.kind
            ][: self._most_at_once - 1]
            for turn in alike:
                self._waiting.remove(turn)
            return [first, *alike]

    def _do(self, turns: list[_Turn]) -> None:
        asked = [turn.asked for turn in turns if turn.asked]
        for turn in turns:
            if turn.work is not None:
                turn.future.set_result(turn.work(self._shelf))
        if not asked:
            return
        self.batches(len(asked))
        pipeline = _suited(self._shelf, asked[0])
        ids = [f"request {i}" for i in range(len(asked))]  # by which their tokens are told apart
        questions = [
            replace(one.question, question_id=i) for one, i in zip(asked, ids, strict=True)
        ]
        with _counted() as costs:
            found = pipeline.ask_all(questions, answering=asked[0].answering)
        for turn, outcome, cost in zip(turns, found, shared_costs(costs, ids), strict=True):
            if isinstance(outcome, Failure):
                turn.future.set_exception(outcome.error)
            else:
                counted = replace(outcome, usage=tokens(cost))
                turn.future.set_result(_trimmed(counted, asked[0].k))


@contextmanager
def _counted() -> Iterator[dict[Payer, Cost]]:
    """Collect by question what the enclosed work costs."""
    account = Account()
    with charged_to(account), account.booked() as costs:
        yield costs


def _suited(shelf: Shelf, asked: Asked) -> Pipeline:
    """Return the pipeline that answers a question.

    Raises:
        UserError: something is not offered, or the collection has no such metadata.
    """
    answering = asked.answering
    pipeline = shelf.pipeline(asked.collection, asked.pipeline, answering=answering)
    if asked.where:
        collection = shelf.collection(asked.collection, asked.pipeline)
        pipeline = collection.pipeline(where=json.loads(asked.where), answering=answering)
    if asked.k is None and asked.rule is None:
        return pipeline
    if not answering:
        made = copy.copy(pipeline)
    else:
        assert pipeline.answerer is not None
        own = pipeline.answerer.config
        if asked.rule is not None:
            offered = shelf.rules(asked.collection, asked.pipeline)
            if asked.rule not in offered:
                raise UserError(
                    f"the reader cannot serve the rule {asked.rule!r:.40}: "
                    f"choose one of {', '.join(offered)}"
                )
        made = pipeline.answering_by(asked.rule or own.decision, asked.k or own.passages)
    made.top_k = max(asked.k or 0, pipeline.top_k)
    return made


def _trimmed(response: Response, k: int | None) -> Response:
    """Return a response with at most k passages."""
    if k is None or len(response.hits) <= k:
        return response
    return replace(response, hits=response.hits[:k], passages=response.passages[:k])


def _late(seconds: float) -> LateError:
    return LateError(f"not answered within {seconds:g} seconds")
