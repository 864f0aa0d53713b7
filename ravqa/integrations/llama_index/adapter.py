"""LlamaIndex retrievers as retrievers of this project, for use in its studies.

In Python, wrap an existing one:

    LlamaIndexRetriever(index.as_retriever(similarity_top_k=20))

In a pipeline's file, name your function that makes one from the corpus's nodes:

    retriever:
      name: llama-index
      factory: my_package.retrievers:build     # called as build(nodes, **options)
      options: {similarity_top_k: 20}
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import Field

from ravqa.core.errors import DataError, UserError, near_matches
from ravqa.core.locations import file_digest
from ravqa.core.progress import Progress
from ravqa.core.records import Hit, Question
from ravqa.core.settings import ImportTarget, Options, Strict, Text, fingerprint
from ravqa.corpora.corpus import Corpus
from ravqa.integrations.llama_index.nodes import nodes_of
from ravqa.integrations.query_images import data_uri
from ravqa.retrievers.base import Retriever, to_hits

_WHY = "the retriever llama-index"


class LlamaIndexRetriever(Retriever):
    """A LlamaIndex retriever as one of this project.

    It is given the question's text followed by the image's description, and the image itself (as
    `image_path`) if it looks at images. Its nodes must be passages of the corpus: by their ids, by
    "passage_id" in their metadata, or as parts of them, by their source document. Of several parts
    of a passage the best counts. Without scores, 1 / rank is used.
    """

    weights = ""

    def __init__(
        self,
        retriever: BaseRetriever,
        *,
        tags: int = 3,
        caption: bool = True,
        supports_images: bool = False,
        fingerprint: str | None = None,
    ):
        """Wrap `retriever`.

        Args:
            tags: number of names of things seen in the image that are appended to the question.
            caption: whether to append the image's caption too.
            supports_images: whether the retriever looks at `image_path`.
            fingerprint: changes with everything that can change its rankings; None for its class's
                name, all that is known without it.
        """
        kind = type(retriever)
        self.fingerprint = fingerprint or f"{kind.__module__}.{kind.__qualname__}"
        self._supports_images = supports_images
        self._retriever = retriever
        self._tags = tags
        self._caption = caption
        self._corpus: Corpus | None = None

    @property
    def supports_images(self) -> bool:
        """Return whether the retriever looks at `image_path`."""
        return self._supports_images

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Take the passages that the nodes correspond to.

        Raises:
            UserError: there is no corpus.
        """
        self._corpus = _needed(corpus)

    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """Return at most k passages per question, best first.

        A `similarity_top_k` of the retriever that is below k is raised to it.

        Raises:
            DataError: a node is not a passage of the corpus.
        """
        retriever: Any = self._retriever
        if getattr(retriever, "similarity_top_k", k) < k:
            retriever.similarity_top_k = k
        return [self._hits(retriever.retrieve(self._query(q)))[:k] for q in questions]

    def _query(self, question: Question) -> QueryBundle:
        parts = [question.question]
        if question.description is not None:
            parts += [tag.names[0] for tag in question.description.tags[: self._tags]]
            if self._caption and question.description.caption:
                parts.append(question.description.caption)
        image = question.image if self.supports_images else None
        if isinstance(image, bytes):
            return QueryBundle(" ".join(parts), image_path=data_uri(image))
        return QueryBundle(" ".join(parts), image_path=None if image is None else str(image))

    def _hits(self, found: Sequence[NodeWithScore]) -> list[Hit]:
        ranking: dict[str, float] = {}
        scored = all(hit.score is not None for hit in found)
        for rank, hit in enumerate(found, 1):
            score = hit.get_score() if scored else 1 / rank
            name = self._passage_id(hit)
            ranking[name] = max(score, ranking.get(name, score))
        # Third-party retrievers may return their results in any order.
        return to_hits(sorted(ranking.items(), key=lambda found: -found[1]))

    def _passage_id(self, hit: NodeWithScore) -> str:
        corpus = _needed(self._corpus)
        node = hit.node
        for name in (node.node_id, node.metadata.get("passage_id"), node.ref_doc_id):
            if isinstance(name, str) and name in corpus:
                return name
        raise DataError(
            f"{_WHY}: node {node.node_id!r} is not a passage of the corpus {corpus.source}: make "
            "the nodes with nodes_of(corpus), or put passage_id into their metadata"
        )


class FactoryRetriever(LlamaIndexRetriever):
    """A LlamaIndex retriever that the user's function makes from the corpus."""

    class Config(Strict):
        """Options.

        Attributes:
            factory: "package.module:function", called as function(nodes, **options); it is
                imported and run, so name only what you trust.
            options: options of the factory.
            tags: number of names of things seen in the image that are appended to the question.
            caption: whether to append the image's caption too.
            supports_images: whether the retriever looks at the image.
            weights: names of weights, stored with the results.
        """

        renamed: ClassVar[Mapping[str, str]] = {"sees_images": "supports_images"}
        factory: ImportTarget
        options: Options = Field(default_factory=dict)
        tags: int = Field(default=3, ge=0)
        caption: bool = True
        supports_images: bool = False
        weights: Text = ""

    config: Config

    def __init__(self, config: Config):
        """Import the factory.

        Raises:
            UserError: the function does not exist.
        """
        self.config = config
        self.weights = config.weights
        self._factory = _function(config.factory)
        self._supports_images = config.supports_images
        self.fingerprint = fingerprint("llama-index/2", config.model_dump(), _source(self._factory))

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Build the retriever.

        Raises:
            UserError: there is no corpus, or the factory does not return a retriever.
        """
        corpus = _needed(corpus)
        made = self._factory(nodes_of(corpus), **self.config.options)
        if not isinstance(made, BaseRetriever):
            raise UserError(
                f"{_WHY}: {self.config.factory} gave {type(made).__name__}, not a LlamaIndex "
                "retriever"
            )
        shown = self.config.model_dump(include={"tags", "caption", "supports_images"})
        super().__init__(made, **shown, fingerprint=self.fingerprint)
        super().prepare(corpus, progress)


def _needed(corpus: Corpus | None) -> Corpus:
    if corpus is None:
        raise UserError(f"{_WHY} needs passages: give a file with --corpus")
    return corpus


def _function(name: str) -> Callable[..., Any]:
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise UserError(f"{_WHY}: factory {name!r}: package.module:function is expected")
    try:
        found = importlib.import_module(module)
    except ImportError as e:
        raise UserError(
            f"{_WHY}: {module} cannot be imported ({e}): its folder must be in PYTHONPATH"
        ) from None
    function = getattr(found, attribute, None)
    if not callable(function):
        known = [name for name, value in vars(found).items() if callable(value)]
        raise UserError(f"{_WHY}: no {attribute!r} in {module}: {near_matches(attribute, known)}")
    made: Callable[..., Any] = function
    return made


def _source(function: Callable[..., Any]) -> str | None:
    """Return a digest of the file that the function is in."""
    try:
        return file_digest(Path(inspect.getfile(function)))
    except (OSError, TypeError):
        return None
