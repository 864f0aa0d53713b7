"""GGUF files, dequantised once and kept in the cache folder in transformers' format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ravqa.core.checkpoints import build_model, load_model, load_tokenizer
from ravqa.core.errors import import_extra
from ravqa.core.files import folder_written_beside
from ravqa.core.locations import cache_dir


def dequantised(gguf: Path, content: str) -> Path:
    """Return the folder with a GGUF file's float32 model and tokenizer, made once.

    Args:
        content: content hash of the file.

    Raises:
        MissingExtraError: the package gguf is not installed.
    """
    folder = cache_dir("gguf") / content
    if (folder / "config.json").is_file():
        return folder
    import_extra("gguf", "sample", why="reading a GGUF file")
    import torch
    import transformers

    with folder_written_beside(folder, first_wins=True) as work, _read_once():
        place, name = str(gguf.parent), gguf.name
        tokenizer = load_tokenizer(place, gguf_file=name, trust_remote_code=False)
        loaded = load_model(
            transformers.AutoModelForCausalLM,
            place,
            gguf_file=name,
            trust_remote_code=False,
            dtype=torch.float32,
        )
        # transformers marks the model as quantised and will not save it: move the weights to
        # a plain model of the same configuration.
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            plain = build_model(transformers.AutoModelForCausalLM, config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.generation_config = loaded.generation_config
        plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
    return folder


@contextmanager
def _read_once() -> Iterator[None]:
    """Have transformers read the file once, instead of for each part, and build one map of names.

    Without this, the default reader's file of 98 MB takes twice as long.
    """
    import gguf

    replaced = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in replaced.items():
        setattr(gguf, name, cache(function))
    try:
        yield
    finally:
        for name, function in replaced.items():
            setattr(gguf, name, function)
