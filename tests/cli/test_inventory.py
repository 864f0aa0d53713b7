"""ravqa --version, ravqa ls, and what doctor prints of the installation."""

from pathlib import Path
from typing import get_args

import pytest
from narrow import fits, terminal

import ravqa
from ravqa.cli import doctor, main
from ravqa.cli.inventory import Kind, print_report
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
    for line in fits(out):  # in 80 columns
        if not line.startswith(" "):
            below = names[line] = []
        elif not line.startswith("   "):  # else a summary's second line
            below.append(line.split()[0])
    assert list(names) == list(get_args(Kind))
    for kind in ("rules", "readers", "metrics"):
        alone = call(capsys, "ls", kind)[1].splitlines()
        assert names[kind] == [line.split()[0] for line in alone if not line.startswith(" ")]


@pytest.mark.parametrize("width", [80, 140])
def test_what_doctor_prints_fits(width):
    path = "/home/somebody/.cache/huggingface/hub/a/very/long/path/to/" + 10 * "folder/"
    pipeline = doctor.PipelineReport(
        name=f"{path}pipeline.yaml",
        models=[doctor.needs.Model("retriever.encoder.image", path, None)],
        notes=["a note " * 20],
        stops=["a stop " * 20],
    )
    report = doctor.Report(
        versions={"sentence-transformers": "5.1.0+a.local.version"},
        extras=[doctor.Extra("sentence-transformers", "encoders " * 12, ("x" * 20, "y" * 20))],
        devices={"cuda:0": "NVIDIA H200 NVL, 139 GB", "disk": "1 GB free in the cache folder"},
        caches=[doctor.Cache("left by 12 killed writers", path, 123_400_000)],
        offline=True,
        pipeline=pipeline,
    )
    screen = terminal(width)
    print_report(report, screen)
    lines = fits(screen.file.getvalue(), width)
    for whole in ("  sentence-transformers  ", "  left by 12 killed writers  "):
        assert any(line.startswith(whole) for line in lines)
    assert path in "".join(line[27:].strip() for line in lines)


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
