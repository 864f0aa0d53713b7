"""Preparation of questions, instructions, documents and images as inputs of the models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.utils import cached_file

from ravqa.core.errors import DataError, UserError
from ravqa.core.quiet import quiet
from ravqa.core.texts import with_instruction
from ravqa.flmr.configuration import FLMRConfig, FLMRInputError, FLMRVisionConfig
from ravqa.flmr.tokenization import FLMRContextEncoderTokenizer, FLMRQueryEncoderTokenizer
from ravqa.images.decode import open_image, scaled, to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

_FILE = "preprocessor_config.json"
_FOLDER = "image_processor"
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BICUBIC = 3  # Pillow's number, as in preprocessor_config.json


@dataclass(frozen=True)
class FLMRImageProcessor:
    """A processor that resizes, crops and normalises images with Pillow, as the original did.

    Attributes:
        size: height and width of the result.
        shortest_edge: the image is first scaled so that its shorter side has this length, then
            its centre is cropped; None scales both sides to `size`, changing the proportions.
        mean, std: per channel.
        resample: Pillow's number of the resampling method.
    """

    size: tuple[int, int]
    shortest_edge: int | None
    mean: tuple[float, ...] = _CLIP_MEAN
    std: tuple[float, ...] = _CLIP_STD
    resample: int = _BICUBIC

    @classmethod
    def for_tower(cls, config: FLMRVisionConfig) -> FLMRImageProcessor:
        """Return the processor that fits a vision tower, as derived from its configuration.

        Raises:
            UserError: no preparation is known for this kind of tower.
        """
        size = _pair(config.image_size)
        if config.vision_tower is None:
            return cls(size, size[0])
        kind = str(config.vision_tower.get("model_type"))
        if kind.startswith("clip"):
            return cls(size, size[0])
        if kind.startswith("siglip"):
            return cls(size, None, _HALF, _HALF)
        if kind.startswith(("dinov2", "vit")):
            return cls(size, round(size[0] * 256 / 224), _IMAGENET_MEAN, _IMAGENET_STD)
        raise UserError(
            f"how images are prepared for a tower of type {kind!r} is not known: put its "
            f"{_FILE} into the checkpoint's folder"
        )

    @classmethod
    def from_values(cls, values: dict[str, Any], config: FLMRVisionConfig) -> FLMRImageProcessor:
        """Return a processor with the values of a preprocessor_config.json.

        Raises:
            UserError: its images have another size than the vision tower takes.
        """
        size: Any = values.get("size") or _pair(config.image_size)[0]
        crop: Any = values.get("crop_size") if values.get("do_center_crop", True) else None
        edge = size.get("shortest_edge") if isinstance(size, dict) else size
        if isinstance(size, dict) and edge is None:
            edge, crop = None, size
        elif crop is None:
            crop = edge
        if isinstance(crop, dict):
            crop = (crop.get("height"), crop.get("width"))
        out = _pair(crop)
        if out != _pair(config.image_size):
            raise UserError(
                f"{_FILE} makes images of {out[0]}x{out[1]} and the vision tower takes "
                f"{_pair(config.image_size)[0]}x{_pair(config.image_size)[1]}: it belongs to "
                "another checkpoint"
            )
        return cls(
            out,
            edge,
            tuple(values.get("image_mean") or _CLIP_MEAN),
            tuple(values.get("image_std") or _CLIP_STD),
            int(values.get("resample", _BICUBIC)),
        )

    def values(self) -> dict[str, Any]:
        """Return the values for a preprocessor_config.json."""
        height, width = self.size
        crop = {"height": height, "width": width}
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": crop if self.shortest_edge is None else {"shortest_edge": self.shortest_edge},
            "resample": self.resample,
            "do_center_crop": self.shortest_edge is not None,
            "crop_size": crop,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def __call__(self, images: Sequence[Any]) -> Tensor:
        """Return pixel values [images, 3, height, width].

        Args:
            images: each a Pillow image, a path, the encoded bytes, or an array [height, width, 3].

        Raises:
            DataError: an image cannot be read.
        """
        if not images:
            return torch.zeros((0, 3, *self.size))
        return torch.stack([self._one(read_image(image)) for image in images])

    def seen(self, image: Image) -> Image:
        """Return an RGB image as the model receives it: scaled and cropped, same pixel values."""
        import PIL.Image

        return PIL.Image.fromarray(self._pixels(image))

    def _one(self, image: Image) -> Tensor:
        scaled: np.ndarray = self._pixels(image).astype(np.float32) * np.float32(1 / 255)
        scaled = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))

    def _pixels(self, image: Image) -> np.ndarray:
        """Return the scaled and cropped image, uint8 [height, width, 3]."""
        width, height = image.size
        if self.shortest_edge is None:
            image = image.resize((self.size[1], self.size[0]), resample=self.resample)
        else:
            short, long = min(width, height), max(width, height)
            other = int(self.shortest_edge * long / short)
            sides = (self.shortest_edge, other) if width <= height else (other, self.shortest_edge)
            image = scaled(image, sides, (self.size[1], self.size[0]), self.resample)
        pixels = np.asarray(image)
        top = (pixels.shape[0] - self.size[0]) // 2
        left = (pixels.shape[1] - self.size[1]) // 2
        cut: np.ndarray = pixels[top : top + self.size[0], left : left + self.size[1]]
        return cut


def read_image(image: Any) -> Image:
    """Return an image in RGB, upright; see `ravqa.images.decode.to_rgb`.

    Args:
        image: a Pillow image, a path, the encoded bytes, or an array [height, width (, 3)].

    Raises:
        DataError: the image cannot be read.
    """
    import PIL.Image

    if isinstance(image, str | Path | bytes):
        return open_image(Path(image) if isinstance(image, str) else image)
    name = f"an image ({type(image).__name__})"
    try:
        with quiet():
            if isinstance(image, np.ndarray):
                image = PIL.Image.fromarray(image)
            if not isinstance(image, PIL.Image.Image):
                raise TypeError("neither a Pillow image nor a path, bytes or an array")
            return to_rgb(image)
    except Exception as e:  # Pillow's decoders raise errors of many kinds on broken bytes
        raise DataError(f"{name}: not a readable image ({str(e) or type(e).__name__})") from None


class FLMRProcessor:
    """The tokenizers and image preparation of one checkpoint.

    Attributes:
        query_tokenizer, context_tokenizer: of queries and documents.
        image_processor: None for a model without images.
    """

    def __init__(
        self,
        query_tokenizer: Any,
        context_tokenizer: Any = None,
        image_processor: FLMRImageProcessor | None = None,
    ):
        self.query_tokenizer = query_tokenizer
        self.context_tokenizer = context_tokenizer
        self.image_processor = image_processor

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> FLMRProcessor:
        """Load everything that prepares a checkpoint's inputs, from its folder or the hub.

        Images are prepared by the checkpoint's own preprocessor_config.json, or else as its vision
        tower requires.

        Args:
            pretrained_model_name_or_path: folder or hub name.
            kwargs: `query_maxlen` and `doc_maxlen`; options of the hub.

        Raises:
            UserError: the tokenizers are missing, or the image preparation is unknown or gives a
                wrong size.
        """
        name = str(pretrained_model_name_or_path)
        lengths = {k: kwargs.pop(k) for k in ("query_maxlen", "doc_maxlen") if k in kwargs}
        config = FLMRConfig.from_pretrained(name, **kwargs)
        query = {k: v for k, v in lengths.items() if k == "query_maxlen"}
        document = {k: v for k, v in lengths.items() if k == "doc_maxlen"}
        images = None
        if config.use_vision_encoder:
            values = _read_values(name, kwargs)
            images = (
                FLMRImageProcessor.for_tower(config.vision_config)
                if values is None
                else FLMRImageProcessor.from_values(values, config.vision_config)
            )
        return cls(
            FLMRQueryEncoderTokenizer.from_pretrained(
                name, subfolder="query_tokenizer", **query, **kwargs
            ),
            FLMRContextEncoderTokenizer.from_pretrained(
                name, subfolder="context_tokenizer", **document, **kwargs
            ),
            images,
        )

    def save_pretrained(self, save_directory: Any) -> None:
        """Write both tokenizers and the image preparation into a checkpoint's folder."""
        folder = Path(save_directory)
        for key in ("query_tokenizer", "context_tokenizer"):
            if getattr(self, key) is not None:
                getattr(self, key).save_pretrained(str(folder / key))
        if self.image_processor is not None:
            (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.image_processor.values(), indent=2)
            (folder / _FOLDER / _FILE).write_text(text + "\n", encoding="utf-8")

    def __call__(
        self,
        text: str | Sequence[str],
        images: Any = None,
        instructions: str | Sequence[str] | None = None,
    ) -> BatchFeature:
        """Return inputs for the model's `query`.

        The result's attribute `truncated` says for each question whether it was cut.

        Args:
            text: a question or several.
            images: one for each question, or an equally long list of regions for each; None for a
                question without an image.
            instructions: one for all questions, or one for each; put before the question with a
                ":" after it.

        Raises:
            FLMRInputError: the numbers of questions, images and instructions do not match.
            DataError: an image cannot be read.
        """
        questions = [text] if isinstance(text, str) else list(text)
        if instructions is not None:
            each = (
                [instructions] * len(questions) if isinstance(instructions, str) else instructions
            )
            if len(each) != len(questions):
                raise FLMRInputError(f"{len(each)} instructions for {len(questions)} questions")
            questions = [with_instruction(i, q) for i, q in zip(each, questions, strict=True)]
        encoding = self.query_tokenizer(questions)
        data: dict[str, Any] = dict(encoding.items())
        if images is not None:
            if isinstance(text, str) and not isinstance(images, list | tuple):
                images = [images]
            data |= self._images(list(images), len(questions))
        return _feature(data, encoding.truncated)

    def documents(
        self, text: str | Sequence[str], images: Any = None, *, padding: Any = "longest"
    ) -> BatchFeature:
        """Return inputs for the model's `doc`; the result's `truncated` says which were cut.

        Args:
            text: a document or several.
            images: one for each, or None.
            padding: "max_length" pads as the original does, with the same scores.

        Raises:
            FLMRInputError: the numbers of images and documents differ.
            DataError: an image cannot be read.
        """
        if self.context_tokenizer is None:
            raise UserError("this processor has no tokenizer of documents")
        texts = [text] if isinstance(text, str) else list(text)
        encoding = self.context_tokenizer(texts, padding=padding)
        data: dict[str, Any] = dict(encoding.items())
        if images is not None:
            if isinstance(text, str) and not isinstance(images, list | tuple):
                images = [images]
            data |= self._images(list(images), len(texts))
        return _feature(data, encoding.truncated)

    def _images(self, images: list[Any], rows: int) -> dict[str, Any]:
        if self.image_processor is None:
            raise UserError("this checkpoint takes no images")
        if len(images) != rows:
            raise FLMRInputError(f"{len(images)} images for {rows} texts")
        present = [image is not None for image in images]
        regions = [len(i) if isinstance(i, list | tuple) else 0 for i in images if i is not None]
        if len(set(regions)) > 1:
            raise FLMRInputError(
                f"different numbers of regions for each question: {sorted(set(regions))}"
            )
        shape: tuple[int, ...] = (regions[0],) if regions and regions[0] else ()
        flat = [x for i in images if i is not None for x in (i if shape else [i])]
        pixels = self.image_processor(flat)
        out = torch.zeros((rows, *shape, *pixels.shape[1:]))
        if any(present):
            out[torch.tensor(present)] = pixels.reshape(-1, *shape, *pixels.shape[1:])
        data: dict[str, Any] = {"pixel_values": out}
        if not all(present):
            data["concat_output_from_vision_encoder"] = torch.tensor(present)
        return data


def _feature(data: dict[str, Any], truncated: list[bool]) -> BatchFeature:
    feature = BatchFeature(data)
    feature.truncated = truncated
    return feature


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _read_values(name: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    paths: list[Any]
    if Path(name).is_dir():
        paths = [Path(name) / _FOLDER / _FILE, Path(name) / _FILE]
    else:
        quiet = {
            "_raise_exceptions_for_missing_entries": False,
            "_raise_exceptions_for_connection_errors": False,
        }
        paths = [cached_file(name, _FILE, subfolder=f, **quiet, **hub) for f in (_FOLDER, "")]
    for path in paths:
        if path is not None and Path(path).is_file():
            try:
                values = json.loads(Path(path).read_text(encoding="utf-8"))
            except ValueError:
                raise UserError(f"{path} is not JSON") from None
            return dict(values)
    return None
