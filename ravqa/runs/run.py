"""One run: a dataset through a pipeline and its controls, into a folder, in four phases.

RunRequest ─plan─▶ Plan ─load─▶ Loaded ─execute─▶ Executed ─report─▶ the run's folder
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from ravqa.core.accounts import Account, charged_to
from ravqa.core.factory import Session
from ravqa.runs.console import Console
from ravqa.runs.execute import execute
from ravqa.runs.load import load
from ravqa.runs.options import RunRequest
from ravqa.runs.plan import Given, plan
from ravqa.runs.report import report, show_answered


def run(
    request: RunRequest,
    console: Console,
    session: Session | None = None,
    given: Given | None = None,
) -> Path:
    """Run, score, write and print.

    Args:
        session: parts and data that several runs share; None for a new one.
        given: what the caller already has of what the request names.

    Returns:
        The run's folder.

    Raises:
        UserError: any mistake in the request or the data.
    """
    planned = plan(request, given)
    account = Account(request.max_requests, request.max_cost)
    with closing(account), charged_to(account):
        loaded = load(planned, Session() if session is None else session, console)
        with planned.run_dir.held():
            executed = execute(loaded, console, lambda run: show_answered(run, console))
            return report(executed, console)
