"""The configurations of the family: defaults, base models by name, and what a checkpoint shows."""

import json

import flmr_parity as parity
import pytest
from transformers import BertConfig, SiglipVisionConfig

from ravqa.core.errors import UserError
from ravqa.flmr import (
    FLMRConfig,
    FLMRTextConfig,
    FLMRTextModel,
    FLMRVisionConfig,
    FLMRVisionModel,
)
from ravqa.flmr.configuration import base_config, config_from_dict, read_config
from ravqa.flmr.encoders import place_of

# What the original's configuration has where a checkpoint's file says nothing.
DEFAULTS = {
    "dim": 128,
    "mapping_network_prefix_length": 32,
    "use_vision_encoder": True,
    "use_transformer_mapping_network": False,
    "transformer_mapping_config_base": None,
    "transformer_mapping_num_hidden_layers": None,
    "transformer_mapping_cross_attention_length": 32,
    "transformer_mapping_config": None,
    "mask_instruction_token": None,
    "mask_punctuation": True,
    "query_mask_input_ids_skip_list": [],
    "separate_query_and_context_text_encoder": False,
    "separate_query_and_context_vision_encoder": False,
    "query_concat_output_from_text_encoder": True,
    "query_concat_output_from_vision_encoder": True,
    "context_concat_output_from_text_encoder": True,
    "context_concat_output_from_vision_encoder": False,
    "vision_model_version": None,
    "initializer_range": 0.02,
    "load_cpu_extension": False,
    # Not of the original.
    "vision_projection_hidden_size": None,
    "photo_token_rank": None,
}
OTHERS = {
    **{name: not value for name, value in DEFAULTS.items() if isinstance(value, bool)},
    "dim": 7,
    "mapping_network_prefix_length": 3,
    "transformer_mapping_config_base": "bert-base-uncased",
    "transformer_mapping_num_hidden_layers": 2,
    "transformer_mapping_cross_attention_length": 5,
    "transformer_mapping_config": {"model_type": "bert"},
    "mask_instruction_token": ":",
    "query_mask_input_ids_skip_list": [4, 9],
    "vision_model_version": "some/tower",
    "initializer_range": 0.5,
    "vision_projection_hidden_size": 6,
    "photo_token_rank": 3,
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_option_has_its_default_is_taken_and_comes_back_from_a_file(name, tmp_path):
    assert getattr(FLMRConfig(), name) == DEFAULTS[name]
    FLMRConfig(**{name: OTHERS[name]}).save_pretrained(tmp_path)
    again = FLMRConfig.from_pretrained(tmp_path)
    assert {n: getattr(again, n) for n in DEFAULTS} == DEFAULTS | {name: OTHERS[name]}


def test_the_options_of_encoders_are_dicts_or_configurations():
    text, vision = FLMRTextConfig(hidden_size=24), FLMRVisionConfig(hidden_size=48)
    made = FLMRConfig(text, vision)
    assert made.text_config is text
    assert made.vision_config is vision
    made = FLMRConfig({"hidden_size": 24, "model_type": "bert"}, {"hidden_size": 48})
    assert (made.text_config.hidden_size, made.vision_config.hidden_size) == (24, 48)
    assert made.text_config.model_type == "flmr_text_model"
    assert FLMRConfig().text_config.hidden_size == 768
    assert FLMRConfig().vision_config.model_type == "flmr_vision_model"


def test_what_is_not_set_is_not_written():
    """The original also reads the file, and may have another default."""
    written = FLMRConfig().to_dict()
    assert written["mask_instruction_token"] is None
    names = {"text_encoder_base_model", "text_encoder_config"}
    assert not names & written["text_config"].keys()
    assert not {"vision_tower", "num_prefix_tokens"} & written["vision_config"].keys()
    text = FLMRTextConfig("bert-base-uncased", {"model_type": "bert"}).to_dict()
    assert names <= text.keys()
    tower = FLMRVisionConfig({"model_type": "siglip_vision_model"}, 0).to_dict()
    assert tower["num_prefix_tokens"] == 0
    assert tower["vision_tower"]["model_type"] == "siglip_vision_model"


# -- base models by name

BERT = (30522, 512, 2, 768, 3072, 12, 12, 0, 1e-12)
BASE, LARGE = (768, 3072, 12, 12, 1, 1e-5), (1024, 4096, 24, 16, 1, 1e-5)
# Of the models' own config.json: vocabulary, positions, types of tokens, width, inner width,
# layers, heads, padding id, epsilon.
BUILT_IN = {
    "bert-base-uncased": BERT,
    "google-bert/bert-base-uncased": BERT,
    "xlm-roberta-base": (250002, 514, 1, *BASE),
    "FacebookAI/xlm-roberta-base": (250002, 514, 1, *BASE),
    "xlm-roberta-large": (250002, 514, 1, *LARGE),
    "FacebookAI/xlm-roberta-large": (250002, 514, 1, *LARGE),
    "BAAI/bge-m3": (250002, 8194, 1, *LARGE),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_base_models_that_are_built_in_have_their_published_sizes(name):
    found = base_config(name)
    assert (
        found.vocab_size,
        found.max_position_embeddings,
        found.type_vocab_size,
        found.hidden_size,
        found.intermediate_size,
        found.num_hidden_layers,
        found.num_attention_heads,
        found.pad_token_id,
        found.layer_norm_eps,
    ) == BUILT_IN[name]
    if "bert-base" in name:
        assert found.model_type == "bert"
    else:
        assert found.model_type == "xlm-roberta"
        assert (found.bos_token_id, found.eos_token_id) == (0, 2)


def base_at(folder, hidden_size):
    folder.mkdir(parents=True)
    values = {"model_type": "bert", "hidden_size": hidden_size, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")


def test_a_base_model_is_searched_in_the_checkpoints_folder_and_beside_it(tmp_path, monkeypatch):
    near = tmp_path / "models" / "one" / "checkpoint"
    near.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    places = [near.parents[1], near.parent, near, tmp_path / "elsewhere"]
    for number, place in enumerate(places):  # the last is searched first
        base_at(place / "base", 10 + number)
        assert base_config("base", str(near)).hidden_size == 10 + number
        assert base_config(str(place / "base"), str(near)).hidden_size == 10 + number
    assert base_config("base").hidden_size == 13
    assert base_config(str(tmp_path / "models" / "base")).hidden_size == 10
    base_at(tmp_path / "far", 9)  # two levels above the checkpoint's folder, and no further
    near = near / "deeper"
    near.mkdir()
    with pytest.raises(UserError) as caught:
        base_config("far", str(near))
    line = (
        "the configuration of '{0}', which the checkpoint {1} builds on, is not built in and not "
        "on this machine: put its config.json into a folder '{0}' beside the checkpoint"
    )
    assert str(caught.value) == line.format("far", near)
    with pytest.raises(UserError) as caught:
        base_config("far away/and/nowhere")
    assert str(caught.value) == line.format("far away/and/nowhere", "(without a folder)")


def test_a_base_model_is_found_beside_a_checkpoint_given_by_a_relative_path(tmp_path, monkeypatch):
    base_at(tmp_path / "base", 11)
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.chdir(tmp_path / "checkpoint")
    assert base_config("base", ".").hidden_size == 11


def test_the_hub_is_asked_only_for_a_checkpoint_from_the_hub(tmp_path, monkeypatch):
    asked = []

    def load(name, **options):
        asked.append((name, options))
        return "found"

    monkeypatch.setattr("ravqa.flmr.configuration.load_config", load)
    for near, local in (("", True), (str(tmp_path), True), ("somebody/something", False)):
        assert base_config("some/base", near) == "found"
        options = {"trust_remote_code": False, "local_files_only": local}
        assert asked.pop() == ("some/base", options)
    base_at(tmp_path / "base", 11)
    assert base_config("base", str(tmp_path)) == "found"
    assert asked == [(str(tmp_path / "base"), {"trust_remote_code": False})]


def test_types_that_transformers_does_not_know_are_named():
    assert config_from_dict({"model_type": "bert", "hidden_size": 24}).hidden_size == 24
    for values, name in (({"model_type": "nonesuch"}, "nonesuch"), ({}, "")):
        with pytest.raises(UserError, match=f"^transformers knows no model of type '{name}'$"):
            config_from_dict(values)


# -- a checkpoint's file


def test_values_and_left_over_options_of_a_file(tmp_path):
    base_at(tmp_path / "inner", 12)
    values, rest = read_config(tmp_path / "inner", dim=5)
    assert values["hidden_size"] == 12
    assert rest == {"dim": 5}
    values, rest = read_config(str(tmp_path), subfolder="inner")
    assert values["hidden_size"] == 12
    with pytest.raises(
        UserError, match=f"^{tmp_path} has no config.json: not a checkpoint folder$"
    ):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"^/.* has no config\.json: not a checkpoint folder$"):
        read_config(tmp_path, subfolder="other")


@pytest.mark.parametrize("name", ["./gone", "/gone/away", "~/gone", "one/two/three"])
def test_a_checkpoint_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match=f"^no such checkpoint folder: {name}$"):
        read_config(name)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        UserError, match=f"^the configuration of {tmp_path} cannot be read: ."
    ) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=rf"^{tmp_path} has no config\.json: not a checkpoint$"):
        FLMRConfig.from_pretrained(tmp_path)


def test_the_name_is_the_place_that_was_read():
    folder = parity.checkpoint("flmr")
    config, rest = FLMRConfig.from_pretrained(folder, return_unused_kwargs=True, other=1)
    assert config.name_or_path == str(folder) == place_of(config)
    assert rest == {"other": 1}
    assert place_of(FLMRConfig()) == ""
    named = FLMRConfig()
    for nothing in (None, "None", ""):
        named.name_or_path = nothing
        assert place_of(named) == ""


# -- encoders of other kinds

XLM = {
    "model_type": "xlm-roberta",
    "vocab_size": 77,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}


def test_a_text_encoder_of_another_kind_shows_its_own_sizes(tmp_path):
    config = FLMRTextConfig(text_encoder_config=XLM)
    config._attn_implementation = "eager"
    made = config.encoder_config()
    assert made.model_type == "xlm-roberta"
    assert made._attn_implementation == "eager"
    for name, value in XLM.items():
        if name not in ("model_type", "num_attention_heads"):
            assert getattr(config, name) == value
    plain = FLMRTextConfig(hidden_size=20)
    assert plain.encoder_config() is plain
    assert plain.hidden_size == 20
    # By name, the base model's values are kept, without what belongs to one run.
    base_at(tmp_path / "base", 18)
    named = FLMRTextConfig("base")
    named.settle(str(tmp_path / "base"))
    assert named.hidden_size == named.text_encoder_config["hidden_size"] == 18
    run = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"}
    assert not run & named.text_encoder_config.keys()
    FLMRTextConfig("base", XLM).settle("nowhere")  # what it needs is there already


def test_a_vision_tower_of_another_kind_shows_its_own_sizes():
    own = SiglipVisionConfig(
        hidden_size=24, image_size=48, patch_size=12, num_hidden_layers=5, num_attention_heads=2
    )
    for tower in (own, own.to_dict()):
        config = FLMRVisionConfig(vision_tower=tower, num_prefix_tokens=3)
        sizes = (config.hidden_size, config.image_size, config.patch_size)
        assert (*sizes, config.num_hidden_layers) == (24, 48, 12, 5)
        assert config.num_prefix_tokens == 3
        assert isinstance(config.vision_tower, dict)
        config._attn_implementation = "eager"
        made = config.tower_config()
        assert (made.model_type, made.hidden_size) == ("siglip_vision_model", 24)
        assert made._attn_implementation == "eager"
    clip = FLMRVisionConfig(hidden_size=24)
    assert clip.tower_config() is clip


def config_of(kind, folder, values):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    made = kind._checkpoint_config(str(folder), {})
    assert made.name_or_path == str(folder)
    return made


@pytest.mark.parametrize("model_type", ["bert", "flmr_text_model", "xlm-roberta", "flmr"])
def test_a_text_encoder_is_read_from_checkpoints_of_every_kind(model_type, tmp_path):
    values = XLM | {"model_type": model_type}
    if model_type == "flmr":
        values = {"model_type": "flmr", "text_config": values, "vision_config": {}}
    made = config_of(FLMRTextModel, tmp_path / "c", values)
    assert isinstance(made, FLMRTextConfig)
    made.settle()
    assert (made.hidden_size, made.vocab_size, made.num_hidden_layers) == (24, 77, 3)
    expected = "xlm-roberta" if model_type == "xlm-roberta" else None
    assert (made.text_encoder_config or {}).get("model_type") == expected


TOWER = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 48}


@pytest.mark.parametrize(
    ("values", "tower"),
    [
        ({**TOWER, "model_type": "clip_vision_model"}, None),
        ({**TOWER, "model_type": "flmr_vision_model"}, None),
        ({"model_type": "clip", "vision_config": {**TOWER, "model_type": "x"}}, None),
        ({"model_type": "flmr", "vision_config": TOWER, "text_config": {}}, None),
        ({**TOWER, "model_type": "siglip_vision_model"}, "siglip_vision_model"),
        ({"model_type": "siglip", "vision_config": TOWER}, "siglip_vision_model"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_vision_tower_is_read_from_checkpoints_of_every_kind(values, tower, tmp_path):
    made = config_of(FLMRVisionModel, tmp_path / "c", values)
    assert isinstance(made, FLMRVisionConfig)
    assert (made.hidden_size, made.num_hidden_layers, made.image_size) == (24, 3, 48)
    assert (made.vision_tower or {}).get("model_type") == tower


# -- the mapping network

INPUT = "transformer_mapping_input_linear.weight"
INNER = "transformer_mapping_network.layer.0.intermediate.dense.weight"


def mapped(**options):
    options = {"transformer_mapping_config": {"model_type": "bert"}, **options}
    return FLMRConfig(use_transformer_mapping_network=True, **options)


@pytest.mark.parametrize(
    ("width", "inner", "expected"),
    [
        (768, 3072, (768, 3072, 12)),
        (768, 100, (768, 100, 12)),
        (1024, 4096, (1024, 4096, 16)),
        (96, 64, (96, 64, 1)),
        (32, 64, (32, 64, 1)),
    ],
)
def test_a_mapping_network_has_the_sizes_of_its_parameters(width, inner, expected):
    config = mapped()
    config.fit_mapping({INPUT: (width, 5), INNER: (inner, width)})
    made = config.mapping_config()
    assert (made.hidden_size, made.intermediate_size, made.num_attention_heads) == expected
    assert isinstance(made.num_attention_heads, int)


def test_a_mapping_network_that_parameters_do_not_show_is_left_alone():
    config = mapped()
    config.fit_mapping({INNER: (5, 5)})
    assert config.transformer_mapping_config == {"model_type": "bert"}
    config.fit_mapping({INPUT: (64, 5)})
    assert config.transformer_mapping_config == {
        "model_type": "bert",
        "hidden_size": 64,
        "num_attention_heads": 1,
    }
    none = FLMRConfig(transformer_mapping_config={"model_type": "bert"})
    none.fit_mapping({INPUT: (64, 5), INNER: (5, 5)})
    assert none.transformer_mapping_config == {"model_type": "bert"}


def test_a_mapping_networks_base_is_bert_unless_it_is_named(tmp_path):
    config = mapped(transformer_mapping_config=None)
    made = config.mapping_config()
    assert made.to_diff_dict() == BertConfig(num_hidden_layers=1).to_diff_dict()
    assert config.transformer_mapping_config["model_type"] == "bert"
    base_at(tmp_path / "base", 18)
    options = {"transformer_mapping_config": None, "transformer_mapping_num_hidden_layers": 3}
    named = mapped(transformer_mapping_config_base="base", **options)
    named.settle(str(tmp_path / "base"))
    assert named.transformer_mapping_config["hidden_size"] == 18
    made = named.mapping_config()
    assert (made.hidden_size, made.num_hidden_layers) == (18, 3)
    without = FLMRConfig(transformer_mapping_config_base="nowhere at all")
    without.settle()  # no mapping network, so its base is not needed
    assert without.transformer_mapping_config is None
