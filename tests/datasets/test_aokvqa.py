"""A-OKVQA in its published form: both tasks, what is left out, and what is refused."""

import json

import pytest
from dataset_files import write_image, write_parquet

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Question
from ravqa.datasets import aokvqa
from ravqa.datasets.base import DatasetRequest, Problems
from ravqa.metrics.base import AnswerRecord
from ravqa.testing import check_dataset

ANSWERS = ["rain"] * 4 + ["snow"] * 2 + ["hail", "sleet", "", "mist"]
ROW = {
    "split": "val",
    "image_id": 461751,
    "question_id": "22MexNkBPpdZGX6sxbxVBH",
    "question": "What falls here?",
    "choices": ["snow", "Rain", "leaves", "1998"],
    "correct_choice_idx": 1,
    "direct_answers": ANSWERS,
    "difficult_direct_answer": False,
    "rationales": ["It is wet.", "There are umbrellas.", "Drops are seen."],
}
HARD = ROW | {
    "question_id": "hard",
    "choices": ["a", "b", "c", "d"],
    "correct_choice_idx": 0,
    "direct_answers": ["x", "y"],
    "difficult_direct_answer": True,
}
UNKNOWN = {k: ROW[k] for k in ("split", "image_id", "question_id", "question", "choices")}
UNKNOWN |= {"split": "test"}


def write(folder, *rows, split="val"):
    path = folder / f"aokvqa_v1p0_{split}.json"
    path.write_text(json.dumps(list(rows)), encoding="utf-8")
    write_image(folder / f"{split}2017" / "000000461751.jpg")
    return folder


def load(folder, setting="direct_answer", **changes):
    options = {"setting": setting, **changes.pop("options", {})}
    return aokvqa.load(DatasetRequest(data=folder, options=options, **changes))


def test_direct_answers_leave_the_difficult_questions_out(tmp_path):
    found = load(write(tmp_path, ROW, HARD))
    assert list(found.questions) == [
        Question(
            "22MexNkBPpdZGX6sxbxVBH",
            "What falls here?",
            tmp_path / "val2017" / "000000461751.jpg",
            461751,
            tuple(ANSWERS),
            split="val",
            extra={"rationales": ROW["rationales"]},
        )
    ]
    assert (found.name, found.label, found.split) == ("aokvqa", "A-OKVQA", "val")
    assert (found.metric, found.submission) == ("aokvqa_direct_answer",) * 2
    assert found.info == {"setting": "direct_answer", "left_out": 1}
    assert found.left_out == ["hard"]
    assert found.notes == [
        "1 difficult question is left out, as by the official direct-answer score"
    ]
    # By hand: of ten annotators 4, 2 and 1 gave these answers, and nobody the last one.
    given = ["rain", "snow", "mist", "Rain"]
    scores = found.answer_metric.scores(list(found.questions) * 4, [*map(AnswerRecord, given)])
    assert scores == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_choices_are_of_all_questions(tmp_path):
    found = load(write(tmp_path, ROW, HARD), "multiple_choice")
    first, second = found.questions
    assert (first.choices, first.right_choice) == (("snow", "Rain", "leaves", "1998"), "Rain")
    assert (second.choices, second.right_choice) == (("a", "b", "c", "d"), "a")
    assert (first.answers, second.answers) == (tuple(ANSWERS), ("x", "y"))
    assert found.metric == found.submission == "aokvqa_multiple_choice"
    assert found.info == {"setting": "multiple_choice", "left_out": 0}
    assert (found.notes, found.left_out) == ([], [])
    given = [AnswerRecord("Rain"), AnswerRecord("b")]
    assert found.answer_metric.scores(found.questions, given) == [1, 0]


@pytest.mark.parametrize("setting", ["direct_answer", "multiple_choice"])
def test_the_test_split_has_no_answers(tmp_path, setting):
    found = load(write(tmp_path, UNKNOWN, split="test"), setting)
    [question] = found.questions
    assert found.metric is None
    assert found.submission_form.name == f"aokvqa_{setting}"
    assert (question.answers, question.correct_choice, question.extra) == ((), None, {})
    assert question.choices == (tuple(ROW["choices"]) if setting == "multiple_choice" else ())


@pytest.mark.parametrize("setting", ["direct_answer", "multiple_choice"])
def test_the_loader_keeps_the_contract(tmp_path, setting):
    write(tmp_path, ROW, replace_id(ROW, "second"), HARD)
    check_dataset(aokvqa.load, DatasetRequest(data=tmp_path, options={"setting": setting}))


def replace_id(row, name):
    return row | {"question_id": name}


def test_fingerprints_know_choices_and_task(tmp_path):
    found = [
        load(write(tmp_path, ROW), setting) for setting in ("direct_answer", "multiple_choice")
    ]
    other = ROW | {"correct_choice_idx": 2}
    found.append(load(write(tmp_path, other), "multiple_choice"))
    other = ROW | {"choices": ["snow", "Rain", "leaves", "1999"]}
    found.append(load(write(tmp_path, other), "multiple_choice"))
    assert len({dataset.fingerprint for dataset in found}) == 4


def test_other_published_forms(tmp_path):
    """LAVIS names COCO 2014's images; hub copies hold the text of a Python list."""
    row = ROW | {"image": "val2014/COCO_val2014_000000461751.jpg", "dataset": "aokvqa"}
    del row["image_id"]
    write(tmp_path, row | {"direct_answers": "['rain', \"a cat's\", 'snow']"})
    write_image(tmp_path / row["image"])
    [question] = load(tmp_path).questions
    assert question.image == tmp_path / row["image"]
    assert (question.image_id, question.answers) == (461751, ("rain", "a cat's", "snow"))


def test_a_hub_copy_in_a_folder(tmp_path):
    picture = tmp_path / "p.jpg"
    write_image(picture)
    row = {k: v for k, v in ROW.items() if k not in ("image_id", "split")}
    row |= {"image": {"bytes": picture.read_bytes(), "path": None}}
    row |= {"direct_answers": "['rain', 'snow']"}
    rows = [row, row | {"question_id": "hard", "difficult_direct_answer": True}]
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", rows)
    found = load(tmp_path)
    [question] = found.questions
    assert (found.split, found.left_out) == ("validation", ["hard"])
    assert question.answers == ("rain", "snow")
    assert question.image.read_bytes() == picture.read_bytes()
    chosen = load(tmp_path, "multiple_choice", split="val").questions
    assert [q.right_choice for q in chosen] == ["Rain", "Rain"]


@pytest.mark.parametrize(
    ("setting", "change", "said"),
    [
        ("direct_answer", {"question": " "}, "no 'question'"),
        ("direct_answer", {"direct_answers": []}, "no 'direct_answers'"),
        ("direct_answer", {"direct_answers": ["", " "]}, "no 'direct_answers'"),
        (
            "direct_answer",
            {"direct_answers": "['rain'"},
            "'direct_answers' is not the text of a list: \"['rain'\"",
        ),
        (
            "direct_answer",
            {"direct_answers": [True]},
            "'direct_answers': text is expected, not the truth value true",
        ),
        (
            "direct_answer",
            {"difficult_direct_answer": "no"},
            "'difficult_direct_answer': true or false is expected, not a value of type str",
        ),
        ("multiple_choice", {"choices": []}, "no 'choices'"),
        ("multiple_choice", {"choices": ["snow", " "]}, "'choices': one is blank"),
        (
            "multiple_choice",
            {"choices": {"A": "snow"}},
            "'choices': a list of texts is expected, not an object (A)",
        ),
        (
            "multiple_choice",
            {"correct_choice_idx": None},
            "'correct_choice_idx': a position from 0 is expected, not nothing",
        ),
        (
            "multiple_choice",
            {"correct_choice_idx": 4},
            "the right choice is number 4, counted from 0, but there are 4 choices",
        ),
        (
            "direct_answer",
            {"image_id": "x"},
            "no image: 'image_id' is not a number, and there is no 'image'",
        ),
    ],
)
def test_a_broken_question_is_named_with_its_place(tmp_path, setting, change, said):
    bad = ROW | {"question_id": "bad"} | change
    write(tmp_path, ROW, bad, ROW | {"question_id": "last"})
    with pytest.raises(DataError) as error:
        load(tmp_path, setting)
    path = tmp_path / "aokvqa_v1p0_val.json"
    where = f"{path}, question 2 (id bad)"
    assert str(error.value) == f"{where}: {said} (--on-error skip leaves such questions out)"
    problems = Problems("skip")
    found = load(tmp_path, setting, problems=problems)
    assert [q.question_id for q in found.questions] == [ROW["question_id"], "last"]
    assert [str(problem) for problem in problems.found] == [f"{where}: {said}"]


def test_records_that_are_none(tmp_path):
    for row, said in ((5, "an object is expected"), ({"image_id": 1}, "no 'question_id'")):
        with pytest.raises(DataError, match=rf"question 2: {said}"):
            load(write(tmp_path, ROW, row))
    (tmp_path / "aokvqa_v1p0_val.json").write_text("{}")
    with pytest.raises(DataError, match=r"aokvqa_v1p0_val.json: a list of questions is expected"):
        load(tmp_path)


def test_missing_data_say_what_is_needed(tmp_path):
    for data, said in (
        (None, "--dataset aokvqa needs --data DIR"),
        (tmp_path / "x", f"the data folder {tmp_path / 'x'} does not exist"),
        (tmp_path, f"no A-OKVQA questions in {tmp_path}"),
    ):
        with pytest.raises(UserError) as error:
            load(data)
        assert str(error.value) == f"{said}. {aokvqa.LAYOUT}"
    with pytest.raises(UserError, match="no split 'dev'"):
        load(write(tmp_path, ROW), split="dev")
    with pytest.raises(UserError, match="--dataset-option: key 'setting'"):
        load(tmp_path, "both")
