"""What requests and replies of the service contain."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ravqa.core.errors import DataError
from ravqa.core.records import Hit, Passage
from ravqa.images.uploads import Limits
from ravqa.pipeline import Response

QUESTION = 4000
"""Most letters of a question, or of the choices together."""
MOST_K = 100
"""Most passages that a request can ask for."""
IMAGES = Limits()
"""Of a photo."""
BODY = 4 * IMAGES.file // 3 + 1_000_000
"""Most bytes of a request: an image in base64, and texts."""
MOST_PASSAGES = 1000
"""Most passages that are put into a collection, or deleted, at a time."""

Name = Annotated[str, Field(max_length=200)]
Word = Annotated[str, Field(max_length=1000)]
_DATA = re.compile(r"data:image/[\w.+-]{1,40};base64,")
_IMAGE = (
    "An image in base64 or as a data URI. Addresses of other machines are followed only where the "
    "service was started with their names."
)
_EXAMPLE: Any = {
    "question": "In which country does this animal live?",
    "collection": "animals",
    "k": 3,
}


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchForm(_Form):
    """A search: a question, an image, or both."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    question: Annotated[str, Field(max_length=QUESTION)] = ""
    image: Annotated[str, Field(max_length=BODY, description=_IMAGE)] | None = None
    collection: Annotated[Name, Field(description="Default: the first one.")] | None = None
    pipeline: Annotated[Name, Field(description="Default: as the collection was built.")] | None = (
        None
    )
    k: (
        Annotated[
            int,
            Field(ge=1, le=MOST_K, description="Passages to find. Default: the pipeline's number."),
        ]
        | None
    ) = None
    where: Annotated[
        dict[Name, Word | Annotated[list[Word], Field(max_length=100)]],
        Field(max_length=10, description="Only passages with these metadata."),
    ] = {}


class AnswerForm(SearchForm):
    """A question to answer from passages."""

    k: (
        Annotated[
            int,
            Field(
                ge=1,
                le=MOST_K,
                description="Passages to find and read. Default: the pipeline's numbers.",
            ),
        ]
        | None
    ) = None
    rule: Annotated[Name, Field(description="A decision rule.")] | None = None
    choices: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=QUESTION)]],
        Field(max_length=50, description="The answers to choose from."),
    ] = []
    stream: Annotated[
        bool,
        Field(
            description="Reply with server-sent events: `passages`, then a `piece` for each part "
            "of the answer as it is written, where the reader can do this, and `answer`."
        ),
    ] = False


class Found(BaseModel):
    """A passage; one that was found has a rank and a score."""

    rank: int | None = None
    score: float | None = None
    passage_id: str
    title: str | None = None
    section: str | None = None
    text: str
    article: str | None = None
    entity: str | None = None
    url: str | None = None
    has_image: bool = False
    metadata: dict[str, Any] = {}


class SearchReply(BaseModel):
    """The passages, best first."""

    collection: str
    pipeline: str
    passages: list[Found]
    image_unused: Annotated[
        bool, Field(description="No part of the pipeline looks at the image that was sent.")
    ] = False


class Usage(BaseModel):
    """Tokens of all models that were asked, what is kept in caches included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerReply(SearchReply):
    """An answer, and the passages that were found for it."""

    answer: str
    rule: str
    read: Annotated[list[str], Field(description="Ids of the passages that it was read from.")]
    log_prob: float | None = None
    self_check: float | None = None
    usage: Annotated[Usage | None, Field(description="Missing if a model does not know it.")] = None
    stand_ins: Annotated[
        list[str], Field(description="What stands in for larger parts of the pipeline.")
    ] = []
    seconds: Annotated[
        dict[str, float], Field(description="By stage; those of the batch that it was part of.")
    ]


class State(BaseModel):
    """Whether the service works."""

    status: str


class CollectionReply(BaseModel):
    """What can be asked."""

    name: str
    passages: int | None = None
    pipelines: list[str]
    rules: dict[str, str]
    can_change: bool


class PassageForm(_Form):
    """A passage to put into a collection."""

    model_config = ConfigDict(extra="forbid", strict=True)

    passage_id: Annotated[str, Field(min_length=1, max_length=1000)]
    text: Annotated[str, Field(max_length=1_000_000)] = ""
    title: Word | None = None
    section: Word | None = None
    article: Word | None = None
    entity: Word | None = None
    url: Annotated[str, Field(max_length=4000)] | None = None
    image: Annotated[str, Field(max_length=BODY, description=_IMAGE)] | None = None
    metadata: Annotated[
        dict[Name, Word | bool | int | float | Annotated[list[Word], Field(max_length=100)] | None],
        Field(max_length=100),
    ] = {}


class PassagesForm(_Form):
    """Passages to add or replace."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "passages": [
                        {
                            "passage_id": "koala",
                            "title": "Koala",
                            "text": "The koala lives in eastern Australia.",
                            "metadata": {"kind": "animal"},
                        }
                    ]
                }
            ]
        },
    )

    passages: Annotated[list[PassageForm], Field(min_length=1, max_length=MOST_PASSAGES)]
    source: Annotated[str, Field(min_length=1, max_length=1000)] | None = None


class ChangesReply(BaseModel):
    """What became of passages, in numbers."""

    added: int = 0
    changed: int = 0
    relabelled: int = 0
    unchanged: int = 0
    deleted: int = 0
    truncated: int = 0


class Problem(BaseModel):
    """Why a request has no reply."""

    message: str
    type: str
    code: str | None = None
    param: str | None = None


class ProblemReply(BaseModel):
    """The reply to a request that failed."""

    error: Problem


def decoded_image(text: str) -> bytes:
    """Return the bytes of an image in base64, or in a data URI.

    Raises:
        DataError: it is something else.
    """
    if text[:5].lower() == "data:":
        begin = _DATA.match(text)
        if begin is None:
            raise DataError("image: a data URI begins with data:image/...;base64,")
        text = text[begin.end() :]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("image: this is neither base64 nor a data URI") from None


def found_passage(passage: Passage, hit: Hit | None = None) -> Found:
    """Return a passage as it is sent; nothing in it names a file of this machine."""
    names = ("passage_id", "title", "section", "text", "article", "entity", "url")
    return Found(
        rank=None if hit is None else hit.rank,
        score=None if hit is None else hit.score,
        has_image=passage.image is not None,
        metadata=_plain(passage.extra),
        **{name: getattr(passage, name) for name in names},
    )


def found_passages(response: Response) -> list[Found]:
    """Return the passages of a response."""
    pairs = zip(response.hits, response.passages, strict=True)
    return [found_passage(passage, hit) for hit, passage in pairs]


def search_reply(response: Response, collection: str, pipeline: str, unused: bool) -> SearchReply:
    """Return the reply to a search.

    Args:
        unused: whether an image was sent that no part looks at.
    """
    return SearchReply(
        collection=collection,
        pipeline=pipeline,
        passages=found_passages(response),
        image_unused=unused,
    )


def answer_reply(found: SearchReply, response: Response, stand_ins: Sequence[str]) -> AnswerReply:
    """Return the reply to a question: that to the search, with the answer."""
    answer = response.answer
    assert answer is not None
    usage = None
    if response.usage is not None:
        read, written = response.usage.prompt_tokens, response.usage.completion_tokens
        usage = Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
    return AnswerReply(
        **dict(found),
        answer=answer.text,
        rule=answer.decision,
        read=list(answer.passage_ids),
        log_prob=answer.log_prob,
        self_check=answer.self_check,
        usage=usage,
        stand_ins=list(stand_ins),
        seconds=dict(response.seconds),
    )


def _plain(values: Any) -> dict[str, Any]:
    """Return metadata as JSON has them."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(values), default=str))
    return plain
