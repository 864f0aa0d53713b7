"""A metric of one's own: one file, as a plugin, known to every command under its own name."""

import collections
import json
import re
import sys

import pytest
from report_files import write_run
from study_files import call, read_table, write_data

from ravqa.core import registry
from ravqa.core.errors import UserError
from ravqa.datasets.base import Dataset, DatasetRequest, RetrievalMetric
from ravqa.datasets.files import load_jsonl
from ravqa.metrics import METRICS
from ravqa.metrics.statistics import intervals

TOKEN_F1 = """
from collections import Counter

from ravqa.metrics.base import AnswerMetric, Submission
from ravqa.metrics import METRICS

METRICS.add("token_f1", "token_f1:TokenF1", "best overlap of words with an answer (SQuAD)")


class TokenF1(AnswerMetric):
    class Config(AnswerMetric.Config):
        lower: bool = True

    name = "token_f1"
    label = "Token F1"
    rule = "harmonic mean of precision and recall of words, best over the answers"
    right = "a token F1 of at least 0.5"

    def score(self, question, record, judge=None):
        return max(self._f1(record.answer, answer) for answer in question.answers)

    def is_right(self, question, record, score):
        return score >= 0.5

    def submission(self, answers):
        return Submission(".tsv", "".join(f"{q}\\t{a}\\n" for q, a in answers.items()))

    def _f1(self, first, second):
        if self.config.lower:
            first, second = first.lower(), second.lower()
        one, other = Counter(first.split()), Counter(second.split())
        common = (one & other).total()
        return 2 * common / (one.total() + other.total()) if common else 0.0
"""


def token_f1(prediction, answers):
    """The same rule, written apart."""

    def f1(answer):
        left = collections.Counter(answer.split())
        common = 0
        for word in prediction.split():
            if left[word] > 0:
                left[word] -= 1
                common += 1
        if not common:
            return 0.0
        precision, recall = common / len(prediction.split()), common / len(answer.split())
        return 2 * precision * recall / (precision + recall)

    return max(f1(answer) for answer in answers)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The plugin, and questions whose answers have two words."""
    monkeypatch.setenv("RAVQA_PLUGINS", "token_f1")
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "token_f1.py").write_text(TOKEN_F1, encoding="utf-8")
    registry.load_plugins.cache_clear()
    data = write_data(tmp_path / "data")
    path = data / "questions.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for i, row in enumerate(rows):
        row["answers"] = [f"{row['answers'][0]} passage", "the old stone"][: 1 + i % 2]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    yield data
    registry.load_plugins.cache_clear()
    sys.modules.pop("token_f1", None)


def samples(folder, name="samples.jsonl"):
    lines = (folder / name).read_text(encoding="utf-8").split("\n")
    return {s["question_id"]: s for s in map(json.loads, filter(None, lines))}


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("fresh_cache", "any_images")
def test_one_file_adds_a_metric_to_every_command(plugin, tmp_path, capsys):
    option = ("--dataset-option", "metric=token_f1")
    run = write_run(tmp_path / "a", plugin, *option, "--controls", "none")
    other = write_run(tmp_path / "b", plugin, *option, "--controls", "none", "--seed", 5)
    found, results = samples(run), results_of(run)
    without = samples(run, "samples.none.jsonl")

    # numbers: of every question, of the run, with interval and test
    f1 = {q: 100 * token_f1(s["answer"], s["answers"]) for q, s in found.items()}
    own = {q: 100 * s["score"] for q, s in found.items()}
    assert own == pytest.approx(f1)
    assert sum(value not in (0, 100) for value in own.values()) > 0
    section = results["answers"]
    assert (section["metric"], section["label"]) == ("token_f1", "Token F1")
    assert section["rule"] == {"lower": True}
    main = section["conditions"]["main"]
    assert main["score"] == pytest.approx(sum(own.values()) / len(own), abs=1e-3)
    images = {q: s["image_id"] for q, s in found.items()}
    interval = intervals.bootstrap(list(own.values()), list(images.values()), seed=0)
    assert main["interval_95"] == pytest.approx([interval.low, interval.high], abs=1e-3)
    theirs = {q: 100 * s["score"] for q, s in without.items()}
    test = intervals.paired_test(own, theirs, images, seed=0)
    compared = section["comparisons"]["main - none"]
    assert compared["difference"] == pytest.approx(test.difference.mean, abs=1e-3)
    assert compared["p_value"] == pytest.approx(test.p_value, abs=1e-4)
    assert (run / "predictions.tsv").read_text(encoding="utf-8").splitlines() == [
        f"{q}\t{s['answer']}" for q, s in found.items()
    ]

    # what retrieval helped and hurt: right from an F1 of 0.5 on
    right = {q: (theirs[q] >= 50, own[q] >= 50) for q in own}
    helped = sum(pair == (False, True) for pair in right.values())
    hurt = sum(pair == (True, False) for pair in right.values())
    assert helped > 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"<b>{helped} / {hurt}</b><span>questions helped / hurt</span>" in page
    assert "Token F1 %" in page
    assert "a token F1 of at least 0.5" in page

    # score: the same numbers from the samples, and another one with an option
    capsys.readouterr()
    arguments = ["score", run / "samples.jsonl", "--dataset", "jsonl", "--data", plugin, *option]
    code, out, err = call(capsys, *arguments, "--output", tmp_path / "scores.json")
    assert code == 0, err
    assert re.search(rf"Token F1 %.*{main['score']:.1f}", out, re.DOTALL)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores["answers"]["conditions"]["main"]["score"] == main["score"]
    code, _, err = call(capsys, *arguments, "--metric-option", "lover=false")
    assert (code, "did you mean lower" in err) == (2, True)

    # compare and study: its name, its difference, its p-value
    code, out, err = call(capsys, "compare", run, other, "--output", tmp_path / "compared")
    assert code == 0, err
    measures = read_table(tmp_path / "compared")["tables"][0]["rows"][1]["measures"]
    second = {q: 100 * s["score"] for q, s in samples(other).items()}
    test = intervals.paired_test(second, own, images, seed=0)
    assert measures["score"]["difference"]["value"] == pytest.approx(test.difference.mean, abs=1e-3)
    assert "Token F1 %" in out
    study = tmp_path / "words.yaml"
    study.write_text(
        "pipeline: bm25-retrieval\n"
        "axes: {reader.words: [1, 2]}\n"
        f"datasets: [{{name: jsonl, data: {plugin}, options: {{metric: token_f1}}}}]\n"
    )
    code, out, err = call(capsys, "study", study, "--output", tmp_path / "study")
    assert code == 0, err
    assert "Token F1 %" in out


def test_an_unknown_metric_is_refused_when_the_dataset_is_loaded(tmp_path, capsys):
    data = write_data(tmp_path / "data")
    with pytest.raises(UserError, match=r"no metric 'vqa_acuracy': did you mean vqa_accuracy"):
        load_jsonl(DatasetRequest(data=data, options={"metric": "vqa_acuracy"}))
    for field in ("metric", "submission"):
        named = {"metric": None, field: "token_f2"}
        with pytest.raises(UserError, match="dataset mine: no metric 'token_f2'"):
            Dataset("mine", "Mine", "all", (), fingerprint="", **named)
    arguments = ["run", "--dataset", "jsonl", "--data", data, "--pipeline", "bm25-retrieval"]
    arguments += ["--dataset-option", "metric=exact", "--output", tmp_path / "run"]
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "error: --dataset-option metric: no metric 'exact': did you mean exact_match?" in err
    assert not (tmp_path / "run").exists()


def test_an_unknown_retrieval_metric_is_refused_when_the_dataset_is_made():
    metrics = [RetrievalMetric("recal_at_k", 5)]
    with pytest.raises(UserError, match=r"dataset mine: no retrieval metric 'recal_at_k': did you"):
        Dataset("mine", "Mine", "all", (), None, "", retrieval_metrics=metrics)


def test_options_that_the_metric_does_not_have_are_refused():
    with pytest.raises(UserError, match="vqa_accuracy: unknown key 'normalisation'"):
        Dataset(
            "mine", "Mine", "all", (), "vqa_accuracy", "", metric_options={"normalisation": "x"}
        )
    with pytest.raises(UserError, match="no metric to take options"):
        Dataset("mine", "Mine", "test", (), None, "", metric_options={"normalization": "always"})
    with pytest.raises(UserError, match="the split test has no answers to score with"):
        _ = Dataset("mine", "Mine", "test", (), None, "").answer_metric


@pytest.mark.usefixtures("fresh_cache")
def test_results_of_another_format_are_refused_by_their_version(tmp_path, capsys):
    run = write_run(tmp_path / "run", write_data(tmp_path / "data"), "--controls", "none")
    results = results_of(run)
    for version in (1, None, "2"):
        results["schema_version"] = version
        (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
        for command in (("report", run), ("compare", run, run)):
            code, _, err = call(capsys, *command)
            assert code == 2
            assert f"results of format {version}, but this version reads format 2" in err


@pytest.mark.parametrize(
    ("metric", "row", "reason"),
    [
        ("infoseek", {"answer_eval": [{"range": [1, None]}]}, 'needs [{"range": [low, high]}]'),
        (
            "infoseek",
            {"question_type": "String", "answer_eval": [{"range": [1, 2]}]},
            "needs texts",
        ),
        ("evqa_score", {"question_type": "hop"}, "unknown question type 'hop'"),
        ("evqa_score", {"answers": ["fir&&ash"]}, "needs the question type multi_answer"),
        ("evqa_score", {"answers": ["the"]}, "empty after the clean-up"),
    ],
)
def test_a_question_that_the_metric_cannot_score_is_reported_with_its_row(
    tmp_path, metric, row, reason
):
    path = tmp_path / "q.jsonl"
    rows = [{"id": 1, "question": "Which?", "answers": ["oak"]}]
    rows.append({"id": 2, "question": "Which?", "answers": ["2"], **row})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    with pytest.raises(UserError, match=rf"q\.jsonl, line 2: .*{re.escape(reason)}"):
        load_jsonl(DatasetRequest(data=path, options={"metric": metric}))


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        ("66.7", "a score from 0 to 1 is expected, got 66.7"),
        ("float('nan')", "a score from 0 to 1 is expected, got nan"),
        ("-1", "a score from 0 to 1 is expected, got -1.0"),
    ],
)
def test_a_score_outside_of_0_to_1_is_refused(plugin, tmp_path, capsys, returned, line):
    file = tmp_path / "token_f1.py"
    text = file.read_text(encoding="utf-8")
    score = "max(self._f1(record.answer, answer) for answer in question.answers)"
    assert score in text
    file.write_text(text.replace(score, returned), encoding="utf-8")
    rows = [json.loads(line) for line in (plugin / "questions.jsonl").read_text().splitlines()]
    answers = [{"question_id": row["question_id"], "answer": "forest"} for row in rows]
    (tmp_path / "p.json").write_text(json.dumps(answers), encoding="utf-8")
    arguments = ["score", tmp_path / "p.json", "--dataset", "jsonl", "--data", plugin]
    code, _, err = call(capsys, *arguments, "--dataset-option", "metric=token_f1")
    assert code == 2
    assert err.splitlines()[-1] == f"error: the metric token_f1.TokenF1 breaks its contract: {line}"
