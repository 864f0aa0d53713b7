"""ravqa --version, ravqa ls, and what doctor prints of the installation."""

from pathlib import Path
from typing import get_args

import pytest

import ravqa
from ravqa.cli import doctor, main
from ravqa.cli.inventory import Kind
from ravqa.runs.options import RunRequest
from ravqa.runs.plan import default_output


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code, *capsys.readouterr()


def test_the_version(capsys):
    assert call(capsys, "--version") == (0, f"ravqa {ravqa.__version__}\n", "")


def test_ls_without_a_kind_lists_what_every_kind_lists(capsys):
    code, out, _ = call(capsys, "ls")
    assert code == 0
    names = {}
    for line in out.splitlines():
        if not line.startswith(" "):
            below = names[line] = []
        elif not line.startswith("   "):  # else a summary's second line
            below.append(line.split()[0])
    assert list(names) == list(get_args(Kind))
    for kind in ("rules", "readers", "metrics"):
        alone = call(capsys, "ls", kind)[1].splitlines()
        assert names[kind] == [line.split()[0] for line in alone if not line.startswith(" ")]


def test_extras_are_marked_and_caches_aligned():
    report = doctor.Report(
        versions={},
        extras=[doctor.Extra("one", "a", ()), doctor.Extra("two", "b", ("x", "y"))],
        devices={},
        caches=[doctor.Cache("c", "/c", 5), doctor.Cache("d", "/d", 123_400_000)],
        offline=False,
    )
    shown = dict(doctor.lines(report))
    assert shown["Extras"] == [("one", "✓ a"), ("two", "- missing: x, y; adds b")]
    assert [value.index("/") for _, value in shown["Caches"]] == [10, 10]


def test_a_runs_folder_says_which_data_and_which_pipeline():
    bundled = default_output(RunRequest("okvqa")).name
    official = default_output(RunRequest("okvqa", data=Path("OKVQA"))).name
    assert bundled.rsplit("-", 2)[0] == "okvqa-bundled-pipeline-sample"
    assert official.rsplit("-", 2)[0] == "okvqa-pipeline-sample"
