"""InfoSeek in its official files, and the bundled sample in the same form.

    DIR/infoseek_val.jsonl          data_id, image_id, question, answer, answer_eval, data_split
    DIR/infoseek_val_qtype.jsonl    data_id, question_type (String, Time, Numerical)
    DIR/infoseek_val_withkb.jsonl   data_id, entity_id, entity_text                   (optional)
    DIR/images/{image_id}.jpg       OVEN's images (.JPEG, .jpeg and .png are found too)

The same for train; the test split has no public answers and is not scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ravqa.config import fingerprint
from ravqa.datasets.base import Dataset, DatasetRequest, pick_split, read_jsonl
from ravqa.datasets.checks import check_images
from ravqa.datasets.corpus import Corpus
from ravqa.errors import DataError, UserError
from ravqa.images import find
from ravqa.metrics.infoseek import question_type_of
from ravqa.paths import SAMPLE
from ravqa.records import Question

SPLITS = ("val", "train", "test")
SUFFIXES = (".jpg", ".JPEG", ".jpeg", ".png", ".JPG")

LAYOUT = (
    "expected are the files of github.com/open-vision-language/infoseek: infoseek_val.jsonl, "
    "infoseek_val_qtype.jsonl (and infoseek_val_withkb.jsonl), and OVEN's images as "
    "images/oven_00000001.jpg"
)


def load(request: DatasetRequest) -> Dataset:
    """Load a split; without a data folder, of the bundled sample.

    Raises:
        UserError: no such folder or split.
        DataError: a broken file, or a broken record unless those are skipped.
    """
    sample = request.data is None
    folder = request.data if request.data is not None else SAMPLE
    if not folder.is_dir():
        raise UserError(f"no data folder {folder}: {LAYOUT}")
    present = [s for s in SPLITS if (folder / f"infoseek_{s}.jsonl").is_file()]
    if not present:
        raise UserError(f"no InfoSeek questions in {folder}: {LAYOUT}")
    split, notes = pick_split(request.split, "val", {s: s for s in SPLITS}, present, folder)
    types = _by_id(folder / f"infoseek_{split}_qtype.jsonl", "question_type")
    if not types and split == "val":
        raise UserError(f"{folder}/infoseek_val_qtype.jsonl is missing: {LAYOUT}")
    entities = _by_id(folder / f"infoseek_{split}_withkb.jsonl", "entity_text")
    # The sample's photos are stored once, under OK-VQA's names.
    images = folder / "val2014" if sample else folder / "images"

    questions = _questions(
        folder / f"infoseek_{split}.jsonl", split, types, entities, images, request
    )
    if request.need_images:
        questions = check_images(questions, request)
    if not questions:
        raise DataError(f"{folder}/infoseek_{split}.jsonl: no usable question")
    return Dataset(
        name="infoseek",
        label="bundled sample (InfoSeek's form, not InfoSeek)" if sample else "InfoSeek",
        split=split,
        questions=questions,
        metric=None if split == "test" else "infoseek",
        fingerprint=fingerprint([_scored_parts(q) for q in questions]),
        sample=sample,
        corpus=Corpus.read(SAMPLE / "passages.jsonl") if sample else None,
        info={"setting": "sample" if sample else f"official {split} file"},
        notes=notes,
    )


def _scored_parts(q: Question) -> list[Any]:
    """What a question's scores are made of."""
    return [
        q.question_id,
        q.question,
        q.image_id,
        q.answers,
        q.answer_eval,
        q.question_type,
        q.split,
    ]


def _by_id(path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = {}
    for number, record in read_jsonl(path):
        if "data_id" not in record or key not in record:
            raise DataError(f"{path}, line {number}: no 'data_id' or no {key!r}")
        if not isinstance(record["data_id"], str):
            raise DataError(f"{path}, line {number}: 'data_id' is not a string")
        values[record["data_id"]] = record[key]
    return values


def _questions(
    path: Path,
    split: str,
    types: dict[str, Any],
    entities: dict[str, Any],
    images: Path,
    request: DatasetRequest,
) -> list[Question]:
    problems = request.problems
    questions: list[Question] = []
    seen: set[str] = set()
    for number, record in read_jsonl(path):
        if request.limit is not None and len(questions) >= request.limit:
            break
        where = f"{path}, line {number}"
        data_id = record.get("data_id")
        if not isinstance(data_id, str) or not data_id:
            problems.report(where, "no 'data_id', or it is not a string")
            continue
        missing = [k for k in ("image_id", "question") if not str(record.get(k) or "").strip()]
        if missing:
            problems.report(where, f"no {missing[0]!r}", data_id)
            continue
        answer_eval = record.get("answer_eval") or []
        if not isinstance(answer_eval, list):  # one mapping instead of a list of one
            answer_eval = [answer_eval]
        question_type = types.get(data_id) or question_type_of(answer_eval)
        try:
            image = find(images, str(record["image_id"]), SUFFIXES)
        except DataError as e:
            problems.report(where, str(e), data_id)
            continue
        if data_id in seen:
            problems.report(where, f"duplicate data_id {data_id!r}", data_id)
        elif split != "test" and not answer_eval:
            problems.report(where, "no 'answer_eval'", data_id)
        elif split == "val" and data_id not in types:
            problems.report(where, f"{data_id!r} has no question type", data_id)
        elif str(question_type).lower() == "numerical" and not _has_range(answer_eval):
            problems.report(where, 'a Numerical question needs [{"range": [low, high]}]', data_id)
        elif image is None and request.need_images:
            problems.report(where, f"no image {record['image_id']} in {images}", data_id)
        else:
            strings = [a for a in answer_eval if isinstance(a, str)]
            answer = record.get("answer") or []
            answers = [str(a) for a in (answer if isinstance(answer, list) else [answer])]
            questions.append(
                Question(
                    question_id=data_id,
                    question=str(record["question"]),
                    image=image,
                    image_id=str(record["image_id"]),
                    answers=tuple(dict.fromkeys(answers + strings)),
                    answer_eval=tuple(answer_eval),
                    question_type=str(question_type),
                    split=str(record.get("data_split") or split),
                    extra={"entity": entities[data_id]} if data_id in entities else {},
                )
            )
        seen.add(data_id)
    return questions


def _has_range(answer_eval: list[Any]) -> bool:
    first = answer_eval[0] if answer_eval else None
    bounds = first.get("range") if isinstance(first, dict) else None
    return (
        isinstance(bounds, list)
        and len(bounds) == 2
        and all(isinstance(bound, int | float) for bound in bounds)
    )
