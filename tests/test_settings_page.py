"""docs/settings.md: every setting, with its type, default and meaning."""

import importlib.util
import re
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from ravqa.core.settings import ModelName, Part, Strict

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "settings.md"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "tools/settings_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_page_is_current(tool):
    made = tool.page()
    assert PAGE.read_text() == made, "python tools/settings_page.py > docs/settings.md"


def test_every_setting_says_what_it_is():
    found = rows(PAGE.read_text())
    assert len(found) > 300
    assert not [row for row in found if len(row) != 4]
    # A group is described by the settings in it.
    assert not [row for row in found if not row[1] or not (row[3] or row[1] == "group")]


def test_some_defaults_are_those_that_the_classes_have():
    text = PAGE.read_text()
    for section, key, default in (
        ("Pipeline", "top_k", "20"),
        ("Encoder `flmr`", "model", None),
        ("Encoder `flmr`", "doc_maxlen", "null"),
        ("Index `auto`", "above", "5000"),
        ("Answering", "decision", "joint_max"),
        ("Answering", "examples.count", "4"),
        ("Reader `openai`", "timeout", "120"),  # of a base class
        ("Dataset `okvqa`", "dev_share", "0.1"),
        ("`ravqa train retriever`", "loop.betas", "[0.9, 0.999]"),
        ("`ravqa train retriever`", "train.N.ratio", "null"),
        ("Studies", "design", "grid"),
    ):
        part = re.split(rf"^#+ {re.escape(section)}$", text, flags=re.MULTILINE)[1]
        found = {row[0]: row for row in rows(re.split(r"^#+ ", part, flags=re.MULTILINE)[0])}
        assert found[f"`{key}`"][2] == ("(required)" if default is None else f"`{default}`")


class Inner(Strict):
    """A group.

    Attributes:
        size, depth: two numbers
            in two lines.
    """

    size: int = Field(default=1, ge=1, lt=5)
    depth: float | None = None


class Outer(Inner):
    """Settings.

    Attributes:
        depth: said anew.
        kind: one | the other.
        model: with weights; None for none.
        inner: one group.
        several: many groups.
        reader: a part.

    Raises:
        nothing: this is no attribute.
    """

    kind: Literal["one", "other"]
    model: ModelName | None = None
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    reader: Part = Part(name="openai")


def test_a_table_has_types_defaults_and_meanings(tool):
    assert rows("\n".join(tool._table(Outer))) == [
        ["`size`", "integer, ≥ 1, < 5", "`1`", "two numbers in two lines."],
        ["`depth`", "number", "`null`", "said anew."],
        ["`kind`", r"`one` \| `other`", "(required)", r"one \| the other."],
        ["`model`", "folder or hub name", "`null`", "with weights; null for none."],
        ["`inner`", "group", "", "one group."],
        ["`inner.size`", "integer, ≥ 1, < 5", "`1`", "two numbers in two lines."],
        ["`inner.depth`", "number", "`null`", "two numbers in two lines."],
        ["`several`", "list of group", "`[]`", "many groups."],
        ["`several.N.size`", "integer, ≥ 1, < 5", "`1`", "two numbers in two lines."],
        ["`several.N.depth`", "number", "`null`", "two numbers in two lines."],
        ["`reader`", "[readers](#readers)", "`openai`", "a part."],
    ]
