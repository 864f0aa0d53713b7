"""Retrieval and answering inside LangChain.

retriever = PreFLMRRetriever.from_persist_dir("animals", k=5)  # of any pipeline
documents = retriever.invoke("What does this animal eat?", image="photo.jpg")
answer = RAVQAAnswerer.load("sample").invoke(
    {"question": "What does this animal eat?", "image": "photo.jpg", "documents": documents}
)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ravqa.core.errors import DataError, UserError, checked_choices, import_extra

import_extra("langchain_core", "langchain", why=__name__)

from langchain_core.callbacks import (  # noqa: E402
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document  # noqa: E402
from langchain_core.retrievers import BaseRetriever  # noqa: E402
from langchain_core.runnables import Runnable, RunnableConfig  # noqa: E402
from pydantic import PrivateAttr  # noqa: E402

from ravqa.collections import Collection  # noqa: E402
from ravqa.core.records import Hit, Passage, Question  # noqa: E402
from ravqa.core.settings import fingerprint  # noqa: E402
from ravqa.corpora.corpus import Corpus  # noqa: E402
from ravqa.integrations import documents as plain  # noqa: E402
from ravqa.integrations.asking import Asker, Pair  # noqa: E402
from ravqa.integrations.query_images import Source, query_image  # noqa: E402
from ravqa.integrations.searching import Found, Searcher  # noqa: E402
from ravqa.integrations.threads import in_thread  # noqa: E402
from ravqa.pipeline import Pipeline  # noqa: E402

DEFAULT_PIPELINE = "preflmr-l-retrieval"


def document_of(passage: Passage, score: float | None = None) -> Document:
    """Convert a passage to a document; metadata add title, entity, "image" (path) and "score"."""
    metadata = plain.metadata_of(passage)
    if passage.image is not None:
        metadata["image"] = str(passage.image)
    if score is not None:
        metadata["score"] = score
    return Document(page_content=passage.text, metadata=metadata, id=passage.passage_id)


def passage_of(document: Document) -> Passage:
    """Convert a document to a passage; without an id, it gets a hash of its text and metadata."""
    metadata = {k: v for k, v in document.metadata.items() if k != "score"}
    # As text, so that keys of all types can be sorted.
    name = document.id or fingerprint(
        document.page_content, json.loads(json.dumps(metadata, default=str))
    )
    image = plain.picture_of(name, metadata.pop("image", None))
    return plain.passage_of(name, document.page_content, metadata, image=image)


class PreFLMRRetriever(BaseRetriever):
    """Finds passages for a question and its image: `invoke(question, image=...)`.

    It is the retriever of any pipeline, whatever the encoder.

    An image is a path, a file:// URL, a data URI or encoded bytes. Concurrent calls (`abatch`,
    tasks, threads) share batches.

    Attributes:
        k: number of passages to find.
        instruction: put before every question; None for the pipeline's own.
        where: only passages that this accepts are searched.
        allow_http: fetch images that are http(s) addresses.
    """

    k: int = 5
    instruction: str | None = None
    where: Callable[[Passage], bool] | None = None
    allow_http: bool = False
    _searcher: Searcher = PrivateAttr()

    def __init__(self, source: Collection | Pipeline, **options: Any):
        """Search a collection, or the passages that a pipeline was prepared for.

        Raises:
            UserError: a pipeline without passages, or one that cannot search a subset of them.
        """
        super().__init__(**options)
        self._searcher = Searcher(source, self.where)

    @classmethod
    def from_persist_dir(
        cls, persist_dir: Path | str, overrides: Sequence[str] = (), **options: Any
    ) -> Self:
        """Search the collection in a folder, made by `from_documents` or `ravqa collection build`.

        Args:
            overrides: "key.path=value" of the pipeline that it was made with.
            options: as for the class.

        Raises:
            UserError: there is no collection, or it is damaged; invalid overrides.
        """
        return cls(Collection.open(persist_dir, None, *overrides), **options)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        persist_dir: Path | str,
        pipeline: str = DEFAULT_PIPELINE,
        overrides: Sequence[str] = (),
        *,
        exist_ok: bool = False,
        **options: Any,
    ) -> Self:
        """Encode documents unsplit into a collection in a new folder, and search it.

        Args:
            documents: LangChain's text splitters make them short enough for the encoder. Those
                without an id get a hash of their content, and the same one twice is one. "image" in
                their metadata is a path.
            pipeline: a YAML file or a name in `pipelines/`.
            overrides: "key.path=value".
            exist_ok: use the collection that is in the folder, and add the documents as
                `add_documents` does; those that it has are not encoded again.
            options: as for the class.

        Raises:
            DataError: an id occurs twice, there are no documents, or one has neither text nor
                picture.
            UserError: the folder is not empty; the pipeline cannot be built.
        """
        corpus = _corpus(documents)
        collection = plain.collection_for(persist_dir, pipeline, overrides, exist_ok=exist_ok)
        collection.update(corpus)
        return cls(collection, **options)

    @property
    def collection(self) -> Collection | None:
        """The collection that is searched; None for a pipeline."""
        return self._searcher.collection

    def add_documents(self, documents: Iterable[Document]) -> list[str]:
        """Add documents to the collection, or replace those with the same id; return their ids.

        Args:
            documents: as for `from_documents`.

        Raises:
            DataError: as `from_documents`.
            UserError: no collection is searched, or another process is writing.
        """
        if self.collection is None:
            raise UserError(
                "this retriever has no collection that can change: make a retriever with "
                "from_documents or from_persist_dir"
            )
        corpus = _corpus(documents)
        self.collection.update(corpus)
        return list(corpus)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        image: Source | None = None,
        k: int | None = None,
    ) -> list[Document]:
        return _documents(
            self._searcher.search(self._question(query, image), self.k if k is None else k)
        )

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        image: Source | None = None,
        k: int | None = None,
    ) -> list[Document]:
        question = await in_thread(self._question, query, image)
        return _documents(await self._searcher.asearch(question, self.k if k is None else k))

    def _question(self, query: str, image: Source | None) -> Question:
        found = query_image(image, allow_http=self.allow_http)
        return Question(0, query, image=found, instruction=self.instruction)


class RAVQAAnswerer(Runnable[Mapping[str, Any], str]):
    """Answers from "question", "image", "choices" (both may be missing) and "documents".

    The reader is given the image if it supports images.
    """

    def __init__(
        self, pipeline: Pipeline, *, instruction: str | None = None, allow_http: bool = False
    ):
        """Answer with a pipeline's reader; its retriever is not used.

        Args:
            instruction: instruction for prompts that show one.
            allow_http: fetch images that are http(s) addresses.

        Raises:
            UserError: the pipeline has no reader.
        """
        self._asker = Asker(pipeline)
        self._instruction = instruction
        self._allow_http = allow_http

    @classmethod
    def load(
        cls, pipeline: str = "sample", overrides: Sequence[str] = (), **options: Any
    ) -> RAVQAAnswerer:
        """Answer with the reader, prompt and decision rule of a named pipeline.

        Args:
            overrides: "key.path=value".
            options: as for the class.

        Raises:
            UserError: see `Pipeline.load`.
        """
        return cls(Asker.load(pipeline, overrides).pipeline, **options)

    def invoke(
        self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> str:
        """Return the answer.

        Raises:
            DataError, UserError: an image that may not be fetched, or cannot be read.
        """
        return self._call_with_config(self._answer, input, config, run_type="chain")

    async def ainvoke(
        self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> str:
        """Async version of `invoke`."""
        return await self._acall_with_config(self._aanswer, input, config, run_type="chain")

    def _answer(self, asked: Mapping[str, Any]) -> str:
        return self._asker.ask(*self._asked(asked)).text

    async def _aanswer(self, asked: Mapping[str, Any]) -> str:
        return (await self._asker.aask(*await in_thread(self._asked, asked))).text

    def _asked(self, asked: Mapping[str, Any]) -> tuple[Question, list[Pair]]:
        if not isinstance(asked, Mapping) or "question" not in asked:
            raise UserError('{"question": ..., "image": ..., "documents": [...]} is expected')
        image = query_image(asked.get("image"), allow_http=self._allow_http)
        question = Question(
            0,
            asked["question"],
            image=image,
            instruction=self._instruction,
            choices=checked_choices(asked.get("choices", ())),
        )
        documents = plain.checked(asked.get("documents", ()), Document)
        passages = [passage_of(document) for document in documents]
        scores = [_score(d.metadata.get("score")) for d in documents]
        pairs = [
            (Hit(passage.passage_id, score, rank), passage)
            for rank, (passage, score) in enumerate(zip(passages, scores, strict=True), 1)
        ]
        return question, pairs


def _corpus(documents: Iterable[Document]) -> Corpus:
    """Return documents as passages.

    Raises:
        DataError: an id occurs twice, there are none, or one has neither text nor picture.
    """
    passages: list[Passage] = []
    unnamed: set[str] = set()
    for i, document in enumerate(plain.checked(documents, Document)):
        passage = passage_of(document)
        if passage.image is None and not passage.text.strip():
            raise DataError(
                f"document {document.id or i} has neither text nor a picture: nothing can find it"
            )
        if not document.id:
            if passage.passage_id in unnamed:
                continue
            unnamed.add(passage.passage_id)
        passages.append(passage)
    return Corpus(passages, source="documents")


def _score(value: object) -> float:
    """Return a document's score; third-party metadata may have any value there."""
    try:
        return float(value)  # type: ignore[arg-type]  # numbers of any library
    except (TypeError, ValueError):
        return 0.0


def _documents(found: Found) -> list[Document]:
    return [document_of(passage, hit.score) for hit, passage in found]
