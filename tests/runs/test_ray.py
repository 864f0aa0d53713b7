"""Searching, encoding and answering on a Ray cluster of two nodes, whose processes are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from ravqa.core import cluster as cluster_module
from ravqa.core.cluster import Crew, noted_losses
from ravqa.core.errors import UserError
from ravqa.core.settings import Part
from ravqa.indexes.sharded import ShardedIndex

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ravqa[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings

ROOT = Path(__file__).parents[2]
EXACT = Part(name="exact", storage="float32")
SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
WORDS = "koala tower river iron leaf night old house where bamboo lemur stone".split()


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    """A cluster of two nodes with two processors each, for this process and those it starts."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(tmp_path_factory.mktemp("cache")).items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **SMALL})
        made.add_node(num_cpus=2, object_store_memory=SMALL["object_store_memory"])
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        ray.shutdown()
        made.shutdown()


def environment(cache):
    return {
        "RAY_prestart_worker_first_driver": "0",  # each takes seconds of processor time
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")]),
        "RAVQA_PLUGINS": "ray_parts",
        "RAVQA_CACHE": str(cache),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


# -- searching


def passages(count):
    """Vectors whose products and sums are exact, so that rankings are equal bit by bit."""
    rng = np.random.default_rng(5)
    rows = {f"p{i}": rng.integers(0, 2, size=(5, 16)) - 0.5 for i in range(count)}
    return {name: row.astype(np.float32) / 2 for name, row in rows.items()}


def build(path, given, **options):
    config = ShardedIndex.Config(shard=EXACT, shards=3, **options)
    vectors = list(given.values())
    return ShardedIndex.build(list(given), vectors, path, dim=16, config=config, fingerprint="f")


def process_of(index, shard):
    return index._workers.run(lambda _: os.getpid(), only=[shard])[0]


def test_a_search_is_repeated_when_workers_or_a_node_are_lost(two_nodes, tmp_path):
    given = passages(200)
    queries = [given["p7"], given["p150"]]
    wanted = build(tmp_path / "local", given).search(queries, 20)
    index = build(tmp_path / "ray", given, workers="ray")
    assert index.search(queries, 20) == wanted
    chance = random.Random()
    with noted_losses() as lost:
        for kills in (1, 2, 3):
            victim = chance.randrange(3)
            os.kill(process_of(index, victim), signal.SIGKILL)
            assert index.search(queries, 20) == wanted
            # On a busy machine Ray may lose workers of its own accord.
            assert len(lost) >= kills
            assert f"the shard {victim + 1} of 3" in {loss.what for loss in lost}
    # A change is not repeated: it may have been made.
    os.kill(process_of(index, 0), signal.SIGKILL)
    with pytest.raises(UserError, match=r"^the shard 1 of 3 was lost .* whether the change was"):
        index._workers.run(lambda shard: shard.delete(["p0"]), only=[0], changes=True)
    assert index.search(queries, 20) == wanted
    other = two_nodes.add_node(num_cpus=2, object_store_memory=SMALL["object_store_memory"])
    index = ShardedIndex.open(
        tmp_path / "ray", ShardedIndex.Config(shard=EXACT, shards=3, workers="ray")
    )
    two_nodes.remove_node(other)
    assert index.search(queries, 20) == wanted


def test_a_worker_that_is_lost_again_ends_the_search(two_nodes):
    crew = Crew([dict], options={"num_cpus": 0}, what="the worker", why="a test")
    with pytest.raises(UserError, match=r"^the worker 1 of 1 was lost twice: "):
        crew.run({0: (lambda _: os._exit(1), ())})
    assert crew.run({0: (len, ())}) == [0]


# -- bad input


def test_resources_that_no_node_has_are_refused(two_nodes, tmp_path):
    expected = (
        r"^the index sharded with workers: ray: 3 workers with 100 CPU each need more than the "
        r"Ray cluster has: room for 0 \(nodes: 2 CPU; 2 CPU\)$"
    )
    with pytest.raises(UserError, match=expected):
        build(tmp_path / "ix", passages(5), workers="ray", ray={"num_cpus": 100})
    with pytest.raises(UserError, match="Ray refuses the workers' options: "):
        build(tmp_path / "iy", passages(5), workers="ray", ray={"num_cpu": 1})


def test_resources_that_others_hold_are_refused(two_nodes, monkeypatch):
    first = Crew([dict] * 4, options={"num_cpus": 1}, what="the worker", why="a test")
    monkeypatch.setattr(cluster_module, "_PATIENCE_S", 15.0)
    try:
        with pytest.raises(UserError, match=r"^a test: 1 of 1 worker were not started in 15 s"):
            Crew([dict], options={"num_cpus": 1}, what="the worker", why="a test")
    finally:
        first.close()


def test_nodes_with_another_version_or_none_are_refused(two_nodes, tmp_path):
    package = tmp_path / "ravqa" / "__init__.py"
    package.parent.mkdir()
    package.write_text("raise ImportError")
    other = two_nodes.add_node(
        num_cpus=1,
        object_store_memory=SMALL["object_store_memory"],
        env_vars={"PYTHONPATH": str(tmp_path)},
    )
    try:
        with pytest.raises(UserError, match=r"^a test: the Ray node .* has no package ravqa: inst"):
            Crew([dict], options={}, what="the worker", why="a test")
        package.write_text("__version__ = '0.0.1'")
        with pytest.raises(UserError, match=r"^a test: the Ray node .* has ravqa 0.0.1: install"):
            Crew([dict], options={}, what="the worker", why="a test")
    finally:
        two_nodes.remove_node(other)


# -- encoding and answering

ON_RAY = ("--workers", "ray", "--worker-option", "number=2")


def settings(folder, pause=0.0):
    """A pipeline whose encoder and reader leave the numbers of their processes in folders."""
    for part in ("encoder", "reader"):
        (folder / part).mkdir(exist_ok=True)

    def watched(part):
        return {"name": "watched", "folder": str(folder / part), "pause": pause}

    return {
        "retriever": {
            "name": "late-interaction",
            "encoder": watched("encoder"),
            "index": {"name": "exact", "storage": "float32"},
            "query": {"question": 1.0, "replaced": 0.0, "appended": 0.0},
        },
        "top_k": 3,
        "answering": {"decision": "joint_max", "passages": 3},
        "reader": watched("reader"),
    }


def write(folder, count=1200):
    """Passages, questions and a pipeline."""
    rng = np.random.default_rng(3)
    rows = [
        {"passage_id": f"d{i}", "text": " ".join(rng.choice(WORDS, size=8))} for i in range(count)
    ]
    (folder / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [
        {"question_id": i, "question": f"Where is {word} {i}?", "answers": ["leaf"]}
        for i, word in enumerate(rng.choice(WORDS, size=100))
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline(folder)


def pipeline(folder, pause=0.0):
    (folder / "p.yaml").write_text(yaml.safe_dump(settings(folder, pause)))


def command(folder, *words, cache, **variables):
    return subprocess.Popen(
        [sys.executable, "-m", "ravqa", *words],
        cwd=folder,
        env=os.environ | environment(cache) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(process):
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return out


def encode(folder, cache, *more, **variables):
    words = ["encode", "--corpus", "passages.jsonl", "--pipeline", "p.yaml", *more]
    return command(folder, *words, cache=cache, **variables)


def index_files(cache):
    """What the index holds: arrays by name."""
    [index] = [path for path in (cache / "indexes").iterdir() if path.is_dir()]
    files = sorted(path for path in index.rglob("*.npy"))
    assert files
    return {str(path.relative_to(index)): np.load(path) for path in files}


def workers_of(folder, but=(), process=None):
    """The numbers of processes that work or worked, once there are any, for a process that runs."""
    while not (found := {int(path.name) for path in folder.iterdir()} - set(but)):
        until_next(process)
    return found


def until_next(process):
    assert process is None or process.poll() is None, process.communicate()
    time.sleep(0.05)


def assert_same_index(cache, other):
    found, wanted = index_files(cache), index_files(other)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def chunks_left(cache):
    """How many of 1,200 passages are not encoded yet, in chunks of 256."""
    done = {int(file.stem) for file in cache.glob("embeddings/*/*.safetensors")}
    return sum(176 if number == 4 else 256 for number in set(range(5)) - done)


def until_a_chunk_is_done(cache, process):
    while chunks_left(cache) == 1200:
        until_next(process)


def test_passages_are_encoded_as_by_one_process_whatever_is_killed(two_nodes, tmp_path):
    write(tmp_path)
    finished(encode(tmp_path, tmp_path / "local"))
    own = workers_of(tmp_path / "encoder")
    pipeline(tmp_path, pause=2.0)
    cache = tmp_path / "cache"
    killed = encode(tmp_path, cache, *ON_RAY)
    os.kill(max(workers_of(tmp_path / "encoder", own, killed)), signal.SIGKILL)
    until_a_chunk_is_done(cache, killed)
    killed.kill()
    killed.communicate()
    time.sleep(5)  # Ray ends the workers
    left = chunks_left(cache)
    assert 0 < left < 1200
    assert f"{left:,} encoded now" in finished(encode(tmp_path, cache, *ON_RAY))
    assert_same_index(cache, tmp_path / "local")


RUN = (
    "run", "--dataset", "jsonl", "--data", "questions.jsonl", "--corpus", "passages.jsonl",
    "--pipeline", "p.yaml", "--controls", "none,oracle", "--no-report", "--resume", "--output",
)  # fmt: skip


def samples(folder, *but):
    """What was answered, without times and what came from the cache."""
    found = {}
    for file in folder.glob("samples*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            for name in ("seconds", "cached", *but):
                row.pop(name, None)
        found[str(file.relative_to(folder))] = rows
    return found


def results(folder):
    """The results, without times."""
    found = json.loads((folder / "results.json").read_text())
    del found["timing"]["seconds"], found["timing"]["peak_memory_mb"], found["timing"]["stages"]
    del found["timing"]["describe"], found["provenance"]["date"]
    for condition in found["cost"]["conditions"].values():
        del condition["seconds"]
    return found


def test_a_run_answers_as_one_process_whatever_is_killed(two_nodes, tmp_path):
    write(tmp_path, count=60)
    finished(command(tmp_path, *RUN, "local", cache=tmp_path / "local-cache"))
    wanted = samples(tmp_path / "local")
    cache = tmp_path / "cache"
    finished(command(tmp_path, *RUN, "whole", *ON_RAY, cache=cache))
    assert samples(tmp_path / "whole") == wanted
    assert results(tmp_path / "whole") == results(tmp_path / "local")
    # Now slowly: a worker is killed, then this process of the run, and then it is resumed.
    pipeline(tmp_path, pause=1.0)
    before = workers_of(tmp_path / "reader")
    cache = tmp_path / "new-cache"
    killed = command(tmp_path, *RUN, "killed", *ON_RAY, cache=cache)
    os.kill(max(workers_of(tmp_path / "reader", before, killed)), signal.SIGKILL)
    file = tmp_path / "killed" / "samples.jsonl"
    while not (file.exists() and file.read_text()):
        until_next(killed)
    killed.kill()
    killed.communicate()
    had = file.read_text().splitlines()
    finished(command(tmp_path, *RUN, "killed", *ON_RAY, cache=cache))
    assert file.read_text().splitlines()[: len(had)] == had
    # What was generated and not yet written came from the cache, and cost nothing again.
    assert samples(tmp_path / "killed", "cost") == samples(tmp_path / "local", "cost")


def test_a_lost_head_is_one_line_and_what_was_encoded_stays(two_nodes, tmp_path):
    """The last test here: the cluster ends with it."""
    write(tmp_path)
    finished(encode(tmp_path, tmp_path / "local"))
    pipeline(tmp_path, pause=10.0)
    cache = tmp_path / "cache"
    run = encode(tmp_path, cache, "--workers", "ray", "--worker-option", "number=1")
    until_a_chunk_is_done(cache, run)
    ray.shutdown()  # Ray would end this process too
    [head] = [p for p in psutil.Process().children() if p.name() == "gcs_server"]
    head.kill()
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 2, out
    assert out.splitlines()[-1].startswith("error: the head of the Ray cluster at "), out
    two_nodes.shutdown()
    left = chunks_left(cache)
    pipeline(tmp_path)
    assert f"{left:,} encoded now" in finished(encode(tmp_path, cache))
    assert_same_index(cache, tmp_path / "local")
