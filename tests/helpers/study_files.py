"""Small data and counting parts for tests of studies; no model is loaded."""

import hashlib
import json
import random
from typing import ClassVar

import numpy as np
import pytest
import yaml

from ravqa.cli import main
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict, fingerprint
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoded, Encoder
from ravqa.indexes import INDEXES
from ravqa.indexes.exact import ExactIndex
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader

ANIMALS = "koala lion otter heron bison gecko moose tapir".split()
FOODS = "leaves meat fish frogs grass flies twigs fruit".split()
PLACES = "forest savanna river marsh prairie desert taiga jungle".split()


def write_data(folder):
    """24 questions about 8 pictures, three each, of two types; 40 passages, some with answers."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)
    questions, passages = [], []
    for i, (animal, food, place) in enumerate(zip(ANIMALS, FOODS, PLACES, strict=True)):
        asked = [
            (f"what does the {animal} eat", food, "food"),
            (f"where does the {animal} live", place, "place"),
            (f"which food has the {animal} in its home", food, "food"),
        ]
        for j, (question, answer, kind) in enumerate(asked):
            questions.append(
                {
                    "question_id": 100 * i + j,
                    "question": question,
                    "image_id": i,
                    "answers": [answer],
                    "question_type": kind,
                }
            )
        facts = [f"{food} the {animal} eat", f"{place} does the {animal} live where"]
        for j, fact in enumerate(facts if i % 4 else facts[:1]):
            passages.append({"passage_id": f"{animal}{j}", "text": fact})
    for i in range(26):
        words = " ".join(rng.choices("the what of old where stone which night has a".split(), k=6))
        passages.append({"passage_id": f"other{i}", "text": words})
    for name, rows in (("questions", questions), ("passages", passages)):
        lines = [json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_study(path, **changes):
    """A study's file on the data beside it: BM25 and a reader without a model."""
    study = {
        "pipeline": "bm25-retrieval",
        "set": {
            "retriever.query.captioned": 0,
            "retriever.query.question": 1,
            "top_k": 10,
            "reader": {"name": "first-words", "words": 1},
        },
        "axes": {"reader.words": [1, 2]},
        "datasets": [{"name": "jsonl", "data": str(path.parent), "label": "animals"}],
    }
    study.update(changes)
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def call(capsys, *arguments):
    """Exit code and what was printed on both streams."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err


def read_table(folder):
    return json.loads((folder / "table.json").read_text(encoding="utf-8"))


class Counted:
    """What the parts below were asked for, by what it was."""

    calls: ClassVar[dict[str, int]] = {}

    @classmethod
    def add(cls, what, number):
        cls.calls[what] = cls.calls.get(what, 0) + number


class CountedEncoder(Encoder):
    """A vector a word, made from the word's hash."""

    class Config(Strict):
        pass

    dim = 8
    weights = "hashed words"
    fingerprint = "hashed words"

    def __init__(self, config):
        Counted.add("encoders", 1)

    def _rows(self, text):
        seeds = [list(hashlib.sha256(word.encode()).digest()) for word in text.split()]
        rows = np.array([np.random.default_rng(seed).normal(size=self.dim) for seed in seeds])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def encode_document(self, texts, progress=None):
        Counted.add("passages", len(texts))
        return Encoded([self._rows(text) for text in texts])

    def encode_query(self, queries):
        Counted.add("queries", len(queries))
        return Encoded([self._rows(" ".join(s.text for s in spans)) for spans in queries])


class CountedIndex(ExactIndex):
    """The exact index."""

    def scores(self, queries):
        """As it gives them."""
        Counted.add("searches", len(queries))
        return super().scores(queries)


class CountedReader(Reader):
    """Answers with the passage's word number `word`; its log-probability is made from the text."""

    class Config(Strict):
        word: int = 0
        fail: bool = False
        bug: bool = False

    gives_log_probs = True
    deterministic = True
    weights = ""
    context = None
    max_new_tokens = 1
    ends = frozenset()

    def __init__(self, config):
        Counted.add("readers", 1)
        if config.bug:
            raise RuntimeError("the reader has a bug\nand this is why")
        self.config = config
        self.fingerprint = fingerprint("counted", config.word)

    def generate(self, prompts):
        Counted.add("prompts", len(prompts))
        if self.config.fail:
            raise RuntimeError("the reader broke\nand this is why")
        return [self._answer(prompt.text) for prompt in prompts]

    def _answer(self, text):
        _, _, passage = text.rpartition("Passage: ")
        words = passage.split("\n")[0].split() or ["nothing"]
        digest = hashlib.sha256(text.encode()).digest()
        return Generation(words[self.config.word % len(words)], -digest[0] / 64, 1)


@pytest.fixture
def counted(monkeypatch, fresh_cache):
    """The counts of the parts above, which can be named in studies: all are called "counted"."""
    monkeypatch.setattr(Counted, "calls", {})
    here = __name__
    monkeypatch.setitem(ENCODERS._entries, "counted", Entry(f"{here}:CountedEncoder", ""))
    monkeypatch.setitem(INDEXES._entries, "counted", Entry(f"{here}:CountedIndex", ""))
    monkeypatch.setitem(READERS._entries, "counted", Entry(f"{here}:CountedReader", ""))
    return Counted.calls
