"""A client of servers with OpenAI's interface: vLLM, SGLang, llama.cpp, Ollama, hosted ones.

Reader and judge both use it. It handles addresses, the key, concurrent requests, waits and retries,
and the wording of failures. The package `openai` writes addresses and headers, which are the same
for all requests of a kind; `clients.transport` sends them.

The key comes from an environment variable. It is sent to the server and appears nowhere else: it is
removed from everything that a server sends back (`core.masking`), including answers. In an answer,
"***" replaces the key; a warning says so once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import Field

from ravqa.clients.flow import Ask, flow_to
from ravqa.clients.transport import (
    Opened,
    Request,
    Response,
    SizeError,
    Transport,
    TransportError,
    run,
)
from ravqa.clients.usage import usage_of
from ravqa.core.accounts import Account, Cost, Payer, Prices, current_account
from ravqa.core.errors import PromptError, ServerError, UserError, import_extra, near_matches
from ravqa.core.http import proxy_for, proxy_url, retry_after
from ravqa.core.masking import Mask, Pieces, secret_in
from ravqa.core.outcomes import Failure
from ravqa.core.settings import Address, Options, SecretVariable, Strict, Text
from ravqa.core.texts import encodable

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)

PASSING = frozenset({408, 409, 425, 429})  # and 5xx: worth another try
_UNAUTHORISED = frozenset({401, 403})
_LOOK_S = 5.0  # for a check whether the server responds
_LARGEST = 2**24  # bytes of a reply
_LARGEST_LIST = 2**22  # bytes of a list of models
_LARGEST_ERROR = 2**16  # bytes that are read of an error; the rest is left out
_PATHS = {"chat": "chat/completions", "plain": "completions"}
_MODELS = "models"
_ENCODINGS = frozenset({"", "identity"})  # what is compressed can expand beyond all limits
_LONG_S = 10.0  # a wait long enough to be reported, and the least time between reports
_LONGEST_WAIT_S = 600.0  # if a server asks for more, give up
_LONGEST_BACKOFF_S = 60.0
_HURRIED = 0.2  # share of a wait that is kept if there is nothing else to send
_HOPELESS = 3  # requests in a row that failed for good: the server is gone
_SHOWN = 300  # characters of a server's message
_MOST_NAMES = 2000  # of its models
DEEPEST = 100  # levels of lists and objects in a reply; no server needs more than ten
_HTML = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)
# Errors that llama.cpp reports with status 500, of a model without its projector of images.
_LASTING = re.compile(r"image input is not supported|\bmmproj\b", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|context_length|maximum.{0,40}tokens|too many tokens"
    r"|prompt is too long|exceeds? the (available |maximum )?(context|input)",
    re.IGNORECASE,
)


class ServerConfig(Strict):
    """Options of every part that queries a server.

    Attributes:
        url: the server's base address, such as http://localhost:8000/v1. Azure's addresses may
            end in ?api-version=..., which has the key sent as Azure expects it.
        model: the model's name on the server.
        workers: number of concurrent requests.
        timeout: seconds within which a reply must be complete, streamed or not; then the request is
            abandoned.
        retries: retries of a request after a busy server, a broken connection or an unreadable
            reply. Waits double from one second, unless the server says how long.
        api_key_env: environment variable with the key; if it is not set, no key is sent.
    """

    url: Address
    model: Text = Field(min_length=1)
    workers: int = Field(default=8, ge=1)
    timeout: float = Field(default=120, gt=0, le=10**6)
    retries: int = Field(default=6, ge=0)
    api_key_env: SecretVariable = "OPENAI_API_KEY"

    def packages(self) -> Sequence[tuple[str, str]]:
        """Return the client packages."""
        return [("openai", "openai"), ("aiohttp", "openai")]

    def servers(self) -> Sequence[str]:
        """Return the address."""
        return [self.url]

    def models(self) -> Sequence[str]:
        """Return no models: the server loads its own."""
        return ()

    def problems(self) -> Sequence[str]:
        """Return what is wrong with the key in the environment."""
        try:
            _key(self)
        except UserError as e:
            return [str(e)]
        return ()

    def refuse_secrets(self, why: str) -> None:
        """Refuse settings that hold a key, an invalid address, or an invalid variable name.

        Args:
            why: what needs the server, for messages.

        Raises:
            UserError: the address is invalid or contains a key; `api_key_env` is not a variable
                name; a free-form setting contains a key.
        """
        _address(self.url, why)
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            # Not quoted: it may be the key itself.
            raise UserError(
                f"{why}: api_key_env: the name of an environment variable is expected, in capitals"
            )
        if found := secret_in(self.model_dump(include=_free(self))):
            raise UserError(f"{why}: {found}: settings must not contain a key: use api_key_env")


class ChatServerConfig(ServerConfig):
    """Options of how a model on a server is asked.

    Attributes:
        revision: any text; change it when the server has new weights under the same name, so that
            older answers are not taken from the cache.
        prompt_form: "chat" uses /chat/completions; "plain" has /completions complete the text.
        system: system message of the chat form; omitted if empty.
        max_tokens_name: the server's name for the longest reply; OpenAI's newer models expect
            max_completion_tokens.
        max_thinking_tokens: tokens granted for thinking, beyond those of the answer.
        temperature: 0 takes the most likely token each time, and answers are cached; with other
            values, and null (the server's own), a reader's server is asked again each time.
        seed: seed of sampling, if the server takes one.
        extra_body: further keys of the request, passed as they are.
        prices: what a million tokens cost, as {prompt: 0.15, completion: 0.6, cached: 0.075,
            currency: USD}; without it, results have no money.
    """

    revision: Text = ""
    prompt_form: Literal["chat", "plain"] = "chat"
    system: Text = ""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    max_thinking_tokens: int = Field(default=0, ge=0)
    temperature: float | None = Field(default=0.0, ge=0)
    seed: int | None = None
    extra_body: Options = Field(default_factory=dict)
    prices: Prices | None = None

    def bills(self) -> Sequence[Prices | None]:
        """Return the prices."""
        return [self.prices]

    def request(self, longest: int) -> dict[str, Any]:
        """Return a request without its prompt, for an answer of at most `longest` tokens."""
        body: dict[str, Any] = {
            "model": self.model,
            self.max_tokens_name: longest + self.max_thinking_tokens,
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.seed is not None:
            body["seed"] = self.seed
        return body

    def messages(self, content: Any) -> list[dict[str, Any]]:
        """Return the chat with one user message."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]

    def refuse_own(self, why: str) -> None:
        """Refuse keys of `extra_body` that the part sets itself.

        Raises:
            UserError: there is one.
        """
        if own := sorted(_OWN & set(self.extra_body)):
            raise UserError(
                f"{why}: extra_body: {own[0]} comes from the {why.split()[1]}'s own settings"
            )


_OWN = frozenset(
    (
        *("model", "messages", "prompt", "stop", "max_tokens", "max_completion_tokens"),
        *("temperature", "seed", "n", "stream", "logprobs", "top_logprobs", "echo"),
        "prompt_logprobs",
    )
)


class ForbiddenError(ServerError):
    """The server forbids a request (403): the key is refused, or something that was asked for."""


class UnusableReplyError(Exception):
    """The reply cannot be used; the request is repeated."""


class NoAnswerError(Exception):
    """The reply has no answer, and a retry would not help; the message says why."""


class _Refusal(NamedTuple):
    """A response that means that the request failed, and the beginning of its body."""

    response: Response
    body: bytes


class _WrittenError(Exception):
    """A request is written and shall not be sent."""


class _Failure(NamedTuple):
    """A failed try: the reason, and how to proceed."""

    reason: str
    wait: float | None = None  # seconds that the server asked for
    unreachable: bool = False  # nobody listens at the address
    misplaced: bool = False  # some other kind of server answers there
    unconnected: bool = False  # there is no reply at all, though there was time for one
    limited: bool = False  # there were too many requests


class Client:
    """A client that makes several requests concurrently.

    Requests and replies are charged to the account of the caller's context, if there is one.

    Attributes:
        first_wait: seconds before the second try; doubled for each further one.
    """

    first_wait = 1.0

    def __init__(self, config: ServerConfig, *, why: str):
        """Read the key, without contacting the server yet.

        Args:
            why: what needs the server, for messages ("the judge llm").

        Raises:
            MissingExtraError: the package openai or aiohttp is not installed.
            UserError: the address is invalid, or the key's variable is invalid or holds no key.
        """
        config.refuse_secrets(why)
        self.why = why
        self.url = config.url.rstrip("/")
        self.config = config
        self._prices = config.prices if isinstance(config, ChatServerConfig) else None
        self._secret = _key(config, f"{why}: ")
        self._mask = Mask(self._secret)
        self._flow = flow_to(self.url, self._secret, config.workers)
        self._openai = import_extra("openai", "openai", why=why)
        self._transport = Transport(_proxy(self.url, why), why=why)
        self._requests: dict[str, asyncio.Task[Request]] = {}  # by path
        self._lock = threading.Lock()
        self._answered = False  # the server has answered something
        # Requests in a row that failed for good, by the run that sent them.
        self._hopeless: weakref.WeakKeyDictionary[Account, int] = weakref.WeakKeyDictionary()
        self._nobody = Account()
        self._told = -math.inf  # when a long wait was last reported
        self._echoes = 0  # answers that held the key

    def problem(self) -> str:
        """Return why no request can succeed now, judging from /models; empty if none is known."""
        found = run(self._models(_LOOK_S))
        if isinstance(found, _Refusal):
            # Not every server lists its models.
            unknown = found.response.status in _UNAUTHORISED
            return self._message(self._refusal()) if unknown else ""
        # A server that is busy, or lists its models in a nonstandard way, is there.
        if isinstance(found, _Failure) and found.unconnected:
            return self._message(found.reason)
        return ""

    async def ask(
        self,
        form: Literal["chat", "plain"],
        body: Mapping[str, Any],
        read: Callable[[Any], R],
        stop: asyncio.Event | None = None,
        payer: Payer = None,
    ) -> R:
        """Send a request to /chat/completions or /completions until it is answered; see `_ask`.

        It is awaited on the event loop, as in what is given to `each`.

        Args:
            read: takes the reply's JSON object; raises UnusableReplyError if it cannot be used, and
                NoAnswerError if a retry would not help.
            stop: is set once nobody waits for the reply any more.
            payer: the question that is charged.
        """
        return await self._ask(_PATHS[form], body, read, stop, self._send, payer)

    def stream(self, body: Mapping[str, Any], *, chat: bool) -> Iterator[dict[str, Any]]:
        """Request a streamed reply from one of the two, and yield its JSON objects.

        When the caller stops reading, the connection is closed and the server stops generating.

        Raises:
            PromptError, ServerError: as `_ask`, and if the reply breaks off or is not streamed.
        """
        body = {**body, "stream": True}
        path = _PATHS["chat" if chat else "plain"]
        return run(self._ask(path, body, _as_it_is, None, self._open))

    def pieces(self) -> Pieces:
        """Return a mask that removes the key from a text assembled from a stream's objects."""
        return Pieces(self._mask, self._tell_echo)

    def no_answer(self, reason: object) -> PromptError:
        """Return the error for a reply without an answer."""
        return PromptError(self._message(str(reason)))

    def each(self, ask: Ask[T, R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """Yield positions and results of `ask(item, stop)` as they come, `workers` items at a time.

        `ask` runs on the event loop, in the caller's context, and must not keep it from going on.
        Calls of several threads, and of all clients of the server, share the workers. An item
        without a reply yields a `Failure`. Once the server is gone, all items not yet answered
        yield fatal failures.

        Raises:
            UserError: anything else that `ask` raises; items in progress are yielded first.
        """
        return self._flow.each(ask, items)

    async def pause(self, seconds: float, stop: asyncio.Event) -> None:
        """Wait, or return early when `stop` is set."""
        await _set_within(stop, seconds)

    async def _ask(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Any], R],
        stop: asyncio.Event | None,
        send: Callable[[str, bytes], Awaitable[Any]],
        payer: Payer = None,
    ) -> R:
        """Send a request until it is answered, and read the reply.

        Args:
            read: takes the result of `send`; raises UnusableReplyError if it cannot be used, and
                NoAnswerError if a retry would not help.
            send: `_send`, which returns the reply's JSON object, or `_open`.
            payer: the question that is charged.

        Raises:
            LimitError: the account admits no further request.
            PromptError: the server refuses this request, has no answer to it, or all tries failed.
            ServerError: the server cannot be reached, refuses the key, does not have the model, or
                fails on one request after another.
        """
        stop = stop or asyncio.Event()
        data = self._written(body)
        wait = self.first_wait
        failure: _Failure | None = None
        tries = 0
        while True:
            async with self._flow.sending(stop):
                await self._keep_off(stop)
                if failure is not None and stop.is_set():
                    raise self._given_up(path, failure, tries)
                tries += 1
                sent = time.monotonic()
                reply = await self._charged(lambda: send(path, data), payer, retry=tries > 1)
            if isinstance(reply, _Failure):
                failure = reply
            else:
                try:
                    value = read(reply)
                except UnusableReplyError as e:
                    failure = _Failure(str(e))
                except NoAnswerError as e:
                    self._answered = True
                    self._flow.answered()
                    self._count_hopeless(again=False)
                    raise self.no_answer(e) from None
                else:
                    self._answered = True
                    self._flow.answered()
                    self._count_hopeless(again=False)
                    return value
            hurried = (failure.unreachable or failure.misplaced) and not self._answered
            if tries > self.config.retries or hurried:
                raise self._given_up(path, failure, tries)
            wait = await self._before_retry(failure, wait, sent, stop, again=tries > 1)

    async def _before_retry(
        self, failure: _Failure, wait: float, sent: float, stop: asyncio.Event, *, again: bool
    ) -> float:
        """Wait, or have everybody wait, before a request is repeated; return the next wait.

        Args:
            failure: how the request failed that was sent at the time `sent`.
            wait: seconds to wait if the server does not say how long.
            again: whether this was not the first try.

        Raises:
            ServerError: the server asks to wait too long.
        """
        # A server that keeps answering "now" would use up all tries at once.
        own = failure.wait is None or (again and failure.wait == 0)
        # Jitter, so that the workers do not all retry at once.
        seconds = min(wait, _LONGEST_BACKOFF_S) * random.uniform(0.75, 1.25)
        if not own and failure.wait is not None:
            seconds = failure.wait
        if seconds > _LONGEST_WAIT_S:
            raise self._error(f"{failure.reason}; the server asks to wait {seconds:.0f} s")
        self._tell(failure, seconds)
        if failure.limited:
            self._flow.slow_down(sent, seconds)
        else:
            with self._flow.resting(sent, stop) as over:
                began = time.monotonic()
                await self.pause(seconds, over)
                if over.is_set():
                    await _set_within(stop, began + seconds * _HURRIED - time.monotonic())
        return wait * 2 if own else wait

    async def _charged(
        self, send: Callable[[], Awaitable[Any]], payer: Payer, *, retry: bool
    ) -> Any:
        """Send a request and return its reply, and have both charged to the account."""
        account = current_account()
        if account is None:
            return await send()
        account.admit(payer, retry=retry)
        reply = await send()
        if not isinstance(reply, _Failure):
            account.charge(Cost.of(usage_of(reply), self._prices), payer)
        return reply

    async def _keep_off(self, stop: asyncio.Event) -> None:
        left = self._flow.pause
        if left > 0:
            await self.pause(left, stop)

    def _tell(self, failure: _Failure, seconds: float) -> None:
        """Log a long wait, so that the program does not seem to hang; one worker reports it."""
        with self._lock:
            now = time.monotonic()
            silent = seconds < _LONG_S or now < self._told + _LONG_S
            self._told = self._told if silent else now
        if not silent:
            _log.warning("%s: waiting %.0f s", self._message(failure.reason), seconds)

    def _tell_echo(self) -> None:
        with self._lock:
            self._echoes += 1
            first = self._echoes == 1
        if first:
            _log.warning(
                "%s", self._message("a reply contains the key: it is shown as *** from here on")
            )

    def _given_up(self, path: str, failure: _Failure, tries: int) -> UserError:
        if failure.misplaced:
            return self._error(f"{failure.reason}: {_place(path)}")
        often = f", after {tries} tries" if tries > 1 else ""
        if failure.unreachable:
            look = "is the server running?"
            if proxy_for(self.url):
                host = urlsplit(self.url).hostname
                look = f"is the proxy running? NO_PROXY={host} reaches the server without it"
            return self._error(f"{failure.reason}{often}: {look}")
        if self._count_hopeless(again=True) >= _HOPELESS:
            return self._error(f"{failure.reason}{often}, for several requests in a row")
        return PromptError(self._message(f"{failure.reason}{often}"))

    def _count_hopeless(self, *, again: bool) -> int:
        """Count one more of this run's requests in a row that failed for good; or begin anew."""
        run = current_account() or self._nobody
        with self._lock:
            self._hopeless[run] = self._hopeless.get(run, 0) + 1 if again else 0
            return self._hopeless[run]

    def _error(self, reason: str) -> ServerError:
        return ServerError(self._message(reason))

    def _message(self, reason: str) -> str:
        """Return the text of an error or warning of this client, without the key."""
        return f"{self.why}: {self.url}: {self._mask.text(reason)}"

    def _written(self, body: Mapping[str, Any]) -> bytes:
        """Return a request's body.

        Raises:
            PromptError: it holds text that UTF-8 cannot encode.
        """
        try:
            return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            pass  # raised below: the exception holds the whole request
        raise PromptError(self._message("the request holds text that UTF-8 cannot encode"))

    async def _request(self, path: str) -> Request:
        """Return the address and the headers of requests to a path, as the package writes them."""
        if path not in self._requests:  # it takes the package a while to be loaded
            making = asyncio.to_thread(self._as_written, path)
            self._requests[path] = asyncio.create_task(making)
        return await self._requests[path]

    def _as_written(self, path: str) -> Request:
        openai, config = self._openai, self.config
        base, version = _parts(self.url)
        make = (
            openai.OpenAI if version is None else partial(openai.AzureOpenAI, api_version=version)
        )
        # Azure's client would also send a token from another environment variable.
        unwanted = ([] if self._secret else ["api-key"]) + (
            [] if self._secret and version is None else ["authorization"]
        )
        unwanted += ["host", "connection", "content-length", "transfer-encoding", "accept-encoding"]
        written: list[Any] = []  # requests of httpx or of its successor

        def stop(request: Any) -> None:
            written.append(request)
            raise _WrittenError

        with openai.DefaultHttpxClient(trust_env=False, event_hooks={"request": [stop]}) as http:
            package = make(
                base_url=base,
                api_key=self._secret or "none",
                max_retries=0,
                timeout=config.timeout,
                http_client=http,
            )
            # Some versions of the package wrap what a hook raises.
            with suppress(_WrittenError, openai.APIConnectionError):
                if path == _MODELS:
                    package.get(f"/{path}", cast_to=object)
                else:
                    package.post(f"/{path}", cast_to=object, body={"model": config.model})
        [found] = written
        headers = {k: v for k, v in found.headers.items() if k.lower() not in unwanted}
        return Request(found.method, str(found.url), {**headers, "Accept-Encoding": "identity"})

    async def _send(self, path: str, data: bytes) -> Any:
        """Return the reply's JSON object, or the failure if it is transient.

        Raises:
            PromptError, ServerError: the failure is permanent.
        """
        found = await self._whole(path, data, self.config.timeout, _LARGEST)
        if isinstance(found, _Refusal):
            return await self._refused(path, found)
        return found if isinstance(found, _Failure) else self._parsed(found)

    async def _open(self, path: str, data: bytes) -> Any:
        """Return the objects of a streamed reply, once it has begun; or the failure, as `_send`."""
        try:
            opened = await self._transport.opened(
                await self._request(path), data, self.config.timeout
            )
        except TransportError as e:
            return self._unconnected(e)
        if not _is_refused(opened.response):
            return self._events(opened)
        with closing(opened):
            body = bytearray()
            try:
                while len(body) < _LARGEST_ERROR and (part := await opened.next()):
                    body += part
            except TransportError:  # the status is worth more than the rest of the text
                _log.debug("a reply with an error was cut", exc_info=True)
        return await self._refused(path, _Refusal(opened.response, bytes(body[:_LARGEST_ERROR])))

    async def _whole(
        self, path: str, data: bytes | None, seconds: float, limit: int
    ) -> bytes | _Failure | _Refusal:
        """Return the body of a response, or why there is none."""
        request = await self._request(path)
        try:
            response, body, error = await self._transport.whole(
                request, data, seconds, limit, _LARGEST_ERROR
            )
        except TransportError as e:
            return self._unconnected(e)
        if _is_refused(response):
            return _Refusal(response, body)
        if isinstance(error, SizeError):
            return _Failure(_too_large(limit))
        if isinstance(error, TransportError):
            return self._cut(error, "the connection was cut in the middle of a reply")
        return body

    async def _models(self, timeout: float) -> list[str] | _Failure | _Refusal:
        """Return the names of the server's models, or why there are none."""
        body = await self._whole(_MODELS, None, timeout, _LARGEST_LIST)
        found = self._parsed(body) if isinstance(body, bytes) else body
        if isinstance(found, _Refusal | _Failure):
            return found
        listed = found.get("data")
        entries = listed if isinstance(listed, list) else []
        names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        return [one_line(name) for name in names if isinstance(name, str)]

    def _events(self, opened: Opened) -> Iterator[dict[str, Any]]:
        """Yield server-sent events up to the final marker, which not every server sends."""
        with closing(opened):
            finished = failed = False
            for line in self._lines(opened):
                kind, _, text = line.partition(b":")
                if kind != b"data":  # comments, event names, blank lines
                    failed = text.strip() == b"error" if kind == b"event" else failed
                    if line.startswith(b"{"):
                        raise self._broken_off(_Failure("it was not sent as events"))
                    continue
                if text.strip() == b"[DONE]":
                    return
                event = self._parsed(text)
                if isinstance(event, _Failure):
                    raise self._broken_off(event)
                if failed:
                    raise self._broken_off(self._reported(event))
                finished = finished or _finishes(event)
                yield event
            if not finished:
                raise self._broken_off(_Failure("it did not end"))

    def _lines(self, opened: Opened) -> Iterator[bytes]:
        """Yield the lines of a streamed reply, within the limits of size and time.

        Raises:
            PromptError: the reply is cut, late or too long.
        """
        rest, read = b"", 0
        while True:
            try:
                part = run(opened.next())
            except TransportError as e:
                raise self._broken_off(self._cut(e, "it was cut off")) from None
            if not part:
                break
            read += len(part)
            if read > _LARGEST:
                raise self._broken_off(_Failure(_too_large(_LARGEST)))
            *lines, rest = (rest + part).split(b"\n")
            yield from lines
        yield rest

    def _broken_off(self, failure: _Failure) -> PromptError:
        return PromptError(self._message(f"a streamed reply failed: {failure.reason}"))

    def _cut(self, error: TransportError, what: str) -> _Failure:
        return self._late() if error.late else _Failure(f"{what} ({one_line(error)})")

    def _late(self) -> _Failure:
        return _Failure(f"no answer within {self.config.timeout:g} s")

    def _parsed(self, data: bytes) -> Any:
        try:
            reply = json.loads(data.decode("utf-8"))
            if is_deep(reply):
                return _Failure(f"the reply is nested more than {DEEPEST} levels deep")
        except ValueError:
            return _Failure(
                "the reply is not JSON", misplaced=bool(_HTML.match(data)) and not self._answered
            )
        except RecursionError:
            return _Failure(f"the reply is nested more than {DEEPEST} levels deep")
        if not isinstance(reply, dict):
            return _Failure("the reply is not a JSON object")
        masked = self._mask.value(reply)
        if masked != reply:
            self._tell_echo()
        reply = masked
        if _is_error(reply):  # some servers report errors with status 200
            return self._reported(reply)
        return reply

    def _reported(self, reply: Any) -> _Failure:
        said = self._shown(reply)
        return _Failure(f"the server reports{f': {said}' if said else ' an error'}")

    def _unconnected(self, error: TransportError) -> _Failure:
        if error.late:
            return self._late()
        if not error.unreachable:
            return _Failure(f"the connection was cut ({one_line(error)})", unconnected=True)
        proxy = proxy_for(self.url)
        through = f" through the proxy {proxy}" if proxy else ""
        reason = f"cannot be reached{through} ({one_line(error)})"
        return _Failure(reason, unreachable=True, unconnected=True)

    async def _refused(self, path: str, refusal: _Refusal) -> _Failure:
        """Interpret an HTTP error status: return a transient failure, or raise.

        Raises:
            PromptError: the server refuses this prompt.
            ServerError: the server would refuse any prompt.
        """
        status, phrase, headers = refusal.response
        encoding = _encoding(headers)
        if encoding not in _ENCODINGS:
            phrase = f"an answer in the encoding {one_line(encoding)}, which was not asked for"
            refusal = _Refusal(refusal.response, b"")
        if 300 <= status < 400:
            target = one_line(headers.get("location", "another address"))
            raise self._error(f"HTTP {status}: the server redirects to {target}: set url to it")
        read = _json(refusal.body)
        said = self._shown(read)
        codes = _codes(read)
        what = f"HTTP {status} {phrase}".strip()
        reason = f"{what} ({said})" if said else what
        if status in _UNAUTHORISED:
            refused = ForbiddenError if status == 403 else ServerError
            raise refused(self._message(f"{reason}: {self._refusal()}"))
        if status == 404:
            raise await self._missing(path, reason)
        if status == 429 and "insufficient_quota" in codes:
            raise self._error(reason)
        self._answered = True
        if (status in PASSING or status >= 500) and not _LASTING.search(said):
            wait = retry_after(headers)
            return _Failure(reason, wait, limited=status == 429 or wait is not None)
        if _TOO_LONG.search(f"{codes} {said}"):
            reason = f"the prompt is too long for the model: {reason}"
        self._count_hopeless(again=False)
        raise PromptError(self._message(reason))

    def _refusal(self) -> str:
        variable = f"${self.config.api_key_env}"
        if self._secret:
            return f"the key in {variable} was refused"
        return f"no key was sent: {variable} is not set"

    async def _missing(self, path: str, reason: str) -> ServerError:
        """Return the error for status 404: an unknown model, or a wrong address."""
        names = await self._models(self.config.timeout)
        model = self.config.model
        if not isinstance(names, list) or not names or model in names:
            return self._error(f"{reason}: {_place(path)}")
        near = one_line(near_matches(model, names[:_MOST_NAMES]))
        return self._error(f"the server has no model {model!r}: {near}")

    def _shown(self, reply: Any) -> str:
        """Return a server's error message as one short line without the key."""
        return one_line(self._mask.text(message_in(reply)))


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait until an event is set, or the time is over."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def _finishes(event: Mapping[str, Any]) -> bool:
    choices = event.get("choices")
    found = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(found, dict) and bool(found.get("finish_reason"))


def _is_error(reply: Mapping[str, Any]) -> bool:
    """Return whether a reply or an event of one is an error, in the form of any known server."""
    if reply.get("error") or reply.get("object") == "error":
        return True
    said = reply.get("message") or reply.get("detail")  # FastAPI's may be a list
    return "choices" not in reply and isinstance(said, str | list) and bool(said)


def message_in(reply: Any) -> str:
    """Return a server's error message, from whichever usual field holds it."""
    found = reply
    for _ in range(3):
        if not isinstance(found, dict):
            break
        found = next((found[k] for k in ("error", "message", "detail") if found.get(k)), "")
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def one_line(text: object) -> str:
    """Return the beginning of a server's text as one short line."""
    line = " ".join(encodable(str(text)).split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."


def _as_it_is(reply: R) -> R:
    return reply


def _address(url: str, why: str) -> None:
    # Checked before the address is quoted: a value given by mistake may hold a key too.
    if "@" in re.split(r"(?<![:/])/(?!/)", url)[0]:
        raise UserError(f"{why}: url: it must not contain a name or password: use api_key_env")
    if "#" in url or ("?" in url and _parts(url)[1] is None):
        raise UserError(f"{why}: url: nothing may follow its path; for a key, use api_key_env")
    if not re.match(r"https?://[^/\s]+(/\S*)?$", url):
        raise UserError(f"{why}: url: an http address is expected, got {url!r}")


def _parts(url: str) -> tuple[str, str | None]:
    """Return an address without its query, and Azure's api-version; None without exactly that."""
    base, _, query = url.partition("?")
    found = re.fullmatch(r"api-version=([\w.-]+)", query)
    return base.rstrip("/"), found.group(1) if found else None


def _key(config: ServerConfig, before: str = "") -> str:
    name = config.api_key_env
    key = os.environ.get(name, "").strip()
    if not key and "api_key_env" in config.model_fields_set:
        raise UserError(f"{before}the environment variable {name} (api_key_env) is not set")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{before}the environment variable {name} has characters no key can have")
    return key


def _free(config: ServerConfig) -> set[str]:
    """Return the names of the settings with free-form content."""
    return {name for name in type(config).model_fields if isinstance(getattr(config, name), dict)}


def _proxy(url: str, why: str) -> str | None:
    proxy = proxy_url(url)
    if proxy is not None and urlsplit(proxy).scheme not in ("http", "https"):
        raise UserError(f"{why}: the environment sets a proxy that is none of http or https")
    return proxy


def _place(path: str) -> str:
    return f"url is the address before /{path}, usually ending in /v1"


def _encoding(headers: Mapping[str, str]) -> str:
    return headers.get("content-encoding", "").strip().lower()


def _is_refused(response: Response) -> bool:
    """Return whether a response is none to a request that succeeded."""
    return not 200 <= response.status < 300 or _encoding(response.headers) not in _ENCODINGS


def _too_large(limit: int) -> str:
    return f"the reply is larger than {limit // 2**20} MB"


def _json(body: bytes) -> Any:
    """Return an error's body: JSON, or text that is not a web page."""
    try:
        read = json.loads(body)
        if not is_deep(read):
            return read
    except (ValueError, RecursionError):
        pass
    return "" if _HTML.match(body) else body.decode("utf-8", "replace")


def _codes(body: Any) -> str:
    """Return the names that a server gives to its error."""
    error = body.get("error", body) if isinstance(body, dict) else {}
    return f"{error.get('code')} {error.get('type')}" if isinstance(error, dict) else ""


def is_deep(value: Any) -> bool:
    """Return whether a JSON value is nested more than `DEEPEST` levels deep."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True
