"""Damaged collections and packages: one line that names the file, never a traceback."""

import io
import json
import os
import shutil
import tarfile

import collection_files
import numpy as np
import pytest

from ravqa.collections import Collection
from ravqa.collections.folder import CollectionFolder, Manifest, _checksum
from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE, file_digest
from ravqa.core.records import Passage
from ravqa.indexes.segmented import store

PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
QUESTION = "koala leaves"
WRONG = [None, "x", -1, 0, 1.5, True, [], {}, {"a": [None]}, [[1]], "missing"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    collection = Collection.create(folder / "made", collection_files.pipeline(folder))
    texts = ["koala eats leaves", "tower of iron", "river at night"]
    collection.add([Passage(f"p{i}", text) for i, text in enumerate(texts)])
    collection.add([Passage("photo", "a koala", image=PHOTO)])
    collection.pack(folder / "packed.tar")
    return folder


@pytest.fixture
def path(made, tmp_path):
    return shutil.copytree(made / "made", tmp_path / "made")


def said(path):
    """The line with which a collection is refused or read; "" if all of it is found."""
    line = ""
    try:
        collection = Collection.open(path)
        found = [passage.passage_id for _, passage in collection.search(QUESTION)]
        assert found[:1] in ([], ["p0"], ["photo"])
        collection.stats()
        list(collection.corpus.values())
    except UserError as e:
        line = str(e)
    assert "\n" not in line
    assert len(line) < 600
    return line


def rewritten(path, change):
    """Change collection.json and its checksum too, as nothing but malice would."""
    file = path / "collection.json"
    values = json.loads(file.read_text())
    change(values)
    known = {name: values.get(name) for name in ("settings", "encoder", "index", "words")}
    more = {"passages": values["passages"]} if "passages" in values else {}
    values["checksum"] = _checksum(Manifest(**known, **more))
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("value", WRONG)
def test_every_value_of_collection_json_has_its_type(path, value):
    whole = (path / "collection.json").read_text()
    values = json.loads(whole)
    keys = [(key,) for key in values if key != "checksum"]
    keys += [("encoder", key) for key in values["encoder"]]
    keys += [("settings", key) for key in values["settings"]]
    for keyed in keys:

        def change(values, keyed=keyed):
            *parents, last = keyed
            for step in parents:
                values = values[step]
            if value == "missing":
                del values[last]
            else:
                values[last] = value

        rewritten(path, change)
        line = said(path)
        assert str(path) in line or line == ""  # some values may be what they are
        (path / "collection.json").write_text(whole)
    assert said(path) == ""


@pytest.mark.parametrize(
    "data", [b"", b"{", b"null", b"7", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": []}', b"{}"]
)
def test_a_collection_json_that_is_something_else_is_named(path, data):
    (path / "collection.json").write_bytes(data)
    assert f"{path / 'collection.json'} is damaged" in said(path)


@pytest.mark.parametrize("instead", ["pipe", "folder"])
def test_a_collection_json_that_is_no_file_is_no_collection(path, instead):
    (path / "collection.json").unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir}[instead](path / "collection.json")
    assert f"no collection in {path}" in said(path)


def test_no_changed_table_beside_the_texts_is_followed(path):
    good = [(h.passage_id, p.text) for h, p in Collection.open(path).search(QUESTION)]
    for file in [f for f in path.glob("passages-*/*") if f.suffix in {".npy", ".json"}]:
        data = file.read_bytes()
        middle = len(data) // 2
        for bad in (data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], data[:-1], b""):
            file.write_bytes(bad)
            line = said(path)
            assert str(file.relative_to(path)) in line
            assert "build it again" in line
        file.write_bytes(data)
    assert [(h.passage_id, p.text) for h, p in Collection.open(path).search(QUESTION)] == good


@pytest.mark.parametrize("instead", ["nothing", "pipe", "folder"])
def test_a_file_of_passages_that_is_none_is_named_and_not_waited_for(path, instead):
    for file in path.glob("passages-*/*"):
        kept = file.rename(path / "kept")
        {"nothing": lambda file: None, "pipe": os.mkfifo, "folder": os.mkdir}[instead](file)
        assert str(file.relative_to(path)) in said(path)
        if instead == "folder":
            file.rmdir()
        kept.replace(file)
    assert said(path) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'["p0"', b'["q0"'),
        (b'["p0"', b"[5000"),
        (b'"koala eats leaves"', b"[1, 2, 3, 4, 5, 6, 7]"),
        (b'"koala eats leaves",', b'"koala eats leaves"]'),
        (b'["p0"', b"[[[[["),
    ],
)
def test_a_changed_text_is_one_line_that_names_the_passages(path, old, new):
    file = next(path.glob("passages-*/passages.jsonl"))
    data = file.read_bytes()
    assert data.count(old) == 1
    new = new.ljust(len(old))
    file.write_bytes(data.replace(old, new)[: len(data)])
    line = said(path)
    assert "collection verify" in line
    assert Collection.open(path).verify() == [f"{file.relative_to(path)} is missing or was changed"]


@pytest.mark.parametrize("value", WRONG)
def test_what_an_index_says_of_passages_has_its_type(path, value):
    [index] = path.glob("index-*")
    whole = (index / "manifest.json").read_text()
    entry = json.loads(whole)["index"]["attached"]["passages"][0]
    keys = [("passages",), ("passages", 0)]
    keys += [("passages", 0, key) for key in entry]
    keys += [("passages", 0, "files", key) for key in entry["files"]]
    for keyed in keys:
        values = json.loads(whole)
        *parents, last = keyed
        place = values["index"]["attached"]
        for step in parents:
            place = place[step]
        if value == "missing":
            del place[last]
        else:
            place[last] = value
        values["checksum"] = store._checksum(values["index"])
        (index / "manifest.json").write_text(json.dumps(values))
        line = said(path)
        assert str(path) in line or line == ""
        (index / "manifest.json").write_text(whole)
    assert said(path) == ""


# -- packages


def repacked(made, tmp_path, change):
    """A package of the collection's files after `change`, with the right checksums."""
    folder = shutil.copytree(made / "made", tmp_path / "changed")
    for lock in folder.rglob("lock*"):
        lock.unlink()
    change(folder)
    files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    listed = {name: [(folder / name).stat().st_size, file_digest(folder / name)] for name in files}
    return archived(tmp_path, folder, {"format": 1, "files": listed})


def archived(tmp_path, folder, listed):
    target = tmp_path / "changed.tar"
    with tarfile.open(target, "w") as archive:
        text = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
        entry = tarfile.TarInfo("ravqa-collection.json")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            archive.add(file, str(file.relative_to(folder)))
    return target


def refused(package, tmp_path):
    with pytest.raises(UserError) as caught:
        Collection.unpack(package, tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert str(package) in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".new*"))
    return str(caught.value)


def test_a_package_with_right_checksums_of_wrong_content_is_refused_whole(made, tmp_path):
    def lengths(folder):
        [index] = folder.glob("index-*")
        file = min(index.glob("segment-*/lengths.npy"))
        np.save(file, np.load(file) + 1)

    assert "lengths.npy" in refused(repacked(made, tmp_path, lengths), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "collection.json").unlink(),
        lambda folder: (folder / "collection.json").write_text("{}"),
        lambda folder: rewritten(folder, lambda values: values.update(encoder=[])),
        lambda folder: rewritten(folder, lambda values: values.update(index="index-000009")),
        lambda folder: rewritten(folder, lambda values: values.update(words="many")),
        lambda folder: next(folder.glob("index-*/manifest.json")).write_text("[" * 100_000),
        lambda folder: next(folder.glob("index-*/*/vectors.npy")).write_bytes(b""),
        lambda folder: next(folder.glob("passages-*/meta.json")).write_text("7"),
        lambda folder: next(folder.glob("passages-*/offsets.npy")).write_bytes(b"\x93NUMPY"),
    ],
)
def test_a_package_that_is_no_collection_is_refused_whole(made, tmp_path, change):
    refused(repacked(made, tmp_path, change), tmp_path)


@pytest.mark.parametrize(
    "value", [*WRONG, {"collection.json": [1]}, {"collection.json": [True, 1]}]
)
@pytest.mark.parametrize("key", ["format", "files"])
def test_the_list_of_a_package_has_its_types(made, tmp_path, key, value):
    listed = {"format": 1, "files": {}}
    listed[key] = value
    if value == "missing":
        del listed[key]
    refused(archived(tmp_path, made / "made", listed), tmp_path)


@pytest.mark.parametrize("data", [b"", b"7", b"[]", b"[" * 100_000, b"\xff"])
def test_a_list_that_is_something_else_is_refused(made, tmp_path, data):
    assert "is damaged" in refused(archived(tmp_path, made / "made", data), tmp_path)


# -- leftovers, links


def test_what_killed_writers_left_goes_with_the_next_change(path):
    (path / ".collection.json.0123abcd.part").write_text("half")
    (path / ".folder.0123abcd.part").mkdir()
    (path / ".folder.0123abcd.part" / "file").touch()
    [images] = (path / "images").iterdir()
    (images / ".photo.jpg.0123abcd.part").touch()
    (path / "index-000009").mkdir()
    (path / "passages-000009").symlink_to(path / "index-000001")
    os.mkfifo(path / "passages-000008")
    Collection.open(path).delete(["p1"])
    assert not list(path.rglob("*.part"))
    assert not list(path.glob("*-00000[89]"))
    assert Collection.open(path).verify() == []


def test_links_are_found_at_any_depth(path):
    assert said(path) == ""
    [images] = (path / "images").iterdir()
    (images / "other.jpg").symlink_to(PHOTO)
    with pytest.raises(UserError, match="is a link to a place outside"):
        CollectionFolder(path).check_links()
    (images / "other.jpg").unlink()
    (path / "inside").symlink_to(images)
    CollectionFolder(path).check_links()


# -- ids


def test_a_number_is_the_id_of_its_digits(path):
    collection = Collection.open(path)
    collection.add([Passage("1", "bamboo")])
    assert 1 in collection
    assert collection[1].text == "bamboo"
    found = collection.search("bamboo", allowed_ids=[1])
    assert [passage.passage_id for _, passage in found] == ["1"]
    with pytest.raises(UserError, match="no passage '7'"):
        collection.delete([7])
    assert collection.delete([1]).deleted == 1
    assert "1" not in collection


@pytest.mark.parametrize("value", [None, 1.0, True, b"p0", ["p0"]])
def test_what_is_no_id_is_refused_in_one_line(path, value):
    collection = Collection.open(path)
    assert value not in collection
    with pytest.raises(UserError, match="is not an id"):
        collection.delete([value])
    with pytest.raises(UserError, match="is not an id"):
        collection.search("bamboo", allowed_ids=[value])
    with pytest.raises((UserError, DataError)):
        collection.add([Passage(value, "text")])
    assert Collection.open(path).verify() == []
