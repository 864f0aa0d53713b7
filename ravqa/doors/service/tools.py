"""The service for agents: tools and resources of the Model Context Protocol."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError, ToolError
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import Field, ValidationError

import ravqa
from ravqa.core.errors import UserError
from ravqa.doors.service import forms
from ravqa.doors.service.desk import Desk

_PLACE = "passages://{collection}/{+passage_id}"
_ABOUT = (
    "Searches collections of passages by questions about images, and answers them from what is "
    "found. Collections here: {names}."
)
_Question = Annotated[str, Field(max_length=forms.QUESTION)]
_Image = Annotated[
    str | None, Field(max_length=forms.BODY, description="An image in base64, or as a data URI.")
]
_Collection = Annotated[
    str | None, Field(max_length=200, description="A collection's name. Default: the first one.")
]
_K = Annotated[
    int | None,
    Field(ge=1, le=forms.MOST_K, description="Passages to find."),
]


@contextlib.contextmanager
def _log_untouched() -> Iterator[None]:
    """Keep the package from choosing level and handlers of the whole process's log.

    It does so (`logging.basicConfig`) where the log has no handler yet.
    """
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def server(desk: Desk, said: Any) -> MCPServer:
    """Return the tools and resources, for any transport.

    Args:
        said: returns what is said of an error outside.
    """
    names = ", ".join(sorted({collection for collection, _ in desk.models.values()}))
    with _log_untouched():
        made: MCPServer = MCPServer(
            "ravqa",
            version=ravqa.__version__,
            instructions=_ABOUT.format(names=names),
            subscriptions=False,
        )

    @contextlib.contextmanager
    def refusing() -> Iterator[None]:
        try:
            yield
        except UserError as e:
            raise ToolError(said(e)) from None
        except ValidationError as e:
            wrong = e.errors(include_input=False, include_url=False, include_context=False)
            raise ToolError("; ".join(f"{one['loc'][0]}: {one['msg']}" for one in wrong)) from None

    @made.tool()
    async def search(
        question: _Question = "",
        image: _Image = None,
        collection: _Collection = None,
        k: _K = None,
    ) -> forms.SearchReply:
        """Find the passages that fit a question, an image, or both; best first."""
        with refusing():
            form = forms.SearchForm(question=question, image=image, collection=collection, k=k)
            return await desk.search(form)

    @made.tool()
    async def ask(
        question: _Question = "",
        image: _Image = None,
        collection: _Collection = None,
        k: _K = None,
    ) -> forms.AnswerReply:
        """Answer a question about an image from passages, which are returned too."""
        with refusing():
            form = forms.AnswerForm(question=question, image=image, collection=collection, k=k)
            return await desk.answer(form)

    @made.resource(_PLACE, name="passage", mime_type="application/json")
    async def passage(collection: str, passage_id: str) -> str:
        """Return a passage of a collection."""
        try:
            found = forms.found_passage(await desk.passage(collection, passage_id))
        except UserError as e:
            raise ResourceNotFoundError(said(e)) from None
        return found.model_dump_json(exclude_none=True)

    return made


def speak(desk: Desk) -> None:
    """Serve the program that started this one, over standard input and output, until it ends."""
    try:
        server(desk, desk.said).run("stdio")
    finally:
        desk.close()


def over_http(desk: Desk, said: Any) -> Any:
    """Return an ASGI application with the tools at /mcp; it needs its lifespan.

    The gate in front of it has checked who asks.
    """
    return server(desk, said).streamable_http_app(
        stateless_http=True,
        json_response=True,
        max_request_body_size=forms.BODY,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
