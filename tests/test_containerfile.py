"""The container's file: what it copies and installs exists, and each device has its own stage.

No engine builds it here; a wheel is built from what it copies.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def stages():
    """Return instructions and their arguments by stage, those of its base stages included."""
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    found = {"": []}
    name = ""
    for line in filter(str.strip, lines):
        kind, _, rest = line.partition(" ")
        if kind == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = [*found.get(base, [("FROM", base)])]
        else:
            found[name].append((kind, " ".join(rest.split())))
    return found


STAGES = stages()


def arguments(stage, kind):
    return [rest for instruction, rest in STAGES[stage] if instruction == kind]


def copied():
    """Return what is copied from the checkout."""
    given = {rest for stage in STAGES for rest in arguments(stage, "COPY")}
    return sorted({name for rest in given if "--from=" not in rest for name in rest.split()[:-1]})


def test_each_device_has_a_stage_of_its_own():
    assert list(STAGES) == ["", "base", "wheel", "device", "cpu", "gpu"]
    for device, other in (("cpu", "gpu"), ("gpu", "cpu")):
        runs = " ".join(arguments(device, "RUN"))
        assert f'needs.py "{device},' in runs
        assert f'"{other},' not in runs


def test_the_base_image_has_a_tag():
    [python] = [rest.partition("=")[2] for kind, rest in STAGES[""] if kind == "ARG"]
    assert re.fullmatch(r"3\.1[1-3]-slim-[a-z]+", python)
    assert STAGES["base"][0] == ("FROM", "docker.io/library/python:${PYTHON}")


@pytest.mark.parametrize("name", copied())
def test_what_is_copied_exists_and_is_not_ignored(name):
    assert (ROOT / name).exists()
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert rules[1] == "*"
    assert f"!{name}" in rules


def test_nothing_else_is_sent_to_the_engine():
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == copied()


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_torch_comes_first_and_extras_exist(device):
    torch, rest, wheel = arguments(device, "RUN")[-3:]
    assert "\"$(grep '^torch==' constraints.txt)\"" in torch
    assert "--index-url" in torch
    assert "--no-deps" in wheel
    extras = [arg.partition("=")[2] for arg in arguments(device, "ARG") if "EXTRAS" in arg]
    assert "--constraint constraints.txt" in rest
    made = subprocess.run(
        [sys.executable, ROOT / "tools" / "needs.py", f"{device},{extras[0]}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert set(PROJECT["dependencies"]) < set(made)
    for extra, offered in PROJECT["optional-dependencies"].items():
        if extra in {device, "sample", "serve"}:
            assert set(offered) < set(made)
    assert [line.partition(">")[0] for line in made if "faiss" in line] == [f"faiss-{device}"]


def test_needs_follow_extras_of_extras_and_refuse_unknown_ones():
    def run(extras):
        command = [sys.executable, ROOT / "tools" / "needs.py", extras]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "peft>=0.13" in run("train").stdout.splitlines()
    assert (run("trian").returncode, run("trian").stdout) == (1, "")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_image_serves_as_nobody_special_and_says_whether_it_is_well(device):
    assert arguments(device, "USER") == ["10001"]
    assert json.loads(arguments(device, "ENTRYPOINT")[0]) == list(PROJECT["scripts"])
    assert json.loads(arguments(device, "CMD")[0]) == ["serve", "--host", "0.0.0.0"]
    [health] = arguments(device, "HEALTHCHECK")
    code = json.loads(health.partition("CMD ")[2])
    assert code[:2] == ["python", "-c"]
    compile(code[2], "health", "exec")
    assert "http://127.0.0.1:8000/health" in code[2]
    assert not any(re.search("TOKEN|KEY|SECRET|PASSWORD", rest) for _, rest in STAGES[device])


@pytest.mark.slow
def test_the_wheel_is_built_from_what_is_copied(tmp_path):
    for name in copied():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "wheels"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "wheels").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ravqa/_pipelines/sample.yaml", "ravqa/doors/demo/templates/demo.css"} <= names
