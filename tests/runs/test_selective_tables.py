"""Tables of refusals, confidences and thresholds: what they show, and that they fit."""

import pytest
from narrow import console, fits, terminal
from test_tables_fit import CONDITIONS, results

from ravqa.evaluation.selective import CONFIDENCES
from ravqa.runs.console import short_name
from ravqa.runs.selective_tables import (
    OUTCOMES,
    confidence_table,
    has_refusals,
    outcome_rows,
    outcome_table,
    threshold_table,
)

WIDE = {"value": 100.0, "interval_95": [99.9, 100.0]}
OF = "bundled sample (not InfoSeek), val, 5,046 questions"


def section(**counts):
    found = dict.fromkeys([*OUTCOMES, "refused_read"], 0) | counts
    confidence = {"about": "it", "questions": 5046, "AUROC": WIDE, "AURC": WIDE, "curve": []}
    confidence |= {"ECE": WIDE, "Brier": WIDE, "coverage_at_risk": {}}
    return {
        "questions": 5046,
        "outcomes": {name: dict(found) for name in CONDITIONS},
        "scores": {name: {"value": -100.0, "interval_95": [-100.0, -99.9]} for name in CONDITIONS},
        "confidences": dict.fromkeys(CONFIDENCES, confidence),
    }


def shown(table, width=80):
    screen = terminal(width)
    screen.print(table)
    return fits(screen.file.getvalue(), width)


def test_the_widest_tables_fit():
    found = section(**dict.fromkeys(OUTCOMES, 5046))
    shown(outcome_table(found, lambda name: short_name(name, "bm25"), OF))
    found = section(**{**dict.fromkeys(OUTCOMES, 5046), "refused_unknown": 0})
    lines = shown(outcome_table(found, lambda name: short_name(name, "bm25"), OF))
    [line] = [line for line in lines if line.startswith("oracle")]
    assert line.split() == ["oracle", *["5,046"] * 5, "-100.0", "[-100.0,", "-99.9]"]
    lines = shown(confidence_table(found, OF))
    [line] = [line for line in lines if line.startswith("log_prob")]
    pair = ["100.0", "[99.9,", "100.0]"]
    assert line.split() == ["log_prob", *pair, *pair, "100.0", "100.0"]
    lines = shown(
        threshold_table(
            [
                {
                    "confidence": name,
                    "target_risk": 12.5,
                    "threshold": threshold,
                    "chosen_with": {"coverage": 50.0, "risk": 1.0},
                    "coverage": WIDE,
                    "risk": WIDE if threshold else None,
                }
                for name, threshold in (
                    ("log_prob", -0.000123456),
                    ("posterior_entropy", -0.000123456),
                    ("agreement", None),
                )
            ],
            "runs/dev",
            OF,
        )
    )
    [line] = [line for line in lines if line.startswith("log_prob")]
    assert line.split() == ["log_prob", "12.5", "-0.0001235", *pair, *pair]
    [line] = [line for line in lines if line.startswith("agreement")]
    assert line.split() == ["agreement", "12.5", "none", *pair, "-", "-"]
    assert lines[-1] == "Thresholds were chosen on runs/dev."


def test_outcomes_that_never_occur_have_no_column():
    header, rows = outcome_rows(section(answered_right=3, refused_rightly=2), str.upper)
    assert header == [
        *("", "right", "wrong", "refused, answer found", "refused rightly"),
        *("+1/0/-1", "95 % interval"),
    ]
    assert rows[1] == ["NONE", "3", "0", "0", "2", "-100.0", "[-100.0, -99.9]"]


@pytest.mark.parametrize(
    ("counts", "has"),
    [
        ({"answered_right": 2, "answered_wrong": 1, "unanswered": 1}, False),
        ({"refused_rightly": 1}, True),
        ({"refused_answerable": 1}, True),
        ({"refused_unknown": 1}, True),
    ],
)
def test_a_run_prints_the_table_if_an_answer_is_a_refusal(counts, has):
    found = section(**counts)
    assert has_refusals(found) is has
    screen = console()
    screen.tables({**results(), "selective": found})
    assert ("Right, wrong and refused: " in screen.out.file.getvalue()) is has
