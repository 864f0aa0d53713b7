"""The tokens that a server says a reply took, in the forms of the servers that are known.

All of them send `usage` with `prompt_tokens` and `completion_tokens`. Tokens of the prompt that
came from the server's cache are in `prompt_tokens_details.cached_tokens` (OpenAI, Azure, vLLM,
SGLang, OpenRouter), in `prompt_cache_hit_tokens` (DeepSeek), or in `cached_tokens` (Moonshot).
Thinking is part of `completion_tokens`, unless only `total_tokens` has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ravqa.core.accounts import Usage

_MOST = 10**9  # tokens of one reply; what is beyond is no count of tokens


def usage_of(reply: Any) -> Usage | None:
    """Return the tokens of a whole reply; None if the server does not say, or it is streamed."""
    found = reply.get("usage") if isinstance(reply, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    prompt, completion = _count(found, "prompt_tokens"), _count(found, "completion_tokens")
    whole = _count(found, "total_tokens")
    if completion is None and prompt is not None and whole is not None:
        completion = whole - prompt  # what only reads, such as a scored prompt, may be without it
    if prompt is None or completion is None or completion < 0:
        return None
    if whole is not None:
        completion = max(completion, whole - prompt)
    details = found.get("prompt_tokens_details")
    places = (
        (details if isinstance(details, Mapping) else {}, "cached_tokens"),
        (found, "prompt_cache_hit_tokens"),
        (found, "cached_tokens"),
    )
    known = (count for place, key in places if (count := _count(place, key)) is not None)
    cached = next(known, None)
    return Usage(prompt, completion, None if cached is None else min(cached, prompt))


def _count(found: Mapping[str, Any], key: str) -> int | None:
    value = found.get(key)
    return value if type(value) is int and 0 <= value <= _MOST else None
