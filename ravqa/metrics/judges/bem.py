"""BEM (BERT matching): a BERT classifier of answer equivalence, as E-VQA's official score uses it.

Paper: Bulian et al. 2022, arXiv 2202.07654. The official weights are a TensorFlow Hub model
(google/answer_equivalence/bem/1). This module reads checkpoints in transformers' format: a
conversion of them, or the reproduction kortukov/answer-equivalence-bem. The input is that of
google-research/encyclopedic_vqa:

    [CLS] candidate [SEP] reference [SEP] question [SEP]

The probability is the softmax of the two logits at label 1. The official input numbers the three
segments 0, 1, 2. A checkpoint with only two type embeddings is given 0, 1, 1, as the reproduction
was trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from ravqa.core.checkpoints import WeightsError, load_config, load_model, load_tokenizer, loading
from ravqa.core.control_tokens import control_tokens
from ravqa.core.devices import own_device
from ravqa.core.errors import UserError
from ravqa.core.failures import not_a_number
from ravqa.core.model_files import commit_of, model_fingerprint, resolve
from ravqa.core.outcomes import Failure
from ravqa.core.settings import ModelName, Strict, Text, fingerprint
from ravqa.metrics.judges.base import Judge

_WHY = "the judge bem"
_BROKEN = not_a_number(_WHY, "a probability", "float32")


class BEMJudge(Judge):
    """Judges triples in batches of similar length; batch size does not change judgements."""

    class Config(Strict):
        """Options.

        Attributes:
            model: folder or hub name of a BERT with two labels, 1 for "equivalent".
            batch_size: triples per batch.
            device: "auto" for an accelerator, if any.
        """

        model: ModelName
        batch_size: int = Field(default=32, ge=1)
        device: Text = "auto"

    config: Config

    def __init__(self, config: Config):
        """Load tokenizer and model.

        Raises:
            UserError: the model cannot be loaded, or is not a classifier with two labels.
        """
        import torch
        import transformers

        self.config = config
        self.name = f"bem ({config.model})"
        path = resolve(config.model, extra="sample", why=_WHY)
        self._device = torch.device(own_device(config.device, _WHY))
        untrained = UserError(
            f"{_WHY}: {config.model} is not a trained BERT classifier with two labels "
            "(not equivalent, equivalent)"
        )
        with loading(_WHY, config.model, path):
            found = load_config(path, trust_remote_code=False)
            if found.model_type != "bert" or found.num_labels != 2:
                raise untrained
            self._tokenizer: Any = load_tokenizer(path, trust_remote_code=False)
            try:
                self._model: Any = load_model(
                    transformers.AutoModelForSequenceClassification,
                    path,
                    trust_remote_code=False,
                    dtype=torch.float32,
                )
            except WeightsError as e:
                if {"classifier.weight", "classifier.bias"} <= e.missing:
                    raise untrained from None
                raise
            self._model.to(self._device).eval()
        self._control_tokens = control_tokens(self._tokenizer, None)
        self._three_segments = found.type_vocab_size > 2
        self.fingerprint = fingerprint("bem/1", model_fingerprint(path), commit_of(path))

    def judge(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> list[float | Failure]:
        """Return one probability per triple, in order.

        An input with more tokens than the model has positions is cut at the end of its longest
        text; the official code fails on it.
        """
        import torch

        rows = [self._input(parts) for parts in zip(candidates, references, questions, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        out: list[float | Failure] = [0.0] * len(rows)
        for start in range(0, len(order), self.config.batch_size):
            part = order[start : start + self.config.batch_size]
            batch = self._tokenizer.pad(
                {
                    "input_ids": [rows[i][0] for i in part],
                    "token_type_ids": [rows[i][1] for i in part],
                },
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = self._model(**batch.to(self._device)).logits.float()
            for i, probability in zip(part, logits.softmax(-1)[:, 1].tolist(), strict=True):
                out[i] = _BROKEN if math.isnan(probability) else probability
        return out

    def _input(self, parts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the token ids and segment ids of one triple."""
        plain = [self._control_tokens.neutral(text)[0] for text in parts]
        texts = [self._tokenizer.encode(text, add_special_tokens=False) for text in plain]
        room = self._model.config.max_position_embeddings - len(texts) - 1
        while sum(map(len, texts)) > room:
            max(texts, key=len).pop()
        ids, segments = [self._tokenizer.cls_token_id], [0]
        for number, text in enumerate(texts):
            segment = number if self._three_segments else min(number, 1)
            ids += [*text, self._tokenizer.sep_token_id]
            segments += [segment] * (len(text) + 1)
        return ids, segments
