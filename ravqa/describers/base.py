"""The interface of describers, which put into text what images show."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ravqa.core.cache import Store
from ravqa.core.records import Description, Question
from ravqa.core.settings import Strict
from ravqa.readers.base import Reader


class Describer(ABC):
    """A component that describes images in text.

    Attributes:
        fingerprint: changes with everything that can change a description.
        weights: the weights' names, for display; "" without weights.
        kept: whether the pipeline keeps its descriptions on disk; not if they are looked up.
        stores: where a describer that is not `kept` keeps results itself, for counts.
        readers: the readers that it asks.
    """

    kept: ClassVar[bool] = True
    stores: Sequence[Store] = ()
    readers: Sequence[Reader] = ()

    class Config(Strict):
        """The describer's options; a subclass with options overrides this class."""

    fingerprint: str
    weights: str = ""

    def __init__(self, config: Any = None):
        """Take the describer's validated options; None for their defaults.

        Raises:
            UserError: what the describer needs (a package, a model, a file) does not exist.
        """
        self.config: Any = self.Config() if config is None else config

    @abstractmethod
    def describe(self, images: Sequence[Path | bytes]) -> list[Description]:
        """Return one description per image, in order.

        Args:
            images: paths, or encoded bytes.

        Raises:
            DataError: an image cannot be decoded.
            PromptError: the describer cannot process one of the images.
        """

    @property
    def reads_questions(self) -> bool:
        """Whether a description depends on more of a question than its image.

        Then `describe_questions` is overridden, and `asked` says on what else.
        """
        return False

    def describe_questions(self, questions: Sequence[Question]) -> list[Description]:
        """Return one description per question, of its image, in order.

        Args:
            questions: each has an image.

        Raises:
            DataError, PromptError: as `describe`.
        """
        return self.describe([q.image for q in questions if q.image is not None])

    def asked(self, question: Question) -> Any:
        """Return what decides the description of a question's image, beside the image: JSON."""
        return None
