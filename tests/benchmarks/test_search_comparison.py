"""The comparison of engines in benchmarks/: its arithmetic, and engines that fail."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in [n for n in sys.modules if n.startswith("search_")]:
        del sys.modules[name]


@pytest.fixture
def data(tmp_path):
    """Write 40 passages of 1 to 9 vectors, and 35 queries of 4, the first row of each masked."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 10, 40)
    np.save(tmp_path / "lengths.npy", lengths)
    np.save(tmp_path / "vectors.npy", rng.normal(size=(lengths.sum(), 128)).astype(np.float16))
    queries = rng.normal(size=(35, 4, 128)).astype(np.float32)
    queries[:, 0] = 0
    np.save(tmp_path / "queries-image-q32.npy", queries)
    return tmp_path


def ranked(data, query):
    """Return all passages by MaxSim, computed one by one."""
    vectors = np.load(data / "vectors.npy").astype(np.float64)
    ends = np.cumsum(np.load(data / "lengths.npy"))
    parts = np.split(vectors, ends[:-1])
    return np.argsort([-(part @ query.T).max(0).sum() for part in parts], kind="stable").tolist()


def test_the_baseline_and_the_rescoring_are_exact_alone_and_in_batches(data, monkeypatch):
    import search_data
    import search_exact

    monkeypatch.setattr(search_exact, "_BLOCK", 20)  # several blocks
    monkeypatch.setattr(search_exact, "_LANES", 7)  # two queries together
    queries = search_data.queries(data, "image-q32")
    assert queries[0].shape == (3, 128)
    truths = [ranked(data, query) for query in queries]
    threads = search_exact.torch.get_num_threads()
    found = search_exact.Engine(data, data, threads).search(queries, 40)
    assert [list(f) for f in found] == truths
    best = search_data.Stored(data).best(queries[3], np.arange(0, 40, 2), 5)
    assert list(best) == [p for p in truths[3] if p % 2 == 0][:5]


FAKE = """
PACKAGES = ("numpy", "no-such-package")
SETTINGS = {"right": {}, "wrong": {"wrong": True}}

class Engine:
    def __init__(self, data, folder, threads):
        print("what engines print is no answer")
        self.asked = 0
        from search_exact import Engine
        self.exact = Engine(data, folder, threads)

    def search(self, queries, k, wrong=False):
        self.asked += 1
        if LIMIT and self.asked > LIMIT:
            raise MemoryError("it is too much")
        found = self.exact.search(queries, 40)
        return [f[10:] if wrong else f[:k] for f in found]
"""


@pytest.mark.slow
def test_an_engine_that_fails_does_not_end_the_others(data, tmp_path):
    from rich.console import Console
    from search_compare import Comparison

    (tmp_path / "search_good.py").write_text(FAKE.replace("LIMIT", "0"))
    (tmp_path / "search_fails.py").write_text(FAKE.replace("LIMIT", "4"))
    file = tmp_path / "search_good.py"  # is no interpreter
    engines = {"exact": None, "fails": tmp_path, "absent": tmp_path, "no": file, "good": tmp_path}
    comparison = Comparison(engines, data, 1, lambda *_: True, Console(quiet=True))
    points = comparison.singles("image-q32", range(30, 33), patience=60, k=20)
    batches = comparison.batches("image-q32", range(4), [1, 4], patience=60)
    comparison.close()
    about = comparison.about()
    assert "Permission denied" in about["failures"].pop("no")
    assert about["failures"] == {
        "fails": "MemoryError: it is too much",
        "absent": "ModuleNotFoundError: No module named 'search_absent'",
    }
    assert list(about["engines"]["good"]["versions"]) == ["numpy"]
    by_name = {(p["engine"], p["setting"]): p for p in points}
    assert by_name.keys() == {("exact", "float32"), ("good", "right"), ("good", "wrong")}
    assert by_name["good", "right"]["overlap_at_10"] == 1
    assert by_name["good", "wrong"]["overlap_at_10"] == 0
    assert by_name["good", "wrong"]["recall_at_100"] == 0.5  # places 11 to 20 of 20
    assert {(b["engine"], b["batch"]) for b in batches} == {
        ("exact", 1),
        ("exact", 4),
        ("good", 1),
        ("good", 4),
    }


def test_the_report_compares_at_equal_overlap():
    import search_report

    def point(engine, setting, ms, overlap):
        return {
            "kind": "image-q32",
            "engine": engine,
            "setting": setting,
            "queries": 20,
            "median_ms": ms,
            "p95_ms": ms,
            "processor_ms": 2 * ms,
            "overlap_at_10": overlap,
            "recall_at_100": 0.5,
        }

    run = {
        "passages": 10_000,
        "vectors": 1_000_000,
        "dim": 128,
        "source": "text",
        "threads": 2,
        "processor": {"name": "P", "count": 2, "features": ["avx2"]},
        "builds": {},
        "kinds": [{"kind": "image-q32", "vectors": 32, "gemm_gflops": 81.92, "load": [1, 2]}],
        "engines": {},
        "failures": {"qdrant": "it is not installed"},
        "points": [
            point("exact", "float32", 100, 1.0),
            point("tachiom", "small", 5, 0.91),
            point("tachiom", "large", 20, 0.96),
            point("tachiom", "huge", 19, 0.97),
            point("ravqa", "9bit: default", 7, 1.0),
        ],
        "batches": [
            {
                "kind": "image-q32",
                "engine": "exact",
                "setting": "float32",
                "batch": 8,
                "queries_per_second": 6.04,
                "processor_ms": 9,
            }
        ],
    }
    text = search_report.tables([run])
    assert "|  | exact | tachiom | ravqa 9bit |" in text
    assert "| image (32), .90 | 100 | 5 | 7 |" in text
    assert "| image (32), .95 | 100 | 19 | 7 |" in text
    assert "| image (32), .99 | 100 | - | 7 |" in text
    # 2 x 32 x 128 x a million operations a query: 8.192e9
    assert "| exact float32 | 6.0 |" in text
    assert "| all products at the rate of a large one | 10.0 |" in text
    assert "qdrant was not measured: it is not installed" in text
    drawn = ElementTree.fromstring(search_report.curves([run, {**run, "threads": 1}]))
    marks = [e for e in drawn.iter() if e.get("class", "").startswith("mark") and len(e)]
    assert len(marks) == 2 * 6  # the line of the exact search has a second point, at the edge
    alone = search_report.tables([{**run, "threads": 1}])
    assert "| image (32), .99 | 200 | - | 14 |" in alone  # processor time


def test_files_of_other_kinds_of_queries_are_read_as_one():
    import search_report

    run = {"passages": 1, "vectors": 2, "source": "text", "threads": 1}
    kinds = [{**run, "kinds": [k], "points": [k], "batches": []} for k in "ab"]
    [both] = search_report.merged(kinds)
    assert both == {**run, "kinds": ["a", "b"], "points": ["a", "b"], "batches": []}
    assert len(search_report.merged([{**run, "threads": 2, "kinds": [], "points": []}, both])) == 2
