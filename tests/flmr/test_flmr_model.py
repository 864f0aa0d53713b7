"""Behaviour of the FLMR models beside the originals' numbers."""

import itertools
import json
import math
import socket
import sys
from pathlib import Path

import flmr_parity as parity
import pytest
import torch
from cases import slow_but
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from torch.nn import functional
from transformers import CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

from ravqa.core.errors import UserError
from ravqa.flmr import FLMRConfig, FLMRInputError, FLMRModelForRetrieval, ImageFeatures

WITHIN = {"rtol": 0, "atol": 1e-5}


def embeddings(output):
    return output.late_interaction_output


def built(seed=0, **options):
    torch.manual_seed(seed)
    return FLMRModelForRetrieval(parity.tiny_config(**options)).eval()


MAPPED = {"use_transformer_mapping_network": True}


# -- masks, by hand


def test_a_query_keeps_its_first_two_tokens_and_what_follows_the_first_colon():
    model, _ = parity.load("preflmr")
    colon = model.query_tokenizer.first_token_id(":")
    ids = torch.tensor([[4, 1, 50, colon, 60, colon, 5, 6], [4, 1, colon, 50, 60, 0, 5, 6]])
    expected = [[1, 1, 0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 1, 1]]
    assert model.query_mask(ids).int().tolist() == expected


def test_a_query_without_a_colon_is_kept_whole_with_one_warning_in_a_run(caplog, monkeypatch):
    monkeypatch.setattr(FLMRModelForRetrieval, "_warned_of_instructions", False)
    model, _ = parity.load("preflmr")
    ids = torch.tensor([[4, 1, 50, 60, 5, 6]])
    assert model.query_mask(ids).all()
    assert model.query_mask(ids).all()
    assert len(caplog.records) == 1
    assert "has no ':'" in caplog.text


def test_without_an_instruction_token_nothing_is_masked(caplog):
    model, _ = parity.load("flmr")
    assert model.query_mask(torch.tensor([[4, 1, 50, 60, 5, 6]])).all()
    assert not caplog.records


def test_bert_ids_of_punctuation_are_built_in():
    with torch.device("meta"):
        model = FLMRModelForRetrieval(FLMRConfig(mask_instruction_token=":"))
    # From bert-base-uncased's vocabulary: "!" ":" "[" "~" are punctuation; "0" "a" and "is" not.
    ids = torch.tensor([[101, 2, 999, 1024, 1031, 1066, 1014, 1037, 2003, 102, 0]])
    assert model.doc_mask(ids).int().tolist() == [[1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0]]
    assert len(model._document_skip_ids) == 33
    assert model._separator_id == 1024


# -- scores and losses, by brute force


def brute_force(query, document, mask):
    total = 0.0
    for q in query:
        total += max(
            float(q.double() @ d.double()) if kept else -9999.0
            for d, kept in zip(document, mask, strict=True)
        )
    return total


@torch.no_grad()
def test_scores_equal_brute_force():
    torch.manual_seed(1)
    model, _ = parity.load("flmr")
    q = functional.normalize(torch.randn(3, 5, 8), dim=-1)
    d = functional.normalize(torch.randn(6, 7, 8), dim=-1)
    mask = torch.rand(6, 7) < 0.6
    mask[2] = False  # an empty document
    expected = torch.tensor(
        [[brute_force(q[i], d[2 * i + j], mask[2 * i + j]) for j in range(2)] for i in range(3)]
    )
    torch.testing.assert_close(model.score(q, d, mask[:, :, None]), expected)
    one = torch.tensor([brute_force(q[0], d[j], mask[j]) for j in range(6)])
    torch.testing.assert_close(model.score(q[:1], d, mask), one)
    each = torch.tensor([brute_force(q[i], d[i], mask[i]) for i in range(3)])
    torch.testing.assert_close(model.score(q, d[:3], mask[:3]), each)
    with pytest.raises(FLMRInputError, match=r"^4 documents cannot be shared by 3 queries$"):
        model.score(q, d[:4], mask[:4])


@torch.no_grad()
def test_losses_equal_their_definition():
    model, _ = parity.load("preflmr")
    output = model(**parity.forward_inputs("preflmr"))
    mask = model.doc(**parity.doc_inputs("preflmr")).context_mask[:, :, 0]
    q, d = output.query_late_interaction_output, output.context_late_interaction_output
    everything = [[brute_force(a, b, m) for b, m in zip(d, mask, strict=True)] for a in q]
    losses = [
        math.log(sum(math.exp(s - row[2 * i]) for s in row)) for i, row in enumerate(everything)
    ]
    assert output.loss.item() == pytest.approx(sum(losses) / 4, abs=1e-5)


def test_wrong_numbers_of_documents_are_an_error():
    model, _ = parity.load("flmr")
    line = "^8 documents for 4 queries with 2 negative examples each: there must be 12$"
    with pytest.raises(FLMRInputError, match=line):
        model(**{**parity.forward_inputs("flmr"), "num_negative_examples": 2})


def test_training_moves_the_loss_and_every_part():
    model = built(separate_query_and_context_text_encoder=True, **MAPPED)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    given = parity.forward_inputs("preflmr")
    losses = []
    for _ in range(5):
        loss = model(**given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # Neither the pooler's output nor CLIP's last norm is part of the embeddings.
    idle = {n for n, p in model.named_parameters() if p.grad is None}
    assert all(".pooler." in n or ".post_layernorm." in n for n in idle)


# -- the mapping network goes both ways, whatever computes the attention


@pytest.mark.parametrize("attention", parity.ATTENTION)
@torch.no_grad()
def test_patches_look_at_each_other_in_any_order(attention):
    model, _ = parity.load("preflmr", attention=attention)
    features = model.encode_images(parity.pixels("preflmr"))
    given = parity.query_inputs("preflmr")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = ImageFeatures(features.pooled, features.patches[:, order])
    straight = embeddings(model.query(**given, image_features=features))[:, -16:]
    mixed = embeddings(model.query(**given, image_features=shuffled))[:, -16:]
    torch.testing.assert_close(mixed, straight[:, order], **WITHIN)
    # The first patch feels the last one.
    changed = features.patches.clone()
    changed[:, -1] += 1
    other = embeddings(
        model.query(**given, image_features=features.pooled, image_patch_features=changed)
    )[:, -16:]
    assert (other[:, 0] - straight[:, 0]).abs().max() > 1e-4


# -- images


@pytest.mark.parametrize("name", ["preflmr", "flmr"])
@torch.no_grad()
def test_cached_image_features_give_the_same_embeddings(name):
    model, _ = parity.load(name)
    pixels = parity.pixels(name)
    pixels = pixels[:, 0] if name == "flmr" else pixels
    features = model.encode_images(pixels)
    given = parity.query_inputs(name)
    direct = embeddings(model.query(**given, pixel_values=pixels))
    torch.testing.assert_close(embeddings(model.query(**given, image_features=features)), direct)
    if name == "preflmr":
        line = (
            r"^the mapping network needs image_patch_features and image_features \(both are what "
            r"encode_images gives\)$"
        )
        with pytest.raises(FLMRInputError, match=line):
            model.query(**given, image_features=features.pooled)


@torch.no_grad()
def test_only_what_is_needed_of_the_vision_tower_is_kept():
    model, _ = parity.load("preflmr")
    pixels = parity.pixels("preflmr")
    tower = model.context_vision_encoder
    features = tower.features(pixels)
    states = tower(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(features.patches, states[-2][:, 1:])
    assert torch.equal(features.pooled, states[-1][:, 0])
    assert features.output.get("hidden_states") is None


def test_images_of_a_wrong_size_are_an_error():
    model, _ = parity.load("preflmr")
    given = parity.query_inputs("preflmr")
    with pytest.raises(FLMRInputError, match=r"^images of .*, which takes \[images, 3, 32, 32\]: "):
        model.query(**given, pixel_values=torch.zeros(4, 3, 40, 40))
    line = (
        r"^pixel_values must have the shape \[rows, channels, height, width\], or \[rows, regions, "
        r"channels, height, width\]; it is \(3, 32, 32\)$"
    )
    with pytest.raises(ValueError, match=line):
        model.query(**given, pixel_values=torch.zeros(3, 32, 32))
    line = (
        "^the query embeddings of this model are made of images too: give pixel_values or "
        "image_features, or switch them off with concat_output_from_vision_encoder=False$"
    )
    with pytest.raises(FLMRInputError, match=line):
        model.query(**given)
    with pytest.raises(FLMRInputError, match=r"different numbers of examples|for 4 queries"):
        model.query(**given, pixel_values=torch.zeros(2, 3, 32, 32))
    with pytest.raises(FLMRInputError, match=r"^2 flags for 4 examples$"):
        model.query(
            **given,
            pixel_values=torch.zeros(4, 3, 32, 32),
            concat_output_from_vision_encoder=[True, False],
        )


def test_regions_are_for_models_without_a_mapping_network():
    model, _ = parity.load("preflmr")
    pixels = parity.pixels("preflmr")
    given = parity.query_inputs("preflmr")
    line = (
        "^8 images for 4 queries: a model with a mapping network takes one image for a query, no "
        "regions of interest$"
    )
    with pytest.raises(FLMRInputError, match=line):
        model.query(**given, pixel_values=torch.stack([pixels, pixels], 1))
    with torch.no_grad():
        single = model.query(**given, pixel_values=pixels[:, None])
    truth = parity.golden("preflmr")["query_embeddings"]
    torch.testing.assert_close(embeddings(single), truth, **WITHIN)


TOWERS = {
    "clip": (CLIPVisionConfig, {}, 1),
    "siglip": (SiglipVisionConfig, {}, 0),
    "dinov2": (Dinov2Config, {"mlp_ratio": 2}, 1),
}


@pytest.mark.parametrize("kind", TOWERS)
@torch.no_grad()
def test_other_vision_towers_stand_in_for_clip(kind, tmp_path):
    config, options, prefix = TOWERS[kind]
    tower = config(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        **options,
    )
    model = built(vision_config={"vision_tower": tower.to_dict()}, **MAPPED)
    given = {k: v[:2] for k, v in parity.query_inputs("preflmr").items()}
    pixels = parity.pixels("preflmr")[:2]
    output = model.query(**given, pixel_values=pixels)
    assert embeddings(output).shape == (2, 32 + 4 + 16, 16)
    inner = model.context_vision_encoder.vision_model.vision_model
    expected = inner(pixels, output_hidden_states=True)
    features = model.encode_images(pixels)
    torch.testing.assert_close(features.patches, expected.hidden_states[-2][:, prefix:])
    pooled = expected.last_hidden_state[:, 0] if prefix else expected.pooler_output
    torch.testing.assert_close(features.pooled, pooled)
    model.query_tokenizer = parity.load("preflmr")[0].query_tokenizer
    model.context_tokenizer = parity.load("preflmr")[0].context_tokenizer
    model.save_pretrained(tmp_path)
    again, info = FLMRModelForRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    found = embeddings(again.query(**given, pixel_values=pixels))
    torch.testing.assert_close(found, embeddings(output))


@torch.no_grad()
def test_a_model_without_a_vision_tower_takes_features():
    model = built(use_vision_encoder=False, **MAPPED)
    assert not hasattr(model, "context_vision_encoder")
    given = parity.query_inputs("preflmr")
    features = ImageFeatures(torch.randn(4, 24), torch.randn(4, 9, 24))
    output = model.query(**given, image_features=features)
    assert embeddings(output).shape == (4, 32 + 4 + 9, 16)
    missing = "this model has no vision encoder: give it image_features"
    for wrong, line in (
        ({"pixel_values": torch.zeros(4, 3, 32, 32)}, missing),
        (
            {"image_features": torch.ones(4, 5)},
            "image features of width 5: this model's are 24 wide",
        ),
    ):
        with pytest.raises(FLMRInputError, match=f"^{line}$"):
            model.query(**given, **wrong)


# -- documents


@torch.no_grad()
def test_documents_padded_to_the_longest_have_the_same_vectors():
    model, _ = parity.load("preflmr")
    texts = parity.inputs("preflmr")["documents"][:4]
    tokenizer = model.context_tokenizer
    long = model.doc(**tokenizer(texts))
    short = model.doc(**tokenizer(texts, padding="longest"))
    width = embeddings(short).shape[1]
    assert width < 25
    torch.testing.assert_close(embeddings(long)[:, :width], embeddings(short), **WITHIN)
    assert not long.context_mask[:, width:].any()


@torch.no_grad()
def test_where_padding_counts_one_padding_row_scores_like_many():
    model, _ = parity.load("preflmr_encn")
    assert model.padding_counts
    assert not parity.load("preflmr")[0].padding_counts
    texts = parity.inputs("preflmr_encn")["documents"][:4]
    tokenizer = model.context_tokenizer
    query = model.query(
        **parity.query_inputs("preflmr_encn"), pixel_values=parity.pixels("preflmr_encn")
    )
    scores = []
    for padding in ("max_length", "longest"):
        ids = tokenizer(texts, padding=padding, max_length=64)
        document = model.doc(**ids)
        scores.append(
            [
                model.score(q[None], embeddings(document), document.context_mask)
                for q in embeddings(query)
            ]
        )
    assert ids["input_ids"].shape[1] < 64
    torch.testing.assert_close(torch.stack(scores[0]), torch.stack(scores[1]), rtol=0, atol=1e-4)


@torch.no_grad()
def test_masked_rows_can_be_left_out():
    model, _ = parity.load("preflmr")
    whole = model.doc(**parity.doc_inputs("preflmr"))
    rows = model.doc(**parity.doc_inputs("preflmr"), keep_dims=False, return_mask=False)
    assert rows.context_mask is None
    for found, vectors, mask in zip(
        embeddings(rows), embeddings(whole), whole.context_mask, strict=True
    ):
        assert torch.equal(found, vectors[mask[:, 0]])
        assert found.norm(dim=-1).min() > 0.999


@torch.no_grad()
def test_a_document_without_its_text_or_its_image_does_not_count_those_rows():
    model, _ = parity.load("flmr")
    truth = parity.golden("flmr")
    flags = [True, False] * 4
    output = model.doc(
        **parity.doc_inputs("flmr"),
        image_features=truth["doc_image_features"],
        concat_output_from_vision_encoder=flags,
    )
    assert output.context_mask[:, :4, 0].all(1).tolist() == flags
    assert not output.context_mask[1::2, :4].any()
    assert torch.equal(output.context_mask[:, 4:], truth["doc_mask"])
    expected = truth["doc_embeddings_features"].clone()
    expected[1::2, :4] = 0
    torch.testing.assert_close(embeddings(output), expected, **WITHIN)


# -- outputs


@pytest.mark.parametrize("attention", parity.ATTENTION)
@torch.no_grad()
def test_attentions_and_hidden_states_are_handed_out(attention):
    model, _ = parity.load("preflmr", attention=attention)
    output = model.query(
        **parity.query_inputs("preflmr"),
        pixel_values=parity.pixels("preflmr"),
        output_attentions=True,
        output_hidden_states=True,
    )
    assert [tuple(x.shape) for x in output.text_encoder_hidden_states] == [(4, 32, 32)] * 3
    assert [tuple(x.shape) for x in output.vision_encoder_hidden_states] == [(4, 17, 24)] * 4
    states = output.transformer_mapping_network_hidden_states
    assert [tuple(x.shape) for x in states] == [(4, 16, 32)] * 2
    for weights, count, size in (
        (output.text_encoder_attentions, 2, 32),
        (output.vision_encoder_attentions, 3, 17),
        (output.transformer_mapping_network_attentions, 1, 16),
    ):
        assert [tuple(w.shape) for w in weights] == [(4, 4, size, size)] * count
        torch.testing.assert_close(weights[0].sum(-1), torch.ones(4, 4, size))
    truth = parity.golden("preflmr")["query_embeddings"]
    torch.testing.assert_close(embeddings(output), truth, **WITHIN)
    assert model.config._attn_implementation == attention
    both = model(
        **parity.forward_inputs("preflmr"), output_attentions=True, output_hidden_states=True
    )
    assert [x is None for x in both.context_attentions] == [False, True]
    assert len(both.query_hidden_states) == 3
    assert both.context_hidden_states[0][0].shape == (8, 64, 32)


@torch.no_grad()
def test_outputs_are_tuples_on_request():
    model, _ = parity.load("preflmr")
    documents = parity.doc_inputs("preflmr")
    pooled, vectors, mask = model.doc(**documents, return_dict=False)
    assert torch.equal(vectors, embeddings(model.doc(**documents)))
    assert pooled.shape == (8, 16)
    assert mask.shape == (8, 64, 1)
    loss, scores, *_ = model(**parity.forward_inputs("preflmr"), return_dict=False)
    assert loss.dim() == 0
    assert scores.shape == (4, 2)


@torch.no_grad()
def test_the_attention_implementation_can_be_changed():
    model = FLMRModelForRetrieval.from_pretrained(parity.checkpoint("preflmr_encn"))
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        inner = model.query_text_encoder.bert_model.config
        assert inner._attn_implementation == name
        output = model.doc(**parity.doc_inputs("preflmr_encn"))
        truth = parity.golden("preflmr_encn")["doc_embeddings"]
        torch.testing.assert_close(embeddings(output), truth, **WITHIN)


# -- the published sizes

VISION = {
    "B": {},
    "L": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "G": {
        "hidden_size": 1664,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "patch_size": 14,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
}


@pytest.mark.parametrize(
    ("size", "millions", "vectors"),
    slow_but([("B", 327, 113)], [("B", 327, 113), ("L", 543, 320), ("G", 2100, 320)]),
)
def test_full_size_models_have_the_published_numbers(size, millions, vectors):
    config = FLMRConfig(
        text_config={"model_type": "flmr_text_model", "use_cache": True},
        vision_config={"dropout": 0.0, **VISION[size]},
        use_transformer_mapping_network=True,
        transformer_mapping_config_base="bert-base-uncased",
        transformer_mapping_num_hidden_layers=1,
        mask_instruction_token=":",
        separate_query_and_context_text_encoder=True,
    )
    with torch.device("meta"):
        model = FLMRModelForRetrieval(config).eval()
        ids = torch.ones((2, 32), dtype=torch.long)
        output = model.query(ids, torch.ones_like(ids), torch.zeros(2, 3, 224, 224))
    digits = 100 if millions == 2100 else 1
    assert round(model.num_parameters() / 1e6 / digits) * digits == millions
    assert embeddings(output).shape == (2, vectors, 128)


def test_a_base_model_that_is_nowhere_is_named():
    with pytest.raises(UserError, match=r"'no-such-base'.*not built in"):
        FLMRModelForRetrieval(
            parity.tiny_config(
                transformer_mapping_config=None,
                transformer_mapping_config_base="no-such-base",
                **MAPPED,
            )
        )


# -- negatives from all processes

_WORKER = """
import json, sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
import flmr_parity as parity
rank, port, ends, out = int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]), sys.argv[5]
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(ends) - 1
)
model, _ = parity.load("preflmr")
given = parity.forward_inputs("preflmr")
first, last = ends[rank], ends[rank + 1]
part = {}
for key, value in given.items():
    if key.startswith("query_"):
        part[key] = value[first:last]
    elif key.startswith("context_"):
        value = value[2 * first : 2 * last]
        # Each process pads to its own longest document.
        longest = int(given["context_attention_mask"][2 * first : 2 * last].sum(1).max())
        part[key] = value[:, :longest]
loss = model(**part, num_negative_examples=1, in_batch_negatives_from_all_gpus=True).loss
loss.backward()
grads = {}
for name, parameter in model.named_parameters():
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad)  # as data-parallel training does
        grads[name] = parameter.grad / dist.get_world_size()
torch.save({"loss": loss.detach(), "grads": grads}, out)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ends", [(0, 2, 4), (0, 3, 4)])
def test_negatives_of_two_processes_give_the_loss_and_gradients_of_one(ends, tmp_path):
    import subprocess

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = str(Path(parity.__file__).parent)
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                _WORKER,
                here,
                str(rank),
                str(port),
                json.dumps(ends),
                str(tmp_path / str(rank)),
            ]
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=180) for worker in workers] == [0, 0]
    found = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]

    model = FLMRModelForRetrieval.from_pretrained(parity.checkpoint("preflmr"))
    loss = model(**parity.forward_inputs("preflmr")).loss
    loss.backward()
    torch.testing.assert_close(
        sum(f["loss"] for f in found) / 2, parity.golden("preflmr")["in_batch_loss"], **WITHIN
    )
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found[0]["grads"].keys() == expected.keys()
    for (name, grad), other in itertools.product(expected.items(), found):
        torch.testing.assert_close(other["grads"][name], grad, rtol=1e-3, atol=1e-4, msg=name)


# --- the projection's width, and the photo token


def mini_model(**options):
    torch.manual_seed(0)
    config = parity.tiny_config(
        vision_projection_hidden_size=10,
        photo_token_rank=3,
        use_vision_encoder=False,
        context_concat_output_from_vision_encoder=True,
        **options,
    )
    return FLMRModelForRetrieval(config).eval()


def inputs_of(rows):
    ids = torch.arange(5, 5 + 4 * rows).reshape(rows, 4)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_the_photo_token_is_the_last_image_vector_of_queries_and_documents():
    model = mini_model()
    features = torch.randn(2, 24)
    first, hidden, last = (model.context_vision_projection.model[i] for i in range(3))
    names = last(hidden(first(features))).reshape(2, 4, 16)
    down, up = model.context_photo_projection.model
    photo = (features @ down.weight.T + down.bias) @ up.weight.T
    expected = functional.normalize(torch.cat([names, photo[:, None]], 1), dim=-1)
    assert first.weight.shape == (10, 24)
    assert up.weight.shape == (16, 3)
    assert up.bias is None
    with torch.no_grad():
        query = model.query(**inputs_of(2), image_features=features).late_interaction_output
        doc = model.doc(**inputs_of(2), image_features=features)
    torch.testing.assert_close(query[:, 4:], expected)
    torch.testing.assert_close(doc.late_interaction_output[:, :5], expected)
    assert model.config.global_vectors == 5


def test_the_photo_tokens_of_regions_follow_all_their_other_vectors():
    model = mini_model()
    features = torch.randn(1, 2, 24)
    options = {"concat_output_from_text_encoder": False}
    with torch.no_grad():
        both = model.query(image_features=features, **options).late_interaction_output[0]
        each = [
            model.query(image_features=features[:, i], **options).late_interaction_output[0]
            for i in range(2)
        ]
    expected = torch.cat([each[0][:4], each[1][:4], each[0][4:], each[1][4:]])
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize("separate", [False, True])
def test_a_model_with_a_photo_token_is_loaded_as_it_was_saved(separate, tmp_path):
    model = mini_model(separate_query_and_context_vision_encoder=separate, mask_punctuation=False)
    model.save_pretrained(tmp_path)
    again = FLMRModelForRetrieval.from_pretrained(str(tmp_path))
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert ("query_photo_projection.model.0.weight" in model.state_dict()) == separate


def test_models_of_the_original_have_no_word_of_the_photo_token():
    values = parity.tiny_config().to_dict()
    assert not {"photo_token_rank", "vision_projection_hidden_size"} & values.keys()
    model = FLMRModelForRetrieval(parity.tiny_config())
    assert not any("photo" in name for name in model.state_dict())
    assert model.context_vision_projection.model[0].weight.shape == (32, 24)
    assert model.config.global_vectors == 4
