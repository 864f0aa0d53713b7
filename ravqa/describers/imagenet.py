"""Image tags: the ImageNet classes that EfficientNet-Lite0 predicts.

Class names, more general words and glosses are WordNet's (`imagenet_classes.tsv`,
WORDNET-LICENSE.txt); the network is described in `ravqa/images/efficientnet.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ravqa.core.records import Description, Tag
from ravqa.core.settings import Strict, fingerprint
from ravqa.describers.base import Describer
from ravqa.images.efficientnet import PACKAGES, WEIGHTS, EfficientNetLite0

if TYPE_CHECKING:
    import torch

_WHY = "the describer imagenet-tags"


class ImageNetTagger(Describer):
    """A describer that gives each image its most probable ImageNet classes."""

    class Config(Strict):
        """Options.

        Attributes:
            tags: most tags of an image.
            min_probability: tags after the first that are less probable are left out.
            batch_size: images that go through the network together.
        """

        tags: int = Field(default=5, ge=1, le=1000)
        min_probability: float = Field(default=0.02, ge=0, le=1)
        batch_size: int = Field(default=16, ge=1)

        def packages(self) -> Sequence[tuple[str, str]]:
            """The packages of network and weights."""
            return [(module, "sample") for module in PACKAGES]

    config: Config

    def __init__(self, config: Config):
        """Load the network.

        Raises:
            MissingExtraError: the packages of network and weights are not installed.
            UserError: the weights are broken, or do not fit the network.
        """
        self.config = config
        self._network = EfficientNetLite0(_WHY)
        self.fingerprint = fingerprint(
            "imagenet-tags/2",
            config.tags,
            config.min_probability,
            class_names(),
            self._network.fingerprint,
        )
        self.weights = WEIGHTS

    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return the tags of each image, the most probable first; the first is always kept.

        Raises:
            DataError: an image cannot be decoded.
        """
        descriptions: list[Description] = []
        for start in range(0, len(images), self.config.batch_size):
            batch = images[start : start + self.config.batch_size]
            logits = self._network.logits(self._network.feature_maps(batch))
            descriptions += [self._description(row) for row in logits.softmax(-1)]
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
    return tuple(
        (tuple(names.split(", ")), tuple(kinds.split(", "))) for _, names, kinds, _ in _rows()
    )


def class_ids() -> list[str]:
    """Return the WordNet id of each ImageNet-1k class, by index."""
    return [wnid for wnid, *_ in _rows()]


def class_glosses() -> list[str]:
    """Return WordNet's definition of each ImageNet-1k class, by index."""
    return [gloss for *_, gloss in _rows()]


@cache
def _rows() -> tuple[list[str], ...]:
    text = files("ravqa.describers").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8")
    return tuple(line.split("\t") for line in text.splitlines())
