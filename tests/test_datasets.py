"""Loaders on tiny folders in the official forms, corpora in every form, and images."""

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import ImageOps

from ravqa.datasets import infoseek, okvqa
from ravqa.datasets.base import DatasetRequest
from ravqa.datasets.checks import check_images
from ravqa.datasets.corpus import ID_COLUMNS, TEXT_COLUMNS, Corpus
from ravqa.describe.cached import CachedDescriber
from ravqa.errors import DataError, UserError
from ravqa.images import image_bytes, open_image
from ravqa.records import Description, Passage, Question, Tag

OKVQA_SLICE = Path(__file__).resolve().parents[2] / "shared" / "data" / "okvqa-slice"


def write_image(path, color=(200, 30, 30), size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, color).save(path)


# --- OK-VQA


def okvqa_folder(root, split="val2014", version="1.1", count=3):
    """The official form, with all the keys that the official files have."""
    info = {"version": version, "year": 2019, "description": "test", "url": "", "contributor": ""}
    root.mkdir(exist_ok=True)
    questions = [
        {"image_id": 42 + i // 2, "question": f"What is {i}?", "question_id": 425 + i}
        for i in range(count)
    ]
    annotations = [
        {
            "image_id": q["image_id"],
            "question_id": q["question_id"],
            "question_type": "four" if i else "one",
            "answer_type": "other",
            "confidence": 3,
            "answers": [
                {
                    "answer_id": n + 1,
                    "raw_answer": f"ponies {i}",
                    "answer": f"poni {i}" if n < 6 else str(n),
                    "answer_confidence": "yes",
                }
                for n in range(10)
            ],
        }
        for i, q in enumerate(questions)
    ]
    common = {"info": info, "license": {}, "data_subtype": split, "data_type": "mscoco"}
    (root / f"OpenEnded_mscoco_{split}_questions.json").write_text(
        json.dumps({**common, "task_type": "Open-Ended", "questions": questions}), encoding="utf-8"
    )
    types = {"one": "Vehicles and Transportation", "four": "Sports and Recreation"}
    # the annotations' order is not the questions'
    (root / f"mscoco_{split}_annotations.json").write_text(
        json.dumps({**common, "question_types": types, "annotations": annotations[::-1]}),
        encoding="utf-8",
    )
    for image_id in {q["image_id"] for q in questions}:
        write_image(root / split / f"COCO_{split}_{image_id:012d}.jpg")
    return root


def test_okvqa_in_its_official_form(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa")
    dataset = okvqa.load(DatasetRequest(data=folder))
    assert (dataset.name, dataset.label, dataset.split) == ("okvqa", "OK-VQA", "val2014")
    assert (dataset.sample, dataset.metric, dataset.corpus) == (False, "vqa_accuracy", None)
    assert dataset.info["version"] == "1.1"
    assert list(dataset.notes) == []
    assert dataset.question_types == {
        "one": "Vehicles and Transportation",
        "four": "Sports and Recreation",
    }
    assert dataset.questions[0] == Question(
        question_id=425,
        question="What is 0?",
        image=folder / "val2014" / "COCO_val2014_000000000042.jpg",
        image_id=42,
        answers=("poni 0",) * 6 + ("6", "7", "8", "9"),  # "answer", not "raw_answer"
        question_type="one",
        split="val2014",
    )
    assert [q.question_id for q in dataset.questions] == [425, 426, 427]
    assert all(type(q.question_id) is int and type(q.image_id) is int for q in dataset.questions)
    assert [q.answers[0] for q in dataset.questions] == ["poni 0", "poni 1", "poni 2"]
    assert [q.image_id for q in dataset.questions] == [42, 42, 43]


@pytest.mark.parametrize("version", ["1.0", 1.0])
def test_okvqa_of_version_one_nought_carries_a_warning(tmp_path, version):
    dataset = okvqa.load(DatasetRequest(data=okvqa_folder(tmp_path / "okvqa", version=version)))
    assert dataset.info["version"] == "1.0"
    [note] = dataset.notes
    assert "v1.0" in note
    assert "stemmed" in note
    assert "not comparable" in note


def test_okvqa_takes_the_only_split_that_is_there_and_says_so(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa", split="train2014")
    dataset = okvqa.load(DatasetRequest(data=folder))
    assert dataset.split == "train2014"
    assert dataset.questions[0].image.name == "COCO_train2014_000000000042.jpg"
    [note] = dataset.notes
    assert "train2014 only" in note
    for name in ("train", "train2014"):
        asked = okvqa.load(DatasetRequest(data=folder, split=name))
        assert asked.questions == dataset.questions
        assert list(asked.notes) == []
    with pytest.raises(UserError, match="no files of split val2014; it holds: train2014"):
        okvqa.load(DatasetRequest(data=folder, split="val"))


def test_okvqa_with_both_splits_defaults_to_val(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa", split="train2014", count=1)
    okvqa_folder(folder, split="val2014", count=2)
    dataset = okvqa.load(DatasetRequest(data=folder))
    assert (dataset.split, len(dataset.questions), list(dataset.notes)) == ("val2014", 2, [])
    assert okvqa.load(DatasetRequest(data=folder, split="train")).split == "train2014"


def test_okvqa_is_cut_to_a_limit_and_needs_no_image_if_told(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa")
    (folder / "val2014" / "COCO_val2014_000000000043.jpg").unlink()
    limited = okvqa.load(DatasetRequest(data=folder, limit=2))
    assert [q.question_id for q in limited.questions] == [425, 426]
    with pytest.raises(DataError, match="COCO_val2014_000000000043"):
        okvqa.load(DatasetRequest(data=folder))
    assert len(okvqa.load(DatasetRequest(data=folder, need_images=False)).questions) == 3


def test_the_fingerprint_of_a_dataset_follows_its_content(tmp_path):
    first = okvqa.load(DatasetRequest(data=okvqa_folder(tmp_path / "a")))
    same = okvqa.load(DatasetRequest(data=okvqa_folder(tmp_path / "b")))
    assert first.fingerprint == same.fingerprint
    path = tmp_path / "b" / "mscoco_val2014_annotations.json"
    path.write_text(path.read_text("utf-8").replace('"poni 1"', '"pony 1"'), encoding="utf-8")
    other = okvqa.load(DatasetRequest(data=tmp_path / "b"))
    assert other.fingerprint != first.fingerprint


def test_the_slice_of_real_okvqa_loads():
    if not OKVQA_SLICE.is_dir():
        pytest.skip("no ../shared/data/okvqa-slice beside the project: real questions not tested")
    dataset = okvqa.load(DatasetRequest(data=OKVQA_SLICE))
    assert len(dataset.questions) == 653
    assert dataset.split == "train2014"
    assert any("train2014 only" in note for note in dataset.notes)
    assert all(len(q.answers) == 10 for q in dataset.questions)
    assert all(type(q.question_id) is int for q in dataset.questions)
    assert len({q.question_id for q in dataset.questions}) == 653


# --- InfoSeek


INFOSEEK = [
    {
        "data_id": "infoseek_val_00000001",
        "image_id": "oven_00000001",
        "question": "Who designed this building?",
        "answer": ["Gaudi"],
        "answer_eval": ["Gaudi", "Antoni Gaudi"],
        "data_split": "val_unseen_question",
        "type": "String",
    },
    {
        "data_id": "infoseek_val_00000002",
        "image_id": "oven_00000002",
        "question": "How long is it (in metres)?",
        "answer": ["25.5"],
        "answer_eval": [{"wikidata": 25.5, "range": [23, 28]}],
        "data_split": "val_unseen_entity",
        "type": "Numerical",
    },
    {
        "data_id": "infoseek_val_00000003",
        "image_id": "oven_00000003",
        "question": "When was it opened?",
        "answer": ["1999"],
        "answer_eval": ["1999", "1998", "2000"],
        "data_split": "val_unseen_entity",
        "type": "Time",
    },
]
ENTITIES = {"infoseek_val_00000001": ("Q1", "Sagrada Familia")}


def write_lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def infoseek_folder(root, split="val", drop=()):
    root.mkdir(exist_ok=True)
    records = [{k: v for k, v in r.items() if k not in ("type", *drop)} for r in INFOSEEK]
    write_lines(root / f"infoseek_{split}.jsonl", records)
    if split == "val":
        types = [{"data_id": r["data_id"], "question_type": r["type"]} for r in INFOSEEK]
        write_lines(root / "infoseek_val_qtype.jsonl", types)
    write_lines(
        root / f"infoseek_{split}_withkb.jsonl",
        [
            {"data_id": i, "entity_id": entity, "entity_text": name}
            for i, (entity, name) in ENTITIES.items()
        ],
    )
    for r, suffix in zip(INFOSEEK, (".jpg", ".JPEG", ".png"), strict=True):
        write_image(root / "images" / f"{r['image_id']}{suffix}")
    return root


def test_infoseek_in_its_official_form(tmp_path):
    folder = infoseek_folder(tmp_path / "infoseek")
    dataset = infoseek.load(DatasetRequest(data=folder))
    assert (dataset.name, dataset.label, dataset.split) == ("infoseek", "InfoSeek", "val")
    assert (dataset.sample, dataset.metric, dataset.corpus) == (False, "infoseek", None)
    one, two, three = dataset.questions
    assert one == Question(
        question_id="infoseek_val_00000001",
        question="Who designed this building?",
        image=folder / "images" / "oven_00000001.jpg",
        image_id="oven_00000001",
        answers=("Gaudi", "Antoni Gaudi"),
        answer_eval=("Gaudi", "Antoni Gaudi"),
        question_type="String",
        split="val_unseen_question",
        extra={"entity": "Sagrada Familia"},
    )
    assert two.answers == ("25.5",)
    assert two.answer_eval == ({"wikidata": 25.5, "range": [23, 28]},)
    assert (two.question_type, two.split) == ("Numerical", "val_unseen_entity")
    assert two.image.name == "oven_00000002.JPEG"
    assert three.answers == ("1999", "1998", "2000")
    assert three.question_type == "Time"
    assert three.image.name == "oven_00000003.png"
    assert dict(three.extra) == {}


def test_infoseek_limits_and_images(tmp_path):
    folder = infoseek_folder(tmp_path / "infoseek")
    assert len(infoseek.load(DatasetRequest(data=folder, limit=1)).questions) == 1
    (folder / "images" / "oven_00000003.png").unlink()
    with pytest.raises(DataError, match=r"line 3: no image oven_00000003"):
        infoseek.load(DatasetRequest(data=folder))
    dataset = infoseek.load(DatasetRequest(data=folder, need_images=False))
    assert [q.image is None for q in dataset.questions] == [False, False, True]


def test_infoseek_train_has_no_type_file_and_needs_none(tmp_path):
    dataset = infoseek.load(DatasetRequest(data=infoseek_folder(tmp_path / "infoseek", "train")))
    assert dataset.split == "train"
    assert any("train only" in note for note in dataset.notes)
    assert dataset.metric == "infoseek"
    types = {q.question_id: q.question_type for q in dataset.questions}
    assert types["infoseek_val_00000002"] == "Numerical"  # from the range in answer_eval
    assert types["infoseek_val_00000001"] == "String"


def test_infoseek_test_is_loaded_without_answers_and_not_scored(tmp_path):
    folder = infoseek_folder(tmp_path / "infoseek", "test", drop=("answer", "answer_eval"))
    dataset = infoseek.load(DatasetRequest(data=folder))
    assert dataset.split == "test"
    assert dataset.metric is None
    assert len(dataset.questions) == 3
    assert all(q.answers == () and q.answer_eval == () for q in dataset.questions)


# --- corpora


ROWS = [
    {"id": "p1", "text": 'He said "hi", twice.', "title": "A title", "entity": "E", "url": "u:1"},
    {"id": "p2", "text": "Zwei\nZeilen, \u00fcber \u4e2d", "title": "", "entity": "", "url": ""},
    {"id": "3", "text": "third", "title": "", "entity": "F", "url": ""},
]
EXPECTED = [
    Passage("p1", 'He said "hi", twice.', "A title", None, "E", "u:1", {"more": "x"}),
    Passage("p2", "Zwei\nZeilen, \u00fcber \u4e2d", extra={"more": "x"}),
    Passage("3", "third", entity="F", extra={"more": "x"}),
]


def write_corpus(path, id_column, text_column):
    rows = [
        {
            "more": "x",
            id_column: r["id"],
            text_column: r["text"],
            **{k: r[k] for k in ("title", "entity", "url")},
        }
        for r in ROWS
    ]
    if path.suffix in (".jsonl", ".ndjson"):
        lines = [json.dumps(r, ensure_ascii=False) for r in rows]
        path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")  # blank lines are passed over
        return
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(
            out, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ","
        )
        writer.writeheader()
        writer.writerows(rows)


def test_the_known_columns_are_those_of_the_published_corpora():
    assert ID_COLUMNS == ("passage_id", "id", "_id", "kid")
    assert TEXT_COLUMNS == ("text", "passage_content", "content", "contents")


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "csv", "tsv"])
@pytest.mark.parametrize("id_column", ["passage_id", "id", "_id", "kid"])
@pytest.mark.parametrize("text_column", ["text", "passage_content", "content", "contents"])
def test_a_corpus_in_every_form_with_every_column_name(tmp_path, suffix, id_column, text_column):
    path = tmp_path / f"corpus.{suffix}"
    write_corpus(path, id_column, text_column)
    corpus = Corpus.read(path)
    assert list(corpus.values()) == EXPECTED
    assert list(corpus) == ["p1", "p2", "3"]
    assert corpus["p1"].content == 'A title: He said "hi", twice.'
    assert corpus["3"].content == "third"


def test_the_first_column_that_is_filled_counts(tmp_path):
    path = tmp_path / "corpus.jsonl"
    write_lines(
        path,
        [
            {"passage_id": "a", "id": 5, "text": " ", "contents": "from contents"},
            {"id": 0, "text": "from text", "content": "stays"},
        ],
    )
    first, second = Corpus.read(path).values()
    assert (first.passage_id, first.text) == ("a", "from contents")
    assert dict(first.extra) == {"id": 5}
    assert (second.passage_id, second.text) == ("0", "from text")
    assert dict(second.extra) == {"content": "stays"}


def test_a_table_may_begin_with_a_byte_order_mark_and_hold_very_long_fields(tmp_path):
    path = tmp_path / "corpus.csv"
    path.write_text("\ufeffid,text\nx," + "long " * 50_000 + "\n", encoding="utf-8")
    corpus = Corpus.read(path)
    assert list(corpus) == ["x"]
    assert len(corpus["x"].text) == 250_000


def test_one_corpus_from_several_files_keeps_their_order(tmp_path):
    write_lines(tmp_path / "1.jsonl", [{"id": "b", "text": "1"}, {"id": "a", "text": "2"}])
    (tmp_path / "2.tsv").write_text("id\ttext\nc\t3\n", encoding="utf-8")
    corpus = Corpus.read(tmp_path / "1.jsonl", tmp_path / "2.tsv")
    assert [(i, p.text) for i, p in corpus.items()] == [("b", "1"), ("a", "2"), ("c", "3")]
    with pytest.raises(DataError, match="'b' occurs twice"):
        Corpus.read(tmp_path / "1.jsonl", tmp_path / "1.jsonl")


def test_the_fingerprint_of_a_corpus_is_made_of_ids_and_contents():
    passages = [Passage("a", "one"), Passage("b", "two", title="T")]
    base = Corpus(passages, source="x").fingerprint
    assert Corpus(passages, source="y").fingerprint == base
    assert Corpus([passages[0], Passage("b", "two", title="T", url="u")]).fingerprint == base
    others = [
        Corpus(passages[::-1]).fingerprint,
        Corpus(passages[:1]).fingerprint,
        Corpus([passages[0], Passage("b", "two", title="U")]).fingerprint,
        Corpus([passages[0], Passage("c", "two", title="T")]).fingerprint,
        Corpus([Passage("a", "on"), Passage("eb", "two", title="T")]).fingerprint,
    ]
    assert len({base, *others}) == 6


# --- images


def upright():
    """A picture without any symmetry: 5 columns, 3 rows."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, size=(3, 5, 3), dtype=np.uint8)


# What the EXIF standard says of each value: where the stored picture's first row and its first
# column are seen in the upright one.
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(picture, orientation):
    """The picture as a camera stores it with this orientation value."""
    first_row, first_column = ORIENTATIONS[orientation]
    if first_row in ("left", "right"):  # stored rows are columns of the upright picture
        picture = picture.swapaxes(0, 1)
    if first_row in ("bottom", "right"):
        picture = picture[::-1]
    if first_column in ("bottom", "right"):
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def with_orientation(picture, orientation, form):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    options = {"quality": 95} if form == "JPEG" else {}
    PIL.Image.fromarray(stored(picture, orientation)).save(out, form, exif=exif, **options)
    return out.getvalue()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_are_turned_upright(tmp_path, orientation):
    data = with_orientation(upright(), orientation, "PNG")
    path = tmp_path / "turned.png"
    path.write_bytes(data)
    for source in (path, data):
        image = open_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), upright())


def test_the_table_of_orientations_agrees_with_pillow():
    for orientation in ORIENTATIONS:
        with PIL.Image.open(io.BytesIO(with_orientation(upright(), orientation, "PNG"))) as image:
            turned = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(turned, upright())


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_kind_of_pixels_becomes_rgb(mode):
    out = io.BytesIO()
    image = PIL.Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    image.save(out, "JPEG" if mode == "CMYK" else "PNG")
    opened = open_image(out.getvalue())
    assert opened.mode == "RGB"
    assert min(opened.getpixel((1, 1))) >= 250


def test_images_given_as_bytes_are_as_good_as_files(tmp_path):
    path = tmp_path / "photo.jpg"
    write_image(path, (10, 200, 30), (40, 20))
    data = path.read_bytes()
    np.testing.assert_array_equal(np.asarray(open_image(data)), np.asarray(open_image(path)))
    assert image_bytes(path) == image_bytes(data) == data
    with pytest.raises(DataError, match="image given as bytes"):
        open_image(data[: len(data) // 2])
    with pytest.raises(DataError, match="image given as bytes: not an image"):
        open_image(b"no image")
    questions = [Question(1, "?", image=data), Question(2, "?", image=path), Question(3, "?")]
    assert check_images(questions, DatasetRequest()) == questions


def test_an_image_is_described_once_whether_file_or_bytes(tmp_path, fresh_cache):
    class Counting:
        fingerprint = "counting/1"
        weights = ""

        def __init__(self):
            self.seen = []

        def describe(self, images):
            self.seen += [image_bytes(i) for i in images]
            return [
                Description((Tag((hashlib.sha256(image_bytes(i)).hexdigest(),), 0.5, ("k",)),))
                for i in images
            ]

    for name, color in (("a", (1, 2, 3)), ("b", (200, 2, 3)), ("copy of a", (1, 2, 3))):
        write_image(tmp_path / f"{name}.png", color)
    a, b, copy = (tmp_path / f"{n}.png" for n in ("a", "b", "copy of a"))
    inner = Counting()
    described = CachedDescriber(inner, chunk=2).describe([a, b, copy, a.read_bytes()])
    assert inner.seen == [a.read_bytes(), b.read_bytes()]
    assert described == Counting().describe([a, b, copy, a])
    again = Counting()
    assert CachedDescriber(again).describe([copy, b.read_bytes()]) == described[:2]
    assert again.seen == []
    write_image(a, (9, 9, 9))  # another content under the same name
    assert CachedDescriber(again).describe([a]) == Counting().describe([a])
    assert len(again.seen) == 1
