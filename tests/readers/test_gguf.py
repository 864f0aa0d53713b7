"""A GGUF file becomes a folder in transformers' form; the file's reading is transformers' own."""

import copy
from types import SimpleNamespace

import pytest
import reader_models
import torch
import transformers

from ravqa.core.locations import cache_dir
from ravqa.readers import gguf as ours


@pytest.fixture
def read(tmp_path, fresh_cache, monkeypatch):
    """A tiny model in place of a file's content, and how it was asked for."""
    library = pytest.importorskip("gguf", reason="reading GGUF files needs gguf")
    folder = str(reader_models.llama(tmp_path / "llama"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.max_new_tokens = 77
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked, plain = [], (library.GGUFReader, library.get_tensor_name_map)

    def load_tokenizer(place, **options):
        asked.append(("tokenizer", place, options))
        return tokenizer

    def load_model(auto, place, **options):
        asked.append((auto.__name__, place, options))
        assert library.GGUFReader is not plain[0]  # read once for both
        assert library.get_tensor_name_map is not plain[1]
        loaded = copy.deepcopy(model)
        loaded.config.quantization_config = {"quant_method": "gguf"}
        return loaded

    monkeypatch.setattr(ours, "load_tokenizer", load_tokenizer)
    monkeypatch.setattr(ours, "load_model", load_model)
    yield SimpleNamespace(model=model, tokenizer=tokenizer, asked=asked)
    assert (library.GGUFReader, library.get_tensor_name_map) == plain


def test_a_file_is_made_a_plain_model_once(tmp_path, read):
    file = tmp_path / "weights" / "small.gguf"
    folder = ours.dequantised(file, "content")
    assert folder == cache_dir("gguf") / "content"
    named = {"gguf_file": "small.gguf", "trust_remote_code": False}
    assert read.asked == [
        ("tokenizer", str(file.parent), named),
        ("AutoModelForCausalLM", str(file.parent), {**named, "dtype": torch.float32}),
    ]
    made = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert made.dtype == torch.float32
    assert not hasattr(made.config, "quantization_config")
    assert made.generation_config.max_new_tokens == 77
    state, expected = made.state_dict(), read.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a koala")["input_ids"] == read.tokenizer("a koala")["input_ids"]
    assert ours.dequantised(file, "content") == folder
    assert len(read.asked) == 2
    assert ours.dequantised(file, "other") != folder
    assert len(read.asked) == 4
    assert sorted(path.name for path in cache_dir("gguf").iterdir()) == ["content", "other"]


def test_a_file_that_cannot_be_read_leaves_nothing(tmp_path, read, monkeypatch):
    def broken(*_, **__):
        raise ValueError("no GGUF")

    monkeypatch.setattr(ours, "load_model", broken)
    with pytest.raises(ValueError, match="no GGUF"):
        ours.dequantised(tmp_path / "small.gguf", "content")
    assert not (cache_dir("gguf") / "content").exists()
