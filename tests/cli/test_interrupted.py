"""Ctrl-C during `ravqa run`: the command that is printed continues the run."""

import shlex
import signal
import threading
from pathlib import Path

import pytest
import typer

from ravqa.cli import main
from ravqa.cli.options import arguments_of, from_request
from ravqa.runs import run as module
from ravqa.runs.options import RunRequest

ARGUMENTS = (
    *("run", "--dataset", "okvqa", "--retriever", "none", "--reader", "first-words"),
    *("--limit", "2", "--set", "answering.decision=top1", "--set", "describer=null"),
    *("--dataset-option", "edition=1"),
)


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code


@pytest.fixture
def interrupt():
    """A function that makes the next run end as by Ctrl-C, when it calls the named phase."""
    with pytest.MonkeyPatch.context() as patch:

        def arrange(phase):
            def stop(*arguments):
                patch.undo()
                raise KeyboardInterrupt

            patch.setattr(module, phase, stop)

        yield arrange


def advised(capsys):
    [line] = [li for li in capsys.readouterr().err.splitlines() if li.startswith("to continue: ")]
    program, *arguments = shlex.split(line.removeprefix("to continue: "))
    assert program == "ravqa"
    return arguments


@pytest.fixture
def here(tmp_path, monkeypatch):
    directory = tmp_path / "a folder"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def test_a_request_and_its_arguments_are_the_same():
    asked = RunRequest(
        dataset="okvqa",
        data=Path("a b"),
        corpus=(Path("x.jsonl"), Path("y")),
        overrides=("reader={name: first-words}", "top_k=3"),
        limit=7,
        resume=True,
        output=Path("out"),
        controls=("none", "oracle"),
        on_error="skip",
    )
    seen = []

    def keep(request):
        seen.append(request)

    application = typer.Typer()
    application.command()(from_request(RunRequest)(keep))
    for request in (asked, RunRequest("okvqa")):
        typer.main.get_command(application)(arguments_of(request), standalone_mode=False)
    assert seen == [asked, RunRequest("okvqa")]


@pytest.mark.parametrize("phase", ["load", "report"])
def test_the_printed_command_works(here, capsys, interrupt, phase):
    interrupt(phase)
    assert call(*ARGUMENTS, "--no-report") == 130
    arguments = advised(capsys)
    assert "--resume" in arguments
    folder = Path(arguments[arguments.index("--output") + 1])
    assert folder.exists() == (phase == "report")
    assert call(*arguments, "--no-report") == 0
    assert (folder / "results.json").is_file()


def test_an_interrupt_in_a_finaliser_is_not_lost(here, monkeypatch):
    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)  # Python drops what is raised here

    def load(*arguments):
        Finalised()
        for _ in range(200):  # a signal just before one wait begins is seen when that one is over
            threading.Event().wait(0.1)
        raise AssertionError("the interrupt was lost")

    monkeypatch.setattr(module, "load", load)
    assert call(*ARGUMENTS, "--no-report") == 130


def test_an_old_run_that_was_not_yet_replaced_is_not_resumed(here, capsys, interrupt):
    assert call(*ARGUMENTS, "--output", "a", "--no-report") == 0
    other = (*ARGUMENTS, "--seed", "5", "--output", "a", "--overwrite", "--no-report")
    capsys.readouterr()
    for phase in ("load", "report"):
        interrupt(phase)
        assert call(*other) == 130
        arguments = advised(capsys)
        assert ("--overwrite" in arguments, "--resume" in arguments) == (
            phase == "load",
            phase == "report",
        )
    assert call(*arguments, "--no-report") == 0
