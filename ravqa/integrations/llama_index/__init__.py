"""Retrieval and answering inside LlamaIndex, and LlamaIndex's retrievers inside ravqa.

- `PreFLMRRetriever`: question and image to passages, as a LlamaIndex retriever;
- `RAVQAQueryEngine`, `RAVQASynthesizer`: question, image and passages to an answer;
- `ReaderLLM`: a reader as a LlamaIndex language model;
- `PRRecall`, `VQAAccuracyEvaluator`, `ImageRetrieverEvaluator`: evaluation;
- `LlamaIndexRetriever`: a LlamaIndex retriever as one of ravqa's.
"""

from ravqa.core.errors import import_extra

import_extra("llama_index.core", "llama-index", why=__name__)

from ravqa.integrations.llama_index.adapter import LlamaIndexRetriever  # noqa: E402
from ravqa.integrations.llama_index.engine import (  # noqa: E402
    RAVQAQueryEngine,
    RAVQASynthesizer,
)
from ravqa.integrations.llama_index.evaluation import (  # noqa: E402
    ImageRetrieverEvaluator,
    PRRecall,
    VQAAccuracyEvaluator,
)
from ravqa.integrations.llama_index.llm import ReaderLLM  # noqa: E402
from ravqa.integrations.llama_index.nodes import (  # noqa: E402
    node_of,
    nodes_of,
    passage_of,
    passages_of,
)
from ravqa.integrations.llama_index.retriever import PreFLMRRetriever  # noqa: E402

__all__ = [
    "ImageRetrieverEvaluator",
    "LlamaIndexRetriever",
    "PRRecall",
    "PreFLMRRetriever",
    "RAVQAQueryEngine",
    "RAVQASynthesizer",
    "ReaderLLM",
    "VQAAccuracyEvaluator",
    "node_of",
    "nodes_of",
    "passage_of",
    "passages_of",
]
