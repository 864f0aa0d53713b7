"""Features of images: what a model's vision tower makes of an image, computed once per image.

transformers' `generate` takes features in place of pixels (`mm_encoder_outputs`) and reads them in
the order of the image tokens of all rows. So an image's features are kept as one row per token.
"""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_DEEP = "deepstack_features"  # per layer
_UNREAD = {"hidden_states", "attentions"}  # they would only fill the memory


class ImageFeatures:
    """Features of the images that were used last, up to a size in bytes.

    Attributes:
        image_token: the token of the vocabulary in whose places features stand.
        supported: whether the model takes features in place of pixels.
        pixels: names of the inputs in whose place they are given.
    """

    def __init__(self, model: Any, limit: int):
        """Take a multimodal model.

        Args:
            limit: size of what is kept, in bytes.
        """
        from transformers import GenerationMixin

        base: Any = getattr(model, "base_model", None)
        encode: Callable[..., Any] | None = getattr(base, "get_image_features", None)
        self.image_token = getattr(model.config, "image_token_id", None)
        self.supported = False
        if (
            encode is not None
            and type(model).generate is GenerationMixin.generate
            and not model.config.is_encoder_decoder
            and "mm_encoder_outputs" in inspect.signature(model.forward).parameters
            and isinstance(self.image_token, int)
        ):
            self._encode = encode
            self._taken = set(inspect.signature(encode).parameters) - {"kwargs"}
            self.pixels = {name for name in self._taken if "pixel" in name}
            # Some Q-Formers read the prompt together with the image.
            self.supported = not any("input_ids" in name for name in self._taken)
        self._limit = limit
        self._kept: OrderedDict[str, list[Any]] = OrderedDict()  # the pooled, then those of layers
        self._output: Callable[..., Any] = dict  # makes the tower's output of its parts
        self._name = ""  # of its part that stands in the image tokens' places
        self._shape: tuple[int, ...] | None = None  # of that behind the first; None for a list

    def missing(self, prints: Sequence[str]) -> list[str]:
        """Return the hashes whose images are not kept, each once."""
        return [one for one in dict.fromkeys(prints) if one not in self._kept]

    def add(self, prints: Sequence[str], inputs: Mapping[str, Any]) -> None:
        """Run images through the vision tower.

        Args:
            prints: a hash of each image.
            inputs: the processor's output for a prompt about each of them.

        Raises:
            ValueError: there are not as many features as image tokens.
        """
        import torch

        given = {name: value for name, value in inputs.items() if name in self._taken}
        with torch.inference_mode():
            output: Any = self._encode(**given, return_dict=True)
        self._name = "pooler_output" if "pooler_output" in output else "last_hidden_state"
        pooled, deep = output[self._name], output.get(_DEEP)
        read = {self._name, _DEEP, "last_hidden_state"} | _UNREAD
        same = {name: value for name, value in output.items() if name not in read}
        form: Callable[..., Any] = type(output)
        self._output = functools.partial(form, **same)
        self._shape = tuple(pooled.shape[1:]) if isinstance(pooled, torch.Tensor) else None
        parts = [_flat(pooled), *(_flat(layer) for layer in deep or ())]
        counts = (inputs["input_ids"] == self.image_token).sum(-1).tolist()
        if any(len(part) != sum(counts) for part in parts):
            raise ValueError(
                f"{len(parts[0])} features of images for {sum(counts)} tokens of images"
            )
        # Copies: a view would keep the whole output, and some libraries write into it again.
        rows = zip(*(part.split(counts) for part in parts), strict=True)
        for one, row in zip(prints, rows, strict=True):
            self._kept[one] = [part.clone() for part in row]

    def output(self, prints: Sequence[str], last: Sequence[int] | None = None) -> Any:
        """Return the vision tower's output for a prompt about each of these images.

        It is a copy: `generate` may change it.

        Args:
            last: of each image, the number of its last tokens whose features are needed; None for
                all.
        """
        import torch

        rows = [self._kept[one] for one in prints]
        for one in prints:
            self._kept.move_to_end(one)
        whole = last is None or list(last) == [len(row[0]) for row in rows]
        if last is not None:
            rows = [[p[len(p) - n :] for p in row] for row, n in zip(rows, last, strict=True)]
        pooled, *deep = ([part.clone() for part in layer] for layer in zip(*rows, strict=True))
        form: Any = pooled
        if self._shape is not None:
            form = torch.cat(pooled)
            if whole:
                form = form.reshape(-1, *self._shape)
            elif len(self._shape) > 1:  # as transformers gives parts of images to these models
                form = form[None]
        layers = {_DEEP: deep} if deep else {}
        return self._output(**{self._name: form}, **layers)

    def shrink(self) -> None:
        """Forget the images that were not used for longest, down to the size that is kept."""
        size = sum(part.nbytes for row in self._kept.values() for part in row)
        while size > self._limit:
            _, row = self._kept.popitem(last=False)
            size -= sum(part.nbytes for part in row)

    def clear(self) -> None:
        """Forget all images."""
        self._kept.clear()


def _flat(features: Any) -> Any:
    """Return features of all images as one tensor [tokens, width]."""
    import torch

    if isinstance(features, torch.Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in features])
