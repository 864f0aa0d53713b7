"""OK-VQA in its official files (okvqa.allenai.org), and the bundled sample in the same form.

DIR/OpenEnded_mscoco_{train2014,val2014}_questions.json
DIR/mscoco_{train2014,val2014}_annotations.json
DIR/{train2014,val2014}/COCO_{train2014,val2014}_{image_id:012d}.jpg
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ravqa.config import fingerprint
from ravqa.datasets.base import Dataset, DatasetRequest, Problems, pick_split, read_json
from ravqa.datasets.checks import check_images
from ravqa.datasets.corpus import Corpus
from ravqa.errors import DataError, UserError
from ravqa.paths import SAMPLE
from ravqa.records import Question

SPLITS = ("val2014", "train2014")
ALIASES = {
    "val2014": "val2014",
    "val": "val2014",
    "train2014": "train2014",
    "train": "train2014",
}
ANSWER_FIELD = "answer"  # v1.0 has stemmed strings there and the human's in "raw_answer"

LAYOUT = (
    "expected are the files of okvqa.allenai.org (Download): "
    "OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, and the COCO 2014 "
    "images (cocodataset.org) as val2014/COCO_val2014_000000000042.jpg; the same for train2014"
)


def question_file(split: str) -> str:
    """Official name of a split's question file."""
    return f"OpenEnded_mscoco_{split}_questions.json"


def annotation_file(split: str) -> str:
    """Official name of a split's annotation file."""
    return f"mscoco_{split}_annotations.json"


def image_name(split: str, image_id: int) -> str:
    """Official path of an image below the data folder."""
    return f"{split}/COCO_{split}_{image_id:012d}.jpg"


def load(request: DatasetRequest) -> Dataset:
    """Load a split; without a data folder, of the bundled sample.

    Raises:
        UserError: no such folder or split.
        DataError: a broken file, or a broken record unless those are skipped.
    """
    folder = request.data if request.data is not None else SAMPLE
    if not folder.is_dir():
        raise UserError(f"no data folder {folder}: {LAYOUT}")
    present = [s for s in SPLITS if (folder / question_file(s)).is_file()]
    if not present:
        raise UserError(f"no OK-VQA questions in {folder}: {LAYOUT}")
    split, notes = pick_split(request.split, SPLITS[0], ALIASES, present, folder)

    path = folder / question_file(split)
    document = _document(path, "questions")
    annotations = _document(folder / annotation_file(split), "annotations")
    answers = _answers(
        annotations["annotations"], folder / annotation_file(split), request.problems
    )
    questions = _questions(document["questions"], answers, path, folder, split, request)
    if request.need_images:
        questions = check_images(questions, request)
    if not questions:
        raise DataError(f"{path}: no usable question")

    version = str(_mapping(annotations.get("info")).get("version", "unknown"))
    if version == "1.0":
        notes.append(
            "these are OK-VQA v1.0 annotations: their answers are stemmed ('poni tail'); "
            "scores are lower than on v1.1 and not comparable with it"
        )
    sample = request.data is None
    return Dataset(
        name="okvqa",
        label="bundled sample (OK-VQA's form, not OK-VQA)" if sample else "OK-VQA",
        split=split,
        questions=questions,
        metric="vqa_accuracy",
        fingerprint=fingerprint(
            [[q.question_id, q.question, q.image_id, q.answers] for q in questions]
        ),
        sample=sample,
        corpus=Corpus.read(SAMPLE / "passages.jsonl") if sample else None,
        info={"version": version, "answer_field": ANSWER_FIELD},
        notes=notes,
        question_types={
            str(k): str(v) for k, v in _mapping(annotations.get("question_types")).items()
        },
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _document(path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing: {LAYOUT}")
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get(key), list):
        raise DataError(f"{path}: an object with the list {key!r} is expected")
    return document


def _answers(
    records: list[Any], path: Path, problems: Problems
) -> dict[Any, tuple[tuple[str, ...], str | None]]:
    answers: dict[Any, tuple[tuple[str, ...], str | None]] = {}
    for number, record in enumerate(records, 1):
        where = f"{path}, annotation {number}"
        try:
            given = tuple(str(a[ANSWER_FIELD]) for a in record["answers"])
            question_id = record["question_id"]
        except KeyError as e:
            problems.report(where, f"no {e.args[0]!r}")
            continue
        except TypeError:
            problems.report(
                where,
                "an object with 'question_id' and a list 'answers' of objects with "
                f"{ANSWER_FIELD!r} is expected",
            )
            continue
        if not isinstance(question_id, int | str):
            problems.report(where, "question_id is no number or string")
            continue
        if question_id in answers:
            problems.report(where, f"question {question_id} has two", question_id)
            continue
        kind = record.get("question_type")
        answers[question_id] = given, None if kind is None else str(kind)
    return answers


def _questions(
    records: list[Any],
    answers: Mapping[Any, tuple[tuple[str, ...], str | None]],
    path: Path,
    folder: Path,
    split: str,
    request: DatasetRequest,
) -> list[Question]:
    problems: Problems = request.problems
    questions: list[Question] = []
    seen: set[Any] = set()
    for number, record in enumerate(records, 1):
        if request.limit is not None and len(questions) >= request.limit:
            break
        where = f"{path}, question {number}"
        try:
            question_id, text = record["question_id"], record["question"]
            image_id = record["image_id"]
        except KeyError as e:
            problems.report(where, f"no {e.args[0]!r}")
            continue
        except TypeError:
            problems.report(where, "an object is expected")
            continue
        if not isinstance(question_id, int | str):
            problems.report(where, "question_id is no number or string")
            continue
        where = f"{path}, question {number} (id {question_id})"
        if question_id in seen:
            problems.report(where, "duplicate question id", question_id)
        elif not isinstance(image_id, int) or image_id < 0:
            problems.report(where, f"image_id {image_id!r} is not a number", question_id)
        elif not isinstance(text, str) or not text.strip():
            problems.report(where, "blank question", question_id)
        elif not answers.get(question_id, ((), None))[0]:
            problems.report(where, "no annotation with answers", question_id)
        else:
            given, question_type = answers[question_id]
            questions.append(
                Question(
                    question_id=question_id,
                    question=text,
                    image=folder / image_name(split, image_id),
                    image_id=image_id,
                    answers=given,
                    question_type=question_type,
                    split=split,
                )
            )
        seen.add(question_id)
    return questions
