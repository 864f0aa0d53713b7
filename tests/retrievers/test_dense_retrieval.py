"""Retrieval with one vector per text: faiss finds what the exact index finds."""

import hashlib

import numpy as np
import pytest

pytest.importorskip("faiss")

from ravqa.core.records import Description, Passage, Question, Tag
from ravqa.core.registry import Entry
from ravqa.core.settings import validate
from ravqa.corpora.corpus import Corpus
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoded, Encoder
from ravqa.retrievers.late_interaction import LateInteractionRetriever

WORDS = "koala moose otter lighthouse harbour eucalyptus river taiga stone what where does".split()


class Bag(Encoder):
    """A text's words as one vector: the sum of a random vector for each."""

    dim, fingerprint, weights = 24, "bag", ""

    def __init__(self, config=None):
        super().__init__(config)

    def _vector(self, words):
        total = np.zeros(self.dim)
        for word in words:
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
            total += np.random.default_rng(seed).normal(size=self.dim)
        return (total / np.linalg.norm(total))[None].astype(np.float32)

    def encode_document(self, texts, progress=None):
        return Encoded([self._vector(text.lower().split()) for text in texts])

    def encode_query(self, queries):
        return Encoded([self._vector(" ".join(s.text for s in q).lower().split()) for q in queries])


@pytest.fixture(autouse=True)
def bag(monkeypatch, fresh_cache):
    monkeypatch.setitem(ENCODERS._entries, "bag", Entry(f"{__name__}:Bag", ""))


def found(index, questions, corpus):
    options = {"encoder": {"name": "bag"}, "index": index, "depth": 10}
    options["query"] = {"question": 0.3, "replaced": 1.0, "appended": 0.5}
    tested = LateInteractionRetriever(validate(LateInteractionRetriever.Config, options, "r"))
    tested.prepare(corpus)
    return [[(h.passage_id, h.score) for h in hits] for hits in tested.retrieve(questions, 5)]


def test_faiss_ranks_as_the_exact_index_for_queries_of_several_forms():
    rng = np.random.default_rng(0)
    corpus = Corpus(
        Passage(f"p{i}", " ".join(rng.choice(WORDS, 4)), title=str(i)) for i in range(60)
    )
    tags = (Tag(("koala", "koala bear"), 0.7), Tag(("otter",), 0.3))  # alternatives of a name
    questions = [
        Question(1, "What does this animal eat?", description=Description(tags=tags)),
        Question(2, "Where is the lighthouse?", description=Description(tags=tags[1:])),
        Question(3, "Where does the moose live?"),
    ]
    exact = found({"name": "exact", "storage": "float32"}, questions, corpus)
    for factory in ("Flat", "HNSW8"):
        by_faiss = found({"name": "faiss", "factory": factory}, questions, corpus)
        for own, expected in zip(by_faiss, exact, strict=True):
            assert [i for i, _ in own] == [i for i, _ in expected]
            assert [s for _, s in own] == pytest.approx([s for _, s in expected], abs=1e-5)
