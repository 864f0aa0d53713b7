"""Rerankers one by one: filters by hand and by brute force, names, bad settings."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.errors import UserError
from ravqa.core.factory import build_part
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import Part
from ravqa.pipeline import check_settings
from ravqa.rerankers import RERANKERS
from ravqa.rerankers.base import renumbered, rescored
from ravqa.rerankers.build import stage_names

QUESTION = Question(1, "?")


def hits_of(*scores):
    return [Hit(f"p{i}", score, i) for i, score in enumerate(scores, 1)]


def part(name, **options):
    return build_part(RERANKERS, Part(name=name, **options), "reranking.0")


def rerank(reranker, hits, question=QUESTION):
    [found] = reranker.rerank([question], [[(hit, Passage(hit.passage_id, "x")) for hit in hits]])
    return found


def places(hits):
    """Of the hits given to the filter, the numbers of those kept."""
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    return [int(hit.passage_id[1:]) for hit in hits]


# What all rerankers share


def test_a_new_score_orders_and_the_retrievers_stays():
    hits = rescored(hits_of(9.0, 8.0, 7.0), [0.2, 0.9, 0.5])
    assert hits == [Hit("p2", 0.9, 1, 8.0), Hit("p3", 0.5, 2, 7.0), Hit("p1", 0.2, 3, 9.0)]
    again = rescored(hits, [1.0, 2.0, 3.0])
    assert again == [Hit("p1", 3.0, 1, 9.0), Hit("p3", 2.0, 2, 7.0), Hit("p2", 1.0, 3, 8.0)]
    assert [hit.as_retrieved for hit in again] == [9.0, 7.0, 8.0]


def test_hits_that_were_not_looked_at_stay_behind_and_count_as_the_worst():
    hits = rescored(hits_of(9.0, 8.0, 7.0, 6.0), [0.1, 0.3])
    assert [(h.passage_id, h.score, h.retrieval_score) for h in hits] == [
        ("p2", 0.3, 8.0),
        ("p1", 0.1, 9.0),
        ("p3", 0.1, 7.0),
        ("p4", 0.1, 6.0),
    ]
    assert [h.rank for h in hits] == [1, 2, 3, 4]


@given(st.lists(st.integers(-3, 3), max_size=8), st.integers(0, 8))
def test_equal_scores_keep_their_order(scores, depth):
    hits = hits_of(*[1.0] * len(scores))
    found = rescored(hits, [float(s) for s in scores[:depth]])
    ranked = sorted(enumerate(scores[:depth]), key=lambda pair: (-pair[1], pair[0]))
    rest = range(min(depth, len(scores)), len(scores))
    assert places(found) == [i + 1 for i, _ in ranked] + [i + 1 for i in rest]
    assert all(a.score >= b.score for a, b in itertools.pairwise(found))


def test_a_score_that_is_no_number_is_told_and_orders_nothing():
    with pytest.raises(UserError, match=r"score of passage p2 is not a number: .*float32"):
        rescored(hits_of(9.0, 8.0, 7.0), [1.0, float("nan")])


def test_stages_of_one_name_are_numbered():
    names = ["threshold", "vlm", "threshold", "threshold"]
    assert stage_names(names) == ["threshold", "vlm", "threshold-2", "threshold-3"]


# threshold


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"rule": "absolute", "value": 2.0}, [1, 2]),
        ({"rule": "absolute", "value": 9.0}, []),
        ({"rule": "absolute", "value": 9.0, "min_kept": 1}, [1]),
        ({"rule": "difference", "value": 0.0}, [1]),
        ({"rule": "difference", "value": 2.5}, [1, 2, 3]),
        ({"rule": "ratio", "value": 0.5}, [1, 2]),
        ({"rule": "ratio", "value": 0.5, "max_kept": 1}, [1]),
        # exp of 4, 2, 1.5, -1... as shares: 0.8096, 0.1096, 0.0665, 0.0148 (of 0 and below)
        ({"rule": "mass", "value": 0.8}, [1]),
        ({"rule": "mass", "value": 0.9}, [1, 2]),
        ({"rule": "mass", "value": 0.95}, [1, 2, 3]),
        ({"rule": "mass", "value": 0.9, "temperature": 100.0}, [1, 2, 3, 4]),
        ({"max_kept": 2}, [1, 2]),
        ({"max_kept": 9}, [1, 2, 3, 4]),
    ],
)
def test_a_filter_keeps_what_was_counted_by_hand(options, kept):
    hits = hits_of(4.0, 2.0, 1.5, 0.0)
    assert places(rerank(part("threshold", **options), hits)) == kept
    assert rerank(part("threshold", **options), []) == []


@given(
    st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=9),
    st.sampled_from([0.05, 0.5, 0.9, 0.999]),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_the_mass_kept_is_reached_and_not_reached_without_the_last(scores, mass, temperature):
    reranker = part("threshold", rule="mass", value=mass, temperature=temperature)
    kept = places(rerank(reranker, hits_of(*scores)))
    shares = [math.exp(s / temperature) for s in scores]
    shares = [share / sum(shares) for share in shares]
    got = sorted(shares[i - 1] for i in kept)
    assert sum(got) >= mass - 1e-9
    assert sum(got[1:]) < mass + 1e-9
    assert all(shares[i] <= got[0] for i in range(len(shares)) if i + 1 not in kept)


def test_a_filter_goes_by_scores_whatever_their_order():
    hits = hits_of(1.0, 5.0, 3.0)  # as an oracle's
    assert places(rerank(part("threshold", rule="absolute", value=2.0), hits)) == [2, 3]
    assert places(rerank(part("threshold", rule="mass", value=0.9), hits)) == [2, 3]


def test_shares_of_negative_scores_are_refused():
    with pytest.raises(UserError, match=r"-1 is negative.*use the rule difference"):
        rerank(part("threshold", rule="ratio", value=0.5), hits_of(1.0, -1.0))


# Settings

FILE = {
    "retriever": {"name": "bm25"},
    "reader": {"name": "first-words"},
    "answering": {"decision": "concat", "passages": 3},
}


@pytest.mark.parametrize(
    ("reranking", "message"),
    [
        ({"name": "threshold"}, "test: reranking.0: nothing to filter by: set rule and value"),
        (
            {"name": "threshold", "rule": "absolute"},
            "test: reranking.0: rule and value go together",
        ),
        (
            {"name": "threshold", "rule": "mass", "value": 1.5},
            "test: reranking.0: value 1.5: mass needs 0 < value <= 1",
        ),
        (
            {"name": "threshold", "rule": "difference", "value": -1},
            "test: reranking.0: value -1.0: difference needs value >= 0",
        ),
        (
            {"name": "threshold", "max_kept": 1, "min_kept": 2},
            "test: reranking.0: min_kept 2 is more than max_kept 1",
        ),
        (
            {"name": "threshold", "max_keep": 1},
            "test: reranking.0: unknown key 'max_keep': did you mean max_kept",
        ),
        ({"name": "treshold"}, "no reranker 'treshold': did you mean threshold"),
        ("threshold", "test: key 'reranking.0': input should be a valid dictionary"),
    ],
)
def test_bad_settings_are_one_line_with_their_place(reranking, message):
    with pytest.raises(UserError) as e:
        check_settings({**FILE, "reranking": [reranking]}, "test")
    assert str(e.value).startswith(message)
    assert "\n" not in str(e.value)


def test_renumbering_keeps_everything_else():
    hits = [Hit("b", 1.0, 7, 3.0), Hit("a", 2.0, 2)]
    assert renumbered(hits) == [Hit("b", 1.0, 1, 3.0), Hit("a", 2.0, 2)]
