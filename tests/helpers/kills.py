"""Kills of one change, again and again, in the children of a helper process.

The helper is the test's own file run as a script: it imports once, uses one thread, and so may fork
as often as it likes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Killed(ABC):
    """A change that is killed; what it is, a subclass says.

    Attributes:
        folder: a folder of its own.
        path: what is changed, a folder inside.
    """

    folder: Path
    path: Path

    @abstractmethod
    def fresh(self):
        """Put `path` into the state before the change."""

    @abstractmethod
    def act(self):
        """The change."""

    @abstractmethod
    def check(self, where):
        """Assert that what a kill has left is sound; gives whether the change was done."""

    def forked(self, prepare):
        """The process number of a child that makes the change."""
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
        """How many steps (file operations) the change takes."""
        counter = self.folder / "steps"
        counter.write_text("")

        def count():
            with_each_step(self.path, lambda n: counter.write_text(str(n)))

        assert os.waitpid(self.forked(count), 0)[1] == 0
        return int(counter.read_text())

    def kill_at_step(self, step):
        """Whether the change was done."""

        def arm():
            with_each_step(self.path, lambda n: n == step and os.kill(os.getpid(), signal.SIGKILL))

        status = os.waitpid(self.forked(arm), 0)[1]
        assert os.WIFSIGNALED(status), f"not killed at step {step}: {status}"
        return self.check(f"step {step}")

    def kill_in_time(self, moments):
        """For each moment, in parts of the change's duration, whether the change was done."""
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


def begin():
    """In the helper: its task; from here on nothing waits for the disk."""
    os.fsync = lambda _: None  # a kill, unlike a power cut, loses nothing that was written
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return json.loads(sys.argv[1])


def report(task, change_of):
    """In the helper: kill each of the task's changes, and print what came of it."""
    chance = random.Random(task["seed"])
    results = {}
    for change in task["changes"]:
        killed = change_of(change)
        steps = killed.steps()
        some = range(1, steps + 1)
        if task["steps"]:
            some = sorted(chance.sample(some, min(steps, task["steps"])))
        states = [killed.kill_at_step(n) for n in some]
        assert states == sorted(states), "a later kill left an older state"
        timed = killed.kill_in_time([chance.uniform(0, 1.1) for _ in range(task["times"])])
        results[change] = {"steps": steps, "states": states, "timed": timed}
    print(json.dumps(results))


def kills(script, folder, changes, *, steps, times, **task):
    """Of each change: how many steps it has, and for each kill whether the change was done.

    Args:
        script: the helper.
        steps: kills at so many steps, 0 for all.
        times: kills at so many moments.
        task: what else the helper is told.
    """
    if not hasattr(os, "fork") or not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs fork and Linux's processor affinity")
    task |= {"folder": str(folder), "changes": changes, "steps": steps, "times": times}
    task["seed"] = random.randrange(2**32)
    done = subprocess.run(
        [sys.executable, script, json.dumps(task)],
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "RAVQA_CACHE": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{task}\n{done.stderr}"
    return json.loads(done.stdout)
