"""Time `ravqa score` on as many predictions as InfoSeek's and OK-VQA's validation sets have.

Measures reading the dataset, reading and scoring the predictions, and the whole command. Questions,
annotations and predictions are synthetic, with the form and number of the official files. Also
compares, in this process and on the same scores, `ravqa.metrics.statistics.intervals` with
scipy.stats.bootstrap and scipy.stats.permutation_test.

    python benchmarks/score.py
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.stats

from ravqa.datasets import DATASETS
from ravqa.datasets.base import DatasetRequest
from ravqa.evaluation.answers import answer_section
from ravqa.metrics.statistics import intervals
from ravqa.runs.scoring import read_predictions

OKVQA, OKVQA_IMAGES = 5_046, 5_033
INFOSEEK, UNSEEN_QUESTION, INFOSEEK_IMAGES = 73_620, 18_656, 15_000
WORDS = ["red", "golden", "retriever", "dog", "oak", "pizza", "two", "1,000", "New-York", "the"]


def phrase(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 3)))


def write_okvqa(folder, rng):
    questions, annotations, predictions = [], [], []
    for i in range(OKVQA):
        image = i % OKVQA_IMAGES
        pool = [phrase(rng) for _ in range(3)]
        answers = [pool[min(2, int(rng.expovariate(1)))] for _ in range(5) for _ in "ab"]
        questions.append({"question_id": i, "image_id": image, "question": "what is it?"})
        annotations.append(
            {
                "question_id": i,
                "image_id": image,
                "question_type": "one",
                "answers": [{"answer_id": j, "answer": a} for j, a in enumerate(answers)],
            }
        )
        predictions.append({"question_id": i, "answer": rng.choice([*pool, phrase(rng)])})
    (folder / "OpenEnded_mscoco_val2014_questions.json").write_text(
        json.dumps({"questions": questions}), encoding="utf-8"
    )
    (folder / "mscoco_val2014_annotations.json").write_text(
        json.dumps({"info": {"version": "1.1"}, "annotations": annotations}), encoding="utf-8"
    )
    path = folder / "predictions.json"
    path.write_text(json.dumps(predictions), encoding="utf-8")
    return path


def write_infoseek(folder, rng):
    questions, types, predictions = [], [], []
    for i in range(INFOSEEK):
        data_id = f"infoseek_val_{i:08d}"
        kind = rng.choices(["String", "Time", "Numerical"], [80, 10, 10])[0]
        value = rng.randint(1, 2000)
        texts = [phrase(rng) for _ in range(3)] if kind == "String" else [str(value)]
        forms = [{"wikidata": value, "range": [value * 0.9, value * 1.1]}]
        split = "unseen_question" if i < UNSEEN_QUESTION else "unseen_entity"
        questions.append(
            {
                "data_id": data_id,
                "image_id": f"oven_{i % INFOSEEK_IMAGES:08d}",
                "question": "what is it?",
                "answer": texts,
                "answer_eval": forms if kind == "Numerical" else texts,
                "data_split": f"val_{split}",
            }
        )
        types.append({"data_id": data_id, "question_type": kind})
        predictions.append({"data_id": data_id, "prediction": rng.choice([texts[0], phrase(rng)])})
    path = folder / "predictions.jsonl"
    for file, rows in (
        (folder / "infoseek_val.jsonl", questions),
        (folder / "infoseek_val_qtype.jsonl", types),
        (path, predictions),
    ):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command_seconds(dataset, folder, predictions):
    arguments = ["score", predictions, "--dataset", dataset, "--data", folder]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ravqa", *map(str, arguments)], check=True, capture_output=True
    )
    return time.perf_counter() - start


def part_seconds(dataset, folder, predictions):
    """Return the seconds to read the dataset, and to read and score predictions with intervals."""
    times = {}
    load = DATASETS.get(dataset)

    def read():
        times["dataset"] = load(DatasetRequest(data=folder, need_images=False, find_images=False))

    def score():
        given = read_predictions(predictions, times["dataset"])
        answer_section(times["dataset"], {"main": given.samples}, seed=0)

    return timed(read), timed(score)


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interval_seconds(rng, questions=OKVQA):
    first = rng.choice([0.0, 60.0, 100.0], size=questions)
    second = np.where(rng.random(questions) < 0.8, first, rng.permutation(first))

    def ours():
        intervals.paired_test(dict(enumerate(first)), dict(enumerate(second)))

    def theirs():
        difference, resamples = first - second, intervals.RESAMPLES
        common = {"n_resamples": resamples, "batch": 500, "rng": rng}
        scipy.stats.bootstrap((difference,), np.mean, method="percentile", **common)
        scipy.stats.permutation_test(
            (difference,), lambda d, axis: d.sum(axis), permutation_type="samples", **common
        )

    return timed(ours), timed(theirs)


def main():
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        for dataset, write, number in (
            ("okvqa", write_okvqa, OKVQA),
            ("infoseek", write_infoseek, INFOSEEK),
        ):
            folder = Path(name) / dataset
            folder.mkdir()
            predictions = write(folder, rng)
            whole = command_seconds(dataset, folder, predictions)
            reading, scoring = part_seconds(dataset, folder, predictions)
            print(
                f"{dataset}: {number:,} predictions read and scored in {scoring:.2f} s "
                f"({number / scoring:,.0f} a second); questions read in {reading:.2f} s; "
                f"ravqa score in {whole:.2f} s"
            )
    ours, theirs = interval_seconds(np.random.default_rng(0))
    print(
        f"paired test and interval of {OKVQA:,} questions: {ours:.3f} s; scipy.stats {theirs:.2f} s"
    )
    print(f"ratio: {theirs / ours:.0f}x")


if __name__ == "__main__":
    main()
