"""A writer that is killed, at any moment, leaves the last complete state."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from kills import Killed, begin, kills, report

DIM = 16
BASE = [f"p{i}" for i in range(30)]
NEW = [f"new{i}" for i in range(6)]


def vectors(seed, count, longest=6):
    from index_files import units

    rng = np.random.default_rng(seed)
    return [units(rng, n, DIM) for n in rng.integers(0, longest, size=count)]


def base():
    return dict(zip(BASE, vectors(0, len(BASE)), strict=True))


def without(passages, ids):
    return {i: p for i, p in passages.items() if i not in ids}


# Each change: what it does to an index, and to a dictionary.

ADDED = dict(zip(NEW, vectors(1, len(NEW)), strict=True))
GONE = ["p1", "p7", "p29"]
CHANGED = dict(zip(["p3", "x", "p20"], vectors(2, 3), strict=True))
MANY = {f"m{i}": p for i, p in enumerate(vectors(3, 120))}

CHANGES = {
    "add": (lambda index: index.add(list(ADDED), list(ADDED.values())), lambda d: d | ADDED),
    "delete": (lambda index: index.delete(GONE), lambda d: without(d, GONE)),
    "update": (
        lambda index: index.update(list(CHANGED), list(CHANGED.values())),
        lambda d: without(d, CHANGED) | CHANGED,
    ),
    "compact": (lambda index: index.compact(), lambda d: d),
    # so many that the compressed kind chooses new centroids
    "grow": (lambda index: index.add(list(MANY), list(MANY.values())), lambda d: d | MANY),
}


# --- the helper


class Rounds(Killed):
    """A change of an index."""

    def __init__(self, folder, kind, storage, change):
        self.folder, self.kind, self.storage, self.change = Path(folder), kind, storage, change
        self.folder.mkdir()
        self.template = self.folder / "template"
        self.path = self.folder / "index"
        self.before, self.after = None, base()
        self.build(self.template)
        if change != "build":
            index = self.open(self.template)
            index.delete(["p5"])  # so that there are deletions, and two segments
            index.add(["p5"], [self.after["p5"]])
            self.before = without(self.after, ["p5"]) | {"p5": self.after["p5"]}
            self.after = CHANGES[change][1](self.before)

    def open(self, path):
        from index_files import kind_of

        return kind_of(self.kind)(path)

    def build(self, path):
        from index_files import build

        passages = base()
        build(
            path,
            list(passages.values()),
            ids=list(passages),
            kind=self.kind,
            storage=self.storage,
            dim=DIM,
        )

    def act(self):
        if self.change == "build":
            self.build(self.path)
        else:
            CHANGES[self.change][0](self.open(self.path))

    def fresh(self):
        shutil.rmtree(self.path, ignore_errors=True)
        if self.before is not None:
            shutil.copytree(self.template, self.path)

    def check(self, where):
        """The index is whole and in the state before or after; the next writer works.

        Returns:
            Whether it is in the state after.
        """
        from index_files import files, kind_of, owned, stored

        where = f"{self.kind} {self.change} killed at {where}"
        if self.before is None and not kind_of(self.kind).built(self.path):
            self.build(self.path)
            assert files(self.path) == owned(self.path), where
            assert self.matches(stored(self.path), self.after), where
            return False
        index = self.open(self.path)
        assert index.verify() == [], where
        found = stored(self.path)
        done = self.matches(found, self.after)
        assert done or self.matches(found, self.before), where
        assert index.ids == list(found), where
        index.add(["next"], [np.eye(DIM)])
        index.delete(["p0"])
        assert index.verify() == [], where
        assert files(self.path) == owned(self.path), where
        expected = self.after if done else self.before
        assert list(stored(self.path)) == [*without(expected, ["p0"]), "next"], where
        return done

    @staticmethod
    def matches(found, expected):
        return (
            expected is not None
            and list(found) == list(expected)
            and all(found[i].shape == p.shape for i, p in expected.items())
            and all(
                (p @ found[i].T).max(axis=1).min() > 0.95 for i, p in expected.items() if len(p)
            )
        )


def helper():
    task = begin()
    folder, how = Path(task["folder"]), (task["kind"], task["storage"])
    warm = Rounds(folder / "warm", *how, "build")
    warm.open(warm.template).compact()  # imports here what each child would import again
    report(task, lambda change: Rounds(folder / change, *how, change))


# --- the tests


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "storage"), [("exact", "float16"), ("compressed", "9bit")])
def test_a_kill_at_every_step_and_at_some_moments(tmp_path, kind, storage):
    changes = ["build", *CHANGES]
    how = {"kind": kind, "storage": storage}
    results = kills(__file__, tmp_path, changes, steps=0, times=10, **how)
    for change in changes:
        states = results[change]["states"]
        assert len(states) == results[change]["steps"] > 8
        # Before the manifest is renamed there is the old state, from then on the new one.
        if change not in ("build", "compact"):
            assert set(states) == {False, True}


if __name__ == "__main__":
    helper()
