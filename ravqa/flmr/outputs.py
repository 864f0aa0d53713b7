"""The outputs of the models."""

# transformers and torch are not followed by mypy, so that their classes are Any.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class FLMRQueryEncoderOutput(ModelOutput):
    """Embeddings of queries.

    Attributes:
        pooler_output: embedding of the first token, before normalisation; [queries, dim].
        late_interaction_output: [queries, vectors, dim]: text, global image vectors, patches; rows
            of unit length, or zero where masked.
        text_encoder_attentions, text_encoder_hidden_states, vision_encoder_attentions,
            vision_encoder_hidden_states, transformer_mapping_network_attentions,
            transformer_mapping_network_hidden_states: of the parts, if requested.
    """

    pooler_output: Tensor | None = None
    late_interaction_output: Tensor | None = None
    text_encoder_attentions: tuple[Tensor, ...] | None = None
    text_encoder_hidden_states: tuple[Tensor, ...] | None = None
    vision_encoder_attentions: tuple[Tensor, ...] | None = None
    vision_encoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_mapping_network_attentions: tuple[Tensor, ...] | None = None
    transformer_mapping_network_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class FLMRContextEncoderOutput(ModelOutput):
    """Embeddings of documents.

    Attributes:
        pooler_output: embedding of the first token, before normalisation; [documents, dim].
        late_interaction_output: [documents, vectors, dim]: image vectors, text; or a list of
            arrays without the masked rows.
        context_mask: bool [documents, vectors, 1], False where a vector does not count.
        text_encoder_attentions, text_encoder_hidden_states, vision_encoder_attentions,
            vision_encoder_hidden_states: of the parts, if requested.
    """

    pooler_output: Tensor | None = None
    late_interaction_output: Tensor | None = None
    context_mask: Tensor | None = None
    text_encoder_attentions: tuple[Tensor, ...] | None = None
    text_encoder_hidden_states: tuple[Tensor, ...] | None = None
    vision_encoder_attentions: tuple[Tensor, ...] | None = None
    vision_encoder_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class FLMRModelForRetrievalOutput(ModelOutput):
    """Scores and losses of queries with their documents.

    Attributes:
        loss: the training loss, including in-batch negatives if they are used.
        scores: [queries, documents per query].
        in_batch_negative_loss: with all other documents of the batch as negatives; None if not
            requested.
        query_late_interaction_output, context_late_interaction_output: embeddings.
        query_attentions, query_hidden_states: of (text, vision, mapping network).
        context_attentions, context_hidden_states: of (text, vision).
    """

    loss: Tensor | None = None
    scores: Tensor | None = None
    in_batch_negative_loss: Tensor | None = None
    query_late_interaction_output: Tensor | None = None
    context_late_interaction_output: Tensor | None = None
    query_attentions: tuple[Any, ...] | None = None
    query_hidden_states: tuple[Any, ...] | None = None
    context_attentions: tuple[Any, ...] | None = None
    context_hidden_states: tuple[Any, ...] | None = None


@dataclass
class ImageFeatures:
    """The vision tower's output for images, as far as the rest of the model needs it.

    Attributes:
        pooled: [images, width], the class token's state or its equivalent.
        patches: [images, patches, width], the patches' states before the last layer.
        output: the tower's whole output, if it ran.
    """

    pooled: Tensor
    patches: Tensor
    output: Any = None
