"""What is read back from a run's folder: the schema's, or one line with file and key."""

import json
import math
import os
import shutil

import pytest
import yaml
from report_files import write_dataset, write_run
from typing_extensions import is_typeddict

from ravqa.core.errors import UserError
from ravqa.evaluation import schema
from ravqa.evaluation.schema import RunConfig, RunResults, Sample
from ravqa.reports.run import read_run
from ravqa.runs.finished import FinishedRun, RunFiles

DEEP = "[" * 100_000 + "]" * 100_000
GONE = object()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with controls, drafts and reranking."""
    data = write_dataset(tmp_path_factory.mktemp("data"), images=False)
    options = ["--set", "reranking=[{name: threshold, max_kept: 6}]", "--controls", "none,oracle"]
    return write_run(tmp_path_factory.mktemp("runs") / "run", data, *options)


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def changed(document, path, value):
    """The document with another value at a path of keys; GONE removes the key."""
    *parents, last = path
    inner = document
    for key in parents:
        inner = inner[key]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return document


def refused(folder, *said):
    """Every reader of the folder refuses it in one line with all that is to be said."""
    for read in (FinishedRun, read_run):
        with pytest.raises(UserError) as error:
            read(folder)
        message = str(error.value)
        assert all(part in message for part in said), message
        assert "\n" not in message
        assert len(message) < 500


SAMPLES = [
    (("question_id",), None),
    (("question_id",), True),
    (("question_id",), 1.0),
    (("question_id",), [1]),
    (("question",), 5),
    (("question",), GONE),
    (("question_type",), 3),
    (("image_id",), {"a": 1}),
    (("split",), 1),
    (("answers",), "koala"),
    (("answers",), [1]),
    (("answers",), None),
    (("tags",), [["a"]]),
    (("caption",), None),
    (("ocr",), "x"),
    (("hits",), {}),
    (("hits",), None),
    (("hits",), GONE),
    (("hits",), [["p1", "0.5"]]),
    (("hits",), [["p1", math.nan]]),
    (("hits",), [["p1", math.inf]]),
    (("hits",), [["p1"]]),
    (("hits",), [[1, 0.5]]),
    (("hits",), ["p1"]),
    (("answer_ranks",), [1]),
    (("answer_ranks",), {"flmr": [1]}),
    (("answer_ranks", "flmr"), ["1"]),
    (("answer_ranks", "flmr"), [0]),
    (("answer_ranks", "flmr"), [2, 1]),
    (("answer_ranks", "ravqa"), [1, 1]),
    (("answer_ranks", "word"), [10**30]),
    (("hits",), []),
    (("stages", 0, "hits"), [["p1", 2.0 - i / 8] for i in range(9)]),
    (("answers",), []),
    (("answer_ranks",), None),
    (("read", "answer_ranks"), None),
    (("stages", 1, "answer_ranks"), None),
    (("stages", 0, "id_ranks"), [1]),
    (("read", "hits"), []),
    (("stages", 0, "hits"), []),
    (("answer_ranks", "word"), [1.5]),
    (("id_ranks",), "1"),
    (("article_ranks",), [-1]),
    (("seconds",), None),
    (("seconds", "retrieve"), "fast"),
    (("seconds", "retrieve"), -1),
    (("seconds", "retrieve"), math.nan),
    (("seconds", "retrieve"), GONE),
    (("cached",), GONE),
    (("cached", "retrieve", "share"), 2),
    (("cached", "retrieve", "share"), "0"),
    (("cached", "retrieve"), 0.5),
    (("score",), "1"),
    (("score",), math.nan),
    (("score",), 47),
    (("score",), None),
    (("score",), GONE),
    (("right",), 1),
    (("right",), "yes"),
    (("exact_match",), None),
    (("answer",), 5),
    (("answer",), ["koala"]),
    (("raw",), 1),
    (("cut",), -1),
    (("cut",), "2"),
    (("log_prob",), math.nan),
    (("log_prob",), math.inf),
    (("error",), None),
    (("drafts",), None),
    (("drafts",), ["koala"]),
    (("drafts",), GONE),
    (("drafts", 0, "text"), None),
    (("drafts", 0, "score"), "high"),
    (("drafts", 0, "passage_ids"), "p1"),
    (("drafts", 0, "prior"), math.nan),
    (("drafts", 0, "tokens"), 1.5),
    (("drafts", 0, "prompt_hash"), GONE),
    (("read",), [1]),
    (("read", "hits"), None),
    (("stages",), [{"stage": "retrieved"}]),
    (("stages", 0, "stage"), 3),
    (("stages", 0, "hits"), "p1"),
]


@pytest.mark.parametrize(("path", "value"), SAMPLES)
def test_a_sample_that_is_not_of_the_schema_is_named(run, path, value):
    file = run / "samples.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = json.dumps(changed(json.loads(lines[2]), path, value)).encode() + b"\n"
    file.write_bytes(b"".join(lines))
    refused(run, "samples.jsonl, line 3: not a sample of a run (")


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"1",
        b"null",
        b"{",
        b'{"question_id": 5}',
        b"\xff\xfe",
        b'{"question_id": "\xff"}',
        b'{"question_id": "\\ud83d"}',
        DEEP.encode(),
        b'{"question_id": ' + DEEP.encode() + b"}",
        b'{"question_id": 1' + b"0" * 5000 + b"}",
    ],
    ids=range(11),
)
def test_a_line_that_is_no_sample_is_named(run, line):
    path = run / "samples.jsonl"
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, line + b"\n", *rest]))
    refused(run, "samples.jsonl, line 2: not a sample of a run (")
    twin = first.replace(b'"question_id": 0,', b'"question_id": "0",')
    assert twin != first
    for again in (first, twin):
        path.write_bytes(b"".join([first, second, again, *rest[1:]]))
        refused(run, "samples.jsonl, line 3: question 0 is already in line 1")


def test_a_file_that_is_cut_off_is_named(run):
    path = run / "samples.jsonl"
    whole = path.read_bytes()
    for data in (whole[:-20], b"".join(whole.splitlines(keepends=True)[:-1]), b""):
        path.write_bytes(data)
        refused(run, "samples.jsonl: ", "and results.json has 12: is it cut off?")
    path.unlink()
    refused(run, "has no samples.jsonl")
    os.mkfifo(path)
    refused(run, "has no samples.jsonl")
    path.unlink()
    path.mkdir()
    refused(run, "has no samples.jsonl")


def test_samples_of_a_control_that_are_missing_are_told_of(run, caplog):
    before = FinishedRun(run)
    assert [r.getMessage() for r in caplog.records] == []
    assert before.has_control
    assert read_run(run).notes == []
    (run / "samples.none.jsonl").unlink()
    caplog.clear()
    after = FinishedRun(run)
    said = f"{run / 'samples.none.jsonl'} is missing: the control none is left out"
    assert [r.getMessage() for r in caplog.records] == [said]
    assert not after.has_control
    assert after.questions == before.questions
    page = read_run(run)
    assert page.notes[0].startswith("samples.none.jsonl is missing, so the answers of the control")
    assert sorted(page.samples) == ["main", "oracle"]


RESULTS = [
    (("schema_version",), "2"),
    (("schema_version",), 2.5),
    (("schema_version",), None),
    (("dataset",), None),
    (("dataset",), []),
    (("dataset", "label"), 5),
    (("dataset", "questions"), "12"),
    (("dataset", "limit"), "all"),
    (("dataset", "skipped"), [1]),
    (("answers",), GONE),
    (("answers",), []),
    (("answers", "metric"), None),
    (("answers", "label"), 1),
    (("answers", "rule"), None),
    (("answers", "conditions"), []),
    (("answers", "conditions", "main", "score"), "18.7"),
    (("answers", "conditions", "main", "score"), math.nan),
    (("answers", "conditions", "main", "interval_95"), [1]),
    (("answers", "conditions", "main", "interval_95"), None),
    (("answers", "conditions", "main", "unanswered"), None),
    (("answers", "conditions", "main", "groups"), {"a": 1}),
    (("answers", "comparisons", "main - none", "p_value"), "small"),
    (("answers", "comparisons", "main - none", "wins"), -1),
    (("retrieval",), 5),
    (("retrieval", "rule"), "mine"),
    (("retrieval", "conditions", "main", "PRRecall"), [1]),
    (("retrieval", "conditions", "main", "PRRecall", "5"), "x"),
    (("retrieval", "stages"), None),
    (("retrieval", "reported"), [{"metric": "x"}]),
    (("provenance",), GONE),
    (("provenance", "date"), 20261130),
    (("provenance", "seed"), -1),
    (("provenance", "stand_ins"), ["reader"]),
    (("provenance", "overrides"), "top_k=5"),
    (("timing",), None),
    (("timing", "describe"), 0),
    (("timing", "describe", "cached", "share"), math.inf),
    (("timing", "seconds"), "long"),
]


@pytest.mark.parametrize(("path", "value"), RESULTS)
def test_results_that_are_not_of_the_schema_are_named(run, path, value):
    file = run / "results.json"
    document = changed(json.loads(file.read_text(encoding="utf-8")), path, value)
    file.write_text(json.dumps(document), encoding="utf-8")
    if path == ("schema_version",):
        refused(run, str(run), "results of format", "this version reads format 2")
    else:
        refused(run, "results.json: not the results of a run (", path[-1])


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", DEEP.encode(), b'"x"'])
def test_results_that_are_no_json_are_named(run, data):
    (run / "results.json").write_bytes(data)
    refused(run, "results.json: ")


CONFIGS = [
    (("dataset",), None),
    (("dataset",), "okvqa"),
    (("dataset", "name"), 5),
    (("dataset", "data"), ["a"]),
    (("dataset", "options"), "a=b"),
    (("dataset", "limit"), "12"),
    (("dataset", "fingerprint"), GONE),
    (("corpus", "files"), "passages.jsonl"),
    (("corpus", "files"), [1]),
    (("run", "seed"), "0"),
    (("run",), GONE),
    (("pipeline",), None),
    (("pipeline",), []),
    (("pipeline", "top_k"), "many"),
    (("pipeline", "top_k"), 0),
    (("pipeline", "description"), 5),
    (("fingerprints",), {"retriever": 1}),
]


@pytest.mark.parametrize(("path", "value"), CONFIGS)
def test_a_configuration_that_is_not_of_the_schema_is_named(run, path, value):
    file = run / "config.yaml"
    document = changed(yaml.safe_load(file.read_text(encoding="utf-8")), path, value)
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    refused(run, "config.yaml: not the settings of a run (", path[-1])


@pytest.mark.parametrize(
    "data", [b"", b"[1]", b"\xff", b"a: [", b"a: 2020-13-45", DEEP[:1_000].encode()]
)
def test_a_configuration_that_is_no_mapping_is_named(run, data):
    (run / "config.yaml").write_bytes(data)
    refused(run, "config.yaml")


def test_nothing_is_written_that_the_schema_does_not_have(finished):
    """The types are closed: a key that is written is a key of the documentation."""

    def check(kind, value, where):
        origin = getattr(kind, "__origin__", None)
        if is_typeddict(kind):
            hints = dict(schema_hints(kind))
            extra = value.keys() - hints.keys() - set(OPEN.get(kind.__name__, ()))
            assert not extra, f"{where}: {extra} of {kind.__name__}"
            for key, item in value.items():
                if key in hints:
                    check(hints[key], item, f"{where}.{key}")
        elif origin is list:
            for item in value:
                check(kind.__args__[0], item, where)
        elif origin is dict:
            for key, item in value.items():
                check(kind.__args__[1], item, f"{where}.{key}")
        elif getattr(kind, "__args__", None) and value is not None and origin is not tuple:
            inner = [k for k in kind.__args__ if k is not type(None)]
            if len(inner) == 1:
                check(inner[0], value, where)

    files = RunFiles.read(finished)
    check(RunResults, files.results, "results")
    check(RunConfig, files.config, "config")
    for condition in files.conditions:
        for sample in files.samples(condition):
            check(Sample, sample, condition)


# Datasets tell of their source, and a pipeline's settings are checked when it is built.
OPEN = {
    "RunDataset": ("file", "metric"),
    "PipelineSettings": ("describer", "retriever", "reranking", "answering", "reader", "stand_ins"),
}


def schema_hints(kind):
    from typing import Annotated, NotRequired, get_args, get_origin, get_type_hints

    for key, hint in get_type_hints(kind, vars(schema), include_extras=True).items():
        while get_origin(hint) in (NotRequired, Annotated):
            hint = get_args(hint)[0]
        yield key, hint
