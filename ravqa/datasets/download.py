"""Fetches what a data folder lacks of a dataset's official files.

Whole files only, kept once they are there: an interrupted download goes on where it was. Nothing
gets its final name before it is complete and looks like what was asked for.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import ravqa
from ravqa.core.errors import UserError
from ravqa.datasets import evqa, infoseek, okvqa
from ravqa.datasets.base import DatasetRequest, Problems, pick_split

Progress = Callable[[str, int, int], object]
"""Takes what is done, how much of it is finished, and how much there is."""

_THREADS = 8
_TRIES = 3
_TIMEOUT = 30.0  # seconds without a byte
_BACKOFF = 1.0  # seconds before the second try; doubled before the third
_MAX_WAIT = 60.0  # seconds; a server that asks for more gets this
_CHUNK = 1 << 16
_MAX_JSON = 1 << 30  # unpacked; the largest official file has a few dozen MB
_STALE = 600.0  # seconds: a part file that grows is younger, whatever process writes it
_MEGABYTE = 1_000_000
_PASSING = frozenset({429, *range(500, 600)})  # HTTP states worth another try

_JPEG = ("JPEG image", b"\xff\xd8\xff")
_JSON = ("JSON file", b"{")
_CSV = ("CSV file of questions", b"question")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where files are: the official address, or a mirror's from the environment."""

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
    """Fetch the official files of a split that `folder` lacks; those that are there are kept.

    Args:
        dataset: registered name.
        split: as for the loader; None for the split that the loader would take.
        limit: only the images of the first so many questions.
        console_progress: called from this thread only.

    Raises:
        UserError: no download source for this dataset, no such split, an address that is refused
            or does not answer, something else than the file, a folder that cannot be written.
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
    """What the user should know before `download` begins."""
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
    # A split that is asked for need not be there yet.
    there = present if split is None else okvqa.SPLITS
    split, _ = pick_split(split, okvqa.SPLITS[0], okvqa.ALIASES, there, folder)
    _clear(folder)
    fetcher = _Fetcher()
    for name in (okvqa.question_file(split), okvqa.annotation_file(split)):
        fetcher.file(_OKVQA, f"{name}.zip", folder / name, progress)

    # The loader itself says which questions come first; which are broken is its to report later.
    request = DatasetRequest(folder, split, limit, Problems("skip"), need_images=False)
    ids = dict.fromkeys(q.image_id for q in okvqa.load(request).questions)
    names = [okvqa.image_name(split, i) for i in ids if isinstance(i, int)]
    _clear(folder / split)
    fetcher.images(_COCO, names, folder, progress)


def _infoseek(folder: Path, split: str | None, limit: int | None, progress: Progress) -> None:
    del limit  # the files are whole splits
    present = [s for s in infoseek.SPLITS if (folder / f"infoseek_{s}.jsonl").is_file()]
    there = present if split is None else infoseek.SPLITS
    split, _ = pick_split(split, "val", {s: s for s in infoseek.SPLITS}, there, folder)
    _clear(folder)
    fetcher = _Fetcher()
    parts = {"val": ("", "_qtype", "_withkb"), "train": ("", "_withkb"), "test": ("",)}
    for part in parts[split]:
        name = f"infoseek_{split}{part}.jsonl"
        fetcher.file(_INFOSEEK, name, folder / name, progress)


def _evqa(folder: Path, split: str | None, limit: int | None, progress: Progress) -> None:
    del limit  # the files are whole splits
    present = [s for s in evqa.SPLITS if (folder / f"{s}.csv").is_file()]
    there = present if split is None else evqa.SPLITS
    split, _ = pick_split(split, evqa.SPLITS[0], {s: s for s in evqa.SPLITS}, there, folder)
    _clear(folder)
    _Fetcher().file(_EVQA, f"{split}.csv", folder / f"{split}.csv", progress, _CSV)


_DATASETS = {"okvqa": _okvqa, "infoseek": _infoseek, "evqa": _evqa}


class _FailureError(Exception):
    """Why a file could not be fetched; another try would not help."""


class _PassingError(_FailureError):
    """A failure that may pass, and after how many seconds if the server said so."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class _StoppedError(Exception):
    """Another thread's download failed, or the user has interrupted."""


class _Fetcher:
    """Fetches files, tries again where that can help, and can be stopped."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.opener = _opener()

    def file(
        self,
        source: _Source,
        path: str,
        target: Path,
        progress: Progress,
        kind: tuple[str, bytes] = _JSON,
    ) -> None:
        """Fetch a text file, unpacked if `path` ends in .zip; progress is in megabytes."""
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
                    self._retrieve(url, archive, report)
                    _unpack(archive, target.name, out)
            else:
                self._retrieve(url, out, report)
            _check(out, *kind)

    def images(self, source: _Source, names: list[str], folder: Path, progress: Progress) -> None:
        """Fetch those of the images `names` that are not in `folder`, several at a time."""
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
                self.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _image(self, source: _Source, name: str, folder: Path) -> None:
        url, target = source.address(name), folder / name
        with _explained(url, source, target), _written(target) as out:
            self._retrieve(url, out)
            _check(out, *_JPEG)

    def _retrieve(
        self,
        url: str,
        out: IO[bytes],
        report: Callable[[int, int | None], object] | None = None,
    ) -> None:
        for tried in range(1, _TRIES + 1):
            out.seek(0)
            out.truncate()
            try:
                return self._try(url, out, report)
            except _PassingError as e:
                if tried == _TRIES:
                    raise _FailureError(f"{e} (tried {_TRIES} times)") from None
                wait = e.wait if e.wait is not None else _BACKOFF * 2 ** (tried - 1)
            if self.stop.wait(wait):
                raise _StoppedError

    def _try(
        self,
        url: str,
        out: IO[bytes],
        report: Callable[[int, int | None], object] | None,
    ) -> None:
        if self.stop.is_set():
            raise _StoppedError
        with self._open(url) as response:
            expected: int | None = response.length
            received = 0
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except (http.client.HTTPException, OSError) as e:
                    raise _PassingError(_reason(e)) from None
                if not chunk:
                    break
                out.write(chunk)
                received += len(chunk)
                if report is not None:
                    report(received, expected)
                if self.stop.is_set():
                    raise _StoppedError
        if expected is not None and received != expected:
            raise _PassingError(f"cut off after {received} of {expected} bytes")

    def _open(self, url: str) -> Any:
        request = urllib.request.Request(url, headers={"User-Agent": f"ravqa/{ravqa.__version__}"})
        try:
            response = self.opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as e:
            e.close()
            reason = _state(e.code)
            if e.code in _PASSING:
                raise _PassingError(reason, _retry_after(e.headers)) from None
            if 300 <= e.code < 400:
                reason += ", and where it leads to is refused"
            raise _FailureError(reason) from None
        except (http.client.InvalidURL, ValueError) as e:
            raise _FailureError(f"not an address ({e})") from None
        except (http.client.HTTPException, OSError) as e:
            if isinstance(getattr(e, "reason", e), ssl.SSLCertVerificationError):
                raise _FailureError(_reason(e)) from None
            raise _PassingError(_reason(e)) from None
        if response.status != HTTPStatus.OK:
            response.close()
            raise _FailureError(_state(response.status))
        return response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https only, and never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        allowed = {"https"} if req.type == "https" else {"http", "https"}
        if urlsplit(newurl).scheme not in allowed:
            raise urllib.error.HTTPError(req.full_url, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    # build_opener would add handlers for file://, ftp:// and data:.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


@contextmanager
def _explained(url: str, source: _Source, target: Path) -> Iterator[None]:
    try:
        yield
    except _FailureError as e:
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
    """A file beside `target` that takes its name at the end, or goes away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Another process may be fetching the same file: each has a part of its own.
    part = target.with_name(f"{target.name}.ravqa-{secrets.token_hex(4)}.part")
    try:
        with part.open("w+b") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove the parts that a killed process left."""
    for part in folder.glob("*.ravqa-*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _STALE:
                part.unlink()


def _unpack(archive: IO[bytes], member: str, out: IO[bytes]) -> None:
    """Copy one member; its name is compared only, never used as a path."""
    try:
        with zipfile.ZipFile(archive) as packed:
            names = packed.namelist()
            if member not in names:
                held = ", ".join(repr(name) for name in names[:3]) or "nothing"
                raise _FailureError(f"the zip does not hold {member} (it holds {held})")
            info = packed.getinfo(member)
            if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise _FailureError("the zip is packed by an unusual method")
            if info.file_size > _MAX_JSON:
                raise _FailureError(f"{member} would unpack to {info.file_size} bytes")
            with packed.open(info) as source:
                shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as e:
        raise _FailureError(f"what came is no usable zip ({e})") from None


def _check(out: IO[bytes], what: str, magic: bytes) -> None:
    out.seek(0)
    start = out.read(64)
    # White space may stand before JSON, but not before an image.
    if not (start.lstrip() if magic.isascii() else start).startswith(magic):
        begins = f"it begins with {start[:16]!r}" if start else "it is empty"
        raise _FailureError(f"what came is no {what}: {begins}")


def _retry_after(headers: Message) -> float | None:
    """Seconds to wait as the server asks, in seconds or as a date; None if it does not."""
    value = (headers.get("Retry-After") or "").strip()
    try:
        seconds = float(min(int(value), _MAX_WAIT))
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _MAX_WAIT)


def _state(code: int) -> str:
    try:
        return f"HTTP {code} {HTTPStatus(code).phrase}"
    except ValueError:
        return f"HTTP {code}"


def _reason(error: Exception) -> str:
    error = getattr(error, "reason", error)  # URLError wraps
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted ({error.verify_message})"
    if isinstance(error, http.client.IncompleteRead):
        return "cut off"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
