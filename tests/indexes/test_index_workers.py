"""Options of the indexes that need others' help, and shards in the hands of a stand-in for Ray."""

import json
import uuid
from types import SimpleNamespace

import fake_ray
import numpy as np
import pytest
from index_files import kind_of, maxsim, names, units

from ravqa.core.cluster import noted_losses
from ravqa.core.errors import DamagedError, UserError
from ravqa.core.settings import Part
from ravqa.indexes import sharded
from ravqa.indexes.compressed.index import CompressedIndex
from ravqa.indexes.exact import ExactIndex
from ravqa.indexes.qdrant import QdrantIndex
from ravqa.indexes.sharded import ShardedIndex

DIM = 8
EXACT = Part(name="exact", storage="float32")
Config = ShardedIndex.Config


# -- options


def test_packages_are_those_that_an_option_needs():
    needed = {
        (): [Config(), Config(workers="accelerate"), CompressedIndex.Config()],
        (("ray", "ray"),): [Config(workers="ray")],
        (("numba", "cpu"),): [CompressedIndex.Config(kernels="numba")],
        (("qdrant_edge", "qdrant"),): [QdrantIndex.Config()],
        (("qdrant_client", "qdrant"),): [QdrantIndex.Config(url="http://localhost:6333")],
    }
    for packages, configs in needed.items():
        for config in configs:
            assert list(config.packages()) == list(packages)


def test_options_that_are_fixed_are_those_of_what_is_stored():
    assert ExactIndex.fixed(ExactIndex.Config(storage="int8", block_mb=3)) == {"storage": "int8"}
    compressed = CompressedIndex.Config(storage="4bit", centroids=5, seed=2, effort="fast")
    fixed = {"storage": "4bit", "centroids": 5, "seed": 2}
    assert CompressedIndex.fixed(compressed) == fixed
    shards = Config(shard=Part(name="compressed", **fixed, effort="fast"), shards=3)
    expected = {"shards": 3, "shard": {"name": "compressed", **fixed}}
    assert ShardedIndex.fixed(shards) == expected
    url = "http://localhost:6333"
    config = QdrantIndex.Config(url=url, collection="c", storage="float32", prefetch=3)
    assert QdrantIndex.fixed(config) == {"url": url, "collection": "c", "storage": "float32"}


def test_where_an_index_is_and_who_builds_it():
    server = {"url": "http://localhost:6333"}
    assert QdrantIndex.elsewhere(QdrantIndex.Config(**server))
    assert not QdrantIndex.elsewhere(QdrantIndex.Config())
    assert not ExactIndex.elsewhere(ExactIndex.Config())
    assert not ShardedIndex.elsewhere(Config(shard=Part(name="qdrant")))
    with pytest.raises(ValueError, match="qdrant keeps its data elsewhere: choose the index qdran"):
        Config(shard=Part(name="qdrant", **server))
    named = QdrantIndex.named(QdrantIndex.Config(**server), "n")
    assert (named.collection, QdrantIndex.named(named, "other")) == ("n", named)
    assert QdrantIndex.named(QdrantIndex.Config(), "n") == QdrantIndex.Config()
    assert ShardedIndex.built_together(Config(workers="accelerate"))
    assert not ShardedIndex.built_together(Config())
    assert not ShardedIndex.built_together(Config(workers="ray"))


# -- shards


def passages(count, seed=0):
    rng = np.random.default_rng(seed)
    return {f"p{i}": units(rng, n, DIM) for i, n in enumerate(rng.integers(0, 6, count))}


def build(path, given, config, **options):
    return ShardedIndex.build(
        list(given), iter(given.values()), path, dim=DIM, config=config, **options
    )


def best(query, given, k):
    scores = {i: maxsim(query, p) for i, p in given.items() if len(p)}
    return sorted(scores, key=lambda i: -scores[i])[:k]


def test_the_statistics_are_those_of_the_shards(tmp_path):
    given = passages(10)
    index = build(tmp_path / "ix", given, Config(shard=EXACT, shards=3), fingerprint="f")
    stats = index.stats()
    shards = stats.pop("shards")
    assert [s["passages"] for s in shards] == [3, 3, 4]
    assert stats == {
        "kind": "sharded",
        "dim": DIM,
        "fingerprint": "f",
        "passages": 10,
        "deleted": 0,
        "segments": 1,
        "vectors": sum(map(len, given.values())),
        "bytes": sum(s["bytes"] for s in shards),
    }
    written = json.loads((tmp_path / "ix" / "sharded.json").read_text())
    assert written == {
        "format": 1,
        "dim": DIM,
        "fingerprint": "f",
        "shards": 3,
        "shard": {"name": "exact", "storage": "float32"},
    }
    assert "p3" in index
    assert "nowhere" not in index
    again = build(tmp_path / "ix", given, Config(shard=EXACT, shards=3), fingerprint="f")
    assert again.ids == index.ids


def test_updated_passages_stay_in_their_shards_and_new_ones_go_to_the_smallest(tmp_path):
    given = passages(7)
    index = build(tmp_path / "ix", given, Config(shard=EXACT, shards=2))
    one = units(np.random.default_rng(1), 2, DIM)
    index.update(["p1", "new", "p5"], [one] * 3)
    kinds = [ExactIndex(tmp_path / "ix" / f"shard-00{i}") for i in range(2)]
    assert [set(kind.ids) for kind in kinds] == [
        {"p0", "p1", "p2", "new"},
        {"p3", "p4", "p5", "p6"},
    ]
    index.delete(["p5", "p0", "p5"])
    index.compact()
    assert [s["deleted"] for s in index.stats()["shards"]] == [0, 0]
    assert set(index.ids) == {"p1", "p2", "new", "p3", "p4", "p6"}
    other = ShardedIndex.open(tmp_path / "ix")
    index.delete(["p6"])
    assert "p6" in other
    other.refresh()
    assert "p6" not in other
    index.add([], [])
    index.add(iter(["late"]), iter([one]))
    assert "late" in ExactIndex(tmp_path / "ix" / "shard-001")


def test_shards_of_another_width_do_not_belong_together(tmp_path):
    build(tmp_path / "ix", passages(4), Config(shard=EXACT, shards=2))
    text = json.loads((tmp_path / "ix" / "sharded.json").read_text())
    (tmp_path / "ix" / "sharded.json").write_text(json.dumps(text | {"dim": DIM + 1}))
    with pytest.raises(
        DamagedError, match=f"^the shards in {tmp_path / 'ix'} do not belong to one"
    ):
        ShardedIndex.open(tmp_path / "ix")


@pytest.mark.parametrize("first", [0, 1, 2, 5])
def test_a_process_begins_with_its_own_shard_and_waits_for_those_of_others_at_last(first):
    asked, reported = [], []

    class Shard:
        def __init__(self, number):
            self.number = number

        def build(self, *task, wait):
            asked.append((self.number, wait, task))
            return wait or self.number == 1  # the others are being built elsewhere

    local = object.__new__(sharded._Local)
    local._shards, local._first = [Shard(i) for i in range(3)], first % 3
    local.build([("task", i) for i in range(3)], reported.append)
    assert reported == [1, 2, 3]
    order = [(first + i) % 3 for i in range(3)]
    expected = [(i, False) for i in order] + [(i, True) for i in order if i != 1]
    assert [(number, wait) for number, wait, _ in asked] == expected
    assert all(task == ("task", number) for number, _, task in asked)


def processes(index, count):
    return lambda: SimpleNamespace(process_index=index, num_processes=count)


def test_processes_have_a_shard_each_and_need_a_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "processes", processes(3, 3))
    given = passages(9)
    config = Config(shard=EXACT, workers="accelerate")
    with pytest.raises(
        UserError, match=r"^several processes can only build an index that has a fi"
    ):
        build(tmp_path / "ix", given, config)
    assert not (tmp_path / "ix").exists()
    index = build(tmp_path / "ix", given, config, fingerprint="f")
    assert len(index.stats()["shards"]) == 3
    assert index._workers._first == 0
    monkeypatch.setattr(sharded, "processes", processes(2, 3))
    assert ShardedIndex.open(tmp_path / "ix", config)._workers._first == 2
    assert ShardedIndex.open(tmp_path / "ix", Config(shard=EXACT))._workers._first == 0
    monkeypatch.setattr(sharded, "processes", processes(0, 1))
    assert len(build(tmp_path / "one", given, config).stats()["shards"]) == 1
    fewer = Config(shard=EXACT, shards=2, workers="accelerate")
    assert len(build(tmp_path / "two", given, fewer).stats()["shards"]) == 2


@pytest.fixture
def ray(monkeypatch):
    return fake_ray.use(monkeypatch)


def test_shards_are_built_and_searched_by_rays_actors(tmp_path, ray):
    given = passages(9)
    config = Config(shard=EXACT, workers="ray", ray={"num_cpus": 1})
    vectors = list(given.values())
    index = ShardedIndex.build(list(given), vectors, tmp_path / "ix", dim=DIM, config=config)
    assert ray.started == 1
    expected = {"scheduling_strategy": "SPREAD", "max_restarts": -1, "num_cpus": 1}
    assert ray.options == [expected] * 2
    assert len(index.stats()["shards"]) == 2  # as many as nodes that live
    query = units(np.random.default_rng(2), 3, DIM)
    assert [i for i, _ in index.search([query], 4)[0]] == best(query, given, 4)
    index.add(["new"], [query])
    assert "new" in ExactIndex(tmp_path / "ix" / "shard-000")
    with pytest.raises(ValueError, match=r"^a query has no vector that is not zero$"):
        index.search([np.zeros((1, DIM))], 4)
    other = Config(shard=EXACT, workers="ray", ray={"scheduling_strategy": "DEFAULT"})
    ShardedIndex.open(tmp_path / "ix", other)
    assert ray.options[-1]["scheduling_strategy"] == "DEFAULT"


def test_a_lost_shard_is_opened_again_and_searched_again(tmp_path, ray):
    given = passages(9)
    config = Config(shard=EXACT, workers="ray")
    vectors = list(given.values())
    index = ShardedIndex.build(list(given), vectors, tmp_path / "ix", dim=DIM, config=config)
    query = units(np.random.default_rng(2), 3, DIM)
    wanted = index.search([query], 9)
    shard = ray.actors[-1]
    with noted_losses() as lost:
        shard.lost = 1
        assert index.search([query], 9) == wanted
        assert [loss.what for loss in lost] == ["the shard 2 of 2"]
        last = index.ids[-1:]
        shard.spared, shard.lost = 1, 1  # while it looks for the passage
        with pytest.raises(UserError, match=r"^the shard 2 of 2 was lost \(the actor died\) while"):
            index.delete(last)  # it may have been done
    shard.lost = 2
    with pytest.raises(UserError, match=r"^the shard 2 of 2 was lost twice: the actor died$"):
        index.search([query], 9)


def test_vectors_that_cannot_be_sent_to_rays_actors_are_refused(tmp_path, ray):
    given = passages(3)
    config = Config(shard=EXACT, workers="ray")
    with pytest.raises(
        UserError, match=r"^over Ray the embeddings are sent to the workers, and the"
    ):
        build(tmp_path / "ix", given, config)
    assert not ShardedIndex.built(tmp_path / "ix")


def test_slices_are_read_once_and_again_from_the_beginning_if_they_can_be():
    slices = sharded._Slices([10, 11, 12, 13, 14], 5)
    assert list(slices(1, 3)) == [11, 12]
    assert list(slices(3, 4)) == [13]
    assert list(slices(0, 2)) == [10, 11]
    assert slices.__getstate__() == {
        "_embeddings": [10, 11, 12, 13, 14],
        "_count": 5,
        "_iterator": None,
        "_at": 0,
    }
    # What is too much comes with the last slice, so that it is noticed.
    more = sharded._Slices(iter([10, 11, 12]), 2)
    assert list(more(0, 1)) == [10]
    assert list(more(1, 2)) == [11, 12]


# -- qdrant


def test_points_have_the_ids_that_they_have_always_had():
    """Ids of an index that exists must not change with a version."""
    from ravqa.indexes import qdrant

    space = uuid.UUID("6d1b1c4e-8b43-5a0e-9f3c-0d2f4c6a7e11")
    assert qdrant._point_id("p/ä") == str(uuid.uuid5(space, "passage:p/ä"))
    assert str(uuid.uuid5(space, "meta")) == qdrant._META


def test_uploads_hold_a_bounded_number_of_components_and_unit_means(monkeypatch):
    from ravqa.indexes import qdrant

    monkeypatch.setattr(qdrant, "_BATCH", 6)
    put = []
    engine = SimpleNamespace(put=lambda points: put.append(list(points)))
    one, other = np.eye(2, dtype=np.float32), np.array([[0, 1], [0, -1]], np.float16)
    arrays = [one[:1], one, one[:0], other, one[:1]]
    done = qdrant._upload(engine, zip(names(5), arrays, strict=True), 7)
    assert done == 5
    assert [[payload for _, _, payload in batch] for batch in put] == [
        [{"id": "p0", "number": 7}, {"id": "p1", "number": 8}, {"id": "p2", "number": 9}],
        [{"id": "p3", "number": 10}, {"id": "p4", "number": 11}],
    ]
    points = [point for batch in put for point in batch]
    assert [i for i, _, _ in points] == [qdrant._point_id(i) for i in names(5)]
    vectors = [v for _, v, _ in points]
    assert vectors[2] == {}
    for found, array in zip(vectors, arrays, strict=True):
        if found:
            assert found["tokens"] is array
            assert found["mean"].dtype == np.float32
    np.testing.assert_allclose(vectors[1]["mean"], [0.5**0.5] * 2)
    assert vectors[3]["mean"].tolist() == [0, 0]  # vectors that add up to nothing
    assert qdrant._upload(engine, [], 0) == 0
    assert len(put) == 2


def test_many_ids_are_asked_for_a_thousand_at_a_time():
    from ravqa.indexes import qdrant

    assert [len(page) for page in qdrant._pages(names(2001))] == [1000, 1000, 1]
    assert list(qdrant._pages([])) == []
    found = [
        ({"id": "b", "number": 2}, 1),
        ({"id": "c", "number": 1}, 1),
        ({"id": "a", "number": 0}, 0),
    ]
    assert qdrant._ranking(found) == [("c", 1.0), ("b", 1.0), ("a", 0.0)]


def test_kinds_are_registered_with_their_names():
    for name in ("exact", "compressed", "sharded", "qdrant", "auto"):
        assert kind_of(name).kind == name
