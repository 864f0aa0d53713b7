"""PreFLMR's mapping network: patches that attend to each other and to the query's text."""

# transformers and torch are not followed by mypy, so that their classes are Any.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.activations import ACT2FN

# The mapping network is implemented here instead of using transformers' BERT, whose layers with
# cross-attention are decoder layers: with SDPA they attend to earlier positions only, while the
# original's attention, computed eagerly, was bidirectional.


class _Attend(nn.Module):
    def __init__(self, config: PretrainedConfig, width: int):
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(width, config.hidden_size)
        self.value = nn.Linear(width, config.hidden_size)
        self.dropout = config.attention_probs_dropout_prob

    def forward(
        self, states: Tensor, others: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, states), (self.key, others), (self.value, others))
        )
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            weights = functional.dropout(scores.softmax(-1), dropout)
            out = weights @ v
        else:
            out = functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=False)
        return out.transpose(1, 2).flatten(2), weights


class _AttendOutput(nn.Module):
    def __init__(self, config: PretrainedConfig, width: int):
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dropout(self.dense(states)) + residual)
        return out


class _MappingBlock(nn.Module):
    """Attention followed by the residual: among the patches, or from the patches to the text."""

    def __init__(self, config: PretrainedConfig, width: int):
        super().__init__()
        self.self = _Attend(config, width)
        self.output = _AttendOutput(config, config.hidden_size)

    def forward(
        self, states: Tensor, others: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        out, weights = self.self(states, others, mask, need_weights)
        return self.output(out, states), weights


class _MappingIntermediate(nn.Module):
    def __init__(self, config: PretrainedConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.act(self.dense(states))
        return out


class _MappingLayer(nn.Module):
    def __init__(self, config: PretrainedConfig, text_width: int):
        super().__init__()
        self.attention = _MappingBlock(config, config.hidden_size)
        self.crossattention = _MappingBlock(config, text_width)
        self.intermediate = _MappingIntermediate(config)
        self.output = _AttendOutput(config, config.intermediate_size)

    def forward(
        self, states: Tensor, text: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
        states, own = self.attention(states, states, None, need_weights)
        states, cross = self.crossattention(states, text, mask, need_weights)
        return self.output(self.intermediate(states), states), (own, cross)


class MappingNetwork(nn.Module):
    """PreFLMR's layers in which the patches attend to each other and to the query's text."""

    def __init__(self, config: PretrainedConfig, text_width: int):
        super().__init__()
        self.layer = nn.ModuleList(
            _MappingLayer(config, text_width) for _ in range(config.num_hidden_layers)
        )

    def forward(
        self, states: Tensor, text: Tensor, text_mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return mapped states, the states of every layer, and all layers' self-attentions."""
        mask = None if text_mask is None else text_mask[:, None, None, :]
        hidden, attentions = [states], []
        for layer in self.layer:
            states, (own, _) = layer(states, text, mask, need_weights)
            hidden.append(states)
            if own is not None:
                attentions.append(own)
        return states, tuple(hidden), tuple(attentions)
