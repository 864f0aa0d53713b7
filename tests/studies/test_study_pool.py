"""Variants that ask a server, side by side: as if they had come one after the other, but sooner."""

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console as RichConsole
from scripted_server import ScriptedServer, chat
from study_files import call, write_data, write_study

from ravqa.core.ahead import AbandonedError, Group, abandoning, in_order, place
from ravqa.core.locations import cache_dir
from ravqa.runs.lanes import Lanes
from ravqa.studies import pool
from ravqa.studies.pool import run_in_turn
from ravqa.studies.quiet import BesideConsole, StudyConsole
from ravqa.studies.run import _told_apart

ROOT = Path(__file__).parents[2]
URL = frozenset({"http://a"})


def planned(servers=URL, models=()):
    return SimpleNamespace(servers=frozenset(servers), models=frozenset(models))


class Runs:
    """Runs that go on when they are told, and what became of them."""

    def __init__(self, runs):
        self.runs = runs
        self.lanes = {}
        self.log = []
        self.go = [threading.Event() for _ in runs]
        self.begun = [threading.Event() for _ in runs]
        self.thread = threading.Thread(target=self.all, daemon=True)

    def work(self, number, first, lane):
        self.lanes[number] = lane
        self.log.append(f"{number} with {first}, behind {place()}" if lane else f"{number}")
        self.begun[number].set()
        assert self.go[number].wait(5)
        return number * 10

    def finished(self, number, result):
        self.log.append(f"end of {number}: {result}")

    def all(self):
        run_in_turn(self.runs, self.work, self.finished)

    def under_way(self):
        return [i for i, event in enumerate(self.begun) if event.is_set()]


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_run_begins_when_all_questions_of_those_before_it_are_begun():
    runs = Runs([planned()] * 5)
    runs.thread.start()
    for number in range(3):
        assert runs.begun[number].wait(5)
        assert runs.under_way() == list(range(number + 1))
        runs.lanes[number].all_begun()
    time.sleep(0.02)
    assert runs.under_way() == [0, 1, 2]  # no more than three
    runs.go[1].set()
    assert runs.begun[3].wait(5)
    assert runs.log[3:] == ["end of 1: 10", "3 with 0, behind 3"]
    runs.go[0].set()
    runs.go[2].set()
    runs.go[3].set()
    assert runs.begun[4].wait(5)
    until(lambda: sum(line.startswith("end of") for line in runs.log) == 4)
    runs.go[4].set()
    runs.thread.join(5)
    assert runs.log[-1] == "end of 4: 40"


def test_runs_without_a_server_and_of_other_models_are_alone():
    runs = Runs([planned(models="m"), planned(models="mn"), planned(servers=()), planned()])
    runs.thread.start()
    for number in range(4):
        assert runs.begun[number].wait(5)
        if lane := runs.lanes[number]:
            lane.all_begun()
        time.sleep(0.01)
        assert runs.under_way() == list(range(number + 1))
        runs.go[number].set()
    runs.thread.join(5)
    assert runs.log[::2] == ["0 with 0, behind 0", "1 with 1, behind 1", "2", "3 with 3, behind 2"]


def test_an_interrupt_abandons_the_runs_under_way():
    ended = []

    def work(number, first, lane):
        lane.uses("answer", ["reader"])
        lane.begin()
        lane.all_begun()
        if number == 2:
            raise KeyboardInterrupt
        try:
            with lane.stage("answer"):
                list(in_order([partial(never.wait, 5)], ahead=1))
        except AbandonedError:
            ended.append(number)

    class Never:
        """Replies that never come."""

        def wait(self, seconds):
            gone = threading.Event()
            with abandoning(gone.set):
                assert gone.wait(seconds)
            raise AbandonedError("nobody waits")

    never = Never()
    with pytest.raises(KeyboardInterrupt):
        run_in_turn([planned()] * 3, work, lambda *_: None)
    assert sorted(ended) == [0, 1]


def test_a_later_run_looks_up_what_it_shares_after_the_earlier_one():
    lanes = Lanes()
    first, second, third = (lanes.open() for _ in range(3))
    first.uses("answer", ["reader", "reranker"])
    second.uses("answer", ["reader"])
    third.uses("answer", ["another reader"])
    for lane in (first, second, third):
        lane.begin()
    log = []

    def chunk(lane, name):
        with lane.stage("answer"):
            log.append(name)

    threads = [threading.Thread(target=chunk, args=pair) for pair in [(second, 2), (third, 3)]]
    for thread in threads:
        thread.start()
    until(lambda: log == [3])
    with first.stage("answer") as through:
        first.begin()
        through()
        through()
    first.all_begun()
    time.sleep(0.01)
    assert log == [3]  # one of the first run's two chunks has yet to come
    with first.stage("answer"):
        pass
    until(lambda: log == [3, 2])
    for thread in threads:
        thread.join(5)


def test_a_run_whose_own_work_is_abandoned_leaves_others_waiting():
    lanes = Lanes()
    first, *others = (lanes.open() for _ in range(3))
    ended, group = [], Group()

    def chunk(lane):
        with lane.stage("answer"):
            ended.append(lane)

    for lane in (first, *others):
        lane.uses("answer", ["reader"])
        lane.begin()
        lane.all_begun()
    futures = [group.start(partial(chunk, others[0])), Group().start(partial(chunk, others[1]))]
    time.sleep(0.01)
    group.abandon()
    with pytest.raises(AbandonedError):
        futures[0].result(5)
    others[0].end()
    time.sleep(0.01)
    assert not futures[1].done()
    first.end()
    futures[1].result(5)
    assert ended == [others[1]]


def test_nobody_waits_for_a_run_that_has_ended():
    lanes = Lanes()
    first, second = lanes.open(), lanes.open()
    first.end()  # before it said what it uses
    second.uses("judge", ["judge"])
    with second.stage("judge"):
        pass


# -- with a server ---------------------------------------------------------------------------------

USAGE = {"prompt_tokens": 50, "completion_tokens": 2}


class Server(ScriptedServer):
    """Answers with a word of the prompt; some replies are slow; the model "bad" refuses."""

    def __init__(self):
        super().__init__(self.answer)

    def answer(self, number, body):
        text = body["messages"][-1]["content"]
        digest = hashlib.sha256(f"{body['model']} {text}".encode()).digest()
        time.sleep(0.25 if digest[0] < 8 else 0.002)
        if body["model"] == "bad" and digest[1] < 40:
            return 400, json.dumps({"error": {"message": "not this prompt"}})
        said = " ".join(text.split()[digest[2] % 9 :][:2])
        status, reply = chat(said if body["model"] != "judge" else "yes" if digest[2] % 2 else "no")
        return status, json.dumps(json.loads(reply) | {"usage": USAGE})


def write_served(folder, url, judge=None, options=None, **changes):
    """72 questions, and variants that share prompts in several ways."""
    data = write_data(folder)
    rows = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    many = [
        {**row, "question_id": 1000 * i + row["question_id"], "question": f"{row['question']} {i}"}
        for i in range(3)
        for row in rows
    ]
    (data / "questions.jsonl").write_text("\n".join(map(json.dumps, many)) + "\n")
    reader = {"name": "openai", "url": url, "model": "m", "workers": 4, "images": False}
    study = {
        "set": {
            "retriever.query.captioned": 0,
            "retriever.query.question": 1,
            "top_k": 5,
            "reader": {**reader, "prices": {"prompt": 1, "completion": 2, "currency": "USD"}},
            "answering.decision": "vote",
            "answering.passages": 2,
            **({"judge": judge} if judge else {}),
        },
        "datasets": [
            {"name": "jsonl", "data": str(data), "label": "animals", "options": options or {}}
        ],
        "axes": {
            "how": {
                "two": {},
                "three": {"answering.passages": 3},
                "another k1": {"retriever.k1": 0.2},
                "bad": {"reader.model": "bad"},
                "other": {"reader.model": "other"},
                "closed book": {"retriever": {"name": "none"}},
            }
        },
        "metrics": ["score", "PRRecall@5", "requests", "tokens", "cost"],
        "controls": ["none"],
        **changes,
    }
    return write_study(folder / "study.yaml", **study)


def timeless(value):
    """A JSON value without what was measured or looked up in a calendar."""
    if isinstance(value, list):
        return [timeless(v) for v in value]
    if not isinstance(value, dict):
        return value
    kept = {k: timeless(v) for k, v in value.items() if k not in TIMES}
    if "prompts_generated" in kept:  # the section `timing`
        del kept["stages"]
    return kept


TIMES = {"seconds", "date", "peak_memory_mb"}


def contents(output):
    """What is in every file of a study but its pages, without times."""
    found = {}
    for path in sorted(p for p in output.rglob("*") if p.is_file() and p.suffix != ".html"):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode().replace(f"/{output.name}/", "/OUTPUT/")
        if path.suffix == ".json":
            found[str(path.relative_to(output))] = timeless(json.loads(text))
        elif path.suffix == ".jsonl":
            found[str(path.relative_to(output))] = timeless(
                list(map(json.loads, text.split("\n")[:-1]))
            )
        else:
            found[str(path.relative_to(output))] = text
    return found


@pytest.fixture
def server():
    made = Server()
    yield made
    made.stop()


def run(monkeypatch, capsys, folder, study, name, most):
    """Run a study with an empty cache of its own, at most so many variants at a time."""
    monkeypatch.setenv("RAVQA_CACHE", str(folder / f"cache {name}"))
    cache_dir().mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(pool, "OPEN", most)
    return call(capsys, "study", study, "--output", folder / name)


def asked(server):
    found = Counter((b["model"], b["messages"][-1]["content"]) for b in server.bodies)
    server.requests.clear()
    return found


def requests_of(folder):
    """How many requests the samples of a run say that they took, by all stages and conditions."""
    lines = [x for p in folder.glob("samples*.jsonl") for x in p.read_text("utf-8").splitlines()]
    costs = [cost for line in lines for cost in json.loads(line).get("cost", {}).values()]
    return sum(cost["requests"] for cost in costs)


@pytest.mark.slow
def test_side_by_side_gives_what_one_after_the_other_gives(monkeypatch, capsys, tmp_path, server):
    study = write_served(tmp_path / "data", server.url)
    failed = []
    for name, most in (("turn", 1), ("side", 3)):
        code, _, err = run(monkeypatch, capsys, tmp_path, study, name, most)
        assert code == 1, err
        lines = err.replace(str(tmp_path / name), "OUTPUT").splitlines()
        failed.append([line for line in lines if line.startswith("failed")])
        if name == "turn":
            before = asked(server)
    now = asked(server)
    assert failed[0] == failed[1]
    assert {line.split(":")[1] for line in failed[0]} == {" 'bad' on animals"}
    # The variant that fails has some more requests under way, or some less.
    assert {k: n for k, n in now.items() if k[0] != "bad"} == {
        k: n for k, n in before.items() if k[0] != "bad"
    }
    runs = tmp_path / "side" / "runs"
    by_model = Counter(model for model, _ in now.elements())
    assert requests_of(runs / "other") == by_model["other"] > 0
    of_m = [requests_of(runs / n) for n in ("two", "three", "another-k1", "closed-book")]
    assert sum(of_m) == by_model["m"]
    assert min(of_m[:3]) > 0
    assert of_m[3] == 0  # it is the control of the first one
    same_contents(tmp_path)


@pytest.mark.slow
def test_what_variants_share_is_judged_for_the_first_of_them(monkeypatch, capsys, tmp_path, server):
    judge = {"name": "llm", "url": server.url, "model": "judge", "workers": 4}
    study = write_served(
        tmp_path / "data",
        server.url,
        axes={"how": {"two": {}, "three": {"answering.passages": 3}, "k1": {"retriever.k1": 0.2}}},
        judge={**judge, "prices": {"prompt": 3, "completion": 3, "currency": "USD"}},
        options={"metric": "judge"},
    )
    for name, most in (("turn", 1), ("side", 3)):
        code, _, err = run(monkeypatch, capsys, tmp_path, study, name, most)
        assert code == 0, err
        if name == "turn":
            before = asked(server)
    now = asked(server)
    assert now == before
    assert {model for model, _ in now} == {"m", "judge"}
    runs = [tmp_path / "side" / "runs" / name for name in ("two", "three", "k1")]
    assert round(sum(map(requests_of, runs)), 3) == now.total()
    same_contents(tmp_path)


def same_contents(folder):
    """Both ways gave the same files."""
    first, second = contents(folder / "turn"), contents(folder / "side")
    assert first.keys() == second.keys()
    for file, text in first.items():
        assert text == second[file], file


def killed_study(study, output, environment, server, requests, by=signal.SIGKILL):
    """Run a study in a process of its own, and kill it after so many requests."""
    resume = ["--resume"] if (output / "study.yaml").exists() else []
    command = [sys.executable, "-m", "ravqa", "study", study, "--output", output, *resume]
    process = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE)
    before = len(server.requests)
    while process.poll() is None and len(server.requests) < before + requests:
        time.sleep(0.005)
    if process.poll() is None:
        process.send_signal(by)
    return process.communicate(timeout=60)[1].decode()


@pytest.mark.slow
def test_variants_that_were_killed_side_by_side_go_on(monkeypatch, capsys, tmp_path, server):
    study = write_served(
        tmp_path / "data",
        server.url,
        axes={"how": {"two": {}, "k1": {"retriever.k1": 0.2}, "other": {"reader.model": "other"}}},
    )
    assert run(monkeypatch, capsys, tmp_path, study, "whole", 3)[0] == 0
    whole = asked(server)
    environment = {**os.environ, "RAVQA_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    output = tmp_path / "killed"
    for by in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        err = killed_study(study, output, environment, server, whole.total() // 4, by)
        assert by == signal.SIGKILL or "--resume --output DIR resumes this study" in err
        assert "Traceback" not in err
    begun = [p for p in output.glob("runs/*/samples.jsonl") if p.stat().st_size]
    assert begun
    assert len(list(output.glob("runs/*/results.json"))) < 3
    err = killed_study(study, output, environment, server, 10**6)
    assert len(list(output.glob("runs/*/results.json"))) == 3, err
    # Only what was under way or about to be stored when it was killed is asked again.
    again = asked(server)
    assert again.keys() == whole.keys()
    assert again.total() <= whole.total() + 3 * (4 + 16)
    for variant in ("two", "k1", "other"):
        one, two = (
            {s["question_id"]: (s["answer"], s["hits"], s["score"]) for s in map(json.loads, lines)}
            for lines in (
                (folder / "runs" / variant / "samples.jsonl").read_text().splitlines()
                for folder in (output, tmp_path / "whole")
            )
        )
        assert one == two
        assert list(one) == list(two)


# -- what is said ----------------------------------------------------------------------------------


def consoles(**options):
    study = StudyConsole()
    study.err = RichConsole(file=io.StringIO(), width=100, **options)
    return study, BesideConsole(study, "a"), BesideConsole(study, "b")


def test_lines_of_runs_side_by_side_have_their_names():
    study, one, other = consoles()
    with one.status("loading models"):
        other.progress("questions", 0, 20)
        one.progress("questions", 0, 20)
    other.progress("questions", 20, 20)
    one.note("a remark")
    other.note("a remark")
    other.close()
    one.progress("questions", 20, 20)
    study.tell("failed: b")
    assert study.err.file.getvalue().splitlines() == [
        "a: loading models",
        "b: questions: 0/20",
        "a: questions: 0/20",
        "b: questions: 20/20",
        "note: a remark",
        "a: questions: 20/20",
        "failed: b",
    ]


def test_bars_of_runs_side_by_side_end_with_their_run():
    study, one, other = consoles(force_terminal=True)
    other.progress("questions", 3, 20)
    with one.status("loading models"):
        shown = {(task.description, task.total) for task in study._bars.tasks}
        assert shown == {("a: loading models", None), ("b: questions", 20)}
    one.progress("questions", 5, 20)
    other.close()
    [task] = study._bars.tasks
    assert (task.description, task.completed) == ("a: questions", 5)
    study.close()
    one.close()


def test_several_processes_that_ask_one_server_have_limits_of_their_own():
    runs = [planned(["http://a", "http://b"]), planned(["http://a"]), planned([])]
    [line] = _told_apart(runs, 8)
    assert line == (
        "2 processes ask http://a, each with up to `workers` requests at a time: without --jobs, "
        "variants are asked side by side within one limit"
    )
    assert [line[:11] for line in _told_apart([planned()] * 9, 4)] == ["4 processes"]
    assert not list(_told_apart([planned([])] * 9, 4))
