"""FLMR and PreFLMR checkpoints as encoders: question and image together, passages as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ravqa.config import Strict, fingerprint
from ravqa.encoders.base import Vectors
from ravqa.errors import UserError
from ravqa.images import open_image
from ravqa.models import commit_of, first_line, model_fingerprint, resolve
from ravqa.records import Question

INSTRUCTION = "Using the provided image, obtain documents that address the subsequent question"
_WHY = "the encoder flmr"


class FLMREncoder:
    """Late-interaction vectors of a FLMR-family checkpoint (see `ravqa.flmr`).

    Scores are MaxSim sums over all query vectors, as RA-VQA's decision rule takes them.
    """

    class Config(Strict):
        """Options.

        Attributes:
            model: folder or hub name of a FLMR, PreFLMR or PreFLMR-ENCN checkpoint.
            instruction: put before questions that have none of their own; null for none (FLMR).
            doc_maxlen: passages are cut after so many tokens; null for the checkpoint's own limit.
            batch_tokens: padded passage tokens in a batch.
            batch_queries: questions with their images in a batch.
        """

        model: str
        instruction: str | None = INSTRUCTION
        doc_maxlen: int | None = Field(default=None, ge=4)
        batch_tokens: int = Field(default=4096, ge=64)
        batch_queries: int = Field(default=8, ge=1)
        dtype: Literal["float32", "bfloat16", "float16"] = "float32"
        device: str = "auto"

    def __init__(self, config: Config):
        """Load model, tokenizers and image preparation.

        Raises:
            UserError: the checkpoint cannot be loaded.
        """
        import torch

        from ravqa.flmr import FLMRModelForRetrieval, FLMRProcessor

        self.config = config
        path = resolve(config.model, extra="cpu", why=_WHY)
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        lengths = {} if config.doc_maxlen is None else {"doc_maxlen": config.doc_maxlen}
        try:
            self._model: Any = FLMRModelForRetrieval.from_pretrained(
                path, dtype=getattr(torch, config.dtype)
            )
            self._processor = FLMRProcessor.from_pretrained(path, **lengths)
            self._model.to(device).eval()
        except UserError:
            raise
        except Exception as e:  # every library on the way has errors of its own
            raise UserError(f"{_WHY}: {config.model} cannot be loaded: {first_line(e)}") from None
        self._device = device
        self.dim = int(self._model.config.dim)
        self.weights = config.model
        self.truncated = 0  # texts that were cut, so far
        self.fingerprint = fingerprint(
            "flmr/1",
            config.model_dump(exclude={"model", "batch_tokens", "batch_queries", "device"}),
            model_fingerprint(path),
            commit_of(self._model),
        )

    def encode_document(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> list[Vectors]:
        """One array [vectors, dim] per passage; masked positions (punctuation) are left out.

        Batches are of similar length and padded to their longest passage; results come in order.
        """
        import torch

        lengths = [len(text) for text in texts]
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        out: list[Vectors] = [np.empty((0, self.dim), np.float32)] * len(texts)
        start = 0
        while start < len(order):
            # Characters over four approximate tokens: near enough to bound a batch.
            longest = max(1, lengths[order[start]] // 4)
            end = start + 1
            while end < len(order):
                longest = max(1, lengths[order[end]] // 4)
                if (end + 1 - start) * longest > self.config.batch_tokens:
                    break
                end += 1
            rows = order[start:end]
            inputs = self._processor.documents([texts[i] for i in rows])
            self.truncated += sum(inputs.truncated)
            with torch.inference_mode():
                result = self._model.doc(**self._moved(inputs))
            masks = result.context_mask.squeeze(-1).bool()
            for row, vectors, mask in zip(rows, result.late_interaction_output, masks, strict=True):
                out[row] = vectors[mask].float().cpu().numpy()
            if progress:
                progress(len(rows))
            start = end
        return out

    def encode_question(self, questions: Sequence[Question]) -> list[Vectors]:
        """One array [vectors, dim] per question: text, global image vectors, patches.

        Masked positions (the instruction's) are left out. A question without an image is encoded
        from its text alone.

        Raises:
            DataError: an image cannot be decoded.
        """
        import torch

        out: list[Vectors] = []
        for start in range(0, len(questions), self.config.batch_queries):
            batch = questions[start : start + self.config.batch_queries]
            images = None
            if self._model.uses_images and any(q.image is not None for q in batch):
                images = [None if q.image is None else open_image(q.image) for q in batch]
            instructions = [q.instruction or self.config.instruction or "" for q in batch]
            inputs = self._processor([q.question for q in batch], images, instructions)
            self.truncated += sum(inputs.truncated)
            extra = {} if images is not None else {"concat_output_from_vision_encoder": False}
            with torch.inference_mode():
                result = self._model.query(**self._moved(inputs), **extra)
            for vectors in result.late_interaction_output.float().cpu().numpy():
                out.append(vectors[np.any(vectors != 0, axis=1)])
        return out

    def _moved(self, inputs: Any) -> dict[str, Any]:
        import torch

        moved = {}
        for key, value in inputs.items():
            floating = torch.is_tensor(value) and value.is_floating_point()
            moved[key] = (
                value.to(self._device, dtype=self._model.dtype)
                if floating
                else value.to(self._device)
            )
        return moved
