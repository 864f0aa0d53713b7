"""Conversion between passages and other libraries' documents (id, text, metadata, picture)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ravqa.collections import Collection
from ravqa.collections.folder import CollectionFolder
from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Passage
from ravqa.images.decode import kept_image
from ravqa.integrations.query_images import query_image

D = TypeVar("D")

_FIELDS = ("title", "section", "entity", "url")


def metadata_of(passage: Passage) -> dict[str, Any]:
    """Return `Passage.extra` with title, section, entity and url under their names."""
    fields = {name: getattr(passage, name) for name in _FIELDS}
    return {**passage.extra, **{k: v for k, v in fields.items() if v is not None}}


def checked(documents: Any, kind: type[D]) -> list[D]:
    """Return documents as a list.

    Raises:
        UserError: they are something else, or one of them is.
    """
    found = list(documents) if isinstance(documents, Iterable) else [documents]
    for document in found:
        if not isinstance(document, kind):
            raise UserError(
                f"a list of documents ({kind.__name__}) is expected, with "
                f"{type(document).__name__} in it"
            )
    return found


def collection_for(
    persist_dir: Path | str, pipeline: str, overrides: Sequence[str], *, exist_ok: bool
) -> Collection:
    """Return a new collection for documents or, with `exist_ok`, the one in the folder.

    Raises:
        UserError: see `Collection.create` and `Collection.open_or_create`.
    """
    if exist_ok:
        return Collection.open_or_create(persist_dir, pipeline, *overrides)
    mend = (
        "open it with from_persist_dir, or pass exist_ok=True to from_documents to update it with "
        "the documents"
    )
    CollectionFolder(Path(persist_dir), mend=mend).check_new(begun=True)
    return Collection.create(persist_dir, pipeline, *overrides)


def picture_of(name: str, image: Any) -> Path | None:
    """Return a document's picture: a path as it is, encoded bytes as a file of the cache folder.

    Args:
        name: the document's id, for messages.
        image: a path, a file:// URL, a data: URI or encoded bytes; None or "" for no picture.

    Raises:
        DataError: it is something else; web addresses are not fetched.
    """
    try:
        found = query_image(image)
    except UserError as e:
        raise DataError(f"document {name}: {e}") from None
    return kept_image(found) if isinstance(found, bytes) else found


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
