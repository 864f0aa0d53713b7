"""Collections on every kind of index: searches, changes, killed writers, and lost indexes."""

import importlib.util
import json
import shutil

import collection_files
import pytest
from study_files import call

from ravqa.collections import Collection
from ravqa.collections.folder import CollectionFolder, Writer
from ravqa.core.errors import UserError
from ravqa.core.records import Passage, Question
from ravqa.doors.shelf import OWN, Shelf
from ravqa.indexes import INDEXES
from ravqa.indexes.sharded import ShardedIndex

KINDS = {
    "sharded": "{name: sharded, shards: 3, shard: {name: exact, storage: float32}}",
    "faiss": "{name: faiss, factory: Flat}",
    "qdrant": "{name: qdrant, storage: float32, prefetch: null}",
    "sharded-qdrant": "{name: sharded, shards: 2, shard: {name: qdrant, storage: float32}}",
}
SLOW = pytest.mark.slow
NEEDS = {"faiss": "faiss", "qdrant": "qdrant_edge", "sharded-qdrant": "qdrant_edge"}
ANIMALS = ("koala", "lion", "bear", "heron", "otter", "mole", "crane")
PLACES = ("tree", "river", "burrow", "savanna", "rock")
QUESTIONS = ("where does the koala sleep", "which bear is near the river", "a mole in a tree")

pytestmark = pytest.mark.usefixtures("fresh_cache")


def passages(first=0, last=35, words="sleeps near the"):
    return [
        Passage(
            f"p{i}", f"the {ANIMALS[i % 7]} {words} {PLACES[i // 7 % 5]} {i}", extra={"n": i % 2}
        )
        for i in range(first, last)
    ]


@pytest.fixture(params=["sharded", *(pytest.param(k, marks=SLOW) for k in KINDS if k != "sharded")])
def kind(request):
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    return f"retriever.index={KINDS[request.param]}"


def exact(tmp_path, given):
    """A collection of these passages on the exact index."""
    path = tmp_path / f"exact-{len(list(tmp_path.iterdir()))}"
    made = Collection.create(
        path, collection_files.pipeline(tmp_path), "retriever.index={name: exact, storage: float32}"
    )
    made.add(given)
    return made


def same(collection, other):
    """Assert that two collections find the same passages with the same scores."""
    for question in QUESTIONS:
        found, wanted = (c.search(question, k=8) for c in (collection, other))
        for (hit, passage), (expected, _) in zip(found, wanted, strict=True):
            assert hit.score == pytest.approx(expected.score, abs=1e-5)
            assert passage.text == collection[hit.passage_id].text
        best = wanted[-1][0].score + 1e-5  # those that tie with the last may be others
        assert {h.passage_id for h, _ in found if h.score > best} == {
            h.passage_id for h, _ in wanted if h.score > best
        }
    assert len(collection) == len(other)
    assert set(collection) == set(other)


def create(tmp_path, kind, given=None):
    made = Collection.create(tmp_path / "c", collection_files.pipeline(tmp_path), kind)
    if given:
        made.add(given)
    return made


def test_every_kind_is_searched_and_changed_as_the_exact_index(tmp_path, kind):
    collection = create(tmp_path, kind, passages())
    now = {p.passage_id: p for p in passages()}
    same(collection, exact(tmp_path, now.values()))

    changed = passages(3, 9, "eats at the") + passages(40, 45)
    changes = collection.update(changed)
    now |= {p.passage_id: p for p in changed}
    assert (changes.added, changes.changed) == (5, 6)
    relabelled = Passage("p1", now["p1"].text, extra={"n": 7})
    assert collection.update([relabelled]).relabelled == 1
    now["p1"] = relabelled
    collection.delete(["p4", "p20", "p41"])
    for gone in ("p4", "p20", "p41"):
        del now[gone]
    other = exact(tmp_path, now.values())
    same(collection, other)
    assert collection.verify() == []
    assert "p4" not in collection
    with pytest.raises(UserError, match="no passage 'p4'"):
        collection.delete(["p4"])
    question = QUESTIONS[0]
    assert [h.passage_id for h, _ in collection.search(question, where={"n": 7})] == ["p1"]
    assert [h.passage_id for h, _ in collection.search(question, allowed_ids=["p4", "p5"])] == [
        "p5"
    ]

    again = Collection.open(collection.path)
    same(again, other)
    assert again.add([now["p5"]]).unchanged == 1
    again.compact()
    collection.refresh()
    assert len(list(collection.path.glob("passages-*"))) == 1
    same(collection, other)
    collection.add([Passage("p4", "the koala is back")])
    assert collection["p4"].text == "the koala is back"
    assert collection.ask("the koala is back").hits[0].passage_id == "p4"


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("sharded", "update"),
        *(pytest.param("sharded", point, marks=SLOW) for point in ("delete", "end")),
        *(pytest.param("qdrant", point, marks=SLOW) for point in ("update", "delete", "end")),
    ],
)
def test_a_change_that_was_killed_is_completed_by_the_next(tmp_path, name, point, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    collection = create(tmp_path, f"retriever.index={KINDS[name]}", passages())
    monkeypatch.setattr("ravqa.collections.folder._STEP", 40)
    index = INDEXES.get(name)
    calls = []

    def killed(*_, **__):
        calls.append(1)
        if len(calls) == (2 if point == "update" else 1):
            raise Killed
        return own(*_, **__)

    target, what = (Writer, "_settle") if point == "end" else (index, point)
    own = getattr(target, what)
    new = passages(2, 6, "eats at the") + passages(50, 53)
    with monkeypatch.context() as patch:
        patch.setattr(target, what, killed)
        with pytest.raises(Killed):  # noqa: PT012 (one of the two is killed)
            collection.update(new, source="s")
            collection.delete(["p30"])
    expected = {p.passage_id: p for p in passages() + new}
    begun = json.loads((collection.path / "collection.json").read_text())["live"]["begun"]
    assert begun == {"update": 7, "delete": 0, "end": None}[point]
    if point == "delete":
        del expected["p30"]
    del collection
    opened = Collection.open(tmp_path / "c")
    for question in QUESTIONS:  # what is found has a text
        assert all(p.passage_id in expected for _, p in opened.search(question, k=9))
    opened.add([Passage("last", "the last one is near")])
    expected["last"] = opened["last"]
    assert opened.verify() == []
    same(opened, exact(tmp_path, expected.values()))


@pytest.mark.parametrize("name", ["sharded", pytest.param("qdrant", marks=SLOW)])
def test_a_lost_index_is_noticed_and_built_again(tmp_path, name, capsys, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    create(tmp_path, f"retriever.index={KINDS[name]}", passages())
    path = tmp_path / "c"
    opened = Collection.open(path)
    opened.update(passages(3, 9, "eats at the"))
    opened.delete(["p11"])
    expected = {i: opened[i] for i in opened}
    del opened
    lost = {"sharded": "shard-001", "qdrant": "edge"}[name]
    shutil.rmtree(path / "index-000001" / lost)
    code, _, err = call(capsys, "search", path, QUESTIONS[0])
    assert code == 2
    assert err.strip().endswith(f"ravqa collection rebuild {path} makes it again")
    assert len(err.strip().splitlines()) == 1
    files = {p: p.read_bytes() for p in path.glob("passages-*/*")}
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_build", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Collection.rebuild(path)
    assert {p: p.read_bytes() for p in files} == files
    code, out, err = call(capsys, "collection", "rebuild", path)
    assert (code, out) == (0, "the index of 34 passages was built again\n"), err
    opened = Collection.open(path)
    assert opened.verify() == []
    same(opened, exact(tmp_path, expected.values()))
    assert sorted(p.name for p in path.glob("index-*")) == ["index-000002"]


def test_an_index_that_was_emptied_is_noticed(tmp_path):
    create(tmp_path, f"retriever.index={KINDS['sharded']}", passages())
    path = tmp_path / "c"
    index = ShardedIndex.open(path / "index-000001")
    index.delete(["p1", "p2"])
    with pytest.raises(UserError, match=r"has 33 passages instead of 35: ravqa collection rebuild"):
        Collection.open(path)
    assert len(Collection.rebuild(path)) == 35


@SLOW
def test_a_collection_moves_from_kind_to_kind(tmp_path, capsys):
    create(tmp_path, "retriever.index={name: exact}", passages())
    path = tmp_path / "c"
    collection = Collection.open(path)
    collection.delete(["p0", "p1"])
    expected = exact(tmp_path, [collection[i] for i in collection])
    for name in ("sharded", "exact", "sharded", "exact"):
        option = KINDS.get(name, "{name: exact, storage: float32}")
        code, out, err = call(
            capsys, "collection", "rebuild", path, "--set", f"retriever.index={option}"
        )
        assert (code, out) == (0, "the index of 33 passages was built again\n"), err
        opened = Collection.open(path)
        assert opened.stats()["kind"] == name
        assert "p0" not in opened
        assert len(opened) == 33
        assert opened.verify() == []
        same(opened, expected)
        assert CollectionFolder(path).manifest().format == (3 if name == "sharded" else 2)
    code, _, err = call(
        capsys, "search", path, "koala", "--set", "retriever.index={name: sharded, shards: 2}"
    )
    assert code == 2
    assert "is of another kind than 'sharded': ravqa collection rebuild" in err


def test_a_collection_of_a_later_version_is_refused_in_one_line(tmp_path, capsys):
    collection = create(tmp_path, f"retriever.index={KINDS['sharded']}", passages(0, 5))
    file = collection.path / "collection.json"
    file.write_text(file.read_text().replace('"format": 3', '"format": 4'))
    code, _, err = call(capsys, "search", collection.path, "koala")
    assert code == 2
    assert "has format 4, but this version reads" in err
    assert len(err.strip().splitlines()) == 1


@SLOW
@pytest.mark.parametrize("name", ["sharded", "qdrant"])
def test_frameworks_and_doors_search_every_kind(tmp_path, name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    collection = create(tmp_path, f"retriever.index={KINDS[name]}", passages())
    question = QUESTIONS[0]
    wanted = [hit.passage_id for hit, _ in collection.search(question, k=3)]
    found = {}
    if importlib.util.find_spec("llama_index"):
        from ravqa.integrations.llama_index import PreFLMRRetriever as LlamaIndexRetriever

        retriever = LlamaIndexRetriever.from_persist_dir(collection.path, similarity_top_k=3)
        found["llama-index"] = [node.node_id for node in retriever.retrieve(question)]
    if importlib.util.find_spec("langchain_core"):
        from ravqa.integrations.langchain import PreFLMRRetriever as LangChainRetriever

        retriever = LangChainRetriever.from_persist_dir(collection.path, k=3)
        found["langchain"] = [document.id for document in retriever.invoke(question)]
    if importlib.util.find_spec("haystack"):
        from ravqa.integrations.haystack import PreFLMRRetriever as HaystackRetriever

        documents = HaystackRetriever(str(collection.path), top_k=3).run(question)["documents"]
        found["haystack"] = [document.id for document in documents]
    shelf = Shelf([collection.path], [collection_files.pipeline(tmp_path)])
    [own] = shelf.names
    assert len(shelf.pipelines(own)) == 2
    other = shelf.pipeline(own, shelf.pipelines(own)[1]).ask(Question(0, question, None))
    found["another pipeline"] = [hit.passage_id for hit in other.hits[:3]]
    response = shelf.pipeline(own, OWN).ask(Question(0, question, None))
    found["doors"] = [hit.passage_id for hit in response.hits[:3]]
    assert found == dict.fromkeys(found, wanted)
    shelf.collection(own).add([Passage("new", question)])
    shelf.refresh(own)
    assert shelf.pipeline(own, OWN).ask(Question(0, question, None)).hits[0].passage_id == "new"


@pytest.mark.parametrize("name", ["sharded", pytest.param("faiss", marks=SLOW)])
def test_what_is_in_the_folder_is_packed_and_unpacked(tmp_path, name, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    collection = create(tmp_path, f"retriever.index={KINDS[name]}", passages())
    collection.update(passages(3, 9, "eats at the"))
    collection.delete(["p11"])
    packed, copy = tmp_path / "x.tar", tmp_path / "copy"
    collection.pack(packed)
    code, _, err = call(capsys, "collection", "unpack", packed, copy)
    if name == "faiss":
        assert code == 2
        assert ".faiss is used without a check of what it holds: if you trust whoever" in err
        assert not copy.exists()
        code, _, err = call(capsys, "collection", "unpack", packed, copy, "--trust-settings")
    assert code == 0, err
    opened = Collection.open(copy)
    same(opened, collection)
    assert opened.verify() == []
    opened.delete(["p12"])
    assert "p12" in collection


def test_an_embedded_engine_is_not_packed(tmp_path):
    pytest.importorskip(NEEDS["qdrant"])
    collection = create(tmp_path, f"retriever.index={KINDS['qdrant']}", passages(0, 3))
    with pytest.raises(UserError, match="is of kind 'qdrant', which cannot be packed"):
        collection.pack(tmp_path / "x.tar")
