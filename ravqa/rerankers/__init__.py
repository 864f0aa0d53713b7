"""Stages between retrieval and reading: rerankers, passage filters, gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.registry import Registry

if TYPE_CHECKING:
    from ravqa.rerankers.base import Reranker

RERANKERS: Registry[type[Reranker]] = Registry(
    "reranker",
    {
        "cross-encoder": (
            "ravqa.rerankers.cross_encoder:CrossEncoderReranker",
            "scores of a cross-encoder of sentence-transformers, question and passage together",
        ),
        "vlm": (
            "ravqa.rerankers.vlm:VLMReranker",
            "probability that a reader says yes to question, image and one passage",
        ),
        "identify": (
            "ravqa.rerankers.identify:Identify",
            "a reader picks the thing in the photo among the articles' names",
        ),
        "blend": (
            "ravqa.rerankers.blend:Blend",
            "joint score of retrieval and reranking, and a limit of passages per article",
        ),
        "threshold": (
            "ravqa.rerankers.threshold:Threshold",
            "filters passages by score, or keeps a number of them",
        ),
        "gate": (
            "ravqa.rerankers.gate:Gate",
            "asks without passages if those found are unsuitable, or none are needed",
        ),
    },
    contract="ravqa.rerankers.base:Reranker",
)
