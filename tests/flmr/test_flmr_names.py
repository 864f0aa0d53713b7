"""Names of parameters, and the files of a checkpoint, one rule at a time."""

import json
import shutil

import flmr_parity as parity
import pytest
import torch
from safetensors.torch import save_file

from ravqa.core.errors import UserError
from ravqa.flmr import FLMRTextModel, FLMRVisionModel, convert
from ravqa.flmr.checkpoints import canonical_names, from_lightning, read_checkpoint, read_tensors


def numbered(*names):
    """A tensor of its own for each name: its place in the list."""
    return {name: torch.tensor([float(i)]) for i, name in enumerate(names)}


def renamed(state, rename):
    """New names by the old ones, by the tensors' values."""
    old = {float(tensor): name for name, tensor in state.items()}
    return {old[float(tensor)]: new for new, tensor in rename(state).items()}


# -- the released names

CANONICAL = [
    # as found, shared text encoder, shared vision encoder, as the models call it
    ("query_text_encoder.bert_model.x", True, True, "context_text_encoder.bert_model.x"),
    ("query_text_encoder.bert_model.x", False, True, "query_text_encoder.bert_model.x"),
    ("query_text_encoder.text_model.x", True, False, "context_text_encoder.bert_model.x"),
    ("query_text_encoder.text_model.x", False, False, "query_text_encoder.bert_model.x"),
    ("context_text_encoder.text_model.a.x", False, False, "context_text_encoder.bert_model.a.x"),
    ("query_text_encoder_linear.weight", True, False, "context_text_encoder_linear.weight"),
    ("query_text_encoder_linear.weight", False, True, "query_text_encoder_linear.weight"),
    ("query_vision_projection.model.0.bias", False, True, "context_vision_projection.model.0.bias"),
    ("query_vision_projection.model.0.bias", True, False, "query_vision_projection.model.0.bias"),
    (
        "query_vision_encoder.vision_model.x",
        False,
        True,
        "context_vision_encoder.vision_model.vision_model.x",
    ),
    (
        "query_vision_encoder.vision_model.vision_model.x",
        True,
        False,
        "query_vision_encoder.vision_model.vision_model.x",
    ),
    ("module.transformer_mapping_network.x", False, False, "transformer_mapping_network.x"),
    ("a.module.b", False, False, "a.module.b"),
    ("lone", True, True, "lone"),
]


@pytest.mark.parametrize(("found", "text", "vision", "expected"), CANONICAL)
def test_every_released_name_becomes_the_models(found, text, vision, expected):
    made = canonical_names(numbered(found), shared_text=text, shared_vision=vision)
    assert list(made) == [expected]


def test_nothing_is_shared_unless_it_is_said():
    state = numbered("query_text_encoder_linear.weight", "query_vision_projection.model.0.bias")
    assert canonical_names(state).keys() == state.keys()


def test_of_two_aliases_that_of_documents_is_kept_and_position_ids_are_dropped():
    state = numbered(
        "query_text_encoder_linear.weight",
        "context_text_encoder_linear.weight",
        "context_text_encoder.bert_model.embeddings.position_ids",
        "query_vision_encoder.vision_model.embeddings.position_ids",
    )
    made = canonical_names(state, shared_text=True, shared_vision=True)
    assert made == {"context_text_encoder_linear.weight": torch.tensor([1.0])}


# -- the research code's names

LIGHTNING = {
    "model.model.bert.encoder.x": "context_text_encoder.bert_model.encoder.x",
    "model.bert.encoder.y": "context_text_encoder.bert_model.encoder.y",
    "model.model.linear.weight": "context_text_encoder_linear.weight",
    "model.linear.bias": "context_text_encoder_linear.bias",
    "model.query_encoder.bert.encoder.x": "query_text_encoder.bert_model.encoder.x",
    "model.query_encoder.embeddings.x": "query_text_encoder.bert_model.embeddings.x",
    "model.query_encoder.encoder.y": "query_text_encoder.bert_model.encoder.y",
    "model.query_encoder.pooler.x": "query_text_encoder.bert_model.pooler.x",
    "model.query_linear.weight": "query_text_encoder_linear.weight",
    "model.vision_projection.model.0.bias": "context_vision_projection.model.0.bias",
    "model.transformer_mapping_network.layer.0.x": "transformer_mapping_network.layer.0.x",
    "model.vision_encoder.vision_model.x": "context_vision_encoder.vision_model.x",
    "other.thing": "other.thing",
    "model.model.other": "model.model.other",
}
# The mapping network's two layers have one of three pairs of names.
MAPPING_PAIRS = [
    ("vision_projection_input_linear2", "vision_projection_linear2"),
    ("vision_projection_input_linear", "vision_projection_linear"),
    ("transformer_mapping_input_linear", "transformer_mapping_output_linear"),
]


def test_every_name_of_the_research_code_becomes_the_released_one():
    assert renamed(numbered(*LIGHTNING), from_lightning) == LIGHTNING


@pytest.mark.parametrize(("before", "after"), MAPPING_PAIRS)
def test_the_mapping_networks_layers_have_one_of_three_names(before, after):
    state = numbered(f"model.{before}.weight", f"model.{after}.bias")
    assert list(from_lightning(state)) == [
        "transformer_mapping_input_linear.weight",
        "transformer_mapping_output_linear.bias",
    ]


def test_beside_a_second_input_layer_the_first_is_left_as_it_is():
    state = numbered(
        "model.vision_projection_input_linear.weight",
        "model.vision_projection_input_linear2.weight",
    )
    assert renamed(state, from_lightning) == {
        "model.vision_projection_input_linear.weight": "vision_projection_input_linear.weight",
        "model.vision_projection_input_linear2.weight": "transformer_mapping_input_linear.weight",
    }


# -- encoders alone

PREFIXES = ["", "bert.", "roberta.", "deberta.", "distilbert.", "electra.", "mpnet.", "model."]


@pytest.mark.parametrize("prefix", [*PREFIXES, "bert_model.", "context_text_encoder.bert_model."])
def test_a_text_encoders_names_lose_what_a_task_put_before_them(prefix):
    state = numbered(f"{prefix}encoder.layer.0.x", "cls.predictions.bias", "lm_head.bias")
    made = FLMRTextModel._canonical(state, None)
    assert made == {"bert_model.encoder.layer.0.x": torch.tensor([0.0])}


def test_a_text_encoder_takes_nothing_else_of_the_family():
    state = numbered(
        "context_text_encoder.bert_model.x",
        "context_text_encoder_linear.weight",
        "query_text_encoder_linear.weight",
        "transformer_mapping_input_linear.bias",
        "context_vision_encoder.vision_model.vision_model.x",
    )
    assert list(FLMRTextModel._canonical(state, None)) == ["bert_model.x"]


@pytest.mark.parametrize(
    "name",
    [
        "encoder.x",
        "vision_model.encoder.x",
        "vision_model.vision_model.encoder.x",
        "context_vision_encoder.vision_model.vision_model.encoder.x",
        "context_vision_encoder.vision_model.encoder.x",
        "query_vision_encoder.vision_model.encoder.x",
    ],
)
def test_a_vision_towers_names_have_their_level_once(name):
    made = FLMRVisionModel._canonical(numbered(name, "embeddings.position_ids"), None)
    assert made == {"vision_model.vision_model.encoder.x": torch.tensor([0.0])}


@pytest.mark.parametrize("own", ["vision_model.x", "context_vision_encoder.vision_model.x"])
def test_a_vision_tower_takes_nothing_else_of_a_larger_model(own):
    state = numbered("text_model.encoder.x", own, "visual_projection.weight", "logit_scale")
    assert list(FLMRVisionModel._canonical(state, None)) == ["vision_model.vision_model.x"]


# -- files

FILES = {
    "model.safetensors": 1,
    "model-1.safetensors": 2,
    "pytorch_model.bin": 3,
    "pytorch_model-1.bin": 4,
}


def put(folder, name, number):
    """A file of one tensor; for a shard also the index that names it."""
    folder.mkdir(parents=True, exist_ok=True)
    save = save_file if name.endswith(".safetensors") else torch.save
    save({"a": torch.tensor([number])}, folder / name)
    if "-1" in name:
        index = name.replace("-1", "") + ".index.json"
        values = {"weight_map": {"a": name}}
        (folder / index).write_text(json.dumps(values), encoding="utf-8")


def test_files_are_tried_in_transformers_order(tmp_path):
    for name, number in FILES.items():
        put(tmp_path, name, number)
    for (name, number), is_bin in zip(FILES.items(), (False, False, True, True), strict=True):
        assert read_checkpoint(str(tmp_path))["a"].item() == number
        assert read_checkpoint(str(tmp_path), use_safetensors=False)["a"].item() == max(3, number)
        if not is_bin:
            assert read_checkpoint(str(tmp_path), use_safetensors=True)["a"].item() == number
        whole = name if "-1" not in name else name.replace("-1", "") + ".index.json"
        (tmp_path / whole).unlink()
    put(tmp_path, "pytorch_model.bin", 3)
    with pytest.raises(UserError, match=r"has no model\.safetensors: not a checkpoint folder"):
        read_checkpoint(str(tmp_path), use_safetensors=True)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(
        UserError, match=r"^/.* has no model\.safetensors or pytorch_model\.bin: not a"
    ):
        read_checkpoint(str(tmp_path))
    with pytest.raises(UserError, match=r"has no pytorch_model\.bin: not a"):
        read_checkpoint(str(tmp_path), use_safetensors=False)


def test_a_variant_is_part_of_every_files_name(tmp_path):
    put(tmp_path, "model.safetensors", 1)
    put(tmp_path, "model.fp16.safetensors", 2)
    assert read_checkpoint(str(tmp_path), variant="fp16")["a"].item() == 2
    (tmp_path / "model.fp16.safetensors").unlink()
    put(tmp_path, "shard-1.safetensors", 3)
    (tmp_path / "shard.safetensors.index.json").rename(
        tmp_path / "model.fp16.safetensors.index.json"
    )
    assert read_checkpoint(str(tmp_path), variant="fp16")["a"].item() == 3
    with pytest.raises(UserError, match=r"has no model\.bf16\.safetensors or pytorch_model\.bf16"):
        read_checkpoint(str(tmp_path), variant="bf16")


def test_a_subfolder_is_looked_into_alone(tmp_path):
    put(tmp_path, "model.safetensors", 1)
    put(tmp_path / "inner", "model.safetensors", 2)
    put(tmp_path / "inner", "model-1.safetensors", 3)
    assert read_checkpoint(str(tmp_path), subfolder="inner")["a"].item() == 2
    (tmp_path / "inner" / "model.safetensors").unlink()
    assert read_checkpoint(str(tmp_path), subfolder="inner")["a"].item() == 3
    with pytest.raises(UserError, match="not a checkpoint folder"):
        read_checkpoint(str(tmp_path), subfolder="other")


@pytest.mark.parametrize("text", ["{", "{}", '{"metadata": {}}'])
def test_an_index_of_shards_that_is_none_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"^/.*index\.json is not an index of shards$"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", ["file", "./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_checkpoint_that_is_no_folder_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=f"^no such checkpoint folder: {name}$"):
        read_checkpoint(name)


def test_a_name_that_the_hub_does_not_give_is_no_checkpoint():
    with pytest.raises(UserError, match="nobody/nothing has no model"):
        read_checkpoint("nobody/nothing")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain pickle"])
def test_tensors_are_read_from_both_forms_of_torchs_files(tmp_path, zipped):
    content = {"state_dict": {"a": torch.arange(3), "n": 5}, "epoch": 1}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "x.ckpt")
    assert list(found) == ["a"]
    assert found["a"].tolist() == [0, 1, 2]


def test_a_file_without_named_tensors_and_a_pointer_to_one_are_named(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.bin")
    with pytest.raises(UserError, match=r"^/.*list\.bin contains no named tensors$"):
        read_tensors(tmp_path / "list.bin")
    torch.save({"state_dict": 5, "b": torch.ones(1)}, tmp_path / "odd.bin")
    assert list(read_tensors(tmp_path / "odd.bin")) == ["b"]
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    (tmp_path / "model.safetensors").write_text(pointer, encoding="utf-8")
    line = "is a Git LFS pointer, not the file itself: run git lfs pull there"
    with pytest.raises(UserError, match=f"^{tmp_path / 'model.safetensors'} {line}$"):
        read_tensors(tmp_path / "model.safetensors")
    (tmp_path / "cut.bin").write_bytes(b"PK" + bytes(2000))
    with pytest.raises(UserError, match="cannot be read as plain tensors") as caught:
        read_tensors(tmp_path / "cut.bin")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 400


# -- conversion


def weights(name):
    return parity.checkpoint(name) / "model.safetensors"


@pytest.mark.parametrize("form", ["folder", "safetensors", "bin"])
def test_a_converted_checkpoint_has_the_image_preparation_beside_it(tmp_path, form):
    source = tmp_path / "source"
    shutil.copytree(parity.checkpoint("flmr"), source)
    (source / "preprocessor_config.json").write_text('{"size": 32}', encoding="utf-8")
    (source / "image_processor").mkdir()
    (source / "image_processor" / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    if form == "bin":
        torch.save(read_tensors(source / "model.safetensors"), source / "pytorch_model.bin")
    file = {"folder": "", "safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[form]
    (tmp_path / "out" / "image_processor").mkdir(parents=True)  # it may be there already
    assert convert(source / file, tmp_path / "out") == []
    made = read_tensors(tmp_path / "out" / "model.safetensors")
    truth = read_tensors(weights("flmr"))
    assert made.keys() == truth.keys()
    assert all(torch.equal(made[k], truth[k]) for k in truth)
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"size": 32}'
    inner = tmp_path / "out" / "image_processor" / "preprocessor_config.json"
    assert inner.read_text() == "{}"


def test_a_file_may_be_converted_into_a_folder_that_has_its_configuration(tmp_path):
    shutil.copytree(parity.checkpoint("flmr"), tmp_path / "out")
    (tmp_path / "out" / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    shutil.move(tmp_path / "out" / "model.safetensors", tmp_path / "loose.safetensors")
    assert convert(tmp_path / "loose.safetensors", tmp_path / "out") == []
    assert read_tensors(tmp_path / "out" / "model.safetensors").keys()
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == "{}"


def test_a_folder_with_shards_has_a_checkpoint(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="already has a checkpoint"):
        convert(parity.checkpoint("flmr"), tmp_path / "out")
