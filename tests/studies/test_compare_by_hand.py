"""Comparisons of runs that were written by hand: groups, names, words, files."""

import csv
import io
import json
import os
from dataclasses import replace

import pytest
from hand_runs import answered, write
from narrow import fits, terminal
from rich.console import Console as RichConsole

from ravqa.core.errors import UserError
from ravqa.evaluation.schema import ComparisonTables, validated
from ravqa.metrics import METRICS
from ravqa.metrics.statistics.intervals import Estimate, paired_test
from ravqa.runs.console import Console
from ravqa.runs.finished import FinishedRun
from ravqa.studies import compare as module
from ravqa.studies.compare import (
    Breakdown,
    Outcomes,
    against_reference,
    breakdown,
    compare,
    compare_and_print,
    open_runs,
)
from ravqa.studies.options import CompareRequest
from ravqa.studies.rules import RuleComparison, verdicts
from ravqa.studies.rules import printed as printed_rules

READ, HELD, NOWHERE = (
    "an answer in the passages read",
    "only in passages not read",
    "in no passage retrieved",
)


def samples(rights, kinds=None, places=None):
    """Questions 0, 1, ...: right or wrong, with a type, an answer that is r(ead), h(eld), n(ot)."""
    found = []
    for i, right in enumerate(rights):
        place = (places or "n" * len(rights))[i]
        ranks = {"r": (1, 3), "h": (3,), "n": (), "-": ()}[place]
        read = {"r": (1,), "h": (), "n": (), "-": None}[place]
        kind = None if kinds is None else {"-": None}.get(kinds[i], kinds[i])
        found.append(answered(i, float(right == "1"), ranks=ranks, read=read, question_type=kind))
    return found


@pytest.fixture
def runs(tmp_path):
    """Five questions; b is right where a is wrong, but for the first and the last."""
    write(tmp_path / "a", samples("11000", "xy-xy", "rhn-r"), {"none": samples("10100")})
    write(tmp_path / "b", samples("10110", "xy-xy", "nrhnr"))
    write(tmp_path / "scored-not", [dict(row) for row in samples("11000")], answers=False)
    return tmp_path


def counts(helped=0, hurt=0, both_right=0, both_wrong=0):
    return Outcomes(helped, hurt, both_right, both_wrong)


def test_questions_are_counted_by_who_is_right(runs):
    a, b = FinishedRun(runs / "a"), FinishedRun(runs / "b")
    ids = dict.fromkeys(range(5))
    found = breakdown("first", a, "second", b, ids)
    # a 11000, b 10110; types xy-xy; in b's passages nrhnr
    assert found == Breakdown(
        "first",
        "second",
        {
            "all": {"all questions": counts(2, 1, 1, 1)},
            "question type": {"x": counts(helped=1, both_right=1), "y": counts(0, 1, 0, 1)},
            "answer strings": {
                READ: counts(hurt=1, both_wrong=1),
                HELD: counts(helped=1),
                NOWHERE: counts(helped=1, both_right=1),
            },
        },
    )
    assert list(found.groups["answer strings"]) == [READ, HELD, NOWHERE]
    assert found.groups["all"]["all questions"].questions == 5
    back = breakdown("b", b, "a", a, ids)  # in a's passages rhn-r: nothing was read for 3
    assert back.groups["all"] == {"all questions": counts(1, 2, 1, 1)}
    assert back.groups["answer strings"] == {
        READ: counts(both_right=1, both_wrong=1),
        HELD: counts(helped=1),
        NOWHERE: counts(hurt=1),
    }
    some = breakdown("a", a, "b", b, {0: None, 3: None, 9: None})
    # One type and one place only: these tell nothing that "all" does not.
    assert some.groups == {"all": {"all questions": counts(helped=1, both_right=1)}}
    assert breakdown("a", a, "b", b, {}).groups == {}


def test_runs_that_were_not_scored_have_no_breakdown(runs, tmp_path):
    rows = samples("11000")
    for row in rows:
        for key in ("score", "raw_score", "exact_match", "right"):
            del row[key]
    unscored = FinishedRun(write(tmp_path / "u", rows, answers=False))
    scored = FinishedRun(runs / "a")
    ids = dict.fromkeys(range(5))
    assert breakdown("u", unscored, "a", scored, ids) is None
    assert breakdown("a", scored, "u", unscored, ids) is None
    assert against_reference({"a": scored, "u": unscored}, "a") == {}
    found = compare(runs / "a", tmp_path / "u")
    assert [(b.first, b.second) for b in found.breakdowns] == [("without retrieval", "a")]


def test_each_run_is_compared_with_its_control_then_with_the_first(runs):
    found = compare(runs / "a", runs / "b", metrics=["score", "PRRecall@5"], seed=3)
    assert [(b.first, b.second) for b in found.breakdowns] == [
        ("without retrieval", "a"),
        ("a", "b"),
    ]
    assert found.breakdowns[0].groups["all"] == {"all questions": counts(1, 1, 1, 2)}
    assert [(row.name, row.reference) for row in found.table.rows] == [("a", True), ("b", False)]
    assert list(found.table.titles) == ["score", "PRRecall@5"]
    a, b = ({i: 100.0 * (x == "1") for i, x in enumerate(rights)} for rights in ("11000", "10110"))
    test = paired_test(b, a, {i: i for i in a}, seed=3)
    difference = found.table.rows[1].cells["score"].difference
    assert (difference.estimate.value, difference.p_value) == (test.difference.mean, test.p_value)
    named = compare(runs / "b", control=f"{runs / 'a'}:none")
    assert [(b.first, b.second) for b in named.breakdowns] == [("without retrieval", "b")]
    assert named.breakdowns[0].groups["all"] == {"all questions": counts(1, 0, 2, 2)}
    retrieving = compare(runs / "b", control=runs / "a")
    assert [(b.first, b.second) for b in retrieving.breakdowns] == [("a", "b")]
    # A control that is named is used for every run, in place of their own.
    both = compare(runs / "a", runs / "b", control=runs / "b")
    assert [(b.first, b.second) for b in both.breakdowns] == [("b", "a"), ("b", "b"), ("a", "b")]


def test_a_run_without_retrieval_has_no_recall_to_compare(runs):
    for order in (("a:none", "a"), ("a", "a:none")):
        table = compare(*(runs / name for name in order)).table
        assert list(table.titles) == ["score", "PRRecall@5", "seconds"]
        without, own = sorted(table.rows, key=lambda row: row.name == "a")
        assert list(without.cells) == ["score", "seconds"]
        assert own.cells["PRRecall@5"].difference is None
    alone = compare(runs / "a:none", control=runs / "a").table
    assert list(alone.titles) == ["score", "seconds"]


def test_common_questions_include_the_controls(runs, tmp_path):
    few = write(tmp_path / "few", samples("101"), retriever="none")
    with pytest.raises(UserError, match="few asked other questions than a: 3 are common"):
        compare(runs / "a", control=few)
    found = compare(runs / "a", control=few, common=True)
    assert found.table.questions == 3
    assert found.breakdowns[0].groups["all"] == {"all questions": counts(1, 1, 1, 0)}
    assert found.breakdowns[0].first == "without retrieval"
    twin = write(tmp_path / "other" / "a", samples("1"))
    with pytest.raises(UserError, match="control a asked other questions than a"):
        compare(runs / "a", control=twin)


def test_what_cannot_be_compared_is_refused_with_the_reason(runs):
    def said(*given, **options):
        with pytest.raises(UserError) as error:
            compare(*given, **options)
        return str(error.value)

    assert said() == "compare: give at least one run"
    assert said(runs / "b") == (
        "b has no control to compare with: give another run, or --control RUN (a run with "
        "--controls none has it)"
    )
    assert said(runs / "a", runs / "a") == f"the run {runs / 'a'} is named twice"
    assert said(runs / "a", seed=-1) == "--seed -1: 0 or more is needed"
    assert "no metric 'x'" in said(runs / "a", metrics=["x"])


def test_runs_are_named_by_their_folders(runs, tmp_path, monkeypatch):
    twin = write(tmp_path / "more" / "b", samples("11111"), {"none": samples("00000")})
    odd = write(tmp_path / "odd:none", samples("00011"))
    found = open_runs(list(map(str, (runs / "a", f"{runs / 'a'}:none", odd, runs / "b"))))
    assert list(found) == ["a", "a:none", "odd:none", "b"]
    assert [run.condition for run in found.values()] == ["main", "none", "main", "main"]
    assert found["odd:none"].folder == odd
    names = [str(runs / "b"), str(twin), f"{twin}:none", str(runs / "a")]
    assert list(open_runs(names)) == [str(runs / "b"), str(twin), "b:none", "a"]
    monkeypatch.chdir(runs / "a")
    os.symlink(runs / "b", tmp_path / "link")
    assert list(open_runs([".", str(tmp_path / "link")])) == ["a", "b"]
    with pytest.raises(UserError, match="contains no run"):
        open_runs([f"{runs / 'a'}:nothing"])
    with pytest.raises(UserError, match=r"has no samples\.oracle\.jsonl"):
        open_runs([f"{runs / 'a'}:oracle"])
    same = [f"{twin}:none", f"{runs / 'more' / 'b'}:none"]
    with pytest.raises(UserError) as error:
        open_runs(same)
    assert str(error.value) == f"the run {twin}:none is named twice"


HEADER = ("", "questions", "helped", "hurt", "both right", "both wrong")


def test_against_the_reference_in_a_report(runs):
    a, b = FinishedRun(runs / "a"), FinishedRun(runs / "b")
    row = ["b", "5", "2 (40.0 %)", "1 (20.0 %)", "1 (20.0 %)", "1 (20.0 %)"]
    expected = {"Right answers: a \u2192 each other run": (HEADER, [row])}
    assert against_reference({"a": a, "b": b}, "a") == expected
    back = against_reference({"a": a, "b": b}, "b")
    assert back["Right answers: b \u2192 each other run"][1] == [
        ["a", "5", "1 (20.0 %)", "2 (40.0 %)", "1 (20.0 %)", "1 (20.0 %)"]
    ]
    assert against_reference({"a": a}, "a") == against_reference({"a": a, "b": b}, "c") == {}


def request(runs, **options):
    return CompareRequest([str(runs / "a"), str(runs / "b")], **options)


def printed(asked):
    out = io.StringIO()
    compare_and_print(asked, Console(out=RichConsole(file=out, width=120)))
    return out.getvalue()


def test_tables_are_printed(runs):
    shown = printed(request(runs))
    lines = [line.split() for line in shown.splitlines()]
    assert "Right answers: a \u2192 b" in shown
    assert "Right answers: without retrieval \u2192 a" in shown
    assert shown.index("without retrieval \u2192 a") < shown.index("a \u2192 b")
    assert [line for line in lines if line[:2] == ["all", "questions"]] == [
        "all questions 5 1 1 1 2".split(),
        "all questions 5 2 1 1 1".split(),
    ]
    shares = [" ".join(lines[i + 1]) for i, x in enumerate(lines) if x[:2] == ["all", "questions"]]
    assert shares == [
        "(20.0 %) (20.0 %) (20.0 %) (40.0 %)",
        "(40.0 %) (20.0 %) (20.0 %) (20.0 %)",
    ]
    assert ["question", "type:", "x", "2"] in [line[:4] for line in lines]
    # Of two runs that retrieve differently, the passages are those of the second.
    assert "a: only in passages not read" in shown
    assert "b: in no passage retrieved" in shown
    assert "answer strings:" not in shown
    assert [line for line in lines if line[:2] == ["questions", "helped"]] == [
        "questions helped hurt both right both wrong".split()
    ] * 2


def test_names_stand_left_and_numbers_right(runs):
    found = compare(runs / "a", runs / "b").breakdowns[1]
    columns = module._printed(found)._table.columns
    assert [column.header for column in columns] == list(HEADER)
    assert [column.justify for column in columns] == ["left", *["right"] * 5]


def test_files_hold_what_was_printed(runs, tmp_path):
    output = tmp_path / "deep" / "out"
    shown = printed(request(runs, output=output, seed=5))
    assert f"written: {output}" in " ".join(shown.split())
    document = json.loads((output / "table.json").read_text(encoding="utf-8"))
    assert (document["schema_version"], document["seed"]) == (1, 5)
    assert document["runs"] == [str(runs / "a"), str(runs / "b")]
    [table] = document["tables"]
    assert [row["run"] for row in table["rows"]] == ["a", "b"]
    folders = [(output / row["folder"]).resolve() for row in table["rows"]]
    assert folders == [runs / "a", runs / "b"]
    first, second = document["breakdowns"]
    assert (first["first"], first["second"]) == ("without retrieval", "a")
    assert (second["first"], second["second"]) == ("a", "b")
    assert second["groups"]["all"] == {
        "all questions": {"helped": 2, "hurt": 1, "both_right": 1, "both_wrong": 1}
    }
    assert second["groups"]["question type"]["x"] == {
        "helped": 1, "hurt": 0, "both_right": 1, "both_wrong": 0,
    }  # fmt: skip
    report = (output / "report.html").read_text(encoding="utf-8")
    for part in (
        "<title>Comparison of runs", "Own, split test: 5 questions, 5 images",
        "Right answers: a \u2192 b", "both wrong", "1 (20.0 %)", "Intervals are 95 %",
    ):  # fmt: skip
        assert part in report
    assert {p.name for p in output.iterdir()} >= {
        "table.csv", "table.md", "table.tex", "table.json", "report.html",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["table.csv", "table.md", "table.tex", "table.json", "report.html"]
)
def test_no_file_is_replaced_unless_told(runs, tmp_path, name):
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_text("mine")
    with pytest.raises(UserError) as error:
        printed(request(runs, output=output))
    assert str(error.value) == f"{output} already has {name}: --overwrite replaces it"
    assert (output / name).read_text() == "mine"
    if name == "report.html":
        printed(request(runs, output=output, overwrite=True))
        assert (output / name).read_text(encoding="utf-8") != "mine"


def test_an_output_that_is_no_folder_or_cannot_be_written_is_refused(runs, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError) as error:
        printed(request(runs, output=file))
    assert str(error.value) == f"--output {file}: a folder is expected"
    inside = file / "out"
    with pytest.raises(UserError) as error:
        printed(request(runs, output=inside))
    assert str(error.value) == f"the output folder {inside} cannot be written: Not a directory"

    def fail(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr(module, "write_tables", fail)
    with pytest.raises(UserError) as error:
        printed(request(runs, output=tmp_path / "out"))
    assert str(error.value) == f"the output folder {tmp_path / 'out'} cannot be written: no room"


def confident(rights, values, **changes):
    """Samples that are right or wrong, each with a log-probability."""
    return [
        {**row, "log_prob": value, "answer": "a", **changes}
        for row, value in zip(samples(rights), values, strict=True)
    ]


def test_confidences_of_runs_are_compared_on_the_same_questions(tmp_path):
    # The reference: risks 0, 1/2, 1/3, 1/2. The other: 0, 0, 1/3, 1/2.
    write(tmp_path / "a", confident("1010", [-1.0, -2.0, -3.0, -4.0]))
    write(tmp_path / "b", confident("1100", [-1.0, -2.0, -3.0, -4.0]))
    write(tmp_path / "flat", confident("1100", [-1.0] * 4))
    found = compare(tmp_path / "a", tmp_path / "b", tmp_path / "flat")
    [one] = found.selective
    assert (one.confidence, one.reference, one.run) == ("log_prob", "a", "b")
    assert one.values == pytest.approx((100 * (4 / 3) / 4, 100 * (5 / 6) / 4))
    assert one.difference.value == pytest.approx(-12.5)
    assert not one.difference.has_interval  # four images
    output = tmp_path / "out"
    request = CompareRequest([str(tmp_path / "a"), str(tmp_path / "b")], output=output)
    screen = RichConsole(file=io.StringIO(), width=100)
    compare_and_print(request, Console(out=screen, err=screen))
    printed = [line.split() for line in screen.file.getvalue().splitlines()]
    assert ["b,", "log_prob", "20.8", "33.3", "-12.5", "-"] in printed
    [row] = json.loads((output / "table.json").read_text())["selective"]
    assert row == {
        "confidence": "log_prob",
        "reference": "a",
        "run": "b",
        "AURC_of_reference": 33.3333,
        "AURC": 20.8333,
        "difference": -12.5,
        "interval_95": [None, None],
    }
    page = (output / "report.html").read_text()
    assert "Selective answering: AURC of each confidence" in page


def test_truthfulness_is_a_column(tmp_path):
    refused = {"answer": "unknown", "right": False, "score": 0.0}
    write(tmp_path / "a", samples("1000"))
    rows = samples("1000")
    write(tmp_path / "b", [*rows[:2], *({**row, **refused} for row in rows[2:])])
    table = compare(tmp_path / "a", tmp_path / "b", metrics=["truthfulness", "score"]).table
    assert table.titles["truthfulness"] == "truthfulness (+1/0/-1) %"
    assert [row.cells["truthfulness"].estimate.value for row in table.rows] == [-50, 0]
    assert [row.cells["score"].estimate.value for row in table.rows] == [25, 25]


def test_the_order_of_two_runs_may_change_with_the_rule(tmp_path):
    """By exact match a is ahead, by substring b: each rule's table row, and one line."""

    def texts(*answers):
        return [
            answered(i, float(text == "oak"), answers=["oak"], answer=text)
            for i, text in enumerate(answers)
        ]

    write(tmp_path / "a", texts("oak", "oak", "elm", "elm", "elm"))
    write(tmp_path / "b", texts("oak tree", "oaks", "an oak", "oak", "elm"))
    rules = ["flashrag.em", "flashrag.acc", "ultrarag.em"]
    found = compare(tmp_path / "a", tmp_path / "b", rules=rules)
    rows = {row.rule: (row.scores, round(row.difference.value, 6)) for row in found.rules}
    assert rows == {
        "exact_match": ((40.0, 20.0), -20.0),
        "flashrag.em": ((40.0, 40.0), 0.0),  # the article is dropped
        "flashrag.acc": ((40.0, 80.0), 40.0),
        "ultrarag.em": ((40.0, 40.0), 0.0),
    }
    line = (
        "The order of a and b changes with the rule: a scores higher under 1 of 4 rules, b under "
        "1; they are equal under 2."
    )
    output = tmp_path / "out"
    shown = printed(request(tmp_path, rules=rules, output=output))
    assert line in " ".join(shown.split())
    assert ["flashrag.acc", "80.0", "40.0", "+40.0"] in [x.split() for x in shown.splitlines()]
    page = (output / "report.html").read_text()
    assert line in page
    assert "Score % by rule, compared with the reference" in page
    written = json.loads((output / "table.json").read_text())
    kept = validated(ComparisonTables, written, "table.json")["rules"]
    assert [row["rule"] for row in kept] == ["exact_match", *rules]
    assert (kept[2]["score_of_reference"], kept[2]["score"]) == (40, 80)
    assert kept[2]["p_value"] == pytest.approx(0.5, abs=0.05)  # two images differ: 2 of 4 flips
    same = compare(tmp_path / "a", tmp_path / "b", rules=["flashrag.acc"]).rules
    assert verdicts(same[1:]) == [
        "The order of a and b does not change with the rule: a scores higher under 0 of 1 rule, b "
        "under 1."
    ]
    assert compare(tmp_path / "a", tmp_path / "b").rules == ()
    with pytest.raises(UserError, match="--rules: no metric 'em': known"):
        compare(tmp_path / "a", tmp_path / "b", rules=["em"])


def test_scores_by_a_runs_own_rule_stand(tmp_path):
    """They may come from a judge, which is not asked again."""
    judged = [answered(i, 1.0, answers=["oak"], answer="an old oak") for i in range(2)]
    write(tmp_path / "a", judged)
    write(tmp_path / "b", [{**row, "answer": "oak"} for row in judged])
    [own, exact] = compare(tmp_path / "a", tmp_path / "b", rules=["flashrag.em"]).rules
    assert (own.rule, own.scores) == ("exact_match", (100.0, 100.0))
    assert exact.scores == (0.0, 100.0)


def costing(tokens, money, reused=None):
    """A sample's cost in the stage that answers."""
    counts = {"requests": 1, "retries": 0, "cached_tokens": None}
    return {
        "answer": {**counts, "prompt_tokens": tokens, "completion_tokens": 2, "money": money}
        | ({"reused": {"results": 1, **reused}} if reused else {})
    }


def test_costs_stand_beside_scores_and_are_drawn_against_them(tmp_path):
    prepared = costing(0, 0.0)["answer"] | {"requests": 0, "completion_tokens": 0}
    section = {"currency": "USD", "prepared": prepared, "conditions": {}, "total": prepared}
    made = {"prompt_tokens": 6, "completion_tokens": 2, "money": 0.00002}
    for name, cost in (("a", costing(10, 0.00001)), ("b", costing(0, 0.0, made))):
        rows = [row | {"cost": cost} for row in samples("11000")]
        write(tmp_path / name, rows, cost=section)
    table = compare(str(tmp_path / "a"), str(tmp_path / "b")).table
    assert list(table.titles.values())[-2:] == ["tokens per question", "USD per question"]
    first, second = (row.cells for row in table.rows)
    assert (first["tokens"].estimate.value, second["tokens"].estimate.value) == (12, 10)
    assert first["cost"].difference is second["cost"].difference is None
    assert any("what results from the cache had cost" in note for note in table.notes)
    out = io.StringIO()
    request = CompareRequest([str(tmp_path / "a"), str(tmp_path / "b")], output=tmp_path / "out")
    compare_and_print(request, Console(out=RichConsole(file=out, width=80)))
    assert "0.000010" in out.getvalue()
    found = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    assert found["tables"][0]["rows"][1]["measures"]["cost"]["value"] == 0.00002
    with (tmp_path / "out" / "table.csv").open(encoding="utf-8", newline="") as file:
        line, _ = csv.DictReader(file)
    assert line["cost"] == "1e-05"
    assert "cost p" not in line
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Exact match % against USD per question" in page


def test_money_in_two_currencies_is_in_no_column(tmp_path):
    prepared = costing(0, 0.0)["answer"] | {"requests": 0, "completion_tokens": 0}
    section = {"prepared": prepared, "conditions": {}, "total": prepared}
    rows = [row | {"cost": costing(10, 0.00001)} for row in samples("11000")]
    for name in ("EUR", "USD"):
        write(tmp_path / name, rows, cost={"currency": name, **section})
    write(tmp_path / "free", samples("11000"))
    table = compare(tmp_path / "USD", tmp_path / "EUR").table
    assert list(table.titles)[-2:] == ["seconds", "tokens"]
    assert "No cost: the runs have prices in EUR and USD." in table.notes
    table = compare(tmp_path / "free", tmp_path / "EUR", metrics=["cost"]).table
    assert table.titles == {"cost": "EUR per question"}
    assert "cost" not in table.rows[0].cells


def test_a_difference_by_a_rule_that_leaves_questions_out_says_of_which_questions_it_is(tmp_path):
    """Officially, InfoSeek's questions without an answer are left out: of a, but not of b."""

    def texts(*answers):
        return [
            answered(
                i,
                float(text == "oak"),
                answer=text,
                answer_eval=["oak"],
                question_type="String",
                split="val_unseen_question" if i % 2 else "val_unseen_entity",
            )
            for i, text in enumerate(answers)
        ]

    of = {"metric": "infoseek", "label": "InfoSeek score", "rule": {"strict": True}}
    write(tmp_path / "a", texts("oak", "elm", None, "oak"), answers=of)
    write(tmp_path / "b", texts("oak", "elm", "elm", "elm"), answers=of)
    found = compare(tmp_path / "a", tmp_path / "b", rules=["flashrag.em"]).rules
    assert all(row.same_questions for row in found)
    assert len(verdicts(found)) == 1
    found = compare(tmp_path / "a", tmp_path / "b", rules=["infoseek.official"]).rules
    assert [row.same_questions for row in found] == [True, False]
    assert verdicts(found)[1] == (
        "Where a rule leaves out questions of one run that it keeps of the other, the difference "
        "is over those that it keeps of both."
    )


def test_the_longest_names_of_rules_fit():
    rules = [name for name, _ in METRICS]
    row = RuleComparison("", "a", "b", (100.0, 99.9), Estimate(-25.6, -33.6, -17.5), 0.01, True)
    screen = terminal()
    screen.print(printed_rules([replace(row, rule=name) for name in rules]))
    lines = fits(screen.file.getvalue())
    assert {line.split()[0] for line in lines if line.endswith("-17.5]")} == set(rules)
