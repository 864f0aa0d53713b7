"""Whether a title in a file's properties is one: many programs write a file's name there."""

from __future__ import annotations

import re

_LONGEST = 300  # characters; it stands before every passage of its file
_NO_TITLE = re.compile(
    r"untitled.*|no title|title|document ?\d*|(word|powerpoint|microsoft word) ?"
    r"(document|presentation)|presentation ?\d*|(slide|folie) ?\d+|about:blank|\(anonymous\)|"
    r"microsoft (word|powerpoint|excel) - .*|(https?|file)://\S*|\S*\.[a-z][a-z0-9]{1,4}",
    re.IGNORECASE,
)


def real_title(text: str | None) -> str | None:
    """Return a title on one line; None if it is blank, a program's default or a file's name."""
    title = " ".join((text or "").split())
    if not re.search(r"[^\W_]", title) or len(title) > _LONGEST or _NO_TITLE.fullmatch(title):
        return None
    return title
