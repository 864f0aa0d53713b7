"""A reader whose generations and scores are kept on disk, by content.

The key is made of the reader's fingerprint (weights and settings), the prompt's full text, the
bytes of its image where the reader looks at it, and for scores the answer. Only deterministic
readers' results are kept. Several processes may share the cache.

A generation without a word is not kept, and one that an earlier version kept is asked for again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ravqa.core.cache import Store
from ravqa.core.errors import PromptError, UserError
from ravqa.core.settings import fingerprint
from ravqa.images.decode import image_bytes
from ravqa.readers.base import Ability, Generation, Prompt, Reader, Streaming, TextStreaming

V = TypeVar("V")

_PART = 64  # prompts given at once to a reader that does not stream
_PENDING = 16  # results that wait to be written, at most
_PENDING_S = 1.0  # and how long they wait before the next one writes them


class CachedReader:
    """Wraps a reader; what it has generated or scored before, it is not asked again.

    Equal prompts of one call are asked once. Results are written as they come: where the reader
    fails or the process is killed, what it had finished is known the next time. A call that failed
    can be made again in parts: what the reader had finished, and what it could not answer, is
    remembered until it has been asked for once, even if nothing is kept on disk.

    Attributes:
        generated, scored: how many generations, and scores of answers, the reader itself made.
        decoded: how many values were made from it by other means (`recall`).
        stores: the cache on disk; none if it is not used.
    """

    def __init__(self, inner: Reader, *, keep: bool = True):
        """Wrap `inner`.

        Args:
            keep: use the cache on disk.
        """
        self.inner = inner
        self.generated = 0
        self.scored = 0
        self.decoded = 0
        self._store = Store("generations") if keep and inner.deterministic else None
        self.stores: Sequence[Store] = (self._store,) if self._store else ()
        self._rescued: dict[str, Any] = {}  # finished in a call that failed, not on the disk
        self._made: dict[str, Any] = {}  # finished in this work, not on the disk
        self._failed: dict[str, str] = {}  # what could not be answered in it, and why
        self._closed = False

    @property
    def abilities(self) -> frozenset[Ability]:
        """As the reader says."""
        return self.inner.abilities

    @property
    def deterministic(self) -> bool:
        """As the reader says."""
        return self.inner.deterministic

    @property
    def fingerprint(self) -> str:
        """As the reader says."""
        return self.inner.fingerprint

    @property
    def weights(self) -> str:
        """As the reader says."""
        return self.inner.weights

    @property
    def context(self) -> int | None:
        """As the reader says."""
        return self.inner.context

    @property
    def max_new_tokens(self) -> int:
        """As the reader says."""
        return self.inner.max_new_tokens

    @property
    def ends(self) -> frozenset[int]:
        """As the reader says."""
        return self.inner.ends

    def keys(self, prompts: Sequence[Prompt]) -> list[str]:
        """A hash of the reader and of all that it is given, per prompt: the key of a generation.

        Raises:
            DataError: an image cannot be read.
        """
        sees = "images" in self.abilities
        read: dict[Path | bytes | None, bytes] = {None: b""}  # each image is read once
        for prompt in prompts:
            image = prompt.image
            if sees and image is not None and image not in read:
                read[image] = image_bytes(image)
        return [
            fingerprint(self.fingerprint, p.text, read[p.image if sees else None]) for p in prompts
        ]

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """One generation per prompt, in order."""

        def make(rows: list[int]) -> Iterator[tuple[int, Generation]]:
            asked = [prompts[i] for i in rows]
            for pair in self._generate_each(asked):
                self.generated += 1
                yield pair

        return self._recall(self.keys(prompts), make, _generation_out, _generation_in)

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Log-probability of each answer, end mark included, after its prompt."""

        def make(rows: list[int]) -> Iterator[tuple[int, float]]:
            asked, given = [prompts[i] for i in rows], [answers[i] for i in rows]
            for pair in self._score_each(asked, given):
                self.scored += 1
                yield pair

        pairs = zip(self.keys(prompts), answers, strict=True)
        keys = [fingerprint("score", key, answer) for key, answer in pairs]
        return self._recall(keys, make, float, float)

    def next_token_logprobs(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> Any:
        """As the reader gives them; not kept: keep what was decoded from them, with `recall`."""
        return self.inner.next_token_logprobs(prompts, prefixes)

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """As the reader streams; what is known comes in one piece. What is streamed is not kept.

        Raises:
            UserError: the reader does not stream.
        """
        key = self.keys([prompt])[0]
        known = self._known([key], _generation_in)
        if known:
            return iter([known[key].text])
        inner = self.inner
        if "stream" not in self.abilities or not isinstance(inner, TextStreaming):
            raise UserError(f"the reader {self.weights} does not stream")
        return inner.stream(prompt)

    def decode(self, tokens: Sequence[int]) -> str:
        """As the reader does."""
        return self.inner.decode(tokens)

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """As the reader counts."""
        return self.inner.count_tokens(prompts)

    def recall(
        self,
        keys: Sequence[str],
        make: Callable[[list[int]], Iterable[tuple[int, V]]],
        out: Callable[[V], Any],
        back: Callable[[Any], V | None],
    ) -> list[V]:
        """What is made by other means from this reader, kept under `keys`.

        Args:
            keys: hashes of everything that can change the result, this reader's `keys` included.
            make: gives, for the positions in `keys` that are new, each one's place among those
                positions and its value, as they come.
            out, back: to what JSON can hold, and back; None for what is not to be kept.
        """

        def counted(rows: list[int]) -> Iterator[tuple[int, V]]:
            for pair in make(rows):
                self.decoded += 1
                yield pair

        return self._recall(keys, counted, out, back)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, what is made is remembered, kept or not; where PromptError ends it, for longer.

        So work that fails after the reader was asked can be done again in parts.
        """
        self._made.clear()
        try:
            yield
        except PromptError:
            self._rescued.update(self._made)
            raise
        finally:
            self._made.clear()

    @contextmanager
    def only_known(self) -> Iterator[None]:
        """Inside, the reader is not asked: what is not known raises PromptError."""
        self._closed = True
        try:
            yield
        finally:
            self._closed = False

    def _generate_each(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generation]]:
        if isinstance(self.inner, Streaming):
            yield from self.inner.generate_each(prompts)
            return
        for start in range(0, len(prompts), _PART):
            yield from enumerate(self.inner.generate(prompts[start : start + _PART]), start)

    def _score_each(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[int, float]]:
        if isinstance(self.inner, Streaming):
            yield from self.inner.score_each(prompts, answers)
            return
        for start in range(0, len(prompts), _PART):
            part = slice(start, start + _PART)
            yield from enumerate(self.inner.score(prompts[part], answers[part]), start)

    def _recall(
        self,
        keys: Sequence[str],
        make: Callable[[list[int]], Iterable[tuple[int, V]]],
        out: Callable[[V], Any],
        back: Callable[[Any], V | None],
    ) -> list[V]:
        for key in keys:
            if key in self._failed:
                raise PromptError(self._failed.pop(key))
        known = self._known(keys, back)
        known.update({key: self._rescued.pop(key) for key in set(keys) & self._rescued.keys()})
        positions = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        rows = sorted(positions.values())
        if rows:
            self._make(keys, rows, make, out, known)
        return [known[key] for key in keys]

    def _known(self, keys: Sequence[str], back: Callable[[Any], V | None]) -> dict[str, V]:
        """What is on the disk; what is to be made again is taken away from there."""
        if self._store is None:
            return {}
        found = {key: back(value) for key, value in self._store.get(keys).items()}
        known = {key: value for key, value in found.items() if value is not None}
        if len(known) < len(found):
            self._store.drop(found.keys() - known.keys())
        return known

    def _make(
        self,
        keys: Sequence[str],
        rows: list[int],
        make: Callable[[list[int]], Iterable[tuple[int, V]]],
        out: Callable[[V], Any],
        known: dict[str, V],
    ) -> None:
        """Have the results of `rows` made, into `known` and onto the disk."""
        if self._closed:
            raise PromptError("the reader was not asked")
        pending: dict[str, Any] = {}
        written = time.monotonic()
        try:
            for position, value in make(rows):
                key = keys[rows[position]]
                known[key] = value
                kept = None if self._store is None else out(value)
                if kept is None:
                    self._made[key] = value
                else:
                    pending[key] = kept
                if len(pending) >= _PENDING or time.monotonic() - written > _PENDING_S:
                    self._write(pending)
                    pending, written = {}, time.monotonic()
        except BaseException as e:
            self._rescued.update(self._made if self._store else known)
            if isinstance(e, PromptError):
                self._failed.update({keys[rows[i]]: why for i, why in e.failed.items()})
            raise
        finally:
            self._write(pending)

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._store is not None and values:
            self._store.put(values)


def _generation_out(value: Generation) -> dict[str, Any] | None:
    if not value.text.strip():
        return None
    return {"text": value.text, "log_prob": value.log_prob, "tokens": value.tokens}


def _generation_in(value: Mapping[str, Any]) -> Generation | None:
    if not value["text"].strip():
        return None
    return Generation(value["text"], value["log_prob"], value["tokens"])
