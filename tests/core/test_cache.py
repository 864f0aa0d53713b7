"""What is kept on disk, how its use is measured, and what is built only once."""

import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ClassVar

import pytest

from ravqa.core.cache import Memo, SharedTime, Store, measured
from ravqa.core.errors import UserError
from ravqa.core.factory import Session, build_part, shared_keys
from ravqa.core.outcomes import Failure
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


def test_measured_work_knows_what_came_from_its_stores(store, clock):
    other = Store("others")
    with measured([store, other, store]) as outer:
        with measured([store]) as first:
            assert make(store, ["a", "b", "a"], lambda: clock(6)) == 2
            clock(1)
        with measured([store]) as second:
            assert make(store, ["a", "b", "c"], lambda: clock(2)) == 1
            other.get(["a"])
    assert (first.asked, first.found, first.seconds) == (2, 0, 7)
    assert (second.asked, second.found, second.seconds) == (3, 2, 2)
    assert second.stores == {"things"}
    assert (outer.asked, outer.found, outer.seconds) == (6, 2, 9)
    assert outer.stores == {"things", "others"}
    with measured([store]) as nothing:
        Store("things").get(["a"])  # another object, which others at work may hold
    assert (nothing.asked, nothing.stores) == (0, set())


def test_work_under_way_together_shares_the_time_by_items(store, clock):
    shared = SharedTime()
    with measured([], shared=shared, items=2) as first:
        clock(4)  # alone
        with measured([], shared=shared, items=6) as second:
            clock(8)  # 1 second for each of 8
    clock(100)  # nobody
    with measured([], shared=shared, items=5) as third:
        clock(10)
    assert (first.seconds, second.seconds, third.seconds) == (6, 6, 10)


def test_work_of_several_threads_is_counted_whole(fresh_cache):
    store = Store("things")
    store.put({"a": 1})
    with measured([store]) as use, ThreadPoolExecutor(8) as threads:
        contexts = [copy_context() for _ in range(200)]
        assert all(threads.map(lambda c: c.run(store.get, ["a", "b"]) == {"a": 1}, contexts))
        assert threads.submit(store.get, ["a"]).result() == {"a": 1}  # work for somebody else
    assert (use.asked, use.found) == (400, 200)


def test_work_that_fails_is_measured(store, clock):
    def fail():
        clock(3)
        raise RuntimeError

    with pytest.raises(RuntimeError), measured([store]) as use:
        make(store, ["a"], fail)
    assert (use.asked, use.seconds) == (1, 3)


def test_a_file_of_when_costs_were_kept_serves_still(fresh_cache):
    fresh_cache.mkdir()
    with sqlite3.connect(fresh_cache / "things.sqlite") as connection:
        connection.execute("CREATE TABLE kept (key TEXT PRIMARY KEY, value TEXT)")
        connection.execute("CREATE TABLE costs (key TEXT PRIMARY KEY, seconds REAL)")
        connection.execute("INSERT INTO kept VALUES ('old', '1')")
        connection.execute("INSERT INTO costs VALUES ('old', 2.5)")
    connection.close()
    store = Store("things")
    with measured([store]) as use:
        assert make(store, ["old", "new"]) == 1
    assert (use.asked, use.found) == (2, 1)
    assert Store("things").get(["old", "new"]) == {"old": 1, "new": "NEW"}


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


def test_a_damaged_file_is_made_again_with_a_warning(fresh_cache, caplog):
    store = Store("things")
    store.put({"a": 1})
    for data in (b"not a database" * 100, store.path.read_bytes()[:3000] + b"\xff" * 2000):
        for end in ("-wal", "-shm"):
            store.path.with_name(store.path.name + end).unlink(missing_ok=True)
        store.path.write_bytes(data)
        caplog.clear()
        assert make(store, ["a", "b"]) == 2
        assert "is damaged" in caplog.text
        assert make(Store("things"), ["a", "b"]) == 0


def rows(store, sql):
    with sqlite3.connect(store.path) as connection:
        found = connection.execute(sql).fetchall()
    connection.close()
    return found


def change(store, sql, *values):
    with sqlite3.connect(store.path) as connection:
        connection.execute(sql, values)
    connection.close()


def test_a_damaged_value_is_made_again_with_a_warning(fresh_cache, caplog):
    store = Store("things")
    store.put({"a": 1, "b": 2, "c": 3})
    change(store, "UPDATE kept SET value = '{' WHERE key = 'a'")
    change(store, "UPDATE kept SET value = '\"x\"' WHERE key = 'b'")
    memo = Memo("things", back=int)
    assert memo.get(["a", "b", "c"], lambda rows: ((i, row) for i, row in enumerate(rows))) == [
        0,
        1,
        3,
    ]
    assert caplog.text.count("1 values in the cache") == 2
    assert memo.made == 2
    assert store.get(["a", "b", "c"]) == {"a": 0, "b": 1, "c": 3}


def test_no_changed_byte_of_a_value_gives_another_value(fresh_cache, caplog):
    store = Store("things")
    store.put({"a": {"text": "koala 7", "score": 12.5}, "b": 2})
    [(data,)] = rows(store, "SELECT value FROM kept WHERE key = 'a'")
    for place in range(len(data.encode())):
        changed = bytearray(data.encode())
        changed[place] ^= 1 << place % 8
        change(store, "UPDATE kept SET value = CAST(? AS TEXT) WHERE key = 'a'", bytes(changed))
        caplog.clear()
        assert store.get(["a", "b"]) == {"b": 2}
        assert caplog.text.count("1 values in the cache") == 1
        store.put({"a": {"text": "koala 7", "score": 12.5}})


@pytest.mark.parametrize("value", [b"\xff\xfe", None, "", "[" * 100_000, "1\n", "NaN}"])
def test_a_value_of_another_kind_is_made_again(fresh_cache, value):
    store = Store("things")
    store.put({"a": 1})
    change(store, "UPDATE kept SET value = ? WHERE key = 'a'", value)
    assert store.get(["a"]) == {}
    store.put({"a": 1})
    assert store.get(["a"]) == {"a": 1}


@pytest.mark.parametrize(
    "sql", ["DROP TABLE kept", "ALTER TABLE kept RENAME COLUMN value TO other"]
)
def test_a_file_with_other_tables_is_made_again(fresh_cache, caplog, sql):
    store = Store("things")
    store.put({"a": 1})
    change(store, sql)
    assert store.get(["a"]) == {}
    assert "is damaged" in caplog.text
    store.put({"a": 2})
    assert store.get(["a"]) == {"a": 2}


def test_half_characters_are_kept(fresh_cache):
    store = Store("things")
    store.put({"a": "caf\udce9 \U0001f428"})
    assert store.get(["a"]) == {"a": "caf\udce9 \U0001f428"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0, 0o666)])
def test_files_have_the_permissions_that_the_umask_leaves(fresh_cache, umask, mode):
    before = os.umask(umask)
    try:
        store = Store("things")
        store.put({"a": 1})
    finally:
        os.umask(before)
    assert store.path.stat().st_mode & 0o777 == mode


def test_a_file_that_cannot_be_opened_is_an_error_and_stays(fresh_cache):
    fresh_cache.mkdir()
    (fresh_cache / "things.sqlite").mkdir()
    with pytest.raises(UserError, match="cannot be used"):
        Store("things")
    assert (fresh_cache / "things.sqlite").is_dir()


@pytest.mark.parametrize("name", ["things", None])
def test_a_memo_makes_equal_keys_once_and_keeps_what_was_made_before_an_error(fresh_cache, name):
    memo = Memo(name, chunk=2, out=str, back=int)
    asked, seen = [], []

    def doubled(rows):
        asked.append(rows)
        yield from ((place, 2 * rows[place]) for place in reversed(range(len(rows))))

    keys = ["a", "b", "a", "c"]
    found = memo.get(keys, doubled, lambda done, total: seen.append((done, total)))
    assert found == [0, 2, 0, 6]
    assert asked == [[0, 1], [3]]
    assert seen == [(2, 3), (3, 3)]

    def failing(rows):
        yield 1, 7
        raise KeyError

    with pytest.raises(KeyError):
        memo.get(["d", "e"], failing)
    assert memo.made == 4
    if name:
        assert Store(name).get([*keys, "d", "e"]) == {"a": "0", "b": "2", "c": "6", "e": "7"}


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
        monkeypatch.setattr(registered, "_contract", None)  # they do nothing but count
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


def test_values_are_stored_while_others_are_still_made(fresh_cache):
    def make(rows):
        yield 0, "paid for"
        until = time.monotonic() + 10
        while not Store("slow").get(["a"]) and time.monotonic() < until:
            time.sleep(0.01)
        assert Store("slow").get(["a"]) == {"a": "paid for"}
        yield 1, Failure("no answer")
        yield 2, "next"
        raise UserError("the end")

    with pytest.raises(UserError, match="the end"):
        Memo("slow").get(["a", "b", "c"], make)
    assert Store("slow").get(["a", "b", "c"]) == {"a": "paid for", "c": "next"}


def test_values_that_cannot_be_stored_in_time_are_stored_at_the_end(fresh_cache, monkeypatch):
    store = Store("late")
    tried = threading.Event()

    def refuse(values):
        tried.set()
        raise UserError("full")

    monkeypatch.setattr(store, "put", refuse)
    with store.writing() as keep:
        keep("a", 1)
        assert tried.wait(10)
        monkeypatch.delattr(store, "put")
    assert store.get(["a"]) == {"a": 1}
    monkeypatch.setattr(store, "put", refuse)
    with pytest.raises(UserError, match="full"), store.writing() as keep:
        keep("b", 2)


def test_no_more_values_wait_than_may(fresh_cache, monkeypatch):
    monkeypatch.setattr("ravqa.core.cache._STORED_AFTER_S", 60)
    store = Store("many")
    with store.writing(3) as keep:
        for i in range(8):
            keep(str(i), i)
            assert i - len(store.get([str(n) for n in range(8)])) < 3


def test_values_are_kept_while_others_are_being_stored(fresh_cache, monkeypatch):
    store = Store("slow")
    storing, release = threading.Event(), threading.Event()
    put, sizes = store.put, []

    def slowly(values):
        sizes.append(len(values))
        storing.set()
        assert release.wait(20)
        put(values)

    monkeypatch.setattr(store, "put", slowly)
    monkeypatch.setattr("ravqa.core.cache._STORED_AFTER_S", 60)

    def first():
        with store.writing(1) as keep:
            keep("a", 1)

    def second():
        assert storing.wait(20)
        with store.writing(1) as keep:
            for i in range(5):
                keep(str(i), i)
            release.set()  # reached, though the first value is not stored yet
        return store.get(list("01234"))

    assert in_threads(first, second)[1] == {str(i): i for i in range(5)}
    assert sizes == [1, 5]
    assert store.get(["a"]) == {"a": 1}


def in_threads(*calls):
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result(20) for future in [threads.submit(call) for call in calls]]


@pytest.mark.parametrize("first", ["made", "failed", "raised"])
def test_of_equal_keys_in_several_threads_one_is_made(fresh_cache, first):
    begun, waited_for = threading.Event(), threading.Event()
    made = []

    def slowly(rows):
        made.append(rows)
        begun.set()
        assert waited_for.wait(20)
        if first == "raised":
            raise UserError("gone")
        yield from (
            (place, Failure("no") if first == "failed" else 1) for place in range(len(rows))
        )

    def quickly(rows):
        made.append(rows)
        waited_for.set()
        yield from ((place, 2) for place in range(len(rows)))

    def one():
        try:
            return Memo("things").get(["a", "b"], slowly)
        except UserError as e:
            return str(e)

    def other():
        assert begun.wait(20)
        memo = Memo("things")
        with measured(memo.stores) as use:
            found = memo.get(["c", "b"], quickly)
        return found, use.asked, use.found

    if first == "made":
        assert in_threads(one, other) == [[1, 1], ([2, 1], 2, 1)]
        assert made == [[0, 1], [0]]
    else:  # then the other one makes it, as it would have done later
        failed = "gone" if first == "raised" else [Failure("no")] * 2
        assert in_threads(one, other) == [failed, ([2, 2], 2, 0)]
        assert made == [[0, 1], [0], [1]]


def test_without_a_store_threads_do_not_share(fresh_cache):
    memo, both = Memo(None), threading.Barrier(2)

    def make(rows):
        both.wait(20)
        yield 0, threading.get_ident()

    one, other = in_threads(lambda: memo.get(["a"], make), lambda: memo.get(["a"], make))
    assert one != other


def test_a_value_that_cannot_be_stored_does_not_keep_others_from_it(fresh_cache):
    store = Store("things")
    with pytest.raises(TypeError), store.writing() as keep:
        keep("a", object())
    with store.writing() as keep:
        keep("b", 1)
    assert store.get(["a", "b"]) == {"b": 1}
