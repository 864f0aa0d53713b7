"""Encode and index a corpus before runs search it, in one process or several together."""

from __future__ import annotations

import time
from contextlib import nullcontext

from ravqa.core.cluster import encoded_on_ray
from ravqa.core.devices import processes
from ravqa.core.errors import UserError
from ravqa.core.factory import build_part
from ravqa.core.progress import duration
from ravqa.core.registry import table
from ravqa.core.settings import load_pipeline
from ravqa.core.texts import number_of
from ravqa.corpora.corpus import Corpus
from ravqa.datasets.base import DatasetRequest, load_dataset, parse_options
from ravqa.pipeline import check_settings
from ravqa.runs.console import Console
from ravqa.runs.needs import examine
from ravqa.runs.options import EncodeRequest
from ravqa.runs.passages import read_corpus
from ravqa.runs.plan import check_corpus_options, worker_options


def encode(request: EncodeRequest, console: Console) -> None:
    """Store the index of a corpus in the cache, where runs with these settings find it.

    Raises:
        UserError: no passages, or settings without an encoder.
    """
    settings, where = load_pipeline(request.pipeline, request.overrides)
    config = check_settings(settings, where)
    workers = worker_options(request)
    examine(config, {"retriever"}).refuse()
    state = processes()
    with console.status("reading the passages") if state.is_main_process else nullcontext():
        corpus = _corpus(request)
    with console.status("loading models") if state.is_main_process else nullcontext():
        retriever = build_part(table("retrievers"), config.retriever, f"{where}: retriever")
    if not retriever.encodes:
        raise UserError(f"{where}: the retriever {config.retriever.name} encodes no passages")
    before = None  # passages encoded earlier

    def progress(what: str, done: int, total: int) -> None:
        nonlocal before
        before = done if before is None else before
        if state.is_main_process:
            console.progress(what, done, total)

    began = time.monotonic()
    with encoded_on_ray(workers):
        stats = retriever.encode(corpus, progress)
    seconds = time.monotonic() - began
    retriever.prepare(corpus, progress)
    indexing = time.monotonic() - began - seconds
    console.close()
    state.destroy_process_group()
    if not state.is_main_process:
        return
    if stats is None:
        console.out.print(f"{number_of(len(corpus), 'passage')}: already encoded and indexed")
        return
    new = stats.items - (before or 0)
    console.out.print(
        f"{number_of(stats.items, 'passage')}, {number_of(stats.vectors, 'vector')}, "
        f"{stats.truncated:,} truncated; "
        f"{new:,} encoded now, {new / seconds:,.1f} passages per second; "
        f"indexed in {duration(indexing)}"
    )


def _corpus(request: EncodeRequest) -> Corpus:
    check_corpus_options(request)
    if request.corpus:
        return read_corpus(request.corpus, request.corpus_options)
    if request.dataset is None:
        raise UserError("no passages to encode: give a file with --corpus, or a --dataset")
    asked = DatasetRequest(
        data=request.data, need_images=False, options=parse_options(request.dataset_options)
    )
    corpus: Corpus | None = load_dataset(request.dataset, asked).corpus
    if corpus is None:
        raise UserError(f"--dataset {request.dataset} --data has no passages: use --corpus")
    return corpus
