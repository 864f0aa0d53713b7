"""Several describers whose descriptions become one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ravqa.core.factory import Session, build_part
from ravqa.core.records import Description, Question
from ravqa.core.registry import table
from ravqa.core.settings import Part, Strict, fingerprint
from ravqa.describers.base import Describer
from ravqa.describers.cached import CachedDescriber
from ravqa.describers.merging import merged


class SeveralDescribers(Describer):
    """A describer that merges what others say, in the order in which they are listed.

    The descriptions of each are kept on their own, so that one more describer, or other options of
    one, leave those of the others as they are.
    """

    kept = False

    class Config(Strict):
        """Options.

        Attributes:
            describers: the describers, each with its options.
        """

        builds_parts: ClassVar[bool] = True

        describers: tuple[Part, ...] = Field(min_length=1)

    config: Config

    def __init__(self, config: Config, session: Session | None = None):
        """Build the describers.

        Raises:
            UserError: one of them cannot be built.
        """
        self.config = config
        built = [
            build_part(table("describers"), part, f"describers.{i}", session=session)
            for i, part in enumerate(config.describers)
        ]
        self._parts = [CachedDescriber(part) for part in built]
        self.stores = [store for part in self._parts for store in part.stores]
        self.readers = [reader for part in built for reader in part.readers]
        self.weights = ", ".join(dict.fromkeys(p.weights for p in self._parts if p.weights))
        self.fingerprint = fingerprint("several/2", [part.fingerprint for part in self._parts])

    @property
    def reads_questions(self) -> bool:
        """Whether one of them reads questions."""
        return any(part.inner.reads_questions for part in self._parts)

    def asked(self, question: Question) -> Any:
        """Return what decides the description beside the image, for each of them."""
        return [part.inner.asked(question) for part in self._parts]

    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return the merged description of each image, in order.

        Raises:
            DataError, PromptError: one of them cannot describe an image.
        """
        found = [part.describe(images) for part in self._parts]
        return [merged(one) for one in zip(*found, strict=True)]

    def describe_questions(self, questions: Sequence[Question]) -> list[Description]:
        """Return the merged description of each question's image, in order.

        Raises:
            DataError, PromptError: as `describe`.
        """
        found = [part.describe_questions(questions) for part in self._parts]
        return [merged(one) for one in zip(*found, strict=True)]
