"""What describers that load one model of the hub have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from ravqa.core.checkpoints import loading
from ravqa.core.devices import own_device
from ravqa.core.model_files import commit_of, model_fingerprint, resolve
from ravqa.core.settings import ModelName, Strict, Text, fingerprint
from ravqa.describers.base import Describer


class ModelDescriber(Describer):
    """A describer by one model of transformers, loaded when it is built.

    Attributes:
        WHY: which part loads, for messages.
        VERSION: changes when the same model and settings come to describe otherwise.
        COUNTING: the settings, besides the model, on which descriptions depend.
    """

    class Config(Strict):
        """Options.

        Attributes:
            model: folder or hub name.
            device: "auto" for an accelerator if available.
        """

        model: ModelName
        device: Text = "auto"

    WHY: ClassVar[str]
    VERSION: ClassVar[str]
    COUNTING: ClassVar[frozenset[str]]

    config: Config

    def __init__(self, config: Config):
        """Load the model.

        Raises:
            UserError: it cannot be loaded, or is not for this describer with these settings.
        """
        self.config = config
        self.weights = config.model
        self._device = own_device(config.device, self.WHY)
        path = resolve(config.model, extra="sample", why=self.WHY)
        with loading(self.WHY, config.model, path):
            self._load(path)
        self.fingerprint = fingerprint(
            self.VERSION,
            config.model_dump(include=set(self.COUNTING)),
            model_fingerprint(path),
            commit_of(path),
        )

    @abstractmethod
    def _load(self, path: str) -> None:
        """Load the model and what prepares its input from a folder or the hub's cache.

        Raises:
            UserError: the model is not for this describer with these settings.
        """
