"""What visitors are told of errors: nothing of where files are on this machine."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ravqa.core.locations import cache_dir

_log = logging.getLogger(__name__)
_PATH = re.compile(r"(?:\bfile://|(?<![\w:/.~)])~?)(?:/[^\s/'\"<>|]+){2,}/?")
_ENDS = ".,:;)"
"""What may follow a path in a sentence."""


def told(error: Exception, names: Mapping[Path, str]) -> str:
    """Return an error's message in one line, in which files have no folders.

    What is left out is logged with the rest.

    Args:
        names: of folders, by which these are called.
    """
    whole = " ".join(str(error).split())
    message = whole
    for folder, name in names.items():
        plain = name.replace("\\", r"\\")
        message = re.sub(rf"{re.escape(str(folder))}(?![\w.-])", plain, message)
    # The names of these may have spaces, where a path in a text does not end for certain.
    known = {str(folder) for folder in (Path.cwd(), Path.home(), cache_dir(), _temporary())}
    for begin in sorted(known - {"/"}, key=len, reverse=True):
        message = message.replace(f"{begin}/", "")
    message = _PATH.sub(_name, message)
    if message != whole:
        _log.warning("%s", whole)
    return message


def _name(path: re.Match[str]) -> str:
    text = path[0].rstrip(_ENDS)
    return text.rstrip("/").rpartition("/")[2] + path[0][len(text) :]


def _temporary() -> Path:
    return Path(tempfile.gettempdir())
