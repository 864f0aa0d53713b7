"""What every retriever inherits, how its rankings are checked, and what its fingerprint holds."""

import math
from types import MappingProxyType

import pytest

from ravqa.core.errors import ContractError, UserError
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import fingerprint
from ravqa.corpora.corpus import Corpus
from ravqa.retrievers.base import Retriever, checked_hits, ranking_of, to_hits
from ravqa.retrievers.controls import NoRetriever, OracleRetriever, RandomRetriever


class Plain(Retriever):
    """The least that a retriever must define."""

    fingerprint = "plain"

    def prepare(self, corpus, progress=None):
        self.given = corpus, progress

    def retrieve(self, questions, k):
        self.asked = questions, k
        return [to_hits([("a", 1.0)]) for _ in questions]


def test_a_retriever_that_defines_the_least_has_no_abilities():
    plain = Plain()
    assert plain.config == Plain.Config()
    assert Plain("given").config == "given"
    assert (plain.weights, tuple(plain.stores), dict(plain.encoded)) == ("", (), {})
    assert Plain.depth(plain.config) == 0
    assert Plain.explains(plain.config) is False
    assert (plain.supports_images, plain.encodes) == (False, False)
    assert plain.explainer is None
    assert plain.seen_image(b"") is None
    with pytest.raises(UserError) as error:
        plain.encode(Corpus([Passage("a", "b")]))
    assert str(error.value) == "the retriever Plain encodes no passages"
    with pytest.raises(UserError) as error:
        plain.explain_passages(Question(1, "?"), [])
    assert str(error.value) == "the retriever Plain cannot say what matched"


GOOD = to_hits([("a", 2.0), ("b", 2.0), ("c", -1.0)])


def test_hits_count_from_one():
    assert to_hits([("a", 2.0), ("b", 2.0)]) == [Hit("a", 2.0, 1), Hit("b", 2.0, 2)]
    assert to_hits([]) == []


def test_sound_rankings_are_returned_as_lists():
    assert checked_hits(Plain(), (tuple(GOOD), []), 2, 3) == [GOOD, []]
    assert checked_hits(Plain(), [], 0, 1) == []


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ([], "it returned 0 results from retrieve for 1 items"),
        ([GOOD, GOOD], "it returned 2 results from retrieve for 1 items"),
        (
            [to_hits([(i, 0.0) for i in "abcd"])],
            "4 hits where at most 3 are asked for",
        ),
        ([[("a", 1.0)]], "tuple instead of a Hit (`to_hits`)"),
        ([[GOOD[0], "b"]], "str instead of a Hit (`to_hits`)"),
        (
            [to_hits([("a", 1.0), ("b", math.nan)])],
            "a score of passage b that is not a number",
        ),
        (
            [GOOD[1:]],
            "the rank 2 of hit 1: ranks count from 1 (`to_hits`)",
        ),
        (
            [[Hit("a", 1.0, 1), Hit("b", 1.0, 1)]],
            "the rank 1 of hit 2: ranks count from 1 (`to_hits`)",
        ),
        (
            [to_hits([("x", 3.0), ("a", 2.0), ("a", 1.0)])],
            "passage 'a' twice for one question",
        ),
    ],
)
def test_a_ranking_that_breaks_the_contract_is_described(found, what):
    with pytest.raises(ContractError) as error:
        checked_hits(Plain(), found, 1, 3)
    said = what if "items" in what else f"it returned from retrieve {what}"
    assert str(error.value) == f"the retriever {__name__}.Plain breaks its contract: {said}"


def test_a_ranking_that_was_kept_is_pairs_of_id_and_finite_score():
    assert ranking_of([["a", 1.5], ["b", 1]]) == [("a", 1.5), ("b", 1.0)]


@pytest.mark.parametrize(
    "value", [None, {}, [["a"]], [["a", "x"]], [[1, 1.0]], [["a", math.nan]], [["a", math.inf]]]
)
def test_what_was_kept_and_is_no_ranking_is_refused(value):
    with pytest.raises(ValueError, match=r"\w"):
        ranking_of(value)


def test_controls_have_the_fingerprints_of_earlier_versions():
    """Another one would make every kept answer useless."""
    assert NoRetriever().fingerprint == fingerprint("none/1")
    seeded = RandomRetriever(RandomRetriever.Config(seed=3))
    assert seeded.fingerprint == fingerprint("random/1", 3)
    oracle = OracleRetriever(OracleRetriever.Config(depth=7), Plain())
    assert oracle.fingerprint == fingerprint("oracle/1", "plain", 7)


class Able(Plain):
    """A retriever that encodes and sees images."""

    weights = "weights"
    stores = ("a store",)
    encodes = True
    supports_images = True
    encoded = MappingProxyType({"passages": "some"})

    def encode(self, corpus, progress=None):
        self.encoding = corpus, progress
        return "statistics"


def test_the_oracle_passes_on_what_it_wraps():
    base, corpus, progress = Able(), Corpus([Passage("a", "text")]), print
    oracle = OracleRetriever(OracleRetriever.Config(depth=4), base)
    assert OracleRetriever.depth(oracle.config) == 4
    assert (oracle.weights, oracle.stores) == ("weights", ("a store",))
    assert (oracle.supports_images, oracle.encodes) == (True, True)
    assert oracle.encoded == {"passages": "some"}
    assert oracle.encode(corpus, progress) == "statistics"
    assert base.encoding == (corpus, progress)
    oracle.prepare(corpus, progress)
    assert base.given == (corpus, progress)
    question = Question(1, "?", answers=("text",))
    assert oracle.retrieve([question], 2) == [[Hit("a", 1.0, 1)]]
    assert base.asked == ([question], 4)
    plain = OracleRetriever(OracleRetriever.Config(), Plain())
    assert (plain.supports_images, plain.encodes) == (False, False)


def test_what_the_oracle_puts_in_front_of_nothing_has_score_nought():
    class Empty(Plain):
        def retrieve(self, questions, k):
            return [[] for _ in questions]

    oracle = OracleRetriever(OracleRetriever.Config(), Empty())
    oracle.prepare(Corpus([Passage("a", "stone"), Passage("b", "a koala")]))
    [hits] = oracle.retrieve([Question(1, "?", answers=("koala",))], 3)
    assert hits == [Hit("b", 0.0, 1)]


def test_the_oracle_takes_the_parts_of_a_question_with_several_answers():
    oracle = OracleRetriever(OracleRetriever.Config(), Plain())
    oracle.prepare(Corpus([Passage("a", "granite"), Passage("b", "a koala")]))
    question = Question(1, "?", answers=("emu && koala",), question_type="multi_answer")
    [hits] = oracle.retrieve([question], 3)
    assert [hit.passage_id for hit in hits] == ["b", "a"]
