"""Files of predictions as `ravqa score` reads them: what counts, what is refused, the results."""

import hashlib
import io
import json
from datetime import UTC, datetime

import pytest
from hand_runs import ranking
from rich.console import Console as RichConsole

import ravqa
from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Question
from ravqa.datasets.base import Dataset
from ravqa.runs.console import Console
from ravqa.runs.options import ScoreRequest
from ravqa.runs.scoring import read_predictions, score

NOTHING = {
    "answer": None,
    "raw": None,
    "cut": 0,
    "hits": [],
    "answer_ranks": None,
    "id_ranks": None,
    "article_ranks": None,
    "drafts": [],
    "stages": None,
    "read": None,
}


def dataset(*ids, answers=("a",)):
    return Dataset(
        name="d",
        label="D",
        split="test",
        questions=tuple(Question(i, "q", answers=answers) for i in ids),
        metric="exact_match",
        fingerprint="f" * 32,
    )


def read(tmp_path, rows, questions, *, form="lines"):
    path = tmp_path / "p.json"
    text = json.dumps(rows) if form == "list" else "".join(json.dumps(r) + "\n" for r in rows)
    path.write_text(text, encoding="utf-8")
    return read_predictions(path, questions)


@pytest.mark.parametrize("form", ["list", "lines"])
@pytest.mark.parametrize("keys", [("question_id", "answer"), ("data_id", "prediction")])
def test_answers_in_both_forms(tmp_path, form, keys):
    questions = dataset(1, "b", 3)
    given = [("1", "x"), ("b", "y"), (9, "z"), ("b", ""), (9, "z"), (1, "w"), (1, "v")]
    found = read(
        tmp_path, [dict(zip(keys, row, strict=True)) for row in given], questions, form=form
    )
    assert found.samples == {
        1: {**NOTHING, "answer": "v"},
        "b": {**NOTHING, "answer": ""},
        3: NOTHING,
    }
    assert list(found.samples) == [1, "b", 3]
    assert (found.given, found.missing, found.unknown) == (7, [3], ["9"])
    assert sorted(map(str, found.duplicates)) == ["1", "b"]
    assert (found.answered, found.retrieved, found.unmarked) == (True, False, False)


def with_choices(*ids, left_out=()):
    questions = tuple(Question(i, "q", choices=("x", "y"), correct_choice=0) for i in ids)
    rule = "aokvqa_multiple_choice"
    return Dataset("d", "D", "val", questions, rule, "f" * 32, left_out=left_out)


@pytest.mark.parametrize("form", [lambda x: x, lambda x: {"multiple_choice": x, "other": "y"}])
def test_answers_in_one_object(tmp_path, form):
    rows = {"a": form("x"), "9": form("z"), "l": form("y"), "3": form("")}
    found = read(tmp_path, [rows], with_choices("a", "b", 3, left_out=["l"]))
    assert {q: s["answer"] for q, s in found.samples.items()} == {"a": "x", "b": None, 3: ""}
    assert (found.given, found.missing, found.unknown) == (4, ["b"], ["9"])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"a": {"direct_answer": "x"}}, " contains no predictions"),
        ({"a": {"multiple_choice": 5}}, ", key 'a': 'answer' is 5: a string is expected"),
        ({"a": ["x"]}, " is one JSON object (its keys: 'a'): {EXPECTED}"),
    ],
)
def test_an_object_without_predictions_is_refused(tmp_path, rows, said):
    with pytest.raises(DataError) as error:
        read(tmp_path, [rows], with_choices("a"))
    assert str(error.value) == f"{tmp_path / 'p.json'}{said.replace('{EXPECTED}', EXPECTED)}"


def test_samples_of_a_run_have_rankings(tmp_path):
    questions = dataset(1, 2)
    rows = [{"question_id": i, "answer": "x", **ranking((1,), 2)} for i in (1, 2)]
    found = read(tmp_path, rows, questions)
    assert found.samples[1]["hits"] == rows[0]["hits"]
    assert (found.answered, found.retrieved, found.unmarked) == (True, True, False)
    for row in rows:
        del row["answer"]
    found = read(tmp_path, rows, questions)
    assert (found.answered, found.retrieved) == (False, True)
    assert found.samples[2]["answer"] is None
    rows[0]["answer"] = "x"
    rows[1]["error"] = "gone"
    found = read(tmp_path, rows, questions)
    assert (found.answered, found.samples[2]["answer"]) == (True, None)
    assert found.samples[2]["error"] == "gone"
    # A run that knew no references has no ranks of answers; without references none are missed.
    bare = [{**row, "answer_ranks": None, "answer": "x"} for row in rows]
    found = read(tmp_path, bare, questions)
    assert (found.retrieved, found.unmarked) == (False, True)
    found = read(tmp_path, bare, dataset(1, 2, answers=()))
    assert (found.retrieved, found.unmarked) == (True, False)
    with pytest.raises(DataError) as error:
        read(tmp_path, [rows[0], bare[1]], questions)
    path = tmp_path / "p.json"
    said = f"{path}, line 2: not a sample of a run ('answer_ranks' is null)"
    assert str(error.value) == said


RANKED = {**ranking((1,), 2), "answer": "x"}
EXPECTED = (
    "a list or lines of records are expected, each with 'question_id' or 'data_id', and with "
    "'answer' or 'prediction'"
)
DIFFER = "differ: which one is meant?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", " contains no predictions"),
        (" \n\n", " contains no predictions"),
        ("[]", " contains no predictions"),
        ('[{"question_id": 1, "answer": "x"}, 5]', ", record 2: an object is expected"),
        ('{"answer": "x"}', f" is one JSON object (its keys: 'answer'): {EXPECTED}"),
        ('{"results": [\n{}\n]}', f" is one JSON object (its keys: 'results'): {EXPECTED}"),
        (
            json.dumps(dict.fromkeys("abcdef", "x")),
            f" is one JSON object (its keys: 'a', 'b', 'c', 'd', 'e', ...): {EXPECTED}",
        ),
        ("question_id,answer\n1,x", f" is neither a JSON list nor JSON lines: {EXPECTED}"),
        (
            '[{"id": 1, "prediction": "x"}]',
            ", record 1: no 'question_id' or 'data_id'; its keys are 'id', 'prediction'",
        ),
        (
            '\n\n{"question_id": 1}',
            ", line 3: no 'answer' or 'prediction'; its keys are 'question_id'",
        ),
        (
            '{"question_id": 1.5, "answer": "x"}',
            ", line 1: 'question_id' is 1.5: a string is expected",
        ),
        (
            '{"question_id": 1, "answer": false}',
            ", line 1: 'answer' is False: a string is expected",
        ),
        (
            '{"question_id": 1, "data_id": 2, "answer": "x"}',
            f", line 1: 'question_id' and 'data_id' {DIFFER}",
        ),
        (
            '{"question_id": 1, "answer": "x", "prediction": "y"}',
            f", line 1: 'answer' and 'prediction' {DIFFER}",
        ),
    ],
)
def test_broken_predictions_are_named_with_their_place(tmp_path, text, said):
    path = tmp_path / "p.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_predictions(path, dataset(1))
    assert str(error.value) == f"{path}{said}"


def test_equal_values_under_both_names_are_one(tmp_path):
    row = {"question_id": "1", "data_id": "1", "answer": "x", "prediction": "x"}
    assert read(tmp_path, [row], dataset(1)).samples[1]["answer"] == "x"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "p.json"
    with pytest.raises(DataError) as error:
        read_predictions(path, dataset(1))
    assert str(error.value) == f"no such file: {path}"
    path.write_bytes(b'{"answer": "\xff"}')
    with pytest.raises(DataError) as error:
        read_predictions(path, dataset(1))
    assert str(error.value).startswith(f"{path} cannot be read: ")
    path.write_bytes(b'\xef\xbb\xbf [{"question_id": 1, "answer": "x"}]')
    assert read_predictions(path, dataset(1)).given == 1


# --- the command without its command line


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"question_id": i, "question": f"q{i}", "answers": ["a"]} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def call(tmp_path, questions):
    """Scores some rows; gives the results and what was printed."""

    def run(rows, **options):
        path = tmp_path / "p.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        out, err = io.StringIO(), io.StringIO()
        console = Console(
            out=RichConsole(file=out, width=200), err=RichConsole(file=err, width=200)
        )
        request = ScoreRequest(
            **{"predictions": path, "dataset": "jsonl", "data": questions, **options}
        )
        return score(request, console), out.getvalue() + err.getvalue()

    return run


def given(*ids):
    return [{"question_id": i, "answer": "a" if i % 2 else "b"} for i in ids]


def test_results_of_a_file_of_predictions(call, tmp_path):
    before = datetime.now(UTC)
    output = tmp_path / "r.json"
    results, _ = call(given(*range(8)), output=output, seed=7)
    assert json.loads(output.read_text(encoding="utf-8")) == results
    assert list(results) == [
        "schema_version", "dataset", "predictions", "answers", "retrieval", "provenance",
    ]  # fmt: skip
    assert results["schema_version"] == 2
    path = tmp_path / "p.jsonl"
    assert results["predictions"] == {
        "file": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "given": 8,
        "missing": [],
        "duplicates": [],
        "unknown": [],
        "marked": 0,
        "marks_removed": False,
    }
    assert results["retrieval"] is None
    assert results["answers"]["conditions"]["main"]["score"] == 50
    provenance = results["provenance"]
    assert provenance["seed"] == 7
    assert set(provenance["fingerprints"]) == {"dataset"}
    assert provenance["versions"]["ravqa"] == ravqa.__version__
    assert before.replace(microsecond=0) <= datetime.fromisoformat(provenance["date"])


def test_what_does_not_fit_is_listed_up_to_five_ids(call, tmp_path):
    rows = [*given(0, 0), {"question_id": "z", "answer": "x"}]
    with pytest.raises(UserError) as error:
        call(rows)
    said = str(error.value)
    assert said.startswith(f"{tmp_path / 'p.jsonl'}: 7 ids are missing (1, 2, 3, 4, 5, ...); ")
    assert "; 1 id is predicted more than once (0); 1 id is not in " in said
    assert said.endswith("(z): see --allow-partial")
    results, told = call(rows, allow_partial=True)
    assert "7 ids are missing (1, 2, 3, 4, 5, ...)" in told
    assert "1 id is predicted more than once (0)" in told
    assert results["predictions"]["missing"] == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(UserError, match=r"5 ids are missing \(0, 1, 2, 3, 4\): see --allow"):
        call(given(5, 6, 7))


def test_rankings_are_scored_as_deep_as_they_are(call):
    rows = [{**row, **ranking((2,), 3)} for row in given(*range(8))]
    results, _ = call(rows)
    main = results["retrieval"]["conditions"]["main"]
    assert main["PRRecall"] == {"1": 0}
    deep = [{**row, **ranking((2,), 6)} for row in given(*range(8))]
    results, _ = call(deep)
    assert results["retrieval"]["conditions"]["main"]["PRRecall"] == {"1": 0, "5": 100}
    none = [{**row, **ranking((), 0)} for row in given(*range(8))]
    results, _ = call(none)
    assert results["retrieval"] is None


def test_marks_in_answers_are_counted_and_taken_off_if_told(call, tmp_path):
    rows = given(*range(8))
    rows[1]["answer"], rows[3]["answer"], rows[5]["answer"] = "a</s>", "<think>b</think>a", " a "
    counted = "2 predictions with thinking or special tokens in the text"
    results, told = call(rows)
    assert (
        f"{counted}, scored with them, as the official rules do: --strip-marks takes them off"
    ) in " ".join(told.split())
    assert results["predictions"]["marked"] == 2
    assert results["predictions"]["marks_removed"] is False
    assert results["answers"]["conditions"]["main"]["score"] == 25
    results, told = call(rows, strip_marks=True)
    assert f"{counted}: these were taken off, as no official rule does" in " ".join(told.split())
    assert results["predictions"]["marked"] == 2
    assert results["predictions"]["marks_removed"] is True
    assert results["answers"]["conditions"]["main"]["score"] == 50
    _, told = call(given(*range(8)))
    assert "thinking" not in told
    # Of several predictions the last one counts, here too; one without a question does not.
    twice = [{"question_id": 0, "answer": "a</s>"}, *given(*range(8))]
    twice.append({"question_id": "z", "answer": "a</s>"})
    results, _ = call(twice, allow_partial=True)
    assert results["predictions"]["marked"] == 0


def test_a_run_without_references_is_told_of(call):
    bare = {**ranking((), 2), "answer_ranks": None}
    results, told = call([{**row, **bare} for row in given(*range(8))])
    assert results["retrieval"] is None
    note = "retrieval is not scored: the run had no references to look for in passages"
    assert any(line.endswith(note) for line in map(str.strip, told.splitlines()))


def test_options_that_do_not_fit_are_refused(call):
    rows = given(*range(8))

    def said(**options):
        with pytest.raises(UserError) as error:
            call(rows, **options)
        return str(error.value)

    assert said(overrides=["judge.model=x"]) == (
        "--set 'judge.model=x': judge.KEY=VALUE is expected, with --judge"
    )
    assert said(judge="llm", overrides=["reader.model=x"]) == (
        "--set 'reader.model=x': judge.KEY=VALUE is expected, with --judge"
    )
    assert said(judge="llm", overrides=["judge.url=http://x", "judge.model=m"]) == (
        "--judge: the scores of jsonl use no judge (metric exact_match); some of --rules do"
    )
    assert said(seed=-1) == "--seed -1: 0 or more is needed"
    assert said(dataset="json").startswith("no dataset 'json'")


def test_results_that_cannot_be_written_are_an_error_in_one_line(call, tmp_path):
    output = tmp_path / "file" / "r.json"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as error:
        call(given(*range(8)), output=output)
    assert str(error.value).startswith(f"the output file {output} cannot be written: ")


def test_samples_without_answers_and_passages_are_not_scored(call):
    rows = [{"question_id": i, **ranking((), 0)} for i in range(8)]
    with pytest.raises(UserError, match="neither answers nor passages: there is nothing to score"):
        call(rows)


def test_without_references_nothing_is_scored(call, tmp_path):
    path = tmp_path / "bare.jsonl"
    path.write_text('{"question_id": 0, "question": "q"}\n', encoding="utf-8")
    with pytest.raises(UserError) as error:
        call(given(0), data=path)
    assert str(error.value).endswith("has no answers to score with")
