"""A corpus's vectors on disk while they are computed, in chunks, so that a killed run can resume.

The folder has `meta.json`, and one file per chunk of passages with `vectors` [all vectors, dim],
`lengths` [passages] and `stats`. Each file is written beside its final name, flushed to disk and
renamed, so a file with that name is complete. Several processes (torchrun, accelerate) share the
chunks.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ravqa.core.devices import processes
from ravqa.core.errors import UserError
from ravqa.core.files import atomic_write, lock, written_beside
from ravqa.core.records import Passage
from ravqa.encoders.base import (
    Encoded,
    Encoder,
    EncodingStats,
    Vectors,
    checked_vectors,
)

_FORMAT = 1
_CHUNK = 2048  # passages in a file of a large corpus
_MIN_CHUNK = 256  # fewer do not fill batches of one length
_CHUNKS = 64  # files of other corpora: a kill costs little, every process gets a share


class Passages(Protocol):
    """The required part of a corpus: a mapping from ids to passages, in order."""

    fingerprint: str

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, passage_id: str, /) -> Passage: ...


class EmbeddingStore:
    """The vectors of one corpus by one encoder, complete or partial."""

    def __init__(
        self, path: Path, *, encoder: str, corpus: str, passages: int, dim: int, chunk: int
    ):
        """Open the folder, or create it.

        Args:
            path: the folder.
            encoder, corpus: fingerprints of the encoder and of the corpus.
            passages: number of passages in the corpus.
            dim: length of a vector.
            chunk: passages per file; an existing folder keeps its own value.

        Raises:
            UserError: the folder holds vectors by another encoder or of another corpus.
        """
        self.path = path
        self.dim = dim
        self._passages = passages
        meta = {
            "format": _FORMAT,
            "encoder": encoder,
            "corpus": corpus,
            "passages": passages,
            "dim": dim,
        }
        file = path / "meta.json"
        if not file.exists():
            path.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps({**meta, "chunk": chunk}))
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            self.chunk = int(found["chunk"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file} is damaged: delete the folder and encode again") from None
        for key, value in meta.items():
            if found.get(key) != value:
                raise UserError(
                    f"the vectors in {path} are of another {key} ({found.get(key)}, not {value}): "
                    "delete the folder, or choose another"
                )

    def __len__(self) -> int:
        return self._passages

    def rows(self, number: int) -> range:
        """Return the positions in the corpus of a chunk's passages."""
        start = number * self.chunk
        return range(start, min(start + self.chunk, len(self)))

    def missing(self) -> list[int]:
        """Return the numbers of the chunks still to be encoded, including damaged ones."""
        return [i for i in self._numbers() if self._read_stats(i) is None]

    def write(self, number: int, encoded: Encoded) -> None:
        """Store a chunk: one array [vectors, dim] for each of its passages.

        Raises:
            ValueError: the number of arrays or the length of the vectors is wrong.
        """
        from safetensors.numpy import save_file

        rows = self.rows(number)
        if len(encoded) != len(rows) or any(a.shape[1:] != (self.dim,) for a in encoded):
            raise ValueError(f"{len(rows)} arrays [vectors, {self.dim}] are expected")
        arrays = {
            "vectors": np.concatenate(encoded),
            "lengths": np.array([len(array) for array in encoded], dtype=np.int64),
            "stats": np.array(astuple(encoded.stats), dtype=np.int64),
        }
        with written_beside(self._file(number)) as temporary:
            save_file(arrays, temporary)

    def __iter__(self) -> Iterator[Vectors]:
        """Yield every passage's array, in the order of the corpus, with one file open at a time.

        Raises:
            UserError: a chunk is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        for i in self._numbers():
            try:
                with safe_open(self._file(i), framework="np") as tensors:
                    ends = np.cumsum(tensors.get_tensor("lengths")).tolist()
                    vectors = tensors.get_slice("vectors")
                    # Some versions refuse slices without rows.
                    none = vectors[:1][:0] if ends[-1] else tensors.get_tensor("vectors")
                    for start, end in zip([0, *ends], ends, strict=False):
                        yield vectors[start:end] if start < end else none
            except (OSError, SafetensorError) as e:
                raise UserError(f"{self._file(i)} cannot be read: {e}") from None

    @property
    def stats(self) -> EncodingStats:
        """Return the counts over all chunks that are on disk."""
        found = (self._read_stats(i) for i in self._numbers())
        return sum((stats for stats in found if stats is not None), EncodingStats())

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _numbers(self) -> range:
        return range(-(-len(self) // self.chunk))

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06}.safetensors"

    def _read_stats(self, number: int) -> EncodingStats | None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(number), framework="np") as tensors:
                return EncodingStats(*tensors.get_tensor("stats").tolist())
        except (OSError, SafetensorError, TypeError):
            return None


def corpus_embeddings(
    encoder: Encoder,
    corpus: Passages,
    path: Path,
    progress: Callable[[int, int], object] | None = None,
) -> EmbeddingStore:
    """Return every passage's vectors, in order; encode those that the folder `path` lacks.

    If there are several processes, all must call this; they share the work, and wait for each
    other at the end.

    Args:
        encoder: encodes passages.
        corpus: the passages.
        path: folder of the store.
        progress: called as progress(done, total), in passages; other processes are assumed to have
            done as much as this one.

    Raises:
        UserError: the folder holds vectors by another encoder or of another corpus.
    """
    state = processes()
    ids = list(corpus)
    store = EmbeddingStore(
        path,
        encoder=encoder.passages_fingerprint,
        corpus=corpus.fingerprint,
        passages=len(ids),
        dim=encoder.dim,
        chunk=min(_CHUNK, max(_MIN_CHUNK, len(ids) // _CHUNKS)),
    )
    missing = store.missing()
    state.wait_for_everyone()  # all must have looked before one writes
    done = len(ids) - sum(len(store.rows(i)) for i in missing)

    def count(n: int) -> None:
        nonlocal done
        done = min(len(ids), done + n)
        if progress:
            progress(done, len(ids))

    count(0)
    for i in missing[state.process_index :: state.num_processes]:
        passages = [corpus[ids[row]] for row in store.rows(i)]
        found = encoder.encode_passages(passages, lambda n: count(n * state.num_processes))
        store.write(i, checked_vectors(encoder, found, len(passages)))
    state.wait_for_everyone()
    count(len(ids))
    return store


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[Any]:
    """Let only one run at a time make what is at `path`; others wait until it ends.

    All cooperating processes of a run must enter; yields accelerate's state of them.
    """
    state = processes()
    with contextlib.ExitStack() as stack:
        if state.is_main_process:
            name = f"{path.name}.lock"
            stack.enter_context(lock(path.parent, path.name, name=name, wait=None))
        state.wait_for_everyone()
        yield state
        state.wait_for_everyone()
