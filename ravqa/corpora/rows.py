"""Rows of tables as passages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ravqa.core.errors import DataError
from ravqa.core.records import Passage
from ravqa.corpora import row_images
from ravqa.corpora.remarks import Remarks
from ravqa.corpora.tables import Row
from ravqa.corpora.values import id_of, is_blank, text_of
from ravqa.images.decode import broken_images, image_size, is_image_file
from ravqa.images.folder import ImageFolder

ID_COLUMNS = ("passage_id", "id", "_id", "kid")
TEXT_COLUMNS = ("text", "passage_content", "content", "contents")

_IMAGES = (*row_images.HELD, "image_path")
_CHECKED = 256  # passages whose images are checked together


def whole(passages: Iterable[Passage], where: Path | str, remarks: Remarks) -> Iterator[Passage]:
    """Yield the passages except those whose image is missing or broken, which are reported.

    Args:
        where: where they come from, for messages.
    """
    left = iter(passages)
    while several := list(itertools.islice(left, _CHECKED)):
        broken = broken_images([p.image for p in several if p.image is not None])
        for passage in several:
            reason = broken.get(passage.image) if passage.image else None
            if reason is None:
                yield passage
            else:
                remarks.break_off(f"{where}, passage {passage.passage_id!r}", reason)


def row_passage(row: Row, images: ImageFolder, number: str | None = None) -> Passage:
    """Return the passage of a row.

    Args:
        images: the folder that its images are in.
        number: its id if there is no column of ids; None if there must be one.

    Raises:
        DataError: it has no id or no text, or a value or its image cannot be used.
    """
    names, row = list(row), dict(row)

    def take(*columns: str) -> str | None:
        for column in columns:
            value = row.pop(column, None)
            if value is not None and (text := text_of(value, column)) is not None:
                return text
        return None

    def needed(what: str, value: int | str | None, columns: Sequence[str]) -> str:
        if value is None:
            raise DataError(
                f"no {what} (column {' or '.join(columns)}); the columns are {', '.join(names)}"
            )
        return str(value)

    ids = (id_of(row.pop(column, None), column) for column in ID_COLUMNS)
    given = next((i for i in ids if i is not None), None)
    if given is None and not any(column in names for column in ID_COLUMNS):
        given = number
    passage_id = needed("passage id", given, ID_COLUMNS)
    text = needed("text", take(*TEXT_COLUMNS), TEXT_COLUMNS)
    image = row_images.image_of(row, images, _IMAGES)
    if image.missing:
        raise DataError(image.missing)
    if image.path is not None and not image.held:
        if not row_images.is_there(image.path):
            raise DataError(f"no image {image.name!r} below {images.root}")
        if not is_image_file(image.path):
            image_size(image.path)  # raises if it is no image of a rarer kind either
    for column in (*row_images.named_columns(row, _IMAGES), *row_images.held_columns(row)):
        row.pop(column, None)
    title, article = take("title"), take("article")
    if title and text.startswith(f"title: {title}"):
        # M2KR's texts begin with their title: it must not be prepended again.
        title, article = None, article or title
    return Passage(
        passage_id=passage_id,
        text=text,
        title=title,
        image=image.path,
        section=take("section"),
        article=article,
        entity=take("entity"),
        url=take("url"),
        # Bytes are vectors and the like.
        extra={k: v for k, v in row.items() if not isinstance(v, bytes) and not is_blank(v)},
    )
