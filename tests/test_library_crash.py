"""A library whose writer stops, at any moment: vectors and passages belong together.

Quickly: in this process, where from some step on nothing can be written. And really killed: in
children of a helper process (this file, run as a script), as in `test_index_crash`.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ravqa.records import Passage

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
    "first": lambda library, folder: library.add([*BASE, with_picture(folder)]),
    "add": lambda library, folder: library.add([*NEW, with_picture(folder)]),
    "update": lambda library, folder: library.update(CHANGED),
    "delete": lambda library, folder: library.delete(["p0", "p5"]),
    "compact": lambda library, folder: library.compact(),
    # so many that the exact index is replaced by a compressed one
    "outgrow": lambda library, folder: library.add(
        [Passage(f"many{i}", f"one of many {i}") for i in range(8)]
    ),
}


def content(library):
    return {i: (p.content, dict(p.extra)) for i, p in library.corpus.items()}


def agrees(library):
    """Each passage's stored vectors are those of its text."""
    from library_files import HashEncoder

    index = library._state.index
    if index is None or not hasattr(index, "embeddings"):
        return True
    encoder = HashEncoder(HashEncoder.Config())
    for passage_id, stored in zip(index.ids, index.embeddings(), strict=True):
        expected = encoder.vectors(library[passage_id].content)
        if stored.shape != expected.shape or np.abs(stored - expected).max() > 1e-2:
            return False
    return True


class Rounds:
    """Kills one change again and again."""

    def __init__(self, folder, change):
        from library_files import pipeline

        from ravqa.library import Library

        self.folder, self.change, self.Library = Path(folder), change, Library
        self.folder.mkdir(parents=True)
        self.template, self.path = self.folder / "template", self.folder / "index"
        settings = pipeline(self.folder, index={"name": "auto", "above": 12})
        library = self.first = Library.create(self.template, settings)
        if change != "first":
            library.add([*BASE, Passage("gone", "soon gone")])
            library.update([replace(BASE[2], text="second version")])
            library.delete(["gone"])
        self.before = content(library)
        self.fresh()
        self.act()
        self.after = content(self.open())
        assert change == "compact" or self.before != self.after

    def fresh(self):
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.template, self.path)
        shutil.rmtree(Path(os.environ["RAVQA_CACHE"]) / "embeddings", ignore_errors=True)

    def open(self):
        library = self.Library.open(self.path)
        library._pipelines = self.first._pipelines  # loaded once
        return library

    def act(self):
        CHANGES[self.change](self.open(), self.folder)

    def forked(self, prepare):
        self.fresh()
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
        from test_index_crash import with_each_step

        counter = self.folder / "steps"
        counter.write_text("")

        def count():
            with_each_step(self.path, lambda n: counter.write_text(str(n)))

        assert os.waitpid(self.forked(count), 0)[1] == 0
        return int(counter.read_text())

    def kill_at_step(self, step):
        from test_index_crash import with_each_step

        def arm():
            with_each_step(self.path, lambda n: n == step and os.kill(os.getpid(), signal.SIGKILL))

        status = os.waitpid(self.forked(arm), 0)[1]
        assert os.WIFSIGNALED(status), f"not killed at step {step}: {status}"
        return self.check(f"step {step}")

    def kill_in_time(self, moments):
        start = time.monotonic()
        assert os.waitpid(self.forked(lambda: None), 0)[1] == 0
        duration = time.monotonic() - start
        states = []
        for moment in moments:
            pid = self.forked(lambda: None)
            time.sleep(moment * duration)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            states.append(self.check(f"{moment:.3f} of {duration:.3f} s"))
        return states

    def check(self, where, *, thorough=True):
        """The library is whole, before or after the change; the next writer works.

        Returns:
            Whether it is in the state after.
        """
        where = f"{self.change} killed at {where}"
        library = self.open()
        assert library.verify() == [], where
        assert agrees(library), where
        found = content(library)
        done = found == self.after
        assert done or found == self.before, where
        if thorough:
            library.add([Passage("next", "the next passage")])
            library.delete(["next"])
            assert library.verify() == [], where
        else:
            with library._changing():
                pass
        assert content(library) == found, where
        # What the kill left behind is gone.
        index = library._state.index
        parts = (
            {entry["name"] for entry in index.attached["passages"]} if index is not None else set()
        )
        named = {library._state.manifest.index, *parts, "library.json", "lock", "images"}
        assert {p.name for p in self.path.iterdir()} <= named, where
        return done


def helper():
    task = json.loads(sys.argv[1])
    os.fsync = lambda _: None  # a kill, unlike a power cut, loses nothing that was written
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    chance = random.Random(task["seed"])
    results = {}
    Rounds(Path(task["folder"]) / "warm", "outgrow")  # imports here what each child would import
    for change in task["changes"]:
        rounds = Rounds(Path(task["folder"]) / change, change)
        steps = rounds.steps()
        some = range(1, steps + 1)
        if task["steps"]:
            some = sorted(chance.sample(some, min(steps, task["steps"])))
        states = [rounds.kill_at_step(n) for n in some]
        assert states == sorted(states), "a later kill left an older state"
        timed = rounds.kill_in_time([chance.uniform(0, 1.1) for _ in range(task["times"])])
        results[change] = {"steps": steps, "states": states, "timed": timed}
    print(json.dumps(results))


def kills(folder, changes, *, steps, times):
    """Of each change: how many steps it has, and for each kill whether the change was done."""
    if not hasattr(os, "fork") or not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs fork and Linux's processor affinity")
    task = {
        "folder": str(folder),
        "changes": changes,
        "steps": steps,
        "times": times,
        "seed": random.randrange(2**32),
    }
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(task)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAVQA_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{task}\n{done.stderr}"
    return json.loads(done.stdout)


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


@pytest.mark.parametrize(("change", "every"), [("first", 3), ("update", 3), ("outgrow", 8)])
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
@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_at_every_step_and_at_many_moments(tmp_path, change):
    result = kills(tmp_path, [change], steps=0, times=20)[change]
    assert len(result["states"]) == result["steps"] > 8
    if change != "compact":
        assert set(result["states"]) == {False, True}


if __name__ == "__main__":
    helper()
