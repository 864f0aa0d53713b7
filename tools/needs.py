"""Prints the packages that ravqa and some of its extras need, one a line, for pip install -r.

python tools/needs.py cpu,sample,serve

Images of containers install them before ravqa itself, which changes more often.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

_FILE = Path(__file__).parents[1] / "pyproject.toml"


def needs(extras: list[str]) -> Iterator[str]:
    """Yield the requirements; those of extras that an extra names are among them.

    Raises:
        SystemExit: there is no such extra.
    """
    project = tomllib.loads(_FILE.read_text(encoding="utf-8"))["project"]
    yield from project["dependencies"]
    offered, waiting, seen = project["optional-dependencies"], list(extras), set()
    while waiting:
        extra = waiting.pop(0)
        if extra not in offered:
            sys.exit(f"no extra {extra!r}: choose from {', '.join(offered)}")
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in offered[extra]:
            own = re.fullmatch(r"ravqa\[(.+)\]", requirement)
            if own is None:
                yield requirement
            else:
                waiting += own[1].split(",")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/needs.py EXTRA,...")
    print("\n".join(needs(sys.argv[1].split(","))))
