"""How indexes report what they do while they are built and changed."""

import numpy as np
import pytest
from helpers.index_files import kind_of, names, units

from ravqa.indexes.base import Index, build_index
from ravqa.indexes.compressed import codec


def stages(seen):
    """The reports of each stage, in order."""
    found = {}
    for what, done, total in seen:
        found.setdefault(what, []).append((done, total))
    return found


def rising(reports, total):
    """Whether reports rise to the total without a step back."""
    done = [n for n, _ in reports]
    return done == sorted(done) and done[-1] == total and {t for _, t in reports} == {total}


@pytest.fixture
def passages():
    rng = np.random.default_rng(0)
    return [units(rng, 1 + i % 3, 8) for i in range(30)]


def build(kind, passages, path, **options):
    seen = []
    index = build_index(
        kind_of(kind),
        names(len(passages)),
        passages,
        path,
        dim=8,
        config=kind_of(kind).Config(**options),
        fingerprint="x",
        progress=lambda *step: seen.append(step),
    )
    return index, stages(seen)


def test_an_exact_index_reports_what_it_reads_and_what_it_writes(passages, tmp_path):
    index, seen = build("exact", passages, tmp_path / "index")
    assert list(seen) == ["reading vectors", "writing the index"]
    assert all(rising(reports, 30) for reports in seen.values())
    assert len(index) == 30


def test_a_compressed_index_reports_rounds_and_blocks(passages, tmp_path, monkeypatch):
    monkeypatch.setattr("ravqa.indexes.compressed.index.blocks", lambda n: codec.blocks(n, 10))
    index, seen = build("auto", passages, tmp_path / "index", above=30)
    assert index.kind == "compressed"
    assert list(seen) == ["reading vectors", "choosing centroids (rounds)", "compressing vectors"]
    assert rising(seen["reading vectors"], 30)
    assert seen["choosing centroids (rounds)"] == [(n, 6) for n in range(7)]
    assert rising(seen["compressing vectors"], 60)
    assert len(seen["compressing vectors"]) >= 6
    changes = []
    index.change(["new"], passages[:1], progress=lambda *step: changes.append(step))
    compressing = [("compressing vectors", n, 1) for n in (0, 1)]
    assert changes == [("reading vectors", 1, 1), *compressing]


def test_a_sharded_index_reports_its_shards(passages, tmp_path):
    _, seen = build("sharded", passages, tmp_path / "index", shards=3)
    assert seen == {"building shards": [(n, 3) for n in range(4)]}


class Slow(Index):
    """An index that does not report."""

    kind = "slow"
    at = ()

    def __init__(self, seen):
        self.seen = seen

    built = open = staticmethod(lambda path: None)

    @classmethod
    def build(cls, ids, embeddings, path, *, dim, config=None, fingerprint=""):
        list(embeddings)
        cls.at = (dim, config, fingerprint, ids)
        return cls(list(path))


def test_of_an_index_that_does_not_report_the_passages_that_it_reads_are_counted(passages):
    seen = []
    made = build_index(
        Slow,
        names(3),
        iter(passages[:3]),
        seen,
        dim=8,
        config="c",
        fingerprint="f",
        progress=lambda *step: seen.append(step),
    )
    what = "building the index"
    assert made.seen == [(what, 0, 3), (what, 1, 3), (what, 2, 3), (what, 2, 3)]  # not yet ready
    assert seen[-1] == (what, 3, 3)
    assert Slow.at == (8, "c", "f", names(3))
    assert isinstance(build_index(Slow, [], [], [], dim=8), Slow)


def test_rounds_of_kmeans_are_reported():
    seen = []
    points = units(np.random.default_rng(1), 40, 8)
    codec.kmeans(points, 4, 0, "cpu", rounds=2, progress=lambda *step: seen.append(step))
    assert seen == [("choosing centroids (rounds)", n, 2) for n in range(3)]
