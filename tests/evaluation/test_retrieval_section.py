"""The section of retrieval in the results: what is marked of a ranking, and what becomes of it."""

import io
import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console as RichConsole

from ravqa.core.records import Passage, Question
from ravqa.datasets.base import Dataset, RetrievalMetric
from ravqa.evaluation.retrieval import Marker, rankings, retrieval_ks, retrieval_section
from ravqa.metrics.statistics.intervals import bootstrap, paired_test
from ravqa.runs.console import Console

PASSAGES = {
    "p1": Passage("p1", "The art of war.", url="u1", article="A"),
    "p2": Passage("p2", "A party.", url="u1", article="A"),
    "p3": Passage("p3", "Nothing.", url="u2"),
    "p4": Passage("p4", "art again", entity="Q4"),
}
QUESTIONS = (
    Question(1, "q", image_id=1, answers=("art",), pos_item_ids=("p3",), pos_articles=("u2",)),
    Question(2, "q", image_id=2, answers=("art",), pos_item_ids=("p9", "p4"), pos_articles=("Q9",)),
    Question(3, "q", image_id=2, question_type="x"),
)
RANKINGS = {1: ["p3", "p2", "p1"], 2: ["p2", "p1", "p4"], 3: ["p4"]}


@pytest.fixture
def dataset():
    return Dataset(
        name="d",
        label="d",
        split="test",
        questions=QUESTIONS,
        metric=None,
        fingerprint="",
        retrieval_metrics=[
            RetrievalMetric("recall_at_k", 2),
            RetrievalMetric("pseudo_recall_at_k", 3),
            RetrievalMetric("recall_at_k", 100),
        ],
    )


@pytest.fixture
def samples():
    return {
        q.question_id: {
            "hits": [[p, 1.0] for p in RANKINGS[q.question_id]],
            **Marker(q).marks([PASSAGES[p] for p in RANKINGS[q.question_id]]),
        }
        for q in QUESTIONS
    }


def test_marks_of_a_sample(samples):
    assert samples[1]["answer_ranks"] == {
        **{rule: [2, 3] for rule in ("ravqa", "flmr", "nfkc")},
        "word": [3],
    }
    assert samples[1]["article_ranks"] == [1]
    assert samples[2]["article_ranks"] == []
    assert samples[3]["answer_ranks"] is None
    assert samples[3]["article_ranks"] is None
    wanted = Question(4, "q", pos_articles=("Q4",))
    ranked = [PASSAGES[p] for p in ("p1", "p2", "p3", "p4")]
    assert Marker(wanted).marks(ranked)["article_ranks"] == [3]  # A, u2, Q4


def test_a_questions_rankings_are_marked_as_if_each_were_the_only_one():
    for question in QUESTIONS:
        marker = Marker(question)
        for names in itertools.permutations(PASSAGES, 3):
            ranked = [PASSAGES[name] for name in names]
            assert marker.marks(ranked) == Marker(question).marks(ranked)
        assert marker.marks([]) == Marker(question).marks([])


def test_items_of_a_multi_answer_reference_count_one_by_one():
    ranked = [Passage("a", "Deer live here."), Passage("b", "A bear.")]
    answers = ("bear && wolf", "deer&&fox&&")

    def ranks(kind):
        question = Question(1, "q", answers=answers, question_type=kind)
        return Marker(question).marks(ranked)["answer_ranks"]

    assert ranks("multi_answer") == {rule: [1, 2] for rule in RULES}
    assert ranks("templated") == ranks(None) == {rule: [] for rule in RULES}


@pytest.mark.usefixtures("any_images")
def test_retrieval_section_by_hand(dataset, samples):
    ks = retrieval_ks(dataset, 3)
    assert ks == [1, 2, 3]
    section = retrieval_section(dataset, {"main": samples}, ks, seed=0)
    assert section["rule"] == "flmr"
    assert section["questions"] == 2
    main = section["conditions"]["main"]
    assert main["PRRecall"] == {"1": 50, "2": 100, "3": 100}
    assert main["PRRecall_by_rule"]["word"] == {"1": 0, "2": 50, "3": 100}
    older = {
        q: {**s, "answer_ranks": {r: s["answer_ranks"][r] for r in RULES[:3]}}
        if s["answer_ranks"]
        else s
        for q, s in samples.items()
    }
    again = retrieval_section(dataset, {"main": older}, ks, seed=0)["conditions"]["main"]
    assert list(again["PRRecall_by_rule"]) == ["ravqa", "flmr", "word"]
    assert again["PRRecall"] == main["PRRecall"]
    assert main["PRPrecision"] == {"1": 50, "2": 75, "3": round(100 * (2 / 3 + 1) / 2, 4)}
    by_ids = section["by_ids"]["conditions"]["main"]
    assert section["by_ids"]["questions"] == 2
    assert by_ids["Recall"] == {"1": 50, "2": 50, "3": 100}
    assert by_ids["MRR"] == round(100 * (1 + 1 / 3) / 2, 4)
    assert by_ids["nDCG"]["3"] == round(
        100 * (1 + (1 / math.log2(4)) / (1 + 1 / math.log2(3))) / 2, 4
    )
    assert section["by_articles"]["conditions"]["main"]["Recall"] == {"1": 50, "2": 50, "3": 50}
    reported = {(r["metric"], r["k"]): r for r in section["reported"]}
    assert {name: r["conditions"] for name, r in reported.items()} == {
        ("recall_at_k", 2): {"main": 50},
        ("pseudo_recall_at_k", 3): {"main": 100},
    }
    assert {r["questions"] for r in section["reported"]} == {2}
    assert reported["recall_at_k", 2]["intervals_95"] == {"main": by_ids["interval_95"]["2"]}
    assert reported["pseudo_recall_at_k", 3]["intervals_95"] == {"main": [None, None]}


def test_every_way_of_scoring_retrieval_is_printed(dataset, samples):
    out = io.StringIO()
    section = retrieval_section(dataset, {"main": samples}, [1, 2], seed=0)
    heading = {"label": "D", "split": "test"}
    console = Console(out=RichConsole(file=out, width=100))
    provenance = {"retriever": "bm25"}
    console.tables(
        {"dataset": heading, "answers": None, "retrieval": section, "provenance": provenance}
    )
    printed = out.getvalue()
    for title in (
        "Retrieval, PRRecall %",
        "Retrieval by passage ids, Recall %",
        "Retrieval by articles, Recall %",
    ):
        assert f"{title}: D, test, 2 questions" in printed
    assert len(re.findall(r"^ +@1 +@2$", printed, re.M)) == 3


def test_questions_without_answers_are_scored_by_ids_alone(dataset, samples):
    questions = [replace(q, answers=()) for q in QUESTIONS[:2]]
    section = retrieval_section(
        replace(dataset, questions=questions),
        {"main": samples, "none": _nothing()},
        [1],
        seed=0,
        blind=["none"],
    )
    assert section["conditions"] == {}
    assert list(section["by_ids"]["conditions"]) == ["main"]
    plain = [replace(q, pos_item_ids=(), pos_articles=()) for q in QUESTIONS]
    section = retrieval_section(replace(dataset, questions=plain), {"main": samples}, [1], seed=0)
    assert section["by_ids"] is None
    assert section["by_articles"] is None


def test_nothing_found_for_any_question_is_a_recall_of_0(dataset):
    section = retrieval_section(dataset, {"main": _nothing()}, [1, 2], seed=0)
    assert section["conditions"]["main"]["PRRecall"] == {"1": 0, "2": 0}
    assert section["by_ids"]["conditions"]["main"]["Recall"] == {"1": 0, "2": 0}
    assert section["by_articles"]["conditions"]["main"]["Recall"] == {"1": 0, "2": 0}
    [stage] = section["stages"]["main"]
    assert (stage["passages"], stage["without_passages"]) == (0, len(dataset.questions))
    reported = {(r["metric"], r["k"]): r["conditions"] for r in section["reported"]}
    assert reported == {("recall_at_k", 2): {"main": 0}}  # K of 3 is beyond what was scored


def _nothing():
    return {
        q.question_id: {
            "hits": [],
            "answer_ranks": None,
            "id_ranks": None,
            "article_ranks": None,
        }
        for q in QUESTIONS
    }


# --- the whole section, key by key, of rankings drawn at random

NAMES = [f"p{i}" for i in range(12)]
RULES = ("flmr", "ravqa", "word", "nfkc")
KINDS = ("PRRecall", "Recall", "ArticleRecall")


def article(name):
    return f"a{NAMES.index(name) // 3}"


def articles(names):
    return list(dict.fromkeys(map(article, names)))


class Drawn:
    """Questions, what is relevant to each, and rankings of a run with two rerankers."""

    def __init__(self):
        rng = np.random.default_rng(5)

        def some(most):
            return tuple(rng.choice(NAMES, rng.integers(1, most), replace=False).tolist())

        self.bearing = {i: {rule: set(some(4)) for rule in RULES} for i in range(30)}
        self.questions = tuple(
            Question(
                i,
                "q",
                image_id=i // 2,
                answers=("art",) if i % 5 else (),
                pos_item_ids=some(4) if i % 4 else (),
                pos_articles=(article(str(rng.choice(NAMES))),) if i % 3 else (),
                question_type=("x", "y", None)[i % 3],
            )
            for i in range(30)
        )
        self.main, self.plain, self.gated = {}, {}, {}
        for q in self.questions:
            i = q.question_id
            found = rng.permutation(NAMES)[:8].tolist()
            kept = found[: rng.integers(0, 9)]
            last = rng.permutation(kept).tolist()
            read = self.ranking(q, last[: 2 + i % 2])
            given = [("retrieved", found), ("gate", kept), ("order", last)]
            stages = [{"stage": name, **self.ranking(q, names)} for name, names in given]
            self.main[i] = {**self.ranking(q, last), "stages": stages}
            if i % 6:
                self.main[i]["read"] = read if i % 7 else None
            self.plain[i] = self.ranking(q, found[:5])
            stages = [stages[0], {"stage": "gate", **self.ranking(q, [])}]
            self.gated[i] = {**self.ranking(q, []), "stages": stages}
        for i in (3, 4, 5):  # no predictions
            self.main[i] = {"stages": None, **_nothing()[1]}
        del self.plain[29]  # not asked

    def ranking(self, q, names):
        def ranks(ranked, wanted):
            return [rank for rank, name in enumerate(ranked, 1) if name in wanted]

        bearing = self.bearing[q.question_id]
        return {
            "hits": [[name, 1.0] for name in names],
            "answer_ranks": {rule: ranks(names, bearing[rule]) for rule in RULES}
            if q.answers
            else None,
            "id_ranks": ranks(names, q.pos_item_ids) if q.pos_item_ids else None,
            "article_ranks": ranks(articles(names), q.pos_articles) if q.pos_articles else None,
        }

    def applies(self, q, kind):
        relevant = {"PRRecall": q.answers, "Recall": q.pos_item_ids}
        return bool(relevant.get(kind, q.pos_articles))

    def relevant(self, q, kind, rule="flmr"):
        if kind == "PRRecall":
            return self.bearing[q.question_id][rule]
        return set(q.pos_item_ids if kind == "Recall" else q.pos_articles)

    def hit(self, q, ranking, kind, k, rule="flmr"):
        """Whether one of the first k is relevant, found from the ids alone."""
        names = [name for name, _ in ranking["hits"]]
        first = (articles(names) if kind == "ArticleRecall" else names)[:k]
        return not self.relevant(q, kind, rule).isdisjoint(first)

    def share(self, q, ranking, kind, k):
        names = [name for name, _ in ranking["hits"]][:k]
        return sum(name in self.relevant(q, kind) for name in names) / k


def rounded(interval, p=None):
    """Nothing if all images are alike, or the interval says otherwise than the test."""
    low, high = interval.low, interval.high
    if low == high or (p is not None and (low > 0 or high < 0) != (p < 0.05)):
        return [None, None]
    return [round(low, 4), round(high, 4)]


def mean(values):
    values = [100.0 * value for value in values]
    return round(sum(values) / len(values), 4)


@pytest.mark.usefixtures("any_images")
def test_every_key_of_the_section_of_retrieval():
    drawn, seed = Drawn(), 4
    metrics = ["recall_at_k", "article_recall_at_k", "pseudo_recall_at_k"]
    dataset = Dataset(
        name="d",
        label="d",
        split="test",
        questions=drawn.questions,
        metric=None,
        fingerprint="",
        question_types={"x": "Animals"},
        info={"answer_field": "raw_answer"},
        retrieval_metrics=[RetrievalMetric(name, k) for name in metrics for k in (4, 2)],
    )
    conditions = {
        "main": drawn.main,
        "plain": drawn.plain,
        "gated": drawn.gated,
        "none": {q.question_id: _nothing()[1] for q in drawn.questions},
    }
    section = retrieval_section(dataset, conditions, [1, 2, 6], seed=seed, blind=["none"])
    del conditions["none"]
    present = drawn.questions[:-1]
    applying = {kind: [q for q in present if drawn.applies(q, kind)] for kind in KINDS}
    ks = (1, 2, 6)

    def interval(kind, samples, k):
        asked = applying[kind]
        values = [100.0 * drawn.hit(q, samples[q.question_id], kind, k) for q in asked]
        found = bootstrap(values, [q.image_id for q in asked], seed=seed)
        return rounded(found)

    def scores(kind, samples, rule="flmr", asked=None):
        asked = applying[kind] if asked is None else asked
        return {
            str(k): mean(drawn.hit(q, samples[q.question_id], kind, k, rule) for q in asked)
            for k in ks
        }

    def shares(kind, samples):
        return {
            str(k): mean(drawn.share(q, samples[q.question_id], kind, k) for q in applying[kind])
            for k in ks
        }

    def intervals(kind, samples):
        return {str(k): interval(kind, samples, k) for k in ks}

    assert list(section) == [
        "metric", "rule", "searched_text", "answers", "ranking", "questions", "conditions",
        "stages", "by_ids", "by_articles", "reported",
    ]  # fmt: skip
    assert (section["metric"], section["rule"]) == ("PRRecall", "flmr")
    assert section["searched_text"] == "title, section and text of a passage"
    assert section["answers"] == "annotators' raw_answer strings, stripped and lower-cased"
    assert section["ranking"] == "after all stages of reranking"
    assert section["questions"] == len(applying["PRRecall"])
    assert section["conditions"] == {
        name: {
            "PRRecall": scores("PRRecall", samples),
            "interval_95": intervals("PRRecall", samples),
            "PRPrecision": shares("PRRecall", samples),
            "PRRecall_by_rule": {rule: scores("PRRecall", samples, rule) for rule in RULES},
            "groups": {
                group: scores(
                    "PRRecall",
                    samples,
                    asked=[q for q in applying["PRRecall"] if q.question_type == kind],
                )
                for group, kind in (("Animals", "x"), ("y", "y"))
            },
        }
        for name, samples in conditions.items()
    }
    by_ids = section["by_ids"]
    assert (by_ids["metric"], by_ids["questions"]) == ("Recall", len(applying["Recall"]))
    assert list(by_ids["conditions"]) == list(conditions)
    for name, samples in conditions.items():
        found = by_ids["conditions"][name]
        assert set(found) == {"Recall", "interval_95", "Precision", "nDCG", "MRR"}
        assert found["Recall"] == scores("Recall", samples)
        assert found["interval_95"] == intervals("Recall", samples)
        assert found["Precision"] == shares("Recall", samples)
        ranked = [(q, samples[q.question_id]["id_ranks"] or []) for q in applying["Recall"]]
        assert found["MRR"] == mean(1 / ranks[0] if ranks else 0 for _, ranks in ranked)
        for k in ks:
            gains = [
                sum(1 / math.log2(rank + 1) for rank in ranks if rank <= k)
                / sum(1 / math.log2(i + 2) for i in range(min(k, len(q.pos_item_ids))))
                for q, ranks in ranked
            ]
            assert found["nDCG"][str(k)] == pytest.approx(mean(gains), abs=1e-3)
    assert section["by_articles"] == {
        "metric": "Recall",
        "questions": len(applying["ArticleRecall"]),
        "conditions": {
            name: {
                "Recall": scores("ArticleRecall", samples),
                "interval_95": intervals("ArticleRecall", samples),
            }
            for name, samples in conditions.items()
        },
    }
    kinds = dict(zip(metrics, ("Recall", "ArticleRecall", "PRRecall"), strict=True))
    assert section["reported"] == [  # 4 is not among the Ks
        {
            "metric": metric,
            "k": 2,
            "questions": len(applying[kind]),
            "conditions": {n: scores(kind, samples)["2"] for n, samples in conditions.items()},
            "intervals_95": {n: interval(kind, samples, 2) for n, samples in conditions.items()},
        }
        for metric, kind in kinds.items()
    ]

    # Stages: the order in which they ran, then what was read.
    def stage(name, ranked, ks, before=None):
        lengths = [len(ranked[q.question_id]["hits"]) for q in present]
        found = {
            "stage": name,
            "passages": round(sum(lengths) / len(lengths), 2),
            "without_passages": sum(n == 0 for n in lengths),
        }
        for kind, asked in applying.items():
            at = {
                str(k): mean(drawn.hit(q, ranked[q.question_id], kind, n) for q in asked)
                for k, n in (*((k, k) for k in ks), ("all", 100))
            }
            found[kind] = at
        if before is not None:
            found["gain"] = {kind: {} for kind in KINDS}
            for kind, k in itertools.product(KINDS, ks):
                values = [
                    {
                        q.question_id: 100.0 * drawn.hit(q, given[q.question_id], kind, k)
                        for q in applying[kind]
                    }
                    for given in (ranked, before)
                ]
                images = {q.question_id: q.image_id for q in applying[kind]}
                test = paired_test(*values, images, seed=seed)
                found["gain"][kind][str(k)] = {
                    "difference": round(test.difference.mean, 4),
                    "interval_95": rounded(test.difference, test.p_value),
                    "p_value": round(test.p_value, 5),
                    "wins": test.wins,
                    "losses": test.losses,
                    "ties": test.ties,
                }
        return found

    def after(samples, i):
        return {q: (sample["stages"] or [sample] * 3)[i] for q, sample in samples.items()}

    empty = _nothing()[1]
    read = {q: sample.get("read") or empty for q, sample in drawn.main.items()}
    assert section["stages"] == {
        "main": [
            stage("retrieved", after(drawn.main, 0), ks),
            stage("gate", after(drawn.main, 1), ks, after(drawn.main, 0)),
            stage("order", after(drawn.main, 2), ks, after(drawn.main, 0)),
            stage("read", read, (1, 2)),  # nobody read six
        ],
        "plain": [stage("retrieved", drawn.plain | {29: empty}, ks)],
        "gated": [
            stage("retrieved", after(drawn.gated, 0), ks),
            stage("gate", after(drawn.gated, 1), ks, after(drawn.gated, 0)),
        ],
    }


def test_a_sample_without_stages_has_one_ranking(samples):
    assert rankings(samples[1]) == [{"stage": "retrieved", **samples[1]}]
    stages = [{"stage": "retrieved", **samples[1]}, {"stage": "gate", **_nothing()[1]}]
    assert rankings({**_nothing()[1], "stages": stages}) == stages


def test_kinds_of_recall_that_apply_to_no_question_are_left_out(dataset, samples):
    only = [replace(q, answers=(), pos_articles=()) for q in QUESTIONS]
    section = retrieval_section(replace(dataset, questions=only), {"main": samples}, [1], seed=0)
    [stage] = section["stages"]["main"]
    assert stage == {
        "stage": "retrieved",
        "passages": round(7 / 3, 2),
        "without_passages": 0,
        "Recall": {"1": 50, "all": 100},
    }
    assert section["by_articles"] is None
    assert [r["metric"] for r in section["reported"]] == []


def test_the_ks_are_the_usual_ones_and_the_benchmarks_own_up_to_the_depth(dataset):
    assert retrieval_ks(dataset, 500) == [1, 2, 3, 5, 10, 20, 100]
    assert retrieval_ks(dataset, 10) == [1, 2, 3, 5, 10]
    assert retrieval_ks(replace(dataset, retrieval_metrics=()), 5) == [1, 5]
    assert retrieval_ks(dataset, 0) == [0]


def test_an_article_is_relevant_by_any_of_its_names_and_passages():
    ranked = [
        Passage("p1", "", title="X", url="u1", article="A"),
        Passage("p2", ""),  # its own article
        Passage("p3", "", url="u2", article="A"),  # of the first, by another address
        Passage("p4", "", entity="Q1", title="B"),
    ]

    def ranks(*names):
        return Marker(Question(1, "q", pos_articles=names)).marks(ranked)["article_ranks"]

    assert ranks("A") == ranks("X") == ranks("u1") == ranks("u2") == [1]
    assert ranks("p2") == [2]
    assert ranks("Q1") == ranks("B") == [3]
    assert ranks("B", "u2", "none") == [1, 3]
    assert ranks("p1") == []
