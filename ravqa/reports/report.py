"""`report.html` of a run: one file that opens from the disk and loads nothing.

It is made of the run's folder (see `ravqa.reports.run`); a model is loaded only to show what
matched in late interaction, the retriever's. Very many questions are shared out over several files,
linked to each other; each is whole in itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text

from ravqa.core.errors import UserError
from ravqa.core.factory import Session
from ravqa.core.settings import dump_yaml
from ravqa.reports.figures import metric_name, run_figures
from ravqa.reports.matches import default_matches, matches
from ravqa.reports.page import REPORT, render, safe_json, write_page
from ravqa.reports.questions import BLOCKS, Bounds, Content, Progress, QuestionTables
from ravqa.reports.run import Run, read_run
from ravqa.reports.summary import facts, notes, provenance, tables, tiles
from ravqa.runs.console import Console

RESULTS = "results.json"


def write_report(
    folder: Path,
    *,
    output: Path | None = None,
    overwrite: bool = True,
    data: Path | None = None,
    corpus: Sequence[Path] = (),
    match: int | None = None,
    progress: Progress | None = None,
    bounds: Bounds | None = None,
    trust_settings: bool = False,
    session: Session | None = None,
) -> list[Path]:
    """Write the report of a finished run.

    Args:
        output: the file; None for `report.html` in the run's folder.
        overwrite: replace the file if it is there.
        data: where the dataset is now; None for where the run found it.
        corpus: where the passages are now; none for where the run found them.
        match: of so many questions, the first ones, show what matched, which loads the retriever;
            None for a few if it is a late-interaction retriever, 0 for none.
        progress: called as progress(what, done, total).
        bounds: of one file.
        trust_settings: read the data and load the models that the run's settings name, also if
            they were not given on this machine.
        session: models that are loaded already.

    Returns:
        The files that were written, the one to open first.

    Raises:
        UserError: no finished run, files that cannot be read, a place that cannot be written.
    """
    first = output or folder / REPORT
    _check(first, overwrite)
    run = read_run(folder, data=data, corpus=corpus, trust_settings=trust_settings)
    bounds = bounds or Bounds()
    if match is None:
        found, missing = default_matches(run, progress, session)
        run = replace(run, notes=[*run.notes, *([missing] if missing else [])])
    else:
        found = matches(run, match, progress, session) if match else {}
    maker = QuestionTables(run, bounds, progress, found)
    frame = _frame(run)
    names = list(run.main)
    written: list[Path] = []
    start = 0
    while start < len(names) or not written:
        part = names[start : start + bounds.questions]
        path = _path(first, len(written))
        _check(path, overwrite)
        while True:
            content = maker.content(part)
            links = _links(first, len(written), start + len(part) < len(names))
            page = _page(run, frame, content, links, start, len(names))
            if len(page.encode("utf-8", "replace")) <= bounds.page or len(part) < 2:
                break
            part = part[: len(part) // 2]
        try:
            write_page(path, page)
        except OSError as e:
            raise UserError(f"the report {path} cannot be written: {e.strerror or e}") from None
        written.append(path)
        start += len(part)
    if output is None:
        _remove_others(first, written)
    return written


def _check(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"the output file {path} exists: --overwrite replaces it")


def report_runs(
    folder: Path,
    console: Console,
    *,
    match: int | None = None,
    say: bool = True,
    session: Session | None = None,
) -> None:
    """Write the report of a run that has just finished, or of each run below a folder.

    Results are not lost whatever happens: a report that fails is told, and can be made again.

    Args:
        match: as in `write_report`; where there are several runs, None is none: each would load
            its retriever once more.
        say: print where reports are.
        session: models that are loaded already.
    """
    runs = [folder] if (folder / RESULTS).is_file() else []
    if not runs:
        runs = sorted(path.parent for path in folder.glob(f"*/{RESULTS}"))
        match = match or 0
    for run in runs:
        try:
            first = write_report(run, match=match, progress=console.progress, session=session)[0]
        except Exception as e:
            reason = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
            console.note(f"no report: {reason} (ravqa report {run} tries again)")
            continue
        console.close()
        if say:
            console.out.print(Text(f"report: {first}"), soft_wrap=True)


def _path(first: Path, number: int) -> Path:
    """The file of a part: "report.html", "report-2.html", ..."""
    return first.with_name(f"{first.stem}-{number + 1}{first.suffix}") if number else first


def _links(first: Path, number: int, more: bool) -> dict[str, str]:
    """Names of the files before and after a part."""
    found = {}
    if number:
        found = {"first": first.name, "previous": _path(first, number - 1).name}
    if more:
        found["next"] = _path(first, number + 1).name
    return found


def _remove_others(first: Path, written: Sequence[Path]) -> None:
    """Remove parts of an earlier, longer report of the run: they would be found, and be wrong."""
    pattern = re.compile(rf"{re.escape(first.stem)}-\d+{re.escape(first.suffix)}")
    for path in first.parent.iterdir():
        if pattern.fullmatch(path.name) and path not in written:
            path.unlink()


def _frame(run: Run) -> dict[str, Any]:
    """Everything of the page but the questions."""
    label = str(run.results["dataset"].get("label") or run.results["dataset"].get("name"))
    return {
        "title": label,
        "description": _description(run),
        "facts": facts(run),
        "notes": notes(run),
        "tiles": tiles(run),
        "tables": tables(run),
        "figures": run_figures(run),
        "config": _yaml(run.config),
        "provenance": provenance(run),
    }


def _description(run: Run) -> str:
    """The pipeline's own words; where settings were changed, they are about the base pipeline."""
    words = str(run.pipeline.get("description") or "")
    changed = (run.results.get("provenance") or {}).get("overrides")
    if not (words and changed):
        return words
    return f"Base pipeline, here changed as listed below: {words}"


def _yaml(config: Mapping[str, Any]) -> str:
    try:
        return dump_yaml(config)
    except yaml.YAMLError:  # made of plain values only, but a user may have edited the file
        return str(dict(config))


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _page(
    run: Run,
    frame: Mapping[str, Any],
    content: Content,
    links: Mapping[str, str],
    start: int,
    total: int,
) -> str:
    index = {
        "metric": metric_name(run),
        "rule": run.rule,
        "scored": any("s" in row for row in content.index),
        "compared": any("gain" in row for row in content.index),
        # Scores that give parts of a point also move where no answer becomes right or wrong.
        "moved": any(_sign(row.get("gain", 0)) != row.get("turned", 0) for row in content.index),
        "right": (run.results.get("answers") or {}).get("right") or "",
        "retrieved": any("top" in row for row in content.index),
        "sizes": BLOCKS,
        "questions": content.index,
    }
    blocks = {name: safe_json(items) for name, items in content.blocks()}
    return render(
        "report.html.jinja",
        script="report.js",
        index=safe_json(index),
        blocks=blocks,
        links=links,
        start=start,
        shown=len(content.index),
        total=total,
        left_out=content.notes,
        whole=not start,
        **frame,
    )
