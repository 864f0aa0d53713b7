"""The service's interface over HTTP."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

import ravqa
from ravqa.core.errors import (
    ContractError,
    DamagedError,
    DataError,
    MissingExtraError,
    ServerError,
    UserError,
    import_extra,
    near_matches,
)
from ravqa.doors.service import forms
from ravqa.doors.service.chat import ChatForm, chat_pieces, chat_reply, model_list, question_of
from ravqa.doors.service.desk import Desk, ForbiddenError, UnknownError
from ravqa.doors.service.forms import found_passage
from ravqa.doors.service.gate import Gate, Metrics, problem
from ravqa.doors.service.line import BusyError, LateError
from ravqa.doors.service.tools import over_http

_log = logging.getLogger("ravqa.serve")
Form = TypeVar("Form", bound=BaseModel)
_OWN_FAULT = (ServerError, MissingExtraError, ContractError, DamagedError)
_STATUS: tuple[tuple[type[UserError], int], ...] = (
    (UnknownError, 404),
    (ForbiddenError, 403),
    (BusyError, 503),
    (LateError, 504),
    (DataError, 422),
)
_FAILURES = (400, 401, 403, 404, 413, 422, 500, 502, 503, 504)
_Ids = Annotated[list[str], Query(alias="id", min_length=1, max_length=forms.MOST_PASSAGES)]
_LISTS = frozenset({"choices"})
_JSON = ("where", "passages")
"""Fields that are JSON in multipart/form-data."""
_ABOUT = (
    "Retrieval-augmented answers to questions about images. One model works at a time; requests "
    "that wait together are answered in one batch."
)


def status_of(error: UserError) -> int:
    """Return the HTTP status for an error."""
    if isinstance(error, _OWN_FAULT):
        return 502
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 400)


def said_of(error: UserError, desk: Desk) -> str:
    """Return what is said of an error outside; of the service's own faults, no more than that."""
    if isinstance(error, _OWN_FAULT):
        _log.error("%s", error)
        return "a part of the service does not work: its log has the details"
    return desk.said(error)


def application(desk: Desk, metrics: Metrics, *, hosts: frozenset[str] | None) -> Gate:
    """Return the service as an ASGI application.

    Args:
        hosts: names under which it may be asked for; None for any.

    Raises:
        MissingExtraError: a package is not installed.
    """
    import_extra("python_multipart", "serve", why="ravqa serve")
    agents = over_http(desk, lambda error: said_of(error, desk))
    app = FastAPI(
        title="ravqa",
        version=ravqa.__version__,
        description=_ABOUT,
        redoc_url=None,
        lifespan=agents.router.lifespan_context,
        docs_url=None,  # its page loads scripts from elsewhere
        responses={
            status: {"model": forms.ProblemReply, "description": "Why there is no reply"}
            for status in _FAILURES
        },
    )
    gate = Gate(app, metrics, token=desk.terms.token, hosts=hosts)
    _add_failures(app, desk)
    _add_state(app, desk, gate, metrics)
    _add_questions(app, desk)
    _add_collections(app, desk)
    _add_chat(app, desk)
    app.router.routes += agents.routes
    return gate


def _add_failures(app: FastAPI, desk: Desk) -> None:
    def failed(status: int, message: str) -> Any:
        retry = {"retry-after": "1"} if status == 503 else {}
        return JSONResponse(problem(status, message), status, headers=retry)

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Any:
        return failed(status_of(error), said_of(error, desk))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Any) -> Any:
        return failed(422, _wrong(error.errors()))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: Any) -> Any:
        made = failed(error.status_code, str(error.detail))
        made.headers.update(error.headers or {})
        if error.status_code == 405:  # the path may have several routes
            found = [route for route in app.routes if route.matches(request.scope)[0].value]
            methods = {name for route in found for name in getattr(route, "methods", None) or ()}
            made.headers["allow"] = ", ".join(sorted(methods))
        return made

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Any) -> Any:  # which the gate notes
        return failed(500, "something went wrong in the service: its log has the place")


def _wrong(errors: Any) -> str:
    """Return in one line what is wrong with a form, without what was sent."""
    named = [
        (".".join(str(part) for part in one["loc"] if part != "body"), one["msg"])
        for one in errors[:5]
    ]
    said = "; ".join(f"{where}: {what}" if where else what for where, what in named)[:1000]
    return said.encode("utf-8", "replace").decode()


def _add_state(app: FastAPI, desk: Desk, gate: Gate, metrics: Metrics) -> None:
    @app.get("/health", tags=["state"], summary="Whether the process lives")
    async def health() -> forms.State:
        return forms.State(status="ok")

    @app.get(
        "/ready",
        tags=["state"],
        summary="Whether requests should come here",
        responses={200: {"model": forms.State}, 503: {"model": forms.State}},
    )
    async def ready() -> Response:
        if gate.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ready"})

    @app.get(
        "/metrics",
        tags=["state"],
        summary="Counts for Prometheus",
        response_class=PlainTextResponse,
    )
    async def counts() -> Any:
        metrics.waiting.set(len(desk.line))
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _filled(request: Request, form: type[Form]) -> tuple[Form, bytes | None]:
    """Return a form that was sent as JSON or multipart/form-data, and the image's bytes.

    Raises:
        HTTPException: it is neither, or has another file.
        RequestValidationError: something in it is wrong.
    """
    filled, files = await _filled_with_files(request, form)
    if set(files) - {"image"}:
        raise HTTPException(400, "only one file is expected: image")
    return filled, files.get("image")


async def _filled_with_files(
    request: Request, form: type[Form], most: int = 1
) -> tuple[Form, dict[str, bytes]]:
    """Return a form, and the files by the names of their fields; as `_filled`.

    Args:
        most: number of files.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return form.model_validate_json(await request.body(), strict=True), {}
        if kind != "multipart/form-data":
            raise HTTPException(400, "send application/json or multipart/form-data")
        limits = {"max_files": most, "max_fields": 100, "max_part_size": forms.BODY}
        async with request.form(**limits) as sent:
            values: dict[str, Any] = {}
            files: dict[str, bytes] = {}
            for name in sent:
                given = sent.getlist(name)
                texts = [one for one in given if isinstance(one, str)]
                found = [one for one in given if not isinstance(one, str)]
                if found:
                    if len(given) > 1:
                        raise HTTPException(400, f"only one file is expected: {name:.80}")
                    files[name] = await found[0].read()
                elif name in _JSON:
                    values[name] = _read_json(name, texts[-1])
                else:
                    values[name] = texts if name in _LISTS else texts[-1]
            return form.model_validate(values), files
    except ValidationError as e:
        wrong = e.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(wrong) from None


def _read_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise HTTPException(422, f"{name}: JSON is expected") from None


_TEXT = {"type": "string", "description": "JSON, as in application/json."}
_FILE = {"type": "string", "format": "binary"}


def _body(form: type[BaseModel]) -> dict[str, Any]:
    """Return how OpenAPI describes a form that can be sent in two ways."""
    plain = form.model_json_schema()
    parts = plain.pop("$defs", {})
    properties = plain["properties"]
    sent = {**plain, "properties": properties | {n: _TEXT for n in _JSON if n in properties}}
    sent.pop("examples", None)
    if "image" in properties:
        sent["properties"]["image"] = _FILE | {"description": "A file with an image."}
    if "passages" in properties:
        properties["passages"]["items"] = parts["PassageForm"]
        about = "A file with the image of the passage whose id is the name of this field."
        sent["additionalProperties"] = _FILE | {"description": about}
    content = {"application/json": {"schema": plain}, "multipart/form-data": {"schema": sent}}
    return {"requestBody": {"required": True, "content": content}}


def _json(reply: BaseModel) -> Any:
    return Response(reply.model_dump_json(exclude_none=True), media_type="application/json")


def _note(request: Request, desk: Desk, question: str) -> None:
    if desk.terms.contents:
        request.scope["ravqa"]["question"] = question


async def _events(parts: AsyncIterator[str]) -> Any:
    """Return server-sent events, once the first one is known: until then, errors are replies."""
    first = await anext(parts)

    async def all_parts() -> AsyncIterator[str]:
        yield first
        async for part in parts:
            yield part

    return StreamingResponse(all_parts(), media_type="text/event-stream")


def _event(kind: str, value: str) -> str:
    return f"event: {kind}\ndata: {value}\n\n"


def _add_questions(app: FastAPI, desk: Desk) -> None:
    @app.post(
        "/search",
        tags=["questions"],
        summary="Find passages",
        openapi_extra=_body(forms.SearchForm),
        responses={200: {"model": forms.SearchReply}},
    )
    async def search(request: Request) -> Any:
        form, data = await _filled(request, forms.SearchForm)
        _note(request, desk, form.question)
        return _json(await desk.search(form, data))

    @app.post(
        "/answer",
        tags=["questions"],
        summary="Answer a question from passages",
        openapi_extra=_body(forms.AnswerForm),
        responses={200: {"model": forms.AnswerReply, "content": {"text/event-stream": {}}}},
    )
    async def answer(request: Request) -> Any:
        form, data = await _filled(request, forms.AnswerForm)
        _note(request, desk, form.question)
        if form.stream:
            return await _events(streamed(form, data))
        return _json(await desk.answer(form, data))

    async def streamed(form: forms.AnswerForm, data: bytes | None) -> AsyncIterator[str]:
        begun = False
        try:
            async for what in desk.stream(form, data):
                if isinstance(what, str):
                    yield _event("piece", json.dumps(what))
                else:
                    kind = "answer" if isinstance(what, forms.AnswerReply) else "passages"
                    yield _event(kind, what.model_dump_json(exclude_none=True))
                begun = True
        except UserError as e:
            if not begun:
                raise
            yield _event("error", json.dumps(problem(status_of(e), said_of(e, desk))))


def _add_collections(app: FastAPI, desk: Desk) -> None:
    name = "/collections/{collection}"
    kinds: Any = {"tags": ["collections"]}

    @app.get("/collections", summary="List what can be asked", **kinds)
    async def collections() -> list[forms.CollectionReply]:
        return await desk.collections()

    @app.get(name, summary="Describe a collection", **kinds)
    async def collection(collection: str) -> forms.CollectionReply:
        return await desk.collection(collection)

    @app.get(f"{name}/passages/{{passage_id:path}}", summary="Show a passage", **kinds)
    async def passage(collection: str, passage_id: str) -> forms.Found:
        return found_passage(await desk.passage(collection, passage_id))

    @app.get(
        f"{name}/images/{{passage_id:path}}",
        summary="Show a passage's image",
        responses={200: {"content": {"image/*": {}}}},
        response_class=Response,
        **kinds,
    )
    async def image(collection: str, passage_id: str) -> Any:
        data, kind = await desk.picture(collection, passage_id)
        return Response(data, media_type=kind)

    async def put(request: Request, collection: str, replacing: bool) -> forms.ChangesReply:
        most = forms.MOST_PASSAGES
        form, files = await _filled_with_files(request, forms.PassagesForm, most)
        return await desk.put(collection, form, files, replacing=replacing)

    written = kinds | {"openapi_extra": _body(forms.PassagesForm)}

    @app.post(f"{name}/passages", summary="Add passages", **written)
    async def add(request: Request, collection: str) -> forms.ChangesReply:
        return await put(request, collection, False)

    @app.put(
        f"{name}/passages", summary="Add passages, and replace those with their ids", **written
    )
    async def update(request: Request, collection: str) -> forms.ChangesReply:
        return await put(request, collection, True)

    @app.delete(f"{name}/passages", summary="Delete passages", **kinds)
    async def delete(collection: str, ids: _Ids) -> forms.ChangesReply:
        return await desk.delete(collection, ids)


def _add_chat(app: FastAPI, desk: Desk) -> None:
    kinds: Any = {"tags": ["OpenAI-compatible"]}

    @app.get("/v1/models", summary="List collections and pipelines as models", **kinds)
    async def models() -> dict[str, Any]:
        return model_list(desk.models)

    @app.post(
        "/v1/chat/completions",
        summary="Answer the last question of a chat",
        responses={200: {"content": {"application/json": {}, "text/event-stream": {}}}},
        **kinds,
    )
    async def chat(request: Request, form: ChatForm) -> Any:
        if form.model not in desk.models:
            raise UnknownError(
                f"no model {form.model!r:.200}: {near_matches(form.model[:80], desk.models)}"
            )
        asked = question_of(form, *desk.models[form.model])
        _note(request, desk, asked.question)
        if not form.stream:
            return chat_reply(form.model, await desk.answer(asked))
        return await _events(streamed(form, asked))

    async def streamed(form: ChatForm, asked: forms.AnswerForm) -> AsyncIterator[str]:
        begun = False
        try:
            counted = bool(form.stream_options and form.stream_options.include_usage)
            async for piece in chat_pieces(form.model, desk.stream(asked), counted):
                yield f"data: {json.dumps(piece)}\n\n"
                begun = True
        except UserError as e:
            if not begun:
                raise
            yield f"data: {json.dumps(problem(status_of(e), said_of(e, desk)))}\n\n"
        yield "data: [DONE]\n\n"
