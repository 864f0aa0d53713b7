"""A text-only causal language model through transformers: a folder, a hub name, or a GGUF file.

A GGUF file is dequantised once; the float32 model is kept in the cache folder and loaded from
there afterwards. Prompts of one call mostly begin with the same words (instructions, examples):
what they share is run through the model once, and its keys and values serve all of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ravqa.config import Strict, fingerprint
from ravqa.errors import UserError, import_extra
from ravqa.models import commit_of, first_line, model_fingerprint, resolve
from ravqa.paths import cache_dir
from ravqa.readers.base import Ability, Generation, Prompt

_WHY = "the reader transformers-llm"
_MIN_SHARED = 16  # a shorter common beginning is not worth a pass of its own


class TransformersLLM:
    """Greedy generation in batches; batch size does not change answers (float32, left padding)."""

    abilities: frozenset[Ability] = frozenset({"log_probs", "score"})

    class Config(Strict):
        """Options.

        Attributes:
            model: folder, hub name, GGUF file, or "package:MODULE/path".
            prompt_form: "plain" completes the text; "chat" puts it into the model's chat template.
            max_new_tokens: longest generation.
            stop_at_newline: a line break ends the answer.
            batch_size: prompts at a time.
            dtype: weights and computation.
        """

        model: str
        prompt_form: Literal["plain", "chat"] = "plain"
        max_new_tokens: int = Field(default=12, ge=1)
        stop_at_newline: bool = True
        batch_size: int = Field(default=16, ge=1)
        dtype: Literal["float32", "bfloat16", "float16"] = "float32"
        device: str = "auto"

    def __init__(self, config: Config):
        """Load tokenizer and model.

        Raises:
            MissingExtraError: a package is missing.
            UserError: the model cannot be loaded.
        """
        import torch
        import transformers

        self.config = config
        self.weights = config.model
        path = resolve(config.model, extra="sample", why=_WHY)
        content = model_fingerprint(path)
        self._device = _device(config.device)
        try:
            if path.endswith(".gguf"):
                path = str(_dequantised(Path(path), content))
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
            self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=getattr(torch, config.dtype)
            )
            self._model.to(self._device).eval()
        except UserError:
            raise
        except Exception as e:  # every library on the way has errors of its own
            raise UserError(f"{_WHY}: {config.model} cannot be loaded: {first_line(e)}") from None
        if config.prompt_form == "chat" and not self._tokenizer.chat_template:
            raise UserError(
                f"{_WHY}: {config.model} has no chat template: set prompt_form to plain"
            )
        self._stops = _stop_ids(self._tokenizer, self._model, config.stop_at_newline)
        self._pad = self._tokenizer.pad_token_id
        if self._pad is None:
            self._pad = self._stops[0]
        self._shared: tuple[tuple[int, ...], Any] = ((), None)
        self.fingerprint = fingerprint(
            "transformers-llm/1",
            config.model_dump(exclude={"model", "batch_size", "device"}),
            content,
            commit_of(path),
        )

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """One greedy generation per prompt, in order."""
        ids = [self._ids(prompt) for prompt in prompts]
        out: list[Generation | None] = [None] * len(ids)
        for rows in self._batches(ids):
            batch = self._generate([ids[i] for i in rows])
            for i, generation in zip(rows, batch, strict=True):
                out[i] = generation
        return [generation for generation in out if generation is not None]

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Sum of the log-probabilities of each answer's tokens and of the end after its prompt.

        The answer is written as the prompt's continuation, after a space in the plain form. With
        `stop_at_newline` the end mark is a line break, else the end-of-sequence token.
        """
        space = " " if self.config.prompt_form == "plain" else ""
        heads = [self._ids(prompt) for prompt in prompts]
        tails = [
            [
                *self._tokenizer(space + a.strip(), add_special_tokens=False)["input_ids"],
                self._stops[-1],
            ]
            for a in answers
        ]
        out = [0.0] * len(heads)
        joined = [head + tail for head, tail in zip(heads, tails, strict=True)]
        for rows in self._batches(joined):
            scores = self._score([joined[i] for i in rows], [len(tails[i]) for i in rows])
            for i, value in zip(rows, scores, strict=True):
                out[i] = value
        return out

    def _ids(self, prompt: Prompt) -> list[int]:
        if self.config.prompt_form == "chat":
            messages = [{"role": "user", "content": prompt.text}]
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self._tokenizer(prompt.text)["input_ids"]
        if not ids:
            raise ValueError("an empty prompt")
        return list(ids)

    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        # Neighbours in length share a batch: little padding.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        size = self.config.batch_size
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _inputs(self, ids: Sequence[list[int]]) -> tuple[dict[str, Any], int]:
        """Model inputs, left-padded behind the shared beginning, and their padded length."""
        import torch

        shared = _common_prefix(ids)
        past = self._past(ids[0][:shared], len(ids)) if shared >= _MIN_SHARED else None
        shared = shared if past is not None else 0
        width = max(len(row) for row in ids)
        padded = [row[:shared] + [self._pad] * (width - len(row)) + row[shared:] for row in ids]
        mask = [[1] * shared + [0] * (width - len(row)) + [1] * (len(row) - shared) for row in ids]
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor(padded, device=self._device),
            "attention_mask": torch.tensor(mask, device=self._device),
        }
        if past is not None:
            inputs["past_key_values"] = past
        return inputs, width

    def _past(self, prefix: Sequence[int], rows: int) -> Any:
        """Keys and values of `prefix`, repeated for `rows`; the last prefix's are kept."""
        import torch
        from transformers import DynamicCache

        if self._shared[0] != tuple(prefix):
            cache = DynamicCache(config=self._model.config)
            with torch.inference_mode():
                self._model(
                    torch.tensor([list(prefix)], device=self._device),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            self._shared = (tuple(prefix), cache)
        import copy

        past = copy.deepcopy(self._shared[1])  # generation extends the cache it is given
        past.batch_repeat_interleave(rows)
        return past

    def _generate(self, ids: Sequence[list[int]]) -> list[Generation]:
        import torch

        inputs, width = self._inputs(ids)
        with torch.inference_mode():
            result = self._model.generate(
                **inputs,
                max_new_tokens=self.config.max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=self._stops,
                pad_token_id=self._pad,
                return_dict_in_generate=True,
                output_scores=True,
            )
        log_probs = self._model.compute_transition_scores(
            result.sequences, result.scores, normalize_logits=True
        )
        generations = []
        for tokens, values in zip(
            result.sequences[:, width:].tolist(), log_probs.tolist(), strict=True
        ):
            length = next((i + 1 for i, t in enumerate(tokens) if t in self._stops), len(tokens))
            kept = [t for t in tokens[:length] if t not in self._stops]
            generations.append(
                Generation(
                    text=self._tokenizer.decode(kept, skip_special_tokens=True),
                    log_prob=float(sum(values[:length])),
                    tokens=length,
                )
            )
        return generations

    def _score(self, ids: Sequence[list[int]], lengths: Sequence[int]) -> list[float]:
        import torch

        keep = max(lengths) + 1
        width = max(len(row) for row in ids)
        padded = torch.tensor(
            [[self._pad] * (width - len(row)) + row for row in ids], device=self._device
        )
        mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in ids], device=self._device
        )
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = self._model(
                input_ids=padded, attention_mask=mask, position_ids=positions, logits_to_keep=keep
            ).logits.float()
        log_probs = logits[:, :-1].log_softmax(-1)
        targets = padded[:, -log_probs.shape[1] :]
        values = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return [float(row[-n:].sum()) for row, n in zip(values, lengths, strict=True)]


def _common_prefix(ids: Sequence[Sequence[int]]) -> int:
    """Length of the shared beginning; at least one token of every row stays outside it."""
    first, last = min(map(list, ids)), max(map(list, ids))  # all others lie between these two
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    shortest = min(len(row) for row in ids)
    return min(shortest - 1, len(first) if shared is None else shared)


def _stop_ids(tokenizer: Any, model: Any, newline: bool) -> list[int]:
    stops = model.generation_config.eos_token_id
    stops = [tokenizer.eos_token_id] if stops is None else stops
    stops = [stops] if isinstance(stops, int) else [s for s in stops if s is not None]
    if newline:
        ids = tokenizer("\n", add_special_tokens=False)["input_ids"]
        if ids:
            stops = [*stops, ids[-1]]
    if not stops:
        raise UserError(f"{_WHY}: the model has no end-of-sequence token")
    return list(stops)


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dequantised(gguf: Path, content: str) -> Path:
    """Folder with the float32 model of a GGUF file, made once.

    Raises:
        MissingExtraError: the package gguf is not installed.
    """
    folder = cache_dir("gguf") / content
    if (folder / "config.json").is_file():
        return folder
    import_extra("gguf", "sample", why="reading a GGUF file")
    import torch
    import transformers

    work = Path(tempfile.mkdtemp(prefix=content, dir=folder.parent))
    try:
        args: dict[str, Any] = {"gguf_file": gguf.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), **args)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), dtype=torch.float32, **args
        )
        # transformers marks the model as quantised and will not save it: move the weights to
        # a plain model of the same configuration.
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict())
        plain.generation_config = loaded.generation_config
        plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
        with contextlib.suppress(OSError):  # another process may have been quicker
            os.rename(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder
