"""Small files of datasets, in their published forms, that several tests write."""

import PIL.Image
import pytest


def write_image(path, color=(200, 30, 30), size=(8, 6)):
    """A plain photo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, color).save(path)


def write_parquet(path, rows, schema=None):
    """Rows as a Parquet file; skips the test where pyarrow is not installed."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


# What RA-VQA's processed rows hold of an image's objects.
OBJECTS = [
    {
        "class": "dining_table",
        "rect": [1.0, 2.0, 30.5, 40.0],
        "attributes": ["wooden", "brown"],
        "attribute_scores": [0.9, 0.04],
        "ocr": [{"text": "MENU", "score": 0.8, "rect": [1, 2, 3, 4]}],
    },
    {
        "class": "cup",
        "rect": [5, 6, 7, 8],
        "attributes": [],
        "attribute_scores": [],
        "ocr": [],
    },
]
