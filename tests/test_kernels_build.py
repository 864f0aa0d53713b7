"""Wheels, built with and without a C compiler that works, and installed."""

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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder, the name of the wheel that was built into it, and the files in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    compiled = {"RAVQA_NATIVE": "require"} if hatch_build.compiler() else {}
    return folder, *wheel(folder, **compiled)


@pytest.mark.slow
@pytest.mark.skipif(not hatch_build.compiler(), reason="there is no C compiler")
def test_a_wheel_has_the_library_and_is_for_this_platform_and_every_python(built):
    _, name, files = built
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


@pytest.mark.slow
def test_the_built_wheel_runs_from_an_empty_folder(built, tmp_path):
    folder, name, _ = built
    # Only the package itself comes from the wheel; what it needs is installed already.
    target = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, folder / name],
        check=True,
        capture_output=True,
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import ravqa.cli; "
        f"assert ravqa.__file__.startswith({str(target)!r}); ravqa.cli.main()"
    )

    def installed(*arguments):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=empty,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    printed = installed("run", "--dataset", "okvqa", "--limit", "5", "--retriever", "random")
    assert "Answers, VQA accuracy %: bundled sample" in printed
    assert "report: runs/" in printed
    assert len(list(empty.glob("runs/*/report.html"))) == 1
    assert [p.name for p in empty.iterdir()] == ["runs"]
    printed = installed("study", "image-tokens", "--dry-run", "--limit", "5")
    assert "image_tokens=patches" in printed
