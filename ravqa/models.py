"""Where a model's files are: a folder, a file inside an installed package, or a hub name."""

from __future__ import annotations

import os
from pathlib import Path

from ravqa.config import fingerprint
from ravqa.errors import UserError, import_extra
from ravqa.paths import file_digest

_WEIGHTS = {".safetensors", ".bin", ".gguf", ".pth", ".pt", ".json"}


def resolve(name: str, *, extra: str, why: str) -> str:
    """A local path for `package:MODULE/sub/path` and for existing paths; else `name`, a hub name.

    Args:
        extra: the extra that installs the package.
        why: which part needs the model, for the message.

    Raises:
        MissingExtraError: the package is not installed.
        UserError: something that looks like a path does not exist.
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


def _package_folder(module: str, *, extra: str, why: str) -> Path:
    # Found without importing it: a data package may import what is not installed.
    from importlib.util import find_spec

    spec = find_spec(module)
    if spec is None or spec.origin is None:
        import_extra(module, extra, why=why)  # raises the message that names the extra
        raise UserError(f"{why}: the package {module} has no files of its own")
    return Path(spec.origin).parent


def model_fingerprint(path: str) -> str:
    """Content hash of a local model's files; for a hub name, of the name."""
    location = Path(path)
    if location.is_file():
        return fingerprint(_digest(location))
    if location.is_dir():
        found = sorted(p for p in location.rglob("*") if p.is_file() and p.suffix in _WEIGHTS)
        return fingerprint([[p.relative_to(location).as_posix(), _digest(p)] for p in found])
    return fingerprint(["hub", path])


_digests: dict[tuple[str, int, int], str] = {}


def _digest(path: Path) -> str:
    # Hashing half a gigabyte takes a second: once per process and file version is enough.
    stat = os.stat(path)
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        _digests[key] = file_digest(path)
    return _digests[key]
