"""Tables as a terminal shows them, and what no table may do there."""

import io
import re

from ravqa.core.terminal import Terminal
from ravqa.runs.console import Console


def terminal(width=80):
    """A console that writes to its `file`."""
    return Terminal(file=io.StringIO(), width=width)


def console(width=80):
    """A run's console, whose output and notes are in `out.file`."""
    shared = terminal(width)
    return Console(out=shared, err=shared)


def fits(text, width=80):
    """Checks that nothing is cut, too wide, or broken within an interval; returns the lines."""
    lines = text.splitlines()
    assert "…" not in text
    for line in lines:
        assert len(line) <= width, line
        assert not re.search(r"\[[^\]]*$", line), f"broken interval: {line}"
    return lines
