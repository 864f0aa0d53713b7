"""The bundled sample (`ravqa/datasets/sample`): the files, photos and passages of its editions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ravqa.core.errors import UserError
from ravqa.core.locations import SAMPLE
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.tables import read_json
from ravqa.datasets.base import DatasetRequest, ImageOptions

DEFAULT = 2
"""Edition that is used if none is named."""


class SampleOptions(ImageOptions):
    """Options of a dataset in whose form the bundled sample exists.

    Attributes:
        edition: edition of the bundled sample (its README tells them apart); None for the default.
    """

    edition: Literal[1, 2] | None = None


@dataclass(frozen=True, slots=True)
class Edition:
    """One edition of the bundled sample. The photos of all editions are below `SAMPLE`."""

    number: int

    @property
    def folder(self) -> Path:
        """The folder with the files of questions."""
        return SAMPLE if self.number == 1 else SAMPLE / f"edition{self.number}"

    def passages(self) -> Corpus:
        """Return the passages.

        The second edition's are the first's without those about landmarks that have no photo, and
        with a photo in those about the other landmarks.
        """
        first = Corpus.read(SAMPLE / "passages.jsonl")
        if self.number == 1:
            return first
        landmarks = read_json(self.folder / "landmarks.json")
        photos = {entity: SAMPLE / name for entity, name in landmarks["photos"].items()}
        return Corpus(
            (
                replace(passage, image=photos.get(passage.entity or ""))
                for passage in first.values()
                if passage.entity not in landmarks["left_out"]
            ),
            source=f"{first.source}, edition {self.number}",
        )


def source_of(options: SampleOptions, request: DatasetRequest) -> tuple[Path, Edition | None]:
    """Return the data folder; without one, that of the bundled sample, and its edition.

    Raises:
        UserError: an edition is given together with a data folder.
    """
    if request.data is None:
        edition = Edition(options.edition or DEFAULT)
        return edition.folder, edition
    if options.edition is not None:
        raise UserError(
            f"--dataset-option edition={options.edition}: only the bundled sample has editions, "
            f"but the questions are read from {request.data}"
        )
    return request.data, None
