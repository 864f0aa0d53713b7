"""An index of shards against brute force, however many workers build it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ravqa.core.errors import MissingExtraError, UserError
from ravqa.core.settings import Part
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import Encoded
from ravqa.encoders.store import EmbeddingStore
from ravqa.indexes.compressed.index import CompressedIndex
from ravqa.indexes.sharded import ShardedIndex

ROOT = Path(__file__).parents[2]
DIM = 8
EXACT = Part(name="exact", storage="float32")


def config(shards=3, **options):
    return ShardedIndex.Config(**{"shard": EXACT, "shards": shards, **options})


def rows(rng, count):
    """Unit vectors of four components of 1/2: products and sums are exact, and ties are many."""
    out = np.zeros((count, DIM), np.float32)
    for row in out:
        row[rng.choice(DIM, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return out


def corpus(count, seed=0, first=0):
    rng = np.random.default_rng(seed)
    return {f"p{first + i}": rows(rng, n) for i, n in enumerate(rng.integers(0, 6, count))}


def build(path, passages, settings, **options):
    vectors = iter(passages.values())
    return ShardedIndex.build(list(passages), vectors, path, dim=DIM, config=settings, **options)


def maxsim(query, passage):
    return float((query @ passage.T).max(1).sum()) if len(passage) else -np.inf


def ranking(query, passages, k, allowed=None):
    """By definition; ties in the order of the dictionary."""
    scores = {i: maxsim(query, p) for i, p in passages.items() if len(p)}
    best = sorted(scores, key=lambda i: -scores[i])
    return [(i, scores[i]) for i in best if allowed is None or i in allowed][:k]


def queries(seed=9):
    rng = np.random.default_rng(seed)
    return [rows(rng, n) for n in (1, 4, 20)]


@pytest.mark.parametrize("shards", [1, 2, 5, 40, 100])
def test_rankings_scores_and_ties_equal_brute_force(tmp_path, shards):
    passages = corpus(40)
    index = build(tmp_path / "ix", passages, config(shards))
    assert index.ids == list(passages)
    assert len(index) == 40
    assert len(list((tmp_path / "ix").glob("shard-*/manifest.json"))) == min(shards, 40)
    for k in (1, 10, 100):
        assert index.search(queries(), k) == [ranking(q, passages, k) for q in queries()]
    wanted = [list(passages)[::-3], [], ["p7", "p7", "p31"]]
    assert index.score(queries(), wanted) == [
        [maxsim(q, passages[i]) for i in ids] for q, ids in zip(queries(), wanted, strict=True)
    ]


def test_only_allowed_passages_are_found(tmp_path):
    passages = corpus(40)
    index = build(tmp_path / "ix", passages, config())
    allowed = ["p39", "p2", "unknown", "p20", "p3"]
    wanted = [ranking(q, passages, 3, allowed) for q in queries()]
    assert index.search(queries(), 3, allowed_ids=iter(allowed)) == wanted
    assert index.search(queries(), 3, allowed_ids=[]) == [[], [], []]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "update", "delete", "compact", "reopen"]), st.integers(0, 99)
    ),
    max_size=6,
)


@given(operations=OPERATIONS, shards=st.integers(1, 4))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_any_changes_are_those_of_a_dictionary(tmp_path, operations, shards):
    shutil.rmtree(tmp_path / "ix", ignore_errors=True)
    passages = corpus(6)
    index = build(tmp_path / "ix", passages, config(shards), fingerprint="f")
    for number, (operation, seed) in enumerate(operations):
        rng = np.random.default_rng(seed)
        some = [i for i in passages if rng.random() < 0.5]
        if operation in {"add", "update"}:
            new = corpus(3, seed, first=100 * (number + 1))
            if operation == "update":
                new |= {i: rows(rng, 3) for i in some}
            getattr(index, operation)(list(new), iter(new.values()))
            passages = {i: p for i, p in passages.items() if i not in new} | new
        elif operation == "delete":
            index.delete(some)
            passages = {i: p for i, p in passages.items() if i not in some}
        elif operation == "compact":
            index.compact()
        else:
            index = ShardedIndex.open(tmp_path / "ix", fingerprint="f")
        assert set(index.ids) == passages.keys()
        assert len(index) == len(passages)
        for query in queries():
            found = index.search([query], 200)[0]
            assert len(found) == len(dict(found))
            assert dict(found) == dict(ranking(query, passages, 200))
            assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
    assert index.verify() == []


def test_a_small_shard_gets_what_is_added(tmp_path):
    index = build(tmp_path / "ix", corpus(9), config())
    for i in range(1, 4):
        new = corpus(4, first=10 * i)
        index.add(list(new), new.values())
    assert [s["passages"] for s in index.stats()["shards"]] == [7, 7, 7]
    assert index.stats()["passages"] == 21


def test_refused_changes_change_nothing(tmp_path):
    passages = corpus(9)
    index = build(tmp_path / "ix", passages, config())
    one = rows(np.random.default_rng(0), 2)
    with pytest.raises(ValueError, match="'p8' is already in the index"):
        index.add(["new", "p8"], [one, one])
    with pytest.raises(ValueError, match="'p0' has a vector of length 2"):
        index.update(["p8", "p0"], [one, one * 2])
    with pytest.raises(ValueError, match="twice"):
        index.update(["p8", "p8"], [one, one])
    with pytest.raises(KeyError, match="unknown"):
        index.delete(["p8", "p0", "unknown"])
    with pytest.raises(KeyError, match="unknown"):
        index.score([one], [["p8", "unknown"]])
    with pytest.raises(ValueError, match="at least 1"):
        index.search([one], 0)
    assert "new" not in index
    assert "p8" in index
    assert index.search([one], 20)[0] == ranking(one, passages, 20)


def test_compressed_shards_are_merged_by_score(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(90, 12, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    settings = config(3, shard=Part(name="compressed", centroids=16))
    path = tmp_path / "ix"
    ids = [f"p{i}" for i in range(90)]
    index = ShardedIndex.build(ids, vectors, path, dim=32, config=settings)
    query = vectors[:4].reshape(-1, 32)
    parts = [CompressedIndex.open(path / f"shard-00{i}").search([query], 10)[0] for i in range(3)]
    best = sorted([hit for part in parts for hit in part], key=lambda hit: -hit[1])[:10]
    assert index.search([query], 10) == [best]
    assert {i for i, _ in best} >= {"p0", "p1", "p2", "p3"}
    # a setting of the search reaches the shards
    with pytest.raises(UserError, match="effort"):
        index.search([query], 10, effort="none")


@pytest.mark.parametrize("count", [5, 7])
def test_ids_and_arrays_must_be_as_many(tmp_path, count):
    one = rows(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="differ in number"):
        ShardedIndex.build("abcdef", [one] * count, tmp_path / "ix", dim=DIM, config=config(2))
    assert not ShardedIndex.built(tmp_path / "ix")


def test_an_id_of_two_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'a' occurs twice"):
        ShardedIndex.build("abca", [], tmp_path / "ix", dim=DIM, config=config(2))


def test_an_empty_index_can_grow(tmp_path):
    index = build(tmp_path / "ix", {}, config())
    assert index.search(queries(), 3) == [[], [], []]
    passages = corpus(5)
    index.add(list(passages), passages.values())
    assert index.search(queries(), 3) == [ranking(q, passages, 3) for q in queries()]


# -- opening ------------------------------------------------------------------------------------


def test_an_index_of_something_else_is_refused(tmp_path):
    path = tmp_path / "ix"
    build(path, corpus(6), config(2), fingerprint="corpus and encoder")
    assert ShardedIndex.open(path, fingerprint="corpus and encoder").config.shard == EXACT
    with pytest.raises(UserError, match="another corpus or with another encoder"):
        ShardedIndex.open(path, fingerprint="others")
    with pytest.raises(UserError, match="already has an index"):
        build(path, corpus(6), config(2), fingerprint="others")
    with pytest.raises(UserError, match="of kind 'exact', not 'compressed'"):
        ShardedIndex.open(path, config(shard=Part(name="compressed")))
    with pytest.raises(UserError, match="no index"):
        ShardedIndex.open(tmp_path / "nowhere")


def test_a_shard_of_another_index_is_noticed(tmp_path):
    build(tmp_path / "one", corpus(6), config(2), fingerprint="f")
    build(tmp_path / "other", corpus(6, seed=1), config(2), fingerprint="g")
    shutil.rmtree(tmp_path / "one" / "shard-001")
    with pytest.raises(UserError, match=r"no index in .*shard-001"):
        ShardedIndex.open(tmp_path / "one")
    shutil.copytree(tmp_path / "other" / "shard-001", tmp_path / "one" / "shard-001")
    with pytest.raises(UserError, match="another corpus"):
        ShardedIndex.open(tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "shard-001")
    shutil.copytree(tmp_path / "one" / "shard-000", tmp_path / "one" / "shard-001")
    with pytest.raises(UserError, match="another corpus"):
        ShardedIndex.open(tmp_path / "one")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "damaged"), ("{}", "damaged"), ('{"format": 1}', "damaged"), ('{"format": 9}', "9")],
)
def test_a_manifest_that_cannot_be_read_is_one_clear_line(tmp_path, text, message):
    build(tmp_path / "ix", corpus(6), config(2))
    (tmp_path / "ix" / "sharded.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        ShardedIndex.open(tmp_path / "ix")
    assert "\n" not in str(caught.value)


def test_verify_names_the_shard(tmp_path):
    index = build(tmp_path / "ix", corpus(20), config(2))
    [file] = (tmp_path / "ix" / "shard-001").rglob("vectors.npy")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    [line] = index.verify()
    assert line.startswith("shard-001/")
    assert "vectors.npy was changed" in line


def test_options_of_the_shards_are_checked():
    with pytest.raises(UserError, match=r"index\.shard: unknown key 'storag'"):
        ShardedIndex.Config(shard=Part(name="exact", storag="int8"))
    with pytest.raises(UserError, match="no index 'exakt'"):
        ShardedIndex.Config(shard=Part(name="exakt"))


def test_ray_that_is_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"ravqa\[ray\]"):
        build(tmp_path / "ix", corpus(3), config(2, workers="ray"))


def test_the_retriever_uses_it(fresh_cache, models_loaded_once, okvqa_sample):
    from ravqa.retrievers.late_interaction import LateInteractionRetriever as Retriever

    few = Corpus([okvqa_sample.corpus[i] for i in list(okvqa_sample.corpus)[:15]])
    rankings = []
    for index in (EXACT, Part(name="sharded", shards=3, shard=EXACT.model_dump())):
        retriever = Retriever(Retriever.Config(index=index, depth=5))
        retriever.prepare(few)
        hits = retriever.retrieve(okvqa_sample.questions[:4], 5)
        assert all(len(row) == 5 for row in hits)
        rankings.append([[hit.passage_id for hit in row] for row in hits])
    assert len(list((fresh_cache / "indexes").glob("*/shard-*/manifest.json"))) == 3
    assert rankings[0] == rankings[1]


# -- several workers ----------------------------------------------------------------------------


def test_workers_that_build_at_once_share_the_shards(tmp_path):
    passages = corpus(24)
    both = threading.Barrier(2)
    built, indexes = [], []

    def embed(start, stop):
        built.append(start)
        if len(built) <= 2:
            both.wait(timeout=30)  # each has one: neither can have taken all
        return list(passages.values())[start:stop]

    def work():
        index = ShardedIndex.build_with(
            passages, embed, tmp_path / "ix", dim=DIM, config=config(4), fingerprint="f"
        )
        indexes.append(index)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(built) == [0, 6, 12, 18]
    for index in indexes:
        assert index.search(queries(), 5) == [ranking(q, passages, 5) for q in queries()]


def environment(**more):
    """For a process that imports this file."""
    folders = [ROOT, ROOT / "tests" / "helpers", Path(__file__).parent]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), **more}


KILLED = """
import os, signal, sys
from test_index_sharded import DIM, ShardedIndex, config, corpus
passages = corpus(24)

def embed(start, stop):
    for number, vectors in list(enumerate(passages.values()))[start:stop]:
        if number == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        yield vectors

ShardedIndex.build_with(passages, embed, sys.argv[1], dim=DIM, config=config(4), fingerprint="f")
"""


def test_a_killed_build_goes_on_with_the_shard_it_was_killed_in(tmp_path):
    path = tmp_path / "ix"
    command = [sys.executable, "-c", KILLED, str(path)]
    run = subprocess.run(command, check=False, env=environment())
    assert run.returncode == -signal.SIGKILL
    assert not ShardedIndex.built(path)
    passages = corpus(24)
    built = []

    def embed(start, stop):
        built.append(start)
        return list(passages.values())[start:stop]

    options = {"dim": DIM, "config": config(4)}
    index = ShardedIndex.build_with(passages, embed, path, **options, fingerprint="f")
    assert built == [12, 18]
    assert index.search(queries(), 5) == [ranking(q, passages, 5) for q in queries()]
    # what was built from something else, or nobody knows from what, is not taken
    for fingerprint in ("g", ""):
        (path / "sharded.json").unlink()
        built.clear()
        ShardedIndex.build_with(passages, embed, path, **options, fingerprint=fingerprint)
        assert built == [0, 6, 12, 18]


def store_of(path, passages):
    """An EmbeddingStore in chunks of five passages."""
    options = {"encoder": "e", "corpus": "c", "passages": len(passages), "dim": DIM, "chunk": 5}
    store = EmbeddingStore(path, **options)
    arrays = list(passages.values())
    for number in store.missing():
        store.write(number, Encoded(arrays[number * 5 : number * 5 + 5]))
    return store


TOGETHER = """
import json, sys
from pathlib import Path
from test_index_sharded import DIM, ShardedIndex, config, corpus, queries, store_of
from ravqa.core.devices import processes
from ravqa.indexes.exact import ExactIndex

folder, passages = Path(sys.argv[1]), corpus(24)
state = processes()
if state.is_main_process:
    store_of(folder / "store", passages)
state.wait_for_everyone()
build, log = ExactIndex.build, []

def logged(ids, *arguments, **options):
    log.append(ids[0])
    state.wait_for_everyone()  # until the other has its shard too
    return build(ids, *arguments, **options)

ExactIndex.build = logged
index = ShardedIndex.build(
    list(passages),
    store_of(folder / "store", passages),
    folder / "ix",
    dim=DIM,
    config=config(None, workers="accelerate"),
    fingerprint="f",
)
found = [log, index.search(queries(), 5)]
(folder / f"found-{state.process_index}.json").write_text(json.dumps(found))
state.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_of_torchrun_build_a_shard_each(tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(tmp_path / "together.py")]
    run = subprocess.run(
        [*command, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env=environment(OMP_NUM_THREADS="1"),
    )
    assert run.returncode == 0, run.stderr
    wanted = [[list(hit) for hit in ranking(q, corpus(24), 5)] for q in queries()]
    for rank, first in enumerate(["p0", "p12"]):
        built, found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert built == [first]
        assert found == wanted
    index = ShardedIndex.open(tmp_path / "ix", fingerprint="f")
    assert index.ids == list(corpus(24))
    assert index.verify() == []


RAY = """
import json, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from test_index_sharded import DIM, EXACT, ShardedIndex, config, corpus, queries, rows, store_of

import numpy as np

folder = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
passages, over_ray = corpus(24), config(None, workers="ray", ray={"num_cpus": 1})

class Encode:
    '''Makes the vectors in the worker, and says where that is.'''

    def __call__(self, start, stop):
        node = ray.get_runtime_context().get_node_id()
        (folder / f"encoded-{start}-{stop}").write_text(node)
        return list(corpus(24).values())[start:stop]

def error(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as e:
        return [type(e).__name__, str(e)]

out = {}
index = ShardedIndex.build_with(
    passages, Encode(), folder / "ix", dim=DIM, config=over_ray, fingerprint="f"
)
out["found"] = index.search(queries(), 5)
out["allowed"] = index.search(queries(), 5, allowed_ids=["p1", "p20", "p3"])
out["score"] = index.score(queries(), [["p1", "p20"], [], ["p3"]])
out["zero"] = error(index.search, [np.zeros((1, DIM), np.float32)], 5)
new = corpus(3, seed=5, first=50)
index.add(list(new), iter(new.values()))
index.update(["p0", "p23"], [rows(np.random.default_rng(1), 2)] * 2)
index.delete(["p1", "p22"])
out["changed"] = index.search(queries(), 100)
out["unknown"] = error(index.delete, ["p1"])
out["verify"] = index.verify()
del index
again = ShardedIndex.open(folder / "ix", over_ray, fingerprint="f")
out["again"] = again.search(queries(), 100)
ray.kill(again._workers._actors[1])
out["lost"] = error(again.search, queries(), 5)
del again
store = store_of(folder / "store", passages)
index = ShardedIndex.build(list(passages), store, folder / "two", dim=DIM, config=over_ray)
out["stored"] = index.search(queries(), 5)
del index
out["generator"] = error(
    ShardedIndex.build, "ab", (v for v in ()), folder / "three", dim=DIM, config=over_ray
)
(folder / "out.json").write_text(json.dumps(out))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_encodes_builds_and_searches(tmp_path):
    pytest.importorskip("ray", reason="pip install 'ravqa[ray]'")
    (tmp_path / "over_ray.py").write_text(RAY)
    run = subprocess.run(
        [sys.executable, str(tmp_path / "over_ray.py"), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(RAY_USAGE_STATS_ENABLED="0"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    out = json.loads((tmp_path / "out.json").read_text())
    passages = corpus(24)

    def wanted(k, allowed=None):
        return [[list(hit) for hit in ranking(q, passages, k, allowed)] for q in queries()]

    # each node encoded its half
    marks = sorted(tmp_path.glob("encoded-*"))
    assert [m.name for m in marks] == ["encoded-0-12", "encoded-12-24"]
    assert len({m.read_text() for m in marks}) == 2
    assert out["found"] == out["stored"] == wanted(5)
    assert out["allowed"] == wanted(5, ["p1", "p20", "p3"])
    first, _, third = queries()
    assert out["score"] == [
        [maxsim(first, passages[i]) for i in ("p1", "p20")],
        [],
        [maxsim(third, passages["p3"])],
    ]
    assert out["zero"] == ["ValueError", "a query has no vector that is not zero"]
    assert out["unknown"] == ["KeyError", "'p1'"]
    assert out["generator"][0] == "UserError"
    assert out["lost"][0] == "UserError"
    assert "\n" not in out["lost"][1]
    assert out["verify"] == []

    changed = rows(np.random.default_rng(1), 2)
    passages |= corpus(3, seed=5, first=50) | {"p0": changed, "p23": changed}
    del passages["p1"], passages["p22"]
    for found in (out["changed"], out["again"]):
        assert [dict(r) for r in found] == [dict(r) for r in wanted(100)]
