"""A LlamaIndex query engine that answers from question, image and passages."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.synthesis import (
    SynthesizeEndEvent,
    SynthesizeStartEvent,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType, TextNode
from llama_index.core.settings import Settings

from ravqa.answering.streaming import AnswerStream
from ravqa.core.errors import UserError
from ravqa.core.records import Answer, Hit, Question
from ravqa.integrations.asking import Asker, Pair
from ravqa.integrations.llama_index.llm import ReaderLLM
from ravqa.integrations.llama_index.nodes import read_of
from ravqa.integrations.llama_index.retriever import PreFLMRRetriever
from ravqa.integrations.query_images import query_image
from ravqa.integrations.threads import in_thread, iterated
from ravqa.pipeline import Pipeline

_dispatcher = get_dispatcher(__name__)


class RAVQASynthesizer(BaseSynthesizer):
    """Answers a question about an image from nodes, giving the reader the image too.

    A response's text is the short answer. Its metadata has those of the source nodes by their ids
    and, under "answer", how it was decided: the rule, and each draft with its passages. A streamed
    response's text is all that the reader writes; its metadata gets "answer" at the end.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        instruction: str | None = None,
        streaming: bool = False,
        allow_http: bool = False,
        callback_manager: CallbackManager | None = None,
    ):
        """Answer with a pipeline's reader; its retriever is not used.

        Args:
            instruction: instruction for prompts that show one.
            streaming: whether to yield the reader's words as they are written.
            allow_http: fetch images whose `image_path` is an http(s) address.

        Raises:
            UserError: the pipeline has no reader, or one (or a decision rule) that does not stream.
        """
        self._asker = Asker(pipeline)
        if streaming:
            self._asker.answerer.check_streams()
        super().__init__(
            llm=ReaderLLM(self._asker.answerer.reader, allow_http=allow_http),
            callback_manager=callback_manager or Settings.callback_manager,
            streaming=streaming,
        )
        self._instruction = instruction
        self._allow_http = allow_http

    def _get_prompts(self) -> dict[str, Any]:
        """Return no prompts: the prompt is the pipeline's template, not one of LlamaIndex's."""
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        """Do nothing; see `_get_prompts`."""

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **_options: Any,
    ) -> RESPONSE_TYPE:
        """Answer from the nodes, best first; without nodes, from the reader's own knowledge.

        Raises:
            UserError, DataError: an image that may not be fetched, or cannot be read.
        """
        sources = [*nodes, *(additional_source_nodes or ())]
        with self._synthesis(query) as (bundle, made):
            asked = self._asked(bundle, nodes)
            if self._streaming:
                metadata = _metadata(sources)
                words = _words(self._asker.stream(*asked), metadata)
                made.append(StreamingResponse(words, sources, metadata))
            else:
                made.append(_response(self._asker.ask(*asked), sources))
        return made[0]

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **_options: Any,
    ) -> RESPONSE_TYPE:
        """Async version of `synthesize`.

        Raises:
            UserError, DataError: as `synthesize`.
        """
        sources = [*nodes, *(additional_source_nodes or ())]
        with self._synthesis(query) as (bundle, made):
            asked = await in_thread(self._asked, bundle, nodes)
            if self._streaming:
                metadata = _metadata(sources)
                words = _words(await in_thread(self._asker.stream, *asked), metadata)
                made.append(AsyncStreamingResponse(iterated(words), sources, metadata))
            else:
                made.append(_response(await self._asker.aask(*asked), sources))
        return made[0]

    def get_response(self, query_str: str, text_chunks: Sequence[str], **_options: Any) -> str:
        """Answer a question without an image."""
        return self._asker.ask(*self._asked(QueryBundle(query_str), _nodes(text_chunks))).text

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **_options: Any
    ) -> str:
        """Async version of `get_response`."""
        asked = self._asked(QueryBundle(query_str), _nodes(text_chunks))
        return (await self._asker.aask(*asked)).text

    @contextmanager
    def _synthesis(self, query: QueryType) -> Iterator[tuple[QueryBundle, list[RESPONSE_TYPE]]]:
        """Yield the query and a list for the response; report begin and end to LlamaIndex."""
        bundle = QueryBundle(query) if isinstance(query, str) else query
        made: list[RESPONSE_TYPE] = []
        _dispatcher.event(SynthesizeStartEvent(query=query))
        payload: dict[str, Any] = {EventPayload.QUERY_STR: bundle.query_str}
        with self._callback_manager.event(CBEventType.SYNTHESIZE, payload=payload) as event:
            yield bundle, made
            event.on_end(payload={EventPayload.RESPONSE: made[0]})
        _dispatcher.event(SynthesizeEndEvent(query=query, response=made[0]))

    def _asked(
        self, query: QueryBundle, nodes: Sequence[NodeWithScore]
    ) -> tuple[Question, list[Pair]]:
        image = query_image(query.image_path, allow_http=self._allow_http)
        question = Question(0, query.query_str, image=image, instruction=self._instruction)
        passages = [(read_of(found.node), found.score or 0.0) for found in nodes]
        passages = [(passage, score) for passage, score in passages if passage.text.strip()]
        pairs = [
            (Hit(passage.passage_id, score, rank), passage)
            for rank, (passage, score) in enumerate(passages, 1)
        ]
        return question, pairs


class RAVQAQueryEngine(RetrieverQueryEngine):
    """Retrieves with question and image, and answers with question, image and passages.

    LlamaIndex's own engines give the language model the question's text alone.
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        pipeline: Pipeline | None = None,
        *,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ):
        """Combine retriever and reader.

        Args:
            retriever: any retriever; a `PreFLMRRetriever` looks at the image.
            pipeline: pipeline that answers; None for a `PreFLMRRetriever`'s own.
            node_postprocessors: rerankers and filters between the two.
            options: options of `RAVQASynthesizer`: `instruction`, `streaming`, `allow_http`.

        Raises:
            UserError: there is no reader, or one (or a decision rule) that does not stream.
        """
        if pipeline is None:
            if not isinstance(retriever, PreFLMRRetriever):
                raise UserError("no pipeline was given to answer: use RAVQAQueryEngine.from_args")
            pipeline = retriever.answering()
        synthesizer = RAVQASynthesizer(pipeline, callback_manager=callback_manager, **options)
        super().__init__(retriever, synthesizer, node_postprocessors, callback_manager)

    @classmethod
    def from_args(  # type: ignore[override]  # there is no LLM, but a pipeline
        cls,
        retriever: BaseRetriever,
        pipeline: str = "sample",
        overrides: Sequence[str] = (),
        **options: Any,
    ) -> RAVQAQueryEngine:
        """Answer with the reader, prompt and decision rule of a named pipeline.

        Args:
            pipeline: its name or file.
            overrides: "key.path=value".
            options: as for the class.

        Raises:
            UserError: see `Pipeline.load`.
        """
        return cls(retriever, Asker.load(pipeline, overrides).pipeline, **options)

    @property
    def llm(self) -> ReaderLLM:
        """Return the reader as a language model, for LlamaIndex's own engines."""
        return cast(ReaderLLM, self._response_synthesizer._llm)


def _response(answer: Answer, sources: list[NodeWithScore]) -> Response:
    metadata = {**_metadata(sources), "answer": asdict(answer)}
    return Response(answer.text, sources, metadata)


def _words(stream: AnswerStream, metadata: dict[str, Any]) -> Generator[str, None, None]:
    yield from stream
    assert stream.answer is not None
    metadata["answer"] = asdict(stream.answer)


def _metadata(sources: Sequence[NodeWithScore]) -> dict[str, Any]:
    return {found.node_id: found.metadata for found in sources}


def _nodes(texts: Sequence[str]) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(id_=str(i), text=text)) for i, text in enumerate(texts, 1)]
