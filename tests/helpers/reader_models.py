"""Tiny multimodal and text models with random weights, saved as the hub's checkpoints are.

They prove plumbing (padding, images, caches, log-probabilities), not answers.
"""

import functools
import itertools

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CHAT = (
    "{% for m in messages %}{{ m['role'].upper() }}: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}IMAGE{{ '\\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEXTS = [
    "Question: what is the capital of France? Answer: Paris is the capital, and it is large.",
    "USER: the quick brown fox jumps over the lazy dog. ASSISTANT: 0123456789",
    "Passage: koalas eat leaves of the eucalyptus tree in Australia.",
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def tokenizer(*special, bos=True, **options):
    """A byte-level BPE tokenizer trained on a few sentences; writes any text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    own = ["<pad>", "</s>", "<s>", *special]
    raw.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=own,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    options.setdefault("model_max_length", 512)
    names = options.pop("names", {})  # such as {"image_token": "<image>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>" if bos else None,
        extra_special_tokens=names or list(special),
        model_input_names=["input_ids", "attention_mask"],
        **options,
    )


def text_config(tok, **more):
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    return {**SIZES, "vocab_size": len(tok), "max_position_embeddings": 512, **ids, **more}


def save(folder, model, *parts):
    with torch.no_grad():  # sharper than the usual initialisation: no near ties among tokens
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=0.2)
        tok = getattr(parts[0], "tokenizer", parts[0])
        marks = [i for i in range(3, 20) if tok.convert_ids_to_tokens(i) in tok.all_special_tokens]
        if (head := model.get_output_embeddings()) is not None:
            head.weight[marks] = 0  # none is ever the likeliest
    model.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder


def seeded(build):
    @functools.wraps(build)
    def seeded_build(folder):
        torch.manual_seed(0)
        return build(folder)

    return seeded_build


@seeded
def llama(folder):
    tok = tokenizer(chat_template=CHAT)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text_config(tok)))
    return save(folder, model, tok)


def chained(folder, tokens, *, special=(), chat=CHAT, build=None):
    """A model whose next token follows from the last one alone: a test knows what it writes.

    Args:
        tokens: texts of one token each, all different; each is followed by the next one, the last
            one by the end mark.
        special: special tokens of the vocabulary.
        chat: the chat template.
        build: makes another model from the configuration.
    """
    tok = tokenizer(*special, chat_template=chat)
    config = transformers.LlamaConfig(**text_config(tok, hidden_size=512, head_dim=16))
    model = (build or transformers.LlamaForCausalLM)(config)
    ids = [tok.encode(text, add_special_tokens=False) for text in tokens]
    assert all(len(own) == 1 for own in ids), list(zip(tokens, ids, strict=True))
    chain = [own[0] for own in ids] + [tok.eos_token_id]
    assert len(set(chain)) == len(chain)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                p.zero_()  # the layers add nothing
        embeddings = model.get_input_embeddings().weight
        embeddings.copy_(torch.eye(len(tok), 512))
        output = model.get_output_embeddings().weight
        output.zero_()
        for token, following in itertools.pairwise(chain):
            output[following, token] = 1
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


@seeded
def wide_llama(folder):
    """Wide enough for the blocks of 4-bit weights."""
    tok = tokenizer()
    wide = {"hidden_size": 128, "intermediate_size": 256}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text_config(tok, **wide)))
    return save(folder, model, tok)


@seeded
def mistral(folder):
    """Attends to the last 16 tokens only."""
    tok = tokenizer()
    config = transformers.MistralConfig(**text_config(tok, sliding_window=16))
    return save(folder, transformers.MistralForCausalLM(config), tok)


@seeded
def mpt(folder):
    """Knows distances between tokens (ALiBi), no positions."""
    tok = tokenizer()
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}
    config = transformers.MptConfig(vocab_size=len(tok), **sizes)
    return save(folder, transformers.MptForCausalLM(config), tok)


@seeded
def gpt_neo(folder):
    """One layer attends to the last 8 tokens only, which its cache does not show."""
    tok = tokenizer()
    layers = {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8}
    sizes = {"hidden_size": 32, "num_heads": 4, "max_position_embeddings": 512}
    config = transformers.GPTNeoConfig(
        vocab_size=len(tok), **sizes, **layers, eos_token_id=1, bos_token_id=2
    )
    return save(folder, transformers.GPTNeoForCausalLM(config), tok)


@seeded
def lfm2(folder):
    """One layer of convolutions, one of attention."""
    tok = tokenizer()
    layers = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    config = transformers.Lfm2Config(**text_config(tok, **layers))
    return save(folder, transformers.Lfm2ForCausalLM(config), tok)


@seeded
def mamba2(folder):
    """No attention at all."""
    tok = tokenizer()
    config = transformers.Mamba2Config(
        vocab_size=len(tok),
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=2,
        chunk_size=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return save(folder, transformers.Mamba2ForCausalLM(config), tok)


def t5_config(tok):
    return transformers.T5Config(
        vocab_size=len(tok),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )


@seeded
def t5(folder):
    tok = tokenizer(bos=False)
    return save(folder, transformers.T5ForConditionalGeneration(t5_config(tok)), tok)


def clip_images():
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )


@seeded
def llava(folder):
    tok = tokenizer("<image>")
    image = tok.convert_tokens_to_ids("<image>")
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text_config(tok)),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_id=image,
    )
    processor = transformers.LlavaProcessor(
        image_processor=clip_images(),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return save(folder, transformers.LlavaForConditionalGeneration(config), processor)


QFORMER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "encoder_hidden_size": 32,
    "cross_attention_frequency": 1,
}
SQUARE = {"height": 28, "width": 28}


def blip2(folder, config_of, model_type):
    tok = tokenizer("<image>", bos=model_type != "t5")
    image = tok.convert_tokens_to_ids("<image>")
    config = transformers.Blip2Config(
        vision_config={**VISION, "model_type": "blip_2_vision_model"},
        qformer_config={**QFORMER, "model_type": "blip_2_qformer"},
        text_config={**config_of(tok).to_dict(), "model_type": model_type},
        num_query_tokens=4,
        image_token_index=image,
    )
    processor = transformers.Blip2Processor(
        transformers.BlipImageProcessor(size=SQUARE), tok, num_query_tokens=4
    )
    return save(folder, transformers.Blip2ForConditionalGeneration(config), processor)


@seeded
def blip2_t5(folder):
    return blip2(folder, t5_config, "t5")


@seeded
def blip2_opt(folder):
    def opt(tok):
        return transformers.OPTConfig(
            vocab_size=len(tok),
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        )

    return blip2(folder, opt, "opt")


@seeded
def instructblip(folder):
    tok = tokenizer("<image>", bos=False)
    config = transformers.InstructBlipConfig(
        vision_config={**VISION, "model_type": "instructblip_vision_model"},
        qformer_config={
            **QFORMER,
            "model_type": "instructblip_qformer",
            "vocab_size": len(tok),
            "max_position_embeddings": 16,
        },
        text_config={**t5_config(tok).to_dict(), "model_type": "t5"},
        num_query_tokens=4,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    processor = transformers.InstructBlipProcessor(
        transformers.BlipImageProcessor(size=SQUARE), tok, tok, num_query_tokens=4
    )
    return save(folder, transformers.InstructBlipForConditionalGeneration(config), processor)


@seeded
def paligemma(folder):
    tok = tokenizer("<image>")
    config = transformers.PaliGemmaConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "projection_dim": 32},
        text_config={**text_config(tok, head_dim=8), "model_type": "gemma"},
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    images = transformers.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(images, tok)
    return save(folder, transformers.PaliGemmaForConditionalGeneration(config), processor)


@seeded
def idefics3(folder):
    tok = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    config = transformers.Idefics3Config(
        vision_config={**VISION, "model_type": "idefics3_vision", "image_size": 56},
        text_config={**text_config(tok), "model_type": "llama"},
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessor(
            size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
        ),
        tok,
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return save(folder, transformers.Idefics3ForConditionalGeneration(config), processor)


@seeded
def smolvlm(folder):
    tok = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    config = transformers.SmolVLMConfig(
        vision_config={**VISION, "model_type": "smolvlm_vision", "image_size": 56},
        text_config={**text_config(tok), "model_type": "llama"},
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(
            size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
        ),
        tok,
        transformers.SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return save(folder, transformers.SmolVLMForConditionalGeneration(config), processor)


QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
QWEN_CHAT = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def qwen(folder, kind, vision, **text):
    tok = tokenizer(*QWEN, bos=False)
    ids = dict(zip(QWEN, tok.convert_tokens_to_ids(list(QWEN)), strict=True))
    config = getattr(transformers, f"{kind}Config")(
        text_config=text_config(tok, **text),
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    base = "Qwen3VL" if kind == "Qwen3VL" else "Qwen2VL"
    processor = getattr(transformers, f"{kind}Processor")(
        transformers.Qwen2VLImageProcessor(
            min_pixels=28 * 28,
            max_pixels=84 * 84,
            patch_size=vision["patch_size"],
            merge_size=2,
        ),
        tok,
        getattr(transformers, f"{base}VideoProcessor")(),
        chat_template=QWEN_CHAT,
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return save(folder, model, processor)


MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}


@seeded
def qwen2_vl(folder):
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    vision |= {"patch_size": 14, "spatial_merge_size": 2}
    return qwen(folder, "Qwen2VL", vision, **MROPE)


@seeded
def qwen2_5_vl(folder):
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4}
    vision |= {"intermediate_size": 64, "patch_size": 14, "spatial_merge_size": 2}
    vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    return qwen(folder, "Qwen2_5_VL", vision, **MROPE)


@seeded
def qwen3_vl(folder):
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4}
    vision |= {"intermediate_size": 64, "patch_size": 14, "spatial_merge_size": 2}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return qwen(folder, "Qwen3VL", vision, head_dim=8, **MROPE)


@seeded
def internvl(folder):
    names = {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    }
    tok = tokenizer(*names.values(), bos=False, names=names)
    config = transformers.InternVLConfig(
        vision_config={
            **{k: v for k, v in VISION.items() if k not in {"image_size", "patch_size"}},
            "image_size": [56, 56],
            "patch_size": [14, 14],
            "model_type": "internvl_vision",
        },
        text_config={**text_config(tok), "model_type": "qwen2"},
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=0.5,
    )
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, max_patches=2),
        tok,
        transformers.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<IMG_CONTEXT>"),
    )
    return save(folder, transformers.InternVLForConditionalGeneration(config), processor)


@seeded
def llava_onevision(folder):
    tok = tokenizer("<image>", "<video>", bos=False)
    grid = [[28, 56], [56, 28], [56, 56]]
    config = transformers.LlavaOnevisionConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config={**text_config(tok), "model_type": "qwen2"},
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        video_token_id=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_9",
    )
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=grid),
        tok,
        transformers.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return save(folder, transformers.LlavaOnevisionForConditionalGeneration(config), processor)


@seeded
def llava_next(folder):
    tok = tokenizer("<image>")
    grid = [[28, 56], [56, 28], [56, 56]]
    config = transformers.LlavaNextConfig(
        text_config=transformers.LlamaConfig(**text_config(tok)),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    processor = transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size=SQUARE, image_grid_pinpoints=grid
        ),
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return save(folder, transformers.LlavaNextForConditionalGeneration(config), processor)


@seeded
def gemma3(folder):
    names = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tok = tokenizer(*names.values(), names=names)
    ids = tok.convert_tokens_to_ids(list(names.values()))
    config = transformers.Gemma3Config(
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=text_config(tok, head_dim=8, sliding_window=16),
        mm_tokens_per_image=4,
        image_token_index=ids[0],
        boi_token_index=ids[1],
        eoi_token_index=ids[2],
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size=SQUARE),
        tok,
        image_seq_length=4,
        chat_template="{{ bos_token }}" + CHAT.replace("IMAGE", "<start_of_image>"),
    )
    return save(folder, transformers.Gemma3ForConditionalGeneration(config), processor)


@seeded
def mistral3(folder):
    names = {
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    }
    tok = tokenizer(*names.values(), names=names)
    config = transformers.Mistral3Config(
        vision_config={**VISION, "model_type": "pixtral", "image_size": 112, "head_dim": 8},
        text_config={**text_config(tok, head_dim=8, sliding_window=None), "model_type": "mistral"},
        image_token_index=tok.convert_tokens_to_ids("[IMG]"),
    )
    processor = transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(
            size={"longest_edge": 112}, patch_size={"height": 14, "width": 14}
        ),
        tok,
        patch_size=14,
        spatial_merge_size=2,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
        chat_template=CHAT.replace("IMAGE", "[IMG]"),
    )
    return save(folder, transformers.Mistral3ForConditionalGeneration(config), processor)


@seeded
def florence2(folder):
    tok = tokenizer("<image>", names={"image_token": "<image>"})
    config = transformers.Florence2Config(
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "window_size": 4,
            "projection_dim": 32,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": len(tok),
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 256,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
            "decoder_start_token_id": 1,
            "forced_bos_token_id": 2,
        },
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        decoder_start_token_id=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    images = transformers.CLIPImageProcessor(size=SQUARE, crop_size=SQUARE)
    images.image_seq_length = 17
    model = transformers.Florence2ForConditionalGeneration(config)
    model.generation_config.forced_bos_token_id = 2
    model.generation_config.no_repeat_ngram_size = 3
    return save(folder, model, transformers.Florence2Processor(images, tok))


@seeded
def mllama(folder):
    """Llama 3.2 Vision: the text attends to an image across, behind a mask of its own."""
    tok = tokenizer("<|image|>", names={"image_token": "<|image|>"})
    tiles = {"image_size": 28, "max_num_tiles": 4, "vision_output_dim": 64}
    config = transformers.MllamaConfig(
        vision_config={
            **{k: v for k, v in VISION.items() if k != "num_attention_heads"},
            **tiles,
            "attention_heads": 4,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0],
        },
        text_config=text_config(tok, num_hidden_layers=3, cross_attention_layers=[1]),
        image_token_index=tok.convert_tokens_to_ids("<|image|>"),
    )
    processor = transformers.MllamaProcessor(
        transformers.MllamaImageProcessor(size=SQUARE, max_image_tiles=4),
        tok,
        chat_template=CHAT.replace("IMAGE", "<|image|>"),
    )
    model = transformers.MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "gate" in name:
            torch.nn.init.constant_(parameter, 1.0)  # else no image is seen
    return save(folder, model, processor)


@seeded
def kosmos2(folder):
    """Its `generate` hands over to an inner model."""
    tok = tokenizer("<unk>", unk_token="<unk>")
    processor = transformers.Kosmos2Processor(clip_images(), tok, num_patch_index_tokens=4)
    sizes = {"embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = transformers.Kosmos2Config(
        text_config={"vocab_size": len(tok), "max_position_embeddings": 512, **sizes, **ids},
        vision_config=VISION,
        latent_query_num=64,
    )
    return save(folder, transformers.Kosmos2ForConditionalGeneration(config), processor)
