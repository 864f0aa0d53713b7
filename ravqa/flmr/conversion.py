"""Conversion of any checkpoint of the family into the released form."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ravqa.core.checkpoints import without_bars
from ravqa.core.errors import UserError
from ravqa.core.locations import real_path
from ravqa.flmr.checkpoints import SAFE, SAFE_INDEX, from_lightning, read_tensors
from ravqa.flmr.encoders import FLMRVisionModel
from ravqa.flmr.modeling import FLMRModelForRetrieval


@without_bars()
def convert(
    source: str | Path, target: str | Path, *, vision: str | Path | None = None
) -> list[str]:
    """Convert any checkpoint of the family into a folder in the released form.

    Args:
        source: a folder with config.json (in any naming, safetensors or .bin), or a Lightning
            .ckpt of the research code. A .ckpt does not describe the model's shape, so its folder,
            or the target folder, must have the config.json and tokenizers of a model of that
            shape.
        target: folder to write; created.
        vision: folder (or hub name) of the vision tower, for a .ckpt that was trained on its
            features and does not hold it.

    Returns:
        Names of tensors in the source that the model has no parameters for.

    Raises:
        UserError: the source cannot be read or does not fit its configuration, or the target
            already has a checkpoint.
    """
    source, target = Path(source), Path(target)
    if not source.is_dir() and not source.is_file():
        raise UserError(f"no such checkpoint: {source}")
    if (target / SAFE).exists() or (target / SAFE_INDEX).exists():
        raise UserError(f"{target} already has a checkpoint: choose another folder or remove it")
    if source.is_dir():
        folder, state = source, None
    else:
        state = read_tensors(source)
        if source.suffix == ".ckpt" or not any(k.startswith("context_") for k in state):
            state = from_lightning(state)
        folder = target if (target / "config.json").is_file() else source.parent
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{source} says nothing about the model's shape: put the config.json, query_tokenizer/ "
            f"and context_tokenizer/ of a model of the same shape into {target}"
        )
    config = FLMRModelForRetrieval.config_class.from_pretrained(str(folder))
    options: dict[str, Any] = {} if state is None else {"state_dict": state}
    tower = "context_vision_encoder."
    if state is not None and config.use_vision_encoder and not any(tower in k for k in state):
        if vision is None:
            raise UserError(f"{source} does not contain the vision tower: give its folder too")
        encoder = FLMRVisionModel.from_pretrained(str(vision), config=config.vision_config)
        state |= {tower + k: v for k, v in encoder.state_dict().items()}
    model, info = FLMRModelForRetrieval.from_pretrained(
        str(folder), config=config, output_loading_info=True, **options
    )
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    for extra in ("preprocessor_config.json", "image_processor"):
        _copy_beside(folder / extra, target / extra)
    return sorted(info["unexpected_keys"])


def _copy_beside(source: Path, target: Path) -> None:
    if real_path(source) == real_path(target):
        return
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.is_file():
        shutil.copyfile(source, target)
