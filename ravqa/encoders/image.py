"""Images as vectors: what an image search of passages or articles compares.

Three kinds of model, told apart by their files: the bundled EfficientNet-Lite0 (its pooled
features), models of sentence-transformers that take images (CLIP, SigLIP, multimodal embedding
models), and vision towers of transformers (CLIP's and SigLIP's projected image features, else the
pooled output; the mean of the last states where a tower has no pooler). Vectors have unit length.

With `patches`, EfficientNet-Lite0 gives a vector for each of its 7 x 7 patches instead, and late
interaction compares images patch by patch.

Texts have no vector: a passage without an image is never found, and a question without one finds
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

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
from ravqa.encoders.base import (
    WHOLE_IMAGE,
    Encoded,
    Encoder,
    Label,
    Labelled,
    Output,
    Span,
    Vectors,
    without_zero_rows,
)
from ravqa.encoders.features import FeatureCache
from ravqa.images import efficientnet
from ravqa.images.decode import open_for_library, open_image

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_WHY = "the encoder image"
_EXTRA = "sentence-transformers"


class _Tower(Protocol):
    """A model of images."""

    dim: int
    fingerprint: str

    def vectors(self, images: Sequence[Path | bytes]) -> torch.Tensor:
        """Return one vector per image, float32 [images, dim], on the CPU.

        If a model is asked for patches, there is one per patch: [images, patches, dim].
        """
        ...


class ImageEncoder(Encoder):
    """Vectors of images, from passages' images and questions' photos; texts have none."""

    labels = True

    class Config(Strict):
        """Options.

        Attributes:
            model: "efficientnet-lite0" for the bundled one, or folder, hub name, or
                "package:MODULE/path" of a model of sentence-transformers or transformers.
            patches: a vector for each patch of an image (of the bundled model alone), instead of
                one for the image.
            batch_size: images in a batch.
            cache: keep vectors in the cache folder, by the content of the images.
            output: type of the returned vectors.
            device: "auto" for an accelerator if available.
            trust_remote_code: run code that the model's files name.
        """

        model: ModelName = efficientnet.NAME
        patches: bool = False
        batch_size: int = Field(default=16, ge=1)
        cache: bool = True
        output: Output = "float32"
        device: Text = "auto"
        trust_remote_code: RunsCode = False

        @model_validator(mode="after")
        def _check_patches(self) -> Self:
            if self.patches and self.model != efficientnet.NAME:
                raise ValueError(f"patches are those of {efficientnet.NAME}, not of {self.model}")
            return self

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
        patches = ["patches"] if self.config.patches else []
        self.fingerprint = fingerprint(
            "image/1", self._tower.fingerprint, self.config.output, *patches
        )
        self._cache = FeatureCache(self.fingerprint, "float32") if self.config.cache else None

    @property
    def supports_images(self) -> bool:
        """True: it sees nothing but images."""
        return True

    @property
    def supports_passage_images(self) -> bool:
        """True: a passage's vectors are those of its image."""
        return True

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of an image's patches, with `patches`."""
        return efficientnet.GRID if self.config.patches else None

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
        """Return [1 or patches, dim] for each question with a photo, [0, dim] for others.

        Raises:
            DataError: an image cannot be decoded.
        """
        return self._encode([question.image for question in questions], None)

    def encode_passages(
        self, passages: Sequence[Passage], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return [1 or patches, dim] for each passage with an image, [0, dim] for others.

        Raises:
            DataError: an image cannot be decoded.
        """
        return self._encode([passage.image for passage in passages], progress)

    def label_passage(self, passage: Passage) -> Labelled:
        """Return the image or its patches; nothing for a passage without an image."""
        return self._labelled(passage.image)

    def label_query(self, spans: Sequence[Span]) -> Labelled:
        """Return nothing: texts have no vectors."""
        return self._labelled(None)

    def label_question(self, question: Question) -> Labelled:
        """Return the image or its patches; nothing for a question without an image."""
        return self._labelled(question.image)

    def seen_image(self, image: Path | bytes) -> Image:
        """Return the part of an image that has patches."""
        return efficientnet.seen(open_image(image)) if self.grid else super().seen_image(image)

    def _labelled(self, image: Path | bytes | None) -> Labelled:
        if image is None:
            return Labelled("", [])
        if self.grid is None:
            return Labelled("", [WHOLE_IMAGE])
        found = self._states([image])[image]
        rows, columns = self.grid
        places = [(row, column) for row in range(rows) for column in range(columns)]
        labels = [Label("patch", f"patch {r + 1}, {c + 1}", place=(r, c)) for r, c in places]
        kept = (found != 0).any(1).tolist()
        return Labelled("", [label for label, keep in zip(labels, kept, strict=True) if keep])

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
        """Return [1 or patches, dim] of unit length for each image, without zero rows."""
        output = self.config.output
        states = self._states(images)
        return {image: without_zero_rows(found, output) for image, found in states.items()}

    def _states(self, images: Sequence[Path | bytes]) -> dict[Path | bytes, Vectors]:
        """Return [1 or patches, dim] of unit or zero length for each image, cached if possible."""
        import torch

        known = self._cache.get(images) if self._cache else {}
        new = [image for image in images if image not in known]
        if new:
            made = torch.nn.functional.normalize(self._tower.vectors(new), dim=-1)
            fresh = {
                image: (found[:0], found) if self.config.patches else (found, found[:0])
                for image, found in zip(new, made, strict=True)
            }
            if self._cache:
                self._cache.put(fresh)
            known |= fresh
        return {
            image: (patches if self.config.patches else pooled[None]).numpy()
            for image, (pooled, patches) in known.items()
        }


def _tower(config: ImageEncoder.Config) -> _Tower:
    if config.model == efficientnet.NAME:
        return _EfficientNet(config.patches)
    path = resolve(config.model, extra="sample", why=_WHY)
    if Path(path, "modules.json").is_file():
        return _SentenceTransformer(config, path)
    return _Transformer(config, path)


class _EfficientNet:
    """The features of EfficientNet-Lite0, pooled or of each patch."""

    dim = efficientnet.WIDTH

    def __init__(self, patches: bool) -> None:
        self._patches = patches
        self._model = efficientnet.EfficientNetLite0(_WHY)
        self.fingerprint = fingerprint(efficientnet.NAME, self._model.fingerprint)

    def vectors(self, images: Sequence[Path | bytes]) -> torch.Tensor:
        maps = self._model.feature_maps(images)
        return maps.flatten(2).transpose(1, 2) if self._patches else efficientnet.pooled(maps)


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
