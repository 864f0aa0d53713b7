"""The run folder: nothing is lost, nothing is overwritten unasked."""

import json
import os

import pytest
from sample_files import sample

from ravqa.core.errors import DataError, UserError
from ravqa.readers.base import Generation
from ravqa.runs.folder import MAIN, RunDir

CONFIG = {"pipeline": {"top_k": 20, "reader": {"name": "a"}}, "run": {"seed": 0}}


def open_run(path, config, **how):
    run = RunDir(path, **how)
    run.begin(config)
    return run


def test_samples_come_back_and_a_torn_last_line_is_cut_off(tmp_path):
    run = open_run(tmp_path / "r", CONFIG)
    run.read_samples(MAIN).append([sample(1, caption="ä"), sample("x")])
    path = run.samples_path(MAIN)
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines()[1]) + 1):
        path.write_bytes(whole + whole.splitlines()[1][:cut])
        assert list(run.read_samples(MAIN)) == [1, "x"]
        assert path.read_bytes() == whole  # what follows is appended to a whole line
    run.read_samples(MAIN).append([sample(2)])
    assert list(run.read_samples(MAIN)) == [1, "x", 2]


def test_samples_are_read_when_they_are_asked_for_in_the_order_that_is_wanted(tmp_path):
    run = open_run(tmp_path / "r", CONFIG)
    first = run.read_samples(MAIN)
    first.append([sample(3, caption="ä" * 9, hits=[("p", 0.5)]), sample("x")])
    log = run.read_samples(MAIN)
    log.append([])
    log.append([sample(1, caption="日本")])
    log.append([sample(7)])
    assert list(log) == [3, "x", 1, 7]
    assert [log[q]["caption"] for q in (1, 3, "x")] == ["日本", "ä" * 9, ""]
    assert log[3]["hits"] == [["p", 0.5]]
    log.sort([1, 7, 3])
    assert [s["question_id"] for s in log.values()] == list(log) == [1, 7, 3]
    assert log.loaded() == {q: log[q] for q in (1, 7, 3)}
    assert "x" not in log
    assert len(log) == 3
    log.path.unlink()
    with pytest.raises(DataError, match=r"samples\.jsonl cannot be read: No such file"):
        log[1]


def test_halves_of_characters_never_stop_a_run(tmp_path):
    run = open_run(tmp_path / "r", CONFIG)
    run.read_samples(MAIN).append([sample(1, caption="an emoji cut in two: \ud83d")])
    assert run.read_samples(MAIN)[1]["caption"] == "an emoji cut in two: ?"
    run.write("results.json", '"\ud83d \U0001f600"')
    assert (tmp_path / "r" / "results.json").read_text(encoding="utf-8") == '"? \U0001f600"'
    # A generation is scored as it is written down.
    made = Generation("koala \ud83d", thinking="\udc00 hm")
    assert (made.text, made.thinking) == ("koala ?", "? hm")
    assert Generation("Grüße \U0001f600").text == "Grüße \U0001f600"


def test_a_broken_line_elsewhere_is_named(tmp_path):
    run = open_run(tmp_path / "r", CONFIG)
    run.read_samples(MAIN).append([sample(1), sample(3)])
    first, last = run.samples_path(MAIN).read_text().splitlines(keepends=True)
    run.samples_path(MAIN).write_text(first + '{"question\n' + last)
    with pytest.raises(DataError, match=r"samples\.jsonl, line 2"):
        run.read_samples(MAIN)


def test_an_existing_folder_is_left_alone_unless_told(tmp_path):
    folder = tmp_path / "r"
    run = open_run(folder, CONFIG)
    run.read_samples(MAIN).append([sample(1)])
    with pytest.raises(UserError, match="--resume"):
        open_run(folder, CONFIG)
    assert list(open_run(folder, CONFIG, resume=True).read_samples(MAIN)) == [1]

    (folder / "notes.txt").write_text("mine")
    (folder / "samples.none.jsonl").write_text("{}\n")
    fresh = open_run(folder, CONFIG, overwrite=True)
    assert not fresh.read_samples(MAIN)
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "samples.none.jsonl").exists()


def test_resuming_begins_a_run_that_is_not_there(tmp_path):
    run = open_run(tmp_path / "r", CONFIG, resume=True)
    assert not run.resume
    run.read_samples(MAIN).append([sample(1)])
    again = open_run(tmp_path / "r", CONFIG, resume=True)
    assert again.resume
    assert list(again.read_samples(MAIN)) == [1]


@pytest.mark.parametrize("how", ["resume", "overwrite"])
@pytest.mark.parametrize(
    "name", ["samples.jsonl", "samples.none.jsonl", "results.json", "prompts.jsonl.gz", "run.trec"]
)
def test_what_is_no_regular_file_is_neither_read_nor_written(tmp_path, name, how):
    folder = tmp_path / "r"
    open_run(folder, CONFIG)
    for make in (os.mkfifo, os.mkdir):
        make(folder / name)
        with pytest.raises(UserError, match=f"{name} is not a regular file: move it away"):
            RunDir(folder, **{how: True})
        assert (folder / "config.yaml").exists()
        (folder / name).unlink() if make is os.mkfifo else (folder / name).rmdir()


def test_a_folder_that_is_no_run_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match="no run"):
            open_run(tmp_path, CONFIG, **how)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_with_other_settings_names_the_key(tmp_path):
    open_run(tmp_path / "r", CONFIG)
    other = json.loads(json.dumps(CONFIG))
    other["pipeline"]["reader"]["name"] = "b"
    with pytest.raises(UserError, match=r'pipeline\.reader\.name: "a" then, "b" now'):
        open_run(tmp_path / "r", other, resume=True)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    run = open_run(tmp_path / "r", CONFIG)
    run.write("results.json", "old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        run.write("results.json", "new")
    assert (run.path / "results.json").read_text() == "old"
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "results.json"]


def test_nothing_of_an_old_run_is_lost_before_the_new_one_begins(tmp_path):
    run = open_run(tmp_path / "r", CONFIG)
    run.read_samples(MAIN).append([sample(1)])
    RunDir(tmp_path / "r", overwrite=True)  # a model that cannot be loaded would end it here
    assert list(run.read_samples(MAIN)) == [1]


def test_a_kill_while_the_first_file_is_written_does_not_lock_the_folder(tmp_path):
    (tmp_path / ".config.yaml.0123abcd.part").write_text("half")
    open_run(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_the_trec_run_falls_with_the_rank_and_has_six_columns():
    from ravqa.retrievers.runs import trec_lines

    assert trec_lines(7, [["a b", 0.9], ["c", 0.5]]) == [
        "7 Q0 a%20b 1 0.9 ravqa\n",
        "7 Q0 c 2 0.5 ravqa\n",
    ]
    oracle = [line.split() for line in trec_lines(7, [["x", 0.1], ["y", 0.9]])]
    assert [float(columns[4]) for columns in oracle] == [1.0, 0.5]
