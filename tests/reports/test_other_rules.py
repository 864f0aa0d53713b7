"""The folded section of a report with what other scoring rules give."""

import pytest
from hand_runs import answered, write

from ravqa.reports.rules import other_rules
from ravqa.reports.run import read_run


def folder(tmp_path, *answers, **changes):
    samples = [
        answered(i, float(text == "oak"), answers=["oak"], answer=text)
        for i, text in enumerate(answers)
    ]
    return write(tmp_path / "run", samples, **changes)


def test_the_scores_by_other_rules(tmp_path):
    found = other_rules(read_run(folder(tmp_path, "oak", "an oak tree", "elm", "oaks")))
    # "oak" is inside of three answers; only exact match counts one of four as right.
    assert found.title.startswith("Other scoring rules: this answer set scores 25.0 (")
    assert found.title.endswith(
        ") to 75.0 (flashrag.acc), depending on the rule; 25.0 by its own (exact_match)"
    )
    header, rows = found.table
    assert header == ["rule", "score %", "95 % interval"]
    scores = {rule: score for rule, score, _ in rows}
    assert scores["flashrag.acc"] == scores["ultrarag.acc"] == "75.0"
    assert scores["flashrag.em"] == scores["exact_match"] == "25.0"
    assert scores["flashrag.precision"] == "37.5"  # 1, 1/2, 0, 0
    assert "promsa.em_score" not in scores
    assert found.notes == [
        "exact_match is the dataset's own rule.",
        "not asked: judge, promsa.llm_score, promsa.llm_score_allow_no_answer_tag: it asks a judge "
        "(--judge)",
        "not asked: mmsearch_r1.reward_em, mmsearch_r1.reward_subem, promsa.em_score: no answer "
        "has <answer>, without which it gives 0",
    ]


@pytest.mark.parametrize(
    "changes",
    [{"answers": False}, {"answers": {"metric": "infoseek"}}, {"answers": {"metric": "unknown"}}],
    ids=["not scored", "without answer_eval", "unknown metric"],
)
def test_runs_that_cannot_be_scored_again_have_no_such_section(tmp_path, changes):
    run = read_run(folder(tmp_path, "oak", **changes))
    assert other_rules(run) is None
