"""What the tasks of `scale.py` do, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scale_data import (
    DIM,
    WHOLE,
    Query,
    Texts,
    Vectors,
    encode,
    make_queries,
    number_of,
    passage_id,
    read_queries,
)

import ravqa.corpora.corpus
from ravqa.core.files import atomic_write
from ravqa.core.records import Question
from ravqa.corpora.corpus import Corpus

K = 100
_KEPT = 2 * K  # exact results that are kept, so that equal scores are known
_EQUAL = 1e-5  # relative difference of scores that rounding may make
_EFFORTS = ("fast", "default", "careful")
_PIPELINE = "bm25-retrieval"  # that doctor examines with the passages

Report = Callable[[str, int, int], object]
Figures = dict[str, Any]


class Place(NamedTuple):
    """Where the data of one size are.

    Attributes:
        folder: what all sizes share: the real texts, the encoded vectors.
        own: what is of this number of passages.
    """

    folder: Path
    own: Path
    passages: int
    encoded: int
    queries: int

    @property
    def file(self) -> Path:
        return self.own / "passages.jsonl"

    @property
    def vectors(self) -> Vectors:
        return Vectors(self.folder / "encoded", self.texts, self.passages)

    @property
    def texts(self) -> Texts:
        return Texts(self.folder / "real.json", self.encoded)


def run(task: str, place: Place, report: Report) -> Figures:
    """Do a task; return its figures besides seconds and memory."""
    os.environ["RAVQA_CACHE"] = str(place.own / "cache")
    # As for large files, so that all sizes are measured alike.
    ravqa.corpora.corpus.IN_MEMORY = 0
    name, _, rest = task.partition(" ")
    return {
        "corpus": _corpus,
        "doctor": _doctor,
        "bm25": _bm25,
        "encode": _encode,
        "dense": _dense,
        "late": _late,
        "exact": _exact,
        "search": _search,
    }[name](place, report, *([rest] if rest else []))


def _bytes(*paths: Path) -> int:
    return sum(
        file.stat().st_size
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )


# -- texts ------------------------------------------------------------------------------------


def _corpus(place: Place, report: Report) -> Figures:
    """Write the passages as a file, and read it as ravqa does."""
    texts, part = place.texts, place.file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as out:
        for i in range(place.passages):
            out.write(json.dumps({"passage_id": passage_id(i), "text": texts(i)}) + "\n")
            if i % 1000 == 999:
                report("writing texts", i + 1, place.passages)
    part.rename(place.file)
    wall, processor = time.perf_counter(), time.process_time()
    corpus = Corpus.read(place.file)
    assert len(corpus) == place.passages
    return {
        "seconds": time.perf_counter() - wall,  # making the texts is no part of it
        "processor_seconds": time.process_time() - processor,
        "bytes": _bytes(place.own / "cache" / "corpora"),
        "text_bytes": _bytes(place.file),
        "real": texts.real,
    }


def _doctor(place: Place, report: Report) -> Figures:
    """Examine a run with these passages, as `ravqa doctor --dataset okvqa --corpus FILE` does."""
    from ravqa.cli.doctor import examine
    from ravqa.runs.options import RunRequest

    request = RunRequest(
        dataset="okvqa", corpus=[place.file], pipeline=_PIPELINE, retrieval_only=True
    )
    found = examine(request)
    assert found.pipeline is not None
    return {"stops": found.pipeline.stops}


def _bm25(place: Place, report: Report) -> Figures:
    from ravqa.retrievers.bm25 import BM25Retriever

    BM25Retriever(BM25Retriever.Config()).prepare(Corpus.read(place.file), report)
    return {"bytes": _bytes(place.own / "cache" / "bm25")}


# -- vectors ----------------------------------------------------------------------------------


def _encode(place: Place, report: Report) -> Figures:
    """Encode what is missing, and the queries; count the chunks of runs that were killed too."""
    folder = place.folder / "encoded"
    log = place.folder / "encoding.jsonl"
    clocks = time.perf_counter(), time.process_time()

    def done(passages: int) -> None:
        nonlocal clocks
        now = time.perf_counter(), time.process_time()
        row = [os.getpid(), passages, now[0] - clocks[0], now[1] - clocks[1]]
        clocks = now
        with log.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    encode(folder, place.texts, lambda n, total: report("encoding", n, total), done)
    make_queries(folder, place.own / "queries.json", place.texts, place.passages, place.queries)
    runs, _, wall, processor = zip(*_rows(log), strict=True)
    return {
        "seconds": sum(wall),
        "processor_seconds": sum(processor),
        "bytes": _bytes(folder),
        "runs": len(set(runs)),
    }


def _rows(log: Path) -> Iterator[list[float]]:
    """Yield the lines of a log; a line may have been cut off by a kill."""
    for line in log.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def _dense(place: Place, report: Report, factory: str) -> Figures:
    from ravqa.indexes.faiss import FaissIndex

    path = _fresh(place.own / f"dense-{_slug(factory)}")
    vectors = (row[None] for block in place.vectors for row in block.whole)
    names = [passage_id(i) for i in range(place.passages)]
    config = FaissIndex.Config(factory=factory, device="cpu")
    FaissIndex.build(names, vectors, path, dim=WHOLE, config=config, progress=report)
    return {"bytes": _bytes(path)}


def _late(place: Place, report: Report) -> Figures:
    from ravqa.indexes.compressed.index import CompressedIndex

    path = _fresh(place.own / "late")
    vectors = (
        block.tokens[end - length : end]
        for block in place.vectors
        for end, length in zip(np.cumsum(block.lengths), block.lengths, strict=True)
    )
    names = [passage_id(i) for i in range(place.passages)]
    made = CompressedIndex.build(names, vectors, path, dim=DIM, progress=report)
    stats = made.stats()
    return {"bytes": _bytes(path), "vectors": stats["vectors"]}


def _fresh(path: Path) -> Path:
    """Return a path where nothing is, such as what a killed build has left."""
    shutil.rmtree(path, ignore_errors=True)
    return path


def _slug(factory: str) -> str:
    return re.sub(r"\W+", "-", factory)


# -- exact results ----------------------------------------------------------------------------


class _Best:
    """The passages with the greatest scores of those that were added."""

    def __init__(self) -> None:
        self.scores = np.zeros(0, np.float32)
        self.numbers = np.zeros(0, np.int64)

    def add(self, first: int, scores: np.ndarray[Any, Any]) -> None:
        self.scores = np.concatenate([self.scores, scores])
        self.numbers = np.concatenate([self.numbers, np.arange(first, first + len(scores))])
        best = np.argsort(-self.scores, kind="stable")[:_KEPT]
        self.scores, self.numbers = self.scores[best], self.numbers[best]


def _exact(place: Place, report: Report) -> Figures:
    """Write the best passages of every query: by all vectors, and by the words of all texts."""
    queries = read_queries(place.own / "queries.json")
    late, dense = [_Best() for _ in queries], [_Best() for _ in queries]
    tokens = np.concatenate([query.tokens for query in queries])
    begins = np.cumsum([0, *(len(query.tokens) for query in queries[:-1])])
    whole = np.stack([query.whole for query in queries])
    for block in place.vectors:
        own = np.full((len(queries), len(block.lengths)), -np.inf, np.float32)
        filled = np.flatnonzero(block.lengths)
        products = tokens @ block.tokens.astype(np.float32).T
        starts = (np.cumsum(block.lengths) - block.lengths)[filled]
        best = np.maximum.reduceat(products, starts, axis=1)
        own[:, filled] = np.add.reduceat(best, begins, axis=0)
        other = whole @ block.whole.astype(np.float32).T
        for i in range(len(queries)):
            late[i].add(block.first, own[i])
            dense[i].add(block.first, other[i])
        report("comparing all vectors", block.first + len(block.lengths), place.passages)
    found = {"late": late, "dense": dense}
    rows = {
        name: [[b.numbers.tolist(), b.scores.tolist()] for b in own] for name, own in found.items()
    }
    rows["bm25"] = [
        list(map(list, zip(*own, strict=True))) or [[], []]
        for own in _by_words(place, queries, report)
    ]
    atomic_write(place.own / "exact.json", json.dumps(rows))
    return {}


def _by_words(
    place: Place, queries: Sequence[Query], report: Report
) -> list[list[tuple[int, float]]]:
    """Return every query's best passages by BM25's formula, k1 1.5 and b 0.75, and scores."""
    from bm25s.stopwords import STOPWORDS_EN

    word, stop = re.compile(r"\b\w\w+\b"), set(STOPWORDS_EN)
    asked = [[w for w in word.findall(q.text.lower()) if w not in stop] for q in queries]
    wanted = {w for words in asked for w in words}
    counts: dict[str, list[tuple[int, int]]] = {w: [] for w in wanted}
    lengths = np.empty(place.passages)
    for i, passage in enumerate(Corpus.read(place.file).stream()):
        words = [w for w in word.findall(passage.content.lower()) if w not in stop]
        lengths[i] = len(words)
        for found, count in Counter(w for w in words if w in wanted).items():
            counts[found].append((i, count))
        if i % 1000 == 999:
            report("comparing all words", i + 1, place.passages)
    norms = 1.5 * (0.25 + 0.75 * lengths / lengths.mean())
    out = []
    for words in asked:
        scores = np.zeros(place.passages)
        for w in words:
            if counts[w]:
                rows, tf = np.array(counts[w]).T
                idf = np.log(1 + (place.passages - len(rows) + 0.5) / (len(rows) + 0.5))
                scores[rows] += idf * tf / (tf + norms[rows])
        best = np.argsort(-scores, kind="stable")[:_KEPT]
        out.append([(int(i), float(scores[i])) for i in best if scores[i] > 0])
    return out


# -- searches ---------------------------------------------------------------------------------


def _search(place: Place, report: Report, what: str) -> Figures:
    """Search for every query alone, once to warm up and once to measure."""
    queries = read_queries(place.own / "queries.json")
    name, _, factory = what.partition(" ")
    exact = json.loads((place.own / "exact.json").read_text(encoding="utf-8"))[name]
    before = time.process_time()
    settings = {"bm25": _bm25_searches, "dense": _dense_searches, "late": _late_searches}[name](
        place, factory
    )
    figures: Figures = {"opening_processor_seconds": time.process_time() - before, "settings": {}}
    for done, (setting, search) in enumerate(settings.items()):
        report("searching", done, len(settings))
        for query in queries[:3]:
            search(query)
        walls, processors, found = [], [], []
        for query in queries:
            wall, processor = time.perf_counter(), time.process_time()
            found.append(search(query))
            walls.append(time.perf_counter() - wall)
            processors.append(time.process_time() - processor)
        figures["settings"][setting] = {
            "ms": 1000 * float(np.median(walls)),
            "processor_ms": 1000 * float(np.median(processors)),
            "recall@10": recall(found, exact, 10),
            "recall@100": recall(found, exact, K),
            "targets": float(
                np.mean([q.target in f[:K] for q, f in zip(queries, found, strict=True)])
            ),
        }
    report("searching", len(settings), len(settings))
    return figures


def recall(
    found: Sequence[Sequence[int]], exact: Sequence[tuple[list[int], list[float]]], k: int
) -> float:
    """Return the mean share of each query's k best passages that were found; equal scores count."""
    shares = []
    for own, (numbers, scores) in zip(found, exact, strict=True):
        if not scores:
            continue  # no passage has a word of the query
        least = scores[min(k, len(scores)) - 1]
        good = {n for n, s in zip(numbers, scores, strict=True) if s >= least - _EQUAL * abs(least)}
        shares.append(len(good.intersection(own[:k])) / min(k, len(scores)))
    return float(np.mean(shares))


_Searches = dict[str, Callable[[Query], list[int]]]


def _bm25_searches(place: Place, _: str) -> _Searches:
    from ravqa.retrievers.bm25 import BM25Retriever

    for file in (place.own / "cache").glob("rankings*"):  # of a search that was killed
        file.unlink()
    retriever = BM25Retriever(BM25Retriever.Config())
    retriever.prepare(Corpus.read(place.file))
    calls = 0

    def search(query: Query) -> list[int]:
        nonlocal calls
        calls += 1  # another k each time: rankings are kept by query and k
        [hits] = retriever.retrieve([Question(query.target, query.text)], K + calls)
        return [number_of(hit.passage_id) for hit in hits]

    return {"": search}


def _dense_searches(place: Place, factory: str) -> _Searches:
    from ravqa.indexes.faiss import FaissIndex

    path = place.own / f"dense-{_slug(factory)}"
    index = FaissIndex.open(path, FaissIndex.Config(factory=factory, device="cpu"))
    several: list[dict[str, Any]] = [{}]
    if "IVF" in factory:
        several = [{"nprobe": 16}, {"nprobe": 64}]
    elif "HNSW" in factory:
        several = [{"ef_search": 64}, {"ef_search": 256}]
    return {
        " ".join(f"{key}={value}" for key, value in params.items()): lambda query, params=params: [
            number_of(i) for i, _ in index.search([query.whole[None]], K, **params)[0]
        ]
        for params in several
    }


def _late_searches(place: Place, _: str) -> _Searches:
    from ravqa.indexes.compressed.index import CompressedIndex

    index = CompressedIndex.open(place.own / "late")
    return {
        effort: lambda query, effort=effort: [
            number_of(i) for i, _ in index.search([query.tokens], K, effort=effort)[0]
        ]
        for effort in _EFFORTS
    }
