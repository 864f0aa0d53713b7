"""Encoder-decoder models through transformers: the T5 family, RA-VQA v1's reader (Lin and Byrne
2022, arXiv 2210.03809). They read the image as text: captions, tags, OCR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ravqa.core.checkpoints import load_tokenizer
from ravqa.core.control_tokens import control_tokens
from ravqa.readers.base import Abilities, Prompt
from ravqa.readers.loading import LocalConfig, Placement
from ravqa.readers.local import LocalReader

_WHY = "the reader transformers-seq2seq"


class TransformersSeq2Seq(LocalReader):
    """Answers from an encoded prompt, without images."""

    class Config(LocalConfig):
        """Options of every local reader."""

    def __init__(self, config: Config):
        """Load tokenizer and model.

        Raises:
            MissingExtraError: a package is missing.
            UserError: the model cannot be loaded.
        """
        import transformers

        self.config = config
        placement = Placement(config, _WHY)
        with placement.loading():
            tokenizer = load_tokenizer(placement.path, trust_remote_code=config.trust_remote_code)
            model = placement.load(transformers.AutoModelForSeq2SeqLM)
            tokenizer.padding_side = "right"
            super().__init__(config, placement, model, tokenizer, _WHY)
            self.control_tokens = control_tokens(tokenizer, None)
        self.fingerprint = placement.fingerprint("transformers-seq2seq/1")
        self._check_model()

    @classmethod
    def declared(cls, config: Config) -> Abilities:
        """Return that it takes no images."""
        return Abilities(supports_images=False)

    def _text(self, prompt: Prompt) -> str:
        return self._neutral(prompt)

    def _lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        if not prompts:
            return []
        ids = self._tokenizer([self._text(prompt) for prompt in prompts])["input_ids"]
        self._check_ids(ids)
        return [len(row) for row in ids]

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        encoded = self._tokenizer(
            [self._text(prompt) for prompt in prompts], padding=True, return_tensors="pt"
        ).to(self._device)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}
