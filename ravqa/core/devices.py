"""Devices that parts run on, and the processes that share the work."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from ravqa.core.environment import check_environment
from ravqa.core.errors import UserError, first_line


def processes() -> Any:
    """Return accelerate's `PartialState`: this process's number and device, and barriers.

    There is one process, unless torchrun, accelerate or a similar launcher started several.

    Raises:
        UserError: the environment says that a launcher started several, but they cannot find each
            other.
    """
    import os
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    # Without GPUs, several processes find each other only if `cpu` is set.
    no_gpus = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    # The others may have hours of encoding left.
    check_environment()
    try:
        return PartialState(cpu=no_gpus, timeout=timedelta(days=30))
    except (ValueError, KeyError, RuntimeError) as e:
        raise UserError(
            f"the processes of this run cannot be joined ({first_line(e)}): unset LOCAL_RANK, or "
            "start them with torchrun or accelerate launch"
        ) from None


def own_device(wanted: str, why: str) -> str:
    """Return the named device, or for "auto" this process's accelerator, if it has one.

    Args:
        wanted: "auto", or a device as torch names it, such as "cuda:1".
        why: which part needs it, for the message.

    Raises:
        UserError: the device does not exist.
    """
    if wanted == "auto":
        return str(processes().device)
    if usable_device(wanted, why) == "meta":
        raise UserError(f"{why}: the device 'meta' cannot be used: it stores no values")
    return wanted


def usable_device(name: str, why: str) -> str:
    """Return `name` if that device can be used.

    Raises:
        UserError: torch does not know it, was built without it, or does not find it.
    """
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, ImportError) as e:  # by the kind of device
        raise UserError(f"{why}: the device {name!r} cannot be used: {first_line(e)}") from None
    return name


def torch_build() -> str:
    """Return what torch was built for ("CUDA 12.8"), from its version file; "" for CPUs."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    # torch is not imported, since that takes seconds.
    file = Path(spec.origin).with_name("version.py")
    version = importlib.util.spec_from_file_location("torch_version_file", file)
    if version is None or version.loader is None:
        return ""
    module = importlib.util.module_from_spec(version)
    version.loader.exec_module(module)
    builds = ((name, getattr(module, name, None)) for name in ("cuda", "hip", "xpu"))
    return next((f"{name.upper()} {build}" for name, build in builds if build), "")


def has_accelerator() -> bool:
    """Return whether torch finds a GPU; it is imported only if it was built for one."""
    if not torch_build() and sys.platform != "darwin":
        return False
    import torch

    return any(kind.is_available() for kind in (torch.cuda, torch.xpu, torch.backends.mps))
