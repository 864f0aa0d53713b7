"""Makes the tables of docs/scoring-rules.md, from the classes that apply the rules.

python tools/scoring_rules_page.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from ravqa.metrics import METRICS
from ravqa.metrics.base import Form
from ravqa.metrics.released import RELEASED
from ravqa.metrics.released.base import ALL, ReleasedRule
from ravqa.metrics.released.tags import ANSWER

PAGE = Path(__file__).parents[1] / "docs" / "scoring-rules.md"
_START, _END = "## Rules\n", "\n## Released judges' replies\n"
_FORMS: dict[Form, str] = {
    "infoseek": "InfoSeek's questions",
    "vqa": "Questions with ten answers (OK-VQA, A-OKVQA)",
    "evqa": "E-VQA's questions",
}
_HEADER = ("Rule", "An answer is right if, or scores", "Aggregate", "Source", "Numbers it made")


def renewed(page: str) -> str:
    """Return the page with its tables made again; they end the section "Rules"."""
    before, start, rest = page.partition(_START)
    section, end, after = rest.partition(_END)
    text = section.partition("\n### ")[0]
    return "".join((before, start, text, *_tables(), end, after))


def _tables() -> Iterator[str]:
    rules = [cast("type[ReleasedRule]", METRICS.get(name)) for name in RELEASED]
    for form, title in _FORMS.items():
        yield from _table(title, [r for r in rules if form in r.forms and r.forms != ALL])
    yield from _table("Any question with accepted texts", [r for r in rules if r.forms == ALL])


def _table(title: str, rules: list[type[ReleasedRule]]) -> Iterator[str]:
    yield f"\n### {title}\n\n"
    yield _line(_HEADER)
    yield _line(["---"] * len(_HEADER))
    for rule in rules:
        judge = " (asks a judge)" if rule.uses_judge else ""
        yield _line(
            [
                f"`{rule.name}`{judge}",
                rule.rule.replace(ANSWER, f"`{ANSWER}`"),
                rule.aggregate,
                str(rule.source),
                rule.published or "none known",
            ]
        )


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
