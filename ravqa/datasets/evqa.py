"""Encyclopedic-VQA (google-research/encyclopedic_vqa) in its official files.

    DIR/{train,val,test}.csv        one textual question per row, with up to five images
    DIR/...                         images of iNaturalist 2021 and Google Landmarks v2, not included

Images are named by the ids of their source datasets. Landmarks are found by file name
(a/b/c/abcdef.jpg). iNaturalist's files have other names: its annotations (train.json, val.json) or
EchoSight's {train,val}_id2name.json, anywhere in DIR's first two levels, map ids to names; files
named by id work too.

Answers are kept in the official evaluator's format: alternatives, in which "&&" separates the
items of a multi_answer question. A two-hop question has two articles. The knowledge base is read as
a corpus (`--corpus encyclopedic_kb_wiki.zip`, see `ravqa.corpora.kb`): its passages are sections
with ids URL#NUMBER, to which the evidence of a question refers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ravqa.core.errors import DataError, UserError, import_extra
from ravqa.core.records import Question
from ravqa.corpora.nesting import Shallow
from ravqa.corpora.tables import Row, read_json, read_table
from ravqa.corpora.values import cell_items, text, text_of, texts_of
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    ImageOptions,
    RetrievalMetric,
    options_of,
    pick_split,
)
from ravqa.datasets.checks import gather
from ravqa.datasets.remote import Remote, Source
from ravqa.images.folder import ImageFolder

SPLITS = ("test", "val", "train")
TYPES = ("templated", "automatic", "multi_answer", "2_hop")
RETRIEVAL_METRICS = (
    RetrievalMetric("article_recall_at_k", 1),
    RetrievalMetric("pseudo_recall_at_k", 5),
)
_COLUMNS = ("question", "answer", "dataset_image_ids", "dataset_name", "question_type")
_NAMES = ("id2name", "train", "val", "train_mini")

LAYOUT = (
    "It needs the files of github.com/google-research/google-research (encyclopedic_vqa): "
    "test.csv (val.csv, train.csv), and the images of iNaturalist 2021 and Google Landmarks v2"
)


def _remark(folder: Path) -> str:
    return (
        "Encyclopedic-VQA's images come from iNaturalist 2021 and Google Landmarks v2: only "
        f"the csv file is downloaded; put the images, or their zip and tar archives, into {folder} "
        "(github.com/google-research/google-research, encyclopedic_vqa)"
    )


REMOTE = Remote(
    Source("RAVQA_EVQA_URL", "https://storage.googleapis.com/encyclopedic-vqa"),
    {s: [f"{s}.csv"] for s in SPLITS},
    {s: s for s in SPLITS},
    kind=("CSV file of questions", b"question"),
    remark=_remark,
)


class Options(ImageOptions):
    """Options of Encyclopedic-VQA.

    Attributes:
        triplets: ask the question once per image, as the dataset counts its triplets; else ask it
            once, about its first image, as most of the literature does.
        single_hop: load only the templated and automatic questions, the column "single-hop" of most
            tables.
    """

    triplets: bool = False
    single_hop: bool = False


def load(request: DatasetRequest) -> Dataset:
    """Load a split.

    Raises:
        UserError: the folder or split does not exist.
        DataError: a broken file, or a broken record unless those are skipped.
    """
    options = options_of(Options, request)
    folder = request.data
    if folder is None:
        raise UserError(f"--dataset evqa needs --data DIR. {LAYOUT}")
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist. {LAYOUT}")
    present = [s for s in SPLITS if (folder / f"{s}.csv").is_file()]
    if not present:
        raise UserError(f"no Encyclopedic-VQA questions in {folder}. {LAYOUT}")
    split, notes = pick_split(request.split, "test", {s: s for s in SPLITS}, present, folder)
    path = folder / f"{split}.csv"
    images = _Images(options.images or folder, folder, path)
    questions, digest = gather(_questions(path, split, options, images, request), request, path)
    return Dataset(
        name="evqa",
        label="Encyclopedic-VQA",
        split=split,
        questions=questions,
        metric="evqa_score",
        fingerprint=digest,
        info={
            "setting": "templated and automatic questions" if options.single_hop else "all types",
            "asked_about": "every image" if options.triplets else "first image",
        },
        notes=notes,
        retrieval_metrics=RETRIEVAL_METRICS,
    )


def _questions(
    path: Path, split: str, options: Options, images: _Images, request: DatasetRequest
) -> Iterator[Question]:
    problems = request.problems
    for row_number, (line, row) in enumerate(read_table(path)):
        where = f"{path}, line {line}"
        # The files have no ids; the row number stays the same if rows are left out.
        name = f"evqa_{split}_{row_number:07d}"
        absent = [c for c in _COLUMNS if not str(row.get(c) or "").strip()]
        if absent:
            problems.report(where, f"no {absent[0]!r}", name)
            continue
        question_type = row["question_type"]
        if question_type not in TYPES:
            problems.report(where, f"question_type {question_type!r} is not one of {TYPES}", name)
            continue
        if options.single_hop and question_type not in TYPES[:2]:
            continue
        ids = [i for i in row["dataset_image_ids"].split("|") if i]
        for number, image_id in enumerate(ids if options.triplets else ids[:1]):
            question_id = f"{name}.{number}" if options.triplets else name
            try:
                image, missing = images.look(row["dataset_name"], image_id)
                question = _question(row, question_id, image, image_id, split)
            except DataError as e:
                problems.report(where, str(e), question_id)
                continue
            if not question.answers:
                problems.report(where, "no 'answer'", question_id)
            elif missing and request.need_images:
                problems.image(where, missing, question_id, [image_id])
            else:
                yield question


def _question(row: Row, question_id: str, image: Path, image_id: str, split: str) -> Question:
    urls = _items(row, "wikipedia_url")
    # pandas writes 3 as 3.0 where other rows have none.
    sections = [s.removesuffix(".0") for s in _items(row, "evidence_section_id")]
    evidence = [f"{u}#{s}" for u, s in zip(urls, sections, strict=False) if s.isdecimal()]
    kept = ("wikipedia_title", "evidence", "question_original", "wikipedia_url_used_in_train")
    return Question(
        question_id=question_id,
        question=row["question"],
        image=image,
        image_id=f"{row['dataset_name']}/{image_id}",
        answers=texts_of(cell_items(row["answer"]), "answer"),
        question_type=row["question_type"],
        split=row.get("encyclopedic_vqa_split") or split,
        pos_item_ids=tuple(evidence),
        pos_articles=tuple(urls),
        extra={key: row[key] for key in kept if row.get(key)},
    )


def _items(row: Row, column: str) -> list[str]:
    return [item.strip() for item in str(row.get(column) or "").split("|") if item.strip()]


class _Images:
    """Paths of images by dataset and id."""

    def __init__(self, root: Path, folder: Path, questions: Path):
        self._images = ImageFolder(root)
        self._root = root
        self._folder = folder
        self._csv = questions
        self._names: Mapping[str, str] | None = None

    def look(self, dataset: str, image_id: str) -> tuple[Path, str]:
        """Return where the image is, or should be; see `ImageFolder.look`.

        Raises:
            DataError: its name leaves the folder or is unknown, or the dataset is unknown.
        """
        if dataset == "landmarks":
            name = "/".join((*image_id[:3], image_id)) + ".jpg"
            return self._images.look(name, by_stem=True)
        if dataset != "inaturalist":
            raise DataError(f"dataset_name {dataset!r} is neither inaturalist nor landmarks")
        if self._names is None:
            self._names = self._inaturalist()
        name = self._names.get(image_id, f"{image_id}.jpg")
        return self._images.look(name, by_stem=True)

    def _inaturalist(self) -> dict[str, str]:
        """Return the file names of the iNaturalist images that the questions need."""
        files = [
            path
            for root in dict.fromkeys((self._root, self._folder))
            for path in itertools.chain(root.glob("*.json"), root.glob("*/*.json"))
            if path.stem in _NAMES or path.stem.endswith("id2name")
        ]
        if not files:
            return {}
        needed = {
            image_id
            for _, row in read_table(self._csv)
            if row.get("dataset_name") == "inaturalist"
            for image_id in str(row.get("dataset_image_ids") or "").split("|")
        }
        names: dict[str, str] = {}
        for path in sorted(files):
            found = _id2name(path) if path.stem.endswith("id2name") else _annotated(path)
            names.update((i, name) for i, name in found if i in needed)
        return names


def _id2name(path: Path) -> Iterator[tuple[str, str]]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise DataError(f"{path}: an object of file names by image id is expected")
    for key, name in table.items():
        found = text_of(name, key)
        if found is not None:
            yield key, found


def _annotated(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ids and file names from iNaturalist's annotations (up to 800 MB)."""
    ijson: Any = import_extra("ijson", "datasets", why=f"reading {path.name} as a stream")
    try:
        with path.open("rb") as file:
            for image in ijson.items(Shallow(file, path.name), "images.item"):
                image_id, name = text(image, "id"), text(image, "file_name")
                if image_id is not None and name is not None:
                    yield image_id, name
    except DataError as e:
        raise DataError(f"{path}: {e}") from None
    except (ijson.JSONError, AttributeError) as e:
        raise DataError(f"{path}: not iNaturalist's annotations ({e})") from None
