"""The interface of describers, which put into text what images show."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ravqa.core.records import Description
from ravqa.core.settings import Strict


class Describer(ABC):
    """A component that describes images in text.

    Attributes:
        fingerprint: changes with everything that can change a description.
        weights: the weights' names, for display; "" without weights.
    """

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
