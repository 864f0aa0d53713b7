"""Inputs of the FLMR family's models, from questions and passages; what is frozen is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ravqa.core.errors import DataError, UserError, first_line
from ravqa.core.records import Passage, Question
from ravqa.core.settings import fingerprint
from ravqa.encoders.features import FeatureCache, Features, tower_fingerprint
from ravqa.flmr import ImageFeatures
from ravqa.images.decode import open_image
from ravqa.training.example_file import FEATURES, StoredFeatures

Side = Literal["query", "context"]
CacheImages = Literal["none", "float32", "float16"]
_TOWER_BATCH = 8  # images


class Inputs:
    """Prepares what `query` and `doc` of one model receive, on its device.

    The features that a frozen vision tower makes of images may be kept in the cache folder.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        image_only: bool = False,
        cache_images: CacheImages = "none",
    ):
        """Prepare inputs for a model.

        Args:
            processor: the checkpoint's own (`FLMRProcessor`).
            image_only: leave the text's vectors out of queries.
            cache_images: type of the features that are kept, if any.
        """
        self._model = model
        self._processor = processor
        self._image_only = image_only
        self._cached = cache_images
        self._stored: dict[Path, np.ndarray] = {}

    def queries(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Return keyword arguments of `query`.

        Raises:
            DataError: an image or its features cannot be read; a query without text has none.
        """
        asked = [q.instruction or "" for q in questions]
        text = self._processor([q.question for q in questions], None, asked)
        used = self._model.config.query_concat_output_from_vision_encoder
        inputs = {**text.to(self._model.device), **self._images(questions, "query", used)}
        if self._image_only:
            for question in questions:
                if question.image is None and FEATURES not in question.extra:
                    raise DataError(
                        f"question {question.question_id}: it has no image, and image_only_queries "
                        "leaves its text out"
                    )
            inputs["concat_output_from_text_encoder"] = False
        return inputs

    def documents(self, passages: Sequence[Passage]) -> dict[str, Any]:
        """Return keyword arguments of `doc`.

        Raises:
            DataError: an image or its features cannot be read.
        """
        text = self._processor.documents([p.content for p in passages])
        used = self._model.config.context_concat_output_from_vision_encoder
        return {**text.to(self._model.device), **self._images(passages, "context", used)}

    # -- images ------------------------------------------------------------------------------

    def _images(
        self, records: Sequence[Question | Passage], side: Side, used: bool
    ) -> dict[str, Any]:
        if not used:
            return {}
        stored = [record.extra.get(FEATURES) for record in records]
        present = [
            record.image is not None or features is not None
            for record, features in zip(records, stored, strict=True)
        ]
        if not any(present):
            return {"concat_output_from_vision_encoder": False}
        flags = {} if all(present) else {"concat_output_from_vision_encoder": torch.tensor(present)}
        images = [record.image for record in records]
        tower = getattr(self._model, f"{side}_vision_encoder", None)
        if tower is not None and any(p.requires_grad for p in tower.parameters()):
            if any(isinstance(features, StoredFeatures) for features in stored):
                raise UserError(
                    "stored features of images, but the vision encoder is trained: add "
                    "vision_encoder to freeze"
                )
            return {"pixel_values": self._pixels(images), **flags}
        found = self._features(images, stored, side, tower)
        first = next(f for f in found if f is not None)
        pooled, patches = (
            torch.stack([torch.zeros_like(first[i]) if f is None else f[i] for f in found])
            for i in (0, 1)
        )
        place = {"device": self._model.device, "dtype": self._model.dtype}
        return {"image_features": ImageFeatures(pooled.to(**place), patches.to(**place)), **flags}

    def _pixels(self, images: Sequence[Path | bytes | None]) -> Tensor:
        prepare = self._processor.image_processor
        seen = iter(prepare([open_image(image) for image in images if image is not None]))
        empty = torch.zeros((3, *prepare.size))
        rows = [empty if image is None else next(seen) for image in images]
        pixels: Tensor = torch.stack(rows).to(self._model.device, dtype=self._model.dtype)
        return pixels

    def _features(
        self,
        images: Sequence[Path | bytes | None],
        stored: Sequence[StoredFeatures | None],
        side: Side,
        tower: Any,
    ) -> list[Features | None]:
        wanted = list(dict.fromkeys(image for image in images if image is not None))
        seen = self._seen(wanted, side, tower) if wanted else {}
        return [
            seen[image] if image is not None else None if row is None else self._row(row)
            for image, row in zip(images, stored, strict=True)
        ]

    def _seen(
        self, images: Sequence[Path | bytes], side: Side, tower: Any
    ) -> dict[Path | bytes, Features]:
        """Return the frozen tower's features of images, from the cache if it has them."""
        if tower is None or self._processor.image_processor is None:
            raise UserError(
                "the examples have images and the model no vision encoder: give it stored features"
            )
        cache = self._cache(side)
        found = {} if cache is None else cache.get(images)
        new = [image for image in images if image not in found]
        training = tower.training
        tower.eval()
        for start in range(0, len(new), _TOWER_BATCH):
            batch = new[start : start + _TOWER_BATCH]
            with torch.no_grad(), torch.autocast(self._model.device.type, enabled=False):
                made = tower.features(self._pixels(batch))
            pairs = zip(made.pooled.float().cpu(), made.patches.float().cpu(), strict=True)
            fresh: dict[Path | bytes, Features] = dict(zip(batch, pairs, strict=True))
            if cache is not None:
                cache.put(fresh)
                fresh = cache.get(batch)  # rounded, as they will be found again
            found |= fresh
        tower.train(training)
        return found

    def _cache(self, side: Side) -> FeatureCache | None:
        if self._cached == "none":
            return None
        separate = self._model.config.separate_query_and_context_vision_encoder
        return self._caches["query" if separate and side == "query" else "context"]

    @cached_property
    def _caches(self) -> dict[str, FeatureCache]:
        values = self._processor.image_processor.values()
        caches = {}
        for side in ("query", "context"):
            tower = tower_fingerprint(getattr(self._model, f"{side}_vision_encoder"))
            name = fingerprint(tower, values, "none")  # without mixed precision, as the encoder's
            assert self._cached != "none"
            caches[side] = FeatureCache(name, self._cached)
        return caches

    def _row(self, place: StoredFeatures) -> Features:
        array = self._array(place.file)
        width = self._model.config.vision_config.hidden_size
        if place.row >= len(array):
            raise DataError(f"{place.file}: there is no row {place.row}: it has {len(array)}")
        if array.ndim not in (2, 3) or array.shape[-1] != width:
            raise DataError(
                f"{place.file}: an array [rows, {width}] or [rows, 1 + patches, {width}] is "
                f"expected, not {list(array.shape)}"
            )
        row = torch.from_numpy(np.array(array[place.row], np.float32)).reshape(-1, width)
        return row[0], row[1:]

    def _array(self, file: Path) -> np.ndarray:
        if file not in self._stored:
            try:
                with file.open("rb") as source:
                    loaded = np.load(source, allow_pickle=False)
                    if not isinstance(loaded, np.ndarray):
                        [name] = loaded.files
                        loaded = loaded[name]
            except Exception as e:  # numpy and zipfile fail in many ways on other files
                raise DataError(
                    f"{file}: a .npy file, or a .npz file with one array, is expected "
                    f"({first_line(e)})"
                ) from None
            self._stored[file] = loaded
        return self._stored[file]


def keep_text_states(model: Any, mib: int) -> None:
    """Keep the states of frozen text encoders in memory: each text is encoded once.

    A text is encoded alone, so that its states do not depend on the others of its batch.

    Args:
        mib: size of what is kept per encoder; what does not fit is encoded each time.
    """
    both = [getattr(model, f"{side}_text_encoder") for side in ("query", "context")]
    frozen = [e for e in both if not any(p.requires_grad for p in e.parameters())]
    if model.padding_counts:  # documents then need the states of padding too
        return
    for encoder in {id(e): e for e in frozen}.values():  # both may be the same
        memory = _TextStates(encoder, mib * 2**20)
        encoder.forward = MethodType(memory.forward, encoder)


class _TextStates:
    """The states of a frozen text encoder by its input ids and mask."""

    def __init__(self, encoder: Any, size: int):
        self._plain = encoder.forward
        self._left = size
        self._states: dict[bytes, Tensor] = {}

    def forward(
        self, encoder: Any, input_ids: Tensor, attention_mask: Tensor, **options: Any
    ) -> Any:
        if any(options.values()):  # attentions or all hidden states are wanted
            return self._plain(input_ids, attention_mask, **options)
        from transformers.modeling_outputs import BaseModelOutput

        rows = list(self._rows(encoder, input_ids, attention_mask))
        states = rows[0].new_zeros(len(rows), input_ids.shape[1], rows[0].shape[-1])
        for i, row in enumerate(rows):
            states[i, : len(row)] = row
        return BaseModelOutput(last_hidden_state=states)

    def _rows(self, encoder: Any, input_ids: Tensor, attention_mask: Tensor) -> Iterator[Tensor]:
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            length = int((ids != 0).nonzero().max()) + 1  # without the padding of documents
            ids, mask = ids[:length], mask[:length]
            key = ids.cpu().numpy().tobytes() + mask.cpu().numpy().tobytes()
            states = self._states.get(key)
            if states is None:
                with torch.no_grad():
                    states = self._plain(ids[None], mask[None]).last_hidden_state[0]
                size = states.numel() * states.element_size()
                if size <= self._left:
                    self._left -= size
                    self._states[key] = states
            yield states
