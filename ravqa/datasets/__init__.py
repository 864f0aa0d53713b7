"""Datasets and corpora, read into records.

Each dataset is a function `load(request) -> Dataset`, registered by name in `DATASETS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.registry import Registry

if TYPE_CHECKING:
    from ravqa.datasets.base import Loader

DATASETS: Registry[Loader] = Registry(
    "dataset",
    {
        "okvqa": (
            "ravqa.datasets.okvqa:load",
            "OK-VQA: official files, hub copies, or the bundled sample in their form",
        ),
        "infoseek": (
            "ravqa.datasets.infoseek:load",
            "InfoSeek: official jsonl files, M2KR's split, or the bundled sample in their form",
        ),
        "evqa": ("ravqa.datasets.evqa:load", "Encyclopedic-VQA: official csv files"),
        "m2kr": ("ravqa.datasets.m2kr:load", "M2KR: ten retrieval benchmarks, with passages"),
        "m2kr_cn": ("ravqa.datasets.m2kr:load_cn", "M2KR in Chinese"),
        "jsonl": ("ravqa.datasets.files:load_jsonl", "your own questions, as JSON lines"),
        "csv": ("ravqa.datasets.files:load_csv", "your own questions, as CSV or TSV"),
    },
)
