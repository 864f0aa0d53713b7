"""GGUF files: dequantised once, kept in the cache folder in transformers' form."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ravqa.errors import import_extra
from ravqa.paths import cache_dir


def dequantised(gguf: Path, content: str) -> Path:
    """Folder with the float32 model and tokenizer of a GGUF file, made once.

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

    work = Path(tempfile.mkdtemp(prefix=content, dir=folder.parent))
    try:
        args: dict[str, Any] = {"gguf_file": gguf.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), **args)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), dtype=torch.float32, **args
        )
        # transformers marks the model as quantised and will not save it: move the weights to
        # a plain model of the same configuration.
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict())
        plain.generation_config = loaded.generation_config
        plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
        with contextlib.suppress(OSError):  # another process may have been quicker
            os.rename(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder
