"""A collection whose writer stops, at any moment: vectors and passages belong together.

Quickly: in this process, where from some step on nothing can be written. And really killed: in
children of a helper process (see `kills`).
"""

import itertools
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import slow_but
from kills import Killed, begin, kills, report

from ravqa.core.records import Passage

BASE = [Passage(f"p{i}", f"base text number {i} of several", extra={"n": i}) for i in range(6)]
NEW = [Passage(f"new{i}", f"something new with number {i}") for i in range(3)]
CHANGED = [
    replace(BASE[1], text="an entirely different text"),
    replace(BASE[4], extra={"n": "other"}),
    Passage("fresh", "a fresh passage beside them"),
]


def with_picture(folder):
    import PIL.Image

    file = folder / "picture.png"
    PIL.Image.new("RGB", (8, 8), (200, 10, 10)).save(file)
    return Passage("picture", "a red picture", image=file)


CHANGES = {
    "first": lambda collection, folder: collection.add([*BASE, with_picture(folder)]),
    "add": lambda collection, folder: collection.add([*NEW, with_picture(folder)]),
    "update": lambda collection, folder: collection.update(
        [*CHANGED, BASE[3]], source="mine", prune=True
    ),
    "delete": lambda collection, folder: collection.delete(["p0", "p5"]),
    "compact": lambda collection, folder: collection.compact(),
    # so many that the exact index is replaced by a compressed one
    "outgrow": lambda collection, folder: collection.add(
        [Passage(f"many{i}", f"one of many {i}") for i in range(8)]
    ),
}


def content(collection):
    """The passages in order, and the source of each."""
    return {
        i: (p.content, dict(p.extra), origin)
        for i in collection
        for p, origin in [collection.corpus.present(i)]
    }


def agrees(collection):
    """Each passage's stored vectors are those of its text."""
    from collection_files import HashEncoder

    index = collection._state.index
    if index is None or not hasattr(index, "embeddings"):
        return True
    encoder = HashEncoder(HashEncoder.Config())
    for passage_id, stored in zip(index.ids, index.embeddings(), strict=True):
        expected = encoder.vectors(collection[passage_id].content)
        if stored.shape != expected.shape or np.abs(stored - expected).max() > 1e-2:
            return False
    return True


class Rounds(Killed):
    """A change of a collection."""

    def __init__(self, folder, change):
        from collection_files import pipeline

        from ravqa.collections import Collection

        self.folder, self.change, self.Collection = Path(folder), change, Collection
        self.folder.mkdir(parents=True)
        self.template, self.path = self.folder / "template", self.folder / "index"
        settings = pipeline(self.folder, index={"name": "auto", "above": 12})
        collection = self.first = Collection.create(self.template, settings)
        if change != "first":
            collection.add([*BASE, Passage("gone", "soon gone")], source="mine")
            collection.update([replace(BASE[2], text="second version")])
            collection.delete(["gone"])
        self.before = content(collection)
        self.fresh()
        self.act()
        self.after = content(self.open())
        assert change == "compact" or self.before != self.after

    def fresh(self):
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.template, self.path)
        shutil.rmtree(Path(os.environ["RAVQA_CACHE"]) / "embeddings", ignore_errors=True)

    def open(self):
        collection = self.Collection.open(self.path)
        collection._pipelines = self.first._pipelines  # loaded once
        return collection

    def act(self):
        CHANGES[self.change](self.open(), self.folder)

    def check(self, where, *, thorough=True):
        """The collection is whole, before or after the change; the next writer works.

        Returns:
            Whether it is in the state after.
        """
        where = f"{self.change} killed at {where}"
        collection = self.open()
        assert collection.verify() == [], where
        assert agrees(collection), where
        found = content(collection)
        done = found == self.after
        assert done or found == self.before, where
        if thorough:
            collection.add([Passage("next", "the next passage")])
            collection.delete(["next"])
            assert collection.verify() == [], where
        else:
            with collection._changing():
                pass
        assert content(collection) == found, where
        # What the kill left behind is gone.
        index = collection._state.index
        parts = (
            {entry["name"] for entry in index.attached["passages"]} if index is not None else set()
        )
        named = {collection._state.manifest.index, *parts, "collection.json", "lock", "images"}
        assert {p.name for p in self.path.iterdir()} <= named, where
        return done


def helper():
    task = begin()
    folder = Path(task["folder"])
    Rounds(folder / "warm", "outgrow")  # imports here what each child would import
    report(task, lambda change: Rounds(folder / change, change))


class Stopped(BaseException):
    """Nothing can be written any more."""


@pytest.fixture
def stop_at(monkeypatch):
    """A function: from which step on every step of writing fails; None for never."""
    limit = count = None

    def watch(module, name):
        original = getattr(module, name)

        def step(*arguments, **options):
            nonlocal count
            if count is not None:
                count += 1
                if limit is not None and count >= limit:
                    raise Stopped
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, step)

    def stop(number):
        nonlocal limit, count
        done = count
        limit, count = number, None if number is None else 0
        return done

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing is lost by an error
    for name in ("fsync", "mkdir", "rename", "replace", "unlink"):
        watch(os, name)
    watch(shutil, "rmtree")
    return stop


@pytest.mark.parametrize(
    ("change", "every"), slow_but([("update", 3)], [("first", 3), ("update", 3), ("outgrow", 8)])
)
def test_a_writer_that_stops_at_any_step(tmp_path, fresh_cache, stop_at, change, every):
    rounds = Rounds(tmp_path / "rounds", change)
    states = []
    for step in itertools.count(random.randrange(1, every + 1), every):
        rounds.fresh()
        stop_at(step)
        try:
            rounds.act()
        except Stopped:
            stop_at(None)
        else:
            assert stop_at(None) >= step - every
            break
        states.append(rounds.check(f"step {step}", thorough=len(states) == 3))
    assert len(states) > 6
    assert states == sorted(states)
    assert set(states) == {False, True}


@pytest.mark.slow
def test_a_kill_at_every_step_and_at_some_moments(tmp_path):
    results = kills(__file__, tmp_path, list(CHANGES), steps=0, times=8)
    for change, result in results.items():
        assert len(result["states"]) == result["steps"] > 8
        if change != "compact":
            assert set(result["states"]) == {False, True}


if __name__ == "__main__":
    helper()
