"""Retrievers, which rank passages for questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.registry import Registry

if TYPE_CHECKING:
    from ravqa.retrievers.base import Retriever

RETRIEVERS: Registry[type[Retriever]] = Registry(
    "retriever",
    {
        "late-interaction": (
            "ravqa.retrievers.late_interaction:LateInteractionRetriever",
            "MaxSim over token vectors of question, image tags and passages",
        ),
        "bm25": (
            "ravqa.retrievers.bm25:BM25Retriever",
            "words of question, tags and caption: BM25",
        ),
        "gallery": (
            "ravqa.retrievers.gallery:GalleryRetriever",
            "articles whose pictures look like the question's photo, and their passages",
        ),
        "fusion": (
            "ravqa.retrievers.fusion:FusionRetriever",
            "several retrievers: reciprocal rank fusion, or a sum of normalised scores",
        ),
        "llama-index": (
            "ravqa.integrations.llama_index.adapter:FactoryRetriever",
            "a LlamaIndex retriever made by a function of yours",
        ),
        "none": ("ravqa.retrievers.controls:NoRetriever", "control: no passages"),
        "oracle": (
            "ravqa.retrievers.controls:OracleRetriever",
            "control: passages that contain a reference answer",
        ),
        "random": (
            "ravqa.retrievers.controls:RandomRetriever",
            "control: random passages",
        ),
        "static": (
            "ravqa.retrievers.static:StaticRetriever",
            "rankings from a file: RA-VQA's results, a TREC run, a samples.jsonl",
        ),
    },
    contract="ravqa.retrievers.base:Retriever",
)
