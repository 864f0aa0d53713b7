"""RA-VQA's processed questions, as in its hub copies and M2KR: one row per question.

Columns (LinWeizheDragon/Retrieval-Augmented-Visual-Question-Answering, vqa_data_ops.py; absent ones
are ignored):

    question_id, question, instruction, answers, gold_answer, pos_item_ids
    img_path                 below the image folder
    img_key, img_id, image_id
    img_caption              {caption, conf} or a string
    objects                  [{class, rect, attributes, attribute_scores, ocr: [{text, ...}]}]
    img_ocr                  [{description, vertices}]
    ROIs                     ["PATH|||CLASS_XMIN_YMIN_XMAX_YMAX"]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError
from ravqa.core.records import Description, Region
from ravqa.corpora.tables import Row
from ravqa.corpora.values import identity, is_blank, text_of


def question_id_of(row: Row) -> str:
    """Return the question's id as text.

    Raises:
        DataError: there is none, or it is neither text nor a whole number.
    """
    question_id = identity(row, "question_id")
    if question_id is None:
        raise DataError("no 'question_id'")
    return str(question_id)


def as_number(value: str) -> int | str:
    """Return an id as a number if its digits are one way to write it: "7", but not "007"."""
    plain = value.isascii() and value.isdecimal() and (value == "0" or value[0] != "0")
    return int(value) if plain else value


def image_id_of(row: Row) -> int | str | None:
    """Return the image's id, as a number if the row has one.

    Raises:
        DataError: it is neither text nor a whole number.
    """
    return identity(row, "img_key", "image_id", "img_id")


def image_key(image_id: int | str | None) -> str | None:
    """Return one text for all forms of an image's id: 42, "042", "COCO_val2014_000000000042"."""
    if image_id is None:
        return None
    name = str(image_id)
    number = int(name) if name.isascii() and name.isdecimal() else coco_number(name)
    return name if number is None else str(number)


def coco_number(name: str) -> int | None:
    """Return the number in the name of a COCO image."""
    stem = Path(name).stem
    number = stem.rpartition("_")[2]
    return int(number) if stem.startswith("COCO_") and number.isdecimal() else None


def description_of(row: Row) -> Description | None:
    """Return the description of the image; None if the row has none.

    Raises:
        DataError: a caption, objects or regions are not in the published format.
    """
    caption = row.get("img_caption")
    if isinstance(caption, dict):
        caption = caption.get("caption")
    try:
        objects = tuple(_object(item) for item in _records(row.get("objects")))
        rois = () if is_blank(row.get("ROIs")) else row["ROIs"]
        regions = tuple(_region(_string(roi)) for roi in rois)
        ocr = [
            (text_of(o["description"], "img_ocr") or "").strip()
            for o in _records(row.get("img_ocr"))
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"objects, img_ocr or ROIs cannot be read ({e!r})") from None
    found = Description(
        caption=(text_of(caption, "img_caption") or "").strip(),
        # FLMR reads each string once, without line breaks.
        ocr=tuple(dict.fromkeys(string.replace("\n", " ") for string in ocr if string)),
        objects=objects,
        regions=regions,
    )
    return None if found == Description() else found


def _records(value: Any) -> list[dict[str, Any]]:
    """Return a list of mappings, even if `datasets` turned it into a mapping of lists."""
    if isinstance(value, dict):
        columns = {k: v for k, v in value.items() if isinstance(v, list)}
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]
    return [] if is_blank(value) else list(value)


def _object(item: dict[str, Any]) -> Region:
    attributes = zip(item.get("attributes") or (), item.get("attribute_scores") or (), strict=True)
    return Region(
        label=_string(item["class"]),
        box=_box(item["rect"]),
        attributes=tuple((_string(word), float(score)) for word, score in attributes),
        ocr=tuple(_string(o["text"]) for o in _records(item.get("ocr"))),
    )


def _region(roi: str) -> Region:
    label, *corners = roi.rpartition("|||")[2].rsplit("_", 4)
    return Region(label=label, box=_box(corners))


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _box(values: Sequence[Any]) -> tuple[float, float, float, float]:
    xmin, ymin, xmax, ymax = (float(value) for value in values)
    if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
        raise ValueError(f"the box {[xmin, ymin, xmax, ymax]} has corners that are not finite")
    return xmin, ymin, xmax, ymax
