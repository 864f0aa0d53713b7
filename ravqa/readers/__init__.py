"""Readers: language models with a common interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.registry import Registry

if TYPE_CHECKING:
    from ravqa.readers.base import Reader

READERS: Registry[type[Reader]] = Registry(
    "reader",
    {
        "transformers-llm": (
            "ravqa.readers.transformers_llm:TransformersLLM",
            "text-only causal language model (folder, hub name or GGUF)",
        ),
        "transformers-vlm": (
            "ravqa.readers.transformers_vlm:TransformersVLM",
            "multimodal model: LLaVA, Qwen-VL, InternVL, BLIP-2 and others",
        ),
        "transformers-seq2seq": (
            "ravqa.readers.transformers_seq2seq:TransformersSeq2Seq",
            "text-only encoder-decoder (T5 family)",
        ),
        "openai": (
            "ravqa.readers.openai:OpenAIReader",
            "any model behind an OpenAI-compatible server (vLLM, llama.cpp, Ollama, hosted)",
        ),
        "first-words": (
            "ravqa.readers.controls:FirstWords",
            "control: no model; answers with the first words of the first passage",
        ),
        "best-span": (
            "ravqa.readers.controls:BestSpan",
            "control: no model; answers with the words nearest to the question's in a passage",
        ),
        "majority": (
            "ravqa.readers.controls:Majority",
            "control: no model; always answers with the most common training answer",
        ),
    },
    contract="ravqa.readers.base:Reader",
)
