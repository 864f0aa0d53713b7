"""PreFLMR checkpoints in a pipeline. The checkpoint is tiny and random: it proves plumbing only."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ravqa.cli import main, run_main
from ravqa.core.errors import UserError
from ravqa.core.locations import PIPELINES, SAMPLE
from ravqa.core.records import Passage, Question
from ravqa.core.settings import load_pipeline, validate
from ravqa.encoders.base import EncodingStats, Span
from ravqa.encoders.flmr import INSTRUCTION, FLMREncoder
from ravqa.flmr import FLMRConfig, FLMRModelForRetrieval, FLMRProcessor, FLMRVisionModel
from ravqa.images.decode import open_image
from ravqa.indexes.exact import ExactIndex
from ravqa.pipeline import check_settings

DATA = Path(__file__).parents[1] / "data"
CHECKPOINT = DATA / "flmr-parity" / "preflmr" / "checkpoint_context_names"
PHOTOS = sorted((SAMPLE / "val2014").glob("*.jpg"))[:5]
TEXTS = [
    "The koala eats leaves.",
    "A.",
    "The giant panda lives almost wholly on bamboo, of which it eats 12 kilograms a day; it sits.",
    "It is found only on Madagascar!",
]


@pytest.fixture(scope="module")
def encoder():
    return FLMREncoder(FLMREncoder.Config(model=str(CHECKPOINT), batch_tokens=64, batch_queries=2))


@pytest.fixture(scope="module")
def parts():
    model = FLMRModelForRetrieval.from_pretrained(str(CHECKPOINT)).eval()
    return model, FLMRProcessor.from_pretrained(str(CHECKPOINT))


def questions():
    return [
        Question(i, f"What does this animal number {i} eat?", image=photo)
        for i, photo in enumerate(PHOTOS)
    ]


def test_documents_equal_the_model_one_by_one_with_masked_positions_left_out(encoder, parts):
    model, processor = parts
    got = encoder.encode_document(TEXTS)
    for text, vectors in zip(TEXTS, got, strict=True):
        with torch.inference_mode():
            alone = model.doc(**processor.documents([text], padding="max_length"))
        mask = alone.context_mask[0, :, 0].bool()
        expected = alone.late_interaction_output[0][mask].numpy()
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert vectors.dtype == np.float32


@pytest.mark.parametrize("separate", [False, True], ids=["one tower", "two towers"])
def test_passages_with_images_equal_the_model_one_by_one(separate, tmp_path):
    config = FLMRConfig.from_pretrained(str(CHECKPOINT))
    config.context_concat_output_from_vision_encoder = True
    config.separate_query_and_context_vision_encoder = separate
    torch.manual_seed(0)
    FLMRModelForRetrieval(config).save_pretrained(tmp_path)
    FLMRProcessor.from_pretrained(str(CHECKPOINT)).save_pretrained(tmp_path)
    model = FLMRModelForRetrieval.from_pretrained(str(tmp_path)).eval()
    processor = FLMRProcessor.from_pretrained(str(tmp_path))
    seeing = FLMREncoder(FLMREncoder.Config(model=str(tmp_path), batch_tokens=64, batch_queries=2))
    images = [PHOTOS[0], None, PHOTOS[1], PHOTOS[2]]
    passages = [Passage(t, t, image=photo) for t, photo in zip(TEXTS, images, strict=True)]
    got = seeing.encode_passages(passages)
    for passage, vectors in zip(passages, got, strict=True):
        inputs = processor.documents([passage.text], padding="max_length")
        inputs["concat_output_from_vision_encoder"] = passage.image is not None
        if passage.image is not None:
            inputs["pixel_values"] = processor.image_processor([open_image(passage.image)])
        with torch.inference_mode():
            alone = model.doc(**inputs)
        mask = alone.context_mask[0, :, 0].bool()
        expected = alone.late_interaction_output[0][mask].numpy()
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert len(got[0]) > len(seeing.encode_document(TEXTS[:1])[0])


def test_questions_equal_the_model_one_by_one_without_the_instruction(encoder, parts):
    model, processor = parts
    for question, vectors in zip(questions(), encoder.encode_question(questions()), strict=True):
        inputs = processor([question.question], [open_image(question.image)], INSTRUCTION)
        with torch.inference_mode():
            expected = model.query(**inputs).late_interaction_output[0].numpy()
        expected = expected[np.any(expected != 0, axis=1)]
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_index_scores_equal_the_models_own_scores(encoder, parts, tmp_path):
    model, processor = parts
    index = ExactIndex.build(
        [str(i) for i in range(len(TEXTS))],
        encoder.encode_document(TEXTS),
        tmp_path / "index",
        dim=encoder.dim,
        config=ExactIndex.Config(storage="float32"),
    )
    scores = index.scores(encoder.encode_question(questions()))
    inputs = processor(
        [q.question for q in questions()], [open_image(q.image) for q in questions()], INSTRUCTION
    )
    with torch.inference_mode():
        q = model.query(**inputs).late_interaction_output
        d = model.doc(**processor.documents(TEXTS))
        for j in range(len(TEXTS)):
            expected = model.score(
                q,
                d.late_interaction_output[j : j + 1].expand(len(q), -1, -1),
                d.context_mask[j : j + 1].expand(len(q), -1, -1),
            )
            np.testing.assert_allclose(scores[:, j], expected.reshape(-1).numpy(), atol=1e-4)


def test_a_question_without_an_image_has_text_vectors_only(encoder):
    [with_image] = encoder.encode_question(questions()[:1])
    [without] = encoder.encode_question([Question(0, questions()[0].question)])
    assert 0 < len(without) < len(with_image)
    np.testing.assert_allclose(without, with_image[: len(without)], atol=1e-5)


def test_image_tokens_are_the_rows_of_their_kind_and_change_no_passages(encoder, parts):
    model, processor = parts
    [question] = questions()[:1]
    inputs = processor([question.question], [open_image(question.image)], INSTRUCTION)
    with torch.inference_mode():
        whole = model.query(**inputs).late_interaction_output[0].numpy()
    text = inputs["input_ids"].shape[1]
    ends = text + model.config.mapping_network_prefix_length
    assert len(whole) > ends  # there are patches behind
    expected = {
        "all": whole,
        "global": whole[:ends],
        "patches": np.concatenate([whole[:text], whole[ends:]]),
        "none": whole[:text],
    }
    seen = set()
    for wanted, rows in expected.items():
        variant = FLMREncoder(FLMREncoder.Config(model=str(CHECKPOINT), image_tokens=wanted))
        [vectors] = variant.encode_question([question])
        np.testing.assert_allclose(vectors, rows[np.any(rows != 0, axis=1)], atol=1e-5)
        seen.add(variant.fingerprint)
        assert variant.passages_fingerprint == encoder.passages_fingerprint
    assert len(seen) == 4
    other = FLMREncoder(FLMREncoder.Config(model=str(CHECKPOINT), doc_maxlen=16))
    assert other.passages_fingerprint != encoder.passages_fingerprint


def test_flmr_has_no_patches_to_choose():
    flmr = CHECKPOINT.parents[1] / "flmr" / CHECKPOINT.name
    line = f"^the encoder flmr: image_tokens: patches, but {flmr} makes no vectors of patches$"
    with pytest.raises(UserError, match=line):
        FLMREncoder(FLMREncoder.Config(model=str(flmr), image_tokens="patches"))


def test_cut_texts_are_counted(parts):
    _, processor = parts
    long = [t for t in TEXTS if processor.documents([t])["input_ids"].shape[1] > 8]
    assert 0 < len(long) < len(TEXTS)
    encoder = FLMREncoder(FLMREncoder.Config(model=str(CHECKPOINT), doc_maxlen=8))
    encoded = encoder.encode_document(TEXTS)
    assert max(len(v) for v in encoded) <= 8
    tokens = sum(int(processor.documents([t])["attention_mask"].sum()) for t in TEXTS)
    cut = sum(processor.documents([t])["input_ids"].shape[1] - 8 for t in long)
    vectors = sum(len(v) for v in encoded)
    assert encoded.stats == EncodingStats(len(TEXTS), len(long), tokens - cut, vectors)
    assert encoder.encode_document(TEXTS[1:2]).stats.truncated == 0


def test_cut_questions_are_counted(encoder):
    short, long = Question(0, "Why?"), Question(1, "What is it, and why? " * 20)
    stats = encoder.encode_question([short, long, long]).stats
    assert (stats.items, stats.truncated) == (3, 2)
    assert encoder.encode_question([short]).stats.truncated == 0


def test_control_tokens_in_texts_are_counted(encoder):
    texts = ["a [MASK] koala [SEP]", "[CLS]", "[D] koala"]
    assert encoder.encode_document(texts).stats.neutralised == 3
    asked = [Question(i, text) for i, text in enumerate(texts)]
    assert encoder.encode_question(asked).stats.neutralised == 3


def test_nothing_gives_nothing_and_empty_text_gives_its_markers(encoder, parts):
    assert encoder.encode_document([]) == encoder.encode_question([]) == []
    assert encoder.encode_document([]).stats == EncodingStats()
    model, processor = parts
    [vectors] = encoder.encode_document([""])
    with torch.inference_mode():
        alone = model.doc(**processor.documents([""]))
    assert alone.late_interaction_output.shape[1] == 3  # [CLS] [D] [SEP]
    np.testing.assert_allclose(vectors, alone.late_interaction_output[0].numpy(), atol=1e-5)
    assert len(encoder.encode_question([Question(0, "")])[0]) > 0


@pytest.fixture
def padded_sizes(monkeypatch):
    """Rows and columns of every batch of documents that a model is given."""
    sizes = []
    doc = FLMRModelForRetrieval.doc

    def counted(model, input_ids, **inputs):
        sizes.append(tuple(input_ids.shape))
        return doc(model, input_ids=input_ids, **inputs)

    monkeypatch.setattr(FLMRModelForRetrieval, "doc", counted)
    return sizes


def test_batches_keep_to_the_budget_in_real_tokens(encoder, padded_sizes):
    # A token a character; four characters a token would put all of them into one batch.
    texts = ["!?" * n for n in (1, 2, 3, 10, 12, 5, 30, 4, 4)]
    encoder.encode_document(texts)
    assert sum(rows for rows, _ in padded_sizes) == len(texts)
    assert all(rows * columns <= 64 for rows, columns in padded_sizes if rows > 1)
    assert max(rows for rows, _ in padded_sizes) > 1


@pytest.mark.parametrize("family", ["flmr", "preflmr", "preflmr_encn"])
def test_vectors_do_not_depend_on_the_batch(family, padded_sizes):
    model = str(CHECKPOINT.parents[1] / family / "checkpoint_context_names")
    encoder = FLMREncoder(FLMREncoder.Config(model=model))
    processor = FLMRProcessor.from_pretrained(model)
    original = FLMRModelForRetrieval.from_pretrained(model).eval()
    together = encoder.encode_document([*TEXTS, "word " * 600])
    assert padded_sizes == [(len(TEXTS) + 1, processor.context_tokenizer.max_tokens)]
    alone = [encoder.encode_document([text])[0] for text in TEXTS]
    query = np.random.default_rng(0).normal(size=(50, encoder.dim)).astype(np.float32)
    for text, a, b in zip(TEXTS, together[:-1], alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        with torch.inference_mode():
            padded = original.doc(**processor.documents([text], padding="max_length"))
        rows = padded.late_interaction_output[0][padded.context_mask[0, :, 0].bool()].numpy()
        # What is left out of the padding is a repetition.
        np.testing.assert_allclose((query @ a.T).max(1), (query @ rows.T).max(1), atol=1e-5)


def test_half_precision_output_is_the_same_rounded(encoder):
    half = FLMREncoder(FLMREncoder.Config(model=str(CHECKPOINT), batch_tokens=64, output="float16"))
    for a, b in zip(half.encode_document(TEXTS), encoder.encode_document(TEXTS), strict=True):
        assert a.dtype == np.float16
        np.testing.assert_array_equal(a, b.astype(np.float16))
    assert half.encode_question(questions())[0].dtype == np.float16
    assert half.encode_document([""])[0].dtype == np.float16
    assert half.fingerprint != encoder.fingerprint


def test_mixed_precision_stays_near_float32(encoder):
    mixed = FLMREncoder(FLMREncoder.Config(model=str(CHECKPOINT), autocast="bfloat16"))
    for full, rough in (
        (encoder.encode_document(TEXTS), mixed.encode_document(TEXTS)),
        (encoder.encode_question(questions()), mixed.encode_question(questions())),
    ):
        for a, b in zip(full, rough, strict=True):
            assert b.dtype == np.float32
            assert np.linalg.norm(a - b, axis=1).max() < 2e-2
        assert any((a != b).any() for a, b in zip(full, rough, strict=True))
    assert mixed.fingerprint != encoder.fingerprint
    with pytest.raises(UserError, match=r"(: |^)autocast needs dtype: float32$"):
        validate(
            FLMREncoder.Config, {"model": "m", "autocast": "bfloat16", "dtype": "float16"}, "x"
        )


# --- the cache of image features


@pytest.fixture
def tower_calls(monkeypatch, fresh_cache):
    """How many images each call of a vision tower is given, in an empty cache folder."""
    calls = []
    forward = FLMRVisionModel.forward

    def counted(model, pixel_values, **options):
        calls.append(len(pixel_values))
        return forward(model, pixel_values, **options)

    monkeypatch.setattr(FLMRVisionModel, "forward", counted)
    return calls


def cached(model=CHECKPOINT, cache_images="float32", **options):
    return FLMREncoder(FLMREncoder.Config(model=str(model), cache_images=cache_images, **options))


def altered(tmp_path, part):
    """A checkpoint whose parameters of one part are others."""
    model = FLMRModelForRetrieval.from_pretrained(str(CHECKPOINT))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(part):
                parameter += 0.05
    model.save_pretrained(tmp_path / part)
    FLMRProcessor.from_pretrained(str(CHECKPOINT)).save_pretrained(tmp_path / part)
    return tmp_path / part


def test_the_tower_sees_an_image_once_for_all_questions_of_a_batch(encoder, tower_calls):
    same = [Question(i, f"Question {i}?", image=PHOTOS[0]) for i in range(2)]
    expected = [encoder.encode_question([q])[0] for q in same]
    tower_calls.clear()
    for a, b in zip(encoder.encode_question(same), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert tower_calls == [1]


def test_cached_features_give_the_same_vectors_without_the_tower(encoder, tower_calls):
    expected = encoder.encode_question(questions())
    tower_calls.clear()
    first = cached().encode_question(questions())
    assert sum(tower_calls) == len(PHOTOS)
    tower_calls.clear()
    again = cached()
    for found in (first, again.encode_question(questions())):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    by_bytes = [Question(0, "What else?", image=photo.read_bytes()) for photo in PHOTOS]
    again.encode_question([*by_bytes, Question(1, "And without an image?")])
    assert tower_calls == []
    assert again.fingerprint == encoder.fingerprint


def test_a_checkpoint_of_another_text_side_shares_the_features(tower_calls, tmp_path):
    before = cached().encode_question(questions())
    tower_calls.clear()
    other = cached(altered(tmp_path, "query_text_encoder"))
    after = other.encode_question(questions())
    assert tower_calls == []
    assert max(abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1e-3
    plain = FLMREncoder(FLMREncoder.Config(model=other.config.model))
    for a, b in zip(after, plain.encode_question(questions()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_another_tower_preparation_precision_or_type_shares_nothing(tower_calls, tmp_path):
    cached().encode_question(questions()[:1])
    other = altered(tmp_path, "context_vision_encoder")
    prepared = altered(tmp_path, "nothing")
    file = prepared / "image_processor" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_mean": [0.1, 0.2, 0.3]}))
    for encoder in (
        cached(other),
        cached(prepared),
        cached(cache_images="float16"),
        cached(autocast="bfloat16"),
    ):
        tower_calls.clear()
        encoder.encode_question(questions()[:1])
        assert tower_calls == [1]


def test_features_in_half_precision_come_near(encoder, tower_calls):
    half = cached(cache_images="float16")
    half.encode_question(questions())
    for a, b in zip(
        half.encode_question(questions()), encoder.encode_question(questions()), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=5e-3)
    assert half.fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\x80\x04 no archive",
        lambda data: data[:400] + bytes([data[400] ^ 1]) + data[401:],
    ],
    ids=["cut off", "empty", "other content", "one bit"],
)
def test_a_damaged_file_of_features_is_made_again(damage, tower_calls, fresh_cache, caplog):
    encoder = cached()
    [expected] = encoder.encode_question(questions()[:1])
    [file] = (fresh_cache / "image-features").rglob("*.npz")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    tower_calls.clear()
    [found] = encoder.encode_question(questions()[:1])
    assert tower_calls == [1]
    [line] = caplog.text.splitlines()
    assert line.startswith(f"{file} is damaged (")
    assert line.endswith("): it is made again")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert file.read_bytes() == whole
    assert [p for p in file.parent.iterdir() if p != file] == []


def test_a_folder_that_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError) as error:
        FLMREncoder(FLMREncoder.Config(model=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_preflmr_checkpoint_runs_in_the_pipeline_and_sees_the_image(tmp_path, capsys):
    corpus = tmp_path / "passages.jsonl"
    lines = (SAMPLE / "passages.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ["--dataset", "okvqa", "--corpus", corpus, "--limit", "8", "--retrieval-only"]
    arguments += ["--set", "describer=null", "--set", "retriever.index.storage=float32"]
    arguments += ["--set", "retriever={name: late-interaction, encoder: {name: flmr}}"]
    arguments += ["--set", f"retriever.encoder.model={CHECKPOINT}"]
    arguments += ["--set", "retriever.encoder.doc_maxlen=16"]
    arguments += ["--controls", "wrong-image", "--output", tmp_path / "run"]
    with pytest.raises(SystemExit) as end:
        run_main([str(a) for a in arguments])
    assert end.value.code == 0

    def hits(name):
        path = tmp_path / "run" / name
        return [json.loads(line)["hits"] for line in path.read_text(encoding="utf-8").splitlines()]

    assert len(hits("samples.jsonl")) == 8
    assert hits("samples.jsonl") != hits("samples.wrong-image.jsonl")
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["provenance"]["stand_ins"] == {}
    passages, queries = results["retrieval"]["passages"], results["timing"]["queries"]
    assert passages["items"] == 60
    assert queries["items"] == 16
    cut = passages["truncated"]
    assert 0 < cut <= 60
    assert f"note: {cut} of 60 passages exceeded" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_packaged_pipeline_is_valid(path):
    settings, where = load_pipeline(path.stem)
    assert check_settings(settings, where).description


def test_convert_writes_a_checkpoint_that_gives_the_same_vectors(encoder, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["convert", str(CHECKPOINT.parent / "checkpoint_query_names"), str(tmp_path / "out")])
    assert end.value.code == 0
    converted = FLMREncoder(FLMREncoder.Config(model=str(tmp_path / "out")))
    expected = encoder.encode_question(questions())
    for a, b in zip(converted.encode_question(questions()), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture
def text_only(tmp_path, minilm_folder):
    """MiniLM's weights as a checkpoint of the family: no images, an identity for projection."""
    import transformers

    from ravqa.flmr import FLMRConfig, FLMRContextEncoderTokenizer, FLMRQueryEncoderTokenizer

    bert = transformers.AutoModel.from_pretrained(minilm_folder)
    text = {k: v for k, v in bert.config.to_dict().items() if k != "model_type"}
    config = FLMRConfig(
        text_config=text,
        dim=bert.config.hidden_size,
        use_vision_encoder=False,
        query_concat_output_from_vision_encoder=False,
    )
    query = FLMRQueryEncoderTokenizer.from_pretrained(minilm_folder, query_maxlen=32)
    context = FLMRContextEncoderTokenizer.from_pretrained(minilm_folder, doc_maxlen=256)
    model = FLMRModelForRetrieval(config, query_tokenizer=query, context_tokenizer=context)
    model.context_text_encoder.bert_model.load_state_dict(bert.state_dict())
    with torch.no_grad():
        model.context_text_encoder_linear.weight.copy_(torch.eye(config.dim))
    model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_checkpoint_without_images_takes_the_query_as_text(text_only):
    encoder = FLMREncoder(FLMREncoder.Config(model=str(text_only), instruction=None))
    assert not encoder.supports_images
    spans = [Span("What does it eat?"), Span("koala", 0.4), Span("wombat", 0.0)]
    [by_spans] = encoder.encode_query([spans])
    parts = FLMRModelForRetrieval.from_pretrained(text_only)
    inputs = parts.query_tokenizer(["What does it eat? koala"])
    with torch.inference_mode():
        expected = parts.query(**inputs).late_interaction_output[0].numpy()
    assert by_spans.shape == (32, 384)  # filled up with [MASK], which count
    np.testing.assert_allclose(by_spans, expected, atol=1e-5)
