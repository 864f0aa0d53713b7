"""Regions of interest: the boxes in a photo that FLMR encodes as images of their own.

The rule is RA-VQA's (LinWeizheDragon/Retrieval-Augmented-Visual-Question-Answering,
src/data_ops/vqa_data_ops.py, CropRegionOfInterestImages): first the objects whose label is in the
question, as they come, then the largest ones, except those inside of a chosen one with the same
label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ravqa.core.factory import Session, build_part
from ravqa.core.records import Description, Question, Region
from ravqa.core.registry import table
from ravqa.core.settings import Part, Strict, fingerprint
from ravqa.describers.base import Describer
from ravqa.describers.cached import CachedDescriber


class RegionDescriber(Describer):
    """A describer that chooses regions among the objects that another one finds.

    The rest of the other's description stays. Regions that it has, as those of RA-VQA's files, are
    kept in place of a choice.
    """

    kept = False

    class Config(Strict):
        """Options.

        Attributes:
            describer: finds the objects.
            count: most regions of a photo.
        """

        builds_parts: ClassVar[bool] = True

        describer: Part
        count: int = Field(default=9, ge=1, le=100)

    config: Config

    def __init__(self, config: Config, session: Session | None = None):
        """Build the other describer.

        Raises:
            UserError: it cannot be built.
        """
        self.config = config
        inner = build_part(table("describers"), config.describer, "describer", session=session)
        self._inner = CachedDescriber(inner)
        self.stores = self._inner.stores
        self.weights = self._inner.weights
        self.fingerprint = fingerprint("regions/1", config.count, self._inner.fingerprint)

    @property
    def reads_questions(self) -> bool:
        """Whether questions count: their words do."""
        return True

    def asked(self, question: Question) -> Any:
        """Return the words, and what decides the objects beside the image."""
        return [question.question, self._inner.inner.asked(question)]

    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return descriptions with regions of images without a question: the largest objects.

        Raises:
            DataError, PromptError: the other describer cannot describe an image.
        """
        return [self._chosen(found, "") for found in self._inner.describe(images)]

    def describe_questions(self, questions: Sequence[Question]) -> list[Description]:
        """Return descriptions with regions, in order.

        Raises:
            DataError, PromptError: the other describer cannot describe an image.
        """
        found = self._inner.describe_questions(questions)
        return [self._chosen(f, q.question) for f, q in zip(found, questions, strict=True)]

    def _chosen(self, found: Description, question: str) -> Description:
        count = self.config.count
        chosen = found.regions[:count] or regions_of(found.objects, question, count)
        return replace(found, regions=chosen)


def regions_of(objects: Sequence[Region], question: str, count: int) -> tuple[Region, ...]:
    """Return at most `count` objects as regions; see the module's description for the rule.

    Objects of equal area come in the order given.
    """
    words = question.lower()
    chosen = [one for one in objects if one.label.lower().strip() in words]
    for one in sorted(objects, key=_area, reverse=True):
        if len(chosen) >= count:
            break
        if not any(one.label == other.label and _inside(one, other) for other in chosen):
            chosen.append(one)
    return tuple(chosen[:count])


def _area(region: Region) -> float:
    xmin, ymin, xmax, ymax = region.box
    return (xmax - xmin) * (ymax - ymin)


def _inside(inner: Region, outer: Region) -> bool:
    starts = zip(inner.box[:2], outer.box[:2], strict=True)
    ends = zip(inner.box[2:], outer.box[2:], strict=True)
    return all(a >= b for a, b in starts) and all(a <= b for a, b in ends)
