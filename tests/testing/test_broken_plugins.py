"""Each way in which somebody's part can break its contract ends in one line that names the part."""

import sys

import numpy as np
import pytest

from ravqa.answering import RULES
from ravqa.answering.rules.base import PerPassage
from ravqa.core.errors import ContractError, UserError
from ravqa.core.factory import build_part
from ravqa.core.outcomes import Failure
from ravqa.core.records import Description, Hit, Passage, Question
from ravqa.core.registry import Entry
from ravqa.core.settings import Part
from ravqa.corpora.corpus import Corpus
from ravqa.datasets import DATASETS
from ravqa.datasets.base import Dataset, DatasetRequest, load_dataset
from ravqa.describers import DESCRIBERS
from ravqa.describers.base import Describer
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoded, Encoder
from ravqa.evaluation.answers import score_answers
from ravqa.indexes import INDEXES
from ravqa.indexes.base import Index
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerMetric, AnswerRecord
from ravqa.metrics.judges import JUDGES
from ravqa.metrics.judges.base import Judge
from ravqa.metrics.judges.cached import CachedJudge
from ravqa.pipeline import Pipeline
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader
from ravqa.rerankers import RERANKERS
from ravqa.rerankers.base import Reranker
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever, to_hits

QUESTIONS = [Question(1, "What?", b"image"), Question(2, "Where?", b"another")]
IDS = ["a", "b", "c"]
CORPUS = Corpus([Passage(i, f"text {i}") for i in IDS])
FOUND = [("a", 2.0), ("b", 1.0)]
pytestmark = pytest.mark.usefixtures("fresh_cache")


def mistake(*_, **__):
    raise RuntimeError("no such table\nin the file")


class GoodRetriever(Retriever):
    fingerprint = "mine"

    def prepare(self, corpus, progress=None):
        pass

    def retrieve(self, questions, k):
        return [to_hits(FOUND[:k]) for _ in questions]


class GoodReader(Reader):
    fingerprint = weights = "mine"

    def generate(self, prompts):
        return [Generation("leaves") for _ in prompts]


class GoodReranker(Reranker):
    fingerprint = "mine"

    def rerank(self, questions, candidates):
        return [[hit for hit, _ in found] for found in candidates]


class GoodDescriber(Describer):
    fingerprint = "mine"

    def describe(self, images):
        return [Description(caption="a koala") for _ in images]


class GoodEncoder(Encoder):
    fingerprint, dim = "mine", 2

    def encode_document(self, texts, progress=None):
        return Encoded([np.ones((1, 2), np.float32)] * len(texts))

    def encode_query(self, queries):
        return Encoded([np.ones((1, 2), np.float32)] * len(queries))


class GoodIndex(Index):
    built = staticmethod(lambda path: (path / "there").is_file())
    open = classmethod(lambda cls, path, config=None, *, fingerprint=None: cls())
    dim, ids = 2, IDS

    @classmethod
    def build(cls, ids, embeddings, path, *, dim, config=None, fingerprint=""):
        list(embeddings)
        path.mkdir(parents=True)
        (path / "there").touch()
        return cls()

    def scores(self, queries):
        return np.ones((len(queries), 3), np.float32)


class GoodRule(PerPassage):
    def decide(self, case, drafts):
        return self.chosen(0, drafts)


class GoodMetric(AnswerMetric):
    name, label, rule = "mine", "Mine", "a rule"

    def score(self, question, record, judge=None):
        return 1.0


class GoodJudge(Judge):
    name = fingerprint = "mine"

    def judge(self, questions, references, candidates):
        return [1.0] * len(questions)


def good_dataset(request):
    return Dataset("mine", "Mine", "val", QUESTIONS, metric="vqa_accuracy", fingerprint="x")


def piped(**settings):
    """Do what a run does with a pipeline."""
    whole = {"retriever": {"name": "none"}, "reader": {"name": "first-words"}, **settings}
    built = Pipeline.from_config(whole, where="mine.yaml")
    built.prepare(CORPUS)
    assert built.fingerprints
    asked = built.describe(QUESTIONS)
    found = built.retrieve(asked)
    for stage in built.rerank(asked, found):
        found = stage.hits
    return built.answer(asked, found)


PASSAGES = {"retriever": {"name": "good"}, "answering": {"decision": "vote", "passages": 2}}
LATE = {"name": "late-interaction", "encoder": {"name": "good"}, "index": {"name": "good"}}
USES = {
    "retriever": lambda: piped(retriever={"name": "mine"}),
    "reader": lambda: piped(reader={"name": "mine"}),
    "reranker": lambda: piped(**PASSAGES, reranking=[{"name": "mine"}]),
    "describer": lambda: piped(describer={"name": "mine"}),
    "encoder": lambda: piped(retriever={**LATE, "encoder": {"name": "mine"}}),
    "index": lambda: piped(retriever={**LATE, "index": {"name": "mine"}}),
    "rule": lambda: piped(**PASSAGES | {"answering": {"decision": "mine", "passages": 2}}),
    "metric": lambda: score_answers(
        Dataset("x", "X", "val", QUESTIONS, metric="mine", fingerprint="x"),
        QUESTIONS,
        [AnswerRecord("leaves")] * 2,
    ),
    "judge": lambda: CachedJudge(build_part(JUDGES, Part(name="mine"), "judge")).judge(
        ["q"] * 2, ["r"] * 2, ["a", "b"]
    ),
    "dataset": lambda: load_dataset("mine", DatasetRequest(need_images=False)),
}
KINDS = {
    "retriever": (RETRIEVERS, GoodRetriever),
    "reader": (READERS, GoodReader),
    "reranker": (RERANKERS, GoodReranker),
    "describer": (DESCRIBERS, GoodDescriber),
    "encoder": (ENCODERS, GoodEncoder),
    "index": (INDEXES, GoodIndex),
    "rule": (RULES, GoodRule),
    "metric": (METRICS, GoodMetric),
    "judge": (JUDGES, GoodJudge),
    "dataset": (DATASETS, good_dataset),
}


@pytest.fixture
def use(monkeypatch):
    for registry, part in KINDS.values():
        monkeypatch.setitem(registry._entries, "good", Entry(f"{__name__}:{part.__name__}", ""))
        monkeypatch.setitem(registry._entries, "mine", Entry(f"{__name__}:Mine", ""))

    def call(kind, part):
        monkeypatch.setattr(sys.modules[__name__], "Mine", part, raising=False)
        return USES[kind]()

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_that_keeps_its_contract_is_used(use, kind):
    found = use(kind, KINDS[kind][1])
    assert not any(isinstance(outcome, Failure) for outcome in getattr(found, "questions", found))


def returning(value):
    return lambda *_, **__: value


NO_NAME = object()  # the attribute is not set
BROKEN = [
    # what everything built from settings can do wrong
    ("retriever", {"__init__": mistake}, "it raises RuntimeError when built: no such table"),
    ("reader", {"__init__": mistake}, "it raises RuntimeError when built: no such table"),
    ("encoder", {"__init__": mistake}, "it raises RuntimeError when built: no such table"),
    ("judge", {"__init__": mistake}, "it raises RuntimeError when built: no such table"),
    ("rule", {"__init__": mistake}, "it raises RuntimeError when built: no such table"),
    ("metric", {"__init__": mistake}, "it raises RuntimeError when built: no such table"),
    ("retriever", {"Config": dict}, "its Config is not a subclass of ravqa.core.settings.Strict"),
    ("rule", {"Config": dict}, "its Config is not a subclass of ravqa.core.settings.Strict"),
    ("metric", {"Config": dict}, "its Config is not a subclass of ravqa.core.settings.Strict"),
    ("retriever", {"fingerprint": NO_NAME}, "it does not set `fingerprint`"),
    ("reader", {"fingerprint": NO_NAME}, "it does not set `fingerprint`"),
    ("reranker", {"fingerprint": NO_NAME}, "it does not set `fingerprint`"),
    ("describer", {"fingerprint": NO_NAME}, "it does not set `fingerprint`"),
    ("encoder", {"dim": NO_NAME}, "it does not set `dim`"),
    ("judge", {"name": NO_NAME}, "it does not set `name`"),
    ("metric", {"label": NO_NAME}, "it does not set `label`"),
    # retrievers
    ("retriever", {"prepare": mistake}, "it raises RuntimeError from prepare: no such table"),
    ("retriever", {"retrieve": returning(None)}, "it returned NoneType from retrieve: a list is"),
    ("retriever", {"retrieve": returning([[]])}, "it returned 1 results from retrieve for 2 items"),
    ("retriever", {"retrieve": returning([["a"], []])}, "str instead of a Hit"),
    ("retriever", {"retrieve": returning(["a", "b"])}, "str instead of a list of Hit"),
    (
        "retriever",
        {"retrieve": returning([to_hits([("nope", 1.0)])] * 2)},
        "it returned the unknown passage 'nope'",
    ),
    (
        "retriever",
        {"retrieve": returning([[Hit("a", "high", 1)]] * 2)},
        "a score of passage a of type str, not a number",
    ),
    # rerankers
    ("reranker", {"rerank": returning("ab")}, "it returned str from rerank: a list is expected"),
    # describers
    ("describer", {"describe": returning(None)}, "it returned NoneType from describe: a list is"),
    ("describer", {"describe": returning(["a", "b"])}, "str instead of a Description"),
    # encoders
    ("encoder", {"encode_document": mistake}, "it raises RuntimeError from encode_passages: no"),
    ("encoder", {"encode_document": returning(None)}, "it returned NoneType from"),
    ("encoder", {"encode_document": returning([])}, "it returned 0 results from"),
    ("encoder", {"encode_query": returning(None)}, "it returned NoneType from"),
    ("encoder", {"encode_query": returning([1, 2])}, "arrays [vectors, 2] are expected, got int"),
    # indexes
    ("index", {"build": classmethod(mistake)}, "it raises RuntimeError from build: no such table"),
    ("index", {"open": classmethod(mistake)}, "it raises RuntimeError from open: no such table"),
    ("index", {"open": classmethod(returning("here"))}, "`open` returns a str, not an index"),
    ("index", {"scores": mistake}, "it raises RuntimeError from scores: no such table"),
    ("index", {"scores": returning(None)}, "a score of type NoneType, not a number"),
    ("index", {"scores": returning([["x"] * 3] * 2)}, "a score of type str, not a number"),
    # decision rules
    ("rule", {"groups": mistake}, "it raises RuntimeError from groups: no such table"),
    ("rule", {"groups": returning(None)}, "it returned from groups NoneType instead of a list"),
    ("rule", {"groups": returning(["a"])}, "it returned from groups str instead of a list of"),
    ("rule", {"decide": returning("leaves")}, "it returned from answer str instead of an Answer"),
    # metrics
    ("metric", {"score": mistake}, "it raises RuntimeError from scores: no such table"),
    ("metric", {"score": returning(None)}, "it returned from score a NoneType, not a number"),
    ("metric", {"score": returning(7)}, "a score from 0 to 1 is expected, got 7.0"),
    ("metric", {"scores": returning(None)}, "it returned NoneType from scores: a list is expected"),
    # judges
    ("judge", {"judge": returning(None)}, "it returned NoneType from judge: a list is expected"),
    ("judge", {"judge": returning(["yes", "no"])}, "a probability of type str, not a number"),
    # datasets: functions, not classes
    ("dataset", returning(None), "it returned a NoneType, not a Dataset"),
    ("dataset", mistake, "it raises RuntimeError: no such table"),
    (
        "dataset",
        returning(Dataset("mine", "Mine", "val", ["What?"], "vqa_accuracy", "x")),
        "it returned a question of type str, not a Question",
    ),
    (
        "dataset",
        returning(Dataset("mine", "Mine", "val", QUESTIONS[:1] * 2, "vqa_accuracy", "x")),
        "it returned two questions with the id 1",
    ),
]


def broken_part(kind, change):
    if kind == "dataset":
        return change
    good = KINDS[kind][1]
    kept = {name: value for name, value in change.items() if value is not NO_NAME}
    part = type("Mine", (good,), {**kept, "__module__": "mine"})
    for name in change.keys() - kept:
        for base in part.__mro__:
            if name in vars(base) and base in (good,):
                part = type("Mine", good.__bases__, {**without(good, name), "__module__": "mine"})
    return part


def without(part, name):
    return {k: v for k, v in vars(part).items() if k not in (name, "__dict__", "__weakref__")}


@pytest.mark.parametrize(("kind", "change", "message"), BROKEN)
def test_a_part_that_breaks_its_contract_is_named_in_one_line(use, kind, change, message):
    with pytest.raises(ContractError) as raised:
        use(kind, broken_part(kind, change))
    line = str(raised.value)
    assert message in line
    assert "mine" in line
    assert " breaks its contract: " in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("retriever", {"retrieve": mistake}, "the retriever Mine: no such table"),
        ("reader", {"generate": mistake}, "the reader Mine: no such table"),
        ("reranker", {"rerank": mistake}, "the reranker Mine: no such table"),
        ("rule", {"decide": mistake}, "answering.decision mine: no such table"),
        ("judge", {"judge": mistake}, "the judge mine: no such table"),
        ("encoder", {"encode_query": mistake}, "the encoder mine: no such table"),
    ],
)
def test_what_it_raises_about_a_question_costs_that_question(use, kind, change, reason):
    found = use(kind, broken_part(kind, change))
    assert [outcome.reason for outcome in found] == [reason] * 2


def test_what_a_describer_raises_about_an_image_is_one_line(use):
    with pytest.raises(UserError, match=r"^the describer: no such table$"):
        use("describer", broken_part("describer", {"describe": mistake}))
