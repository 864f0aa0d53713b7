"""Checkpoints of every naming: loading, saving, converting, and what is wrong with broken ones."""

import importlib
import json
import os
import pickle
import shutil

import flmr_parity as parity
import pytest
import torch
from cases import slow_but
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from ravqa import flmr
from ravqa.core.errors import UserError
from ravqa.flmr import FLMRModelForRetrieval, convert
from ravqa.flmr.checkpoints import from_lightning, read_tensors

WITHIN = {"rtol": 0, "atol": 1e-5}


def copied(name, target, layout="context"):
    shutil.copytree(parity.checkpoint(name, layout), target)
    for base in ("bert-base-stand-in", "xlm-roberta-stand-in"):
        shutil.copytree(parity.ROOT / base, target.parent / base, dirs_exist_ok=True)
    return target


def with_all_aliases(name):
    """The original's whole state dict: every shared tensor under each of its names."""
    stored = load_file(parity.checkpoint(name) / "model.safetensors")
    whole = {}
    for key in parity.inputs(name)["state_dict_keys"]:
        plain = key.replace(".text_model.", ".bert_model.")
        whole[key] = stored[plain if plain in stored else plain.replace("query_", "context_", 1)]
    return whole


def check_query(model, name):
    truth = parity.golden(name)
    with torch.no_grad():
        output = model.query(**parity.query_inputs(name), pixel_values=parity.pixels(name))
    key = "query_embeddings_rois" if name == "flmr" else "query_embeddings"
    torch.testing.assert_close(output.late_interaction_output, truth[key], **WITHIN)


@pytest.mark.parametrize("layout", parity.LAYOUTS)
@pytest.mark.parametrize("name", slow_but(["preflmr"], parity.NAMES))
def test_saving_keeps_the_originals_names_and_every_bit(name, layout, tmp_path):
    model, _ = parity.load(name, layout)
    model.save_pretrained(tmp_path / "one")
    saved = load_file(tmp_path / "one" / "model.safetensors")
    # The names of the released layout that has shared tensors under `context_`.
    truth = load_file(parity.checkpoint(name, "context") / "model.safetensors")
    assert saved.keys() == truth.keys()
    assert all(torch.equal(saved[k], truth[k]) for k in truth)
    # What is saved is complete: it loads from a place where no base model is beside it.
    again, info = FLMRModelForRetrieval.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    check_query(again, name)
    # Of the configuration, nothing that the original has is lost or unset.
    made, original = (
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path / "one", parity.checkpoint(name, layout))
    )
    skipped = ("transformers_version", "text_config", "vision_config")
    assert {k: made.get(k) for k in original if k not in skipped} == {
        k: v for k, v in original.items() if k not in skipped
    }
    assert made["text_config"].get("text_encoder_base_model", "") is not None
    again.save_pretrained(tmp_path / "two")
    first, second = (tmp_path / f / "model.safetensors" for f in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_a_saved_folder_has_the_tokenizers_in_a_form_that_the_original_reads(tmp_path):
    model, _ = parity.load("preflmr")
    model.save_pretrained(tmp_path)
    for side in ("query", "context"):
        folder = f"{side}_tokenizer"
        original = parity.checkpoint("preflmr") / folder / "vocab.txt"
        assert (tmp_path / folder / "vocab.txt").read_text() == original.read_text()
    tokenizer = flmr.FLMRQueryEncoderTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(parity.inputs("preflmr")["queries"])["input_ids"]
    assert torch.equal(ids, parity.golden("preflmr")["query_input_ids"])


@pytest.mark.parametrize("name", parity.NAMES)
def test_a_bin_file_with_all_aliases_loads_whole(name, tmp_path):
    folder = copied(name, tmp_path / "checkpoint")
    (folder / "model.safetensors").unlink()
    torch.save(with_all_aliases(name), folder / "pytorch_model.bin")
    model, info = FLMRModelForRetrieval.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    check_query(model, name)


def test_load_state_dict_takes_all_aliases_too():
    model = FLMRModelForRetrieval(parity.load("flmr")[0].config)
    missing, unexpected = model.load_state_dict(with_all_aliases("flmr"))
    assert not missing
    assert not unexpected
    check_query(model.eval(), "flmr")


def test_shards_load_whole(tmp_path):
    model, _ = parity.load("preflmr")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    check_query(FLMRModelForRetrieval.from_pretrained(tmp_path), "preflmr")
    first = min(tmp_path.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(UserError, match=f"^{tmp_path} lacks its shard {first.name}$"):
        FLMRModelForRetrieval.from_pretrained(tmp_path)


def test_shared_encoders_are_one_module_and_counted_once():
    model, _ = parity.load("flmr")
    assert model.query_text_encoder is model.context_text_encoder
    assert model.query_vision_projection is model.context_vision_projection
    stored = load_file(parity.checkpoint("flmr") / "model.safetensors")
    assert model.num_parameters() == sum(t.numel() for t in stored.values())
    separate, _ = parity.load("preflmr")
    assert separate.query_text_encoder is not separate.context_text_encoder
    assert separate.query_vision_encoder is separate.context_vision_encoder
    with pytest.raises(AttributeError, match="no_such_part"):
        _ = model.no_such_part


def test_the_auto_classes_know_the_family(tmp_path):
    folder = parity.checkpoint("preflmr")
    importlib.reload(flmr)  # registering twice is no error
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "FLMRConfig"
    check_query(AutoModel.from_pretrained(folder), "preflmr")
    assert AutoConfig.for_model("flmr_text_model").model_type == "flmr_text_model"
    assert AutoConfig.for_model("flmr_vision_model").model_type == "flmr_vision_model"
    truth, given = parity.golden("preflmr"), parity.inputs("preflmr")
    for tokenizer, texts, key in (
        (AutoTokenizer.from_pretrained(folder), "queries", "query_input_ids"),
        (AutoTokenizer.from_pretrained(folder / "query_tokenizer"), "queries", "query_input_ids"),
        (AutoTokenizer.from_pretrained(folder / "context_tokenizer"), "documents", "doc_input_ids"),
    ):
        assert torch.equal(tokenizer(given[texts])["input_ids"], truth[key])
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(again, flmr.FLMRContextEncoderTokenizer)
    assert again.doc_maxlen == 64


def test_a_plain_text_encoder_becomes_a_text_model(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    plain = BertModel(config).eval()
    plain.save_pretrained(tmp_path / "plain")
    text = flmr.FLMRTextModel.from_pretrained(tmp_path / "plain")
    ids = torch.arange(5, 15).reshape(2, 5)
    with torch.no_grad():
        assert torch.equal(text(ids).last_hidden_state, plain(ids).last_hidden_state)
    text.save_pretrained(tmp_path / "own")
    again = flmr.FLMRTextModel.from_pretrained(tmp_path / "own")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in text.state_dict().items())


@pytest.mark.parametrize("whole", [True, False])
def test_a_clip_checkpoint_becomes_a_vision_model(whole, tmp_path):
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    vision = {**shape, "image_size": 16, "patch_size": 8}
    if whole:
        clip = CLIPModel(CLIPConfig(text_config={**shape, "vocab_size": 20}, vision_config=vision))
        tower = clip.vision_model
    else:
        clip = tower = CLIPVisionModel(CLIPVisionConfig(**vision))
    clip.eval().save_pretrained(tmp_path)
    model, info = flmr.FLMRVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = tower(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(model(pixels).last_hidden_state, expected)


def lightning(name):
    """A research-code checkpoint with the fixture's weights, by the table of its names."""
    names = {
        "context_text_encoder.bert_model.": "model.model.bert.",
        "context_text_encoder_linear.": "model.model.linear.",
        "query_text_encoder.bert_model.": "model.query_encoder.",
        "query_text_encoder_linear.": "model.query_linear.",
        "context_vision_projection.": "model.vision_projection.",
        "transformer_mapping_input_linear.": "model.vision_projection_input_linear2.",
        "transformer_mapping_output_linear.": "model.vision_projection_linear.",
        "transformer_mapping_network.": "model.transformer_mapping_network.",
        "context_vision_encoder.vision_model.": "model.vision_encoder.",
    }
    state = {}
    for key, tensor in load_file(parity.checkpoint(name) / "model.safetensors").items():
        old = next(prefix for prefix in names if key.startswith(prefix))
        state[names[old] + key.removeprefix(old)] = tensor
    return {"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 1e-5}}


@pytest.mark.parametrize("name", ["preflmr", "flmr"])
def test_a_lightning_checkpoint_is_converted(name, tmp_path, capsys):
    folder = copied(name, tmp_path / "research")
    (folder / "model.safetensors").unlink()
    torch.save(lightning(name), folder / "model.ckpt")
    assert convert(folder / "model.ckpt", tmp_path / "out") == []
    assert capsys.readouterr().err == ""  # no bars
    truth = load_file(parity.checkpoint(name) / "model.safetensors")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert made.keys() == truth.keys()
    assert all(torch.equal(made[k], truth[k]) for k in truth)
    check_query(FLMRModelForRetrieval.from_pretrained(tmp_path / "out"), name)
    with pytest.raises(UserError) as error:
        convert(folder / "model.ckpt", tmp_path / "out")
    assert str(error.value) == (
        f"{tmp_path / 'out'} already has a checkpoint: choose another folder or remove it"
    )


def test_a_lightning_checkpoint_without_its_vision_tower_takes_one_from_elsewhere(tmp_path, capsys):
    content = lightning("flmr")
    tower = {k: v for k, v in content["state_dict"].items() if "vision_encoder." in k}
    for key in tower:
        del content["state_dict"][key]
    folder = copied("flmr", tmp_path / "research")
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "model.ckpt")
    with pytest.raises(
        UserError, match=r"^/.* does not contain the vision tower: give its folder too$"
    ):
        convert(folder / "model.ckpt", tmp_path / "out")
    clip = tmp_path / "clip"
    clip.mkdir()
    plain = {k.removeprefix("model.vision_encoder."): v for k, v in tower.items()}
    save_file({k: v.contiguous() for k, v in plain.items()}, clip / "model.safetensors")
    capsys.readouterr()
    convert(folder / "model.ckpt", tmp_path / "out", vision=clip)
    assert capsys.readouterr().err == ""
    check_query(FLMRModelForRetrieval.from_pretrained(tmp_path / "out"), "flmr")


def test_unknown_names_of_a_lightning_checkpoint_are_reported(tmp_path):
    folder = copied("preflmr", tmp_path / "research")
    (folder / "model.safetensors").unlink()
    content = lightning("preflmr")
    content["state_dict"]["model.some_head.weight"] = torch.zeros(2)
    torch.save(content, folder / "model.ckpt")
    assert convert(folder / "model.ckpt", tmp_path / "out") == ["some_head.weight"]
    assert "some_head.weight" in from_lightning(content["state_dict"])


def test_a_folder_of_the_other_layout_is_converted(tmp_path):
    target = tmp_path / "not" / "there" / "yet"
    convert(parity.checkpoint("flmr", "query"), target)
    made = load_file(target / "model.safetensors")
    assert made.keys() == load_file(parity.checkpoint("flmr") / "model.safetensors").keys()


def test_a_ckpt_without_a_configuration_says_what_to_do(tmp_path):
    torch.save(lightning("flmr"), tmp_path / "model.ckpt")
    with pytest.raises(UserError) as error:
        convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert str(error.value) == (
        f"{tmp_path / 'model.ckpt'} says nothing about the model's shape: put the config.json, "
        "query_tokenizer/ and context_tokenizer/ of a model of the same shape into "
        f"{tmp_path / 'out'}"
    )
    with pytest.raises(UserError, match=f"^no such checkpoint: {tmp_path / 'none.ckpt'}$"):
        convert(tmp_path / "none.ckpt", tmp_path / "out")
    os.mkfifo(tmp_path / "pipe.ckpt")  # it is not waited for
    with pytest.raises(UserError, match=f"^no such checkpoint: {tmp_path / 'pipe.ckpt'}$"):
        convert(tmp_path / "pipe.ckpt", tmp_path / "new")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(protocol, tmp_path):
    trace = tmp_path / "trace"
    path = tmp_path / "model.ckpt"
    if protocol == "torch":
        torch.save({"state_dict": {"a": torch.zeros(1)}, "bomb": Bomb(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Bomb(trace)}))
    with pytest.raises(UserError, match="or holds code, which is not run ") as error:
        read_tensors(path)
    begin = f"{path} cannot be read as plain tensors; it is broken, cut off, or holds code, which "
    assert str(error.value).startswith(f"{begin}is not run (")
    assert str(error.value).endswith(")")
    assert not trace.exists()
    folder = copied("flmr", tmp_path / "checkpoint")
    with pytest.raises(UserError, match=r"^checkpoints are read with weights_only=True only$"):
        FLMRModelForRetrieval.from_pretrained(folder, weights_only=False)


@pytest.mark.parametrize("kept", [0, 4, 200, 100_000])
def test_a_cut_off_safetensors_file_gets_one_clear_line(kept, tmp_path):
    folder = copied("preflmr", tmp_path / "checkpoint")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(
        UserError, match=rf"^{file} is broken or cut off \(.+\): copy it again$"
    ) as caught:
        FLMRModelForRetrieval.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_architecture_is_named():
    folder = parity.ROOT / "bert-base-stand-in"
    with pytest.raises(UserError) as error:
        FLMRModelForRetrieval.from_pretrained(folder)
    assert str(error.value) == (
        f"{folder} is a checkpoint of another architecture: its config.json says model_type "
        "'bert', not 'flmr'"
    )


def test_parameters_of_another_architecture_are_refused(tmp_path):
    folder = copied("preflmr", tmp_path / "checkpoint")
    save_file({"bert.embeddings.weight": torch.zeros(2)}, folder / "model.safetensors")
    line = (
        rf"^{folder} lacks \d+ of the model's parameters \((\S+, ){{3}}\.\.\.\): a checkpoint of "
        "another architecture, or incomplete; allow_missing=True starts them at random$"
    )
    with pytest.raises(UserError, match=line):
        FLMRModelForRetrieval.from_pretrained(folder)


def test_lacking_parameters_start_at_random_only_if_allowed(tmp_path):
    folder = copied("preflmr", tmp_path / "checkpoint")
    state = load_file(folder / "model.safetensors")
    del state["transformer_mapping_output_linear.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=rf"^{folder} lacks 1 .* \(transformer_mapping_output_linear.weight\): a"
    ):
        FLMRModelForRetrieval.from_pretrained(folder)
    model, info = FLMRModelForRetrieval.from_pretrained(
        folder, allow_missing=True, output_loading_info=True
    )
    assert info["missing_keys"] == {"transformer_mapping_output_linear.weight"}
    assert model.transformer_mapping_output_linear.weight.std() > 0


def test_parameters_of_other_sizes_get_one_clear_line(tmp_path):
    folder = copied("preflmr", tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["dim"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    line = "its parameters do not have the sizes in its config.json: "
    with pytest.raises(UserError, match=rf"^{folder}: {line}\S+ is \[.+\], \[.+\] is expected$"):
        FLMRModelForRetrieval.from_pretrained(folder)


@pytest.mark.parametrize("side", ["query", "context"])
def test_missing_tokenizer_folders_are_named(side, tmp_path):
    folder = copied("preflmr", tmp_path / "checkpoint")
    shutil.rmtree(folder / f"{side}_tokenizer")
    with pytest.raises(UserError, match=f"no tokenizer in {side}_tokenizer/"):
        FLMRModelForRetrieval.from_pretrained(folder)
    # Given by hand, it is not needed in the folder.
    kind = flmr.FLMRQueryEncoderTokenizer if side == "query" else flmr.FLMRContextEncoderTokenizer
    tokenizer = kind.from_pretrained(parity.checkpoint("preflmr"))
    model = FLMRModelForRetrieval.from_pretrained(folder, **{f"{side}_tokenizer": tokenizer})
    check_query(model, "preflmr")


def test_a_released_files_further_values_do_not_disturb(tmp_path):
    folder = copied("preflmr", tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["_name_or_path"] = "./where-its-authors-had-it"
    config["auto_map"] = {"AutoModel": "modeling_flmr.FLMRModelForRetrieval"}
    config["torch_dtype"] = "float32"
    config["text_config"] |= {"architectures": ["BertForMaskedLM"], "gradient_checkpointing": False}
    config["vision_config"]["dropout"] = 0.0
    (folder / "config.json").write_text(json.dumps(config))
    for model in (AutoModel.from_pretrained(folder), FLMRModelForRetrieval.from_pretrained(folder)):
        check_query(model, "preflmr")


def test_missing_files_and_base_models_are_named(tmp_path):
    with pytest.raises(UserError, match=f"^no such checkpoint folder: {tmp_path / 'nowhere'}$"):
        FLMRModelForRetrieval.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=f"^{tmp_path} has no config.json: not a checkpoint folder$"
    ):
        FLMRModelForRetrieval.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^the configuration of nobody/nothing cannot be read: ."):
        FLMRModelForRetrieval.from_pretrained("nobody/nothing")
    folder = copied("preflmr", tmp_path / "checkpoint")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(UserError, match="not a checkpoint folder"):
        FLMRModelForRetrieval.from_pretrained(folder)
    (folder / "other.safetensors").rename(folder / "model.safetensors")
    shutil.rmtree(tmp_path / "bert-base-stand-in")
    with pytest.raises(UserError, match=r"'bert-base-stand-in'.*not built in"):
        FLMRModelForRetrieval.from_pretrained(folder)


def test_fields_of_the_configuration_can_be_changed_on_loading():
    model = FLMRModelForRetrieval.from_pretrained(
        parity.checkpoint("preflmr"), mask_punctuation=False
    )
    assert model.config.mask_punctuation is False
    mask = model.doc_mask(parity.golden("preflmr")["doc_input_ids"])
    assert torch.equal(mask, parity.golden("preflmr")["doc_input_ids"] != 0)
