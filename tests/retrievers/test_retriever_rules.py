"""BM25, fusion and query texts: keys, limits, and every message as a whole."""

import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import said

from ravqa.core.errors import ContractError, DataError, MissingExtraError, UserError
from ravqa.core.locations import file_digest
from ravqa.core.records import Description, Hit, Passage, Question, Tag
from ravqa.core.settings import Part, fingerprint, validate
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import EncodingStats
from ravqa.retrievers import bm25, late_interaction
from ravqa.retrievers.bm25 import BM25Retriever
from ravqa.retrievers.fusion import FusionRetriever
from ravqa.retrievers.late_interaction import LateInteractionRetriever
from ravqa.retrievers.query_text import QueryText, Span, forms

pytestmark = pytest.mark.usefixtures("fresh_cache")


def corpus_of(*texts):
    return Corpus([Passage(f"p{i}", text) for i, text in enumerate(texts)], source="here")


def ask(text, *tags, caption="", question_id=1):
    seen = Description(tags=tags, caption=caption) if tags or caption else None
    return Question(question_id, text, description=seen)


@pytest.mark.parametrize("call", ["open", "scores", "search", "score"])
def test_an_index_of_somebody_else_that_raises_is_named(call, tmp_path):
    class Index:
        def search(self, queries, depth, *, allowed_ids):
            return [[("a", 1.0)]] * len(queries)

    def mistake(*parts, **options):
        raise RuntimeError("no such table\nmore")

    setattr(Index, call, mistake)
    index = Index()
    vectors = np.ones((1, 2), np.float32)
    retriever = object.__new__(LateInteractionRetriever)
    retriever._index_class, retriever._index_config = Index, None
    asked = {
        "open": lambda: retriever._opened(tmp_path, "key"),
        "scores": lambda: late_interaction._scored(index, [vectors]),
        "search": lambda: late_interaction._searched(index, [vectors], 1, None),
        "score": lambda: late_interaction._search_some(index, [(1.0, [vectors] * 2)], 1, None),
    }
    assert said(ContractError, asked[call]) == (
        f"the index {__name__}.{Index.__qualname__} breaks its contract: it raises RuntimeError "
        f"from {call}: no such table"
    )


def test_questions_without_alternatives_are_searched_together():
    calls = []

    class Index:
        def search(self, queries, depth, *, allowed_ids):
            calls.append([query.tolist() for query in queries])
            return [[(f"p{query[0, 0]:.0f}", 1.0)] for query in queries]

        def score(self, queries, ids):
            return [[1.0] * len(wanted) for wanted in ids]

    def vectors(value, rows=1):
        return np.full((rows, 1), value, np.float32)

    forms = [SimpleNamespace(weight=2.0), SimpleNamespace(weight=1.0)]
    queries = [
        [[vectors(1)], [vectors(3)]],
        [[vectors(4), vectors(5)], [vectors(0, 0)]],
        [[vectors(0, 0)], [vectors(6), vectors(0, 0)]],
        [[vectors(0, 0)], [vectors(0, 0)]],
    ]
    plans = [SimpleNamespace(forms=forms)] * 4
    found = late_interaction._search_each(Index(), plans, queries, 3, None)
    assert calls == [[[[2], [3]], [[6]]], [[[4]], [[5]]]]
    first, both, other, none = [dict(ranking) for ranking in found]
    assert (first, other, none) == ({"p2": 1.0}, {"p6": 1.0}, {})
    assert both == {"p4": 2.0, "p5": 2.0}


# BM25


def words(corpus=None, progress=None, **options):
    made = BM25Retriever(validate(BM25Retriever.Config, options, "retriever"))
    if corpus is not None:
        made.prepare(corpus, progress)
    return made


def test_the_index_of_words_is_kept_by_corpus_and_what_changes_it(fresh_cache):
    pytest.importorskip("bm25s")
    corpus = corpus_of("a tower", "the boats")
    tested = words(corpus, k1=1.2, b=0.5, query={"captioned": 1.0})
    key = fingerprint("bm25/2", 1.2, 0.5, False)
    query = tested.config.query.model_dump()
    assert tested.fingerprint == fingerprint(key, query)
    [folder] = (fresh_cache / "bm25").iterdir()
    assert folder.name == fingerprint(corpus.fingerprint, key)
    digests = json.loads((folder / "checksums.json").read_text())
    others = sorted(file for file in folder.iterdir() if file.name != "checksums.json")
    assert digests == {file.name: file_digest(file) for file in others}
    assert tested.weights == ""
    assert tested.stores == tested._memo.stores != ()
    assert tested.config.packages() == [("bm25s", "bm25")]
    stems = validate(BM25Retriever.Config, {"stemming": True}, "retriever")
    assert stems.packages() == [("bm25s", "bm25"), ("Stemmer", "bm25")]


def test_what_is_said_of_an_index_of_words(fresh_cache, caplog, monkeypatch):
    pytest.importorskip("bm25s")
    assert said(UserError, words().prepare, None) == (
        "the retriever bm25 needs passages: give a file with --corpus"
    )
    expected = "here: no passage has a word that the retriever bm25 could find"
    assert said(DataError, words, corpus_of("the", "! ?")) == expected
    corpus = corpus_of("a tower", "the boats")
    words(corpus)
    [folder] = (fresh_cache / "bm25").iterdir()
    file = next(f for f in sorted(folder.iterdir()) if f.name != "checksums.json")
    damage = f"the cached index {folder} is damaged ({file.name} is missing or was changed)"
    for change in (file.unlink, lambda: file.write_bytes(b"x")):
        change()
        caplog.clear()
        words(corpus)
        [line] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert line == f"{damage}: it is made again"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bm25, "folder_written_beside", full)
    path = (
        fresh_cache
        / "bm25"
        / fingerprint(corpus_of("x tower").fingerprint, words()._words_fingerprint)
    )
    assert said(UserError, words, corpus_of("x tower")) == (
        f"the cached index {path} cannot be used (No space left on device): set RAVQA_CACHE to "
        "another folder"
    )


def test_questions_of_which_nothing_is_left_are_counted(caplog):
    pytest.importorskip("bm25s")
    tested = words(corpus_of("a tower", "the boats"))
    found = tested.retrieve([ask("the of"), ask("tower"), ask("zebra"), ask("! ?")], 3)
    assert [len(hits) for hits in found] == [0, 1, 0, 0]
    [line] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert line == (
        "the retriever bm25 finds nothing for 2 questions, such as 'the of': nothing is left of "
        "them without stop words, single letters and punctuation"
    )


def test_progress_of_the_index_of_words_is_reported_now_and_then(monkeypatch):
    pytest.importorskip("bm25s")
    monkeypatch.setattr(bm25, "_STEP", 2)
    seen = []
    words(corpus_of(*["a tower"] * 5), lambda *step: seen.append(step))
    assert seen == [
        *[("indexing passages", n, 5) for n in (2, 4, 5)],
        *[("building the index of words", n, 1) for n in (0, 1)],
    ]


def test_the_library_shows_no_bars_of_its_own(capfd):
    pytest.importorskip("bm25s")
    words(corpus_of(*["a tower"] * 5)).retrieve([ask("tower")], 2)
    assert capfd.readouterr().err == ""


def test_rankings_of_words_are_kept_by_query_corpus_and_number(monkeypatch):
    pytest.importorskip("bm25s")
    scored = []
    scores = BM25Retriever._scores
    monkeypatch.setattr(
        BM25Retriever, "_scores", lambda self, plan: (scored.append(1), scores(self, plan))[1]
    )
    first, second = corpus_of("tower tower", "a tower"), corpus_of("tower", "boat")

    def asked(corpus, text, k, **options):
        before = len(scored)
        [hits] = words(corpus, **options).retrieve([ask(text)], k)
        return [h.passage_id for h in hits], len(scored) - before

    assert asked(first, "tower", 5) == (["p0", "p1"], 1)
    assert asked(first, "tower", 5) == (["p0", "p1"], 0)
    assert asked(first, "tower", 1) == (["p0"], 1)
    assert asked(first, "a boat", 5) == ([], 1)
    assert asked(second, "tower", 5) == (["p0"], 1)
    assert asked(first, "tower", 5, k1=0.5) == (["p0", "p1"], 1)
    assert asked(first, "tower", 5, query={"tags": 1}) == (["p0", "p1"], 0)  # the same forms


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("plain text", "plain text"),
        ("caf\u00e9", "caf\u00e9"),
        ("\u8003\u62c9\u5403", " \u8003\u62c9 \u62c9\u5403 "),
        ("a\u8003b", "a \u8003 b"),
        ("\u8003 \u62c9\u5403", " \u8003   \u62c9\u5403 "),
    ],
)
def test_runs_of_letters_without_spaces_become_pairs(text, split):
    assert bm25._spaced(text) == split


@pytest.mark.parametrize("module", ["bm25s", "Stemmer"])
def test_a_package_that_is_missing_is_named_with_what_needs_it(monkeypatch, module):
    pytest.importorskip("bm25s")
    monkeypatch.setitem(__import__("sys").modules, module, None)
    message = said(MissingExtraError, words, stemming=True)
    stems = " with stemming" if module == "Stemmer" else ""
    assert message.startswith(f"the retriever bm25{stems} needs ")


# Fusion


def test_a_fusion_is_known_by_its_parts_and_settings():
    parts = [{"name": "random", "seed": 1}, {"name": "none"}]
    options = {"retrievers": parts, "weights": [1, 2], "k": 7, "depth": 3}
    tested = FusionRetriever(validate(FusionRetriever.Config, options, "retriever"))
    config = tested.config
    assert tested.fingerprint == fingerprint(
        "fusion/1",
        [fingerprint("random/1", 1), fingerprint("none/1")],
        {"weights": (1.0, 2.0), "method": "rrf", "k": 7.0, "depth": 3},
    )
    assert FusionRetriever.depth(config) == 3
    assert (tested.weights, tested.stores, tested.encodes) == ("", [], False)
    assert (tested.supports_images, tested.explainer, tested.encoded) == (False, None, {})
    expected = "no retriever of the fusion encodes passages"
    assert said(UserError, tested.encode, corpus_of("x")) == expected
    assert FusionRetriever.Config(retrievers=(Part(name="none"),)).k == 60


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_weights_are_above_nought(weight):
    options = {"retrievers": [{"name": "none"}], "weights": [weight]}
    message = said(UserError, validate, FusionRetriever.Config, options, "x")
    assert message.startswith("x: weights are numbers above 0") or "'weights.0'" in message
    options["weights"] = [1.0, 2.0]
    message = said(UserError, validate, FusionRetriever.Config, options, "x")
    assert message == "x: 2 weights for 1 retrievers"


def test_what_a_fusion_passes_on(monkeypatch):
    tested = FusionRetriever(
        validate(FusionRetriever.Config, {"retrievers": [{"name": "none"}] * 3}, "retriever")
    )
    log = []

    class Spy:
        encodes = False
        encoded = {}  # noqa: RUF012
        supports_images = False
        explainer = None

        def __init__(self, number, stats=None):
            self.number, self.stats = number, stats

        def prepare(self, corpus, progress):
            log.append(("prepare", self.number, corpus, progress))

        def encode(self, corpus, progress):
            log.append(("encode", self.number, corpus, progress))
            return self.stats

        def retrieve(self, questions, k):
            log.append(("retrieve", self.number, questions, k))
            return [[Hit(f"p{self.number}", 1.0, 1)] for _ in questions]

    first, second, third = Spy(1), Spy(2, EncodingStats(2)), Spy(3)
    second.encodes = third.encodes = True
    second.encoded = {"queries": EncodingStats(1)}
    third.encoded = {"queries": EncodingStats(4), "passages": EncodingStats(5)}
    third.explainer = "the third"
    tested.retrievers = [first, second, third]
    corpus = corpus_of("x")
    tested.prepare(corpus, print)
    assert tested.encode(corpus, print) == EncodingStats(2)
    second.stats = None
    assert tested.encode(corpus) is None
    questions = [ask("x"), ask("y")]
    assert [[h.passage_id for h in hits] for hits in tested.retrieve(questions, 2)] == [
        ["p1", "p2"]
    ] * 2
    tested.retrieve(questions, 999)
    assert log == [
        *(("prepare", n, corpus, print) for n in (1, 2, 3)),
        *(("encode", n, corpus, print) for n in (2, 3)),
        *(("encode", n, corpus, None) for n in (2, 3)),
        *(("retrieve", n, questions, 200) for n in (1, 2, 3)),
        *(("retrieve", n, questions, 999) for n in (1, 2, 3)),
    ]
    assert tested.encoded == {"queries": EncodingStats(5), "passages": EncodingStats(5)}
    assert (tested.explainer, tested.encodes, tested.supports_images) == ("the third", True, False)


# Query texts

TAGS = st.lists(
    st.builds(
        Tag,
        st.lists(st.sampled_from(["koala", "bear", "cat"]), min_size=1, max_size=3).map(tuple),
        st.sampled_from([0.05, 0.1, 0.5, 1.0]),
        st.lists(st.sampled_from(["animal", "pet"]), max_size=2).map(tuple),
    ),
    max_size=4,
).map(tuple)


@settings(max_examples=50)
@given(
    text=st.sampled_from(["What is this animal?", "Where do these Pets live?", "How old is it?"]),
    tags=TAGS,
    caption=st.sampled_from(["", "a tree"]),
    config=st.builds(
        QueryText,
        question=st.sampled_from([0.0, 1.0]),
        replaced=st.sampled_from([0.0, 2.0]),
        appended=st.sampled_from([0.0, 0.5]),
        captioned=st.sampled_from([0.0, 1.0]),
        tags=st.integers(1, 3),
        names=st.integers(1, 2),
        min_share=st.sampled_from([0.0, 0.2, 1.0]),
        prefer_kind=st.booleans(),
    ),
)
def test_forms_of_a_query_are_as_defined(text, tags, caption, config):
    kinds = {
        "What is this animal?": ("this animal", {"animal"}),
        "Where do these Pets live?": ("these Pets", {"pets", "pet"}),
    }
    subject, wanted = kinds.get(text, (None, set()))
    used = tags
    if wanted and config.prefer_kind:
        used = [t for t in tags if wanted & {*t.kinds, *t.names}] or tags
    used = used[: config.tags]
    mass = sum(t.probability for t in used)
    used = [t for i, t in enumerate(used) if i == 0 or t.probability >= config.min_share * mass]
    total = sum(t.probability for t in used)
    expected = []
    if config.question:
        expected.append((config.question, (((text, 1.0),),)))
    for tag in used if config.replaced else []:
        replaced = [
            text.replace(subject, f"the {name}") if subject else f"{text} {name}"
            for name in tag.names[: config.names]
        ]
        weight = config.replaced * tag.probability / total
        expected.append((weight, tuple(((r, 1.0),) for r in replaced)))
    if used and config.appended:
        spans = ((text, 1.0), *((t.names[0], t.probability) for t in used))
        expected.append((config.appended, (spans,)))
    if caption and config.captioned:
        expected.append((config.captioned, (((text, 1.0), (caption, 1.0)),)))
    expected = expected or [(1.0, (((text, 1.0),),))]
    whole = sum(weight for weight, _ in expected)
    found = forms(ask(text, *tags, caption=caption), config)
    assert [form.weight for form in found] == pytest.approx([w / whole for w, _ in expected])
    assert [
        tuple(tuple((span.text, span.weight) for span in spans) for spans in form.alternatives)
        for form in found
    ] == [alternatives for _, alternatives in expected]
    assert all(isinstance(s, Span) for form in found for spans in form.alternatives for s in spans)
