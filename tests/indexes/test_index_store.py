"""An index's folder: damage is found, one writes and many read, and each reader sees one state."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from index_files import (
    assert_ranking,
    build,
    files,
    kind_of,
    manifest,
    names,
    owned,
    ranking,
    stored,
    units,
)

from ravqa.core.errors import UserError

SMALL = [("exact", "float16"), ("exact", "int8"), ("compressed", "9bit"), ("compressed", "float16")]
every_layout = pytest.mark.parametrize(("kind", "storage"), SMALL)
both_kinds = pytest.mark.parametrize(("kind", "storage"), SMALL[::2])

DIM = 8


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def passages(rng, count):
    return [units(rng, n, DIM) for n in rng.integers(0, 6, size=count)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def lively(path, rng, kind, storage):
    """An index with two segments and deletions in the first one."""
    index = build(path, passages(rng, 20), kind=kind, storage=storage, fingerprint="corpus")
    index.add(["a", "b", "c"], [units(rng, 3, DIM) for _ in range(3)])
    index.delete(["p3", "p7"])
    return index


def flip(file, place, mask=0x10):
    content = bytearray(file.read_bytes())
    content[place] ^= mask
    file.write_bytes(content)


def one_line(caught, path):
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- what is on disk


@every_layout
def test_files_are_json_and_plain_arrays_with_sizes_and_checksums(tmp_path, rng, kind, storage):
    path = tmp_path / "index"
    lively(path, rng, kind, storage)
    assert files(path) == owned(path)
    for name, (size, digest) in manifest(path)["files"].items():
        content = (path / name).read_bytes()
        assert len(content) == size
        assert hashlib.blake2b(content, digest_size=16).hexdigest() == digest
        if name.endswith(".npy"):
            assert np.load(path / name, allow_pickle=False).dtype.kind in "fiu"
        else:
            json.loads(content)


@every_layout
def test_opening_maps_the_vectors_and_does_not_read_them(tmp_path, rng, kind, storage):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the mapped files are only known on Linux")
    build(tmp_path / "index", passages(rng, 20), kind=kind, storage=storage)
    index = kind_of(kind)(tmp_path / "index")
    assert len(index) == 20
    mapped = {
        Path(line.split(maxsplit=5)[5].strip()).name
        for line in maps.read_text(encoding="utf-8").splitlines()
        if str(tmp_path / "index") in line
    }
    if kind == "exact":
        large = {"vectors.npy", *(["scales.npy"] if storage == "int8" else [])}
    else:
        large = {"residuals.npy", "scales.npy", "centroids.npy"}
    assert large <= mapped


def test_numbers_about_an_index(tmp_path, rng):
    path = tmp_path / "index"
    arrays = [units(rng, 3, DIM) for _ in range(10)]
    index = build(path, arrays, storage="int8", fingerprint="corpus")
    index.delete(["p1"])
    index.add(["x"], [units(rng, 5, DIM)])
    stats = index.stats()
    assert stats.pop("bytes") == sum(
        (path / name).stat().st_size for name in files(path) - {"manifest.json"}
    )
    assert stats == {
        "kind": "exact",
        "dim": DIM,
        "passages": 10,
        "deleted": 1,
        "vectors": 35,
        "segments": 2,
        "generation": 3,
        "fingerprint": "corpus",
        "storage": "int8",
    }


# --- damage


def test_a_folder_without_an_index_is_named(tmp_path):
    (tmp_path / "file").write_text("something", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty", "file"):
        for kind in ("exact", "compressed", "auto"):
            assert not kind_of(kind).built(tmp_path / name)
            with pytest.raises(UserError, match="no index in") as caught:
                kind_of(kind).open(tmp_path / name)
            one_line(caught, tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


DAMAGES = {
    "cut by a byte": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "cut in half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "emptied": lambda p: p.write_bytes(b""),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "deleted": lambda p: p.unlink(),
    "overwritten": lambda p: p.write_bytes(b"\x80not what was here\xff" * 5),
}


@pytest.mark.parametrize("damage", DAMAGES)
@both_kinds
def test_damage_to_any_file_is_refused_in_one_line_and_found(tmp_path, rng, kind, storage, damage):
    path = tmp_path / "index"
    reader = lively(path, rng, kind, storage)
    assert reader.verify() == []
    for name in sorted(owned(path)):
        before = (path / name).read_bytes()
        DAMAGES[damage](path / name)
        with pytest.raises(UserError) as caught:
            kind_of(kind)(path)
        message = one_line(caught, path)
        if name == "manifest.json":
            assert "no index" in message if damage == "deleted" else "damaged" in message
            with pytest.raises(UserError):
                reader.verify()
        else:
            assert "damaged" in message
            assert name in message
            [line] = reader.verify()
            assert name in line
        with pytest.raises(UserError):  # nothing is written over it
            reader.add(["z"], [np.eye(DIM)])
        (path / name).write_bytes(before)
        assert kind_of(kind)(path).verify() == []


@every_layout
def test_verify_finds_a_flipped_bit_in_any_file(tmp_path, rng, kind, storage):
    path = tmp_path / "index"
    index = lively(path, rng, kind, storage)
    for name in sorted(owned(path)):
        size = (path / name).stat().st_size
        for place in {0, size - 1, *(int(i) for i in rng.integers(0, size, size=5))}:
            mask = 1 << int(rng.integers(8))
            flip(path / name, place, mask)
            if name == "manifest.json":
                with pytest.raises(UserError) as caught:
                    index.verify()
                one_line(caught, path)
            else:
                [line] = index.verify()
                assert name in line
            flip(path / name, place, mask)
            assert index.verify() == []


@both_kinds
def test_a_flipped_bit_never_makes_opening_fail_otherwise_than_in_one_line(
    tmp_path, rng, kind, storage
):
    path = tmp_path / "index"
    lively(path, rng, kind, storage)
    messages = []
    for name in sorted(owned(path)):
        size = (path / name).stat().st_size
        for place in rng.integers(0, min(size, 200), size=10):
            mask = 1 << int(rng.integers(8))
            flip(path / name, place, mask)
            try:
                kind_of(kind)(path)
            except UserError as e:
                messages.append(str(e))
            flip(path / name, place, mask)
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)
    assert kind_of(kind)(path).verify() == []


def rewritten(path, **changes):
    """The manifest with other values, and a checksum that fits them."""
    whole = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    body = whole["index"] | changes
    digest = hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16)
    text = json.dumps(whole | {"index": body, "checksum": digest.hexdigest()})
    (path / "manifest.json").write_text(text, encoding="utf-8")


@both_kinds
def test_an_index_of_another_format_kind_or_origin_is_refused(tmp_path, rng, kind, storage):
    path = tmp_path / "index"
    lively(path, rng, kind, storage)
    index, other = kind_of(kind), kind_of({"exact": "compressed"}.get(kind, "exact"))
    assert index(path, fingerprint="corpus").fingerprint == "corpus"
    assert index.open(path).fingerprint == "corpus"
    with pytest.raises(UserError, match="another corpus or with another encoder") as caught:
        index(path, fingerprint="another")
    one_line(caught, path)
    with pytest.raises(UserError, match=f"of kind '{kind}', not '{other.kind}'") as caught:
        other(path)
    one_line(caught, path)
    text = (path / "manifest.json").read_text(encoding="utf-8")
    whole = json.loads(text)
    (path / "manifest.json").write_text(json.dumps(whole | {"format": 99}), encoding="utf-8")
    for opening in (index, other, kind_of("auto").open):
        with pytest.raises(UserError, match=r"format 99.*build it again") as caught:
            opening(path)
        one_line(caught, path)
    (path / "manifest.json").write_text(text, encoding="utf-8")
    rewritten(path, kind="elsewhere")
    for opening in (index, other, kind_of("auto").open):
        with pytest.raises(UserError, match="kind 'elsewhere'") as caught:
            opening(path)
        one_line(caught, path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"text"', "{}", '{"format": 5}', '{"format": 5, "index": 5}'],
)
def test_a_manifest_that_is_none_is_damage(tmp_path, rng, text):
    path = tmp_path / "index"
    lively(path, rng, "exact", "float16")
    (path / "manifest.json").write_text(text, encoding="utf-8")
    for opening in (kind_of("exact"), kind_of("auto").open):
        with pytest.raises(UserError, match="damaged") as caught:
            opening(path)
        one_line(caught, path)


def test_a_manifest_without_one_of_its_values_or_with_others_is_damage(tmp_path, rng):
    path = tmp_path / "index"
    lively(path, rng, "exact", "float16")
    whole = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    spoilt = [{k: v for k, v in whole.items() if k != key} for key in whole]
    spoilt += [whole | {"index": whole["index"] | {"dim": 9}}]
    for key in whole["index"]:
        body = {k: v for k, v in whole["index"].items() if k != key}
        spoilt.append(whole | {"index": body})
    for values in spoilt:
        (path / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(UserError, match="damaged") as caught:
            kind_of("exact")(path)
        one_line(caught, path)


# --- errors while writing


CHANGES = {
    "add": lambda index, rng: index.add(["x", "y"], [units(rng, 3, DIM) for _ in range(2)]),
    "delete": lambda index, rng: index.delete(["p1", "a"]),
    "update": lambda index, rng: index.update(["p2", "x"], [units(rng, 4, DIM) for _ in range(2)]),
    "compact": lambda index, rng: index.compact(),
}


class NoSpaceError(OSError):
    """The disk is full."""


def content(path):
    return {i: array.tobytes() for i, array in stored(path).items()}


@pytest.mark.parametrize(
    ("kind", "storage", "change"),
    [
        *[("exact", "float16", change) for change in CHANGES],
        ("compressed", "9bit", "compact"),
    ],
)
def test_an_error_at_any_step_leaves_the_old_state_or_the_new_one(
    tmp_path, rng, monkeypatch, kind, storage, change
):
    whole = tmp_path / "whole"
    lively(whole, rng, kind, storage)
    old = content(whole)
    done = tmp_path / "done"
    shutil.copytree(whole, done)
    CHANGES[change](kind_of(kind)(done), np.random.default_rng(5))
    new = content(done)
    calls = 0

    def failing(function):
        def called(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise NoSpaceError
            return function(*args, **kwargs)

        return called

    step, outcomes = 0, set()
    while True:
        path = tmp_path / str(step)
        shutil.copytree(whole, path)
        index, calls = kind_of(kind)(path), 0
        with contextlib.suppress(NoSpaceError), monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(lambda _: None))
            patch.setattr(os, "rename", failing(os.rename))
            patch.setattr(os, "mkdir", failing(os.mkdir))
            CHANGES[change](index, np.random.default_rng(5))
        if calls <= step:
            break
        state = content(path)
        assert state in (old, new), step
        outcomes.add(state == new)
        assert files(path) == owned(path), step
        again = kind_of(kind)(path)
        assert again.verify() == []
        again.add(["next"], [np.eye(DIM)])
        assert set(stored(path)) == {*state, "next"}
        step += 1
    assert step > 3
    assert content(tmp_path / str(step)) == new
    if change != "compact":
        assert outcomes == {False, True}  # the last step comes after the rename


def test_what_others_put_into_the_folder_stays(tmp_path, rng):
    path = tmp_path / "index"
    (path / "notes").mkdir(parents=True)
    (path / "notes" / "mine.txt").write_text("mine", encoding="utf-8")
    (path / "README").write_text("mine", encoding="utf-8")
    index = lively(path, rng, "exact", "float16")
    index.compact()
    assert files(path) - owned(path) == {"README", "notes/mine.txt"}


@both_kinds
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, rng, kind, storage):
    path = tmp_path / "index"
    index = lively(path, rng, kind, storage)
    first = manifest(path)["segments"][0]["name"]
    (path / "segment-000077").mkdir()
    (path / "segment-000077" / "ids.json").write_text("[]", encoding="utf-8")
    (path / "shared-000078").mkdir()
    (path / first / "gone-9.npy").write_bytes(b"half")
    (path / "spool.new").write_bytes(b"vectors")
    (path / "manifest.json.new").write_text("{", encoding="utf-8")
    assert index.verify() == []
    before = index.ids
    kind_of(kind)(path)
    assert files(path) != owned(path)  # a reader removes nothing
    index.delete(["a"])
    assert files(path) == owned(path)
    assert {p.name for p in path.iterdir() if p.is_dir()} == {
        n.split("/")[0] for n in owned(path)
    } - {"manifest.json"}
    assert index.ids == [i for i in before if i != "a"]


# --- one writer, many readers


@both_kinds
def test_a_second_writer_is_told_so(tmp_path, rng, kind, storage):
    path = tmp_path / "index"
    index = lively(path, rng, kind, storage)
    other = kind_of(kind)(path)
    before = other.ids

    def meanwhile():
        for change in [*CHANGES.values()]:
            for writer in (other, index):
                with pytest.raises(
                    UserError, match=f"process {os.getpid()} since .*: wait until it ends"
                ) as caught:
                    change(writer, rng)
                one_line(caught, path)
        with pytest.raises(UserError, match="wait until it ends"):
            build(path, [np.eye(DIM)], kind=kind, storage=storage)
        assert other.search([np.eye(DIM)], 3) == index.search([np.eye(DIM)], 3)
        yield np.eye(DIM)

    index.add(["new"], meanwhile())
    assert index.ids == [*before, "new"]
    other.delete(["new"])  # the lock is free again
    assert other.ids == before


def test_a_build_in_progress_refuses_another(tmp_path):
    path = tmp_path / "index"

    def meanwhile():
        with pytest.raises(UserError, match="wait until it ends"):
            build(path, [np.eye(DIM)])
        yield np.eye(DIM)

    assert len(build(path, meanwhile(), ids=["a"], dim=DIM)) == 1
    assert files(path) == owned(path)


WRITER = """
import sys
import numpy as np
from pathlib import Path
from ravqa.indexes.exact import ExactIndex

def slowly():
    print("writing", flush=True)
    sys.stdin.readline()
    yield np.eye(8)

index = ExactIndex(Path(sys.argv[1]))
index.add(["theirs"], slowly())
index.delete(["p1"])
print("done", flush=True)
sys.stdin.readline()
index.compact()
"""


def test_another_process_writes_and_a_reader_sees_it_after_refresh(tmp_path, rng):
    path = tmp_path / "index"
    index = build(path, [np.eye(DIM)] * 3)
    before = index.search([np.eye(DIM)], 9)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(
            UserError, match=f"process {process.pid} since .*: wait until it ends"
        ) as caught:
            index.add(["ours"], [np.eye(DIM)])
        one_line(caught, path)
        index.refresh()
        assert index.search([np.eye(DIM)], 9) == before
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        assert index.search([np.eye(DIM)], 9) == before
        assert index.ids == names(3)
        late = kind_of("exact")(path)
        assert late.ids == ["p0", "p2", "theirs"]
        index.refresh()
        assert index.ids == ["p0", "p2", "theirs"]
        expected = index.search([np.eye(DIM)], 9)
        assert [i for i, _ in expected[0]] == ["p0", "p2", "theirs"]
        process.communicate("\n")
    assert process.returncode == 0
    assert len(manifest(path)["segments"]) == 1
    # the files that these readers had opened are gone from the folder, not from them
    assert index.search([np.eye(DIM)], 9) == late.search([np.eye(DIM)], 9) == expected
    index.add(["ours"], [np.eye(DIM)])
    assert index.ids == ["p0", "p2", "theirs", "ours"]


@both_kinds
def test_a_handle_sees_its_own_changes_and_others_after_refresh(tmp_path, rng, kind, storage):
    path = tmp_path / "index"
    writer = build(path, passages(rng, 20), kind=kind, storage=storage)
    reader = kind_of(kind)(path)
    query = units(rng, 6, DIM)
    for change in CHANGES.values():
        if change is CHANGES["delete"]:
            writer.update(["a"], [units(rng, 2, DIM)])
            reader.refresh()
        before = (
            reader.search([query], 40),
            reader.ids,
            len(reader),
            reader.score([query], [["p0"]]),
        )
        change(writer, rng)
        after = reader.search([query], 40), reader.ids, len(reader), reader.score([query], [["p0"]])
        assert after == before
        reader.refresh()
        assert reader.search([query], 40) == writer.search([query], 40)
        assert reader.ids == writer.ids
        assert len(reader) == len(writer) == len(stored(path))
        assert_ranking(reader.search([query], 40)[0], ranking(query, stored(path)), 40, 1e-4)
    # a handle that has not looked for long writes on what there is
    writer.delete(["p5"])
    reader.add(["q"], [units(rng, 2, DIM)])
    assert "p5" not in reader
    assert reader.ids == [*writer.ids, "q"]
    with pytest.raises(ValueError, match="'q' is already in the index"):
        writer.add(["q"], [units(rng, 2, DIM)])


@both_kinds
def test_opening_succeeds_at_any_moment_of_anothers_changes(tmp_path, rng, kind, storage):
    path = tmp_path / "index"
    writer = lively(path, rng, kind, storage)
    stop, opened = threading.Event(), []

    def reading():
        while not stop.is_set():
            opened.append(kind_of(kind)(path).ids)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(reading) for _ in range(2)]
        states = [writer.ids]
        try:
            for i in range(3):
                writer.update([f"new{i}", "p1"], [units(rng, 2, DIM) for _ in range(2)])
                states.append(writer.ids)
                writer.compact()
        finally:
            stop.set()
        for reader in readers:
            reader.result()
    assert opened
    assert all(ids in states for ids in opened)


# --- threads


@both_kinds
def test_eight_threads_search_as_one_does(tmp_path, rng, kind, storage):
    index = build(
        tmp_path / "index",
        [units(rng, n, 32) for n in rng.integers(0, 12, size=200)],
        kind=kind,
        storage=storage,
    )
    queries = [units(rng, n, 32) for n in rng.integers(1, 60, size=24)]
    allowed = [None if i % 3 else names(200)[i::7] for i in range(24)]
    fresh = kind_of(kind)(tmp_path / "index")
    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda q, a: fresh.search([q], 9, allowed_ids=a), queries, allowed)
        )
    alone = [index.search([q], 9, allowed_ids=a) for q, a in zip(queries, allowed, strict=True)]
    assert together == alone


@both_kinds
def test_searches_beside_a_writer_see_states_and_no_mixture(tmp_path, rng, kind, storage):
    # With 10 short passages to begin with, the compressed kind chooses new centroids on the way.
    index = build(tmp_path / "index", [units(rng, 1, DIM)] * 10, kind=kind, storage=storage)
    query = units(rng, 5, DIM)
    stop = threading.Event()

    def reading():
        seen = []
        while not stop.is_set():
            seen += index.search([query], 500)
            stop.wait(0.001)
        return seen

    kept = [stored(index.path)]
    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(reading) for _ in range(3)]
        try:
            for i in range(2):
                index.add(names(200)[20 + 20 * i : 40 + 20 * i], [units(rng, 3, DIM)] * 20)
                kept.append(stored(index.path))
                index.delete([f"p{j}" for j in (i, 20 + 20 * i, 21 + 20 * i)])
                kept.append(stored(index.path))
                index.update(["p9", "p19", f"p{25 + i}"], [units(rng, 3, DIM)] * 3)
                kept.append(stored(index.path))
            index.compact()
        finally:
            stop.set()
    states = [dict(ranking(query, state)) for state in kept]
    if kind == "compressed":
        assert manifest(index.path)["settings"]["shared"] != "shared-000001"
    total = 0
    for reader in readers:
        at = 0  # nobody sees an older state after a newer one
        for hits in reader.result():
            # Compaction rounds anew, which moves scores less than any other vectors would.
            at += next(
                i
                for i, state in enumerate(states[at:])
                if state.keys() == dict(hits).keys()
                and all(abs(state[j] - score) < 0.02 for j, score in hits)
            )
            total += 1
    assert total > 20
    assert_ranking(index.search([query], 500)[0], ranking(query, stored(index.path)), 500, 1e-4)
    assert index.verify() == []


@both_kinds
def test_a_search_is_not_moved_by_others_between_any_two_of_its_lines(tmp_path, rng, kind, storage):
    arrays = [units(rng, 3, DIM) for _ in range(60)]
    index = build(tmp_path / "index", arrays, kind=kind, storage=storage)
    [query, other] = [units(rng, 5, DIM) for _ in range(2)]
    few = {"candidates": 8} if kind == "compressed" else {}
    before = index.search([query], 4, **few)
    between = 0

    def meanwhile(frame, event, _):
        nonlocal between
        if "ravqa/index" not in frame.f_code.co_filename:
            return None
        if frame.f_code.co_name == "off":  # holds a lock, which another search would wait for
            return None
        if event == "line":
            between += 1
            index.search([other], 3)
        return meanwhile

    def queries():
        # The search has taken its state; then the index grows, and the compressed kind chooses
        # new centroids.
        index.add([f"new{i}" for i in range(300)], [units(rng, 3, DIM) for _ in range(300)])
        sys.settrace(meanwhile)
        yield query

    old = sys.gettrace()
    try:
        found = index.search(queries(), 4, **few)
    finally:
        sys.settrace(old)
    assert between > 20
    assert len(index) == 360
    if kind == "compressed":
        assert manifest(index.path)["settings"]["shared"] != "shared-000001"
    assert found == before
