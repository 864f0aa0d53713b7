"""An index of the kind that suits the size of the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ravqa.core.progress import Progress
from ravqa.core.settings import Strict
from ravqa.encoders.base import Vectors
from ravqa.indexes.base import Footprint, Index
from ravqa.indexes.compressed.index import CompressedIndex
from ravqa.indexes.exact import ExactIndex
from ravqa.indexes.segmented.index import SegmentedIndex
from ravqa.indexes.segmented.store import exists, read_manifest


class AutoIndex(Index):
    """An exact index for a small corpus, a compressed one for a large corpus."""

    class Config(Strict):
        """Options.

        Attributes:
            above: compress the index from this number of passages on. An exact search of fewer
                takes a fraction of a second on two processors, even for a query of 320 vectors.
        """

        above: int = Field(default=5000, ge=0)

    kind: ClassVar[str] = "auto"
    grows: ClassVar[bool] = True
    commits: ClassVar[bool] = True
    reports: ClassVar[bool] = True

    built = staticmethod(exists)

    @classmethod
    def footprint(cls, config: Config, dim: int, passages: int) -> Footprint:
        """Return that of the kind that is chosen for so many passages."""
        if passages >= config.above:
            return CompressedIndex.footprint(CompressedIndex.Config(), dim, passages)
        return ExactIndex.footprint(ExactIndex.Config(), dim, passages)

    @classmethod
    def generation(cls, path: Path) -> int:
        """Return the generation of the index in `path`."""
        return read_manifest(path).generation

    @classmethod
    def open(
        cls, path: Path, config: Config | None = None, *, fingerprint: str | None = None
    ) -> SegmentedIndex:
        """Open an index of either kind; see `SegmentedIndex`."""
        kind = CompressedIndex if read_manifest(path).kind == CompressedIndex.kind else ExactIndex
        return kind(path, fingerprint=fingerprint)

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
        attached: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> SegmentedIndex:
        """See `SegmentedIndex.build`."""
        config = config or AutoIndex.Config()
        kind = CompressedIndex if len(ids) >= config.above else ExactIndex
        return kind.build(
            ids,
            embeddings,
            path,
            dim=dim,
            fingerprint=fingerprint,
            attached=attached,
            progress=progress,
        )
