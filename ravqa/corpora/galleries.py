"""Images of articles: from a list or a folder, each with the name of its article.

    FOLDER/NAME/photo.jpg          the folder's name is the article's
    FOLDER/NAME.jpg                the file's name is, also with a number after it ("NAME-2.jpg")
    list.jsonl, .csv, .tsv,        rows with an article's name (article, wikipedia_url, url,
    .parquet                       wikidata_id, entity_id, entity, wikipedia_title, title or name)
                                   and its image or images (image, images, image_path, image_url,
                                   image_urls, wikipedia_image_url or file)
    list.json, .json.gz, .zip      {name: image or images}, or Encyclopedic-VQA's knowledge base
                                   (EchoSight's has its layout): {url: {image_urls, ...}}

Web addresses are not fetched: the file of an address is the one with its last part as name, its
percent signs decoded, in the folder of the images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import file_digest
from ravqa.core.records import Passage
from ravqa.core.settings import fingerprint
from ravqa.corpora.kb import read_pages
from ravqa.corpora.row_images import is_there
from ravqa.corpora.tables import read_rows
from ravqa.corpora.values import cell_items, is_blank, list_of
from ravqa.images.decode import SUFFIXES
from ravqa.images.folder import ImageFolder

NAMES = (
    *("article", "wikipedia_url", "url", "wikidata_id", "entity_id", "entity"),
    *("wikipedia_title", "title", "name"),
)
"""Columns that name an article, the surest first."""
IMAGES = (
    *("image", "images", "image_path", "image_paths", "file", "files"),
    *("image_url", "image_urls", "wikipedia_image_url"),
)
"""Columns that name its images."""

_JSON = (".json", ".json.gz", ".zip")
_SEPARATORS = re.compile(r"[\s_-]+")
_NUMBER = re.compile(r"[\s_.-]*\(?\d+\)?$")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One image of an article.

    Attributes:
        names: names of the article: URL, entity, title, whichever the list has; for a file of a
            folder, its name.
        path: the file, or where it is expected.
        where: its place in the list, for messages.
        series: the name of a file without the number after it, which may be the article's if no
            name is; "" without a number.
    """

    names: tuple[str, ...]
    path: Path
    where: str
    series: str = ""

    @property
    def exists(self) -> bool:
        """Whether the file is there."""
        return is_there(self.path)

    @property
    def forms(self) -> Sequence[tuple[str, ...]]:
        """What may be the article's name, the surest first: names as they are, then `plain_name`s.

        First those of `names`, then those of `series`.
        """
        series = (self.series,) if self.series else ()
        return *_forms(self.names), *_forms(series)


def plain_name(name: str) -> str:
    """Return a name without what does not count: case, and which of space, "_" and "-" it has."""
    return _SEPARATORS.sub(" ", name).strip().casefold()


def _forms(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(names), tuple(map(plain_name, names))


def read_gallery(source: Path, folder: Path | None = None) -> Iterator[GalleryImage]:
    """Yield the images of a list or a folder, those that are missing included.

    Args:
        source: the list or folder.
        folder: where the images of a list lie; None for the list's own folder.

    Raises:
        DataError: a missing or broken list, a row without a name, a name that leaves the folder.
    """
    if source.is_dir():
        yield from _of_folder(source)
        return
    if not source.exists():
        raise DataError(f"no such file or folder: {source}")
    images = ImageFolder(folder or source.parent)
    suffix = "".join(source.suffixes[-2:] if source.suffix == ".gz" else source.suffixes[-1:])
    if suffix.lower() in _JSON:
        for where, name, value in read_pages(source):
            held = _images_in(value) if isinstance(value, Mapping) else value
            yield from _of_row(where, (name,), held, images)
        return
    for where, row in read_rows(source):
        names = tuple(str(row[c]) for c in NAMES if c in row and not is_blank(row[c]))
        if not names:
            raise DataError(
                f"{where}: no article is named: a column {', '.join(NAMES)} is expected"
            )
        if not any(column in row for column in IMAGES):
            raise DataError(f"{where}: no image: a column {', '.join(IMAGES)} is expected")
        yield from _of_row(where, names, _images_in(row), images)


def gallery_key(source: Path) -> str:
    """Return what changes with a list, or with the names and sizes of a folder's pictures.

    Raises:
        DataError: the list or folder cannot be read.
    """
    try:
        if not source.is_dir():
            return file_digest(source)
        paths = [image.path for image in _of_folder(source)]
        return fingerprint([[str(p.relative_to(source)), p.stat().st_size] for p in paths])
    except OSError as e:
        raise DataError(f"{source} cannot be read: {e.strerror or e}") from None


class ArticlePictures:
    """The pictures of passages: their own, or those that a list or folder has of their articles."""

    def __init__(self, source: Path | None = None, folder: Path | None = None):
        """Read the list, if there is one; arguments as for `read_gallery`.

        Raises:
            DataError: as `read_gallery`.
        """
        self._known: tuple[dict[str, list[Path]], ...] = ({}, {}, {}, {})
        for image in read_gallery(source, folder) if source is not None else ():
            for known, names in zip(self._known, image.forms, strict=True):
                for name in names:
                    known.setdefault(name, []).append(image.path)

    def of(self, passage: Passage) -> Path | None:
        """Return a passage's own picture, else the first of its article; None without any.

        Of several pictures of an article, those whose file is missing come last. Names of articles
        match in the order of `GalleryImage.forms`.
        """
        if passage.image is not None or not any(self._known):
            return passage.image
        asked = _forms(passage.article_names) * 2
        found = [
            known.get(name)
            for known, names in zip(self._known, asked, strict=True)
            for name in names
        ]
        paths = next(filter(None, found), [])
        return next(filter(is_there, paths), paths[0] if paths else None)


def _of_folder(folder: Path) -> Iterator[GalleryImage]:
    found = False
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        found = True
        parts = path.relative_to(folder).parts
        name, series = parts[0], ""
        if len(parts) == 1:
            name = path.stem
            series = _NUMBER.sub("", name)
        yield GalleryImage((name,), path, str(path), series if series != name else "")
    if not found:
        raise DataError(f"{folder}: the folder has no images")


def _images_in(row: Mapping[str, Any]) -> Any:
    """Return the image or images of the first column that has any; [] if none has."""
    cells = (row.get(column) for column in IMAGES)
    return next((cell for cell in cells if cell != [] and not is_blank(cell)), [])


def _of_row(
    where: str, names: tuple[str, ...], value: Any, images: ImageFolder
) -> Iterator[GalleryImage]:
    try:
        found: Any = list_of(cell_items(value), "image")
        for name in found:
            if not isinstance(name, str):
                raise DataError(f"the image {name!r:.40} is no name of a file")
            yield GalleryImage(names, images.look(_file_name(name))[0], where)
    except UserError as e:
        raise DataError(f"{where}: {e}") from None


def _file_name(name: str) -> str:
    if not _ADDRESS.match(name):
        return name
    return unquote(urlsplit(name).path.rpartition("/")[2])


def passage_image(passage: Passage) -> GalleryImage | None:
    """Return the image of a passage, if it has one."""
    if passage.image is None:
        return None
    return GalleryImage(passage.article_names, passage.image, f"passage {passage.passage_id}")


def missing_images(images: Sequence[GalleryImage], of: str = "the gallery") -> str:
    """Return how many of the images are not there, and the first of them; "" if all are.

    Args:
        of: what they are images of, for the message.
    """
    missing = [image for image in images if not image.exists]
    if not missing:
        return ""
    first = missing[0]
    return (
        f"{len(missing)} of {len(images)} images of {of} are missing, such as {first.path} "
        f"({first.where})"
    )
