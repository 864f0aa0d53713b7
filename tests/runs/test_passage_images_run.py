"""Runs in which a reader sees the pictures of passages."""

import io
import json

import pytest
from PIL import Image

from ravqa.cli import run_main
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict
from ravqa.images.decode import image_bytes
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader
from ravqa.reports.run import read_run
from ravqa.reports.summary import notes


class Looking(Reader):
    """Answers with the red of each image's first pixel: 200 and more are photos of questions."""

    Config = Strict
    fingerprint = weights = "looking"
    supports_images = True
    max_images = None

    def __init__(self, config):
        pass

    def generate(self, prompts):
        return [Generation(" ".join(map(_red, prompt.images)) or "none") for prompt in prompts]


def _red(image):
    with Image.open(io.BytesIO(image_bytes(image))) as opened:
        return str(opened.getpixel((0, 0))[0])


def picture(path, red):
    Image.new("RGB", (9, 9), (red, 0, 0)).save(path)


@pytest.fixture
def run(tmp_path, monkeypatch, fresh_cache, capsys):
    """Runs two questions, about koalas and about otters, and returns code, samples and results."""
    entry = Entry(f"{__name__}:Looking", "for tests")
    monkeypatch.setitem(READERS._entries, "looking", entry)
    asked, found = [], []
    for i, (animal, food) in enumerate([("koala", "leaves"), ("otter", "fish")]):
        picture(tmp_path / f"photo{i}.png", 200 + i)
        picture(tmp_path / f"{animal}.png", 10 + i)
        row = {"question_id": i, "question": f"What does the {animal} eat?", "answers": [food]}
        asked.append({**row, "image": f"photo{i}.png", "image_id": i})
        text = f"The {animal} eats {food}."
        found.append({"passage_id": animal, "text": text, "image": f"{animal}.png"})
        found.append({"passage_id": f"{animal}2", "text": f"The {animal} is an animal."})
    for name, rows in (("questions", asked), ("passages", found)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    def ran(*options, **settings):
        values = {"describer": "null", "retriever": "{name: bm25}", "reader": "looking"}
        values |= {"answering.prompt": "chat", "answering.decision": "concat"}
        values |= {"answering.passages": 2, "answering.passage_images": 1, **settings}
        output = tmp_path / "out"
        arguments = ["--dataset", "jsonl", "--data", tmp_path, "--output", output, "--no-report"]
        for name, value in values.items():
            arguments += ["--set", f"{name}={value}"]
        with pytest.raises(SystemExit) as end:
            run_main([str(argument) for argument in [*arguments, *options]])
        printed = capsys.readouterr().err
        if end.value.code:
            return end.value.code, printed
        files = [output / "samples.jsonl", *output.glob("samples.*.jsonl")]
        samples = {f.name: list(map(json.loads, f.read_text().splitlines())) for f in files}
        conditions = json.loads((output / "results.json").read_text())["answers"]["conditions"]
        return samples, conditions, printed

    return ran


def test_pictures_are_shown_and_counted_under_every_condition(run, tmp_path):
    samples, conditions, printed = run("--controls", "none,oracle,wrong-image")
    shown = {
        name: [(s["answer"], s["pictures"]["shown"]) for s in own] for name, own in samples.items()
    }
    with_pictures = [("200 10", 1), ("201 11", 1)]
    assert shown == {
        "samples.jsonl": with_pictures,
        "samples.none.jsonl": [("200", 0), ("201", 0)],
        "samples.oracle.jsonl": with_pictures,
        "samples.wrong-image.jsonl": with_pictures,  # retrieval alone sees the other photo
    }
    counts = {"shown": 2, "questions": 2, "cut": 0, "unread": []}
    nothing = {"shown": 0, "questions": 0, "cut": 0, "unread": []}
    found = {name: own["pictures"] for name, own in conditions.items()}
    assert found == {"main": counts, "none": nothing, "oracle": counts, "wrong-image": counts}
    assert "pictures of" not in printed
    assert "picture of" not in printed


def test_pictures_that_cannot_be_read_end_the_run_or_are_listed(run, tmp_path, monkeypatch):
    # As if it had been whole when the passages were read.
    monkeypatch.setattr("ravqa.corpora.rows.broken_images", lambda paths: {})
    (tmp_path / "otter.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    reason = f"passage otter: {tmp_path / 'otter.png'}: not an image"
    code, printed = run()
    assert code == 2
    [line] = [line for line in printed.splitlines() if line.startswith("error:")]
    assert line == (
        f"error: question 1: the picture of {reason}; --on-error skip leaves such pictures out "
        "(questions: 1 of 2 are answered and kept: continue with --resume --output "
        f"{tmp_path / 'out'})"
    )
    samples, conditions, printed = run("--on-error", "skip", "--overwrite")
    found = {s["question_id"]: (s["answer"], s["pictures"]) for s in samples["samples.jsonl"]}
    assert found == {
        0: ("200 10", {"shown": 1, "cut": 0, "unread": []}),
        1: ("201", {"shown": 0, "cut": 0, "unread": [reason]}),
    }
    assert conditions["main"]["pictures"] == {
        "shown": 1,
        "questions": 1,
        "cut": 0,
        "unread": [{"question_id": 1, "reasons": [reason]}],
    }
    said = "1 picture of passages cannot be read, and got left out (listed in results.json)"
    assert said in " ".join(printed.split())


def test_a_run_without_any_picture_says_so(run, tmp_path):
    rows = [{"passage_id": "k", "text": "The koala eats leaves."}]
    (tmp_path / "passages.jsonl").write_text(json.dumps(rows[0]))
    _, conditions, printed = run()
    assert conditions["main"]["pictures"]["shown"] == 0
    said = "no picture of a passage was shown, although answering.passage_images asks for them"
    assert said in " ".join(printed.split())
    assert f"{said[0].upper()}{said[1:]}." in notes(read_run(tmp_path / "out"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"reader": "first-words"},
            "answering.passage_images is 1, but this reader takes no images: choose one that does, "
            "or set it to 0",
        ),
        (
            {"answering.prompt": "ravqa"},
            "answering.passage_images is set, but prompt ravqa.jinja does not say which passage a "
            "picture belongs to (passage.picture)",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused_before_the_run_begins(run, tmp_path, settings, problem):
    assert run(**settings) == (2, f"error: {problem}\n")
    assert not (tmp_path / "out").exists()
