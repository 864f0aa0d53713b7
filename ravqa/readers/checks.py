"""Checks of a local model when it is loaded: does it do what its reader promises?

Models differ in how they mask padding, count positions and read on after tokens whose keys and
values were kept. The checks take a few tokens through the model in every way in which its reader
would, and compare log-probabilities with those that the model's own `generate` gives for each
prompt alone. No model is known by name.

In float32, log-probabilities may differ by 1e-3. In half precision and with quantised weights,
those of tokens with a probability of at least 1e-4 may differ by five times as much as they change
when the same prompt is read beside another one of the same length, before or after it: this changes
the order of sums, but nothing is padded. That change counts as at least the rounding of the largest
logit (on most CPUs it is nothing) and at most four times that (a larger one is an error).
"""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

from ravqa.core.cache import Store
from ravqa.core.errors import PromptError, UserError, first_line
from ravqa.core.failures import failure
from ravqa.core.settings import fingerprint
from ravqa.readers.base import Prompt

if TYPE_CHECKING:
    from ravqa.readers.local import LocalReader

_log = logging.getLogger(__name__)

_FLOAT32 = 1e-3  # largest difference of log-probabilities
_TIMES = 5.0  # the same in half precision, as a multiple of what moving a prompt changes
_LIKELY = math.log(1e-4)  # of tokens that are compared in half precision
_TOKENS = 4  # written after each prompt alone; the first two are compared with other generations
_LARGE = 10_000_000  # parameters of a model from which on a check is slow, and kept in the cache
_BEGINNING = "The koala eats the leaves of one tree and sleeps in it for most of the day.\n"
_SHORT = f"{_BEGINNING}What is it?"
_OTHER = f"{_BEGINNING}Who is it?"  # as long, in most vocabularies
# The others get more padding beside it than they have tokens: some errors need as much.
_LONG = f"{_BEGINNING * 2}Question: Which animal is it, where is it, what does it eat? Answer:"
_SIZES = ((224, 168), (168, 336))  # of images, in pixels

Ability = Literal["batches", "features", "sharing", "score", "next_token_logprobs"]
UNCHECKED = "unchecked"
WITHOUT: Mapping[str, str] = {
    "batches": "it reads one prompt at a time",
    "features": "its vision tower looks at an image once for every prompt",
    "sharing": "it reads every prompt from its beginning",
    "score": "it scores no answers",
    "next_token_logprobs": "it gives no next-token probabilities and scores no answers",
    UNCHECKED: "it was not checked that neither batches nor kept keys and values change an answer",
}
"""What a reader does without an ability that failed its check, or without the check."""


@dataclass(frozen=True)
class _Written:
    """Tokens after prompts, int64 [rows, n], and their logits, float32 [rows, n, vocabulary]."""

    tokens: Any
    logits: Any

    def rows(self) -> list[_Written]:
        each = zip(self.tokens.split(1), self.logits.split(1), strict=True)
        return [_Written(tokens, logits) for tokens, logits in each]


_Reading = Callable[[Sequence[Prompt], Sequence[_Written]], _Written]
"""A way to read prompts, in one batch; it is also given what each of them wrote alone."""


def check_model(reader: LocalReader) -> dict[str, str]:
    """Return the abilities that the reader does not have with its model, each with the reason.

    A check for which the model's context is too short is `UNCHECKED`. What is found for a large
    model is kept in the cache.

    Raises:
        UserError: the model cannot read an ordinary prompt or image, or its `generate` does not
            return log-probabilities.
    """
    started = time.perf_counter()
    large = sum(parameter.numel() for parameter in reader._model.parameters()) >= _LARGE
    store, key = Store("checks") if large else None, _key(reader)
    found: dict[str, str] | None = store.get([key]).get(key) if store else None
    how = "took" if found is None else "looked up"
    if found is None:
        found = _checked(reader)
        if store:
            store.put({key: found})
    for ability, reason in found.items():
        _log.warning("%s: %s: %s: %s", reader._why, reader.weights, reason, WITHOUT[ability])
    seconds = time.perf_counter() - started
    _log.info("%s: the check of %s %s %.2f s", reader._why, reader.weights, how, seconds)
    return found


def _key(reader: LocalReader) -> str:
    """Return a hash of everything that can change what a check finds."""
    import torch
    import transformers

    device = reader._device
    machine = platform.machine()
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    versions = [torch.__version__, transformers.__version__]
    return fingerprint("check/5", reader.fingerprint, versions, device.type, machine)


def _checked(reader: LocalReader) -> dict[str, str]:
    found: dict[str, str] = {}
    for what, prompts in _prompts(reader):
        try:
            lengths = reader._lengths(prompts)
            needed = max(lengths) + _TOKENS
            if reader.limit is None or needed <= reader.limit:
                _Check(reader, prompts, found).run(even=lengths[0] == lengths[1])
            else:
                found.setdefault(
                    UNCHECKED,
                    f"its context of {reader.limit} tokens is too short for a check with {what}, "
                    f"which needs {needed}",
                )
        except Exception as e:
            problem = failure(e, f"{reader.weights} cannot read {what}")
            raise UserError(f"{reader._why}: {problem}") from None
    reader._free()
    return found


def _prompts(reader: LocalReader) -> Iterator[tuple[str, list[Prompt]]]:
    """Yield a short prompt, another one of its length and a longer one, without and with images."""
    texts = (_SHORT, _OTHER, _LONG)
    yield "an ordinary prompt", [Prompt(text) for text in texts]
    if reader.supports_images:
        first, second = (_picture(*size) for size in _SIZES)
        images = (first, first, second)
        yield "an ordinary image", [Prompt(t, i) for t, i in zip(texts, images, strict=True)]


def _picture(width: int, height: int) -> bytes:
    from PIL import Image

    shades = Image.linear_gradient("L").resize((width, height))
    turned = shades.transpose(Image.Transpose.ROTATE_180)
    data = BytesIO()
    Image.merge("RGB", (shades, turned, shades)).save(data, "PNG")
    return data.getvalue()


class _Check:
    """The check of a reader with prompts of one kind; it adds what fails to `found`."""

    def __init__(self, reader: LocalReader, prompts: Sequence[Prompt], found: dict[str, str]):
        self.reader = reader
        self.short, self.other, self.long = prompts
        self.found = found
        self.asked = [self.short, self.long]
        if self.short.image is not None and reader._shares:  # two prompts about each image
            self.asked.append(replace(self.long, image=self.short.image))
            self.asked.append(replace(self.short, image=self.long.image))
        self.most, self.least = _FLOAT32, -math.inf
        self.problem = ""

    def run(self, *, even: bool) -> None:
        """Check everything that the reader would do.

        Args:
            even: whether the short prompt and the other one have the same length.
        """
        reader = self.reader
        shares, reader._shares = reader._shares, False
        keeps, reader._keeps_features = reader._keeps_features, False
        try:
            self.alone = [self.written([prompt], _TOKENS) for prompt in self.asked]
            if any(given.logits.isnan().any() for given in self.alone):
                return  # an overflow, which every prompt will report
            self.tolerate(self.other if even else self.short)
            self.check("batches", "generating", self.generated)
            if reader.scores_answers:
                self.check_reading_on()
            reader._keeps_features = keeps
            if keeps and self.short.image is not None:
                what = "computing the features of an image once"
                self.check_all("features", what, self.looked_at_once)
            reader._shares = shares
            if shares and "features" not in self.found:
                self.check_all("sharing", "reading a shared beginning once", self.generated)
        finally:
            reader._shares, reader._keeps_features = shares, keeps

    def check_all(self, ability: Ability, what: str, read: _Reading) -> None:
        """Read all prompts in a batch, or one by one if batches are wrong."""
        rows = range(len(self.asked))
        batches = [(row,) for row in rows] if "batches" in self.found else [tuple(rows)]
        off = max(self.gap(read, batch) for batch in batches)
        if off > self.most:
            self.note(ability, what, off)

    def check_reading_on(self) -> None:
        """Check reading after tokens whose keys and values were kept."""
        off = self.gap(lambda prompts, _: self.written(prompts, use_cache=False), (0,))
        # Not all models can: one may take a token that it wrote itself for an image.
        if self.most < off < math.inf:
            self.note("next_token_logprobs", "keeping keys and values", off)
        if "batches" not in self.found and self.gap(self.read_on(2, 1), (0, 1)) <= self.most:
            return
        self.check("next_token_logprobs", "reading token by token", self.read_on(1, 1, 1))
        if "next_token_logprobs" not in self.found:
            self.check("score", "reading several tokens at once", self.read_on(3))

    def note(self, ability: Ability, what: str, off: float) -> None:
        said = (
            f" changes its log-probabilities by up to {off:.2g}" if off < math.inf else self.problem
        )
        self.found.setdefault(ability, what + said)

    def check(self, ability: Ability, what: str, read: _Reading) -> None:
        """Read both prompts in a batch; if that is wrong, read each alone to see what fails."""
        together = math.inf if "batches" in self.found else self.gap(read, (0, 1))
        if together <= self.most:
            return
        apart = max(self.gap(read, (0,)), self.gap(read, (1,)))
        if apart > self.most:
            self.note(ability, what, apart)
        else:
            self.note("batches", f"{what} in a batch", together)

    def gap(self, read: _Reading, rows: Sequence[int]) -> float:
        """Return how far off log-probabilities are if these prompts are read in one batch.

        It is infinite if the model fails or computes no numbers.
        """
        alone = [self.alone[row] for row in rows]
        try:
            given = read([self.asked[row] for row in rows], alone).rows()
        except Exception as e:
            problem = failure(e, "it")
            if not isinstance(problem, PromptError):  # of the machine, not of the model
                raise
            self.problem = f" fails: {first_line(e)}"
            return math.inf
        return max(map(self.difference, given, cycle(alone)))

    def difference(self, given: _Written, alone: _Written) -> float:
        """Return the largest difference, at the tokens before which both wrote the same."""
        here, there = (one.logits.log_softmax(-1)[0] for one in (given, alone))
        steps = len(here)
        same = (given.tokens == alone.tokens[:, :steps])[0].to(here.device).cumprod(0)
        steps = min(steps, 1 + int(same.sum()))
        here, there = here[:steps], there[:steps]
        differences = (here - there).abs()
        differences[(here == there) | (there < self.least)] = 0  # also two infinities
        if differences.isnan().any():
            self.problem = " gives log-probabilities that are no numbers"
            return math.inf
        return float(differences.max())

    def tolerate(self, other: Prompt) -> None:
        """Set the tolerance.

        Args:
            other: a prompt of the short one's length.
        """
        import torch

        model = self.reader._model
        numbers = [p.dtype for p in model.parameters() if p.is_floating_point()]
        if getattr(model, "hf_quantizer", None) is not None:
            numbers.append(torch.bfloat16)  # about as coarse as quantised weights
        coarsest = max(torch.finfo(dtype).eps for dtype in numbers)
        if coarsest <= torch.finfo(torch.float32).eps:
            return
        self.least = _LIKELY
        alone = self.alone[0]
        first = self.written([self.short, other]).rows()[0]
        second = self.written([other, self.short]).rows()[1]
        moved = max(self.difference(first, alone), self.difference(second, alone))
        # Of the largest logit. A much larger change is none of rounding, but an error.
        rounding = coarsest / 2 * float(alone.logits.abs().max())
        self.most = _TIMES * min(max(rounding, moved), 4 * rounding)

    def generated(self, prompts: Sequence[Prompt], _: Sequence[_Written]) -> _Written:
        return self.written(prompts)

    def looked_at_once(self, prompts: Sequence[Prompt], _: Sequence[_Written]) -> _Written:
        self.reader._prepared([self.other])  # another prompt about the same image
        return self.written(prompts)

    def written(self, prompts: Sequence[Prompt], count: int = 2, **options: Any) -> _Written:
        """Return the tokens that the model's own `generate` writes after prompts."""
        import torch

        # Whether or not it would end before.
        options |= {"max_new_tokens": count, "min_new_tokens": count, "num_beams": 1}
        result = self.reader._run(self.reader._prepared(prompts), **options)
        logits = getattr(result, "logits", None)
        if not logits:
            kind = type(self.reader._model).__name__
            raise ValueError(f"{kind}.generate hands over to another model and returns no logits")
        return _Written(result.sequences[:, -len(logits) :], torch.stack(logits, 1).float())

    def read_on(self, *widths: int) -> _Reading:
        """Return a way to read: first the prompts, then so many of their tokens at a time.

        Each prompt is read on twice, as if two answers to it were scored.
        """
        import torch

        def read(prompts: Sequence[Prompt], alone: Sequence[_Written]) -> _Written:
            tokens = torch.cat([given.tokens for given in alone] * 2)
            state = self.reader._prefill(prompts)
            state.select(list(range(len(prompts))) * 2)
            parts = tokens[:, :-1].split(widths, dim=1)
            logits = [state.logits[:, None].float()]
            logits += [self.reader._extend(state, part) for part in parts]
            return _Written(tokens, torch.cat(logits, 1))

        return read
