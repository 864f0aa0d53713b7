"""ravqa plugin new: what it writes works, for every kind of part."""

import os
import subprocess
import sys
from typing import get_args

import pytest

import ravqa.testing
from ravqa.cli import main
from ravqa.cli.plugin import Kind
from ravqa.core.registry import TABLES


def new(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["plugin", "new", *map(str, arguments)])
    return end.value.code


def test_there_is_one_for_every_kind_of_part():
    checked = {name.removeprefix("check_") for name in ravqa.testing.__all__}
    assert set(get_args(Kind)) == checked
    kinds = {kind.removesuffix("es" if kind == "indexes" else "s") for kind in TABLES}
    assert checked == kinds - {"retrieval metric"}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_files_have_the_names_that_were_asked_for(kind, tmp_path, capsys):
    assert new(kind, "fine-thing", "--folder", tmp_path / "new") == 0
    part, test = (tmp_path / "new" / f"{n}fine_thing.py" for n in ("", "test_"))
    out = capsys.readouterr().out
    plural = "indexes" if kind == "index" else f"{kind}s"
    assert out.splitlines() == [
        f"wrote {part} and {test}",
        f"  python -m pytest {test}    (pip install pytest, if it is missing)",
        f"  PYTHONPATH={tmp_path / 'new'} RAVQA_PLUGINS=fine_thing ravqa ls {plural}",
    ]
    written = part.read_text() + test.read_text()
    compile(written, kind, "exec")
    for name in ("my_part", "MyPart", "my-part", "My part"):
        assert name not in written
    assert '.add("fine-thing", "fine_thing:' in part.read_text()
    assert f"import check_{kind}\n" in test.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reader", "openai"), "there is a reader 'openai' already"),
        (("reader", "json"), "Python has a module or word 'json' already"),
        (("rule", "class"), "Python has a module or word 'class' already"),
        (("reader", "Fine Thing"), "lower-case letters, digits and hyphens are expected"),
        (("reader", "../x"), "lower-case letters, digits and hyphens are expected"),
        (("retreiver", "x"), "'retreiver'"),
    ],
)
def test_names_that_cannot_be_used_are_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_that_exist_are_left_alone(tmp_path, capsys):
    (tmp_path / "test_fine.py").write_text("mine")
    assert new("reader", "fine", "--folder", tmp_path) == 2
    assert "test_fine.py exists: choose another name" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_fine.py"]


@pytest.mark.slow
def test_every_part_passes_its_own_tests_and_is_listed(tmp_path):
    def run(*command, **variables):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **variables},
        )
        return done.stdout

    for kind in get_args(Kind):
        assert new(kind, f"fine-{kind}", "--folder", tmp_path) == 0
    tested = run("pytest", "-q", "-p", "no:cacheprovider", ".")
    assert "20 passed" in tested, tested
    listed = run("ravqa", "ls", RAVQA_PLUGINS=",".join(f"fine_{kind}" for kind in get_args(Kind)))
    for kind in get_args(Kind):
        assert f"  fine-{kind} " in listed
    pytest.importorskip("ruff")
    assert "All checks passed" in run("ruff", "check", "--select", "F,I,W", "--isolated", ".")
