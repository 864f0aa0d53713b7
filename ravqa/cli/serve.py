"""`ravqa serve`: search and answers for other programs."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ravqa.cli.shared import Host, Overrides, Pipelines, opened_console, say
from ravqa.core.errors import UserError, import_extra

EXAMPLES = """Examples: ravqa serve (the bundled sample) | ravqa serve animals --port 8000 --changes
| ravqa serve animals --mcp"""
TOKEN = "RAVQA_TOKEN"
"""Environment variable with the token that requests must bring."""
_WORST_TOKEN = 16


def serve(
    collections: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[COLLECTION...]",
            help="Folders of collections to serve. Default: the passages of the bundled sample.",
        ),
    ] = None,
    pipelines: Pipelines = None,
    overrides: Overrides = None,
    mcp: Annotated[
        bool,
        typer.Option(
            "--mcp",
            help="Speak the Model Context Protocol over standard input and output, for the program "
            "that starts this one. Without it, the same is at /mcp.",
        ),
    ] = False,
    host: Host = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 for any that is free.")
    ] = 8000,
    fd: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=3,
            help="Number of a listening socket that the program was started with, in place of "
            "--host and --port: no connection is refused while it is restarted.",
        ),
    ] = None,
    changes: Annotated[
        bool,
        typer.Option("--changes", help="Let passages be added, replaced and deleted."),
    ] = False,
    image_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--image-host",
            metavar="NAME",
            help="Fetch images from this machine when requests name them. Repeatable.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.1, max=3600, help="For waiting and answering of one request."
        ),
    ] = 60,
    waiting: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=10_000, help="Requests that may wait; others are refused."
        ),
    ] = 64,
    batch: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=1024, help="Most questions answered together."),
    ] = 16,
    drain: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, max=3600, help="For requests under way at the end."),
    ] = 30,
    log_contents: Annotated[
        bool, typer.Option("--log-contents", help="Write questions to the log, too.")
    ] = False,
    trust_settings: Annotated[
        bool,
        typer.Option(
            "--trust-settings",
            help="Use all settings that came with the collections, even those that name servers, "
            "environment variables, files or code. The choice is remembered.",
        ),
    ] = False,
) -> None:
    """Serve search and answers over HTTP, to chat programs, and to agents, until Ctrl-C.

    If the environment variable RAVQA_TOKEN is set, requests must bring it (Authorization: Bearer).
    """
    for package in ("mcp",) if mcp else ("fastapi", "uvicorn", "prometheus_client", "mcp"):
        import_extra(package, "serve", why="ravqa serve")
    token = os.environ.get(TOKEN, "").strip()
    if token and (len(token) < _WORST_TOKEN or not token.isascii()):
        raise UserError(f"{TOKEN}: {_WORST_TOKEN} letters and digits or more are expected")
    with opened_console() as console:
        from ravqa.core.records import Question
        from ravqa.doors.service.desk import Desk, Terms
        from ravqa.doors.shelf import Shelf

        terms = Terms(
            seconds=timeout,
            waiting=waiting,
            at_once=batch,
            changes=changes,
            image_hosts=frozenset(name.lower() for name in image_hosts or ()),
            token=token,
            contents=log_contents,
        )
        if not mcp:
            from ravqa.doors.service.serve import inherited, listening, serve

            at = listening(host, port) if fd is None else inherited(fd)
        shelf = Shelf(
            collections or (), pipelines or (), overrides or (), trust_settings=trust_settings
        )
        first = shelf.names[0]
        with console.status("loading models"):
            loaded = shelf.pipeline(first, shelf.pipelines(first)[0], console.progress)
            with suppress(UserError):  # the first search loads what later ones have
                loaded.retrieve([Question(0, "a")])
        console.close()
        if mcp:
            from ravqa.doors.service.tools import speak

            speak(Desk(shelf, terms))
            return
        place = at.getsockname()
        shown = f"http://{place[0]}:{place[1]}" if isinstance(place, tuple) else str(place)
        serve(shelf, terms, at, drain=drain, ready=lambda: say(f"serving at {shown}"))
