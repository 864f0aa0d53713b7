"""What is asked of the sentence-transformers library, seen from a model that records it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ravqa.core.control_tokens import control_tokens
from ravqa.core.errors import UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Question
from ravqa.encoders.base import EncodingStats, Span

pytest.importorskip("sentence_transformers", reason="pip install 'ravqa[sentence-transformers]'")

from ravqa.encoders import sentence_transformers as ours
from ravqa.encoders.sentence_transformers import DenseSTEncoder, MultiVectorSTEncoder

PHOTO = min((SAMPLE / "val2014").glob("*.jpg"))


class Model:
    """A model of one vector a text, whose first component is the text's number of words."""

    def __init__(self, modalities=("text",), prompts=None):
        self.modalities, self.prompts = list(modalities), prompts or {}
        self.calls, self.counted = [], []

    def supports(self, modality):
        return modality in self.modalities

    def preprocess(self, inputs, *, prompt, task):
        self.counted.append((len(inputs), prompt, task))
        lengths = [len(self._text(i).split()) for i in inputs]
        mask = torch.zeros(len(inputs), 50)
        for row, n in zip(mask, lengths, strict=True):
            row[:n] = 1
        features = {"attention_mask": mask.int()}
        made = SimpleNamespace(overflowing=[]), SimpleNamespace(overflowing=["more"])
        return Features(features, [made[n > 5] for n in lengths])

    @staticmethod
    def _text(item):
        return item["text"] if isinstance(item, dict) else item

    def _encode(self, task, inputs, **options):
        self.calls.append((task, inputs, options.pop("prompt"), options.pop("batch_size")))
        assert options == {
            "show_progress_bar": False,
            "convert_to_numpy": True,
            "normalize_embeddings": True,
        }
        return np.array([[len(self._text(i).split()), 1.0] for i in inputs], np.float32)

    def encode_query(self, inputs, **options):
        return self._encode("query", inputs, **options)

    def encode_document(self, inputs, **options):
        return self._encode("document", inputs, **options)


class Features(dict):
    """A tokenizer's result."""

    def __init__(self, values, encodings):
        super().__init__(values)
        self.encodings = encodings


def made(model, query="q: ", document="d: ", **options):
    encoder = object.__new__(DenseSTEncoder)
    encoder.config = DenseSTEncoder.Config(model="m", **options)
    encoder._model, encoder.dim = model, 2
    encoder._prompts = {"query": query, "document": document}
    encoder._control_tokens = control_tokens(None, None)
    return encoder


def test_texts_are_encoded_shortest_first_within_the_budget_and_given_back_in_order():
    model = Model()
    encoder = made(model, batch_tokens=64)
    texts = ["w " * n for n in (40, 1, 7, 30, 2)]
    done = []
    found = encoder.encode_document(texts, done.append)
    assert [array.tolist() for array in found] == [[[n, 1]] for n in (40, 1, 7, 30, 2)]
    words = [[len(t.split()) for t in inputs] for _, inputs, _, _ in model.calls]
    assert words == [[1, 2, 7], [30], [40]]
    assert done == [3, 1, 1]
    assert [(task, prompt, n) for task, _, prompt, n in model.calls] == [
        ("document", "d: ", 3),
        ("document", "d: ", 1),
        ("document", "d: ", 1),
    ]
    assert found.stats == EncodingStats(items=5, truncated=3, tokens=80, vectors=5)
    assert model.counted == [(5, "d: ", "document")]


def test_tokens_are_counted_some_texts_at_a_time(monkeypatch):
    monkeypatch.setattr(ours, "_CHUNK", 2)
    model = Model()
    found = made(model).encode_query([[Span("a b c d e f")], [Span("a")], [Span("b")]])
    assert model.counted == [(2, "q: ", "query"), (1, "q: ", "query")]
    assert found.stats == EncodingStats(items=3, truncated=1, tokens=8, vectors=3)
    nothing = made(Model()).encode_query([])
    assert nothing == []
    assert nothing.stats == EncodingStats()


def test_texts_for_a_model_that_takes_images_too_are_marked_as_text():
    for modalities, plain in ((["text"], True), (["text", "image", ("image", "text")], False)):
        model = Model(modalities)
        encoder = made(model)
        encoder.encode_document(["photo.jpg"])
        encoder.encode_query([[Span("a"), Span("b", 0.0), Span("c", 0.2)]])
        given = [inputs for _, inputs, _, _ in model.calls]
        expected = [["photo.jpg"], ["a c"]]
        assert given == (expected if plain else [[{"text": t} for [t] in [e]] for e in expected])
        assert encoder.supports_images is not plain


def test_questions_of_one_instruction_with_or_without_image_share_a_call():
    model = Model(["text", ("image", "text")])
    encoder = made(model, batch_queries=2)
    asked = [
        Question(0, "one", image=PHOTO),
        Question(1, "one two"),
        Question(2, "one two three", image=PHOTO, instruction=" Look: "),
        Question(3, "one two three four", image=PHOTO),
        Question(4, "1 2 3 4 5 6", image=PHOTO),
        Question(5, "1 2 3 4 5 6 7", instruction=""),
    ]
    found = encoder.encode_question(asked)
    assert [array[0, 0] for array in found] == [1, 2, 3, 4, 6, 7]
    calls = {
        tuple(item["text"] for item in inputs): (prompt, ["image" in item for item in inputs])
        for _, inputs, prompt, _ in model.calls
    }
    assert calls == {
        ("one", "one two three four"): ("q: ", [True, True]),
        ("1 2 3 4 5 6",): ("q: ", [True]),
        ("one two",): ("q: ", [False]),
        ("one two three",): ("Look: ", [True]),
        ("1 2 3 4 5 6 7",): ("q: ", [False]),
    }
    assert {task for task, *_ in model.calls} == {"query"}
    assert found.stats == EncodingStats(items=6, truncated=2, tokens=23, vectors=6)
    half = made(model, output="float16").encode_question([])
    assert half == []


def test_tokens_of_concatenated_texts_are_the_distances_of_their_beginnings():
    features = {"offsets": torch.tensor([0, 2, 2]), "input_ids": torch.arange(7)}
    assert ours._token_counts(features) == [2, 0, 5]


@pytest.mark.parametrize(
    ("prompts", "options", "query", "document"),
    [
        ({}, {}, "", ""),
        ({"query": "a", "document": "b", "passage": "c", "corpus": "d"}, {}, "a", "b"),
        ({"passage": "c", "corpus": "d"}, {}, "", "c"),
        ({"document": "", "corpus": "d"}, {}, "", "d"),
        ({"query": "a", "document": "b"}, {"query_prompt": ""}, "", "b"),
        ({"query": "a", "document": "b"}, {"document_prompt": "x"}, "a", "x"),
    ],
)
def test_prompts_are_the_settings_or_the_models_own(
    monkeypatch, tmp_path, prompts, options, query, document
):
    model = Model(prompts=prompts)
    model.get_embedding_dimension = lambda: 2
    model.similarity_fn_name = "cosine"
    monkeypatch.setattr(ours, "load_sentence_transformer", lambda *_, **__: (model, None))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    encoder = DenseSTEncoder(DenseSTEncoder.Config(model=str(tmp_path), **options))
    assert encoder._prompts == {"query": query, "document": document}
    assert (encoder.dim, encoder.weights) == (2, str(tmp_path))
    same = {"batch_tokens": 64, "batch_queries": 1, "device": "cpu", "trust_remote_code": True}
    again = DenseSTEncoder(DenseSTEncoder.Config(model=str(tmp_path), **options, **same))
    assert again.fingerprint == encoder.fingerprint
    half = DenseSTEncoder(DenseSTEncoder.Config(model=str(tmp_path), output="float16", **options))
    assert half.fingerprint != encoder.fingerprint


def check(folder, settings, config):
    for name, values in (
        ("config_sentence_transformers.json", settings),
        ("config.json", config),
    ):
        if values is not None:
            text = values if isinstance(values, str) else json.dumps(values)
            (folder / name).write_text(text, encoding="utf-8")
    encoder = object.__new__(MultiVectorSTEncoder)
    encoder._why = "the encoder multi-vector"
    encoder._check_files(str(folder), True)


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"model_type": "MultiVectorEncoder"}, None),
        ({"model_type": "ColBERT"}, {"model_type": "bert"}),
        ({"query_prefix": "q"}, {"model_type": "bert"}),
        (None, {"model_type": "bert", "architectures": ["HF_ColBERT"]}),
        (None, {"architectures": ["Other", "ColPaliForRetrieval"]}),
        (None, None),
    ],
)
def test_checkpoints_of_many_vectors_are_known_by_their_files(tmp_path, settings, config):
    check(tmp_path, settings, config)


@pytest.mark.parametrize(
    ("settings", "config", "kind"),
    [
        ({"model_type": "SentenceTransformer"}, {"model_type": "bert"}, "SentenceTransformer"),
        ({"version": 1}, {"model_type": "bert"}, "bert"),
        (None, {"model_type": "bert", "architectures": ["ForRetrievalBert"]}, "bert"),
        (None, {"model_type": "bert", "architectures": None}, "bert"),
        ({"version": 1}, None, "None"),
    ],
)
def test_checkpoints_of_other_kinds_are_refused(tmp_path, settings, config, kind):
    message = f"^the encoder multi-vector: {tmp_path} is not a multi-vector model but a {kind}: "
    message += "use the encoder dense, token-bert or flmr$"
    with pytest.raises(UserError, match=message):
        check(tmp_path, settings, config)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match=f"^the encoder multi-vector: {tmp_path} cannot be read: ."):
        check(tmp_path, "{", {})
