"""Keys of servers, taken out of text that is shown or stored.

A server may send back the key that it was sent: in an error, a header, an answer. `Mask` puts "***"
in its place, also where it is percent-encoded, escaped as in JSON or HTML, or inside Base64 (as in
an Authorization header of the kind Basic). A key of fewer than `SHORTEST` characters protects
nothing: it is what local servers are given because they want some key ("EMPTY", "none", "x"). It is
masked after "Bearer" and "Basic" alone, since taking it out everywhere would spoil other words.
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
    """Takes one key out of text."""

    def __init__(self, key: str):
        """Keep the key, "" for none."""
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
        """The text without the key."""
        return text if self._pattern is None else self._pattern.sub(MASKED, text)

    def value(self, value: Any) -> Any:
        """JSON without the key, names of members included."""
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
        """How many characters at the end may be the beginning of the key."""
        longest = max(map(len, self._forms), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(form.startswith(text[-length:]) for form in self._forms):
                return length
        return 0


class Pieces:
    """Takes the key out of text in pieces, also where it is spread over several of them."""

    def __init__(self, mask: Mask, found: Callable[[], object]):
        """Begin a text.

        Args:
            found: called when a piece completes the key.
        """
        self._mask = mask
        self._found = found
        self._kept = ""

    def next(self, piece: str) -> str:
        """What can be shown after one more piece; what may be half a key is held back."""
        text = self._mask.text(self._kept + piece)
        if text != self._kept + piece:
            self._found()
        held = self._mask.held(text)
        self._kept = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back: no more pieces come."""
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
    """What of a text's Base64 tells that the key is in it, wherever it begins in the text."""
    data = key.encode()
    for before in range(3):
        code = base64.b64encode(bytes(before) + data).decode()
        # The first and last characters depend on what stands beside the key.
        first = -(-before * 8 // 6)
        last = (before + len(data)) * 8 // 6
        inner = code[first:last]
        if inner:
            yield inner
            yield inner.replace("+", "-").replace("/", "_")


def _any_form(letter: str) -> str:
    """A pattern of one character: as it is, percent-encoded, escaped for JSON or for HTML."""
    code = f"{ord(letter):02x}"
    forms = [f"%(?i:{code})", rf"\\u00(?i:{code})", f"&#0*{ord(letter)};"]
    forms += [f"&#[xX]0*(?i:{code});"]
    if letter in '"\\/':
        forms.append(re.escape(f"\\{letter}"))
    if html.escape(letter) != letter:
        forms.append(re.escape(html.escape(letter)))
    # Last, since some of the others begin with it.
    return f"(?:{'|'.join([*forms, re.escape(letter)])})"


# Names of members that hold keys, whatever stands between their words.
_SECRET_NAMES = frozenset({
    "accesskey", "accesstoken", "apikey", "authorization", "authtoken", "bearertoken",
    "clientsecret", "cookie", "password", "proxyauthorization", "secret", "secretkey", "xapikey",
})  # fmt: skip


def secret_in(value: Any, path: str = "") -> str | None:
    """The path of the first value in free settings that is a key by its name or form, if any."""
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
