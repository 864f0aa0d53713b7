"""Passages encoded by the workers of a Ray cluster, as a stream of Ray Data.

The chunks that an `EmbeddingStore` lacks are its tasks: this process writes each one's passages
beside the store, and workers, each with an encoder, write the vectors. So every chunk is encoded as
one process would, no text passes through Ray's memory, and what was written before a kill, of a
worker, of this process or of the cluster, is not encoded again.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ravqa.core.cluster import Crew, Head, WorkerOptions, connected
from ravqa.core.contracts import raised_by
from ravqa.core.errors import UserError, first_line, import_extra
from ravqa.core.files import atomic_write
from ravqa.core.records import Passage
from ravqa.encoders.base import Encoder, checked_vectors
from ravqa.encoders.store import EmbeddingStore, Passages

_WHY = "--workers ray"
_POLL_S = 2.0
_PASSAGES = TypeAdapter(list[Passage])


def encode_on_ray(
    workers: WorkerOptions,
    encoder: Encoder,
    corpus: Passages,
    ids: Sequence[str],
    store: EmbeddingStore,
    missing: Sequence[int],
    count: Callable[[int], object],
) -> None:
    """Encode the missing chunks of a store, and return once all are written.

    Args:
        workers: how many there are, and what each one needs.
        encoder: what each worker builds again.
        ids: of all passages, in order.
        count: called with the number of passages of each chunk that was written.

    Raises:
        UserError: the cluster, a node or a worker lacks what is needed; the head is lost.
        OSError: a worker cannot write, as its disk is full.
    """
    ray = connected(_WHY)
    data = import_extra("ray.data", "ray", why=_WHY)
    number, options = workers.settled(ray)
    number = min(number, len(missing))
    # Ray Data would wait for ever for what these cannot have.
    check: Crew[None] = Crew(
        [_nothing] * number, options=options, what="the worker", why=_WHY, folder=store.path
    )
    check.close()
    for i in missing:
        passages = [corpus[ids[row]] for row in store.rows(i)]
        atomic_write(_passages_file(store.path, i), _PASSAGES.dump_json(passages))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    chunks = data.from_items([{"chunk": i} for i in missing], override_num_blocks=len(missing))
    made = chunks.map(
        _Worker,
        fn_constructor_args=(
            partial(type(encoder), encoder.config),
            encoder.passages_fingerprint,
            store,
        ),
        compute=data.ActorPoolStrategy(min_size=1, max_size=number),
        **options,
    )
    for row in _watched(made.iter_rows(), Head(ray)):
        count(len(store.rows(int(row["chunk"]))))


def _nothing() -> None:
    """Make nothing."""


def _passages_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.passages"


class _Worker:
    """An encoder in a worker of Ray Data."""

    def __init__(self, make: Callable[[], Encoder], fingerprint: str, store: EmbeddingStore):
        self._encoder, self._store = make(), store
        if self._encoder.passages_fingerprint != fingerprint:
            raise UserError(
                f"{_WHY}: the encoder {self._encoder.weights} of a worker is not that of this "
                "machine: its weights or the versions of packages differ"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Encode the passages of a chunk, and write their vectors."""
        number = int(row["chunk"])
        file = _passages_file(self._store.path, number)
        if file.exists():  # else another worker, now lost, has finished it
            passages = _PASSAGES.validate_json(file.read_bytes())
            with raised_by("encoder", self._encoder, "from encode_passages"):
                found = self._encoder.encode_passages(passages)
            self._store.write(number, checked_vectors(self._encoder, found, len(passages)))
            file.unlink(missing_ok=True)
        return {"chunk": number}


def _watched(rows: Iterator[dict[str, Any]], head: Head) -> Iterator[dict[str, Any]]:
    """Yield rows as they come, unless the head is lost meanwhile.

    Raises:
        UserError: the head is lost; a worker fails in a way of Ray's own.
        Exception: what a worker has raised.
    """
    arrived: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for row in rows:
                arrived.put(row)
            arrived.put(None)
        except Exception as e:
            arrived.put(e)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            item = arrived.get(timeout=_POLL_S)
        except queue.Empty:
            head.check()
            continue
        if item is None:
            return
        if isinstance(item, Exception):
            raise _reason(item) from None
        yield item


def _reason(error: Exception) -> Exception:
    """Return what a worker has raised, out of what Ray wraps around it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, UserError | OSError) and not hasattr(found, "cause"):
            return found
        found = getattr(found, "cause", None) or found.__cause__ or found.__context__
    return UserError(f"{_WHY}: a worker failed: {first_line(error)}")
