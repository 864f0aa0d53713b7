"""Collections whose index is at a Qdrant server: changes, loss, rebuilding, what is refused."""

import json

import collection_files
import pytest
from qdrant_server import serving
from study_files import call

from ravqa.collections import Collection
from ravqa.core.errors import ServerError, UserError
from ravqa.core.records import Passage

pytestmark = pytest.mark.usefixtures("fresh_cache")
QUESTION = "where does the koala sleep"


def passages(first=0, last=12):
    words = ("koala sleeps", "lion roars", "bear fishes")
    return [Passage(f"p{i}", f"the {words[i % 3]} where {i}") for i in range(first, last)]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("ravqa.indexes.qdrant._met", set())
    monkeypatch.setattr("ravqa.indexes.qdrant._WAITS", (0.001,) * 4)
    with serving() as server:
        yield server


@pytest.fixture
def collection(tmp_path, server):
    index = f"retriever.index={{name: qdrant, url: '{server.url}', storage: float32}}"
    made = Collection.create(tmp_path / "my zoo", collection_files.pipeline(tmp_path), index)
    made.add(passages())
    return made


def same(collection, tmp_path):
    """Assert that it finds what a collection of the same passages on the exact index finds."""
    exact = "retriever.index={name: exact, storage: float32}"
    path = tmp_path / f"exact-{len(list(tmp_path.iterdir()))}"
    other = Collection.create(path, collection_files.pipeline(tmp_path), exact)
    other.add([collection[i] for i in collection])
    found, wanted = (dict(scores(c)) for c in (collection, other))
    assert found == pytest.approx(wanted, abs=1e-5)


def scores(collection):
    return [(hit.passage_id, hit.score) for hit, _ in collection.search(QUESTION, k=50)]


def own(server):
    return [c.name for c in server.engine.get_collections().collections]


def test_it_is_changed_and_searched_as_on_the_exact_index(collection, server, tmp_path):
    [name] = own(server)
    assert name.startswith("ravqa-my-zoo-")
    collection.update([*passages(10, 15), Passage("p0", "a koala where")])
    collection.delete(["p5"])
    same(collection, tmp_path)
    asked = len(server.requests)
    for _ in collection.corpus.stream():
        pass
    assert "p5" not in collection
    assert len(server.requests) == asked  # texts and ids are in the folder
    assert collection.verify() == []
    assert len(Collection.open(collection.path)) == 14


@pytest.mark.parametrize("how", ["dropped", pytest.param("emptied", marks=pytest.mark.slow)])
def test_a_lost_collection_is_noticed_and_filled_again(collection, server, tmp_path, capsys, how):
    collection.delete(["p5"])
    expected = set(collection)
    if how == "dropped":
        server.engine.delete_collection(own(server)[0])
    else:
        points = [p for p in server.engine.scroll(own(server)[0], limit=99)[0] if "id" in p.payload]
        server.engine.delete(own(server)[0], [p.id for p in points[:4]])
    code, _, err = call(capsys, "search", collection.path, QUESTION)
    [line] = err.strip().splitlines()
    assert code == 2
    assert ("does not exist" if how == "dropped" else "has 7 passages instead of 11") in line
    assert line.endswith(f"ravqa collection rebuild {collection.path} makes it again")
    code, out, err = call(capsys, "collection", "rebuild", collection.path)
    assert (code, out) == (0, "the index of 11 passages was built again\n"), err
    again = Collection.open(collection.path)
    assert set(again) == expected
    same(again, tmp_path)
    assert len(own(server)) == 1


@pytest.mark.slow
def test_a_rebuilt_one_takes_over_while_others_search(collection, server, tmp_path):
    reader = Collection.open(collection.path)
    before, [old] = scores(reader), own(server)
    rebuilt = Collection.rebuild(collection.path)
    assert old not in own(server)
    assert len(own(server)) == 1
    assert scores(reader) == before == scores(rebuilt)
    reader.refresh()
    rebuilt.add(passages(20, 22))
    reader.refresh()
    assert len(reader) == 14
    same(reader, tmp_path)
    back = Collection.rebuild(collection.path, "retriever.index={name: exact, storage: float32}")
    assert own(server) == []
    same(back, tmp_path)


@pytest.mark.slow
def test_a_rebuild_that_is_killed_leaves_the_old_one(collection, server, tmp_path, monkeypatch):
    before = scores(collection)
    with monkeypatch.context() as patch:
        patch.setattr("ravqa.collections.folder.CollectionFolder.put", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Collection.rebuild(collection.path)
    assert len(own(server)) == 2
    assert scores(Collection.open(collection.path)) == before
    with monkeypatch.context() as patch:  # recorded, and the alias not switched
        patch.setattr("ravqa.indexes.qdrant.QdrantIndex.publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Collection.rebuild(collection.path)
    opened = Collection.open(collection.path)
    assert scores(opened) == before
    opened.add(passages(20, 21))  # which switches it
    assert len(own(server)) == 1
    assert len(Collection.open(collection.path)) == 13


def test_what_is_at_a_server_is_not_packed(collection, tmp_path, capsys):
    code, _, err = call(capsys, "collection", "pack", collection.path, tmp_path / "x.tar")
    assert code == 2
    assert "is of kind 'qdrant', which cannot be packed: ravqa collection rebuild" in err
    assert not (tmp_path / "x.tar").exists()


def test_a_server_that_is_away_is_one_line_and_no_reason_to_rebuild(tmp_path, capsys, collection):
    with serving() as gone:
        url = gone.url
    changed = f"retriever.index={{name: qdrant, url: '{url}', timeout: 1}}"
    with pytest.raises(ServerError, match="cannot be reached") as caught:
        Collection.open(collection.path, None, changed)
    assert "rebuild" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_collections_at_one_server_do_not_meet(collection, server, tmp_path):
    (tmp_path / "b").mkdir()
    index = f"retriever.index={{name: qdrant, url: '{server.url}'}}"
    settings = collection_files.pipeline(tmp_path)
    other = Collection.create(tmp_path / "b" / "my zoo", settings, index)
    other.add(passages(0, 3))
    assert (len(collection), len(Collection.open(other.path)), len(own(server))) == (12, 3, 2)
    named = f"retriever.index={{name: qdrant, url: '{server.url}', collection: shared}}"
    first = Collection.create(tmp_path / "first", settings, named)
    first.add(passages(0, 2))
    second = Collection.create(tmp_path / "second", settings, named)
    with pytest.raises(UserError, match=r"shared at .* already has an index, of another corpus"):
        second.add(passages(0, 2))


def test_settings_from_elsewhere_do_not_lead_to_a_server(collection, server, monkeypatch):
    file = collection.path / "collection.json"
    assert json.loads(file.read_text())["live"]["name"].startswith("ravqa-my-zoo-")
    monkeypatch.setattr("ravqa.collections.trust._here", set())
    monkeypatch.setattr("ravqa.collections.trust.is_mine", lambda _: False)
    asked = len(server.requests)
    for attempt in (Collection.open, Collection.rebuild):
        with pytest.raises(UserError, match=r"name something outside it: retriever\.index\.url"):
            attempt(collection.path)
    assert len(server.requests) == asked
