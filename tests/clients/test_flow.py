"""Requests to one server: shared by clients and threads, slowed down together, and abandoned."""

import asyncio
import threading
import time

import pytest
from scripted_server import chat

from ravqa.clients.flow import Flow, _Batch, flow_to
from ravqa.clients.openai import Client, ServerConfig
from ravqa.clients.transport import run
from ravqa.core.ahead import AbandonedError, behind, in_order
from ravqa.core.outcomes import succeeded

LONG = 20  # seconds after which a test that waits in vain fails


def client(server, **options):
    return Client(ServerConfig(url=server.url, model="m", timeout=60, **options), why="the test")


def asked(asker, prompts):
    def ask(prompt, stop):
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
        return asker.ask(
            "chat", body, lambda reply: reply["choices"][0]["message"]["content"], stop
        )

    return {i: succeeded(found) for i, found in asker.each(ask, prompts)}


def said(body):
    return body["messages"][0]["content"]


def in_threads(*calls):
    return list(in_order((lambda call=call: call() for call in calls), ahead=len(calls)))


def until(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def idle(asker):
    flow = asker._flow
    return not (flow._tasks or flow._asking or flow._resting or flow._sending or flow._batches)


def test_calls_of_several_threads_and_clients_share_the_workers(serve):
    together = threading.Barrier(3)  # replies come only while three requests are under way

    def reply(_, body):
        together.wait(LONG)
        return chat(said(body))

    server = serve(reply)
    one, other = client(server, workers=3), client(server, workers=2)
    calls = [
        lambda asker=asker, name=name: asked(asker, [f"{name}{i}" for i in range(4)])
        for asker, name in ((one, "a"), (other, "b"), (one, "c"))
    ]
    assert in_threads(*calls) == [{i: f"{n}{i}" for i in range(4)} for n in "abc"]
    assert server.busiest == 3


def test_another_server_or_key_has_a_flow_of_its_own():
    flow = flow_to("http://a", "k", 2)
    assert flow_to("http://a", "k", 5) is flow
    assert flow.workers == flow.limit == 5
    assert flow_to("http://a", "k", 2).workers == 5
    assert flow_to("http://a", "l", 2) is not flow
    assert flow_to("http://b", "k", 2) is not flow


def test_a_slow_reply_holds_up_neither_its_own_call_nor_others(serve):
    release = threading.Event()

    def reply(_, body):
        if said(body) == "slow":
            assert release.wait(LONG)
        return chat("ok")

    asker = client(serve(reply), workers=2)

    def quick():
        try:
            return len(asked(asker, list("bcdefghij")))
        finally:
            release.set()

    assert in_threads(lambda: len(asked(asker, ["slow", "a"])), quick) == [2, 9]


def test_the_limit_is_halved_once_for_requests_that_were_under_way_together():
    flow = Flow()
    flow.widen(8)
    sent = time.monotonic()
    flow._sending = 7  # and the one that is refused
    flow.slow_down(sent, 0)
    assert flow.limit == 4
    flow._sending = 6
    flow.slow_down(sent, 30)  # was under way at the same time
    assert flow.limit == 4
    assert 25 < flow.pause <= 30
    flow._sending = 1
    flow.slow_down(time.monotonic(), 0)  # half of what was under way
    assert flow.limit == 1
    flow.slow_down(time.monotonic(), 0)
    assert flow.limit == 1
    assert flow.pause > 25


def test_replies_raise_the_limit_by_one_for_as_many_as_are_under_way_up_to_the_workers():
    flow = Flow()
    flow.widen(8)
    flow.limit = 1.0
    numbers = []
    for _ in range(60):
        flow.answered()
        numbers.append(int(flow.limit))
    assert numbers == sorted(numbers)
    assert numbers[0] == 2
    assert 4 <= numbers[10] <= 5
    assert numbers[-1] == 8
    assert flow.limit == 8.0


def test_after_too_many_requests_fewer_are_under_way_and_later_all_again(serve, waits):
    four, all_again = threading.Barrier(4), threading.Barrier(4)
    busy = []

    def reply(n, _):
        if n <= 4:
            four.wait(LONG)
            return 429, "slow down"
        busy.append(server.busy)
        if n > 80:
            all_again.wait(LONG)  # only if four are under way once more
        return chat("ok")

    server = serve(reply)
    assert len(asked(client(server, workers=4), [str(i) for i in range(84)])) == 84
    assert max(busy[:2]) <= 2
    assert server.busiest == 4


def test_while_some_wait_to_try_again_others_are_sent(serve, monkeypatch):
    answered = threading.Event()

    async def pause(*_):
        assert await asyncio.to_thread(answered.wait, LONG)

    monkeypatch.setattr(Client, "pause", pause)
    tried = []

    def reply(n, body):
        if said(body).startswith("bad") and said(body) not in tried:
            tried.append(said(body))
            return 500, "once"
        if said(body) == "last":
            answered.set()
        return chat("ok")

    server = serve(reply)
    asker = client(server, workers=2)
    assert asked(asker, ["bad1", "bad2", "good", "last"]) == dict.fromkeys(range(4), "ok")
    assert server.busiest <= 2
    until(lambda: idle(asker))


def test_a_wait_is_cut_short_if_nothing_else_is_to_be_sent_and_others_are_answered(
    serve, monkeypatch
):
    monkeypatch.setattr("ravqa.clients.openai._HURRIED", 0)
    tried = []

    def reply(_, body):
        tried.append(said(body))
        return (500, "once") if tried.count("bad") == 1 and said(body) == "bad" else chat("ok")

    server = serve(reply)
    asker = client(server, workers=2)
    asker.first_wait = 1000
    began = time.monotonic()
    assert len(asked(asker, ["bad", *"abcdef"])) == 7
    assert time.monotonic() - began < LONG
    assert "bad" in tried[-2:]  # the others are sent meanwhile; one may still be under way


async def nothing(item, stop):
    return item


def test_a_wait_goes_on_while_others_are_to_be_sent_or_none_is_answered():
    flow = Flow()
    flow.widen(2)
    flow._asking = 2  # so that nothing of the batch is begun
    batch = _Batch(nothing, [1])
    flow._batches.append(batch)
    never = asyncio.Event()

    async def rest():
        with flow.resting(time.monotonic(), never) as over:
            flow.answered()
            assert not over.is_set()
            batch.todo.clear()
            async with flow.sending(never), flow.sending(never):
                flow.answered()
                assert not over.is_set()  # there is no worker
            assert over.is_set()
        with flow.resting(time.monotonic(), never) as over:
            assert not over.is_set()
            flow.answered()
            assert over.is_set()

    run(rest())


def test_who_waits_to_try_again_stops_with_its_call():
    flow = Flow()
    batch = _Batch(nothing, [1])

    async def rest():
        with flow.resting(0.0, batch.stop) as over, flow.resting(0.0, asyncio.Event()) as other:
            flow._drop(batch)
            assert over.is_set()
            assert not other.is_set()
        with flow.resting(0.0, batch.stop) as over:
            assert over.is_set()

    run(rest())
    assert not batch.todo
    assert batch.results.get() is None


def test_no_more_are_replaced_while_they_rest_than_there_are_workers(serve, monkeypatch):
    rested, full = [], asyncio.Event()

    async def pause(client, seconds, stop):
        rested.append(client._flow._resting)
        if len(rested) == 3:  # two are replaced, and one of the others waits too
            full.set()
        await asyncio.wait_for(full.wait(), LONG)

    monkeypatch.setattr(Client, "pause", pause)
    bad = set()

    def reply(_, body):
        if said(body) not in bad:
            bad.add(said(body))
            return 500, "once"
        return chat("ok")

    asker = client(serve(reply), workers=2)
    assert len(asked(asker, [str(i) for i in range(12)])) == 12
    assert len(rested) == 12
    assert max(rested) == 2
    until(lambda: idle(asker))


def test_who_waits_for_its_turn_is_not_sent_once_it_is_abandoned():
    flow = Flow()
    batch, never = _Batch(nothing, [1]), asyncio.Event()

    async def wait(stop):
        async with flow.sending(stop):
            return "sent"

    async def both():
        async with flow.sending(never):
            one, other = (asyncio.create_task(wait(stop)) for stop in (batch.stop, never))
            await asyncio.sleep(0)
            flow._drop(batch)
            with pytest.raises(AbandonedError, match="nobody waits"):
                await one
            await asyncio.sleep(0)
            assert not other.done()
        return await other

    assert run(both()) == "sent"
    assert flow._sending == 0


def test_nothing_is_begun_for_abandoned_calls(serve):
    release, begun = threading.Event(), threading.Barrier(3)

    def reply(*_):
        begun.wait(LONG)
        release.wait(LONG)
        return chat("ok")

    server = serve(reply)
    asker = client(server, workers=2)
    ended = []

    def call():
        try:
            asked(asker, list("abcdef"))
        except AbandonedError as e:
            ended.append(str(e))

    found = in_order(iter([lambda: begun.wait(LONG), call, call]), ahead=3)
    next(found)
    found.close()
    until(lambda: len(ended) == 2)
    assert set(ended) == {"nobody waits for the answers any more"}
    release.set()
    until(lambda: idle(asker))
    assert len(server.requests) == 2
    begun.reset()
    begun = threading.Barrier(1)
    assert asked(asker, ["again"]) == {0: "ok"}
    until(lambda: idle(asker))


def test_who_waited_for_its_turn_fails_with_the_reason_why_the_call_ended(serve):
    asker = client(serve(lambda *_: (401, "")), workers=3)
    asker._flow.limit = 1.0

    def ask(prompt, stop):
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
        return asker.ask("chat", body, lambda reply: reply, stop)

    found = dict(asker.each(ask, list("abcdef")))
    assert sorted(found) == list(range(6))
    assert all(failure.fatal and "HTTP 401" in failure.reason for failure in found.values())


def test_requests_of_a_run_that_comes_first_go_before_those_that_wait():
    flow = Flow()
    flow.widen(1)
    begun, order, release = threading.Event(), [], threading.Event()

    async def ask(item, stop):
        order.append(item)
        begun.set()
        assert await asyncio.to_thread(release.wait, LONG)
        return item

    def work(place, items):
        with behind(place):
            return dict(flow.each(ask, items))

    threads = [threading.Thread(target=work, args=(1, ["b1", "b2", "b3"]))]
    threads[0].start()
    assert begun.wait(LONG)
    for place, items in [(2, ["c1"]), (0, ["a1", "a2"]), (1, ["b4"])]:
        threads.append(threading.Thread(target=work, args=(place, items)))
        before = len(flow._batches)
        threads[-1].start()
        until(lambda before=before: len(flow._batches) > before)
    release.set()
    for thread in threads:
        thread.join(LONG)
    assert order == ["b1", "a1", "a2", "b2", "b3", "b4", "c1"]
