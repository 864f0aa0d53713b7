"""Rows of a benchmark's hub copy: from its files in a folder, or from the hub through `datasets`.

A folder holds Parquet files named as on the hub, CONFIG/SPLIT-00000-of-00001.parquet; the hub
itself is contacted only if `--data hf:OWNER/NAME` names it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ravqa.core.errors import UserError, first_line, import_extra, near_matches
from ravqa.core.locations import file_digest
from ravqa.core.settings import fingerprint
from ravqa.corpora.tables import Row, parquet_columns, parquet_rows, read_parquet
from ravqa.images.folder import ImageFolder

PREFIX = "hf:"
_BATCH = 256
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*$")


def hub_name(data: Path | None) -> str | None:
    """Return the name after "hf:", or None for a folder."""
    text = "" if data is None else data.as_posix()
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def splits_of(data: Path, config: str | None) -> dict[str, list[Path]]:
    """Return the files of every split in a folder, in order.

    Args:
        config: subfolder; None for files of the folder itself, or of its subfolder "data".
    """
    folders = [data / config] if config else [data, data / "data"]
    splits: dict[str, list[Path]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.parquet")):
            splits.setdefault(_SHARD.sub("", path.stem), []).append(path)
    return splits


def has_table(data: Path, config: str | None) -> bool:
    """Return whether a folder holds Parquet files of this configuration, or the hub is named."""
    return hub_name(data) is not None or bool(splits_of(data, config))


def split_names(data: Path, config: str | None) -> list[str]:
    """Return the names of the available splits.

    Raises:
        UserError: the hub has no such dataset.
    """
    name = hub_name(data)
    if name is None:
        return list(splits_of(data, config))
    datasets = _datasets(name)
    try:
        return [str(split) for split in datasets.get_dataset_split_names(name, config)]
    except Exception as e:  # the hub, the network and the cache raise errors of many types
        raise _refused(name, config, e) from None


class Table:
    """One split of a configuration: in Parquet files of a folder, or on the hub.

    Attributes:
        where: the location, for messages.
        rows: number of rows.
    """

    def __init__(self, data: Path, config: str | None, split: str):
        """Find the split; a hub dataset is downloaded into its local cache.

        Raises:
            UserError: there is no such split (the available ones are named), or the hub has no
                such dataset.
        """
        name = hub_name(data)
        self._files: list[Path] = []
        if name is None:
            splits = splits_of(data, config)
            below = data / config if config else data
            self.where = str(below / f"{split}-*.parquet")
            if split not in splits:
                known = f": {near_matches(split, splits)}" if splits else ""
                raise UserError(f"no files {self.where}{known}")
            self._files = splits[split]
            self.rows = sum(parquet_rows(path) for path in self._files)
            return
        self.where = "/".join(filter(None, (name, config, split)))
        datasets = _datasets(name)
        try:
            table = datasets.load_dataset(name, config, split=split)
        except Exception as e:
            raise _refused(name, config, e) from None
        self._table = table
        self.rows = len(table)

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        if self._files:
            return list(dict.fromkeys(c for path in self._files for c in parquet_columns(path)))
        return list(self._table.column_names)

    @property
    def key(self) -> str:
        """A key that changes with the content."""
        if self._files:
            return fingerprint([file_digest(path) for path in self._files])
        return str(self._table._fingerprint)

    def read(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Row]]:
        """Yield locations and rows, one at a time; images are {bytes, path}.

        Args:
            columns: read only these columns, as far as they exist.

        Raises:
            DataError: a file is broken.
        """
        if self._files:
            for path in self._files:
                for number, row in read_parquet(path, columns):
                    yield f"{path}, row {number}", row
            return
        table = self._table
        if columns is not None:
            table = table.select_columns([c for c in columns if c in table.column_names])
        # As stored: otherwise images, also those in lists, would be decoded.
        batches = table.with_format("arrow").iter(_BATCH)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows, 1):
            yield f"{self.where}, row {number}", row


def _datasets(name: str) -> Any:
    return import_extra("datasets", "datasets", why=f"reading {name} from the hub")


def _refused(name: str, config: str | None, error: Exception) -> UserError:
    asked = f"{name} ({config})" if config else name
    return UserError(
        f"the dataset {asked} cannot be read from the hub or its local cache: {first_line(error)}"
    )


def image_folder(data: Path, images: Path | None) -> ImageFolder:
    """Return where the images of a hub copy are looked up: in `images`, else next to its files."""
    if images is None and hub_name(data) is not None:
        return ImageFolder(Path("images"))
    return ImageFolder(images or data)
