"""`ravqa demo`: a page on which people ask about their own photos."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from ravqa.cli.shared import Host, Overrides, Pipelines, opened_console, say
from ravqa.core.errors import import_extra

EXAMPLES = """Examples: ravqa demo (the bundled sample) | ravqa demo animals --pipeline sample"""


def demo(
    collections: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[COLLECTION...]",
            help="Folders of collections to ask. Default: the passages of the bundled sample.",
        ),
    ] = None,
    pipelines: Pipelines = None,
    overrides: Overrides = None,
    host: Host = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=65535, help="Port. Default: the first free one from 7860."
        ),
    ] = None,
    feedback: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder in which verdicts on answers are kept."),
    ] = Path("feedback"),
    trust_settings: Annotated[
        bool,
        typer.Option(
            "--trust-settings",
            help="Use all settings that came with the collections, even those that name servers, "
            "environment variables, files or code. The choice is remembered.",
        ),
    ] = False,
) -> None:
    """Show a page in the browser on which people ask about their own photos, until Ctrl-C."""
    import_extra("gradio", "demo", why="ravqa demo")
    with opened_console() as console:
        from ravqa.doors.demo.serve import served
        from ravqa.doors.feedback import Feedback
        from ravqa.doors.shelf import Shelf

        kept = Feedback(feedback)
        kept.check()
        shelf = Shelf(
            collections or (), pipelines or (), overrides or (), trust_settings=trust_settings
        )
        first = shelf.names[0]
        with console.status("loading models"):
            shelf.pipeline(first, shelf.pipelines(first)[0], console.progress)
        with served(shelf, kept, host=host, port=port) as address:
            console.close()
            say(f"the demo is at {address}")
            say(f"verdicts on answers are kept in {feedback}; Ctrl-C ends the demo")
            sys.stdout.flush()
            _wait_for_end()


def _wait_for_end() -> None:
    """Wait until somebody ends the program, which is no error here."""
    ended = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: ended.set())
    ended.wait()
