"""Formats of a table of runs: terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from tabulate import DataRow, Line, TableFormat, tabulate

from ravqa.core.files import atomic_write
from ravqa.core.locations import real_path
from ravqa.core.terminal import Columns
from ravqa.core.texts import encodable, number_of
from ravqa.evaluation.schema import RunsTable, TableCell
from ravqa.reports.study import SAME, Difference
from ravqa.runs.finished import COST, COSTS, SECONDS
from ravqa.studies.tables import CACHED, Cell, Table

TABLE = "table.json"
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
}
# tabulate's own formats for LaTeX escape fewer marks.
_ROW = DataRow("", " & ", r" \\")
_BOOKTABS = TableFormat(None, Line(r"\midrule", "", "", ""), None, None, _ROW, _ROW, 0, None)


def _value(key: str, cell: Cell) -> str:
    text = cell.estimate.text(_decimals(key, cell))
    return f"{text} {CACHED}" if cell.cached else text


def _decimals(key: str, cell: Cell) -> int:
    if key == COST:
        return 6 if cell.estimate.value < 0.01 else 4
    if key != SECONDS:
        return 1
    return 3 if cell.estimate.value < 1 else 2


def _change(difference: Difference) -> str:
    interval = difference.estimate.text().partition(" ")[2]
    return f"{difference.estimate.value:+.1f} {interval}".strip()


def _p(difference: Difference) -> str:
    p = difference.p_value if difference.p_corrected is None else difference.p_corrected
    if p is None:
        return ""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def printed(table: Table) -> RenderableType:
    """Return the table for a terminal: the runs below each other, for one measure after another.

    So that a row has room for an estimate, its difference to the reference, both intervals and p.
    """
    parts: list[RenderableType] = [Text(""), Text(heading(table), style="bold")]
    parts += [_printed(table, key) for key in table.titles]
    parts += [
        Text(f"{row.name} failed: {row.error}", style="red")
        for row in table.rows
        if row.error is not None
    ]
    found = (cell.difference for row in table.rows for cell in row.cells.values())
    same = [f"same: {SAME}."] if any(d.same for d in found if d is not None) else []
    return Group(*parts, *(Text(note, style="dim") for note in (*same, *table.notes)))


def _printed(table: Table, key: str) -> Columns:
    """Return the column of a measure as a table of its own."""
    found = {row.name: row.cells[key] for row in table.rows if key in row.cells}
    compared = any(cell.difference for cell in found.values())
    shown = Columns()
    shown.names()
    shown.numbers(table.titles[key], width=14)
    shown.numbers("95 % interval", width=13)
    if compared:
        shown.numbers("difference")
        shown.numbers("95 % interval", width=13)
        shown.numbers("p")
    for row in table.rows:
        if row.error is not None:
            continue
        name = Text(row.name, style="bold" if row.reference else "")
        name.append(" (reference)" if row.reference else "", style="dim")
        cell = found.get(row.name)
        texts = ["-", ""]
        if cell is not None:
            estimate, decimals = cell.estimate, _decimals(key, cell)
            mark = f" {CACHED}" if cell.cached else ""
            texts = [f"{estimate.value:.{decimals}f}{mark}", estimate.range(decimals)]
        if compared and cell is not None and cell.difference is not None:
            change = cell.difference
            difference = [f"{change.estimate.value:+.1f}", change.estimate.range(), _p(change)]
            texts += ["same", "", ""] if change.same else difference
        elif compared:
            texts += [""] * 3
        shown.row(name, *texts)
    return shown


def _rows(table: Table) -> list[list[str]]:
    """Return the table as text for Markdown and LaTeX, the header first.

    Difference and p have their own columns.
    """
    compared = [
        key
        for key in table.titles
        if any(row.cells[key].difference for row in table.rows if key in row.cells)
    ]
    header = [""]
    for key, title in table.titles.items():
        header.append(title)
        if key in compared:
            header += ["difference", "p"]
    rows = [header]
    for row in table.rows:
        name = row.name + (" (reference)" if row.reference else "")
        line = [name if row.error is None else f"{name}: failed, {row.error}"]
        for key in table.titles:
            cell = row.cells.get(key)
            line.append(_value(key, cell) if cell else "-")
            if key in compared:
                change = cell.difference if cell else None
                line += [_change(change), _p(change)] if change else ["", ""]
        rows.append(line)
    return rows


def as_markdown(tables: Sequence[Table]) -> str:
    """Return a heading and a table per dataset, as Markdown."""
    parts = []
    for table in tables:
        header, *rows = _rows(table)
        # Numbers need no escaping.
        cells = [list(map(_markdown, header)), *([_markdown(row[0]), *row[1:]] for row in rows)]
        parts += [f"### {_markdown(heading(table))}\n", _aligned(cells, "pipe"), ""]
        parts += [f"{_markdown(note)}\n" for note in table.notes]
    return "\n".join(parts).rstrip("\n") + "\n"


def heading(table: Table) -> str:
    """Return the title of a table."""
    return (
        f"{table.title}: {number_of(table.questions, 'question')}, "
        f"{number_of(table.images, 'image')}"
    )


def _markdown(text: str) -> str:
    # HTML in a name would be interpreted.
    escaped = re.sub(r"([\\`*_{}\[\]<>|~$#])", r"\\\1", text).replace("&", "&amp;")
    return " ".join(escaped.split())


def as_latex(tables: Sequence[Table]) -> str:
    """Return a LaTeX table environment per dataset, for the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        rows = [list(map(_latex, row)) for row in _rows(table)]
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(heading(table))}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
            r"\toprule",
            _aligned(rows, _BOOKTABS),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par {_latex(note)}" for note in table.notes),
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def _latex(text: str) -> str:
    escaped = " ".join("".join(_LATEX.get(mark, mark) for mark in text).split())
    # A row that begins with "[" would be read as an argument of the \\ before it.
    return ("{}" if escaped.startswith("[") else "") + escaped


def _aligned(rows: Sequence[Sequence[str]], form: str | TableFormat) -> str:
    """Return rows below a header; the first column is aligned left, the others right."""
    right = ["right"] * (len(rows[0]) - 1)
    text: str = tabulate(
        rows, headers="firstrow", tablefmt=form, colalign=("left", *right), disable_numparse=True
    )
    return text


Levels = Mapping[str, Mapping[str, str]]
"""Level of every axis of a study, by the run's name."""


def as_csv(tables: Sequence[Table], levels: Levels | None = None) -> str:
    """Return one CSV line per run, one number per column; all tables share a header."""
    keys = list(dict.fromkeys(key for table in tables for key in table.titles))
    axes = dict.fromkeys(axis for found in (levels or {}).values() for axis in found)
    header = ["dataset", "run", "reference", "error", *(f"axis {axis}" for axis in axes)]
    for key in keys:
        header += [key, f"{key} low", f"{key} high", f"{key} questions"]
        if key == SECONDS:
            header.append(f"{key} cached")
        elif key not in COSTS:
            header += [f"{key} {x}" for x in ("difference", "difference low", "difference high")]
            header += [f"{key} p", f"{key} p Holm"]
    out = io.StringIO()
    writer = csv.DictWriter(out, header, restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            line: dict[str, Any] = {
                "dataset": table.title,
                "run": row.name,
                "reference": int(row.reference),
                "error": row.error or "",
            }
            own = (levels or {}).get(row.name, {})
            line |= {f"axis {axis}": label for axis, label in own.items()}
            for key, cell in row.cells.items():
                line |= _columns(key, cell)
            writer.writerow(line)
    return out.getvalue()


def _columns(key: str, cell: Cell) -> dict[str, Any]:
    value = cell.estimate
    columns: dict[str, Any] = {
        key: _rounded(value.value, key),
        f"{key} low": _rounded(value.low, key),
        f"{key} high": _rounded(value.high, key),
        f"{key} questions": cell.questions,
    }
    if key == SECONDS:
        columns[f"{key} cached"] = cell.cached
    if cell.difference is not None:
        change = cell.difference.estimate
        columns |= {
            f"{key} difference": _rounded(change.value),
            f"{key} difference low": _rounded(change.low),
            f"{key} difference high": _rounded(change.high),
            f"{key} p": cell.difference.p_value,
            f"{key} p Holm": cell.difference.p_corrected,
        }
    return columns


def _rounded(value: float | None, key: str = "") -> float | None:
    return None if value is None else round(value, 9 if key == COST else 4)


def as_json(table: Table, root: Path, levels: Levels | None = None) -> RunsTable:
    """Return plain values for JSON; folders of runs are relative to `root`."""
    return {
        "title": table.title,
        "questions": table.questions,
        "images": table.images,
        "measures": dict(table.titles),
        "rows": [
            {
                "run": row.name,
                "reference": row.reference,
                "levels": dict((levels or {}).get(row.name, {})),
                "folder": None if row.run is None else _relative(row.run, root),
                "error": row.error,
                "measures": {key: _plain(key, cell) for key, cell in row.cells.items()},
            }
            for row in table.rows
        ],
        "notes": list(table.notes),
    }


def write_tables(
    root: Path,
    document: Mapping[str, Any],
    tables: Sequence[Table],
    levels: Levels | None = None,
) -> None:
    """Write table.json with the document, and the tables in the other formats.

    Lone surrogates, as in names of folders that are not UTF-8, become "?".

    Raises:
        OSError: a file cannot be written.
    """
    texts = {
        TABLE: json.dumps(document, ensure_ascii=False, indent=1) + "\n",
        "table.csv": as_csv(tables, levels),
        "table.md": as_markdown(tables),
        "table.tex": as_latex(tables),
    }
    for name, text in texts.items():
        atomic_write(root / name, encodable(text))


def _plain(key: str, cell: Cell) -> TableCell:
    found = cell.estimate
    value, low, high = (_rounded(x, key) for x in (found.value, found.low, found.high))
    plain: TableCell = {
        "value": found.value if value is None else value,
        "interval_95": [low, high],
        "questions": cell.questions,
    }
    if cell.cached:
        plain["cached"] = cell.cached
    if cell.difference is not None:
        change = cell.difference
        plain["difference"] = {
            "value": round(change.estimate.value, 4),
            "interval_95": [_rounded(change.estimate.low), _rounded(change.estimate.high)],
            "p_value": change.p_value,
            "p_holm": change.p_corrected,
            "questions": cell.compared,
        }
    return plain


def _relative(path: Path, root: Path) -> str:
    try:
        return real_path(path).relative_to(real_path(root)).as_posix()
    except ValueError:
        return str(path)
