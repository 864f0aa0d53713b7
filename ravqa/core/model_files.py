"""Locations of a model's files: a folder, a file in an installed package, or a hub name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ravqa.core.errors import UserError, import_extra
from ravqa.core.locations import file_digest
from ravqa.core.settings import fingerprint


def resolve(name: str, *, extra: str, why: str) -> str:
    """Return the local path of `package:MODULE/sub/path` or an existing path; else the hub name.

    Args:
        extra: the extra that installs the package.
        why: which part needs the model, for the message.

    Raises:
        MissingExtraError: the package is not installed.
        UserError: the name looks like a path that does not exist.
    """
    if name.startswith("package:"):
        module, _, rest = name.removeprefix("package:").partition("/")
        folder = _package_folder(module, extra=extra, why=why)
        path = folder / rest
        if not path.exists():
            raise UserError(f"{why}: the package {module} has no {rest!r}")
        return str(path)
    path = Path(name).expanduser()
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
        raise UserError(f"{why}: no such model file or folder: {name}")
    return name


def on_this_machine(place: str) -> Path | None:
    """Return the folder or file from which a model would be loaded now; None if it is not here.

    Args:
        place: as returned by `resolve`.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(place).exists():
        return Path(place)
    try:
        return Path(huggingface_hub.snapshot_download(place, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def settings_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Return a JSON file of a model's folder; an empty mapping if it cannot be read."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _package_folder(module: str, *, extra: str, why: str) -> Path:
    # Located without importing it: a data package may import packages that are not installed.
    from importlib.util import find_spec

    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        if not module.isidentifier():
            raise UserError(f"{why}: package:MODULE/path is expected, got package:{module}")
        import_extra(module, extra, why=why)  # raises the message that names the extra
        raise UserError(f"{why}: the package {module} has no files of its own")
    return Path(spec.origin).parent


def model_fingerprint(path: str) -> str:
    """Return a hash of a local model's files; for a hub name, of the name (see `commit_of`)."""
    location = Path(path)
    if location.is_file():
        return fingerprint(_digest(location))
    if location.is_dir():
        # Every file: tokenizers and chat templates change answers just as weights do.
        found = sorted(p for p in location.rglob("*") if p.is_file() and not _hidden(p, location))
        return fingerprint([[p.relative_to(location).as_posix(), _digest(p)] for p in found])
    return fingerprint(["hub", path])


def commit_of(path: str, file: str = "config.json") -> str | None:
    """Return the commit of a loaded hub model, from the hub's cache; None for a local model.

    Args:
        file: a file that every such model has.
    """
    from huggingface_hub import try_to_load_from_cache

    if Path(path).exists():
        return None
    found = try_to_load_from_cache(path, file)
    # .../snapshots/COMMIT/FILE
    return Path(found).parent.name if isinstance(found, str) else None


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


_digests: dict[tuple[str, int, int], str] = {}


def _digest(path: Path) -> str:
    # Hashing half a gigabyte takes a second: once per process and file version is enough.
    stat = os.stat(path)
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        _digests[key] = file_digest(path)
    return _digests[key]
