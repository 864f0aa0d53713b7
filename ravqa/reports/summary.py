"""The summary of a run's report: facts, what must be known, the tables of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ravqa.core.records import READ
from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.figures import condition_name, metric_name
from ravqa.reports.page import Table
from ravqa.reports.run import Run
from ravqa.runs.folder import MAIN


class Tile(NamedTuple):
    """A number that stands out."""

    number: str
    name: str
    note: str


class Titled(NamedTuple):
    """A table with what stands above and below it."""

    title: str
    table: Table
    caption: str


def facts(run: Run) -> dict[str, str]:
    """What was run on what."""
    dataset, provenance = run.results["dataset"], run.results.get("provenance") or {}
    found = {
        "split": dataset.get("split"),
        "questions": f"{dataset.get('questions', len(run.main)):,}",
        "images": f"{dataset['images']:,}" if dataset.get("images") else None,
        "pipeline": provenance.get("pipeline"),
        "changed": ", ".join(provenance.get("overrides") or ()),
        "date": str(provenance.get("date") or "")[:10],
    }
    return {name: str(value) for name, value in found.items() if value}


def notes(run: Run) -> list[str]:
    """What a reader of the numbers must know: samples, stand-ins, what was left out."""
    dataset, provenance = run.results["dataset"], run.results.get("provenance") or {}
    found = []
    if dataset.get("sample"):
        found.append("This is the bundled sample: its scores are no benchmark scores.")
    if dataset.get("limit"):
        found.append(f"Only the first {dataset['limit']:,} questions were run.")
    found += [f"Stand-in {part}: {what}." for part, what in _items(provenance.get("stand_ins"))]
    skipped = dataset.get("skipped") or ()
    if skipped:
        found.append(f"{len(skipped):,} questions were skipped (listed in results.json).")
    own = ((run.results.get("answers") or {}).get("conditions") or {}).get(MAIN) or {}
    if own.get("unanswered"):
        found.append(
            f"The reader could not answer {len(own['unanswered']):,} questions, which count as "
            "wrong (listed in results.json)."
        )
    cut = own.get("cut") or {}
    if cut.get("passages"):
        found.append(
            f"{cut['passages']:,} passages of {cut['questions']:,} questions did not fit into the "
            "reader's context and were left out."
        )
    if provenance.get("chosen_on"):
        found.append(f"The settings were chosen on {provenance['chosen_on']}.")
    return found + list(run.notes)


def tiles(run: Run) -> list[Tile]:
    """The numbers that stand out."""
    answers, retrieval = run.results.get("answers") or {}, run.results.get("retrieval") or {}
    found = []
    own = (answers.get("conditions") or {}).get(MAIN)
    if own:
        about = "of the mean " if "mean" in own else ""
        interval = own.get("interval_95")
        note = f"95 % interval {about}{_range(interval)}" if interval else ""
        found.append(Tile(_percent(own.get("score")), f"{metric_name(run)} %", note))
    gain = (answers.get("comparisons") or {}).get(f"{MAIN} - none")
    if gain:
        note = f"{_range(gain['interval_95'])}, p {gain['p_value']:.4f}"
        found.append(Tile(f"{gain['difference']:+.1f}", "points gained by retrieval", note))
        turned = [run.turned(question) for question in run.main]
        counts = f"{turned.count(1):,} / {turned.count(-1):,}"
        note = "answers that became right / wrong, against no retrieval"
        found.append(Tile(counts, "questions helped / hurt", note))
    recall = (retrieval.get("conditions") or {}).get(MAIN)
    if recall and recall.get("PRRecall"):
        ks = recall["PRRecall"]
        k = next((k for k in ("5", *ks) if k in ks), "")
        interval = (recall.get("interval_95") or {}).get(k)
        note = f"95 % interval {_range(interval)}" if interval else ""
        found.append(Tile(_percent(ks[k]), f"PRRecall@{k} %", note))
    return found


def tables(run: Run) -> list[Titled]:
    """Answers, retrieval, and the stages between them, as far as there are any."""
    found = []
    answers, retrieval = run.results.get("answers"), run.results.get("retrieval") or {}
    if answers and answers.get("conditions"):
        found.append(_answers(run, answers))
    for section, title in (
        (retrieval, "Retrieval"),
        (retrieval.get("by_ids"), "Retrieval by passage ids"),
        (retrieval.get("by_articles"), "Retrieval by articles"),
    ):
        if section and section.get("conditions"):
            found.append(_retrieval(section, title))
    for condition, stages in _items(retrieval.get("stages")):
        if any("gain" in stage for stage in stages):
            found.append(_stages(condition, stages))
    return found


def provenance(run: Run) -> Table:
    """Weights, versions, fingerprints and costs, one to a line."""
    known = run.results.get("provenance") or {}
    rows = [[f"weights, {part}", str(name)] for part, name in _items(known.get("weights"))]
    corpus = known.get("corpus")
    if corpus:
        rows.append(["corpus", f"{corpus.get('passages', 0):,} passages: {corpus.get('source')}"])
    rows += [["seed", str(known["seed"])]] if "seed" in known else []
    timing = run.results.get("timing") or {}
    if "seconds" in timing:
        rows.append(["time", f"{timing['seconds']:,.1f} s"])
    if "prompts_generated" in timing:
        rows.append(["prompts answered by the reader", f"{timing['prompts_generated']:,}"])
    if "peak_memory_mb" in timing:
        rows.append(["peak memory", f"{timing['peak_memory_mb']:,} MB"])
    rows += [["machine", str(known["platform"])]] if "platform" in known else []
    rows += [["date", str(known["date"])]] if "date" in known else []
    rows += [[f"version, {part}", str(v)] for part, v in _items(known.get("versions"))]
    rows += [[f"fingerprint, {part}", str(v)] for part, v in _items(known.get("fingerprints"))]
    return ["", ""], rows


def _answers(run: Run, section: Mapping[str, Any]) -> Titled:
    conditions = section["conditions"]
    name = metric_name(run)
    has_mean = any("mean" in condition for condition in conditions.values())
    compared = section.get("comparisons") or {}
    raw = {condition: (s.get("raw") or {}).get("score") for condition, s in conditions.items()}
    has_raw = any(v not in (None, conditions[c].get("score")) for c, v in raw.items())
    header = ["", f"{name} %", *(["mean %"] if has_mean else []), "95 % interval", "exact match %"]
    header += ["without extraction %"] if has_raw else []
    if compared:
        header += ["run minus this", "p", "run better / worse / equal"]
    rows = []
    for condition, scores in conditions.items():
        row = [condition_name(condition), _percent(scores.get("score"))]
        row += [_percent(scores.get("mean"))] if has_mean else []
        interval = scores.get("interval_95")
        row.append(_range(interval) if interval else "")
        row.append(_percent((scores.get("exact_match") or {}).get("1")))
        row += [_percent(raw[condition])] if has_raw else []
        test = compared.get(f"{MAIN} - {condition}")
        if compared and test:
            row += [
                f"{test['difference']:+.1f} {_range(test['interval_95'])}",
                f"{test['p_value']:.4f}",
                f"{test['wins']:,} / {test['losses']:,} / {test['ties']:,}",
            ]
        elif compared:
            row += ["", "", ""]
        rows.append(row)
    caption = f"{section.get('questions', len(run.main)):,} questions."
    if compared:
        caption += (
            " Intervals resample images; p-values are of a paired permutation test over images."
        )
    rule = section.get("rule") or {}
    if rule.get("judge"):
        caption += f" Judge: {rule['judge']}."
    if rule.get("normalization") == "always":
        caption += " Answers were always cleaned up, which is not the official rule."
    return Titled("Answer quality", (header, rows), caption)


def _retrieval(section: Mapping[str, Any], title: str) -> Titled:
    metric, conditions = section["metric"], section["conditions"]
    ks = list(dict.fromkeys(k for c in conditions.values() for k in c.get(metric) or ()))
    rows = []
    for condition, scores in conditions.items():
        row = [condition_name(condition)]
        for k in ks:
            value, interval = scores[metric].get(k), (scores.get("interval_95") or {}).get(k)
            row.append("" if value is None else Estimate(value, *(interval or ())).text())
        rows.append(row)
    caption = f"{section.get('questions', 0):,} questions, with 95 % intervals."
    if section.get("rule"):
        caption += f" Rule {section['rule']}: {section.get('searched_text', 'passages')}."
    return Titled(title, (["", *(f"{metric}@{k} %" for k in ks)], rows), caption)


def _stages(condition: str, stages: Sequence[Mapping[str, Any]]) -> Titled:
    metric = next((m for m in ("PRRecall", "Recall", "ArticleRecall") if m in stages[0]), "")
    ks = list(stages[0].get(metric) or ())
    rows = []
    for stage in stages:
        shares = stage.get(metric) or {}
        name = "in prompts" if stage["stage"] == READ else str(stage["stage"])
        row = [name, f"{stage.get('passages', 0):.1f}"]
        rows.append(row + [_percent(shares.get(k)) for k in ks])
    header = ["", "passages a question", *(f"{metric}@{k} %" for k in ks)]
    return Titled(
        f"Stages of retrieval, {condition_name(condition)}",
        (header, rows),
        "From what was retrieved, through every reranker, to what stood in prompts.",
    )


def _items(values: Any) -> list[tuple[str, Any]]:
    return list(values.items()) if isinstance(values, Mapping) else []


def _percent(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.1f}"


def _range(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.1f}, {interval[1]:.1f}]"
