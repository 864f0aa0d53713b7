"""Reranking inside runs: stages in samples and results, controls, per-stage recall by hand."""

import json

import pytest
import yaml

from ravqa.cli import main, run_main
from ravqa.datasets.corpus import Corpus
from ravqa.errors import UserError
from ravqa.pipeline import Pipeline
from ravqa.records import Passage

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
        *("--output", output, *arguments),
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
    assert retrieved["PRRecall"] == {"1": 0.0, "5": 66.67, "all": 66.67}
    assert retrieved["Recall"] == {"1": 33.33, "5": 100.0, "all": 100.0}
    assert (retrieved["passages"], retrieved["without_passages"]) == (4.33, 0)
    # 2 below the best: of question 1 the last is gone, of question 2 none, of question 3 three.
    assert first["PRRecall"] == {"1": 0.0, "5": 66.67, "all": 66.67}
    assert first["passages"] == 3.0
    # Two are kept: question 2 loses its answer.
    assert second["PRRecall"] == {"1": 0.0, "5": 33.33, "all": 33.33}
    assert second["Recall"] == {"1": 33.33, "5": 66.67, "all": 66.67}
    gain = second["gain"]["PRRecall"]["5"]
    assert (gain["difference"], gain["losses"], gain["ties"]) == (-33.33, 1, 2)
    # The reader saw one passage a question.
    assert read["PRRecall"] == {"1": 0.0, "all": 0.0}
    assert read["Recall"] == {"1": 33.33, "all": 33.33}
    assert read["passages"] == 1.0
    # The headline is that of the last ranking.
    assert section["conditions"]["main"]["PRRecall"] == {"1": 0.0, "5": 33.33}
    assert section["by_ids"]["conditions"]["main"]["Recall"] == {"1": 33.33, "5": 66.67}
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
    assert stages["oracle"][0]["PRRecall"]["1"] == stages["oracle"][1]["PRRecall"]["1"] == 66.67


@pytest.mark.parametrize("control", ["none", "random"])
def test_a_control_named_as_retriever_is_not_reranked_either(folder, tmp_path, control):
    assert run(folder, tmp_path / "run", "--retriever", control) == 0
    assert run(folder, tmp_path / "control", "--controls", control) == 0
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
    assert stages[-1]["PRRecall"]["5"] == 33.33


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
    with pytest.raises(UserError, match=r"there is no 'reranking\.2'"):
        Pipeline.load(str(folder / "pipeline.yaml"), "reranking.2.max_kept=1")
