"""Datasets: questions with images and reference answers, loaded as records.

Each dataset is a function `load(request) -> Dataset`, registered by name in `DATASETS`. What of it
can be downloaded is declared beside its loader and registered in `DOWNLOADS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ravqa.core.registry import Registry

if TYPE_CHECKING:
    from ravqa.datasets.base import Dataset, Loader, OnError
    from ravqa.datasets.remote import Remote

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
        "aokvqa": (
            "ravqa.datasets.aokvqa:load",
            "A-OKVQA: official files or hub copies, direct answers or choices",
        ),
        "m2kr": ("ravqa.datasets.m2kr:load", "M2KR: ten retrieval benchmarks, with passages"),
        "m2kr_cn": ("ravqa.datasets.m2kr:load_cn", "M2KR in Chinese"),
        "jsonl": ("ravqa.datasets.files:load_jsonl", "your own questions, as JSON lines"),
        "csv": ("ravqa.datasets.files:load_csv", "your own questions, as CSV or TSV"),
    },
)

DOWNLOADS: Registry[Remote] = Registry(
    "download source",
    {
        "okvqa": ("ravqa.datasets.okvqa:REMOTE", "questions and images"),
        "infoseek": ("ravqa.datasets.infoseek:REMOTE", "questions"),
        "evqa": ("ravqa.datasets.evqa:REMOTE", "questions"),
    },
)
"""Where the official files of datasets are, by the names of the datasets."""


def load_dataset(
    name: str,
    data: Path | str | None = None,
    split: str | None = None,
    *,
    limit: int | None = None,
    on_error: OnError = "fail",
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Load the questions of a dataset.

    Args:
        name: a registered dataset, such as "okvqa" (`ravqa ls datasets`).
        data: folder with the official files, a file, or "hf:OWNER/NAME"; None for the bundled
            sample.
        split: name of the split; None for the dataset's default.
        limit: load only the first `limit` questions.
        on_error: "fail", or "skip" to leave out broken questions.
        options: the dataset's own options.

    Raises:
        UserError: the dataset, split or option does not exist.
        DataError: files are missing or broken.
    """
    from ravqa.datasets import base

    request = base.DatasetRequest(
        data=None if data is None else Path(data),
        split=split,
        limit=limit,
        problems=base.Problems(on_error),
        options=options or {},
    )
    return base.load_dataset(name, request)
