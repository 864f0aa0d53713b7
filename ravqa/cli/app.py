"""The command line. Nothing heavy is imported before a command really runs."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from functools import cache
from typing import Annotated, Any

import typer

import ravqa
from ravqa.cli import collection, demo, files, inventory, moved, plugin, run, serve, study, train
from ravqa.cli.interrupts import no_interrupt_lost
from ravqa.cli.shared import say
from ravqa.core.environment import check_environment
from ravqa.core.errors import UserError
from ravqa.core.texts import printable

# Newer releases of typer contain a copy of click, older ones use click itself: catch the errors of
# the module that typer raises them from.
_formatted_warning = warnings.formatwarning
_usage: Any = sys.modules[typer.BadParameter.__module__]
_INTERRUPTED = 130
_LONGEST = 10_000  # characters of an error message; foreign text in it can be of any length

app = typer.Typer(
    name="ravqa",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        say(f"ravqa {ravqa.__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Retrieval-augmented generation for knowledge-based visual question answering."""


# In the order of the help.
app.command(epilog=run.EXAMPLES)(run.run)
app.command()(run.report)
app.command()(files.encode)
app.command()(files.passages)
app.command()(files.score)
app.command()(files.selective)
app.command(epilog=study.EXAMPLES)(study.study)
app.command()(study.compare)
app.command()(study.power)
app.add_typer(train.app, name="train")
app.command()(train.mine)
app.command()(inventory.ls)
app.command()(files.convert)
app.command()(inventory.doctor)
app.add_typer(collection.app, name="collection")
app.command()(collection.search)
app.command()(collection.ask)
app.command()(collection.chat)
app.command(epilog=demo.EXAMPLES)(demo.demo)
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.add_typer(plugin.app, name="plugin")
moved.add_to(app, collection.app)

_run_alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_run_alone.command(epilog=run.EXAMPLES)(run.run)

# Made of the functions' signatures once, however often a program calls `main`.
_command = cache(typer.main.get_command)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `ravqa`: a user's mistake is one line on stderr and exit code 2."""
    _guarded(app, arguments, "ravqa")


def run_main(arguments: list[str] | None = None) -> None:
    """Entry point of `run_vqa.py`: `ravqa run` without the word run."""
    _guarded(_run_alone, arguments, "run_vqa.py")


def _guarded(application: typer.Typer, arguments: list[str] | None, name: str) -> None:
    _show_all_safely()
    try:
        check_environment()
        with no_interrupt_lost():
            code = _command(application)(args=arguments, prog_name=name, standalone_mode=False)
        if code == _INTERRUPTED:  # newer releases of typer turn the exception into the code
            _interrupted()
    except getattr(_usage, "NoArgsIsHelpError", ()) as e:
        e.show()
        code = 2
    except _usage.ClickException as e:
        command = e.ctx.command_path if getattr(e, "ctx", None) else name
        said = e.format_message().replace(": Value error, ", ": ")
        code = _fail(f"{said} ({command} --help lists the options)")
    except UserError as e:
        code = _fail(str(e))
    except (typer.Abort, KeyboardInterrupt):
        code = _interrupted()
    except OSError as e:
        # A full disk or a missing permission is for the user to mend. A closed pipe is not an error
        # of a file, and an error without a number comes from a library.
        if e.errno is None or isinstance(e, BrokenPipeError):
            raise
        code = _fail(f"{e.filename or 'writing or reading a file'}: {e.strerror}")
    sys.exit(code if isinstance(code, int) else 0)


def _show_all_safely() -> None:
    """Make messages of other libraries printable, and print what the terminal cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_PrintableRecord)
    warnings.formatwarning = _printable_warning


class _PrintableRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 (overrides logging's)
        """Return the message with its arguments, as it may be shown."""
        return printable(super().getMessage())


def _printable_warning(*arguments: Any, **options: Any) -> str:
    return printable(_formatted_warning(*arguments, **options))


def _fail(message: str) -> int:
    line = " ".join(message.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 1000]} ... {line[-900:]}"
    say(f"error: {line}", error=True)
    return 2


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return _INTERRUPTED
