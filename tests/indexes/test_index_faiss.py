"""The index faiss against brute force: exact where it is, with a stated recall where it is not."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from index_files import assert_ranking, build, names, ranking, units

pytest.importorskip("faiss")

from ravqa.core.errors import DamagedError, UserError
from ravqa.indexes.faiss import FaissIndex
from ravqa.testing import check_index


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def made(path, passages, **options):
    return build(path, passages, kind="faiss", **options)


def clustered(seed, count, dim=32, topics=40):
    """Unit vectors around common topics, one a passage, as photos of the same things are."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(5).normal(size=(topics, dim))
    rows = centers[rng.integers(0, topics, count)] + 0.8 * rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("factory", "options"),
    [("SQfp16", {}), ("HNSW16", {}), ("IVF2,Flat", {"nprobe": 2})],
    ids=str,
)
def test_kinds_that_lose_nothing_keep_the_contract(factory, options):
    check_index(FaissIndex, FaissIndex.Config(factory=factory, **options))


def test_flat_is_brute_force_over_several_vectors_a_passage(tmp_path):
    rng = np.random.default_rng(0)
    passages = [units(rng, n, 8) for n in rng.integers(0, 5, 300)]
    passages[7], passages[200] = passages[100], passages[100]  # ties, in the order of passages
    index = made(tmp_path / "index", passages)
    index.delete(["p3"])
    held = {f"p{i}": p for i, p in enumerate(passages) if i != 3}
    queries = [units(rng, 1, 8) for _ in range(5)] + [passages[100][:1]]
    for query, hits in zip(queries, index.search(queries, 20), strict=True):
        assert_ranking(hits, ranking(query, held), 20, 1e-5)
    tied = [i for i, s in index.search(queries[-1:], 3)[0] if s == pytest.approx(1)]
    assert tied == ["p7", "p100", "p200"]


def test_a_query_of_several_vectors_is_their_sum_where_passages_have_one(tmp_path):
    rng = np.random.default_rng(1)
    rows = units(rng, 500, 8)
    index = made(tmp_path / "index", list(rows[:, None]), candidates=1)
    query = units(rng, 3, 8)
    expected = np.argsort(-(rows @ query.sum(0)), kind="stable")[:10]
    assert [i for i, _ in index.search([query], 10)[0]] == [f"p{i}" for i in expected]


def test_deleted_vectors_do_not_hide_others(tmp_path):
    near = np.tile(np.eye(4, dtype=np.float32)[:1], (400, 1))
    far = units(np.random.default_rng(2), 5, 4)
    index = made(tmp_path / "index", [*near[:, None], *far[:, None]])
    index.delete(names(400))
    assert sorted(i for i, _ in index.search([near[:1]], 5)[0]) == [
        f"p{i}" for i in range(400, 405)
    ]
    index.compact()
    assert len(index.search([near[:1]], 50)[0]) == 5
    assert index.stats()["vectors"] == 5


@pytest.mark.parametrize(
    ("factory", "options", "least"),
    [
        ("IVF32,Flat", {"nprobe": 32}, 1.0),
        ("IVF32,Flat", {"nprobe": 8}, 0.95),
        ("HNSW16", {}, 0.97),
        ("SQ8", {}, 0.95),
        pytest.param("PQ16x4", {}, 0.4, marks=pytest.mark.slow),
        pytest.param("IVF16,PQ16x4,Refine(SQfp16)", {"nprobe": 8}, 0.85, marks=pytest.mark.slow),
        pytest.param("IVF32,PQ16", {"nprobe": 8}, 0.7, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_recall_of_the_exact_ten(factory, options, least, tmp_path):
    rows, queries = clustered(3, 1000), clustered(4, 50)
    index = made(tmp_path / "index", list(rows[:, None]), factory=factory, **options)
    truth = np.argsort(-(queries @ rows.T), axis=1)[:, :10].tolist()
    found = index.search([query[None] for query in queries], 10)
    pairs = zip(found, truth, strict=True)
    recall = np.mean([len({int(i[1:]) for i, _ in hits} & set(own)) / 10 for hits, own in pairs])
    assert recall >= least


def test_added_vectors_are_coded_as_the_first_ones_taught(tmp_path):
    rows = clustered(3, 600)
    options = {"factory": "IVF8,SQ8", "nprobe": 8}
    at_once = made(tmp_path / "a", list(rows[:300, None]), **options)
    at_once.add(names(600)[300:], list(rows[300:, None]))
    assert at_once.stats()["segments"] == 2
    queries = [row[None] for row in rows[::60]]
    before = at_once.search(queries, 5)
    reopened = FaissIndex.open(tmp_path / "a", FaissIndex.Config(**options))
    assert reopened.search(queries, 5) == before
    assert reopened.verify() == []


def test_a_search_may_read_more_lists_than_the_settings_say(tmp_path):
    rows = clustered(3, 500)
    index = made(tmp_path / "index", list(rows[:, None]), factory="IVF16,Flat", nprobe=1)
    assert len(index.search([rows[:1]], 500)[0]) < 500
    assert len(index.search([rows[:1]], 500, nprobe=16)[0]) == 500
    with pytest.raises(UserError, match=r"no setting 'probes'.*nprobe"):
        index.search([rows[:1]], 5, probes=3)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists what is mapped")
@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF2,Flat"])
def test_vectors_are_mapped_from_the_file(factory, tmp_path):
    index = made(tmp_path / "index", list(clustered(3, 100)[:, None]), factory=factory)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(tmp_path / "index/segment-000002/vectors.faiss") in maps
    assert len(index) == 100


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Flatt", r"'Flatt' cannot be made of 20 vectors of length 8: could not parse"),
        ("IVF64,Flat", r"'IVF64,Flat' cannot be made of 20 vectors.*training points"),
        ("LSH", r"'LSH' cannot be made of 20 vectors"),
        ("NSG8,Flat", r"'NSG8,Flat' is of kind IndexNSGFlat, which does not give its vectors back"),
        ("IVF2,PQ4x4fs", r"which does not give its vectors back: choose Flat, SQ, PQ, IVF or HNSW"),
    ],
)
def test_factory_strings_that_cannot_be_used(factory, message, tmp_path):
    passages = list(units(np.random.default_rng(0), 20, 8)[:, None])
    with pytest.raises(UserError, match=message) as caught:
        made(tmp_path / "index", passages, factory=factory)
    assert "\n" not in str(caught.value)
    assert not FaissIndex.built(tmp_path / "index")


def test_a_gpu_that_faiss_does_not_see(tmp_path):
    index = made(tmp_path / "index", [np.eye(4, dtype=np.float32)[:1]], device="cuda:7")
    with pytest.raises(UserError, match=r"the device 'cuda:7' cannot be used: .* sees \d+ GPUs"):
        index.search([np.ones((1, 4), np.float32)], 1)


def test_a_changed_file_is_not_given_to_faiss(tmp_path):
    made(tmp_path / "index", list(units(np.random.default_rng(0), 9, 8)[:, None]))
    file = next((tmp_path / "index").glob("segment-*/vectors.faiss"))
    data = bytearray(file.read_bytes())
    data[40] ^= 255
    file.write_bytes(data)
    with pytest.raises(DamagedError, match=r"vectors\.faiss was changed"):
        FaissIndex.open(tmp_path / "index")
