"""docs/scoring-rules.md has every released rule, as the code has it."""

import importlib.util
from pathlib import Path

from ravqa.metrics.released import RELEASED

ROOT = Path(__file__).parents[2]


def test_the_tables_are_current():
    path = ROOT / "tools" / "scoring_rules_page.py"
    spec = importlib.util.spec_from_file_location("scoring_rules_page", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = (ROOT / "docs" / "scoring-rules.md").read_text(encoding="utf-8")
    assert page == tool.renewed(page), "python tools/scoring_rules_page.py"
    assert tool.renewed(page.replace("| `flashrag.em` | a ", "| old | a ")) == page
    for name in RELEASED:
        assert f"\n| `{name}`" in page
