"""`report.html` of a run: one file that opens from the disk and loads nothing.

It is built from the run's folder (see `ravqa.reports.run`). The only model it loads is the
retriever's, to show matches of late interaction. Of very many questions it shows a selection (see
`choose`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text

from ravqa.core.errors import UserError, near_matches
from ravqa.core.factory import Session
from ravqa.core.progress import Progress
from ravqa.core.settings import dump_yaml
from ravqa.core.texts import number_of
from ravqa.reports.figures import metric_name, run_figures
from ravqa.reports.matches import default_matches, matches
from ravqa.reports.page import REPORT, render, safe_json, write_page
from ravqa.reports.questions import BLOCKS, Bounds, Content, QuestionTables
from ravqa.reports.rules import other_rules
from ravqa.reports.run import Run, read_run
from ravqa.reports.selective import selective_figures, selective_tables
from ravqa.reports.summary import facts, notes, provenance, tables, tiles
from ravqa.runs.console import Console
from ravqa.runs.folder import RESULTS, check_output

QUESTIONS = 2_000
"""Default number of questions in a report."""

Id = int | str


@dataclass(frozen=True, slots=True)
class Choice:
    """The questions that a report shows.

    Attributes:
        ids: ids in the order of the run.
        note: which they are, and how many are left out; blank if all are shown.
    """

    ids: Sequence[Id]
    note: str = ""


def choose(run: Run, asked: int | Sequence[str] = QUESTIONS) -> Choice:
    """Choose the questions of a report.

    Args:
        asked: the most questions: those that retrieval helped or hurt come first, the others are a
            random sample by the run's seed. Or the ids of the questions to show.

    Raises:
        UserError: the run has no question with an id.
    """
    ids = list(run.main)
    if not isinstance(asked, int):
        by_name = {str(q): q for q in ids}
        for name in asked:
            if name not in by_name:
                raise UserError(
                    f"--questions: the run has no question {name!r}: {near_matches(name, by_name)}"
                )
        wanted = {by_name[name] for name in asked}
        how = "those that were asked for"
    elif len(ids) <= asked:
        return Choice(ids)
    else:
        seed = run.results["provenance"]["seed"]
        turned = [q for q in ids if run.turned(q)]
        wanted = set(_sample(turned, asked, seed))
        others = _sample([q for q in ids if q not in wanted], asked - len(wanted), seed)
        how = f"a random sample (seed {seed})"
        if wanted:
            part = "" if len(wanted) == len(turned) else f" of {len(turned):,}"
            how = f"{len(wanted):,}{part} that retrieval helped or hurt"
            if others:
                sample = number_of(len(others), "other")
                how += f", and a random sample of {sample}"
            how += f" (seed {seed})"
        wanted.update(others)
    shown = [q for q in ids if q in wanted]
    left_out = len(ids) - len(shown)
    note = (
        f"{len(shown):,} of {number_of(len(ids), 'question')} are shown individually: {how}. "
        f"{number_of(left_out, 'is', 'are')} left out (ravqa report --questions shows others); all "
        "numbers and figures cover all."
    )
    return Choice(shown, note if left_out else "")


def parse_questions(text: str | None) -> int | Sequence[str]:
    """Parse the value of --questions: a number, or ids separated by commas.

    Raises:
        UserError: the text is neither.
    """
    if text is None:
        return QUESTIONS
    if "," in text:
        ids = [part.strip() for part in text.split(",") if part.strip()]
        if ids:
            return ids
    elif text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text):
        return int(text)
    raise UserError(
        f"--questions {text!r}: a number from 1, or ids with commas between them (a single one: "
        "ID,), are expected"
    )


def _sample(ids: Sequence[Id], size: int, seed: int) -> Sequence[Id]:
    return ids if len(ids) <= size else random.Random(seed).sample(ids, size)


def write_report(
    folder: Path,
    *,
    output: Path | None = None,
    overwrite: bool = True,
    data: Path | None = None,
    corpus: Sequence[Path] = (),
    questions: int | Sequence[str] = QUESTIONS,
    match: int | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    bounds: Bounds | None = None,
    trust_settings: bool = False,
    session: Session | None = None,
) -> Path:
    """Write the report of a finished run; return its file.

    Args:
        output: the file; None for `report.html` in the run's folder.
        overwrite: whether to replace an existing file.
        data: where the dataset is now; None for where the run found it.
        corpus: where the passages are now; none for where the run found them.
        questions: questions to show, see `choose`.
        match: number of first questions whose matches are shown, which loads the retriever; None
            for a few if it is a late-interaction retriever, 0 for none.
        progress: called as progress(what, done, total).
        note: called with what is left out, or could not be read again, if anything is.
        bounds: limits of texts and photos.
        trust_settings: read the data and load the models that the run's settings name even if they
            were not given on this machine.
        session: models that are already loaded.

    Raises:
        UserError: the run is not finished; files cannot be read; an unknown question; the output
            cannot be written.
    """
    path = output or folder / REPORT
    check_output(path, overwrite=overwrite, own=REPORT)
    run = read_run(folder, data=data, corpus=corpus, trust_settings=trust_settings)
    choice = choose(run, questions)
    said = [*([choice.note] if choice.note else []), *run.notes]
    if match is None:
        found, missing = default_matches(run, choice.ids, progress, session)
        run = replace(run, notes=[*run.notes, *([missing] if missing else [])])
    else:
        found = matches(run, choice.ids, match, progress, session) if match else {}
    content = QuestionTables(run, bounds or Bounds(), progress, found).content(choice.ids)
    if choice.note:
        content.notes.insert(0, choice.note)
    try:
        write_page(path, _page(run, content))
    except OSError as e:
        raise UserError(f"the report {path} cannot be written: {e.strerror or e}") from None
    if note:
        for text in said:
            note(text)
    return path


def report_runs(
    folder: Path,
    console: Console,
    *,
    match: int | None = None,
    say: bool = True,
    session: Session | None = None,
) -> None:
    """Write the report of a run that has just finished, or of each run below a folder.

    Results are never lost: a failed report is reported, and can be made again.

    Args:
        match: as in `write_report`; with several runs, None means none: each would load its
            retriever again.
        say: whether to print where reports are.
        session: models that are already loaded.
    """
    runs = [folder] if (folder / RESULTS).is_file() else []
    if not runs:
        runs = sorted(path.parent for path in folder.glob(f"*/{RESULTS}"))
        match = match or 0
    for run in runs:
        try:
            path = write_report(
                run,
                match=match,
                progress=console.progress,
                note=console.note if say else None,
                session=session,
            )
        except Exception as e:
            reason = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
            console.note(f"no report: {reason} (ravqa report {run} tries again)")
            continue
        console.close()
        if say:
            console.out.print(Text(f"report: {path}"), soft_wrap=True)


def _frame(run: Run) -> dict[str, Any]:
    """Return everything on the page except the questions."""
    return {
        "title": run.results["dataset"]["label"],
        "description": run.config["pipeline"].get("description", ""),
        "facts": facts(run),
        "notes": notes(run),
        "tiles": tiles(run),
        "tables": [*tables(run), *selective_tables(run)],
        "other_rules": other_rules(run),
        "figures": [*run_figures(run), *selective_figures(run)],
        "config": _yaml(run.config),
        "provenance": provenance(run),
    }


def _yaml(config: Mapping[str, Any]) -> str:
    try:
        return dump_yaml(config)
    except yaml.YAMLError:  # written with plain values only, but a user may have edited the file
        return str(dict(config))


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _page(run: Run, content: Content) -> str:
    answers = run.results["answers"]
    index = {
        "metric": metric_name(run),
        "rule": run.rule,
        "scored": any("s" in row for row in content.index),
        "compared": any("gain" in row for row in content.index),
        # Fractional scores can also change when no answer becomes right or wrong.
        "moved": any(_sign(row.get("gain", 0)) != row.get("turned", 0) for row in content.index),
        "right": answers["right"] if answers else "",
        "retrieved": any("top" in row for row in content.index),
        "sizes": BLOCKS,
        "questions": content.index,
    }
    return render(
        "report.html.jinja",
        scripts=("match.js", "report.js"),
        index=safe_json(index),
        blocks={name: safe_json(items) for name, items in content.blocks()},
        shown=len(content.index),
        total=len(run.main),
        left_out=content.notes,
        **_frame(run),
    )
