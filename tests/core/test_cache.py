"""What is kept on disk, what it cost, and what is built only once."""

import sqlite3
import threading
from typing import ClassVar

import pytest

from ravqa.core.cache import Store, watched
from ravqa.core.factory import Session, build_part, shared_keys
from ravqa.core.registry import Entry, Registry
from ravqa.core.settings import Part, PipelineConfig, Strict
from ravqa.readers import READERS
from ravqa.retrievers import RETRIEVERS


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when told to: call it with seconds."""
    now = [0.0]
    monkeypatch.setattr("ravqa.core.cache.time.monotonic", lambda: now[0])

    def go_on(seconds):
        now[0] += seconds

    return go_on


@pytest.fixture
def store(fresh_cache, clock):
    return Store("things")


def make(store, keys, work=lambda: None):
    known = store.get(keys)
    work()
    new = {key: key.upper() for key in keys if key not in known}
    store.put(new)
    return len(new)


def test_values_come_back_and_the_first_one_stays(store):
    store.put({"a": [1, "ä"], "b": None})
    store.put({"a": 2})
    assert store.get(["a", "b", "c", "a"]) == {"a": [1, "ä"], "b": None}


def test_work_that_is_watched_knows_what_came_from_the_store(store, clock):
    with watched() as outer:
        with watched() as first:
            assert make(store, ["a", "b", "a"], lambda: clock(6)) == 2
            clock(1)
        with watched() as second:
            assert make(store, ["a", "b", "c"], lambda: clock(2)) == 1
    assert (first.asked, first.found, first.saved, first.seconds) == (2, 0, 0, 7)
    assert (second.asked, second.found, second.saved, second.seconds) == (3, 2, 6, 2)
    assert second.stores == {"things"}
    assert (outer.asked, outer.found, outer.saved, outer.seconds) == (5, 2, 6, 9)
    with watched() as nothing:
        pass
    assert (nothing.asked, nothing.stores) == (0, set())


def test_each_value_costs_its_share_of_the_time_since_the_store_was_used(store, clock):
    store.get(["a", "b", "c", "d"])
    clock(4)
    store.put({"a": 1, "b": 2})
    clock(1)
    store.put({"c": 3, "d": 4})
    costs = []
    for key in "abcd":
        with watched() as use:
            store.get([key])
        costs.append(use.saved)
    assert costs == [2, 2, 0.5, 0.5]


def test_a_file_of_before_there_were_costs_goes_on(fresh_cache):
    fresh_cache.mkdir()
    with sqlite3.connect(fresh_cache / "things.sqlite") as connection:
        connection.execute("CREATE TABLE kept (key TEXT PRIMARY KEY, value TEXT)")
        connection.execute("INSERT INTO kept VALUES ('old', '1')")
    connection.close()
    store = Store("things")
    with watched() as use:
        assert make(store, ["old", "new"]) == 1
    assert (use.found, use.saved, use.unpriced) == (1, 0.0, 1)


def test_a_file_that_another_process_is_making_is_waited_for(fresh_cache):
    fresh_cache.mkdir()
    other = sqlite3.connect(fresh_cache / "things.sqlite", check_same_thread=False)
    other.execute("CREATE TABLE kept (key TEXT PRIMARY KEY, value TEXT)")
    other.commit()
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.commit)
    release.start()
    try:
        store = Store("things")
    finally:
        release.join()
        other.close()
    store.put({"a": 1})
    assert store.get(["a"]) == {"a": 1}


class Thing:
    built = 0

    class Config(Strict):
        size: int = 1

    def __init__(self, config, **needs):
        Thing.built += 1
        self.config = config


class Nest:
    """Builds a reader of its own."""

    class Config(Strict):
        builds_parts: ClassVar[bool] = True
        reader: Part = Part(name="thing")

    def __init__(self, config, *, session=None):
        self.inner = build_part(READERS, config.reader, "inner", session=session)


def registry(kind):
    return Registry(kind, {"thing": (f"{__name__}:Thing", "")})


def built(*parts, kind="reader", session=None, **needs):
    before = Thing.built
    made = [
        build_part(registry(kind), Part(name="thing", **p), "here", session=session, **needs)
        for p in parts
    ]
    return made, Thing.built - before


def test_parts_with_the_same_settings_are_shared_in_a_session_only():
    assert built({}, {})[1] == 2
    session = Session()
    (a, b, c), count = built({}, {"size": 1}, {"size": 2}, session=session)
    assert a is b is not c
    assert count == 2
    assert session.loads == {"reader": 2}
    # Retrievers hold their corpus; what is given another part is that part's.
    assert built({}, {}, kind="retriever", session=session)[1] == 2
    assert built({}, {}, base=a, session=session)[1] == 2
    needed = shared_keys(
        PipelineConfig(reader=Part(name="thing", size=2), retriever=Part(name="thing"))
    )
    assert len(needed) == 1
    session.keep(needed)
    (kept, again), count = built({"size": 2}, {}, session=session)
    assert kept is c
    assert again is not a
    assert count == 1
    assert built({}, {})[1] == 2
    assert built({}, session=Session())[0][0] is not again


@pytest.fixture(autouse=True)
def things(monkeypatch):
    """The parts above, by the names that settings have for them."""
    for registered in (READERS, RETRIEVERS):
        monkeypatch.setitem(registered._entries, "thing", Entry(f"{__name__}:Thing", ""))
    monkeypatch.setitem(RETRIEVERS._entries, "nest", Entry(f"{__name__}:Nest", ""))


def test_a_part_inside_another_one_is_shared_too():
    session = Session()
    part = Part(name="nest")
    first, second = (build_part(RETRIEVERS, part, "here", session=session) for _ in range(2))
    assert first is not second
    assert first.inner is second.inner
    assert session.loads == {"reader": 1}
    config = PipelineConfig(retriever=part, reader=Part(name="thing", size=2))
    assert len(shared_keys(config)) == 2
    session.keep(shared_keys(config))
    assert build_part(RETRIEVERS, part, "here", session=session).inner is first.inner


def test_a_session_makes_a_thing_once():
    made = []

    def read():
        made.append(1)
        return object()

    session = Session()
    assert session.get("corpus", "a", read) is session.get("corpus", "a", read)
    assert session.get("dataset", "a", read) is not session.get("corpus", "a", read)
    assert Session().get("corpus", "a", read) is not session.get("corpus", "a", read)
    assert len(made) == 3
    session.only("corpus")
    session.get("corpus", "a", read)
    assert len(made) == 3
    session.get("dataset", "a", read)
    assert len(made) == 4
