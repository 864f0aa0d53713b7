"""Runs in which a library refuses one question: it fails alone, in one line."""

import json

import numpy as np
import pytest
import reader_models
from PIL import Image

from ravqa.cli import run_main
from ravqa.core.records import Description
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict
from ravqa.describers import DESCRIBERS
from ravqa.describers.base import Describer
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoder
from ravqa.readers.transformers_vlm import TransformersVLM
from ravqa.reports.run import read_run
from ravqa.runs.prompts import PROMPTS, read_prompts

BAD = 2


class Options(Strict):
    pass


class RefusingEncoder(Encoder):
    """One vector a text; refuses a query as libraries do."""

    Config = Options
    dim = 2
    fingerprint = "refusing/1"
    weights = "none"

    def __init__(self, config):
        pass

    def encode_document(self, texts, progress=None):
        return [np.ones((1, 2), np.float32) / np.sqrt(2) for _ in texts]

    def encode_query(self, queries):
        if any("what 2?" in span.text for spans in queries for span in spans):
            raise KeyError("no such word")
        return [np.ones((1, 2), np.float32) for _ in queries]


class RefusingDescriber(Describer):
    """Refuses images of one size."""

    Config = Options
    fingerprint = "refusing/1"
    weights = "none"

    def __init__(self, config):
        pass

    def describe(self, images):
        for image in images:
            with Image.open(image) as opened:
                if opened.size == (2, 90):
                    raise RuntimeError("Calculated padded input size per channel: (2 x 90)\nmore")
        return [Description(caption="a photo") for _ in images]


@pytest.fixture
def folder(tmp_path, monkeypatch, fresh_cache):
    """Three questions, the second about a very thin image."""
    for registry, kind in ((ENCODERS, RefusingEncoder), (DESCRIBERS, RefusingDescriber)):
        entry = Entry(f"{__name__}:{kind.__name__}", "for tests")
        monkeypatch.setitem(registry._entries, "refusing", entry)
    rows = []
    for i in (1, 2, 3):
        size = (2, 90) if i == BAD else (40 + i, 30)
        Image.new("RGB", size, (9, 60 * i, 30)).save(tmp_path / f"{i}.png")
        row = {
            "question_id": i,
            "question": f"what {i}?",
            "image": f"{i}.png",
            "answers": ["koala"],
        }
        rows.append(json.dumps(row))
    (tmp_path / "questions.jsonl").write_text("\n".join(rows) + "\n")
    passage = {"passage_id": "p", "text": "a koala"}
    (tmp_path / "passages.jsonl").write_text(json.dumps(passage) + "\n")
    return tmp_path


def run(folder, output, **settings):
    skip = ["--on-error", "skip"] if output == "skips" else []
    arguments = ["--dataset", "jsonl", "--data", folder, "--output", folder / output, "--no-report"]
    arguments += [*skip, "--set", "describer=null"]
    for name, value in settings.items():
        arguments += ["--set", f"{name.replace('__', '.')}={value}"]
    with pytest.raises(SystemExit) as end:
        run_main([str(argument) for argument in arguments])
    samples = {}
    path = folder / output / "samples.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        samples = {sample["question_id"]: sample for sample in map(json.loads, lines)}
    results = folder / output / "results.json"
    found = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None
    return end.value.code, samples, found


def test_passages_that_cannot_be_used_are_counted_in_the_results(folder, capsys):
    good = {"passage_id": "p", "text": "a koala"}
    bad = [{"passage_id": f"bad{i}", "text": True} for i in range(25)]
    file = folder / "passages.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [good, *bad]))
    parts = {"retriever": "{name: random}", "reader": "{name: first-words}"}
    code, _, results = run(folder, "skips", **parts)
    assert code == 0, capsys.readouterr().err
    corpus = results["provenance"]["corpus"]
    assert (corpus["passages"], corpus["left_out"]["records"]) == (1, 25)
    assert len(corpus["left_out"]["first"]) == 20
    assert corpus["left_out"]["first"][0].startswith(f"{file}, line 2: 'text'")
    file.write_text(json.dumps(good) + "\n")
    code, _, results = run(folder, "whole", **parts)
    assert results["provenance"]["corpus"]["left_out"] == {"records": 0, "first": []}


def check(folder, capsys, message, **settings):
    code, samples, results = run(folder, "fails", **settings)
    assert (code, results) == (2, None)
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    [line] = [line for line in printed.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: question {BAD}: {message}; --on-error skip counts such")
    assert set(samples) == {1, 3}
    code, samples, results = run(folder, "skips", **settings)
    assert code == 0
    [unanswered] = results["answers"]["conditions"]["main"]["unanswered"]
    assert unanswered == {"question_id": BAD, "reason": message}
    assert (samples[BAD]["answer"], samples[BAD]["score"]) == (None, 0)
    assert samples[1]["answer"]
    assert samples[3]["answer"]


def test_an_image_that_the_processor_refuses(folder, capsys, monkeypatch):
    tokens = TransformersVLM._image_tokens

    def strict(self, sizes):
        if (2, 90) in sizes:
            raise ValueError("absolute aspect ratio must be smaller than 20, got 45.0\nor so")
        return tokens(self, sizes)

    monkeypatch.setattr(TransformersVLM, "_image_tokens", strict)
    model = reader_models.llava(folder / "llava")
    message = "the reader transformers-vlm: absolute aspect ratio must be smaller than 20, got 45.0"
    reader = f"{{name: transformers-vlm, model: {model}, device: cpu, max_new_tokens: 3}}"
    check(folder, capsys, message, reader=reader, retriever="{name: random}")


def test_an_image_that_is_too_thin_for_any_processor(folder, capsys):
    Image.new("RGB", (900, 3)).save(folder / f"{BAD}.png")
    model = reader_models.llava(folder / "llava")
    message = f"{folder}/{BAD}.png: 900x3 pixels: one side is more than 200 times the other"
    reader = f"{{name: transformers-vlm, model: {model}, device: cpu, max_new_tokens: 3}}"
    check(folder, capsys, message, reader=reader, retriever="{name: random}")


def test_a_question_that_the_encoder_refuses(folder, capsys):
    retriever = "{name: late-interaction, encoder: {name: refusing}, query: {question: 1.0}}"
    message = "the encoder refusing: 'no such word'"
    check(folder, capsys, message, retriever=retriever, reader="{name: first-words}")


def test_an_image_that_the_describer_refuses_is_left_out_as_a_broken_one_is(folder, capsys):
    settings = {
        "describer": "{name: refusing}",
        "retriever": "{name: random}",
        "reader": "{name: first-words}",
    }
    code, _, results = run(folder, "fails", **settings)
    assert (code, results) == (2, None)
    line = "question 2: the describer: Calculated padded input size per channel: (2 x 90)"
    assert line in " ".join(capsys.readouterr().err.split())
    code, samples, results = run(folder, "skips", **settings)
    assert code == 0
    assert set(samples) == {1, 3}
    assert [problem["question_id"] for problem in results["dataset"]["skipped"]] == [BAD]


def test_a_run_of_which_no_image_can_be_described_says_so(folder, capsys):
    other = folder / "other.jsonl"
    other.write_text('{"image": "another.png", "caption": "a cat"}\n')
    settings = {
        "describer": f"{{name: file, files: [{other}]}}",
        "retriever": "{name: random}",
        "reader": "{name: first-words}",
    }
    assert run(folder, "skips", **settings)[0] == 2
    assert (
        "error: none of 3 questions has an image that can be described: question 1: "
        f"{other}: no description of the image 1.png, only of 1 other, such as another"
    ) in capsys.readouterr().err


def test_a_question_that_the_prompt_fails_on(folder, capsys):
    template = folder / "mine.jinja"
    template.write_text("{% if '2' in question %}{{ 1 // 0 }}{% endif %}{{ question }} Answer:")
    settings = {
        "answering__prompt": template,
        "answering__decision": "top1",
        "retriever": "{name: random}",
        "reader": "{name: first-words}",
    }
    check(folder, capsys, "prompt mine.jinja: integer division or modulo by zero", **settings)
    prompts = read_prompts(folder / "skips" / PROMPTS).values()
    assert list(prompts) == [["what 1? Answer:"], ["what 3? Answer:"]]


def test_a_passage_that_cannot_be_used_is_left_out(folder, capsys):
    rows = [{"passage_id": "p", "text": "a koala"}, {"passage_id": "q", "text": ["no text"]}]
    path = folder / "more.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["--dataset", "jsonl", "--data", folder, "--corpus", path, "--no-report"]
    arguments += ["--set", "describer=null", "--set", "retriever={name: random}"]
    arguments += ["--set", "reader={name: first-words}", "--output", folder / "out"]
    with pytest.raises(SystemExit) as end:
        run_main([str(argument) for argument in arguments])
    assert end.value.code == 2
    reason = "more.jsonl, line 2: 'text': text is expected, not a list"
    assert f"{reason} (--on-error skip leaves it out)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        run_main([str(argument) for argument in [*arguments, "--on-error", "skip"]])
    assert end.value.code == 0
    assert reason in " ".join(capsys.readouterr().err.split())
    run = read_run(folder / "out")
    assert list(run.corpus) == ["p"]
