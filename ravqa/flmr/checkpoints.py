"""Reading checkpoints with any parameter names, and renaming their parameters.

All renaming is done here. The models use the names of the original's released files, with a
shared encoder under its `context_` name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ravqa.core.checkpoints import lfs_pointers
from ravqa.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SHARED = {
    "query_text_encoder": "context_text_encoder",
    "query_text_encoder_linear": "context_text_encoder_linear",
    "query_vision_encoder": "context_vision_encoder",
    "query_vision_projection": "context_vision_projection",
    "query_photo_projection": "context_photo_projection",
}
"""Parts that queries and documents may share, with the single name they then have."""

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
_BIN, _BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

# Names in the research code's Lightning checkpoints, in the order in which they are tried.
# `model.model.` holds the document side of PreFLMR, and both sides of FLMR.
_LIGHTNING = (
    ("model.model.bert.", "context_text_encoder.bert_model."),
    ("model.bert.", "context_text_encoder.bert_model."),
    ("model.model.linear.", "context_text_encoder_linear."),
    ("model.linear.", "context_text_encoder_linear."),
    ("query_encoder.", "query_text_encoder."),
    ("query_linear.", "query_text_encoder_linear."),
    ("vision_projection.", "context_vision_projection."),
    ("vision_projection_input_linear2.", "transformer_mapping_input_linear."),
    ("vision_projection_linear2.", "transformer_mapping_output_linear."),
    ("vision_projection_linear.", "transformer_mapping_output_linear."),
    ("vision_projection_input_linear.", "transformer_mapping_input_linear."),
    ("transformer_mapping_input_linear.", "transformer_mapping_input_linear."),
    ("transformer_mapping_output_linear.", "transformer_mapping_output_linear."),
    ("transformer_mapping_network.", "transformer_mapping_network."),
    ("vision_encoder.", "context_vision_encoder."),
)


def canonical_names(
    state: dict[str, Tensor], *, shared_text: bool = False, shared_vision: bool = False
) -> dict[str, Tensor]:
    """Return the same tensors under the models' names, without duplicates.

    Args:
        state: tensors by the names of any released file: `text_model` for `bert_model`, `query_`
            for a shared `context_`, or both of them.
        shared_text, shared_vision: whether queries and documents share the encoder.
    """
    shared = {
        alias: name
        for alias, name in SHARED.items()
        if (shared_text if "text" in alias else shared_vision)
    }
    out: dict[str, Tensor] = {}
    for key in sorted(state):  # context_ before query_: the first of two aliases is kept
        new = _canonical_name(key)
        if new is None:
            continue
        head, dot, rest = new.partition(".")
        new = shared.get(head, head) + dot + rest
        out.setdefault(new, state[key])
    return out


def _canonical_name(key: str) -> str | None:
    key = key.removeprefix("module.")
    if key.endswith("embeddings.position_ids"):
        return None  # a table of 0, 1, 2, ... saved by old versions
    key = re.sub(
        r"^(query|context)_text_encoder\.text_model\.", r"\1_text_encoder.bert_model.", key
    )
    return re.sub(
        r"^(query|context)_vision_encoder\.vision_model\.(?!vision_model\.)",
        r"\1_vision_encoder.vision_model.vision_model.",
        key,
    )


def read_checkpoint(
    name: str, *, variant: str | None = None, use_safetensors: bool | None = None, **hub: Any
) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint: safetensors before .bin, single files before shards.

    This is transformers' order: an index beside a single file remains from an earlier version.

    Args:
        name: folder or hub name.
        variant: as in "model.fp16.safetensors".
        use_safetensors: True allows only safetensors, False never.
        hub: options of the hub, and `subfolder`.

    Raises:
        UserError: no checkpoint exists, or a file is broken.
    """
    names = [SAFE, SAFE_INDEX] if use_safetensors is not False else []
    names += [_BIN, _BIN_INDEX] if use_safetensors is not True else []
    if variant:
        names = [_with_variant(n, variant) for n in names]
    for file in names:
        path = _locate(name, file, hub)
        if path is None:
            continue
        if not path.name.endswith(".json"):
            return read_tensors(path)
        try:
            weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError):
            raise UserError(f"{path} is not an index of shards") from None
        state: dict[str, Tensor] = {}
        for shard in sorted(set(weight_map.values())):
            found = _locate(name, Path(shard).name, hub)
            if found is None:
                raise UserError(f"{name} lacks its shard {shard}")
            state |= read_tensors(found)
        return state
    raise UserError(f"{name} has no {' or '.join(names[::2])}: not a checkpoint folder")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of one file without running any code in it.

    Raises:
        UserError: the file is broken, truncated, or holds more than tensors.
    """
    import torch

    if any(lfs_pointers(path)):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull there")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(str(path)))
        except (SafetensorError, OSError, ValueError) as e:
            raise UserError(f"{path} is broken or cut off ({e}): copy it again") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as e:  # pickle and zip errors of many kinds
        reason = " ".join(str(e).split())[:200]
        raise UserError(
            f"{path} cannot be read as plain tensors; it is broken, cut off, or holds code, which "
            f"is not run ({reason})"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError(f"{path} contains no named tensors")
    return {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}


def from_lightning(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the research code's Lightning checkpoint under the released names.

    Tensors without a counterpart keep their names, and are reported as unexpected on loading.
    """
    # All names have one level more, that of the module that Lightning trained.
    out: dict[str, Tensor] = {}
    numbered = any("vision_projection_input_linear2." in k for k in state)
    for key, tensor in state.items():
        new = key
        if not key.startswith(("model.model.", "model.bert.", "model.linear.")):
            new = key.removeprefix("model.")
        for old, name in _LIGHTNING:
            if numbered and old == "vision_projection_input_linear.":
                continue
            if new.startswith(old):
                new = name + new.removeprefix(old)
                break
        new = re.sub(
            r"^(query|context)_text_encoder\.(?:bert\.|(?=embeddings|encoder|pooler))",
            r"\1_text_encoder.bert_model.",
            new,
        )
        out[new] = tensor
    return out


def _locate(name: str, file: str, hub: dict[str, Any]) -> Path | None:
    root = Path(name)
    if root.is_dir():
        path = root / hub.get("subfolder", "") / file
        return path if path.is_file() else None
    if root.exists() or name.startswith((".", "/", "~")):
        raise UserError(f"no such checkpoint folder: {name}")
    from transformers.utils import cached_file

    found = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return Path(found) if found else None


def _with_variant(name: str, variant: str) -> str:
    stem, dot, rest = name.partition(".")
    return f"{stem}{dot}{variant}.{rest}" if rest else name


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
