"""Damaged index folders: one line that names the file, never another result or a traceback."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from index_files import KINDS, build, kind_of, units

from ravqa.core.errors import DamagedError, UserError
from ravqa.indexes import INDEXES

DIM = 16
QUICK = [("exact", "int8"), ("compressed", "9bit")]  # the others are damaged in the slow tests
BULK = {"vectors", "residuals", "scales", "fine", "means", "mean_scales"}
BULK = {f"{name}.npy" for name in BULK}  # only `verify` rereads these


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow, id="-".join(kind))
        for kind in KINDS
    ],
)
def folders(request, tmp_path_factory):
    """Two indexes of one shape and other vectors, each with a deletion and a second segment."""
    kind, storage = request.param
    made = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        path = tmp_path_factory.mktemp("damage") / kind
        passages = [units(rng, i % 5, DIM) for i in range(20)]
        index = build(path, passages, kind=kind, storage=storage)
        index.delete([f"p{3 + seed}"])
        index.add([f"x{seed}", "y"], [units(rng, 2, DIM)] * 2)
        made.append(path)
    return kind_of(kind), *made


@pytest.fixture
def copied(folders, tmp_path):
    kind, path, other = folders
    return kind, shutil.copytree(path, tmp_path / "index"), other


def files_of(path):
    return [file for file in path.rglob("*") if file.is_file() and file.name != "lock"]


def line(kind, path):
    with pytest.raises(DamagedError) as caught:
        kind.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def damages(data, other):
    rng = np.random.default_rng(3)
    for place in {0, 7, 9, 11, *rng.integers(0, len(data), 6).tolist()} & set(range(len(data))):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        yield bytes(changed)
    yield from (b"", data[: len(data) // 2], data[:-1], data + b"x", bytes(len(data)))
    if other is not None and other != data:
        yield other


def test_a_small_file_that_was_changed_is_named_and_a_bulky_one_is_cut_off_or_named(copied):
    kind, path, other = copied
    queries = [units(np.random.default_rng(9), 4, DIM)]
    for file in files_of(path):
        data = file.read_bytes()
        name = file.relative_to(path)
        swapped = other / name
        for bad in damages(data, swapped.read_bytes() if swapped.is_file() else None):
            if name.name == "manifest.json" and bad == swapped.read_bytes():
                continue  # that is the other index's state, whose files then do not fit
            file.write_bytes(bad)
            if file.name not in BULK or len(bad) != len(data):
                assert str(name) in line(kind, path)
            else:
                assert str(name) in " ".join(faults(kind, path, queries))
        file.write_bytes(data)
    assert kind.open(path).verify() == []


def faults(kind, path, queries):
    """What opening refuses, or else what `verify` finds; a search ends in both cases."""
    try:
        index = kind.open(path)
    except DamagedError as e:
        return [str(e)]
    index.search(queries, 5)
    return index.verify()


@pytest.mark.parametrize("instead", ["nothing", "folder", "pipe", "dangling link"])
def test_only_regular_files_are_read(copied, instead):
    kind, path, _ = copied
    for file in files_of(path):
        if file.name == "manifest.json":
            continue
        kept = file.rename(path / "kept")
        if instead == "folder":
            file.mkdir()
        elif instead == "pipe":
            os.mkfifo(file)
        elif instead == "dangling link":
            file.symlink_to("nowhere")
        assert f"{file.relative_to(path)} is " in line(kind, path)
        if instead == "folder":
            file.rmdir()
        kept.replace(file)


def test_a_manifest_that_is_a_pipe_is_no_index(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    for kind in ("auto", "exact", "compressed"):
        with pytest.raises(UserError, match="no index in"):
            INDEXES.get(kind).open(tmp_path)
    os.mkfifo(tmp_path / "sharded.json")
    with pytest.raises(UserError, match="no index in"):
        INDEXES.get("sharded").open(tmp_path)


def rewritten(path, change):
    """Change a manifest's values and its checksum too, as nothing but malice would."""
    file = path / "manifest.json"
    values = json.loads(file.read_text())
    change(values)
    body = json.dumps(values["index"], sort_keys=True).encode()
    values["checksum"] = hashlib.blake2b(body, digest_size=16).hexdigest()
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("value", [None, "x", -1, 1.5, True, [], {}, {"a": [None]}, "missing"])
def test_every_value_of_a_manifest_has_its_type(copied, value):
    kind, path, _ = copied
    whole = (path / "manifest.json").read_text()
    body = json.loads(whole)["index"]
    keys = [(key,) for key in body] + [("segments", 0, key) for key in body["segments"][0]]
    keys += [("segments", 0), ("files", f"{body['segments'][0]['name']}/ids.json")]
    for keyed in keys:

        def change(values, keyed=keyed):
            *parents, last = keyed
            place = values["index"]
            for step in parents:
                place = place[step]
            if value == "missing" and isinstance(place, dict):
                del place[last]
            else:
                place[last] = value

        rewritten(path, change)
        said = ""
        try:
            kind.open(path).search([np.ones((1, DIM), np.float32)], 3)
        except UserError as e:
            said = str(e)
        assert "\n" not in said
        assert said == "" or str(path) in said  # some values may be what they are
        (path / "manifest.json").write_text(whole)


def saved(path, name, array):
    """Replace an array and its entry in the manifest, as nothing but malice would."""
    file = path / name
    np.save(file, array)
    data = file.read_bytes()
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    rewritten(path, lambda values: values["index"]["files"].update({name: [len(data), digest]}))


def spoiled(array):
    """Yield arrays of other types, shapes and values."""
    yield array.astype(np.float64)
    yield array[:-1]
    yield array.reshape(1, *array.shape)
    for value in (-1, len(array) + 70, 60000):
        other = array.copy()
        with np.errstate(all="ignore"):
            other[len(other) // 2] = np.array(value).astype(array.dtype)
        yield other


def test_arrays_that_do_not_fit_each_other_are_refused_although_their_checksums_are_right(copied):
    kind, path, _ = copied
    names = ["lengths"] + (["run_offsets", "run_starts"] if kind.kind == "compressed" else [])
    segment = min(folder.name for folder in path.glob("segment-*"))
    for name in [f"{segment}/{name}.npy" for name in names]:
        array = np.load(path / name)
        manifest = (path / "manifest.json").read_text()
        for bad in spoiled(array):
            if np.array_equal(bad, array) and bad.dtype == array.dtype:
                continue
            saved(path, name, bad)
            assert segment in line(kind, path)
        np.save(path / name, array)
        (path / "manifest.json").write_text(manifest)
    assert kind.open(path).verify() == []


def test_a_run_of_a_centroid_that_does_not_exist_is_refused(folders, tmp_path):
    kind, path, _ = folders
    if kind.kind != "compressed":
        pytest.skip("other kinds have no centroids")
    path = shutil.copytree(path, tmp_path / "index")
    name = min(str(file.relative_to(path)) for file in path.glob("*/centroids.npy"))
    array = np.load(path / name)
    array[0] = 65535
    saved(path, name, array)
    assert "centroids" in line(kind, path)
