"""Names to classes, resolved when first asked for.

A registry holds import targets ("ravqa.readers.transformers_llm:TransformersLLM"), so that listing
names imports nothing. Others' parts are added with `registry.add(name, target, summary)` by modules
that are imported before names are listed, or an unknown one is given up: those that installed
packages name as entry points of the group "ravqa.plugins", and those in the environment variable
RAVQA_PLUGINS (comma-separated).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from ravqa.core.errors import UserError, near_matches


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered name: where the class or function is, and what it is in one line."""

    target: str
    summary: str


_PLUGINS = "ravqa.plugins"
_VARIABLE = "RAVQA_PLUGINS"


@cache
def load_plugins() -> None:
    """Import the modules that add parts of others; once.

    Raises:
        UserError: one of them cannot be imported.
    """
    found = {e.value: f"the entry point {e.name}" for e in metadata.entry_points(group=_PLUGINS)}
    named = (name.strip() for name in os.environ.get(_VARIABLE, "").split(","))
    found |= {name: _VARIABLE for name in named if name}
    for module, where in found.items():
        try:
            importlib.import_module(module)
        except Exception as e:  # a plugin is a program of somebody else's
            reason = str(e).strip().partition("\n")[0] or type(e).__name__
            raise UserError(f"{where}: the plugin {module} cannot be imported: {reason}") from None


class Registry:
    """Named parts of one kind ("reader", "retriever", ...)."""

    def __init__(self, kind: str, entries: dict[str, tuple[str, str]]):
        self.kind = kind
        self._entries = {name: Entry(*entry) for name, entry in entries.items()}

    def add(self, name: str, target: str, summary: str) -> None:
        """Register `name`.

        Raises:
            ValueError: the name is taken by another target.
        """
        if name in self._entries and self._entries[name].target != target:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = Entry(target, summary)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        load_plugins()
        return ((name, entry.summary) for name, entry in self._entries.items())

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_plugins()
        return name in self._entries

    def check(self, name: str, where: str = "") -> str:
        """`name`, if it is registered.

        Args:
            where: what names it, for the message.

        Raises:
            UserError: it is not; near names are listed.
        """
        if name not in self._entries:
            load_plugins()
        if name not in self._entries:
            place = f"{where}: " if where else ""
            near = near_matches(name, self._entries)
            raise UserError(f"{place}no {self.kind} {name!r}: {near}")
        return name

    def get(self, name: str) -> Any:
        """The class or function registered as `name`; imports its module."""
        module, _, attribute = self._entries[self.check(name)].target.partition(":")
        return getattr(importlib.import_module(module), attribute)


DATASETS = Registry(
    "dataset",
    {
        "okvqa": (
            "ravqa.datasets.okvqa:load",
            "OK-VQA: official files, hub copies, or the bundled sample in their form",
        ),
        "infoseek": (
            "ravqa.datasets.infoseek:load",
            "InfoSeek: official jsonl files, M2KR's split, or the bundled sample in their form",
        ),
        "evqa": ("ravqa.datasets.evqa:load", "Encyclopedic-VQA: official csv files"),
        "m2kr": ("ravqa.datasets.m2kr:load", "M2KR: ten retrieval benchmarks, with passages"),
        "m2kr_cn": ("ravqa.datasets.m2kr:load_cn", "M2KR in Chinese"),
        "jsonl": ("ravqa.datasets.files:load_jsonl", "your own questions, as JSON lines"),
        "csv": ("ravqa.datasets.files:load_csv", "your own questions, as CSV or TSV"),
    },
)

DESCRIBERS = Registry(
    "describer",
    {
        "imagenet-tags": (
            "ravqa.describers.imagenet:ImageNetTagger",
            "ImageNet class names seen by EfficientNet-Lite0",
        ),
    },
)

ENCODERS = Registry(
    "encoder",
    {
        "token-bert": (
            "ravqa.encoders.token_bert:TokenBertEncoder",
            "every token vector of a BERT-like text encoder",
        ),
        "flmr": (
            "ravqa.encoders.flmr:FLMREncoder",
            "FLMR, PreFLMR and PreFLMR-ENCN checkpoints: question and image together",
        ),
        "multi-vector": (
            "ravqa.encoders.sentence_transformers:MultiVectorSTEncoder",
            "sentence-transformers' MultiVectorEncoder models: ColBERT, PyLate and others",
        ),
        "dense": (
            "ravqa.encoders.sentence_transformers:DenseSTEncoder",
            "sentence-transformers' models of one vector a text",
        ),
    },
)

INDEXES = Registry(
    "index",
    {
        "auto": ("ravqa.indexes.auto:AutoIndex", "exact for small corpora, else compressed"),
        "exact": ("ravqa.indexes.exact:ExactIndex", "MaxSim over every passage"),
        "compressed": (
            "ravqa.indexes.compressed.index:CompressedIndex",
            "centroid codes and residuals, scanned and rescored: for long queries",
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
)

RETRIEVERS = Registry(
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
        "fusion": (
            "ravqa.retrievers.fusion:FusionRetriever",
            "several retrievers: reciprocal rank fusion, or a sum of normalised scores",
        ),
        "llama-index": (
            "ravqa.integrations.llama_index.adapter:FactoryRetriever",
            "a LlamaIndex retriever that a function of yours makes",
        ),
        "none": ("ravqa.retrievers.controls:NoRetriever", "control: no passages"),
        "oracle": (
            "ravqa.retrievers.controls:OracleRetriever",
            "control: passages that hold a reference answer",
        ),
        "random": (
            "ravqa.retrievers.controls:RandomRetriever",
            "control: passages by lot",
        ),
        "static": (
            "ravqa.retrievers.static:StaticRetriever",
            "rankings from a file: RA-VQA's results, a TREC run, a samples.jsonl",
        ),
    },
)

RERANKERS = Registry(
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
        "threshold": (
            "ravqa.rerankers.threshold:Threshold",
            "passage filter by score, or by a number of passages",
        ),
        "gate": (
            "ravqa.rerankers.gate:Gate",
            "asks without passages where those found are no good, or none are needed",
        ),
    },
)

READERS = Registry(
    "reader",
    {
        "transformers-llm": (
            "ravqa.readers.transformers_llm:TransformersLLM",
            "text-only causal language model (folder, hub name or GGUF)",
        ),
        "transformers-vlm": (
            "ravqa.readers.transformers_vlm:TransformersVLM",
            "multimodal model: LLaVA, Qwen-VL, InternVL, BLIP-2 and others",
        ),
        "transformers-seq2seq": (
            "ravqa.readers.transformers_seq2seq:TransformersSeq2Seq",
            "text-only encoder-decoder (T5 family)",
        ),
        "openai": (
            "ravqa.readers.openai:OpenAIReader",
            "any model behind an OpenAI-compatible server (vLLM, llama.cpp, Ollama, hosted)",
        ),
        "first-words": (
            "ravqa.readers.controls:FirstWords",
            "control: no model; answers with the first words of the first passage",
        ),
        "best-span": (
            "ravqa.readers.controls:BestSpan",
            "control: no model; answers with the words of a passage nearest to the question's",
        ),
        "majority": (
            "ravqa.readers.controls:Majority",
            "control: no model; answers everything with the commonest training answer",
        ),
    },
)

METRICS = Registry(
    "metric",
    {
        "vqa_accuracy": ("ravqa.metrics.vqa:VQAAccuracy", "official VQA accuracy (OK-VQA)"),
        "infoseek": ("ravqa.metrics.infoseek:InfoSeek", "official InfoSeek score"),
        "evqa_score": ("ravqa.metrics.evqa:EVQAScore", "official E-VQA score, with a judge"),
        "exact_match": (
            "ravqa.metrics.exact_match:ExactMatch",
            "equality with an accepted answer, for questions of your own",
        ),
    },
)

RETRIEVAL_METRICS = Registry(
    "retrieval metric",
    {
        "prrecall": (
            "ravqa.metrics:pseudo_recall_at_k",
            "pseudo-relevance recall at K (retrieval)",
        ),
        "recall": (
            "ravqa.metrics:recall_at_k",
            "recall at K by passage ids or by articles (retrieval)",
        ),
    },
)

JUDGES = Registry(
    "judge",
    {
        "bem": (
            "ravqa.metrics.judges.bem:BEMJudge",
            "BERT classifier of answer equivalence (E-VQA)",
        ),
        "llm": (
            "ravqa.metrics.judges.llm:LLMJudge",
            "language model behind an OpenAI-compatible server",
        ),
    },
)

PARTS: Mapping[str, Registry] = {
    "describer": DESCRIBERS,
    "retriever": RETRIEVERS,
    "retrievers": RETRIEVERS,
    "base": RETRIEVERS,
    "encoder": ENCODERS,
    "index": INDEXES,
    "shard": INDEXES,
    "reranking": RERANKERS,
    "reader": READERS,
    "judge": JUDGES,
}
"""Keys of settings that hold parts, and what kind of part."""
