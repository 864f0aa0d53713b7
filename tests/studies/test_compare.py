"""Finished runs side by side: the same questions, breakdowns counted by hand, the controls."""

import json
import shutil

import pytest
from study_files import call, read_table, write_data

from ravqa.cli import main
from ravqa.metrics.statistics.intervals import paired_test

BASE = ("--pipeline", "bm25-retrieval", "--set", "reader.words=1")


def run(folder, data, *arguments):
    asked = ["run", "--dataset", "jsonl", "--data", data, "--output", folder, *BASE, *arguments]
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in asked])
    assert end.value.code == 0
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of finished runs: b retrieves by lot, c asks fewer questions than a."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAVQA_CACHE", str(root / "cache"))
        data = write_data(root / "data")
        run(root / "a", data, "--controls", "none")
        run(root / "b", data, "--retriever", "random", "--set", "top_k=5")
        run(root / "c", data, "--limit", 10)
        run(root / "found", data, "--retrieval-only")
    return root


def samples(folder, name="samples.jsonl"):
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    return {s["question_id"]: s for s in map(json.loads, lines)}


def lines_of(out, name):
    """Each line that begins with a name, and the line below it."""
    lines = out.splitlines()
    return [lines[i : i + 2] for i, line in enumerate(lines) if line.startswith(name)]


def test_the_table_and_the_breakdowns_equal_counts_by_hand(runs, tmp_path, capsys):
    code, out, err = call(
        capsys,
        "compare",
        runs / "a",
        runs / "b",
        "--output",
        tmp_path,
        "--metrics",
        "score,seconds",
    )
    assert code == 0, err
    a, b, none = samples(runs / "a"), samples(runs / "b"), samples(runs / "a", "samples.none.jsonl")
    document = read_table(tmp_path)
    rows = {row["run"]: row["measures"] for row in document["tables"][0]["rows"]}
    images = {q: s["image_id"] for q, s in a.items()}
    test = paired_test(*({q: 100 * s["score"] for q, s in x.items()} for x in (b, a)), images)
    found = rows["b"]["score"]["difference"]
    assert found["value"] == pytest.approx(test.difference.mean, abs=1e-3)
    assert found["p_value"] == found["p_holm"] == test.p_value

    def counts(before, after, ids):
        right = [(before[q]["score"] == 1, after[q]["score"] == 1) for q in ids]
        return {
            "helped": right.count((False, True)),
            "hurt": right.count((True, False)),
            "both_right": right.count((True, True)),
            "both_wrong": right.count((False, False)),
        }

    retrieval, other = document["breakdowns"]
    assert (retrieval["first"], retrieval["second"]) == ("without retrieval", "a")
    assert (other["first"], other["second"]) == ("a", "b")
    for breakdown, before, after in ((retrieval, none, a), (other, a, b)):
        groups = breakdown["groups"]
        assert groups["all"]["all questions"] == counts(before, after, list(a))
        for kind in ("food", "place"):
            ids = [q for q, s in a.items() if s["question_type"] == kind]
            assert groups["question type"][kind] == counts(before, after, ids)
        # Where the answer stood among the second run's passages.
        read = [q for q, s in after.items() if s["read"]["answer_ranks"]["flmr"]]
        held = [q for q, s in after.items() if s["answer_ranks"]["flmr"] and q not in read]
        places = groups["answer strings"]
        nothing = counts(a, a, [])
        for place, ids in (
            ("an answer in the passages read", read),
            ("only in passages not read", held),
        ):
            assert places.get(place, nothing) == counts(before, after, ids)
        assert sum(sum(place.values()) for place in places.values()) == 24
    assert retrieval["groups"]["all"]["all questions"]["helped"] > 0
    helped = counts(none, a, list(a))["helped"]
    [counts_shown, shares] = lines_of(out, "all questions")[0]
    assert counts_shown.split()[2:4] == ["24", str(helped)]
    assert shares.split()[0] == f"({100 * helped / 24:.1f}"
    assert "a: an answer in the passages read" in out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Right answers: without retrieval \u2192 a" in page
    # What the run's own results call the hit success ratio.
    results = json.loads((runs / "a" / "results.json").read_text())
    ratio = results["answers"]["comparisons"]["main - none"]["hit_success_ratio"]
    assert ratio == pytest.approx(100 * helped / 24, abs=0.01)


def test_a_run_alone_is_compared_with_its_control(runs, capsys):
    code, out, _ = call(capsys, "compare", runs / "a")
    assert code == 0
    assert "Right answers: without retrieval \u2192 a" in out
    code, _, err = call(capsys, "compare", runs / "b")
    assert code == 2
    assert "no control to compare with" in err
    code, out, _ = call(capsys, "compare", runs / "b", "--control", f"{runs / 'a'}:none")
    assert code == 0
    assert "Right answers: without retrieval \u2192 b" in out
    code, out, _ = call(capsys, "compare", f"{runs / 'a'}:none", runs / "b")
    assert code == 0
    assert "Right answers: a:none \u2192 b" in out
    code, out, _ = call(capsys, "compare", f"{runs / 'a'}:none", runs / "a")
    assert code == 0
    assert out.count("Right answers: ") == 1


def test_other_questions_are_refused_or_intersected(runs, capsys):
    code, _, err = call(capsys, "compare", runs / "a", runs / "c")
    assert code == 2
    assert "10 are common, 14 only in a, 0 only in c" in err
    code, out, _ = call(capsys, "compare", runs / "a", runs / "c", "--common")
    assert code == 0
    assert "10 questions" in out
    assert "over the 10 questions common to all runs (a asked 24)" in " ".join(out.split())
    assert "same for every question" in out  # the same answers to the same questions
    assert "1.0000" not in out


def test_the_same_ids_with_other_references_are_other_data(runs, tmp_path, capsys):
    changed = shutil.copytree(runs / "b", tmp_path / "b2")
    text = (changed / "samples.jsonl").read_text()
    (changed / "samples.jsonl").write_text(text.replace('"leaves"', '"bark"'))
    code, _, err = call(capsys, "compare", runs / "a", changed, "--common")
    assert code == 2
    assert "question 0 has different references in b2 and in a" in err


def test_retrieval_alone_is_compared_too(runs, capsys):
    code, out, _ = call(capsys, "compare", runs / "b", runs / "found", "--metrics", "PRRecall@5")
    assert code == 0
    assert "against" not in out
    code, out, _ = call(capsys, "compare", runs / "b", runs / "found")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "nowhere"], "nowhere contains no run"),
        (["a", "a"], "is named twice"),
        (["a", "b", "--metrics", "scor"], "no metric 'scor': did you mean score"),
        (["a", "b:oracle"], "has no samples.oracle.jsonl"),
        (["a", "half"], "is not finished: --resume"),
    ],
)
def test_mistakes_are_one_line(runs, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(runs)
    if "half" in arguments and not (runs / "half").exists():
        shutil.copytree(runs / "b", runs / "half")
        (runs / "half" / "results.json").unlink()
    code, _, err = call(capsys, "compare", *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_files_are_not_replaced_unasked(runs, tmp_path, capsys):
    assert call(capsys, "compare", runs / "a", runs / "b", "--output", tmp_path)[0] == 0
    code, _, err = call(capsys, "compare", runs / "a", runs / "b", "--output", tmp_path)
    assert code == 2
    assert "--overwrite replaces it" in err
    again = call(capsys, "compare", runs / "a", runs / "b", "--output", tmp_path, "--overwrite")
    assert again[0] == 0


def test_questions_without_an_answer_are_told_and_wrong(runs, tmp_path, capsys):
    changed = shutil.copytree(runs / "a", tmp_path / "a2")
    lines = [json.loads(line) for line in (changed / "samples.jsonl").read_text().splitlines()]
    for sample in lines[:2]:
        sample |= {"answer": None, "score": 0.0, "error": "the server is gone"}
    (changed / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    code, out, _ = call(capsys, "compare", runs / "a", changed, "--metrics", "score,Recall@5")
    assert code == 0
    assert "a2: 2 questions were not answered, which counts as wrong" in " ".join(out.split())
    assert "No run has Recall@5" in out
    counts, shares = lines_of(out, "all questions")[-1]
    assert counts.split()[2:4] == ["24", "0"]  # none is helped
    place = counts.split().index("2") - 3
    assert shares.split()[2 * place] == "(8.3"


def test_infoseeks_score_has_an_interval_and_a_test_of_its_own(tmp_path, fresh_cache, capsys):
    data = write_data(tmp_path / "data")
    rows = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        # Half of one split asks for what no passage says: the splits differ in difficulty.
        row["split"] = "val_unseen_entity" if i % 3 else "val_unseen_question"
        row["answer_eval"] = row["answers"] if i % 3 or i % 2 else ["none"]
    (data / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    as_infoseek = ("--dataset-option", "metric=infoseek")
    run(tmp_path / "a", data, *as_infoseek)
    run(tmp_path / "b", data, *as_infoseek, "--retriever", "random")
    arguments = ("compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c")
    code, out, err = call(capsys, *arguments)
    assert code == 0, err
    assert "InfoSeek score %" in out
    first, second = (
        row["measures"]["score"] for row in read_table(tmp_path / "c")["tables"][0]["rows"]
    )
    for folder, found in (("a", first), ("b", second)):
        results = json.loads((tmp_path / folder / "results.json").read_text())
        main = results["answers"]["conditions"]["main"]
        assert found["value"] == pytest.approx(main["score"], abs=0.02)
        assert abs(found["value"] - main["mean"]) > 0.5 or folder == "b"  # not the mean
    assert second["difference"]["value"] == pytest.approx(
        second["value"] - first["value"], abs=1e-3
    )
    assert second["difference"]["p_value"] < 0.05
