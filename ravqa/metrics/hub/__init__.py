"""The metrics for the library `evaluate` (Hugging Face): one folder each, for `evaluate.load`.

Thin wrappers: the numbers come from the pure functions of `ravqa.metrics`. They load offline:

    evaluate.load(path("vqa_accuracy"))
"""

from pathlib import Path

NAMES = ("vqa_accuracy", "infoseek", "evqa", "pseudo_recall")


def path(name: str) -> str:
    """Return the folder of a metric, for `evaluate.load`.

    Raises:
        ValueError: the name is not one of NAMES.
    """
    if name not in NAMES:
        raise ValueError(f"no metric {name!r}: {', '.join(NAMES)}")
    return str(Path(__file__).parent / name)
