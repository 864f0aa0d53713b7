"""The line of requests at the models: batches, turns, time-outs, and what is refused."""

import asyncio
import threading

import pytest

from ravqa.core.accounts import Cost, Usage, charge
from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Answer, Hit, Passage, Question
from ravqa.doors.service.line import Asked, BusyError, LateError, Line
from ravqa.pipeline import Response


class Slow:
    """A pipeline that answers when it is let, and a shelf with it."""

    def __init__(self):
        self.let = threading.Event()
        self.begun = threading.Event()
        self.batches = []

    def pipeline(self, collection, name, *, answering):
        if collection == "gone":
            raise UserError("no collection")
        return self

    def ask_all(self, questions, answering):
        self.batches.append([q.question for q in questions])
        self.begun.set()
        assert self.let.wait(10)
        hit, passage = Hit("p", 1.0, 1), Passage("p", "t")
        for i, question in enumerate(questions):
            if question.question != "bad":
                charge(Cost.of(Usage(10 + i, 2)), question.question_id)
        answers = [Response(Answer(q.question, [], "top1"), [hit], [passage]) for q in questions]
        return [Failure("no") if a.answer.text == "bad" else a for a in answers]

    def ask_in_steps(self, question, written):
        yield Response(None, [], [])
        for letter in question.question:
            written(letter)
        charge(Cost.of_reused(Usage(7, 3)))
        self.begun.set()
        yield Response(Answer(question.question, [], "top1"), [], [])


@pytest.fixture
def slow():
    made = Slow()
    yield made
    made.let.set()


def asked(text, collection="animals"):
    return Asked(Question(0, text), collection, "as built")


async def started(slow, line, text="first"):
    """Occupy the models with one request."""
    task = asyncio.create_task(line.ask(asked(text), 10))
    assert await asyncio.to_thread(slow.begun.wait, 10)
    return task


def test_those_who_wait_are_answered_in_one_batch(slow):
    sizes = []

    async def run():
        line = Line(slow, most_at_once=3, batches=sizes.append)
        first = await started(slow, line)
        questions = [asked("a"), asked("b", "plants"), asked("bad"), asked("c"), asked("d")]
        waiting = [asyncio.create_task(line.ask(one, 10)) for one in questions]
        await asyncio.sleep(0)
        slow.let.set()
        found = await asyncio.gather(first, *waiting, return_exceptions=True)
        line.close()
        return found

    first, a, b, bad, c, d = asyncio.run(run())
    assert [one.answer.text for one in (first, a, b, c, d)] == ["first", "a", "b", "c", "d"]
    assert [one.usage.prompt_tokens for one in (first, a, b, c, d)] == [10, 10, 10, 12, 10]
    assert str(bad) == "no"
    assert slow.batches == [["first"], ["a", "bad", "c"], ["b"], ["d"]]
    assert sizes == [1, 3, 1, 1]


def test_who_waits_too_long_is_told_and_not_answered_later(slow):
    async def run():
        line = Line(slow)
        first = await started(slow, line)
        with pytest.raises(LateError, match=r"not answered within 0\.01 seconds"):
            await line.ask(asked("late"), 0.01)
        assert len(line) == 0
        slow.let.set()
        await first
        await line.do(lambda shelf: None, 10)

    asyncio.run(run())
    assert slow.batches == [["first"]]


def test_more_than_may_wait_are_refused_and_none_once_it_ends(slow):
    async def run():
        line = Line(slow, most_waiting=1)
        first = await started(slow, line)
        second = asyncio.create_task(line.ask(asked("second"), 10))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="1 requests wait already"):
            await line.ask(asked("third"), 10)
        line.close()
        with pytest.raises(BusyError, match="about to end"):
            await line.ask(asked("fourth"), 10)
        slow.let.set()
        return [one.answer.text for one in await asyncio.gather(first, second)]

    assert asyncio.run(run()) == ["first", "second"]


def test_errors_reach_those_who_asked_and_the_thread_goes_on(slow):
    def fail(shelf):
        raise ZeroDivisionError

    async def run():
        line = Line(slow)
        with pytest.raises(UserError, match="no collection"):
            await line.ask(asked("a", "gone"), 10)
        with pytest.raises(ZeroDivisionError):
            await line.do(fail, 10)
        with pytest.raises(UserError, match="no collection"):
            _ = [what async for what in line.stream(asked("a", "gone"), 10)]
        assert await line.do(lambda shelf: 1, 10) == 1

    asyncio.run(run())


def test_a_stream_has_passages_pieces_and_the_answer(slow):
    async def run():
        line = Line(slow)
        return [what async for what in line.stream(asked("yes"), 10)]

    found, *pieces, last = asyncio.run(run())
    assert (found.answer, pieces, last.answer.text) == (None, ["y", "e", "s"], "yes")
    assert (found.usage, last.usage) == (None, Usage(7, 3))


def test_a_generation_that_nobody_reads_ends(slow):
    ended = threading.Event()

    def endless(question, written):
        try:
            while True:
                written("x")
        finally:
            ended.set()
        yield

    slow.ask_in_steps = endless

    async def run():
        line = Line(slow)
        stream = line.stream(asked("yes"), 10)
        assert await anext(stream) == "x"
        await stream.aclose()
        assert await asyncio.to_thread(ended.wait, 10)
        assert await line.do(lambda shelf: 1, 10) == 1

    asyncio.run(run())
