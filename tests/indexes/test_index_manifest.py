"""The folder of a segmented index, rule by rule: names, counts, checksums, and who may write."""

import hashlib
import json
import re

import numpy as np
import pytest
from index_files import build, manifest, units

from ravqa.core.errors import DamagedError, UserError
from ravqa.indexes.segmented import store
from ravqa.indexes.segmented.index import Segment, State, Stored, write_ids
from ravqa.indexes.segmented.store import Manifest, SegmentEntry, Writer

DIM = 8


def entry(number=1, passages=3, vectors=7, **more):
    return SegmentEntry(f"segment-{number:06}", passages, vectors, **more)


def test_an_index_counts_what_is_not_deleted_and_every_stored_vector():
    segments = (entry(1, 3, 7), entry(2, 5, 9, gone="segment-000002/gone-2.npy", deleted=2))
    made = Manifest("exact", DIM, segments=segments)
    assert (made.passages, made.vectors) == (6, 16)
    empty = Manifest("exact", DIM)
    assert (empty.passages, empty.vectors, empty.generation, empty.numbers) == (0, 0, 0, 0)


def test_what_is_wrong_with_a_file_is_one_line(tmp_path):
    (tmp_path / "segment-000001").mkdir()
    name = "segment-000001/ids.json"
    (tmp_path / name).write_bytes(b"[1, 2]")
    digest = hashlib.blake2b(b"[1, 2]", digest_size=16).hexdigest()
    assert store.file_checksum(tmp_path / name) == digest

    def fault(size=6, checksum=digest, listed=name):
        made = Manifest("exact", DIM, files={listed: (size, checksum)})
        found = store.content_fault(tmp_path, made, name)
        if listed == name:
            assert store.faults(tmp_path, made) == ([] if found is None else [found])
        return found

    assert fault() is None
    assert fault(size=5) == f"{name} has 6 bytes instead of 5"
    assert fault(checksum="0" * 32) == f"{name} was changed: its checksum is wrong"
    assert fault(listed="other") == f"manifest.json does not list {name}"
    made = Manifest("exact", DIM, files={name: (6, "not looked at")})
    store.check_files(tmp_path, made)
    for spoil, message in (
        (lambda file: file.write_bytes(b"[1]"), f"{name} has 3 bytes instead of 6"),
        (lambda file: file.unlink(), f"{name} is missing"),
        (lambda file: file.mkdir(), f"{name} is not a regular file"),
    ):
        spoil(tmp_path / name)
        assert fault() == message
        with pytest.raises(DamagedError) as caught:
            store.check_files(tmp_path, made)
        end = "; delete the folder and build it again"
        assert str(caught.value) == f"the index in {tmp_path} is damaged: {message}{end}"


def test_checksums_are_of_files_longer_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 4)
    (tmp_path / "x").write_bytes(b"123456789")
    expected = hashlib.blake2b(b"123456789", digest_size=16).hexdigest()
    assert store.file_checksum(tmp_path / "x") == expected


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"segments": ["../elsewhere"]}, "../elsewhere"),
        ({"segments": ["segment-1"]}, "segment-1"),
        ({"segments": ["segment-0000011"]}, "segment-0000011"),
        ({"segments": ["other-000001"]}, "other-000001"),
        ({"settings": {"shared": "../shared-000001"}}, "../shared-000001"),
        ({"settings": {"shared": None}}, "None"),
        ({"files": ["../segment-000001/x.npy"]}, "../segment-000001/x.npy"),
        ({"files": ["segment-000001/../x.npy"]}, "segment-000001/../x.npy"),
        ({"files": ["segment-000001/a/x.npy"]}, "segment-000001/a/x.npy"),
        ({"gone": "segment-000001/gone-1.npy"}, "segment-000001/gone-1.npy"),
        ({"files": ["shared-000001/centers.npy"], "settings": {"shared": "shared-000001"}}, None),
        ({"files": ["segment-000001/gone-1.npy"], "gone": "segment-000001/gone-1.npy"}, None),
    ],
)
def test_a_manifest_refers_to_an_indexs_own_files_alone(tmp_path, changes, other):
    segments = [SegmentEntry(name, 1, 1) for name in changes.get("segments", ())]
    if "gone" in changes:
        segments.append(entry(1, gone=changes["gone"]))
    made = Manifest(
        "exact",
        DIM,
        settings=changes.get("settings", {}),
        segments=tuple(segments),
        files=dict.fromkeys(changes.get("files", ()), (1, "0")),
    )
    assert list(store._outside(made)) == ([] if other is None else [other])
    writer = Writer(tmp_path, made)
    writer.commit()
    if other is not None:
        text = json.loads((tmp_path / "manifest.json").read_text())
        text["index"]["files"] = {name: [1, "0"] for name in made.files}
        text["checksum"] = store._checksum(text["index"])
        (tmp_path / "manifest.json").write_text(json.dumps(text))
        with pytest.raises(DamagedError, match=re.escape(f"manifest.json refers to {other!r}")):
            store.read_manifest(tmp_path)
    else:
        assert store.read_manifest(tmp_path).segments == made.segments


def test_a_format_is_the_number_that_this_version_reads():
    store.check_format(5, 5, "this")
    for found in (4, 6):
        message = f"^this has format {found}, but this version reads 5: build it again$"
        with pytest.raises(DamagedError, match=message):
            store.check_format(found, 5, "this")
    for found in ("5", 5.0, True, None):
        with pytest.raises(TypeError, match=f"^format {re.escape(repr(found))}$"):
            store.check_format(found, 5, "this")
    with pytest.raises(TypeError) as caught:
        store.check_format("x" * 99, 5, "this")
    assert str(caught.value) == f"format '{'x' * 39}"


def test_the_manifests_own_checksum_is_compared(tmp_path):
    build(tmp_path, [np.eye(DIM)])
    text = json.loads((tmp_path / "manifest.json").read_text())
    assert text.keys() == {"format", "checksum", "index"}
    assert text["format"] == store.FORMAT == 5
    body = json.dumps(text["index"], sort_keys=True).encode()
    assert text["checksum"] == hashlib.blake2b(body, digest_size=16).hexdigest()
    text["index"]["fingerprint"] = "x"
    (tmp_path / "manifest.json").write_text(json.dumps(text))
    end = "is damaged: manifest.json was changed; delete the folder and build it again"
    with pytest.raises(DamagedError, match=f"^{re.escape(f'the index in {tmp_path} {end}')}$"):
        store.read_manifest(tmp_path)
    with pytest.raises(UserError, match=f"^no index in {tmp_path / 'nowhere'}$"):
        store.read_manifest(tmp_path / "nowhere")


def test_folders_are_numbered_on_and_generations_counted(tmp_path):
    rng = np.random.default_rng(0)
    index = build(tmp_path, [units(rng, 2, DIM)] * 3, kind="compressed", retrain=False)
    state = manifest(tmp_path)
    assert state["settings"]["shared"] == "shared-000001"
    assert [s["name"] for s in state["segments"]] == ["segment-000002"]
    assert (state["generation"], state["numbers"]) == (1, 2)
    index.add(["a"], [units(rng, 2, DIM)])
    index.delete(["a", "p1"])
    state = manifest(tmp_path)
    assert [s["name"] for s in state["segments"]] == ["segment-000002", "segment-000003"]
    assert [s["gone"] for s in state["segments"]] == [
        "segment-000002/gone-3.npy",
        "segment-000003/gone-3.npy",
    ]
    assert [s["deleted"] for s in state["segments"]] == [1, 1]
    assert (state["generation"], state["numbers"]) == (3, 3)
    index.delete(["p0"])
    state = manifest(tmp_path)
    assert [s["gone"] for s in state["segments"]] == [
        "segment-000002/gone-4.npy",
        "segment-000003/gone-3.npy",
    ]
    assert not (tmp_path / "segment-000002" / "gone-3.npy").exists()
    index.compact()
    state = manifest(tmp_path)
    assert [s["name"] for s in state["segments"]] == ["segment-000004"]
    assert state["settings"]["shared"] == "shared-000001"
    assert (state["generation"], state["numbers"]) == (5, 4)
    assert type(index).generation(tmp_path) == 5
    # A change of nothing is no new state, one of what is attached is.
    index.change()
    index.delete([])
    assert type(index).generation(tmp_path) == 5
    index.change(attached={"a": 1})
    assert (index.attached, type(index).generation(tmp_path)) == ({"a": 1}, 6)
    index.add(["x"], [units(rng, 1, DIM)])
    assert index.attached == {"a": 1}


def test_the_content_changes_with_what_a_search_depends_on(tmp_path):
    rng = np.random.default_rng(0)
    given = [units(rng, 2, DIM), units(rng, 3, DIM)]
    index = build(tmp_path / "a", given, fingerprint="f")
    same = build(tmp_path / "b", given, fingerprint="other")
    assert index.content == same.content
    assert index.files == list(manifest(tmp_path / "a")["files"])
    index.change(attached={"a": 1})
    assert index.content == same.content
    others = [
        build(tmp_path / "c", given[::-1]),
        build(tmp_path / "d", given, storage="float32"),
        build(tmp_path / "e", given, kind="compressed"),
    ]
    index.delete(["p1"])
    assert len({same.content, index.content, *(other.content for other in others)}) == 5


def test_the_same_number_of_another_state_is_read_again(tmp_path):
    index = build(tmp_path, [np.eye(DIM)] * 2)
    newer = index._state
    index.delete(["p0"])
    index._state, older = newer, index._state
    index.refresh()
    assert index.ids == ["p1"]
    assert index._state.manifest == older.manifest
    # A state that was read before another thread's change does not replace it.
    later = store.replace(older.manifest, generation=99)
    index._state = State(later, older.segments, older.shared)
    index.refresh()
    assert index._state.manifest.generation == 99


def test_rows_are_found_in_their_segments():
    def segment(first, lengths):
        arrays = {"lengths": np.array(lengths)}
        ids = [f"{first + i}" for i in range(len(lengths))]
        return Segment(entry(), first, ids, arrays, np.array([n != 2 for n in lengths]))

    state = State(Manifest("exact", DIM), (segment(0, [3, 0, 2]), segment(3, [1, 5])), None)
    assert state.ids == ["0", "1", "2", "3", "4"]
    assert state.alive.tolist() == [True, True, False, True, True]
    assert state.matchable.tolist() == [True, False, True, True, True]
    assert state.rows == {"0": 0, "1": 1, "3": 3, "4": 4}
    found = [
        (s.first, places.tolist(), local.tolist())
        for s, places, local in state.by_segment(np.array([4, 0, 3, 2]))
    ]
    assert found == [(0, [1, 3], [0, 2]), (3, [0, 2], [1, 0])]
    assert [s.first for s, _, _ in state.by_segment(np.array([3]))] == [3]
    assert state.segments[0].offsets.tolist() == [0, 3, 3, 5]
    assert state.segments[0].by_length.tolist() == [1, 2, 0]
    nothing = State(Manifest("exact", DIM), (), None)
    assert nothing.alive.dtype == nothing.matchable.dtype == bool
    assert (len(nothing.alive), nothing.ids, nothing.rows) == (0, [], {})


def test_ids_are_written_as_json(tmp_path):
    write_ids(tmp_path, ("ä", "b"), np.array([1, 2]))
    assert json.loads((tmp_path / "ids.json").read_text(encoding="utf-8")) == ["ä", "b"]
    assert np.load(tmp_path / "lengths.npy").tolist() == [1, 2]
    assert Stored(np.int8, "vectors") == (np.int8, "vectors", None, False, "r")
