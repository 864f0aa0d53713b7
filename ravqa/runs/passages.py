"""The passages of a run: files of --corpus, read as --corpus-option says, or a collection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ravqa.collections import Collection
from ravqa.core.errors import UserError
from ravqa.core.settings import validate
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.kb import Sections
from ravqa.corpora.remarks import Remarks
from ravqa.datasets.base import parse_options

_OPTION = "--corpus-option"


def read_corpus(
    files: Sequence[Path], options: Sequence[str] = (), remarks: Remarks | None = None
) -> Corpus:
    """Return the passages of files, or of a collection.

    Args:
        options: how files are read: "KEY=VALUE", of the fields of `ravqa.corpora.kb.Sections`.
        remarks: as for `Corpus.read`.

    Raises:
        UserError: an unknown option or a bad value; options for a collection, or without files.
        DataError: as `Corpus.read`.
    """
    sections = validate(Sections, parse_options(options, _OPTION), _OPTION)
    if len(files) == 1 and Collection.exists(files[0]):
        if options:
            raise UserError(
                f"{files[0]} is a collection, whose passages were read when it was built: leave "
                f"out {_OPTION}"
            )
        return Collection.open(files[0]).corpus
    return Corpus.read(*files, sections=sections, remarks=remarks)
