"""Examples for training tiny models: coloured squares and texts about them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

MODEL = str(
    Path(__file__).parents[1] / "data" / "flmr-parity" / "preflmr" / "checkpoint_context_names"
)
"""A tiny random checkpoint: it proves the plumbing, no quality."""

PLANTS = ["oak", "elm", "ash", "fir", "yew", "box"]
"""What the questions for readers ask for; the last one has no good answer."""
COLOURS = {
    "red": (200, 20, 20),
    "green": (20, 160, 40),
    "blue": (30, 40, 200),
    "yellow": (220, 210, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "pink": (240, 130, 180),
    "brown": (120, 70, 30),
}


def passage(colour, **more):
    return {"id": f"p-{colour}", "text": f"the colour {colour} , it is {colour} .", **more}


def rows(images=True, negatives=0, answers=True):
    names = list(COLOURS)
    out = []
    for i, colour in enumerate(names):
        row = {"id": f"q-{colour}", "question": f"{i} {i} {i} ?"}
        row["instruction"] = "find :"
        row["positive"] = passage(colour)
        if images:
            row["image"] = f"{colour}.png"
        if answers:
            row["answers"] = [colour]
        row["negatives"] = [passage(names[(i + j + 1) % len(names)]) for j in range(negatives)]
        out.append(row)
    return out


def write_examples(folder, **options):
    """Write `examples.jsonl` and the images that it names; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 40), colour).save(folder / f"{name}.png")
    path = folder / "examples.jsonl"
    write_rows(path, rows(**options))
    return path


def write_rows(path, lines):
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


def settings(file, **changes):
    """Settings of a short training on a file of examples; None leaves a key out."""
    values = {
        "model": MODEL,
        "train": [{"file": str(file)}],
        "loop": {"steps": 4, "batch_size": 4, "learning_rate": 0.001, **changes.pop("loop", {})},
        **changes,
    }
    return {name: value for name, value in values.items() if value is not None}


def task(file, **changes):
    """The task of such a training."""
    from ravqa.core.settings import validate
    from ravqa.training.retriever import RetrieverTask
    from ravqa.training.retriever_settings import RetrieverTraining

    return RetrieverTask(validate(RetrieverTraining, settings(file, **changes), "test"))


def write_settings(folder, file, **changes):
    """Write `config.yaml`; return its path."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings(file, **changes)), encoding="utf-8")
    return path


def command(*arguments):
    """The exit code of `ravqa train retriever`."""
    from ravqa.cli import main

    with pytest.raises(SystemExit) as end:
        main(["train", "retriever", *map(str, arguments)])
    return end.value.code


def start(arguments, *launcher, **options):
    """A child process of the command ravqa, with one thread."""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(root),
    }
    words = [sys.executable, *launcher, "-m", "ravqa", *map(str, arguments)]
    return subprocess.Popen(words, cwd=root, env=environment, **options)


def run_two(arguments):
    """Run the command in two processes that share their work; fail if they do."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = start(arguments, *launcher, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.communicate()[0].decode()
    assert done.returncode == 0, output


def kill(arguments, folder, steps):
    """Run a training, and kill it as soon as it has logged so many steps."""
    process = start(arguments)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None:
        if metrics.is_file() and metrics.read_text().count('"loss"') >= steps:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL


def figures(folder):
    """The lines of metrics.jsonl, without what differs from run to run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def encoder_scores(folder, lines):
    """The encoder's MaxSim scores of each line's question with each line's positive passage."""
    import numpy as np

    from ravqa.core.records import Passage, Question
    from ravqa.encoders.flmr import FLMREncoder

    encoder = FLMREncoder(FLMREncoder.Config(model=MODEL))
    given = [row["positive"] for row in lines]
    documents = encoder.encode_passages([Passage(p["id"], p["text"]) for p in given])
    asked = [
        Question(r["id"], r["question"], image=folder / r["image"], instruction=r["instruction"])
        for r in lines
    ]
    queries = encoder.encode_question(asked)
    return np.array([[(q @ d.T).max(1).sum() for d in documents] for q in queries])
