"""Collections packed into one file: a tar archive with a list of its files and checksums.

    ravqa-collection.json   format, and [bytes, SHA-256] of every other file; it comes first
    collection.json, index-000001/..., passages-000001/..., images/...

The same collection gives the same bytes: names are sorted, times and owners are left out. Only
files that the list names, with matching content, are extracted, and only into the new folder, which
gets its name once it is complete. Older archives, which call the two files `ravqa-index.json` and
`library.json`, can be read too.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ravqa.collections import sources
from ravqa.collections.folder import IMAGES, CollectionFolder, Manifest, State
from ravqa.collections.sources import Origins
from ravqa.core.errors import UserError, first_line
from ravqa.core.factory import part_config
from ravqa.core.files import check_file, folder_written_beside, written_beside
from ravqa.core.locations import file_digest
from ravqa.core.progress import Progress
from ravqa.core.settings import Part
from ravqa.core.stored import as_type, parsed_json
from ravqa.corpora.disk import PassageFolder
from ravqa.indexes import INDEXES
from ravqa.retrievers import RETRIEVERS

LIST = "ravqa-collection.json"
_LISTS = (LIST, "ravqa-index.json")  # its current and its older name
FORMAT = 1
_MAX_LIST = 2**28  # bytes of the list: about two million files
_BLOCK = 2**22
_UNCHECKED = ".faiss"  # faiss trusts what it reads
_NAME = re.compile(
    rf"(?:collection|library)\.json|passages-\d{{6}}/[a-z]+\.(?:npy|jsonl?)|{IMAGES}/[0-9a-f]{{2}}/[0-9a-f]{{64}}"
    r"(?:\.[a-z]{3,4})?|index-\d{6}/(?:shard-\d{3,}/)?(?:[a-z]+-\d{6}/)?"
    r"[a-z0-9_-]+\.(?:npy|json|faiss)"
)


def pack(folder: CollectionFolder, state: State, target: Path, progress: Progress | None) -> int:
    """Write the archive; return its size in bytes.

    Args:
        state: state to pack; the collection must not change meanwhile.

    Raises:
        UserError: the file exists or cannot be written; the collection names a file outside itself.
    """
    if state.index is not None and state.index.packed is None:
        raise UserError(
            f"the index of {folder.path} is of kind {state.index.kind!r}, which cannot be packed: "
            f"ravqa collection rebuild {folder.path} --set retriever.index.name=auto makes one "
            "that can"
        )
    if target.exists():
        raise UserError(f"{target} already exists: choose another file")
    if not target.parent.is_dir():
        raise UserError(f"{target}: no such folder: {target.parent}")
    names = sorted(_files(folder, state))
    total = len(names)
    listed: dict[str, tuple[int, str]] = {}
    for number, name in enumerate(names, 1):
        if not _NAME.fullmatch(name):  # else a crafted collection could have any file packed
            raise UserError(f"the index in {folder.path} is damaged: it refers to file {name!r}")
        path = folder.path / name
        listed[name] = path.stat().st_size, file_digest(path)
        if progress:
            progress("reading files", number, total)
    text = json.dumps({"format": FORMAT, "files": listed}, indent=1).encode()
    with (
        written_beside(target) as beside,
        tarfile.open(beside, "w", format=tarfile.PAX_FORMAT) as archive,
    ):
        archive.addfile(_entry(LIST, len(text)), io.BytesIO(text))
        for number, name in enumerate(names, 1):
            with (folder.path / name).open("rb") as file:
                archive.addfile(_entry(name, listed[name][0]), file)
            if progress:
                progress("packing files", number, total)
    return target.stat().st_size


def unpack(source: Path, target: Path, progress: Progress | None, *, trusted: bool = False) -> None:
    """Unpack an archive into a new collection, checking every byte against its list.

    Args:
        trusted: accept an index whose files are used without a check of what they hold.

    Raises:
        UserError: the file does not exist, is not a packed collection, is damaged, lacks images, or
            is larger than the free disk space; the folder exists.
    """
    CollectionFolder(target).check_new()
    check_file(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(source, "r:") as archive:
            listed = _listed(archive, source)
            free = shutil.disk_usage(target.parent).free
            needed = sum(size for size, _ in listed.values())
            if needed > free:
                raise UserError(f"{source}: {needed:,} bytes are needed, {free:,} are free")
            with folder_written_beside(target) as made:
                _extract(archive, listed, made, source, progress)
                _check_content(made, source, trusted)
    except FileNotFoundError:
        raise UserError(f"no such file: {source}") from None
    except (tarfile.TarError, EOFError) as e:
        raise UserError(f"{source} is not a packed collection, or is cut off ({e})") from None


def _files(folder: CollectionFolder, state: State) -> Iterator[str]:
    """Yield the names of the files that belong to a state."""
    yield folder.manifest_file.name
    if state.index is None:
        return
    yield from (f"{state.manifest.index}/{name}" for name in state.index.packed or ())
    for entry in state.passages:
        yield from (f"{entry['name']}/{name}" for name in entry["files"])
    images = {p.image for p in state.corpus.stream() if p.image is not None}
    yield from (image.relative_to(folder.path).as_posix() for image in images)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    """Return an archive member without time and owner."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry


def _listed(archive: tarfile.TarFile, source: Path) -> dict[str, tuple[int, str]]:
    """Return the list, which must be the first member."""
    first = archive.next()
    if first is None or first.name not in _LISTS or not first.isreg() or first.size > _MAX_LIST:
        raise UserError(f"{source} is not a packed collection: {LIST} must come first")
    try:
        values = parsed_json(_opened(archive, first).read())
        if (found := as_type(int, values["format"])) != FORMAT:
            raise UserError(f"{source} has format {found}, but this version reads {FORMAT}")
        listed = as_type(dict[str, tuple[int, str]], values["files"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{source}: {first.name} is damaged ({e})") from None
    for name, (size, _) in listed.items():
        if not _NAME.fullmatch(name) or size < 0:
            raise UserError(f"{source}: unexpected file {name!r} in a packed collection")
    return listed


def _extract(
    archive: tarfile.TarFile,
    listed: dict[str, tuple[int, str]],
    folder: Path,
    source: Path,
    progress: Progress | None,
) -> None:
    left = dict(listed)
    while (member := archive.next()) is not None:
        if member.name not in left or not member.isreg() or member.issparse():
            raise UserError(f"{source} contains {member.name!r}, which is not in its list of files")
        size, checksum = left.pop(member.name)
        file = folder / member.name
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        written = 0
        with file.open("wb") as out:
            stream = _opened(archive, member)
            while block := stream.read(_BLOCK):
                written += len(block)
                if written > size:
                    break
                digest.update(block)
                out.write(block)
        if written != size or digest.hexdigest() != checksum:
            raise UserError(f"{source} is damaged: {member.name} does not match its list of files")
        if progress:
            progress("unpacking files", len(listed) - len(left), len(listed))
    if left:
        raise UserError(f"{source} is cut off: {sorted(left)[0]} is missing")


def _check_content(folder: Path, source: Path, trusted: bool) -> None:
    """Reject what is no collection, and passages that name files outside, to be shown and packed.

    Whoever packs an archive can give any bytes their right checksums.
    """
    try:
        manifest = CollectionFolder(folder).manifest()
        if manifest.index is not None:
            _check_index(folder / manifest.index, manifest, trusted)
        for entry in sorted(folder.glob("passages-*")):
            if not (entry / "passages.jsonl").exists():  # it only deletes
                continue
            part = PassageFolder(entry, images=folder, mend="pack the collection again")
            part.check_images()
            if (entry / sources.FILE).exists():
                Origins.read(entry, len(part))
    except UserError as e:
        raise UserError(f"{source}: {str(e).replace(f'{folder}/', '')}") from None
    except Exception as e:  # files that are missing or hold something else fail in many ways
        raise UserError(f"{source} is damaged: {first_line(e)}") from None


def _check_index(path: Path, manifest: Manifest, trusted: bool) -> None:
    """Open an index from elsewhere, with no more of the settings than its kind and what it stores.

    Raises:
        UserError: it cannot be opened, or must not be.
    """
    retriever = Part(**manifest.settings["retriever"])
    part = part_config(RETRIEVERS, retriever, "retriever").index
    kind = INDEXES.get(part.name)
    if kind.elsewhere(part_config(INDEXES, part, "retriever.index")):
        raise UserError("its index is not in it")
    if not trusted and (files := sorted(path.rglob(f"*{_UNCHECKED}"))):
        raise UserError(
            f"{files[0].name} is used without a check of what it holds: if you trust whoever "
            "packed it, use --trust-settings"
        )
    live = manifest.live
    made_by = manifest.encoder["fingerprint"] if live is None else live.built
    kind.open(path, fingerprint=made_by).close()


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    assert stream is not None  # only links and folders have no stream
    return stream
