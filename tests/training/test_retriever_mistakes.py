"""Mistakes in settings, examples and files: one line each."""

import numpy as np
import pytest
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from training_files import (
    command,
    passage,
    rows,
    task,
    write_examples,
    write_rows,
    write_settings,
)

from ravqa.core.errors import DataError, UserError


def test_mistakes_in_settings_are_one_line(examples, tmp_path, capsys):
    config = write_settings(tmp_path, examples)
    for changes, message in (
        (["--set", "loss.negativs=1"], "unknown key 'loss.negativs': did you mean negatives"),
        (["--set", "freeze=[vision_encodr]"], "freeze: 'vision_encodr' matches no parameter"),
        (["--set", "train_only=[nothing.*]"], "train_only: 'nothing.*' matches no parameter"),
        (["--set", "freeze=['*']"], "no parameter is trained: all are frozen"),
        (["--set", "model=/nowhere/at/all"], "no such model file or folder: /nowhere/at/all"),
        (["--set", "train=[]"], "train"),
        (["--set", "train.0.dataset=okvqa"], "a source needs either dataset or file"),
        (["--set", "train.0.file=/none.jsonl"], "/none.jsonl"),
        (["--set", "validation={file: x, metric: y}"], "x"),
    ):
        folder = tmp_path / "run"
        assert command(config, "--output", folder, *changes) == 2, message
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
        assert not (folder / "config.yaml").exists() or "frozen" in message
    changes = ["--set", f"validation={{file: {examples}, metric: recall@7}}"]
    assert command(config, "--output", tmp_path / "run", *changes) == 2
    assert "'recall@7' is none of recall@1, recall@5" in capsys.readouterr().err


def test_bundled_settings_have_names(tmp_path, capsys):
    assert command("preflmr-mappin", "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "no training settings 'preflmr-mappin': did you mean preflmr-mapping" in error
    assert command("preflmr-all", "--output", tmp_path / "run", "--set", "loop.x=1") == 2
    assert "preflmr-all.yaml: unknown key 'loop.x'" in capsys.readouterr().err
    assert command(tmp_path / "no.yaml", "--output", tmp_path / "run") == 2
    assert "no such file" in capsys.readouterr().err


def test_changed_features_are_another_training(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.zeros((8, 24)))
    lines = [{**row, "features": {"file": "a.npy", "row": 0}} for row in rows(images=False)]
    file = tmp_path / "examples.jsonl"
    write_rows(file, lines)
    before = task(file).identity
    np.save(tmp_path / "a.npy", np.ones((8, 24)))
    assert task(file).identity != before


def test_broken_questions_of_a_dataset_are_named_or_left_out(tmp_path):
    write_examples(tmp_path)
    lines = [
        {"question_id": i, "question": "which ?", "image": f"{name}.png", "answers": [name]}
        for i, name in enumerate(("red", "gone", "blue"))
    ]
    write_rows(tmp_path / "questions.jsonl", lines)
    passages = [{"passage_id": f"p-{n}", "text": f"It is {n}."} for n in ("red", "blue", "x")]
    write_rows(tmp_path / "passages.jsonl", passages)
    source = {
        "dataset": "jsonl",
        "data": str(tmp_path),
        "corpus": [str(tmp_path / "passages.jsonl")],
    }
    with pytest.raises(DataError, match=r"^train\.0: .*gone.*\(on_error: skip leaves such"):
        task(None, train=[source])
    with pytest.raises(UserError, match=r"^train\.0: options: unknown key 'x'"):
        task(None, train=[{**source, "options": {"x": 1}}])
    [found] = task(None, train=[{**source, "on_error": "skip"}]).sources
    assert [e.positives for e in found.examples] == [("p-red",), ("p-blue",)]
    assert found.facts["left_out_broken"] == 1


def test_a_changed_training_is_not_resumed(examples, tmp_path, capsys):
    config = write_settings(tmp_path, examples, loop={"steps": 1})
    assert command(config, "--output", tmp_path / "run") == 0
    changes = ["--resume", "--set", "loss.negatives=2"]
    assert command(config, "--output", tmp_path / "run", *changes) == 2
    assert "had other settings, model or data (loss.negatives: 1 then, 2 now)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questoin": "x"}, "unknown key 'questoin': did you mean question"),
        ({"question": " ", "instruction": None}, "neither a question nor an instruction"),
        ({"image": "gone.png"}, "no image 'gone.png' in"),
        ({"image": "../red.png"}, "red.png"),
        ({"features": {"file": "a.npy", "row": 0}}, "either an image or its features"),
        ({"image": None, "features": {"file": "a.npy", "row": 0}}, "no file of features 'a.npy'"),
        ({"positive": "p-none"}, "no passage 'p-none' in the corpus or on earlier lines"),
        ({"negatives": [passage("red")]}, "'p-red' is both positive and negative"),
        ({"positive": {"id": "p-blue", "text": "other"}}, "already stands for another passage"),
    ],
)
def test_broken_examples_are_named_by_file_and_line(tmp_path, change, message):
    file = write_examples(tmp_path)
    lines = rows()
    lines = [lines[2], {**lines[0], **change}]
    write_rows(file, lines)
    with pytest.raises(DataError, match=r"examples\.jsonl, line 2: ") as error:
        task(file)
    assert message in str(error.value)


def test_data_that_cannot_train_are_named(tmp_path):
    file = write_examples(tmp_path)
    write_rows(file, [])
    with pytest.raises(UserError, match=r"train\.0: .*examples\.jsonl holds no examples"):
        task(file)
    write_rows(file, [{**row, "positive": None, "answers": []} for row in rows()])
    with pytest.raises(UserError, match=r"none of the 8 questions of .* has a relevant passage"):
        task(file)
    (tmp_path / "red.png").write_bytes(b"no image")
    write_rows(file, rows()[:1])
    with pytest.raises(DataError, match=r"red\.png"):
        task(file, loss={"negatives": 0}).backward([(0, 0)], 1.0, 0)
    np.save(tmp_path / "a.npy", np.zeros((2, 5)))
    lines = [{**rows(images=False)[0], "features": {"file": "a.npy", "row": 0}}]
    write_rows(file, lines)
    with pytest.raises(DataError, match=r"a\.npy: an array \[rows, \d+\] or .* not \[2, 5\]"):
        task(file, loss={"negatives": 0}).backward([(0, 0)], 1.0, 0)
