"""Studies run as a user runs them: stages shared, failures, resuming, processes, the table."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import unquote

import pytest
from report_files import write_dataset
from study_files import call, counted, read_table, write_data, write_study

from ravqa.cli import main
from ravqa.core.locations import cache_dir
from ravqa.metrics.statistics import intervals
from ravqa.metrics.statistics.intervals import bootstrap, holm, paired_test
from ravqa.studies.workers import Task, _environment, _Queue

__all__ = ["counted"]  # a fixture

ROOT = Path(__file__).parents[2]
VECTORS = {"name": "late-interaction", "encoder": {"name": "counted"}, "index": {"name": "counted"}}


@pytest.fixture
def folder(tmp_path, fresh_cache):
    return write_data(tmp_path / "data")


def samples(folder, variant):
    lines = (folder / "runs" / variant / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return {s["question_id"]: s for s in map(json.loads, lines)}


# -- what is shared --------------------------------------------------------------------------------


@pytest.mark.slow
def test_retrieval_for_five_readers_runs_once_and_so_does_a_reader_for_five_rules(
    counted, folder, tmp_path, capsys
):
    rules = {
        "first": {"answering.decision": "top1", "answering.passages": 1},
        "likeliest": {"answering.decision": "joint_max"},
        "more alike": {"answering.decision": "joint_max", "answering.temperature": 9.0},
        "over all": {"answering.decision": "marginal"},
        "majority": {"answering.decision": "vote"},
    }
    study = write_study(
        folder / "study.yaml",
        set={
            "retriever": VECTORS,
            "top_k": 5,
            "answering": {"decision": "joint_max", "passages": 3},
        },
        axes={"reader": [{"name": "counted", "word": 0}], "rule": rules},
        variants={f"word {i}": {"reader": {"name": "counted", "word": i}} for i in range(1, 5)},
    )
    code, _, err = call(capsys, "study", study, "--output", tmp_path / "out")
    assert code == 0, err
    assert counted == {
        "encoders": 1,
        "readers": 5,  # each of them loaded once
        "passages": 40,
        "queries": 24,
        "searches": 24,
        # The first rule asks for the best passage only; the others for two more.
        "prompts": 5 * 24 * 3,
    }
    table = read_table(tmp_path / "out")["tables"][0]
    assert len(table["rows"]) == 9
    # Later variants took nothing, but are not said to be quicker: their seconds are marked.
    first, *others = (row["measures"]["seconds"] for row in table["rows"])
    assert "cached" not in first
    assert all(other["cached"] == 1 for other in others[1:])


def test_another_study_of_the_same_data_finds_everything(counted, folder, tmp_path, capsys):
    options = {"set": {"retriever": VECTORS, "top_k": 5, "answering.decision": "top1"}}
    study = write_study(
        folder / "study.yaml", axes={"reader": {"a": {"reader": {"name": "counted"}}}}, **options
    )
    assert call(capsys, "study", study, "--output", tmp_path / "a")[0] == 0
    before = dict(counted)
    assert call(capsys, "study", study, "--output", tmp_path / "b")[0] == 0
    changed = {k: v for k, v in counted.items() if v != before[k]}
    assert changed == {"encoders": 2, "readers": 2}
    keys = ("answer", "score", "hits")
    first, second = (samples(tmp_path / x, "a") for x in "ab")
    assert all(first[q][k] == second[q][k] for q in first for k in keys)


@pytest.mark.slow
def test_a_part_that_no_later_variant_needs_is_let_go(counted, folder, tmp_path, capsys):
    # Readers come one after another, whatever the order of the file: one is in memory at a time.
    readers = {f"r{i}": {"reader": {"name": "counted", "word": i}} for i in range(3)}
    study = write_study(
        folder / "study.yaml",
        set={"answering.decision": "top1", "top_k": 5},
        axes={"k": {"five": {}, "nine": {"top_k": 9}}, "reader": readers},
    )
    assert call(capsys, "study", study, "--output", tmp_path / "out")[0] == 0
    assert counted["readers"] == 3
    rows = read_table(tmp_path / "out")["tables"][0]["rows"]
    assert [row["run"] for row in rows] == [
        f"{k}, r{i}" for k in ("five", "nine") for i in range(3)
    ]


# -- the table -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study of four variants, its folder and what was printed."""
    root = tmp_path_factory.mktemp("study")
    write_data(root)
    study = write_study(
        root / "study.yaml",
        description="words of the answer",
        axes={"reader.words": [1, 2]},
        variants={
            "by lot": {"retriever": {"name": "random"}},
            "<b>a|b_c & 5 %</b>": {"retriever": {"name": "none"}},
        },
        metrics=["score", "PRRecall@1", "PRRecall@5", "seconds"],
        controls=["none"],
    )
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setenv("RAVQA_CACHE", str(root / "cache"))
        patch.setattr(intervals, "MIN_CLUSTERS", 8)  # as many images as there are
        with pytest.raises(SystemExit) as end:
            main(["study", str(study), "--output", str(root / "out")])
    assert end.value.code == 0
    return root / "out", printed.getvalue()


def test_estimates_and_differences_equal_those_of_the_samples(finished):
    folder, _ = finished
    [table] = read_table(folder)["tables"]
    assert (table["questions"], table["images"]) == (24, 8)
    rows = {row["run"]: row for row in table["rows"]}
    runs = {name: samples(folder, Path(row["folder"]).name) for name, row in rows.items()}
    images = {q: s["image_id"] for q, s in runs["words=1"].items()}

    def values(name, k=None):
        if k is None:
            return {q: 100 * s["score"] for q, s in runs[name].items()}
        found = {q: s["answer_ranks"]["flmr"] for q, s in runs[name].items()}
        return {q: 100.0 * (bool(ranks) and ranks[0] <= k) for q, ranks in found.items()}

    for measure, k in (("score", None), ("PRRecall@1", 1), ("PRRecall@5", 5)):
        tests = {}
        for name, row in rows.items():
            if k and name not in ("words=1", "words=2", "by lot"):
                assert measure not in row["measures"]  # nothing is retrieved
                continue
            expected = bootstrap(list(values(name, k).values()), list(images.values()))
            found = row["measures"][measure]
            assert found["value"] == pytest.approx(expected.mean, abs=1e-3)
            if expected.low == expected.high:  # all images are alike
                assert found["interval_95"] == [None, None]
            else:
                ends = [expected.low, expected.high]
                assert found["interval_95"] == pytest.approx(ends, abs=1e-3)
            if name != "words=1":
                tests[name] = paired_test(values(name, k), values("words=1", k), images)
        corrected = dict(zip(tests, holm([t.p_value for t in tests.values()]), strict=True))
        for name, test in tests.items():
            found = rows[name]["measures"][measure]["difference"]
            low, high = found["interval_95"]
            assert low is None or (low > 0 or high < 0) == (test.p_value < 0.05)
            assert found["value"] == pytest.approx(test.difference.mean, abs=1e-3)
            assert found["p_value"] == test.p_value
            assert found["p_holm"] == corrected[name]
    assert "difference" not in rows["words=1"]["measures"]["score"]
    assert rows["words=1"]["reference"]
    # And the run's own results say the same.
    results = json.loads((folder / "runs" / "words=2" / "results.json").read_text())
    score = results["answers"]["conditions"]["main"]
    assert rows["words=2"]["measures"]["score"]["value"] == score["score"]
    assert rows["words=2"]["measures"]["score"]["interval_95"] == score["interval_95"]
    recall = results["retrieval"]["conditions"]["main"]
    found = rows["words=2"]["measures"]["PRRecall@5"]
    assert found["value"] == recall["PRRecall"]["5"]
    assert found["interval_95"] == recall["interval_95"]["5"]


def test_the_table_is_printed_and_written_in_four_forms(finished):
    folder, printed = finished
    assert "24 questions, 8 images" in printed
    assert "reference" in printed
    lines = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert [line["run"] for line in lines][-1] == "<b>a|b_c & 5 %</b>"
    assert [line["axis reader.words"] for line in lines] == ["1", "2", "", ""]
    assert (
        float(lines[0]["score"])
        == read_table(folder)["tables"][0]["rows"][0]["measures"]["score"]["value"]
    )
    markdown = (folder / "table.md").read_text()
    assert r"\<b\>a\|b\_c &amp; 5 %\</b\>" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
    latex = (folder / "table.tex").read_text()
    assert r"\textless{}b\textgreater{}a\textbar{}b\_c \& 5 \%" in latex
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrr"):
        assert command in latex
    page = (folder / "report.html").read_text()
    assert "&lt;b&gt;a|b_c &amp; 5 %&lt;/b&gt;" in page
    assert "<b>a|b_c" not in page
    runs = sorted(path.parent.name for path in folder.glob("runs/*/report.html"))
    assert len(runs) == len(lines)
    links = re.findall(r'href="runs/([^"]+)/report\.html"', page)
    assert sorted(map(unquote, links)) == runs


def test_the_report_says_what_each_variant_helps_and_hurts(finished):
    folder, _ = finished
    [table] = read_table(folder)["tables"]
    runs = {r["run"]: samples(folder, Path(r["folder"]).name) for r in table["rows"]}
    page = (folder / "report.html").read_text()
    [part] = re.findall(
        r"<h2>Right answers: words=1 \u2192 each other run</h2>(.*?)</section>", page, re.S
    )
    shown = [re.findall(r"<t[hd][^>]*>([^<]*)</t", row) for row in part.split("<tr>")[2:]]
    assert [row[0] for row in shown] == ["words=2", "by lot", "&lt;b&gt;a|b_c &amp; 5 %&lt;/b&gt;"]
    before, after = runs["words=1"], runs["by lot"]
    helped = sum(s["score"] > before[q]["score"] for q, s in after.items())
    hurt = sum(s["score"] < before[q]["score"] for q, s in after.items())
    assert shown[1][1:4] == ["24", *(f"{n} ({100 * n / 24:.1f} %)" for n in (helped, hurt))]
    assert "Intervals are not corrected." in page
    assert "does not show that there is no difference" in page


def test_the_folder_can_be_run_again_from_its_own_study_file(
    finished, fresh_cache, capsys, tmp_path, monkeypatch
):
    folder, _ = finished
    monkeypatch.setattr(intervals, "MIN_CLUSTERS", 8)
    code, _, err = call(capsys, "study", folder / "study.yaml", "--output", tmp_path / "again")
    assert code == 0, err
    first, again = (read_table(f)["tables"][0] for f in (folder, tmp_path / "again"))
    for a, b in zip(first["rows"], again["rows"], strict=True):
        assert a["measures"]["score"] == b["measures"]["score"]
    assert (folder / "study.yaml").read_text() == (tmp_path / "again" / "study.yaml").read_text()
    for run in (tmp_path / "again" / "runs").iterdir():
        assert {"config.yaml", "samples.jsonl", "results.json"} <= {p.name for p in run.iterdir()}


def test_two_datasets_have_a_table_each(folder, tmp_path, capsys):
    data = {"name": "jsonl", "data": str(folder)}
    study = write_study(
        folder / "study.yaml",
        datasets=[{**data, "label": "all"}, {**data, "label": "some", "limit": 6}],
    )
    code, out, err = call(capsys, "study", study, "--output", tmp_path / "out")
    assert code == 0, err
    assert "24 questions" in out
    assert "6 questions, 2 images" in out
    document = read_table(tmp_path / "out")
    assert [table["questions"] for table in document["tables"]] == [24, 6]
    assert (tmp_path / "out" / "table.tex").read_text().count(r"\begin{table}") == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<tr class="group"') == len(re.findall(r'<h3 class="group">', page)) == 2
    for dataset in ("all, split all", "some, split all"):
        assert re.search(rf'<tr class="group"[^>]*><th[^>]*>{dataset}</th>', page)
        assert f'<h3 class="group">{dataset}</h3>' in page


# -- before it runs --------------------------------------------------------------------------------


def cells(out, variant):
    [line] = [line for line in out.splitlines() if line.strip().startswith(variant)]
    return line.split()[-4:]


def test_a_dry_run_says_what_is_shared_and_what_is_cached_and_writes_nothing(
    folder, tmp_path, capsys
):
    study = write_study(
        folder / "study.yaml",
        axes={
            "k1": {"a": {}, "b": {"retriever.k1": 1.2}},
            "words": {"w1": {}, "w2": {"reader.words": 2}},
        },
        variants={"both": {"answering.decision": "concat", "answering.passages": 2}},
    )
    code, out, _ = call(capsys, "study", study, "--dry-run", "--output", tmp_path / "out")
    assert code == 0
    assert "5 variants, 5 runs" in out
    assert cells(out, "a, w1 (reference)") == ["-", "run", "-", "run"]
    assert cells(out, "a, w2") == ["-", "shared", "-", "run"]
    assert cells(out, "b, w1") == ["-", "run", "-", "run"]
    assert cells(out, "both") == ["-", "shared", "-", "in"] or "in part" in out
    assert not (tmp_path / "out").exists()
    assert call(capsys, "study", study, "--output", tmp_path / "out")[0] == 0
    other = write_study(folder / "other.yaml", axes={"reader.words": [1, 3]})
    _, out, _ = call(capsys, "study", other, "--dry-run")
    assert cells(out, "words=1") == ["-", "cached", "-", "cached"]
    assert cells(out, "words=3") == ["-", "cached", "-", "run"]
    _, out, _ = call(capsys, "study", study, "--dry-run", "--output", tmp_path / "out")
    assert out.count("finished") == 5
    # What is deleted is not cached any more.
    (cache_dir() / "generations.sqlite").unlink()
    _, out, _ = call(capsys, "study", other, "--dry-run")
    assert cells(out, "words=1") == ["-", "cached", "-", "run"]


def test_data_that_is_whole_is_read_once_with_and_without_images(tmp_path, fresh_cache, capsys):
    data = write_dataset(tmp_path / "data", 6)
    study = write_study(
        data / "study.yaml",
        axes={"seen": {"nothing": {}, "tags": {"describer": {"name": "imagenet-tags"}}}},
        datasets=[{"name": "jsonl", "data": str(data), "on_error": "skip"}],
    )
    code, _, err = call(capsys, "study", study, "--dry-run")
    assert (code, err.count("reading the dataset")) == (0, 1), err
    (data / "photos" / "1.jpg").unlink()  # two questions that only one of them can ask
    code, _, err = call(capsys, "study", study, "--dry-run")
    assert (code, err.count("reading the dataset")) == (0, 2), err


def test_a_mistake_stops_everything_before_it_begins(folder, tmp_path, capsys):
    study = write_study(folder / "study.yaml", axes={"reader.words": [1, -1]})
    code, _, err = call(capsys, "study", study, "--output", tmp_path / "out")
    assert code == 2
    assert err.strip().startswith("error: study.yaml: variant 'words=-1'")
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    (folder / "questions.jsonl").write_text("{broken\n")
    study = write_study(folder / "study.yaml")
    code, _, err = call(capsys, "study", study, "--output", tmp_path / "out")
    assert code == 2
    assert "questions.jsonl, line 1" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "--jobs 0"),
        (["--resume"], "--resume needs --output"),
        (["--resume", "--overwrite", "--output", "x"], "exclude each other"),
        (["--limit", "0"], "--limit 0"),
        (["--set", "top_k"], "key.path=value"),
    ],
)
def test_options_that_make_no_sense(folder, capsys, arguments, message):
    code, _, err = call(capsys, "study", write_study(folder / "study.yaml"), *arguments)
    assert code == 2
    assert message in err


# -- failures, and going on ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_variant_that_fails_is_reported_and_the_others_go_on(counted, folder, tmp_path, capsys):
    readers = {
        "good": {"reader": {"name": "counted"}},
        "broken": {"reader": {"name": "counted", "fail": True}, "answering.cache": False},
        "unable": {"answering.decision": "joint_max", "answering.passages": 2},
        "buggy": {"reader": {"name": "counted", "bug": True}},
        "better": {"reader": {"name": "counted", "word": 1}},
    }
    study = write_study(
        folder / "study.yaml",
        set={"reader": {"name": "first-words"}, "top_k": 5, "answering.decision": "top1"},
        axes={"reader": readers},
    )
    output = tmp_path / "out"
    code, out, err = call(capsys, "study", study, "--output", output)
    assert code == 1
    assert "failed: 'broken' on animals: question 0: the reader " in err
    assert ": the reader broke; --on-error skip" in err
    assert "failed: 'buggy' on animals: the reader study_files.CountedReader breaks" in err
    assert "it raises RuntimeError when built: the reader has a bug" in err
    assert "failed: 'unable' on animals: answering.decision joint_max" in err
    assert "the reader broke" in out
    rows = {row["run"]: row for row in read_table(output)["tables"][0]["rows"]}
    assert [name for name, row in rows.items() if row["error"]] == ["broken", "unable", "buggy"]
    assert rows["better"]["measures"]["score"]["difference"]
    # A bug leaves its traceback; a mistake of the user's is a line.
    assert "Traceback" in (output / "errors" / "buggy.txt").read_text()
    assert [p.name for p in (output / "errors").iterdir()] == ["buggy.txt"]
    page = (output / "table.md").read_text(encoding="utf-8")
    assert "breaks its contract: it raises RuntimeError" in page.split("buggy: failed, ")[1]

    # Mended under the same name: it had answered nothing. A finished run is another matter.
    readers["broken"] = {"reader": {"name": "counted", "word": 2}}
    del readers["unable"]
    readers["buggy"] = {"reader": {"name": "counted", "word": 4}}
    options = {"set": {"reader": {"name": "first-words"}, "top_k": 5, "answering.decision": "top1"}}
    study = write_study(folder / "study.yaml", axes={"reader": readers}, **options)
    before = dict(counted)
    code, out, err = call(capsys, "study", study, "--output", output, "--resume")
    assert code == 0, err
    assert "2 of 4 runs are finished" in err
    assert counted["prompts"] == before["prompts"] + 48
    assert len(read_table(output)["tables"][0]["rows"]) == 4
    assert not list((output / "errors").iterdir())
    readers["broken"] = {"reader": {"name": "counted", "word": 3}}
    study = write_study(folder / "study.yaml", axes={"reader": readers}, **options)
    code, _, err = call(capsys, "study", study, "--output", output, "--resume")
    assert code == 2
    assert "'broken' on animals" in err
    assert "had other settings (pipeline.reader.word: 2 then, 3 now)" in err


def test_without_the_reference_nothing_is_compared(counted, folder, tmp_path, capsys):
    study = write_study(
        folder / "study.yaml",
        set={"top_k": 5, "answering.decision": "top1"},
        axes={
            "reader": {
                "broken": {"reader": {"name": "counted", "fail": True}},
                "a": {"reader": {"name": "first-words"}},
            }
        },
    )
    code, out, _ = call(capsys, "study", study, "--output", tmp_path / "out")
    assert code == 1
    assert "There is no run 'broken': nothing is compared" in " ".join(out.split())
    assert call(capsys, "study", study, "--output", tmp_path / "out")[0] == 2


def test_a_folder_is_left_alone_unless_told(folder, tmp_path, capsys):
    study = write_study(folder / "study.yaml")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    code, _, err = call(capsys, "study", study, "--output", tmp_path / "mine", "--overwrite")
    assert code == 2
    assert "contains files but no study" in err
    output = tmp_path / "out"
    assert call(capsys, "study", study, "--output", output, "--resume")[0] == 0  # begins it
    code, _, err = call(capsys, "study", study, "--output", output)
    assert code == 2
    assert "--resume continues it" in err
    before = (output / "runs" / "words=1" / "results.json").stat().st_mtime_ns
    assert call(capsys, "study", study, "--output", output, "--resume")[0] == 0
    assert (output / "runs" / "words=1" / "results.json").stat().st_mtime_ns == before
    assert call(capsys, "study", study, "--output", output, "--overwrite")[0] == 0
    assert (output / "runs" / "words=1" / "results.json").stat().st_mtime_ns != before
    code, _, err = call(capsys, "study", study, "--output", output, "--resume", "--limit", 3)
    assert code == 2
    assert "had other settings (datasets" in err


# -- several processes -----------------------------------------------------------------------------


def task(name, stages, reading, affinity=""):
    return Task(name, None, frozenset(stages), reading, affinity, frozenset())


def test_what_two_runs_share_is_not_done_twice_at_the_same_time():
    tasks = [
        task("a", ["x"], "1"),
        task("b", ["x"], "2"),
        task("c", ["y"], "3"),
        task("d", ["z"], "3"),
    ]
    queue = _Queue(tasks, frozenset())
    assert queue.next(None) == 0
    assert queue.next(None) == 2  # b waits for what a retrieves
    assert queue.next(None) is None  # d's prompts overlap with c's
    queue.finish(2, failed=False)
    assert queue.next(None) == 3
    queue.finish(0, failed=True)
    assert queue.next(None) == 1
    assert queue.left == 2
    # What is in the cache, or was finished, is waited for no more.
    queue = _Queue(tasks[:2], frozenset({"x"}))
    assert [queue.next(None), queue.next(None)] == [0, 1]


def test_a_process_is_given_runs_of_the_reader_that_it_has():
    tasks = [task(str(i), [], str(i), affinity="ab"[i % 2]) for i in range(4)]
    queue = _Queue(tasks, frozenset())
    assert [queue.next(a) for a in (None, "b", "b", "b")] == [0, 1, 3, 2]


def test_processes_share_cores_and_gpus():
    cores = max(1, (os.cpu_count() or 1) // 2)
    assert _environment(1, 2, {}) == {"OMP_NUM_THREADS": str(cores)}
    given = {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "4,5,6"}
    assert [_environment(i, 4, given) for i in range(4)] == [
        {"CUDA_VISIBLE_DEVICES": x} for x in "4564"
    ]
    assert _environment(0, 4, {**given, "CUDA_VISIBLE_DEVICES": "4"}) == {}


def run_study(*arguments, **how):
    command = [sys.executable, "-m", "ravqa", "study", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )


@pytest.mark.slow
def test_processes_give_what_one_gives(folder, tmp_path):
    study = write_study(
        folder / "study.yaml",
        axes={"reader.words": [1, 2], "k1": {"a": {}, "b": {"retriever.k1": 1.2}}},
        variants={"unable": {"answering.decision": "joint_max", "answering.passages": 2}},
    )
    for jobs, name in ((2, "two"), (1, "one")):
        process = run_study(study, "--output", tmp_path / name, "--jobs", jobs)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1, err
        assert "failed: 'unable' on animals: answering.decision joint_max" in err
    one, two = (read_table(tmp_path / x)["tables"][0]["rows"] for x in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for row in (a, b):
            row["measures"].pop("seconds", None)
        assert a == b


@pytest.mark.slow
def test_a_study_killed_again_and_again_ends_as_an_undisturbed_one(folder, tmp_path):
    # Enough questions for several batches a run, none of them cached.
    lines = (folder / "questions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    many = [
        {**row, "question_id": 1000 * i + row["question_id"]} for i in range(30) for row in rows
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, many)) + "\n")
    study = write_study(
        folder / "study.yaml",
        set={"reader": {"name": "first-words"}, "top_k": 5, "answering.cache": False},
        axes={"reader.words": [1, 2, 3]},
        controls=["none"],
    )
    output, killed = tmp_path / "killed", 0

    def lines_written():
        return sum(p.read_bytes().count(b"\n") for p in output.glob("runs/*/samples*.jsonl"))

    for attempt in range(20):
        resume = ["--resume"] if (output / "study.yaml").exists() else []
        jobs = ["--jobs", 1 + attempt % 2]
        process = run_study(study, "--output", output, *resume, *jobs)
        start = lines_written()
        while process.poll() is None and (killed >= 4 or lines_written() < start + 100):
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            time.sleep(0.5)  # workers notice that they are alone
            continue
        _, err = process.communicate()
        assert process.returncode == 0, err
        if lines_written() == 3 * 2 * len(many):
            break
    assert killed >= 3
    process = run_study(study, "--output", tmp_path / "whole")
    assert process.communicate()[0]
    assert process.returncode == 0
    one, two = (read_table(f)["tables"][0] for f in (output, tmp_path / "whole"))
    for a, b in zip(one["rows"], two["rows"], strict=True):
        for row in (a, b):
            row["measures"].pop("seconds", None)
        assert a == b
    for variant in ("words=1", "words=2", "words=3"):
        path = output / "runs" / variant / "samples.jsonl"
        ids = [json.loads(line)["question_id"] for line in path.read_text().splitlines()]
        assert len(ids) == len(set(ids)) == len(many)  # no question was asked twice


@pytest.mark.slow
def test_a_process_that_dies_costs_its_run_only(folder, tmp_path):
    study = write_study(folder / "study.yaml", axes={"reader.words": [1, 2, 3]})
    code = (
        "import os, sys\n"
        "from ravqa.cli import main\n"
        "from ravqa.runs.execute import Runner\n"
        "if __name__ == '__main__': main(sys.argv[1:])\n"
        "else:\n"
        "    real = Runner.run\n"
        "    def run(self, *a):\n"
        "        if self.pipeline.answerer.reader.config.words == 2: os.kill(os.getpid(), 9)\n"
        "        return real(self, *a)\n"
        "    Runner.run = run\n"
    )
    (tmp_path / "deadly.py").write_text(code)
    command = [sys.executable, tmp_path / "deadly.py", "study", study]
    done = subprocess.run(
        [*map(str, command), "--output", str(tmp_path / "out"), "--jobs", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "failed: 'words=2' on animals: its process ended (signal 9" in done.stderr
    rows = read_table(tmp_path / "out")["tables"][0]["rows"]
    assert [bool(row["error"]) for row in rows] == [False, True, False]


# -- its report once more --------------------------------------------------------------------------


def test_the_report_of_a_study_is_written_again_from_its_runs(finished, tmp_path, capsys):
    folder = shutil.copytree(finished[0], tmp_path / "study")
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "MIN_CLUSTERS", 8)
        code, out, err = call(capsys, "report", folder)
    assert code == 0, err
    assert out.strip() == f"report: {folder / 'report.html'}"
    assert (folder / "report.html").read_text() == before
    shutil.rmtree(folder / "runs" / "by-lot")
    assert call(capsys, "report", folder)[0] == 0
    assert "not finished" in (folder / "report.html").read_text()
    code, _, err = call(capsys, "report", folder, "--matches", "3")
    assert code == 2
    assert "is the folder of a study, whose report has no options" in err
    shutil.rmtree(folder / "runs")
    code, _, err = call(capsys, "report", folder)
    assert code == 2
    assert f"no run of the study in {folder} is finished" in err
