"""A vision tower's output for images, kept on disk by the images' content.

One file per image, so that changes on the text side never run the tower again, whichever
checkpoint it came with. A file is written beside its final name and renamed; a damaged one is
made again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ravqa.core.errors import first_line
from ravqa.core.files import written_beside
from ravqa.core.locations import cache_dir
from ravqa.core.settings import fingerprint
from ravqa.encoders.base import Output
from ravqa.images.decode import image_bytes

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

Features = tuple["Tensor", "Tensor"]
"""An image's global feature [width] and patch features [patches, width], float32."""

# Parts of a tower's configuration that do not change its output, or tell only its origin.
_ASIDE = {"transformers_version", "dtype", "architectures", "initializer_range"}


class FeatureCache:
    """Features of one tower in the cache folder, by image content."""

    def __init__(self, tower: str, output: Output):
        """Use the folder of the tower with this fingerprint and features of type `output`."""
        self._folder = cache_dir("image-features", fingerprint(tower, output))
        self._output = output

    def get(self, images: Iterable[Path | bytes]) -> dict[Path | bytes, Features]:
        """Return the features of those images that are cached.

        Raises:
            DataError: an image cannot be read.
        """
        found = {image: _read(self._file(image)) for image in images}
        return {image: features for image, features in found.items() if features is not None}

    def put(self, features: Mapping[Path | bytes, Features]) -> None:
        """Store features.

        Raises:
            DataError: an image cannot be read.
        """
        for image, (pooled, patches) in features.items():
            file = self._file(image)
            file.parent.mkdir(exist_ok=True)
            with written_beside(file) as temporary, temporary.open("wb") as out:
                np.savez(
                    out,
                    pooled=pooled.numpy().astype(self._output),
                    patches=patches.numpy().astype(self._output),
                )

    def _file(self, image: Path | bytes) -> Path:
        digest = hashlib.sha256(image_bytes(image)).hexdigest()
        return self._folder / digest[:2] / f"{digest}.npz"


def tower_fingerprint(tower: Any) -> str:
    """Return a content hash of a vision tower: its weights and settings, except its name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    settings = tower.config.to_diff_dict()
    kept = {k: v for k, v in settings.items() if k not in _ASIDE and not k.startswith("_")}
    return fingerprint(digest.hexdigest(), kept)


def _read(file: Path) -> Features | None:
    import torch

    if not file.is_file():
        return None
    try:
        # The archive has checksums.
        with file.open("rb") as source, np.load(source, allow_pickle=False) as arrays:
            pooled, patches = (torch.from_numpy(arrays[key]) for key in ("pooled", "patches"))
    except Exception as e:  # zipfile and numpy fail in many ways on changed bytes
        _log.warning("%s is damaged (%s): it is made again", file, first_line(e))
        return None
    return pooled.float(), patches.float()
