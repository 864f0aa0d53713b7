"""InfoSeek: its official files, M2KR's subset, and the bundled sample in the official format.

    DIR/infoseek_val.jsonl          data_id, image_id, question, answer, answer_eval, data_split
    DIR/infoseek_val_qtype.jsonl    data_id, question_type (String, Time, Numerical)
    DIR/infoseek_val_withkb.jsonl   data_id, entity_id, entity_text                   (optional)
    DIR/images/{image_id}.jpg       OVEN's images (.JPEG, .jpeg and .png are found too, as are those
                                    in folders and archives below)

The same applies to train; the test split has no public answers and is not scored. With the option
`setting=m2kr`, DIR (or `hf:NAME`) is M2KR, and its 4,708 questions are used: a different set, whose
scores cannot be compared with those on the 73,620 of the official validation split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Question
from ravqa.corpora.row_images import is_there
from ravqa.corpora.tables import Row, read_rows
from ravqa.corpora.values import text
from ravqa.datasets import bundled, m2kr
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    RetrievalMetric,
    options_of,
    pick_split,
)
from ravqa.datasets.checks import gather, usable
from ravqa.datasets.remote import Remote, Source
from ravqa.images.folder import ImageFolder
from ravqa.metrics.infoseek import question_type_of, range_problem

SPLITS = ("val", "train", "test")
TYPES = ("string", "time", "numerical")
"""Types of questions, which decide how an answer is scored; case does not count."""
RETRIEVAL_METRICS = (
    RetrievalMetric("article_recall_at_k", 1),
    RetrievalMetric("pseudo_recall_at_k", 5),
)

LAYOUT = (
    "It needs the files of github.com/open-vision-language/infoseek: infoseek_val.jsonl, "
    "infoseek_val_qtype.jsonl (and infoseek_val_withkb.jsonl), and OVEN's images as "
    "images/oven_00000001.jpg"
)


def _remark(folder: Path) -> str:
    images = folder / "images"
    if images.is_dir():
        return ""
    return (
        "InfoSeek's images are OVEN's, which come in large archives and not one by one: "
        "only the jsonl files are downloaded; unpack the images into "
        f"{images} (github.com/open-vision-language/oven, image_downloads)"
    )


_PARTS = {"val": ("", "_qtype", "_withkb"), "train": ("", "_withkb"), "test": ("",)}
REMOTE = Remote(
    Source(
        "RAVQA_INFOSEEK_URL",
        "https://storage.googleapis.com/gresearch/open-vision-language/infoseek",
    ),
    {s: [f"infoseek_{s}{part}.jsonl" for part in _PARTS[s]] for s in SPLITS},
    {s: s for s in SPLITS},
    remark=_remark,
)


class Options(bundled.SampleOptions):
    """Options of InfoSeek.

    Attributes:
        setting: the official splits, or M2KR's 4,708 validation questions.
    """

    setting: Literal["official", "m2kr"] = "official"


def load(request: DatasetRequest) -> Dataset:
    """Load a split; without a data folder, one of the bundled sample.

    Raises:
        UserError: the folder or split does not exist, or an edition is given with a data folder.
        DataError: a broken file, or a broken record unless those are skipped.
    """
    options = options_of(Options, request)
    folder, edition = bundled.source_of(options, request)
    if options.setting == "m2kr":
        return _m2kr(request, options)
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist. {LAYOUT}")
    present = [s for s in SPLITS if (folder / f"infoseek_{s}.jsonl").is_file()]
    if not present:
        raise UserError(f"no InfoSeek questions in {folder}. {LAYOUT}")
    split, notes = pick_split(request.split, "val", {s: s for s in SPLITS}, present, folder)
    types = _by_id(folder / f"infoseek_{split}_qtype.jsonl", "question_type")
    if not types and split == "val":
        raise UserError(f"{folder}/infoseek_val_qtype.jsonl is missing. {LAYOUT}")
    entities = _by_id(folder / f"infoseek_{split}_withkb.jsonl", "entity_text", "entity_id")
    # The sample's photos are stored once, under OK-VQA's names.
    images = options.images or (SAMPLE / "val2014" if edition else folder / "images")

    path = folder / f"infoseek_{split}.jsonl"
    stream = _questions(path, split, types, entities, ImageFolder(images), request)
    questions, digest = gather(stream, request, path)
    return Dataset(
        name="infoseek",
        label="bundled sample (not InfoSeek)" if edition else "InfoSeek",
        split=split,
        questions=questions,
        metric=None if split == "test" else "infoseek",
        submission="infoseek",
        fingerprint=digest,
        sample=edition is not None,
        corpus=edition.passages() if edition else None,
        info={
            "setting": "sample" if edition else f"official {split} file",
            **({"edition": edition.number} if edition else {}),
            "entities": "known" if entities else "unknown",
        },
        notes=notes,
        retrieval_metrics=RETRIEVAL_METRICS,
    )


def _m2kr(request: DatasetRequest, options: Options) -> Dataset:
    asked = {"subset": "Infoseek", "images": options.images}
    dataset = m2kr.load(replace(request, options=asked))
    return replace(
        dataset,
        name="infoseek",
        label="InfoSeek, M2KR's questions",
        info={**dataset.info, "setting": f"M2KR's {dataset.split} split"},
    )


def _by_id(path: Path, needed: str, *others: str) -> dict[str, tuple[Any, ...]]:
    """Return the values of the columns by data_id; equal values are stored once."""
    if not path.is_file():
        return {}
    values: dict[str, tuple[Any, ...]] = {}
    once: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for where, record in read_rows(path):
        try:
            data_id = _data_id(record)
            if needed not in record:
                raise DataError(f"no {needed!r}")
            found = tuple(text(record, key) or "" for key in (needed, *others))
        except DataError as e:
            raise DataError(f"{where}: {e}") from None
        values[data_id] = once.setdefault(found, found)
    return values


def _questions(
    path: Path,
    split: str,
    types: Mapping[str, tuple[Any, ...]],
    entities: Mapping[str, tuple[Any, ...]],
    images: ImageFolder,
    request: DatasetRequest,
) -> Iterator[Question]:
    def make(record: Row, data_id: str) -> tuple[Question, str]:
        return _question(record, data_id, split, types, entities, images, request)

    return usable(read_rows(path), _data_id, make, request, id_column="data_id")


def _data_id(record: Row) -> str:
    data_id = record.get("data_id")
    if not isinstance(data_id, str) or not data_id:
        raise DataError("no 'data_id', or it is not a string")
    return data_id


def _question(
    record: Row,
    data_id: str,
    split: str,
    types: Mapping[str, tuple[Any, ...]],
    entities: Mapping[str, tuple[Any, ...]],
    images: ImageFolder,
    request: DatasetRequest,
) -> tuple[Question, str]:
    """Return the question, and why its image is unavailable."""
    image_id, asked = text(record, "image_id"), text(record, "question")
    if image_id is None or asked is None:
        raise DataError(f"no {'question' if image_id else 'image_id'!r}")
    answer_eval = m2kr.evaluation_forms(record.get("answer_eval"))
    question_type = types[data_id][0] if data_id in types else question_type_of(answer_eval)
    if split != "test" and not answer_eval:
        raise DataError("no 'answer_eval'")
    if split == "val" and data_id not in types:
        raise DataError(f"{data_id!r} has no question type")
    if question_type.lower() not in TYPES:
        raise DataError(f"question type {question_type!r} is not one of String, Time, Numerical")
    if reason := range_problem(question_type, answer_eval):
        raise DataError(reason)
    image, missing = None, ""
    if request.find_images:
        image, missing = images.look(f"{image_id}.jpg", by_stem=True)
        if not missing and not is_there(image):
            missing = f"no image {image_id} in {images.root}"
    entity, entity_id = entities.get(data_id, ("", ""))
    question = Question(
        question_id=data_id,
        question=asked,
        image=image,  # a stage that needs it reports if it is missing
        image_id=image_id,
        answers=m2kr.answers_of(record.get("answer"), answer_eval),
        answer_eval=tuple(answer_eval),
        question_type=question_type,
        split=text(record, "data_split") or split,
        extra={k: v for k, v in (("entity", entity), ("entity_id", entity_id)) if v},
        pos_articles=tuple(name for name in (entity_id, entity) if name),
    )
    return question, missing
