"""Environment variables that libraries read as whole numbers, without saying which one is not."""

from __future__ import annotations

import os

from ravqa.core.errors import UserError

_LAUNCHED = 2**31  # number of a process or port
_YEAR_9999 = 253_402_300_799
# The least and largest value of each variable.
_NUMBERS = {
    "LOCAL_RANK": (-1, _LAUNCHED),
    "RANK": (-1, _LAUNCHED),
    "WORLD_SIZE": (-1, _LAUNCHED),
    "LOCAL_WORLD_SIZE": (-1, _LAUNCHED),
    "GROUP_RANK": (-1, _LAUNCHED),
    "MASTER_PORT": (0, 65535),
    "SOURCE_DATE_EPOCH": (0, _YEAR_9999),
    "HF_HUB_DOWNLOAD_TIMEOUT": (0, _LAUNCHED),
    "HF_HUB_ETAG_TIMEOUT": (0, _LAUNCHED),
}


def check_environment() -> None:
    """Refuse an environment with which libraries could not be imported or started.

    Raises:
        UserError: a variable is not a whole number, or out of its range.
    """
    for name, (least, most) in _NUMBERS.items():
        value = os.environ.get(name)
        if value is None:
            continue
        try:
            good = least <= int(value) <= most
        except ValueError:
            good = False
        if not good:
            shown = value if len(value) <= 60 else f"{value[:57]}..."
            raise UserError(
                f"the environment variable {name} is {shown!r}: a whole number from {least} to "
                f"{most} is expected; correct it, or unset it"
            )
