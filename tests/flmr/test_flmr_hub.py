"""What is asked of the hub for a checkpoint, and what the model passes on to its sides."""

from types import SimpleNamespace

import flmr_parity as parity
import pytest
import torch
from flmr_parity import one_thread  # noqa: F401 (a fixture)

from ravqa.flmr import FLMRContextEncoderTokenizer, FLMRModelForRetrieval, processing, tokenization
from ravqa.flmr.checkpoints import read_checkpoint

NAME = "somebody/something"


@pytest.fixture
def hub(monkeypatch):
    """A hub with one checkpoint; what it is asked is kept: file, folder, options."""
    asked = []

    def cached_file(
        name,
        file,
        *,
        _raise_exceptions_for_missing_entries,
        _raise_exceptions_for_connection_errors,
        _raise_exceptions_for_gated_repo=False,
        subfolder="",
        **options,
    ):
        assert name == NAME
        assert not _raise_exceptions_for_missing_entries
        assert not _raise_exceptions_for_connection_errors
        assert not _raise_exceptions_for_gated_repo
        asked.append((subfolder, file, options))
        path = parity.checkpoint("preflmr") / subfolder / file
        return str(path) if path.is_file() else None

    monkeypatch.setattr("transformers.utils.cached_file", cached_file)
    for module in (processing, tokenization):
        monkeypatch.setattr(module, "cached_file", cached_file)
    return asked


def test_a_checkpoint_is_asked_for_file_by_file(hub):
    state = read_checkpoint(NAME, revision="main")
    assert "context_text_encoder_linear.weight" in state
    assert hub == [("", "model.safetensors", {"revision": "main"})]


def test_image_values_are_asked_for_in_both_places(hub):
    assert processing._read_values(NAME, {"revision": "main"}) is None
    file, options = "preprocessor_config.json", {"revision": "main"}
    assert hub == [("image_processor", file, options), ("", file, options)]


def test_every_file_of_a_tokenizer_is_asked_for_in_its_folder(hub):
    made = FLMRContextEncoderTokenizer.from_pretrained(NAME, revision="main")
    assert made.doc_maxlen == 64
    files = [
        "tokenizer_config.json",
        "tokenizer.json",
        "vocab.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "added_tokens.json",
    ]
    expected = [("context_tokenizer", file, {"revision": "main"}) for file in files]
    assert hub == expected
    hub.clear()
    root = FLMRContextEncoderTokenizer.from_pretrained
    with pytest.raises(Exception, match="has no tokenizer in gone/"):
        root(NAME, subfolder="gone")
    assert {place for place, _, _ in hub} == {"gone"}


def test_a_sentencepiece_model_is_read_by_transformers_without_its_code(tmp_path, monkeypatch):
    backend = parity.load("preflmr_encn")[0].context_tokenizer.backend_tokenizer
    asked = []

    def load(path, **options):
        asked.append((path, options))
        return SimpleNamespace(backend_tokenizer=backend)

    monkeypatch.setattr(tokenization, "load_tokenizer", load)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"x")
    made = FLMRContextEncoderTokenizer.from_pretrained(tmp_path, pad_token="<pad>")
    assert made.first_token_id("paris") == backend.encode("paris", add_special_tokens=False).ids[0]
    assert asked == [(str(tmp_path), {"trust_remote_code": False})]


def test_every_input_reaches_its_side(monkeypatch):
    model, _ = parity.load("preflmr")
    inputs = [
        "input_ids",
        "attention_mask",
        "pixel_values",
        "image_features",
        "concat_output_from_vision_encoder",
        "concat_output_from_text_encoder",
    ]
    given = {f"{side}_{name}": f"{side}_{name}" for side in ("query", "context") for name in inputs}
    given["query_image_patch_features"] = "query_image_patch_features"
    seen = {}

    def side(name, rows):
        def encode(self, **options):
            seen[name] = options
            return SimpleNamespace(
                late_interaction_output=torch.ones(rows, 2, 4),
                context_mask=torch.ones(rows, 2, 1, dtype=torch.bool),
                get=lambda what: f"{name} {what}",
            )

        return encode

    monkeypatch.setattr(FLMRModelForRetrieval, "query", side("query", 2))
    monkeypatch.setattr(FLMRModelForRetrieval, "doc", side("context", 6))
    output = model(
        **given, num_negative_examples=2, output_attentions=True, output_hidden_states=False
    )
    wanted = {"return_dict": True, "output_attentions": True, "output_hidden_states": False}
    for name, options in seen.items():
        own = {k.removeprefix(f"{name}_"): v for k, v in given.items() if k.startswith(f"{name}_")}
        assert options == own | wanted
    assert output.scores.tolist() == [[8, 8, 8]] * 2
    assert output.query_attentions == (
        "query text_encoder_attentions",
        "query vision_encoder_attentions",
        "query transformer_mapping_network_attentions",
    )
    assert output.context_attentions == (
        "context text_encoder_attentions",
        "context vision_encoder_attentions",
    )
    assert output.query_hidden_states is output.context_hidden_states is None
