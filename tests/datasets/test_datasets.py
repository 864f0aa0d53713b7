"""Loaders on tiny folders in the official forms, corpora in every form, and images."""

import csv
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from dataset_files import OBJECTS, write_image, write_parquet
from PIL import ImageOps

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Description, Passage, Question, Region, Tag, TextLine
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.rows import ID_COLUMNS, TEXT_COLUMNS
from ravqa.datasets import infoseek, okvqa, processed
from ravqa.datasets.base import DatasetRequest, Problems, parse_options
from ravqa.datasets.checks import check_images
from ravqa.describers.base import Describer
from ravqa.describers.cached import CachedDescriber
from ravqa.images.decode import image_bytes, open_image

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SNIPPETS = SHARED / "okvqa-snippets"
OKVQA_SLICE = SHARED / "okvqa-slice"


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


def test_okvqa_is_scored_with_raw_answers_if_asked_and_the_results_know(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa", version="1.0")
    official = okvqa.load(DatasetRequest(data=folder))
    raw = okvqa.load(DatasetRequest(data=folder, options={"answer_field": "raw_answer"}))
    assert official.info["answer_field"] == "answer"
    assert raw.info["answer_field"] == "raw_answer"
    assert raw.questions[0].answers == ("ponies 0",) * 10
    assert raw.fingerprint != official.fingerprint
    [note] = raw.notes  # not the one of stemmed answers: these are not
    assert "raw_answer" in note
    assert "not comparable" in note


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"answer_feild": "answer"}, "unknown key 'answer_feild': did you mean answer_field"),
        ({"answer_field": "answers"}, "key 'answer_field'"),
        ({"images": "nowhere"}, "images=nowhere: no such folder"),
        ({"dev_share": 1}, "key 'dev_share'"),
    ],
)
def test_a_wrong_option_of_a_dataset_is_named(tmp_path, options, said):
    folder = okvqa_folder(tmp_path / "okvqa")
    with pytest.raises(UserError, match=f"--dataset-option.*{said}"):
        okvqa.load(DatasetRequest(data=folder, options=options))


def test_dataset_options_are_read_as_yaml():
    assert parse_options(["a=1", "b=x=y", "c=true", "d="]) == {
        "a": 1,
        "b": "x=y",
        "c": True,
        "d": None,
    }
    for wrong in (["a"], ["=1"], ["a=[1"], ["a=1", "a=2"], ["a=2020-13-45"]):
        with pytest.raises(UserError, match="--dataset-option"):
            parse_options(wrong)


def test_the_dev_split_holds_whole_images_of_train_and_the_rest_holds_the_others(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa", split="train2014", count=400)

    def load(split, **options):
        request = DatasetRequest(data=folder, split=split, need_images=False, options=options)
        return okvqa.load(request)

    train, dev, rest = load("train"), load("dev"), load("train-minus-dev")
    ids = [{q.image_id for q in d.questions} for d in (train, dev, rest)]
    assert ids[1] | ids[2] == ids[0]
    assert not ids[1] & ids[2]
    assert len(dev.questions) + len(rest.questions) == len(train.questions) == 400
    assert 5 <= len(ids[1]) <= 40  # about a tenth of 200
    assert (dev.split, rest.split) == ("dev", "train-minus-dev")
    assert dev.info["dev"] == {"from": "train2014", "by": "image", "share": 0.1, "seed": 0}
    assert {q.image_id for q in load("dev").questions} == ids[1]
    assert {q.image_id for q in load("dev", dev_seed=1).questions} != ids[1]
    # A larger share holds the smaller one, and an image's lot depends on no other image.
    assert {q.image_id for q in load("dev", dev_share=0.5).questions} > ids[1]
    some = okvqa_folder(tmp_path / "some", split="train2014", count=100)
    part = okvqa.load(DatasetRequest(data=some, split="dev", need_images=False))
    assert {q.image_id for q in part.questions} == {i for i in ids[1] if i < 42 + 50}


def test_okvqa_has_no_dev_split_without_train(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa")
    with pytest.raises(UserError, match="no files of split train2014; it has: val2014"):
        okvqa.load(DatasetRequest(data=folder, split="dev"))


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_captions_of_a_file_become_descriptions(tmp_path, form):
    folder = okvqa_folder(tmp_path / "okvqa")
    path = tmp_path / f"captions.{form}"
    if form == "jsonl":
        write_lines(path, [{"image_id": 42, "caption": "a dog"}])
    else:  # Oscar's, by RA-VQA's twelve-digit keys
        path.write_text(json.dumps({"000000000042": [{"caption": "a dog", "conf": 0.9}]}))
    dataset = okvqa.load(DatasetRequest(data=folder, options={"captions": str(path)}))
    plain = okvqa.load(DatasetRequest(data=folder))
    assert [q.description for q in dataset.questions] == [
        Description(caption="a dog"),
        Description(caption="a dog"),
        None,
    ]
    assert dataset.fingerprint != plain.fingerprint
    path.write_text('{"image": "x"}', encoding="utf-8")
    with pytest.raises(DataError, match="captions"):
        okvqa.load(DatasetRequest(data=folder, options={"captions": str(path)}))


def test_missing_images_are_counted_and_listed_before_anything_else(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa", count=40)  # two questions an image
    for number in range(42, 50):
        (folder / "val2014" / f"COCO_val2014_{number:012d}.jpg").unlink()
    with pytest.raises(DataError) as error:
        okvqa.load(DatasetRequest(data=folder))
    message = str(error.value)
    assert message.startswith("question 425: no such image: ")
    assert "16 questions have no usable image" in message
    assert message.count("no such image") == 10
    assert "and 6 more" in message
    problems = Problems("skip")
    dataset = okvqa.load(DatasetRequest(data=folder, problems=problems))
    assert len(dataset.questions) == 24
    assert [p.question_id for p in problems.found] == list(range(425, 441))
    assert all("no such image" in p.reason for p in problems.found)


def test_coco_images_are_read_from_their_zip_file(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa")
    before = okvqa.load(DatasetRequest(data=folder))
    with zipfile.ZipFile(folder / "val2014.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "val2014").iterdir()):
            archive.write(path, f"val2014/{path.name}")
    data = [image_bytes(q.image) for q in before.questions]
    shutil.rmtree(folder / "val2014")
    packed = okvqa.load(DatasetRequest(data=folder))
    assert packed.questions[0].image == (
        folder / "val2014.zip" / "val2014" / "COCO_val2014_000000000042.jpg"
    )
    assert [image_bytes(q.image) for q in packed.questions] == data
    assert packed.fingerprint == before.fingerprint


def test_half_an_archive_stops_only_questions_that_may_need_it(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa")
    (folder / "train2014.zip").write_bytes(b"PK\x03\x04 half a download")
    assert len(okvqa.load(DatasetRequest(data=folder)).questions) == 3
    (folder / "val2014" / "COCO_val2014_000000000043.jpg").unlink()
    with pytest.raises(
        DataError, match=r"no image .*000043\.jpg.*train2014\.zip is not an archive"
    ):
        okvqa.load(DatasetRequest(data=folder))
    problems = Problems("skip")
    dataset = okvqa.load(DatasetRequest(data=folder, problems=problems))
    assert [q.question_id for q in dataset.questions] == [425, 426]
    [problem] = problems.found
    assert "train2014.zip is not an archive" in problem.reason
    unseen = okvqa.load(DatasetRequest(data=folder, need_images=False))
    assert len(unseen.questions) == 3


# Hub copies


def lmms_folder(root):
    """The columns and files of lmms-lab/OK-VQA."""
    rows = []
    for i in range(3):
        out = io.BytesIO()
        PIL.Image.new("RGB", (4, 4), (i // 2 * 90, 0, 0)).save(out, "PNG")
        rows.append(
            {
                "question_id": str(425 + i),
                "image": {"bytes": out.getvalue(), "path": None},
                "question": f"What is {i}?",
                "answers": [f"pony {i}"] * 9 + ["horse"],
                "question_type": "four",
                "answer_type": "other",
            }
        )
    write_parquet(root / "data" / "val2014-00000-of-00002.parquet", rows[:2])
    write_parquet(root / "data" / "val2014-00001-of-00002.parquet", rows[2:])
    return root


def test_okvqa_in_the_form_of_lmms_lab(tmp_path, fresh_cache):
    dataset = okvqa.load(DatasetRequest(data=lmms_folder(tmp_path / "lmms")))
    assert (dataset.name, dataset.split, dataset.metric) == ("okvqa", "val2014", "vqa_accuracy")
    assert dataset.info["answer_field"] == "answers"
    assert [q.question_id for q in dataset.questions] == [425, 426, 427]
    assert dataset.questions[2].answers == ("pony 2",) * 9 + ("horse",)
    assert open_image(dataset.questions[2].image).getpixel((0, 0)) == (90, 0, 0)
    # The same bytes are one image.
    assert dataset.questions[0].image == dataset.questions[1].image
    assert len({q.image_id for q in dataset.questions}) == 2
    with pytest.raises(UserError, match="answer_field=raw_answer"):
        okvqa.load(DatasetRequest(data=tmp_path / "lmms", options={"answer_field": "raw_answer"}))


def ravqa_row(number=1, split="val2014"):
    """A row of BByrneLab/OKVQA_FLMR_preprocessed_data."""
    path = f"{split}/COCO_{split}_{number:012d}.jpg"
    return {
        "question_id": str(number * 10 + 5),
        "question": "What is served here?",
        "answers": ["soup"] * 8 + ["", "stew"],
        "gold_answer": "soup",
        "img_path": path,
        "img_key_full": f"{number:012d}",
        "img_key": number,
        "img_file_name": path.rpartition("/")[2],
        "img_caption": {"caption": "a table with a cup", "conf": 0.97},
        "objects": OBJECTS,
        "img_ocr": [
            {"description": "MENU\nof the day ", "vertices": [[0, 0], [1, 0], [1, 1], [0, 1]]},
            {"description": "MENU\nof the day", "vertices": [[0, 0], [1, 0], [1, 1], [0, 1]]},
            {"description": " ", "vertices": [[0, 0], [1, 0], [1, 1], [0, 1]]},
        ],
        "ROIs": [f"{path}|||dining_table_1.0_2.0_30.5_40.0", f"{path}|||cup_5_6_7_8"],
        "pos_item_ids": ["GS_7", "GS_9"],
        "pos_item_contents": ["soup is hot", "stew"],
    }


def test_okvqa_in_the_form_of_ravqa_has_captions_objects_ocr_and_regions(tmp_path):
    folder = tmp_path / "ravqa"
    rows = [ravqa_row(1), ravqa_row(2)]
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", [ravqa_row(9, "train2014")])
    for row in rows:
        write_image(folder / row["img_path"])
    dataset = okvqa.load(DatasetRequest(data=folder))
    assert dataset.split == "test"
    question = dataset.questions[0]
    assert question == Question(
        question_id=15,
        question="What is served here?",
        image=folder / "val2014" / "COCO_val2014_000000000001.jpg",
        image_id=1,
        answers=("soup",) * 8 + ("stew",),  # blank ones are dropped
        split="test",
        pos_item_ids=("GS_7", "GS_9"),
        description=Description(
            caption="a table with a cup",
            ocr=("MENU of the day",),
            objects=(
                Region(
                    "dining_table",
                    (1.0, 2.0, 30.5, 40.0),
                    (("wooden", 0.9), ("brown", 0.04)),
                    ("MENU",),
                ),
                Region("cup", (5.0, 6.0, 7.0, 8.0)),
            ),
            regions=(
                Region("dining_table", (1.0, 2.0, 30.5, 40.0)),
                Region("cup", (5.0, 6.0, 7.0, 8.0)),
            ),
        ),
        extra={"gold_answer": "soup"},
    )
    train = okvqa.load(DatasetRequest(data=folder, split="train2014", need_images=False))
    assert (train.split, train.questions[0].image_id) == ("train", 9)


def test_objects_that_datasets_turned_into_columns_are_read_as_well():
    columns = {key: [o[key] for o in OBJECTS] for key in OBJECTS[0]}
    row = ravqa_row() | {"objects": columns}
    assert processed.description_of(row) == processed.description_of(ravqa_row())


@pytest.mark.parametrize(
    "changes",
    [
        {"objects": [{"class": "cup"}]},
        {"objects": [{"class": "cup", "rect": [1, 2, 3]}]},
        {"ROIs": ["a.jpg|||cup_1_2_x_4"]},
        {"img_ocr": ["x"]},
        {"objects": [{"class": None, "rect": [1, 2, 3, 4]}]},
    ],
)
def test_broken_objects_are_reported_with_their_row(tmp_path, changes):
    row = ravqa_row() | changes
    folder = tmp_path / "ravqa"
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [row])
    with pytest.raises(DataError, match="row 1: objects, img_ocr or ROIs cannot be read"):
        okvqa.load(DatasetRequest(data=folder, need_images=False))


def test_a_hub_copy_is_read_through_datasets(tmp_path, fresh_cache, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = lmms_folder(tmp_path / "lmms")
    files = okvqa.load(DatasetRequest(data=folder))
    hub = okvqa.load(DatasetRequest(data=Path(f"hf:{folder}")))
    assert list(hub.questions) == list(files.questions)
    assert hub.fingerprint == files.fingerprint
    with pytest.raises(UserError, match="cannot be read from the hub"):
        okvqa.load(DatasetRequest(data=Path("hf:nobody/no-such-dataset")))


def test_okvqa_takes_the_only_split_that_is_there_and_says_so(tmp_path):
    folder = okvqa_folder(tmp_path / "okvqa", split="train2014")
    dataset = okvqa.load(DatasetRequest(data=folder))
    assert dataset.split == "train2014"
    assert dataset.questions[0].image.name == "COCO_train2014_000000000042.jpg"
    [note] = dataset.notes
    assert "only the split train2014" in note
    for name in ("train", "train2014"):
        asked = okvqa.load(DatasetRequest(data=folder, split=name))
        assert asked.questions == dataset.questions
        assert list(asked.notes) == []
    with pytest.raises(UserError, match="no files of split val2014; it has: train2014"):
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
    assert any("only the split train2014" in note for note in dataset.notes)
    assert all(len(q.answers) == 10 for q in dataset.questions)
    assert all(type(q.question_id) is int for q in dataset.questions)
    assert len({q.question_id for q in dataset.questions}) == 653
    dev = okvqa.load(DatasetRequest(data=OKVQA_SLICE, split="dev", need_images=False))
    assert 0 < len(dev.questions) < 120


def test_the_real_snippets_load_with_their_captions():
    if not SNIPPETS.is_dir():
        pytest.skip("no ../shared/data/okvqa-snippets beside the project: not tested")
    options = {"captions": str(SNIPPETS / "captions.jsonl")}
    request = DatasetRequest(data=SNIPPETS, need_images=False, options=options)
    dataset = okvqa.load(request)
    assert (len(dataset.questions), dataset.split) == (498, "val2014")
    assert all(q.description and q.description.caption for q in dataset.questions)
    corpus = Corpus.read(SNIPPETS / "passages.jsonl")
    assert len(corpus) == 15_863
    assert corpus["GS_0"].title == "Vases : Target"


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
        extra={"entity": "Sagrada Familia", "entity_id": "Q1"},
        pos_articles=("Q1", "Sagrada Familia"),
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
    unseen = infoseek.load(DatasetRequest(data=folder, need_images=False, find_images=False))
    assert [q.image for q in unseen.questions] == [None] * 3
    assert [replace(q, image=None) for q in dataset.questions] == list(unseen.questions)
    assert unseen.fingerprint == dataset.fingerprint
    # Who needs the image after all finds it missing, and does not take the question for text only.
    assert [q.image.is_file() for q in dataset.questions] == [True, True, False]
    with pytest.raises(DataError, match=r"no such image: .*oven_00000003"):
        open_image(dataset.questions[2].image)


def test_infoseek_without_kb_says_so(tmp_path):
    folder = infoseek_folder(tmp_path / "infoseek")
    assert infoseek.load(DatasetRequest(data=folder)).info["entities"] == "known"
    (folder / "infoseek_val_withkb.jsonl").unlink()
    dataset = infoseek.load(DatasetRequest(data=folder))
    assert dataset.info == {"setting": "official val file", "entities": "unknown"}
    assert all(q.pos_articles == () and q.extra == {} for q in dataset.questions)


def test_infoseek_images_stand_in_the_shards_and_archives_of_oven(tmp_path):
    folder = infoseek_folder(tmp_path / "infoseek")
    images = folder / "images"
    (images / "00").mkdir()
    (images / "oven_00000001.jpg").rename(images / "00" / "oven_00000001.jpg")
    with tarfile.open(images / "shard02.tar", "w") as shard:
        shard.add(images / "oven_00000002.JPEG", "02/oven_00000002.JPEG")
    (images / "oven_00000002.JPEG").unlink()
    dataset = infoseek.load(DatasetRequest(data=folder))
    assert [q.image.relative_to(images).as_posix() for q in dataset.questions] == [
        "00/oven_00000001.jpg",
        "shard02.tar/02/oven_00000002.JPEG",
        "oven_00000003.png",
    ]


def test_infoseek_train_has_no_type_file_and_needs_none(tmp_path):
    dataset = infoseek.load(DatasetRequest(data=infoseek_folder(tmp_path / "infoseek", "train")))
    assert dataset.split == "train"
    assert any("only the split train" in note for note in dataset.notes)
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
    class Counting(Describer):
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


def test_a_kept_description_is_the_whole_description(tmp_path, fresh_cache):
    seen = Description(
        tags=(Tag(("cup", "mug"), 0.5, ("vessel",)),),
        caption="a cup",
        ocr=("MENU",),
        objects=(Region("cup", (1, 2, 3.5, 4), (("red", 0.9),), ("tea",)),),
        regions=(Region("table", (0, 0, 8, 6), score=0.7),),
        lines=(TextLine("MENU", (0, 0, 4, 1), 0.9),),
    )

    class Fixed(Describer):
        fingerprint = "fixed/1"

        def describe(self, images):
            return [seen] * len(images)

    write_image(tmp_path / "a.png")
    assert CachedDescriber(Fixed()).describe([tmp_path / "a.png"]) == [seen]
    Fixed.describe = None  # from now on only what was kept is there
    assert CachedDescriber(Fixed()).describe([tmp_path / "a.png"]) == [seen]
