"""The types of a run's files: documented whole, and nothing else is read."""

from pathlib import Path

import pytest
from typing_extensions import is_typeddict

from ravqa.evaluation import schema, schema_page

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_schema():
    shown = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert shown == schema_page.page(), "python -m ravqa.evaluation.schema_page > docs/results.md"


def kinds():
    for name, kind in vars(schema).items():
        if is_typeddict(kind) and kind.__module__ == schema.__name__:
            yield pytest.param(kind, id=name)


@pytest.mark.parametrize("kind", list(kinds()))
def test_every_key_has_a_description_on_the_page(kind):
    page = schema_page.page()
    _, _, section = page.partition(f"\n### {kind.__name__}\n")
    rows = [line for line in section.partition("\n### ")[0].splitlines() if line.startswith("| `")]
    inherited = {
        key
        for base in getattr(kind, "__orig_bases__", ())
        for key in getattr(base, "__annotations__", ())
    }
    assert {row.split("`")[1] for row in rows} == set(kind.__annotations__) - inherited
    assert all(len(row.split(" | ")[2].removesuffix(" |")) > 3 for row in rows)
