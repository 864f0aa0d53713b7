"""Tables of what several scoring rules give for the same answers."""

from __future__ import annotations

import textwrap

from rich.text import Text

from ravqa.core.terminal import Columns
from ravqa.core.texts import number_of
from ravqa.evaluation.rules import spread
from ravqa.evaluation.schema import RuleExample, RulesSection
from ravqa.metrics.statistics.intervals import Estimate
from ravqa.runs.console import Console

_LONGEST = 200  # characters of an answer that are printed


def show_rules(section: RulesSection, console: Console) -> None:
    """Print the table, how far the rules are apart, and where they disagree."""
    table = Columns("The same answers by other rules", notes_of(section))
    header, rows = table_of(section)
    table.names(header[0])
    for name in header[1:]:
        table.numbers(name, width=13 if "interval" in name else 9)
    for row in rows:
        table.row(*row)
    console.out.print(table)
    if line := spread(section):
        console.out.print(Text(line), soft_wrap=True)
    if not section["disputed"]:
        return
    asked = number_of(section["questions"], "question")
    what = f"the rules disagree with {section['own']} on {section['disputed']:,} of {asked}"
    console.out.print(Text(what + (":" if section["examples"] else "")), soft_wrap=True)
    for example in section["examples"]:
        console.out.print(
            Text(_told(example, section["own"], len(section["rules"]))), soft_wrap=True
        )


def table_of(section: RulesSection) -> tuple[list[str], list[list[str]]]:
    """Return the table's header and rows as text; columns that say nothing are left out."""
    rules = section["rules"]
    fewer = any(row["questions"] < section["questions"] for row in rules)
    failed = any(row["without_score"] for row in rules)
    header = ["rule", "score %", "95 % interval"]
    header += ["questions"] * fewer + ["without a score"] * failed
    rows = [
        [
            row["rule"],
            f"{row['score']:.1f}",
            Estimate(0, *row["interval_95"]).range(),
            *[f"{row['questions']:,}"] * fewer,
            *[f"{row['without_score']:,}"] * failed,
        ]
        for row in rules
    ]
    return header, rows


def notes_of(section: RulesSection) -> list[str]:
    """Return which rule is the dataset's own, and why others are left out or give no score."""
    found = [f"{section['own']} is the dataset's own rule."]
    reasons: dict[str, list[str]] = {}
    for name, reason in section["left_out"].items():
        reasons.setdefault(reason, []).append(name)
    found += [f"not asked: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    for row in section["rules"]:
        if silent := row.get("not_attempted"):
            found.append(f"{row['rule']}: {number_of(silent, 'answer')} not attempted")
        if agreement := row.get("agreement"):
            share = Estimate(agreement["share"], *agreement["interval_95"]).text()
            found.append(
                f"{row['rule']} says the same as {section['own']} on {share} % of "
                f"{number_of(agreement['questions'], 'question')}"
            )
    first = next((row for row in section["rules"] if row["without_score"]), None)
    if first is not None:
        found.append(f"without a score by {first['rule']}: {first['reason']}; ...")
    return found


def _told(example: RuleExample, own: str, rules: int) -> str:
    """Return the answer, the references, and the rules that say otherwise than the own one."""

    def short(text: str) -> str:
        return textwrap.shorten(text, _LONGEST, placeholder=" ...")

    answer = "no answer" if example["answer"] is None else repr(short(example["answer"]))
    references = ", ".join(dict.fromkeys(example["references"]))
    said, others = ("right", "wrong") if own in example["right"] else ("wrong", "right")
    against = example["right"] if said == "wrong" else example["wrong"]
    return (
        f"  question {example['question_id']}: {short(example['question'])}\n"
        f"    {answer} for {short(references)}: {said} by {own}, {others} by "
        f"{example['disagree']} of {number_of(rules, 'rule')}:\n"
        f"    {', '.join(against)}"
    )
