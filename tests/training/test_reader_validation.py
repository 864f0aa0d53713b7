"""What a training of a reader says of held-out questions, with a reader that needs no model."""

import math
from types import SimpleNamespace

import pytest

from ravqa.answering.config import AnsweringConfig
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Passage, Question
from ravqa.datasets.base import Dataset
from ravqa.readers.controls import FirstWords
from ravqa.training.reader import ReaderTask, _Held, _shown
from ravqa.training.reader_data import Found, Source

QUESTIONS = [
    Question("a", "?", image_id=1, split="one", answers=("elm",) * 10),
    Question(2, "?", image_id=1, split="one", answers=("oak tree",) * 2 + ("ash",) * 8),
    Question(3, "?", image_id=2, split="two", answers=("fir",) * 10),
    Question(4, "?", image_id=3, answers=("yew hedge",) * 10),
]
TEXTS = ["elm", "oak tree", None, "yew hedge"]
# Counted by hand, with one word of the passage and with two: an answer that two of ten people gave
# has 1/3 by each of the two's and 2/3 by each of the others' answers.
ONE, TWO = [1.0, 0.0, 0.0, 0.0], [1.0, 0.6, 0.0, 1.0]


class Trained(FirstWords):
    """Its answers change, and its fingerprint does not, as in training."""

    def __init__(self):
        super().__init__(FirstWords.Config(words=1))
        self.forgot = 0

    def forget(self):
        self.forgot += 1


@pytest.fixture
def task(fresh_cache, monkeypatch):
    monkeypatch.setattr("ravqa.training.reader._ANSWERED", 3)
    made = object.__new__(ReaderTask)
    made.reader = Trained()
    made._answerer = SimpleNamespace(config=AnsweringConfig(decision="top1"))
    made.config = SimpleNamespace(loop=SimpleNamespace(seed=5, validate_every=1))
    dataset = Dataset("d", "D", "dev", QUESTIONS, "vqa_accuracy", "f")
    passages = [
        Failure("lost") if text is None else [(Hit("p", 1.0, 1), Passage("p", text))]
        for text in TEXTS
    ]
    conditions = {
        "retrieved": Found(QUESTIONS, passages),
        "none": Found(QUESTIONS, [[]] * len(QUESTIONS)),
    }
    made._held = _Held(Source("here", None, dataset, None), conditions)
    made.metric, made.facts = "retrieved", {}
    made._kept, made._highest = {}, -math.inf
    return made


def silent(*_):
    pass


def trained(task, words):
    """The figures of a validation after a step of training."""
    task.reader.config = FirstWords.Config(words=words)
    return task.evaluate(silent)


def by_id(scores):
    return {q.question_id: pytest.approx(s) for q, s in zip(QUESTIONS, scores, strict=True)}


def test_each_question_is_scored_by_what_the_reader_answers_now(task):
    done = []
    figures = task.evaluate(lambda *given: done.append(given))
    assert figures == {"retrieved": 25.0, "none": 0.0}
    assert done == [
        *(("answering (retrieved)", n, 4) for n in (3, 4)),
        *(("answering (none)", n, 4) for n in (3, 4)),
    ]
    assert task.reader.forgot == 2
    assert trained(task, 2) == {"retrieved": pytest.approx(65.0), "none": 0.0}
    assert task._kept["before"] == {"retrieved": by_id(ONE), "none": by_id([0.0] * 4)}
    assert task._kept["last"]["retrieved"] == by_id(TWO)


def test_the_first_the_best_and_the_last_validation_are_kept(task):
    task.evaluate(silent)
    assert task._kept.keys() == {"before", "best"}
    trained(task, 2)
    assert task._kept["best"] is task._kept["last"]
    best = task._kept["last"]
    trained(task, 1)
    assert task._kept["best"] is best
    assert task._kept["last"]["retrieved"] == by_id(ONE)
    trained(task, 2)  # what is as good as the best is not better
    assert task._kept["best"] is best
    assert task._highest == pytest.approx(65.0)


def test_without_validations_in_between_there_is_nothing_before(task):
    task.config.loop.validate_every = None
    task.evaluate(silent)
    assert task._kept.keys() == {"last", "best"}
    assert task.facts["validation"]["conditions"]["none"].keys() == {"last", "best"}
    assert "change" not in task.facts["validation"]["conditions"]["none"]["last"]


def test_what_is_told_has_intervals_over_images_and_the_change(task, monkeypatch):
    for least in ("MIN_CLUSTERS", "MIN_DIFFERING"):  # results of so few images have none
        monkeypatch.setattr(f"ravqa.metrics.statistics.intervals.{least}", 1)
    task.evaluate(silent)
    trained(task, 2)
    told = task.facts["validation"]
    conditions = told.pop("conditions")
    assert told == {
        "dataset": "D",
        "split": "dev",
        "metric": "vqa_accuracy",
        "questions": 4,
        "images": 3,
    }
    assert list(conditions) == ["retrieved", "none"]
    metric = task._held.source.dataset.answer_metric
    splits, images = ["one", "one", "two", ""], [1, 1, 2, 3]
    one, two = ([100 * score for score in scores] for scores in (ONE, TWO))
    expected = {}
    for when, scores in (("before", one), ("last", two), ("best", two)):
        interval = metric.interval(scores, splits, images, seed=5)
        limits = [round(interval.low, 4), round(interval.high, 4)]
        expected[when] = {"score": round(sum(scores) / 4, 4), "interval_95": limits}
    ids = [q.question_id for q in QUESTIONS]
    pairs = (dict(zip(ids, values, strict=True)) for values in (two, one, splits, images))
    test = metric.paired_test(*pairs, seed=5)
    change = {
        "change": 40.0,
        "change_interval_95": [round(test.difference.low, 4), round(test.difference.high, 4)],
        "p_value": round(test.p_value, 5),
    }
    assert expected["before"]["interval_95"] != expected["last"]["interval_95"]
    assert change["change_interval_95"][0] < 40 < change["change_interval_95"][1]
    assert conditions["retrieved"] == {
        "before": expected["before"],
        "last": expected["last"] | change,
        "best": expected["best"] | change,
    }
    retrieved, none, why = task.facts["notes"]
    assert retrieved.startswith("retrieved: before 25.0 [")
    assert "; last 65.0 [" in retrieved
    assert ", change +40.0 [" in retrieved
    assert none == "none: before 0.0; best 0.0, change +0.0; last 0.0, change +0.0"
    assert why.startswith("The best checkpoint was chosen on these questions")


def test_a_resumed_training_knows_its_validations(task, tmp_path):
    task.write_state(tmp_path)
    task.read_state(tmp_path)
    assert (task._kept, task._highest, task.facts) == ({}, -math.inf, {})
    task.evaluate(silent)
    trained(task, 2)
    kept, told = task._kept, task.facts
    task.write_state(tmp_path)
    task._kept, task._highest, task.facts = {}, -math.inf, {}
    task.read_state(tmp_path)
    assert task._kept == kept
    assert task.facts == told
    assert task._highest == pytest.approx(65.0)


def test_without_held_out_questions_there_is_nothing_to_tell(task):
    task._held = None
    assert task.evaluate(silent) == {}
    assert (task._kept, task.facts, task.reader.forgot) == ({}, {}, 0)


def test_a_score_is_shown_with_its_interval_and_its_change():
    score = {"score": 18.66, "interval_95": [12.74, 25.3]}
    assert _shown(score) == "18.7 [12.7, 25.3]"
    score |= {"change": -1.04, "change_interval_95": [-2.26, 0.5]}
    assert _shown(score) == "18.7 [12.7, 25.3], change -1.0 [-2.3, +0.5]"
    few = {"interval_95": [None, None], "change_interval_95": [None, None]}
    assert _shown(score | few) == "18.7, change -1.0"
