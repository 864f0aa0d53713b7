"""The registered metrics as objects: each gives what the functions of its rule give."""

import json

import numpy as np
import pytest

from ravqa.core.records import Question
from ravqa.metrics import METRICS, diagnostics, infoseek_scores, vqa_accuracy
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.evqa import EVQAScore
from ravqa.metrics.infoseek import InfoSeek
from ravqa.metrics.statistics.harmonic import harmonic_bootstrap, harmonic_paired_test
from ravqa.metrics.statistics.intervals import bootstrap, paired_test
from ravqa.metrics.vqa import VQAAccuracy


def asked(number, split, kind, evaluated):
    return Question(
        number, "q", image_id=number // 2, split=split, question_type=kind, answer_eval=evaluated
    )


QUESTIONS = [
    asked(0, "val_unseen_question", "String", ["Felidae"]),
    asked(1, "val_unseen_question", "Numerical", [{"range": [90.0, 110.0]}]),
    asked(2, "val_unseen_question", "Time", ["1998"]),
    asked(3, "val_unseen_entity", "String", ["Bovidae"]),
    asked(4, "val_unseen_entity", None, [{"range": [1.0, 2.0]}]),
]
RECORDS = [AnswerRecord(a) for a in ("felidae", "95", "1997", "cats", "1.5")]
UNANSWERED = AnswerRecord(None)


def test_infoseek_is_the_official_score_of_the_same_predictions():
    metric = InfoSeek()
    scores = metric.scores(QUESTIONS, RECORDS)
    assert scores == [1, 1, 0, 0, 1]
    assert metric.scores(QUESTIONS, [UNANSWERED] * 5) == [0] * 5
    kinds = [q.question_type or "Numerical" for q in QUESTIONS]
    official = infoseek_scores(
        [{"data_id": i, "prediction": r.answer} for i, r in enumerate(RECORDS)],
        [
            {"data_id": q.question_id, "data_split": q.split, "answer_eval": q.answer_eval}
            for q in QUESTIONS
        ],
        [{"data_id": i, "question_type": kind} for i, kind in enumerate(kinds)],
    )
    assert metric.summary(QUESTIONS, scores) == {
        "score": official["final_score"],
        "splits": {
            "unseen_question": official["unseen_question_score"],
            "unseen_entity": official["unseen_entity_score"],
        },
        "mean": 60,
    }
    parts = [official[f"{s}_score"]["score"] for s in ("unseen_question", "unseen_entity")]
    assert parts == [66.67, 50]
    assert metric.settings() == {"strict": True}


@pytest.mark.parametrize("seed", [0, 3])
def test_infoseek_is_tested_by_harmonic_means_where_both_splits_are(seed):
    metric, rng = InfoSeek(), np.random.default_rng(5)
    first, second = ({q: 100.0 * int(rng.integers(2)) for q in range(40)} for _ in range(2))
    splits = {q: ("val_unseen_question", "val_unseen_entity")[q % 2] for q in first}
    groups = {q: ("unseen_question", "unseen_entity")[q % 2] for q in first}
    images = {q: q // 4 for q in first}
    found = metric.paired_test(first, second, splits, images, seed=seed)
    assert found == harmonic_paired_test(first, second, groups, images, seed=seed)
    data = list(first.values()), list(splits.values()), list(images.values())
    assert metric.interval(*data, seed=seed) == harmonic_bootstrap(
        data[0], list(groups.values()), data[2], seed=seed
    )

    one = dict.fromkeys(first, "val_unseen_entity")
    found = metric.paired_test(first, second, one, images, seed=seed)
    assert found == paired_test(first, second, images, seed=seed)
    found = metric.interval(data[0], list(one.values()), data[2], seed=seed)
    assert found == bootstrap(data[0], data[2], seed=seed)


def test_infoseek_says_what_cannot_be_scored():
    metric = InfoSeek()
    assert [metric.problem(q) for q in QUESTIONS] == [""] * 5
    assert metric.problem(asked(6, "", "String", ())) == "no 'answer_eval'"
    assert metric.problem(asked(6, "", "Numerical", ["5"])) == (
        'a Numerical question needs [{"range": [low, high]}]'
    )


def test_predictions_in_the_forms_of_the_benchmarks():
    answers = {"a_1": "Löwe", "a_2": "", "a_3": 'a "b"'}
    found = InfoSeek().submission(answers)
    assert found.suffix == ".jsonl"
    assert found.text.endswith("\n")
    assert "Löwe" in found.text
    rows = [json.loads(line) for line in found.text.splitlines()]
    assert rows == [{"data_id": q, "prediction": a} for q, a in answers.items()]
    found = VQAAccuracy().submission(answers)
    assert found.suffix == ".json"
    rows = [{"question_id": q, "answer": a} for q, a in answers.items()]
    assert json.loads(found.text) == rows


def test_vqa_accuracy_is_a_share_and_right_is_a_match():
    metric = VQAAccuracy()
    question = Question(1, "q", answers=("cat",) * 2 + ("dog",) * 8)
    for answer in ("cat", "Cat.", "dog", "the dog", "cow"):
        record = AnswerRecord(answer)
        score = metric.score(question, record)
        assert score == vqa_accuracy(answer, question.answers)
        assert metric.is_right(question, record, score) == (answer != "cow")
    assert 0 < metric.score(question, AnswerRecord("cat")) < 1
    assert not metric.is_right(question, UNANSWERED, 0.0)
    assert metric.summary([question] * 3, [1.0, 0.5, 0.5]) == {"score": 66.6667}
    assert metric.problem(question) == ""
    assert metric.problem(Question(2, "q")) == "no answers"


def test_an_option_of_a_rule_is_what_the_results_say_of_it():
    same = Question(1, "q", answers=("The Dog",) * 10)
    for form, score in (("official", 0), ("always", 1)):
        metric = VQAAccuracy(VQAAccuracy.Config(normalization=form))
        assert metric.settings() == {"normalization": form}
        assert metric.score(same, AnswerRecord("dog")) == score


def test_evqa_is_summed_over_all_and_over_questions_of_one_hop():
    metric = EVQAScore()
    kinds = ["templated", "automatic", "multi_answer", "2_hop"]
    questions = [Question(i, "q", answers=("oak",), question_type=k) for i, k in enumerate(kinds)]
    records = [AnswerRecord(a) for a in ("Oak.", "elm", "oak", "oak")]
    scores = [metric.score(q, r) for q, r in zip(questions, records, strict=True)]
    assert scores == list(metric.scores(questions, records)) == [1, 0, 1, 1]
    found = metric.summary(questions, scores)
    assert found == {"score": 75, "single_hop": 50}  # templated and automatic
    assert metric.summary(questions[3:], [1.0]) == {"score": 100, "single_hop": None}
    assert metric.problem(Question(1, "q", question_type="templated")) == "no answers"


def test_every_metric_is_registered_under_its_own_name():
    names = [name for name, _ in METRICS]
    assert {"vqa_accuracy", "infoseek", "evqa_score"} <= set(names)
    for name in names:
        assert METRICS.get(name).name == name


def test_shares_of_a_table_of_hits_are_of_all_documents():
    found = diagnostics.hit_table([(True, False)])
    assert found == {
        "successful_hit": 0,
        "successful_no_hit": 1,
        "failed_hit": 0,
        "failed_no_hit": 0,
    }
    with pytest.raises(ValueError, match=r"^the hit table needs at least one document$"):
        diagnostics.hit_table([])
