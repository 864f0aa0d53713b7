"""Base of readers that run a transformers model in this process.

Everything goes through two steps: `_prefill` runs prompts through the model and keeps its keys and
values, and `_extend` runs further tokens after them. Both leave peculiarities of a model family
(how images enter, where the language model is) to the model's own `generate`.

Decoders are padded on the left, so that all prompts of a batch end at the same position; encoders
on the right. In float32, batch size does not change answers: `checks` makes sure of it.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ravqa.core.accounts import Usage
from ravqa.core.errors import PromptError, UserError
from ravqa.core.failures import failure, not_a_number, out_of_memory
from ravqa.core.marks import BOXES, split_thinking
from ravqa.core.outcomes import Failure, succeeded
from ravqa.core.settings import fingerprint
from ravqa.readers.base import Generation, Prompt, Reader, settled
from ravqa.readers.beginnings import Beginnings
from ravqa.readers.chat import ChatConfig
from ravqa.readers.checks import UNCHECKED, check_model
from ravqa.readers.families import Family
from ravqa.readers.loading import (
    LocalConfig,
    Placement,
    input_device,
    model_context,
    stop_ids,
    vocabulary,
)
from ravqa.readers.streaming import greedy, whole_words
from ravqa.readers.thinking import Marks, Thought

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
V = TypeVar("V")
F = TypeVar("F", bound=Callable[..., Any])
Key = tuple[Prompt, tuple[int, ...]]


class _Closed(Prompt):
    """A prompt whose thinking is closed: an empty one stands before the answer."""

    __slots__ = ()


@dataclass(eq=False)
class State:
    """Rows of prompts, and tokens after them, that the model has read.

    Attributes:
        past: transformers' cache of keys and values.
        mask: int64 [rows, width], 1 where there is a token: for a decoder of the prompt and the
            tokens after it, else of the encoder's input.
        logits: float32 [rows, vocabulary] for the next token.
        shifts: int64 [rows, 1], offsets of positions, for models whose images take fewer positions
            than tokens.
        encoded: last hidden states of the encoder, if any.
        across: int64 [rows, 1, images, tiles], 1 where the next token sees a part of an image, for
            models that attend to images across.
        keys: prompt and prefix that each row has read.
    """

    past: Any
    mask: Any
    logits: Any
    shifts: Any = None
    encoded: Any = None
    across: Any = None
    keys: list[Key] = field(default_factory=list)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be repeated."""
        import torch

        if list(rows) == list(range(len(self.mask))):
            return
        index = torch.tensor(rows, device=self.mask.device)
        self.past.reorder_cache(index)
        for name in ("mask", "logits", "shifts", "encoded", "across"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.index_select(0, index.to(value.device)))
        if self.keys:
            self.keys = [self.keys[row] for row in rows]


def _alone(method: F) -> F:
    """Let one thread in at a time: tokenizers and kept states are not thread-safe."""

    @functools.wraps(method)
    def waiting(self: LocalReader, *args: Any, **kwargs: Any) -> Any:
        with self._in_use:
            return method(self, *args, **kwargs)

    return cast(F, waiting)


class LocalReader(Reader):
    """Base class; a subclass loads model and tokenizer and turns prompts into inputs.

    Calls from several threads are safe and run one after the other. Streams unless it uses beam
    search.
    """

    deterministic = True
    gives_log_probs = True
    counts_tokens = True
    charges = True
    _family = Family()
    _template: str | None = None
    _shares = False  # whether the beginning of several prompts is read once
    _keeps_features = False  # whether an image's features are computed once

    def __init__(
        self, config: LocalConfig, placement: Placement, model: Any, tokenizer: Any, why: str
    ):
        """Take a loaded model.

        Args:
            why: name of the reader, for messages.

        Raises:
            UserError: the model has no end-of-sequence token.
        """
        self._options = config
        self._in_use = threading.RLock()
        self._model = model
        self._tokenizer = tokenizer
        self._why = why
        # Models that only prepare images delegate generation to their language model.
        self._decoder = self._language_model(model)
        self._encodes = bool(self._decoder.config.is_encoder_decoder)
        self.max_new_tokens = config.max_new_tokens
        limit, self._strict = model_context(self._decoder.config, tokenizer, config.max_new_tokens)
        self.context = config.context or limit
        self.limit = limit if self._strict else None  # of the model itself
        chat = config if isinstance(config, ChatConfig) else None
        self._own_generation = own = self._decoder.generation_config
        newline = chat is not None and chat.stop_at_newline
        self._known = vocabulary(self._decoder)
        find = functools.partial(stop_ids, tokenizer, own, why=why, known=self._known)
        self._stops = find(newline=newline)
        self._own_stops = find(newline=False)
        self.ends = frozenset(self._stops)
        self._marks_of_thinking = Marks(tokenizer, self._template)
        self._may_think = chat is not None and self._marks_of_thinking.some
        self._opening = ""  # the mark of thinking that the model writes itself
        self._thinking_budget = config.max_thinking_tokens
        if self.context is not None:  # half of what there is, at the most
            half = max(0, self.context - self.max_new_tokens) // 2
            self._thinking_budget = min(self._thinking_budget, half)
        self._boxes = [
            token for mark, token in tokenizer.get_added_vocab().items() if mark in BOXES
        ]
        self._pad = tokenizer.pad_token_id
        if self._pad is None:
            self._pad = self._stops[0]
        self._start = self._first_tokens() if self._encodes else []
        self._set_generation()
        self._device = input_device(model)
        self._shifted = next((m for m in model.modules() if hasattr(m, "rope_deltas")), None)
        taken = inspect.signature(self._decoder.forward).parameters
        self._takes_positions = not self._encodes and "position_ids" in taken
        # Purely recurrent models (Mamba) keep other states.
        continues = "past_key_values" in taken
        self.scores_answers = self.gives_next_token_logprobs = continues
        self.streams = continues and config.beams == 1
        self._budget = config.batch_tokens
        self._beginnings = Beginnings(self._decoder.config)
        self._states: list[State] = []
        self._last: dict[Key, Any] = {}  # states of the last call
        self.weights = placement.weights

    def _check_ids(self, ids: Sequence[Sequence[int]]) -> None:
        """Refuse a tokenizer's numbers that the model does not know.

        An accelerator would fail as a whole on them.

        Raises:
            PromptError: there is one; other prompts may have none.
        """
        for row in ids:
            if row and max(row) >= self._known:
                token = self._tokenizer.convert_ids_to_tokens(max(row))
                raise PromptError(
                    f"{self._why}: the tokenizer gives {token!r} the number {max(row)}, but the "
                    f"model has only {self._known} tokens"
                )

    def _check_model(self) -> None:
        """Check the model's abilities, and switch off those that it does not have.

        Subclasses call it when everything is loaded.

        Raises:
            UserError: the model cannot read an ordinary prompt.
        """
        self.switched_off = off = check_model(self)
        if "batches" in off:
            self._options = self._options.model_copy(update={"batch_size": 1})
        if "sharing" in off:
            self._shares = False
        if "features" in off:
            self._keeps_features = self._shares = False
        if "next_token_logprobs" in off:
            self.gives_next_token_logprobs = self.streams = self.scores_answers = False
        if "score" in off:
            self.scores_answers = False
        if changed := sorted(off.keys() - {UNCHECKED}):
            self.fingerprint = fingerprint(self.fingerprint, changed)

    # --- for subclasses to override

    def _language_model(self, model: Any) -> Any:
        return model

    def _checked(self, value: V, *numbers: float) -> V | Failure:
        """Return a result, or a failure if one of its numbers is not a number."""
        broken = any(map(math.isnan, numbers))
        return (
            not_a_number(self._why, "a log-probability", self._decoder.dtype) if broken else value
        )

    @abstractmethod
    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Return the padded model inputs of a batch."""

    def _prepared(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Return the inputs of a batch, with what is already known in place of what gives it."""
        inputs = self._inputs(prompts)
        if self._shares:
            self._share(inputs, [None] * len(prompts))
        return inputs

    def _share(
        self,
        inputs: dict[str, Any],
        keys: Sequence[object],
        least: Sequence[int] | None = None,
        more: Callable[[int], dict[str, Any]] = lambda row: {},
    ) -> None:
        """Add keys and values of the beginnings that a decoder's rows share to their inputs.

        Args:
            inputs: left-padded inputs.
            keys, least: see `Beginnings`.
            more: returns the inputs of a row that are not per token.
        """
        mask = inputs["attention_mask"]
        per_token = {
            name: [row[kept] for row, kept in zip(value, mask.bool(), strict=True)]
            for name, value in inputs.items()
            if getattr(value, "shape", None) == mask.shape
        }

        def read(row: int, tokens: int) -> Any:
            first = {name: rows[row][None, :tokens] for name, rows in per_token.items()}
            made = self._run(more(row) | first, max_new_tokens=1, num_beams=1)
            return made.past_key_values

        ids = [row.tolist() for row in per_token["input_ids"]]
        past = self._beginnings.past(ids, keys, least or [0] * len(ids), read)
        if past is not None:
            inputs["past_key_values"] = past

    @abstractmethod
    def _lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Return the number of tokens of each prompt."""

    @abstractmethod
    def _text(self, prompt: Prompt) -> str:
        """Return the text that answers continue."""

    def _neutral(self, prompt: Prompt) -> str:
        """Return a prompt's text with foreign control tokens as plain text."""
        return self.control_tokens.neutral(prompt.text, prompt.own)[0]

    def _kind(self, prompt: Prompt) -> object:
        """Return the prompt's kind; only prompts of one kind share a batch."""
        return None

    def _group(self, prompt: Prompt) -> object:
        """Return the prompt's group; prompts of one group should share a batch."""
        return None

    def _generator(self, inputs: dict[str, Any]) -> Any:
        """Return the model whose `generate` takes the inputs."""
        return self._model

    def _check_template(self, prompt: Prompt, other: Prompt) -> None:
        """Reject a chat template that fails for every prompt, hides a part of it or changes it.

        Args:
            prompt: an ordinary prompt.
            other: one with another text, or without its image.

        Raises:
            UserError: the template fails, renders both alike, does not show the question's words,
                or writes another text each time.
        """
        try:
            text, again, different = map(self._text, (prompt, prompt, other))
        except PromptError as e:
            raise UserError(str(e)) from None
        problem = ""
        if text == different:
            hidden = "question" if prompt.image is None else "image"
            problem = f"never shows the {hidden}"
        elif prompt.text not in text:
            problem = "does not show the question as it is"
        elif text != again:
            problem = "writes another text each time"
        if problem and self._template is not None:
            raise UserError(
                f"{self._why}: the chat template of {self.weights} {problem}: set prompt_form to "
                "plain, or replace the template"
            )
        if self._may_think and self._marks_of_thinking.closing(text):
            self.max_thinking_tokens = self._thinking_budget

    # --- the reader's calls

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation | Failure]:
        """Return one generation per prompt, in order, by greedy or beam search.

        A prompt fails if it is too long for the context or the memory, or if tokenizer, processor,
        template or model cannot take it.
        """
        made = dict(self.generate_each(prompts))
        return [made[i] for i in range(len(prompts))]

    def generate_each(
        self, prompts: Sequence[Prompt]
    ) -> Iterator[tuple[int, Generation | Failure]]:
        """Yield prompts' positions and generations, batch by batch, shortest first."""
        if not self._thinking_budget:
            prompts = self._closed(prompts)
        lengths, failed = _apart(self._counted(prompts))
        yield from failed.items()
        longest = self.max_new_tokens + self.max_thinking_tokens
        needed = {row: n + longest for row, n in lengths.items()}
        yield from self._in_batches(
            prompts, needed, lambda rows: self._generate([prompts[i] for i in rows])
        )

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | Failure]:
        """Return log-probabilities of answers, each with an end mark after its tokens.

        The answer continues the prompt, after a space unless the prompt ends with one or with a
        special token. The probabilities of all end tokens are summed. A prompt with several answers
        is read once per batch.
        """
        made = dict(self.score_each(prompts, answers))
        return [made[i] for i in range(len(prompts))]

    def score_each(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[int, float | Failure]]:
        """Yield prompts' positions and their answers' log-probabilities, batch by batch."""
        if not self.scores_answers:
            raise self._unable("score answers")
        prompts = self._closed(prompts)
        tails, failed = _apart(
            self._halving(
                list(range(len(prompts))),
                {},
                lambda rows: [self._answer_ids(prompts[i], answers[i]) for i in rows],
            )
        )
        yield from failed.items()
        unique = list(dict.fromkeys(prompts[row] for row in sorted(tails)))
        counted = {unique[i]: length for i, length in self._counted(unique)}
        lengths: dict[Prompt, int] = {}
        rows_of: dict[Prompt, list[int]] = {}
        for row in sorted(tails):
            length = counted[prompts[row]]
            if isinstance(length, Failure):
                yield row, length
                continue
            lengths[prompts[row]] = length
            rows_of.setdefault(prompts[row], []).append(row)
        # A prompt's rows are adjacent and have one length, so that they share a batch.
        order = [row for rows in rows_of.values() for row in rows]
        longest = {p: max(len(tails[row]) for row in rows) for p, rows in rows_of.items()}
        asked = [prompts[row] for row in order]
        needed = {
            place: lengths[prompt] + longest[prompt] + 1 for place, prompt in enumerate(asked)
        }

        def run(places: list[int]) -> list[float | Failure]:
            read = list(dict.fromkeys(asked[place] for place in places))
            state = self._prefill(read)
            state.select([read.index(asked[place]) for place in places])
            values = self._score(state, [tails[order[place]] for place in places])
            taken = {prompt: lengths[prompt] for prompt in read}
            for place in places:  # what is scored is read, not written
                taken[asked[place]] += len(tails[order[place]])
            for prompt, tokens in taken.items():
                self._charge(Usage(tokens, 0), prompt.payer)
            return [self._checked(value, value) for value in values]

        for place, value in self._in_batches(asked, needed, run):
            yield order[place], value

    def next_token_logprobs(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float32] | Failure]:
        """Return log-probabilities of the next token after each prompt and its prefix.

        Keys and values are kept between calls: rows whose prompt was in the last call, with a
        prefix shorter by one token, cost one step; rows may be left out, added or repeated.

        Args:
            prompts: the prompts; they fail as in `generate`.
            prefixes: per prompt, the tokens generated so far.

        Returns:
            Per prompt float32 [vocabulary], natural logs.
        """
        if not self.gives_next_token_logprobs:
            raise self._unable("give next-token probabilities")
        return self._next(self._closed(prompts), prefixes)

    @_alone
    def _next(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float32] | Failure]:
        keys: list[Key] = [(p, tuple(t)) for p, t in zip(prompts, prefixes, strict=True)]
        unique = list(dict.fromkeys(keys))
        rows: dict[Key, Any] = {key: self._last[key] for key in unique if key in self._last}
        kept: list[State] = []
        for state in self._states:
            if self._advance(state, unique):
                kept.append(state)
                rows.update(_log_probs(state))
        self._states = kept
        # Rows of one batch have prefixes of one length: nothing is padded in the middle.
        missing: dict[int, list[Key]] = {}
        for key in unique:
            if key not in rows:
                missing.setdefault(len(key[1]), []).append(key)
        failed: dict[Key, Failure] = {}
        for length, new in missing.items():
            for key, found in self._read(new, length):
                if isinstance(found, Failure):
                    failed[key] = found
                elif found not in self._states:
                    self._states.append(found)
                    rows.update(_log_probs(found))
        for key in unique:
            if key in rows and key not in self._last:
                self._charge(Usage(0, 1), key[0].payer)
        self._last = {key: rows[key] for key in unique if key in rows}
        return [
            failed[key] if key in failed else self._checked(rows[key], float(rows[key].max()))
            for key in keys
        ]

    @_alone
    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens without end marks and other special tokens."""
        kept = [token for token in tokens if token not in self.ends]
        decode = self._tokenizer.decode
        if not any(box in kept for box in self._boxes):
            return str(decode(kept, skip_special_tokens=True))
        # What encloses an answer is no end mark: it stays.
        parts = itertools.groupby(kept, key=self._boxes.__contains__)
        return "".join(decode(list(own), skip_special_tokens=not box) for box, own in parts)

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int | Failure]:
        """Return the number of tokens of each prompt as given to the model, images included.

        A prompt fails if tokenizer, processor or template cannot take it.
        """
        counted = dict(self._counted(prompts))
        return [counted[row] for row in range(len(prompts))]

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """Yield the greedy generation, word by word.

        Raises:
            UserError: the reader uses beam search, or its model keeps no keys and values.
        """
        if not self.streams:
            raise self._unable("stream")
        thoughts = self._thoughts([prompt])
        return self._thinking_stream(prompt, thoughts[0]) if thoughts else greedy(self, prompt)

    def _thinking_stream(self, prompt: Prompt, thought: Thought) -> Iterator[str]:
        given = ""
        while not thought.done:
            [row] = self._next([prompt], [thought.tokens])
            thought.feed(int(succeeded(row).argmax()))
            if thought.start is not None:
                words = whole_words(self.decode(thought.answer))
                if len(words) > len(given):
                    yield words[len(given) :]
                    given = words
        if thought.cut:
            raise self._cut_off(thought).error
        if rest := self.decode(thought.answer)[len(given) :]:
            yield rest

    # --- training (see `ravqa.readers.training`)

    @_alone
    def forget(self) -> None:
        """Drop all that was computed with the present weights, because they change."""
        self._free()
        self._last.clear()

    @property
    def settings(self) -> LocalConfig:
        """The reader's options."""
        return self._options

    @property
    def network(self) -> Any:
        """The torch module whose weights train; the reader answers with whatever they are."""
        return self._model

    @property
    def language(self) -> Any:
        """The part of it that reads and writes text; the whole, if it sees nothing else."""
        if self._decoder is not self._model or not self.supports_images:
            return self._decoder
        return self._model.get_decoder()

    @_alone
    def save(self, folder: Path, weights: Mapping[str, Any] | None = None) -> None:
        """Write model and tokenizer in transformers' format, as `model` can name them.

        Args:
            weights: tensors by name, in place of the model's own.
        """
        plain = self._decoder.generation_config
        self._decoder.generation_config = self._own_generation
        try:
            self._model.save_pretrained(folder, state_dict=weights)
        finally:
            self._decoder.generation_config = plain
        self._tokenizer.save_pretrained(folder)

    def _unable(self, what: str) -> UserError:
        off = self.switched_off
        why = off.get("next_token_logprobs") or (what == "score answers" and off.get("score"))
        return UserError(f"{self._why}: {self.weights} cannot {what}" + (f": {why}" if why else ""))

    # --- batches

    def _counted(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, int | Failure]]:
        """Yield each row and its prompt's number of tokens."""
        rows = list(range(len(prompts)))
        return self._halving(rows, {}, lambda part: self._lengths([prompts[i] for i in part]))

    def _too_long(self, needed: Mapping[int, int]) -> dict[int, Failure]:
        """Return the rows that do not fit into the context, with their failures."""
        if self.context is None or not self._strict:
            return {}
        return {
            row: Failure(
                f"{self._why}: a prompt of {tokens} tokens, including those to be written, is "
                f"longer than the context of {self.context}: use fewer or shorter passages"
            )
            for row, tokens in needed.items()
            if tokens > self.context
        }

    def _in_batches(
        self,
        prompts: Sequence[Prompt],
        needed: Mapping[int, int],
        run: Callable[[list[int]], list[T]],
    ) -> Iterator[tuple[int, T | Failure]]:
        """Yield results by row, from `run` over batches of rows of similar length.

        Args:
            prompts: prompts of all rows.
            needed: number of tokens of each row to run.
            run: returns the results of some rows.
        """
        failed = self._too_long(needed)
        yield from failed.items()
        kinds: dict[object, dict[object, list[int]]] = {}
        for row in sorted(needed.keys() - failed.keys()):
            groups = kinds.setdefault(self._kind(prompts[row]), {})
            groups.setdefault(self._group(prompts[row]), []).append(row)
        for groups in kinds.values():
            for rows in groups.values():
                rows.sort(key=needed.__getitem__)
            several = [rows for rows in groups.values() if len(rows) > 1]
            alone = [row for rows in groups.values() if len(rows) == 1 for row in rows]
            several.sort(key=lambda rows: needed[rows[-1]])
            alone.sort(key=needed.__getitem__)
            for part in (several, [alone] if alone else []):
                for batch in self._batches(part, needed):
                    yield from self._halving(batch, needed, run)

    def _batches(
        self, groups: Iterable[Sequence[int]], needed: Mapping[int, int]
    ) -> Iterator[list[int]]:
        """Yield rows in batches; a group that fits into one batch is not split.

        Args:
            groups: rows of each group, sorted by their tokens.
            needed: number of tokens of each row.
        """

        def fitting(rows: Sequence[int]) -> int:
            return self._batch_size([needed[row] for row in rows])

        waiting: list[int] = []
        for rows in groups:
            if waiting and fitting([*waiting, *rows]) < len(waiting) + len(rows):
                yield waiting
                waiting = []
            waiting = [*waiting, *rows]
            while len(waiting) > (size := fitting(waiting)):
                yield waiting[:size]
                waiting = waiting[size:]
        if waiting:
            yield waiting

    def _batch_size(self, needed: Sequence[int]) -> int:
        """Return how many rows, in order, form the next batch; at least one."""
        size, longest = 1, needed[0]
        for tokens in needed[1 : self._options.batch_size]:
            longest = max(longest, tokens)
            if (size + 1) * longest > self._budget:
                break
            size += 1
        return size

    def _halving(
        self,
        rows: list[int],
        needed: Mapping[int, int],
        run: Callable[[list[int]], list[T]],
    ) -> Iterator[tuple[int, T | Failure]]:
        """Yield results of one batch; halve a batch that fails, to find the row at fault.

        Args:
            rows: the batch.
            needed: number of tokens of each row, where counted.
            run: returns the results of some rows.

        Raises:
            UserError: an image that cannot be read; a device that failed.
        """
        import torch

        if not rows:
            return
        done, problem, full = None, None, False
        try:
            with self._in_use:
                done = run(rows)
        except Exception as e:
            full = out_of_memory(e)
            problem = None if full else failure(e, self._why)
        if done is not None:
            yield from zip(rows, done, strict=True)
            return
        # Outside the handler, the error's frames, which hold tensors, are freed.
        if problem is not None and not isinstance(problem, PromptError):
            raise problem
        longest = max((needed[row] for row in rows if row in needed), default=0)
        if full:
            self._free()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if len(rows) == 1:
            tokens = f" of {longest} tokens" if longest else ""
            yield (
                rows[0],
                Failure(
                    f"{self._why}: a prompt{tokens} does not fit into the memory of "
                    f"{self._device}: set device_map, dtype or quantization of the reader"
                    if problem is None
                    else str(problem)
                ),
            )
            return
        half = len(rows) // 2
        if full and longest:
            self._budget = min(self._budget, longest * half)  # later batches start smaller
        for part in (rows[:half], rows[half:]):
            yield from self._halving(part, needed, run)

    def _free(self) -> None:
        """Drop what takes memory and can be computed again."""
        self._states.clear()
        self._beginnings.clear()

    # --- the model

    def _set_generation(self) -> None:
        """Set plain greedy or beam search, whatever the checkpoint's own settings are.

        Its repetition penalty, temperature and the like would make log-probabilities those of
        another distribution.
        """
        from transformers import GenerationConfig

        own = self._decoder.generation_config
        plain = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=self._options.beams,
            bos_token_id=own.bos_token_id,
            eos_token_id=self._stops,
            pad_token_id=self._pad,
            decoder_start_token_id=self._start[0] if self._start else None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        self._decoder.generation_config = plain

    def _first_tokens(self) -> list[int]:
        """Return the decoder's first tokens: a start token, and a forced one (BART, Florence-2)."""
        own, config = self._decoder.generation_config, self._decoder.config
        start = own.decoder_start_token_id
        if start is None:
            start = getattr(config, "decoder_start_token_id", None)
        if start is None:
            start = own.bos_token_id if own.bos_token_id is not None else self._pad
        forced = own.forced_bos_token_id
        return [start] if forced is None else [start, forced]

    def _run(self, inputs: Mapping[str, Any], **options: Any) -> Any:
        import torch

        inputs = dict(inputs)
        if self._shifted is not None:
            self._shifted.rope_deltas = None  # the last batch's; this one's are computed
        if len(self._start) > 1:
            rows = len(inputs["attention_mask"])
            inputs["decoder_input_ids"] = torch.tensor([self._start] * rows, device=self._device)
        with torch.inference_mode():
            return self._generator(inputs).generate(**inputs, **options)

    def _generate(self, prompts: Sequence[Prompt]) -> list[Generation | Failure]:
        inputs = self._prepared(prompts)
        thoughts = self._thoughts(prompts)
        options: dict[str, Any] = {}
        if thoughts:
            options = self._thinking_options(thoughts, inputs["attention_mask"].shape[1])
        result = self._run(inputs, **options)
        beams = getattr(result, "beam_indices", None)
        steps = len(result.logits) if beams is None else int((beams >= 0).sum(-1).max())
        tokens = result.sequences[:, -steps:]
        values = []
        for step in range(steps):
            logits = result.logits[step]
            if beams is not None:
                logits = logits[beams[:, step].clamp(min=0)]
            chosen = logits.gather(-1, tokens[:, step : step + 1]).squeeze(-1)
            values.append((chosen - logits.logsumexp(-1)).tolist())
        out: list[Generation | Failure] = []
        given = inputs["attention_mask"].sum(-1).tolist()
        for row, written in enumerate(tokens.tolist()):
            start, thinking = 0, ""
            if thoughts:
                thought = self._followed(written, prompts[row])
                if thought.cut:
                    self._charge(Usage(given[row], len(thought.tokens)), prompts[row].payer)
                    out.append(self._cut_off(thought))
                    continue
                start, thinking = thought.start or 0, thought.text
                length = len(thought.tokens)
            else:
                length = next((i + 1 for i, t in enumerate(written) if t in self.ends), steps)
            log_prob = float(sum(values[step][row] for step in range(start, length)))
            text = self.decode(written[start:length])
            usage = Usage(given[row], length)
            self._charge(usage, prompts[row].payer)
            made = Generation(text, log_prob, length - start, thinking, usage)
            if split_thinking(text).answer != text:  # its tokens are not known apart
                made = replace(made, log_prob=None, tokens=0)
            out.append(self._checked(settled(made), log_prob))
        return out

    # --- thinking

    def _thoughts(self, prompts: Sequence[Prompt]) -> list[Thought]:
        """Return what follows each prompt's thinking; nothing if the model cannot think."""
        if not self._may_think:
            return []
        opened = [self._marks_of_thinking.closing(self._text(prompt)) for prompt in prompts]
        return [self._thought(bool(mark)) for mark in opened]

    def _thought(self, opened: bool) -> Thought:
        return Thought(
            self._marks_of_thinking.decode,
            opened=opened,
            budget=self._thinking_budget,
            longest=self.max_new_tokens,
            ends=frozenset(self._own_stops),
            stops=self.ends,
        )

    def _followed(self, tokens: Sequence[int], prompt: Prompt) -> Thought:
        [thought] = self._thoughts([prompt])
        for token in tokens:
            thought.feed(token)
        return thought

    def _thinking_options(self, thoughts: Sequence[Thought], width: int) -> dict[str, Any]:
        """Return options of `generate` for prompts that may be answered after thinking.

        Args:
            width: tokens of the longest prompt.
        """
        import torch
        from transformers import StoppingCriteriaList

        def ended(ids: Any, scores: Any, **_: Any) -> Any:
            for thought, token in zip(thoughts, ids[:, -1].tolist(), strict=True):
                thought.feed(token)
            return torch.tensor([thought.done for thought in thoughts], device=ids.device)

        longest = self.max_new_tokens + self._thinking_budget
        if self.context is not None and self._strict:
            longest = max(1, min(longest, self.context - width))
        options: dict[str, Any] = {"max_new_tokens": longest, "eos_token_id": self._own_stops}
        if self._options.beams == 1:
            options["stopping_criteria"] = StoppingCriteriaList([ended])
        return options

    def _cut_off(self, thought: Thought) -> Failure:
        budget = self._thinking_budget
        if len(thought.tokens) < budget:
            return Failure(f"{self._why}: the model's output is reasoning without an answer")
        return Failure(
            f"{self._why}: the model spent all {budget} tokens on thinking: raise "
            "max_thinking_tokens"
        )

    def _find_opening(self, prompt: Prompt) -> None:
        """Find out whether the model itself opens a mark of thinking, as its first tokens."""
        if not self._may_think or not self.gives_next_token_logprobs or self.max_thinking_tokens:
            return
        thought = self._thought(opened=False)
        while not thought.done and thought.start is None and not thought.thinks:
            [row] = self._next([prompt], [thought.tokens])
            thought.feed(int(succeeded(row).argmax()))
        if thought.thinks:
            decoded = self._tokenizer.decode(thought.tokens, skip_special_tokens=False)
            self._opening = decoded.strip()
            self.max_thinking_tokens = self._thinking_budget

    def _shown(self, prompt: Prompt, text: str) -> str:
        """Return a prompt's text as the model is given it; without thinking, if it is `_Closed`."""
        if not isinstance(prompt, _Closed):
            return text
        return self._marks_of_thinking.closed(text, self._opening)

    def _closed(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Return prompts after which the answer follows at once, without thinking."""
        if not self._may_think:
            return list(prompts)
        return [_Closed(p.text, p.image, p.own, p.pictures, p.payer) for p in prompts]

    def _prefill(self, prompts: Sequence[Prompt]) -> State:
        """Run prompts through the model's own `generate`, for one token that is discarded."""
        inputs = self._prepared(prompts)
        result = self._run(
            inputs, max_new_tokens=1, num_beams=1, output_hidden_states=self._encodes
        )
        shifts = getattr(self._shifted, "rope_deltas", None)
        across = inputs.get("cross_attention_mask")
        return State(
            past=result.past_key_values,
            mask=inputs["attention_mask"],
            logits=result.logits[0],
            shifts=None if shifts is None else shifts.reshape(len(prompts), 1),
            encoded=result.encoder_hidden_states[-1] if self._encodes else None,
            across=None if across is None else across[:, -1:],
        )

    def _extend(self, state: State, tokens: Any) -> Any:
        """Run tokens after the rows of a state, and add them to it.

        Args:
            tokens: int64 [rows, n].

        Returns:
            float32 [rows, n, vocabulary]: logits for the token after each of them.
        """
        import torch

        inputs: dict[str, Any] = {"past_key_values": state.past, "use_cache": True}
        if self._encodes:
            from transformers.modeling_outputs import BaseModelOutput

            inputs["decoder_input_ids"] = tokens
            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=state.encoded)
        else:
            inputs["input_ids"] = tokens
            ones = state.mask.new_ones(tokens.shape)
            state.mask = torch.cat([state.mask, ones], dim=-1)
            if self._takes_positions:
                positions = (
                    state.mask.cumsum(-1)[:, -tokens.shape[1] :] - 1 + self._family.first_position
                )
                inputs["position_ids"] = positions + (0 if state.shifts is None else state.shifts)
        inputs["attention_mask"] = state.mask
        if state.across is not None:
            inputs["cross_attention_mask"] = state.across.expand(-1, tokens.shape[1], -1, -1)
        with torch.inference_mode():
            logits = self._decoder(**inputs).logits.float()
        state.logits = logits[:, -1]
        return logits

    def _score(self, state: State, tails: Sequence[list[int]]) -> list[float]:
        """Return log-probabilities of a tail and an end after each row of a state, consuming it."""
        import torch

        width = max(len(tail) for tail in tails)
        padded = torch.tensor(
            [tail + [self._pad] * (width - len(tail)) for tail in tails],
            dtype=torch.long,
            device=self._device,
        )
        logits = state.logits[:, None]
        if width:
            logits = torch.cat([logits, self._extend(state, padded)], dim=1)
        norms = logits.logsumexp(-1)
        chosen = logits[:, :-1].gather(-1, padded[..., None].to(logits.device)).squeeze(-1)
        values = (chosen - norms[:, :-1]).tolist()
        ends = (logits[..., self._stops].logsumexp(-1) - norms).tolist()
        return [
            float(sum(values[row][: len(tail)]) + ends[row][len(tail)])
            for row, tail in enumerate(tails)
        ]

    # --- kept states

    def _advance(self, state: State, keys: Sequence[Key]) -> bool:
        """Advance the rows that `keys` continue by one token; drop the others.

        Returns:
            Whether the state is still usable.
        """
        import torch

        at = {key: row for row, key in enumerate(state.keys)}
        grown = [key for key in keys if key[1] and (key[0], key[1][:-1]) in at]
        if not grown:
            return any(key in at for key in keys)
        try:
            state.select([at[prompt, prefix[:-1]] for prompt, prefix in grown])
            last = torch.tensor([[prefix[-1]] for _, prefix in grown], device=self._device)
            self._extend(state, last)
        except Exception as e:
            problem = failure(e, self._why)
            if not out_of_memory(e) and not isinstance(problem, PromptError):
                raise problem from None
            return False  # rows are read again from the start, in smaller batches
        state.keys = grown
        return True

    def _read(self, keys: Sequence[Key], length: int) -> Iterator[tuple[Key, State | Failure]]:
        """Yield states of prompts and prefixes read from the start; several may share one.

        Args:
            keys: the prompts and prefixes.
            length: length of the prefixes.
        """
        import torch

        prompts = [prompt for prompt, _ in keys]
        counted, failed = _apart(self._counted(prompts))
        needed = {row: n + max(length, self.max_new_tokens) for row, n in counted.items()}

        def run(rows: list[int]) -> list[State]:
            state = self._prefill([prompts[row] for row in rows])
            if length:
                prefixes = [list(keys[row][1]) for row in rows]
                self._extend(state, torch.tensor(prefixes, device=self._device))
            state.keys = [keys[row] for row in rows]
            for row in rows:
                self._charge(Usage(counted[row] + length, 0), prompts[row].payer)
            return [state] * len(rows)

        for row, outcome in [*failed.items(), *self._in_batches(prompts, needed, run)]:
            yield keys[row], outcome

    # --- answers

    def _answer_ids(self, prompt: Prompt, answer: str) -> list[int]:
        """Return the tokens of an answer as the prompt's continuation."""
        answer = self._scored(answer)
        if not answer:
            return []
        if self._encodes:
            return list(self._tokenizer(text_target=answer, add_special_tokens=False)["input_ids"])
        text = self._text(prompt)
        special = [t for t in self._tokenizer.all_special_tokens if t.strip()]
        apart = text[-1:].isspace() or text.endswith(tuple(special))
        written = answer if apart else f" {answer}"
        tokenize = self._tokenizer
        head = tokenize(text, add_special_tokens=False)["input_ids"]
        both = tokenize(text + written, add_special_tokens=False)["input_ids"]
        if both[: len(head)] == head:
            return list(both[len(head) :])
        # Prompt and answer would merge into one token: tokenize the answer alone.
        return list(tokenize(written, add_special_tokens=False)["input_ids"])


def _apart(outcomes: Iterable[tuple[int, T | Failure]]) -> tuple[dict[int, T], dict[int, Failure]]:
    """Split outcomes into results by row and failures by row."""
    good: dict[int, T] = {}
    failed: dict[int, Failure] = {}
    for row, outcome in outcomes:
        if isinstance(outcome, Failure):
            failed[row] = outcome
        else:
            good[row] = outcome
    return good, failed


def _log_probs(state: State) -> Iterator[tuple[Key, Any]]:
    """Yield each row's key and its next token's log-probabilities, float32 [vocabulary]."""
    return zip(state.keys, state.logits.log_softmax(-1).cpu().numpy(), strict=True)
