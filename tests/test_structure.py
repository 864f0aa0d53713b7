"""Imports point one way, and the command line starts without heavy libraries."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ravqa"

# Each layer may import from itself and from those below it.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"studies", "training", "doors"},
    {"reports"},
    {"runs", "integrations"},
    {"collections"},
    {"pipeline", "testing"},
    {"describers", "rerankers", "retrievers"},
    {"answering", "evaluation", "indexes"},
    {"encoders", "datasets"},
    {"corpora", "flmr", "metrics", "readers"},
    {"clients", "images"},
    {"core"},
]
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@cache
def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("ravqa.")}
    return found


def test_imports_point_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = part_of(path)
        if part == "__init__":
            continue
        assert part in LEVEL, f"{path} belongs to no layer"
        for other in imports(path) & LEVEL.keys():
            if other != part and LEVEL[other] < LEVEL[part]:
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong


def test_the_architecture_page_lists_the_packages_as_they_are():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("## Packages") : page.index("## Contracts")]
    rows = [line.split("|")[1] for line in table.split("\n") if line.startswith("| `")]
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == LAYERS
    there = {part_of(path) for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE} | {
        path.stem for path in PACKAGE.glob("*.py")
    }
    assert there - {"__init__"} == set(LEVEL)


def test_there_are_few_packages_and_few_imports_between_them():
    parts = set(LEVEL)
    arrows = {
        (part_of(path), other)
        for path in PACKAGE.rglob("*.py")
        for other in imports(path) & parts
        if other != part_of(path) not in {"__init__", "testing"}  # it checks every kind's contract
    }
    assert len(parts) <= 26
    assert len(LAYERS) <= 13
    assert len(arrows) <= 140


def test_metrics_do_not_import_torch():
    for path in (PACKAGE / "metrics").glob("*.py"):
        assert "torch" not in path.read_text(encoding="utf-8").replace("imports torch", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run_vqa.py", "--help"],
        pytest.param(["-m", "ravqa", "--help"], marks=pytest.mark.slow),
        ["-m", "ravqa", "ls", "readers"],
        pytest.param(["-m", "ravqa", "ls", "rerankers"], marks=pytest.mark.slow),
        pytest.param(["-m", "ravqa", "collection", "build", "--help"], marks=pytest.mark.slow),
        pytest.param(["-m", "ravqa", "search", "--help"], marks=pytest.mark.slow),
    ],
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    if sys.argv[0] == '-m':\n"
        "        sys.argv = sys.argv[1:]\n"
        "        runpy.run_module(sys.argv[0], run_name='__main__')\n"
        "    else:\n"
        "        runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'pandas'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "HEAVY []" in result.stdout
    assert len(result.stdout) > 100
