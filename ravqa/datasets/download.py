"""Download of the official dataset files that a data folder lacks.

Only whole files are stored, and existing ones are kept: an interrupted download resumes with the
next missing file. No file gets its final name until it is complete and looks like the expected one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from ravqa.core.errors import UserError
from ravqa.core.files import written_beside
from ravqa.core.http import Fetcher, FetchError
from ravqa.datasets import evqa, infoseek, okvqa
from ravqa.datasets.base import DatasetRequest, Problems, pick_split

Progress = Callable[[str, int, int], object]
"""A callback: takes the name of the work, the amount done, and the total."""

_THREADS = 8
_MAX_JSON = 1 << 30  # unpacked; the largest official file has a few dozen MB
_MEGABYTE = 1_000_000

_JPEG = ("JPEG image", b"\xff\xd8\xff")
_JSON = ("JSON file", b"{")
_CSV = ("CSV file of questions", b"question")


@dataclass(frozen=True, slots=True)
class _Source:
    """The location of files: the official address, or a mirror's from the environment."""

    variable: str
    official: str

    def address(self, path: str) -> str:
        base = (os.environ.get(self.variable) or self.official).strip().rstrip("/")
        try:
            parts = urlsplit(base)
            usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UserError(f"{self.variable}: {base!r} is no http:// or https:// address")
        if "@" in parts.netloc:
            raise UserError(f"{self.variable}: an address with a user name is not supported")
        return f"{base}/{path}"


_OKVQA = _Source("RAVQA_OKVQA_URL", "https://okvqa.allenai.org/static/data")
_COCO = _Source("RAVQA_COCO_URL", "http://images.cocodataset.org")
_INFOSEEK = _Source(
    "RAVQA_INFOSEEK_URL",
    "https://storage.googleapis.com/gresearch/open-vision-language/infoseek",
)
_EVQA = _Source("RAVQA_EVQA_URL", "https://storage.googleapis.com/encyclopedic-vqa")


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
    fetch_split = _DATASETS.get(dataset)
    if fetch_split is None:
        raise UserError(
            f"--download: the dataset {dataset} has no download source (those with one: "
            f"{', '.join(_DATASETS)}): put its files into {folder} by hand, or read a dataset of "
            "the hub with --data hf:OWNER/NAME"
        )
    fetch_split(folder, split, limit, console_progress or (lambda what, done, total: None))


def remarks(dataset: str, folder: Path) -> list[str]:
    """Return what the user should know before `download` starts."""
    images = folder / "images"
    if dataset == "infoseek" and not images.is_dir():
        return [
            "InfoSeek's images are OVEN's, packed in large archives, and cannot be fetched one by "
            "one: only the jsonl files are downloaded; unpack the images into "
            f"{images} (github.com/open-vision-language/oven, image_downloads)"
        ]
    if dataset == "evqa":
        return [
            "Encyclopedic-VQA's images are iNaturalist 2021's and Google Landmarks v2's: only the "
            f"csv file is downloaded; put the images, or their zip and tar archives, into {folder} "
            "(github.com/google-research/google-research, encyclopedic_vqa)"
        ]
    return []


def _okvqa(folder: Path, split: str | None, limit: int | None, progress: Progress) -> None:
    present = [s for s in okvqa.SPLITS if (folder / okvqa.question_file(s)).is_file()]
    # A requested split need not exist yet.
    there = present if split is None else okvqa.SPLITS
    split, _ = pick_split(split, okvqa.SPLITS[0], okvqa.ALIASES, there, folder)
    fetcher = _Downloads()
    for name in (okvqa.question_file(split), okvqa.annotation_file(split)):
        fetcher.file(_OKVQA, f"{name}.zip", folder / name, progress)

    # The loader decides which questions come first; it reports broken ones later.
    request = DatasetRequest(folder, split, limit, Problems("skip"), need_images=False)
    ids = dict.fromkeys(q.image_id for q in okvqa.load(request).questions)
    names = [okvqa.image_name(split, i) for i in ids if isinstance(i, int)]
    fetcher.images(_COCO, names, folder, progress)


def _infoseek(folder: Path, split: str | None, limit: int | None, progress: Progress) -> None:
    del limit  # the files are whole splits
    present = [s for s in infoseek.SPLITS if (folder / f"infoseek_{s}.jsonl").is_file()]
    there = present if split is None else infoseek.SPLITS
    split, _ = pick_split(split, "val", {s: s for s in infoseek.SPLITS}, there, folder)
    fetcher = _Downloads()
    parts = {"val": ("", "_qtype", "_withkb"), "train": ("", "_withkb"), "test": ("",)}
    for part in parts[split]:
        name = f"infoseek_{split}{part}.jsonl"
        fetcher.file(_INFOSEEK, name, folder / name, progress)


def _evqa(folder: Path, split: str | None, limit: int | None, progress: Progress) -> None:
    del limit  # the files are whole splits
    present = [s for s in evqa.SPLITS if (folder / f"{s}.csv").is_file()]
    there = present if split is None else evqa.SPLITS
    split, _ = pick_split(split, evqa.SPLITS[0], {s: s for s in evqa.SPLITS}, there, folder)
    _Downloads().file(_EVQA, f"{split}.csv", folder / f"{split}.csv", progress, _CSV)


_DATASETS = {"okvqa": _okvqa, "infoseek": _infoseek, "evqa": _evqa}


class _Downloads:
    """A downloader of missing files; the first failure stops all downloads."""

    def __init__(self) -> None:
        self._fetcher = Fetcher()

    def file(
        self,
        source: _Source,
        path: str,
        target: Path,
        progress: Progress,
        kind: tuple[str, bytes] = _JSON,
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

    def images(self, source: _Source, names: list[str], folder: Path, progress: Progress) -> None:
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

    def _image(self, source: _Source, name: str, folder: Path) -> None:
        url, target = source.address(name), folder / name
        with _explained(url, source, target), _written(target) as out:
            self._fetcher.fetch(url, out)
            _check(out, *_JPEG)


@contextmanager
def _explained(url: str, source: _Source, target: Path) -> Iterator[None]:
    try:
        yield
    except FetchError as e:
        raise UserError(
            f"{url} could not be downloaded: {e}; the same command goes on where it stopped, "
            f"{source.variable} can name a mirror, or put the file at {target} by hand"
        ) from None
    except OSError as e:
        raise UserError(
            f"{url} could not be stored as {target}: {e.strerror or e}; the same command goes on "
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
                raise FetchError(f"the zip does not hold {member} (it holds {held})")
            info = packed.getinfo(member)
            if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise FetchError("the zip is packed by an unusual method")
            if info.file_size > _MAX_JSON:
                raise FetchError(f"{member} would unpack to {info.file_size} bytes")
            with packed.open(info) as source:
                shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as e:
        raise FetchError(f"what came is no usable zip ({e})") from None


def _check(out: IO[bytes], what: str, magic: bytes) -> None:
    out.seek(0)
    start = out.read(64)
    # Whitespace may precede JSON, but not an image.
    if not (start.lstrip() if magic.isascii() else start).startswith(magic):
        begins = f"it begins with {start[:16]!r}" if start else "it is empty"
        raise FetchError(f"what came is no {what}: {begins}")
