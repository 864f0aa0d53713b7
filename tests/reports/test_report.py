"""Reports of runs, without a browser: what is in the file, and that numbers are the results'."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from report_files import SCRIPT, write_dataset, write_run
from sample_files import read_samples

from ravqa.cli import main
from ravqa.core.errors import UserError
from ravqa.core.records import Question
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.prrecall import answer_ranks
from ravqa.metrics.statistics import intervals
from ravqa.metrics.vqa import VQAAccuracy
from ravqa.reports import matches as report_matches
from ravqa.reports import report as report_module
from ravqa.reports.figures import run_figures
from ravqa.reports.photos import thumbnails
from ravqa.reports.questions import Bounds
from ravqa.reports.report import write_report
from ravqa.reports.rules import other_rules
from ravqa.reports.run import read_run
from ravqa.runs.console import Console
from ravqa.runs.finished import FinishedRun
from ravqa.runs.prompts import read_prompts
from ravqa.studies.compare import breakdown

FLMR = Path(__file__).parents[1] / "data" / "flmr-parity" / "preflmr" / "checkpoint_context_names"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "MIN_CLUSTERS", 1)  # six images are enough here
        return write_run(tmp_path_factory.mktemp("runs") / "run", data)


def as_shown(value, interval):
    """Nothing in between if all images are alike."""
    low, high = interval
    return f"{value:.1f}" if low is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(finished, tmp_path / "run")


def embedded(page):
    """The page's JSON by the ids of its elements, and each table as one list."""
    blocks = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', page, re.S)
    found = {name: json.loads(text) for name, text in blocks}
    tables = {}
    for name, items in found.items():
        kind, dash, _ = name.rpartition("-")
        if dash:
            tables.setdefault(kind, []).extend(items)
    return found["index"], tables


def text_of(path):
    return path.read_text(encoding="utf-8")


def test_a_run_writes_its_report(finished):
    page = text_of(finished / "report.html")
    index, tables = embedded(page)
    samples = read_samples(finished / "samples.jsonl")
    without = read_samples(finished / "samples.none.jsonl")
    assert [row["id"] for row in index["questions"]] == [str(q) for q in samples]
    for row, detail, sample in zip(
        index["questions"], tables["questions"], samples.values(), strict=True
    ):
        assert row["q"] == sample["question"]
        assert (row["a"], row["s"]) == (sample["answer"], sample["score"])
        assert row["gain"] == sample["score"] - without[sample["question_id"]]["score"]
        assert row["rank"] == min(sample["answer_ranks"]["flmr"] or [0])
        assert [hit[1] for hit in detail["hits"]] == [score for _, score in sample["hits"]]
        assert dict(detail["refs"]) == {a: sample["answers"].count(a) for a in sample["answers"]}
    assert index["metric"] == "Exact match"


def test_passages_are_marked_where_their_answers_stand(finished):
    _, tables = embedded(text_of(finished / "report.html"))
    samples = list(read_samples(finished / "samples.jsonl").values())
    marked = 0
    for detail, sample in zip(tables["questions"], samples, strict=True):
        for (number, _, holds, spans), (passage_id, _) in zip(
            detail["hits"], sample["hits"], strict=True
        ):
            passage = tables["passages"][number]
            assert passage["id"] == passage_id
            assert (
                bool(holds)
                == bool(spans)
                == bool(answer_ranks([passage["text"]], sample["answers"]))
            )
            units = passage["text"].encode("utf-16-le")  # as a browser counts
            for begin, length in zip(spans[::2], spans[1::2], strict=True):
                found = units[2 * begin : 2 * (begin + length)].decode("utf-16-le")
                assert found.lower() in {answer.lower() for answer in sample["answers"]}
                marked += 1
    assert marked > 5


def test_prompts_are_those_that_were_asked(finished):
    _, tables = embedded(text_of(finished / "report.html"))
    prompts = read_prompts(finished / "prompts.jsonl.gz")
    samples = read_samples(finished / "samples.jsonl").values()
    for detail, sample in zip(tables["questions"], samples, strict=True):
        shown = ["\n".join(tables["lines"][i] for i in d["prompt"]) for d in detail["drafts"]]
        assert shown == ["\n".join(prompts[d["prompt_hash"]]) for d in sample["drafts"]]
        assert sample["question"].split("\u2028")[0] in shown[0]


def test_nothing_of_the_data_becomes_markup(finished):
    page = text_of(finished / "report.html")
    assert (
        page.count("<script")
        == page.count("</script")
        == len(re.findall(r'<script(?: type="application/json" id="[a-z]+(?:-\d+)?")?>', page))
    )
    assert SCRIPT not in page
    for tag in ("<img", "<svg onload", "<iframe", "<i>", "onerror=", "javascript:"):
        assert tag not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    # In JSON no letter that could end an element or begin one.
    for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S):
        assert not set("<>&\u2028\u2029") & set(text)
    _, tables = embedded(page)
    links = {p["id"]: p.get("url") for p in tables["passages"]}
    assert links["p<0>"] is None
    assert links["p1"] == "https://example.org/koala"


@pytest.mark.usefixtures("any_images")
def test_figures_show_the_numbers_of_the_results(finished):
    results = json.loads(text_of(finished / "results.json"))
    figures = {figure.title.split(" by ")[-1]: figure for figure in run_figures(read_run(finished))}
    assert list(figures) == [
        "PRRecall@K",
        "question type",
        "rank of the first passage with an answer",
        "Scores of the answers",
        "Score of the first passage",
        "Where the time goes",
    ]
    curve = figures["PRRecall@K"]
    assert curve.header == ["K", "random passages", "oracle passages"]
    for column, condition in enumerate(("main", "oracle"), 1):
        expected = results["retrieval"]["conditions"][condition]
        shown = {row[0]: row[column] for row in curve.rows}
        assert set(shown) == {str(k) for k in range(1, 9)}
        for k, value in expected["PRRecall"].items():
            assert shown[k] == as_shown(value, expected["interval_95"][k])
    types = figures["question type"]
    conditions = results["answers"]["conditions"]
    assert types.rows[0][1] == str(results["answers"]["questions"])
    for column, condition in enumerate(("main", "none", "oracle"), 2):
        own = conditions[condition]
        assert types.rows[0][column] == as_shown(own["score"], own["interval_95"])
        for row in types.rows[1:]:
            group = own["groups"][row[0]]
            assert row[column] == as_shown(group["mean"], group["interval_95"])
            assert row[1] == str(group["questions"])


@pytest.mark.usefixtures("any_images")
def test_figures_of_ranks_and_scores_count_every_question(finished):
    run = read_run(finished)
    figures = {figure.title: figure for figure in run_figures(run)}
    by_rank = figures["Exact match by rank of the first passage with an answer"]
    ranks = [min(s["answer_ranks"]["flmr"] or [0]) for s in run.main.values()]
    assert sum(int(row[1]) for row in by_rank.rows) == len(ranks)
    first = [s["score"] for s, r in zip(run.main.values(), ranks, strict=True) if r == 1]
    shown = {row[0]: row for row in by_rank.rows}
    assert shown["1"][1] == str(len(first))
    assert re.match(rf"{100 * sum(first) / len(first):.1f}( \[|$)", shown["1"][2])
    assert shown["none"][1] == str(ranks.count(0))
    scores = figures["Scores of the answers"]
    right = sum(s["score"] for s in run.main.values()) / len(ranks)
    assert [row[1] for row in scores.rows] == [f"{100 - 100 * right:.1f}", f"{100 * right:.1f}"]
    tops = figures["Score of the first passage"]
    assert sum(int(cell) for row in tops.rows for cell in row[1:]) == len(ranks)


def test_the_summary_says_what_the_results_say(finished):
    results = json.loads(text_of(finished / "results.json"))
    page = re.sub(r"<script.*?</script>", "", text_of(finished / "report.html"), flags=re.S)
    main_score = results["answers"]["conditions"]["main"]["score"]
    assert f"<b>{main_score:.1f}</b>" in page
    test = results["answers"]["comparisons"]["main - none"]
    assert f"<b>{test['wins']} / {test['losses']}</b>" in page
    assert f"{test['wins']} / {test['losses']} / {test['ties']}" in page
    assert "top_k: 8" in page
    assert results["provenance"]["fingerprints"]["dataset"] in page


def test_a_changed_pipelines_description_is_said_to_be_the_base_pipelines(run):
    words = read_run(run).config["pipeline"]["description"]
    assert re.fullmatch(r"\S+, changed: retriever=random; top_k=8", words)
    page = text_of(run / "report.html")
    assert f'<p class="kind">{words}</p>' in page
    assert "<dt>base pipeline</dt>" in page
    assert "<dt>changed</dt>" in page
    results = json.loads(text_of(run / "results.json"))
    results["provenance"]["overrides"] = []
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    assert "<dt>pipeline</dt>" in text_of(write_report(run))


def test_helped_and_hurt_are_those_of_compare(run):
    """Of VQA accuracy: a question whose score moved is helped only if its answer became right."""
    results = json.loads(text_of(run / "results.json"))
    results["answers"]["metric"] = "vqa_accuracy"
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    right, wrong = ("grass", 0.3), ("mud", 0.0)
    cases = {2: (wrong, right), 3: (right, wrong), 4: (("grass", 0.3), ("leaves", 1.0))}
    for place, name in enumerate(("samples.none.jsonl", "samples.jsonl")):
        samples = read_samples(run / name)
        for q, sample in samples.items():
            answer, score = cases.get(q, (wrong, wrong))[place]
            asked = Question(q, sample["question"], answers=("leaves", "grass"))
            right_now = VQAAccuracy().is_right(asked, AnswerRecord(answer), score)
            sample |= {"answer": answer, "score": score, "right": right_now}
            sample["answers"] = list(asked.answers)
        text = "".join(json.dumps(s) + "\n" for s in samples.values())
        (run / name).write_text(text, encoding="utf-8")
    page = text_of(write_report(run))
    index, _ = embedded(page)
    turned = {int(row["id"]): row["turned"] for row in index["questions"]}
    assert {q: t for q, t in turned.items() if t} == {2: 1, 3: -1}
    assert [row["gain"] for row in index["questions"]][2:5] == [0.3, -0.3, 0.7]
    assert index["moved"]
    assert "<b>1 / 1</b><span>questions helped / hurt</span>" in page
    compared = breakdown(
        "none", FinishedRun(run, "none"), "run", FinishedRun(run), dict.fromkeys(turned)
    )
    outcomes = compared.groups["all"]["all questions"]
    assert (outcomes.helped, outcomes.hurt) == (1, 1)


def test_times_name_no_stage_that_took_none(run):
    samples = read_samples(run / "samples.jsonl")
    stages = list(next(iter(samples.values()))["seconds"])
    for path in run.glob("samples*.jsonl"):
        changed = [
            {
                **s,
                "seconds": dict.fromkeys(s["seconds"], 0.0) | {stages[-1]: 0.5},
                "cached": {key: {"share": 0.0, "seconds": 0.0} for key in s["seconds"]},
            }
            for s in read_samples(path).values()
        ]
        path.write_text("".join(json.dumps(s) + "\n" for s in changed), encoding="utf-8")
    [figure] = [f for f in run_figures(read_run(run)) if f.title == "Where the time goes"]
    assert len(stages) == 2
    assert figure.header == ["condition", "answering"]
    assert figure.legend == []


@pytest.mark.slow
def test_what_matched_is_shown_of_the_first_questions_unasked(data, tmp_path, monkeypatch):
    options = ["--retriever", "late-interaction", "--retrieval-only", "--controls", ""]
    options += ["--set", f"retriever.encoder={{name: flmr, model: {FLMR}}}"]
    folder = write_run(tmp_path / "run", data, *options)
    page = text_of(folder / "report.html")
    index, tables = embedded(page)
    assert [row.get("match") for row in index["questions"]] == [*range(10), None, None]
    sample = read_samples(folder / "samples.jsonl")[3]
    shown = [(p["id"], p["score"]) for p in tables["matches"][3]["passages"]]
    assert [i for i, _ in shown] == [i for i, _ in sample["hits"][:3]]
    assert [s for _, s in shown] == pytest.approx([s for _, s in sample["hits"][:3]], rel=2e-2)
    assert "What matched in retrieval is shown for the first 10 questions" in page
    assert "matches" not in embedded(text_of(write_report(folder, match=0)))[1]
    assert len(embedded(text_of(write_report(folder, match=12)))[1]["matches"]) == 12
    # Not more than there is room for; and weights that have gone cost the report nothing.
    monkeypatch.setattr(report_matches, "_ROOM", len(json.dumps(tables["matches"][:4])))
    assert len(embedded(text_of(write_report(folder)))[1]["matches"]) in (3, 4)
    config = text_of(folder / "config.yaml").replace(str(FLMR), str(tmp_path / "gone"))
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    page = text_of(write_report(folder))
    assert "What matched in retrieval is not shown: " in page
    with pytest.raises(UserError, match="gone"):
        write_report(folder, match=2)


def test_a_study_and_several_runs_leave_out_what_matched(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        report_module, "default_matches", lambda *_: (asked.append("default"), ({}, None))[1]
    )
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / "runs" / name)
    report_module.report_runs(tmp_path / "runs", Console())
    assert asked == []
    report_module.report_runs(run, Console())
    assert asked == ["default"]


def test_stand_ins_and_samples_are_said(run):
    results = json.loads(text_of(run / "results.json"))
    results["provenance"]["stand_ins"] = {"reader": "a <small> model stands in"}
    results["dataset"] |= {"sample": True, "limit": 12}
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    path = write_report(run)
    page = text_of(path)
    assert "Stand-in reader: a &lt;small&gt; model stands in." in page
    assert "its scores are not benchmark scores" in page
    assert "The run was limited to the first 12 questions." in page


def test_photos_are_small_and_bounded(tmp_path):
    paths = []
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 255, (30, 40, 3), dtype="uint8")
        path = tmp_path / f"{i}.jpg"
        PIL.Image.fromarray(noise).resize((600, 450)).save(path)
        paths.append(path)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    sizes = []
    for budget in (500_000, 20_000, 1_000):
        urls = thumbnails([*paths, broken], budget)
        assert urls[-1] is None
        images = [base64.b64decode(url.partition(",")[2]) for url in urls[:-1]]
        side = {max(PIL.Image.open(io.BytesIO(image)).size) for image in images}
        assert len(side) == 1
        sizes.append((side.pop(), sum(map(len, images))))
    assert sizes[0][0] == 512
    assert sizes[0][0] > sizes[1][0] >= sizes[2][0] >= 112
    assert sizes[1][1] < 1.3 * 20_000


def test_questions_of_one_photo_share_it(finished):
    index, tables = embedded(text_of(finished / "report.html"))
    assert len(tables["photos"]) == 6
    assert [row["photo"] for row in index["questions"]] == [i // 2 for i in range(12)]


def shown(path):
    return [int(row["id"]) for row in embedded(text_of(path))[0]["questions"]]


def test_of_many_questions_those_are_shown_that_retrieval_changed(run):
    turned = [3, 8]
    before = read_samples(run / "samples.none.jsonl")
    for q, sample in before.items():
        sample["right"] = read_samples(run / "samples.jsonl")[q]["right"] != (q in turned)
    text = "".join(json.dumps(sample) + "\n" for sample in before.values())
    (run / "samples.none.jsonl").write_text(text, encoding="utf-8")
    notes = []
    found = shown(write_report(run, questions=5, note=notes.append))
    assert len(found) == 5
    assert set(turned) <= set(found)
    assert found == sorted(found)  # in the run's order
    assert found == shown(write_report(run, questions=5))  # the same sample again
    said = (
        "5 of 12 questions are shown individually: 2 that retrieval helped or hurt, and a random "
        "sample of 3 others (seed 0). 7 are left out"
    )
    assert said in notes[0]
    page = text_of(run / "report.html")
    assert said in page
    assert "Questions, 5 of 12</h2>" in page
    assert [path.name for path in run.glob("report*")] == ["report.html"]
    assert set(shown(write_report(run, questions=1))) <= set(turned)
    # Numbers and figures are of all questions.
    whole = text_of(write_report(run, questions=12, note=notes.append))
    assert len(notes) == 1
    assert "left out" not in re.sub(r"<script.*?</script>", "", whole, flags=re.S)
    for part in ('<div class="figures">.*?</section>', '<div class="tiles">.*?</div></div>'):
        assert re.search(part, page, re.S)[0] == re.search(part, whole, re.S)[0]


def test_questions_are_chosen_by_number_or_id(run, capsys):
    assert command(run, "--questions", "7,2,2") == 0
    assert shown(run / "report.html") == [2, 7]
    said = " ".join(capsys.readouterr().err.split())
    note = "2 of 12 questions are shown individually: those that were asked for. 10 are left"
    assert note in said
    assert command(run, "--questions", "7,") == 0
    assert shown(run / "report.html") == [7]
    assert command(run, "--questions", "7") == 0
    assert len(shown(run / "report.html")) == 7
    assert command(run, "--questions", "70,") == 2
    assert "the run has no question '70'" in capsys.readouterr().err
    for text in ("0", "-1", "many", ",", "1.5", "9" * 30):
        assert command(run, f"--questions={text}") == 2
        assert "a number from 1, or ids" in " ".join(capsys.readouterr().err.split())
    assert len(shown(run / "report.html")) == 7


def test_what_does_not_fit_is_left_out_and_said(run):
    path = write_report(run, bounds=Bounds(passages=600, prompts=500))
    page = text_of(path)
    _, tables = embedded(page)
    assert re.search(r"Texts are shown for the first \d of 8 passages", page)
    assert re.search(r"[\d,]+ prompts are left out", page)
    for detail in tables["questions"]:
        read = {rank - 1 for rank in detail["read"]}
        assert all(isinstance(detail["hits"][i][0], int) for i in read)
    assert any(isinstance(hit[0], str) for d in tables["questions"] for hit in d["hits"])


def test_a_run_whose_data_is_gone_still_has_a_report(run, data, tmp_path):
    config = text_of(run / "config.yaml").replace(str(data), str(tmp_path / "nowhere"))
    (run / "config.yaml").write_text(config, encoding="utf-8")
    notes = []
    path = write_report(run, note=notes.append)
    page = text_of(path)
    index, tables = embedded(page)
    assert "The dataset could not be read again, so photos are missing" in notes[0]
    assert "The dataset could not be read again, so photos are missing" in page
    assert "passages" not in tables
    assert [row["photo"] for row in index["questions"]] == [-1] * 12
    path = write_report(run, data=data)
    assert "could not be read" not in text_of(path)
    assert len(embedded(text_of(path))[1]["passages"]) > 10


def test_passages_that_changed_are_left_out(run, data, tmp_path):
    other = shutil.copytree(data, tmp_path / "data")
    text = text_of(other / "passages.jsonl").replace("eats", "ate")
    (other / "passages.jsonl").write_text(text, encoding="utf-8")
    path = write_report(run, data=other)
    assert "no longer those of the run" in text_of(path)
    questions = text_of(other / "questions.jsonl").replace("animal 5 eat", "animal 5 drink")
    (other / "questions.jsonl").write_text(questions, encoding="utf-8")
    path = write_report(run, data=other)
    assert "1 of 12 questions are no longer in the dataset" in text_of(path)
    assert embedded(text_of(path))[0]["questions"][5]["photo"] == -1


def test_questions_say_why_they_have_no_answer_and_which_choices_they_have(run):
    samples = list(read_samples(run / "samples.jsonl").values())
    samples[3] |= {"answer": None, "raw": None, "drafts": [], "error": "the prompt is too long"}
    samples[4] |= {"choices": [SCRIPT, "leaves"], "correct_choice": 1}
    text = "".join(json.dumps(s) + "\n" for s in samples)
    (run / "samples.jsonl").write_text(text, encoding="utf-8")
    results = json.loads(text_of(run / "results.json"))
    results["answers"]["conditions"]["main"]["unanswered"] = [{"question_id": 3, "reason": "x"}]
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = text_of(write_report(run))
    index, tables = embedded(page)
    assert "a" not in index["questions"][3]
    assert tables["questions"][3]["error"] == "the prompt is too long"
    assert [d.get("choices") for d in tables["questions"][3:5]] == [None, [SCRIPT, "leaves"]]
    assert SCRIPT not in page
    assert "The reader could not answer 1 question, which counts as wrong" in page


@pytest.mark.parametrize(
    "options", [["--retrieval-only"], ["--predict-only"], ["--retriever", "none"]]
)
def test_runs_of_one_half_have_reports(data, tmp_path, options):
    folder = write_run(tmp_path / "run", data, "--controls", "", *options)
    index, _ = embedded(text_of(folder / "report.html"))
    assert index["scored"] == (options == ["--retriever", "none"])
    assert index["retrieved"] == (options != ["--retriever", "none"])
    assert not index["compared"]


def test_a_report_that_fails_loses_nothing(data, tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no figures today")

    monkeypatch.setattr(report_module, "run_figures", broken)
    folder = write_run(tmp_path / "run", data)
    assert (folder / "results.json").is_file()
    assert not (folder / "report.html").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "no report: RuntimeError: no figures today" in said
    assert f"ravqa report {folder}" in said


def test_each_run_below_a_folder_has_its_report(finished, tmp_path, capsys):
    for name in ("a", "b"):
        shutil.copytree(finished, tmp_path / name)
        (tmp_path / name / "report.html").unlink()
    (tmp_path / "a" / "samples.jsonl").write_text("{}\n", encoding="utf-8")
    report_module.report_runs(tmp_path, Console())
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [f"report: {tmp_path / 'b' / 'report.html'}"]
    assert "samples.jsonl, line 1: not a sample" in " ".join(shown.err.split())
    assert not (tmp_path / "a" / "report.html").exists()


def test_a_run_can_leave_the_report_out_and_clear_an_old_one(data, tmp_path):
    folder = write_run(tmp_path / "run", data)
    (folder / "report-2.html").write_text("old", encoding="utf-8")
    (folder / "report-notes.html").write_text("mine", encoding="utf-8")
    write_run(folder, data, "--overwrite", "--no-report")
    assert sorted(path.name for path in folder.glob("report*")) == ["report-notes.html"]


def command(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["report", *map(str, arguments)])
    return end.value.code


def test_the_command_writes_where_it_is_told(run, tmp_path, capsys):
    (run / "report.html").unlink()
    assert command(run) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    elsewhere = tmp_path / "mine.html"
    assert command(run, "--output", elsewhere) == 0
    assert elsewhere.is_file()
    assert command(run, "--output", elsewhere) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert command(run, "--output", elsewhere, "--overwrite") == 0
    assert command(run, "--output", tmp_path / "no" / "folder.html") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["samples.jsonl", "samples.none.jsonl", "config.yaml"])
def test_the_command_replaces_no_other_file_of_a_run(run, capsys, name):
    before = (run / name).read_bytes()
    assert command(run, "--output", run / name, "--overwrite") == 2
    assert "is a file of a run: choose another --output" in capsys.readouterr().err
    assert (run / name).read_bytes() == before
    assert command(run, "--output", run / "report.html", "--overwrite") == 0


def test_the_command_says_what_is_wrong(run, tmp_path, capsys):
    assert command(tmp_path / "nothing") == 2
    assert "no run: there is no results.json" in capsys.readouterr().err
    assert command(run, "--matches", 2) == 2
    assert "only a late-interaction retriever has matches" in capsys.readouterr().err
    (run / "results.json").unlink()
    assert command(run) == 2
    assert "is not finished" in capsys.readouterr().err
    (run / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"results\.json: not JSON"):
        write_report(run)


def test_scores_by_other_rules_are_folded(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    found = other_rules(read_run(finished))
    pattern = r'<details class="fold"><summary>Other scoring rules: (.*?)</details>'
    line, _, table = re.search(pattern, page, re.S)[1].partition("</summary>")
    assert found.title == f"Other scoring rules: {line}"
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>', table)
    assert [list(row) for row in rows] == found.table[1]
    own = json.loads((finished / "results.json").read_text())["answers"]
    score = own["conditions"]["main"]["score"]
    assert f"{score:.1f} by " in line
    assert "has &lt;answer&gt;" in table
