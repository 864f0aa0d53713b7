"""Descriptions of images from files that others made, in the forms in which they are published.

    NAME.tsv    IMAGE <tab> JSON: captions and tags as PICa publishes them, VinVL's objects
    NAME.json   {IMAGE: JSON}: Oscar's captions as RA-VQA reads them; or a list of objects
    NAME.jsonl  one JSON object per line, with the image in one of its keys
    a folder    IMAGE_ocr.json: RA-VQA's texts, one file per image

The JSON of an image is a text (its caption), a list of

    {"caption": text, "conf": number}                           captions; the surest counts
    {"class": text, "conf": number}                             tags
    {"class": text, "rect": [xmin, ymin, xmax, ymax], ...}      objects
    {"description": text, "vertices": [...]}                    texts in the image

or an object with any of `caption`, `tags`, `objects`, `ocr` (such lists, or texts), Google's
`filtered_text_annotations`, and the columns of RA-VQA's questions (`ravqa.datasets.processed`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import file_digest
from ravqa.core.records import Description, Question, Tag
from ravqa.core.settings import LocalPath, Strict, fingerprint
from ravqa.core.texts import number_of
from ravqa.corpora.tables import JSON_LINES, Row, open_text, read_json, read_jsonl, suffix_of
from ravqa.corpora.values import id_of, is_blank, text_of
from ravqa.datasets.processed import description_of, image_key
from ravqa.describers.base import Describer
from ravqa.describers.merging import merged
from ravqa.images.decode import SUFFIXES, image_size

_WHY = "the describer file"
_IMAGE = ("image_id", "img_key", "img_id", "image", "img_path", "image_path", "file_name")
_PARTS = frozenset(
    [
        "caption",
        "filtered_text_annotations",
        "img_caption",
        "img_ocr",
        "objects",
        "ocr",
        "ROIs",
        "tags",
    ]
)
_SLACK = 2.0  # pixels by which a detector's box may exceed the picture


class FileDescriber(Describer):
    """A describer that looks up what files say of an image, by its id or the name of its file.

    An id stands for the same image in every form: 42, "042" and "COCO_val2014_000000000042.jpg".
    """

    kept = False

    class Config(Strict):
        """Options.

        Attributes:
            files: the files or folders, whose parts of a description are merged.
            missing: how to treat an image that is in none of them: as an error of its questions, or
                without a description.
        """

        files: tuple[LocalPath, ...] = Field(min_length=1)
        missing: Literal["fail", "empty"] = "fail"

        def problems(self) -> Sequence[str]:
            """Files that are not there."""
            return [f"no such file or folder: {path}" for path in self.files if not path.exists()]

    config: Config

    def __init__(self, config: Config):
        """Read the files.

        Raises:
            UserError: a file is missing.
            DataError: a file has another format, or two descriptions of an image.
        """
        self.config = config
        for problem in config.problems():
            raise UserError(f"{_WHY}: {problem}")
        self._known: dict[str, Description] = {}
        for path in config.files:
            for key, found in _read(path).items():
                self._known[key] = merged([self._known.get(key, Description()), found])
        digests = [file_digest(file) for path in config.files for file in _files(path)]
        self.fingerprint = fingerprint("file/2", digests, config.missing)

    @property
    def reads_questions(self) -> bool:
        """Whether more than the image counts: the id of a question's image does."""
        return True

    def asked(self, question: Question) -> Any:
        """Return the id of the image, and the name of its file."""
        image = question.image
        return [question.image_id, image.name if isinstance(image, Path) else None]

    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return what the files say of each image, by the name of its file.

        Raises:
            DataError: an image is in none of the files, or a box lies outside of it.
        """
        return [self._found(image, ()) for image in images]

    def describe_questions(self, questions: Sequence[Question]) -> list[Description]:
        """Return what the files say of each question's image, by its id or the name of its file.

        Raises:
            DataError: as `describe`.
        """
        return [self._found(q.image, (q.image_id,)) for q in questions]

    def _found(self, image: Path | bytes | None, ids: Iterable[int | str | None]) -> Description:
        names = [str(i) for i in ids if i is not None]
        names += [image.name] if isinstance(image, Path) else []
        key = next((key for key in map(_key, names) if key in self._known), None)
        if key is not None:
            found = self._known[key]
            _check_boxes(found, names[0], image)
            return found
        if self.config.missing == "empty":
            return Description()
        where = ", ".join(map(str, self.config.files))
        if not names:
            raise DataError(f"{where}: an image without id and name cannot be looked up")
        raise DataError(
            f"{where}: no description of the image {names[0]}, only of "
            f"{number_of(len(self._known), 'other')}, such as {next(iter(self._known))}"
        )


def _check_boxes(found: Description, name: str, image: Path | bytes | None) -> None:
    """Raise DataError if a box lies outside of the picture: of another image, or another size."""
    marked = [(region.label, region.box) for region in (*found.objects, *found.regions)]
    if not marked or image is None:
        return
    width, height = image_size(image)
    for label, (xmin, ymin, xmax, ymax) in marked:
        inside = min(xmin, ymin) >= -_SLACK and xmax <= width + _SLACK and ymax <= height + _SLACK
        if not (inside and xmin <= xmax and ymin <= ymax):
            raise DataError(
                f"the image {name}: the box {[xmin, ymin, xmax, ymax]} of {label!r} is not inside "
                f"the picture of {width}x{height} pixels (is it of a copy in another size?)"
            )


def _key(name: str) -> str:
    """Return one text for all forms of an image's name or id."""
    path = Path(name)
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return image_key(stem) or stem


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.json")) if path.is_dir() else [path]


def _read(path: Path) -> dict[str, Description]:
    """Return the descriptions in a file or folder, by `_key`.

    Raises:
        DataError: the format is another, or an image has two descriptions.
    """
    found: dict[str, Description] = {}
    describes = False
    for where, name, value in _entries(path):
        describes = describes or not isinstance(value, dict) or not _PARTS.isdisjoint(value)
        try:
            key = _key(str(id_of(name, "image")))
            description = _described(value)
            if found.setdefault(key, description) != description:
                raise DataError(f"the image {name!r} has another description already")
        except DataError as e:
            raise DataError(f"{where}: {e}") from None
    if not describes:
        one_of = f": {', '.join(sorted(_PARTS))} are looked for" if found else ""
        raise DataError(f"{path}: no descriptions{one_of}")
    return found


def _entries(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Yield where an image's description is, the image's name or id, and the JSON."""
    if path.is_dir():
        for file in _files(path):
            yield str(file), file.stem.removesuffix("_ocr"), read_json(file)
    elif suffix_of(path) in JSON_LINES:
        for number, row in read_jsonl(path):
            yield _of_row(f"{path}, line {number}", row)
    elif suffix_of(path) == ".tsv":
        yield from _tab_separated(path)
    elif suffix_of(path) == ".json":
        document = read_json(path)
        if isinstance(document, dict):
            for name, value in document.items():
                yield f"{path}, {name}", name, value
        elif isinstance(document, list):
            for number, row in enumerate(document, 1):
                yield _of_row(f"{path}, item {number}", row)
        else:
            raise DataError(f"{path}: an object or a list is expected")
    else:
        raise DataError(
            f"{path}: a .json, .jsonl or .tsv file, or a folder of .json files, is expected"
        )


def _of_row(where: str, row: Any) -> tuple[str, Any, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: an object is expected")
    name = next((row[column] for column in _IMAGE if not is_blank(row.get(column))), None)
    if name is None:
        raise DataError(f"{where}: no image (one of {', '.join(_IMAGE)})")
    return where, name, row


def _tab_separated(path: Path) -> Iterator[tuple[str, Any, Any]]:
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            name, tab, text = line.rstrip("\r\n").partition("\t")
            where = f"{path}, line {number}"
            if not tab:
                if not name.strip():
                    continue
                raise DataError(f"{where}: an image, a tab and JSON are expected")
            try:
                value = json.loads(text)
                if "\\u" in text:  # half a character, perhaps
                    json.dumps(value, ensure_ascii=False).encode()
                yield where, name, value
            except (ValueError, RecursionError):
                raise DataError(f"{where}: no JSON after the tab") from None


def _described(value: Any) -> Description:
    """Return the description that an image's JSON holds; see the module's description.

    Raises:
        DataError: it is in none of the published forms.
    """
    if isinstance(value, list):
        value = _of_list(value)
    elif isinstance(value, str):
        value = {"caption": value}
    if not isinstance(value, dict):
        raise DataError("a text, a list or an object is expected")
    row = dict(value)
    caption = row.pop("caption", None)
    if isinstance(caption, list):
        caption = _of_list(caption).get("caption")
    if not is_blank(caption):
        row["img_caption"] = caption
    row["objects"] = [_object(item) for item in _list(row, "objects")]
    texts = [*_list(row, "ocr"), *_list(row, "filtered_text_annotations"), *_list(row, "img_ocr")]
    row["img_ocr"] = [{"description": _text(item)} for item in texts]
    found = description_of(row) or Description()
    tags = tuple(map(_tag, _list(row, "tags")))
    return merged([found, Description(tags=tags)])


def _of_list(items: list[Any]) -> Row:
    """Return a list of one kind of records as an object with that key."""
    if not items:
        return {}
    if not all(isinstance(item, dict) for item in items):
        raise DataError("a list of objects is expected")
    first = items[0]
    kind = next((kind for kind in ("caption", "class", "description") if kind in first), None)
    if kind is None:
        raise DataError(
            f"captions, classes or texts are expected, not {', '.join(map(str, first))}"
        )
    if not all(kind in item and ("rect" in item) == ("rect" in first) for item in items):
        raise DataError("a list of captions, of tags, of objects or of texts alone is expected")
    if kind == "caption":
        best = max(items, key=lambda item: _number(item.get("conf", 0.0)))
        return {"caption": best.get("caption")}
    if kind == "class":
        return {"objects" if "rect" in first else "tags": items}
    return {"ocr": items}


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if is_blank(value):
        return []
    if not isinstance(value, list):
        raise DataError(f"{key!r}: a list is expected")
    return value


def _object(item: Any) -> Any:
    """Return a box in RA-VQA's form: VinVL names the attributes' scores otherwise."""
    if not isinstance(item, dict):
        raise DataError("'objects': a list of objects is expected")
    names = {"label": "class", "box": "rect", "attr_scores": "attribute_scores"}
    return {names.get(key, key): value for key, value in item.items()}


def _text(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    if "description" not in item and "text" not in item:
        raise DataError(f"'ocr': a text (description or text) is expected, not {item!r}")
    return item.get("description", item.get("text"))


def _tag(item: Any) -> Tag:
    name, conf = (item.get("class"), item.get("conf", 1.0)) if isinstance(item, dict) else (item, 1)
    text = text_of(name, "tags")
    probability = _number(conf)
    if text is None or not 0 <= probability <= 1:
        raise DataError(f"'tags': a name and a probability from 0 to 1 are expected, not {item!r}")
    return Tag((text,), probability)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"a number is expected, not {value!r}")
    return float(value)
