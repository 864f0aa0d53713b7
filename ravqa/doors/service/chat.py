"""OpenAI's chat interface: a collection with its pipeline is a model that cites its sources."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ravqa.core.errors import UserError
from ravqa.doors.service import forms

_ROLES = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ImageAddress(BaseModel):
    """Where an image is."""

    url: Annotated[str, Field(max_length=forms.BODY)]


class Part(BaseModel):
    """A part of a message: a text or an image."""

    type: Literal["text", "image_url"]
    text: Annotated[str, Field(max_length=100_000)] | None = None
    image_url: ImageAddress | None = None


class Message(BaseModel):
    """A message of a chat."""

    role: _ROLES
    content: (
        Annotated[str, Field(max_length=100_000)]
        | Annotated[list[Part], Field(max_length=100)]
        | None
    ) = None


class StreamOptions(BaseModel):
    """What else a stream has."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class ChatForm(BaseModel):
    """A chat; its last question is answered.

    What would change the form of the answer is refused. Options of sampling, and messages before
    the last question, are not used: each question stands alone, but for the last image.
    """

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "model": "animals",
                    "messages": [{"role": "user", "content": "Where do koalas live?"}],
                }
            ]
        },
    )

    model: Annotated[str, Field(max_length=500)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1, description="Only one answer.")] | None = 1
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None


def question_of(form: ChatForm, collection: str, pipeline: str) -> forms.AnswerForm:
    """Return the last question of a chat, with the last image that was shown.

    Raises:
        UserError: there is none; several images in one message; an option that cannot be served.
    """
    if form.logprobs or (form.response_format or {}).get("type", "text") != "text":
        raise UserError("logprobs and response_format: answers are texts alone")
    if form.tool_choice not in (None, "none", "auto"):
        raise UserError("tool_choice: no tools are called")
    asked = [message for message in form.messages if message.role == "user"]
    if not asked:
        raise UserError("messages: a question of the user is needed")
    images = [found for message in asked if (found := _images(message))]
    last = images[-1] if images else []
    if len(last) > 1:
        raise UserError("messages: a question is about one image")
    question = _text(asked[-1])
    if len(question) > forms.QUESTION:
        raise UserError(f"messages: a question has at most {forms.QUESTION} letters")
    return forms.AnswerForm(
        question=question,
        image=last[0] if last else None,
        collection=collection,
        pipeline=pipeline,
    )


def _text(message: Message) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content if part.text)
    return message.content or ""


def _images(message: Message) -> list[str]:
    parts = message.content if isinstance(message.content, list) else []
    return [part.image_url.url for part in parts if part.image_url is not None]


def model_list(names: Iterable[str]) -> dict[str, Any]:
    """Return the models as OpenAI lists them."""
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "ravqa"} for name in names]
    return {"object": "list", "data": models}


def cited(reply: forms.AnswerReply, before: int) -> tuple[str, list[dict[str, Any]]]:
    """Return the sources of an answer as text, and as OpenAI's annotations.

    Args:
        before: letters of the message before this text.
    """
    read = [found for found in reply.passages if found.passage_id in reply.read]
    if not read:
        return "", []
    text, notes = "\n\nSources:", []
    for number, found in enumerate(read, 1):
        title = " ".join((found.title or found.passage_id).split())
        line = f"[{number}] {title}" + (
            "" if title == found.passage_id else f" ({found.passage_id})"
        )
        begin = before + len(text) + 1
        text += f"\n{line}"
        if found.url:
            place = {"start_index": begin, "end_index": begin + len(line)}
            note = {"title": title, "url": found.url, **place}
            notes.append({"type": "url_citation", "url_citation": note})
    return text, notes


def chat_reply(model: str, reply: forms.AnswerReply) -> dict[str, Any]:
    """Return a completion; the passages are in its field `ravqa`."""
    sources, notes = cited(reply, len(reply.answer))
    message = {
        "role": "assistant",
        "content": reply.answer + sources,
        "refusal": None,
        "annotations": notes,
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    made = _head(model, "chat.completion") | {"choices": [choice]} | _usage(reply)
    return made | {"ravqa": reply.model_dump(exclude_none=True)}


async def chat_pieces(
    model: str, given: AsyncIterator[forms.SearchReply | str], counted: bool = False
) -> AsyncIterator[dict[str, Any]]:
    """Yield a completion in pieces: the answer as it is written, then its sources.

    Args:
        counted: whether a last piece without a choice has the tokens, if they are known.
    """
    head = _head(model, "chat.completion.chunk")

    def piece(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    written = ""
    async for what in given:
        if isinstance(what, str):
            written += what
            yield piece({"content": what})
        elif isinstance(what, forms.AnswerReply):
            if not written:
                written = what.answer
                yield piece({"content": written})
            sources, notes = cited(what, len(written))
            yield piece({"content": sources, "annotations": notes})
            yield piece({}, "stop") | {"ravqa": what.model_dump(exclude_none=True)}
            if counted and what.usage is not None:
                yield head | {"choices": []} | _usage(what)
        else:
            yield piece({"role": "assistant", "content": ""})


def _usage(reply: forms.AnswerReply) -> dict[str, Any]:
    return {} if reply.usage is None else {"usage": reply.usage.model_dump()}


def _head(model: str, kind: str) -> dict[str, Any]:
    made = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}
    return made | {"model": model}
