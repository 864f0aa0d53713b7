"""The run folder: nothing is lost, nothing is overwritten unasked."""

import json

import pytest

from ravqa.errors import DataError, UserError
from ravqa.rundir import MAIN, RunDir

CONFIG = {"pipeline": {"top_k": 20, "reader": {"name": "a"}}, "run": {"seed": 0}}


def test_samples_come_back_and_a_torn_last_line_is_cut_off(tmp_path):
    run = RunDir.open(tmp_path / "r", CONFIG)
    run.append_samples(MAIN, [{"question_id": 1, "answer": "ä"}, {"question_id": "x"}])
    path = run.samples_path(MAIN)
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines()[1]) + 1):
        path.write_bytes(whole + whole.splitlines()[1][:cut])
        assert list(run.read_samples(MAIN)) == [1, "x"]
        assert path.read_bytes() == whole  # what follows is appended to a whole line
    run.append_samples(MAIN, [{"question_id": 2}])
    assert list(run.read_samples(MAIN)) == [1, "x", 2]


def test_a_broken_line_elsewhere_is_named(tmp_path):
    run = RunDir.open(tmp_path / "r", CONFIG)
    run.samples_path(MAIN).write_text('{"question_id": 1}\n{"question\n{"question_id": 3}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl, line 2"):
        run.read_samples(MAIN)


def test_an_existing_folder_is_left_alone_unless_told(tmp_path):
    folder = tmp_path / "r"
    run = RunDir.open(folder, CONFIG)
    run.append_samples(MAIN, [{"question_id": 1}])
    with pytest.raises(UserError, match="--resume"):
        RunDir.open(folder, CONFIG)
    assert list(RunDir.open(folder, CONFIG, resume=True).read_samples(MAIN)) == [1]

    (folder / "notes.txt").write_text("mine")
    (folder / "samples.none.jsonl").write_text("{}\n")
    fresh = RunDir.open(folder, CONFIG, overwrite=True)
    assert fresh.read_samples(MAIN) == {}
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "samples.none.jsonl").exists()


def test_a_folder_that_is_no_run_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match="no run"):
            RunDir.open(tmp_path, CONFIG, **how)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_with_other_settings_names_the_key(tmp_path):
    RunDir.open(tmp_path / "r", CONFIG)
    other = json.loads(json.dumps(CONFIG))
    other["pipeline"]["reader"]["name"] = "b"
    with pytest.raises(UserError, match=r'pipeline\.reader\.name: "a" then, "b" now'):
        RunDir.open(tmp_path / "r", other, resume=True)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    run = RunDir.open(tmp_path / "r", CONFIG)
    run.write("results.json", "old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        run.write("results.json", "new")
    assert (run.path / "results.json").read_text() == "old"
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "results.json"]
