"""The conformance suite of describers."""

from __future__ import annotations

from ravqa.core.errors import DataError
from ravqa.core.records import Description
from ravqa.describers.base import Describer
from ravqa.testing.asserting import conformance, picture, refused, require, require_names


@conformance(Describer)
def check_describer(describer: Describer) -> None:
    """Check a describer: it describes three small images.

    Args:
        describer: the describer, built.

    Raises:
        AssertionError: the describer breaks the contract of `ravqa.describers.base.Describer`.
    """
    name = type(describer).__name__
    require_names(describer, "fingerprint")
    require(isinstance(describer.weights, str), f"{name}.weights is a text, blank without weights")
    images = [picture(64, 48, 10), picture(30, 90, 130), picture(64, 48, 240)]
    found = describer.describe(list(images))
    require(
        len(found) == 3 and all(isinstance(one, Description) for one in found),
        f"{name}.describe returns one Description per image, got {found!r}",
    )
    for one in found:
        for tag in one.tags:
            require(
                tag.names and 0 <= tag.probability <= 1,
                f"{name}: a tag has a name and a probability from 0 to 1, got {tag}",
            )
    alone = [describer.describe([image])[0] for image in images]
    seen = [[tag.names for tag in one.tags] for one in found]
    require(
        seen == [[tag.names for tag in one.tags] for one in alone]
        and [one.caption for one in found] == [one.caption for one in alone],
        f"{name}.describe says the same of an image whatever is described with it, in order",
    )
    require(list(describer.describe([])) == [], f"{name}.describe returns [] for no images")
    refused(
        DataError,
        lambda: describer.describe([b"no image"]),
        f"{name}.describe raises DataError for an image that cannot be decoded (`open_image` does)",
    )
