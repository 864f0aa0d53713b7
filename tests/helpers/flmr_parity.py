"""The tiny checkpoints of the original implementation, with its inputs and outputs."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1] / "data" / "flmr-parity"
NAMES = ("preflmr", "flmr", "preflmr_encn")
LAYOUTS = ("context", "query")
ATTENTION = ("eager", "sdpa")


@pytest.fixture(autouse=True)
def one_thread():
    """Models as small as these are many times slower on several threads of a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checkpoint(name, layout="context"):
    return ROOT / name / f"checkpoint_{layout}_names"


@functools.cache
def inputs(name):
    return json.loads((ROOT / name / "inputs.json").read_text(encoding="utf-8"))


@functools.cache
def golden(name):
    with np.load(ROOT / name / "golden.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


@functools.cache
def load(name, layout="context", attention="sdpa"):
    """A model and what was missing and unexpected when it was loaded; loaded once."""
    from ravqa.flmr import FLMRModelForRetrieval

    return FLMRModelForRetrieval.from_pretrained(
        checkpoint(name, layout), attn_implementation=attention, output_loading_info=True
    )


def query_inputs(name):
    return {
        "input_ids": golden(name)["query_input_ids"],
        "attention_mask": golden(name)["query_attention_mask"],
    }


def doc_inputs(name):
    return {
        "input_ids": golden(name)["doc_input_ids"],
        "attention_mask": golden(name)["doc_attention_mask"],
    }


def pixels(name):
    return golden(name)["roi_pixel_values" if name == "flmr" else "pixel_values"]


def forward_inputs(name):
    return {
        **{f"query_{k}": v for k, v in query_inputs(name).items()},
        **{f"context_{k}": v for k, v in doc_inputs(name).items()},
        "query_pixel_values": pixels(name),
        "num_negative_examples": 1,
    }


def tiny_config(**options):
    """A configuration small enough to build in no time."""
    from ravqa.flmr import FLMRConfig

    text = {
        "vocab_size": 159,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    mapping = {
        "model_type": "bert",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
    }
    return FLMRConfig(
        **{
            "text_config": text,
            "vision_config": vision,
            "dim": 16,
            "mapping_network_prefix_length": 4,
            "transformer_mapping_config": mapping,
            **options,
        }
    )
