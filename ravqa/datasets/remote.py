"""Where the official files of a dataset are, declared by each dataset beside its loader."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ravqa.core.errors import UserError

JPEG = ("JPEG image", b"\xff\xd8\xff")
JSON = ("JSON file", b"{")


@dataclass(frozen=True, slots=True)
class Source:
    """The location of files: the official address, or a mirror's from the environment.

    Attributes:
        variable: the environment variable that may name a mirror.
        official: the address that all paths are below.
    """

    variable: str
    official: str

    def address(self, path: str) -> str:
        """Return the address of a file.

        Raises:
            UserError: the variable holds something other than an http(s) address.
        """
        base = (os.environ.get(self.variable) or self.official).strip().rstrip("/")
        try:
            parts = urlsplit(base)
            usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UserError(f"{self.variable}: {base!r} is not an http:// or https:// address")
        if "@" in parts.netloc:
            raise UserError(f"{self.variable}: an address with a user name is not supported")
        return f"{base}/{path}"


@dataclass(frozen=True, slots=True)
class Images:
    """Images that can be downloaded one by one.

    Attributes:
        source: where they are.
        names: returns the paths of a split's images below the source, and below the data folder;
            its arguments are the folder, the split, and the number of questions that count.
    """

    source: Source
    names: Callable[[Path, str, int | None], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Remote:
    """The official files of a dataset, as registered in `DOWNLOADS`.

    Attributes:
        source: where the files are.
        files: the files of each split, the split's question file first; the loader's default split
            comes first. Those that are only there in a zip file are called NAME.zip.
        aliases: accepted names of splits to official ones, including the official ones.
        kind: what a file is, and how it begins.
        images: its images, if they can be downloaded.
        remark: returns what the user should know about a folder before the download, or "".
    """

    source: Source
    files: Mapping[str, Sequence[str]]
    aliases: Mapping[str, str]
    kind: tuple[str, bytes] = JSON
    images: Images | None = None
    remark: Callable[[Path], str] = lambda folder: ""
