"""The describer file: every published form is read, and files for other images are refused."""

import io
import json

import pytest
from PIL import Image

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Description, Question, Region, Tag
from ravqa.describers.file import FileDescriber


def describer(*files, **options):
    return FileDescriber(FileDescriber.Config(files=files, **options))


def picture(width=64, height=48):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def asked(image_id, image=None):
    return Question(1, "Who is this?", picture() if image is None else image, image_id=image_id)


@pytest.fixture
def written(tmp_path):
    def write(name, *lines):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def found(path, image_id=42):
    [description] = describer(path).describe_questions([asked(image_id)])
    return description


def test_captions_of_pica(written):
    path = written(
        "VinVL_base_val2014.tsv",
        '42\t[{"caption": "a dog.", "conf": 0.3}, {"caption": "a \\"cat\\".", "conf": 0.9}]',
        '7\t[{"caption": "a boat.", "conf": 0.7}]',
    )
    assert found(path) == Description(caption='a "cat".')
    assert found(path, "COCO_val2014_000000000007") == Description(caption="a boat.")


def test_tags_of_pica_are_sorted_by_confidence(written):
    path = written(
        "test.score.json.tsv", '42\t[{"class": "cat", "conf": 0.5}, {"class": "animal", "conf": 1}]'
    )
    assert found(path).tags == (Tag(("animal",), 1.0), Tag(("cat",), 0.5))


def test_objects_of_vinvl(written):
    row = {
        "image_h": 48,
        "objects": [
            {
                "class": "cat",
                "rect": [1.5, 2, 30, 40],
                "conf": 0.9,
                "attributes": ["black", "small"],
                "attr_scores": [0.8, 0.1],
                "feature": "AAAA",
            }
        ],
    }
    path = written("predictions.tsv", f"42\t{json.dumps(row)}")
    box = Region("cat", (1.5, 2, 30, 40), (("black", 0.8), ("small", 0.1)))
    assert found(path) == Description(objects=(box,))


def test_captions_of_ravqa(written):
    path = written(
        "captions.json", '{"COCO_val2014_000000000042": [{"caption": "a cat", "conf": 1}]}'
    )
    assert found(path) == Description(caption="a cat")


def test_texts_of_ravqa_are_one_file_per_image(written):
    texts = [
        {"description": "KINGS\nCROSS", "vertices": [[0, 0]]},
        {"description": "KINGS", "vertices": []},
    ]
    document = json.dumps({"img_path": "x.jpg", "filtered_text_annotations": texts})
    path = written("ocr/000000000042_ocr.json", document).parent
    assert found(path) == Description(ocr=("KINGS CROSS", "KINGS"))


def test_rows_of_ravqa_and_plain_ones(written):
    ravqa = {
        "img_key": 42,
        "img_caption": {"caption": "a cat", "conf": 0.5},
        "objects": [
            {"class": "cat", "rect": [0, 0, 9, 9], "attributes": [], "attribute_scores": []}
        ],
        "img_ocr": [{"description": "EXIT", "vertices": []}],
        "ROIs": ["x.jpg|||cat_0_0_9_9"],
    }
    plain = {"image": "photos/cat.jpg", "caption": "a cat", "tags": ["cat"], "ocr": ["EXIT"]}
    plain["objects"] = [{"label": "cat", "box": [0, 0, 9, 9]}]
    path = written("rows.jsonl", json.dumps(ravqa), json.dumps(plain))
    box = Region("cat", (0, 0, 9, 9))
    assert found(path) == Description(
        caption="a cat", ocr=("EXIT",), objects=(box,), regions=(box,)
    )
    [description] = describer(path).describe_questions([asked("cat.jpg")])
    assert description == Description((Tag(("cat",), 1.0),), "a cat", ("EXIT",), (box,))
    listed = written("rows.json", json.dumps([plain]))
    assert found(listed, "cat") == description


def test_files_are_merged_and_found_by_the_name_of_the_image(written, tmp_path):
    captions = written("a.tsv", '42\t[{"caption": "a cat", "conf": 1}]')
    tags = written("b.tsv", '000042\t[{"class": "cat", "conf": 0.5}]')
    image = tmp_path / "COCO_train2014_000000000042.jpg"
    image.write_bytes(picture())
    both = Description((Tag(("cat",), 0.5),), "a cat")
    made = describer(captions, tags)
    assert made.describe([image]) == [both]
    assert made.describe_questions([asked("unknown", image)]) == [both]
    assert made.fingerprint != describer(captions).fingerprint
    with pytest.raises(DataError, match="without id and name cannot be looked up"):
        made.describe([picture()])


def test_an_image_in_no_file_is_an_error_or_blank(written):
    path = written("a.tsv", '42\t[{"caption": "a cat", "conf": 1}]')
    with pytest.raises(DataError) as error:
        found(path, 7)
    assert str(error.value) == f"{path}: no description of the image 7, only of 1 other, such as 42"
    lenient = describer(path, missing="empty")
    assert lenient.describe_questions([asked(7)]) == [Description()]


@pytest.mark.parametrize("box", [[0, 0, 70, 9], [0, 0, 9, 60], [-5, 0, 9, 9], [9, 0, 3, 9]])
def test_a_box_outside_of_the_picture_is_refused(written, box):
    path = written("a.jsonl", json.dumps({"image": 42, "objects": [{"class": "cat", "rect": box}]}))
    with pytest.raises(
        DataError, match=r"the image 42: the box .* of 'cat' is not inside .* 64x48"
    ):
        found(path)


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("a.tsv", "42 no tab", "a.tsv, line 1: an image, a tab and JSON"),
        ("a.tsv", "42\t[{", "a.tsv, line 1: no JSON after the tab"),
        ("a.tsv", '42\t"\\ud800"', "a.tsv, line 1: no JSON after the tab"),
        ("a.tsv", "42\t7", "a.tsv, line 1: a text, a list or an object"),
        ("a.tsv", '42\t[{"name": 1}]', "line 1: captions, classes or texts are expected, not name"),
        ("a.tsv", "42\t[1]", "line 1: a list of objects is expected"),
        ("a.tsv", '42\t[{"class": "cat", "conf": 7}]', "a probability from 0 to 1"),
        ("a.tsv", '42\t[{"class": "cat", "conf": "x"}]', "a number is expected, not 'x'"),
        ("a.tsv", '42\t"a cat"\n042\t"a dog"', "line 2: the image '042' has another description"),
        ("a.tsv", "", "a.tsv: no descriptions$"),
        ("a.tsv", '42\t[{"caption": "a cat"}, {"class": "x"}]', "of captions, of tags, of objects"),
        ("a.tsv", '42\t[{"class": "a", "rect": []}, {"class": "b"}]', "of captions, of tags, of"),
        ("a.tsv", '42\t[{"caption": "a cat", "conf": NaN}]', "a number is expected, not nan"),
        ("a.jsonl", '{"image": 1, "captoin": "a cat"}', "a.jsonl: no descriptions: .*, caption, "),
        ("a.jsonl", '{"image": 1, "ocr": [{"txt": "EXIT"}]}', "line 1: 'ocr': a text "),
        ("a.jsonl", '{"caption": "a cat"}', r"line 1: no image \(one of image_id, "),
        ("a.jsonl", '{"image": 1, "objects": [{"class": "cat"}]}', "line 1: objects, img_ocr"),
        ("a.jsonl", '{"image": 1, "objects": [1]}', "'objects': a list of objects is expected"),
        ("a.jsonl", '{"image": 1, "ocr": "EXIT"}', "'ocr': a list is expected"),
        ("a.json", "7", "a.json: an object or a list is expected"),
        ("a.json", "[7]", "a.json, item 1: an object is expected"),
        ("a.csv", "x", r"a.csv: a \.json, \.jsonl or \.tsv file, or a folder"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(written, name, line, reason):
    with pytest.raises(DataError, match=reason) as caught:
        describer(written(name, line))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_before_a_run(tmp_path):
    config = FileDescriber.Config(files=(tmp_path / "none.tsv",))
    assert config.problems() == [f"no such file or folder: {tmp_path / 'none.tsv'}"]
    with pytest.raises(UserError, match=r"the describer file: no such file or folder: .*none\.tsv"):
        FileDescriber(config)
