"""Parsing of replies from servers with OpenAI's interface: an answer, or why there is none.

Whole and streamed replies follow one rule: an error, a refusal, a call of a tool, a content filter
and a reply without text are not answers, whatever text came before. Hosted models signal these
differently; the names below are those of OpenAI, vLLM, SGLang, Mistral, DeepSeek, Zhipu, Gemini and
OpenRouter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ravqa.clients.openai import (
    PASSING,
    NoAnswerError,
    UnusableReplyError,
    message_in,
    one_line,
)
from ravqa.core.marks import is_no_answer, split_thinking
from ravqa.core.texts import encodable

# Values of finish_reason, in lower case.
_FAILED = frozenset(
    (
        *("error", "abort", "aborted", "cancelled", "canceled", "failed", "timeout"),
        *("network_error", "server_error", "insufficient_system_resource", "malformed_response"),
        *("other", "language"),  # Gemini's, for unknown causes and languages
    )
)
_FILTERED = frozenset(
    (
        *("content_filter", "content_filtered", "sensitive", "safety", "recitation", "blocklist"),
        *("prohibited_content", "spii", "image_safety", "image_prohibited_content"),
        *("guardrail_intervened", "blocked", "content_policy_violation"),
    )
)
_REFUSED = frozenset(("refusal",))
_ENDED = frozenset(("stop", "eos", "eos_token", "end_turn", "stop_sequence"))
_CUT = frozenset(
    (
        *("length", "max_tokens", "max_output_tokens", "model_length", "incomplete"),
        "model_context_window_exceeded",
    )
)
_CALLED = frozenset(
    (
        *("tool_calls", "function_call", "tool_use", "malformed_function_call"),
        *("unexpected_tool_call", "too_many_tool_calls"),
    )
)

# Types of parts in a content that is a list.
_TEXTS = frozenset(("text", "output_text"))
_THOUGHTS = frozenset(("thinking", "redacted_thinking", "reasoning"))


def choice_of(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first choice of a reply.

    Raises:
        UnusableReplyError: there is no choice, or it is a transient error.
        NoAnswerError: it is a permanent error, or was filtered.
    """
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UnusableReplyError("a reply without choices")
    choice = choices[0]
    if error := choice.get("error"):
        reason = f"the server reports: {one_line(message_in({'error': error}))}"
        code = error.get("code") if isinstance(error, dict) else None
        lasting = isinstance(code, int) and 400 <= code < 500 and code not in PASSING
        raise NoAnswerError(reason) if lasting else UnusableReplyError(reason)
    # OpenRouter also passes on what the model's own server said.
    for finish in (_finish(choice), _finish(choice, "native_finish_reason")):
        if finish in _FAILED:
            raise UnusableReplyError(f"the reply broke off (finish_reason {finish!r})")
        if finish in _FILTERED:
            raise NoAnswerError("the server's content filter withheld the answer")
    # Azure may say so beside an ordinary finish_reason, as when it filters while it streams.
    if names := _filtered(choice.get("content_filter_results")):
        raise NoAnswerError(f"the server's content filter withheld the answer ({names})")
    return choice


def _filtered(results: Any) -> str:
    """Return the names of Azure's filters that withheld a choice; "" if none did."""
    if not isinstance(results, dict):
        return ""
    names = []
    for name, found in results.items():
        each = found if isinstance(found, list) else [found]  # lists of blocked words are listed
        if any(isinstance(one, dict) and one.get("filtered") is True for one in each):
            names.append(str(name))
    return one_line(", ".join(names))


@dataclass(slots=True)
class Reply:
    """A reply as it is read: whole, or streamed event by event.

    Attributes:
        form: the form of the request: "chat" or "plain".
        limit: the most tokens that the reply may have; `setting` names the options that set it.
        text: the text so far, thinking between marks included.
        thinking: what the server sent apart as the model's thinking.
    """

    form: Literal["chat", "plain"]
    limit: int
    setting: str
    text: str = ""
    thinking: str = ""
    _finish: str = ""
    _refusal: str = ""
    _thought: bool = False
    _called: bool = False
    _null: bool = False
    _tokens: int | None = None

    def whole(self, reply: Mapping[str, Any]) -> str:
        """Return the text of a whole reply; `check` decides whether it is an answer.

        Raises:
            UnusableReplyError, NoAnswerError: it is not an answer; see `choice_of`.
        """
        choice = choice_of(reply)
        if self.form == "plain":
            if not isinstance(choice.get("text"), str):
                raise UnusableReplyError("a choice without text")
        elif not isinstance(choice.get("message"), dict):
            raise UnusableReplyError("a choice without a message")
        else:
            self._null = choice["message"].get("content") is None
        self._count(reply)
        return self._take(choice, choice.get("message") or {})

    def event(self, event: Mapping[str, Any]) -> str:
        """Return the new text in an event of a streamed reply; raises as `whole`."""
        self._count(event)
        if not event.get("choices"):
            return ""  # some servers end with the token counts
        choice = choice_of(event)
        delta = choice.get("delta")
        return self._take(choice, delta if isinstance(delta, dict) else {})

    def _count(self, reply: Mapping[str, Any]) -> None:
        usage = reply.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self._tokens = usage["completion_tokens"]
            details = usage.get("completion_tokens_details")
            if isinstance(details, dict):
                self._thought |= bool(details.get("reasoning_tokens"))

    def _take(self, choice: Mapping[str, Any], message: Mapping[str, Any]) -> str:
        content = choice.get("text") if self.form == "plain" else message.get("content")
        new = encodable(self._text(content))
        self.text += new
        self._finish = _finish(choice) or self._finish
        if refusal := message.get("refusal"):
            self._refusal += refusal if isinstance(refusal, str) else json.dumps(refusal)
        for name in ("reasoning_content", "reasoning"):
            if thought := message.get(name):
                self._thought = True
                self.thinking += encodable(thought) if isinstance(thought, str) else ""
                break  # some servers send both
        self._called |= bool(message.get("tool_calls") or message.get("function_call"))
        return new

    def _text(self, content: Any) -> str:
        """Return the text of a content: text, or a list of parts, some of them model reasoning.

        Raises:
            UnusableReplyError: it is neither.
            NoAnswerError: a part has an unknown type.
        """
        if content is None:
            return ""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise UnusableReplyError("a choice without text")
        found = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            kind = None if kind is None else str(kind)
            if kind in _THOUGHTS:
                self._thought = True
                self.thinking += encodable(_thought(part))
            elif kind == "refusal":
                self._refusal += str(part.get("refusal") or "")
            elif kind in _TEXTS and isinstance(part.get("text"), str):
                found.append(part["text"])
            elif kind is None or kind in _TEXTS:
                raise UnusableReplyError("a choice without text")
            else:
                raise NoAnswerError(f"the answer has a part of the unknown type {one_line(kind)!r}")
        return "".join(found)

    def check(self) -> None:
        """Raise at the end of the reply if the model wrote no answer, for a known reason.

        A model may stop before its first word; the caller decides what that means.

        Raises:
            NoAnswerError: a refusal, or no text for a known reason.
            UnusableReplyError: no text for no known reason; the same request may succeed.
        """
        if self._refusal or self._finish in _REFUSED:
            said = one_line(self._refusal)
            raise NoAnswerError(f"the model refused to answer{f' ({said})' if said else ''}")
        if self._called or self._finish in _CALLED:  # text beside the call announces it
            finish = one_line(self._finish)
            raise NoAnswerError(
                f"the model called a tool instead of answering (finish_reason {finish!r})"
            )
        answer, thinking, cut, _ = split_thinking(self.text)
        if not is_no_answer(answer):
            return
        self._thought |= bool(thinking) or cut
        finish = f"finish_reason {one_line(self._finish)!r}"
        if self._finish in _CUT:
            on = "white space" if answer and not self._thought else "thinking"
            raise NoAnswerError(
                f"the model spent all {self.limit} tokens on {on}: raise {self.setting}"
            )
        if self._thought:
            raise NoAnswerError(f"the model reasoned but gave no answer ({finish})")
        if not self._finish:
            raise UnusableReplyError("a reply without text and without finish_reason")
        if self._null or self._tokens == 0 or self._finish not in _ENDED:
            raise NoAnswerError(f"the model wrote nothing ({finish})")


def _thought(part: Mapping[str, Any]) -> str:
    """Return the text of a part with thinking, which may have parts of its own."""
    for name in ("thinking", "reasoning", "text", "summary"):
        found = part.get(name)
        if isinstance(found, str):
            return found
        if isinstance(found, list):
            return "".join(_thought(inner) for inner in found if isinstance(inner, dict))
    return ""


def _finish(choice: Mapping[str, Any], key: str = "finish_reason") -> str:
    # Gemini adds its own reason: "content_filter: PROHIBITED_CONTENT".
    return str(choice.get(key) or "").lower().partition(":")[0].strip()
