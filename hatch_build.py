"""Compile the compressed index's kernels while the package is built or installed.

    python hatch_build.py      compiles them in this checkout, and says what went wrong

An installation without a C compiler works: searches then use numba or torch. The variable
RAVQA_NATIVE changes this: `require` makes a failure to compile an error (for wheels that are
published), `off` leaves the kernels out. CC and CFLAGS are heeded.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "ravqa" / "indexes" / "compressed" / "csrc"
LIBRARY = FOLDER / "kernels.so"
SECONDS = 300


def compiler() -> list[str]:
    """Return the command of the C compiler, with its arguments; empty if there is none."""
    for wanted in (os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc", "gcc", "clang"):
        command = shlex.split(wanted or "")
        if command and shutil.which(command[0]):
            return command
    return []


def compile_kernels(library: Path = LIBRARY) -> None:
    """Write the library.

    Raises:
        OSError, subprocess.SubprocessError: there is no compiler, or it failed.
    """
    command = compiler()
    if not command:
        raise FileNotFoundError("no C compiler was found")
    digest = hashlib.sha256()
    for file in sorted(FOLDER.glob("*.[ch]")):
        digest.update(file.read_bytes())
    made = library.with_suffix(f".{os.getpid()}.tmp")
    # `SOURCE` is compared with the files when the library is loaded.
    options = ["-O3", "-fPIC", "-shared", f'-DSOURCE="{digest.hexdigest()}"']
    flags = shlex.split(os.environ.get("CFLAGS", ""))
    try:
        subprocess.run(
            [*command, *flags, *options, "-o", str(made), str(FOLDER / "native.c")],
            check=True,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        made.replace(library)
    finally:
        made.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """Return the last line that says why compiling failed."""
    text = getattr(error, "stderr", None) or str(error)
    return str(text).strip().splitlines()[-1]


if __name__ == "__main__":
    try:
        compile_kernels()
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"the kernels could not be compiled: {reason(error)}")
else:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
        """Adds the library to wheels and editable installations."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile; without a library the wheel is one for every platform."""
            wanted = os.environ.get("RAVQA_NATIVE", "")
            if wanted == "off":
                return
            try:
                compile_kernels()
            except (OSError, subprocess.SubprocessError) as error:
                if wanted == "require":
                    raise
                self.app.display_warning(f"without compiled kernels: {reason(error)}")
                return
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
            build_data["pure_python"] = False
            build_data["artifacts"].append(f"/{LIBRARY.relative_to(Path(self.root)).as_posix()}")
