"""Summary of a run's report: facts, notes, and the tables of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ravqa.core.records import READ
from ravqa.core.texts import number_of
from ravqa.evaluation.answers import picture_notes
from ravqa.evaluation.schema import (
    AnswerSection,
    CostRecord,
    CostSection,
    Reused,
    StageScores,
)
from ravqa.evaluation.sections import RECALLS
from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.figures import condition_name, metric_name
from ravqa.reports.page import Table
from ravqa.reports.run import Run
from ravqa.runs.console import readable_amount, readable_money
from ravqa.runs.folder import MAIN, RESULTS


class Tile(NamedTuple):
    """A headline number."""

    number: str
    name: str
    note: str


class Titled(NamedTuple):
    """A table with the texts above and below it."""

    title: str
    table: Table
    caption: str


def facts(run: Run) -> dict[str, str]:
    """Return what was run on which data."""
    dataset, provenance = run.results["dataset"], run.results["provenance"]
    found = {
        "split": dataset["split"],
        "questions": f"{dataset['questions']:,}",
        "images": f"{dataset['images']:,}" if dataset["images"] else None,
        "base pipeline" if provenance["overrides"] else "pipeline": provenance["pipeline"],
        "changed": ", ".join(provenance["overrides"]),
        "date": provenance["date"][:10],
    }
    return {name: value for name, value in found.items() if value}


def notes(run: Run) -> list[str]:
    """Return what a reader of the numbers must know: samples, stand-ins, what was left out."""
    dataset, provenance = run.results["dataset"], run.results["provenance"]
    found = []
    if dataset["sample"]:
        found.append("This is the bundled sample: its scores are not benchmark scores.")
    if dataset["limit"]:
        found.append(f"The run was limited to the first {number_of(dataset['limit'], 'question')}.")
    found += [f"Stand-in {part}: {what}." for part, what in provenance["stand_ins"].items()]
    if dataset["skipped"]:
        what = number_of(len(dataset["skipped"]), "question was", "questions were")
        found.append(f"{what} skipped (listed in {RESULTS}).")
    answers = run.results["answers"]
    if answers:
        own = answers["conditions"][MAIN]
        if own["unanswered"]:
            found.append(
                f"The reader could not answer {number_of(len(own['unanswered']), 'question')}, "
                f"which counts as wrong (listed in {RESULTS})."
            )
        if own["unjudged"]:
            found.append(
                f"{number_of(len(own['unjudged']), 'answer')} got no verdict from the judge, "
                f"which counts as wrong (listed in {RESULTS})."
            )
        if own["cut"]["passages"]:
            found.append(
                f"{number_of(own['cut']['passages'], 'passage')} of "
                f"{number_of(own['cut']['questions'], 'question')} did not fit into the reader's "
                "context, and got left out."
            )
        if pictures := own.get("pictures"):
            found += [f"{note[0].upper()}{note[1:]}." for note in picture_notes(pictures)]
    if lost := provenance.get("lost_workers"):
        times = number_of(len(lost), "time")
        found.append(f"Work of workers that were lost was repeated {times} (listed in {RESULTS}).")
    if provenance["chosen_on"]:
        found.append(f"The settings were chosen on {provenance['chosen_on']}.")
    return found + list(run.notes)


def tiles(run: Run) -> list[Tile]:
    """Return the headline numbers."""
    answers, retrieval = run.results["answers"], run.results["retrieval"]
    found = []
    if answers:
        own = answers["conditions"][MAIN]
        about = "of the mean " if "mean" in own else ""
        note = _between(own["interval_95"], about)
        found.append(Tile(_percent(own["score"]), f"{metric_name(run)} %", note))
    gain = answers["comparisons"].get(f"{MAIN} - none") if answers else None
    if gain:
        between = f"{_range(gain['interval_95'])}, " if gain["interval_95"][0] is not None else ""
        note = f"{between}p {gain['p_value']:.4f}"
        retrieves = run.results["provenance"]["retriever"] != "none"
        name = "points gained by retrieval" if retrieves else "points above the control"
        found.append(Tile(f"{gain['difference']:+.1f}", name, note))
        turned = [run.turned(question) for question in run.main]
        counts = f"{turned.count(1):,} / {turned.count(-1):,}"
        note = "answers that became right / wrong, compared with no retrieval"
        found.append(Tile(counts, "questions helped / hurt", note))
    recall = retrieval["conditions"].get(MAIN) if retrieval else None
    if recall:
        k = "5" if "5" in recall["PRRecall"] else next(iter(recall["PRRecall"]))
        note = _between(recall["interval_95"][k])
        found.append(Tile(_percent(recall["PRRecall"][k]), f"PRRecall@{k} %", note))
    return found


def tables(run: Run) -> list[Titled]:
    """Return tables of answers, retrieval, and the stages between them, if any."""
    answers, retrieval = run.results["answers"], run.results["retrieval"]
    found = [_answers(run, answers)] if answers else []
    if retrieval is not None:
        for section, title in (
            (retrieval, "Retrieval"),
            (retrieval["by_ids"], "Retrieval by passage ids"),
            (retrieval["by_articles"], "Retrieval by articles"),
        ):
            if section and section["conditions"]:
                found.append(_retrieval(run, section, title))
        for condition, stages in retrieval["stages"].items():
            if any("gain" in stage for stage in stages):
                found.append(_stages(run, condition, stages))
    if "cost" in run.results:
        found.append(_costs(run, run.results["cost"]))
    return found


def provenance(run: Run) -> Table:
    """Return weights, versions, fingerprints and costs, one per row."""
    known, timing = run.results["provenance"], run.results["timing"]
    rows = [[f"weights, {part}", name] for part, name in known["weights"].items()]
    corpus = known["corpus"]
    if corpus:
        rows.append(["corpus", f"{number_of(corpus['passages'], 'passage')}: {corpus['source']}"])
    rows += [
        ["seed", str(known["seed"])],
        ["time", f"{timing['seconds']:,.1f} s"],
        ["prompts answered by the reader", f"{timing['prompts_generated']:,}"],
        ["peak memory", f"{timing['peak_memory_mb']:,} MB"],
        ["machine", known["platform"]],
        ["date", known["date"]],
    ]
    rows += [[f"version, {part}", version] for part, version in known["versions"].items()]
    rows += [[f"fingerprint, {part}", str(v)] for part, v in known["fingerprints"].items()]
    return ["", ""], rows


def _answers(run: Run, section: AnswerSection) -> Titled:
    conditions, compared = section["conditions"], section["comparisons"]
    name = metric_name(run)
    has_mean = "mean" in conditions[MAIN]
    raw = {c: scores["raw"]["score"] for c, scores in conditions.items() if scores["raw"]}
    has_raw = any(v not in (None, conditions[c]["score"]) for c, v in raw.items())
    header = ["", f"{name} %", *(["mean %"] if has_mean else []), "95 % interval", "exact match %"]
    header += ["without extraction %"] if has_raw else []
    if compared:
        header += ["run minus this", "p", "run better / worse / equal"]
    rows = []
    for condition, scores in conditions.items():
        row = [condition_name(run, condition), _percent(scores["score"])]
        row += [_percent(scores["mean"])] if has_mean else []
        row += [_range(scores["interval_95"]), _percent(scores["exact_match"]["1"])]
        row += [_percent(raw.get(condition))] if has_raw else []
        test = compared.get(f"{MAIN} - {condition}")
        if test:
            row += [
                f"{test['difference']:+.1f} {_range(test['interval_95'])}",
                f"{test['p_value']:.4f}",
                f"{test['wins']:,} / {test['losses']:,} / {test['ties']:,}",
            ]
        elif compared:
            row += ["", "", ""]
        rows.append(row)
    caption = f"{number_of(section['questions'], 'question')}."
    if compared:
        caption += (
            " Intervals resample images; p-values come from a paired permutation test over images."
        )
    if section["rule"].get("judge"):
        caption += f" Judge: {section['rule']['judge']}."
    if section["rule"].get("normalization") == "always":
        caption += " Answers were always cleaned up, which is not the official rule."
    if "choices" in section["rule"]:
        caption += f" Answers became choices by the rule {section['rule']['choices']}."
    return Titled("Answer quality", (header, rows), caption)


def _retrieval(run: Run, section: Mapping[str, Any], title: str) -> Titled:
    metric, conditions = section["metric"], section["conditions"]
    ks = list(conditions[next(iter(conditions))][metric])
    rows = [
        [
            condition_name(run, condition),
            *(Estimate(scores[metric][k], *scores["interval_95"][k]).text() for k in ks),
        ]
        for condition, scores in conditions.items()
    ]
    caption = f"{number_of(section['questions'], 'question')}, with 95 % intervals."
    if "rule" in section:
        caption += f" Rule {section['rule']}: {section['searched_text']}."
    return Titled(title, (["", *(f"{metric}@{k} %" for k in ks)], rows), caption)


def _stages(run: Run, condition: str, stages: Sequence[StageScores]) -> Titled:
    metric = next((m for m in RECALLS if m in stages[0]), RECALLS[0])
    ks = list(stages[0].get(metric, ()))
    rows = []
    for stage in stages:
        shares = stage.get(metric, {})
        name = "in prompts" if stage["stage"] == READ else stage["stage"]
        rows.append([name, f"{stage['passages']:.1f}", *(_percent(shares.get(k)) for k in ks)])
    header = ["", "passages per question", *(f"{metric}@{k} %" for k in ks)]
    return Titled(
        f"Stages of retrieval, {condition_name(run, condition)}",
        (header, rows),
        "From what was retrieved, through every reranker, to what was in the prompts.",
    )


def _costs(run: Run, section: CostSection) -> Titled:
    currency = section["currency"]
    header = ["", "requests", "retries", "prompt tokens", "of these cached by servers"]
    header += ["completion tokens", *([currency] if currency else []), "reused results"]

    def row(name: str, record: CostRecord) -> list[str]:
        counts = [record["requests"], record["retries"], record["prompt_tokens"]]
        cached, written = record["cached_tokens"], record["completion_tokens"]
        shown = list(map(readable_amount, counts))
        shown += ["\u2013" if cached is None else readable_amount(cached), readable_amount(written)]
        shown += [readable_money(record.get("money"))] if currency else []
        return [name, *shown, _reused(record.get("reused"), currency)]

    rows = []
    for condition, found in section["conditions"].items():
        name = condition_name(run, condition)
        rows.append(row(name, found["total"]))
        stages = found["stages"] if len(found["stages"]) > 1 else {}
        rows += [row(f"{name}, {stage}", record) for stage, record in stages.items()]
        rows.append(row(f"{name}, per question", found["per_question"]))
    if any(section["prepared"].values()):
        rows.append(row("images and examples, before the questions", section["prepared"]))
    caption = (
        "Each try of a request counts; models on this machine take none. Reused results came from "
        "the cache, and are not counted elsewhere; in brackets what they took when they were made."
    )
    if "unknown" in section["total"]:
        caption += " Unknown: a server or a reader does not say how many tokens its replies took."
    return Titled("Cost", (header, rows), caption)


def _reused(reused: Reused | None, currency: str | None) -> str:
    if reused is None:
        return ""
    number = readable_amount(reused["results"])
    if "unknown" in reused:
        return f"{number} (unknown)"
    read, written = map(readable_amount, (reused["prompt_tokens"], reused["completion_tokens"]))
    money = f", {currency} {readable_money(reused.get('money'))}" if currency else ""
    return f"{number} ({read} + {written} tokens{money})"


def _percent(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.1f}"


def _range(interval: Sequence[float | None]) -> str:
    return Estimate(0, *interval).range()


def _between(interval: Sequence[float | None], about: str = "") -> str:
    """Return the interval in words, for a headline number."""
    if interval[0] is None:
        return "no 95 % interval: few images, or all equal"
    return f"95 % interval {about}{_range(interval)}"
