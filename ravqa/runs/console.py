"""Console output of a run: progress and notes on stderr, tables of results on stdout."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ravqa.core.progress import ProgressLines
from ravqa.core.records import READ
from ravqa.core.terminal import Columns, Terminal
from ravqa.core.texts import number_of
from ravqa.evaluation.sections import RECALLS
from ravqa.metrics.statistics.intervals import Estimate, why_none
from ravqa.runs.folder import MAIN
from ravqa.runs.selective_tables import has_refusals, outcome_table

if TYPE_CHECKING:
    from ravqa.core.settings import PipelineConfig
    from ravqa.corpora.corpus import Corpus
    from ravqa.datasets.base import Dataset
    from ravqa.evaluation.schema import (
        AnswerSection,
        CostRecord,
        CostSection,
        Means,
        RetrievalSection,
        Reused,
        RunResults,
        ScoreResults,
        SelectiveSection,
        StageScores,
    )

CONDITIONS = (MAIN, "none", "oracle", "random", "wrong-image")
"""The run itself and its controls, in the order in which they are shown."""
_NAMES = {
    "none": "without retrieval",
    "oracle": "oracle passages",
    "random": "random passages",
    "wrong-image": "image of another question",
}
_SHORT_NAMES = {"wrong-image": "wrong image"}
_SHORT = {"recall_at_k": "R", "pseudo_recall_at_k": "PR", "article_recall_at_k": "AR"}
_MAX_GROUPS = 20  # rows of question types; results.json has all
_PLAIN_WIDTH = 130  # of tables in files and pipes, unless COLUMNS says otherwise


def condition_name(condition: str, retriever: str) -> str:
    """Return the name of the run itself, by what ran, or of one of its controls.

    Args:
        retriever: the name of the run's retriever.
    """
    run = _NAMES.get(retriever, "with retrieval")
    if condition == MAIN:
        return run
    name = _NAMES.get(condition, condition)
    return f"{name} (control)" if name == run else name


def short_name(condition: str, retriever: str) -> str:
    """Return `condition_name` in a word or two, for tables: "retrieval", "none", "wrong image"."""
    run = retriever if retriever in _NAMES else "retrieval"
    if condition == MAIN:
        return run
    name = _SHORT_NAMES.get(condition, condition)
    return f"{name} (control)" if name == run else name


def retrieves(condition: str, retriever: str) -> bool:
    """Return whether there are passages in the run itself, or in one of its controls.

    Args:
        retriever: the name of the run's retriever.
    """
    return (retriever if condition == MAIN else condition) != "none"


class Console:
    """Prints for people: progress bars on a terminal, elsewhere `ProgressLines`."""

    def __init__(self, out: RichConsole | None = None, err: RichConsole | None = None):
        self.out = out or _rich(stderr=False)
        self.err = err or _rich(stderr=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._lines = ProgressLines(lambda line: self.err.print(Text(line), soft_wrap=True))

    def note(self, text: str) -> None:
        """Print a note for the user."""
        self.err.print(Text(f"note: {text}", style="yellow"), soft_wrap=True)

    @contextmanager
    def status(self, what: str) -> Iterator[None]:
        """Show what is being done while the block runs."""
        if self.err.is_terminal:
            with self.err.status(Text(what)):
                yield
        else:
            with self._lines.during(what):
                yield

    def progress(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a stage are finished."""
        if not self.err.is_terminal:
            self._lines(what, done, total)
            return
        self.bar(what, done, total)

    def bar(self, what: str, done: int, total: int | None) -> None:
        """Show a progress bar; it only moves to and fro if the total is not known."""
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.err,
            )
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)

    def close(self) -> None:
        """Remove the progress bars, and forget unfinished stages."""
        self._lines.close()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def heading(
        self,
        dataset: Dataset,
        config: PipelineConfig,
        corpus: Corpus | None,
        folder: Path,
    ) -> None:
        """Print dataset, passages, pipeline and output folder before a run begins."""
        passages = number_of(len(corpus), "passage") if corpus else "no passages"
        self.err.print(
            Text(
                f"{dataset.label}, split {dataset.split}: "
                f"{number_of(len(dataset.questions), 'question')}, {passages}"
            ),
            soft_wrap=True,
        )
        if config.description:
            self.err.print(Text(f"pipeline: {config.description}"), soft_wrap=True)
        self.err.print(Text(f"run directory: {folder}"), soft_wrap=True)

    def answered(self, results: RunResults) -> None:
        """Print the tables of a run whose controls have not been run yet."""
        self.tables(results, explained=False)
        self.note("these are the results of the run itself; its controls follow")

    def results(self, results: RunResults, folder: Path) -> None:
        """Print the tables of a finished run, what failed, and its folder."""
        self.close()
        self.tables(results)
        skipped = results["dataset"]["skipped"]
        if skipped:
            what = number_of(len(skipped), "question was", "questions were")
            self.out.print(Text(f"{what} skipped (listed in results.json)"), style="yellow")
        self.unanswered(results, "results.json")
        self.unjudged(results)
        if lost := results["provenance"].get("lost_workers"):
            line = f"work of workers that were lost was repeated {number_of(len(lost), 'time')}"
            self.out.print(Text(f"{line} (listed in results.json)"), style="yellow")
        for part, what in results["provenance"]["stand_ins"].items():
            self.out.print(Text(f"stand-in {part}: {what}", style="dim"), soft_wrap=True)
        self.out.print(Text(f"run directory: {folder}"), soft_wrap=True)

    def unanswered(self, results: RunResults | ScoreResults, listed: str) -> None:
        """Print how many questions got no answer, an empty one, or none of their choices.

        Args:
            listed: the file that lists the questions without an answer; blank for none.
        """
        conditions = results["answers"]["conditions"].values() if results["answers"] else ()
        failed = sum(len(scores["unanswered"]) for scores in conditions)
        empty = sum(scores.get("empty", 0) for scores in conditions)
        if failed:
            line = f"the reader had no answer {number_of(failed, 'time')}, which counts as wrong"
            where = f" (listed in {listed})" if listed else ""
            self.out.print(Text(line + where), style="yellow")
        if empty:
            self.out.print(Text(f"empty answers: {empty}"), style="yellow")
        if no_choice := sum(scores.get("no_choice", 0) for scores in conditions):
            what = number_of(no_choice, "answer is", "answers are")
            self.out.print(
                Text(f"{what} none of the question's choices, which counts as wrong"),
                style="yellow",
            )

    def unjudged(self, results: RunResults | ScoreResults) -> None:
        """Print how many answers got no verdict from the judge, and why."""
        section = results["answers"]
        asked = section["questions"] if section else 0
        for condition, scores in section["conditions"].items() if section else ():
            kinds: tuple[tuple[Means | None, str], ...] = (
                (scores, "answers"),
                (scores["raw"], "raw generations"),
            )
            for what, kind in kinds:
                found = what["unjudged"] if what else []
                if found and (what is scores or found != scores["unjudged"]):
                    self.note(
                        f"{_row(results, condition)}: {len(found)} of {asked} "
                        f"{kind} got no verdict from the judge and count as wrong (question "
                        f"{found[0]['question_id']}: {found[0]['reason']}"
                        f"{'; ...' if len(found) > 1 else ''})"
                    )

    def tables(self, results: RunResults | ScoreResults, *, explained: bool = True) -> None:
        """Print the tables of answers and retrieval that the results have.

        Args:
            explained: whether to say why intervals are missing.
        """
        answers, retrieval = results["answers"], results["retrieval"]
        if answers:
            table, reasons = _answer_table(results, answers)
            table.notes += reasons if explained else []
            self.out.print(table)
            if groups := _group_table(results, answers):
                self.out.print(groups)
            self._raw(results, answers)
            self._refusals(results)
        if retrieval:
            self._retrieval(results, retrieval)
        if "predictions" not in results and "cost" in results:
            self.out.print(_cost_table(results, results["cost"]))

    def _retrieval(self, results: RunResults | ScoreResults, retrieval: RetrievalSection) -> None:
        sections: tuple[tuple[Mapping[str, Any] | None, str], ...] = (
            (retrieval, "Retrieval"),
            (retrieval["by_ids"], "Retrieval by passage ids"),
            (retrieval["by_articles"], "Retrieval by articles"),
        )
        for section, what in sections:
            if section and section["conditions"]:
                self.out.print(_retrieval_table(results, section, what))
        for condition, stages in retrieval["stages"].items():
            if any("gain" in stage for stage in stages):
                self.out.print(_stage_table(results, condition, stages))

    def _raw(self, results: RunResults | ScoreResults, section: AnswerSection) -> None:
        """Print the scores of whole generations, if they differ from the answers' scores."""
        conditions = section["conditions"]
        raws = {name: raw["score"] for name, c in conditions.items() if (raw := c["raw"])}
        if any(score != conditions[name]["score"] for name, score in raws.items()):
            shown = (
                f"{_row(results, name)} {'-' if raw is None else f'{raw:.1f}'}"
                for name, raw in raws.items()
            )
            line = f"raw generations, without extracting an answer: {', '.join(shown)}"
            self.out.print(Text(line, style="dim"))

    def _refusals(self, results: RunResults | ScoreResults) -> None:
        """Print what became of the questions, if answers are refusals."""
        section = cast("SelectiveSection | None", results.get("selective"))
        if section and has_refusals(section):
            of = _title(results, "", section["questions"]).removeprefix(": ")
            self.out.print(outcome_table(section, lambda name: _row(results, name), of))

    def benchmark(
        self,
        title: str,
        columns: Sequence[tuple[str, str, int]],
        scores: Sequence[Mapping[str, Any]],
    ) -> None:
        """Print a benchmark's table: a row per subset and metric, a column per model.

        Args:
            columns: subset, metric and K; those without scores are left out.
            scores: see `ravqa.runs.subsets.Score`.
        """
        cells: dict[tuple[str, str], dict[tuple[str, str, int], str]] = {}
        fewer = False
        for score in scores:
            part = score["of"] is not None and score["questions"] < score["of"]
            fewer |= part
            column = cells.setdefault((score["model"], score["status"]), {})
            key = score["subset"], score["metric"], score["k"]
            column[key] = f"{score['percent']:.1f}{'*' if part else ''}"
        published = [model for model, status in cells if status == "published"]
        # A family's models need its name only once; a single model keeps its own.
        first, last = min(published, default="").split(), max(published, default="").split()
        pairs = zip(first[:-1], last[:-1], strict=False) if first != last else ()
        family = [one for one, other in itertools.takewhile(lambda pair: len({*pair}) == 1, pairs)]
        table = Columns(f"Retrieval %: {title}")
        table.names()
        for model, status in cells:
            if status == "published":
                own = model.split()[len(family) :]
                table.numbers(" ".join(own).replace("(", "").replace(")", ""), width=7)
            else:
                table.numbers("this run", width=7)
                table.notes.append(f"this run: {model}.")
        for key in columns:
            row = [column.get(key, "-") for column in cells.values()]
            if set(row) - {"-"}:
                table.row(f"{key[0]} {_SHORT[key[1]]}@{key[2]}", *row)
        if published:
            name = f" of {' '.join(family)}" if family else ""
            table.notes.append(
                f"The other columns are published scores{name}, not measured by this run; the "
                "table's files give the sources."
            )
        table.notes.append("R: recall by passage ids. PR: pseudo recall (PRRecall).")
        table.notes += ["*: not all of the published test questions."] if fewer else []
        self.out.print(table)


def _rich(*, stderr: bool) -> RichConsole:
    console = Terminal(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH
    return console


def _interval(bounds: Sequence[float | None]) -> str:
    return Estimate(0, *bounds).range()


def _title(results: RunResults | ScoreResults, what: str, questions: int) -> str:
    dataset = results["dataset"]
    return f"{what}: {dataset['label']}, {dataset['split']}, {number_of(questions, 'question')}"


def _row(results: RunResults | ScoreResults, condition: str) -> str:
    if "predictions" in results:  # results of `ravqa score`
        return "predictions"
    return short_name(condition, results["provenance"]["retriever"])


def _answer_table(
    results: RunResults | ScoreResults, section: AnswerSection
) -> tuple[Columns, list[str]]:
    """Return the table, and notes on why intervals are missing from it."""
    table = Columns(_title(results, f"Answers, {section['label']} %", section["questions"]))
    if section["rule"].get("judge"):
        table.notes.append(f"judge: {section['rule']['judge']}")
    elif section["rule"].get("normalization") == "always":
        table.notes.append("normalization: always (not the official rule)")
    if section["rule"].get("marks") == "removed":
        table.notes.append("without marks of thinking (not the official rule)")
    if "choices" in section["rule"]:
        table.notes.append(f"answers became choices by the rule {section['rule']['choices']}")
    table.names()
    table.numbers("score")
    has_mean = "mean" in section["conditions"][MAIN]
    if has_mean:  # a score that is not a mean: interval and tests are of the mean
        table.numbers("mean")
    table.numbers("95 % interval" + (" of mean" if has_mean else ""), width=13)
    compared = bool(section["comparisons"])
    if compared:
        table.numbers(f"{_row(results, MAIN)} minus this")
        table.numbers("95 % interval", width=13)
        table.numbers("p")
    of_score = of_difference = False  # whether such an interval is missing
    for condition, scores in section["conditions"].items():
        score = scores["score"]
        row = [_row(results, condition), "-" if score is None else f"{score:.1f}"]
        row += [f"{scores['mean']:.1f}"] if has_mean else []
        row += [_interval(scores["interval_95"])]
        of_score |= scores["interval_95"][0] is None
        if compared:
            test = section["comparisons"].get(f"{MAIN} - {condition}")
            if test:
                row += [f"{test['difference']:+.1f}", _interval(test["interval_95"])]
                row += [f"{test['p_value']:.4f}"]
                of_difference |= test["interval_95"][0] is None
            else:
                row += [""] * 3
        table.row(*row)
    images = results["dataset"]["images"]
    return table, why_none(images, of_score=of_score, of_difference=of_difference)


def _group_table(results: RunResults | ScoreResults, section: AnswerSection) -> Columns | None:
    """Return a table of the scores by question type; None if there are not several."""
    groups = section["conditions"][MAIN]["groups"]
    if not 1 < len(groups) <= _MAX_GROUPS:
        return None
    kind = "mean" if "mean" in section["conditions"][MAIN] else section["label"]
    table = Columns(f"By question type: {kind} %")
    table.names()
    table.numbers("questions")
    for condition in section["conditions"]:
        table.numbers(_row(results, condition), width=9)
    for name, group in groups.items():
        means = (c["groups"].get(name) for c in section["conditions"].values())
        shown = ("-" if found is None else f"{found['mean']:.1f}" for found in means)
        table.row(name, f"{group['questions']:,}", *shown)
    return table


def _retrieval_table(
    results: RunResults | ScoreResults, section: Mapping[str, Any], what: str
) -> Columns:
    metric = section["metric"]
    table = Columns(_title(results, f"{what}, {metric} %", section["questions"]))
    table.names()
    ks = list(next(iter(section["conditions"].values()))[metric])
    for k in ks:
        table.numbers(f"@{k}")
    for condition, scores in section["conditions"].items():
        row = _row(results, condition)
        table.row(row, *(f"{scores[metric][k]:.1f}" for k in ks))
    return table


def _cost_table(results: RunResults | ScoreResults, section: CostSection) -> Columns:
    """Return the table of what the run and its controls took, by stage if there are several."""
    currency, whole = section["currency"], section["total"]
    table = Columns("Cost")
    table.names()
    table.numbers("requests")
    table.numbers("prompt tokens", width=10)
    table.numbers("completion tokens", width=10)
    table.numbers("seconds per question", width=8)
    if currency:
        table.numbers(currency)

    def row(name: str, record: CostRecord, seconds: str = "") -> None:
        counts = (record["requests"], record["prompt_tokens"], record["completion_tokens"])
        money = [readable_money(record.get("money"))] if currency else []
        table.row(name, *map(readable_amount, counts), seconds, *money)

    for condition, found in section["conditions"].items():
        name, seconds = _row(results, condition), found["seconds"]
        row(name, found["total"], f"{sum(seconds.values()):.2f}")
        for stage, record in found["stages"].items() if len(found["stages"]) > 1 else ():
            row(f"  {stage}", record, f"{seconds[stage]:.2f}" if stage in seconds else "")
    if any(section["prepared"].values()):
        row("before the questions", section["prepared"])
    if whole["retries"]:
        table.notes.append(f"{readable_amount(whole['retries'])} of the requests were retries.")
    if whole["cached_tokens"]:
        shown = readable_amount(whole["cached_tokens"])
        table.notes.append(f"{shown} of the prompt tokens came from the servers' own caches.")
    if "unknown" in whole:
        shown = readable_amount(whole["unknown"])
        table.notes.append(f"unknown: {shown} replies do not say how many tokens they took.")
    if "reused" in whole:
        table.notes.append(_reused(whole["reused"], currency))
    return table


def _reused(reused: Reused, currency: str | None) -> str:
    """Return a note on what came from the cache."""
    what = f"Not counted: {readable_amount(reused['results'])} results from the cache"
    if "unknown" in reused:
        return f"{what}; what they took when they were made is not known of all."
    tokens = (readable_amount(reused[key]) for key in ("prompt_tokens", "completion_tokens"))
    money = f", {currency} {readable_money(reused.get('money'))}" if currency else ""
    took = " prompt tokens, ".join(tokens)
    return f"{what}, which took {took} completion tokens{money} when they were made."


def readable_amount(value: float | None) -> str:
    """Return a number of requests or tokens; None is not known."""
    if value is None:
        return "unknown"
    whole = abs(value - round(value)) < 1e-6
    return f"{round(value):,}" if whole else f"{value:,.1f}"


def readable_money(value: float | None) -> str:
    """Return an amount of money, of small ones more decimals; None is not known."""
    if value is None:
        return "unknown"
    return f"{value:,.2f}" if value >= 100 else f"{value:.4f}" if value >= 0.01 else f"{value:.6f}"


def _stage_table(
    results: RunResults | ScoreResults, condition: str, stages: Sequence[StageScores]
) -> Columns:
    """Return a table of recall before and after every reranker, and of the prompts."""
    metric = next((m for m in RECALLS if m in stages[0]), RECALLS[0])
    which = "" if condition == MAIN else f", {_row(results, condition)}"
    table = Columns(f"Stages of retrieval{which}: {metric} %")
    table.names()
    table.numbers("passages")
    ks = list(stages[0].get(metric, {}))
    for k in ks:
        table.numbers(f"@{k}")
    for stage in stages:
        shares = (stage.get(metric, {}).get(k) for k in ks)
        name = "in prompts" if stage["stage"] == READ else stage["stage"]
        table.row(
            name,
            f"{stage['passages']:.1f}",
            *("-" if share is None else f"{share:.1f}" for share in shares),
        )
    return table
