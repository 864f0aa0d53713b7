"""Whole checkpoints, tiny and random, for every kind of part that loads any."""

import functools
import shutil

import flmr_parity as parity
import pytest
import reader_models
import torch
import transformers

from ravqa.core.errors import UserError
from ravqa.core.factory import build_part
from ravqa.core.settings import Part
from ravqa.encoders import ENCODERS
from ravqa.metrics.judges import JUDGES
from ravqa.readers import READERS
from ravqa.rerankers import RERANKERS

STAND_IN = str(parity.ROOT / "bert-base-stand-in")
CPU = {"device": "cpu"}


def bert(folder, kind, **options):
    torch.manual_seed(0)
    config = transformers.BertConfig.from_pretrained(STAND_IN, **options)
    getattr(transformers, kind)(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(STAND_IN).save_pretrained(folder)


def flmr(folder):
    shutil.copytree(parity.checkpoint("preflmr"), folder, dirs_exist_ok=True)
    shutil.copytree(STAND_IN, folder / "bert-base-stand-in")


def sentence_model(folder, name):
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    plain = folder.with_name(folder.name + "-plain")
    bert(plain, "BertModel")
    inner = Transformer(str(plain))
    if name == "dense":
        modules = [inner, Pooling(32), Dense(32, 16), Normalize()]
        library.SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    else:
        modules = [inner, Dense(32, 8, module_input_name="token_embeddings")]
        library.MultiVectorEncoder(modules=modules, device="cpu").save(str(folder))


# Each kind of part: its registry, its name, what makes a checkpoint, the weight that is taken out,
# and the beginning of the names of a whole layer.
PARTS = {
    "llm": (
        READERS,
        "transformers-llm",
        reader_models.llama,
        "model.norm.weight",
        "model.layers.1.",
    ),
    "vlm": (
        READERS,
        "transformers-vlm",
        reader_models.llava,
        "language_model.model.layers.0.self_attn.q_proj",
        "language_model.model.layers.1.",
    ),
    "paligemma": (READERS, "transformers-vlm", reader_models.paligemma, "", ""),
    "seq2seq": (READERS, "transformers-seq2seq", reader_models.t5, "wo.weight", "encoder.block.1."),
    "token-bert": (
        ENCODERS,
        "token-bert",
        functools.partial(bert, kind="BertModel"),
        "attention.output.dense.weight",
        "encoder.layer.1.",
    ),
    "flmr": (
        ENCODERS,
        "flmr",
        flmr,
        "transformer_mapping_output_linear.bias",
        "context_text_encoder.bert_model.encoder.layer.1.",
    ),
    "dense": (
        ENCODERS,
        "dense",
        functools.partial(sentence_model, name="dense"),
        "embeddings.LayerNorm.bias",
        "encoder.layer.1.",
    ),
    "multi-vector": (
        ENCODERS,
        "multi-vector",
        functools.partial(sentence_model, name="multi-vector"),
        "embeddings.LayerNorm.bias",
        "encoder.layer.1.",
    ),
    "cross-encoder": (
        RERANKERS,
        "cross-encoder",
        functools.partial(bert, kind="BertForSequenceClassification", num_labels=1),
        "pooler.dense.weight",  # it reads the pooler, as encoders of tokens do not
        "bert.encoder.layer.1.",
    ),
    "bem": (
        JUDGES,
        "bem",
        functools.partial(bert, kind="BertForSequenceClassification", num_labels=2),
        "classifier.bias",
        "bert.encoder.layer.1.",
    ),
}
TRUSTING = ["llm", "vlm", "paligemma", "seq2seq", "dense", "multi-vector", "cross-encoder"]


def build(kind, folder, **options):
    registry, name, *_ = PARTS[kind]
    return build_part(registry, Part(name=name, model=str(folder), **{**CPU, **options}), kind)


def refused(kind, folder, **options):
    """The one line that a part is refused with."""
    with pytest.raises(UserError) as e:
        build(kind, folder, **options)
    line = str(e.value)
    assert "\n" not in line
    assert str(folder) in line
    return line
