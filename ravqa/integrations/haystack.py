"""Retrieval and answering as components of Haystack pipelines.

    pipeline = Pipeline()
    pipeline.add_component("retriever", PreFLMRRetriever("animals", top_k=5))
    pipeline.add_component("answerer", RAVQAAnswerer("sample"))
    pipeline.connect("retriever.documents", "answerer.documents")
    asked = {"query": "What does this animal eat?", "image": "photo.jpg"}
    pipeline.run({"retriever": asked, "answerer": asked})

Their settings are plain values, so that a pipeline can be written as YAML; Haystack reads it with
`Pipeline.loads(text, allowed_modules=["ravqa.*"])`.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ravqa.core.errors import checked_choices, import_extra

import_extra("haystack", "haystack", why=__name__)

from haystack import Document, component  # noqa: E402
from haystack.dataclasses import ByteStream, GeneratedAnswer, ImageContent  # noqa: E402
from haystack.utils.filters import document_matches_filter  # noqa: E402

from ravqa.collections import Collection  # noqa: E402
from ravqa.core.records import Answer, Hit, Passage, Question  # noqa: E402
from ravqa.integrations import documents as plain  # noqa: E402
from ravqa.integrations.asking import Asker, Pair  # noqa: E402
from ravqa.integrations.query_images import query_image  # noqa: E402
from ravqa.integrations.searching import Found, Searcher  # noqa: E402
from ravqa.integrations.threads import in_thread  # noqa: E402

_KEPT = 16  # searchers with different filters

Image = ImageContent | ByteStream | str | Path


def document_of(passage: Passage, score: float | None = None) -> Document:
    """Convert a passage to a document; its meta has title, entity and picture path ("image")."""
    meta = plain.metadata_of(passage)
    if passage.image is not None:
        meta["image"] = str(passage.image)
    return Document(id=passage.passage_id, content=passage.text, meta=meta, score=score)


def passage_of(document: Document) -> Passage:
    """Convert a document to a passage; "image" in its meta is the path of its picture."""
    meta = dict(document.meta)
    image = meta.pop("image", None)
    return plain.passage_of(
        document.id,
        document.content or "",
        meta,
        image=plain.picture_of(document.id, image),
    )


@component
class PreFLMRRetriever:
    """Finds passages for a question and its image in a collection."""

    def __init__(
        self,
        collection: str,
        top_k: int = 5,
        instruction: str | None = None,
        filters: dict[str, Any] | None = None,
        allow_http: bool = False,
    ):
        """Store the settings; `warm_up` or the first run opens the collection.

        Args:
            collection: its folder.
            instruction: put before every question; None for the collection's own.
            filters: Haystack filters; only documents that match are searched.
            allow_http: fetch images that are http(s) addresses.
        """
        self.collection = str(collection)
        self.top_k = top_k
        self.instruction = instruction
        self.filters = filters
        self.allow_http = allow_http
        self._opened: Collection | None = None
        self._searchers: list[tuple[dict[str, Any] | None, Searcher]] = []
        self._opening = threading.RLock()

    def warm_up(self) -> None:
        """Open the collection.

        Raises:
            UserError: the collection does not exist or is damaged.
        """
        with self._opening:
            if self._opened is None:
                self._opened = Collection.open(self.collection)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        image: Image | None = None,
        top_k: int | None = None,
        filters: dict[str, Any] | None = None,
    ) -> dict[str, list[Document]]:
        """Return the best documents.

        Args:
            image: Haystack's ImageContent or ByteStream, a path, a file:// URL or a data URI.
            filters: replaces the component's own.

        Raises:
            DataError, UserError: an image that may not be fetched, or cannot be read.
        """
        found = self._searcher(filters).search(
            self._question(query, image), self.top_k if top_k is None else top_k
        )
        return {"documents": _documents(found)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        image: Image | None = None,
        top_k: int | None = None,
        filters: dict[str, Any] | None = None,
    ) -> dict[str, list[Document]]:
        """Async version of `run`; concurrent runs share batches."""
        searcher = await in_thread(self._searcher, filters)
        question = await in_thread(self._question, query, image)
        return {
            "documents": _documents(
                await searcher.asearch(question, self.top_k if top_k is None else top_k)
            )
        }

    def _question(self, query: str, image: Image | None) -> Question:
        return _question(query, image, self.instruction, self.allow_http)

    def _searcher(self, filters: dict[str, Any] | None) -> Searcher:
        """Return the searcher with these filters, cached because it knows which passages match."""
        filters = self.filters if filters is None else filters
        with self._opening:
            for known, searcher in self._searchers:
                if known == filters:
                    return searcher
            self.warm_up()
            assert self._opened is not None
            made = Searcher(self._opened, _matching(filters) if filters else None)
            self._searchers = [*self._searchers[-_KEPT + 1 :], (filters, made)]
            return made


@component
class RAVQAAnswerer:
    """Answers a question about an image from documents; the image goes to the reader too."""

    def __init__(
        self,
        pipeline: str = "sample",
        overrides: list[str] | None = None,
        instruction: str | None = None,
        allow_http: bool = False,
    ):
        """Store the name of the pipeline whose reader, prompt and decision rule answer.

        Args:
            pipeline: a YAML file or a name in `pipelines/`; `warm_up` or the first run loads it.
            overrides: "key.path=value".
            instruction: instruction for prompts that show one.
            allow_http: fetch images that are http(s) addresses.
        """
        self.pipeline = pipeline
        self.overrides = list(overrides or [])
        self.instruction = instruction
        self.allow_http = allow_http
        self._asker: Asker | None = None
        self._loading = threading.Lock()

    def warm_up(self) -> None:
        """Load the reader.

        Raises:
            UserError: see `ravqa.pipeline.Pipeline.load`.
        """
        with self._loading:
            if self._asker is None:
                self._asker = Asker.load(self.pipeline, self.overrides)

    @component.output_types(answers=list[GeneratedAnswer], replies=list[str])
    def run(
        self,
        query: str,
        documents: list[Document],
        image: Image | None = None,
        choices: list[str] | None = None,
    ) -> dict[str, list[Any]]:
        """Return one answer, and its text as a reply.

        Args:
            query: the question.
            documents: the passages, best first.
            image: the image that the question is about.
            choices: the answers to choose from.

        Raises:
            DataError, UserError: an image that may not be fetched, or cannot be read.
        """
        self.warm_up()
        assert self._asker is not None
        asked = self._asked(query, documents, image, choices)
        return _answered(self._asker.ask(*asked), query, documents)

    @component.output_types(answers=list[GeneratedAnswer], replies=list[str])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        image: Image | None = None,
        choices: list[str] | None = None,
    ) -> dict[str, list[Any]]:
        """Async version of `run`; concurrent runs share batches."""
        await in_thread(self.warm_up)
        assert self._asker is not None
        asked = await in_thread(self._asked, query, documents, image, choices)
        return _answered(await self._asker.aask(*asked), query, documents)

    def _asked(
        self,
        query: str,
        documents: list[Document],
        image: Image | None,
        choices: list[str] | None,
    ) -> tuple[Question, list[Pair]]:
        question = replace(
            _question(query, image, self.instruction, self.allow_http),
            choices=checked_choices(choices or ()),
        )
        pairs = [
            (Hit(document.id, document.score or 0.0, rank), passage_of(document))
            for rank, document in enumerate(plain.checked(documents, Document), 1)
        ]
        return question, pairs


def _matching(filters: dict[str, Any]) -> Callable[[Passage], bool]:
    return lambda passage: document_matches_filter(filters, document_of(passage))


def _question(
    query: str, image: Image | None, instruction: str | None, allow_http: bool
) -> Question:
    source: Any = image
    if isinstance(image, ImageContent):
        source = base64.b64decode(image.base64_image)
    elif isinstance(image, ByteStream):
        source = image.data
    found = query_image(source, allow_http=allow_http)
    return Question(0, query, image=found, instruction=instruction)


def _documents(found: Found) -> list[Document]:
    return [document_of(passage, hit.score) for hit, passage in found]


def _answered(answer: Answer, query: str, documents: list[Document]) -> dict[str, list[Any]]:
    meta = {"decision": answer.decision, "drafts": [draft.text for draft in answer.drafts]}
    made = GeneratedAnswer(data=answer.text, query=query, documents=documents, meta=meta)
    return {"answers": [made], "replies": [answer.text]}
