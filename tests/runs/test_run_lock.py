"""A run's folder has one writer: other processes are told who it is, and write nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ravqa.core import files
from ravqa.core.errors import UserError
from ravqa.core.files import check_free, lock
from ravqa.runs.folder import RunDir

READER = """
import os, time
from pathlib import Path
from ravqa.core.settings import Strict, fingerprint
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader

READERS.add("gated", "gated:Gated", "waits until a file is there, from its third prompt on")


class Gated(Reader):
    class Config(Strict):
        pass

    deterministic = False
    weights = "none"
    fingerprint = "gated/1"
    asked = 0

    def __init__(self, config):
        self.config = config

    def generate(self, prompts):
        for _ in prompts:
            Gated.asked += 1
            while Gated.asked > 2 and not Path(os.environ["GATE"]).exists():
                time.sleep(0.01)
        return [Generation("leaves") for _ in prompts]
"""
QUESTIONS = 6


@pytest.fixture
def start(tmp_path):
    """Starts a command as a process of its own."""
    (tmp_path / "gated.py").write_text(READER)
    rows = [
        {"question_id": i, "question": f"What is {i}?", "answers": ["leaves"]}
        for i in range(QUESTIONS)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    package = Path(files.__file__).parents[2]
    started = []

    def command(*arguments, gate="open"):
        (tmp_path / "open").touch()
        environment = {
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{package}",
            "RAVQA_PLUGINS": "gated",
            "GATE": str(tmp_path / gate),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "ravqa", *arguments],
            cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    yield command
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


RUN = (
    "run", "--dataset", "jsonl", "--data", "questions.jsonl", "--retriever", "none", "--reader",
    "gated", "--set", "describer=null", "--set", "answering.decision=top1", "--set",
    "answering.cache=false", "--no-report", "--output", "out",
)  # fmt: skip


def until(condition, process):
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    raise AssertionError("nothing happened for a minute")


def rows(folder):
    file = folder / "samples.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def refused(process, owner):
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "Traceback" not in said
    [error] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"is being written by process {owner.pid} since 20" in error
    return error


@pytest.mark.slow
def test_a_second_run_into_a_folder_stops_and_changes_nothing(start, tmp_path):
    out = tmp_path / "out"
    first = start(*RUN, gate="shut")
    until((out / "config.yaml").is_file, first)
    seconds = [start(*RUN, how) for how in ("--resume", "--overwrite")]
    for second in seconds:
        assert "the run in out" in refused(second, first)
    assert (out / "config.yaml").is_file()
    # A kill lets go of the lock; of two that go on with the run at once, one does.
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert len(rows(out)) < QUESTIONS
    one = start(*RUN, "--resume", gate="later")
    until(lambda: (out / ".lock.owner").is_file() and str(one.pid) in owner(out), one)
    other = start(*RUN, "--resume", gate="later")
    refused(other, one)
    (tmp_path / "later").touch()
    said, _ = one.communicate(timeout=120)
    assert one.returncode == 0, said
    assert [row["question_id"] for row in rows(out)] == list(range(QUESTIONS))
    assert not (out / ".lock.owner").exists()
    # And it can be overwritten once it has ended.
    last = start(*RUN, "--overwrite")
    said, _ = last.communicate(timeout=120)
    assert last.returncode == 0, said
    assert len(rows(out)) == QUESTIONS


def owner(folder):
    try:
        return (folder / ".lock.owner").read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_of_two_new_runs_one_writes(start, tmp_path):
    both = [start(*RUN), start(*RUN)]
    codes = []
    for process in both:
        said, _ = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert "Traceback" not in said
    assert sorted(codes) == [0, 2]
    assert len(rows(tmp_path / "out")) == QUESTIONS


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_study_and_its_runs_are_locked(start, tmp_path, jobs):
    (tmp_path / "study.yaml").write_text(
        "pipeline: sample\n"
        "set: {retriever: {name: none}, reranking: [], describer: null, reader: {name: gated},"
        " answering.decision: top1, answering.cache: false}\n"
        "axes: {answering.prompt: [short-answer, chat]}\n"
        "datasets: [{name: jsonl, data: questions.jsonl}]\n"
    )
    study = ("study", "study.yaml", "--output", "out", "--jobs", jobs)
    first = start(*study, gate="shut")
    until(lambda: list((tmp_path / "out" / "runs").glob("*/config.yaml")), first)
    assert "the study in out" in refused(start(*study, "--resume"), first)
    refused(start(*study, "--overwrite"), first)
    [folder, *_] = (path.parent for path in (tmp_path / "out" / "runs").glob("*/.lock.owner"))
    with pytest.raises(UserError, match="is being written by process"), lock(folder, "the run"):
        pass
    first.send_signal(signal.SIGKILL)
    first.communicate()
    last = start(*study, "--resume")
    said, _ = last.communicate(timeout=200)
    assert last.returncode == 0, said
    for run in (tmp_path / "out" / "runs").iterdir():
        assert [row["question_id"] for row in rows(run)] == list(range(QUESTIONS))


# --- the lock itself


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(files, "_WAIT_S", 0.05)


def test_a_lock_is_held_once_and_given_back(tmp_path, impatient):
    folder = tmp_path / "a" / "b"
    check_free(folder, "the run")
    assert not folder.exists()
    with lock(folder, "the run"):
        with pytest.raises(
            UserError, match=rf"the run in .*/b is being written by process {os.getpid()}"
        ):
            check_free(folder, "the run")
        with pytest.raises(UserError, match="choose another folder"), lock(folder, "the run"):
            pass
    check_free(folder, "the run")
    with lock(folder, "the run"):
        pass


def test_a_killed_process_lets_go_of_its_lock(tmp_path, impatient):
    code = (
        "import sys, time; from pathlib import Path; from ravqa.core.files import lock\n"
        "with lock(Path(sys.argv[1]), 'the run'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])},
    )  # fmt: skip
    with holder:
        try:
            assert holder.stdout.readline() == "held\n"
            (tmp_path / "config.yaml").write_text("{}")
            for how in ({"resume": True}, {"overwrite": True}):
                with pytest.raises(UserError, match=f"by process {holder.pid} since"):
                    RunDir(tmp_path, **how)
        finally:
            holder.kill()
    with RunDir(tmp_path, resume=True).held():
        assert json.loads((tmp_path / ".lock.owner").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"pid": "x", "host": 1, "since": 2}', "\udcff"])
def test_an_owner_that_is_not_written_is_another_process(tmp_path, impatient, text):
    with lock(tmp_path, "the run"):
        (tmp_path / ".lock.owner").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match="is being written by another process:"):
            check_free(tmp_path, "the run")


def test_another_machine_is_named(tmp_path, impatient):
    values = {"pid": 7, "host": "node\x1b[3", "since": "2026-11-01T10:00:00+01:00"}
    with lock(tmp_path, "the run"):
        (tmp_path / ".lock.owner").write_text(json.dumps(values))
        with pytest.raises(UserError, match=r"process 7 on 'node\\x1b\[3' since 2026-11-01 10:00"):
            check_free(tmp_path, "the run")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, caplog, code):
    import fcntl

    def unsupported(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    folder = tmp_path / "out"
    run = RunDir(folder)
    with run.held():
        run.begin({"pipeline": {}})
    assert (folder / "config.yaml").is_file()
    RunDir(folder, resume=True)
    [record] = caplog.records
    assert "cannot be locked" in record.getMessage()


def test_a_lock_that_cannot_be_written_is_a_line(tmp_path, monkeypatch):
    (tmp_path / "out" / ".lock").mkdir(parents=True)
    run = RunDir(tmp_path / "out")
    with pytest.raises(UserError, match="cannot be written: "), run.held():
        pass


def test_a_run_that_came_first_is_not_replaced(tmp_path):
    late = RunDir(tmp_path / "out")
    first = RunDir(tmp_path / "out")
    with first.held():
        first.begin({"pipeline": {}})
    with pytest.raises(UserError, match="exists: --resume continues it"), late.held():
        pass
