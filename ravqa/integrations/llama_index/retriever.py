"""A LlamaIndex retriever that takes question and image."""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.schema import (
    BaseNode,
    Document,
    NodeWithScore,
    QueryBundle,
    TransformComponent,
)
from llama_index.core.settings import Settings
from llama_index.core.vector_stores.types import MetadataFilters

from ravqa.collections import Changes, Collection
from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Passage, Question
from ravqa.corpora.corpus import Corpus
from ravqa.integrations import documents as plain
from ravqa.integrations.llama_index.filters import filter_of
from ravqa.integrations.llama_index.nodes import node_of, passages_of
from ravqa.integrations.query_images import query_image
from ravqa.integrations.searching import Searcher
from ravqa.integrations.threads import in_thread
from ravqa.pipeline import Pipeline

DEFAULT_PIPELINE = "preflmr-l-retrieval"


class PreFLMRRetriever(BaseRetriever):
    """Finds passages for a question and its image together.

    A query is a text, or a `QueryBundle` whose `image_path` is a path, a file:// URL or a data URI.
    The pipeline determines how question and image are used: PreFLMR sees both; a text encoder is
    given a describer's text about the image. Scores are MaxSim sums for PreFLMR (not between 0 and
    1): a `SimilarityPostprocessor` needs a cut-off on that scale.

    Attributes:
        similarity_top_k: number of passages to find.
        instruction: put before every question; None for the pipeline's own.
    """

    def __init__(
        self,
        source: Collection | Pipeline,
        similarity_top_k: int = 5,
        *,
        instruction: str | None = None,
        filters: MetadataFilters | None = None,
        allow_http: bool = False,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ):
        """Search a collection, or the passages that a pipeline was prepared for.

        Args:
            filters: only passages that they accept are searched.
            allow_http: fetch images whose `image_path` is an http(s) address.
            options: options of LlamaIndex's `BaseRetriever`: `object_map`, `objects`, `verbose`.

        Raises:
            UserError: a pipeline without passages, or one that cannot search a subset of them.
        """
        super().__init__(callback_manager or Settings.callback_manager, **options)
        self.similarity_top_k = similarity_top_k
        self.instruction = instruction
        where = None if filters is None else filter_of(filters)
        self._searcher = Searcher(source, where)
        self._allow_http = allow_http

    @classmethod
    def from_persist_dir(
        cls, persist_dir: Path | str, overrides: Sequence[str] = (), **options: Any
    ) -> Self:
        """Search the collection in a folder, made by `from_documents` or `ravqa collection build`.

        Args:
            overrides: "key.path=value" of the pipeline that it was made with, such as its reader.
            options: as for the class.

        Raises:
            UserError: there is no collection, or it is damaged; invalid overrides.
        """
        return cls(Collection.open(persist_dir, None, *overrides), **options)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[BaseNode],
        persist_dir: Path | str | None = None,
        pipeline: str = DEFAULT_PIPELINE,
        overrides: Sequence[str] = (),
        transformations: Sequence[TransformComponent] | None = None,
        *,
        exist_ok: bool = False,
        **options: Any,
    ) -> Self:
        """Encode LlamaIndex's documents or nodes and search them.

        Args:
            documents: their pictures and metadata are kept. No documents make an empty collection.
            persist_dir: a new folder for the collection, which keeps copies of pictures and
                describes those without text. Without it, vectors are kept in the cache folder, by
                content, and `insert` raises UserError.
            pipeline: a YAML file or a name in `pipelines/`.
            overrides: "key.path=value".
            transformations: see `passages_of`; by default documents are cut by sentences.
            exist_ok: use the collection that is in the folder, and update it as `insert` does:
                documents that it has, by their ids, are not encoded again.
            options: as for the class.

        Raises:
            DataError: a node without text that no describer can see, or two with the same id.
            UserError: the folder is not empty; the pipeline cannot be built.
        """
        documents = list(documents)
        passages = passages_of(documents, transformations)
        corpus = Corpus(passages, source="documents") if passages else None
        if persist_dir is None:
            blank = next((p.passage_id for p in passages if not p.text.strip()), None)
            if blank is not None:
                raise DataError(
                    f"node {blank} has no text: give a persist_dir and a pipeline with a "
                    "describer, and the description of its picture will be its text"
                )
            if corpus is None:
                raise UserError(
                    "no documents: give a persist_dir to begin with an empty collection"
                )
            return cls.from_defaults(corpus, pipeline, overrides, **options)
        collection = plain.collection_for(persist_dir, pipeline, overrides, exist_ok=exist_ok)
        made = cls(collection, **options)
        if len(collection):
            made._put(documents, passages)
        elif corpus is not None:
            collection.add(corpus)
        return made

    @classmethod
    def from_defaults(
        cls,
        corpus: Corpus | Path | str,
        pipeline: str = DEFAULT_PIPELINE,
        overrides: Sequence[str] = (),
        **options: Any,
    ) -> Self:
        """Search a corpus; its vectors are kept in the cache folder, by content.

        Args:
            corpus: passages, or a file of them (see `Corpus.read`).
            pipeline: a YAML file or a name in `pipelines/`.
            overrides: "key.path=value".
            options: as for the class.

        Raises:
            DataError: as `Corpus.read`.
            UserError: the pipeline cannot be built.
        """
        if not isinstance(corpus, Corpus):
            corpus = Corpus.read(Path(corpus))
        built = Pipeline.load(pipeline, *overrides, retrieval_only=True)
        built.prepare(corpus)
        return cls(built, **options)

    @property
    def collection(self) -> Collection | None:
        """Return the collection that is searched; None for a pipeline."""
        return self._searcher.collection

    def answering(self) -> Pipeline:
        """Return the pipeline with its reader, if any."""
        return self._searcher.pipeline(answering=True)

    def insert(
        self,
        documents: Iterable[BaseNode],
        transformations: Sequence[TransformComponent] | None = None,
    ) -> Changes:
        """Add documents or nodes to the collection, replacing those with the same id.

        A replaced document loses all of its parts; nodes replace nodes one by one.

        Raises:
            DataError: as `from_documents`.
            UserError: no collection is searched, or another process is writing.
        """
        documents = list(documents)
        return self._put(documents, passages_of(documents, transformations))

    def _put(self, documents: Sequence[BaseNode], passages: Sequence[Passage]) -> Changes:
        """Add or replace documents, whose parts are these passages; see `insert`."""
        collection = self._collection()
        whole = {document.node_id for document in documents if isinstance(document, Document)}
        changes = collection.update(passages) if passages else Changes()
        left = _of_documents(collection, whole) - {passage.passage_id for passage in passages}
        if left:
            collection.delete(left)
        return changes

    def delete_ref_doc(self, ref_doc_id: str) -> Changes:
        """Delete a document's passages, or the passage with this id, from the collection.

        Raises:
            UserError: the id does not exist, no collection is searched, or another process is
                writing.
        """
        collection = self._collection()
        found = _of_documents(collection, {ref_doc_id})
        return collection.delete(sorted(found) or [ref_doc_id])

    def _collection(self) -> Collection:
        if self.collection is None:
            raise UserError(
                "this retriever has no collection that can change: make a retriever with "
                "from_documents(..., persist_dir=FOLDER)"
            )
        return self.collection

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._searcher.search(self._question(query_bundle), self.similarity_top_k)
        return [NodeWithScore(node=node_of(passage), score=hit.score) for hit, passage in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        question = await in_thread(self._question, query_bundle)
        found = await self._searcher.asearch(question, self.similarity_top_k)
        return [NodeWithScore(node=node_of(passage), score=hit.score) for hit, passage in found]

    def _question(self, query: QueryBundle) -> Question:
        image = query_image(query.image_path, allow_http=self._allow_http)
        return Question(0, query.query_str, image=image, instruction=self.instruction)


def _of_documents(collection: Collection, names: abc.Collection[str]) -> set[str]:
    """Return ids of the documents' parts, and of undivided documents, which have no article."""
    parts = collection.matching({"article": list(names)}) if names else []
    return {*parts, *(name for name in names if name in collection)}
