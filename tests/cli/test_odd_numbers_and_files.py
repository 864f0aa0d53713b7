"""Numbers beyond all bounds and files that are pipes or devices: one line, and nothing hangs."""

import json
import os
from pathlib import Path

import pytest
from study_files import call, write_data

import ravqa
from ravqa.core.errors import UserError
from ravqa.runs.finished import Measure


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize(
    "arguments",
    [
        ["collection", "unpack", "PIPE", "OUT"],
        ["score", "PIPE", "--dataset", "okvqa"],
        ["report", "PIPE"],
        ["compare", "PIPE"],
        ["study", "PIPE"],
    ],
)
def test_a_pipe_in_place_of_a_file_is_one_line(pipe, tmp_path, capsys, arguments):
    names = {"PIPE": pipe, "OUT": tmp_path / "out"}
    code, _, err = call(capsys, *[names.get(a, a) for a in arguments])
    assert code == 2
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "pipe" in line
    assert not (tmp_path / "out").exists()


def test_folders_whose_names_are_not_utf8_are_read_and_written(tmp_path, capsys):
    here = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    data = write_data(here / "data")
    asked = ["run", "--dataset", "jsonl", "--data", data, "--corpus", data / "passages.jsonl"]
    asked += ["--pipeline", "bm25-retrieval", "--set", "reader.words=1", "--controls", "none"]
    for command in (
        [*asked, "--output", here / "run"],
        [*asked, "--output", here / "run", "--resume"],
        ["report", here / "run"],
        ["compare", here / "run", "--output", tmp_path / "tables"],
        ["score", here / "run" / "samples.jsonl", "--dataset", "jsonl", "--data", data]
        + ["--output", here / "scores.json"],
    ):
        code, _, err = call(capsys, *command)
        assert code == 0, err
    assert json.loads((tmp_path / "tables" / "table.json").read_bytes())["runs"] == [
        f"{tmp_path}/?/run"
    ]
    scores = json.loads((here / "scores.json").read_bytes())
    assert scores["predictions"]["file"] == f"{tmp_path}/?/run/samples.jsonl"


def test_a_seed_below_zero_is_refused_by_compare(tmp_path, capsys):
    code, _, err = call(capsys, "compare", tmp_path, "--seed", "-1")
    assert (code, err) == (2, "error: --seed -1: 0 or more is needed\n")


@pytest.mark.parametrize("k", ["9" * 5000, "0", "\u0665", "1e3", ""])
def test_a_measure_beyond_all_bounds_is_unknown(k):
    with pytest.raises(UserError, match="no metric 'PRRecall@"):
        Measure.parse(f"PRRecall@{k}")
    assert Measure.parse("PRRecall@999999999").k == 999_999_999


def test_a_limit_beyond_all_bounds_is_none(tmp_path):
    data = write_data(tmp_path / "data")
    assert len(ravqa.load_dataset("jsonl", data, limit=10**30).questions) == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "nope"], "error: Invalid value for 'KIND': 'nope' is not one of 'datasets', "),
        (
            ["score", "p", "--dataset", "okvqa", "--normalization", "x"],
            "error: Invalid value for '--normalization': 'x' is not one of 'official', 'always'",
        ),
    ],
)
def test_an_unknown_choice_is_answered_with_the_known_ones(capsys, arguments, message):
    code, _, err = call(capsys, *arguments)
    assert (code, err[: len(message)]) == (2, message)
    assert len(err.splitlines()) == 1
