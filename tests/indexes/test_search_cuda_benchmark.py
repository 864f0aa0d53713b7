"""benchmarks/search_cuda.py on the CPU: that it runs, and that its baseline is exact."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from index_files import maxsim, units

from ravqa.core.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import search_cuda

    yield search_cuda
    del sys.modules["search_cuda"]


@pytest.fixture
def data(tmp_path):
    """Write 60 passages of 1 to 9 vectors, and 33 queries of 4, the first row of each masked."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 10, 60)
    np.save(tmp_path / "lengths.npy", lengths)
    np.save(tmp_path / "vectors.npy", units(rng, lengths.sum(), 128).astype(np.float16))
    queries = units(rng, 33 * 4, 128).reshape(33, 4, 128)
    queries[:, 0] = 0
    np.save(tmp_path / "queries-image-q32.npy", queries)
    return tmp_path


def test_the_baseline_is_exact_in_blocks_of_any_size(benchmark, data, monkeypatch):
    lengths = np.load(data / "lengths.npy")
    passages = np.split(np.load(data / "vectors.npy"), np.cumsum(lengths)[:-1])
    queries = [query[1:] for query in np.load(data / "queries-image-q32.npy")[:3]]
    exact = benchmark.Exact(data, torch.device("cpu"))
    for size in (1, 2000, 2**22):
        monkeypatch.setitem(benchmark.BLOCK, "cpu", size)
        for query, found in zip(queries, exact.search(queries), strict=True):
            scores = [maxsim(query, passage) for passage in passages]
            np.testing.assert_allclose(
                [scores[i] for i in found], sorted(scores, reverse=True), rtol=0, atol=1e-5
            )


@pytest.mark.slow
def test_it_measures_every_setting_on_a_device(benchmark, data, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no module fast_plaid' >&2\nexit 1\n")
    broken.chmod(0o755)
    output = tmp_path / "figures.json"
    options = f"--device cpu --data {data} --kinds image-q32 --storages 4bit --batches 1 2"
    command = f"search_cuda.py {options} --fast-plaid {broken} --output {output}"
    monkeypatch.setattr(sys, "argv", command.split())
    benchmark.main()
    figures = json.loads(output.read_text())
    rows = figures["kinds"]["image-q32"]
    assert set(rows) == {"exact", "4bit default"}
    assert all(set(row["ms"]) == {"1", "2"} for row in rows.values())
    assert rows["4bit default"]["quality"]["at_100"] == 1  # all 60 are found
    # Random vectors do not cluster, and 4 bits tell neighbours apart less well; chance is 1/6.
    assert rows["4bit default"]["quality"]["at_10"] >= 0.8
    assert figures["fast_plaid"] == {"skipped": "no module fast_plaid"}
    assert torch.__version__ in figures["machine"]


def test_without_the_device_it_says_that_it_was_not_run(benchmark, data, monkeypatch, capsys):
    def missing(name):
        raise UserError("index: the device 'cuda' cannot be used")

    monkeypatch.setattr(benchmark, "device_of", missing)
    monkeypatch.setattr(sys, "argv", ["search_cuda.py", "--data", str(data)])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "not run: index: the device 'cuda' cannot be used\n"
