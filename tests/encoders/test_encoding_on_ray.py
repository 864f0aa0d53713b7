"""What workers of a Ray cluster do with chunks, without Ray; tests/runs/test_ray.py has Ray."""

import errno
import threading
from types import SimpleNamespace

import pytest
from collection_files import HashEncoder

from ravqa.core.cluster import WorkerOptions, encoded_on_ray, encoding_workers
from ravqa.core.errors import UserError
from ravqa.core.records import Passage
from ravqa.encoders import on_ray
from ravqa.encoders.store import EmbeddingStore

PASSAGES = [Passage(f"p{i}", f"leaf {i} of a tree") for i in range(5)]


def encoder():
    return HashEncoder(HashEncoder.Config())


@pytest.fixture
def store(tmp_path):
    made = EmbeddingStore(tmp_path, encoder="e", corpus="c", passages=5, dim=16, chunk=3)
    for number, rows in enumerate((PASSAGES[:3], PASSAGES[3:])):
        on_ray._passages_file(tmp_path, number).write_bytes(on_ray._PASSAGES.dump_json(rows))
    return made


def test_a_worker_writes_the_vectors_of_its_chunks(store, tmp_path):
    worker = on_ray._Worker(encoder, "hashes/0", store)
    assert worker({"chunk": 1}) == {"chunk": 1}
    assert store.missing() == [0]
    worker({"chunk": 0})
    assert not list(tmp_path.glob("*.passages"))
    whole = encoder().encode_document([p.content for p in PASSAGES])
    assert [a.tolist() for a in store] == [a.tolist() for a in whole]
    assert store.stats.items == 5
    # The worker was lost after it had written a chunk, but before it had said so.
    assert worker({"chunk": 0}) == {"chunk": 0}


def test_a_worker_with_other_weights_is_refused(store):
    with pytest.raises(UserError, match=r"^--workers ray: the encoder hashes of seed 0 of a work"):
        on_ray._Worker(encoder, "hashes/1", store)


def test_rows_and_errors_of_workers_come_to_the_caller():
    silent = SimpleNamespace(check=lambda: None)
    rows = [{"chunk": 0}, {"chunk": 1}]
    assert list(on_ray._watched(iter(rows), silent)) == rows

    def fails(error):
        yield rows[0]
        raise error

    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = RuntimeError("a task failed\nwith a long trace")
    wrapped.cause = full
    for error, expected in (
        (full, "No space left on device"),
        (wrapped, "No space left on device"),
        (UserError("the encoder is wrong"), "^the encoder is wrong$"),
        (RuntimeError("a node is gone\nand more"), r"^--workers ray: a worker failed: a node is"),
    ):
        found = on_ray._watched(fails(error), silent)
        assert next(found) == rows[0]
        with pytest.raises((OSError, UserError), match=expected):
            next(found)


def test_a_lost_head_ends_the_wait(monkeypatch):
    monkeypatch.setattr(on_ray, "_POLL_S", 0.01)

    def lost():
        raise UserError("the head was lost")

    def waits():
        yield threading.Event().wait(5)

    with pytest.raises(UserError, match=r"^the head was lost$"):
        next(on_ray._watched(waits(), SimpleNamespace(check=lost)))


def test_workers_encode_only_where_that_is_asked_for():
    assert encoding_workers() is None
    with encoded_on_ray(WorkerOptions(number=2)):
        assert encoding_workers() == WorkerOptions(number=2)
    assert encoding_workers() is None
