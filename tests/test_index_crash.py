"""A writer that is killed, at any moment, leaves the last complete state.

The kills happen in children of a helper process (this file, run as a script): it imports once, uses
one thread, and so may fork as often as it likes.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

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


class Rounds:
    """Kills one change again and again."""

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

    def forked(self, prepare):
        pid = os.fork()
        if pid == 0:
            try:
                prepare()
                self.act()
                os._exit(0)
            except BaseException as e:
                print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
                os._exit(1)
        return pid

    def steps(self):
        """How many steps (file operations) the change takes."""
        self.fresh()
        counter = self.folder / "steps"
        counter.write_text("")

        def count():
            with_each_step(self.path, lambda n: counter.write_text(str(n)))

        assert os.waitpid(self.forked(count), 0)[1] == 0
        return int(counter.read_text())

    def kill_at_step(self, step):
        def arm():
            with_each_step(self.path, lambda n: n == step and os.kill(os.getpid(), signal.SIGKILL))

        self.fresh()
        status = os.waitpid(self.forked(arm), 0)[1]
        assert os.WIFSIGNALED(status), f"not killed at step {step}: {status}"
        return self.check(f"step {step}")

    def kill_in_time(self, moments):
        self.fresh()
        start = time.monotonic()
        assert os.waitpid(self.forked(lambda: None), 0)[1] == 0
        duration = time.monotonic() - start
        states = []
        for moment in moments:
            self.fresh()
            pid = self.forked(lambda: None)
            time.sleep(moment * duration)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            states.append(self.check(f"{moment:.3f} of {duration:.3f} s"))
        return states

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


def with_each_step(path, called):
    """Call with 1, 2, ... before each step of writing in a folder from now on."""
    steps = 0

    def step():
        nonlocal steps
        steps += 1
        called(steps)

    def hook(event, arguments):
        if event == "open":
            writes = set(arguments[1] or "") & set("wax+")
        else:
            writes = event in ("os.mkdir", "os.rename", "os.remove", "shutil.rmtree")
        if writes and str(arguments[0]).startswith(str(path)):
            step()

    sys.addaudithook(hook)
    os.fsync = lambda _: step()


def helper():
    task = json.loads(sys.argv[1])
    os.fsync = lambda _: None  # a kill, unlike a power cut, loses nothing that was written
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    chance = random.Random(task["seed"])
    results = {}
    warm = Rounds(Path(task["folder"]) / "warm", task["kind"], task["storage"], "build")
    warm.open(warm.template).compact()  # imports here what each child would import again
    for change in task["changes"]:
        rounds = Rounds(Path(task["folder"]) / change, task["kind"], task["storage"], change)
        steps = rounds.steps()
        some = range(1, steps + 1)
        if task["steps"]:
            some = sorted(chance.sample(some, min(steps, task["steps"])))
        states = [rounds.kill_at_step(n) for n in some]
        assert states == sorted(states), "a later kill left an older state"
        timed = rounds.kill_in_time([chance.uniform(0, 1.1) for _ in range(task["times"])])
        results[change] = {"steps": steps, "states": states, "timed": timed}
    print(json.dumps(results))


# --- the tests


def kills(folder, kind, storage, changes, *, steps, times):
    """Of each change: how many steps it has, and for each kill whether the change was done.

    Args:
        steps: kills at so many steps, 0 for all.
        times: kills at so many moments.
    """
    if not hasattr(os, "fork") or not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs fork and Linux's processor affinity")
    task = {
        "folder": str(folder),
        "kind": kind,
        "storage": storage,
        "changes": changes,
        "steps": steps,
        "times": times,
        "seed": random.randrange(2**32),
    }
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(task)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{task}\n{done.stderr}"
    return json.loads(done.stdout)


both_kinds = pytest.mark.parametrize(
    ("kind", "storage"), [("exact", "float16"), ("compressed", "9bit")]
)


@pytest.mark.parametrize(
    ("kind", "storage", "changes"),
    [
        ("exact", "float16", ["build", "add", "delete", "update", "compact"]),
        ("compressed", "9bit", ["grow"]),
    ],
)
def test_some_kills(tmp_path, kind, storage, changes):
    results = kills(tmp_path, kind, storage, changes, steps=4, times=2)
    for change in changes:
        assert len(results[change]["states"]) == 4
        assert results[change]["steps"] > 8


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("change", ["build", *CHANGES])
def test_a_kill_at_every_step_and_at_many_moments(tmp_path, kind, storage, change):
    result = kills(tmp_path, kind, storage, [change], steps=0, times=40)[change]
    assert len(result["states"]) == result["steps"] > 8
    # Before the manifest is renamed there is the old state, from then on the new one.
    if change not in ("build", "compact"):
        assert set(result["states"]) == {False, True}


if __name__ == "__main__":
    helper()
