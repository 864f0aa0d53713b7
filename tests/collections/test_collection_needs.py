"""What a build will need, said before it, and the disk that is too small for it."""

import itertools
import json
import shutil
from collections import namedtuple
from dataclasses import replace

import collection_files
import numpy as np
import pytest
from study_files import call

from ravqa.collections import Collection, needs
from ravqa.core.errors import UserError
from ravqa.core.records import Passage
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import Encoded
from ravqa.indexes import INDEXES
from ravqa.indexes.base import Footprint

pytestmark = pytest.mark.usefixtures("fresh_cache")
DIM = 16


def sources(tmp_path, count):
    file = tmp_path / "passages.jsonl"
    rows = [{"passage_id": str(i), "text": f"the koala sleeps near tree {i}"} for i in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def full(monkeypatch):
    """A disk with almost no space."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 5000, 5000))


class Counted:
    """An encoder whose passages have two vectors each, in float16."""

    def __init__(self):
        self.given = []

    def encode_passages(self, passages):
        self.given.append([p.passage_id for p in passages])
        return Encoded([np.zeros((2, DIM), np.float16) for _ in passages])


def test_the_first_passages_stand_for_all(monkeypatch):
    ticks = itertools.cycle([10.0, 16.0])
    monkeypatch.setattr(needs.time, "perf_counter", lambda: next(ticks))
    corpus = Corpus(Passage(str(i), "four") for i in range(640))
    encoder = Counted()
    ids = list(corpus)[40:]
    made = needs.estimate(corpus, ids, encoder, Footprint(10.0, 3.0, 1e12), elsewhere=False)
    assert encoder.given == [ids[:4], ids[4:64]]
    assert (made.passages, made.sample, made.vectors) == (600, 64, 1200)
    assert made.seconds == pytest.approx(60.0)  # 6 s for 60
    assert made.cache == 1200 * DIM * 2
    assert made.folder == 1200 * 10 + 600 * (40 + len("four") + len("{}"))
    assert 1e12 + 3600 < made.memory < 1.1e12
    assert str(made).startswith("600 passages to encode, 1,200 vectors; time: about 60 s; disk: 78")
    few = needs.estimate(corpus, ids[:1], encoder, None, elsewhere=True)
    assert (few.vectors, few.folder, few.memory) == (2, None, None)
    assert "disk: not known for this index; memory: not known" in str(few)


def test_a_disk_that_is_too_small_is_one_line(tmp_path, full):
    made = needs.Needs(100, 64, 200, 1.0, cache=3000, folder=2500, memory=None, elsewhere=False)
    with pytest.raises(UserError, match=r"is too small: 5\.5 KB are needed .* 5\.0 KB are free"):
        made.check_disk(tmp_path / "not" / "there" / "yet")
    replace(made, folder=1500).check_disk(tmp_path)
    replace(made, folder=None).check_disk(tmp_path)


def test_a_dry_run_says_what_it_would_need_and_builds_nothing(tmp_path, capsys):
    file = sources(tmp_path, 30)
    pipeline = collection_files.pipeline(tmp_path)
    arguments = ("collection", "build", tmp_path / "new", file, "--pipeline", pipeline)
    code, out, err = call(capsys, *arguments, "--dry-run")
    assert code == 0, err
    assert out.startswith("30 passages to encode, 180 vectors; time: about 0 s; disk: ")
    assert out.endswith("(by the first 30)\n")
    assert not (tmp_path / "new").exists()


def test_a_build_of_many_stops_before_it_begins(tmp_path, capsys, monkeypatch, full):
    monkeypatch.setattr("ravqa.cli.collection._MANY", 20)
    file = sources(tmp_path, 30)
    pipeline = collection_files.pipeline(tmp_path)
    arguments = ("collection", "build", tmp_path / "new", file, "--pipeline", pipeline)
    for extra in ((), ("--dry-run",)):
        code, _, err = call(capsys, *arguments, *extra)
        assert code == 2
        assert err.splitlines()[-1].startswith("error: the disk of ")
        assert "is too small: " in err
    assert len(Collection.open(tmp_path / "new")) == 0
    monkeypatch.setattr("ravqa.cli.collection._MANY", 31)
    assert call(capsys, *arguments)[:2] == (0, "30 passages added\n")
    monkeypatch.setattr("ravqa.cli.collection._MANY", 20)
    assert call(capsys, "collection", "add", tmp_path / "new", file)[0] == 0  # nothing is new


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "slack"),
    [
        *(("exact", {"storage": s}, 1.02) for s in ("float16", "float32", "int8")),
        *(("compressed", {"storage": s}, 1.5) for s in ("9bit", "4bit", "float16")),
        *(("faiss", {"factory": f}, 1.1) for f in ("Flat", "SQ8", "IVF16,Flat", "HNSW16")),
        ("sharded", {"shard": {"name": "exact"}, "shards": 2}, 1.02),
        ("qdrant", {"storage": "float16"}, 1.3),
    ],
)
def test_footprints_are_those_of_built_indexes(tmp_path, name, options, slack):
    """Of the files that stay: what is spooled is as large as the options say."""
    if name in ("faiss", "qdrant"):
        pytest.importorskip({"qdrant": "qdrant_edge"}.get(name, name))
    dim, count, each = 128, 400, 60
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count * each, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kind = INDEXES.get(name)
    config = kind.Config(**options)
    path = tmp_path / "index"
    ids = [str(i) for i in range(count)]
    kind.build(ids, np.split(rows, count), path, dim=dim, config=config).close()
    stored = sum(f.stat().st_blocks * 512 for f in path.rglob("*") if f.is_file())
    spool = {"exact": 2 if options.get("storage") == "float16" else 4, "compressed": 2, "faiss": 4}
    spooled = {"sharded": 2, "qdrant": 0}.get(name, spool.get(name))
    found = kind.footprint(config, dim, count).disk - spooled * dim
    assert stored / slack <= found * len(rows) <= stored * slack
