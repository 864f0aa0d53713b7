"""The image of a row, in the forms that the hub, pandas and people use.

    text                a path below the image folder, a data URI, or the image in base64
    bytes               the encoded image
    {bytes, path}       as `datasets` writes; the path counts if there are no bytes
    a list of one       any of these

Web addresses are not fetched. For a row whose image is unavailable, the result says why.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError
from ravqa.corpora.values import is_blank, kind_of, list_of, text_of
from ravqa.images.decode import SUFFIXES, is_image, kept_image
from ravqa.images.folder import ImageFolder

HELD = ("image", "images", "img", "imgs", "image_bytes", "img_bytes", "picture", "photo")
"""Columns that hold or name an image, in any form."""
NAMED = (
    *("img_path", "image_path", "img_file", "image_file", "img_file_name", "image_file_name"),
    *("image_filename", "image_name", "image_url", "img_url", "coco_url", "image_file_path"),
    *("img_file_path", "image_uri", "image_link", "photo_path", "photo_url", "picture_path"),
)
"""Columns that name an image; case, "_", "-" and spaces in their names do not count."""

_SEPARATORS = re.compile(r"[\s_-]+")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}+={0,2}\s*")

_NONE = "which is blank for a question without an image"
_PRINTED_IMAGE = re.compile(
    r"""\[?(?:\{'(?:bytes|path)': .{0,4096}?)?b['"](?:\\x89PNG|\\xff\\xd8|RIFF|GIF8)"""
)
_LONGEST_NAME = 4096  # bytes of a path
_IMAGE_NAME = re.compile(rf"[^\n]+(?:{'|'.join(map(re.escape, SUFFIXES))})\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RowImage:
    """The image of a row, if it has one.

    Attributes:
        path: the image, or where it is expected; None if the row has none.
        name: the row's name for it; for an image inside the row, a hash of its bytes.
        missing: why it is unavailable, if already known; "" otherwise.
        held: whether the row itself holds the image.
        source: the original name of an image inside the row, as `datasets` keeps it.
        empty: the column for images exists but is blank.
    """

    path: Path | None = None
    name: str | None = None
    missing: str = ""
    held: bool = False
    empty: bool = False
    source: str = ""


class _MissingError(DataError):
    """An image is named but unavailable."""


def image_of(
    row: Mapping[str, Any],
    images: ImageFolder,
    columns: Sequence[str] = (*HELD, *NAMED),
    *,
    by_stem: bool = False,
) -> RowImage:
    """Return the image of a row; an image inside the row is written to the cache folder.

    Of several columns with these names, the first with an existing image counts. If it is unknown
    which image is meant, because there is one in a numbered column too ("image2"), or in several
    columns with other names, the image is unavailable.

    Args:
        images: where names are looked up.
        columns: columns that hold or name the image; other columns count if they hold an image as
            bytes.
        by_stem: see `ImageFolder.find`.

    Raises:
        DataError: a name leaves the folder, or matches several files.
    """
    named = named_columns(row, columns)
    held = held_columns(row, named)
    if len(several := _several(row, columns, named, held)) > 1:
        listed = ", ".join(map(repr, several))
        return _unavailable(
            f"{listed} hold {len(several)} images: one is expected, in a column 'image'", images
        )
    first: RowImage | None = None
    for column in named + held:
        if _is_empty(row[column]):
            continue
        try:
            found = _read(row[column], column, images, by_stem)
        except _MissingError as e:
            found = _unavailable(str(e), images)
        if found.held or (found.path and not found.missing and is_there(found.path)):
            return found
        first = first or found
    return first or RowImage(empty=bool(named_columns(row, HELD)))


def _several(
    row: Mapping[str, Any], names: Sequence[str], named: Sequence[str], held: Sequence[str]
) -> list[str]:
    """Return the columns with images of which each may be the row's own."""
    numbered = [
        column
        for column in _columns_numbered(tuple(row), tuple(names))
        if column in held or _seems_image(row[column])
    ]
    given = next((column for column in named if not _is_empty(row[column])), None)
    if given is not None:
        return [given, *numbered]
    return list(dict.fromkeys([*held, *numbered]))


@lru_cache(maxsize=256)
def _columns_numbered(columns: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns with one of the names and a number: "image2", "image_1"."""
    plain = {_SEPARATORS.sub("", name).lower() for name in names}
    found = {column: _SEPARATORS.sub("", column).lower() for column in columns}
    return tuple(
        c for c, name in found.items() if name not in plain and name.rstrip("0123456789") in plain
    )


def _unavailable(reason: str, images: ImageFolder) -> RowImage:
    # The path shows the reason to whoever looks for the image later.
    return RowImage(images.root / f"<{reason[:100]}>", missing=reason)


def named_columns(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the columns with these names, whatever their case and separators, in that order."""
    return list(_columns_named(tuple(row), tuple(names)))


@lru_cache(maxsize=256)  # the rows of a table have the same columns
def _columns_named(columns: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    found = {_SEPARATORS.sub("", column).lower(): column for column in reversed(columns)}
    plain = (_SEPARATORS.sub("", name).lower() for name in names)
    return tuple(dict.fromkeys(found[name] for name in plain if name in found))


def unread_image(row: Mapping[str, Any], known: Collection[str]) -> str:
    """Return why a row without a column for images seems to have one nevertheless; "" if not.

    Args:
        known: columns that hold something else.
    """
    if named_columns(row, (*HELD, *NAMED)):
        return ""
    for column, value in row.items():
        if column not in known and _seems_image(value):
            return f"{column!r} seems to hold an image: call that column 'image' ({_NONE})"
    return ""


def held_columns(row: Mapping[str, Any], others: Collection[str] = ()) -> list[str]:
    """Return the columns, except `others`, that hold an image as bytes, whatever their name."""
    return [c for c, value in row.items() if c not in others and _holds(value)]


def is_there(path: Path) -> bool:
    """Return whether a path from `image_of` leads to a file, or into an archive."""
    try:
        return path.exists() or any(p.is_file() for p in path.parents)
    except (OSError, ValueError):
        return False


def _holds(value: Any) -> bool:
    if isinstance(value, str):  # of the other kinds there are few
        return False
    if isinstance(value, list) and len(value) == 1:
        return _holds(value[0])
    if isinstance(value, dict):
        return value.keys() == {"bytes", "path"} and isinstance(value["bytes"], bytes)
    return isinstance(value, bytes) and is_image(value)


def _seems_image(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(map(_seems_image, value.values() if isinstance(value, dict) else value))
    if not isinstance(value, str):
        return False
    named = len(value) <= _LONGEST_NAME and _IMAGE_NAME.fullmatch(value)
    return bool(named or _DATA_URI.match(value) or _PRINTED_IMAGE.match(value))


def _is_empty(value: Any) -> bool:
    """Return whether a value is blank, empty bytes, an empty list, or lacks both bytes and path."""
    if isinstance(value, list | tuple):
        return all(map(_is_empty, value))
    if isinstance(value, dict):
        return all(map(_is_empty, value.values()))
    return value == b"" if isinstance(value, bytes) else is_blank(value)


def _read(value: Any, column: str, images: ImageFolder, by_stem: bool) -> RowImage:
    if hasattr(value, "tolist") and not isinstance(value, str):
        value = value.tolist()
    if isinstance(value, list | tuple):
        value = [item for item in value if not _is_empty(item)]
        if not value:
            return RowImage(empty=True)
        if len(value) != 1:
            kinds = {type(item) for item in value}
            if kinds <= {int, float, list}:
                raise _MissingError(
                    f"{column!r} holds numbers: an encoded image or a path is expected"
                )
            raise _MissingError(f"{column!r} holds {len(value)} images: one is expected")
        return _read(value[0], column, images, by_stem)
    if isinstance(value, dict):
        for key in ("bytes", "path"):
            if not _is_empty(value.get(key)):
                path = value.get("path")
                source = path if isinstance(path, str) else ""
                return replace(_read(value[key], column, images, by_stem), source=source)
        raise _MissingError(f"{column!r} holds {kind_of(value)}: bytes or path are expected")
    if isinstance(value, bytes | bytearray | memoryview):
        return _kept(bytes(value))
    try:
        held = list_of(value, column)
        name = text_of(value, column) or ""
    except DataError as e:
        raise _MissingError(str(e)) from None
    if held != [value]:  # the text of a JSON list or object
        return _read(held, column, images, by_stem)
    return _named(name.strip(), column, images, by_stem)


def _named(name: str, column: str, images: ImageFolder, by_stem: bool) -> RowImage:
    uri = _DATA_URI.match(name)
    if uri or _BASE64.fullmatch(name):
        try:
            data = base64.b64decode("".join(name[uri.end() if uri else 0 :].split()), validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if data and (uri or is_image(data)):
            return _kept(data)
        if uri or len(name) > _LONGEST_NAME:
            raise _MissingError(f"{column!r} is not an image in base64: {name[:40]!r}...")
    if name[:5].lower() == "data:":
        raise _MissingError(f"{column!r} is a data URI that is not in base64: {name[:40]!r}")
    if _ADDRESS.match(name):
        raise _MissingError(
            f"the image {name!r} is an address, which is not fetched: download it and give the "
            "name of the file"
        )
    path, missing = images.look(name, by_stem=by_stem)
    if Path(name).is_absolute():  # its name must not depend on the folder's location
        name = path.relative_to(images.root).as_posix()
    return RowImage(path, name, missing)


def _kept(data: bytes) -> RowImage:
    path = kept_image(data)
    return RowImage(path, path.name, held=True)
