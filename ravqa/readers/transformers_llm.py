"""A text-only causal language model through transformers: a folder, a hub name, or a GGUF file.

A GGUF file is dequantised once; the float32 model is kept in the cache folder and loaded from
there afterwards. Prompts of one call mostly begin with the same words (instructions, examples):
this shared beginning is run through the model once, and all prompts reuse its keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ravqa.core.checkpoints import load_tokenizer
from ravqa.core.control_tokens import control_tokens
from ravqa.core.errors import PromptError
from ravqa.readers.base import Abilities, Prompt
from ravqa.readers.chat import ChatConfig, chat_text
from ravqa.readers.gguf import dequantised
from ravqa.readers.loading import Placement
from ravqa.readers.local import LocalReader

_WHY = "the reader transformers-llm"
_MIN_SHARED = 16  # a shorter common beginning is not worth a separate pass


class TransformersLLM(LocalReader):
    """Completes texts, without images."""

    class Config(ChatConfig):
        """Options of chat models, with other defaults; `model` may be a GGUF file."""

        prompt_form: Literal["auto", "plain", "chat"] = "plain"
        stop_at_newline: bool = True

    def __init__(self, config: Config):
        """Load tokenizer and model.

        Raises:
            MissingExtraError: a package is missing.
            UserError: the model cannot be loaded.
        """
        import transformers

        self.config = config
        placement = Placement(config, _WHY)
        path = placement.path
        with placement.loading():
            if path.endswith(".gguf"):
                path = str(dequantised(Path(path), placement.content))
            tokenizer = load_tokenizer(path, trust_remote_code=config.trust_remote_code)
            model = placement.load(transformers.AutoModelForCausalLM, path)
            self._template = config.template(tokenizer.chat_template, _WHY)
            super().__init__(config, placement, model, tokenizer, _WHY)
            self.control_tokens = control_tokens(tokenizer, self._template)
        self._check_template(Prompt("What is it?"), Prompt("Who is it?"))
        self._shared: tuple[tuple[int, ...], Any] = ((), None)
        self._last_ids: list[int] = []
        # A beam search would need the shared beginning once per beam.
        self._shares = self.streams and _keeps_everything(model)
        self._find_opening(Prompt("What is it?"))
        self.fingerprint = placement.fingerprint(
            "transformers-llm/3", thinks=self._may_think, template=self._template
        )
        self._check_model()

    @classmethod
    def declared(cls, config: Config) -> Abilities:
        """Return that it takes no images."""
        return Abilities(supports_images=False)

    def forget(self) -> None:
        """Drop all that was computed with the present weights, because they change."""
        super().forget()
        self._shared = ((), None)

    def _text(self, prompt: Prompt) -> str:
        text = self._neutral(prompt)
        if self._template is not None:
            text = chat_text(self.config, self._tokenizer, self._template, text)
        return self._shown(prompt, text)

    def _ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        if not prompts:
            return []
        plain = self._template is None  # a chat template writes its own special tokens
        texts = [self._text(prompt) for prompt in prompts]
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=plain)["input_ids"]
        if not all(ids):
            raise PromptError(f"{_WHY}: a prompt without tokens")
        self._check_ids(ids)
        return ids

    def _lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(row) for row in self._ids(prompts)]

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Return left-padded inputs, after the shared beginning."""
        import torch

        ids = self._ids(prompts)
        shared = 0
        if self._shares:
            # A single prompt may share its beginning with the previous one, if any.
            before = [self._last_ids] if len(ids) == 1 and self._last_ids else []
            shared = _common_prefix(ids + before) if len(ids) + len(before) > 1 else 0
            self._last_ids = ids[-1]
        width = max(len(row) for row in ids)
        pads = [width - len(row) for row in ids]
        padded = [[self._pad] * n + row for n, row in zip(pads, ids, strict=True)]
        mask = [[0] * n + [1] * len(row) for n, row in zip(pads, ids, strict=True)]
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor(padded, device=self._device),
            "attention_mask": torch.tensor(mask, device=self._device),
        }
        if shared >= _MIN_SHARED:
            inputs["past_key_values"] = self._past(ids[0][:shared], pads)
        return inputs

    def _past(self, prefix: Sequence[int], pads: Sequence[int]) -> Any:
        """Return keys and values of `prefix` for rows that begin with so many padding tokens.

        Each row is cut to the length of `prefix`, its padding included, so that the end of the
        prefix is read again after it. Padding between prefix and rest would be wrong in models that
        count distances by place (ALiBi, local attention). The last prefix's keys and values are
        kept.
        """
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
        past = copy.deepcopy(self._shared[1])  # generation extends the cache it is given
        past.batch_repeat_interleave(len(pads))
        for layer in past.layers:
            for kept in (layer.keys, layer.values):
                for row, pad in zip(kept, pads, strict=True):
                    # What moves from the end to the beginning stands for padding and is masked.
                    row.copy_(row.roll(pad, dims=-2))
        return past


def _keeps_everything(model: Any) -> bool:
    """Return whether keys and values of all earlier tokens are kept, so that they can be moved.

    A sliding window keeps only the last ones; recurrent layers keep a state instead.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _common_prefix(ids: Sequence[Sequence[int]]) -> int:
    """Return the length of the shared beginning; it leaves at least one token of every row."""
    first, last = min(map(list, ids)), max(map(list, ids))  # all others lie between these two
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    shortest = min(len(row) for row in ids)
    return min(shortest - 1, len(first) if shared is None else shared)
