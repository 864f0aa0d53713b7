"""What is seen in an image, in one text: what an image without a caption is found by."""

from __future__ import annotations

from ravqa.core.records import Description


def as_text(description: Description) -> str:
    """Caption, names of what is seen, and what is written in the image; "" if nothing is."""
    names = [name for tag in description.tags for name in tag.names]
    names += [region.label for region in description.objects]
    parts = (
        description.caption.strip(),
        ", ".join(dict.fromkeys(names)),
        " ".join(description.ocr).strip(),
    )
    return "\n".join(part for part in parts if part)
