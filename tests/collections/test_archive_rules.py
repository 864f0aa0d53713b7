"""Packed collections: order and bytes, progress, and each reason to refuse one, as a whole."""

import hashlib
import io
import json
import shutil
import tarfile

import collection_files
import pytest
from messages import said

from ravqa.collections import Collection, archive
from ravqa.core.errors import UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage

PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    collection = Collection.create(folder / "made", collection_files.pipeline(folder))
    collection.add([Passage("koala", "koalas eat", image=PHOTO), Passage("iron", "a tower")])
    collection.pack(folder / "made.tar")
    return folder


@pytest.fixture
def collection(made, tmp_path):
    shutil.copytree(made / "made", tmp_path / "made")
    return Collection.open(tmp_path / "made")


def members(path):
    with tarfile.open(path) as packed:
        return [(member, packed.extractfile(member).read()) for member in packed]


def repacked(path, entries):
    with tarfile.open(path, "w") as out:
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))
    return path


def refused(path, tmp_path):
    message = said(UserError, Collection.unpack, path, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    return message


def test_a_package_is_its_list_and_its_files_in_order(collection, tmp_path):
    seen = []
    target = tmp_path / "x.tar"
    size = collection.pack(str(target), progress=lambda *step: seen.append(step))
    assert size == target.stat().st_size
    (first, text), *others = members(target)
    assert first.name == "ravqa-collection.json"
    listed = json.loads(text)
    assert text.decode() == json.dumps(listed, indent=1)
    assert list(listed) == ["format", "files"]
    assert listed["format"] == 1
    names = [member.name for member, _ in others]
    assert names == sorted(names) == list(listed["files"])
    on_disk = {
        p.relative_to(collection.path).as_posix() for p in collection.path.rglob("*") if p.is_file()
    }
    assert set(names) == {name for name in on_disk if not name.endswith("lock")}
    for member, data in [(first, text), *others]:
        assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
        assert (member.uname, member.gname, member.mode) == ("", "", 0o644)
        if member is not first:
            assert data == (collection.path / member.name).read_bytes()
            assert listed["files"][member.name] == [len(data), hashlib.sha256(data).hexdigest()]
    total = len(names)
    assert seen == [("reading files", n, total) for n in range(1, total + 1)] + [
        ("packing files", n, total) for n in range(1, total + 1)
    ]
    del seen[:]
    unpacked = Collection.unpack(
        str(target), str(tmp_path / "a" / "b"), progress=lambda *step: seen.append(step)
    )
    assert seen == [("unpacking files", n, total) for n in range(1, total + 1)]
    assert dict(unpacked.corpus).keys() == {"koala", "iron"}
    assert unpacked.verify() == []


def test_what_was_deleted_is_not_packed(collection, tmp_path):
    collection.delete(["koala"])
    collection.pack(tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    assert b"koala" not in data
    assert PHOTO.read_bytes()[:1000] not in data
    assert list(Collection.unpack(tmp_path / "x.tar", tmp_path / "new")) == ["iron"]


def test_where_a_package_cannot_be_written(collection, tmp_path):
    (tmp_path / "x.tar").touch()
    expected = f"{tmp_path}/x.tar already exists: choose another file"
    assert said(UserError, collection.pack, tmp_path / "x.tar") == expected
    expected = f"{tmp_path}/gone/x.tar: no such folder: {tmp_path}/gone"
    assert said(UserError, collection.pack, tmp_path / "gone" / "x.tar") == expected


def test_a_name_that_is_no_file_of_a_collection_is_not_packed(collection, tmp_path, monkeypatch):
    files = archive._files
    monkeypatch.setattr(archive, "_files", lambda *a: [*files(*a), "../secret.txt"])
    expected = f"the index in {collection.path} is damaged: it refers to file '../secret.txt'"
    assert said(UserError, collection.pack, tmp_path / "x.tar") == expected
    assert not (tmp_path / "x.tar").exists()


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("collection.json", True),
        ("library.json", True),
        ("passages-000001/passages.jsonl", True),
        ("passages-000001/hashes.npy", True),
        ("passages-1/hashes.npy", False),
        ("passages-000001/../x.npy", False),
        ("index-000001/manifest.json", True),
        ("index-000001/segment-000001/vectors.npy", True),
        ("index-000001/segment-000001/x/vectors.npy", False),
        (f"images/ab/{'0' * 64}.jpg", True),
        (f"images/ab/{'0' * 64}", True),
        (f"images/ab/{'0' * 63}", False),
        (f"images/ab/{'0' * 64}.jpegs", False),
        ("lock", False),
        ("/collection.json", False),
    ],
)
def test_names_of_the_files_of_a_collection(name, good):
    assert bool(archive._NAME.fullmatch(name)) is good


# What is refused


def test_what_is_no_package(made, tmp_path):
    gone = tmp_path / "gone.tar"
    assert refused(gone, tmp_path) == f"no such file: {gone}"
    text = tmp_path / "text.tar"
    text.write_bytes(b"text" * 300)
    start = f"{text} is not a packed collection, or is cut off ("
    assert refused(text, tmp_path).startswith(start)
    entries = [(member.name, data) for member, data in members(made / "made.tar")]
    for wrong in (entries[1:], [], [("other.json", entries[0][1]), *entries[1:]]):
        path = repacked(tmp_path / "x.tar", wrong)
        expected = f"{path} is not a packed collection: ravqa-collection.json must come first"
        assert refused(path, tmp_path) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {**v, "format": 2}, "PATH has format 2, but this version reads 1"),
        (lambda v: {"files": v["files"]}, "PATH: ravqa-collection.json is damaged ('format')"),
        (lambda v: {"format": 1}, "PATH: ravqa-collection.json is damaged ('files')"),
        (
            lambda v: {**v, "files": {**v["files"], "lock": [0, ""]}},
            "PATH: unexpected file 'lock' in a packed collection",
        ),
        (
            lambda v: {**v, "files": {"collection.json": [-1, ""]}},
            "PATH: unexpected file 'collection.json' in a packed collection",
        ),
        (
            lambda v: {
                **v,
                "files": {k: w for k, w in v["files"].items() if k != "collection.json"},
            },
            "PATH contains 'collection.json', which is not in its list of files",
        ),
        (
            lambda v: {**v, "files": {**v["files"], "library.json": [1, ""]}},
            "PATH is cut off: library.json is missing",
        ),
        (
            lambda v: {**v, "files": {**v["files"], "collection.json": [1, ""]}},
            "PATH is damaged: collection.json does not match its list of files",
        ),
        (
            lambda v: {
                **v,
                "files": {
                    **v["files"],
                    "collection.json": [v["files"]["collection.json"][0], "0" * 64],
                },
            },
            "PATH is damaged: collection.json does not match its list of files",
        ),
        (
            lambda v: {
                **v,
                "files": {
                    **v["files"],
                    "collection.json": [
                        v["files"]["collection.json"][0] + 1,
                        v["files"]["collection.json"][1],
                    ],
                },
            },
            "PATH is damaged: collection.json does not match its list of files",
        ),
    ],
)
def test_a_list_that_does_not_fit(made, tmp_path, change, message):
    (first, text), *others = members(made / "made.tar")
    text = json.dumps(change(json.loads(text))).encode()
    entries = [(first.name, text), *((member.name, data) for member, data in others)]
    path = repacked(tmp_path / "x.tar", entries)
    assert refused(path, tmp_path) == message.replace("PATH", str(path))


def test_a_package_that_is_larger_than_the_disk(made, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    needed = sum(len(data) for _, data in members(made / "made.tar")[1:])
    for free, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        path = made / "made.tar"
        if fits:
            assert len(Collection.unpack(path, tmp_path / "new")) == 2
        else:
            expected = f"{path}: {needed:,} bytes are needed, {free:,} are free"
            assert refused(path, tmp_path) == expected


def test_a_folder_that_is_there_is_not_unpacked_into(made, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "x").touch()
    message = said(UserError, Collection.unpack, made / "made.tar", tmp_path / "new")
    expected = f"{tmp_path}/new already exists and is not empty: choose a new folder"
    assert message == expected
