"""Encoders: text (and images) to token vectors, one array per item.

An encoder has `dim`, `fingerprint`, `weights` (a name for people) and

    encode_document(texts)      L2-normalised rows
    encode_query(queries)       of a text encoder; a query is weighted pieces of text
    encode_question(questions)  instead, of an encoder that sees images: question and image

Each gives `Encoded`: a list with one array [vectors, dim] per item, float32 or float16, without
zero rows; its `stats` say how many texts were cut.

`store` keeps a corpus's vectors on disk while they are made: a killed run goes on, and several
processes share the work. `features` keeps what the vision tower makes of images.
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
        "multi-vector": (
            "ravqa.encoders.sentence_transformers:MultiVectorSTEncoder",
            "sentence-transformers' MultiVectorEncoder models: ColBERT, PyLate and others",
        ),
        "dense": (
            "ravqa.encoders.sentence_transformers:DenseSTEncoder",
            "sentence-transformers' models of one vector a text",
        ),
    },
    contract="ravqa.encoders.base:Encoder",
)
