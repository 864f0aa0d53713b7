"""Trainings that are killed, and trainings in several processes."""

import pytest
import torch
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from training_files import (
    MODEL,
    command,
    figures,
    kill,
    rows,
    run_two,
    start,
    task,
    write_examples,
    write_rows,
    write_settings,
)

from ravqa.core.errors import UserError
from ravqa.flmr import FLMRConfig, FLMRModelForRetrieval


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_losses(examples, tmp_path):
    changes = {
        "loop": {"steps": 24, "save_every": 4, "validate_every": 10, "accumulation": 2},
        "mining": {"every": 6, "depth": 5},
        "loss": {"negatives": 2, "chunk_size": 3},
        "validation": {"file": str(examples)},
    }
    config = write_settings(tmp_path, examples, **changes)
    assert command(config, "--output", tmp_path / "whole") == 0
    run = tmp_path / "killed"
    arguments = ["train", "retriever", config, "--output", run]
    kill(arguments, run, 5)
    kill([*arguments, "--resume"], run, 13)
    assert start([*arguments, "--resume"]).wait() == 0
    assert figures(run) == figures(tmp_path / "whole")
    for name in ("last", "best"):
        one, two = (
            FLMRModelForRetrieval.from_pretrained(r / name).state_dict()
            for r in (run, tmp_path / "whole")
        )
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 1])
def test_two_processes_train_as_one_does(examples, tmp_path, chunk):
    lines = rows(negatives=2)
    for i, row in enumerate(lines[:5]):  # of which the two processes have different numbers
        row["positive"]["score"], row["negatives"][0]["score"] = 2.0, 1.0 / (i + 1)
    file = write_examples(tmp_path / "data")
    write_rows(file, lines)
    model = FLMRModelForRetrieval.from_pretrained(MODEL)
    values = model.config.to_dict()
    for part in ("text_config", "transformer_mapping_config"):
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            values[part][name] = 0.0  # what is dropped depends on the process
    model.config = FLMRConfig.from_dict(values)
    model.save_pretrained(tmp_path / "model")
    again = FLMRConfig.from_pretrained(tmp_path / "model")
    assert again.text_config.hidden_dropout_prob == 0.0
    changes = {
        "model": str(tmp_path / "model"),
        "loop": {
            "steps": 4,
            "batch_size": 4,
            "accumulation": 2,
            "validate_every": 2,
            "epsilon": 0.01,  # else Adam makes full steps of gradients that are rounding alone
        },
        "loss": {"negatives": 2, "chunk_size": chunk, "distillation": 0.5},
        "mining": {"every": 2, "depth": 5},
        "validation": {"file": str(file)},
    }
    config = write_settings(tmp_path, file, **changes)
    assert command(config, "--output", tmp_path / "one") == 0
    run_two(["train", "retriever", config, "--output", tmp_path / "two"])
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert [list(line) for line in one] == [list(line) for line in two]
    for mine, theirs in zip(one, two, strict=True):
        for name, value in mine.items():
            assert theirs[name] == pytest.approx(value, rel=2e-3), (name, mine, theirs)
    weights = [
        FLMRModelForRetrieval.from_pretrained(tmp_path / r / "last").state_dict()
        for r in ("one", "two")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=3e-4)


def test_a_batch_that_the_processes_cannot_share_is_refused(texts, tmp_path, monkeypatch):
    from ravqa.training import loop

    class Two:
        num_processes, process_index, is_main_process = 2, 0, True

    monkeypatch.setattr(loop, "processes", Two)
    made = task(texts)
    line = r"^loop.batch_size 5 cannot be shared by 2 processes: it must be a multiple$"
    with pytest.raises(UserError, match=line):
        loop.train(
            made,
            made.config.loop.model_copy(update={"batch_size": 5}),
            None,
            progress=print,
            note=print,
        )
