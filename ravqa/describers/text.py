"""One text of what an image shows, by which an image without a caption is found."""

from __future__ import annotations

from ravqa.core.records import Description


def as_text(description: Description) -> str:
    """Return caption, names of what is seen, and text in the image; "" if there is nothing."""
    names = [name for tag in description.tags for name in tag.names]
    names += [region.label for region in description.objects]
    parts = (
        description.caption.strip(),
        ", ".join(dict.fromkeys(names)),
        " ".join(description.ocr).strip(),
    )
    return "\n".join(part for part in parts if part)
