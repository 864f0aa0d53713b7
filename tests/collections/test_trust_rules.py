"""What settings name outside of their file, kind by kind, and how a user's own are remembered."""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from ravqa.collections import trust
from ravqa.collections.trust import Setting, is_mine, listed, outside, outside_of_run, remember
from ravqa.core.registry import Entry
from ravqa.core.settings import Names, Strict
from ravqa.readers import READERS

BASE = {"retriever": {"name": "late-interaction"}, "reader": {"name": "first-words"}}
ANYTHING = "something that is not declared harmless"
UNKNOWN = "an unknown setting"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """The state folder of a user who has given no settings yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trust, "_here", set())
    return tmp_path / "state" / "ravqa" / "settings.sha256"


class Inner(Strict):
    """Options inside options."""

    url: Annotated[str, Names("a server")] = ""
    size: int = 1


class Plugin:
    """A part whose settings are of every kind."""

    class Config(Strict):
        free: str = "default"
        number: float = 1.0
        flag: bool = False
        maybe: int | None = None
        mode: Literal["a", "b"] = "a"
        either: int | Annotated[str, Names("a file", lambda v: v == "fine")] = 1
        several: tuple[Annotated[str, Names("a name", str.isalpha)], ...] = ()
        pairs: tuple[float, ...] = ()
        table: dict[str, Annotated[str, Names("a value", str.isalpha)]] = Field(
            default_factory=dict
        )
        listed: list[str] = Field(default_factory=lambda: ["default"])
        any: Any = None
        marked: Annotated[str | None, Names("a key")] = None
        inner: Inner = Inner()
        inners: tuple[Inner, ...] = ()
        code: Annotated[bool, Names("code", lambda v: v is False)] = False


@pytest.fixture(autouse=True)
def plugged(monkeypatch):
    get = READERS.get
    monkeypatch.setitem(READERS._entries, "plugged", Entry("a:b", "for tests"))
    monkeypatch.setattr(READERS, "get", lambda name: Plugin if name == "plugged" else get(name))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"free": "default"}, {}),
        ({"free": "x"}, {"free": ANYTHING}),
        ({"free": None}, {}),
        ({"free": 7}, {}),
        ({"free": ["x"]}, {"free": ANYTHING}),
        ({"number": 2, "flag": True, "maybe": 3}, {}),
        ({"number": "x", "maybe": "y"}, {}),  # pydantic refuses these
        ({"mode": "b"}, {}),
        ({"mode": "c"}, {"mode": ANYTHING}),
        ({"mode": ["b"]}, {"mode": ANYTHING}),
        ({"either": "fine"}, {}),
        ({"either": "x"}, {"either": "a file"}),
        ({"either": 2}, {}),
        ({"several": ["a", "b"]}, {}),
        ({"several": ["a", "7"]}, {"several": "a name"}),
        ({"several": "a"}, {"several": ANYTHING}),
        ({"pairs": [1, 2.5]}, {}),
        ({"table": {"7": "a"}}, {}),
        ({"table": {"a": "7"}}, {"table": "a value"}),
        ({"table": ["a"]}, {"table": ANYTHING}),
        ({"listed": ["default"]}, {}),
        ({"listed": ["x"]}, {"listed": ANYTHING}),
        ({"any": 1}, {}),
        ({"any": "x"}, {"any": ANYTHING}),
        ({"marked": "x"}, {"marked": "a key"}),
        ({"marked": None}, {}),
        ({"inner": {"url": "x", "size": 3}}, {"inner.url": "a server"}),
        ({"inner": {"url": "", "new": 1}}, {"inner.new": UNKNOWN}),
        ({"inner": "x"}, {"inner": UNKNOWN}),
        ({"inner": None}, {}),
        (
            {"inners": [{"size": 2}, {"url": "x"}, "y", None]},
            {"inners.1.url": "a server", "inners.2": UNKNOWN},
        ),
        ({"code": True}, {"code": "code"}),
        ({"code": 1}, {"code": "code"}),
        ({"code": 0}, {"code": "code"}),
        ({"code": False}, {}),
        ({"new": False}, {"new": UNKNOWN}),
    ],
)
def test_what_a_setting_of_each_kind_names(options, found):
    settings = {**BASE, "reader": {"name": "plugged", **options}}
    assert {s.path.removeprefix("reader."): s.names for s in outside(settings)} == found


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("reader", {"name": "gone"}),
        ("reader", {"name": 7}),
        ("reader", {}),
        ("reader", "x"),
        ("describer", ["x"]),
        ("other", {"name": "first-words"}),
    ],
)
def test_a_part_that_is_not_known_names_anything(part, value):
    [found] = outside({**BASE, part: value})
    assert found.path == (f"{part}.0" if isinstance(value, list) else part)
    assert found.value == (value[0] if isinstance(value, list) else value)
    assert found.names == UNKNOWN


def test_settings_are_found_in_the_order_of_the_file():
    reader = {"name": "plugged", "marked": "b", "free": "a"}
    reranking = [{"name": "vlm", "reader": reader}, {"name": "gone"}]
    found = outside({"reranking": reranking, "x": 1, "reader": reader, **BASE})
    assert [s.path for s in found] == [
        "reranking.0.reader.marked",
        "reranking.0.reader.free",
        "reranking.1",
        "x",
    ]
    assert outside(BASE) == []


def test_what_a_run_names():
    config = {
        "dataset": {"data": "/d", "options": {"images": "/i"}, "split": "val"},
        "corpus": {"files": ["/c"], "options": ["keep=/k"]},
        "pipeline": {**BASE, "x": 1},
    }
    path = "a local path"
    assert outside_of_run(config) == [
        Setting("dataset.data", "/d", path),
        Setting("dataset.options", {"images": "/i"}, path),
        Setting("corpus.files", ["/c"], path),
        Setting("corpus.options", ["keep=/k"], path),
        Setting("pipeline.x", 1, UNKNOWN),
    ]
    for split in ("../x", "a/b", ""):
        found = outside_of_run({"dataset": {"split": split}})
        assert found == [Setting("dataset.split", split, path)]
    for split in ("val2014", "a-b_c.d", 7, None):
        assert outside_of_run({"dataset": {"split": split}}) == []
    for config in ({}, {"dataset": None, "corpus": [], "pipeline": "x"}):
        assert outside_of_run(config) == []


def test_settings_are_listed_with_what_they_name():
    found = [Setting("a.b", "x\n", "a server"), Setting("c", True, "code")]
    assert listed(found) == "a.b = 'x\\n' (a server), c = True (code)"
    assert listed([]) == ""


# What a user has given


def digest(settings):
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def test_settings_are_remembered_by_their_hash(state):
    settings = {"b": 1, "a": [1, "x"]}
    assert not is_mine(settings)
    remember(settings)
    assert state.read_text() == f"{digest(settings)}\n"
    assert stat.S_IMODE(state.parent.stat().st_mode) == 0o700 & ~_umask()
    assert is_mine({"a": (1, "x"), "b": 1})
    assert not is_mine({"a": [1, "x"], "b": "1"})
    remember(settings)
    assert state.read_text().count("\n") == 1
    remember({})
    assert state.read_text() == f"{digest(settings)}\n{digest({})}\n"


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current


def test_another_process_knows_what_was_remembered(state, monkeypatch):
    remember({"a": 1})
    monkeypatch.setattr(trust, "_here", set())
    assert is_mine({"a": 1})
    assert not is_mine({"a": 2})
    state.write_bytes(b"\xff\n" + state.read_bytes())  # whatever else is there
    assert is_mine({"a": 1})
    state.unlink()
    assert not is_mine({"a": 1})


def test_values_that_json_lacks_are_remembered_as_text():
    remember({"a": Path("x"), 1: "y"})
    assert is_mine({"a": "x", "1": "y"})


def test_the_state_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    remember({"a": 1})
    assert (tmp_path / "home/.local/state/ravqa/settings.sha256").is_file()


def test_a_state_folder_that_cannot_be_written_is_told(state, caplog):
    state.parent.parent.write_text("a file")
    remember({"a": 1})
    [line] = [record.getMessage() for record in caplog.records]
    assert line == (
        f"{state} cannot be written (Not a directory): these settings will not be recognised as "
        "yours later: use --trust-settings then"
    )
    assert is_mine({"a": 1})  # by this process
