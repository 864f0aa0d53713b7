"""A corpus's vectors on disk while they are computed, in chunks, so that a killed run can resume.

The folder has `meta.json`, and one file per chunk of passages with `vectors` [all vectors, dim],
`lengths` [passages] and `stats`, and their checksum. Each file is written beside its final name,
flushed to disk and renamed, so a file with that name is complete. Several processes (torchrun,
accelerate) share the chunks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from ravqa.core.cluster import encoding_workers
from ravqa.core.contracts import raised_by
from ravqa.core.devices import processes
from ravqa.core.errors import DamagedError, UserError, first_line
from ravqa.core.files import atomic_write, lock, written_beside
from ravqa.core.records import Passage
from ravqa.core.stored import as_type, read_json
from ravqa.encoders.base import (
    Encoded,
    Encoder,
    EncodingStats,
    Vectors,
    checked_vectors,
)

_log = logging.getLogger(__name__)

_FORMAT = 1
_CHUNK = 2048  # passages in a file of a large corpus
_MIN_CHUNK = 256  # fewer do not fill batches of one length
_CHUNKS = 64  # files of other corpora: a kill costs little, every process gets a share


_ARRAYS = ("vectors", "lengths", "stats")


@dataclass(frozen=True)
class _Meta:
    """Content of `meta.json`; see `EmbeddingStore`."""

    format: int
    encoder: str
    corpus: str
    passages: int
    dim: int
    chunk: Annotated[int, Field(ge=1)]


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
            DamagedError: its meta.json cannot be read.
        """
        self.path = path
        self.dim = dim
        self._passages = passages
        meta = _Meta(_FORMAT, encoder, corpus, passages, dim, chunk)
        file = path / "meta.json"
        if not file.exists():
            path.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps(asdict(meta)))
        try:
            found = as_type(_Meta, read_json(file))
        except (OSError, ValueError) as e:
            raise DamagedError(
                f"{file} is damaged ({e}): delete the folder and encode again"
            ) from None
        self.chunk = found.chunk
        wanted = asdict(replace(meta, chunk=found.chunk))
        for key, value in asdict(found).items():
            if wanted[key] != value:
                raise UserError(
                    f"the vectors in {path} are of another {key} ({value}, not {wanted[key]}): "
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
        return [i for i in self._numbers() if not self._whole(i)]

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
            # safetensors writes memory as it lies, which need not be row by row.
            "vectors": np.ascontiguousarray(np.concatenate(encoded)),
            "lengths": np.array([len(array) for array in encoded], dtype=np.int64),
            "stats": np.array(astuple(encoded.stats), dtype=np.int64),
        }
        with written_beside(self._file(number), others=False) as temporary:
            save_file({**arrays, "checksum": _checksum(arrays)}, temporary)

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

    def _whole(self, number: int) -> bool:
        """Return whether a chunk is there and as it was written; a damaged one is reported."""
        from safetensors import safe_open

        file = self._file(number)
        if not file.is_file():
            return False
        try:
            with safe_open(file, framework="np") as tensors:
                named = "checksum" in tensors.keys()  # noqa: SIM118 (it is no mapping)
                wanted = tensors.get_tensor("checksum") if named else None
                arrays = {name: tensors.get_tensor(name) for name in _ARRAYS}
            lengths, shape = arrays["lengths"], arrays["vectors"].shape
            fits = len(lengths) == len(self.rows(number)) and shape == (lengths.sum(), self.dim)
            # Older versions wrote no checksum.
            if fits and (wanted is None or np.array_equal(wanted, _checksum(arrays))):
                return True
            problem = "its content was changed"
        except Exception as e:  # changed bytes fail in many ways
            problem = first_line(e)
        _log.warning("%s is damaged (%s): it is made again", file, problem)
        return False

    def _read_stats(self, number: int) -> EncodingStats | None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(number), framework="np") as tensors:
                return EncodingStats(*tensors.get_tensor("stats").tolist())
        except (OSError, SafetensorError, TypeError):
            return None


def _checksum(arrays: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for name in _ARRAYS:
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return np.frombuffer(digest.digest(), np.uint8)


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
        DamagedError: its meta.json cannot be read.
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
    if missing and (workers := encoding_workers()) is not None:
        from ravqa.encoders.on_ray import encode_on_ray

        encode_on_ray(workers, encoder, corpus, ids, store, missing, count)
        missing = []
    for i in missing[state.process_index :: state.num_processes]:
        passages = [corpus[ids[row]] for row in store.rows(i)]
        with raised_by("encoder", encoder, "from encode_passages"):
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
