"""One description of what several describers say of an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from ravqa.core.records import Description, Tag

T = TypeVar("T")


def merged(parts: Sequence[Description]) -> Description:
    """Return one description: of each kind everything that is said, once, in the order given.

    Captions stand one after the other. Tags come by decreasing probability; of several with the
    same first name, whatever the case, the most probable stays. Regions are those of the first
    description that has some: they were chosen together.
    """
    captions = _each_once((one.caption.strip(),) for one in parts)
    return Description(
        tags=_tags(one.tags for one in parts),
        caption=" ".join(caption for caption in captions if caption),
        ocr=_each_once(one.ocr for one in parts),
        objects=_each_once(one.objects for one in parts),
        regions=next((one.regions for one in parts if one.regions), ()),
        lines=_each_once(one.lines for one in parts),
    )


def _tags(groups: Iterable[tuple[Tag, ...]]) -> tuple[Tag, ...]:
    best: dict[str, Tag] = {}
    tags = (tag for group in groups for tag in group)
    for tag in sorted(tags, key=lambda tag: -tag.probability):
        best.setdefault(tag.names[0].casefold(), tag)
    return tuple(best.values())


def _each_once(groups: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(item for group in groups for item in group))
