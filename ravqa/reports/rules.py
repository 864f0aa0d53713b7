"""What other scoring rules give for a run's answers, in its report."""

from __future__ import annotations

from typing import NamedTuple

from ravqa.core.errors import UserError
from ravqa.evaluation.rules import rules_section, spread
from ravqa.reports.page import Table
from ravqa.reports.run import Run
from ravqa.runs.finished import dataset_of
from ravqa.runs.rule_tables import notes_of, table_of


class Folded(NamedTuple):
    """A table that opens on request, with the line that is always shown and texts below."""

    title: str
    table: Table
    notes: list[str]


def other_rules(run: Run) -> Folded | None:
    """Return the scores by all rules that fit; None if answers were not scored, or cannot be again.

    Judges are not asked.
    """
    try:
        dataset = dataset_of(run.results, run.main.values(), run.folder)
    except UserError:
        return None
    seed = run.results["provenance"]["seed"]
    section = rules_section(dataset, run.main, seed=seed, examples=0, known=True)
    line = spread(section)
    if not line:
        return None
    return Folded(f"Other scoring rules: {line}", table_of(section), notes_of(section))
