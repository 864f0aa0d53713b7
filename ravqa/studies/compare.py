"""`ravqa compare`: finished runs side by side, and the questions on which one helps or hurts.

For two runs on the same questions, a breakdown counts those on which the second is right where the
first was wrong (helped), wrong where it was right (hurt), and those on which both are right or
wrong: over all questions, by question type, and by where an answer occurs in the second run's
passages. For a run and its control without retrieval, this is the gain of retrieval: helped and
both right are the hit and free success ratios of RA-VQA (Lin and Byrne 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from ravqa.core.errors import UserError
from ravqa.core.locations import real_path
from ravqa.core.terminal import Columns
from ravqa.evaluation.rules import check_rules
from ravqa.evaluation.schema import TABLE_VERSION, ComparisonTables
from ravqa.reports.page import Table as PageTable
from ravqa.reports.study import write_study_report
from ravqa.runs.console import Console
from ravqa.runs.finished import (
    Asked,
    FinishedRun,
    Id,
    Measure,
    common_questions,
    folder_and_condition,
)
from ravqa.runs.plan import check_seed
from ravqa.studies.formats import as_json, heading, printed, write_tables
from ravqa.studies.options import CompareRequest
from ravqa.studies.rules import HEADER as RULES_HEADER
from ravqa.studies.rules import TITLE as RULES_TITLE
from ravqa.studies.rules import RuleComparison, compared_by_rules, verdicts
from ravqa.studies.rules import as_json as rules_json
from ravqa.studies.rules import printed as printed_rules
from ravqa.studies.rules import rows_of as rules_rows
from ravqa.studies.selective import HEADER, TITLE, Selective, compared
from ravqa.studies.selective import as_json as selective_json
from ravqa.studies.selective import printed as printed_selective
from ravqa.studies.selective import rows as selective_rows
from ravqa.studies.tables import Table, build_table, variants

READ, RETRIEVED, NOT_RETRIEVED = (
    "an answer in the passages read",
    "only in passages not read",
    "in no passage retrieved",
)
_FILES = ("table.csv", "table.md", "table.tex", "table.json", "report.html")


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Counts of questions by which of two runs are right."""

    helped: int = 0
    hurt: int = 0
    both_right: int = 0
    both_wrong: int = 0

    @property
    def questions(self) -> int:
        """Number of all questions."""
        return self.helped + self.hurt + self.both_right + self.both_wrong


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Comparison of two runs on the same questions.

    Attributes:
        first, second: their names.
        groups: outcomes by the kind of group ("all", "question type", "answer strings") and by the
            group's name; inapplicable kinds are left out.
    """

    first: str
    second: str
    groups: Mapping[str, Mapping[str, Outcomes]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side.

    Attributes:
        table: a row for each run; the first is the reference.
        breakdowns: each run against its control without retrieval, then against the first run.
        selective: each run's confidences against those of the first run.
        rules: each run against the first one, rule by rule.
    """

    table: Table
    breakdowns: Sequence[Breakdown]
    selective: Sequence[Selective] = ()
    rules: Sequence[RuleComparison] = ()


def compare(
    *runs: Path | str,
    control: Path | str | None = None,
    metrics: Sequence[str] = (),
    rules: Sequence[str] = (),
    common: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare finished runs.

    Args:
        runs: folders, the reference first; "FOLDER:CONTROL" is a run's control.
        control: a run without retrieval, for runs that lack the control `none`.
        metrics: names such as "score" or "PRRecall@5"; empty for the first run's default ones.
        rules: names of scoring rules to compare by too; "all" for those that fit the questions.
        common: whether to compare on the questions that all runs share.
        seed: seed of intervals and tests.

    Raises:
        UserError: runs that do not exist, are not finished, or differ in their questions.
    """
    if not runs:
        raise UserError("compare: give at least one run")
    named = [str(run) for run in runs]
    without = None if control is None else str(control)
    return _compared(CompareRequest(named, without, metrics, rules, common, seed=seed))


def compare_and_print(request: CompareRequest, console: Console) -> None:
    """Compare, print, write.

    Raises:
        UserError: as `compare`; the output folder already has a comparison, or cannot be written.
    """
    _check_output(request)
    found = _compared(request)
    console.out.print(printed(found.table))
    for each in found.breakdowns:
        console.out.print(_printed(each))
    if found.selective:
        console.out.print(printed_selective(found.selective))
    if found.rules:
        console.out.print(printed_rules(found.rules))
    if request.output is not None:
        _write(request, found)
        console.out.print(Text(f"written: {request.output}"), soft_wrap=True)


def _compared(request: CompareRequest) -> Comparison:
    check_seed(request.seed)
    check_rules(request.rules)
    measures = [Measure.parse(metric) for metric in request.metrics]
    runs = open_runs(request.runs)
    everything = dict(runs)
    if request.control is not None:
        [(name, control)] = open_runs([request.control]).items()
        everything.setdefault(f"control {name}" if name in runs else name, control)
    first = next(iter(runs))
    ids = common_questions(everything, intersect=request.common)
    controls = {
        name: own for name, run in runs.items() if (own := _control(run, request)) is not None
    }
    if len(runs) == 1 and not controls:
        raise UserError(
            f"{first} has no control to compare with: give another run, or --control RUN (a run "
            "with --controls none has it)"
        )
    held = {name: (real_path(run.folder), run.condition) for name, run in controls.items()}
    reference = real_path(runs[first].folder), runs[first].condition
    table = build_table(runs, first, measures, ids=ids, seed=request.seed)
    breakdowns = [
        *(
            breakdown(_short(own) if own.retrieves else own.what_ran, own, name, runs[name], ids)
            for name, own in controls.items()
        ),
        *(
            breakdown(first, runs[first], name, run, ids)
            for name, run in runs.items()
            if name != first and held.get(name) != reference  # else it is above
        ),
    ]
    selective = compared(runs, first, ids, seed=request.seed)
    rules = (
        compared_by_rules(runs, first, ids, request.rules, seed=request.seed)
        if request.rules
        else ()
    )
    return Comparison(table, [b for b in breakdowns if b is not None], selective, rules)


def _check_output(request: CompareRequest) -> None:
    output = request.output
    if output is None:
        return
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: a folder is expected")
    there = [name for name in _FILES if (output / name).exists()]
    if there and not request.overwrite:
        raise UserError(f"{output} already has {there[0]}: --overwrite replaces it")


def open_runs(names: Sequence[str]) -> dict[str, FinishedRun]:
    """Open runs by name: the folder's name, or the whole path where two are alike."""
    opened = [_open(name) for name in names]
    short = [_short(run) for run in opened]
    runs: dict[str, FinishedRun] = {}
    for name, run in zip(short, opened, strict=True):
        if short.count(name) > 1:
            name = str(run.folder) + ("" if run.is_main else f":{run.condition}")
        if name in runs:
            raise UserError(f"the run {name} is named twice")
        runs[name] = run
    return runs


def _open(name: str) -> FinishedRun:
    return FinishedRun(*folder_and_condition(name))


def _short(run: FinishedRun) -> str:
    name = real_path(run.folder).name
    return name if run.is_main else f"{name}:{run.condition}"


def _control(run: FinishedRun, request: CompareRequest) -> FinishedRun | None:
    """Return the run's own control without retrieval, or the one that was named."""
    if request.control is not None:
        return _open(request.control)
    return FinishedRun(run.folder, "none") if run.has_control else None


def breakdown(
    first_name: str,
    first: FinishedRun,
    second_name: str,
    second: FinishedRun,
    ids: Mapping[Id, None],
) -> Breakdown | None:
    """Return on which questions the second run helps; None if answers were not scored."""
    before, after = first.right, second.right
    if before is None or after is None:
        return None
    asked = [q for q in ids if q in before and q in after]
    kinds: dict[str, dict[Id, str | None]] = {
        "all": dict.fromkeys(asked, "all questions"),
        "question type": {q: second.questions[q].kind for q in asked},
        "answer strings": {q: _place(second.questions[q]) for q in asked},
    }
    groups = {}
    for kind, group_of in kinds.items():
        names = sorted({name for name in group_of.values() if name is not None})
        if kind == "answer strings":
            names = [n for n in (READ, RETRIEVED, NOT_RETRIEVED) if n in names]
        if len(names) > (kind != "all"):
            groups[kind] = {
                name: _outcomes(before, after, [q for q in asked if group_of[q] == name])
                for name in names
            }
    return Breakdown(first_name, second_name, groups)


def _outcomes(before: Mapping[Id, bool], after: Mapping[Id, bool], ids: Sequence[Id]) -> Outcomes:
    return Outcomes(
        helped=sum(after[q] and not before[q] for q in ids),
        hurt=sum(before[q] and not after[q] for q in ids),
        both_right=sum(before[q] and after[q] for q in ids),
        both_wrong=sum(not before[q] and not after[q] for q in ids),
    )


def _place(asked: Asked) -> str | None:
    """Return where an answer occurs: read, only retrieved, or not; None if nothing was read."""
    if asked.read is None:
        return None
    if asked.read:
        return READ
    return RETRIEVED if asked.ranks["PRRecall"] else NOT_RETRIEVED


# -- as text ---------------------------------------------------------------------------------------

_HEADER = ("", "questions", "helped", "hurt", "both right", "both wrong")


def _title(found: Breakdown) -> str:
    return f"Right answers: {found.first} \u2192 {found.second}"


def _rows(found: Breakdown) -> list[list[str]]:
    rows = []
    for kind, groups in found.groups.items():
        for name, outcomes in groups.items():
            about = {"all": "", "answer strings": f"{found.second}: "}.get(kind, f"{kind}: ")
            shown = about + name
            rows.append([shown, *_shown(outcomes)])
    return rows


def _shown(outcomes: Outcomes) -> list[str]:
    counts = (outcomes.helped, outcomes.hurt, outcomes.both_right, outcomes.both_wrong)
    shares = (f"{n:,} ({100 * n / outcomes.questions:.1f} %)" for n in counts)
    return [f"{outcomes.questions:,}", *shares]


def against_reference(
    runs: Mapping[str, FinishedRun], reference: str
) -> dict[str, tuple[Sequence[str], list[list[str]]]]:
    """Return a table, by its title, of what each other run helps and hurts, for a report.

    Empty if there is nothing to compare, or answers were not scored.
    """
    rows = []
    for name, run in runs.items():
        if name != reference and reference in runs:
            ids = common_questions({reference: runs[reference], name: run}, intersect=True)
            found = breakdown(reference, runs[reference], name, run, ids)
            if found is not None:
                rows += [[name, *_shown(o)] for o in found.groups["all"].values()]
    return {f"Right answers: {reference} \u2192 each other run": (_HEADER, rows)} if rows else {}


def _printed(found: Breakdown) -> Columns:
    """Return the breakdown for a terminal, shares below counts."""
    table = Columns(_title(found))
    table.names()
    for name in _HEADER[1:]:
        table.numbers(name)
    for name, asked, *counts in _rows(found):
        table.row(name, asked, *(count.replace(" (", "\n(") for count in counts))
    return table


def _write(request: CompareRequest, comparison: Comparison) -> None:
    table, found = comparison.table, comparison.breakdowns
    root = request.output
    assert root is not None
    document: ComparisonTables = {
        "schema_version": TABLE_VERSION,
        "runs": list(request.runs),
        "seed": request.seed,
        "tables": [as_json(table, root)],
        "breakdowns": [
            {
                "first": each.first,
                "second": each.second,
                "groups": {
                    kind: {
                        name: {
                            "helped": o.helped,
                            "hurt": o.hurt,
                            "both_right": o.both_right,
                            "both_wrong": o.both_wrong,
                        }
                        for name, o in groups.items()
                    }
                    for kind, groups in each.groups.items()
                },
            }
            for each in found
        ],
        "selective": selective_json(comparison.selective),
    }
    tables: dict[str, PageTable] = {_title(each): (_HEADER, _rows(each)) for each in found}
    if comparison.selective:
        tables[TITLE] = (HEADER, selective_rows(comparison.selective))
    if comparison.rules:
        document["rules"] = rules_json(comparison.rules)
        tables[RULES_TITLE] = (RULES_HEADER, rules_rows(comparison.rules))
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_tables(root, document, [table])
        write_study_report(
            root,
            "Comparison of runs",
            variants(table),
            facts={"dataset": heading(table)},
            notes=[*table.notes, *verdicts(comparison.rules)],
            tables=tables,
        )
    except OSError as e:
        raise UserError(f"the output folder {root} cannot be written: {e.strerror or e}") from None
