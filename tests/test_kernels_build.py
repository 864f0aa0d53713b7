"""The hook that compiles the kernels into wheels, with and without a C compiler that works."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

hatch_build = pytest.importorskip("hatch_build")

ROOT = Path(__file__).parents[1]
LIBRARY = "ravqa/indexes/compressed/csrc/kernels.so"


def build(folder, **variables):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    environment = os.environ | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def wheel(folder, **variables):
    done = build(folder, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = folder.glob("*.whl")
    return found.name, zipfile.ZipFile(found).namelist()


@pytest.mark.slow
@pytest.mark.skipif(not hatch_build.compiler(), reason="there is no C compiler")
def test_a_wheel_has_the_library_and_is_for_this_platform_and_every_python(tmp_path):
    name, files = wheel(tmp_path, RAVQA_NATIVE="require")
    assert LIBRARY in files
    assert "-py3-none-" in name
    assert not name.endswith("-any.whl")


@pytest.mark.slow
def test_without_a_working_compiler_the_wheel_is_one_for_all_platforms(tmp_path):
    name, files = wheel(tmp_path, CC="false")
    assert LIBRARY not in files
    assert name.endswith("-py3-none-any.whl")
    done = build(tmp_path, CC="false", RAVQA_NATIVE="require")
    assert done.returncode != 0


def test_a_compiler_that_fails_leaves_the_library_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "kernels.so").write_text("before")
    monkeypatch.setenv("CC", "false")
    with pytest.raises(subprocess.CalledProcessError):
        hatch_build.compile_kernels(tmp_path / "kernels.so")
    assert [file.name for file in tmp_path.iterdir()] == ["kernels.so"]
    assert (tmp_path / "kernels.so").read_text() == "before"


def test_the_compiler_is_the_one_that_is_named_or_the_first_that_is_there(monkeypatch):
    monkeypatch.setenv("CC", "false -m64")
    assert hatch_build.compiler() == ["false", "-m64"]
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(hatch_build.shutil, "which", lambda name: name if name == "gcc" else None)
    monkeypatch.setattr(hatch_build.sysconfig, "get_config_var", lambda name: "missing -pthread")
    assert hatch_build.compiler() == ["gcc"]
    monkeypatch.setattr(hatch_build.shutil, "which", lambda name: None)
    assert hatch_build.compiler() == []
    with pytest.raises(FileNotFoundError, match="no C compiler"):
        hatch_build.compile_kernels()
