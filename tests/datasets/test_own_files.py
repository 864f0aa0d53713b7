"""The user's own questions as whole records, and each reason why one cannot be used."""

import base64
import csv
import io
import json
from dataclasses import replace

import PIL.Image
import pytest
from dataset_files import write_image
from messages import said

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Question
from ravqa.datasets import files
from ravqa.datasets.base import DatasetRequest, Problem, Problems, RetrievalMetric

pytestmark = pytest.mark.usefixtures("fresh_cache")

ROW = {
    "question_id": 7,
    "question": "What?",
    "image": "a.png",
    "image_id": 4,
    "answers": ["x", "y"],
    "answer_eval": ["x", "z"],
    "instruction": "Look.",
    "question_type": "time",
    "split": "val",
    "pos_item_ids": ["p", "q"],
    "pos_articles": ["A"],
    "note": "kept",
}


def folder(root, *rows, name="questions.jsonl"):
    root.mkdir(exist_ok=True)
    write_image(root / "a.png")
    text = "".join(json.dumps(row) + "\n" for row in rows or [ROW])
    (root / name).write_text(text, encoding="utf-8")
    return root


def load(data, problems=None, loader=files.load_jsonl, split=None, need_images=True, **options):
    request = DatasetRequest(
        data, split, None, problems or Problems(), need_images, options=options
    )
    return loader(request)


WHOLE = Question(
    question_id=7,
    question="What?",
    image_id=4,
    answers=("x", "y"),
    answer_eval=("x", "z"),
    instruction="Look.",
    question_type="time",
    split="val",
    pos_item_ids=("p", "q"),
    extra={"note": "kept"},
    pos_articles=("A",),
)


def test_a_question_of_ones_own_as_a_whole(tmp_path):
    root = folder(tmp_path / "zoo")
    (root / "passages.jsonl").write_text('{"id": "p", "text": "t"}\n')
    dataset = load(root)
    assert dataset.questions == [replace(WHOLE, image=root / "a.png")]
    assert (dataset.name, dataset.label, dataset.split) == ("jsonl", "zoo", "all")
    assert (dataset.metric, dataset.sample) == ("exact_match", False)
    assert dataset.info == {"file": "questions.jsonl", "metric": "exact_match"}
    assert dataset.retrieval_metrics == (
        RetrievalMetric("recall_at_k", 5),
        RetrievalMetric("pseudo_recall_at_k", 5),
    )
    assert list(dataset.corpus) == ["p"]
    assert list(dataset.notes) == []
    alone = load(folder(tmp_path / "zoo", name="cats.jsonl") / "cats.jsonl", split="val")
    assert (alone.label, alone.split, alone.corpus) == ("cats", "val", None)
    assert alone.questions == dataset.questions


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_of_questions_as_a_whole(tmp_path, suffix):
    root = folder(tmp_path / "zoo")
    row = {k: "|".join(v) if isinstance(v, list) else v for k, v in ROW.items()}
    with (root / f"questions.{suffix}").open("w", newline="") as out:
        writer = csv.DictWriter(out, row, delimiter="," if suffix == "csv" else "\t")
        writer.writeheader()
        writer.writerow(row)
    dataset = load(root, loader=files.load_csv)
    found = replace(WHOLE, question_id="7", image_id="4", image=root / "a.png")
    assert list(dataset.questions) == [found]
    assert (dataset.name, dataset.info["file"]) == ("csv", f"questions.{suffix}")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"question": None}, {"question": ""}),
        ({"image_id": None}, {"image_id": "a.png"}),
        ({"answer_eval": None}, {"answer_eval": ("x", "y")}),
        ({"answers": None, "answer": "z", "answer_eval": None}, {"answers": ("z",)}),
        ({"answers": "z", "answer": "other", "answer_eval": []}, {"answers": ("z",)}),
        ({"question_id": None, "id": "k"}, {"question_id": "k"}),
        ({"image": None}, {"image": None}),
        (
            {"answer_eval": {"wikidata": 5, "range": [4, 6]}},
            {"answer_eval": ({"wikidata": 5, "range": [4, 6]},)},
        ),
    ],
)
def test_columns_that_are_blank_or_have_other_names(tmp_path, change, expected):
    [question] = load(folder(tmp_path / "zoo", ROW | change)).questions
    assert {name: getattr(question, name) for name in expected} == expected
    assert question.extra == {"note": "kept"}


def test_an_image_in_the_row(tmp_path):
    out = io.BytesIO()
    PIL.Image.new("RGB", (40, 40), (9, 9, 9)).save(out, "PNG")
    row = {**ROW, "image": base64.b64encode(out.getvalue()).decode(), "image_id": None}
    [question] = load(folder(tmp_path / "zoo", row)).questions
    assert question.image.read_bytes() == out.getvalue()
    assert question.image_id == question.image.name


IDS = "no question id (column question_id or id)"


@pytest.mark.parametrize(
    ("change", "reason", "question_id"),
    [
        ({"question_id": None}, IDS, None),
        (
            {"question_id": 1.5},
            "no question id: 'question_id' is the number 1.5, but ids are",
            None,
        ),
        ({"question_id": "7"}, "duplicate question id '7'", "7"),
        ({"question": " ", "instruction": None}, "no 'question'", 8),
        ({"answers": []}, "no answers, where other questions of the file have some", 8),
        ({"image": "gone.png"}, "no such image: ", 8),
        (
            {"image": ..., "photo of it": "a.png"},
            "'photo of it' seems to hold an image: call that column 'image' (which is blank for a "
            "question without an image)",
            8,
        ),
        ({"pos_item_ids": [["p"]]}, "'pos_item_ids': a list of strings is expected, not of a", 8),
    ],
)
def test_a_question_of_ones_own_that_cannot_be_used(tmp_path, change, reason, question_id):
    row = {**ROW, "question_id": 8, **change}
    row = {key: value for key, value in row.items() if value is not ...}
    root = folder(tmp_path / "zoo", ROW, row)
    problems = Problems("skip")
    assert [q.question_id for q in load(root, problems).questions] == [7]
    [problem] = problems.found
    assert problem.question_id == question_id
    assert problem.reason.startswith(reason)
    in_file = not reason.startswith("no such image")
    assert problem.where == (f"{root}/questions.jsonl, line 2" if in_file else "question 8")


def test_a_metric_may_refuse_a_question(tmp_path):
    good = {**ROW, "question_type": "String"}
    rows = [good, {**good, "question_id": 8, "question_type": "Numerical"}]
    problems = Problems("skip")
    root = folder(tmp_path / "zoo", *rows)
    dataset = load(root, problems, metric="infoseek")
    assert [q.question_id for q in dataset.questions] == [7]
    assert dataset.metric == dataset.info["metric"] == "infoseek"
    [problem] = problems.found
    assert isinstance(problem, Problem)
    assert "Numerical" in problem.reason


def test_questions_without_answers_are_not_scored(tmp_path):
    row = {**ROW, "answers": None, "answer_eval": None, "pos_item_ids": None}
    dataset = load(folder(tmp_path / "zoo", row))
    assert (dataset.metric, dataset.retrieval_metrics) == (None, ())
    assert dataset.questions[0].answers == dataset.questions[0].answer_eval == ()
    rows = [{**row, "question_id": i, "split": s} for i, s in enumerate(["val", "dev", "val"])]
    rows[1]["answers"] = ["x"]
    root = folder(tmp_path / "zoo", *rows)
    assert load(root, split="val").metric is None
    assert [q.question_id for q in load(root, split="val").questions] == [0, 2]
    assert load(root, split="dev").metric == "exact_match"
    assert load(root, split="dev").retrieval_metrics == (RetrievalMetric("pseudo_recall_at_k", 5),)
    assert [q.question_id for q in load(root, Problems("skip"), split="all").questions] == [1]


def test_files_of_ones_own_that_are_not_there(tmp_path):
    expected = "--dataset jsonl needs --data: a file, or a folder with questions.jsonl"
    assert said(UserError, load, None) == expected
    expected = "--dataset csv needs --data: a file, or a folder with questions.csv"
    assert said(UserError, load, None, loader=files.load_csv) == expected
    assert said(UserError, load, tmp_path) == f"no questions.jsonl in {tmp_path}"
    expected = f"no questions.csv in {tmp_path}"
    assert said(UserError, load, tmp_path, loader=files.load_csv) == expected
    gone = tmp_path / "gone.jsonl"
    assert said(UserError, load, gone) == f"no such file or folder: {gone}"
    other = tmp_path / "x.txt"
    other.touch()
    assert said(UserError, load, other) == f"{other}: a .jsonl or .ndjson file is expected"
    expected = f"{other}: a .csv or .tsv file is expected"
    assert said(UserError, load, other, loader=files.load_csv) == expected
    root = folder(tmp_path / "zoo")
    message = said(UserError, load, root, metric="exact_mach")
    assert "'exact_mach': did you mean exact_match?" in message
    assert "--dataset-option metric" in message
    expected = f"{root}/questions.jsonl: no usable question"
    assert said(DataError, load, root, split="gone") == expected


def test_passages_beside_questions(tmp_path):
    root = folder(tmp_path / "zoo")
    (root / "passages.csv").write_text("id,text\nc,t\n")
    assert list(load(root).corpus) == ["c"]
    (root / "passages.ndjson").write_text('{"id": "n", "text": "t"}\n{"id": "m"}\n')
    message = said(DataError, load, root)
    assert message.startswith(f"{root}/passages.ndjson, line 2: no text ")
    dataset = load(root, Problems("skip"))
    assert list(dataset.corpus) == ["n"]
    [note] = dataset.notes
    assert note.startswith(f"cannot be read, left out: {root}/passages.ndjson, line 2: no text ")
