"""A collection remembers the source of each passage, and prunes by it."""

import json
import shutil
from dataclasses import replace

import collection_files
import pytest

from ravqa.collections import Changes, Collection
from ravqa.collections.sources import Origins, stored_name
from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.origins import Origin

PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
MINE = Passage("mine", "a passage of my own")


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "a", x="one a", y="two a"), write(tmp_path / "b", x="one b")


@pytest.fixture
def collection(tmp_path):
    return Collection.create(tmp_path / "all", collection_files.pipeline(tmp_path))


def state(collection):
    """All that is remembered, as another process sees it."""
    return {
        passage.passage_id: (passage, origin)
        for passage, origin in Collection.open(collection.path)._state.corpus.with_origins()
    }


def test_pruning_deletes_of_its_own_source_alone(collection, folders):
    a, b = folders
    collection.add_files(a, b)
    collection.add([MINE])
    assert sorted(collection) == ["a/x.txt#0", "a/y.txt#0", "b/x.txt#0", "mine"]
    assert collection.sources() == {"a": 2, "b": 1, None: 1}
    (a / "y.txt").unlink()
    write(a, x="one a, changed")
    before = state(collection)
    tried = collection.add_files(a, replacing=True, prune=True, dry_run=True)
    assert tried.ids == {"changed": ("a/x.txt#0",), "deleted": ("a/y.txt#0",)}
    assert state(collection) == before
    done = collection.add_files(a, replacing=True, prune=True)
    assert done == tried == Changes(changed=1, deleted=1)
    assert done.ids == tried.ids
    assert sorted(collection) == ["a/x.txt#0", "b/x.txt#0", "mine"]
    assert collection.add_files(b, replacing=True, prune=True) == Changes(unchanged=1)


def test_a_folder_keeps_what_its_ids_begin_with(collection, folders):
    a, b = folders
    collection.add_files(a)
    assert sorted(collection) == ["x.txt#0", "y.txt#0"]
    collection.add_files("b")
    assert collection.add_files(b, a) == Changes(unchanged=3)
    write(b / "more", x="three")
    assert collection.add_files("b").ids == {"added": ("b/more/x.txt#0",)}
    write(a / "c", x="in a folder below")
    collection.add_files(a)
    c = write(folders[0].parent / "c", x="in a folder beside")
    assert collection.add_files(c).ids == {"added": (f"{c.parent.name}/c/x.txt#0",)}
    with pytest.raises(UserError, match=r"ids of b begin with 'b/': read it with read_files"):
        collection.add(Corpus.read(b))


def test_a_first_folder_beside_files_has_no_prefix(collection, folders, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "p", "text": "one"}\n')
    collection.add_files(tmp_path / "p.jsonl")
    collection.add_files("a")
    assert list(collection) == ["p", "x.txt#0", "y.txt#0"]


def test_a_source_is_the_same_from_everywhere(collection, folders, tmp_path, monkeypatch):
    collection.add_files("a")
    monkeypatch.chdir(write(tmp_path / "deep" / "below"))
    opened = Collection.open("../../all")
    (folders[0] / "y.txt").unlink()
    done = opened.add_files("../../b/../a", prune=True)
    assert done == Changes(unchanged=1, deleted=1)
    assert opened.sources() == {str(folders[0]): 1}
    assert stored_name(tmp_path / "a", collection.path) == "../a"


def test_what_is_not_known_is_not_pruned(collection, folders):
    a, b = folders
    assert collection.add_files(a, prune=True) == Changes(added=2)  # of an empty collection
    with pytest.raises(UserError, match=r"no passage of b to prune; its sources: a: update it"):
        collection.add_files(b, prune=True)
    with pytest.raises(UserError, match="name it with source="):
        collection.update([MINE], prune=True)
    assert len(collection) == 2


def test_passages_of_ones_own_have_a_source_by_name(collection):
    one, two = Passage("1", "one"), Passage("2", "two")
    assert collection.update([one, two], source="crm", prune=True) == Changes(added=2)
    collection.add([MINE])
    tried = collection.update([two], source="crm", prune=True, dry_run=True)
    assert tried == Changes(unchanged=1, deleted=1)
    assert "1" in collection
    assert collection.update([two], source="crm", prune=True) == tried
    assert collection.sources() == {"crm": 1, None: 1}
    with pytest.raises(UserError, match=r"^source: a text is expected, got int$"):
        collection.add([one], source=7)


def test_a_passage_is_of_the_source_of_its_content(collection):
    one, other = Passage("1", "one"), Passage("1", "other")
    collection.add([one])
    assert collection.add([one], source="a") == Changes(relabelled=1)  # it becomes known
    assert collection.update([one], source="b") == Changes(unchanged=1)
    assert collection.sources() == {"a": 1}
    assert collection.update([other], source="b") == Changes(changed=1)
    assert collection.sources() == {"b": 1}
    assert collection.update([replace(other, extra={"n": 1})]) == Changes(relabelled=1)
    assert collection.sources() == {"b": 1}  # a correction by hand


def test_sources_outlast_everything(collection, folders, tmp_path):
    collection.add_files(*folders)
    collection.update([Passage("a/x.txt#0", "corrected", article="a/x.txt"), MINE])
    before = state(collection)
    assert {origin for _, origin in before.values()} == {
        Origin("../a", "a/"),
        Origin("../b", "b/"),
        None,
    }
    collection.compact()
    assert state(collection) == before
    assert len(list(collection.path.glob("passages-*/sources.json"))) == 1
    with collection._changing() as writer:
        writer.convert(writer._part.model_copy(update={"name": "compressed"}))
    packed = tmp_path / "all.tar"
    collection.pack(packed)
    copy = Collection.unpack(packed, tmp_path / "copy")
    assert copy.sources() == collection.sources()
    assert copy.verify() == []
    [file] = copy.path.glob("passages-*/sources.json")
    file.write_text(file.read_text().replace("../a", "../b"))
    assert copy.verify() == [f"{file.parent.name}/sources.json is missing or was changed"]
    with pytest.raises(UserError, match=r"sources\.json is missing or was changed"):
        Collection.open(copy.path)


@pytest.mark.parametrize(
    "stored",
    [[["a", None, 1]], [["a", "", 3]], [["a", "", -2]], [["a", 2]], {}, [], [["a", "", True]]],
)
def test_a_damaged_list_of_sources_is_refused(tmp_path, stored):
    (tmp_path / "sources.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"sources|key|should"):
        Origins.read(tmp_path, 2)


def test_a_collection_of_the_first_format_keeps_its_ids(collection, folders):
    """It knows no sources of what it has, until they are given again."""
    a, b = folders
    write(b, z="three b")
    (b / "x.txt").unlink()
    file = collection.path / "collection.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}))
    old = Collection.open(collection.path)
    old.add([replace(p, article=None) for p in Corpus.read(a).values()])
    assert old.sources() == {None: 2}
    with pytest.raises(UserError, match=r"no passage of a to prune; its sources: none"):
        old.add_files(a, replacing=True, prune=True)
    assert old.add_files(a, b, replacing=True) == Changes(added=1, relabelled=2)
    assert sorted(old) == ["x.txt#0", "y.txt#0", "z.txt#0"]
    (b / "z.txt").rename(b / "new.txt")
    done = Collection.open(old.path).add_files(b, replacing=True, prune=True)
    assert done == Changes(added=1, deleted=1)
    assert json.loads(file.read_text())["format"] == 1
    write(b, x="of the same name")
    with pytest.raises(DataError, match="occurs twice"):
        old.add_files(a, b)


def test_a_trial_describes_no_picture_and_copies_none(tmp_path, monkeypatch):
    collection = Collection.create(tmp_path / "zoo", collection_files.pipeline(tmp_path))
    photo = Passage("photo", "a koala", image=PHOTO)
    assert collection.update([photo], dry_run=True) == Changes(added=1)
    assert not (collection.path / "images").exists()
    collection.add([photo])
    assert collection.update([photo], dry_run=True) == Changes(unchanged=1)
    assert collection.update([replace(photo, text=" ")], dry_run=True) == Changes(unchanged=1)
    other = shutil.copy(PHOTO.with_name("COCO_val2014_000009000011.jpg"), tmp_path / "o.jpg")
    changed = replace(photo, image=tmp_path / "o.jpg", extra={"from": str(other)})
    tried = collection.update([changed], dry_run=True)
    assert tried == Changes(relabelled=1)  # this encoder sees no images
    assert collection.update([changed]) == tried
