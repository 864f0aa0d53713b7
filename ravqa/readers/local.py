"""What readers that run a transformers model in this process have in common.

Everything goes through two steps: `_prefill` runs prompts through the model and keeps its keys and
values, and `_extend` runs further tokens behind them. Both leave what is special to a family of
models (how images enter, where the language model is) to the model's own `generate`.

Left padding for decoders: prompts of one batch end at the same place. Encoders are padded on the
right. In float32 batch size does not change answers.
"""

from __future__ import annotations

import functools
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from ravqa.core.errors import PromptError, UserError
from ravqa.core.failures import failure, out_of_memory
from ravqa.readers.base import Ability, Generation, Prompt
from ravqa.readers.loading import (
    LocalConfig,
    Placement,
    input_device,
    model_context,
    stop_ids,
)
from ravqa.readers.streaming import greedy

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Key = tuple[Prompt, tuple[int, ...]]


@dataclass
class State:
    """Rows of prompts (and tokens behind them) that the model has read.

    Attributes:
        past: transformers' cache of keys and values.
        mask: int64 [rows, width], 1 where the prompt has a token; of a decoder, with the tokens
            behind it, else of the encoder.
        logits: float32 [rows, vocabulary] for the token that comes next.
        shifts: int64 [rows, 1], what has to be added to positions, for models whose images take
            fewer positions than tokens.
        encoded: last hidden states of the encoder, if there is one.
        keys: what each row has read.
    """

    past: Any
    mask: Any
    logits: Any
    shifts: Any = None
    encoded: Any = None
    keys: list[Key] = field(default_factory=list)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        import torch

        if list(rows) == list(range(len(self.mask))):
            return
        index = torch.tensor(rows, device=self.mask.device)
        self.past.reorder_cache(index)
        for name in ("mask", "logits", "shifts", "encoded"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.index_select(0, index.to(value.device)))
        if self.keys:
            self.keys = [self.keys[row] for row in rows]


def _alone(method: F) -> F:
    """One thread at a time: tokenizers and kept states cannot be used by two at once."""

    @functools.wraps(method)
    def waiting(self: LocalReader, *args: Any, **kwargs: Any) -> Any:
        with self._in_use:
            return method(self, *args, **kwargs)

    return cast(F, waiting)


class LocalReader(ABC):
    """Base class: a subclass loads model and tokenizer, and says how prompts become inputs.

    Threads may call it at will; they wait for each other. It streams unless it searches with beams.
    """

    abilities: frozenset[Ability] = frozenset({"log_probs", "score", "next_token", "count"})
    deterministic = True
    fingerprint: str  # set by the subclass
    _first_position = 0

    def __init__(
        self, config: LocalConfig, placement: Placement, model: Any, tokenizer: Any, why: str
    ):
        """Take a loaded model.

        Args:
            why: which reader it is, for messages.

        Raises:
            UserError: the model has no end-of-sequence token.
        """
        self._options = config
        self._in_use = threading.RLock()
        self._model = model
        self._tokenizer = tokenizer
        self._why = why
        # Models that only prepare images leave generation to the language model inside them.
        self._decoder = self._language_model(model)
        self._encodes = bool(self._decoder.config.is_encoder_decoder)
        self.max_new_tokens = config.max_new_tokens
        limit, self._strict = model_context(self._decoder.config, tokenizer, config.max_new_tokens)
        self.context = config.context or limit
        self._stops = stop_ids(
            tokenizer,
            self._decoder.generation_config,
            newline=bool(getattr(config, "stop_at_newline", False)),
            why=why,
        )
        self.ends = frozenset(self._stops)
        self._pad = tokenizer.pad_token_id
        if self._pad is None:
            self._pad = self._stops[0]
        self._start = self._first_tokens() if self._encodes else []
        self._set_generation()
        self._device = input_device(model)
        self._shifted = next((m for m in model.modules() if hasattr(m, "rope_deltas")), None)
        taken = inspect.signature(self._decoder.forward).parameters
        self._takes_positions = not self._encodes and "position_ids" in taken
        if "past_key_values" not in taken:  # purely recurrent models (Mamba) keep something else
            self.abilities = self.abilities - {"score", "next_token"}
        elif config.beams == 1:
            self.abilities = self.abilities | {"stream"}
        self._budget = config.batch_tokens
        self._states: list[State] = []
        self._last: dict[Key, Any] = {}  # what the last call gave
        self.weights = placement.weights

    # --- what a subclass says

    def _language_model(self, model: Any) -> Any:
        return model

    @abstractmethod
    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Padded model inputs of a batch."""

    @abstractmethod
    def _lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt."""

    @abstractmethod
    def _text(self, prompt: Prompt) -> str:
        """The text that answers continue."""

    def _kind(self, prompt: Prompt) -> object:
        """Only prompts of one kind share a batch."""
        return None

    def _generator(self, inputs: dict[str, Any]) -> Any:
        """Whose `generate` takes the inputs."""
        return self._model

    def _check_template(self, prompt: Prompt) -> None:
        """Refuse a chat template that fails whatever the prompt is, before a run begins.

        Raises:
            UserError: it fails.
        """
        try:
            self._text(prompt)
        except PromptError as e:
            raise UserError(str(e)) from None

    # --- the reader's calls

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """One generation per prompt, in order, by greedy or beam search.

        Raises:
            PromptError: prompts that are too long for the context or the memory, or that tokenizer,
                processor, template or model cannot take.
        """
        made = dict(self.generate_each(prompts))
        return [made[i] for i in range(len(prompts))]

    def generate_each(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generation]]:
        """Position of a prompt and its generation, batch by batch, the shortest first.

        Raises:
            PromptError: as `generate`, when the others are given.
        """
        failed: dict[int, str] = {}
        lengths = self._counted(prompts, failed)
        needed = {row: n + self.max_new_tokens for row, n in lengths.items()}
        yield from self._in_batches(
            prompts, needed, lambda rows: self._generate([prompts[i] for i in rows]), failed
        )

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Log-probability that a generation is this answer: of its tokens and, behind them, an end.

        The answer continues the prompt, after a space unless the prompt ends with one or with a
        special token. All end tokens are added up. A prompt with several answers is read once a
        batch.

        Raises:
            PromptError: as `generate`.
        """
        made = dict(self.score_each(prompts, answers))
        return [made[i] for i in range(len(prompts))]

    def score_each(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[int, float]]:
        """Position of a prompt and its answer's log-probability, batch by batch.

        Raises:
            PromptError: as `score`, when the others are given.
        """
        self._check_able("score", "score answers")
        failed: dict[int, str] = {}
        tails = dict(
            self._halving(
                list(range(len(prompts))),
                {},
                lambda rows: [self._answer_ids(prompts[i], answers[i]) for i in rows],
                failed,
            )
        )
        unique = list(dict.fromkeys(prompts[row] for row in sorted(tails)))
        uncounted: dict[int, str] = {}
        counted = self._counted(unique, uncounted)
        lengths = {unique[i]: length for i, length in counted.items()}
        rows_of: dict[Prompt, list[int]] = {}
        for row in sorted(tails):
            if prompts[row] in lengths:
                rows_of.setdefault(prompts[row], []).append(row)
            else:
                failed[row] = uncounted[unique.index(prompts[row])]
        # A prompt's rows stand together and have one length: a batch takes them up together.
        order = [row for rows in rows_of.values() for row in rows]
        longest = {p: max(len(tails[row]) for row in rows) for p, rows in rows_of.items()}
        asked = [prompts[row] for row in order]
        needed = {
            place: lengths[prompt] + longest[prompt] + 1 for place, prompt in enumerate(asked)
        }

        def run(places: list[int]) -> list[float]:
            read = list(dict.fromkeys(asked[place] for place in places))
            state = self._prefill(read)
            state.select([read.index(asked[place]) for place in places])
            return self._score(state, [tails[order[place]] for place in places])

        try:
            for place, value in self._in_batches(asked, needed, run):
                yield order[place], value
        except PromptError as e:
            failed |= {order[place]: why for place, why in e.failed.items()}
        _raise(failed)

    @_alone
    def next_token_logprobs(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> Any:
        """Log-probabilities of the token that comes after each prompt and the tokens behind it.

        Keys and values are kept between calls: rows whose prompt was in the last call, with a
        prefix shorter by one token, cost one step; some may be left out, added, or stand twice.

        Args:
            prefixes: per prompt, the tokens generated so far.

        Returns:
            float32 array [prompts, vocabulary], natural logs.

        Raises:
            PromptError: as `generate`.
        """
        import numpy as np

        self._check_able("next_token", "give next-token probabilities")
        keys: list[Key] = [(p, tuple(t)) for p, t in zip(prompts, prefixes, strict=True)]
        unique = list(dict.fromkeys(keys))
        rows = {key: self._last[key] for key in unique if key in self._last}
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
        failed: dict[Key, str] = {}
        for length, new in missing.items():
            for state in self._read(new, length, failed):
                self._states.append(state)
                rows.update(_log_probs(state))
        _raise({row: failed[key] for row, key in enumerate(keys) if key in failed})
        self._last = {key: rows[key] for key in unique}
        return np.stack([rows[key] for key in keys]) if keys else np.empty((0, 0), np.float32)

    @_alone
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, end marks and other special tokens left out."""
        kept = [token for token in tokens if token not in self.ends]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=True)
        return text

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt as the model is given it, its image included.

        Raises:
            PromptError: prompts that tokenizer, processor or template cannot take.
        """
        failed: dict[int, str] = {}
        counted = self._counted(prompts, failed)
        _raise(failed)
        return [counted[row] for row in range(len(prompts))]

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """The greedy generation, word by word."""
        return greedy(self, prompt)

    def _check_able(self, ability: Ability, what: str) -> None:
        if ability not in self.abilities:
            raise UserError(f"{self._why}: {self.weights} cannot {what}")

    # --- batches

    def _counted(self, prompts: Sequence[Prompt], failed: dict[int, str]) -> dict[int, int]:
        """Tokens of prompts by row; why a row cannot be counted goes into `failed`."""
        rows = list(range(len(prompts)))
        return dict(
            self._halving(rows, {}, lambda part: self._lengths([prompts[i] for i in part]), failed)
        )

    def _too_long(self, needed: Mapping[int, int]) -> dict[int, str]:
        """Rows that the context has no room for, and why."""
        if self.context is None or not self._strict:
            return {}
        return {
            row: f"{self._why}: a prompt of {tokens} tokens, those to be written included, is "
            f"longer than the context of {self.context}: read fewer or shorter passages"
            for row, tokens in needed.items()
            if tokens > self.context
        }

    def _in_batches(
        self,
        prompts: Sequence[Prompt],
        needed: Mapping[int, int],
        run: Callable[[list[int]], list[T]],
        failed: Mapping[int, str] | None = None,
    ) -> Iterator[tuple[int, T]]:
        """`run` over batches of rows, neighbours in length together; results by row.

        Args:
            needed: tokens of each row that is to be run.
            failed: rows that failed before, and why.

        Raises:
            PromptError: rows that failed, before or now, when the others are given.
        """
        failed = {**(failed or {}), **self._too_long(needed)}
        kinds: dict[object, list[int]] = {}
        for row in sorted(needed.keys() - failed.keys()):
            kinds.setdefault(self._kind(prompts[row]), []).append(row)
        for rows in kinds.values():
            waiting = sorted(rows, key=needed.__getitem__)
            while waiting:
                size = self._batch_size([needed[row] for row in waiting])
                batch, waiting = waiting[:size], waiting[size:]
                yield from self._halving(batch, needed, run, failed)
        _raise(failed)

    def _batch_size(self, needed: Sequence[int]) -> int:
        """How many rows, sorted by their tokens, make the next batch; at least one."""
        size = 1
        for tokens in needed[1 : self._options.batch_size]:
            if (size + 1) * tokens > self._budget:
                break
            size += 1
        return size

    def _halving(
        self,
        rows: list[int],
        needed: Mapping[int, int],
        run: Callable[[list[int]], list[T]],
        failed: dict[int, str],
    ) -> Iterator[tuple[int, T]]:
        """Results of one batch; one that fails is halved, to find the row that is to blame.

        A row that fails by itself, or does not fit into memory, is put into `failed`.

        Args:
            needed: tokens of each row, as far as they are counted.

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
        # Outside of the handler: the error's frames, which hold tensors, are gone.
        if problem is not None and not isinstance(problem, PromptError):
            raise problem
        longest = max((needed[row] for row in rows if row in needed), default=0)
        if full:
            self._states.clear()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if len(rows) == 1:
            tokens = f" of {longest} tokens" if longest else ""
            failed[rows[0]] = (
                str(problem)
                if problem is not None
                else (
                    f"{self._why}: a prompt{tokens} does not fit into the memory of "
                    f"{self._device}: set device_map, dtype or quantization of the reader"
                )
            )
            return
        half = len(rows) // 2
        if full and longest:
            self._budget = min(self._budget, longest * half)  # further batches begin smaller
        for part in (rows[:half], rows[half:]):
            yield from self._halving(part, needed, run, failed)

    # --- the model

    def _set_generation(self) -> None:
        """Plain greedy or beam search, whatever the checkpoint's own settings are.

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
        """What the decoder begins with: its start token, and a forced one (BART, Florence-2)."""
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
        if len(self._start) > 1:
            rows = len(inputs["attention_mask"])
            inputs["decoder_input_ids"] = torch.tensor([self._start] * rows, device=self._device)
        with torch.inference_mode():
            return self._generator(inputs).generate(**inputs, **options)

    def _generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        result = self._run(self._inputs(prompts))
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
        out = []
        for row, written in enumerate(tokens.tolist()):
            length = next((i + 1 for i, t in enumerate(written) if t in self.ends), steps)
            log_prob = float(sum(values[step][row] for step in range(length)))
            out.append(Generation(self.decode(written[:length]), log_prob, length))
        return out

    def _prefill(self, prompts: Sequence[Prompt]) -> State:
        """Prompts through the model, by the model's own `generate`: one token, thrown away."""
        inputs = self._inputs(prompts)
        result = self._run(
            inputs, max_new_tokens=1, num_beams=1, output_hidden_states=self._encodes
        )
        shifts = getattr(self._shifted, "rope_deltas", None)
        return State(
            past=result.past_key_values,
            mask=inputs["attention_mask"],
            logits=result.logits[0],
            shifts=None if shifts is None else shifts.reshape(len(prompts), 1),
            encoded=result.encoder_hidden_states[-1] if self._encodes else None,
        )

    def _extend(self, state: State, tokens: Any) -> Any:
        """Tokens behind the rows of a state, which takes them up.

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
                positions = state.mask.cumsum(-1)[:, -tokens.shape[1] :] - 1 + self._first_position
                inputs["position_ids"] = positions + (0 if state.shifts is None else state.shifts)
        inputs["attention_mask"] = state.mask
        with torch.inference_mode():
            logits = self._decoder(**inputs).logits.float()
        state.logits = logits[:, -1]
        return logits

    def _score(self, state: State, tails: Sequence[list[int]]) -> list[float]:
        """Log-probabilities of a tail and an end behind each row of a state; uses it up."""
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
        """Step those rows that `keys` continue by a token; others are given up.

        Returns:
            Whether the state is of further use.
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
            return False  # they are read again from the beginning, in smaller batches
        state.keys = grown
        return True

    def _read(self, keys: Sequence[Key], length: int, failed: dict[Key, str]) -> list[State]:
        """States of prompts and prefixes that are read from the beginning.

        Why one cannot be read goes into `failed`.
        """
        import torch

        prompts = [prompt for prompt, _ in keys]
        rejected: dict[int, str] = {}
        counted = self._counted(prompts, rejected)
        needed = {row: n + max(length, self.max_new_tokens) for row, n in counted.items()}

        def run(rows: list[int]) -> list[State]:
            state = self._prefill([prompts[row] for row in rows])
            if length:
                prefixes = [list(keys[row][1]) for row in rows]
                self._extend(state, torch.tensor(prefixes, device=self._device))
            state.keys = [keys[row] for row in rows]
            return [state] * len(rows)

        states: dict[int, State] = {}
        try:
            for _, state in self._in_batches(prompts, needed, run, rejected):
                states[id(state)] = state
        except PromptError as e:
            failed |= {keys[row]: why for row, why in e.failed.items()}
        return list(states.values())

    # --- answers

    def _answer_ids(self, prompt: Prompt, answer: str) -> list[int]:
        """Tokens of an answer as the prompt's continuation."""
        answer = answer.strip()
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
        # The two would melt into one token: the answer is cut by itself.
        return list(tokenize(written, add_special_tokens=False)["input_ids"])


def _raise(failed: Mapping[int, str]) -> None:
    """Raise PromptError if any row failed."""
    if failed:
        raise PromptError(failed[min(failed)], failed)


def _log_probs(state: State) -> Iterator[tuple[Key, Any]]:
    """Each row's key and the log-probabilities of its next token, float32 [vocabulary]."""
    return zip(state.keys, state.logits.log_softmax(-1).cpu().numpy(), strict=True)
