"""Tiny random models of many families in their real form, and what readers find out about them.

Run it in an environment with torchvision and num2words:

    PYTHONPATH=. python tests/readers/families.py [--dtype bfloat16] [FAMILY ...]

It prints a line per family: what its reader switched off, or why it refuses the model. Where that
is not what `OFF` says (in float32), it ends with 1. The lists in `docs/readers.md` come from here.
Random weights show how a family masks, counts positions and keeps keys and values, not what it
answers.
"""

import argparse
import io
import logging
import sys
import tempfile
from pathlib import Path

import PIL.Image
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import reader_models
from reader_models import CHAT, MROPE, SIZES, SQUARE, VISION, save, seeded, text_config, tokenizer

from ravqa.core.settings import validate
from ravqa.readers.base import Prompt
from ravqa.readers.transformers_llm import TransformersLLM
from ravqa.readers.transformers_seq2seq import TransformersSeq2Seq
from ravqa.readers.transformers_vlm import TransformersVLM

# --- text models: the class's name without ForCausalLM, and its settings

IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
HEADS = {"head_dim": 8}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
ROUTED = {"n_routed_experts": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
ROUTED |= {"num_experts_per_tok": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
LATENT |= {"v_head_dim": 8, "num_key_value_heads": 4}
SSM = {"mamba_n_heads": 8, "mamba_d_state": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
SSM |= {"mamba_chunk_size": 16}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
LINEAR |= {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 512}
BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# As in SIZES and text_config, for those that name them otherwise.
OWN = {
    "GPT2": GPT,
    "GPTBigCode": GPT,
    "GPTJ": {**GPT, "rotary_dim": 4},
    "CodeGen": {**GPT, "rotary_dim": 4},
    "CTRL": {**GPT, "dff": 64},
    "OpenAIGPT": GPT,
    "GPTNeo": {
        "hidden_size": 32,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 4,
        "window_size": 8,
        "max_position_embeddings": 512,
    },
    "OPT": {**SIZES, "word_embed_proj_dim": 32, "ffn_dim": 64, "max_position_embeddings": 512},
    "Bloom": BLOOM,
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "Falcon": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "Falcon (ALiBi)": {**FALCON, "alibi": True, "new_decoder_architecture": False},
    "XGLM": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "FalconMamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "Rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "RecurrentGemma": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "attention_window_size": 16,
        "lru_width": 32,
    },
}
PLAIN = "Llama Mistral Qwen2 Starcoder2 StableLm Phi Phi3 Olmo Olmo2 Olmo3 Granite Cohere Cohere2 "
PLAIN += (
    "Persimmon Nemotron SmolLM3 Arcee Ernie4_5 Exaone4 Apertus SeedOss GPTNeoX BioGpt NanoChat "
)
PLAIN += "GPTNeoXJapanese DiffLlama Cwm"
WITH_HEADS = "Gemma Gemma2 Gemma3 Qwen3 VaultGemma Glm Glm4 Helium HunYuanDenseV1"
CAUSAL = {
    **{name: {} for name in PLAIN.split()},
    **dict.fromkeys(WITH_HEADS.split(), HEADS),
    **dict.fromkeys(("Mixtral", "GraniteMoe", "Phimoe", "GraniteMoeShared"), LOCAL_EXPERTS),
    **{name: {**ROUTED, **HEADS} for name in ("Glm4Moe", "Dots1")},
    **{name: {**ROUTED, **LATENT} for name in ("DeepseekV2", "DeepseekV3")},
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {**EXPERTS, **HEADS},
    "Olmoe": EXPERTS,
    "Doge": {"num_experts": 4},
    "Ernie4_5_Moe": {"moe_num_experts": 2, "moe_k": 1, "moe_intermediate_size": 16},
    "GptOss": {**LOCAL_EXPERTS, **HEADS, "sliding_window": 8},
    "MiniMax": {
        **LOCAL_EXPERTS,
        **HEADS,
        "layer_types": ["linear_attention", "full_attention"],
        "block_size": 16,
    },
    "Qwen3Next": {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16},
    "Jamba": {
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
    "FalconH1": {**SSM, "mamba_d_ssm": 32, "mamba_n_heads": 4},
    "Bamba": {**SSM, "attn_layer_indices": [1]},
    "GraniteMoeHybrid": {**SSM, **LOCAL_EXPERTS, "layer_types": ["mamba", "attention"]},
    "Zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "hybrid_layer_ids": [1],
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
    },
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    **OWN,
}


def named(name, *suffixes):
    """A class of transformers, by the first of the suffixes with which there is one."""
    name = name.partition(" ")[0]
    found = (getattr(transformers, f"{name}{suffix}", None) for suffix in suffixes)
    return next(one for one in found if one is not None)


def causal(name, folder):
    tok = tokenizer()
    config = named(name, "TextConfig" if name == "Gemma3" else "Config", "Config")
    sizes = CAUSAL[name] if name in OWN else {**text_config(tok), **CAUSAL[name]}
    model = named(name, "ForCausalLM", "LMHeadModel")(
        config(**{"vocab_size": len(tok), **IDS, **sizes})
    )
    return save(folder, model, tok)


# --- encoder-decoders

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2}
T5 |= {"num_heads": 4, "decoder_start_token_id": 0}
BART = {"d_model": 32, "max_position_embeddings": 512, "decoder_start_token_id": 1}
BART |= {f"{side}_layers": 2 for side in ("encoder", "decoder")}
BART |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
BART |= {f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")}
ENCODING = {
    **dict.fromkeys(("T5", "MT5", "UMT5", "LongT5"), T5),
    "SwitchTransformers": {**T5, "num_experts": 2},
    **dict.fromkeys("Bart MBart Pegasus M2M100 Blenderbot PLBart Mvp".split(), BART),
    "Marian": {**BART, "decoder_start_token_id": 0},
}


def encoding(name, folder):
    tok = tokenizer(bos=False)
    config = named(name, "Config")(**{"vocab_size": len(tok), **IDS, **ENCODING[name]})
    return save(folder, named(name, "ForConditionalGeneration", "MTModel")(config), tok)


# --- multimodal models


def seeing(folder, kind, tok, processor, **config):
    model = named(kind, "ForConditionalGeneration")(named(kind, "Config")(**config))
    return save(folder, model, processor)


def ids_of(tok, **tokens):
    return {name: tok.convert_tokens_to_ids(token) for name, token in tokens.items()}


@seeded
def ovis2(folder):
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tok = tokenizer("<image>", "<IMG_ATOM>", *marks, bos=False, names={"image_token": "<image>"})
    tok.add_special_tokens({"additional_special_tokens": ["<IMG_ATOM>", *marks]})
    processor = transformers.Ovis2Processor(
        transformers.Ovis2ImageProcessor(size=SQUARE, max_patches=2),
        tok,
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return seeing(
        folder,
        "Ovis2",
        tok,
        processor,
        vision_config={**VISION, "vocab_size": 64},
        text_config={**text_config(tok), "model_type": "qwen2"},
        image_token_id=tok.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tok.convert_tokens_to_ids(marks),
        vocab_size=len(tok),
        hidden_size=32,
    )


@seeded
def idefics2(folder):
    tok = tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>")
    processor = transformers.Idefics2Processor(
        transformers.Idefics2ImageProcessor(
            size={"longest_edge": 56, "shortest_edge": 28}, do_image_splitting=False
        ),
        tok,
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return seeing(
        folder,
        "Idefics2",
        tok,
        processor,
        vision_config={**VISION, "image_size": 56},
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        text_config={**text_config(tok), "model_type": "mistral"},
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )


@seeded
def vip_llava(folder):
    tok = tokenizer("<image>")
    processor = transformers.LlavaProcessor(
        image_processor=reader_models.clip_images(),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return seeing(
        folder,
        "VipLlava",
        tok,
        processor,
        text_config=transformers.LlamaConfig(**text_config(tok)),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        vision_feature_layers=(-1, -2),
        vision_feature_layer=(-1, -2),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )


@seeded
def aya_vision(folder):
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"]
    marks += ["TILE", "TILE_GLOBAL", *(f"TILE_{i}" for i in range(1, 13))]
    tok = tokenizer("<image>", *marks)
    processor = transformers.AyaVisionProcessor(
        transformers.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, max_patches=2),
        tok,
        patch_size=28,
        img_size=56,
        downsample_factor=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return seeing(
        folder,
        "AyaVision",
        tok,
        processor,
        vision_config={**VISION, "image_size": 56, "model_type": "siglip_vision_model"},
        text_config={**text_config(tok, sliding_window=16), "model_type": "cohere2"},
        downsample_factor=2,
        image_token_index=tok.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )


@seeded
def glm4v(folder):
    marks = ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"]
    marks += ["<|begin_of_video|>", "<|end_of_video|>"]
    tok = tokenizer(*marks, bos=False)
    sizes = {"shortest_edge": 28 * 28 * 2, "longest_edge": 84 * 84 * 2}
    processor = transformers.Glm4vProcessor(
        transformers.Glm4vImageProcessor(size=sizes),
        tok,
        transformers.Glm4vVideoProcessor(size=sizes),
        chat_template=CHAT.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>"),
    )
    return seeing(
        folder,
        "Glm4v",
        tok,
        processor,
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "num_heads": 4,
            "intermediate_size": 64,
            "image_size": 84,
        },
        text_config=text_config(tok, **MROPE),
        **ids_of(
            tok,
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            image_start_token_id="<|begin_of_image|>",
            image_end_token_id="<|end_of_image|>",
            video_start_token_id="<|begin_of_video|>",
            video_end_token_id="<|end_of_video|>",
        ),
    )


@seeded
def qwen3_5(folder):
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4}
    vision |= {"intermediate_size": 64, "patch_size": 14, "spatial_merge_size": 2}
    vision |= {"num_position_embeddings": 64}
    tok = tokenizer(*reader_models.QWEN, bos=False)
    pad, video, start, end = reader_models.QWEN
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(
            min_pixels=28 * 28, max_pixels=84 * 84, patch_size=14, merge_size=2
        ),
        tok,
        transformers.Qwen3VLVideoProcessor(),
        chat_template=reader_models.QWEN_CHAT,
    )
    return seeing(
        folder,
        "Qwen3_5",
        tok,
        processor,
        text_config=text_config(tok, **LINEAR, **MROPE),
        vision_config=vision,
        **ids_of(
            tok,
            image_token_id=pad,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        ),
    )


@seeded
def llama4(folder):
    marks = ["<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>"]
    marks += ["<|tile_x_separator|>", "<|tile_y_separator|>"]
    tok = tokenizer(*marks)
    processor = transformers.Llama4Processor(
        transformers.Llama4ImageProcessor(size={"height": 56, "width": 56}, max_patches=2),
        tok,
        chat_template=CHAT.replace("IMAGE", "<|image|>"),
    )
    vision = {**VISION, "image_size": 56, "vision_output_dim": 32, "intermediate_size": 128}
    vision |= {"projector_input_dim": 32, "projector_output_dim": 32}
    return seeing(
        folder,
        "Llama4",
        tok,
        processor,
        vision_config=vision,
        text_config=text_config(
            tok, **LOCAL_EXPERTS, **HEADS, intermediate_size_mlp=64, attention_chunk_size=16
        ),
        **ids_of(
            tok,
            image_token_index="<|patch|>",
            boi_token_index="<|image_start|>",
            eoi_token_index="<|image_end|>",
        ),
    )


@seeded
def lfm2_vl(folder):
    marks = ["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"]
    tok = tokenizer(*marks)
    processor = transformers.Lfm2VlProcessor(
        transformers.Lfm2VlImageProcessor(
            tile_size=56,
            encoder_patch_size=14,
            max_num_patches=16,
            min_image_tokens=1,
            max_image_tokens=4,
            do_image_splitting=False,
        ),
        tok,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    layers = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    return seeing(
        folder,
        "Lfm2Vl",
        tok,
        processor,
        vision_config={
            **{k: v for k, v in VISION.items() if k != "image_size"},
            "num_patches": 16,
            "model_type": "siglip2_vision_model",
        },
        text_config={**text_config(tok, **layers), "model_type": "lfm2"},
        projector_hidden_size=32,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )


@seeded
def deepseek_vl(folder):
    tok = tokenizer("<image>", names={"image_token": "<image>"})
    processor = transformers.DeepseekVLProcessor(
        transformers.DeepseekVLImageProcessor(size=SQUARE),
        tok,
        num_image_tokens=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return seeing(
        folder,
        "DeepseekVL",
        tok,
        processor,
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config={**text_config(tok), "model_type": "llama"},
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )


@seeded
def blip(folder):
    """Its `generate` hands over to a text decoder that looks at the image across."""
    tok = tokenizer(bos=True)
    processor = transformers.BlipProcessor(transformers.BlipImageProcessor(size=SQUARE), tok)
    text = {**SIZES, "encoder_hidden_size": 32, "projection_dim": 32, **IDS, "sep_token_id": 1}
    return seeing(
        folder,
        "Blip",
        tok,
        processor,
        text_config={**text, "vocab_size": len(tok), "max_position_embeddings": 512},
        vision_config={**VISION, "projection_dim": 32, "initializer_range": 0.02},
        projection_dim=32,
        image_text_hidden_size=32,
    )


@seeded
def instructblip_vicuna(folder):
    tok = tokenizer("<image>")
    processor = transformers.InstructBlipProcessor(
        transformers.BlipImageProcessor(size=SQUARE), tok, tok, num_query_tokens=4
    )
    return seeing(
        folder,
        "InstructBlip",
        tok,
        processor,
        vision_config={**VISION, "model_type": "instructblip_vision_model"},
        qformer_config={
            **reader_models.QFORMER,
            "model_type": "instructblip_qformer",
            "vocab_size": len(tok),
            "max_position_embeddings": 512,
        },
        text_config={**text_config(tok), "model_type": "llama"},
        num_query_tokens=4,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )


HERE = [ovis2, idefics2, vip_llava, aya_vision, glm4v, qwen3_5, llama4, lfm2_vl, deepseek_vl, blip]
SEEING = {made.__name__: made for made in [*HERE, instructblip_vicuna]}
THERE = "llava llava_next blip2_t5 blip2_opt instructblip paligemma idefics3 gemma3 florence2 "
THERE += "qwen2_vl qwen2_5_vl qwen3_vl smolvlm internvl llava_onevision mistral3 mllama kosmos2"
SEEING |= {name: getattr(reader_models, name) for name in THERE.split()}


# What is switched off, by family, in float32. Their models read padding (batches), cannot continue
# with several tokens (score), or do not repeat their states or need more inputs than tokens after
# the prompt (next_token_logprobs).
OFF = {
    "Jamba": {"score"},
    "MiniMax": {"batches", "score"},
    "Rwkv": {"batches"},
    "Zamba2": {"score"},
    "RecurrentGemma": {"batches", "next_token_logprobs"},
    "SwitchTransformers": {"next_token_logprobs"},
    "kosmos2": {"batches", "next_token_logprobs"},
    "blip": {"batches", "next_token_logprobs"},
}


def passing(reader):
    """Control tokens that reach the model from a prompt's text, with and without an image."""
    control = sorted({*reader._tokenizer.get_added_vocab(), *reader._tokenizer.all_special_tokens})
    ids = dict(zip(control, reader._tokenizer.convert_tokens_to_ids(control), strict=True))
    evil = f"What is it? {' in '.join([*control, *reader_marks(reader)])} {''.join(control)}"
    image = io.BytesIO()
    PIL.Image.new("RGB", (60, 40), (9, 99, 199)).save(image, "PNG")
    found = set()
    for seen in (None, image.getvalue()) if reader.supports_images else (None,):
        counts = []
        for text in (evil, "What is it?"):
            read = reader._inputs([Prompt(text, seen)])["input_ids"][0].tolist()
            counts.append({token: read.count(i) for token, i in ids.items()})
        found |= {token for token in control if counts[0][token] != counts[1][token]}
    return found


def reader_marks(reader):
    """The texts that stand for images."""
    return reader._marks if reader.supports_images else []


def switched_off(name, dtype):
    """What the reader of a family's tiny model switched off, with the reasons.

    Raises:
        AssertionError: a control token in a text reaches the model as one.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / name.partition(" ")[0]
        if name in SEEING:
            kind = TransformersVLM
            SEEING[name](folder)
        else:
            kind = TransformersLLM if name in CAUSAL else TransformersSeq2Seq
            (causal if name in CAUSAL else encoding)(name, folder)
        options = {"model": str(folder), "device": "cpu", "dtype": dtype}
        reader = kind(validate(kind.Config, options, "reader"))
        assert not (found := passing(reader)), f"control tokens pass: {sorted(found)}"
        return reader.switched_off


def main():
    """Print a line for each family; return whether one is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("family", nargs="*", default=[*CAUSAL, *ENCODING, *SEEING])
    asked = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("ravqa").setLevel(logging.ERROR)
    unexpected = False
    for name in asked.family:
        try:
            found = switched_off(name, asked.dtype)
            said = "; ".join(f"{what}: {why}" for what, why in found.items()) or "all right"
            right = asked.dtype != "float32" or set(found) == OFF.get(name, set())
        except Exception as e:  # the others are still tried
            said, right = f"{type(e).__name__}: {str(e).partition(chr(10))[0]}", False
        print(f"{name}: {said}{'' if right else ' (unexpected)'}", flush=True)
        unexpected |= not right
    return unexpected


if __name__ == "__main__":
    sys.exit(main())
