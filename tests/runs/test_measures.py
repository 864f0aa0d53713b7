"""Measures of finished runs, on folders written by hand; controls of a run."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hand_runs import answered, ranking, write
from hypothesis import given
from hypothesis import strategies as st
from sample_files import sample

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Description, Question
from ravqa.corpora.corpus import Corpus
from ravqa.metrics.infoseek import InfoSeek
from ravqa.metrics.statistics import intervals
from ravqa.retrievers.controls import NoRetriever, OracleRetriever, RandomRetriever
from ravqa.runs.conditions import control, wrong_images
from ravqa.runs.finished import FinishedRun, Measure, RunFiles, common_questions

SCORE, EXACT, SECONDS = Measure("score"), Measure("exact_match"), Measure("seconds")


# --- names


@pytest.mark.parametrize("name", ["score", "exact_match", "seconds", "requests", "tokens", "cost"])
def test_plain_measures_have_their_names(name):
    measure = Measure.parse(name)
    assert measure == Measure(name, None)
    assert measure.key == name
    assert measure.of_answers is (name in {"score", "exact_match"})
    assert measure.in_percent is measure.of_answers


@pytest.mark.parametrize("name", ["PRRecall", "Recall", "ArticleRecall"])
def test_measures_of_retrieval_have_a_number(name):
    for k in (1, 5, 10, 999_999_999):
        measure = Measure.parse(f"{name}@{k}")
        assert measure == Measure(name, k)
        assert (measure.key, measure.of_answers, measure.in_percent) == (f"{name}@{k}", False, True)


@pytest.mark.parametrize(
    "text",
    ["", "PRRecall", "PRRecall@", "PRRecall@0", "PRRecall@05", "PRRecall@1234567890", "Score"]
    + ["PRRecall@5 ", "Precision@5", "score@5", "PRRecall@-1", "xPRRecall@5", "PRRecall@5x"],
)
def test_other_names_are_refused(text):
    with pytest.raises(UserError) as error:
        Measure.parse(text)
    assert str(error.value).startswith(f"metrics: no metric {text!r}: ")
    known = (
        "(known: ArticleRecall@5, PRRecall@5, Recall@5, cost, exact_match, requests, score, "
        "seconds, tokens, truthfulness)"
    )
    assert str(error.value).endswith((known, known[1:-1]))


# --- values


def test_each_question_has_the_values_of_its_sample(tmp_path):
    none = {"answer_ranks": None, "answers": []}
    ids = {"id_ranks": [2], "article_ranks": []}
    folder = write(
        tmp_path / "r",
        [
            answered(1, 1.0, ranks=(3, 5), read=(2,), question_type="x", split="val"),
            answered("b", 0.25, ranks=(), read=(), right=True, exact_match=True, image_id=None),
            answered(3, 0.0, ranks=(1,), read=None, **ids, error="gone", answer=None),
            answered(4, 0.5, count=0, **none) | {"read": ranking((), 0) | {"answer_ranks": None}},
        ],
        top_k=5,
    )
    run = FinishedRun(folder)
    assert run.values(SCORE) == {1: 100, "b": 25, 3: 0, 4: 50}
    assert run.values(EXACT) == {1: 100, "b": 100, 3: 0, 4: 0}
    at = {k: run.values(Measure("PRRecall", k)) for k in (1, 2, 3, 5)}
    assert at[1] == at[2] == {1: 0, "b": 0, 3: 100}
    assert at[3] == at[5] == {1: 100, "b": 0, 3: 100}
    assert run.values(Measure("PRRecall", 6)) == {}  # beyond what was retrieved
    assert [run.values(Measure("Recall", k)) for k in (1, 2)] == [{3: 0}, {3: 100}]
    assert run.values(Measure("ArticleRecall", 5)) == {3: 0}
    asked = run.questions
    assert [asked[q].image for q in asked] == [1, ("question", "b"), 3, 4]
    assert [asked[q].kind for q in asked] == ["x", None, None, None]
    assert [asked[q].split for q in asked] == ["val", "", "", ""]
    assert [asked[q].failed for q in asked] == [False, False, True, False]
    assert [asked[q].read for q in asked] == [True, False, None, None]
    assert run.right == {1: True, "b": True, 3: False, 4: False}
    assert run.images([3, 1]) == {3: 3, 1: 1}
    assert run.values(SCORE) is run.values(SCORE)


def test_seconds_are_those_of_all_stages_and_of_describing(tmp_path):
    def timed(i, **stages):
        seconds = {name: second for name, (second, _) in stages.items()}
        cached = {name: {"share": share} for name, (_, share) in stages.items()}
        return answered(i, seconds=seconds, cached=cached)

    rows = [timed(1, retrieve=(0.5, 0.0), answer=(1.0, 0.75)), timed(2, retrieve=(0.25, 0.5))]
    run = FinishedRun(write(tmp_path / "r", rows, described=(2.0, 0.25)))
    assert run.values(SECONDS) == {1: 3.5, 2: 2.25}
    assert [run.questions[i].cached for i in (1, 2)] == [0.75, 0.5]
    assert run.cached_share([1, 2]) == 0.75
    assert run.cached_share([2]) == 0.5
    assert run.cached_share([]) == 0.0
    described = FinishedRun(write(tmp_path / "d", rows[1:], described=(2.0, 1.0)))
    assert described.cached_share([2]) == 1.0


def record(prompt, completion, **more):
    """What a stage cost; None is not known."""
    unknown = {"unknown": 1} if prompt is None else {}
    counts = {"requests": 1, "retries": 0, "cached_tokens": None}
    return {**counts, "prompt_tokens": prompt, "completion_tokens": completion, **unknown, **more}


def test_costs_are_those_of_all_stages_and_of_what_came_from_the_cache(tmp_path):
    reused = {"results": 2, "prompt_tokens": 30, "completion_tokens": 5, "money": 0.02}
    costs = {
        0: {"answer": record(100, 10, money=0.5), "judge": record(20, 1, money=0.25)},
        1: {"answer": record(0, 0, requests=0, money=0.0, reused=reused)},
        2: {"answer": record(None, None, money=None)},
        3: {"answer": record(1, 1, money=0.1, reused={**reused, "prompt_tokens": None,
            "completion_tokens": None, "money": None, "unknown": 1})},
    }  # fmt: skip
    rows = [answered(q, cost=cost) for q, cost in costs.items()]
    prepared = record(8, 4, requests=4, money=0.04)
    section = {"currency": "EUR", "prepared": prepared, "conditions": {}, "total": prepared}
    run = FinishedRun(write(tmp_path / "run", rows, cost=section))
    requests, tokens, cost = map(Measure, ("requests", "tokens", "cost"))
    assert run.values(requests) == {0: 3, 1: 1, 2: 2, 3: 2}
    assert run.values(tokens) == {0: 131 + 3, 1: 35 + 3}  # of the others not all is known
    assert run.values(cost) == pytest.approx({0: 0.76, 1: 0.03})
    assert [m.key for m in run.default_measures()][-3:] == ["seconds", "tokens", "cost"]
    assert cost.title(run) == "EUR per question"
    assert tokens.title(run) == "tokens per question"


def test_without_prices_or_models_there_is_no_cost(tmp_path):
    section = {"currency": None, "prepared": record(0, 0), "conditions": {}, "total": record(0, 0)}
    section["prepared"]["requests"] = 0
    rows = [answered(0, cost={"answer": record(7, 1)})]
    run = FinishedRun(write(tmp_path / "free", rows, cost=section))
    assert run.values(Measure("tokens")) == {0: 8}
    assert run.values(Measure("cost")) == {}
    run = FinishedRun(write(tmp_path / "none", [answered(0)]))
    for name in ("requests", "tokens", "cost"):
        assert run.values(Measure(name)) == {}
    assert run.default_measures()[-1] == SECONDS


def test_a_run_that_scored_nothing_has_no_scores(tmp_path):
    rows = [sample(i, **ranking((1,), 3), answers=["a"]) for i in (1, 2)]
    run = FinishedRun(write(tmp_path / "r", rows, answers=False, retrieval=False))
    assert run.values(SCORE) == run.values(EXACT) == {}
    assert run.right is None
    assert (run.metric, run.label_of_score) == ("score", "score")
    assert run.default_measures() == [Measure("PRRecall", 5), SECONDS]
    partly = FinishedRun(write(tmp_path / "p", [rows[0], answered(2)]))
    assert partly.right is None
    assert partly.values(SCORE) == {2: 100}


@pytest.mark.parametrize(
    ("reported", "top_k", "expected"),
    [
        ([], 8, [SCORE, Measure("PRRecall", 5), SECONDS]),
        ([], 3, [SCORE, Measure("PRRecall", 3), SECONDS]),
        ([], None, [SCORE, Measure("PRRecall", 5), SECONDS]),
        (["pseudo_recall_at_k", "recall_at_k"], 8, [SCORE, Measure("PRRecall", 7), SECONDS]),
        (["recall_at_k"], 8, [SCORE, Measure("Recall", 7), SECONDS]),
        (["article_recall_at_k"], 8, [SCORE, Measure("ArticleRecall", 7), SECONDS]),
    ],
)
def test_the_measures_that_are_shown_unless_others_are_asked_for(
    tmp_path, reported, top_k, expected
):
    section = {
        "reported": [
            {"metric": m, "k": 7 - i, "questions": 1, "conditions": {}, "intervals_95": {}}
            for i, m in enumerate(reported)
        ]
    }
    folder = write(tmp_path / "r", [answered(1, ranks=(1,))], retrieval=section, top_k=top_k)
    run = FinishedRun(folder)
    assert run.default_measures() == expected
    assert run.top_k == (20 if top_k is None else top_k)
    titles = {
        "score": "Exact match %",
        "exact_match": "exact match %",
        "seconds": "seconds per question",
        "Recall@7": "Recall@7 %",
    }
    for name, title in titles.items():
        assert Measure.parse(name).title(run) == title


def test_without_any_reference_there_is_no_recall_to_show(tmp_path):
    rows = [answered(1, answers=[], answer_ranks=None)]
    run = FinishedRun(write(tmp_path / "r", rows))
    assert run.default_measures() == [SCORE, SECONDS]


@pytest.mark.parametrize(
    ("condition", "retriever", "what", "retrieves", "main", "has"),
    [
        ("main", "bm25", "with retrieval", True, True, True),
        ("none", "bm25", "without retrieval", False, False, False),
        ("oracle", "bm25", "oracle passages", True, False, False),
        ("main", "none", "without retrieval", False, True, True),
    ],
)
def test_what_ran(tmp_path, condition, retriever, what, retrieves, main, has):
    rows = [answered(1)]
    controls = {"none": rows, "oracle": rows}
    stand_ins = {"reader": "a large one"}
    more = {"retriever": retriever, "stand_ins": stand_ins, "split": None}
    run = FinishedRun(write(tmp_path / "r", rows, controls, **more), condition)
    assert (run.what_ran, run.retrieves, run.is_main, run.has_control) == (
        what, retrieves, main, has,
    )  # fmt: skip
    assert (run.label, run.split, run.stand_ins) == ("Own", "None", stand_ins)
    alone = FinishedRun(write(tmp_path / "alone", rows))
    assert not alone.has_control


def test_conditions_come_in_the_order_in_which_they_are_shown(tmp_path):
    rows = [answered(1)]
    names = ["zoo", "wrong-image", "odd", "none", "oracle"]
    folder = write(tmp_path / "r", rows, dict.fromkeys(names, rows))
    found = RunFiles.read(folder)
    assert found.conditions == ("main", "none", "oracle", "wrong-image", "odd", "zoo")
    assert found.folder == folder
    assert [s["question_id"] for s in found.samples("odd")] == [1]


def test_controls_whose_samples_are_gone_are_told_of(tmp_path, caplog):
    rows = [answered(1)]
    scores = {"score": 0.0, "interval_95": [0.0, 0.0], "unjudged": [], "raw": None}
    scores |= {"cut": {"passages": 0, "questions": 0}, "unanswered": []}
    scores |= {"exact_match": {}, "hits": None, "groups": {}}
    ranked = {"PRRecall": {}, "interval_95": {}, "PRPrecision": {}, "PRRecall_by_rule": {}}
    ranked |= {"groups": {}}
    answers = {"conditions": dict.fromkeys(("main", "none", "oracle"), scores)}
    retrieval = {"conditions": dict.fromkeys(("main", "oracle", "random"), ranked)}
    folder = write(tmp_path / "r", rows, {"none": rows}, answers=answers, retrieval=retrieval)
    found = RunFiles.read(folder)
    assert (found.conditions, found.missing) == (("main", "none"), ("oracle", "random"))
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / f'samples.{name}.jsonl'} is missing: the control {name} is left out"
        for name in ("oracle", "random")
    ]
    caplog.clear()
    whole = RunFiles.read(write(tmp_path / "w", rows, answers=False, retrieval=False))
    assert (whole.missing, caplog.records) == ((), [])


def test_a_folder_that_is_no_finished_run_is_refused_with_the_reason(tmp_path):
    def said(folder, condition="main", kind=UserError):
        with pytest.raises(kind) as error:
            FinishedRun(folder, condition)
        return str(error.value)

    nothing = tmp_path / "nothing"
    assert said(nothing) == f"{nothing} contains no run: there is no results.json"
    below = write(nothing / "OKVQA", [answered(1)])
    assert said(nothing).endswith(f"there is no results.json; {below} is one")
    folder = write(tmp_path / "r", [answered(1), answered(2)])
    assert said(folder, "none") == f"the run in {folder} has no samples.none.jsonl"
    path = folder / "samples.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert said(folder, kind=DataError) == (
        f"{path}: 1 question, and results.json has 2: is it cut off?"
    )
    (folder / "results.json").unlink()
    assert said(folder) == (
        f"the run in {folder} is not finished: --resume --output {folder} resumes it"
    )
    empty = write(tmp_path / "empty", [])
    assert said(empty) == f"the run in {empty} has no questions"
    unknown = write(tmp_path / "unknown", [answered(1)], answers={"metric": "exact_mach"})
    with pytest.raises(UserError) as error:
        _ = FinishedRun(unknown).answer_metric
    assert str(error.value).startswith(f"{unknown}: no metric 'exact_mach': did you mean exact_m")


# --- statistics


def drawn(seed, count=40):
    rng = np.random.default_rng(seed)
    return [
        answered(
            i,
            float(rng.choice([0.0, 0.3, 1.0])),
            ranks=sorted(rng.choice(5, 2, replace=False) + 1) if i % 3 else (),
            image_id=i // 3,
            split=f"val_unseen_{'question' if i % 2 else 'entity'}",
            seconds={"retrieve": float(i // 5)},
        )
        for i in range(count)
    ]


def plain(rows):
    return [{**row, "answer_ranks": {k: list(map(int, v)) for k, v in row["answer_ranks"].items()}}
            for row in rows]  # fmt: skip


@pytest.mark.usefixtures("any_images")
@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("metric", ["exact_match", "infoseek"])
def test_estimates_and_tests_resample_images(tmp_path, seed, metric):
    first = FinishedRun(write(tmp_path / "a", plain(drawn(1)), answers={"metric": metric}))
    second = FinishedRun(write(tmp_path / "b", plain(drawn(2)), answers={"metric": metric}))
    ids = dict.fromkeys(range(3, 33))
    images = {q: q // 3 for q in ids}
    splits = {q: f"val_unseen_{'question' if q % 2 else 'entity'}" for q in ids}
    for measure in (SCORE, EXACT, Measure("PRRecall", 2)):
        mine, theirs = ({q: r.values(measure)[q] for q in ids} for r in (first, second))
        data = list(mine.values()), list(images.values())
        if measure is SCORE and metric == "infoseek":
            rule = InfoSeek()
            interval = rule.interval(data[0], list(splits.values()), data[1], seed=seed)
            test = rule.paired_test(mine, theirs, splits, images, seed=seed)
        else:
            interval = intervals.bootstrap(*data, seed=seed)
            test = intervals.paired_test(mine, theirs, images, seed=seed)
        found = first.estimate(measure, ids, seed)
        assert found == intervals.Estimate(interval.mean, interval.low, interval.high)
        change = test.difference
        difference = intervals.Estimate(change.mean, change.low, change.high)
        assert first.against(second, measure, ids, seed) == (difference, test)
    seconds = first.values(SECONDS)
    values, batches = [seconds[q] for q in ids], [q // 5 for q in ids]
    interval = intervals.bootstrap(values, batches, seed=seed)  # timed five at a time
    found = first.estimate(SECONDS, ids, seed)
    assert found == intervals.Estimate(interval.mean, interval.low, interval.high)


def test_questions_without_the_measure_do_not_count(tmp_path):
    rows = plain(drawn(1, 12))
    for row in rows[::2]:
        row |= {"answers": [], "answer_ranks": None}
    first = FinishedRun(write(tmp_path / "a", rows))
    second = FinishedRun(write(tmp_path / "b", plain(drawn(2, 12))[3:]))
    recall = Measure("PRRecall", 5)
    ids = dict.fromkeys(range(12))
    assert first.estimate(recall, {0: None, 2: None}, 0) is None
    assert first.against(second, recall, {1: None}, 0) is None
    _, found = first.against(second, recall, ids, 0)
    assert found.wins + found.losses + found.ties == 5  # 3, 5, 7, 9, 11
    assert first.estimate(Measure("Recall", 5), ids, 0) is None


# --- questions of several runs


def test_runs_are_compared_on_questions_that_all_asked(tmp_path):
    def run(name, ids, **changes):
        rows = [answered(i, **changes) for i in ids]
        return FinishedRun(write(tmp_path / name, rows))

    runs = {"a": run("a", [3, 1, 2, 4]), "b": run("b", [2, 3, 5]), "c": run("c", [1, 2, 3])}
    assert list(common_questions(runs, intersect=True)) == [3, 2]
    assert list(common_questions({"a": runs["a"]}, intersect=False)) == [3, 1, 2, 4]
    with pytest.raises(UserError) as error:
        common_questions(runs, intersect=False)
    assert str(error.value) == (
        "b asked other questions than a: 2 are common, 2 only in a, 1 only in b; --common compares "
        "those that are common"
    )
    more = {"a": runs["a"], "c": runs["c"]}
    with pytest.raises(UserError) as error:
        common_questions(more, intersect=False)
    assert str(error.value) == (
        "c asked other questions than a: 3 are common, 1 only in a, 0 only in c; --common compares "
        "those that are common"
    )
    with pytest.raises(UserError) as error:
        common_questions({"c": runs["c"], "a": runs["a"]}, intersect=False)
    assert str(error.value) == (
        "a asked other questions than c: 3 are common, 0 only in c, 1 only in a; --common compares "
        "those that are common"
    )
    with pytest.raises(UserError) as error:
        common_questions({"c": runs["c"], "d": run("d", [9])}, intersect=True)
    assert str(error.value) == "no question is common to all runs"
    for what, changes in (("words", {"question": "Who?"}), ("references", {"answers": ["b"]})):
        other = run(what, [7, 2], **changes)
        with pytest.raises(UserError) as error:
            common_questions({"a": runs["a"], what: other}, intersect=True)
        assert str(error.value) == (
            f"question 2 has different {what} in {what} and in a: they are not about the same data"
        )


def test_runs_with_different_rules_are_not_compared(tmp_path):
    rows = [answered(1)]
    one = FinishedRun(write(tmp_path / "a", rows))
    other = FinishedRun(write(tmp_path / "b", rows, answers={"metric": "vqa_accuracy"}))
    unscored = FinishedRun(write(tmp_path / "c", rows, answers=False))
    with pytest.raises(UserError) as error:
        common_questions({"a": one, "b": other}, intersect=True)
    assert str(error.value) == (
        "a was scored by exact_match, b by vqa_accuracy: they cannot be compared"
    )
    for pair in ((one, unscored), (unscored, one)):
        assert common_questions(dict(zip("ab", pair, strict=True)), intersect=False) == {1: None}


# --- controls


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_text(
        "".join(f'{{"passage_id": "p{i}", "text": "word {i}"}}\n' for i in range(30)), "utf-8"
    )
    return Corpus.read(path)


def test_controls_are_ready_to_retrieve(corpus):
    base = RandomRetriever(RandomRetriever.Config(seed=9))
    base.prepare(corpus)
    pipeline = SimpleNamespace(retriever=base)
    assert isinstance(control("none", pipeline, None, 0), NoRetriever)
    assert control("wrong-image", pipeline, corpus, 0) is base
    questions = [Question(i, "q", answers=("word 7",)) for i in range(3)]
    for seed in (0, 4):
        made = control("random", pipeline, corpus, seed)
        own = RandomRetriever(RandomRetriever.Config(seed=seed))
        own.prepare(corpus)
        assert made.retrieve(questions, 5) == own.retrieve(questions, 5)
    oracle = control("oracle", pipeline, corpus, 0)
    assert isinstance(oracle, OracleRetriever)
    assert oracle.base is base
    assert [hits[0].passage_id for hits in oracle.retrieve(questions, 5)] == ["p7"] * 3
    assert control("oracle", SimpleNamespace(retriever=oracle), corpus, 0) is oracle


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=12), st.integers(0, 50))
def test_every_image_gets_another_one_and_all_of_an_image_the_same(images, seed):
    questions = [
        Question(
            i,
            f"q{i}",
            image=name.encode(),
            image_id=name,
            description=Description(caption=name),
            answers=("x",),
        )
        for i, name in enumerate(images)
    ]
    if len(set(images)) < 2:
        with pytest.raises(UserError) as error:
            wrong_images(questions, seed)
        assert str(error.value) == (
            "--controls wrong-image needs questions about at least two images"
        )
        return
    changed = wrong_images(questions, seed)
    given_to = {}
    for before, after in zip(questions, changed, strict=True):
        shown = after.image.decode()
        assert after.description.caption == shown
        assert shown != before.image_id
        assert given_to.setdefault(before.image_id, shown) == shown
        assert (after.question_id, after.question) == (before.question_id, before.question)
        assert (after.image_id, after.answers) == (before.image_id, before.answers)
    assert sorted(given_to.values()) == sorted(given_to)  # each is given once
    # The images, in an order drawn by lot, each get the next one's.
    order = list(dict.fromkeys(images))
    random.Random(seed).shuffle(order)
    assert given_to == dict(zip(order, [*order[1:], order[0]], strict=True))
