"""`ravqa run --retrieval-only`: one dataset, all subsets of M2KR in one table, what is recorded."""

import csv
import json
import re
from pathlib import Path

import pytest
from dataset_files import write_image, write_parquet

from ravqa.cli import main
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict
from ravqa.datasets.published import published_scores
from ravqa.readers import READERS
from ravqa.readers.controls import FirstWords
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever, to_hits
from ravqa.retrievers.bm25 import BM25Retriever

pytest.importorskip("pyarrow")
pytest.importorskip("bm25s")

SNIPPETS = Path(__file__).parents[3] / "shared" / "data" / "okvqa-snippets"

# Six passages about storms, the longer the worse, and some others.
STORMS = [(f"S{n}", " ".join(["storm", *["cloud"] * n])) for n in range(6)]
OTHERS = [("F1", "red fox runs"), ("F2", "grey wolf howls"), ("F3", "blue whale swims")]
PASSAGES = [*STORMS, *OTHERS]
# Question, relevant passages, answers.
QUESTIONS = {
    "MSMARCO": [("storm", ["S4"], None), ("storm", ["S5"], None)],  # ranks 5 and 6
    "LLaVA": [
        ("what does the red fox do", ["F1"], None),
        ("what does the grey wolf do", ["F2"], None),
        ("what does the blue whale do", ["F3"], None),
        ("what does the bear do", ["F1"], None),
    ],
    "OKVQA": [
        ("storm", ["S5"], ["cloud cloud"] * 10),  # in the second best passage
        ("red fox", ["F1"], ["howls"] * 10),
        ("grey wolf", ["F3"], ["howls"] * 9 + ["barks"]),
    ],
}
EXPECTED = {  # percent, by hand
    ("MSMARCO", "recall_at_k", 5): 50.0,
    ("LLaVA", "recall_at_k", 1): 75.0,
    ("OKVQA", "pseudo_recall_at_k", 5): 66.6667,
    ("OKVQA", "recall_at_k", 5): 33.3333,
}


def write_subset(folder, subset, split="test"):
    rows = []
    for number, (question, positives, answers) in enumerate(QUESTIONS[subset], 1):
        row = {
            "question_id": str(number),
            "question": question,
            "instruction": "Obtain documents:",
            "pos_item_ids": positives,
            "img_id": f"i{number}",
            "img_path": None if subset == "MSMARCO" else f"photos/{subset}_{number}.jpg",
            "image_id": f"i{number}",
        }
        if answers:
            row |= {"answers": answers, "gold_answer": answers[0]}
        rows.append(row)
    write_parquet(folder / f"{subset}_data" / f"{split}-00000-of-00001.parquet", rows)
    write_parquet(
        folder / f"{subset}_passages" / f"{split}_passages-00000-of-00001.parquet",
        [{"passage_id": i, "passage_content": text, "language": "en"} for i, text in PASSAGES],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three subsets of M2KR, without their images."""
    root = tmp_path_factory.mktemp("m2kr")
    for subset in QUESTIONS:
        write_subset(root, subset)
    return root


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code


def evaluate(folder, *arguments, dataset="m2kr"):
    return call(
        *("run", "--retrieval-only", "--dataset", dataset, "--data", folder),
        *("--pipeline", "bm25-retrieval", *arguments),
    )


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def by_column(scores):
    return {(s["subset"], s["metric"], s["k"]): s["percent"] for s in scores}


def test_all_subsets_stand_in_one_table_beside_the_published_scores(folder, tmp_path, capsys):
    assert evaluate(folder, "--subset", "all", "--output", tmp_path / "runs") == 0
    printed = capsys.readouterr()
    table = read_json(tmp_path / "runs" / "table.json")
    measured = [s for s in table["scores"] if s["status"] == "measured"]
    assert by_column(measured) == EXPECTED
    assert {s["model"] for s in measured} == {"bm25-retrieval"}
    for score in measured:
        assert score["low_95"] is score["high_95"] is None  # of four images at most
        assert score["questions"] == len(QUESTIONS[score["subset"]])
        run = read_json(Path(score["source"]) / "results.json")
        assert run["dataset"]["label"] == f"M2KR {score['subset']}"
    published = [s for s in table["scores"] if s["status"] == "published"]
    assert [(s["model"], s["subset"], s["metric"], s["k"], s["percent"]) for s in published] == [
        (s.model, s.subset, s.metric.name, s.metric.k, s.percent) for s in published_scores("m2kr")
    ]
    assert all("FLMR" in s["source"] for s in published)

    lines = printed.out.splitlines()
    start = lines.index("Retrieval %: m2kr, split test")
    names, more = (line.split() for line in lines[start + 1 : start + 3])
    assert names == ["this", "ViT-G", "ViT-L", "ViT-B", "ViT-L"]
    assert more == ["run", "ViT-G", "ViT-L", "ViT-B", *["paper"] * 3, "ENCN"]
    shown = {line.rpartition("@")[0]: line.split()[2:] for line in lines[start + 4 : start + 16]}
    ours = [cells[0] for cells in shown.values()]
    # WIT, IGLUE and KVQA, then MSMARCO, OVEN, LLaVA, twice EVQA, twice OKVQA, twice Infoseek
    assert ours == [*"---", "50.0*", "-", "75.0*", *"--", "66.7*", "33.3*", *"--"]
    assert shown["WIT R"][1:] == ["61.9", "60.5", "42.7", "61.5", "60.5", "41.7", "60.8"]
    assert max(map(len, lines[start : start + 16])) <= 80
    assert "this run: bm25-retrieval." in lines
    assert "published scores of PreFLMR" in printed.out
    assert "not all of the published test questions" in printed.out
    assert "missing subsets: WIT, IGLUE, KVQA, OVEN, EVQA, Infoseek" in printed.err

    with (tmp_path / "runs" / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == [s["status"] for s in table["scores"]]
    assert [float(row["percent"]) for row in rows] == [s["percent"] for s in table["scores"]]


def test_a_killed_evaluation_goes_on_where_it_was(folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "runs"
    asked = []
    retrieve = BM25Retriever.retrieve

    def stopped(self, questions, k):
        if len(asked) == 6:  # MSMARCO's two and LLaVA's four
            raise KeyboardInterrupt
        asked.extend(questions)
        return retrieve(self, questions, k)

    monkeypatch.setattr(BM25Retriever, "retrieve", stopped)
    assert evaluate(folder, "--subset", "all", "--output", output) == 130
    *_, hint, last = capsys.readouterr().err.strip().splitlines()
    assert hint.startswith("to continue: ravqa run --dataset ")
    assert f" --output {output} --resume " in hint
    assert "--dataset-option subset=all" in hint
    assert last == "interrupted"
    assert not (output / "table.json").exists()

    # Nothing is replaced unasked.
    assert evaluate(folder, "--subset", "all", "--output", output) == 2
    assert "--resume continues them" in capsys.readouterr().err

    def counted(self, questions, k):
        asked.extend(questions)
        return retrieve(self, questions, k)

    monkeypatch.setattr(BM25Retriever, "retrieve", counted)
    assert evaluate(folder, "--subset", "all", "--output", output, "--resume") == 0
    assert len(asked) == 9  # every question once
    table = read_json(output / "table.json")
    assert by_column(s for s in table["scores"] if s["status"] == "measured") == EXPECTED

    # Another setting is another run.
    changed = ("--output", output, "--resume", "--set", "retriever.k1=1.0")
    assert evaluate(folder, "--subset", "all", *changed) == 2
    assert "subset MSMARCO: the run in" in capsys.readouterr().err
    assert evaluate(folder, "--subset", "all", "--output", output, "--overwrite") == 0


def test_one_subset_is_scored_as_run_retrieval_only_scores_it(folder, tmp_path):
    assert evaluate(folder, "--subset", "okvqa", "--output", tmp_path / "a") == 0
    arguments = ["run", "--dataset", "m2kr", "--data", folder, "--pipeline", "bm25-retrieval"]
    arguments += ["--dataset-option", "subset=OKVQA", "--retrieval-only"]
    assert call(*arguments, "--output", tmp_path / "b") == 0
    one, other = (read_json(tmp_path / name / "results.json") for name in "ab")
    assert one["retrieval"] == other["retrieval"]
    assert one["answers"] is None
    assert {
        (r["metric"], r["k"]): r["conditions"]["main"] for r in one["retrieval"]["reported"]
    } == {
        ("pseudo_recall_at_k", 5): 66.6667,
        ("recall_at_k", 5): 33.3333,
    }
    assert not (tmp_path / "a" / "table.json").exists()


def test_run_takes_all_subsets_too_for_retrieval(folder, tmp_path, capsys):
    arguments = ["run", "--dataset", "m2kr", "--data", folder, "--pipeline", "bm25-retrieval"]
    arguments += ["--dataset-option", "subset=all"]
    assert call(*arguments, "--output", tmp_path / "runs") == 2
    assert "add --retrieval-only" in capsys.readouterr().err
    assert call(*arguments, "--output", tmp_path / "runs", "--retrieval-only", "--limit", 1) == 0
    table = read_json(tmp_path / "runs" / "table.json")
    measured = [s for s in table["scores"] if s["status"] == "measured"]
    assert by_column(measured) == {
        ("MSMARCO", "recall_at_k", 5): 100,
        ("LLaVA", "recall_at_k", 1): 100,
        ("OKVQA", "pseudo_recall_at_k", 5): 100,
        ("OKVQA", "recall_at_k", 5): 0,
    }
    assert {s["questions"] for s in measured} == {1}


def test_the_chinese_twin_has_its_own_published_rows(folder, tmp_path, capsys):
    output = tmp_path / "runs"
    assert evaluate(folder, "--subset", "all", "--output", output, dataset="m2kr_cn") == 0
    out = capsys.readouterr().out
    assert re.search(r"PreFLMR\n +this +ViT-L\n +run +ENCN\n", out)
    table = read_json(output / "table.json")
    published = [s for s in table["scores"] if s["status"] == "published"]
    assert len(published) == len(published_scores("m2kr_cn"))
    assert {s["model"] for s in published} == {"PreFLMR ViT-L ENCN"}


def test_another_split_stands_alone(tmp_path):
    write_subset(tmp_path / "data", "MSMARCO", split="valid")
    output = tmp_path / "runs"
    assert (
        evaluate(tmp_path / "data", "--subset", "all", "--split", "valid", "--output", output) == 0
    )
    table = read_json(output / "table.json")
    assert table["split"] == "valid"
    assert {s["status"] for s in table["scores"]} == {"measured"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--subset", "OKQVA"), "did you mean OKVQA"),
        (("--subset", "all", "--split", "train"), "has no subset of m2kr with a split train"),
        (("--subset", "all", "--corpus", "x.jsonl"), "every subset has its own passages"),
        (("--subset", "all", "--resume"), "--resume needs --output"),
        (("--subset", "all", "--dataset-option", "subset=OKVQA"), "'subset' is given twice"),
    ],
)
def test_wrong_arguments_are_named(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert evaluate(folder, *arguments) == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_data_is_needed_for_all_and_an_error_names_its_subset(tmp_path, capsys):
    assert call("run", "--retrieval-only", "--dataset", "m2kr", "--subset", "all") == 2
    assert "needs --data" in capsys.readouterr().err
    for subset in QUESTIONS:
        write_subset(tmp_path / "data", subset)
    broken = tmp_path / "data" / "OKVQA_passages" / "test_passages-00000-of-00001.parquet"
    broken.unlink()
    assert evaluate(tmp_path / "data", "--subset", "all", "--output", tmp_path / "runs") == 2
    assert "error: subset OKVQA: no files" in capsys.readouterr().err


# --- what is recorded, and which images are needed


def test_results_name_the_split_and_what_chose_the_settings(tmp_path):
    arguments = ["run", "--retrieval-only", "--dataset", "okvqa", "--pipeline", "bm25-retrieval"]
    arguments += ["--split", "dev", "--dataset-option", "dev_share=0.3"]
    arguments += ["--set", "chosen_on=OK-VQA dev", "--output", tmp_path / "run"]
    assert call(*arguments) == 0
    results = read_json(tmp_path / "run" / "results.json")
    assert results["dataset"]["split"] == "dev"
    assert results["dataset"]["dev"] == {
        "from": "train2014",
        "by": "image",
        "share": 0.3,
        "seed": 0,
    }
    assert results["provenance"]["chosen_on"] == "OK-VQA dev"
    assert results["provenance"]["overrides"] == ["chosen_on=OK-VQA dev"]


class SeeingRetriever(Retriever):
    """Ranks the passages as they stand, and says that it looks at images."""

    class Config(Strict):
        pass

    fingerprint = "seeing"
    weights = ""
    supports_images = True

    def __init__(self, config):
        self.ids = []

    def prepare(self, corpus, progress=None):
        self.ids = list(corpus)

    def retrieve(self, questions, k):
        return [to_hits([(i, 0.0) for i in self.ids[:k]]) for _ in questions]


@pytest.fixture
def seeing(monkeypatch):
    entry = Entry(f"{__name__}:SeeingRetriever", "for tests")
    monkeypatch.setitem(RETRIEVERS._entries, "seeing", entry)


def test_images_are_counted_before_work_where_a_part_sees_them(tmp_path, seeing, capsys):
    data = tmp_path / "data"
    write_subset(data, "LLaVA")
    write_image(data / "photos" / "LLaVA_2.jpg")
    output = tmp_path / "run"
    nested = "retriever={name: fusion, retrievers: [{name: bm25}, {name: seeing}]}"
    for change in (
        "retriever={name: seeing}",
        nested,
        "retriever={name: oracle, base: {name: seeing}}",
    ):
        wanted = ("--subset", "LLaVA", "--set", change, "--output", output, "--overwrite")
        assert evaluate(data, *wanted) == 2
        error = capsys.readouterr().err
        assert "3 questions have no usable image" in error
        assert not output.exists()
    assert evaluate(data, *wanted, "--on-error", "skip") == 0
    results = read_json(output / "results.json")
    assert results["dataset"]["questions"] == 1
    assert [s["question_id"] for s in results["dataset"]["skipped"]] == ["1", "3", "4"]
    # BM25 sees none: the missing ones are no mistake.
    assert evaluate(data, "--subset", "LLaVA", "--output", tmp_path / "words") == 0
    assert read_json(tmp_path / "words" / "results.json")["dataset"]["questions"] == 4


class SeeingReader(FirstWords):
    supports_images = True


def test_images_are_counted_for_a_reader_that_sees_them(folder, tmp_path, monkeypatch, capsys):
    entry = Entry(f"{__name__}:SeeingReader", "for tests")
    monkeypatch.setitem(READERS._entries, "seeing", entry)
    arguments = ["run", "--dataset", "m2kr", "--data", folder, "--subset", "OKVQA"]
    arguments += ["--pipeline", "bm25-retrieval", "--output", tmp_path / "run"]
    assert call(*arguments, "--reader", "seeing") == 2
    assert "3 questions have no usable image" in capsys.readouterr().err
    assert call(*arguments, "--reader", "seeing", "--retrieval-only") == 0
    assert call(*arguments, "--overwrite") == 0


def test_a_replaced_part_of_a_fusion_stands_in_for_nothing(tmp_path):
    arguments = ["run", "--retrieval-only", "--dataset", "okvqa", "--pipeline", "fusion-retrieval"]
    arguments += ["--set", "retriever.retrievers.1={name: random}", "--limit", 3]
    assert call(*arguments, "--output", tmp_path / "run") == 0
    assert read_json(tmp_path / "run" / "results.json")["provenance"]["stand_ins"] == {}


def test_a_fixed_ranking_refuses_the_control_wrong_image(tmp_path, capsys):
    sample = ("run", "--retrieval-only", "--dataset", "okvqa", "--pipeline", "bm25-retrieval")
    for change in ("{name: random}", "{name: none}", f"{{name: static, file: {tmp_path}/x}}"):
        wanted = ("--set", f"retriever={change}", "--controls", "wrong-image")
        assert call(*sample, *wanted, "--output", tmp_path / "run") == 2
        assert "--controls wrong-image changes nothing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- real data


@pytest.mark.slow  # tests/retrievers/test_bm25.py has the figure too, without the command
def test_the_command_gives_the_known_figure_on_real_snippets(tmp_path):
    if not SNIPPETS.is_dir():
        pytest.skip("no ../shared/data/okvqa-snippets beside the project: not tested")
    captions = SNIPPETS / "captions.jsonl"
    arguments = ["--dataset-option", f"captions={captions}", "--output", tmp_path / "run"]
    corpus = ("--corpus", SNIPPETS / "passages.jsonl")
    assert evaluate(SNIPPETS, *corpus, *arguments, dataset="okvqa") == 0
    results = read_json(tmp_path / "run" / "results.json")
    recall = results["retrieval"]["conditions"]["main"]["PRRecall_by_rule"]
    assert {rule: round(values["5"]) for rule, values in recall.items()} == {
        "flmr": 54,
        "ravqa": 54,
        "word": 46,
        "nfkc": 54,
    }
    assert results["provenance"]["corpus"]["passages"] == 15_863


def test_a_retriever_that_finds_nothing_is_scored_and_said(tmp_path, capsys, monkeypatch):
    """BM25 finds nothing for a question without words; as in M2KR's subsets of images alone."""
    wordless = [("?", *rest) for _, *rest in QUESTIONS["OKVQA"]]
    monkeypatch.setitem(QUESTIONS, "OKVQA", wordless)
    write_subset(tmp_path / "data", "OKVQA")
    output = tmp_path / "runs"
    options = ("--subset", "all", "--output", output, "--no-report")
    assert evaluate(tmp_path / "data", *options) == 0
    printed = capsys.readouterr()
    assert "note: no passage found for 3 of 3 questions" in printed.err
    assert printed.err.count("no passage found") == 1
    [shown] = [line.split() for line in printed.out.splitlines() if line.startswith("OKVQA PR")]
    assert shown[2] == "0.0*"
    results = read_json(output / "OKVQA" / "results.json")
    assert results["retrieval"]["conditions"]["main"]["PRRecall"]["5"] == 0
