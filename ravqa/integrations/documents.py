"""Conversion between passages and other libraries' documents (id, text, metadata, picture)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ravqa.core.records import Passage

_FIELDS = ("title", "section", "entity", "url")


def metadata_of(passage: Passage) -> dict[str, Any]:
    """Return `Passage.extra` with title, section, entity and url under their names."""
    fields = {name: getattr(passage, name) for name in _FIELDS}
    return {**passage.extra, **{k: v for k, v in fields.items() if v is not None}}


def passage_of(
    passage_id: str,
    text: str,
    metadata: Mapping[str, Any],
    *,
    image: Path | None = None,
    article: str | None = None,
) -> Passage:
    """Return a passage whose `metadata_of` is `metadata` as read back from a file.

    Dates become text, and tuples become lists.
    """
    extra = json.loads(json.dumps(dict(metadata), default=str))
    fields = {name: extra.pop(name) for name in _FIELDS if isinstance(extra.get(name), str)}
    return Passage(passage_id, text, image=image, article=article, extra=extra, **fields)
