"""The loop: exact steps, validation, early stopping, and resuming as if nothing had happened."""

import json
import math
import sys
import types

import numpy as np
import pytest
import torch
import yaml

from ravqa.core.errors import DamagedError, MissingExtraError, UserError
from ravqa.core.settings import validate
from ravqa.training.folder import TrainingFolder
from ravqa.training.loop import train
from ravqa.training.sampling import batches, step_seed
from ravqa.training.settings import LoopConfig
from ravqa.training.task import Task


class Line(Task):
    """Fits y = 2x + 1 with a random linear model and dropout; its data are 20 points."""

    kind = "line"
    metric = "error"
    higher_is_better = False

    def __init__(self, stop_at=None, frozen=False, scores=None):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)
        )
        self.model.requires_grad_(not frozen)
        self.xs = torch.linspace(-1, 1, 20)[:, None]
        self.sizes, self.ratios, self.facts = [20], [1.0], {}
        self.stop_at, self.scores, self.seen = stop_at, scores, []

    @property
    def identity(self):
        return {"data": "twenty points"}

    def loss(self, batch):
        x = self.xs[[i for _, i in self.share(batch)]]
        return (self.model(x) - 2 * x - 1).square().mean()

    def backward(self, batch, weight, seed):
        self.seen += [i for _, i in batch]
        torch.manual_seed(step_seed(seed, self.rank))
        with self.autocast():
            loss = self.loss(batch)
        if loss.requires_grad:  # the loop reports if nothing ever trains
            (loss * weight).backward()
        return {"loss": float(loss.detach())}

    def before_step(self, step, progress):
        if step == self.stop_at:
            raise KeyboardInterrupt

    def evaluate(self, progress):
        if self.scores is not None:
            return {"error": self.scores.pop(0)} if self.scores else {}
        return {"error": float((self.model(self.xs) - 2 * self.xs - 1).square().mean())}

    def save(self, folder):
        torch.save(self.model.state_dict(), folder / "weights.pt")


def config(**values):
    given = {"steps": 12, "batch_size": 4, "learning_rate": 0.05, "save_every": 3, **values}
    return validate(LoopConfig, given, "test")


def run(folder, task, settings, **options):
    notes = []
    made = TrainingFolder(folder, **options)
    with made.held():
        found = train(task, settings, made, progress=lambda *_: None, note=notes.append)
    return found, notes


def figures(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_step_is_the_mean_gradient_of_its_batches(tmp_path):
    task = Line()
    task.model[1].p = 0.0
    weights = {n: p.detach().clone() for n, p in task.model.named_parameters()}
    settings = config(steps=1, accumulation=3, max_grad_norm=None, schedule="constant")
    run(tmp_path / "run", task, settings)
    again = Line()
    again.model[1].p = 0.0
    again.model.load_state_dict({**again.model.state_dict(), **weights})
    optimizer = torch.optim.AdamW(again.model.parameters(), lr=0.05, weight_decay=0.0)
    draws = batches([20], [1.0], 4, 0)
    chosen = [i for _ in range(3) for _, i in next(draws)]
    x = again.xs[chosen]
    loss = (again.model(x) - 2 * x - 1).square().mean()
    loss.backward()
    optimizer.step()
    [line] = [f for f in figures(tmp_path / "run") if "loss" in f]
    assert math.isclose(line["loss"], float(loss.detach()), rel_tol=1e-6)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in again.model.parameters()))
    assert math.isclose(line["gradient"], norm, rel_tol=1e-5)
    for mine, theirs in zip(task.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_a_resumed_training_has_the_same_losses_and_weights(tmp_path, stop):
    settings = config(validate_every=4, schedule="cosine", warmup=2, accumulation=2)
    whole = Line()
    run(tmp_path / "whole", whole, settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", Line(stop_at=stop), settings)
    resumed = Line()
    _, notes = run(tmp_path / "parts", resumed, settings, resume=True)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    saved = stop - stop % 3 if stop < 4 else max(stop - stop % 3, stop - stop % 4)
    assert notes == ([f"resumed after step {saved} of 12"] if saved else [])
    results = [json.loads((tmp_path / r / "results.json").read_text()) for r in ("whole", "parts")]
    assert results[0] == results[1]
    for name in ("best", "last"):
        one, two = (
            torch.load(tmp_path / r / name / "weights.pt", weights_only=True)
            for r in ("whole", "parts")
        )
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_lines_after_the_last_checkpoint_are_written_again(tmp_path):
    settings = config()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", Line(stop_at=5), settings)
    assert [f["step"] for f in figures(tmp_path / "run")] == [1, 2, 3, 4, 5]
    with (tmp_path / "run" / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "lo')  # a kill inside a write
    run(tmp_path / "run", Line(), settings, resume=True)
    steps = [f["step"] for f in figures(tmp_path / "run") if "loss" in f]
    assert steps == list(range(1, 13))


def test_training_stops_after_so_many_validations_without_a_better_one(tmp_path):
    scores = [5.0, 4.0, 4.5, 3.0, 3.0, 3.5, 1.0]
    settings = config(steps=100, validate_every=2, patience=2)
    found, _ = run(tmp_path / "run", Line(scores=scores), settings)
    assert found["stopped_early"]
    assert found["steps"] == 10  # validations at 0, 2, 4, 6, 8 and 10; the best is that at 6
    assert found["best"] == {"step": 6, "figures": {"error": 3.0}}
    again, _ = run(tmp_path / "run", Line(scores=[0.0]), settings, resume=True)
    assert again == found


def test_without_validation_the_last_checkpoint_is_the_best(tmp_path):
    task = Line(scores=[])
    found, _ = run(tmp_path / "run", task, config())
    best = torch.load(tmp_path / "run" / "best" / "weights.pt", weights_only=True)
    assert found["best"] is None
    assert all(torch.equal(best[key], value) for key, value in task.model.state_dict().items())


def test_an_interrupted_exchange_of_checkpoints_is_finished_or_undone(tmp_path):
    settings = config()
    run(tmp_path / "run", Line(), settings)
    folder = tmp_path / "run"
    (folder / "last").rename(folder / "last.old")  # a kill between the two renames
    run(folder, Line(), settings, resume=True)
    assert (folder / "last" / "training.pt").is_file()
    assert not (folder / "last.old").exists()


def test_another_training_is_not_resumed(tmp_path):
    run(tmp_path / "run", Line(), config())
    line = (
        f"^the training in {tmp_path / 'run'} had other settings, model or data "
        r"\(loop.learning_rate: 0.05 then, 0.1 now\): it cannot be resumed with these$"
    )
    with pytest.raises(UserError, match=line):
        run(tmp_path / "run", Line(), config(learning_rate=0.1), resume=True)
    with pytest.raises(UserError, match="--resume continues it, --overwrite replaces it"):
        run(tmp_path / "run", Line(), config())
    run(tmp_path / "run", Line(), config(steps=3), overwrite=True)
    assert len(figures(tmp_path / "run")) == 4  # three steps and a validation
    other = Line()
    other.kind = "circle"
    line = f"^{tmp_path / 'run'} holds no training of a circle: choose another --output$"
    with pytest.raises(UserError, match=line):
        run(tmp_path / "run", other, config(), overwrite=True)


def test_a_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path / "run", Line(), config())
    (tmp_path / "run" / "last" / "training.pt").write_bytes(b"half")
    path = tmp_path / "run" / "last" / "training.pt"
    line = rf"^{path} is damaged \(.+\): the training cannot be resumed$"
    with pytest.raises(DamagedError, match=line):
        run(tmp_path / "run", Line(), config(), resume=True)


def test_mistakes_are_one_line_each(tmp_path):
    with pytest.raises(UserError, match=r"^no parameter is trained: all are frozen$"):
        run(tmp_path / "a", Line(frozen=True), config())
    with pytest.raises(UserError, match=r"loop: set either steps or epochs$"):
        config(epochs=1)
    with pytest.raises(UserError, match="unknown key 'stepps': did you mean steps"):
        config(stepps=1)
    with pytest.raises(
        UserError, match=r"loop: patience counts validations: set validate_every too$"
    ):
        config(patience=1)
    line = (
        r"^loop.learning_rates: '0\.wait' matches no parameter of the model \(parts: \S.*; "
        r"modules: \S.*\)$"
    )
    with pytest.raises(UserError, match=line):
        run(tmp_path / "b", Line(), config(learning_rates={"0.wait": 0.1}))
    broken = Line()
    broken.xs = broken.xs * math.inf
    line = (
        "^step 1: the loss is nan: a lower loop.learning_rate, a longer loop.warmup, or "
        "loop.precision: float32 may help$"
    )
    with pytest.raises(UserError, match=line):
        run(tmp_path / "c", broken, config())


def test_parts_have_their_own_learning_rates_and_biases_no_decay(tmp_path):
    task = Line()
    task.parts = {"first": ("0.*",)}
    before = {n: p.detach().clone() for n, p in task.model.named_parameters()}
    task.loss = lambda batch: 0 * sum(p.sum() for p in task.model.parameters())
    rates = {"first": 0.5, "0.bias": 0.25}
    settings = config(steps=1, weight_decay=0.1, schedule="constant", learning_rates=rates)
    run(tmp_path / "run", task, settings)
    after = dict(task.model.named_parameters())
    torch.testing.assert_close(after["0.weight"].data, before["0.weight"] * (1 - 0.5 * 0.1))
    torch.testing.assert_close(after["2.weight"].data, before["2.weight"] * (1 - 0.05 * 0.1))
    assert torch.equal(after["0.bias"].data, before["0.bias"])


def test_curves_are_the_figures_and_long_ones_their_means(tmp_path):
    from ravqa.training.report import _figures

    lines = [
        {"step": i, "loss": float(i), "learning_rate": 1e-6 * i, "gradient": 1.0, "seconds": 0.1}
        for i in range(1, 1001)
    ]
    validations = [{"step": i, "validation": {"error": i / 10}} for i in (0, 500, 1000)]
    loss, rate, validation = _figures(lines, validations)
    assert len(loss.rows) == 200
    assert loss.rows[0] == ["5", "3.0000"]  # the mean of 1 to 5
    assert loss.rows[-1] == ["1000", "998.0000"]
    assert rate.rows[-1] == ["1000", "1000.000"]
    assert validation.rows == [["500", "50.0000"], ["1000", "100.0000"]]
    short, *_ = _figures(lines[:3], [])
    assert short.rows == [["1", "1.0000"], ["2", "2.0000"], ["3", "3.0000"]]


def test_a_task_is_told_what_the_next_steps_will_draw(tmp_path):
    class Told(Line):
        told = None

        def before_step(self, step, progress):
            if step == 2:
                self.told = {n: self.upcoming(step, n) for n in (1, 2, 50)}
                self.before = len(self.seen)

    task = Told()
    run(tmp_path / "run", task, config(steps=4, batch_size=3, accumulation=2))
    following = task.seen[task.before :]  # two updates of two batches each
    assert len(following) == 12
    for n, size in ((1, 6), (2, 12), (50, 12)):
        assert task.told[n] == {(0, i) for i in following[:size]}


def test_results_can_be_read_by_people(tmp_path):
    task = Line()
    task.facts = {"model": "Käse"}
    run(tmp_path / "run", task, config(steps=1))
    text = (tmp_path / "run" / "results.json").read_text(encoding="utf-8")
    assert "Käse" in text
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_epochs_count_examples(tmp_path):
    found, _ = run(tmp_path / "run", Line(), config(steps=None, epochs=1.5, accumulation=2))
    assert found["planned_steps"] == 4  # 30 examples, 8 an update


def test_every_example_is_seen_once_before_any_twice():
    draws = batches([7], [1.0], 7, seed=3)
    assert all(sorted(i for _, i in next(draws)) == list(range(7)) for _ in range(5))


def test_datasets_are_drawn_by_their_ratios():
    draws = batches([50, 3], [3.0, 1.0], 100, seed=0)
    drawn = [d for _ in range(200) for d, _ in next(draws)]
    share = np.mean(drawn)  # of the second; its standard error is .003
    assert abs(share - 0.25) < 0.015
    first, second = (next(batches([50, 3], [3.0, 1.0], 100, seed=s)) for s in (1, 2))
    assert first != second
    assert first == next(batches([50, 3], [3.0, 1.0], 100, seed=1))


def test_the_folder_tells_the_whole_story(tmp_path):
    run(tmp_path / "run", Line(), config(validate_every=4, learning_rate=1e-3))
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ("Training of a line", "Training loss", "Validation", "learning_rate: 0.001"):
        assert text in page
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["training"] == "line"
    assert settings["data"] == "twenty points"
    assert settings["loop"]["steps"] == 12


class Recorder:
    """Takes the place of accelerate's tracker for TensorBoard."""

    made = ()

    def __init__(self, name, **options):
        Recorder.made = (*Recorder.made, self)
        self.name, self.options, self.lines, self.ended = name, options, [], False

    def log(self, figures, step):
        self.lines.append((step, figures))

    def finish(self):
        self.ended = True


def test_trackers_get_the_figures_and_are_finished(tmp_path, monkeypatch):
    from accelerate import tracking

    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setattr(tracking, "TensorBoardTracker", Recorder)
    monkeypatch.setattr(Recorder, "made", ())
    settings = config(steps=2, validate_every=1, trackers=["tensorboard"])
    run(tmp_path / "run", Line(), settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Line(stop_at=1), settings)
    whole, stopped = Recorder.made
    assert whole.ended
    assert stopped.ended
    assert whole.options == {"logging_dir": tmp_path / "run" / "trackers"}
    assert [step for step, _ in whole.lines] == [0, 1, 1, 2, 2]
    expected = [f["loss"] for f in figures(tmp_path / "run") if "loss" in f]
    assert [f["loss"] for _, f in whole.lines if "loss" in f] == expected
    assert "validation/error" in whole.lines[0][1]


def test_a_tracker_that_is_not_installed_is_named_before_an_old_run_is_lost(tmp_path, monkeypatch):
    run(tmp_path / "run", Line(), config(steps=1))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    settings = config(steps=1, trackers=["tensorboard"])
    with pytest.raises(
        MissingExtraError, match=r"^the tracker tensorboard needs .*'ravqa\[trackers\]'"
    ):
        run(tmp_path / "run", Line(), settings, overwrite=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
