"""What make would do, without doing it: which Python it takes, and what it installs for what."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def dry_run(target, folder, pythons, *variables):
    """Return make's process on a machine with only these programs, which are right or not."""
    for name, right in pythons.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\nexit {0 if right else 1}\n", encoding="utf-8")
        program.chmod(0o755)
    return subprocess.run(
        [shutil.which("make"), "-n", target, f"VENV={folder}/env", *variables],
        cwd=ROOT,
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_python_3_11_to_3_13_is_right(monkeypatch):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [code] = re.findall("^IN_RANGE := -c '(.*)' 2>/dev/null$", makefile, re.MULTILINE)
    right = []
    for minor in range(9, 16):
        monkeypatch.setattr(sys, "version_info", (3, minor, 1, "final", 0))
        with pytest.raises(SystemExit) as end:
            exec(code)
        right += [minor] if not end.value.code else []
    assert right == [11, 12, 13]


@pytest.mark.parametrize(
    ("pythons", "variables", "taken"),
    [
        ({"python3": False, "python3.12": True, "python3.13": True}, [], "python3.12"),
        ({"python3.11": True, "mine": True}, ["PYTHON=mine"], "mine"),
    ],
)
def test_make_takes_the_first_python_that_is_right(tmp_path, pythons, variables, taken):
    done = dry_run("run", tmp_path, pythons, *variables)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == f"{taken} -m venv {tmp_path}/env"


@pytest.mark.parametrize(
    ("pythons", "variables", "named"),
    [
        ({"python3": False}, [], "none of python3.11 python3.12 python3.13 python3"),
        ({"python3": True, "mine": False}, ["PYTHON=mine"], "mine"),
    ],
)
def test_make_without_such_a_python_says_so_in_one_line(tmp_path, pythons, variables, named):
    done = dry_run("run", tmp_path, pythons, *variables)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert f"ravqa needs Python 3.11 to 3.13, which {named} is not" in line


def test_a_run_installs_only_what_it_needs(tmp_path):
    extras = {
        target: re.findall(r"\.\[(.*)\]", dry_run(target, tmp_path, {"python3": True}).stdout)
        for target in ("run", "demo", "test")
    }
    assert extras == {
        "run": ["cpu,sample"],
        "demo": ["cpu,sample", "cpu,sample,demo"],
        "test": ["cpu,sample", "cpu,sample,test,dev"],
    }
