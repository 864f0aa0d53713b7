"""`ravqa study`: run every variant of a study like `ravqa run`, sharing common work.

    study.yaml      the study with the command line's changes; can be run again
    runs/RUN/       the run of each variant, as `ravqa run` makes it
    table.csv, table.md, table.tex, table.json
    report.html     the table, with figures, for people
    errors/RUN.txt  traceback of a run that failed through no mistake of the user

Stages that variants share are run once: rankings, rerankers' scores, generations and descriptions
are kept by content (`core.cache`), and within a process models are loaded once (`core.factory`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text

import ravqa
from ravqa.core.errors import UserError
from ravqa.core.factory import Key, Session
from ravqa.core.files import LOCK_FILES, atomic_write
from ravqa.core.settings import dump_yaml, read_yaml
from ravqa.core.terminal import Columns
from ravqa.core.texts import encodable, number_of
from ravqa.evaluation.schema import TABLE_VERSION, StudyTables, parsed
from ravqa.reports.page import REPORT
from ravqa.reports.page import Table as PageTable
from ravqa.reports.study import write_study_report
from ravqa.runs.finished import FinishedRun
from ravqa.runs.folder import RESULTS, OutputFolder, first_difference, plain_settings
from ravqa.runs.lanes import Lane
from ravqa.runs.load import keys_of, read_data
from ravqa.runs.options import RunRequest
from ravqa.runs.stages import READING, STAGES, marked
from ravqa.studies.compare import against_reference
from ravqa.studies.formats import TABLE, as_json, heading, printed, write_tables
from ravqa.studies.options import StudyRequest
from ravqa.studies.plan import Plan, PlannedRun, load_plan
from ravqa.studies.pool import run_in_turn
from ravqa.studies.quiet import BesideConsole, StudyConsole, run_quietly
from ravqa.studies.tables import Table, build_table, variants
from ravqa.studies.workers import Failure, Task, attempt, run_in_processes

NEW, BEGUN, FINISHED = "new", "begun", "finished"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a study: its folder, and why runs failed, by name."""

    folder: Path
    failures: Mapping[str, str]


def study(request: StudyRequest, console: StudyConsole) -> Outcome:
    """Run, compare, print, write.

    Raises:
        UserError: any mistake in the options or data; found before anything runs.
    """
    started = time.monotonic()
    if request.jobs < 1:
        raise UserError(f"--jobs {request.jobs}: at least one process is needed")
    if request.resume and request.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    plan = load_plan(request)
    folder = StudyFolder(_output(request, plan), plan, request)
    session = Session()
    with ExitStack() as stack:
        keys = _stage_keys(plan, console, session)
        if request.dry_run:
            console.close()
            console.out.print(_dry(plan, folder, keys))
            return Outcome(folder.path, {})
        stack.enter_context(folder.held())
        folder.begin()
        left = _in_order([run for run in plan.runs if folder.state(run) != FINISHED])
        if len(left) < len(plan.runs):
            console.say(f"{len(plan.runs) - len(left)} of {len(plan.runs)} runs are finished")
        console.say(f"results are written to {folder.path}")
        if request.jobs == 1:
            failures = _in_turn(left, folder, session, console)
        else:
            session.only()  # each process reads its own
            for line in _told_apart(left, request.jobs):
                console.note(line)
            failures = _at_once(left, folder, keys, request.jobs, console)
        for run in plan.runs:
            path = folder.of(run)
            if (path / "results.json").is_file() and not (path / REPORT).is_file():
                console.note(
                    f"no report of {run.name}: ravqa report {path} makes one, or says why not"
                )
        tables, breakdowns = _tables(plan, folder.path, failures)
        _write(plan, folder, tables, breakdowns, round(time.monotonic() - started, 2))
        console.close()
        for table in tables:
            console.out.print(printed(table))
        console.out.print(Text(f"study folder: {folder.path}"), soft_wrap=True)
        return Outcome(folder.path, {run.name: f.reason for run, f in failures.items()})


def _output(request: StudyRequest, plan: Plan) -> Path:
    if request.output is not None:
        return request.output
    if request.resume:
        raise UserError("--resume needs --output: the folder of the study to resume")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"study-{plan.title}-{stamp}"


class StudyFolder(OutputFolder):
    """A study's folder, and what became of each of its runs."""

    what = "study"
    marker = "study.yaml"

    def __init__(self, path: Path, plan: Plan, request: StudyRequest):
        """Check the folder without writing to it.

        Raises:
            UserError: as `OutputFolder`; a study with other data; a run to resume had other
                settings.
        """
        self._plan = plan
        self._states: dict[PlannedRun, str] = {}
        super().__init__(
            path, resume=request.resume, overwrite=request.overwrite, dry_run=request.dry_run
        )

    def is_leftover(self, entry: Path) -> bool:
        """Return whether a killed write of study.yaml left an entry, such as an empty `runs`."""
        if entry.name == "runs":
            return not any(entry.iterdir())
        return entry.name in LOCK_FILES or entry.name.startswith(".study.yaml.")

    def look(self) -> None:
        """Check the folder and every run in it."""
        super().look()
        if self.exists and not self.overwrite:
            self._check()
        for run in self._plan.runs:
            self._states[run] = NEW if self.overwrite else self._look(run)

    def begin(self) -> None:
        """Create the folder and write `study.yaml`.

        Raises:
            UserError: it cannot be written.
        """
        text = dump_yaml(self._plan.config.model_dump(mode="json"))
        with self.writing():
            (self.path / "runs").mkdir(parents=True, exist_ok=True)
            atomic_write(self.path / self.marker, text)

    def state(self, run: PlannedRun) -> str:
        """Return NEW, BEGUN or FINISHED, as found when the folder was checked."""
        return self._states[run]

    def of(self, run: PlannedRun) -> Path:
        """Return the run's folder."""
        return _run_folder(self.path, run)

    def request(self, run: PlannedRun) -> RunRequest:
        """Return the request for `ravqa.runs.run.run`."""
        return replace(
            run.request,
            output=self.of(run),
            resume=self._states[run] == BEGUN,
            # A new run may find a leftover run without any answers.
            overwrite=self.overwrite or self._states[run] == NEW,
        )

    def note(self, run: PlannedRun, failure: Failure | None) -> None:
        """Store a failed run's traceback; remove an old one."""
        path = self.path / "errors" / f"{run.folder}.txt"
        if failure is None or failure.details is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, encodable(failure.details))

    def _check(self) -> None:
        """Check that data, controls and seed are unchanged; variants may come and go."""
        before = read_yaml(self.path / "study.yaml")
        now = yaml.safe_load(dump_yaml(self._plan.config.model_dump(mode="json")))
        for key in ("datasets", "controls", "retrieval_only", "seed"):
            if before.get(key) != now[key]:
                path = first_difference(before.get(key), now[key], key)
                raise UserError(
                    f"the study in {self.path} had other settings ({path}): it cannot be resumed "
                    "with these"
                )

    def _look(self, run: PlannedRun) -> str:
        folder = self.of(run)
        if not (folder / "config.yaml").is_file():
            return NEW
        before = plain_settings(read_yaml(folder / "config.yaml").get("pipeline") or {})
        now = plain_settings(yaml.safe_load(dump_yaml(run.pipeline.settings)))
        if before != now and not any(p.stat().st_size for p in folder.glob("samples*.jsonl")):
            return NEW  # nothing is lost: it failed at the start
        if before != now:
            path = first_difference(before, now, "pipeline")
            raise UserError(
                f"the run of {run.name} in {folder} had other settings ({path}): give the variant "
                "another name, or choose another --output"
            )
        return FINISHED if (folder / "results.json").is_file() else BEGUN


# -- before anything runs --------------------------------------------------------------------------


def _stage_keys(
    plan: Plan, console: StudyConsole, session: Session
) -> dict[PlannedRun, dict[str, str]]:
    """Return the hashes of each run's stages; reading the data for them reveals its errors."""
    keys = {}
    # Runs that need images come first: the others reuse what is read for them.
    for run in sorted(plan.runs, key=lambda run: run.pipeline.config.describer is None):
        config = run.pipeline.config
        try:
            data = read_data(run.request, config, session, console)
        except UserError as e:
            raise UserError(f"{plan.title}: {run.dataset}: {e}") from None
        keys[run] = keys_of(run.request, config, data)
    return keys


def _dry(plan: Plan, folder: StudyFolder, keys: Mapping[PlannedRun, Mapping[str, str]]) -> Columns:
    """Return a table of what would run, stage by stage."""
    table = Columns(
        f"{plan.title}: {number_of(len(plan.variants), 'variant')}, "
        f"{number_of(len(plan.runs), 'run')}",
        [
            "cached: as far as can be told from settings. shared: an earlier run of the study "
            "computes it. in part: an earlier or cached run has the same reader, prompt and "
            "passages: only new prompts are answered."
        ],
    )
    several = len(plan.datasets) > 1
    for header in (*(["dataset"] if several else []), "variant"):
        table.names(header)
    for header in STAGES:
        table.numbers(header)
    earlier: dict[str, str] = {}
    for run in _in_order(plan.runs):
        name = run.variant + (" (reference)" if run.variant == plan.reference else "")
        if folder.state(run) == FINISHED:
            cells = ["finished", *[""] * (len(STAGES) - 1)]
        else:
            cached = marked(keys[run])
            cells = [_cell(keys[run], stage, cached, earlier) for stage in STAGES]
        earlier |= dict.fromkeys(keys[run].values(), run.variant)
        table.row(*([run.dataset] if several else []), name, *cells)
    return table


def _cell(keys: Mapping[str, str], stage: str, cached: set[str], earlier: Mapping[str, str]) -> str:
    if stage not in keys:
        return "-"
    if stage in cached:
        return "cached"
    if keys[stage] in earlier:
        return "shared"
    overlaps = READING in cached or keys.get(READING) in earlier
    return "in part" if stage == "answer" and overlaps else "run"


def _in_order(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Group runs with the same reader, so that few models are in memory at a time."""
    first: dict[str, int] = {}
    for i, run in enumerate(runs):
        first.setdefault(run.reader, i)
    return sorted(runs, key=lambda run: first[run.reader])


# -- running ---------------------------------------------------------------------------------------


def _needed(runs: Sequence[PlannedRun]) -> frozenset[Key]:
    return frozenset().union(*(run.parts for run in runs))


def _in_turn(
    runs: Sequence[PlannedRun], folder: StudyFolder, session: Session, console: StudyConsole
) -> dict[PlannedRun, Failure]:
    """Run in this process; those that ask servers side by side."""
    failures: dict[PlannedRun, Failure] = {}

    def work(number: int, first: int, lane: Lane | None) -> Failure | None:
        run = runs[number]
        shown = console if lane is None else BesideConsole(console, run.name)
        console.tell(f"run {number + 1} of {len(runs)}: {run.name}")
        session.keep(_needed(runs[first:]))
        return attempt(folder.request(run), lambda asked: run_quietly(asked, shown, session, lane))

    def finished(number: int, failure: Failure | None) -> None:
        run = runs[number]
        folder.note(run, failure)
        if failure is not None:
            failures[run] = failure
            console.tell(f"failed: {run.name}: {failure.reason}")

    run_in_turn(runs, work, finished)
    return {run: failures[run] for run in runs if run in failures}


def _told_apart(runs: Sequence[PlannedRun], jobs: int) -> Iterator[str]:
    """Yield a line for each server that several processes ask: each has its own limit."""
    for server in sorted(frozenset().union(*(run.servers for run in runs))):
        asking = min(jobs, sum(server in run.servers for run in runs))
        if asking > 1:
            yield (
                f"{asking} processes ask {server}, each with up to `workers` requests at a time: "
                "without --jobs, variants are asked side by side within one limit"
            )


def _at_once(
    runs: Sequence[PlannedRun],
    folder: StudyFolder,
    keys: Mapping[PlannedRun, Mapping[str, str]],
    jobs: int,
    console: StudyConsole,
) -> dict[PlannedRun, Failure]:
    failures = {}
    ended = 0
    done: set[str] = set()
    tasks = []
    for number, run in enumerate(runs):
        known = marked(keys[run])
        done |= {keys[run][stage] for stage in known}
        tasks.append(
            Task(
                name=run.name,
                request=folder.request(run),
                stages=frozenset(v for k, v in keys[run].items() if k not in {READING, "answer"}),
                reading=keys[run].get(READING, run.folder),
                affinity=run.reader,
                keep=_needed(runs[number:]),
            )
        )

    def started(number: int) -> None:
        console.say(f"run {number + 1} of {len(runs)}: {runs[number].name}")

    def finished(number: int, failure: Failure | None) -> None:
        nonlocal ended
        ended += 1
        folder.note(runs[number], failure)
        if failure is not None:
            failures[runs[number]] = failure
            console.say(f"failed: {runs[number].name}: {failure.reason}")
        console.progress("runs", ended, len(runs))

    console.progress("runs", 0, len(runs))
    run_in_processes(tasks, jobs, frozenset(done), started, finished)
    return failures


# -- afterwards ------------------------------------------------------------------------------------


def rebuild_report(folder: Path) -> Path:
    """Write the report of a study again, from its runs; return its path.

    Raises:
        UserError: its `study.yaml` is not valid; none of its runs is finished; the report cannot be
            written.
        DataError: a file of a run is broken.
    """
    plan = load_plan(StudyRequest(str(folder / StudyFolder.marker)))
    if (folder / TABLE).is_file():  # a study.yaml does not say what its study is called
        title = parsed(dict[str, Any], (folder / TABLE).read_bytes(), str(folder / TABLE))["study"]
        plan = replace(plan, title=str(title))
    failures = {
        run: Failure("not finished")
        for run in plan.runs
        if not (_run_folder(folder, run) / RESULTS).is_file()
    }
    if len(failures) == len(plan.runs):
        raise UserError(f"no run of the study in {folder} is finished: --resume resumes it")
    try:
        return _write_report(plan, folder, *_tables(plan, folder, failures))
    except OSError as e:
        raise UserError(f"the report in {folder} cannot be written: {e.strerror or e}") from None


def _run_folder(root: Path, run: PlannedRun) -> Path:
    return root / "runs" / run.folder


def _tables(
    plan: Plan, root: Path, failures: Mapping[PlannedRun, Failure]
) -> tuple[list[Table], dict[str, PageTable]]:
    """Return each dataset's table; and for the report, by title, what variants help and hurt."""
    tables = []
    breakdowns: dict[str, PageTable] = {}
    for label in plan.datasets:
        runs = [run for run in plan.runs if run.dataset == label]
        ended = {r.variant: FinishedRun(_run_folder(root, r)) for r in runs if r not in failures}
        first = next(iter(ended.values()), None)
        split = f", split {first.split}" if first else ""
        tables.append(
            build_table(
                ended,
                plan.reference,
                plan.measures,
                errors={r.variant: failures[r].reason for r in runs if r in failures},
                order=list(plan.variants),
                seed=plan.config.seed,
                title=f"{first.label if first and label in _names(plan) else label}{split}",
            )
        )
        where = f"{tables[-1].title}: " if len(plan.datasets) > 1 else ""
        for title, found in against_reference(ended, plan.reference).items():
            breakdowns[where + title] = found
    return tables, breakdowns


def _names(plan: Plan) -> set[str]:
    """Return names of datasets without a label in the study."""
    return {dataset.name for dataset in plan.config.datasets if dataset.label is None}


def _write(
    plan: Plan,
    folder: StudyFolder,
    tables: Sequence[Table],
    breakdowns: Mapping[str, PageTable],
    seconds: float,
) -> None:
    root = folder.path
    document: StudyTables = {
        "schema_version": TABLE_VERSION,
        "ravqa": ravqa.__version__,
        "study": plan.title,
        "description": plan.config.description,
        "reference": plan.reference,
        "seconds": seconds,
        "tables": [as_json(table, root, plan.variants) for table in tables],
    }
    write_tables(root, document, tables, plan.variants)
    _write_report(plan, root, tables, breakdowns)


def _write_report(
    plan: Plan, root: Path, tables: Sequence[Table], breakdowns: Mapping[str, PageTable]
) -> Path:
    rows = [
        replace(row, dataset=table.title) if len(tables) > 1 else row
        for table in tables
        for row in variants(table)
    ]
    notes = dict.fromkeys(note for table in tables for note in table.notes)
    return write_study_report(
        root,
        plan.title,
        rows,
        facts={"datasets": "; ".join(heading(table) for table in tables)},
        notes=[*([plan.config.description] if plan.config.description else []), *notes],
        tables=breakdowns,
    )
