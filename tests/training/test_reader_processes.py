"""Trainings of readers that are killed, and trainings in two processes."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_files import figures, kill, run_two, start


@pytest.fixture
def training(tmp_path, settings):
    """The arguments of a training of a tiny model into a folder."""

    def arguments(name, **changes):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings(**changes)))
        return ["train", "reader", tmp_path / "mine.yaml", "--output", tmp_path / name]

    return arguments


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_losses(training, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft")
    changes = {
        "source": {"images": [0, 0.6]},
        "validation": {"images": [0.6, 1]},
        "lora": {"rank": 2, "dropout": 0.3},
        "loop": {"steps": 160, "save_every": 4, "validate_every": 40, "accumulation": 2},
    }
    assert start(training("whole", **changes)).wait() == 0
    arguments = training("killed", **changes)
    kill(arguments, tmp_path / "killed", 6)
    kill([*arguments, "--resume"], tmp_path / "killed", 50)
    done = len([line for line in figures(tmp_path / "killed") if "loss" in line])
    assert 50 <= done < 160
    assert start([*arguments, "--resume"]).wait() == 0
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert figures(killed) == figures(whole)
    assert json.loads((killed / "results.json").read_text()) == json.loads(
        (whole / "results.json").read_text()
    )
    for name in ("best", "last"):
        one, two = (run / name / "adapter_model.safetensors" for run in (whole, killed))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
def test_two_processes_train_as_one_does(training, data, tmp_path, batch_size):
    lines = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):  # targets of different lengths
        line["answers"] = [" ".join(["oak"] * (1 + i % 3))] * 3
    (data / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {
        "method": "full",
        "batch_size": batch_size,
        "source": {"images": [0, 0.6]},
        "validation": {"images": [0.6, 1]},
        "loop": {
            "steps": 6,
            "accumulation": 2,
            "epsilon": 0.01,  # else Adam makes full steps of gradients that are rounding alone
        },
    }
    assert start(training("one", **changes)).wait() == 0
    run_two(training("two", **changes))
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert [list(line) for line in one] == [list(line) for line in two]
    for mine, theirs in zip(one, two, strict=True):
        for name, value in mine.items():
            assert theirs[name] == pytest.approx(value, rel=1e-3), (name, mine, theirs)
    first, last = (
        load_file(tmp_path / run / "last" / "model.safetensors") for run in ("one", "two")
    )
    assert first.keys() == last.keys()
    for name, value in first.items():
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-5)
