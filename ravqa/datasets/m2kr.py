"""M2KR, the retrieval benchmark of PreFLMR (arXiv 2402.08327), and its Chinese version M2KR_CN.

Ten subsets, each with queries and passages, in the hub's layout
(BByrneLab/multi_task_multi_modal_knowledge_retrieval_benchmark_M2KR):

    DIR/{SUBSET}_data/{train,valid,test}-00000-of-00001.parquet
    DIR/{SUBSET}_passages/{train,valid,test}_passages-00000-of-00001.parquet

or `--data hf:OWNER/NAME`. Images are not included: they are looked up by `img_path` below DIR or
the option `images`; copies that hold their images are read too. Rows without a path get the black
image that the authors' script gives them, so that a text-only query has as many vectors as any
other; a row that names an unavailable image, or that lacks one where other rows hold theirs, is
reported. A query without a question consists of its instruction.

Reporting rules: LinWeizheDragon/FLMR, docs/MODEL_ZOO.md and examples/evaluate_all.sh. Recall@K asks
whether one of `pos_item_ids` is among the first K; pseudo recall, whether an answer string is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError, UserError, near_matches
from ravqa.core.records import Passage, Question
from ravqa.core.texts import number_of
from ravqa.corpora import hub, row_images
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.remarks import Remarks
from ravqa.corpora.rows import whole
from ravqa.corpora.sources import PASSAGE_BYTES
from ravqa.corpora.tables import Row
from ravqa.corpora.values import is_blank, list_of, text, text_of, texts, texts_of
from ravqa.datasets import processed
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    ImageOptions,
    RetrievalMetric,
    options_of,
    pick_split,
)
from ravqa.datasets.checks import gather, usable
from ravqa.images.decode import BLACK
from ravqa.images.folder import ImageFolder
from ravqa.metrics.infoseek import question_type_of, range_problem

HUB = "BByrneLab/multi_task_multi_modal_knowledge_retrieval_benchmark_M2KR"
HUB_CN = "BByrneLab/M2KR_CN"

_ALL = ("train", "valid", "test")


def _recall(k: int) -> tuple[RetrievalMetric, ...]:
    return (RetrievalMetric("recall_at_k", k),)


_PSEUDO = (RetrievalMetric("pseudo_recall_at_k", 5), RetrievalMetric("recall_at_k", 5))


@dataclass(frozen=True, slots=True)
class Subset:
    """The published facts about a subset.

    Attributes:
        splits: the splits that have queries.
        retrieval_metrics: the metrics that are reported; the first is that of the paper's table.
        test: number of test queries.
        metric: answer metric of its questions; None if there is nothing to answer.
    """

    splits: Sequence[str]
    retrieval_metrics: Sequence[RetrievalMetric]
    test: int | None
    metric: str | None = None


SUBSETS = {
    "WIT": Subset(_ALL, _recall(10), 5120),
    "IGLUE": Subset(("test",), _recall(1), 685),
    "KVQA": Subset(_ALL, _recall(5), 5120),
    "CC": Subset(("train",), (), None),
    "MSMARCO": Subset(_ALL, _recall(5), 5120),
    "OVEN": Subset(_ALL, _recall(5), 5120),
    "LLaVA": Subset(("train", "test"), _recall(1), 5120),
    "EVQA": Subset(_ALL, _PSEUDO, 3750, "evqa_score"),
    "OKVQA": Subset(_ALL, _PSEUDO, 5046, "vqa_accuracy"),
    "Infoseek": Subset(("train", "test"), _PSEUDO, 4708, "infoseek"),
}
"""The subsets, in the order of the authors' table."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """M2KR or its Chinese version.

    Attributes:
        label: its name in results.
        hub: its repository on the hub.
        counted: whether the facts in `SUBSETS` hold, and its answers are scored.
    """

    label: str
    hub: str
    counted: bool

    def test_queries(self, subset: str) -> int | None:
        """Return the number of a subset's published test queries, if it is known."""
        return SUBSETS[subset].test if self.counted else None


BENCHMARKS = {
    "m2kr": Benchmark("M2KR", HUB, counted=True),
    # Other queries than those counted in SUBSETS; and the metrics are English.
    "m2kr_cn": Benchmark("M2KR_CN", HUB_CN, counted=False),
}
"""The benchmarks by registered name."""

UNREAD = (
    *("pos_item_contents", "related_item_ids", "found"),
    *("class", "attributes", "attribute_scores", "ocr", "rect"),
)
"""Published query columns that are not needed; `pos_item_contents` is the bulk of the rows."""
TEXT_ONLY = ("MSMARCO",)
"""Subsets whose queries have no images."""

_TITLED = re.compile(r"title: (.+?) content: ")
_SECTION_NUMBER = re.compile(r"_\d+$")


class Options(ImageOptions):
    """Options of M2KR.

    Attributes:
        subset: its published name; case and hyphens do not count.
    """

    subset: str


def load(request: DatasetRequest) -> Dataset:
    """Load a split of a subset of M2KR, with its passages.

    Raises:
        UserError: the subset, folder or split does not exist.
        DataError: a broken file, or a broken record unless those are skipped.
    """
    return _load(request, "m2kr")


def load_cn(request: DatasetRequest) -> Dataset:
    """Load a split of a subset of M2KR_CN; answers are not scored, since the metrics are English.

    Raises:
        UserError: as `load`.
        DataError: as `load`.
    """
    return _load(request, "m2kr_cn")


def subset_name(name: str) -> str:
    """Return the published name of a subset, ignoring case and hyphens.

    Raises:
        UserError: the subset does not exist.
    """
    names = {known.lower(): known for known in SUBSETS} | {"cc3m": "CC"}
    found = names.get(name.replace("-", "").lower())
    if found is None:
        raise UserError(f"subset={name}: no such subset: {near_matches(name, SUBSETS)}")
    return found


def _load(request: DatasetRequest, name: str) -> Dataset:
    benchmark = BENCHMARKS[name]
    repository = benchmark.hub
    if request.data is None:
        raise UserError(
            f"--dataset {name} needs --data: a folder with the files of {repository}, or "
            f"hf:{repository} to read it from the hub"
        )
    if request.options.keys() <= {"images"}:
        raise UserError(
            f"--dataset {name} needs --dataset-option subset=NAME: {', '.join(SUBSETS)}"
        )
    options = options_of(Options, request)
    subset = subset_name(options.subset)
    published = SUBSETS[subset]
    data, config = request.data, f"{subset}_data"
    if hub.hub_name(data) is None:
        if not data.is_dir():
            raise UserError(
                f"the data folder {data} does not exist. It needs the files of {repository}"
            )
        present = hub.split_names(data, config)
        if not present:
            raise UserError(
                f"no {config}/*.parquet in {data}: the files of {repository} are expected"
            )
    else:
        present = list(published.splits)
    split, notes = pick_split(
        request.split, "test", {s: s for s in published.splits}, present, data / config
    )
    if subset == "OKVQA" and split == "valid":
        notes.append("M2KR's OKVQA split valid is its test file: choose no settings on it")
    table = hub.Table(data, config, split)
    questions, digest = gather(
        _questions(table, subset, split, hub.image_folder(data, options.images), request),
        request,
        table.where,
    )
    remarks = Remarks(request.problems.on_error)
    corpus = _corpus(data, subset, split, remarks)
    notes += remarks.lines()
    if corpus.repeated:
        notes.append(
            f"left out: {number_of(corpus.repeated, 'passage')} with the id of an earlier one"
        )
    return Dataset(
        name=name,
        label=f"{benchmark.label} {subset}",
        split=split,
        questions=questions,
        metric=published.metric if benchmark.counted else None,
        fingerprint=digest,
        corpus=corpus,
        info={"subset": subset, "source": data.as_posix()},
        notes=notes,
        retrieval_metrics=published.retrieval_metrics,
    )


def _questions(
    table: hub.Table, subset: str, split: str, images: ImageFolder, request: DatasetRequest
) -> Iterator[Question]:
    def make(row: Row, question_id: str) -> tuple[Question, str]:
        return _question(row, question_id, subset, split, images)

    rows = table.read([c for c in table.columns if c not in UNREAD])
    return usable(rows, processed.question_id_of, make, request)


def _question(
    row: Row, question_id: str, subset: str, split: str, images: ImageFolder
) -> tuple[Question, str]:
    """Return the question, and why its image is unavailable."""
    asked, instruction = text(row, "question"), text(row, "instruction")
    if asked is None and instruction is None:
        raise DataError("neither question nor instruction")
    answers = texts(row, "answers", "answer")
    if SUBSETS[subset].metric and not answers:
        raise DataError("no 'answers'")
    question_type = text(row, "question_type")
    answer_eval: list[Any] = []
    if subset == "Infoseek":
        answer_eval = _answer_eval(row, question_type, answers)
        question_type = question_type or question_type_of(answer_eval)
        reason = range_problem(question_type, answer_eval)
        if reason:
            raise DataError(reason)
    found = row_images.image_of(row, images, ("img_path", *row_images.HELD, *row_images.NAMED))
    missing = found.missing
    published = "img_path" in row and not found.empty  # as is the black image for rows without one
    if found.path is None and not published and subset not in TEXT_ONLY:
        missing = "no image in a column such as img_path, image, images"
    positives = texts(row, "pos_item_ids")
    entity = [text(row, "entity_id"), text(row, "entity_text")]
    extra = {"gold_answer": text(row, "gold_answer")}
    extra |= dict(zip(("entity_id", "entity"), entity, strict=True))
    question = Question(
        # The official ids of OK-VQA are numbers.
        question_id=processed.as_number(question_id) if subset == "OKVQA" else question_id,
        question=asked or "",
        image=found.path or (images.root / f"<image of {question_id}>" if missing else BLACK),
        image_id=processed.image_id_of(row) if found.path else None,
        answers=answers_of(list(answers), answer_eval) if answer_eval else answers,
        answer_eval=tuple(answer_eval),
        instruction=instruction,
        question_type=question_type,
        split=text(row, "data_split") or split,
        pos_item_ids=positives,
        description=processed.description_of(row),
        extra={key: value for key, value in extra.items() if value},
        pos_articles=tuple(
            dict.fromkeys(
                [name for name in entity if name]
                + [a for p in positives if (a := _article(subset, p, None, ""))]
            )
        ),
    )
    return question, missing


def answers_of(answer: Any, answer_eval: list[Any]) -> tuple[str, ...]:
    """Return every accepted string of an InfoSeek question, the annotators' first.

    Raises:
        DataError: an answer is not text.
    """
    given = texts_of(answer, "answer")
    return tuple(dict.fromkeys(given + tuple(a for a in answer_eval if isinstance(a, str))))


def evaluation_forms(value: Any) -> list[Any]:
    """Return InfoSeek's evaluation forms as a list: texts, and unchanged objects with a range.

    Raises:
        DataError: a form is something else.
    """
    found: list[Any] = []
    value = list_of(value, "answer_eval")
    for item in value if isinstance(value, list) else [value]:  # one object instead of a list
        if isinstance(item, dict):
            found.append(item)
        elif (form := text_of(item, "answer_eval")) is not None:
            found.append(form)
    return found


def _answer_eval(row: Row, question_type: str | None, answers: Sequence[str]) -> list[Any]:
    """Return InfoSeek's evaluation forms; M2KR has separate columns for a number and its range."""
    bounds = row.get("wikidata_range")
    if isinstance(bounds, list) and len(bounds) == 2 and question_type in {None, "Numerical"}:
        return [{"wikidata": row.get("wikidata_value"), "range": bounds}]
    return evaluation_forms(row.get("answer_eval")) or list(answers)


def _corpus(data: Path, subset: str, split: str, remarks: Remarks) -> Corpus:
    table = hub.Table(data, f"{subset}_passages", f"{split}_passages")
    images = hub.image_folder(data, None)

    def passages() -> Iterator[Passage]:
        for where, row in table.read():
            with remarks.may_be_left_out(where):
                yield _passage(row, subset, images)

    skips = " skip" if remarks.on_error == "skip" else ""
    return Corpus.build(
        whole(passages(), table.where, remarks),
        source=table.where,
        size=table.rows * PASSAGE_BYTES,
        key=lambda: f"m2kr/2 {subset} {table.key}{skips}",
        repeats="first",  # some ids are published twice
        remarks=remarks,
    )


def _passage(row: Row, subset: str, images: ImageFolder) -> Passage:
    passage_id, content = text(row, "passage_id"), row.get("passage_content")
    title = text(row, "title")
    # The published `img_path` of CC and WIT is where a passage was found, and no part of it.
    image = row_images.image_of(row, images, row_images.HELD)
    if passage_id is None or not isinstance(content, str):
        raise DataError("no 'passage_id' or no 'passage_content'")
    if image.missing:
        raise DataError(image.missing)
    known = {"passage_id", "passage_content", *row_images.HELD, *row_images.held_columns(row)}
    # The text contains its title: it is encoded and searched unchanged.
    return Passage(
        passage_id=passage_id,
        text=content,
        image=image.path,
        article=_article(subset, passage_id, title, content),
        extra={
            k: v
            for k, v in row.items()
            if k not in known and not is_blank(v) and not isinstance(v, bytes)
        },
    )


def _article(subset: str, passage_id: str, title: str | None, content: str) -> str | None:
    """Return a passage's article: EVQA's ids are WikiWeb_TITLE_SECTION, other texts have titles."""
    if subset == "EVQA":
        return _SECTION_NUMBER.sub("", passage_id)
    found = _TITLED.match(content)
    return title or (found.group(1) if found else None)
