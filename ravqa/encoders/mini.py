"""PreFLMR-mini: a small checkpoint of the family that needs no download (docs/preflmr-mini.md).

It is put together from MiniLM (text), the classifier of EfficientNet-Lite0 (first layer of the
name tokens), and the file `mini_query.FILE` (everything else). Its image features are those of
EfficientNet-Lite0, and are given to it as `image_features`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.checkpoints import loading
from ravqa.core.model_files import resolve
from ravqa.encoders.mini_query import (
    CLASSES,
    NAME_TOKENS,
    PHOTO_RANK,
    QUERY_TOKENS,
    SCALE,
    TEXT,
    identity,
    projections,
    uncounted,
)
from ravqa.flmr.configuration import FLMRConfig
from ravqa.flmr.encoders import FLMRTextModel
from ravqa.flmr.modeling import FLMRModelForRetrieval
from ravqa.flmr.processing import FLMRProcessor
from ravqa.flmr.tokenization import FLMRContextEncoderTokenizer, FLMRQueryEncoderTokenizer
from ravqa.images import efficientnet

if TYPE_CHECKING:
    from torch import Tensor

DOCUMENT_TOKENS = 256


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
    state = projections(vision.head)
    wanted = {name for name in model.state_dict() if "_projection." in name}
    assert wanted == state.keys(), "the file was made for another version"
    model.load_state_dict(state, strict=False)
    text = resolve(TEXT, extra="sample", why=why)
    return model.eval(), processor, identity(text, vision.fingerprint)


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
    skipped = uncounted(query.get_vocab())
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
        query_mask_input_ids_skip_list=skipped,
        context_mask_input_ids_skip_list=skipped,
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
            out[name + SCALE] = scale
        else:
            out[name] = tensor.half() if tensor.dim() > 1 else tensor.float()
        out[name] = out[name].contiguous()
    return out
