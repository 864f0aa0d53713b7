"""Fusion of rankings by hand and against the definition, and its nested configuration."""

import json
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.errors import UserError
from ravqa.core.records import Passage, Question
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict, load_pipeline, validate
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import EncodingStats
from ravqa.pipeline import check_settings
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever, to_hits
from ravqa.retrievers.fusion import FusionRetriever

QUESTION = Question(1, "?")
PREPARED = []


class ListRetriever(Retriever):
    """Gives the ranking of its options to every question."""

    class Config(Strict):
        ranking: tuple[tuple[str, float], ...]
        sees: bool = False

    def __init__(self, config):
        self.config = config
        self.fingerprint = f"listed {config.ranking}"
        self.weights = "a list"

    @property
    def supports_images(self):
        return self.config.sees

    def prepare(self, corpus, progress=None):
        PREPARED.append(corpus)

    def retrieve(self, questions, k):
        return [to_hits(self.config.ranking[:k]) for _ in questions]


class EncodingRetriever(ListRetriever):
    """Says that it encodes."""

    encodes = True
    encoded = MappingProxyType(
        {"passages": EncodingStats(3, 1, 30, 20), "queries": EncodingStats(1)}
    )

    @classmethod
    def explains(cls, config):
        return bool(config.ranking)

    def encode(self, corpus, progress=None):
        PREPARED.append(corpus)
        return self.encoded["passages"] if self.config.ranking else None


@pytest.fixture(autouse=True, scope="module")
def own_retrievers():
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in (("listed", ListRetriever), ("encoding", EncodingRetriever)):
            entry = Entry(f"{__name__}:{kind.__name__}", "for tests")
            patch.setitem(RETRIEVERS._entries, name, entry)
        yield


def fusion(*rankings, kind="listed", **options):
    parts = [{"name": kind, "ranking": ranking} for ranking in rankings]
    return built(retrievers=parts, **options)


def built(**options):
    return FusionRetriever(validate(FusionRetriever.Config, options, "retriever"))


def fused(tested, k=100):
    [hits] = tested.retrieve([QUESTION], k)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    return [(hit.passage_id, hit.score) for hit in hits]


A = [("a", 9.0), ("b", 5.0), ("c", 1.0)]
B = [("d", 0.4), ("b", 0.3), ("a", 0.2)]


def test_reciprocal_ranks_by_hand():
    assert fused(fusion(A, B)) == [
        ("a", pytest.approx(1 / 61 + 1 / 63)),
        ("b", pytest.approx(1 / 62 + 1 / 62)),
        ("d", pytest.approx(1 / 61)),
        ("c", pytest.approx(1 / 63)),
    ]
    weighted = fused(fusion(A, B, weights=[1, 3], k=0))
    assert weighted == [
        ("d", 3.0),
        ("a", pytest.approx(1 + 3 / 3)),
        ("b", pytest.approx(1 / 2 + 3 / 2)),
        ("c", pytest.approx(1 / 3)),
    ]


def test_sums_of_normalised_scores_by_hand():
    # A: a 1, b 0.5, c 0. B: d 1, b 0.5, a 0.
    assert fused(fusion(A, B, method="sum", weights=[2, 1])) == [
        ("a", pytest.approx(2.0)),
        ("b", pytest.approx(1.5)),
        ("d", pytest.approx(1.0)),
        ("c", pytest.approx(0.0)),
    ]
    same = [("x", 4.0), ("y", 4.0)]
    assert fused(fusion(same, [("y", -3.0)], method="sum")) == [("y", 2.0), ("x", 1.0)]


def test_ties_stand_in_the_order_of_the_first_retriever_that_has_them():
    assert [i for i, _ in fused(fusion([("a", 2), ("b", 1)], [("b", 2), ("a", 1)]))] == ["a", "b"]
    assert [i for i, _ in fused(fusion([("b", 2), ("a", 1)], [("a", 2), ("b", 1)]))] == ["b", "a"]
    assert [i for i, _ in fused(fusion([("z", 1)], [("a", 1)], [("m", 1)]))] == ["z", "a", "m"]
    # The same three ranks in three orders are one score, however they are added up.
    orders = [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    found = fused(fusion(*([(i, 0.0) for i in order] for order in orders)))
    assert [i for i, _ in found] == ["a", "b", "c"]
    assert len({score for _, score in found}) == 1


def test_only_depth_passages_of_each_are_fused_unless_more_are_asked_for():
    tested = fusion(A, B, depth=1)
    assert [i for i, _ in fused(tested, 1)] == ["a"]
    assert {i for i, _ in fused(tested, 2)} == {"a", "b"}  # d is third: 1/61 after 1/62 + 1/62
    assert {i for i, _ in fused(tested, 100)} == {"a", "b", "c", "d"}
    assert fused(fusion(A, [])) == fused(fusion(A))
    assert fused(fusion([], [], method="sum")) == []


IDS = st.sampled_from("abcdefgh")
RANKINGS = st.lists(
    st.lists(st.tuples(IDS, st.integers(-50, 50)), unique_by=lambda pair: pair[0]).map(
        lambda pairs: sorted(pairs, key=lambda pair: -pair[1])
    ),
    min_size=1,
    max_size=4,
)


@given(
    rankings=RANKINGS,
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=4, max_size=4),
    method=st.sampled_from(["rrf", "sum"]),
    k=st.integers(1, 10),
)
def test_every_fusion_equals_the_definition(rankings, weights, method, k):
    weights = weights[: len(rankings)]
    expected = {}
    for weight, ranking in zip(weights, rankings, strict=True):
        scores = [score for _, score in ranking]
        for place, (passage_id, score) in enumerate(ranking):
            if method == "rrf":
                gain = 1 / (60 + place + 1)
            else:
                span = max(scores) - min(scores)
                gain = (score - min(scores)) / span if span else 1.0
            expected[passage_id] = expected.get(passage_id, 0) + weight * gain
    found = fused(fusion(*rankings, weights=weights, method=method), k)
    assert len(found) == min(k, len(expected))
    assert [score for _, score in found] == pytest.approx(
        sorted(expected.values(), reverse=True)[:k]
    )
    for passage_id, score in found:
        assert score == pytest.approx(expected[passage_id])


def test_parts_are_prepared_with_the_corpus_and_may_be_fusions_themselves():
    corpus = Corpus([Passage("a", "text")])
    inner = {"name": "fusion", "retrievers": [{"name": "listed", "ranking": B}]}
    tested = built(retrievers=[{"name": "listed", "ranking": A}, inner])
    PREPARED.clear()
    tested.prepare(corpus)
    assert [corpus, corpus] == PREPARED
    assert [i for i, _ in fused(tested)] == [i for i, _ in fused(fusion(A, B))]


def test_what_parts_say_of_themselves_is_passed_on():
    assert fusion(A, B).weights == "a list, a list"
    assert not fusion(A, B).supports_images
    seeing = [{"name": "listed", "ranking": A}, {"name": "listed", "ranking": B, "sees": True}]
    assert built(retrievers=seeing).supports_images
    assert fusion(A, B).encoded == {}
    encoding = fusion(A, B, kind="encoding")
    assert encoding.encoded["passages"] == EncodingStats(6, 2, 60, 40)
    PREPARED.clear()
    corpus = Corpus([Passage("a", "A koala.")])
    assert encoding.encode(corpus) == EncodingStats(6, 2, 60, 40)
    assert [corpus, corpus] == PREPARED
    assert FusionRetriever.explains(encoding.config)  # decided by each part's own options
    assert not FusionRetriever.explains(fusion([], kind="encoding").config)
    assert fusion([], kind="encoding").encode(None) is None
    with pytest.raises(UserError, match="no retriever of the fusion encodes"):
        fusion(A).encode(None)


def test_the_fingerprint_holds_parts_and_settings():
    made = [
        fusion(A, B),
        fusion(B, A),
        fusion(A),
        fusion(A, B, weights=[1, 2]),
        fusion(A, B, method="sum"),
        fusion(A, B, k=10),
        fusion(A, B, depth=10),
    ]
    assert len({tested.fingerprint for tested in made}) == len(made)
    assert fusion(A, B).fingerprint == made[0].fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "key 'retrievers' is missing"),
        ({"retrievers": []}, "'retrievers'"),
        ({"retrievers": [{}]}, "key 'retrievers.0.name' is missing"),
        ({"retrievers": [{"name": "bm52"}]}, "no retriever 'bm52': did you mean bm25"),
        (
            {"retrievers": [{"name": "random"}, {"name": "random", "sed": 1}]},
            r"retriever\.retrievers\.1: unknown key 'sed': did you mean seed",
        ),
        ({"retrievers": [{"name": "none"}], "weights": [1, 2]}, "x: 2 weights for 1 retrievers"),
        ({"retrievers": [{"name": "none"}], "weights": [0]}, "weights are numbers above 0"),
        ({"retrievers": [{"name": "none"}], "weights": [float("nan")]}, "'weights.0'.*finite"),
        ({"retrievers": [{"name": "none"}], "method": "rff"}, "'method'"),
        ({"retrievers": [{"name": "none"}], "depth": 0}, "'depth'"),
    ],
)
def test_wrong_options_are_named_with_their_path(options, message):
    with pytest.raises(UserError, match=message):
        validate(FusionRetriever.Config, options, "x")


def test_nested_options_of_the_pipeline_are_set_and_checked():
    settings, where = load_pipeline(
        "fusion-retrieval", ["retriever.retrievers.1.index.name=exact", "retriever.method=sum"]
    )
    config = check_settings(settings, where)
    assert config.retriever.options["retrievers"][1]["index"] == {"name": "exact"}
    settings, where = load_pipeline("fusion-retrieval", ["retriever.retrievers.0.k2=1"])
    with pytest.raises(UserError, match="unknown key 'k2'"):
        check_settings(settings, where)


def test_static_rankings_are_fused_in_a_run(tmp_path, capsys):
    from ravqa.cli import main

    corpus = tmp_path / "passages.jsonl"
    rows = [{"passage_id": i, "text": f"text {i}"} for i in "abcd"]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    question = {"question_id": 1, "question": "?", "answers": ["text b"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n", encoding="utf-8")
    for name, ranking in (("one", A), ("two", B)):
        lines = [f"1 Q0 {i} {n} {score} x\n" for n, (i, score) in enumerate(ranking, 1)]
        (tmp_path / f"{name}.trec").write_text("".join(lines), encoding="utf-8")
    parts = [f"{{name: static, file: {tmp_path / name}.trec}}" for name in ("one", "two")]
    arguments = ["run", "--retrieval-only", "--dataset", "jsonl", "--data", tmp_path]
    arguments += ["--retriever", "fusion", "--set", "describer=null"]
    arguments += ["--set", f"retriever.retrievers=[{', '.join(parts)}]"]
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in [*arguments, "--output", tmp_path / "run"]])
    assert end.value.code == 0, capsys.readouterr().err
    sample = json.loads((tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8"))
    assert [i for i, _ in sample["hits"]] == ["a", "b", "d", "c"]
    assert sample["answer_ranks"]["flmr"] == [2]
