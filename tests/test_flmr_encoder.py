"""PreFLMR checkpoints in a pipeline. The checkpoint is tiny and random: it proves plumbing only."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ravqa.cli import main, run_main
from ravqa.config import load_pipeline
from ravqa.encoders.flmr import INSTRUCTION, FLMREncoder
from ravqa.errors import UserError
from ravqa.flmr import FLMRModelForRetrieval, FLMRProcessor
from ravqa.images import open_image
from ravqa.index.exact import ExactIndex
from ravqa.paths import PIPELINES, SAMPLE
from ravqa.pipeline import check_settings
from ravqa.records import Question

CHECKPOINT = Path(__file__).parent / "data" / "flmr-parity" / "preflmr" / "checkpoint_context_names"
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


def test_cut_texts_are_counted(parts):
    _, processor = parts
    long = [t for t in TEXTS if processor.documents([t])["input_ids"].shape[1] > 8]
    assert 0 < len(long) < len(TEXTS)
    encoder = FLMREncoder(FLMREncoder.Config(model=str(CHECKPOINT), doc_maxlen=8))
    assert max(len(v) for v in encoder.encode_document(TEXTS)) <= 8
    assert encoder.truncated == len(long)


def test_a_folder_that_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError) as error:
        FLMREncoder(FLMREncoder.Config(model=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_preflmr_checkpoint_runs_in_the_pipeline_and_sees_the_image(tmp_path):
    corpus = tmp_path / "passages.jsonl"
    lines = (SAMPLE / "passages.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ["--dataset", "okvqa", "--corpus", corpus, "--limit", "8", "--retrieval-only"]
    arguments += ["--set", "describer=null", "--set", "retriever.index.storage=float32"]
    arguments += ["--set", "retriever={name: late-interaction, encoder: {name: flmr}}"]
    arguments += ["--set", f"retriever.encoder.model={CHECKPOINT}"]
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
