"""A reader whose generations and scores are cached on disk by content.

The key consists of the reader's fingerprint (weights and settings), the prompt's full text, the
bytes of its images if the reader looks at images, and for scores the answer. Only results of
deterministic readers are kept. Several processes may share the cache. A generation is kept with its
usage: what it had cost when it was made.

Generations without a word and failures are not kept; a generation without a word that an earlier
version kept is made again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ravqa.core.accounts import Cost, Payer, Usage, charge
from ravqa.core.cache import Memo, Store
from ravqa.core.contracts import check_declared, check_each, number_problem
from ravqa.core.errors import UserError, broken
from ravqa.core.failures import one_by_one
from ravqa.core.outcomes import Failure
from ravqa.core.settings import fingerprint
from ravqa.images.decode import image_bytes
from ravqa.readers.base import Generation, Prompt, Reader, Wordless, settled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

V = TypeVar("V")

_ROUNDING = 0.1  # sums of half-precision numbers may be slightly above 0
_OVERFLOW = ": set its dtype to float32, if it has one"  # some models overflow in half precision


class CachedReader(Reader):
    """Wraps a reader and does not ask it again for what it has generated or scored before.

    Equal prompts of one call are asked once, and so are those of several threads if results are
    kept. Results are written as they arrive, so that finished ones survive if the process is
    killed. All calls of a reader go through here and its results are checked: a one-line error
    names a reader that breaks its contract.

    Attributes:
        inner: the wrapped reader.
        generated, scored: number of generations, and of answer scores, made by the reader itself.
        decoded: number of values made from it by other means (`recall`).
        stores: the caches on disk; empty if unused.
    """

    def __init__(self, inner: Reader, *, keep: bool = True):
        """Wrap `inner`.

        Args:
            inner: the reader.
            keep: use the cache on disk.

        Raises:
            ContractError: the reader lacks an attribute.
        """
        self.inner = inner
        check_declared("reader", inner, Reader, constants=False)
        for name, type_ in Reader.__annotations__.items():  # whatever a reader declares of itself
            if not type_.startswith("ClassVar"):
                setattr(self, name, getattr(inner, name))
        self._why = f"the reader {type(inner).__name__}"
        self.generated = 0
        self.scored = 0
        self.decoded = 0
        self._counting = threading.Lock()
        self._store = Store("generations") if keep and inner.deterministic else None
        self.stores: Sequence[Store] = (self._store,) if self._store else ()
        self._generations = Memo[Generation | Failure](
            self._store, out=_generation_out, back=_generation_in
        )
        self._scores = Memo[float | Failure](self._store, out=_score_out, back=float)

    @property
    def thread_safe(self) -> bool:
        """Whether the wrapped reader is."""
        return self.inner.thread_safe

    def keys(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the key of each prompt's generation: a hash of the reader and its whole input.

        Raises:
            DataError: an image cannot be read.
        """
        read: dict[Path | bytes | None, bytes] = {None: b""}  # each image is read once
        for prompt in prompts:
            for image in prompt.images if self.supports_images else ():
                if image not in read:
                    read[image] = image_bytes(image)
        return [
            fingerprint(
                self.fingerprint,
                p.text,
                read[p.image if self.supports_images else None],
                *sorted(p.own),
                *([[read[i] for i in p.pictures]] if p.pictures and self.supports_images else []),
            )
            for p in prompts
        ]

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation | Failure]:
        """Return one generation per prompt, in order."""

        made_here: set[int] = set()

        def ask(rows: list[int]) -> Iterator[tuple[int, Generation | Failure]]:
            made = self.inner.generate_each([prompts[i] for i in rows])
            return self._checked("generate", made, len(rows), _generation_problem)

        def make(rows: list[int]) -> Iterator[tuple[int, Generation | Failure]]:
            made_here.update(rows)
            self._charge_unknown([prompts[i] for i in rows])
            for place, value in one_by_one(rows, ask, self._why):
                outcome = settled(value) if isinstance(value, Generation) else value
                with self._counting:
                    self.generated += isinstance(outcome, Generation | Wordless)
                yield place, outcome

        out = self._generations.get(self.keys(prompts), make)
        for i, outcome in enumerate(out):
            if i not in made_here and isinstance(outcome, Generation):
                self._charge_reused(prompts[i].payer, outcome.usage)
        return out

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | Failure]:
        """Return the log-probability of each answer after its prompt, end mark included."""

        made_here: set[int] = set()

        def ask(rows: list[int]) -> Iterator[tuple[int, float | Failure]]:
            made = self.inner.score_each([prompts[i] for i in rows], [answers[i] for i in rows])
            return self._checked("score", made, len(rows), _number_problem)

        def make(rows: list[int]) -> Iterator[tuple[int, float | Failure]]:
            made_here.update(rows)
            self._charge_unknown([prompts[i] for i in rows])
            for place, value in one_by_one(rows, ask, self._why):
                with self._counting:
                    self.scored += not isinstance(value, Failure)
                yield place, value

        pairs = zip(self.keys(prompts), answers, strict=True)
        keys = [fingerprint("score/2", key, answer) for key, answer in pairs]
        out = self._scores.get(keys, make)
        for i, outcome in enumerate(out):
            if i not in made_here and not isinstance(outcome, Failure):
                self._charge_reused(prompts[i].payer, None)
        return out

    def next_token_logprobs(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float32] | Failure]:
        """Return the reader's own, uncached; cache what is decoded from them with `recall`."""
        self._charge_unknown(prompts)
        found = self.inner.next_token_logprobs(prompts, prefixes)
        self._check("next_token_logprobs", found, len(prompts), _row_problem)
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the reader's text of generated tokens."""
        return self.inner.decode(tokens)

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int | Failure]:
        """Return the reader's token count of each prompt."""
        found = self.inner.count_tokens(prompts)
        self._check(
            "count_tokens", found, len(prompts), lambda n: number_problem(n, "a count of tokens")
        )
        return found

    def stream(self, prompt: Prompt) -> Generator[str, None, None]:
        """Yield the reader's generation, a cached one in one piece; streams are not cached.

        Raises:
            UserError: the reader does not stream.
        """
        key = self.keys([prompt])[0]
        known = self._generations.known([key]).get(key)
        if isinstance(known, Generation):
            return _each([known.text])
        if not self.streams:
            raise UserError(f"the reader {self.weights} does not stream")
        return _each(self.inner.stream(prompt))

    def problem(self) -> str:
        """Return why the reader can answer no prompt now; else an empty string."""
        return self.inner.problem()

    def _charge_unknown(self, prompts: Sequence[Prompt]) -> None:
        """Charge for a reader that does not charge itself."""
        if not self.charges:
            for prompt in prompts:
                charge(Cost.of(None, self.prices), prompt.payer)

    def _charge_reused(self, payer: Payer, usage: Usage | None) -> None:
        if self.inner.has_model:
            charge(Cost.of_reused(usage, self.prices), payer)

    def recall(
        self,
        keys: Sequence[str],
        make: Callable[[list[int]], Iterable[tuple[int, V | Failure]]],
        out: Callable[[V], Any],
        back: Callable[[Any], V | None],
    ) -> list[V | Failure]:
        """Return values made from this reader by other means, cached under `keys`.

        Args:
            keys: hashes of everything that can change the result, this reader's `keys` included.
            make: takes the positions in `keys` that are not cached; yields each one's place among
                those positions and its value, as it is made.
            out: converts a value to JSON; None for a value that must not be kept.
            back: the reverse; None for a value that must be made again.
        """

        asked = 0

        def counted(rows: list[int]) -> Iterator[tuple[int, V | Failure]]:
            nonlocal asked
            asked += len(rows)
            for place, value in make(rows):
                with self._counting:
                    self.decoded += not isinstance(value, Failure)
                yield place, value

        memo = Memo[V | Failure](self._store, out=cast(Callable[[Any], Any], out), back=back)
        found = memo.get(keys, counted)
        charge(Cost.of_kept(len(keys) - asked, self.prices))
        return found

    def _check(self, call: str, found: Any, expected: int, problem: Callable[[Any], str]) -> None:
        check_each("reader", self.inner, call, found, expected, problem)

    def _checked(
        self,
        call: str,
        made: Iterable[tuple[int, V | Failure]],
        expected: int,
        problem: Callable[[Any], str],
    ) -> Iterator[tuple[int, V | Failure]]:
        """Yield the results as they are made, checked.

        Raises:
            ContractError: a result is bad, is missing, or comes twice.
        """
        missing = set(range(expected))
        for place, value in made:
            if place not in missing:
                raise broken(
                    self.inner, "reader", f"it returned a result from {call} for no prompt"
                )
            missing.remove(place)
            self._check(call, [value], 1, problem)
            yield place, value
        if missing:
            count = expected - len(missing)
            what = f"it returned {count} results from {call} for {expected} items"
            raise broken(self.inner, "reader", what)


def _each(pieces: Iterable[str]) -> Generator[str, None, None]:
    """Yield the pieces; closing the generator closes an iterator that can be closed."""
    yield from pieces


def _generation_problem(value: Any) -> str:
    if not isinstance(value, Generation):
        return f"{type(value).__name__} instead of a Generation"
    text: Any = value.text
    if not isinstance(text, str):
        return f"a Generation whose text is {type(text).__name__}"
    if value.log_prob is not None and (problem := _log_prob_problem(value.log_prob)):
        return problem
    if problem := number_problem(value.tokens, "a number of tokens"):
        return problem
    return "a negative number of tokens" if value.tokens < 0 else ""


def _number_problem(value: Any) -> str:
    # Scores may be above 0: a reader that is a rule may weigh answers by any numbers.
    problem = number_problem(value, "a log-probability")
    return f"{problem}{_OVERFLOW}" if problem else ""


def _log_prob_problem(value: Any) -> str:
    if problem := _number_problem(value):
        return problem
    return "a log-probability above 0" if value > _ROUNDING else ""


def _row_problem(value: Any) -> str:
    import numpy as np

    if not (isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "f"):
        return "something other than one row of log-probabilities per prompt"
    most = value.max(initial=-np.inf)  # NaN, if there is one
    return _log_prob_problem(float("nan") if most == -np.inf else float(most))


def _score_out(value: float | Failure) -> float:
    return float(cast(float, value))


def _generation_out(value: Generation | Failure) -> dict[str, Any]:
    made = cast(Generation, value)
    return {
        "text": made.text,
        "log_prob": None if made.log_prob is None else float(made.log_prob),  # NumPy's are no JSON
        "tokens": int(made.tokens),
        "thinking": made.thinking,
        "usage": None if made.usage is None else asdict(made.usage),
    }


def _generation_in(value: Any) -> Generation | None:
    """Return a cached generation; None for one that an earlier version kept as an answer.

    Raises:
        TypeError: the value is damaged.
    """
    made = Generation(**value)
    if made.usage is not None:
        made = replace(made, usage=Usage(**value["usage"]))
    if problem := _generation_problem(made):
        raise TypeError(problem)
    outcome = settled(made)
    return None if isinstance(outcome, Failure) else outcome
