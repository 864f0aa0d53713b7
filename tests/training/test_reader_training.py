"""Training of a pipeline's reader from a settings file, with tiny random models."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cases import slow_but
from hypothesis import given
from hypothesis import strategies as st
from training_files import PLANTS, figures

from ravqa.cli import main
from ravqa.core.errors import UserError
from ravqa.core.records import Question
from ravqa.core.settings import validate
from ravqa.metrics.vqa import vqa_accuracy
from ravqa.pipeline import Pipeline
from ravqa.readers.training import training_batches
from ravqa.training.folder import TrainingFolder
from ravqa.training.loop import train
from ravqa.training.reader import ReaderTask, ReaderTraining
from ravqa.training.reader_data import place_of_image, read_source
from ravqa.training.sampling import batches


def silent(*_):
    pass


def task_of(values):
    return ReaderTask(validate(ReaderTraining, values, "mine.yaml"), "mine.yaml", progress=silent)


def run(path, task, **options):
    made = TrainingFolder(path, **options)
    with made.held():
        return train(task, task.config.loop, made, progress=silent, note=silent)


def weights(task):
    return {n: p.detach().clone() for n, p in task.model.named_parameters()}


# --- examples


def test_examples_are_the_prompts_of_the_pipeline_with_their_targets(settings):
    values = settings(source={"passages": ["retrieved"]})
    task = task_of(values)
    [examples] = task.examples
    pipeline = Pipeline.load(values["pipeline"])
    source = task.config.train[0]
    read = read_source(source, "x")
    pipeline.prepare(read.corpus)
    asked = [q for q in read.dataset.questions if q.question_id != 5]  # it has no target
    hits = pipeline.retrieve(asked)
    pipeline.answer(asked, hits)
    assert sorted(e.prompt.text for e in examples) == sorted(pipeline.answerer.asked.values())
    assert len(examples) == 2 * 5  # two passages in prompts of their own
    for example in examples:
        plant = PLANTS[example.question_id]
        assert example.target == plant  # the most frequent, held or not
        assert example.held == (f"an {plant}." in example.prompt.text)
        ids = task.reader._tokenizer(f" {plant}", add_special_tokens=False)["input_ids"]
        assert example.tokens == len(ids) + 1  # and an end mark
    [told] = task.facts["train"]
    assert told["questions"] == 5
    assert told["prompts"] == 10
    assert told["targets_in_passages"] == sum(e.held for e in examples)
    assert told["left_out"] == {"no answer can be a target": 1}


def test_each_kind_of_passages_adds_its_prompts_once(settings):
    kinds = ["retrieved", "oracle", "none"]
    answering = {"decision": "top1", "passages": 1}
    prompts = {}
    for kind in kinds:
        task = task_of(settings(pipeline={"answering": answering}, source={"passages": [kind]}))
        prompts[kind] = {(e.question_id, e.prompt.text) for e in task.examples[0]}
    assert all("Knowledge" not in text for _, text in prompts["none"])
    for question, text in prompts["oracle"]:
        assert PLANTS[question] in text or "tree" in text
    task = task_of(settings(pipeline={"answering": answering}, source={"passages": kinds}))
    [together] = task.examples
    assert len(together) == len(set.union(*prompts.values()))
    assert {(e.question_id, e.prompt.text) for e in together} == set.union(*prompts.values())


def test_prompts_that_hold_no_answer_can_be_left_out(settings):
    dropped = task_of(settings(targets={"unsupported": "drop", "exclude": r"zq\w+"}))
    assert all(e.held for e in dropped.examples[0])
    kept = task_of(settings())
    assert not all(e.held for e in kept.examples[0])
    [told] = dropped.facts["train"]
    missing = len(kept.examples[0]) - len(dropped.examples[0])
    assert told["left_out"]["no passage holds an answer"] == missing > 0


def test_targets_and_prompts_that_are_too_long_are_left_out(settings, data):
    rows = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    rows[0]["answers"] = ["an oak with very many leaves and acorns"]
    rows[1]["question"] = "Which plant? " * 100
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (data / "questions.jsonl").write_text(text)
    task = task_of(settings())
    assert {e.question_id for e in task.examples[0]} == {2, 3, 4}
    assert task.facts["train"][0]["left_out"] == {
        "no answer can be a target": 1,
        "a target is longer than an answer": 2,
        "a prompt is too long": 1,  # without any passage: the pipeline leaves those out first
    }


@given(st.one_of(st.integers(), st.text(max_size=20)))
def test_an_image_has_one_place_from_0_to_1(image_id):
    first = place_of_image(Question(1, "Who?", image_id=image_id))
    assert first == place_of_image(Question(2, "What?", image_id=str(image_id)))
    assert 0 <= first < 1


def test_places_of_images_are_even():
    places = [place_of_image(Question(i, "Who?", image_id=i)) for i in range(4000)]
    for tenth in range(10):  # a binomial's standard error is .0047
        share = sum(tenth / 10 <= place < (tenth + 1) / 10 for place in places) / 4000
        assert abs(share - 0.1) < 0.02


def test_parts_of_the_images_have_nothing_in_common(settings):
    values = settings(source={"images": [0, 0.6]}, validation={"images": [0.6, 1]})
    task = task_of(values)
    trained = {e.question_id for e in task.examples[0]}
    held = {q.question_id for q in task._held.source.dataset.questions}
    assert trained
    assert held
    assert trained.isdisjoint(held)
    assert trained | held | {5} == set(range(6))
    with pytest.raises(
        UserError, match=r"mine\.yaml: validation: 6 of its images are also trained"
    ):
        task_of(settings(validation={}))


# --- steps


def by_hand(task, examples):
    """The mean loss of examples by transformers itself, one at a time."""
    total, count = 0.0, 0
    tokenizer = task.reader._tokenizer
    for example in examples:
        head = tokenizer(example.prompt.text, add_special_tokens=False)["input_ids"]
        tail = tokenizer(f" {example.target}", add_special_tokens=False)["input_ids"] + [1]
        labels = torch.tensor([[-100] * len(head) + tail])
        loss = task.model(torch.tensor([head + tail]), labels=labels).loss
        total, count = total + loss * len(tail), count + len(tail)
    return total / count


def drawn(task):
    loop = task.config.loop
    return next(batches(task.sizes, task.ratios, loop.batch_size, loop.seed))


def test_full_training_is_adamw_on_the_mean_loss_of_the_targets_tokens(settings, tmp_path):
    loop = {"steps": 1, "max_grad_norm": None, "learning_rate": 1e-3}
    values = settings(method="full", loop=loop, batch_size=3)
    task, other = task_of(values), task_of(values)
    run(tmp_path / "run", task)
    optimizer = torch.optim.AdamW(other.model.parameters(), lr=1e-3, weight_decay=0.0)
    other.model.train()
    loss = by_hand(other, [other.examples[0][place] for _, place in drawn(other)])
    loss.backward()
    optimizer.step()
    [line] = figures(tmp_path / "run")
    assert line["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, weight in weights(task).items():
        torch.testing.assert_close(weight, weights(other)[name], atol=1e-6, rtol=1e-4)
    told = json.loads((tmp_path / "run" / "results.json").read_text())
    assert told["parameters"]["trained"] == told["parameters"]["all"]


def gradients(task, batch, **how):
    for name, value in how.items():
        setattr(task, name, value)
    task.model.zero_grad()
    losses = task.backward(batch, 1.0, 0)
    return losses["loss"], {n: p.grad.clone() for n, p in task.model.named_parameters()}


def test_parts_and_processes_change_neither_loss_nor_gradients(settings):
    whole = task_of(settings(method="full", batch_size=4))
    batch = drawn(whole)
    expected, wanted = gradients(whole, batch)
    assert expected == pytest.approx(
        float((whole._sum(whole._own(batch)) * whole._scale(batch)).detach()), rel=1e-6
    )
    parts = task_of(settings(method="full", batch_size=1, checkpointing=True))
    found, same = gradients(parts, batch)
    assert found == pytest.approx(expected, rel=1e-5)
    both = [gradients(parts, batch, rank=rank, world=2) for rank in (0, 1)]
    assert (both[0][0] + both[1][0]) / 2 == pytest.approx(expected, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(same[name], gradient, atol=1e-5, rtol=1e-4)
        mean = (both[0][1][name] + both[1][1][name]) / 2
        torch.testing.assert_close(mean, gradient, atol=1e-5, rtol=1e-4)


def test_a_model_that_padding_changes_reads_one_example_at_a_time(settings, monkeypatch):
    task = task_of(settings(method="full", batch_size=4))
    read = []

    def batches_of(reader, prompts, targets):
        read.append(len(prompts))
        return training_batches(reader, prompts, targets)

    monkeypatch.setattr("ravqa.readers.training.training_batches", batches_of)
    task.backward(drawn(task), 1.0, 0)
    task.reader.switched_off = {"batches": "padding changes its log-probabilities by up to 0.1"}
    task.backward(drawn(task), 1.0, 0)
    assert read == [4, 1, 1, 1, 1]


@pytest.mark.parametrize("name", slow_but(["t5"], ["t5", "llava"]))
def test_other_kinds_of_readers_train_too(settings, tmp_path, name):
    loop = {"steps": 6, "learning_rate": 0.02}
    task = task_of(settings(name, loop=loop, lora={"rank": 2, "dropout": 0.0}))
    seen = [e.prompt.image is not None for e in task.examples[0]]
    assert all(seen) == any(seen) == (name == "llava")
    run(tmp_path / "run", task)
    losses = [line["loss"] for line in figures(tmp_path / "run")]
    assert losses[-1] < losses[0]


# --- validation, checkpoints, resuming


@pytest.mark.slow
def test_validation_is_what_the_pipeline_answers(settings, data, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft")
    rows = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    places = [place_of_image(Question(i, "Who?", image_id=i)) for i in range(6)]
    held = sorted(range(6), key=places.__getitem__)[-3:]
    for i, row in enumerate(rows):  # the answer is the same, but for one held-out question
        row["answers"] = ["elm"] * 4 if i == held[1] else ["oak"] * 4
    (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = ["retrieved", "none"]
    limit = places[held[0]]
    values = settings(
        source={"images": [0, limit]},
        validation={"images": [limit, 1], "passages": kinds},
        lora={"rank": 4, "dropout": 0.0},
        loop={"steps": 40, "validate_every": 20, "learning_rate": 0.03},
    )
    task = task_of(values)
    found = run(tmp_path / "run", task)
    lines = [line for line in figures(tmp_path / "run") if "validation" in line]
    assert [line["step"] for line in lines] == [0, 20, 40]
    assert all(list(line["validation"]) == kinds for line in lines)
    first, *_, last = lines
    assert first["validation"] == {"retrieved": 0, "none": 0}
    assert last["validation"]["retrieved"] == pytest.approx(200 / 3, abs=1e-3)
    told = found["validation"]
    assert (told["metric"], told["questions"], told["images"]) == ("vqa_accuracy", 3, 3)
    # The adapter is a setting of the pipeline's reader, and the answers are the same.
    fingerprints = []
    for which, folder in (("before", None), ("best", "best"), ("last", "last")):
        adapter = [f"reader.adapter={tmp_path / 'run' / folder}"] if folder else []
        pipeline = Pipeline.load(values["pipeline"], *adapter)
        fingerprints.append(pipeline.fingerprints["answerer"])
        read = read_source(task.config.validation, "x")
        pipeline.prepare(read.corpus)
        questions = list(read.dataset.questions)
        answers = pipeline.answer(questions, pipeline.retrieve(questions))
        scores = [
            vqa_accuracy(getattr(answer, "text", ""), question.answers)
            for answer, question in zip(answers, questions, strict=True)
        ]
        own = told["conditions"]["retrieved"][which]
        assert own["score"] == pytest.approx(100 * sum(scores) / 3, abs=1e-3)
        assert own["interval_95"] == [None, None]  # of three images
    assert fingerprints[0] not in fingerprints[1:]
    assert found["best"]["figures"]["retrieved"] == own["score"]
    assert own["change"] == pytest.approx(200 / 3, abs=1e-3)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "last 66.7, change +66.7" in page
    assert "The best checkpoint was chosen on these questions" in page


@pytest.mark.slow
def test_a_resumed_training_is_the_same(settings, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft")
    values = settings(
        source={"images": [0, 0.6]},
        validation={"images": [0.6, 1]},
        lora={"rank": 2, "dropout": 0.3},
        loop={"steps": 6, "validate_every": 3, "save_every": 2},
    )
    whole = run(tmp_path / "whole", task_of(values))
    stopped = task_of(values)

    def stop(step, progress):
        if step == 5:
            raise KeyboardInterrupt

    stopped.before_step = stop
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stopped)
    parts = run(tmp_path / "parts", task_of(values), resume=True)
    assert parts == whole
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    for name in ("best", "last"):
        one, two = (tmp_path / r / name / "adapter_model.safetensors" for r in ("whole", "parts"))
        assert one.read_bytes() == two.read_bytes()


def test_a_merged_model_takes_the_readers_place(settings, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft")
    values = settings(merged=True)
    task = task_of(values)
    run(tmp_path / "run", task)
    prompts = [e.prompt for e in task.examples[0]]
    answers = [e.target for e in task.examples[0]]
    task.model.eval()
    pipeline = Pipeline.load(values["pipeline"], f"reader.model={tmp_path / 'run' / 'best'}")
    assert pipeline.answerer.reader.score(prompts, answers) == pytest.approx(
        task.reader.score(prompts, answers), abs=1e-4
    )


def test_a_training_with_other_data_is_not_resumed(settings, data, tmp_path):
    values = settings()
    run(tmp_path / "run", task_of(values))
    text = (data / "questions.jsonl").read_text()
    (data / "questions.jsonl").write_text(text.replace("number 0", "no. 0"))
    with pytest.raises(UserError, match=r"had other settings, model or data \(fingerprints\.train"):
        run(tmp_path / "run", task_of(values), resume=True)


# --- the command


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs `ravqa train reader` on settings that must end in one line of error; gives that line."""
    monkeypatch.chdir(tmp_path)

    def check(values, *arguments):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["train", "reader", "mine.yaml", *arguments])
        out, err = capsys.readouterr()
        assert end.value.code == 2
        assert out == ""
        [line] = [line for line in err.splitlines() if line.startswith("error: ")]
        assert not (tmp_path / "runs").exists()
        return line

    return check


def test_mistakes_are_one_line_each(settings, refused, monkeypatch):
    assert "unknown key 'trains'" in refused(settings(trains=[]))
    assert "key 'train' is missing" in refused(settings(train=None))
    assert "key 'train': " in refused(settings(train=[]))
    assert "unknown key 'loop.step': did you mean steps" in refused(settings(loop={"step": 1}))
    assert "the smaller one first" in refused(settings(source={"images": [0.5, 0.5]}))
    assert "named twice" in refused(settings(source={"passages": ["none", "none"]}))
    assert "settings of the method lora" in refused(settings(method="full", merged=True))
    assert "vision is a setting of the method full" in refused(settings(vision=True))
    assert "no pipeline 'sampl': " in refused(settings() | {"pipeline": "sampl"})
    values = settings()
    path = Path(values["pipeline"])
    part = yaml.safe_load(path.read_text()) | {"reader": {"name": "first-words"}}
    path.write_text(yaml.safe_dump(part))
    assert "the reader first-words cannot be trained: transformers-llm" in refused(values)
    seeing = {"name": "transformers-vlm", "model": "x"}
    shown = {"prompt": "chat", "passage_images": 1}
    path.write_text(yaml.safe_dump(part | {"reader": seeing, "answering": shown}))
    assert refused(values) == (
        f"error: {path.name}: answering.passage_images: readers are trained without pictures of "
        "passages: set it to 0"
    )
    assert "nothing to train on (no answer can be a target: 6)" in refused(
        settings(targets={"exclude": ".*"})
    )
    assert "nowhere" in refused(settings(source={"data": "nowhere"}))
    half = settings(method="full", pipeline={"reader": {"dtype": "bfloat16"}})
    assert "set reader.dtype to float32 and loop.precision" in refused(half)
    monkeypatch.setitem(sys.modules, "peft", None)
    line = refused(settings())
    assert line.startswith("error: training a LoRA adapter needs ")
    assert "pip install 'ravqa[train]'" in line


def test_broken_questions_stop_the_training_or_are_left_out(settings, data, refused):
    lines = (data / "questions.jsonl").read_text().splitlines()
    (data / "questions.jsonl").write_text(
        "\n".join([lines[0], '{"question_id": 1, "answers": ["elm"]}', *lines[2:]]) + "\n"
    )
    (data / "3.png").write_bytes(b"no picture")
    line = refused(settings("llava"))
    assert line.startswith("error: mine.yaml: train.0: ")
    assert "questions.jsonl, line 2" in line
    assert "(on_error: skip leaves such questions out)" in line
    task = task_of(settings("llava", source={"on_error": "skip"}))
    assert {e.question_id for e in task.examples[0]} == {0, 2, 4}
    assert task.facts["train"][0]["left_out"]["broken questions"] == 2


def test_passages_must_be_there(settings, data, refused):
    (data / "passages.jsonl").unlink()
    assert "mine.yaml: train.0: there are no passages: name a file as corpus" in refused(settings())


def test_the_command_trains_and_the_folder_says_how(settings, tmp_path, capsys, monkeypatch):
    pytest.importorskip("peft", reason="adapters need peft")
    monkeypatch.chdir(tmp_path)
    values = settings(loop={"precision": "bfloat16"})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit) as end:
        main(["train", "reader", "mine.yaml", "--output", "run", "--set", "loop.steps=2"])
    assert end.value.code == 0
    assert capsys.readouterr().out == "training folder: run\n"
    assert len(figures(tmp_path / "run")) == 2
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["training"] == "reader"
    assert written["lora"]["rank"] == 2
    assert written["loop"]["steps"] == 2
    assert (tmp_path / "run" / "best" / "adapter_config.json").is_file()
    assert "Training of a reader" in (tmp_path / "run" / "report.html").read_text()
