"""Tags in predictions that several released rules look for."""

from __future__ import annotations

import re

ANSWER = "<answer>"
_ANSWER = re.compile(f"{ANSWER}(.*?)</answer>", re.DOTALL)


def last_answer(text: str) -> str | None:
    """Return what the last <answer> of a text holds, stripped; None without one."""
    found = _ANSWER.findall(text)
    return found[-1].strip() if found else None
