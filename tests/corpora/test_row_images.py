"""Images of rows in the forms of the hub and pandas: used, or reported; never passed over."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from dataset_files import write_image, write_parquet

from ravqa.core.errors import DataError, UserError
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.row_images import image_of
from ravqa.datasets import files, m2kr, okvqa
from ravqa.datasets.base import DatasetRequest, Problems
from ravqa.images.decode import BLACK, image_bytes, open_image
from ravqa.images.folder import ImageFolder

pytestmark = pytest.mark.usefixtures("fresh_cache")


def encoded(form="PNG", color=(200, 0, 0), size=(12, 9)):
    out = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(out, form)
    return out.getvalue()


PNG = encoded()
NOISE = encoded("JPEG", size=(200, 150))
ANSWERS = [
    {"answer": "pony tail", "raw_answer": "ponytail", "answer_confidence": "yes", "answer_id": i}
    for i in range(1, 11)
]
HELD = {
    "binary": {"image": PNG},
    "bytes": {"image": {"bytes": PNG, "path": None}},
    "bytes and a path": {"image": {"bytes": PNG, "path": "elsewhere/x.png"}},
    "list": {"images": [{"bytes": PNG, "path": None}]},
    "list of binary": {"image": [PNG]},
    "list with a gap": {"images": [None, PNG]},
    "img": {"img": PNG},
    "case": {"Image": {"bytes": PNG, "path": None}},
    "unknown name": {"question_picture": {"bytes": PNG, "path": None}},
    "unknown name, binary": {"jpg_data": encoded("JPEG")},
    "data URI": {"image": "data:image/png;base64," + base64.b64encode(PNG).decode()},
    "text of a list": {
        "images": '["data:image/png;base64,' + base64.b64encode(PNG).decode() + '"]'
    },
    "short base64": {"image": base64.b64encode(PNG).decode()},
    "base64": {"image": base64.b64encode(NOISE).decode()},
    "broken path beside": {"img_path": "gone.jpg", "image": PNG},
    "numbered": {"image_1": PNG},
    "another image beside": {"image": PNG, "mask": NOISE},
}
PATHS = {
    "text": {"image": "val2014/a.png"},
    "path without bytes": {"image": {"bytes": None, "path": "val2014/a.png"}},
    "empty bytes": {"image": {"bytes": b"", "path": "val2014/a.png"}},
    "list of texts": {"images": ["val2014/a.png"]},
    "path alone": {"image": {"path": "val2014/a.png"}},
    "image_path": {"image_path": "val2014/a.png"},
    "img_path": {"image": None, "img_path": "val2014/a.png"},
    "another name": {"image": "val2014/gone.png", "image_path": "val2014/a.png"},
}
MISSING = {
    "address": ({"image": "https://x.org/a.png"}, "is an address, which is not fetched"),
    "url column": ({"image_url": "http://x.org/a.png"}, "is an address"),
    "bucket": ({"image": "s3://x/a.png"}, "is an address"),
    "path": ({"image": "val2014/gone.png"}, "no such image: .*gone.png"),
    "two": ({"images": [PNG, PNG]}, "holds 2 images: one is expected"),
    "pixels": ({"image": [[[0, 0, 0], [1, 1, 1]]]}, "'image' holds numbers"),
    "object": ({"image": {"src": "x", "height": 5}}, r"'image' holds an object \(src, height\)"),
    "no image": ({"image": b"hello"}, "not an image"),
    "broken base64": ({"image": "data:image/png;base64,iVB!"}, "is not an image in base64"),
    "printed list": ({"image": "['val2014/a.png']"}, "'image': .* is the text of a list"),
    "truth": ({"image": True}, "'image': text is expected, not the truth value"),
    "second image": ({"image": PNG, "image2": NOISE}, "'image', 'image2' hold 2 images"),
    "numbered images": (
        {"image_1": {"bytes": PNG, "path": None}, "image_2": {"bytes": NOISE, "path": None}},
        "'image_1', 'image_2' hold 2 images: one is expected, in a column 'image'",
    ),
    "numbered paths": (
        {"image_path": "val2014/a.png", "image_path_2": "val2014/b.png"},
        "'image_path', 'image_path_2' hold 2 images",
    ),
    "which of two": ({"left": PNG, "right": NOISE}, "'left', 'right' hold 2 images"),
    "null": ({"image": None}, "no image"),
    "nothing in it": ({"image": {"bytes": None, "path": None}}, "no image"),
    "empty list": ({"images": []}, "no image"),
}


def okvqa_table(root, *rows):
    columns = dict.fromkeys(column for row in rows for column in row)
    rows = [
        {"question_id": str(i), "question": "q?", "answers": ["a"], **columns, **row}
        for i, row in enumerate(rows, 1)
    ]
    write_parquet(root / "val2014-00000-of-00001.parquet", rows)
    write_image(root / "val2014" / "a.png")
    return root


def m2kr_table(root, row, subset="EVQA", passage=None):
    query = {"question_id": "1", "question": "q?", "instruction": "i", "answers": ["a"]}
    query |= {"pos_item_ids": ["x"], **row}
    write_parquet(root / f"{subset}_data" / "test-00000-of-00001.parquet", [query])
    passage = {"passage_id": "x", "passage_content": "y", **(passage or {})}
    write_parquet(root / f"{subset}_passages" / "test_passages-00000-of-00001.parquet", [passage])
    write_image(root / "val2014" / "a.png")
    return DatasetRequest(data=root, options={"subset": subset}, problems=Problems("skip"))


@pytest.mark.parametrize("form", HELD)
def test_an_image_in_the_row_is_used(tmp_path, form):
    [question] = okvqa.load(DatasetRequest(data=okvqa_table(tmp_path / "o", HELD[form]))).questions
    assert open_image(question.image).size in {(12, 9), (200, 150)}
    assert question.image_id == question.image.name
    [asked] = m2kr.load(m2kr_table(tmp_path / "m", HELD[form])).questions
    assert image_bytes(asked.image) == image_bytes(question.image)


@pytest.mark.parametrize("form", PATHS)
def test_an_image_that_is_named_is_found(tmp_path, form):
    [question] = okvqa.load(DatasetRequest(data=okvqa_table(tmp_path / "o", PATHS[form]))).questions
    assert question.image == tmp_path / "o" / "val2014" / "a.png"
    [question] = m2kr.load(m2kr_table(tmp_path / "m", PATHS[form])).questions
    assert question.image == tmp_path / "m" / "val2014" / "a.png"


@pytest.mark.parametrize("form", MISSING)
def test_an_image_that_cannot_be_had_is_reported(tmp_path, form):
    row, reason = MISSING[form]
    folder = okvqa_table(tmp_path / "o", row, {"image_path": "val2014/a.png"})
    with pytest.raises(DataError, match=reason):
        okvqa.load(DatasetRequest(data=folder))
    request = DatasetRequest(data=folder, problems=Problems("skip"))
    assert [q.question_id for q in okvqa.load(request).questions] == [2]
    assert len(request.problems.found) == 1
    # Whoever looks for the image later finds that it is missing.
    unseen = okvqa.load(DatasetRequest(data=folder, need_images=False)).questions[0]
    with pytest.raises(DataError):
        open_image(unseen.image)
    request = m2kr_table(tmp_path / "m", row)
    with pytest.raises(DataError, match="no usable question"):
        m2kr.load(request)
    assert len(request.problems.found) == 1


def test_rows_of_the_hub_are_as_stored(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    value = datasets.Value
    features = {
        "question_id": value("int64"),
        "question": value("string"),
        "answers": datasets.Sequence({"answer": value("string"), "answer_id": value("int64")}),
        "images": datasets.Sequence(datasets.Image()),
    }
    row = {"question_id": 1, "question": "q?", "images": [{"bytes": PNG, "path": None}]}
    row["answers"] = {"answer": ["a", None], "answer_id": [1, 2]}
    table = datasets.Dataset.from_list([row], features=datasets.Features(features))
    (tmp_path / "repo").mkdir()
    table.to_parquet(tmp_path / "repo" / "val2014-00000-of-00001.parquet")
    (tmp_path / "repo" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: val2014\n"
        "    path: val2014-*.parquet\n---\n"
    )
    for data in (tmp_path / "repo", Path(f"hf:{tmp_path / 'repo'}")):
        [question] = okvqa.load(DatasetRequest(data=data)).questions
        assert question.answers == ("a",)
        assert image_bytes(question.image) == PNG


def test_the_black_image_is_for_rows_without_a_path_only(tmp_path):
    [question] = m2kr.load(m2kr_table(tmp_path / "a", {"img_path": None})).questions
    assert question.image == BLACK
    request = m2kr_table(tmp_path / "b", {"img_path": None, "image": {"bytes": PNG, "path": None}})
    assert m2kr.load(request).questions[0].image != BLACK
    request = m2kr_table(tmp_path / "c", {"img_path": None, "image": None}, "MSMARCO")
    assert m2kr.load(request).questions[0].image == BLACK
    for row in ({}, {"img_path": None, "image": None}):
        with pytest.raises(DataError, match="no usable question"):
            m2kr.load(m2kr_table(tmp_path / "d", row))


def test_the_id_of_the_row_is_kept_and_captions_match(tmp_path):
    rows = [{"image_id": "000042", "image": PNG}, {"image_id": "43", "image": PNG}]
    folder = okvqa_table(tmp_path, *rows)
    captions = tmp_path / "c.jsonl"
    captions.write_text(
        '{"image_id": 42, "caption": "a cat"}\n{"image_id": "43", "caption": "a dog"}\n'
    )
    one, two = okvqa.load(DatasetRequest(data=folder, options={"captions": captions})).questions
    assert (one.image_id, one.description.caption) == (42, "a cat")
    assert (two.image_id, two.description.caption) == (43, "a dog")
    captions.write_text('{"image_id": 7, "caption": "a cat"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl: no caption belongs .* 43, .* has 7"):
        okvqa.load(DatasetRequest(data=folder, options={"captions": captions}))


def test_the_number_in_the_name_of_a_coco_image_is_its_id(tmp_path):
    write_image(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    named = {"image": "COCO_val2014_000000000042.jpg"}
    rows = [named, {"image_id": 42}, {"image": "val2014/a.png"}]
    rows.append({"image_id": 42, "image": "http://images.cocodataset.org/val2014/x.jpg"})
    folder = okvqa_table(tmp_path, *rows)
    questions = okvqa.load(DatasetRequest(data=folder)).questions
    assert [q.image_id for q in questions] == [42, 42, "val2014/a.png", 42]
    # A copy without its images has those of the official files.
    images = {questions[i].image for i in (0, 1, 3)}
    assert images == {tmp_path / "val2014" / named["image"]}


def test_the_name_beside_an_images_bytes_may_have_its_number(tmp_path):
    held = {"bytes": PNG, "path": "val2014/COCO_val2014_000000000042.jpg"}
    others = {"bytes": encoded(color=(9, 9, 9)), "path": "image.jpg"}
    rows = [{"image": held}, {"images": [held]}, {"image": others}, {"image_id": 7, "image": held}]
    questions = okvqa.load(DatasetRequest(data=okvqa_table(tmp_path, *rows))).questions
    ids = [q.image_id for q in questions]
    assert ids[:2] == [42, 42]
    assert ids[2] not in {42, "image.jpg"}  # many images of a table have such a name
    assert ids[3] == 7


def test_answers_as_objects_give_the_field_that_is_asked_for(tmp_path):
    folder = okvqa_table(tmp_path, {"image": PNG, "answers": ANSWERS})
    dataset = okvqa.load(DatasetRequest(data=folder))
    assert dataset.questions[0].answers == ("pony tail",) * 10
    assert dataset.info["answer_field"] == "answer"
    raw = okvqa.load(DatasetRequest(data=folder, options={"answer_field": "raw_answer"}))
    assert raw.questions[0].answers == ("ponytail",) * 10
    assert raw.info["answer_field"] == "raw_answer"
    assert any("not comparable" in note for note in raw.notes)
    columns = {key: [a[key] for a in ANSWERS] for key in ANSWERS[0]}  # as `datasets` may give them
    dataset = okvqa.load(
        DatasetRequest(data=okvqa_table(tmp_path, {"image": PNG, "answers": columns}))
    )
    assert dataset.questions[0].answers == ("pony tail",) * 10
    [question] = m2kr.load(m2kr_table(tmp_path / "m", {"image": PNG, "answers": ANSWERS})).questions
    assert question.answers == ("pony tail",) * 10
    folder = okvqa_table(tmp_path, {"image": PNG, "answers": [{"text": "a"}]})
    with pytest.raises(DataError, match=r"row 1: 'answers': objects with 'answer' .*\(text\)"):
        okvqa.load(DatasetRequest(data=folder))
    folder = okvqa_table(tmp_path, {"image": PNG, "answers": [None, "a"]})
    with pytest.raises(UserError, match="answer_field=raw_answer"):
        okvqa.load(DatasetRequest(data=folder, options={"answer_field": "raw_answer"}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answers": [" ", None]}, "no question_id, question or answers"),
        ({"question": None}, "no question_id, question or answers"),
        ({"answers": "['a', 'b']"}, "'answers': .* is the text of a list"),
        ({"question": b"q"}, "'question': text is expected, not bytes"),
        ({"image_id": 42.0}, "'image_id' is the number 42.0, but ids are whole"),
    ],
)
def test_a_row_that_says_something_else_is_reported(tmp_path, changes, reason):
    folder = okvqa_table(tmp_path, {"image": PNG, **changes})
    with pytest.raises(DataError, match=rf"-00001\.parquet, row 1: {reason}"):
        okvqa.load(DatasetRequest(data=folder))


@pytest.mark.parametrize(
    "row",
    [
        {"file_name": "a.png"},
        {"query_photo": "below/a.JPG "},
        {"picture1": {"path": "a.webp"}},
        {"shots": ["a.tiff"]},
        {"jpg": repr(PNG)},
        {"png": repr({"bytes": PNG, "path": None})},
        {"scan": "data:image/png;base64,iVBOR"},
    ],
)
def test_a_question_is_never_asked_without_its_image(tmp_path, row):
    """A column that is not known as one of images is named, not passed over."""
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"id": 1, "question": "q", "answers": ["a"], **row}))
    with pytest.raises(DataError, match=r"line 1: .* column 'image'"):
        files.load_jsonl(DatasetRequest(data=path))
    blank = {"id": 1, "question": "q", "answers": ["a"], "image": None, **row}
    path.write_text(json.dumps(blank))
    [question] = files.load_jsonl(DatasetRequest(data=path)).questions
    assert question.image is None
    # An id alone groups questions, as those about pictures that are not given.
    path.write_text(json.dumps({"id": 1, "question": "q", "answers": ["a"], "image_id": 42}))
    [question] = files.load_jsonl(DatasetRequest(data=path)).questions
    assert (question.image, question.image_id) == (None, 42)


@pytest.mark.parametrize("name", ["imageUrl", "Image URL", "image-path", "IMG_FILE_PATH"])
def test_names_of_columns_are_known_whatever_their_case_and_separators(tmp_path, name):
    write_image(tmp_path / "a.png")
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"id": 1, "question": "q", "answers": ["a"], name: "a.png"}))
    [question] = files.load_jsonl(DatasetRequest(data=path)).questions
    assert question.image == tmp_path / "a.png"


def test_a_cell_with_an_empty_list_of_images_is_blank(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("id,question,answers,images\n1,q,a,[]\n")
    [question] = files.load_csv(DatasetRequest(data=path)).questions
    assert question.image is None


def test_ids_of_okvqa_are_numbers_where_digits_are_one_way_to_write_them(tmp_path):
    rows = [{"question_id": i, "image": PNG} for i in ("7", "007", "\u0667")]
    dataset = okvqa.load(DatasetRequest(data=okvqa_table(tmp_path, *rows)))
    assert [q.question_id for q in dataset.questions] == [7, "007", "\u0667"]


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("42", 42),
        ("42", "000000000042"),
        ("42", "COCO_val2014_000000000042"),
        ("COCO_val2014_000000000042", 42),
        ("COCO_val2014_000000000042.jpg", "42"),
        ("a1b2", "a1b2"),
    ],
)
def test_captions_find_their_image_whatever_form_its_id_has(tmp_path, asked, written):
    folder = okvqa_table(tmp_path, {"image_id": asked, "image": PNG})
    captions = tmp_path / "c.jsonl"
    captions.write_text(json.dumps({"image_id": written, "caption": "a cat"}))
    [question] = okvqa.load(DatasetRequest(data=folder, options={"captions": captions})).questions
    assert question.description.caption == "a cat"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image_id": 42, "caption": "another"}, "the image 42 has another caption already"),
        ({"image_id": 43, "caption": None}, "no 'caption'"),
        ({"image_id": None, "caption": "x"}, "no 'image_id'"),
        ({"image_id": 43.0, "caption": "x"}, "'image_id' is the number 43.0"),
        ({"image_id": 43, "caption": ["x"]}, "'caption': text is expected, not a list"),
    ],
)
def test_a_caption_that_cannot_be_used_is_named_with_its_line(tmp_path, row, reason):
    folder = okvqa_table(tmp_path, {"image_id": "42", "image": PNG})
    captions = tmp_path / "c.jsonl"
    first = {"image_id": 42, "caption": "a cat"}
    captions.write_text(json.dumps(first) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match=f"line 2: {re.escape(reason)}"):
        okvqa.load(DatasetRequest(data=folder, options={"captions": captions}))


@pytest.mark.parametrize("image", ["gone.png", b"no image", {"bytes": PNG[:50], "path": None}])
def test_an_image_of_a_passage_of_m2kr_that_cannot_be_used_is_reported(tmp_path, image):
    request = m2kr_table(tmp_path, {"image": PNG}, passage={"image": image})
    reason = r"EVQA_passages.*, passage 'x': .*(no such image|not an image|broken image)"
    with pytest.raises(DataError, match=reason):
        m2kr.load(replace(request, problems=Problems()))
    with pytest.raises(DataError, match=r"no passage can be used: .*'x'"):
        m2kr.load(request)


@pytest.mark.parametrize("form", HELD)
def test_passages_have_their_images(tmp_path, form):
    path = tmp_path / "p.parquet"
    write_parquet(
        path, [{"passage_id": "p", "text": "t", "note": "n", "vector": b"v", **HELD[form]}]
    )
    passage = Corpus.read(path)["p"]
    assert open_image(passage.image).size in {(12, 9), (200, 150)}
    extra = {k: v for k, v in HELD[form].items() if k == "img_path"}
    assert dict(passage.extra) == {"note": "n", **extra}
    request = m2kr_table(tmp_path / "m", {"img_path": "val2014/a.png"}, passage=HELD[form])
    found = m2kr.load(request).corpus["x"]
    assert image_bytes(found.image) == image_bytes(passage.image)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "gone.jpg"}, "no image 'gone.jpg' below"),
        ({"image": {"bytes": None, "path": "gone.jpg"}}, "no image 'gone.jpg' below"),
        ({"image": "https://x.org/a.jpg"}, "is an address"),
        ({"images": [PNG, PNG]}, "holds 2 images"),
    ],
)
def test_a_passage_whose_image_is_missing_is_named(tmp_path, row, reason):
    path = tmp_path / "p.parquet"
    write_parquet(path, [{"passage_id": "p", "text": "t", **row}])
    with pytest.raises(DataError, match=rf"p\.parquet, row 1: .*{reason}"):
        Corpus.read(path)


def test_passages_without_an_image_have_none(tmp_path):
    path = tmp_path / "p.parquet"
    rows = [{"image": {"bytes": PNG, "path": None}}, {"image": None}]
    write_parquet(path, [{"passage_id": str(i), "text": "t", **r} for i, r in enumerate(rows)])
    one, two = Corpus.read(path).values()
    assert (one.image is not None, two.image, dict(two.extra)) == (True, None, {})


@pytest.mark.parametrize(
    "row",
    [
        {"images": ["a.png"]},
        {"img": "a.png"},
        {"image": {"path": "a.png"}},
        {"image": "data:image/png;base64," + base64.b64encode(PNG).decode()},
    ],
)
def test_own_questions_have_their_images_in_these_forms_too(tmp_path, row):
    write_image(tmp_path / "a.png")
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"id": 1, "question": "q", **row}) + "\n")
    [question] = files.load_jsonl(DatasetRequest(data=path)).questions
    assert open_image(question.image)
    assert question.image_id in {"a.png", question.image.name}
    assert question.extra == {}
    path.write_text(json.dumps({"id": 1, "question": "q", "image_url": "https://x.org/a"}) + "\n")
    with pytest.raises(DataError, match=r"q\.jsonl, line 1: .* is an address"):
        files.load_jsonl(DatasetRequest(data=path))


def test_an_absolute_path_that_leads_into_the_folder_is_taken(tmp_path):
    write_image(tmp_path / "in" / "a.png")
    write_image(tmp_path / "out" / "a.png")
    folder = ImageFolder(tmp_path / "in")
    found = image_of({"image": str(tmp_path / "in" / "a.png")}, folder)
    assert (found.path, found.name) == (tmp_path / "in" / "a.png", "a.png")
    for name in (tmp_path / "out" / "a.png", f"{tmp_path}/in/../out/a.png"):
        with pytest.raises(DataError, match="leaves the image folder"):
            image_of({"image": str(name)}, folder)
