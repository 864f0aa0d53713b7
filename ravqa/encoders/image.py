"""Images as single vectors: what an image search of passages or articles compares.

Three kinds of model, told apart by their files: the bundled EfficientNet-Lite0 (its pooled
features), models of sentence-transformers that take images (CLIP, SigLIP, multimodal embedding
models), and vision towers of transformers (CLIP's and SigLIP's projected image features, else the
pooled output; the mean of the last states where a tower has no pooler). Vectors have unit length.

Texts have no vector: a passage without an image is never found, and a question without one finds
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import Field

from ravqa.core.checkpoints import (
    load_config,
    load_image_processor,
    load_model,
    load_sentence_transformer,
    loading,
)
from ravqa.core.devices import own_device
from ravqa.core.errors import UserError, import_extra
from ravqa.core.model_files import commit_of, model_fingerprint, resolve
from ravqa.core.records import Passage, Question
from ravqa.core.settings import ModelName, RunsCode, Strict, Text, fingerprint
from ravqa.encoders.base import Encoded, Encoder, Output, Span, Vectors
from ravqa.encoders.features import FeatureCache
from ravqa.images import efficientnet
from ravqa.images.decode import open_for_library

if TYPE_CHECKING:
    import torch

_WHY = "the encoder image"
_EXTRA = "sentence-transformers"


class _Tower(Protocol):
    """A model of images."""

    dim: int
    fingerprint: str

    def vectors(self, images: Sequence[Path | bytes]) -> torch.Tensor:
        """Return one vector per image, float32 [images, dim], on the CPU."""
        ...


class ImageEncoder(Encoder):
    """One vector per image, from passages' images and questions' photos; texts have none."""

    class Config(Strict):
        """Options.

        Attributes:
            model: "efficientnet-lite0" for the bundled one, or folder, hub name, or
                "package:MODULE/path" of a model of sentence-transformers or transformers.
            batch_size: images in a batch.
            cache: keep vectors in the cache folder, by the content of the images.
            output: type of the returned vectors.
            device: "auto" for an accelerator if available.
            trust_remote_code: run code that the model's files name.
        """

        model: ModelName = efficientnet.NAME
        batch_size: int = Field(default=16, ge=1)
        cache: bool = True
        output: Output = "float32"
        device: Text = "auto"
        trust_remote_code: RunsCode = False

        def packages(self) -> Sequence[tuple[str, str]]:
            """Return the packages of the bundled model, if it is configured."""
            bundled = self.model == efficientnet.NAME
            return [(name, "sample") for name in efficientnet.PACKAGES] if bundled else []

        def models(self) -> Sequence[str]:
            """Return the model, unless it is the bundled one."""
            return [] if self.model == efficientnet.NAME else [self.model]

    config: Config

    def __init__(self, config: Config | None = None):
        """Load the model.

        Raises:
            MissingExtraError: a package that it needs is not installed.
            UserError: it cannot be loaded, or takes no images.
        """
        super().__init__(config)
        self._tower = _tower(self.config)
        self.dim = self._tower.dim
        bundled = self.config.model == efficientnet.NAME
        self.weights = efficientnet.WEIGHTS if bundled else self.config.model
        self.fingerprint = fingerprint("image/1", self._tower.fingerprint, self.config.output)
        self._cache = FeatureCache(self.fingerprint, "float32") if self.config.cache else None

    @property
    def supports_images(self) -> bool:
        """True: it sees nothing but images."""
        return True

    @property
    def supports_passage_images(self) -> bool:
        """True: a passage's vector is that of its image."""
        return True

    def encode_document(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return an array without vectors for each text."""
        if progress:
            progress(len(texts))
        return Encoded([self._nothing()] * len(texts))

    def encode_query(self, queries: Sequence[Sequence[Span]]) -> Encoded:
        """Return an array without vectors for each query."""
        return Encoded([self._nothing()] * len(queries))

    def encode_question(self, questions: Sequence[Question]) -> Encoded:
        """Return [1, dim] for each question with a photo, [0, dim] for others.

        Raises:
            DataError: an image cannot be decoded.
        """
        return self._encode([question.image for question in questions], None)

    def encode_passages(
        self, passages: Sequence[Passage], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return [1, dim] for each passage with an image, [0, dim] for others.

        Raises:
            DataError: an image cannot be decoded.
        """
        return self._encode([passage.image for passage in passages], progress)

    def _nothing(self) -> Vectors:
        return np.zeros((0, self.dim), self.config.output)

    def _encode(
        self,
        images: Sequence[Path | bytes | None],
        progress: Callable[[int], object] | None,
    ) -> Encoded:
        out: list[Vectors] = [self._nothing()] * len(images)
        step = self.config.batch_size
        for start in range(0, len(images), step):
            part = images[start : start + step]
            found = self._vectors(list(dict.fromkeys(image for image in part if image is not None)))
            for i, image in enumerate(part, start):
                if image is not None:
                    out[i] = found[image]
            if progress:
                progress(len(part))
        return Encoded(out)

    def _vectors(self, images: Sequence[Path | bytes]) -> dict[Path | bytes, Vectors]:
        """Return [1, dim] of unit length for each image, from the cache if possible."""
        import torch

        known = self._cache.get(images) if self._cache else {}
        new = [image for image in images if image not in known]
        if new:
            made = torch.nn.functional.normalize(self._tower.vectors(new), dim=1)
            fresh = {image: (row, row[:0]) for image, row in zip(new, made, strict=True)}
            if self._cache:
                self._cache.put(fresh)
            known |= fresh
        return {
            image: vector.numpy()[None].astype(self.config.output)
            for image, (vector, _) in known.items()
        }


def _tower(config: ImageEncoder.Config) -> _Tower:
    if config.model == efficientnet.NAME:
        return _EfficientNet()
    path = resolve(config.model, extra="sample", why=_WHY)
    if Path(path, "modules.json").is_file():
        return _SentenceTransformer(config, path)
    return _Transformer(config, path)


class _EfficientNet:
    """The pooled features of EfficientNet-Lite0."""

    dim = efficientnet.WIDTH

    def __init__(self) -> None:
        self._model = efficientnet.EfficientNetLite0(_WHY)
        self.fingerprint = fingerprint(efficientnet.NAME, self._model.fingerprint)

    def vectors(self, images: Sequence[Path | bytes]) -> torch.Tensor:
        return efficientnet.pooled(self._model.feature_maps(images))


class _SentenceTransformer:
    """A model of sentence-transformers that takes an image alone."""

    def __init__(self, config: ImageEncoder.Config, path: str):
        library = import_extra("sentence_transformers", _EXTRA, why=_WHY)
        trusted = config.trust_remote_code
        with loading(_WHY, config.model, path, trusted=trusted):
            self._model: Any
            self._model, problem = load_sentence_transformer(
                library.SentenceTransformer,
                path,
                trust_remote_code=trusted,
                device=own_device(config.device, _WHY),
            )
            if problem:
                raise problem
        if not self._model.supports("image"):
            raise _without_images(config)
        self.dim = int(self._model.get_embedding_dimension())
        self.fingerprint = fingerprint(
            "sentence-transformers", model_fingerprint(path), commit_of(path)
        )

    def vectors(self, images: Sequence[Path | bytes]) -> torch.Tensor:
        given = [open_for_library(image) for image in images]
        made: torch.Tensor = self._model.encode(
            given, batch_size=len(given), show_progress_bar=False, convert_to_tensor=True
        )
        return made.float().cpu()


class _Transformer:
    """A vision tower of transformers, alone or in a model of image and text."""

    def __init__(self, config: ImageEncoder.Config, path: str):
        from transformers import AutoModel

        trusted = config.trust_remote_code
        self._device = own_device(config.device, _WHY)
        with loading(_WHY, config.model, path, trusted=trusted):
            settings = load_config(path, trust_remote_code=trusted)
            if not any(hasattr(settings, name) for name in ("vision_config", "image_size")):
                raise _without_images(config)
            self._processor: Any = load_image_processor(path, trust_remote_code=trusted)
            model = load_model(AutoModel, path, trust_remote_code=trusted)
            self._model: Any = model.float().eval().requires_grad_(False).to(self._device)
        self.fingerprint = fingerprint("transformers", model_fingerprint(path), commit_of(path))
        self.dim = int(self._pooled([_grey()]).shape[1])

    def vectors(self, images: Sequence[Path | bytes]) -> torch.Tensor:
        return self._pooled([open_for_library(image) for image in images])

    def _pooled(self, images: Sequence[Any]) -> torch.Tensor:
        import torch

        given = self._processor(images=list(images), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            see = getattr(self._model, "get_image_features", self._model)
            out = see(**given)
        if not isinstance(out, torch.Tensor):
            pooled = getattr(out, "pooler_output", None)
            out = out.last_hidden_state.mean(1) if pooled is None else pooled
        return out.flatten(1).float().cpu()


def _grey() -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 64), (128, 128, 128))


def _without_images(config: ImageEncoder.Config) -> UserError:
    return UserError(f"{_WHY}: {config.model} takes no images: choose a model that does")
