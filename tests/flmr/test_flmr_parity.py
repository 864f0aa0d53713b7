"""Numbers equal to the original implementation's, on its own tiny checkpoints."""

import flmr_parity as parity
import pytest
import torch
from flmr_parity import one_thread  # noqa: F401 (a fixture)

from ravqa.flmr import (
    FLMRContextEncoderTokenizer,
    FLMRModelForRetrieval,
    FLMRQueryEncoderTokenizer,
)

WITHIN = {"rtol": 0, "atol": 1e-5}


CASES = [(n, la, a) for n in parity.NAMES for la in parity.LAYOUTS for a in parity.ATTENTION]


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    name, layout, attention = request.param
    model, info = parity.load(name, layout, attention)
    return name, model, info


def only(*names):
    return pytest.mark.parametrize(
        "case", [c for c in CASES if c[0] in names], ids="-".join, indirect=True
    )


@pytest.mark.parametrize("layout", parity.LAYOUTS)
@pytest.mark.parametrize("name", parity.NAMES)
def test_token_ids_and_masks_are_the_originals(name, layout):
    folder, truth = parity.checkpoint(name, layout), parity.golden(name)
    queries = FLMRQueryEncoderTokenizer.from_pretrained(folder)(parity.inputs(name)["queries"])
    assert torch.equal(queries["input_ids"], truth["query_input_ids"])
    assert torch.equal(queries["attention_mask"], truth["query_attention_mask"])
    # The bilingual checkpoint does not store that its documents were cut at 64 tokens.
    length = {"doc_maxlen": 64} if name == "preflmr_encn" else {}
    tokenizer = FLMRContextEncoderTokenizer.from_pretrained(folder, **length)
    documents = tokenizer(parity.inputs(name)["documents"])
    assert torch.equal(documents["input_ids"], truth["doc_input_ids"])
    assert torch.equal(documents["attention_mask"], truth["doc_attention_mask"])


@torch.no_grad()
def test_every_layout_loads_whole(case):
    _, _, info = case
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@torch.no_grad()
def test_query_embeddings_are_the_originals(case):
    name, model, _ = case
    truth = parity.golden(name)
    output = model.query(**parity.query_inputs(name), pixel_values=parity.pixels(name))
    key = "query_embeddings_rois" if name == "flmr" else "query_embeddings"
    torch.testing.assert_close(output.late_interaction_output, truth[key], **WITHIN)
    if "query_pooler_output" in truth:
        torch.testing.assert_close(output.pooler_output, truth["query_pooler_output"], **WITHIN)


@torch.no_grad()
def test_document_embeddings_and_masks_are_the_originals(case):
    name, model, _ = case
    truth = parity.golden(name)
    output = model.doc(**parity.doc_inputs(name))
    torch.testing.assert_close(output.late_interaction_output, truth["doc_embeddings"], **WITHIN)
    assert output.context_mask.dtype == torch.bool
    assert torch.equal(output.context_mask, truth["doc_mask"])


@torch.no_grad()
def test_scores_and_losses_are_the_originals(case):
    name, model, _ = case
    truth = parity.golden(name)
    output = model(**parity.forward_inputs(name))
    torch.testing.assert_close(output.scores, truth["scores"], **WITHIN)
    torch.testing.assert_close(output.in_batch_negative_loss, truth["in_batch_loss"], **WITHIN)
    assert output.loss is output.in_batch_negative_loss
    if "no_in_batch_loss" in truth:
        output = model(**parity.forward_inputs(name), use_in_batch_negatives=False)
        torch.testing.assert_close(output.loss, truth["no_in_batch_loss"], **WITHIN)
        assert output.in_batch_negative_loss is None


@only("preflmr")
@torch.no_grad()
def test_switching_modalities_is_as_in_the_original(case):
    name, model, _ = case
    truth = parity.golden(name)
    given = {**parity.query_inputs(name), "pixel_values": parity.pixels(name)}
    vision = model.query(**given, concat_output_from_text_encoder=False)
    torch.testing.assert_close(
        vision.late_interaction_output, truth["query_embeddings_vision_only"], **WITHIN
    )
    for kind in (list, torch.tensor):
        each = model.query(
            **given,
            concat_output_from_text_encoder=kind(truth["per_example_text"].tolist()),
            concat_output_from_vision_encoder=kind(truth["per_example_vision"].tolist()),
        )
        torch.testing.assert_close(
            each.late_interaction_output, truth["query_embeddings_per_example"], **WITHIN
        )


@only("flmr")
@torch.no_grad()
def test_flmr_images_features_and_documents_with_images_are_as_in_the_original(case):
    name, model, _ = case
    truth = parity.golden(name)
    queries = parity.query_inputs(name)
    one = model.query(**queries, pixel_values=truth["roi_pixel_values"][:, 0])
    features = model.query(**queries, image_features=truth["query_image_features"])
    for output, key in ((one, "one_image"), (features, "features")):
        torch.testing.assert_close(
            output.late_interaction_output, truth[f"query_embeddings_{key}"], **WITHIN
        )
    for key, given in (
        ("features", {"image_features": truth["doc_image_features"]}),
        ("pixels", {"pixel_values": truth["doc_pixel_values"]}),
    ):
        output = model.doc(
            **parity.doc_inputs(name), **given, concat_output_from_vision_encoder=True
        )
        torch.testing.assert_close(
            output.late_interaction_output, truth[f"doc_embeddings_{key}"], **WITHIN
        )
        assert torch.equal(output.context_mask, truth["doc_mask_features"])


@pytest.mark.parametrize("attention", parity.ATTENTION)
@pytest.mark.parametrize("name", parity.NAMES)
@torch.no_grad()
def test_bfloat16_stays_near_float32(name, attention):
    model = FLMRModelForRetrieval.from_pretrained(
        parity.checkpoint(name), attn_implementation=attention, dtype=torch.bfloat16
    )
    assert model.dtype == torch.bfloat16
    truth = parity.golden(name)
    query = model.query(**parity.query_inputs(name), pixel_values=parity.pixels(name))
    document = model.doc(**parity.doc_inputs(name))
    key = "query_embeddings_rois" if name == "flmr" else "query_embeddings"
    for output, expected in ((query, truth[key]), (document, truth["doc_embeddings"])):
        found = output.late_interaction_output.float()
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)
