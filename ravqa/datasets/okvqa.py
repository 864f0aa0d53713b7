"""OK-VQA in its published forms, and the bundled sample in the official one.

Official (okvqa.allenai.org), DIR:

    OpenEnded_mscoco_{train2014,val2014}_questions.json
    mscoco_{train2014,val2014}_annotations.json
    {train2014,val2014}/COCO_{train2014,val2014}_{image_id:012d}.jpg

Hub copies, DIR with their Parquet files or `hf:OWNER/NAME`:

    lmms-lab/OK-VQA                            val2014, with the images; no raw_answer
    BByrneLab/OKVQA_FLMR_preprocessed_data     train, valid, test: RA-VQA's processed questions with
                                               captions, objects, OCR and regions

There is no public test split: val2014 is everybody's. Anything that is chosen should be chosen on
`dev`, a tenth of train2014's images with all their questions; `train-minus-dev` is the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ravqa.datasets import hub, processed
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    ImageOptions,
    Problems,
    RetrievalMetric,
    options_of,
    pick_split,
)
from ravqa.datasets.checks import gather
from ravqa.datasets.corpus import Corpus
from ravqa.datasets.reading import JSON_LINES, Row, read_json, read_jsonl, suffix_of
from ravqa.errors import DataError, UserError
from ravqa.images import ImageFolder, kept_image
from ravqa.paths import SAMPLE
from ravqa.records import Description, Question

SPLITS = ("val2014", "train2014")
DEV = "dev"
REST = "train-minus-dev"
ALIASES = {
    "val2014": "val2014",
    "val": "val2014",
    "train2014": "train2014",
    "train": "train2014",
    DEV: "train2014",
    REST: "train2014",
}
RETRIEVAL_METRICS = (RetrievalMetric("pseudo_recall_at_k", 5),)

LAYOUT = (
    "expected are the files of okvqa.allenai.org (Download): "
    "OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, and the COCO 2014 "
    "images (cocodataset.org) as val2014/COCO_val2014_000000000042.jpg; the same for train2014"
)


class Options(ImageOptions):
    """Options of OK-VQA.

    Attributes:
        answer_field: "answer" is scored by the official code; in version 1.0 it holds stemmed
            words, and "raw_answer" what people wrote.
        captions: image captions: JSON lines with image_id and caption, or Oscar's JSON
            {image: [{caption, conf}]}.
        dev_share: share of train2014's images in `dev`.
        dev_seed: which images those are.
    """

    answer_field: Literal["answer", "raw_answer"] = "answer"
    captions: Path | None = None
    dev_share: float = Field(default=0.1, gt=0, lt=1)
    dev_seed: int = Field(default=0, ge=0)


def question_file(split: str) -> str:
    """Official name of a split's question file."""
    return f"OpenEnded_mscoco_{split}_questions.json"


def annotation_file(split: str) -> str:
    """Official name of a split's annotation file."""
    return f"mscoco_{split}_annotations.json"


def image_name(split: str, image_id: int) -> str:
    """Official path of an image below the data folder."""
    return f"{split}/COCO_{split}_{image_id:012d}.jpg"


def in_dev(image_id: int | str, *, share: float, seed: int) -> bool:
    """Whether an image belongs to `dev`: a lot drawn from the seed and the image's id alone.

    It does not depend on which other images there are, nor on their order.
    """
    lot = hashlib.sha256(f"ravqa-dev/{seed}/{image_id}".encode()).digest()[:8]
    return int.from_bytes(lot, "big") < share * 2**64


def load(request: DatasetRequest) -> Dataset:
    """Load a split; without a data folder, of the bundled sample.

    Raises:
        UserError: no such folder or split.
        DataError: a broken file, or a broken record unless those are skipped.
    """
    options = options_of(Options, request)
    folder = request.data if request.data is not None else SAMPLE
    if hub.hub_name(folder) is None:
        if not folder.is_dir():
            raise UserError(f"no data folder {folder}: {LAYOUT}")
        present = [s for s in SPLITS if (folder / question_file(s)).is_file()]
        if present:
            return _official(request, options, folder, present)
        if not hub.has_table(folder, None):
            raise UserError(f"no OK-VQA questions in {folder}: {LAYOUT}")
    return _table(request, options, folder)


def _official(
    request: DatasetRequest, options: Options, folder: Path, present: Sequence[str]
) -> Dataset:
    split, notes = pick_split(request.split, SPLITS[0], ALIASES, present, folder)
    part = request.split if request.split in {DEV, REST} else split
    path = folder / question_file(split)
    document = _document(path, "questions")
    annotations = _document(folder / annotation_file(split), "annotations")
    answers = _answers(
        annotations["annotations"],
        folder / annotation_file(split),
        request.problems,
        options.answer_field,
    )
    images = ImageFolder(options.images or folder)
    stream = _questions(document["questions"], answers, path, images, split, request)
    questions, digest = gather(
        _part(part, options, _captioned(options.captions, stream)), request, path
    )
    version = str(_mapping(annotations.get("info")).get("version", "unknown"))
    if version == "1.0" and options.answer_field == "answer":
        notes.append(
            "these are OK-VQA v1.0 annotations: their answers are stemmed ('poni tail'); "
            "scores are lower than on v1.1 and not comparable with it"
        )
    if options.answer_field != "answer":
        notes.append(
            "scored with 'raw_answer', where the official code scores 'answer': not comparable "
            "with published scores"
        )
    sample = request.data is None
    return Dataset(
        name="okvqa",
        label="bundled sample (OK-VQA's form, not OK-VQA)" if sample else "OK-VQA",
        split=part,
        questions=questions,
        metric="vqa_accuracy",
        fingerprint=digest,
        sample=sample,
        corpus=Corpus.read(SAMPLE / "passages.jsonl") if sample else None,
        info={
            "version": version,
            "answer_field": options.answer_field,
            **_dev_info(part, options),
        },
        notes=notes,
        question_types={
            str(k): str(v) for k, v in _mapping(annotations.get("question_types")).items()
        },
        retrieval_metrics=RETRIEVAL_METRICS,
    )


def _part(part: str, options: Options, questions: Iterator[Question]) -> Iterator[Question]:
    if part not in {DEV, REST}:
        return questions
    return (
        q
        for q in questions
        if in_dev(q.image_id or 0, share=options.dev_share, seed=options.dev_seed) == (part == DEV)
    )


def _dev_info(part: str, options: Options) -> dict[str, Any]:
    if part not in {DEV, REST}:
        return {}
    cut = {"from": "train2014", "by": "image", "share": options.dev_share, "seed": options.dev_seed}
    return {"dev": cut}


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
    records: list[Any], path: Path, problems: Problems, field: str
) -> dict[Any, tuple[tuple[str, ...], str | None]]:
    answers: dict[Any, tuple[tuple[str, ...], str | None]] = {}
    for number, record in enumerate(records, 1):
        where = f"{path}, annotation {number}"
        try:
            given = tuple(str(a[field]) for a in record["answers"])
            question_id = record["question_id"]
        except KeyError as e:
            problems.report(where, f"no {e.args[0]!r}")
            continue
        except TypeError:
            problems.report(
                where,
                "an object with 'question_id' and a list 'answers' of objects with "
                f"{field!r} is expected",
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
    images: ImageFolder,
    split: str,
    request: DatasetRequest,
) -> Iterator[Question]:
    problems: Problems = request.problems
    seen: set[Any] = set()
    for number, record in enumerate(records, 1):
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
            name = image_name(split, image_id)
            yield Question(
                question_id=question_id,
                question=text,
                image=images.path(name, by_stem=True),
                image_id=image_id,
                answers=given,
                question_type=question_type,
                split=split,
            )
        seen.add(question_id)


def _captioned(path: Path | None, questions: Iterator[Question]) -> Iterator[Question]:
    """Questions with the caption of their image, where there is one.

    Raises:
        DataError: the file is not in one of the two forms.
    """
    if path is None:
        return questions
    captions = _captions(path)
    return (
        with_caption(q, captions[q.image_id]) if q.image_id in captions else q for q in questions
    )


def with_caption(question: Question, caption: str) -> Question:
    """The question with another caption in its description."""
    seen = question.description or Description()
    return replace(question, description=replace(seen, caption=caption))


def _captions(path: Path) -> dict[Any, str]:
    captions: dict[Any, str] = {}
    try:
        if suffix_of(path) in JSON_LINES:
            for number, row in read_jsonl(path):
                if not isinstance(row.get("caption"), str):
                    raise DataError(f"{path}, line {number}: no 'caption'")
                captions[int(row["image_id"])] = row["caption"]
        else:
            for image, found in read_json(path).items():
                captions[int(str(image).rpartition("_")[2])] = found[0]["caption"]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}: JSON lines with image_id and caption, or an object "
            "{image: [{caption, conf}]}, are expected"
        ) from None
    return captions


# Hub copies


def _table(request: DatasetRequest, options: Options, data: Path) -> Dataset:
    present = hub.split_names(data, None)
    train = next((s for s in ("train", "train2014") if s in present), "train2014")
    test = next((s for s in ("test", "val2014") if s in present), "val2014")
    aliases = {s: s for s in present}
    aliases |= {"val2014": test, "val": test, "train2014": train, "train": train}
    aliases |= {DEV: train, REST: train}
    split, notes = pick_split(request.split, test, aliases, present, data)
    part = request.split if request.split in {DEV, REST} else split
    if options.answer_field != "answer":
        raise UserError(f"answer_field={options.answer_field}: {data} has 'answers' only")
    if split == "valid":
        notes.append("RA-VQA's split valid holds val2014's questions: nothing may be chosen on it")
    stream = table_questions(
        hub.Table(data, None, split).read(), split, hub.image_folder(data, options.images), request
    )
    questions, digest = gather(
        _part(part, options, _captioned(options.captions, stream)), request, data
    )
    return Dataset(
        name="okvqa",
        label="OK-VQA",
        split=part,
        questions=questions,
        metric="vqa_accuracy",
        fingerprint=digest,
        info={
            "version": "unknown",
            "answer_field": "answers",
            "source": data.as_posix(),
            **_dev_info(part, options),
        },
        notes=notes,
        retrieval_metrics=RETRIEVAL_METRICS,
    )


def table_questions(
    rows: Iterator[tuple[str, Row]],
    split: str,
    images: ImageFolder,
    request: DatasetRequest,
) -> Iterator[Question]:
    """Questions of a hub copy, in the form of lmms-lab or of RA-VQA.

    Args:
        images: where `img_path` is looked for.
    """
    problems = request.problems
    seen: set[str] = set()
    for where, row in rows:
        question_id, asked = processed.text(row, "question_id"), processed.text(row, "question")
        answers = processed.texts(row, "answers")
        if question_id is None or asked is None or not answers:
            problems.report(where, "no question_id, question or answers", question_id)
            continue
        if question_id in seen:
            problems.report(where, f"duplicate question id {question_id}", question_id)
            continue
        seen.add(question_id)
        try:
            image, image_id = _image(row, images)
            description = processed.description_of(row)
        except DataError as e:
            problems.report(where, str(e), question_id)
            continue
        gold = row.get("gold_answer")
        yield Question(
            # Official ids are numbers; the copies hold them as strings.
            question_id=int(question_id) if question_id.isdecimal() else question_id,
            question=asked,
            image=image,
            image_id=image_id,
            answers=answers,
            instruction=processed.text(row, "instruction"),
            question_type=processed.text(row, "question_type"),
            split=split,
            pos_item_ids=processed.texts(row, "pos_item_ids"),
            description=description,
            extra={} if gold is None else {"gold_answer": str(gold)},
        )


def _image(row: Row, images: ImageFolder) -> tuple[Path | None, int | str | None]:
    """A row's image and its id; images inside the row are put into the cache folder."""
    held = row.get("image")
    if isinstance(held, dict) and isinstance(held.get("bytes"), bytes):
        path = kept_image(held["bytes"])
        return path, path.name
    name = processed.text(row, "img_path")
    found = None if name is None else images.path(name, by_stem=True)
    return found, processed.image_id_of(row)
