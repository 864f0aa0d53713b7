"""Compare passages on disk: `ravqa.corpora.disk`'s folder, an SQLite table and an Arrow file.

Prints for each the seconds to write, to read all in order and to look up passages by random ids
(the best of three), and the ratios to the folder's seconds.

    python benchmarks/corpus_store.py [PASSAGES] [LOOKUPS]
"""

import json
import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from ravqa.core.records import Passage
from ravqa.corpora.disk import PassageFolder

WORDS = 100


def passages(count):
    chance = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    for i in range(count):
        yield Passage(f"WIT/passage/{i:08}", " ".join(chance.choices(words, k=WORDS)), f"title {i}")


class Folder:
    def __init__(self, path, made):
        path.mkdir()
        PassageFolder.write(path, made, source="benchmark")
        self.opened = PassageFolder(path)

    def stream(self):
        return self.opened.stream()

    def get(self, name):
        return self.opened.get(name)


def _values(p):
    others = [p.entity, p.url, dict(p.extra), p.section, p.article]
    return p.passage_id, p.text, p.title, json.dumps(others)


def _passage(name, text, title, others):
    return Passage(name, text, title, None, *json.loads(others))


class Sqlite:
    def __init__(self, path, made):
        self.connection = sqlite3.connect(path)
        self.connection.execute("CREATE TABLE p (id TEXT UNIQUE, text TEXT, title TEXT, rest TEXT)")
        with self.connection:
            self.connection.executemany("INSERT INTO p VALUES (?, ?, ?, ?)", map(_values, made))

    def stream(self):
        return (_passage(*row) for row in self.connection.execute("SELECT * FROM p ORDER BY rowid"))

    def get(self, name):
        return _passage(
            *self.connection.execute("SELECT * FROM p WHERE id = ?", (name,)).fetchone()
        )


class Arrow:
    """Memory-mapped; Arrow has no index, so the index of ids is in memory."""

    def __init__(self, path, made):
        import pyarrow as pa

        schema = pa.schema([(name, pa.large_string()) for name in ("id", "text", "title", "rest")])
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, schema) as writer:
            rows = []
            for passage in made:
                rows.append(_values(passage))
                if len(rows) == 4096:
                    writer.write_batch(self._batch(rows, schema))
                    rows = []
            writer.write_batch(self._batch(rows, schema))
        self.table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        self.columns = [column.chunk(0) for column in self.table.columns]
        self.rows = {name.as_py(): row for row, name in enumerate(self.columns[0])}

    def _batch(self, rows, schema):
        import pyarrow as pa

        return pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=schema)

    def stream(self):
        for batch in self.table.to_batches(4096):
            columns = [column.to_pylist() for column in batch.columns]
            yield from map(_passage, *columns)

    def get(self, name):
        row = self.rows[name]
        return _passage(*(column[row].as_py() for column in self.columns))


def timed(work):
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main(count=100_000, lookups=20_000):
    made = list(passages(count))
    ids = [f"WIT/passage/{i:08}" for i in random.Random(1).choices(range(count), k=lookups)]
    base = None
    for kind in (Folder, Sqlite, Arrow):
        best = [float("inf")] * 3
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                write, store = timed(lambda: kind(Path(folder) / "store", iter(made)))  # noqa: B023
                read, found = timed(lambda: sum(len(p.text) for p in store.stream()))  # noqa: B023
                assert found == sum(len(p.text) for p in made)
                look, found = timed(lambda: [store.get(name) for name in ids])  # noqa: B023
                assert [p.passage_id for p in found] == ids
                best = [min(pair) for pair in zip(best, (write, read, look), strict=True)]
        base = base or best
        ratios = " ".join(
            f"{name} {seconds:.2f} s ({seconds / reference:.2f}x)"
            for name, seconds, reference in zip(
                ("write", "read", "look up"), best, base, strict=True
            )
        )
        print(f"{kind.__name__:8} {ratios}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
