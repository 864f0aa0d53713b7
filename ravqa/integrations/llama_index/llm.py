"""A reader as a LlamaIndex language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.generic_utils import (
    completion_response_to_chat_response,
    stream_completion_response_to_chat_response,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    ImageBlock,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM

from ravqa.core.errors import UserError
from ravqa.core.outcomes import succeeded
from ravqa.integrations.query_images import query_image
from ravqa.integrations.threads import Batcher, in_thread, iterated
from ravqa.readers.base import Prompt, Reader


class ReaderLLM(CustomLLM):
    """Any of this project's readers as a LlamaIndex LLM.

    A completion's prompt goes to the reader as it is; a chat is written out as in LlamaIndex
    ("user: ..."), and the image among its blocks goes to a reader that supports images. Concurrent
    calls, from threads or tasks, share batches.
    """

    _reader: Any = PrivateAttr()
    _batcher: Any = PrivateAttr()
    _allow_http: bool = PrivateAttr()

    def __init__(
        self,
        reader: Reader,
        *,
        allow_http: bool = False,
        callback_manager: CallbackManager | None = None,
    ):
        """Wrap `reader`.

        Args:
            allow_http: fetch images of messages that are http(s) addresses.
        """
        super().__init__(callback_manager=callback_manager or CallbackManager([]))
        self._reader = reader
        self._allow_http = allow_http
        self._batcher = Batcher(reader.generate)

    @classmethod
    def class_name(cls) -> str:
        """Return the class's name in LlamaIndex's serialised forms."""
        return "ravqa_reader"

    @property
    def metadata(self) -> LLMMetadata:
        """Return the reader's limits; a reader that supports images is a chat model."""
        limits = {"context_window": self._reader.context, "num_output": self._reader.max_new_tokens}
        return LLMMetadata(
            model_name=self._reader.weights,
            is_chat_model=self._reader.supports_images,
            **{name: value for name, value in limits.items() if value},
        )

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the reader's generation."""
        return CompletionResponse(text=succeeded(self._batcher.call(Prompt(prompt))).text)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Async version of `complete`."""
        return CompletionResponse(text=succeeded(await self._batcher.acall(Prompt(prompt))).text)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Stream the reader's generation.

        Raises:
            UserError: the reader does not stream.
        """
        return self._stream(Prompt(prompt))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Async version of `stream_complete`."""
        return iterated(await in_thread(self._stream, Prompt(prompt)))

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the reader's generation after the written-out messages.

        Raises:
            UserError: more than one image, or a reader that does not support images.
        """
        generation = succeeded(self._batcher.call(self._prompt(messages)))
        return completion_response_to_chat_response(CompletionResponse(text=generation.text))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Async version of `chat`."""
        generation = succeeded(await self._batcher.acall(await in_thread(self._prompt, messages)))
        return completion_response_to_chat_response(CompletionResponse(text=generation.text))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Streaming version of `chat`.

        Raises:
            UserError: as `chat`, and if the reader does not stream.
        """
        return stream_completion_response_to_chat_response(self._stream(self._prompt(messages)))

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Async version of `stream_chat`."""
        prompt = await in_thread(self._prompt, messages)
        responses = await in_thread(self._stream, prompt)  # it reads the cache
        return iterated(stream_completion_response_to_chat_response(responses))

    def _stream(self, prompt: Prompt) -> CompletionResponseGen:
        if not self._reader.streams:
            raise UserError(f"the reader {self._reader.weights} does not stream")
        pieces = self._reader.stream(prompt)

        def responses() -> CompletionResponseGen:
            text = ""
            for piece in pieces:
                text += piece
                yield CompletionResponse(text=text, delta=piece)

        return responses()

    def _prompt(self, messages: Sequence[ChatMessage]) -> Prompt:
        assert self.messages_to_prompt is not None
        blocks = [b for m in messages for b in m.blocks if isinstance(b, ImageBlock)]
        if len(blocks) > 1:
            raise UserError(f"{len(blocks)} images in a chat: readers take one")
        if blocks and not self._reader.supports_images:
            raise UserError(f"an image in a chat, but {self._reader.weights} does not see images")
        image = self._image(blocks[0]) if blocks else None
        return Prompt(self.messages_to_prompt(messages), image)

    def _image(self, block: ImageBlock) -> Path | bytes | None:
        if block.image:
            data: bytes = block.resolve_image().read()
            return data
        source = block.path or (None if block.url is None else str(block.url))
        return query_image(source, allow_http=self._allow_http)
