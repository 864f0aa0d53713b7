"""Training of retrievers. The models are tiny and random: they prove the plumbing, no quality."""

import json

import flmr_parity as parity
import numpy as np
import pytest
import torch
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from training_files import (
    COLOURS,
    MODEL,
    command,
    encoder_scores,
    figures,
    rows,
    task,
    write_rows,
    write_settings,
)

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Question
from ravqa.encoders.flmr import FLMREncoder
from ravqa.flmr import FLMRModelForRetrieval

# -- the whole way


@pytest.mark.slow
def test_what_was_trained_is_what_the_encoder_loads(examples, tmp_path, capsys):
    config = write_settings(tmp_path, examples, validation={"file": str(examples)})
    assert command(config, "--output", tmp_path / "run", "--set", "loop.validate_every=2") == 0
    assert f"training folder: {tmp_path / 'run'}" in capsys.readouterr().out
    lines = figures(tmp_path / "run")
    assert [line["step"] for line in lines if "validation" in line] == [0, 2, 4]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    best = results["best"]["step"]
    assert results["best"]["figures"]["recall@5"] == max(
        line["validation"]["recall@5"] for line in lines if "validation" in line
    )
    assert results["train"][0]["with_hard_negatives"] == 8
    assert "Training of a retriever" in (tmp_path / "run" / "report.html").read_text()
    last = FLMREncoder(FLMREncoder.Config(model=str(tmp_path / "run" / "last")))
    before = FLMREncoder(FLMREncoder.Config(model=MODEL))
    question = Question(1, "which ?", image=examples.parent / "red.png")
    changed = [e.encode_question([question])[0] for e in (last, before)]
    assert np.abs(changed[0] - changed[1]).max() > 1e-3
    if best == 4:
        kept = FLMREncoder(FLMREncoder.Config(model=str(tmp_path / "run" / "best")))
        np.testing.assert_array_equal(kept.encode_question([question])[0], changed[0])


def test_validation_is_the_recall_of_the_encoder_and_exact_search(examples):
    made = task(examples, validation={"file": str(examples)})
    found = made.evaluate(lambda *_: None)
    scores = encoder_scores(examples.parent, rows())
    ranks = [int((row > row[i]).sum()) + 1 for i, row in enumerate(scores)]
    for k in (1, 5):
        expected = 100 * np.mean([rank <= k for rank in ranks])
        assert found[f"recall@{k}"] == found[f"pseudo_recall@{k}"] == pytest.approx(expected)


@pytest.mark.slow
def test_training_learns_what_it_is_shown(texts, tmp_path):
    config = write_settings(
        tmp_path,
        texts,
        validation={"file": str(texts)},
        loop={"steps": 60, "batch_size": 8, "learning_rate": 0.003, "validate_every": 60},
    )
    assert command(config, "--output", tmp_path / "run") == 0
    first, last = (f["validation"] for f in figures(tmp_path / "run") if "validation" in f)
    losses = [f["loss"] for f in figures(tmp_path / "run") if "loss" in f]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert last["recall@1"] > first["recall@1"] + 40


# -- examples


def test_the_examples_own_instruction_comes_before_the_sources(tmp_path):
    lines = rows(images=False)
    del lines[0]["instruction"]
    file = tmp_path / "examples.jsonl"
    write_rows(file, lines)
    made = task(file, train=[{"file": str(file), "instruction": "name it :"}])
    seen = []
    made.inputs.queries = lambda asked: seen.extend(asked) or {}
    made.model.query = made.model.doc = lambda **_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        made.backward([(0, 0), (0, 1)], 1.0, 0)
    assert [q.instruction for q in seen] == ["name it :", "find :"]


def test_queries_of_images_alone_leave_the_text_out(examples, texts):
    made = task(examples, image_only_queries=True)
    made.model.eval()
    given = made.sources[0].examples[0].question
    with torch.no_grad():
        both, alone = (
            m.model.eval().query(**m.inputs.queries([given])).late_interaction_output
            for m in (task(examples), made)
        )
    length = made.processor.query_tokenizer.max_tokens
    torch.testing.assert_close(alone, both[:, length:], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="question q-red: it has no image, and image_only"):
        task(texts, image_only_queries=True).backward([(0, 0)], 1.0, 0)


def test_a_frozen_tower_sees_each_image_once_if_its_features_are_kept(
    examples, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path))
    batches = [[(0, 2), (0, 5)], [(0, 5), (0, 1)]]
    found = {}
    for kept in ("none", "float32", "float16"):
        made = task(examples, cache_images=kept)
        made.model.eval()
        seen = []
        tower = made.model.query_vision_encoder
        plain = tower.features
        monkeypatch.setattr(
            tower, "features", lambda p, plain=plain, seen=seen: seen.append(len(p)) or plain(p)
        )
        losses = [made.backward(batch, 1.0, 3)["loss"] for batch in batches]
        found[kept] = losses, sum(seen)
    assert [images for _, images in found.values()] == [4, 3, 3]
    assert found["float32"][0] == pytest.approx(found["none"][0], rel=1e-5)
    assert found["float16"][0] == pytest.approx(found["none"][0], rel=1e-2)
    assert found["float16"][0] != found["none"][0]


def test_stored_features_train_as_the_images_do(examples, tmp_path):
    batch = [(0, 2), (0, 5), (0, 1)]
    made = task(examples)
    made.model.eval()
    expected = made.backward(batch, 1.0, 7)
    images = [examples.parent / f"{name}.png" for name in COLOURS]
    tower = made.model.query_vision_encoder
    features = tower.features(made.inputs._pixels(images))
    array = torch.cat([features.pooled[:, None], features.patches], 1).detach().numpy()
    np.save(tmp_path / "features.npy", array)
    np.savez(tmp_path / "features.npz", only=array)
    for name in ("features.npy", "features.npz"):
        lines = rows(negatives=1)
        for i, row in enumerate(lines):
            del row["image"]
            row["features"] = {"file": name, "row": i}
        file = tmp_path / "examples.jsonl"
        write_rows(file, lines)
        other = task(file)
        other.model.eval()
        found = other.backward(batch, 1.0, 7)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_model_without_a_vision_encoder_trains_on_features_of_both_sides(tmp_path):
    config = parity.tiny_config(
        use_vision_encoder=False,
        use_transformer_mapping_network=False,
        context_concat_output_from_vision_encoder=True,
    )
    template = FLMRModelForRetrieval.from_pretrained(MODEL)
    model = FLMRModelForRetrieval(config, template.query_tokenizer, template.context_tokenizer)
    model.save_pretrained(tmp_path / "model")
    draw = np.random.default_rng(0)
    np.save(tmp_path / "features.npy", draw.normal(size=(16, 24)).astype(np.float16))
    lines = rows(images=False)
    for i, row in enumerate(lines):
        row["features"] = {"file": "features.npy", "row": i}
        if i % 2:
            row["positive"]["features"] = {"file": "features.npy", "row": 8 + i}
    file = tmp_path / "examples.jsonl"
    write_rows(file, lines)
    values = {"model": str(tmp_path / "model"), "train_only": ["vision_projection"]}
    config = write_settings(tmp_path, file, **values, validation={"file": str(file)})
    assert command(config, "--output", tmp_path / "run", "--set", "freeze=[]") == 0
    trained = FLMRModelForRetrieval.from_pretrained(tmp_path / "run" / "last").state_dict()
    changed = {n for n, p in model.state_dict().items() if not torch.equal(p, trained[n])}
    assert changed == {n for n in trained if "_vision_projection." in n}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    count = sum(trained[n].numel() for n in changed)
    assert results["parameters"]["trained"] == count


def test_a_known_dataset_gives_pseudo_positives_that_are_named_as_such(tmp_path):
    texts = {
        "p1": "A koala eats leaves.",
        "p2": "Pandas eat bamboo.",
        "p3": "Leaves of bamboo.",
        "p4": "Stone.",
    }
    write_rows(
        tmp_path / "passages.jsonl", [{"passage_id": i, "text": t} for i, t in texts.items()]
    )
    write_rows(
        tmp_path / "questions.jsonl",
        [
            {"question_id": 1, "question": "What does it eat?", "answers": ["LEAVES "]},
            {"question_id": 2, "question": "What does it eat?", "answers": ["bamboo", "x"]},
            {"question_id": 3, "question": "What does it eat?", "answers": ["granite"]},
        ],
    )
    source = {"dataset": "jsonl", "data": str(tmp_path)}
    source["corpus"] = [str(tmp_path / "passages.jsonl")]
    made = task(None, train=[source], loss={"negatives": 2})
    [found] = made.sources
    assert [e.positives for e in found.examples] == [("p1", "p3"), ("p2", "p3")]
    assert found.facts["pseudo_positives"] == 2
    assert found.facts["left_out_without_positives"] == 1
    assert "pseudo-positives" in made.facts["notes"][0]
    for seed in range(20):
        for row in made.chosen([(0, 0), (0, 1)], seed):
            assert row.passages[0] in row.example.positives
            assert not set(row.passages[1:]) & set(row.example.positives)
    with pytest.raises(UserError, match="none of the 3 questions of jsonl has a relevant passage"):
        task(None, train=[{**source, "positives": "known"}])


# -- what trains


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"freeze": ["text_encoders", "vision_encoder"]}, ("vision_projection", "mapping")),
        pytest.param({"train_only": ["mapping_network"]}, ("mapping",), marks=pytest.mark.slow),
        ({"train_only": ["*_text_encoder_linear.weight"], "freeze": []}, ("encoder_linear",)),
        pytest.param({"freeze": []}, ("",), marks=pytest.mark.slow),
    ],
)
def test_only_what_is_not_frozen_changes(examples, tmp_path, changes, parts):
    config = write_settings(tmp_path, examples, **changes, loop={"weight_decay": 0.1})
    assert command(config, "--output", tmp_path / "run") == 0
    before = FLMRModelForRetrieval.from_pretrained(MODEL).state_dict()
    after = FLMRModelForRetrieval.from_pretrained(tmp_path / "run" / "last").state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    allowed = {n for n in before if any(part in n for part in parts)}
    unused = {n for n in allowed if "pooler" in n or "post_layernorm" in n}
    constant = {n for n in allowed - changed if "position_ids" in n}
    assert changed <= allowed
    # Of the tower's last layer, only the class token's way counts; keys' biases never do.
    assert len(changed) >= 0.85 * len(allowed - unused - constant)
    for part in parts:
        assert any(part in n for n in changed)


def test_a_loss_that_no_trained_parameter_takes_part_in_is_refused(texts, tmp_path, capsys):
    config = write_settings(tmp_path, texts, train_only=["vision_projection"])
    assert command(config, "--output", tmp_path / "run") == 2
    assert "step 1: no parameter that trains takes part in the loss" in capsys.readouterr().err


def test_frozen_parts_draw_no_dropout_and_keep_their_states(examples):
    batch = [(0, 2), (0, 5), (0, 1)]
    frozen = {"freeze": ["vision_encoder", "text_encoders"], "train_only": []}
    plain, kept = (task(examples, **frozen, keep_text_mib=mib) for mib in (0, 64))
    calls = []
    encoder = kept.model.context_text_encoder.bert_model
    encoder.register_forward_hook(lambda *_: calls.append(1))
    for made in (plain, kept):
        made.model.train()
        for module in made.model.modules():
            if not any(p.requires_grad for p in module.parameters()):
                module.eval()
    for seed in (1, 2):
        expected = plain.backward(batch, 1.0, 1)
        found = kept.backward(batch, 1.0, 1)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5), seed
    assert len(calls) <= 6  # each passage once; the second time none
    assert calls


def test_bfloat16_is_near_float32_and_leaves_the_weights_in_it(examples, tmp_path):
    losses = []
    for precision in ("float32", "bfloat16"):
        config = write_settings(tmp_path, examples, loop={"precision": precision, "steps": 1})
        assert command(config, "--output", tmp_path / precision) == 0
        losses.append(figures(tmp_path / precision)[0]["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    trained = FLMRModelForRetrieval.from_pretrained(tmp_path / "bfloat16" / "last")
    assert trained.dtype == torch.float32
