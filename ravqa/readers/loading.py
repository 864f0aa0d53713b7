"""Loading of a local model: its device, dtype and adapter."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field

from ravqa.core.checkpoints import load_adapter, load_model, loading, refuse_adapter
from ravqa.core.devices import has_accelerator, own_device
from ravqa.core.errors import UserError, import_extra
from ravqa.core.model_files import commit_of, model_fingerprint, resolve
from ravqa.core.settings import ModelName, Names, RunsCode, Strict, Text, fingerprint
from ravqa.core.templates import TODAY

# transformers also takes a hub repository here and runs the kernels in it.
Attention = Annotated[
    str, Names("code to run", lambda value: re.fullmatch(r"[a-z0-9_]+", str(value)) is not None)
]


class LocalConfig(Strict):
    """Options of every reader that runs a transformers model in this process.

    Attributes:
        model: folder, hub name, or "package:MODULE/path".
        max_new_tokens: longest answer.
        max_thinking_tokens: most tokens that a model may think before its answer, if it does, but
            no more than half of the context; 0 closes its thinking at once.
        beams: beam width; 1 for greedy generation.
        batch_size: most prompts per batch.
        batch_tokens: most padded tokens per batch, those to be generated included. A batch that
            does not fit into memory is halved and tried again.
        context: most tokens that prompt and generation may have together; null for the model's own
            limit.
        dtype: type of weights and computation; "auto" is float32 on CPUs, else bfloat16 (float16 on
            GPUs without it).
        device: "auto" uses this process's accelerator, if any.
        device_map: "auto" spreads a large model over all GPUs and, if need be, main memory (see
            accelerate's documentation for others); null puts all of it on `device`.
        attention: transformers' name of an attention implementation; null for its choice.
        quantization: weights in 8 or 4 bits, by bitsandbytes.
        adapter: folder or hub name of a LoRA adapter in peft's format.
        trust_remote_code: run code that comes with the model's files.
    """

    model: ModelName
    max_new_tokens: int = Field(default=12, ge=1)
    max_thinking_tokens: int = Field(default=1024, ge=0)
    beams: int = Field(default=1, ge=1)
    batch_size: int = Field(default=16, ge=1)
    batch_tokens: int = Field(default=16384, ge=1)
    context: int | None = Field(default=None, ge=2)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Text = "auto"
    device_map: Text | None = None
    attention: Attention | None = None
    quantization: Literal["none", "int8", "nf4", "fp4"] = "none"
    adapter: ModelName | None = None
    trust_remote_code: RunsCode = False

    def packages(self) -> Sequence[tuple[str, str]]:
        """Return the packages that a GGUF file, an adapter and quantised weights need."""
        needed = [("gguf", "sample")] if self.model.endswith(".gguf") else []
        needed += [("peft", "lora")] if self.adapter is not None else []
        needed += [("bitsandbytes", "quantization")] if self.quantization != "none" else []
        return needed

    def problems(self) -> Sequence[str]:
        """Return what flash attention needs and is not here."""
        if not re.fullmatch(r"flash_attention_\d", self.attention or ""):
            return ()
        if self.device == "cpu" or not has_accelerator():
            return [f"attention {self.attention} needs a GPU"]
        # transformers takes the functions from the package kernels too.
        if find_spec("kernels") is None and find_spec("flash_attn") is None:
            return [
                f"attention {self.attention} needs the package 'flash_attn', which is not "
                "installed: pip install flash-attn"
            ]
        return ()

    def models(self) -> Sequence[str]:
        """Return model and adapter."""
        return [self.model] if self.adapter is None else [self.model, self.adapter]


# Settings that cannot change an answer, or are in the fingerprint as content.
_NO_SETTING = {"model", "adapter", "batch_size", "batch_tokens", "device", "device_map", "dtype"}
_NO_SETTING |= {"keep_images_mib"}


class Placement:
    """Where and how a model and its adapter are loaded, with content hashes for fingerprints."""

    def __init__(self, config: LocalConfig, why: str):
        """Find the files without loading anything.

        Args:
            why: name of the reader, for messages.

        Raises:
            MissingExtraError: a package is missing.
            UserError: something that looks like a path does not exist; the device does not exist;
                the model is an adapter.
        """
        self._config = config
        self._why = why
        self.path = resolve(config.model, extra="sample", why=why)
        refuse_adapter(self.path)
        self._adapter = None
        if config.adapter is not None:
            import_extra("peft", "lora", why=f"{why}: adapter")
            self._adapter = resolve(config.adapter, extra="lora", why=f"{why}: adapter")
        if config.quantization != "none":
            import_extra("bitsandbytes", "quantization", why=f"{why}: quantization")
        self.device = own_device(config.device, why)
        self.dtype = _dtype(config.dtype, self.device)
        self._content = model_fingerprint(self.path)
        self.weights = f"{config.model} + {config.adapter}" if config.adapter else config.model

    @property
    def content(self) -> str:
        """Return the content hash of the model's files."""
        return self._content

    def loading(self) -> AbstractContextManager[None]:
        """Return a context that turns errors of loading into one line; see `checkpoints`."""
        # Files beside a GGUF file are not part of it: their code is never run.
        trusted = None if self.path.endswith(".gguf") else self._config.trust_remote_code
        return loading(self._why, self.weights, self.path, trusted=trusted)

    def load(self, auto: Any, path: str | None = None) -> Any:
        """Load the model with one of transformers' auto classes, in inference mode, with its
        adapter.

        Args:
            auto: the class.
            path: replaces the configured one.

        Raises:
            WeightsError: weights are missing or have the wrong sizes.
        """
        config = self._config
        options: dict[str, Any] = {"dtype": self.dtype}
        if config.device_map is not None:
            options["device_map"] = config.device_map
        elif self.device != "cpu":
            options["device_map"] = self.device  # directly, not through main memory
        if config.attention is not None:
            options["attn_implementation"] = config.attention
        if config.quantization != "none":
            options["quantization_config"] = self._quantization()
        trusted = config.trust_remote_code
        model = load_model(auto, path or self.path, trust_remote_code=trusted, **options)
        return self._with_adapter(model).eval()

    def _quantization(self) -> Any:
        from transformers import BitsAndBytesConfig

        kind = self._config.quantization
        if kind == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=self.dtype
        )

    def _with_adapter(self, model: Any) -> Any:
        if self._adapter is None:
            return model
        adapted = load_adapter(model, self._adapter)
        if adapted.active_peft_config.is_prompt_learning:
            raise UserError(
                f"{self._why}: {self._config.adapter} is not a LoRA adapter but "
                f"{adapted.active_peft_config.peft_type}, which is not supported"
            )
        # Merged weights cost nothing at run time. Quantised ones would be rounded once more, and
        # those that accelerate offloads cannot be changed here.
        whole = not any(parameter.is_meta for parameter in model.parameters())
        if getattr(model, "hf_quantizer", None) is None and whole:
            return adapted.merge_and_unload()
        return adapted.get_base_model()

    def fingerprint(self, kind: str, *, thinks: bool = False, template: str | None = None) -> str:
        """Return a hash of weights, adapter and every setting that can change an answer.

        Args:
            thinks: the model may think, so that the budget of its thinking is among them.
            template: the chat template, if one is used; it may print a date.
        """
        adapter = None
        if self._adapter is not None:
            commit = commit_of(self._adapter, "adapter_config.json")
            adapter = [model_fingerprint(self._adapter), commit]
        left_out = _NO_SETTING | (set() if thinks else {"max_thinking_tokens"})
        if not self._config.trust_remote_code:  # else other code may answer
            left_out.add("trust_remote_code")
        today = [str(TODAY)] if "strftime_now" in (template or "") else []
        return fingerprint(
            kind,
            self._config.model_dump(exclude=left_out),
            str(self.dtype),
            self._content,
            commit_of(self.path),
            adapter,
            *today,
        )


def _dtype(name: str, device: str) -> Any:
    import torch

    if name != "auto":
        return getattr(torch, name)
    kind = torch.device(device).type
    if kind == "cuda":
        # Older GPUs only emulate bfloat16.
        newer = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if newer else torch.float16
    return torch.bfloat16 if kind == "xpu" else torch.float32


def input_device(model: Any) -> Any:
    """Return the device for a model's inputs; accelerate's hook has it if weights are offloaded."""
    import torch

    embeddings = model.get_input_embeddings()
    device = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    return embeddings.weight.device if device is None else torch.device(device)


def model_context(config: Any, tokenizer: Any, max_new_tokens: int) -> tuple[int | None, bool]:
    """Return the most tokens of prompt and generation together, and whether it is a hard limit.

    The limit is None if the checkpoint does not state it. An encoder-decoder's limit is its
    encoder's: only the prompt has to fit into it. Relative positions (T5) continue beyond a
    tokenizer's limit.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not config.is_encoder_decoder:
        return (int(limit) if limit else None), True
    known = [n for n in (limit, tokenizer.model_max_length) if n and n < 10**9]
    return (min(known) + max_new_tokens if known else None), bool(limit)


def vocabulary(model: Any) -> int:
    """Return how many tokens a model knows: the rows of its embeddings, some of them unused."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", 0)
    return max(int(rows), int(getattr(model.config.get_text_config(), "vocab_size", 0)))


def stop_ids(
    tokenizer: Any, generation_config: Any, *, newline: bool, why: str, known: int | None = None
) -> list[int]:
    """Return the end tokens: the model's, else the tokenizer's; and line breaks if `newline`.

    Args:
        known: number of tokens that the model knows; end tokens beyond them are left out.

    Raises:
        UserError: there is no end token, or the model can write none of them.
    """
    ends = generation_config.eos_token_id
    given = ends if isinstance(ends, list | tuple) else [] if ends is None else [ends]
    stops = [end for end in given if isinstance(end, int) and 0 <= end < (known or math.inf)]
    if not stops and any(end is not None for end in given):
        raise UserError(
            f"{why}: generation never ends: the end token {ends!r} of its generation configuration "
            f"is not one of the model's {known} tokens"
        )
    if not stops and tokenizer.eos_token_id is not None:
        stops = [tokenizer.eos_token_id]
    if newline:
        for text in ("\n", "\n\n", "\n\n\n", " \n", "\r\n"):  # some are single tokens
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if (text == "\n" or len(ids) == 1) and ids and ids[-1] not in stops:
                stops.append(ids[-1])
    if not stops:
        raise UserError(f"{why}: the model has no end-of-sequence token")
    return stops
