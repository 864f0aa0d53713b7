"""Retrieval-augmented generation for knowledge-based visual question answering.

A question about an image is answered with knowledge that is not in the image: a late-interaction
retriever finds passages from image and question together, and a reader (a language model, with or
without eyes) answers from them.

    from ravqa import Corpus, Pipeline

    pipeline = Pipeline.load("sample")
    pipeline.prepare(Corpus.read("passages.jsonl"))
    print(pipeline.ask("What does this animal eat?", "photo.jpg").answer.text)

Importing this package imports nothing heavy: each name is loaded when it is first used, and torch
and transformers when a part that needs them is built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ravqa.collections.collection import Collection
    from ravqa.core.records import Passage, Question
    from ravqa.core.registry import register
    from ravqa.corpora.corpus import Corpus
    from ravqa.datasets import load_dataset
    from ravqa.pipeline import Pipeline
    from ravqa.runs.evaluate import evaluate
    from ravqa.studies.compare import compare

__version__ = "0.1.0"

__all__ = [
    "Collection",
    "Corpus",
    "Passage",
    "Pipeline",
    "Question",
    "compare",
    "evaluate",
    "load_dataset",
    "register",
]

_MODULES = {
    "Collection": "ravqa.collections.collection",
    "Corpus": "ravqa.corpora.corpus",
    "Passage": "ravqa.core.records",
    "Pipeline": "ravqa.pipeline",
    "Question": "ravqa.core.records",
    "compare": "ravqa.studies.compare",
    "evaluate": "ravqa.runs.evaluate",
    "load_dataset": "ravqa.datasets",
    "register": "ravqa.core.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
