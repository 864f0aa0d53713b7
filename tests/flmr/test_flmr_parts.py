"""Loading options, and the models' parts, each against its definition."""

import copy

import flmr_parity as parity
import pytest
import torch
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from torch.nn import functional
from transformers import BertConfig, SiglipVisionConfig

from ravqa.core.checkpoints import WeightsError
from ravqa.core.errors import UserError
from ravqa.flmr import (
    FLMRConfig,
    FLMRInputError,
    FLMRModelForRetrieval,
    FLMRTextConfig,
    FLMRTextModel,
    FLMRVisionConfig,
    FLMRVisionModel,
    ImageFeatures,
)
from ravqa.flmr.mapping import MappingNetwork
from ravqa.flmr.modeling import gather_documents

WITHIN = {"rtol": 0, "atol": 1e-5}
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 16}


def tiny_text(seed=0):
    torch.manual_seed(seed)
    return FLMRTextModel(FLMRTextConfig(vocab_size=20, **SIZES)).eval()


def built(**options):
    torch.manual_seed(0)
    return FLMRModelForRetrieval(parity.tiny_config(**options)).eval()


def same(model, other):
    theirs = other.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items())


# -- loading


def test_subfolders_variants_and_bin_files_are_loaded_where_they_are_named(tmp_path):
    for seed, (place, options) in enumerate(
        {
            "plain": {},
            "inner": {"subfolder": "inner"},
            "fp16": {"variant": "fp16"},
            "bin": {"use_safetensors": False},
        }.items()
    ):
        model = tiny_text(seed)
        folder = tmp_path / "inner" if place == "inner" else tmp_path
        if place == "bin":
            torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        else:
            variant = "fp16" if place == "fp16" else None
            model.save_pretrained(folder, variant=variant)
        assert same(model, FLMRTextModel.from_pretrained(tmp_path, **options))
    assert same(tiny_text(0), FLMRTextModel.from_pretrained(tmp_path))


def test_a_configuration_that_is_given_is_used_and_not_changed(tmp_path):
    tiny_text().save_pretrained(tmp_path)
    given = FLMRTextConfig(vocab_size=20, **SIZES, hidden_act="relu")
    before = given.to_dict()
    model = FLMRTextModel.from_pretrained(tmp_path, config=given, layer_norm_eps=0.5)
    assert given.to_dict() == before
    assert model.config is not given
    assert (model.config.hidden_act, model.config.layer_norm_eps) == ("relu", 0.5)
    assert model.config.name_or_path == model.name_or_path == str(tmp_path)
    given.save_pretrained(tmp_path / "other")
    model = FLMRTextModel.from_pretrained(tmp_path, config=tmp_path / "other")
    assert model.config.hidden_act == "relu"


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_the_type_of_the_parameters_can_be_chosen(tmp_path, option):
    tiny_text().save_pretrained(tmp_path)
    model, info = FLMRTextModel.from_pretrained(
        tmp_path,
        output_loading_info=True,
        trust_remote_code=True,
        weights_only=True,
        code_revision="main",
        **{option: torch.bfloat16},
    )
    assert model.dtype == torch.bfloat16
    assert not info["missing_keys"]


def test_parameters_that_are_given_need_no_folder():
    model = tiny_text()
    config = copy.deepcopy(model.config)
    config.name_or_path = "where/it/was"
    again = FLMRTextModel.from_pretrained(None, config=config, state_dict=model.state_dict())
    assert same(model, again)
    assert again.name_or_path == "where/it/was"


def lacking(*names):
    state = {k: v for k, v in tiny_text().state_dict().items() if not k.endswith(names)}
    config = tiny_text().config
    config.name_or_path = "here"
    return FLMRTextModel.from_pretrained(None, config=config, state_dict=state)


def test_what_a_checkpoint_lacks_is_counted_and_the_first_three_are_named():
    start = "bert_model.encoder.layer.0.attention.output"
    names = [f"{start}.LayerNorm.bias", f"{start}.LayerNorm.weight", f"{start}.dense.bias"]
    end = (
        "): a checkpoint of another architecture, or incomplete; allow_missing=True starts them "
        "at random"
    )
    with pytest.raises(UserError) as caught:
        lacking("0.attention.output.LayerNorm.bias", *names[1:])
    assert str(caught.value) == f"here lacks 3 of the model's parameters ({', '.join(names)}{end}"
    with pytest.raises(UserError) as caught:
        lacking(*names, "1.output.dense.bias")
    assert (
        str(caught.value) == f"here lacks 4 of the model's parameters ({', '.join(names)}, ...{end}"
    )
    lacking("pooler.dense.weight", "pooler.dense.bias")  # not used by the family


def test_a_parameter_of_another_size_or_that_is_no_number_is_named():
    state = tiny_text().state_dict()
    key = "bert_model.encoder.layer.1.output.dense.bias"
    with pytest.raises(UserError, match=rf"config\.json: {key} is \[5\], \[24\] is expected$"):
        FLMRTextModel.from_pretrained(
            None, config=tiny_text().config, state_dict={**state, key: torch.zeros(5)}
        )
    state[key][3] = float("nan")
    with pytest.raises(WeightsError, match=key):
        FLMRTextModel.from_pretrained(None, config=tiny_text().config, state_dict=state)


@pytest.mark.parametrize("needed", [True, False])
def test_tokenizers_that_are_not_needed_may_be_missing(tmp_path, needed):
    built(mask_punctuation=needed).save_pretrained(tmp_path / "inner")
    if needed:
        with pytest.raises(UserError, match="no tokenizer in inner/context_tokenizer/"):
            FLMRModelForRetrieval.from_pretrained(tmp_path, subfolder="inner")
        given, _ = parity.load("preflmr")
        given.context_tokenizer.save_pretrained(tmp_path / "inner" / "context_tokenizer")
    model = FLMRModelForRetrieval.from_pretrained(tmp_path, subfolder="inner", query_tokenizer=None)
    assert model.query_tokenizer is None
    assert (model.context_tokenizer is not None) == needed


def test_only_the_main_process_writes_tokenizers(tmp_path):
    model, _ = parity.load("preflmr")
    for main in (True, False):
        model.save_pretrained(tmp_path / str(main), is_main_process=main)
        written = {p.name for p in (tmp_path / str(main)).iterdir() if p.is_dir()}
        assert written == ({"query_tokenizer", "context_tokenizer"} if main else set())
    model.load_state_dict(dict(model.state_dict()), strict=True)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({"transformer_mapping_input_linear.bias": torch.zeros(3)})
    assert model.load_state_dict({}, strict=False).missing_keys


# -- encoders


def test_the_attention_is_what_it_was_after_weights_were_wanted_and_after_an_error():
    model, _ = parity.load("preflmr")
    text = model.context_text_encoder
    ids = torch.tensor([[4, 1, 5]])
    with torch.no_grad():
        assert text(ids, output_attentions=True).attentions[0].shape == (1, 4, 3, 3)
        assert not text(ids).attentions
    names = {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}
    assert names == {"sdpa"}
    with pytest.raises((IndexError, RuntimeError)):
        text(ids + 100_000, output_attentions=True)
    assert text.bert_model.config._attn_implementation == "sdpa"


def tower(**options):
    torch.manual_seed(0)
    sizes = {"image_size": 24, "patch_size": 8, **SIZES, **options}
    return FLMRVisionModel(FLMRVisionConfig(**sizes)).eval()


def test_a_towers_images_have_its_size():
    model = tower()
    for shape in ((3, 24, 24), (1, 3, 24, 32), (1, 3, 32, 24), (1, 1, 3, 24, 24)):
        message = rf"^images of shape \({', '.join(map(str, shape))}\) do not fit this model, which"
        with pytest.raises(FLMRInputError, match=message) as caught:
            model(torch.zeros(shape))
        end = " takes [images, 3, 24, 24]: prepare them with the checkpoint's FLMRProcessor"
        assert str(caught.value).endswith(f"which{end}")
    with pytest.raises(FLMRInputError, match=r"^no pixel_values given$"):
        model()
    model.config.image_size = [24, 32]
    assert model.image_size == (24, 32)


@pytest.mark.parametrize(
    ("image", "patch", "own", "positions", "expected"),
    [
        (24, 8, None, 10, 1),
        (24, 8, None, 9, 0),
        ([24, 32], 8, None, 13, 1),
        ([24, 32], [8, 16], None, 11, 5),
        (27, 8, None, 10, 1),  # what is left at the edges is no patch
        ([24, 39], [8, 16], None, 7, 1),
        ([27, 32], [8, 16], None, 7, 1),
        (24, 8, 3, 10, 3),
        (24, 8, 0, 10, 0),
    ],
)
def test_positions_before_the_patches_are_counted(image, patch, own, positions, expected):
    model = tower()
    model.config.image_size, model.config.patch_size = image, patch
    model.config.num_prefix_tokens = own
    assert model.num_prefix_tokens(positions) == expected


def test_fewer_positions_than_patches_are_an_error():
    with pytest.raises(FLMRInputError) as error:
        tower().num_prefix_tokens(8)
    assert str(error.value) == (
        "which outputs of the vision tower are patches cannot be told from the sizes: set "
        "num_prefix_tokens in the vision configuration"
    )


@torch.no_grad()
def test_a_tower_without_a_class_token_and_pooling_has_the_mean_of_its_patches():
    other = SiglipVisionConfig(image_size=24, patch_size=8, **SIZES, vision_use_head=False)
    torch.manual_seed(0)
    model = FLMRVisionModel(FLMRVisionConfig(vision_tower=other.to_dict())).eval()
    pixels = torch.randn(2, 3, 24, 24)
    features = model.features(pixels)
    whole = model(pixels, output_hidden_states=True)
    torch.testing.assert_close(features.pooled, whole.last_hidden_state.mean(1))
    assert torch.equal(features.patches, whole.hidden_states[-2])
    # If the first position is said to be none of a patch, it is the image's.
    model.config.num_prefix_tokens = 1
    features = model.features(pixels)
    assert torch.equal(features.pooled, whole.last_hidden_state[:, 0])
    assert torch.equal(features.patches, whole.hidden_states[-2][:, 1:])


@torch.no_grad()
def test_attentions_of_a_tower_are_given_if_wanted():
    model = tower()
    pixels = torch.randn(2, 3, 24, 24)
    assert model(pixels).get("attentions") is None
    assert len(model(pixels, output_attentions=True).attentions) == 2
    output = model.features(pixels, output_attentions=True, output_hidden_states=True).output
    assert len(output.hidden_states) == 3
    assert output.attentions[0].shape == (2, 4, 10, 10)


# -- the mapping network

MAPPING = BertConfig(hidden_size=12, num_hidden_layers=2, num_attention_heads=3)
MAPPING.intermediate_size = 20


def network(**options):
    config = copy.deepcopy(MAPPING)
    for name, value in options.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    made = MappingNetwork(config, 16)
    for parameter in made.parameters():  # larger differences than those of fresh parameters
        parameter.data.normal_(std=0.5)
    return made.eval()


def by_definition(made, states, text):
    """Post-norm layers: self-attention, attention to the text, and a perceptron, in loops."""

    def attend(part, x, others, heads=3):
        out = []
        layer = part.self
        for one, other in zip(x, others, strict=True):
            q, k, v = layer.query(one), layer.key(other), layer.value(other)
            mixed = []
            for h in range(heads):
                cols = slice(4 * h, 4 * h + 4)
                weights = torch.softmax(q[:, cols] @ k[:, cols].T / 2, -1)  # sqrt(4)
                mixed.append(weights @ v[:, cols])
            out.append(torch.cat(mixed, -1))
        dense = part.output.dense(torch.stack(out))
        return part.output.LayerNorm(dense + x)

    for layer in made.layer:
        states = attend(layer.attention, states, states)
        states = attend(layer.crossattention, states, text)
        inner = functional.gelu(layer.intermediate.dense(states))
        states = layer.output.LayerNorm(layer.output.dense(inner) + states)
    return states


@pytest.mark.parametrize("need_weights", [True, False])
@torch.no_grad()
def test_the_mapping_network_is_its_definition(need_weights):
    made = network()
    states, text = torch.randn(2, 5, 12), torch.randn(2, 7, 16)
    found, hidden, weights = made(states, text, None, need_weights)
    torch.testing.assert_close(found, by_definition(made, states, text))
    assert len(hidden) == 3
    assert torch.equal(hidden[0], states)
    assert torch.equal(hidden[-1], found)
    assert [w.shape for w in weights] == ([(2, 3, 5, 5)] * 2 if need_weights else [])
    # A masked position of the text is as if it were not there.
    mask = torch.tensor([[1, 1, 0, 1, 0, 0, 1]] * 2).bool()
    masked, _, _ = made(states, text, mask, need_weights)
    torch.testing.assert_close(masked, by_definition(made, states, text[:, mask[0]]))


@pytest.mark.parametrize("kind", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
@pytest.mark.parametrize("need_weights", [True, False])
@torch.no_grad()
def test_the_mapping_network_drops_out_in_training_alone(kind, need_weights):
    rates = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    states, text = torch.randn(1, 5, 12), torch.randn(1, 7, 16)
    expected = network(**rates)(states, text, None, need_weights)[0]
    made = network(**rates | {kind: 0.5})
    assert torch.equal(made(states, text, None, need_weights)[0], expected)
    made.train()
    assert not torch.allclose(made(states, text, None, need_weights)[0], expected)
    still = network(**rates).train()
    torch.testing.assert_close(still(states, text, None, need_weights)[0], expected)


MAPPED = {"use_transformer_mapping_network": True, "transformer_mapping_cross_attention_length": 5}


@pytest.mark.parametrize("skipped", [[], [9], [9, 5]])
@torch.no_grad()
def test_patches_see_the_first_text_positions_but_those_to_skip(skipped):
    model = built(query_mask_input_ids_skip_list=skipped, **MAPPED)
    ids = torch.tensor([[4, 1, 9, 5, 60, 9, 70, 80]])
    mask = torch.ones_like(ids)
    features = ImageFeatures(torch.randn(1, 24), torch.randn(1, 6, 24))
    output = model.query(ids, mask, image_features=features)
    text = model.query_text_encoder(ids, mask).last_hidden_state
    seen = [i for i in range(5) if ids[0, i] not in skipped]
    states, _, _ = model.transformer_mapping_network(
        model.transformer_mapping_input_linear(features.patches), text[:, seen], None, False
    )
    expected = functional.normalize(model.transformer_mapping_output_linear(states), dim=-1)
    torch.testing.assert_close(output.late_interaction_output[:, -6:], expected, **WITHIN)
    counted = output.late_interaction_output[0, :8].any(-1)
    assert counted.tolist() == [int(i) not in skipped for i in ids[0]]


# -- masks, flags and outputs


def test_without_tokenizers_and_berts_vocabulary_no_ids_are_known():
    ids = torch.tensor([[0, 999, 1024, 7]])
    for text in ({"vocab_size": 1200}, {"text_encoder_base_model": "xlm-roberta-base"}):
        sizes = SIZES | {"num_hidden_layers": 1}
        with torch.device("meta"):
            model = FLMRModelForRetrieval(
                FLMRConfig({**sizes, **text}, SIZES, mask_instruction_token=":")
            )
        assert model._separator_id is None
        assert model.doc_mask(ids).tolist() == [[False, True, True, True]]
    sizes |= {"vocab_size": 30531}
    with torch.device("meta"):
        model = FLMRModelForRetrieval(FLMRConfig(sizes, SIZES, mask_instruction_token=":"))
        assert model._separator_id == 1024
        model = FLMRModelForRetrieval(FLMRConfig(sizes, SIZES, mask_punctuation=False))
    assert model._separator_id is None
    assert model.doc_mask(ids).tolist() == [[False, True, True, True]]


def test_a_model_uses_images_if_any_part_of_it_does():
    off = {"use_vision_encoder": False, "query_concat_output_from_vision_encoder": False}
    model = built(**off)
    assert not model.uses_images
    assert not hasattr(model, "context_vision_projection")
    for option in (
        {"use_vision_encoder": True},
        {"query_concat_output_from_vision_encoder": True},
        {"context_concat_output_from_vision_encoder": True},
        {"use_transformer_mapping_network": True},
    ):
        model = built(**{**off, **option})
        assert model.uses_images
        assert model.context_vision_projection.model[0].in_features == 24
        assert hasattr(model, "context_vision_encoder") == ("use_vision_encoder" in option)
    two = built(separate_query_and_context_vision_encoder=True)
    assert two.query_vision_projection is not two.context_vision_projection
    assert two.query_vision_encoder is not two.context_vision_encoder


@torch.no_grad()
def test_one_flag_is_for_every_example():
    model, _ = parity.load("preflmr")
    given = {**parity.query_inputs("preflmr"), "pixel_values": parity.pixels("preflmr")}
    whole = model.query(**given)
    text = whole.late_interaction_output[:, :32]
    for off in (False, torch.tensor(False)):
        output = model.query(**given, concat_output_from_vision_encoder=off)
        torch.testing.assert_close(output.late_interaction_output, text, **WITHIN)
        torch.testing.assert_close(output.pooler_output, whole.pooler_output, **WITHIN)
        output = model.query(**given, concat_output_from_text_encoder=off)
        assert output.late_interaction_output.shape == (4, 20, 16)
        vision = functional.normalize(output.pooler_output, dim=-1)
        torch.testing.assert_close(output.late_interaction_output[:, 0], vision, **WITHIN)
        with pytest.raises(FLMRInputError, match=r"^queries of neither text nor images$"):
            model.query(
                **given,
                concat_output_from_text_encoder=off,
                concat_output_from_vision_encoder=off,
            )
        with pytest.raises(FLMRInputError, match=r"^documents of neither text nor images$"):
            model.doc(**parity.doc_inputs("preflmr"), concat_output_from_text_encoder=off)
    on = model.query(**given, concat_output_from_vision_encoder=torch.tensor(True))
    torch.testing.assert_close(on.late_interaction_output, whole.late_interaction_output, **WITHIN)


@torch.no_grad()
def test_what_is_missing_or_too_many_is_said():
    model, _ = parity.load("preflmr")
    ids, mask = parity.query_inputs("preflmr").values()
    for side, name in (("query", "queries"), ("doc", "documents")):
        for given in ({"input_ids": ids}, {"attention_mask": mask}, {}):
            with pytest.raises(FLMRInputError, match=f"^{name} need input_ids and attention_mask$"):
                getattr(model, side)(**given)
    flmr, _ = parity.load("flmr")
    with pytest.raises(
        FLMRInputError, match=r"^text and images of different numbers of examples: \[2, 4\]$"
    ):
        flmr.query(ids, mask, image_features=torch.zeros(2, 24))
    with pytest.raises(FLMRInputError, match=r"^the context embeddings of this model are made of"):
        flmr.doc(ids, mask, concat_output_from_vision_encoder=True)
    with pytest.raises(
        FLMRInputError, match=r"^image features of width 9: this model's are 24 wide$"
    ):
        flmr.query(ids, mask, image_features=torch.zeros(4, 9))
    line = "^this model has no vision encoder: give it image_features$"
    with pytest.raises(FLMRInputError, match=line):
        built(use_vision_encoder=False).encode_images(torch.zeros(1, 3, 32, 32))
    with pytest.raises(FLMRInputError, match=r"^3 documents cannot be shared by 0 queries$"):
        model.score(torch.zeros(0, 2, 4), torch.zeros(3, 2, 4), torch.ones(3, 2))


@torch.no_grad()
def test_the_configuration_says_what_is_returned_unless_the_call_does():
    model = built()
    ids = torch.tensor([[4, 1, 50, 5]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given["concat_output_from_vision_encoder"] = False
    assert model.query(**given).text_encoder_attentions is None
    assert model.doc(**given).text_encoder_hidden_states is None
    model.set_attn_implementation("eager")
    model.config.output_attentions = model.config.output_hidden_states = True
    for side in (model.query, model.doc):
        assert len(side(**given).text_encoder_attentions) == 2
        assert len(side(**given).text_encoder_hidden_states) == 3
        less = side(**given, output_attentions=False, output_hidden_states=False)
        assert less.text_encoder_attentions is less.text_encoder_hidden_states is None
    model.config.return_dict = False
    assert isinstance(model.doc(**given), tuple)
    assert not isinstance(model.doc(**given, return_dict=True), tuple)


def test_documents_of_all_processes_come_together_in_their_order(monkeypatch):
    """Of two processes, the first has one document of four vectors, this one has two of three."""
    theirs, ours = torch.full((1, 4, 2), 5.0), torch.arange(12.0).reshape(2, 3, 2)
    of_first = torch.tensor([[[1], [0], [1], [1]], [[0], [0], [0], [0]]], dtype=torch.uint8)
    sent = [(torch.tensor([1, 4, 5]), torch.tensor([2, 3, 3])), (of_first, None)]
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)

    def all_gather(found, own):
        first, expected = sent.pop(0)
        assert own.is_contiguous()
        assert (own.dtype, own.shape) == (first.dtype, first.shape)
        assert expected is None or own.equal(expected)
        found[0].copy_(first)
        found[1].copy_(own)

    def gathered(own):
        assert own.is_contiguous()
        return functional.pad(theirs, (0, 0, 0, 0, 0, 1)), own

    monkeypatch.setattr(distributed, "all_gather", all_gather)
    monkeypatch.setattr("torch.distributed.nn.functional.all_gather", gathered)
    mask = torch.tensor([[True, True, False], [True, False, False]])[:, :, None]
    d, kept, offset, weight = gather_documents(ours, mask, 3)
    assert d.equal(torch.cat([theirs, functional.pad(ours, (0, 0, 0, 1))]))
    assert kept[:, :, 0].tolist() == [
        [True, False, True, True],
        [True, True, False, False],
        [True, False, False, False],
    ]
    assert (kept.dtype, offset, weight) == (torch.bool, 1, 3 * 2 / 8)
