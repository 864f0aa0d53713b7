"""Indexes behind one interface: see `ravqa.indexes.base.Index`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.registry import Registry

if TYPE_CHECKING:
    from ravqa.indexes.base import Index

INDEXES: Registry[type[Index]] = Registry(
    "index",
    {
        "auto": ("ravqa.indexes.auto:AutoIndex", "exact for small corpora, else compressed"),
        "exact": ("ravqa.indexes.exact:ExactIndex", "MaxSim over every passage"),
        "compressed": (
            "ravqa.indexes.compressed.index:CompressedIndex",
            "centroid codes and residuals, scanned and rescored: for long queries",
        ),
        "faiss": (
            "ravqa.indexes.faiss:FaissIndex",
            "faiss by its factory string: for encoders with one vector per text or image",
        ),
        "qdrant": (
            "ravqa.indexes.qdrant:QdrantIndex",
            "a Qdrant server's collection, or the same engine in this process",
        ),
        "sharded": (
            "ravqa.indexes.sharded:ShardedIndex",
            "several indexes of another kind, built and searched by several workers",
        ),
    },
    contract="ravqa.indexes.base:Index",
)
