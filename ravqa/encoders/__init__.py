"""Encoders of text (and images) into token vectors, one array [vectors, dim] per item.

`base` defines the interface. `store` keeps a corpus's vectors on disk while they are computed: a
killed run resumes, and several processes share the work. `features` keeps the vision tower's
output for images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.registry import Registry

if TYPE_CHECKING:
    from ravqa.encoders.base import Encoder

ENCODERS: Registry[type[Encoder]] = Registry(
    "encoder",
    {
        "token-bert": (
            "ravqa.encoders.token_bert:TokenBertEncoder",
            "every token vector of a BERT-like text encoder",
        ),
        "flmr": (
            "ravqa.encoders.flmr:FLMREncoder",
            "FLMR, PreFLMR and PreFLMR-ENCN checkpoints: question and image together",
        ),
        "preflmr-mini": (
            "ravqa.encoders.preflmr_mini:PreFLMRMiniEncoder",
            "PreFLMR-mini, the small checkpoint that comes with ravqa: question and image together",
        ),
        "multi-vector": (
            "ravqa.encoders.sentence_transformers:MultiVectorSTEncoder",
            "sentence-transformers' MultiVectorEncoder models: ColBERT, PyLate and others",
        ),
        "image": (
            "ravqa.encoders.image:ImageEncoder",
            "images, each as one vector (EfficientNet-Lite0, CLIP, SigLIP, any vision tower) or "
            "as patches",
        ),
        "dense": (
            "ravqa.encoders.sentence_transformers:DenseSTEncoder",
            "sentence-transformers' models with one vector per text",
        ),
        "concat": (
            "ravqa.encoders.concat:ConcatEncoder",
            "the vectors of an encoder of images and one of texts, concatenated",
        ),
    },
    contract="ravqa.encoders.base:Encoder",
)
