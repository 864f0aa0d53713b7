"""A collection packed into one file, and what is refused when it is unpacked."""

import hashlib
import io
import json
import tarfile

import collection_files
import pytest
from collection_files import pipeline

from ravqa.collections import Collection
from ravqa.collections.folder import CollectionFolder
from ravqa.core.errors import UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage

PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
PASSAGES = [
    Passage("koala", "It eats leaves.", title="Koala", image=PHOTO, extra={"page": 1}),
    Passage("bridge", "It was built in 1894."),
]


@pytest.fixture(params=["exact", "compressed"])
def collection(request, tmp_path):
    made = Collection.create(tmp_path / "index", pipeline(tmp_path, index={"name": request.param}))
    made.add([*PASSAGES, Passage("secret", "a secret text")])
    made.delete(["secret"])
    return made


def found(collection):
    return [(h.passage_id, h.score) for h, _ in collection.search("when was it built")]


def test_a_packed_collection_opens_elsewhere(collection, tmp_path):
    size = collection.pack(tmp_path / "one.tar")
    expected = found(collection)
    assert size == (tmp_path / "one.tar").stat().st_size
    collection.pack(tmp_path / "two.tar")
    packed = (tmp_path / "one.tar").read_bytes()
    assert (tmp_path / "two.tar").read_bytes() == packed
    assert b"secret" not in packed
    assert str(tmp_path).encode() not in packed
    other = Collection.unpack(tmp_path / "one.tar", tmp_path / "elsewhere" / "index")
    assert other.verify() == []
    assert found(other) == expected
    assert other["koala"].image.read_bytes() == PHOTO.read_bytes()
    assert other["koala"].image.is_relative_to(tmp_path / "elsewhere")
    other.add([Passage("new", "more")])
    assert len(other) == 3


def test_a_collection_that_cannot_be_written_is_packed_as_it_is(collection, tmp_path, monkeypatch):
    collection.compact()
    collection.pack(tmp_path / "one.tar")

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    # Modes would not do: they do not keep the superuser out.
    monkeypatch.setattr("ravqa.collections.collection.os.access", lambda *_: False)
    monkeypatch.setattr("ravqa.collections.folder.sole_writer", closed)
    collection.pack(tmp_path / "two.tar")
    assert (tmp_path / "two.tar").read_bytes() == (tmp_path / "one.tar").read_bytes()


def test_an_empty_collection_can_be_packed(tmp_path):
    Collection.create(tmp_path / "index", pipeline(tmp_path)).pack(tmp_path / "x.tar")
    assert len(Collection.unpack(tmp_path / "x.tar", tmp_path / "other")) == 0


def test_nothing_is_overwritten(collection, tmp_path):
    (tmp_path / "there.tar").write_text("x")
    with pytest.raises(UserError, match="already exists"):
        collection.pack(tmp_path / "there.tar")
    collection.pack(tmp_path / "x.tar")
    with pytest.raises(UserError) as error:
        Collection.unpack(tmp_path / "x.tar", collection.path)
    assert str(error.value) == (
        f"{collection.path} already holds a collection: choose a new folder"
    )
    with pytest.raises(UserError, match="no such file"):
        Collection.unpack(tmp_path / "gone.tar", tmp_path / "new")
    with pytest.raises(UserError, match="no such folder"):
        collection.pack(tmp_path / "gone" / "x.tar")


# --- archives that are not as they should be


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    collection = Collection.create(folder / "index", pipeline(folder))
    collection.add(PASSAGES)
    collection.pack(folder / "x.tar")
    return (folder / "x.tar").read_bytes()


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(m, archive.extractfile(m).read()) for m in archive]


def packed(entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for entry, data in entries:
            if isinstance(entry, str):
                entry = tarfile.TarInfo(entry)
            if entry.isreg():
                entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def link(kind, name, target):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry, b""


def test_an_archive_of_an_older_version_opens(whole, tmp_path):
    (first, text), *others = members(whole)
    first.name = "ravqa-index.json"
    for entry, _ in others:
        if entry.name == "collection.json":
            entry.name = "library.json"
    text = text.replace(b"collection.json", b"library.json")
    (tmp_path / "old.tar").write_bytes(packed([(first, text), *others]))
    opened = Collection.unpack(tmp_path / "old.tar", tmp_path / "new")
    assert opened.verify() == []
    assert "koala" in opened
    assert (tmp_path / "new" / "library.json").is_file()
    opened.pack(tmp_path / "again.tar")
    names = [entry.name for entry, _ in members((tmp_path / "again.tar").read_bytes())]
    assert names[0] == "ravqa-collection.json"
    assert "library.json" in names
    assert len(Collection.unpack(tmp_path / "again.tar", tmp_path / "third")) == len(opened)


def with_list(entries, change):
    (first, text), *others = entries
    values = json.loads(text)
    change(values)
    return [(first, json.dumps(values).encode()), *others]


def last_changed(entries):
    entry, data = entries[-1]
    return [*entries[:-1], (entry, data[:-1] + bytes([data[-1] ^ 1]))]


def last_longer(entries):
    entry, data = entries[-1]
    return [*entries[:-1], (entry, data + b"x")]


DAMAGES = {
    "no archive": (lambda e: None, "not a packed collection"),
    "another archive": (lambda e: [("a.txt", b"x")], "must come first"),
    "empty": (lambda e: [], "must come first"),
    "list is no JSON": (lambda e: [(e[0][0], b"{"), *e[1:]], "is damaged"),
    "other format": (lambda e: with_list(e, lambda v: v.update(format=9)), "has format 9"),
    "file changed": (last_changed, "does not match its list of files"),
    "file longer": (last_longer, "does not match its list of files"),
    "file lacks": (lambda e: e[:-1], "is cut off: .* is missing"),
    "file twice": (lambda e: [*e, e[-1]], "not in its list of files"),
    "not listed": (lambda e: [*e, ("index-000001/x.npy", b"")], "not in its list of files"),
    "climbs out": (
        lambda e: with_list(
            [*e, ("../evil.json", b"")], lambda v: v["files"].update({"../evil.json": [0, ""]})
        ),
        "unexpected file '../evil.json'",
    ),
    "absolute": (
        lambda e: with_list(
            [*e, ("/elsewhere/evil", b"")],
            lambda v: v["files"].update({"/elsewhere/evil": [0, ""]}),
        ),
        "unexpected file '/elsewhere/evil'",
    ),
    "link": (
        lambda e: [*e[:-1], link(tarfile.SYMTYPE, e[-1][0].name, "/etc/passwd")],
        "not in its list of files",
    ),
    "hard link": (
        lambda e: [*e[:-1], link(tarfile.LNKTYPE, e[-1][0].name, "collection.json")],
        "not in its list of files",
    ),
    "device": (
        lambda e: [*e[:-1], link(tarfile.CHRTYPE, e[-1][0].name, "")],
        "not in its list of files",
    ),
    "larger than the disk": (
        lambda e: with_list(e, lambda v: v["files"]["collection.json"].__setitem__(0, 2**62)),
        "bytes are needed",
    ),
}


def test_passages_that_are_none_are_refused(whole, tmp_path):
    bad = tmp_path / "bad.tar"
    bad.write_bytes(with_image(whole, ["../x.jpg"]))
    message = r"bad\.tar: passages-.*is damaged: pack the collection again"
    with pytest.raises(UserError, match=message):
        Collection.unpack(bad, tmp_path / "new")
    assert list(tmp_path.iterdir()) == [bad]


def with_image(data, name):
    """The archive with another image of the koala; its list agrees with that."""
    entries = members(data)
    for place, (entry, text) in enumerate(entries):
        if entry.name.endswith("passages.jsonl"):
            lines = [json.loads(line) for line in text.splitlines()]
            lines[0][3] = name
            # As long as before, so that the lines begin where they did.
            short = json.dumps(lines[0], separators=(",", ":"))
            size = len(text.splitlines()[0])
            new = f"{short:{size}}".encode() + text[size:]
            assert len(new) == len(text)
            entries[place] = (entry, new)
            digest = hashlib.sha256(new).hexdigest()
            named = entry.name
    return packed(with_list(entries, lambda v: v["files"][named].__setitem__(1, digest)))


@pytest.mark.parametrize("name", ["/etc/hostname", "../../x.jpg", "images/../../x.jpg"])
def test_images_outside_of_the_index_are_refused(whole, tmp_path, name):
    bad = tmp_path / "bad.tar"
    bad.write_bytes(with_image(whole, name))
    with pytest.raises(UserError, match=rf"bad\.tar: passages-000001/.*{name}.*is outside of"):
        Collection.unpack(bad, tmp_path / "new")
    assert list(tmp_path.iterdir()) == [bad]
    # The same, unpacked by other means.
    with tarfile.open(bad) as archive:
        archive.extractall(tmp_path / "other", filter="data")
    with pytest.raises(UserError, match=rf"{name}.*of 'koala' is outside of the collection"):
        Collection.open(tmp_path / "other")
    folder = CollectionFolder(tmp_path / "other")
    opened = Collection(folder, folder.manifest().settings, "other")
    for use in (
        lambda: opened["koala"],
        lambda: opened.pack(tmp_path / "x.tar"),
        opened.compact,
    ):
        with pytest.raises(UserError, match="outside of the collection"):
            use()
    assert not (tmp_path / "x.tar").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_archive_is_refused_and_leaves_nothing(whole, tmp_path, damage):
    change, message = DAMAGES[damage]
    entries = change(members(whole))
    bad = tmp_path / "bad.tar"
    bad.write_bytes(b"no archive" * 100 if entries is None else packed(entries))
    with pytest.raises(UserError, match=message):
        Collection.unpack(bad, tmp_path / "new" / "index")
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p != bad]
    assert left == []
    assert not (tmp_path / "new" / "index").exists()


def test_every_cut_is_noticed(whole, tmp_path):
    bad = tmp_path / "bad.tar"
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + last.size
    for length in range(0, end, max(1, end // 40)):
        bad.write_bytes(whole[:length])
        with pytest.raises(UserError):
            Collection.unpack(bad, tmp_path / "index")
        assert list(tmp_path.iterdir()) == [bad]


collection_files.register()
