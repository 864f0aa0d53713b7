"""Choice of a local reader's weights to train: a LoRA adapter, or the model's own.

The vision encoder of a multimodal model is left as it is unless a setting says otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ravqa.core.errors import UserError, import_extra, near_matches
from ravqa.core.settings import Strict, Text

if TYPE_CHECKING:
    from ravqa.readers.local import LocalReader

EXTRA = "train"
"""The extra of this project that installs peft for training."""


class LoraConfig(Strict):
    """Options of a LoRA adapter (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) B A.

    The defaults are RA-VQA's (Lin and Byrne 2023), which adapts the query and value projections.

    Attributes:
        rank: rows of A and columns of B.
        alpha: numerator of the update's factor.
        dropout: share of the inputs of A that are left out while training.
        layers: names of the adapted layers, or ends of them, such as q_proj. Those of the language
            model are meant; those of the rest of the model only if it has none of the name. Null
            for all linear layers of the language model apart from its output layer.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    layers: tuple[Text, ...] | None = None


def add_adapter(reader: LocalReader, config: LoraConfig, *, seed: int) -> Any:
    """Add a new adapter to a reader's model, and train nothing else.

    The reader answers with it from now on: at first as before, because B begins with zeros.

    Args:
        seed: sets A, which begins with random numbers.

    Returns:
        peft's model of the adapter; its `save_pretrained` writes the adapter alone.

    Raises:
        MissingExtraError: peft is not installed.
        UserError: no layer has one of the names; the reader has an adapter already.
    """
    import torch

    peft: Any = import_extra("peft", EXTRA, why="training a LoRA adapter")
    if reader.settings.adapter is not None:
        raise UserError(
            f"reader.adapter {reader.settings.adapter}: a new adapter would build on it and be of "
            "no use alone: train without it, or use the merged model as reader.model"
        )
    names = _chosen(reader, config)
    options = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. about how the two libraries call each other
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(reader.network, options)
    adapted.peft_config["default"].base_model_name_or_path = reader.settings.model
    reader.forget()
    return adapted


def _chosen(reader: LocalReader, config: LoraConfig) -> list[str]:
    """Return the names of the layers that a configuration names, in the model's order."""
    if config.layers is None:
        names = list(_linear(reader.network, reader.language))
        if not names:
            raise UserError(f"{reader.weights} has no linear layers to adapt")
        return names
    inside = list(_linear(reader.network, reader.language))
    known = list(_linear(reader.network, reader.network))
    found: set[str] = set()
    for wanted in config.layers:
        for names in (inside, known):
            own = {name for name in names if name == wanted or name.endswith(f".{wanted}")}
            if own:
                break
        else:
            ends = sorted({name.rpartition(".")[2] for name in known})
            raise UserError(
                f"no linear layer of {reader.weights} is named {wanted!r}: "
                f"{near_matches(wanted, ends)}"
            )
        found |= own
    return [name for name in known if name in found]


def _linear(model: Any, part: Any) -> Iterator[str]:
    """Yield the names in a model of the linear layers of a part of it, without output layers."""
    import torch
    from transformers.pytorch_utils import Conv1D

    inner = set(part.modules())
    outputs = {part.get_output_embeddings(), model.get_output_embeddings()}
    for name, module in model.named_modules():
        linear = isinstance(module, torch.nn.Linear | Conv1D)
        if linear and module in inner and module not in outputs:
            yield name


def train_all(reader: LocalReader, *, vision: bool) -> None:
    """Train a model's own weights.

    Args:
        vision: train those of its vision encoder too.

    Raises:
        UserError: its weights are quantised, or not in float32; or it is not known which of them
            are the vision encoder's.
    """
    import torch

    model = reader.network
    if getattr(model, "hf_quantizer", None) is not None:
        raise UserError("quantised weights cannot be trained: train an adapter (method: lora)")
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        raise UserError(
            "small changes of half-precision weights are lost in rounding: set reader.dtype to "
            "float32 and loop.precision to bfloat16"
        )
    model.requires_grad_(True)
    if vision or not reader.supports_images:
        return
    encoder = model.get_encoder(modality="image")
    if encoder is model:
        raise UserError(
            f"it is not known which weights of {reader.weights} are the vision encoder's: set "
            "vision to true"
        )
    encoder.requires_grad_(False)


def merged_weights(reader: LocalReader) -> dict[str, Any]:
    """Return the weights of a reader's model with its adapter in them, by their plain names.

    The model stays as it is, with the adapter apart.

    Raises:
        UserError: its weights are quantised.
    """
    from peft.tuners import lora

    model = reader.network
    adapted_layer: Any = lora.LoraLayer
    if getattr(model, "hf_quantizer", None) is not None:
        raise UserError("an adapter cannot be merged into quantised weights: set merged to false")
    found = {}
    for name, weight in model.state_dict().items():
        if ".lora_" not in name:
            found[name.replace(".base_layer.", ".")] = weight
    for name, layer in model.named_modules():
        if isinstance(layer, adapted_layer):
            weight = found[f"{name}.weight"]
            found[f"{name}.weight"] = weight + layer.get_delta_weight("default").to(weight.dtype)
    return found
