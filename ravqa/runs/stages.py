"""Predicting which stages of a run are already in the cache, or shared with another run.

The caches are keyed by content (image bytes, texts, fingerprints of weights), which is known only
after models are loaded. To predict earlier what a run will find, each stage of a finished run marks
the stores that it used with a hash of the settings of this stage and the ones before it, and of the
questions and passages. Weights that were replaced under the same name are noticed when the run
begins, not by the marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ravqa.answering.prompt import PromptTemplate
from ravqa.answering.rules import answering_config
from ravqa.core.cache import Store
from ravqa.core.factory import part_config
from ravqa.core.locations import cache_dir
from ravqa.core.registry import table
from ravqa.core.settings import Part, PipelineConfig, fingerprint
from ravqa.rerankers import RERANKERS
from ravqa.rerankers.build import asks_own_reader
from ravqa.retrievers import RETRIEVERS

STAGES = ("describe", "retrieve", "rerank", "answer")
READING = "reading"
_WITH = {"answer": (READING,)}


def stage_keys(
    config: PipelineConfig,
    data: str,
    passages: str | None,
    *,
    retrieval_only: bool = False,
) -> dict[str, str]:
    """Return a hash of each stage that the pipeline has, in order, and of `READING`.

    Two pipelines with the same hash of `READING` ask the same reader the same prompts wherever they
    read the same passages, so their generations overlap.

    Args:
        config: validated (`ravqa.pipeline.check_settings`).
        data, passages: fingerprints of questions and corpus.
    """
    keys: dict[str, str] = {}
    seen: Any = data
    if config.describer is not None:
        seen = keys["describe"] = fingerprint(
            "describe", data, _options(table("describers"), config.describer)
        )
    found = keys["retrieve"] = fingerprint(
        "retrieve", seen, passages, _options(RETRIEVERS, config.retriever), _depth(config)
    )
    if config.reranking:
        parts = [_options(RERANKERS, part) for part in config.reranking]
        if asks_own_reader(config.reranking):
            parts.append(_options(table("readers"), config.reader))
        found = keys["rerank"] = fingerprint("rerank", found, config.top_k, parts)
    if not retrieval_only:
        answering = answering_config(config.answering)
        prompt = PromptTemplate.load(answering.prompt).source
        examples = answering.examples and answering.examples.model_dump(mode="json")
        reader = _options(table("readers"), config.reader)
        pictures = [answering.passage_images, answering.article_images, answering.article_folder]
        shown = [list(map(str, pictures))] if answering.passage_images else []
        reading = fingerprint(READING, seen, found, prompt, examples, reader, *shown)
        keys[READING] = reading
        keys["answer"] = fingerprint(
            "answer", reading, config.top_k, answering.model_dump(mode="json")
        )
    return keys


def mark(keys: Mapping[str, str], stage: str, stores: Iterable[str]) -> None:
    """Mark the stores that a finished stage used."""
    marks = {keys[name]: True for name in (stage, *_WITH.get(stage, ())) if name in keys}
    for store in stores:
        Store(store).put(marks)


def marked(keys: Mapping[str, str]) -> set[str]:
    """Return the stages whose mark is in a store."""
    found: set[str] = set()
    for path in sorted(cache_dir().glob("*.sqlite")):
        known = Store(path.stem).get(list(keys.values()))
        found |= {stage for stage, key in keys.items() if key in known}
    return found


def _options(registry: Any, part: Part) -> list[Any]:
    """Return all options of a part, including defaults."""
    return [part.name, part_config(registry, part, part.name).model_dump(mode="json")]


def _depth(config: PipelineConfig) -> int:
    """Return how many passages the retriever ranks, which can be more than `top_k`."""
    own = part_config(RETRIEVERS, config.retriever, "retriever")
    return max(config.top_k, RETRIEVERS.get(config.retriever.name).depth(own))
