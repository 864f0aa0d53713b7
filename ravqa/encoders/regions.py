"""The pictures that FLMR sees of a question: the whole photo and its regions of interest."""

from __future__ import annotations

import io
from pathlib import Path

from ravqa.core.errors import PromptError
from ravqa.core.records import Question, Region
from ravqa.images.decode import open_image

Picture = Path | bytes | None

_SMALL = 5.0  # pixels: smaller crops are enlarged by half of it on each side


def pictures_of(question: Question, count: int) -> list[Picture]:
    """Return the question's photo, and `count` regions of it as encoded images.

    As in FLMR's example (LinWeizheDragon/FLMR, examples/example_use_flmr.py), the last region is
    repeated if there are fewer, and one of less than 5 pixels in both directions is enlarged by 2.5
    pixels on each side. A photo without regions takes their places itself.

    Returns:
        1 + `count` pictures; all None for a question without a photo.

    Raises:
        DataError: the photo cannot be decoded.
        PromptError: a region lies outside of it.
    """
    if question.image is None or not count:
        return [question.image] * (1 + count)
    regions = regions_of(question, count)
    crops: list[Picture] = []
    if regions:
        photo = open_image(question.image)
        for region in regions:
            file = io.BytesIO()
            crop = photo.crop(_crop(region, photo.size))
            crop.save(file, "PNG", compress_level=1)
            crops.append(file.getvalue())
    pictures: list[Picture] = [question.image, *crops]
    return pictures + [pictures[-1]] * (1 + count - len(pictures))


def regions_of(question: Question, count: int) -> tuple[Region, ...]:
    """Return the regions that count: the first of the question's description."""
    return question.description.regions[:count] if question.description else ()


def _crop(region: Region, size: tuple[int, int]) -> tuple[float, float, float, float]:
    xmin, ymin, xmax, ymax = region.box
    if xmax - xmin < _SMALL and ymax - ymin < _SMALL:
        half = _SMALL / 2
        xmin, ymin = max(0.0, xmin - half), max(0.0, ymin - half)
        xmax, ymax = min(float(size[0]), xmax + half), min(float(size[1]), ymax + half)
    inside = xmin < size[0] and ymin < size[1] and xmax > 0 and ymax > 0
    if not inside or round(xmax) <= round(xmin) or round(ymax) <= round(ymin):
        raise PromptError(
            f"the region {list(region.box)} of {region.label!r} is not inside the picture of "
            f"{size[0]}x{size[1]} pixels"
        )
    return xmin, ymin, xmax, ymax
