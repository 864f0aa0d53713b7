"""Reader for any server with OpenAI's API: vLLM, SGLang, llama.cpp, Ollama, hosted ones.

Images are sent as data URIs before the text. Servers differ in their abilities and do not declare
them: the settings do, and a reply that lacks what they promise is a failure.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from ravqa.clients.openai import (
    ChatServerConfig,
    Client,
    ForbiddenError,
    NoAnswerError,
    UnusableReplyError,
    one_line,
)
from ravqa.clients.replies import Reply, choice_of
from ravqa.clients.usage import usage_of
from ravqa.core.accounts import Payer
from ravqa.core.checkpoints import load_tokenizer, loading
from ravqa.core.control_tokens import COMMON, control_tokens
from ravqa.core.errors import PromptError, UserError
from ravqa.core.failures import failures
from ravqa.core.marks import (
    has_thinking_mark,
    is_no_answer,
    may_open_thinking,
    split_thinking,
)
from ravqa.core.model_files import resolve
from ravqa.core.outcomes import Failure
from ravqa.core.settings import ModelName, fingerprint
from ravqa.core.templates import apply_chat_template
from ravqa.images.decode import sendable
from ravqa.readers.base import Abilities, Generation, Prompt, Reader, settled

R = TypeVar("R")

_WHY = "the reader openai"
_LIMITS = "max_new_tokens or max_thinking_tokens"
_ROUNDING = 0.01  # in half precision, certain tokens have slightly more than 0
# Texts of tokens that are not the text they stand for: as in the vocabulary, numbers, bytes.
_UNREADABLE = re.compile(
    r"[\ufffd\udc80-\udcff\u2581\u0120\u010a]|bytes:\\x|token_id:\d|<0x[0-9A-F]{2}>"
)
_MOST_PLACES = 64
_ECHO_TOLERANCE = 0.5  # half-precision kernels differ by a tenth of it


class OpenAIReader(Reader):
    """Sends a server several prompts at a time, for the server to batch.

    The fingerprint consists of address, model name and settings: a server does not expose its
    weights.
    """

    streams = True
    charges = True
    thread_safe = True

    class Config(ChatServerConfig):
        """Options, beyond those of how a server is asked.

        Attributes:
            images: whether to send a prompt's images (chat form only, where it is the default).
            image_size: most pixels of an image's longer side; larger images are scaled down.
            max_new_tokens: longest answer.
            stop_at_newline: whether a line break ends the answer; by default in the plain form
                only.
            log_probs: whether the server returns the log-probabilities of what it generated.
            scoring: how given answers are scored: "echo" (plain form) or "prompt_logprobs" (chat
                form); vLLM supports both.
            context: most tokens that prompt and generation may have together.
            tokenizer: folder or hub name of the model's tokenizer, for counting tokens.
            image_tokens: tokens per image, for counting.
        """

        images: bool | None = None
        image_size: int | None = Field(default=2048, ge=28)
        max_new_tokens: int = Field(default=32, ge=1)
        stop_at_newline: bool | None = None
        log_probs: bool = False
        scoring: Literal["none", "echo", "prompt_logprobs"] = "none"
        context: int | None = Field(default=None, ge=1)
        tokenizer: ModelName | None = None
        image_tokens: int = Field(default=0, ge=0)

        def problems(self) -> Sequence[str]:
            """Return also which settings do not go together."""
            try:
                _check(self)
            except UserError as e:
                return [*super().problems(), str(e).removeprefix(f"{_WHY}: ")]
            return super().problems()

    config: Config

    def __init__(self, config: Config):
        """Store the settings; the server is first contacted by the first prompt.

        Raises:
            MissingExtraError: the package openai is not installed.
            UserError: settings that do not go together, a bad address or key, a tokenizer that
                cannot be loaded.
        """
        _check(config)
        self.config = config
        self.client = Client(config, why=_WHY)
        chat = config.prompt_form == "chat"
        able = self.declared(config)
        self.supports_images, self.max_images = able.supports_images, able.max_images
        self.gives_log_probs = able.gives_log_probs
        self.scores_answers = able.scores_answers
        self.ways = able.ways
        self._stops = not chat if config.stop_at_newline is None else config.stop_at_newline
        self.counts_tokens = config.tokenizer is not None
        self.deterministic = config.temperature == 0
        self._echo_checked = False
        self._echo_lock = asyncio.Lock()
        self._counting = threading.Lock()
        self.weights = config.model
        self.prices = config.prices
        self.context = config.context
        self.max_new_tokens = config.max_new_tokens
        self.max_thinking_tokens = config.max_thinking_tokens
        self.workers = config.workers
        self.control_tokens = COMMON
        if config.tokenizer is not None:  # a mistake in it should show before the work
            known = self._tokenizer
            self.control_tokens = control_tokens(known, known.chat_template)
        # Leave out connection settings, which change no answer.
        apart = {"workers", "timeout", "retries", "api_key_env"}
        apart |= {"context", "tokenizer", "image_tokens", "scoring", "prices"}
        if not config.max_thinking_tokens:  # not a setting when answers were first cached
            apart.add("max_thinking_tokens")
        meant = {
            "url": self.client.url,
            "images": self.supports_images,
            "stop_at_newline": self._stops,
        }
        self.fingerprint = fingerprint("openai/2", config.model_dump(exclude=apart) | meant)

    @classmethod
    def declared(cls, config: Config) -> Abilities:
        """Return what the settings say that the server can do."""
        chat = config.prompt_form == "chat"
        return Abilities(
            supports_images=chat if config.images is None else config.images,
            gives_log_probs=config.log_probs,
            scores_answers=config.scoring != "none",
            gives_next_token_logprobs=False,
            ways={
                **({"supports_images": "images=true"} if chat else {}),
                "gives_log_probs": "log_probs=true",
                "scores_answers": f"scoring={'prompt_logprobs' if chat else 'echo'}",
            },
        )

    def problem(self) -> str:
        """Return why no prompt can be answered now, if known; else an empty string."""
        return self.client.problem()

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation | Failure]:
        """Return one generation per prompt, in order.

        A prompt fails if the server does not answer it; fatally if the server cannot be reached,
        refuses the key, or does not have the model.

        Raises:
            UserError: the server's replies lack what the settings promise.
        """
        return _in_order(self.generate_each(prompts))

    def generate_each(
        self, prompts: Sequence[Prompt]
    ) -> Iterator[tuple[int, Generation | Failure]]:
        """Yield prompts' positions and generations as they arrive; see `generate`."""
        images = self._images(prompts)

        async def ask(prompt: Prompt, stop: asyncio.Event) -> Generation:
            body = self._request(prompt, await images.uris(self._seen(prompt)))
            return await self._send(body, self._generation, stop, payer=prompt.payer)

        for position, outcome in self.client.each(ask, prompts):
            if isinstance(outcome, Generation):
                outcome = settled(outcome, _LIMITS)
            yield position, outcome

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """Yield the generation in pieces, as the server sends them.

        Raises:
            PromptError, ServerError: as failures in `generate`.
        """
        uris = [_uri(image, self.config.image_size) for image in self._seen(prompt)]
        body = _without_log_probs(self._request(prompt, uris))
        reply = self._reply()
        masked = self.client.pieces()
        text = given = ""
        try:
            for event in self.client.stream(body, chat=self.config.prompt_form == "chat"):
                text += masked.next(reply.event(event))
                if may_open_thinking(text):
                    continue
                answer = split_thinking(text).answer
                new = self._ended(answer).removeprefix(given)
                given += new
                if new:
                    yield new
                if self._stops and "\n" in answer:
                    break
            else:
                reply.check()
                text += masked.rest()
        except (NoAnswerError, UnusableReplyError) as e:
            raise self.client.no_answer(e) from None
        answer = self._ended(split_thinking(text).answer)
        outcome = settled(Generation(answer), _LIMITS)
        if isinstance(outcome, Failure):
            raise self.client.no_answer(outcome.reason)
        if new := answer.removeprefix(given):
            yield new

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | Failure]:
        """Return the log-probability of each answer after its prompt; prompts fail as in
        `generate`.

        The end mark is included in the chat form, and in the plain form if it is a line break; no
        server accepts the end-of-sequence token as text.
        """
        return _in_order(self.score_each(prompts, answers))

    def score_each(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[int, float | Failure]]:
        """Yield prompts' positions and their answers' log-probabilities as they arrive."""
        if self.config.scoring == "none":
            raise UserError(f"{_WHY}: scoring answers needs the setting scoring")
        images = self._images(prompts)
        heads: dict[Prompt, list[tuple[str, float]]] = {}

        async def ask(pair: tuple[Prompt, str], stop: asyncio.Event) -> float:
            if self.config.prompt_form == "plain":
                return await self._score_plain(*pair, stop)
            return await self._score_chat(
                *pair, await images.uris(self._seen(pair[0])), heads, stop
            )

        return self.client.each(ask, list(zip(prompts, answers, strict=True)))

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int | Failure]:
        """Return each prompt's number of tokens by the configured tokenizer, template included.

        Raises:
            UserError: no tokenizer is configured.
        """
        if self.config.tokenizer is None:
            raise UserError(f"{_WHY}: counting tokens needs the setting tokenizer")
        with self._counting:  # a tokenizer is for one thread at a time
            return [self._count(prompt) for prompt in prompts]

    def _unable(self, what: str) -> UserError:
        return UserError(f"{_WHY} cannot {what}")

    def _count(self, prompt: Prompt) -> int:
        seen = self.config.image_tokens * len(prompt.images) if self.supports_images else 0
        if self.config.prompt_form == "plain":
            return len(self._tokenizer(self._said(prompt))["input_ids"])
        with failures(f"the chat template of {self.config.tokenizer}"):
            text = apply_chat_template(
                self._tokenizer,
                self._messages(replace(prompt, image=None, pictures=())),
                add_generation_prompt=True,
            )
        return seen + len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _tokenizer(self) -> Any:
        name = str(self.config.tokenizer)
        path = resolve(name, extra="sample", why=_WHY)
        with loading(_WHY, f"tokenizer {name}", path):
            tokenizer = load_tokenizer(path, trust_remote_code=False)
        if self.config.prompt_form == "chat" and not tokenizer.chat_template:
            raise UserError(f"{_WHY}: the tokenizer {name} has no chat template")
        return tokenizer

    def _body(self) -> dict[str, Any]:
        """Return a request without its prompt."""
        config = self.config
        body = config.request(self.max_new_tokens)
        if self._stops and not config.max_thinking_tokens:  # thinking may have several lines
            body["stop"] = ["\n"]
        if config.log_probs and config.prompt_form == "plain":
            body["logprobs"] = 1
        elif config.log_probs:
            body |= {"logprobs": True, "top_logprobs": 1}  # llama-cpp-python: none without top ones
        return body | config.extra_body

    def _seen(self, prompt: Prompt) -> Sequence[Path | bytes]:
        """Return the images that are sent with a prompt."""
        return prompt.images if self.supports_images else ()

    def _images(self, prompts: Sequence[Prompt]) -> _Images:
        return _Images(self.config.image_size, list(map(self._seen, prompts)))

    def _request(self, prompt: Prompt, uris: Sequence[str]) -> dict[str, Any]:
        if self.config.prompt_form == "chat":
            return {**self._body(), "messages": self._messages(prompt, uris)}
        return {**self._body(), "prompt": self._said(prompt)}

    def _said(self, prompt: Prompt) -> str:
        """Return a prompt's text with foreign control tokens as plain text."""
        return self.control_tokens.neutral(prompt.text, prompt.own)[0]

    def _messages(self, prompt: Prompt, uris: Sequence[str] = ()) -> list[dict[str, Any]]:
        content: Any = self._said(prompt)
        if uris:
            parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
            content = [*parts, {"type": "text", "text": content}]
        return self.config.messages(content)

    async def _send(
        self,
        body: Mapping[str, Any],
        read: Callable[[Any], R],
        stop: asyncio.Event,
        setting: str = "log_probs",
        payer: Payer = None,
    ) -> R:
        """Send a request.

        Args:
            setting: the setting that asks for log-probabilities.
            payer: the question that is charged.

        Raises:
            UserError: the server forbids the request, but not the same one without
                log-probabilities.
        """
        form = self.config.prompt_form
        try:
            return await self.client.ask(form, body, read, stop, payer)
        except ForbiddenError as e:
            less = _without_log_probs(body)
            if less == body:
                raise
            if not re.search(r"log[ _-]?prob", str(e), re.IGNORECASE):
                await self.client.ask(form, less, lambda reply: None, stop, payer)
        raise _unable("forbids log-probabilities (HTTP 403)", setting)

    def _reply(self) -> Reply:
        longest = self.max_new_tokens + self.max_thinking_tokens
        return Reply(self.config.prompt_form, longest, _LIMITS)

    def _ended(self, text: str) -> str:
        """Cut text at the line break if that ends an answer: some servers keep it."""
        if not self._stops:
            return text
        head, end, _ = text.partition("\n")
        return head if head.strip() else head + end

    def _generation(self, reply: Mapping[str, Any]) -> Generation:
        read = self._reply()
        whole = read.whole(reply)
        read.check()
        answer, thinking, cut, _ = split_thinking(whole)
        text = whole if cut else self._ended(answer)
        thinking = "\n".join(filter(None, (read.thinking.strip(), thinking)))
        usage = usage_of(reply)
        if not self.config.log_probs:
            return Generation(text, thinking=thinking, usage=usage)
        pairs = _log_probs(choice_of(reply), "log_probs")
        values = _of_answer(pairs, text, whole, thought=bool(thinking))
        if not values:  # only the end mark, which not every server lists
            return Generation(text, thinking=thinking, usage=usage)
        return Generation(text, math.fsum(values), len(values), thinking, usage)

    async def _score_plain(self, prompt: Prompt, answer: str, stop: asyncio.Event) -> float:
        async with self._echo_lock:  # once, before all other requests
            if not self._echo_checked:
                await self._check_echo(prompt, stop)
        said = self._said(prompt)
        text = f"{said} {self._scored(answer)}" + ("\n" if self._stops else "")
        return await self._echo(text, len(said), stop, prompt.payer)

    async def _echo(self, text: str, start: int, stop: asyncio.Event, payer: Payer) -> float:
        """Return the log-probability of a text from character `start` on, given those before."""
        body = self._scoring_body() | {"prompt": text, "echo": True, "logprobs": 1}
        read = partial(_echoed, text=text, start=start)
        return await self._send(body, lambda reply: read(choice_of(reply)), stop, "scoring", payer)

    async def _check_echo(self, prompt: Prompt, stop: asyncio.Event) -> None:
        """Check that the log-probability of a generated token is the same when echoed.

        llama-cpp-python 0.3.36 gives each echoed token the value of the next position.
        """
        said = self._said(prompt)
        body = self._scoring_body() | {"prompt": said, "logprobs": 1}
        made = await self._send(body, choice_of, stop, "scoring", prompt.payer)
        token, values = made.get("text"), _log_probs(made, "scoring")
        if not isinstance(token, str) or not token.strip() or not values:
            return  # an end mark cannot be echoed; the next prompt may be checked
        _, value = values[0]
        echoed = await self._echo(said + token, len(said), stop, prompt.payer)
        if abs(echoed - value) > _ECHO_TOLERANCE:
            raise UserError(
                f"{_WHY}: the server gives {token!r} the log-probability {value:.2f} when it "
                f"generates it and {echoed:.2f} when it echoes it: answers cannot be scored"
            )
        self._echo_checked = True

    def _scoring_body(self) -> dict[str, Any]:
        config = self.config
        # Not all servers take a limit of 0 tokens.
        own = {"model": config.model, config.max_tokens_name: 1, "temperature": 0}
        return {**config.extra_body, **own}

    async def _score_chat(
        self,
        prompt: Prompt,
        answer: str,
        uris: Sequence[str],
        heads: dict[Prompt, list[tuple[str, float]]],
        stop: asyncio.Event,
    ) -> float:
        """Score the answer as the assistant's message: open and ended, to find its end mark."""
        asked = self._messages(prompt, uris)
        full = [*asked, {"role": "assistant", "content": self._scored(answer)}]
        body = self._scoring_body() | {"prompt_logprobs": 0}
        ended = {"add_generation_prompt": False, "continue_final_message": False}
        open_ended = {"add_generation_prompt": False, "continue_final_message": True}

        async def ask(request: Mapping[str, Any]) -> list[tuple[str, float]]:
            return await self._send(request, _prompt_tokens, stop, "scoring", prompt.payer)

        if prompt not in heads:  # many answers may be scored after one prompt
            heads[prompt] = await ask({**body, "messages": asked})
        before = heads[prompt]
        within = await ask({**body, **open_ended, "messages": full})
        after = await ask({**body, **ended, "messages": full})
        if not _begins(within, before) or not _begins(after, within) or len(after) == len(within):
            raise PromptError(
                f"{_WHY}: answers cannot be scored: the model's chat template does not put an "
                "answer directly after its prompt"
            )
        return math.fsum(value for _, value in after[len(before) : len(within) + 1])


class _Images:
    """Data URIs of one call's images, each made once and kept until its last prompt is asked."""

    def __init__(self, longest: int | None, seen: Sequence[Sequence[Path | bytes]]):
        """Make nothing yet.

        Args:
            longest: most pixels of an image's longer side.
            seen: the images of each prompt that will be asked.
        """
        self._longest = longest
        self._left = Counter(itertools.chain.from_iterable(seen))
        self._made: dict[Path | bytes, asyncio.Task[str]] = {}

    async def uris(self, images: Sequence[Path | bytes]) -> list[str]:
        """Return the data URIs of a prompt's images, in order."""
        for image in images:
            if image not in self._made:
                making = asyncio.to_thread(_uri, image, self._longest)
                self._made[image] = asyncio.create_task(making)
        made = [self._made[image] for image in images]
        self._left.subtract(images)
        for image in images:
            if self._left[image] <= 0:
                self._made.pop(image, None)
        return await asyncio.gather(*made)


def _uri(image: Path | bytes, longest: int | None) -> str:
    data, kind = sendable(image, longest)
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _check(config: OpenAIReader.Config) -> None:
    """Reject settings that do not go together."""
    chat = config.prompt_form == "chat"
    if config.images and not chat:
        raise UserError(f"{_WHY}: images: the plain form takes no images: set prompt_form to chat")
    wanted = {"echo": "plain", "prompt_logprobs": "chat"}.get(config.scoring, config.prompt_form)
    if wanted != config.prompt_form:
        raise UserError(
            f"{_WHY}: scoring {config.scoring} needs the {wanted} form, but prompt_form is "
            f"{config.prompt_form}"
        )
    config.refuse_own(_WHY)


def _in_order(pairs: Iterator[tuple[int, Any]]) -> list[Any]:
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


def _without_log_probs(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request that asks for no log-probabilities."""
    asking = {"logprobs", "top_logprobs", "prompt_logprobs", "echo"}
    return {key: value for key, value in body.items() if key not in asking}


def _of_answer(
    tokens: Sequence[tuple[bytes, float]], answer: str, whole: str, *, thought: bool
) -> list[float]:
    """Return the log-probabilities of the answer's own tokens and of the end mark after them.

    Servers list what they generated: thinking before the answer, even thinking that they do not
    send, and text after a line break that ends it. Returns nothing if the answer is not found among
    the tokens.

    Args:
        whole: the text that the server sent.
        thought: the server sent thinking too.
    """
    values = [value for _, value in tokens]
    text = b"".join(token for token, _ in tokens).decode("utf-8", "surrogateescape")
    complete = answer == whole and not thought
    unreadable = not (text and answer.strip()) or _UNREADABLE.search(text)
    if complete and unreadable and not has_thinking_mark(text):
        return values
    if not answer:
        return []
    begin = split_thinking(text).start
    # Only special tokens and white space may come before the answer, and after it unless it is cut.
    # An answer may be letters of a special token: "end" of <|im_end|>.
    own = [i for i in _places(text, answer, begin) if is_no_answer(text[begin:i])]
    if thought and not own:  # thinking without marks
        own = list(_places(text, answer, begin, last=True))
    rests = ((i, text[i + len(answer) :]) for i in own)
    start = next((i for i, rest in rests if is_no_answer(rest) or rest.lstrip(" ")[:1] == "\n"), -1)
    if start < 0:
        return []
    ends = list(itertools.accumulate(len(token) for token, _ in tokens))
    at, over = (len(part.encode("utf-8", "surrogateescape")) for part in (text[:start], answer))
    first = next(i for i, end in enumerate(ends) if end > at)
    if complete:
        return values[first:]
    last = next(i for i, end in enumerate(ends) if end >= at + over)
    ended = ends[last] == at + over  # else the last token has more than the answer
    return values[first : last + 1 + ended]


def _places(text: str, part: str, begin: int, *, last: bool = False) -> Iterator[int]:
    """Yield the first positions of a part in a text from `begin` on, or its last ones, last first.

    A few are enough, and bound the time that a long text takes.
    """
    end = len(text)
    for _ in range(_MOST_PLACES):
        found = text.rfind(part, begin, end) if last else text.find(part, begin)
        if found < 0:
            return
        yield found
        begin, end = (begin, found + len(part) - 1) if last else (found + 1, end)


def _log_probs(choice: Mapping[str, Any], setting: str) -> list[tuple[bytes, float]]:
    """Return the generated tokens with their log-probabilities, from either of the formats."""
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        raise _unable("gives no log-probabilities", setting)
    listed = found.get("content")
    if isinstance(listed, list):
        entries = [t if isinstance(t, dict) else {} for t in listed]
        values = [t.get("logprob") for t in entries]
        texts = [_bytes(t) for t in entries]
    else:
        given, names = found.get("token_logprobs"), found.get("tokens")
        values = [] if given is None else given
        if not isinstance(values, list):
            raise UnusableReplyError("log-probabilities that are not a list")
        if not isinstance(names, list):
            names = [""] * len(values)
        if len(names) != len(values):
            raise UnusableReplyError(f"{len(values)} log-probabilities for {len(names)} tokens")
        texts = [_bytes({"token": name}) for name in names]
    return [(text, _finite(value)) for text, value in zip(texts, values, strict=True)]


def _bytes(token: Mapping[str, Any]) -> bytes:
    found = token.get("bytes")
    if isinstance(found, list) and all(isinstance(b, int) and 0 <= b < 256 for b in found):
        return bytes(found)
    return str(token.get("token") or "").encode("utf-8", "replace")


def _unable(what: str, setting: str) -> UserError:
    off = "none" if setting == "scoring" else "false"
    return UserError(f"{_WHY}: the server {what}: set {setting} to {off}")


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnusableReplyError("a log-probability that is not a number")
    if value > _ROUNDING:
        raise UnusableReplyError("a log-probability above 0")
    if not value > -9999:  # NaN, -inf; vLLM gives -9999 to tokens without a probability
        raise UnusableReplyError("a log-probability that is not a number")
    return float(value)


def _begins(tokens: Sequence[tuple[str, float]], head: Sequence[tuple[str, float]]) -> bool:
    return [token for token, _ in tokens[: len(head)]] == [token for token, _ in head]


def _echoed(choice: Mapping[str, Any], text: str, start: int) -> float:
    """Return the summed log-probability of an echoed text's characters from `start` on.

    A token that begins before `start` and ends after it belongs to the answer; so does one at
    `start` that has no whole character: the first bytes of one that the next token completes.
    """
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        raise _unable("does not score what it echoes", "scoring")
    offsets, values = found.get("text_offset"), found.get("token_logprobs")
    if not isinstance(offsets, list) or not isinstance(values, list) or len(offsets) != len(values):
        raise UnusableReplyError("log-probabilities without the positions of their tokens")
    if not all(type(offset) is int for offset in offsets):
        raise UnusableReplyError("positions of tokens that are not numbers")
    names = found.get("tokens")
    if not isinstance(names, list) or len(names) != len(values):
        names = [""] * len(values)
    ends = [*offsets[1:], math.inf]
    inside = [
        (first, str(name), value)
        for first, last, name, value in zip(offsets, ends, names, values, strict=True)
        if (last > start or first >= start) and first < len(text)
    ]
    if not inside:
        raise UnusableReplyError("no log-probabilities of the answer")
    for first, name, _ in inside:
        begun = first + text[first : first + 1].isspace()  # some servers leave out the space
        if _UNREADABLE.search(name) or text.startswith(name, first) or text.startswith(name, begun):
            continue
        # Counted in bytes, for instance: the values are of other tokens.
        where = f"the token {one_line(name)!r} is not at its position in the text"
        raise NoAnswerError(f"{where}: answers cannot be scored")
    return math.fsum(_finite(value) for _, _, value in inside)


def _prompt_tokens(reply: Any) -> list[tuple[str, float]]:
    """Return ids and log-probabilities of the prompt's tokens, as given by vLLM.

    vLLM sends one mapping {id: {"logprob": ...}} per token, with `prompt_logprobs: 0` for that
    token alone, and null for the first token.
    """
    found = reply.get("prompt_logprobs")
    if found is None:
        found = choice_of(reply).get("prompt_logprobs")
    if not isinstance(found, list) or not found:
        raise _unable("scores no prompts", "scoring")
    tokens = []
    for entry in found:
        if entry is None:
            tokens.append(("", 0.0))
            continue
        if not isinstance(entry, dict) or len(entry) != 1:
            raise UnusableReplyError("a prompt token without its log-probability")
        token, value = next(iter(entry.items()))
        tokens.append((token, _finite(value.get("logprob") if isinstance(value, dict) else None)))
    return tokens
