"""Verdicts are kept as a dataset that runs read."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from ravqa.core.errors import UserError
from ravqa.datasets.base import DatasetRequest
from ravqa.datasets.files import load_jsonl
from ravqa.doors.feedback import ANSWERED, OPEN, Feedback, Verdict


def photo(colour):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def read(path):
    return load_jsonl(DatasetRequest(data=path))


def verdict(name, right, **options):
    return Verdict(name, f"Question {name}?", photo("red"), "shown", right, **options)


def test_verdicts_are_datasets(tmp_path):
    feedback = Feedback(tmp_path / "feedback")
    feedback.keep(verdict("a", "shown", shown={"pipeline": "sample", "passages": ["p", "q"]}))
    feedback.keep(verdict("b", "the right one"))
    feedback.keep(verdict("c", None))
    answered, unanswered = read(feedback.folder), read(feedback.folder / OPEN)
    assert [(q.question_id, q.answers) for q in answered.questions] == [
        ("a", ("shown",)),
        ("b", ("the right one",)),
    ]
    assert answered.metric == "exact_match"
    first = answered.questions[0]
    assert first.image.read_bytes() == photo("red")
    assert dict(first.extra) == {
        "shown_answer": "shown",
        "pipeline": "sample",
        "passages": ["p", "q"],
    }
    [lacking] = unanswered.questions
    assert (lacking.question_id, lacking.answers, unanswered.metric) == ("c", (), None)
    assert len(list((feedback.folder / "photos").iterdir())) == 1  # the same one


def test_a_second_verdict_replaces_the_first(tmp_path):
    feedback = Feedback(tmp_path)
    (tmp_path / ANSWERED).write_text('not ours\n{"question_id": "x"}\n', encoding="utf-8")
    for right in (None, "first", "second"):
        feedback.keep(verdict("a", right))
    assert (tmp_path / OPEN).read_text(encoding="utf-8") == ""
    lines = (tmp_path / ANSWERED).read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["not ours", '{"question_id": "x"}']
    assert [json.loads(line)["answers"] for line in lines[2:]] == [["second"]]


def test_text_only_questions_and_odd_texts_are_kept(tmp_path):
    feedback = Feedback(tmp_path)
    odd = 'a "quoted"\nline \u2028 and \U0001f428'
    feedback.keep(Verdict("a", odd, None, "shown", odd))
    [question] = read(tmp_path).questions
    assert (question.question, question.answers, question.image) == (odd, (odd,), None)


def test_several_people_at_once_lose_nothing(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: Feedback(tmp_path).keep(verdict(str(i), "yes")), range(12)))
    assert {q.question_id for q in read(tmp_path).questions} == {str(i) for i in range(12)}


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="it is a file"):
        Feedback(tmp_path / "file").check()
