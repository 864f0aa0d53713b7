"""A text-only causal language model through transformers: a folder, a hub name, or a GGUF file.

A GGUF file is dequantised once; the float32 model is kept in the cache folder and loaded from
there afterwards. Prompts of one call mostly begin with the same words (instructions, examples):
this shared beginning is run through the model once, and all prompts reuse its keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ravqa.core.checkpoints import load_tokenizer
from ravqa.core.control_tokens import control_tokens
from ravqa.core.errors import PromptError
from ravqa.readers.base import Abilities, Prompt
from ravqa.readers.beginnings import keeps_everything
from ravqa.readers.chat import ChatConfig, chat_text
from ravqa.readers.gguf import dequantised
from ravqa.readers.loading import Placement
from ravqa.readers.local import LocalReader

_WHY = "the reader transformers-llm"


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
        # A beam search would need the shared beginning once per beam.
        self._shares = self.streams and keeps_everything(model.config)
        self._find_opening(Prompt("What is it?"))
        self.fingerprint = placement.fingerprint(
            "transformers-llm/3", thinks=self._may_think, template=self._template
        )
        self._check_model()

    @classmethod
    def declared(cls, config: Config) -> Abilities:
        """Return that it takes no images."""
        return Abilities(supports_images=False)

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
        """Return left-padded inputs."""
        import torch

        ids = self._ids(prompts)
        width = max(len(row) for row in ids)
        pads = [width - len(row) for row in ids]
        padded = [[self._pad] * n + row for n, row in zip(pads, ids, strict=True)]
        mask = [[0] * n + [1] * len(row) for n, row in zip(pads, ids, strict=True)]
        return {
            "input_ids": torch.tensor(padded, device=self._device),
            "attention_mask": torch.tensor(mask, device=self._device),
        }
