"""The device that a part runs on, and the processes that share the work."""

from __future__ import annotations

from typing import Any

from ravqa.core.errors import UserError, first_line


def processes() -> Any:
    """accelerate's `PartialState`: this process's number, its device, and waiting for the others.

    One process, unless torchrun, accelerate or the like started several.
    """
    import os
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    # Several processes without GPUs find each other only if told that there are none.
    no_gpus = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    # The others may have hours of encoding left.
    return PartialState(cpu=no_gpus, timeout=timedelta(days=30))


def own_device(wanted: str, why: str) -> str:
    """The device named, or for "auto" this process's accelerator, if there is one.

    Args:
        wanted: "auto", or a device as torch names it, such as "cuda:1".
        why: which part it is for, for the message.

    Raises:
        UserError: there is no such device.
    """
    if wanted == "auto":
        return str(processes().device)
    if usable_device(wanted, why) == "meta":
        raise UserError(f"{why}: the device 'meta' cannot be used: it holds no numbers")
    return wanted


def usable_device(name: str, why: str) -> str:
    """The same name, if there is such a device.

    Raises:
        UserError: torch does not know it, was built without it, or does not find it.
    """
    import torch

    try:
        torch.zeros(1, device=name)
    except Exception as e:  # an assertion, a RuntimeError, a NotImplementedError: each has its own
        raise UserError(f"{why}: the device {name!r} cannot be used: {first_line(e)}") from None
    return name
