"""An index of one's own, written as docs/extending.md says: in a pipeline and in a collection."""

import json

import collection_files
import numpy as np
import pytest
from own_parts import from_docs
from study_files import call, write_data

from ravqa.collections import Collection
from ravqa.core.errors import ContractError
from ravqa.core.registry import Entry
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoded, Encoder
from ravqa.indexes import INDEXES
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever, to_hits

FlatIndex = from_docs("flat.py")["FlatIndex"]

FLAT = "retriever.index={name: flat}"

collection_files.register()


class Searching(FlatIndex):
    """Finds passages by `search` and `score` alone."""

    kind = "searching"
    scores_all = False


class Nan(FlatIndex):
    def scores(self, queries):
        return super().scores(queries) + np.float32(np.nan)


class Few(FlatIndex):
    def scores(self, queries):
        return super().scores(queries)[:, 1:]


class Without(FlatIndex):
    scores = INDEXES.get("exact").__mro__[2].scores


class Nothing(FlatIndex):
    @classmethod
    def open(cls, path, config=None, *, fingerprint=None):
        return None


class Reversed(Searching):
    def search(self, queries, k, *, allowed_ids=None, **params):
        return [r[::-1] for r in super().search(queries, k, allowed_ids=allowed_ids)]


class Wide(collection_files.HashEncoder):
    def encode_query(self, queries):
        return Encoded([np.ones((1, 3), np.float32) for _ in queries])


class Fewer(collection_files.HashEncoder):
    def encode_document(self, texts, progress=None):
        return Encoded(super().encode_document(texts)[1:])


class Endless(Retriever):
    fingerprint = "endless"

    def prepare(self, corpus, progress=None):
        self.ids = list(corpus)

    def retrieve(self, questions, k):
        return [to_hits([(i, 0.0) for i in self.ids]) for _ in questions]


class Duck:
    Config = Retriever.Config


@pytest.fixture(autouse=True)
def own_parts(monkeypatch, fresh_cache):
    parts = {
        INDEXES: {
            "flat": FlatIndex,
            "searching": Searching,
            "nan": Nan,
            "few": Few,
            "without": Without,
            "nothing": Nothing,
            "reversed": Reversed,
        },
        ENCODERS: {"wide": Wide, "fewer": Fewer},
        RETRIEVERS: {"endless": Endless, "duck": Duck},
    }
    for registry, kinds in parts.items():
        for name, kind in kinds.items():
            monkeypatch.setitem(globals(), f"part_{name}", kind)
            target = f"{__name__}:part_{name}"
            monkeypatch.setitem(registry._entries, name, Entry(target, "for tests"))


@pytest.fixture
def run(tmp_path, capsys):
    """Hits of a run over small questions, or the line that it ends with."""
    data = write_data(tmp_path / "data")
    settings = collection_files.pipeline(tmp_path)

    def made(*overrides, code=0):
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        arguments = ["--dataset", "jsonl", "--data", data / "questions.jsonl"]
        arguments += ["--corpus", data / "passages.jsonl", "--retrieval-only"]
        arguments += ["--pipeline", settings, "--output", folder, "--limit", 3]
        for override in overrides:
            arguments += ["--set", override]
        got, _, err = call(capsys, "run", *arguments)
        assert got == code, err
        assert "Traceback" not in err
        if code:
            return err.strip().splitlines()[-1]
        lines = (folder / "samples.jsonl").read_text().splitlines()
        return [json.loads(line)["hits"] for line in lines]

    return made


@pytest.mark.parametrize("kind", ["flat", "searching"])
def test_in_a_pipeline(run, kind):
    expected = run("retriever.index={name: exact, storage: float32}")
    assert all(expected)
    for found, hits in zip(run(f"retriever.index={{name: {kind}}}"), expected, strict=True):
        assert [hit[0] for hit in found] == [hit[0] for hit in hits]
        np.testing.assert_allclose([h[1] for h in found], [h[1] for h in hits], atol=1e-6)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("retriever.index={name: nan}", "Nan breaks its contract: a score is not a number (nan)"),
        ("retriever.index={name: few}", "Few breaks its contract: scores [3, 40] are expected"),
        ("retriever.index={name: without}", "it defines neither `scores` nor `search` and `score`"),
        ("retriever.index={name: nothing}", "`open` returns a NoneType, not an index"),
        ("retriever.index={name: reversed}", "a ranking does not begin with its best passage"),
        ("retriever.encoder={name: wide}", "Wide breaks its contract: arrays [vectors, 16] are"),
        ("retriever.encoder={name: fewer}", "Fewer breaks its contract: it returned"),
        ("retriever={name: endless}", "Endless breaks its contract: it returned from retrieve"),
        ("retriever={name: duck}", "is not a subclass of ravqa.retrievers.base.Retriever"),
    ],
)
def test_a_part_that_breaks_its_contract_is_named_in_one_line(run, override, line):
    assert line in run(override, code=2)


def test_an_encoder_of_ones_own_needs_no_more_than_its_base_class(run):
    assert issubclass(collection_files.HashEncoder, Encoder)
    assert run()


@pytest.fixture
def flat(tmp_path, capsys):
    """The folder of a collection on the index `flat`."""
    data = write_data(tmp_path / "data")
    path = tmp_path / "flat"
    settings = collection_files.pipeline(tmp_path)
    passages = data / "passages.jsonl"
    arguments = ("collection", "build", path, passages, "--pipeline", settings, "--set", FLAT)
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (0, "40 passages added\n"), err
    return path


def test_a_collection_is_built_and_searched(flat, tmp_path, capsys):
    made = Collection.open(flat)
    assert len(made) == 40
    question = "what does the koala eat"
    exact = "retriever.index={name: exact, storage: float32}"
    other = Collection.create(tmp_path / "exact", collection_files.pipeline(tmp_path), exact)
    other.add_files(tmp_path / "data" / "passages.jsonl")
    found = [(hit.passage_id, passage.text) for hit, passage in made.search(question)]
    assert found == [(hit.passage_id, p.text) for hit, p in other.search(question)]
    [(hit, _)] = made.search(question, allowed_ids=["lion0"])
    assert hit.passage_id == "lion0"
    assert made.stats()["kind"] == "flat"
    assert made.verify() == []
    made.compact()  # nothing was deleted
    code, out, err = call(capsys, "search", flat, question, "--json")
    assert code == 0, err
    assert "koala0" in out
    assert call(capsys, "collection", "verify", flat)[0] == 0
    assert call(capsys, "collection", "info", flat)[0] == 0


def test_two_collections_do_not_share_rankings(flat, tmp_path):
    settings = collection_files.pipeline(tmp_path)
    other = Collection.create(tmp_path / "other", settings, FLAT)
    lines = (tmp_path / "data" / "passages.jsonl").read_text().splitlines()[:5]
    (tmp_path / "some.jsonl").write_text("\n".join(lines) + "\n")
    other.add_files(tmp_path / "some.jsonl")
    assert len(Collection.open(flat).search("what does the koala eat", k=50)) == 40
    assert len(other.search("what does the koala eat", k=50)) == 5


def test_a_collection_that_cannot_grow_says_so(flat, tmp_path, capsys):
    passages = tmp_path / "data" / "passages.jsonl"
    assert call(capsys, "collection", "add", flat, passages)[:2] == (0, "40 passages unchanged\n")
    more = tmp_path / "more.jsonl"
    more.write_text('{"passage_id": "new", "text": "the koala sleeps"}\n')
    expected = f"error: the collection in {flat} has an index of kind 'flat', which cannot change"
    for arguments in (
        ("collection", "add", flat, more),
        ("collection", "delete", flat, "koala0"),
        ("collection", "update", flat, more),
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2
        assert err.splitlines()[-1].startswith(expected)
    code, _, err = call(capsys, "collection", "pack", flat, tmp_path / "flat.ravqa")
    assert code == 2
    assert "is of kind 'flat', which cannot be packed: ravqa collection rebuild" in err
    assert len(Collection.open(flat)) == 40
    assert Collection.open(flat).verify() == []


def test_a_build_that_fails_leaves_no_passages(tmp_path, monkeypatch):
    write_data(tmp_path / "data")
    path = tmp_path / "killed"
    made = Collection.create(path, collection_files.pipeline(tmp_path), FLAT)
    passages = tmp_path / "data" / "passages.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(FlatIndex, "__init__", lambda *_: 1 / 0)  # written, and not opened
        with pytest.raises(ContractError, match="it raises ZeroDivisionError from build"):
            made.add_files(passages)
    assert json.loads((path / "collection.json").read_text())["index"] is None
    assert len(Collection.open(path)) == 0
    assert made.add_files(passages).added == 40
    assert Collection.open(path).verify() == []
    assert sorted(p.name for p in path.glob("index-*")) == ["index-000001"]
