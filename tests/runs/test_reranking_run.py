"""Reranking inside runs: stages in samples and results, controls, per-stage recall by hand."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import yaml
from dataset_files import write_image

from ravqa.cli import main, run_main
from ravqa.core.control_tokens import ControlTokens
from ravqa.core.errors import UserError
from ravqa.core.factory import Session
from ravqa.core.outcomes import Failure
from ravqa.core.records import Passage
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict
from ravqa.corpora.corpus import Corpus
from ravqa.images.decode import image_bytes
from ravqa.pipeline import Pipeline, check_settings
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader
from ravqa.runs.console import Console
from ravqa.runs.options import RunRequest
from ravqa.runs.run import run as run_request
from ravqa.runs.stages import stage_keys

ROOT = Path(__file__).parents[2]

# Ten passages; p3 and p7 hold the first question's answer, p1 the second's, none the third's.
TEXTS = {f"p{i}": f"passage {i} says nothing" for i in range(10)}
TEXTS |= {"p3": "three is granite", "p7": "seven is granite too", "p1": "one is basalt"}
QUESTIONS = [
    {"question_id": 1, "question": "which stone?", "answers": ["granite"], "pos_item_ids": ["p7"]},
    {"question_id": 2, "question": "which rock?", "answers": ["basalt"], "pos_item_ids": ["p1"]},
    {"question_id": 3, "question": "which metal?", "answers": ["iron"], "pos_item_ids": ["p9"]},
]
RANKINGS = {
    1: [("p0", 5.0), ("p7", 4.0), ("p3", 3.0), ("p2", 1.0)],
    2: [("p5", 5.0), ("p6", 4.9), ("p8", 4.8), ("p1", 4.7)],
    3: [("p9", 2.0), ("p0", 1.0), ("p4", -1.0), ("p5", -2.0), ("p6", -3.0)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    lines = [json.dumps(question) for question in QUESTIONS]
    (root / "questions.jsonl").write_text("\n".join(lines) + "\n")
    passages = [json.dumps({"passage_id": i, "text": text}) for i, text in TEXTS.items()]
    (root / "passages.jsonl").write_text("\n".join(passages) + "\n")
    run = [
        f"{q} Q0 {passage} {rank} {score} x"
        for q, ranking in RANKINGS.items()
        for rank, (passage, score) in enumerate(ranking, 1)
    ]
    (root / "first.trec").write_text("\n".join(run) + "\n")
    settings = {
        "retriever": {"name": "static", "file": str(root / "first.trec")},
        "top_k": 5,
        "reranking": [
            {"name": "threshold", "rule": "difference", "value": 2.0},
            {"name": "threshold", "max_kept": 2},
        ],
        "answering": {"decision": "top1"},
        "reader": {"name": "first-words"},
    }
    (root / "pipeline.yaml").write_text(yaml.safe_dump(settings))
    return root


def call(*arguments, command=run_main):
    with pytest.raises(SystemExit) as end:
        command([str(a) for a in arguments])
    return end.value.code


def run(folder, output, *arguments):
    return call(
        *("--dataset", "jsonl", "--data", folder, "--pipeline", folder / "pipeline.yaml"),
        *("--output", output, "--no-report", *arguments),
    )


def read_samples(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return {sample["question_id"]: sample for sample in map(json.loads, lines)}


def read_results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def ids(ranking):
    return [passage for passage, _ in ranking["hits"]]


def test_samples_have_every_stage_and_the_hits_of_the_last(folder, tmp_path):
    assert run(folder, tmp_path / "run") == 0
    samples = read_samples(tmp_path / "run" / "samples.jsonl")
    for question_id, sample in samples.items():
        names = [stage["stage"] for stage in sample["stages"]]
        assert names == ["retrieved", "threshold", "threshold-2"]
        assert sample["stages"][0]["hits"] == [list(pair) for pair in RANKINGS[question_id]]
        assert sample["hits"] == sample["stages"][-1]["hits"]
        assert sample["answer_ranks"] == sample["stages"][-1]["answer_ranks"]
        assert ids(sample["read"]) == ids(sample)[:1] == sample["drafts"][0]["passage_ids"]
        assert set(sample["seconds"]) == {
            *("retrieve", "answer", "rerank threshold", "rerank threshold-2")
        }
    assert [ids(stage) for stage in samples[1]["stages"]] == [
        ["p0", "p7", "p3", "p2"],
        ["p0", "p7", "p3"],
        ["p0", "p7"],
    ]
    trec = (tmp_path / "run" / "run.trec").read_text(encoding="utf-8").splitlines()
    assert [line.split()[2] for line in trec] == ["p0", "p7", "p5", "p6", "p9", "p0"]


def test_recall_of_every_stage_by_hand(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "run") == 0
    section = read_results(tmp_path / "run")["retrieval"]
    assert section["ranking"] == "after all stages of reranking"
    retrieved, first, second, read = section["stages"]["main"]
    assert [s["stage"] for s in section["stages"]["main"]] == [
        *("retrieved", "threshold", "threshold-2", "read")
    ]
    # Question 1 finds its answer at rank 2, question 2 at rank 4, question 3 never.
    assert retrieved["PRRecall"] == {"1": 0.0, "5": 66.6667, "all": 66.6667}
    assert retrieved["Recall"] == {"1": 33.3333, "5": 100.0, "all": 100.0}
    assert (retrieved["passages"], retrieved["without_passages"]) == (4.33, 0)
    # 2 below the best: of question 1 the last is gone, of question 2 none, of question 3 three.
    assert first["PRRecall"] == {"1": 0.0, "5": 66.6667, "all": 66.6667}
    assert first["passages"] == 3.0
    # Two are kept: question 2 loses its answer.
    assert second["PRRecall"] == {"1": 0.0, "5": 33.3333, "all": 33.3333}
    assert second["Recall"] == {"1": 33.3333, "5": 66.6667, "all": 66.6667}
    gain = second["gain"]["PRRecall"]["5"]
    assert (gain["difference"], gain["losses"], gain["ties"]) == (-33.3333, 1, 2)
    # The reader saw one passage a question.
    assert read["PRRecall"] == {"1": 0.0, "all": 0.0}
    assert read["Recall"] == {"1": 33.3333, "all": 33.3333}
    assert read["passages"] == 1.0
    # The headline is that of the last ranking.
    assert section["conditions"]["main"]["PRRecall"] == {"1": 0.0, "5": 33.3333}
    assert section["by_ids"]["conditions"]["main"]["Recall"] == {"1": 33.3333, "5": 66.6667}
    timing = read_results(tmp_path / "run")["timing"]["stages"]
    assert list(timing) == ["retrieve", "rerank threshold", "rerank threshold-2", "answer"]
    printed = capsys.readouterr().out
    assert "Stages of retrieval" in printed
    for row in ("retrieved", "threshold-2", "in prompts"):
        assert row in printed


def test_controls_with_passages_of_their_own_are_not_reranked(folder, tmp_path):
    assert run(folder, tmp_path / "run", "--controls", "none,oracle,random") == 0
    for control in ("none", "oracle", "random"):
        samples = read_samples(tmp_path / "run" / f"samples.{control}.jsonl")
        assert all("stages" not in sample for sample in samples.values())
        assert all(len(sample["hits"]) != 2 or control == "oracle" for sample in samples.values())
    stages = read_results(tmp_path / "run")["retrieval"]["stages"]
    assert list(stages) == ["main", "oracle", "random"]
    assert [stage["stage"] for stage in stages["oracle"]] == ["retrieved", "read"]
    assert stages["oracle"][0]["PRRecall"]["1"] == stages["oracle"][1]["PRRecall"]["1"] == 66.6667


@pytest.mark.parametrize("control", ["none", "random", "oracle"])
def test_a_control_named_as_retriever_is_the_same_as_beside_a_run(folder, tmp_path, control):
    assert run(folder, tmp_path / "run", "--retriever", control, "--seed", 3) == 0
    assert run(folder, tmp_path / "control", "--controls", control, "--seed", 3) == 0
    alone = read_samples(tmp_path / "run" / "samples.jsonl")
    beside = read_samples(tmp_path / "control" / f"samples.{control}.jsonl")
    for question_id, sample in alone.items():
        assert "stages" not in sample
        for key in ("hits", "answer", "read"):
            assert sample[key] == beside[question_id][key]


def test_set_puts_reranking_back_behind_a_control(folder, tmp_path):
    code = run(
        *(folder, tmp_path / "run", "--retriever", "random"),
        *("--set", "reranking=[{name: threshold, max_kept: 3}]"),
    )
    assert code == 0
    samples = read_samples(tmp_path / "run" / "samples.jsonl")
    assert all(len(s["stages"][0]["hits"]) == 5 and len(s["hits"]) == 3 for s in samples.values())


def test_static_takes_its_file_behind_a_colon(folder, tmp_path, capsys):
    short = ("--retriever", f"static:{folder / 'first.trec'}", "--set", "reranking=[]")
    assert run(folder, tmp_path / "run", *short) == 0
    samples = read_samples(tmp_path / "run" / "samples.jsonl")
    assert [ids(sample) for sample in samples.values()] == [
        [passage for passage, _ in ranking] for ranking in RANKINGS.values()
    ]
    # A run's own samples are a ranking too: its last one.
    assert run(folder, tmp_path / "reranked") == 0
    again = ("--retriever", f"static:{tmp_path / 'reranked' / 'samples.jsonl'}")
    assert run(folder, tmp_path / "again", *again, "--set", "reranking=[]") == 0
    reranked, again = (
        [ids(s) for s in read_samples(tmp_path / name / "samples.jsonl").values()]
        for name in ("reranked", "again")
    )
    assert reranked == again == [["p0", "p7"], ["p5", "p6"], ["p9", "p0"]]
    capsys.readouterr()
    for bad in ("bm25:x", "static:"):
        assert run(folder, tmp_path / "bad", "--retriever", bad) == 2
        assert capsys.readouterr().err.strip() == (
            f"error: --retriever '{bad}': a name is expected, or static:FILE"
        )
    assert run(folder, tmp_path / "bad", "--retriever", "statik:x") == 2
    assert "did you mean static" in capsys.readouterr().err


def test_a_run_without_reader_is_reranked_too(folder, tmp_path):
    assert run(folder, tmp_path / "run", "--retrieval-only") == 0
    stages = read_results(tmp_path / "run")["retrieval"]["stages"]["main"]
    assert [s["stage"] for s in stages] == ["retrieved", "threshold", "threshold-2"]
    assert stages[-1]["PRRecall"]["5"] == 33.3333


def test_a_run_without_reranking_says_what_was_read(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "run", "--set", "reranking=[]") == 0
    sample = read_samples(tmp_path / "run" / "samples.jsonl")[1]
    assert "stages" not in sample
    assert ids(sample["read"]) == ["p0"]
    stages = read_results(tmp_path / "run")["retrieval"]["stages"]["main"]
    assert [s["stage"] for s in stages] == ["retrieved", "read"]
    assert "Stages of retrieval" not in capsys.readouterr().out


def test_samples_of_a_reranked_run_are_scored_to_the_same_results(folder, tmp_path):
    assert run(folder, tmp_path / "run") == 0
    before = read_results(tmp_path / "run")["retrieval"]
    arguments = ("--dataset", "jsonl", "--data", folder, "--output", tmp_path / "scores.json")
    assert call("score", tmp_path / "run" / "samples.jsonl", *arguments, command=main) == 0
    after = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["retrieval"]
    assert after["stages"]["main"][1:-1] == before["stages"]["main"][1:-1]


def test_ask_gives_the_stages(folder):
    pipeline = Pipeline.load(str(folder / "pipeline.yaml"), "retriever.missing=empty")
    pipeline.prepare(Corpus(Passage(i, text) for i, text in TEXTS.items()))
    [question] = [q for q in QUESTIONS if q["question_id"] == 1]
    response = pipeline.ask(question["question"])  # its id is 0: no results
    assert response.hits == []
    assert list(response.stages) == ["retrieved", "threshold", "threshold-2"]
    assert response.answer.text == "unknown"


def test_a_changed_filter_is_another_run(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "run") == 0
    capsys.readouterr()
    changed = ("--set", "reranking.1.max_kept=1")
    assert run(folder, tmp_path / "run", "--resume", *changed) == 2
    assert "had other settings" in capsys.readouterr().err


def test_reranking_enters_the_fingerprints(folder):
    pipeline = Pipeline.load(str(folder / "pipeline.yaml"))
    other = Pipeline.load(str(folder / "pipeline.yaml"), "reranking.1.max_kept=1")
    without = Pipeline.load(str(folder / "pipeline.yaml"), "reranking=[]")
    assert pipeline.fingerprints["reranking"] != other.fingerprints["reranking"]
    assert "reranking" not in without.fingerprints
    with pytest.raises(UserError, match=r"there is no key 'reranking\.2'"):
        Pipeline.load(str(folder / "pipeline.yaml"), "reranking.2.max_kept=1")


# Crashes and caches


class Lengths(Reader):
    """A reader that says yes to long passages; breaks down when it has been asked `limit` times."""

    scores_answers = True
    deterministic = True
    fingerprint = "lengths/1"
    weights = "a rule"
    asked = 0
    limit = None

    class Config(Strict):
        """No options."""

    def __init__(self, config):
        pass

    def score(self, prompts, answers):
        out = []
        for prompt, answer in zip(prompts, answers, strict=True):
            Lengths.asked += answer == "yes"
            if Lengths.limit is not None and Lengths.asked > Lengths.limit:
                raise MemoryError("gone")
            odds = float(len(prompt.text) % 7)
            out.append(odds if answer == "yes" else 0.0)
        return out

    def generate(self, prompts):
        return [Generation("granite") for _ in prompts]


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A pipeline and 60 questions, each with its ten passages ranked by lot."""
    monkeypatch.setitem(
        READERS._entries, "lengths", Entry("test_reranking_run:Lengths", "for tests")
    )
    monkeypatch.setattr(Lengths, "asked", 0)
    monkeypatch.setattr(Lengths, "limit", None)
    root = tmp_path / "data"
    root.mkdir()
    lot = random.Random(0)
    write_many(root, [TEXTS[i] + " or so" * lot.randrange(9) for i in TEXTS])
    settings = {
        "retriever": {"name": "random"},
        "top_k": 4,
        "reranking": [
            {"name": "vlm", "depth": 3},
            {"name": "gate", "rule": "best", "at_least": 0.995},
        ],
        "answering": {"decision": "top1"},
        "reader": {"name": "lengths"},
    }
    (root / "pipeline.yaml").write_text(yaml.safe_dump(settings))
    return root


def write_many(root, texts):
    lines = [
        json.dumps({"question_id": i, "question": f"what {i}?", "answers": ["granite"]})
        for i in range(60)
    ]
    (root / "questions.jsonl").write_text("\n".join(lines) + "\n")
    passages = [json.dumps({"passage_id": f"p{i}", "text": t}) for i, t in enumerate(texts)]
    (root / "passages.jsonl").write_text("\n".join(passages) + "\n")


def same_but_for_time(one, other):
    for name in ("samples.jsonl", "run.trec", "results.json"):
        texts = []
        for folder in (one, other):
            if name == "results.json":
                results = read_results(folder)
                results.pop("cost", None)  # absent where nothing was charged or reused
                del results["timing"], results["provenance"]["date"]
                texts.append(results)
            elif name == "samples.jsonl":
                samples = read_samples(folder / name)
                for sample in samples.values():
                    for key in ("seconds", "cached", "cost"):
                        sample.pop(key, None)
                texts.append(samples)
            else:
                texts.append((folder / name).read_text(encoding="utf-8"))
        assert texts[0] == texts[1]


def test_a_run_that_breaks_down_while_reranking_is_resumed(fresh_cache, many, tmp_path):
    Lengths.limit = 150  # in the second chunk of questions, after one of its kept parts
    assert run(many, tmp_path / "broken") == 2
    assert len(read_samples(tmp_path / "broken" / "samples.jsonl")) == 32
    before, Lengths.limit = Lengths.asked - 1, None
    assert before == 150
    assert run(many, tmp_path / "broken", "--resume") == 0
    # 60 questions, three passages each; what was asked since the last kept part is asked again.
    assert 180 < Lengths.asked - 1 <= 180 + 64
    Lengths.asked = 0
    assert run(many, tmp_path / "whole") == 0
    assert Lengths.asked == 0  # the cache knows everything
    same_but_for_time(tmp_path / "broken", tmp_path / "whole")
    timing = read_results(tmp_path / "whole")["timing"]
    assert timing["reranking"] == {
        "vlm": {"scored": 0, "truncated": 0, "neutralised": 0},
        "gate": {"scored": 0},
    }
    stages = read_results(tmp_path / "whole")["retrieval"]["stages"]["main"]
    samples = read_samples(tmp_path / "whole" / "samples.jsonl")
    gated = sum(not sample["hits"] for sample in samples.values())
    assert 0 < stages[2]["without_passages"] == gated < 60
    assert stages[-1]["stage"] == "read"
    assert stages[-1]["without_passages"] == gated


class Refusing(Lengths):
    """Cannot be asked about a passage of question 7."""

    def score(self, prompts, answers):
        scores = super().score(prompts, answers)
        return [
            Failure("too long") if "what 7?" in prompt.text else score
            for prompt, score in zip(prompts, scores, strict=True)
        ]


def refusing(many, monkeypatch):
    monkeypatch.setitem(
        READERS._entries, "refusing", Entry("test_reranking_run:Refusing", "for tests")
    )
    settings = yaml.safe_load((many / "pipeline.yaml").read_text())
    settings["reader"] = {"name": "refusing"}
    (many / "pipeline.yaml").write_text(yaml.safe_dump(settings))


def test_a_question_that_a_rerankers_reader_refuses_costs_no_other(
    fresh_cache, many, tmp_path, monkeypatch, capsys
):
    refusing(many, monkeypatch)
    assert run(many, tmp_path / "fails") == 2
    assert "question 7: the reranker vlm: too long" in " ".join(capsys.readouterr().err.split())
    kept = read_samples(tmp_path / "fails" / "samples.jsonl")
    assert set(kept) == set(range(32)) - {7}
    assert run(many, tmp_path / "skips", "--on-error", "skip") == 0
    samples = read_samples(tmp_path / "skips" / "samples.jsonl")
    assert len(samples) == 60
    assert [i for i, sample in samples.items() if "error" in sample] == [7]
    assert samples[7]["error"].startswith("the reranker vlm: too long")
    assert samples[7]["answer"] is None
    assert samples[7]["score"] == 0
    assert [ranking["stage"] for ranking in samples[7]["stages"]] == ["retrieved", "vlm", "gate"]
    assert len(samples[7]["stages"][0]["hits"]) == 4
    assert samples[7]["hits"] == []
    assert samples[8]["answer"] == "granite"


def test_a_run_for_retrieval_goes_on_behind_a_refused_question_too(
    fresh_cache, many, tmp_path, monkeypatch
):
    refusing(many, monkeypatch)
    assert run(many, tmp_path / "fails", "--retrieval-only") == 2
    assert run(many, tmp_path / "skips", "--retrieval-only", "--on-error", "skip") == 0
    samples = read_samples(tmp_path / "skips" / "samples.jsonl")
    assert len(samples) == 60
    assert (samples[7]["hits"], len(samples[8]["stages"][1]["hits"])) == ([], 4)
    assert "too long" in samples[7]["error"]


def test_another_depth_asks_about_what_is_new_alone(fresh_cache, many, tmp_path):
    assert run(many, tmp_path / "three") == 0
    assert run(many, tmp_path / "four", "--set", "reranking.0.depth=4") == 0
    assert Lengths.asked == 60 * 4
    timing = read_results(tmp_path / "four")["timing"]
    assert timing["reranking"]["vlm"]["scored"] == 60
    cached = read_samples(tmp_path / "four" / "samples.jsonl")[0]["cached"]
    assert cached["rerank vlm"]["share"] == pytest.approx(0.75)


def test_control_tokens_in_reranked_texts_are_in_the_results(
    fresh_cache, many, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Lengths, "control_tokens", ControlTokens(["t 7?"]), raising=False)
    assert run(many, tmp_path / "run", "--retrieval-only") == 0
    # Any number makes the same token; each of sixty questions is asked with three passages.
    counts = read_results(tmp_path / "run")["timing"]["reranking"]
    assert counts["vlm"]["neutralised"] == 180
    said = " ".join(capsys.readouterr().err.split())
    assert "180 control tokens of the model of the reranker vlm, in questions and passages" in said


class Colours(Lengths):
    """Says yes to passages by the image's bytes."""

    scores_answers = True
    supports_images = True

    def score(self, prompts, answers):
        return [
            float(zlib.crc32(p.text.encode() + image_bytes(p.image)) % 97) if a == "yes" else 0.0
            for p, a in zip(prompts, answers, strict=True)
        ]


def test_the_wrong_image_goes_through_reranking_too(
    many, fresh_cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(READERS._entries, "colours", Entry("test_reranking_run:Colours", "x"))
    # Two questions of the same words and passages, about two images.
    write_image(many / "red.png", (200, 0, 0))
    write_image(many / "blue.png", (0, 0, 200))
    rows = [
        {"question_id": name, "question": "what?", "image": f"{name}.png", "answers": ["granite"]}
        for name in ("red", "blue")
    ]
    (many / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ranking = "".join(f"{q} Q0 p{i} {i} {9 - i} x\n" for q in ("red", "blue") for i in range(4))
    (many / "run.trec").write_text(ranking)
    own = ("--retriever", f"static:{many / 'run.trec'}", "--set", "reader.name=colours")
    own += ("--set", "reranking=[{name: vlm}]", "--controls", "wrong-image")
    assert run(many, tmp_path / "run", *own) == 0
    right = read_samples(tmp_path / "run" / "samples.jsonl")
    wrong = read_samples(tmp_path / "run" / "samples.wrong-image.jsonl")
    assert right["red"]["hits"] != right["blue"]["hits"]
    assert wrong["red"]["stages"] == right["blue"]["stages"]
    assert wrong["blue"]["stages"] == right["red"]["stages"]
    capsys.readouterr()
    assert run(many, tmp_path / "blind", *own[:4], "--set", "reranking=[]", *own[-2:]) == 2
    assert "its passages do not depend on the image" in capsys.readouterr().err
    assert run(many, tmp_path / "none", "--retriever", "none", *own[-2:]) == 2
    assert "its passages do not depend on the image" in capsys.readouterr().err


def test_stages_that_ask_the_pipelines_reader_depend_on_it():
    def key(reader, stage):
        settings = {"retriever": {"name": "random"}, "reader": {"name": reader}}
        settings["answering"] = {"decision": "top1"}
        config = check_settings({**settings, "reranking": [stage]}, "test")
        return stage_keys(config, "data", "passages")["rerank"]

    own = {"name": "vlm"}
    named = {"name": "vlm", "reader": {"name": "first-words"}}
    assert key("first-words", own) != key("best-span", own)
    assert key("first-words", named) == key("best-span", named)


def with_cross_encoder(many, folder, batch_size=64):
    """The pipeline with a tiny cross-encoder and no reader that is a model."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers")
    import transformers
    from cross_encoder_files import config, save

    torch.manual_seed(0)
    model = save(folder, transformers.BertForSequenceClassification(config(num_labels=1)))
    settings = yaml.safe_load((many / "pipeline.yaml").read_text())
    settings["reranking"] = [
        {"name": "cross-encoder", "model": model, "batch_size": batch_size},
        {"name": "threshold", "rule": "mass", "value": 0.9},
    ]
    settings["reader"] = {"name": "first-words"}
    (many / "pipeline.yaml").write_text(yaml.safe_dump(settings))


def test_a_reranker_that_runs_share_is_counted_for_each(fresh_cache, many, tmp_path):
    with_cross_encoder(many, tmp_path / "model")
    session = Session()
    for name in ("first", "second"):
        request = RunRequest(
            "jsonl",
            data=many,
            pipeline=str(many / "pipeline.yaml"),
            output=tmp_path / name,
        )
        run_request(request, Console(), session)
    assert session.loads["reranker"] == 2  # one of each kind
    scored = [
        read_results(tmp_path / name)["timing"]["reranking"]["cross-encoder"]["scored"]
        for name in ("first", "second")
    ]
    assert scored == [240, 0]


@pytest.mark.slow
def test_a_run_killed_while_reranking_ends_as_an_undisturbed_one(many, tmp_path):
    with_cross_encoder(many, tmp_path / "model", batch_size=1)
    command = [sys.executable, str(ROOT / "run_vqa.py"), "--dataset", "jsonl", "--data", str(many)]
    command += ["--pipeline", str(many / "pipeline.yaml")]
    cache = os.environ | {"RAVQA_CACHE": str(tmp_path / "cache-1")}
    killed = tmp_path / "killed"
    samples = killed / "samples.jsonl"
    process = subprocess.Popen([*command, "--output", str(killed)], env=cache)
    while process.poll() is None and not (samples.is_file() and samples.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(read_samples(samples)) < 60
    again = [*command, "--output", str(killed), "--resume"]
    subprocess.run(again, env=cache, check=True, stdout=subprocess.DEVNULL)
    fresh = os.environ | {"RAVQA_CACHE": str(tmp_path / "cache-2")}
    whole = tmp_path / "whole"
    undisturbed = [*command, "--output", str(whole)]
    subprocess.run(undisturbed, env=fresh, check=True, stdout=subprocess.DEVNULL)
    same_but_for_time(killed, whole)
