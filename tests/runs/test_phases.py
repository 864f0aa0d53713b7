"""The four phases of a run, each by itself: what it takes, what it gives, what it writes."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from study_files import write_data

from ravqa.core.errors import UserError
from ravqa.core.factory import Session
from ravqa.encoders.base import EncodingStats
from ravqa.runs.console import Console
from ravqa.runs.execute import execute
from ravqa.runs.folder import MAIN
from ravqa.runs.load import load
from ravqa.runs.options import RunRequest
from ravqa.runs.plan import plan
from ravqa.runs.report import _notes, report
from ravqa.runs.run import run
from ravqa.studies.quiet import StudyConsole


def asked(data, output, *overrides, **changes):
    request = {
        "dataset": "jsonl",
        "data": data,
        "corpus": (data / "passages.jsonl",),
        "pipeline": "bm25-retrieval",
        "overrides": (
            "retriever.query.captioned=0",
            "retriever.query.question=1",
            "top_k=5",
            "reader={name: first-words, words: 1}",
            *overrides,
        ),
        "controls": ("none", "random"),
        "output": output,
    }
    return RunRequest(**request | changes)


@pytest.fixture
def data(tmp_path, fresh_cache):
    return write_data(tmp_path / "data")


def results(folder):
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del found["timing"], found["provenance"]["date"]
    return found


def test_a_plan_reads_no_data_and_writes_nothing(tmp_path, fresh_cache):
    planned = plan(asked(tmp_path / "nowhere", tmp_path / "out"))
    assert planned.pipeline.config.top_k == 5
    assert planned.run_dir.path == tmp_path / "out"
    assert list(tmp_path.iterdir()) == []


def test_each_phase_goes_on_with_what_the_last_one_gave(data, tmp_path):
    console, session, out = Console(), Session(), tmp_path / "out"
    planned = plan(asked(data, out))
    loaded = load(planned, session, console)
    assert not out.exists()  # a mistake up to here costs no old run
    assert list(loaded.conditions) == [MAIN, "none", "random"]
    assert (len(loaded.data.dataset.questions), loaded.data.problems) == (24, ())
    assert len(loaded.data.corpus) == 40
    with planned.run_dir.held():
        executed = execute(loaded, console)
        assert not (out / "results.json").exists()
        assert {name: len(samples) for name, samples in executed.samples.items()} == {
            MAIN: 24,
            "none": 24,
            "random": 24,
        }
        assert report(executed, console) == out
        first = results(out)
        report(executed, console)
    assert results(out) == first
    run(asked(data, tmp_path / "whole"), Console())
    assert results(tmp_path / "whole") == first


@pytest.mark.parametrize("controls", [("none", "random"), ()])
def test_the_runs_own_scores_are_printed_before_its_controls_run(data, tmp_path, capsys, controls):
    folder = run(asked(data, tmp_path / "out", controls=controls), Console())
    shown = capsys.readouterr()
    tables = shown.out.split("\nAnswers, ")[1:]
    assert len(tables) == (2 if controls else 1)
    score = results(folder)["answers"]["conditions"][MAIN]["score"]
    assert all(re.search(rf"\nretrieval +{score:.1f} ", table) for table in tables)
    assert "\nrandom " not in tables[0]
    lines = shown.err.splitlines()
    if controls:
        follow = next(i for i, line in enumerate(lines) if "its controls follow" in line)
        assert lines[follow - 2].startswith("questions: 24/24")
        assert lines[follow - 1] == "scoring"
        assert lines[follow + 1].startswith("control none: 0/24")


def test_a_studys_runs_print_no_tables(data, tmp_path, capsys):
    run(asked(data, tmp_path / "out"), StudyConsole())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "controls follow" not in shown.err


def test_runs_of_a_session_read_and_build_once(data, tmp_path):
    session = Session()
    for name in ("one", "two"):
        run(asked(data, tmp_path / name), Console(), session)
    assert session.loads == {"dataset": 1, "corpus": 1, "reader": 1}
    assert results(tmp_path / "one") == results(tmp_path / "two")
    run(asked(data, tmp_path / "three", "reader.words=2"), Console(), session)
    assert session.loads == {"dataset": 1, "corpus": 1, "reader": 2}


def test_a_run_that_cannot_be_loaded_leaves_the_old_one(data, tmp_path):
    out = tmp_path / "out"
    run(asked(data, out), Console())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="--controls oracle needs a retriever"):
        run(
            asked(data, out, retriever="none", controls=("oracle",), overwrite=True, overrides=()),
            Console(),
        )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_was_asked_of_what_is_written_down(data, tmp_path):
    """The dataset's folder, the corpus's files and what came of them, with and without each."""
    out, passages = tmp_path / "out", data / "passages.jsonl"
    found = run(asked(data, out), Console())
    corpus = results(found)["provenance"]["corpus"]
    assert corpus == {
        "source": str(passages),
        "passages": 40,
        "left_out": {"records": 0, "first": []},
    }
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    assert config["dataset"]["data"] == str(data)
    assert config["corpus"]["files"] == [str(passages)]
    assert config["corpus"]["passages"] == 40
    digest = results(found)["provenance"]["fingerprints"]["corpus"]
    assert config["corpus"]["fingerprint"] == digest

    reader = ("reader={name: first-words}",)
    bare = {"corpus": (), "retriever": "none", "controls": (), "overrides": reader}
    request = asked(data, tmp_path / "bare", **bare)
    found = run(replace(request, data=None, dataset="okvqa", limit=3), Console())
    config = yaml.safe_load((found / "config.yaml").read_text(encoding="utf-8"))
    assert config["dataset"]["data"] is None
    assert config["corpus"]["files"] == []


def test_what_an_encoder_changed_in_texts_is_noted():
    encoded = {
        "passages": EncodingStats(items=40, truncated=1200, neutralised=3000),
        "queries": EncodingStats(items=7),
    }
    pipeline = SimpleNamespace(retriever=SimpleNamespace(encoded=encoded))
    assert list(_notes({"timing": {}, "answers": None}, pipeline)) == [
        "1,200 of 40 passages exceeded what the encoder accepts and got cut",
        "3,000 control tokens of the encoder's model, in passages, became plain text",
    ]
