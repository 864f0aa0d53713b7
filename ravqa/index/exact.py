"""MaxSim over every passage: exact, blocked, from a memory-mapped file.

On disk a folder: `vectors.npy` [all tokens, dim] float16 or float32, passage after passage, the
passages sorted by their number of tokens; `lengths.npy` [passages] int64 and `ids.json`, both in
the order of the corpus; and `meta.json`, written last: a folder without it is not an index.
Passages of equal length lie side by side and are scored as one dense block, without padding or a
segmented maximum. Whatever the storage, products and sums are in float32. Ties go to the earlier
passage of the corpus.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ravqa.config import Strict
from ravqa.encoders.base import Vectors
from ravqa.errors import UserError

_FORMAT = 2


class ExactIndex:
    """An opened index; `build` makes one."""

    class Config(Strict):
        """Options: the storage type, and how many megabytes of vectors are scored at a time."""

        storage: Literal["float16", "float32"] = "float16"
        block_mb: int = Field(default=64, ge=1)

    def __init__(self, path: Path, config: Config | None = None):
        """Open the index in `path`.

        Raises:
            UserError: there is no whole index.
        """
        meta = read_meta(path)
        if meta is None:
            raise UserError(f"no index in {path}")
        self.path = path
        self.meta = meta
        damaged = f"the index in {path} is damaged; delete the folder and build it again"
        try:
            self.dim: int = meta["dim"]
            self.ids: list[str] = json.loads((path / "ids.json").read_text(encoding="utf-8"))
            self._vectors = np.load(path / "vectors.npy", mmap_mode="r")
            lengths = np.load(path / "lengths.npy")
        except (OSError, EOFError, ValueError, KeyError) as e:
            raise UserError(f"{damaged} ({' '.join(str(e).split())})") from None
        if len(lengths) != len(self.ids) or self._vectors.shape != (lengths.sum(), self.dim):
            raise UserError(f"{damaged} (its files do not fit together)")
        # Places in `vectors.npy`: passage `_order[i]` begins at `_offsets[i]`.
        self._order = np.argsort(lengths, kind="stable")
        self._lengths = lengths[self._order]
        self._offsets = np.concatenate([[0], np.cumsum(self._lengths)])
        self._place = np.empty(len(lengths), dtype=np.int64)
        self._place[self._order] = np.arange(len(lengths))
        self._position = {passage_id: i for i, passage_id in enumerate(self.ids)}
        self._block_mb = (config or self.Config()).block_mb

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        embeddings: Iterable[Vectors],
        path: Path,
        *,
        dim: int,
        config: Config | None = None,
        fingerprint: str = "",
    ) -> ExactIndex:
        """Write an index and open it.

        Args:
            ids: passage ids, in order, each once.
            embeddings: one array [tokens, dim] per id; taken one by one, never all in memory.
            path: folder to make; written beside and renamed when whole.
            fingerprint: what the vectors depend on; kept in `meta.json`.

        Raises:
            UserError: the folder holds an index already.
            ValueError: not one array per id, or of another width.
        """
        config = config or cls.Config()
        if len(set(ids)) != len(ids):
            raise ValueError("passage ids must be unique")
        if read_meta(path) is not None:
            raise UserError(f"{path} holds an index already")
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=path.name + ".", dir=path.parent))
        try:
            counts: list[int] = []
            with (work / "raw").open("wb") as raw:
                for array in embeddings:
                    if array.ndim != 2 or array.shape[1] != dim:
                        raise ValueError(f"arrays [tokens, {dim}] are expected, got {array.shape}")
                    raw.write(np.ascontiguousarray(array, dtype=config.storage).tobytes())
                    counts.append(len(array))
            if len(counts) != len(ids):
                raise ValueError(f"{len(ids)} ids but {len(counts)} arrays")
            lengths = np.array(counts, dtype=np.int64)
            _sort_by_length(work / "raw", work / "vectors.npy", lengths, dim, config.storage)
            np.save(work / "lengths.npy", lengths)
            (work / "ids.json").write_text(json.dumps(list(ids)), encoding="utf-8")
            meta = {
                "format": _FORMAT,
                "kind": "exact",
                "dim": dim,
                "passages": len(ids),
                "vectors": int(lengths.sum()),
                "storage": config.storage,
                "fingerprint": fingerprint,
            }
            (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
            if read_meta(path) is None:  # else another process was quicker: its index stays
                shutil.rmtree(path, ignore_errors=True)  # leftovers of a build that did not end
                os.rename(work, path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return cls(path, config)

    def search(self, queries: Sequence[Vectors], k: int) -> list[list[tuple[str, float]]]:
        """The k best passages per query: (id, MaxSim), best first; ties in passage order.

        Args:
            queries: arrays [vectors, dim] of any length; zero rows do not count.

        Raises:
            ValueError: k below 1, or vectors of another width.
        """
        if k < 1:
            raise ValueError("k must be at least 1")
        scores = self.scores(queries)
        found = []
        for row in scores:
            best = np.argsort(-row, kind="stable")[:k]
            found.append([(self.ids[i], float(row[i])) for i in best])
        return found

    def scores(self, queries: Sequence[Vectors]) -> np.ndarray:
        """MaxSim of every query with every passage, [queries, passages] float32.

        A passage without vectors scores minus infinity: nothing of it can match.
        """
        import torch

        kept = [self._checked(query) for query in queries]
        out = np.full((len(queries), len(self)), -np.inf, dtype=np.float32)
        counts = [len(query) for query in kept]
        out[:, self._order[self._lengths > 0]] = 0
        if not sum(counts):
            return out
        stacked = torch.from_numpy(np.concatenate(kept))
        # Sums each query's rows: [queries, query vectors] with a 1 where the vector is the query's.
        owner = torch.repeat_interleave(torch.eye(len(kept)), torch.tensor(counts), dim=1)
        for first, last, length in self._blocks(len(stacked)):
            begin, end = self._offsets[first], self._offsets[last]
            block = torch.from_numpy(np.array(self._vectors[begin:end], dtype=np.float32))
            best = (stacked @ block.T).view(len(stacked), last - first, length).amax(-1)
            out[:, self._order[first:last]] = (owner @ best).numpy()
        return out

    def score(self, queries: Sequence[Vectors], ids: Sequence[Sequence[str]]) -> list[list[float]]:
        """MaxSim of each query with its own list of passages.

        Raises:
            KeyError: an id is not in the index.
        """
        out = []
        for query, wanted in zip(queries, ids, strict=True):
            kept = self._checked(query)
            scores = []
            for passage_id in wanted:
                i = self._place[self._position[passage_id]]
                tokens = self._vectors[self._offsets[i] : self._offsets[i + 1]]
                if len(tokens) == 0:
                    scores.append(float("-inf"))
                    continue
                similarity = kept @ np.asarray(tokens, dtype=np.float32).T
                scores.append(float(similarity.max(1, initial=-np.inf).sum()))
            out.append(scores)
        return out

    def _checked(self, query: Vectors) -> Vectors:
        if query.ndim != 2 or query.shape[1] != self.dim:
            raise ValueError(f"a query is an array [vectors, {self.dim}], got {query.shape}")
        query = np.asarray(query, dtype=np.float32)
        return query[np.any(query != 0, axis=1)]

    def _blocks(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """Ranges of places that hold passages of one length, bounded in memory."""
        # A block's vectors and its products with the query vectors, both float32.
        budget = self._block_mb * 2**20 // (4 * max(self.dim, rows))
        first = int(np.searchsorted(self._lengths, 1))  # passages without tokens cannot match
        while first < len(self):
            length = int(self._lengths[first])
            end = int(np.searchsorted(self._lengths, length, side="right"))
            last = min(end, first + max(1, budget // length))
            yield first, last, length
            first = last


def read_meta(path: Path) -> dict[str, Any] | None:
    """The index's `meta.json`, or None if the folder holds no whole index of this format."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) and meta.get("format") == _FORMAT else None


def _sort_by_length(
    raw: Path, target: Path, lengths: npt.NDArray[np.int64], dim: int, dtype: str
) -> None:
    """Copy passages from corpus order to order of length, one at a time."""
    total = int(lengths.sum())
    starts = np.concatenate([[0], np.cumsum(lengths)])
    out = np.lib.format.open_memmap(target, mode="w+", dtype=dtype, shape=(total, dim))
    if total:
        source = np.memmap(raw, dtype=dtype, mode="r", shape=(total, dim))
        place = 0
        for i in np.argsort(lengths, kind="stable"):
            out[place : place + lengths[i]] = source[starts[i] : starts[i + 1]]
            place += int(lengths[i])
        out.flush()
    raw.unlink()
