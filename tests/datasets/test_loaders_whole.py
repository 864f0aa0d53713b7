"""Everything that a loader makes of a row and says of its files, compared as a whole."""

import csv
import io
import json
from dataclasses import fields

import PIL.Image
import pytest
from dataset_files import write_image, write_parquet
from messages import said

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Description, Passage, Question, Region
from ravqa.datasets import evqa, infoseek, m2kr, okvqa, processed
from ravqa.datasets.base import DatasetRequest, Problem, Problems, RetrievalMetric

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("fresh_cache")

PSEUDO = (RetrievalMetric("pseudo_recall_at_k", 5),)
BY_ARTICLE = (RetrievalMetric("article_recall_at_k", 1), *PSEUDO)


def facts(dataset):
    """What a dataset says of itself, without what it leaves empty."""
    left_out = {"questions", "fingerprint", "corpus"}
    found = {f.name: getattr(dataset, f.name) for f in fields(dataset) if f.name not in left_out}
    return {name: value for name, value in found.items() if value or name == "metric"}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def png(color=0):
    out = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (color, 0, 0)).save(out, "PNG")
    return out.getvalue()


# OK-VQA's official files


def official(root, split="val2014", questions=None, annotations=None, version="1.1"):
    asked = {"question_id": 5, "image_id": 42, "question": "What?"}
    given = {"question_id": 5, "question_type": "one", "answers": [{"answer": "a"}] * 10}
    types = {"one": "Vehicles"}
    write_json(
        root / f"OpenEnded_mscoco_{split}_questions.json",
        {"questions": [asked] if questions is None else questions},
    )
    write_json(
        root / f"mscoco_{split}_annotations.json",
        {
            "info": {"version": version},
            "question_types": types,
            "annotations": [given] if annotations is None else annotations,
        },
    )
    write_image(root / split / f"COCO_{split}_000000000042.jpg")
    return root


def load(module, data, split=None, problems=None, need_images=True, **options):
    request = DatasetRequest(
        data, split, None, problems or Problems(), need_images, options=options
    )
    return module.load(request)


OFFICIAL = {
    "name": "okvqa",
    "label": "OK-VQA",
    "split": "val2014",
    "metric": "vqa_accuracy",
    "info": {"version": "1.1", "answer_field": "answer"},
    "question_types": {"one": "Vehicles"},
    "retrieval_metrics": PSEUDO,
}
RAW = (
    "scored with 'raw_answer', but the official code scores 'answer': not comparable with "
    "published scores"
)
STEMMED = (
    "these are OK-VQA v1.0 annotations: their answers are stemmed ('poni tail'); scores are lower "
    "than on v1.1 and not comparable with it"
)


def test_official_okvqa_as_a_whole(tmp_path):
    dataset = load(okvqa, official(tmp_path))
    assert facts(dataset) == OFFICIAL
    assert dataset.corpus is None
    image = tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"
    assert dataset.questions == [
        Question(5, "What?", image, 42, ("a",) * 10, question_type="one", split="val2014")
    ]
    official(tmp_path, "train2014")
    # The first 8 bytes of sha256("ravqa-dev/3/42"), as a share of all numbers, are 0.2028.
    for split, share in (("dev", 0.25), ("train-minus-dev", 0.2)):
        found = load(okvqa, tmp_path, split, dev_share=share, dev_seed=3)
        dev = {"from": "train2014", "by": "image", "share": share, "seed": 3}
        info = {**OFFICIAL["info"], "dev": dev}
        assert facts(found) == OFFICIAL | {"split": split, "info": info}
        [question] = found.questions
        assert question.split == "train2014"
        assert question.image.name == "COCO_train2014_000000000042.jpg"


def test_remarks_on_the_version_and_the_field_of_answers(tmp_path):
    answers = [{"answer": "poni", "raw_answer": "pony"}]
    annotations = [{"question_id": 5, "question_type": None, "answers": answers}]
    official(tmp_path, version="1.0", annotations=annotations)
    assert load(okvqa, tmp_path).notes == [STEMMED]
    raw = load(okvqa, tmp_path, answer_field="raw_answer")
    assert (raw.notes, raw.questions[0].answers) == ([RAW], ("pony",))
    assert raw.info == {"version": "1.0", "answer_field": "raw_answer"}
    assert raw.questions[0].question_type is None
    official(tmp_path, version=2, annotations=annotations)
    assert load(okvqa, tmp_path).info["version"] == "2"
    assert load(okvqa, tmp_path).notes == []


ASKED = {"question_id": 5, "image_id": 42, "question": "What?"}
NEEDED = (
    "It needs the files of okvqa.allenai.org (Download): OpenEnded_mscoco_val2014_questions.json, "
    "mscoco_val2014_annotations.json, and the COCO 2014 images (cocodataset.org) as "
    "val2014/COCO_val2014_000000000042.jpg; the same for train2014"
)


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        ({"image_id": "42"}, " (id 6)", "image_id '42' is not a number"),
        ({"image_id": True}, " (id 6)", "image_id True is not a number"),
        ({"image_id": -1}, " (id 6)", "image_id -1 is not a number"),
        ({"question": " "}, " (id 6)", "blank question"),
        ({"question": 7}, " (id 6)", "blank question"),
        ({"question_id": 7}, " (id 7)", "no annotation with answers"),
        ({"question_id": 5}, " (id 5)", "duplicate question id 5"),
        ({"question_id": None}, " (id None)", "no 'question_id'"),
        ({"image_id": ...}, "", "no 'image_id'"),
        ({"question": ..., "image_id": ...}, "", "no 'image_id'"),
        (None, "", "an object is expected"),
    ],
)
def test_a_question_of_okvqa_that_cannot_be_used(tmp_path, change, name, reason):
    bad = None
    if change is not None:
        row = {**ASKED, "question_id": 6, **change}
        bad = {key: value for key, value in row.items() if value is not ...}
    answers = [{"question_id": i, "answers": [{"answer": "a"}]} for i in (5, 6)]
    official(tmp_path, questions=[ASKED, bad], annotations=answers)
    problems = Problems("skip")
    assert [q.question_id for q in load(okvqa, tmp_path, problems=problems).questions] == [5]
    path = tmp_path / "OpenEnded_mscoco_val2014_questions.json"
    [problem] = problems.found
    assert (problem.where, problem.reason) == (f"{path}, question 2{name}", reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answers": None}, "no list 'answers'"),
        ({"answers": ["a"]}, "'answers': objects with 'answer' are expected"),
        ({"answers": [{"raw_answer": "a"}]}, "'answers': objects with 'answer' are expected"),
        ({"question_id": 5}, "question 5 has two"),
        ({"question_id": "5"}, "question 5 has two"),
        ({"question_id": None}, "no 'question_id'"),
        ({"answers": [{"answer": ["a"]}]}, "'answer': text is expected, not a list"),
    ],
)
def test_an_annotation_of_okvqa_that_cannot_be_used(tmp_path, change, reason):
    good = {"question_id": 5, "answers": [{"answer": "a"}, {"answer": None}]}
    official(tmp_path, annotations=[good, {**good, "question_id": 6, **change}])
    problems = Problems("skip")
    [question] = load(okvqa, tmp_path, problems=problems).questions
    assert question.answers == ("a", "")  # one who gave none counts as one of the ten
    path = tmp_path / "mscoco_val2014_annotations.json"
    [problem] = problems.found
    assert problem.where == f"{path}, annotation 2"
    assert problem.reason.startswith(reason)


def test_files_of_okvqa_that_are_not_there_or_something_else(tmp_path):
    assert (
        said(UserError, load, okvqa, tmp_path / "x")
        == f"the data folder {tmp_path}/x does not exist. {NEEDED}"
    )
    assert said(UserError, load, okvqa, tmp_path) == f"no OK-VQA questions in {tmp_path}. {NEEDED}"
    official(tmp_path)
    path = tmp_path / "mscoco_val2014_annotations.json"
    for value in ([], {"annotations": {}}, {"questions": []}):
        write_json(path, value)
        expected = f"{path}: an object with the list 'annotations' is expected"
        assert said(DataError, load, okvqa, tmp_path) == expected
    path.unlink()
    assert said(UserError, load, okvqa, tmp_path) == f"{path} is missing. {NEEDED}"


# Captions


def captions(tmp_path, name, value):
    official(tmp_path / "data")
    path = tmp_path / name
    (write_lines if name.endswith("l") else write_json)(path, value)
    return path, load(okvqa, tmp_path / "data", captions=str(path)).questions[0].description


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("c.jsonl", [{"image_id": 42, "caption": "a dog"}]),
        ("c.jsonl", [{"image_id": "COCO_val2014_000000000042.jpg", "caption": "a dog"}]),
        ("c.jsonl", [{"image_id": i, "caption": "a dog"} for i in (42, "042", 43)]),
        ("c.json", {"000000000042": [{"caption": "a dog", "conf": 0.9}, {"caption": "a cat"}]}),
        ("c.json", {"COCO_val2014_000000000042": [{"caption": "a dog"}]}),
        ("c.json", {"val2014_42": [{"caption": "a dog"}], "43": [{"caption": None}]}),
    ],
)
def test_captions_belong_to_images_in_every_form(tmp_path, name, value):
    assert captions(tmp_path, name, value)[1] == Description(caption="a dog")


FORM = "JSON lines with image_id and caption, or an object {image: [{caption, conf}]}, are expected"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("c.jsonl", [{"image_id": 42, "caption": None}], ", line 1: no 'caption'"),
        ("c.jsonl", [{"image_id": None, "caption": "x"}], ", line 1: no 'image_id'"),
        (
            "c.jsonl",
            [{"image_id": 42, "caption": "a"}, {"image_id": "042", "caption": "b"}],
            ", line 2: the image '042' has another caption already",
        ),
        ("c.jsonl", [{"caption": "x"}], f": {FORM}"),
        ("c.json", [], f": {FORM}"),
        ("c.json", {"42": []}, f": {FORM}"),
        (
            "c.jsonl",
            [{"image_id": 7, "caption": "x"}],
            ": no caption belongs to an image of these questions: their image_id is, for example, "
            "42, but the file has 7",
        ),
        (
            "c.json",
            {},
            ": no caption belongs to an image of these questions: their image_id is, for example, "
            "42, but the file has none",
        ),
    ],
)
def test_captions_that_cannot_be_used(tmp_path, name, value, reason):
    expected = f"{tmp_path / name}{reason}"
    assert said(DataError, captions, tmp_path, name, value) == expected


# OK-VQA's hub copies


def table(root, rows, split="val2014"):
    write_parquet(root / "data" / f"{split}-00000-of-00001.parquet", rows)
    return root


def test_a_hub_copy_of_okvqa_as_a_whole(tmp_path):
    row = {
        "question_id": "5",
        "question": "What?",
        "answers": ["a", "b"],
        "instruction": "Look.",
        "question_type": "one",
        "pos_item_ids": ["p"],
        "gold_answer": "a",
        "image_id": "042",
        "image": {"bytes": png(), "path": None},
        "img_caption": "a tree",
    }
    dataset = load(okvqa, table(tmp_path, [row]))
    info = {"version": "unknown", "answer_field": "answers", "source": tmp_path.as_posix()}
    expected = {key: value for key, value in OFFICIAL.items() if key != "question_types"}
    assert facts(dataset) == expected | {"info": info}
    [question] = dataset.questions
    assert question.image.read_bytes() == png()
    assert question == Question(
        question_id=5,
        question="What?",
        image=question.image,
        image_id=42,
        answers=("a", "b"),
        instruction="Look.",
        question_type="one",
        split="val2014",
        pos_item_ids=("p",),
        description=Description(caption="a tree"),
        extra={"gold_answer": "a"},
    )
    message = said(UserError, load, okvqa, tmp_path, answer_field="raw_answer")
    where = f"{tmp_path}/val2014-*.parquet"
    expected = f"answer_field=raw_answer: {where} has 'answers' only, and they are texts, not"
    assert message == f"{expected} objects"


def test_a_hub_copy_with_answers_as_objects(tmp_path):
    answers = [{"answer": "poni", "raw_answer": "pony"}] * 2
    row = {"question_id": "5", "question": "?", "answers": answers, "image_id": 42}
    write_image(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    write_image(tmp_path / "train2014" / "COCO_train2014_000000000042.jpg")
    table(tmp_path, [row])
    for split in ("train", "valid"):
        table(tmp_path, [row], split)
    found = load(okvqa, tmp_path)
    assert (found.info["answer_field"], found.notes) == ("answer", [])
    assert found.questions[0].answers == ("poni", "poni")
    assert found.questions[0].image.name == "COCO_val2014_000000000042.jpg"
    raw = load(okvqa, tmp_path, "val", answer_field="raw_answer")
    assert (raw.info["answer_field"], raw.notes) == ("raw_answer", [RAW])
    assert raw.questions[0].answers == ("pony", "pony")
    valid = load(okvqa, tmp_path, "valid")
    warning = "RA-VQA's split valid has val2014's questions: choose no settings on it"
    assert (valid.notes, valid.split) == ([warning], "valid")
    train = load(okvqa, tmp_path, "train2014")
    assert (train.split, train.questions[0].split) == ("train", "train")
    assert train.questions[0].image.name == "COCO_train2014_000000000042.jpg"
    for split, share in (("dev", 0.25), ("train-minus-dev", 0.2)):
        part = load(okvqa, tmp_path, split, dev_share=share, dev_seed=3)
        assert (part.split, len(part.questions)) == (split, 1)
        assert part.info["dev"] == {
            "from": "train2014",
            "by": "image",
            "share": share,
            "seed": 3,
        }


def test_a_row_of_a_hub_copy_without_its_image_or_answers(tmp_path):
    good = {"question_id": "5", "question": "?", "answers": ["a"], "img_path": "a.jpg"}
    rows = [
        good,
        {**good, "question_id": "6", "img_path": None},
        {**good, "question_id": "7", "answers": []},
        {**good, "question_id": "8", "question": None},
    ]
    write_image(tmp_path / "a.jpg")
    problems = Problems("skip")
    dataset = load(okvqa, table(tmp_path, rows), problems=problems)
    assert [(q.question_id, q.image_id) for q in dataset.questions] == [(5, "a.jpg")]
    where = f"{tmp_path / 'data' / 'val2014-00000-of-00001.parquet'}, row"
    assert problems.found == [
        Problem(f"{where} 3", "no question_id, question or answers", "7"),
        Problem(f"{where} 4", "no question_id, question or answers", "8"),
        Problem(f"{where} 2", "no image in a column such as image, images, img_path", "6"),
    ]
    unseen = load(okvqa, tmp_path, problems=Problems("skip"), need_images=False)
    assert unseen.questions[1].image == tmp_path / "<image of question 6>"


# RA-VQA's processed rows


@pytest.mark.parametrize(
    ("row", "description"),
    [
        ({}, None),
        ({"img_caption": {"caption": " a tree "}}, Description(caption="a tree")),
        ({"img_caption": {"caption": None}, "objects": [], "ROIs": None, "img_ocr": None}, None),
        (
            {"img_ocr": [{"description": d} for d in (" b\na ", "c", "b\na", None, "  ")]},
            Description(ocr=("b a", "c")),
        ),
        (
            {"ROIs": ["x|||big_cup_1_2_3_4.5", "plain_0_0_1_1"]},
            Description(regions=(Region("big_cup", (1, 2, 3, 4.5)), Region("plain", (0, 0, 1, 1)))),
        ),
        (
            {
                "objects": {
                    "class": ["cup", "dog"],
                    "rect": [[1, 2, 3, 4], [5, 6, 7, 8]],
                    "attributes": [["red"], None],
                    "attribute_scores": [[0.5], None],
                    "ocr": [[{"text": "A"}], None],
                    "count": 2,
                }
            },
            Description(
                objects=(
                    Region("cup", (1, 2, 3, 4), (("red", 0.5),), ("A",)),
                    Region("dog", (5, 6, 7, 8)),
                )
            ),
        ),
    ],
)
def test_what_was_seen_in_an_image(row, description):
    assert processed.description_of(row) == description


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"ROIs": ["a_1_2_3"]}, "ValueError("),
        ({"ROIs": ["a_1_2_3_nan"]}, "ValueError('the box [1.0, 2.0, 3.0, nan] has corners that"),
        ({"ROIs": [7]}, "TypeError('7 is not a string')"),
        ({"objects": [{"rect": [1, 2, 3, 4]}]}, "KeyError('class')"),
        ({"objects": {"class": ["a", "b"], "rect": [[1, 2, 3, 4]]}}, "ValueError("),
        (
            {"objects": [{"class": "a", "rect": [1, 2, 3, 4], "attributes": ["x"]}]},
            "ValueError(",
        ),
    ],
)
def test_what_was_seen_in_another_form(row, reason):
    message = said(DataError, processed.description_of, row)
    assert message.startswith(f"objects, img_ocr or ROIs cannot be read ({reason}")


# InfoSeek

RECORD = {
    "data_id": "a1",
    "image_id": "oven_1",
    "question": "What?",
    "answer": ["x"],
    "answer_eval": ["x", "y"],
    "data_split": "val_unseen",
}
OVEN = (
    "It needs the files of github.com/open-vision-language/infoseek: infoseek_val.jsonl, "
    "infoseek_val_qtype.jsonl (and infoseek_val_withkb.jsonl), and OVEN's images as "
    "images/oven_00000001.jpg"
)


def infoseek_folder(root, *records, kind="String"):
    records = records or (RECORD,)
    write_lines(root / "infoseek_val.jsonl", records)
    write_lines(
        root / "infoseek_val_qtype.jsonl",
        [{"data_id": r["data_id"], "question_type": kind} for r in records if r.get("data_id")],
    )
    write_image(root / "images" / "oven_1.jpg")
    return root


def test_infoseek_as_a_whole(tmp_path):
    folder = infoseek_folder(tmp_path)
    entity = {"data_id": "a1", "entity_id": "Q1", "entity_text": "A church"}
    write_lines(folder / "infoseek_val_withkb.jsonl", [entity])
    dataset = load(infoseek, folder)
    assert facts(dataset) == {
        "name": "infoseek",
        "label": "InfoSeek",
        "split": "val",
        "metric": "infoseek",
        "submission": "infoseek",
        "info": {"setting": "official val file", "entities": "known"},
        "retrieval_metrics": BY_ARTICLE,
    }
    assert dataset.questions == [
        Question(
            question_id="a1",
            question="What?",
            image=tmp_path / "images" / "oven_1.jpg",
            image_id="oven_1",
            answers=("x", "y"),
            answer_eval=("x", "y"),
            question_type="String",
            split="val_unseen",
            extra={"entity": "A church", "entity_id": "Q1"},
            pos_articles=("Q1", "A church"),
        )
    ]
    write_lines(folder / "infoseek_val_withkb.jsonl", [{"data_id": "a1", "entity_id": "Q1"}])
    expected = f"{folder}/infoseek_val_withkb.jsonl, line 1: no 'entity_text'"
    assert said(DataError, load, infoseek, folder) == expected
    write_lines(folder / "infoseek_val_withkb.jsonl", [{"data_id": "a1", "entity_text": "A"}])
    assert load(infoseek, folder).questions[0].pos_articles == ("A",)


def test_infoseek_that_is_not_there(tmp_path):
    missing = f"the data folder {tmp_path}/x does not exist. {OVEN}"
    assert said(UserError, load, infoseek, tmp_path / "x") == missing
    assert said(UserError, load, infoseek, tmp_path) == (
        f"no InfoSeek questions in {tmp_path}. {OVEN}"
    )
    infoseek_folder(tmp_path)
    (tmp_path / "infoseek_val_qtype.jsonl").unlink()
    missing = f"{tmp_path}/infoseek_val_qtype.jsonl is missing. {OVEN}"
    assert said(UserError, load, infoseek, tmp_path) == missing


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data_id": 7}, "no 'data_id', or it is not a string"),
        ({"data_id": ""}, "no 'data_id', or it is not a string"),
        ({"data_id": "a1"}, "duplicate data_id 'a1'"),
        ({"data_id": "a3"}, "'a3' has no question type"),
        ({"image_id": None}, "no 'image_id'"),
        ({"question": None}, "no 'question'"),
        ({"question": None, "image_id": None}, "no 'image_id'"),
        ({"answer_eval": []}, "no 'answer_eval'"),
    ],
)
def test_a_question_of_infoseek_that_cannot_be_used(tmp_path, change, reason):
    folder = infoseek_folder(tmp_path, RECORD, {**RECORD, "data_id": "a2"})
    write_lines(tmp_path / "infoseek_val.jsonl", [RECORD, {**RECORD, "data_id": "a2", **change}])
    problems = Problems("skip")
    assert [q.question_id for q in load(infoseek, folder, problems=problems).questions] == ["a1"]
    [problem] = problems.found
    assert problem.where == f"{tmp_path}/infoseek_val.jsonl, line 2"
    assert problem.reason == reason


def test_a_type_of_question_that_is_none_of_three(tmp_path):
    folder = infoseek_folder(tmp_path, kind="Colour")
    message = said(DataError, load, infoseek, folder)
    assert "question type 'Colour' is not one of String, Time, Numerical" in message
    for kind in ("TIME", "string"):
        assert load(infoseek, infoseek_folder(tmp_path, kind=kind)).questions[0].image_id


def test_an_image_of_infoseek_that_is_missing(tmp_path):
    folder = infoseek_folder(tmp_path)
    (folder / "images" / "oven_1.jpg").unlink()
    where = f"{tmp_path}/infoseek_val.jsonl, line 1"
    message = said(DataError, load, infoseek, folder)
    assert message.startswith(f"{where}: no image oven_1 in {tmp_path}/images (--on-error skip")


def test_what_is_said_before_infoseek_is_downloaded(tmp_path):
    assert infoseek.REMOTE.remark(tmp_path) == (
        "InfoSeek's images are OVEN's, which come in large archives and not one by one: only the "
        f"jsonl files are downloaded; unpack the images into {tmp_path}/images "
        "(github.com/open-vision-language/oven, image_downloads)"
    )
    (tmp_path / "images").mkdir()
    assert infoseek.REMOTE.remark(tmp_path) == ""
    assert infoseek.REMOTE.files == {
        "val": ["infoseek_val.jsonl", "infoseek_val_qtype.jsonl", "infoseek_val_withkb.jsonl"],
        "train": ["infoseek_train.jsonl", "infoseek_train_withkb.jsonl"],
        "test": ["infoseek_test.jsonl"],
    }


# M2KR

QUERY = {
    "question_id": "q1",
    "question": "What?",
    "instruction": "Look.",
    "answers": ["a"],
    "answer_eval": ["a", "b"],
    "gold_answer": "a",
    "question_type": "String",
    "pos_item_ids": ["Q1_0", "Q1_1"],
    "entity_id": "Q1",
    "entity_text": "A church",
    "img_id": "i1",
    "img_path": "a.jpg",
    "wikidata_value": None,
    "wikidata_range": None,
}
PASSAGE = {
    "passage_id": "Q1_0",
    "passage_content": "title: Soup content: hot",
    "title": None,
    "language": "en",
    "number": None,
}


def m2kr_folder(root, subset="Infoseek", rows=(QUERY,), passages=(PASSAGE,), split="test"):
    write_parquet(root / f"{subset}_data" / f"{split}-00000-of-00001.parquet", list(rows))
    name = f"{split}_passages-00000-of-00001.parquet"
    write_parquet(root / f"{subset}_passages" / name, list(passages))
    write_image(root / "a.jpg")
    return root


def test_m2kr_as_a_whole(tmp_path):
    folder = m2kr_folder(tmp_path, passages=[PASSAGE, {**PASSAGE, "title": "again"}])
    dataset = load(m2kr, folder, subset="infoseek")
    expected = {
        "name": "m2kr",
        "label": "M2KR Infoseek",
        "split": "test",
        "metric": "infoseek",
        "info": {"subset": "Infoseek", "source": tmp_path.as_posix()},
        "notes": ["left out: 1 passage with the id of an earlier one"],
        "retrieval_metrics": (*PSEUDO, RetrievalMetric("recall_at_k", 5)),
    }
    assert facts(dataset) == expected
    assert dataset.questions == [
        Question(
            question_id="q1",
            question="What?",
            image=tmp_path / "a.jpg",
            image_id="i1",
            answers=("a", "b"),
            answer_eval=("a", "b"),
            instruction="Look.",
            question_type="String",
            split="test",
            pos_item_ids=("Q1_0", "Q1_1"),
            extra={"gold_answer": "a", "entity_id": "Q1", "entity": "A church"},
            pos_articles=("Q1", "A church"),
        )
    ]
    assert list(dataset.corpus.values()) == [
        Passage("Q1_0", "title: Soup content: hot", extra={"language": "en"}, article="Soup")
    ]
    assert dataset.corpus.source == f"{tmp_path}/Infoseek_passages/test_passages-*.parquet"
    assert facts(load(infoseek, folder, setting="m2kr")) == expected | {
        "name": "infoseek",
        "label": "InfoSeek, M2KR's questions",
        "info": {**expected["info"], "setting": "M2KR's test split"},
    }


def test_articles_of_m2kr(tmp_path):
    passages = [
        {**PASSAGE, "title": "T"},
        {**PASSAGE, "passage_id": "b", "passage_content": "no title: here content: x"},
        {**PASSAGE, "passage_id": "c", "passage_content": "title: A content: B content: C"},
    ]
    corpus = load(m2kr, m2kr_folder(tmp_path, "OVEN", passages=passages), subset="OVEN").corpus
    assert [p.article for p in corpus.values()] == ["T", None, "A"]
    assert corpus["Q1_0"].extra == {"title": "T", "language": "en"}
    passages = [{**PASSAGE, "passage_id": i} for i in ("WikiWeb_A_B_1", "WikiWeb_A_2_33", "X")]
    folder = m2kr_folder(tmp_path, "EVQA", passages=passages)
    corpus = load(m2kr, folder, subset="EVQA").corpus
    assert [p.article for p in corpus.values()] == ["WikiWeb_A_B", "WikiWeb_A_2", "X"]


def test_numbers_of_infoseek_in_m2kr(tmp_path):
    rows = [
        {**QUERY, "question_id": str(i), "question_type": kind, "answer_eval": ["5"]}
        | {"wikidata_value": 5.0, "wikidata_range": bounds, "answers": ["5"]}
        for i, (kind, bounds) in enumerate(
            [("Numerical", [4.0, 6.0]), (None, [4.0, 6.0]), ("String", [4.0, 6.0]), ("Time", [4.0])]
        )
    ]
    found = load(m2kr, m2kr_folder(tmp_path, rows=rows), subset="Infoseek").questions
    interval = ({"wikidata": 5.0, "range": [4.0, 6.0]},)
    assert [(q.question_type, q.answer_eval) for q in found] == [
        ("Numerical", interval),
        ("Numerical", interval),
        ("String", ("5",)),
        ("Time", ("5",)),
    ]
    rows = [{**QUERY, "answer_eval": None}]
    [question] = load(m2kr, m2kr_folder(tmp_path, rows=rows), subset="Infoseek").questions
    assert question.answer_eval == question.answers == ("a",)


def test_images_of_m2kr_that_are_not_there(tmp_path):
    held = {"image": {"bytes": png(), "path": None}}
    rows = [{**QUERY, **held}, {**QUERY, "question_id": "q2", "image": None}]
    for row in rows:
        del row["img_path"]
    problems = Problems("skip")
    folder = m2kr_folder(tmp_path, "OVEN", rows)
    [question] = load(m2kr, folder, subset="OVEN", problems=problems).questions
    assert (question.question_id, question.image.read_bytes()) == ("q1", png())
    [problem] = problems.found
    assert problem.reason == "no image in a column such as img_path, image, images"
    unseen = load(m2kr, folder, subset="OVEN", problems=Problems("skip"), need_images=False)
    assert unseen.questions[1].image == tmp_path / "<image of q2>"
    assert [q.image_id for q in unseen.questions] == ["i1", None]


def test_remarks_and_mistakes_of_m2kr(tmp_path):
    folder = m2kr_folder(tmp_path, "OKVQA", [{**QUERY, "question_id": "5"}], split="valid")
    dataset = load(m2kr, folder, "valid", subset="OKVQA")
    warning = "M2KR's OKVQA split valid is its test file: choose no settings on it"
    assert dataset.notes == [warning]
    repository = "BByrneLab/multi_task_multi_modal_knowledge_retrieval_benchmark_M2KR"
    needs = f"needs --data: a folder with the files of {repository}, or hf:{repository} to read it"
    message = said(UserError, load, m2kr, None, subset="OVEN")
    assert message == f"--dataset m2kr {needs} from the hub"
    names = "WIT, IGLUE, KVQA, CC, MSMARCO, OVEN, LLaVA, EVQA, OKVQA, Infoseek"
    message = said(UserError, load, m2kr, folder)
    assert message == f"--dataset m2kr needs --dataset-option subset=NAME: {names}"
    gone = tmp_path / "gone"
    message = said(UserError, load, m2kr, gone, subset="OVEN")
    assert message == f"the data folder {gone} does not exist. It needs the files of {repository}"
    message = said(UserError, load, m2kr, folder, subset="OVEN")
    assert message == (
        f"no OVEN_data/*.parquet in {folder}: the files of {repository} are expected"
    )
    request = DatasetRequest(None, options={"subset": "OVEN"})
    message = said(UserError, m2kr.load_cn, request)
    assert message.startswith("--dataset m2kr_cn needs --data: a folder with the files of BByrne")
    assert "hf:BByrneLab/M2KR_CN " in message
    twin = m2kr.load_cn(DatasetRequest(folder, "valid", options={"subset": "OKVQA"}))
    assert (twin.name, twin.label, twin.metric) == ("m2kr_cn", "M2KR_CN OKVQA", None)
    assert m2kr.BENCHMARKS["m2kr"].test_queries("EVQA") == 3750
    assert m2kr.BENCHMARKS["m2kr_cn"].test_queries("EVQA") is None


# Encyclopedic-VQA

COLUMNS = {
    "question": "How tall?",
    "answer": "50 m",
    "dataset_image_ids": "abc|def",
    "dataset_name": "landmarks",
    "question_type": "templated",
    "wikipedia_url": "u:1",
    "evidence_section_id": "1.0",
    "encyclopedic_vqa_split": "",
}


def evqa_folder(root, *rows):
    root.mkdir(exist_ok=True)
    with (root / "test.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows({**COLUMNS, **row} for row in rows or [{}])
    return root


def test_encyclopedic_vqa_as_a_whole(tmp_path):
    folder = evqa_folder(tmp_path)
    write_image(folder / "any" / "abc.jpg")
    dataset = load(evqa, folder)
    assert facts(dataset) == {
        "name": "evqa",
        "label": "Encyclopedic-VQA",
        "split": "test",
        "metric": "evqa_score",
        "info": {"setting": "all types", "asked_about": "first image"},
        "retrieval_metrics": BY_ARTICLE,
    }
    assert dataset.questions == [
        Question(
            question_id="evqa_test_0000000",
            question="How tall?",
            image=folder / "any" / "abc.jpg",
            image_id="landmarks/abc",
            answers=("50 m",),
            question_type="templated",
            split="test",
            pos_item_ids=("u:1#1",),
            pos_articles=("u:1",),
        )
    ]
    unseen = load(evqa, folder, need_images=False, triplets=True, single_hop=True)
    assert [q.image.relative_to(folder).as_posix() for q in unseen.questions] == [
        "any/abc.jpg",
        "d/e/f/def.jpg",
    ]
    expected = {"setting": "templated and automatic questions", "asked_about": "every image"}
    assert unseen.info == expected


def test_images_of_inaturalist_are_found_by_their_name_in_any_folder(tmp_path):
    ids = "1|2|3"
    folder = evqa_folder(tmp_path, {"dataset_name": "inaturalist", "dataset_image_ids": ids})
    write_json(folder / "train_id2name.json", {"1": "train/x/one.jpg", "2": None, "9": "no.jpg"})
    write_image(folder / "elsewhere" / "one.jpg")
    dataset = load(evqa, folder, need_images=False, triplets=True)
    names = [q.image.relative_to(folder).as_posix() for q in dataset.questions]
    assert names == ["elsewhere/one.jpg", "2.jpg", "3.jpg"]
    write_json(folder / "train_id2name.json", ["x"])
    expected = f"{folder}/train_id2name.json: an object of file names by image id is expected"
    assert expected in said(DataError, load, evqa, folder)


@pytest.mark.parametrize(
    ("change", "reason", "question_id"),
    [
        ({"answer": " "}, "no 'answer'", "evqa_test_0000001"),
        ({"question_type": ""}, "no 'question_type'", "evqa_test_0000001"),
        (
            {"question_type": "x"},
            "question_type 'x' is not one of ('templated', 'automatic', 'multi_answer', '2_hop')",
            "evqa_test_0000001",
        ),
        (
            {"dataset_name": "x"},
            "dataset_name 'x' is neither inaturalist nor landmarks",
            "evqa_test_0000001.0",
        ),
        ({"answer": "|"}, "no 'answer'", "evqa_test_0000001.0"),
    ],
)
def test_a_row_of_encyclopedic_vqa_that_cannot_be_used(tmp_path, change, reason, question_id):
    folder = evqa_folder(tmp_path, {}, {"dataset_image_ids": "abc", **change}, {"question": "Why?"})
    problems = Problems("skip")
    dataset = load(evqa, folder, problems=problems, need_images=False, triplets=True)
    assert [q.question_id for q in dataset.questions] == [
        f"evqa_test_000000{row}.{image}" for row in (0, 2) for image in (0, 1)
    ]
    assert problems.found == [Problem(f"{folder}/test.csv, line 3", reason, question_id)]


def test_encyclopedic_vqa_that_is_not_there(tmp_path):
    needed = (
        "It needs the files of github.com/google-research/google-research (encyclopedic_vqa): "
        "test.csv (val.csv, train.csv), and the images of iNaturalist 2021 and Google Landmarks v2"
    )
    assert said(UserError, load, evqa, None) == f"--dataset evqa needs --data DIR. {needed}"
    message = said(UserError, load, evqa, tmp_path / "x")
    assert message == f"the data folder {tmp_path}/x does not exist. {needed}"
    message = said(UserError, load, evqa, tmp_path)
    assert message == f"no Encyclopedic-VQA questions in {tmp_path}. {needed}"
    assert evqa.REMOTE.remark(tmp_path) == (
        "Encyclopedic-VQA's images come from iNaturalist 2021 and Google Landmarks v2: only the "
        f"csv file is downloaded; put the images, or their zip and tar archives, into {tmp_path} "
        "(github.com/google-research/google-research, encyclopedic_vqa)"
    )
    assert evqa.REMOTE.files == {s: [f"{s}.csv"] for s in ("test", "val", "train")}
