"""The options of --workers ray, and runs with its reader; tests/runs/test_ray.py has Ray."""

import json

import fake_ray
import pytest
import ray_parts  # noqa: F401 (registers the reader)
from collection_files import pipeline

from ravqa import evaluate
from ravqa.core.cluster import WorkerOptions
from ravqa.core.errors import UserError
from ravqa.core.settings import load_pipeline
from ravqa.pipeline import Pipeline
from ravqa.runs.options import EncodeRequest, RunRequest
from ravqa.runs.plan import pipeline_alone, worker_options


def test_options_of_workers_are_read_and_refused():
    assert worker_options(EncodeRequest()) is None
    found = worker_options(EncodeRequest(workers="ray", worker_options=["number=2", "num_gpus=.5"]))
    assert found == WorkerOptions(number=2, num_gpus=0.5)
    for options, problem in (
        (["cpus=2"], r"^--worker-option: .*'cpus'"),
        (["number=0"], r"^--worker-option: .*number"),
        (["number"], r"^--worker-option 'number': key=value is expected$"),
    ):
        with pytest.raises(UserError, match=problem):
            worker_options(RunRequest("okvqa", workers="ray", worker_options=options))
    with pytest.raises(UserError, match=r"^--worker-option is for --workers ray, which is not giv"):
        worker_options(RunRequest("okvqa", worker_options=["number=2"]))
    with pytest.raises(UserError, match="which --retrieval-only does without"):
        pipeline_alone(RunRequest("okvqa", workers="ray", retrieval_only=True))


def test_a_run_with_several_readers_is_that_of_one(tmp_path, monkeypatch, fresh_cache):
    ray = fake_ray.use(monkeypatch)
    rows = [
        {"question_id": i, "question": f"What is {i}?", "answers": ["leaves"]} for i in range(40)
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = tmp_path / "passages.jsonl"
    texts.write_text("".join(f'{{"id": "p{i}", "text": "leaf {i} of a tree"}}\n' for i in range(9)))
    given = {"data": file, "corpus": texts, "controls": ["none"]}
    name = pipeline(tmp_path)
    changes = ("reader={name: watched}", "answering.cache=false")
    made = [
        evaluate("jsonl", name, *changes, output=tmp_path / workers, workers=workers, **given)
        for workers in ("local", "ray")
    ]
    assert len(ray.actors) == 4  # as many as processors
    samples = []
    for one in made:
        lines = (one.folder / "samples.jsonl").read_text().splitlines()
        samples.append([json.loads(line) for line in lines])
        for sample in samples[-1]:
            del sample["seconds"], sample["cached"]
    assert samples[0] == samples[1]
    assert made[0].results["answers"] == made[1].results["answers"]
    assert "lost_workers" not in made[1].results["provenance"]
    settings, where = load_pipeline(name)
    built = Pipeline.from_config(settings, where=where)
    with pytest.raises(UserError, match=r"^evaluate: workers: the pipeline is already built"):
        evaluate("jsonl", built, workers="ray", **given)
