"""One run: a dataset through a pipeline and its controls, into a folder, in four phases.

RunRequest ─plan─▶ Plan ─load─▶ Loaded ─execute─▶ Executed ─report─▶ the run's folder
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from ravqa.core.accounts import Account, charged_to
from ravqa.core.cluster import noted_losses
from ravqa.core.factory import Session
from ravqa.runs.console import Console
from ravqa.runs.execute import Executed, execute
from ravqa.runs.lanes import Lane
from ravqa.runs.load import load
from ravqa.runs.options import RunRequest
from ravqa.runs.plan import Given, plan
from ravqa.runs.report import report, show_answered


def run(
    request: RunRequest,
    console: Console,
    session: Session | None = None,
    given: Given | None = None,
    lane: Lane | None = None,
) -> Path:
    """Run, score, write and print.

    Args:
        session: parts and data that several runs share; None for a new one.
        given: what the caller already has of what the request names.
        lane: the run's place among those of the session that are under way at the same time; None
            if it is alone.

    Returns:
        The run's folder.

    Raises:
        UserError: any mistake in the request or the data.
    """
    planned = plan(request, given)
    account = Account(request.max_requests, request.max_cost)
    session = session or Session()
    with closing(account), charged_to(account), noted_losses():
        with session.turn:
            loaded = load(planned, session, console)

        def answered(executed: Executed) -> None:
            with session.turn:
                show_answered(executed, console)

        with planned.run_dir.held():
            executed = execute(loaded, console, answered, lane)
            with session.turn:
                return report(executed, console)
