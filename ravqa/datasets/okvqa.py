"""OK-VQA in its published formats, and the bundled sample in the official one.

Official files (okvqa.allenai.org), in DIR:

    OpenEnded_mscoco_{train2014,val2014}_questions.json
    mscoco_{train2014,val2014}_annotations.json
    {train2014,val2014}/COCO_{train2014,val2014}_{image_id:012d}.jpg

Hub copies, from DIR with their Parquet files or from `hf:OWNER/NAME`:

    lmms-lab/OK-VQA                            val2014, with the images; no raw_answer
    others with image_id, image and answers    answers as texts, or as objects like the official
                                               {answer, raw_answer, answer_confidence, answer_id}
    BByrneLab/OKVQA_FLMR_preprocessed_data     train, valid, test: RA-VQA's processed questions with
                                               captions, objects, OCR and regions

There is no public test split: everyone reports on val2014. Settings should be chosen on `dev`, a
tenth of train2014's images with all their questions; `train-minus-dev` is the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Description, Question
from ravqa.corpora import hub, row_images
from ravqa.corpora.tables import JSON_LINES, Row, read_json, read_jsonl, suffix_of
from ravqa.corpora.values import id_of, is_blank, text, text_of, texts
from ravqa.datasets import bundled, processed
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    Problems,
    RetrievalMetric,
    options_of,
    pick_split,
)
from ravqa.datasets.checks import gather, official_id, usable
from ravqa.datasets.remote import Images, Remote, Source
from ravqa.images.folder import ImageFolder

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
_RAW = (
    "scored with 'raw_answer', but the official code scores 'answer': not comparable with "
    "published scores"
)
RETRIEVAL_METRICS = (RetrievalMetric("pseudo_recall_at_k", 5),)

_IMAGES = ("image", "images", "img_path")  # columns, for a message

LAYOUT = (
    "It needs the files of okvqa.allenai.org (Download): "
    "OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, and the COCO 2014 "
    "images (cocodataset.org) as val2014/COCO_val2014_000000000042.jpg; the same for train2014"
)


class Options(bundled.SampleOptions):
    """Options of OK-VQA.

    Attributes:
        answer_field: "answer" is scored by the official code and holds stemmed words in version
            1.0; "raw_answer" holds what people wrote.
        captions: image captions: JSON lines with image_id and caption, or Oscar's JSON
            {image: [{caption, conf}]}.
        dev_share: share of train2014's images in `dev`.
        dev_seed: seed that selects those images.
    """

    answer_field: Literal["answer", "raw_answer"] = "answer"
    captions: Path | None = None
    dev_share: float = Field(default=0.1, gt=0, lt=1)
    dev_seed: int = Field(default=0, ge=0)


def question_file(split: str) -> str:
    """Return the official name of a split's question file."""
    return f"OpenEnded_mscoco_{split}_questions.json"


def annotation_file(split: str) -> str:
    """Return the official name of a split's annotation file."""
    return f"mscoco_{split}_annotations.json"


def image_name(split: str, image_id: int) -> str:
    """Return the official path of an image below the data folder."""
    return f"{split}/COCO_{split}_{image_id:012d}.jpg"


def _wanted_images(folder: Path, split: str, limit: int | None) -> list[str]:
    # The loader decides which questions come first; it reports broken ones later.
    request = DatasetRequest(folder, split, limit, Problems("skip"), need_images=False)
    ids = dict.fromkeys(q.image_id for q in load(request).questions)
    return [image_name(split, i) for i in ids if isinstance(i, int)]


REMOTE = Remote(
    Source("RAVQA_OKVQA_URL", "https://okvqa.allenai.org/static/data"),
    {s: [f"{question_file(s)}.zip", f"{annotation_file(s)}.zip"] for s in SPLITS},
    ALIASES,
    images=Images(Source("RAVQA_COCO_URL", "http://images.cocodataset.org"), _wanted_images),
)


def in_dev(image_id: int | str, *, share: float, seed: int) -> bool:
    """Return whether an image belongs to `dev`: chosen at random from the seed and its id alone.

    The choice depends neither on the other images nor on their order.
    """
    lot = hashlib.sha256(f"ravqa-dev/{seed}/{image_id}".encode()).digest()[:8]
    return int.from_bytes(lot, "big") < share * 2**64


def load(request: DatasetRequest) -> Dataset:
    """Load a split; without a data folder, one of the bundled sample.

    Raises:
        UserError: the folder or split does not exist, or an edition is given with a data folder.
        DataError: a broken file, or a broken record unless those are skipped.
    """
    options = options_of(Options, request)
    folder, edition = bundled.source_of(options, request)
    if hub.hub_name(folder) is None:
        if not folder.is_dir():
            raise UserError(f"the data folder {folder} does not exist. {LAYOUT}")
        present = [s for s in SPLITS if (folder / question_file(s)).is_file()]
        if present:
            return _official(request, options, folder, present, edition)
        if not hub.has_table(folder, None):
            raise UserError(f"no OK-VQA questions in {folder}. {LAYOUT}")
    return _table(request, options, folder)


def _official(
    request: DatasetRequest,
    options: Options,
    folder: Path,
    present: Sequence[str],
    edition: bundled.Edition | None,
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
    images = ImageFolder(options.images or (SAMPLE if edition else folder))
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
        notes.append(_RAW)
    return Dataset(
        name="okvqa",
        label="bundled sample (not OK-VQA)" if edition else "OK-VQA",
        split=part,
        questions=questions,
        metric="vqa_accuracy",
        fingerprint=digest,
        sample=edition is not None,
        corpus=edition.passages() if edition else None,
        info={
            "version": version,
            "answer_field": options.answer_field,
            **({"edition": edition.number} if edition else {}),
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
        raise UserError(f"{path} is missing. {LAYOUT}")
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get(key), list):
        raise DataError(f"{path}: an object with the list {key!r} is expected")
    return document


Answers = Mapping[str, tuple[tuple[str, ...], str | None]]
"""The answers to a question and its type, by the question's id as text."""


def _answers(records: list[Any], path: Path, problems: Problems, field: str) -> Answers:
    answers: dict[str, tuple[tuple[str, ...], str | None]] = {}
    for number, record in enumerate(records, 1):
        question_id = None
        try:
            question_id = official_id(record)
            if not isinstance(given := record.get("answers"), list):
                raise DataError("no list 'answers'")
            for answer in given:
                if not isinstance(answer, dict) or field not in answer:
                    raise DataError(f"'answers': objects with {field!r} are expected")
            if str(question_id) in answers:
                raise DataError(f"question {question_id} has two")
            kind = record.get("question_type")
            # An annotator without an answer still counts as one of the ten.
            texts = tuple(text_of(answer[field], field) or "" for answer in given)
            answers[str(question_id)] = texts, None if kind is None else str(kind)
        except DataError as e:
            problems.report(f"{path}, annotation {number}", str(e), question_id)
    return answers


_KEYS = {"question_id", "question", "image_id"}


def _questions(
    records: list[Any],
    answers: Answers,
    path: Path,
    images: ImageFolder,
    split: str,
    request: DatasetRequest,
) -> Iterator[Question]:
    def make(record: Row, question_id: int | str) -> tuple[Question, str]:
        if missing_keys := sorted(_KEYS - record.keys()):
            raise DataError(f"no {missing_keys[0]!r}")
        asked, image_id = record["question"], record["image_id"]
        if not isinstance(image_id, int) or isinstance(image_id, bool) or image_id < 0:
            raise DataError(f"image_id {image_id!r} is not a number")
        if not isinstance(asked, str) or not asked.strip():
            raise DataError("blank question")
        given, question_type = answers.get(str(question_id), ((), None))
        if not any(answer.strip() for answer in given):
            raise DataError("no annotation with answers")
        image, missing = images.look(image_name(split, image_id), by_stem=True)
        question = Question(
            question_id=question_id,
            question=asked,
            image=image,
            image_id=image_id,
            answers=given,
            question_type=question_type,
            split=split,
        )
        return question, missing

    def places() -> Iterator[tuple[str, Any]]:
        for number, record in enumerate(records, 1):
            whole = isinstance(record, dict) and record.keys() >= _KEYS
            name = f" (id {record['question_id']})" if whole else ""
            yield f"{path}, question {number}{name}", record

    return usable(places(), official_id, make, request)


def _captioned(path: Path | None, questions: Iterator[Question]) -> Iterator[Question]:
    """Add captions to the questions whose image has one.

    Raises:
        DataError: the file is in neither of the two formats.
    """
    if path is None:
        return questions
    return _with_captions(path, _captions(path), questions)


def _with_captions(
    path: Path, captions: Mapping[str, str], questions: Iterator[Question]
) -> Iterator[Question]:
    others = known = 0
    for question in questions:
        caption = captions.get(processed.image_key(question.image_id) or "")
        known += caption is not None
        others += caption is None
        yield question if caption is None else with_caption(question, caption)
    if others and not known:
        raise DataError(
            f"{path}: no caption belongs to an image of these questions: their image_id is, "
            f"for example, {question.image_id!r}, but the file has {next(iter(captions), 'none')}"
        )


def with_caption(question: Question, caption: str) -> Question:
    """Return the question with another caption in its description."""
    seen = question.description or Description()
    return replace(question, description=replace(seen, caption=caption))


def _captions(path: Path) -> dict[str, str]:
    """Return captions by `processed.image_key`."""
    captions: dict[str, str] = {}

    def add(where: str, image_id: Any, caption: Any) -> None:
        try:
            key = processed.image_key(id_of(image_id, "image_id"))
            text = text_of(caption, "caption")
            if key is None or text is None:
                raise DataError(f"no {'caption' if key else 'image_id'!r}")
            if captions.setdefault(key, text) != text:
                raise DataError(f"the image {image_id!r} has another caption already")
        except DataError as e:
            raise DataError(f"{where}: {e}") from None

    try:
        if suffix_of(path) in JSON_LINES:
            for number, row in read_jsonl(path):
                add(f"{path}, line {number}", row["image_id"], row.get("caption"))
        else:
            for image, found in read_json(path).items():
                if not is_blank(found[0]["caption"]):
                    tail = image.rpartition("_")[2]
                    add(str(path), tail if tail.isdecimal() else image, found[0]["caption"])
    except (AttributeError, IndexError, KeyError, TypeError):
        raise DataError(
            f"{path}: JSON lines with image_id and caption, or an object "
            "{image: [{caption, conf}]}, are expected"
        ) from None
    return captions


# Hub copies


def _table(request: DatasetRequest, options: Options, data: Path) -> Dataset:
    present = hub.split_names(data, None)
    train = "train" if "train" in present else "train2014"
    test = "test" if "test" in present else "val2014"
    aliases = {s: s for s in present}
    aliases |= {"val2014": test, "val": test, "train2014": train, "train": train}
    aliases |= {DEV: train, REST: train}
    split, notes = pick_split(request.split, test, aliases, present, data)
    part = request.split if request.split in {DEV, REST} else split
    if split == "valid":
        notes.append("RA-VQA's split valid has val2014's questions: choose no settings on it")
    table = hub.Table(data, None, split)
    stream = _Questions(table, split, hub.image_folder(data, options.images), options, request)
    questions, digest = gather(
        _part(part, options, _captioned(options.captions, iter(stream))), request, data
    )
    if options.answer_field != "answer":
        notes.append(_RAW)
    return Dataset(
        name="okvqa",
        label="OK-VQA",
        split=part,
        questions=questions,
        metric="vqa_accuracy",
        fingerprint=digest,
        info={
            "version": "unknown",
            "answer_field": options.answer_field if stream.records else "answers",
            "source": data.as_posix(),
            **_dev_info(part, options),
        },
        notes=notes,
        retrieval_metrics=RETRIEVAL_METRICS,
    )


class _Questions:
    """The questions of a hub copy.

    Attributes:
        records: whether answers were objects with one scored field.
    """

    def __init__(
        self,
        table: hub.Table,
        split: str,
        images: ImageFolder,
        options: Options,
        request: DatasetRequest,
    ):
        self._table = table
        self._split = split
        self._images = images
        self._field = options.answer_field
        self._request = request
        self.records = False

    def __iter__(self) -> Iterator[Question]:
        rows = self._table.read()
        return usable(rows, processed.question_id_of, self._question, self._request)

    def _question(self, row: Row, question_id: str) -> tuple[Question, str]:
        """Return the question, and why its image is unavailable."""
        asked, answers = text(row, "question"), self._answers(row)
        if asked is None or not answers:
            raise DataError("no question_id, question or answers")
        image_id = processed.image_id_of(row)
        if isinstance(image_id, str) and image_id.isascii() and image_id.isdecimal():
            image_id = int(image_id)  # like question ids; files write them with zeros before
        found = row_images.image_of(row, self._images, by_stem=True)
        image, missing = found.path, found.missing
        if isinstance(image_id, int) and (image is None or missing):
            coco = "train2014" if "train" in self._split else "val2014"
            official, unread = self._images.look(image_name(coco, image_id), by_stem=True)
            if image is None or row_images.is_there(official):
                image, missing = official, unread
        elif image is None:
            missing = f"no image in a column such as {', '.join(_IMAGES)}"
            image = self._images.root / f"<image of question {question_id}>"
        elif image_id is None:
            # Many images may share other names inside rows ("image.jpg").
            number = processed.coco_number((found.source if found.held else found.name) or "")
            image_id = found.name if number is None else number
        question = Question(
            # Official ids are numbers; the copies hold them as strings.
            question_id=processed.as_number(question_id),
            question=asked,
            image=image,
            image_id=image_id,
            answers=answers,
            instruction=text(row, "instruction"),
            question_type=text(row, "question_type"),
            split=self._split,
            pos_item_ids=texts(row, "pos_item_ids"),
            description=processed.description_of(row),
            extra={k: v for k in ("gold_answer",) if (v := text(row, k)) is not None},
        )
        return question, missing

    def _answers(self, row: Row) -> tuple[str, ...]:
        given = row.get("answers")
        kinds = {type(answer) for answer in (given if isinstance(given, list) else [given])}
        self.records |= dict in kinds
        if self._field != "answer" and str in kinds:
            raise UserError(
                f"answer_field={self._field}: {self._table.where} has 'answers' only, "
                f"and they are texts, not objects"
            )
        return texts(row, "answers", self._field)
