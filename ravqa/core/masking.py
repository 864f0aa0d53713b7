"""Masking of server keys in text that is shown or stored.

A server may echo the key that it was sent: in an error, a header, an answer. `Mask` replaces it
with "***", even if it is percent-encoded, escaped as in JSON or HTML, or inside Base64 (as in an
Authorization header of type Basic). A key of fewer than `SHORTEST` characters protects nothing: it
is a placeholder for local servers that require some key ("EMPTY", "none", "x"). It is masked only
after "Bearer" and "Basic", since replacing it everywhere would garble other words.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

SHORTEST = 8
MASKED = "***"


class Mask:
    """A mask that removes one key from text."""

    def __init__(self, key: str):
        """Store the key; "" for none."""
        self._forms = _forms(key) if len(key) >= SHORTEST else ()
        if not key:
            self._pattern = None
        elif self._forms:
            parts = ["".join(map(_any_form, key)), *map(re.escape, self._forms)]
            self._pattern = re.compile("|".join(parts))
        else:
            inside = "|".join(re.escape(form) for form in (key, *_encoded(key)))
            self._pattern = re.compile(rf"(?i:(?<=bearer )|(?<=basic ))(?:{inside})(?!\w)")

    def text(self, text: str) -> str:
        """Return the text without the key."""
        return text if self._pattern is None else self._pattern.sub(MASKED, text)

    def value(self, value: Any) -> Any:
        """Return a JSON value without the key, also in the names of members."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(name): self.value(item) for name, item in value.items()}
        return value

    def held(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of the key."""
        longest = max(map(len, self._forms), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(form.startswith(text[-length:]) for form in self._forms):
                return length
        return 0


class Pieces:
    """A mask for text that arrives in pieces, even if the key is spread over several of them."""

    def __init__(self, mask: Mask, found: Callable[[], object]):
        """Start a new text.

        Args:
            found: called when a piece completes the key.
        """
        self._mask = mask
        self._found = found
        self._kept = ""

    def next(self, piece: str) -> str:
        """Add a piece and return what can be shown; a possible partial key is held back."""
        text = self._mask.text(self._kept + piece)
        if text != self._kept + piece:
            self._found()
        held = self._mask.held(text)
        self._kept = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """Return what was held back, after the last piece."""
        kept, self._kept = self._kept, ""
        return kept


def _forms(key: str) -> tuple[str, ...]:
    found = {
        key,
        quote(key, safe=""),
        quote_plus(key),
        json.dumps(key)[1:-1],
        html.escape(key),
        *_encoded(key),
    }
    return tuple(sorted(found, key=len, reverse=True))


def _encoded(key: str) -> Iterator[str]:
    """Yield the Base64 strings that reveal the key, for each alignment in the text."""
    data = key.encode()
    for before in range(3):
        code = base64.b64encode(bytes(before) + data).decode()
        # The first and last characters depend on what surrounds the key.
        first = -(-before * 8 // 6)
        last = (before + len(data)) * 8 // 6
        inner = code[first:last]
        if inner:
            yield inner
            yield inner.replace("+", "-").replace("/", "_")


def _any_form(letter: str) -> str:
    """Return a pattern for one character: plain, percent-encoded, or escaped for JSON or HTML."""
    code = f"{ord(letter):02x}"
    forms = [f"%(?i:{code})", rf"\\u00(?i:{code})", f"&#0*{ord(letter)};"]
    forms += [f"&#[xX]0*(?i:{code});"]
    if letter in '"\\/':
        forms.append(re.escape(f"\\{letter}"))
    if html.escape(letter) != letter:
        forms.append(re.escape(html.escape(letter)))
    # Last, since some other forms begin with it.
    return f"(?:{'|'.join([*forms, re.escape(letter)])})"


# Names of members that hold keys, with any separators between their words.
_SECRET_NAMES = frozenset({
    "accesskey", "accesstoken", "apikey", "authorization", "authtoken", "bearertoken",
    "clientsecret", "cookie", "password", "proxyauthorization", "secret", "secretkey", "xapikey",
})  # fmt: skip


def secret_in(value: Any, path: str = "") -> str | None:
    """Return the path of the first value that looks like a key by its name or form, if any."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            place = f"{path}.{name}" if path else str(name)
            plain = re.sub(r"[^a-z]", "", str(name).lower())
            found = place if plain in _SECRET_NAMES and inner else secret_in(inner, place)
            if found:
                return found
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            if found := secret_in(inner, f"{path}.{i}"):
                return found
    elif isinstance(value, str) and re.match(r"(?i)(bearer|basic) \S", value):
        return path
    return None
