"""Download of the official dataset files that a data folder lacks.

Only whole files are stored, and existing ones are kept: an interrupted download resumes with the
next missing file. No file gets its final name until it is complete and looks like the expected one.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ravqa.core.errors import UserError
from ravqa.core.files import written_beside
from ravqa.core.http import Fetcher, FetchError
from ravqa.core.progress import Progress
from ravqa.datasets import DOWNLOADS
from ravqa.datasets.base import pick_split
from ravqa.datasets.remote import JPEG, Source

_THREADS = 8
_MAX_JSON = 1 << 30  # unpacked; the largest official file has a few dozen MB
_MEGABYTE = 1_000_000


def download(
    dataset: str,
    folder: Path,
    split: str | None,
    *,
    limit: int | None,
    console_progress: Progress | None,
) -> None:
    """Download the official files of a split that `folder` lacks; existing files are kept.

    Args:
        dataset: registered name.
        split: as for the loader; None for the split that the loader would choose.
        limit: download only the images of the first `limit` questions.
        console_progress: called only from this thread.

    Raises:
        UserError: no download source for this dataset, no such split, an address that is refused
            or does not answer, content other than the file, or a folder that cannot be written.
        DataError: the question file names no usable question.
    """
    if dataset not in DOWNLOADS:
        raise UserError(
            f"--download: the dataset {dataset} has no download source (those with one: "
            f"{', '.join(name for name, _ in DOWNLOADS)}): put its files into {folder} by hand, or "
            "read a dataset from the hub with --data hf:OWNER/NAME"
        )
    remote = DOWNLOADS.get(dataset)
    progress = console_progress or (lambda what, done, total: None)
    questions = {s: names[0].removesuffix(".zip") for s, names in remote.files.items()}
    present = [s for s, name in questions.items() if (folder / name).is_file()]
    # A requested split need not exist yet.
    there = present if split is None else list(questions)
    split, _ = pick_split(split, next(iter(questions)), remote.aliases, there, folder)
    fetcher = _Downloads()
    for path in remote.files[split]:
        target = folder / path.removesuffix(".zip")
        fetcher.file(remote.source, path, target, progress, remote.kind)
    if remote.images is not None:
        names = remote.images.names(folder, split, limit)
        fetcher.images(remote.images.source, names, folder, progress)


def remarks(dataset: str, folder: Path) -> list[str]:
    """Return what the user should know before `download` starts."""
    remark = DOWNLOADS.get(dataset).remark(folder) if dataset in DOWNLOADS else ""
    return [remark] if remark else []


class _Downloads:
    """A downloader of missing files; the first failure stops all downloads."""

    def __init__(self) -> None:
        self._fetcher = Fetcher()

    def file(
        self,
        source: Source,
        path: str,
        target: Path,
        progress: Progress,
        kind: tuple[str, bytes],
    ) -> None:
        """Download a text file, unpacked if `path` ends in .zip; progress is in megabytes."""
        if target.is_file():
            return

        def report(received: int, expected: int | None) -> None:
            if expected is not None:
                total = max(1, round(expected / _MEGABYTE))
                done = total if received == expected else min(received // _MEGABYTE, total)
                progress(f"downloading {target.name} (MB)", done, total)

        url = source.address(path)
        with _explained(url, source, target), _written(target) as out:
            if path.endswith(".zip"):
                with tempfile.TemporaryFile(dir=target.parent) as archive:
                    self._fetcher.fetch(url, archive, report)
                    _unpack(archive, target.name, out)
            else:
                self._fetcher.fetch(url, out, report)
            _check(out, *kind)

    def images(
        self, source: Source, names: Sequence[str], folder: Path, progress: Progress
    ) -> None:
        """Download the images `names` that are not in `folder`, several at a time."""
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return
        done = len(names) - len(missing)
        progress("downloading images", done, len(names))
        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                tasks = [pool.submit(self._image, source, name, folder) for name in missing]
                for task in as_completed(tasks):
                    task.result()
                    done += 1
                    progress("downloading images", done, len(names))
            finally:
                self._fetcher.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _image(self, source: Source, name: str, folder: Path) -> None:
        url, target = source.address(name), folder / name
        with _explained(url, source, target), _written(target) as out:
            self._fetcher.fetch(url, out)
            _check(out, *JPEG)


@contextmanager
def _explained(url: str, source: Source, target: Path) -> Iterator[None]:
    try:
        yield
    except FetchError as e:
        raise UserError(
            f"{url} could not be downloaded: {e}; the same command continues where it stopped, "
            f"{source.variable} can name a mirror, or put the file at {target} by hand"
        ) from None
    except OSError as e:
        raise UserError(
            f"{url} could not be stored as {target}: {e.strerror or e}; the same command continues "
            "where it stopped"
        ) from None


@contextmanager
def _written(target: Path) -> Iterator[IO[bytes]]:
    """Open a file that gets its name at the end; its folder is created if needed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(target) as beside, beside.open("w+b") as out:
        yield out


def _unpack(archive: IO[bytes], member: str, out: IO[bytes]) -> None:
    """Copy one member; its name is only compared, never used as a path."""
    try:
        with zipfile.ZipFile(archive) as packed:
            names = packed.namelist()
            if member not in names:
                held = ", ".join(repr(name) for name in names[:3]) or "nothing"
                raise FetchError(f"the zip does not contain {member} (it contains {held})")
            info = packed.getinfo(member)
            if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise FetchError("the zip is compressed by an unsupported method")
            if info.file_size > _MAX_JSON:
                raise FetchError(f"{member} would unpack to {info.file_size} bytes")
            with packed.open(info) as source:
                shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as e:
        raise FetchError(f"the download is not a usable zip ({e})") from None


def _check(out: IO[bytes], what: str, magic: bytes) -> None:
    out.seek(0)
    start = out.read(64)
    # Whitespace may precede JSON, but not an image.
    if not (start.lstrip() if magic.isascii() else start).startswith(magic):
        begins = f"it begins with {start[:16]!r}" if start else "it is empty"
        raise FetchError(f"the download is not a {what}: {begins}")
