"""Lists and folders of articles' images: who each belongs to, and what is refused."""

import gzip
import json
import zipfile

import pytest

from ravqa.core.errors import DataError
from ravqa.core.records import Passage
from ravqa.corpora.galleries import (
    IMAGES,
    NAMES,
    ArticlePictures,
    GalleryImage,
    missing_images,
    plain_name,
    read_gallery,
)


def touched(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(source, folder=None):
    """Names and file of each image, below the folder of the images."""
    root = source if source.is_dir() else folder or source.parent
    found = read_gallery(source, folder)
    return [(_all_names(image), image.path.relative_to(root).as_posix()) for image in found]


def _all_names(image):
    return (*image.names, *filter(None, [image.series]))


def refused(source, folder=None):
    with pytest.raises(DataError) as error:
        list(read_gallery(source, folder))
    return str(error.value)


# -- folders


def test_a_folders_images_belong_to_the_folder_or_to_their_own_name(tmp_path):
    touched(tmp_path, "B/1.jpg", "B/deep/er.PNG", "A.jpeg", "Eiffel Tower-2.jpg", "notes.txt")
    (tmp_path / "folder.jpg").mkdir()
    assert read(tmp_path) == [
        (("A",), "A.jpeg"),
        (("B",), "B/1.jpg"),
        (("B",), "B/deep/er.PNG"),
        (("Eiffel Tower-2", "Eiffel Tower"), "Eiffel Tower-2.jpg"),
    ]
    [first, *_] = read_gallery(tmp_path)
    assert first == GalleryImage(("A",), tmp_path / "A.jpeg", str(tmp_path / "A.jpeg"))
    assert first.exists


@pytest.mark.parametrize(
    ("stem", "names"),
    [
        ("Cat", ("Cat",)),
        ("Cat 2", ("Cat 2", "Cat")),
        ("Cat_12", ("Cat_12", "Cat")),
        ("Cat (3)", ("Cat (3)", "Cat")),
        ("Cat2", ("Cat2", "Cat")),
        ("Cat.2", ("Cat.2", "Cat")),
        ("Cat - 2", ("Cat - 2", "Cat")),
        ("Apollo 11 crew", ("Apollo 11 crew",)),
        ("1984", ("1984",)),
    ],
)
def test_a_number_at_the_end_of_a_files_name_may_or_may_not_belong_to_it(tmp_path, stem, names):
    assert read(touched(tmp_path, f"{stem}.jpg")) == [(names, f"{stem}.jpg")]


@pytest.mark.parametrize(
    ("title", "picture"),
    [
        ("Boeing", "boeing.jpg"),  # sorted after the one with the number
        ("Boeing 747", "boeing-747.jpg"),
        ("Airbus", "Airbus_380.jpg"),  # no file has the name itself
        ("Airbus 320", None),
    ],
)
def test_an_article_has_the_picture_of_its_own_name_before_those_with_a_number(
    tmp_path, title, picture
):
    pictures = ArticlePictures(touched(tmp_path, "boeing-747.jpg", "boeing.jpg", "Airbus_380.jpg"))
    found = pictures.of(Passage("1", "text", title))
    assert found == (picture and tmp_path / picture)


def test_a_folder_without_images_is_refused(tmp_path):
    touched(tmp_path, "notes.txt")
    assert refused(tmp_path) == f"{tmp_path}: the folder has no images"


# -- lists


@pytest.mark.parametrize("column", IMAGES)
def test_every_column_of_images(tmp_path, column):
    path = written(tmp_path / "list.jsonl", {"name": "cat", column: "a.jpg"})
    assert read(path) == [(("cat",), "a.jpg")]


def test_every_column_of_names_the_surest_first(tmp_path):
    row = {column: f"by {column}" for column in reversed(NAMES)}
    path = written(tmp_path / "list.jsonl", {**row, "image": "a.jpg"})
    assert read(path) == [(tuple(f"by {column}" for column in NAMES), "a.jpg")]


def test_blank_columns_are_passed_over_and_rows_without_images_have_none(tmp_path):
    path = written(
        tmp_path / "list.jsonl",
        {"entity": " ", "title": "cat", "image": "", "image_url": "http://h/a.jpg"},
        {"title": "dog", "image": None, "images": []},
        {"title": 7, "image": "b.jpg"},
    )
    assert read(path) == [(("cat",), "a.jpg"), (("7",), "b.jpg")]


def test_one_image_or_several_in_a_cell(tmp_path):
    path = written(
        tmp_path / "list.jsonl",
        {"name": "cat", "images": ["a.jpg", "b/c.jpg"]},
        {"name": "dog", "images": '["d.jpg", "e.jpg"]'},
    )
    images = [(("cat",), "a.jpg"), (("cat",), "b/c.jpg")]
    assert read(path) == [*images, (("dog",), "d.jpg"), (("dog",), "e.jpg")]


def test_tables_and_lists_name_the_place_of_each_image(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("title,file\ncat,a.jpg\ndog,b.jpg\n", encoding="utf-8")
    assert [image.where for image in read_gallery(table)] == [
        f"{table}, line 2",
        f"{table}, line 3",
    ]
    lines = written(tmp_path / "list.jsonl", {"name": "cat", "image": "a.jpg"})
    assert [image.where for image in read_gallery(lines)] == [f"{lines}, line 1"]


@pytest.mark.parametrize("form", [".json", ".json.gz", ".JSON", ".zip"])
def test_objects_of_names_and_knowledge_bases(tmp_path, form):
    value = {
        "cat": "a.jpg",
        "dog": ["b.jpg", "c.jpg"],
        "http://en.wikipedia.org/wiki/Owl": {"title": "Owl", "image_urls": ["http://h/d.jpg"]},
        "fox": {"title": "Fox", "images": [], "image_urls": ["http://h/e.jpg"]},
        "none": {"title": "None", "image_urls": []},
    }
    path, text = tmp_path / f"kb{form}", json.dumps(value).encode()
    if form == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("kb.json", text)
    else:
        path.write_bytes(gzip.compress(text) if form.endswith(".gz") else text)
    owl = "http://en.wikipedia.org/wiki/Owl"
    assert read(path) == [
        (("cat",), "a.jpg"),
        *((("dog",), name) for name in ("b.jpg", "c.jpg")),
        ((owl,), "d.jpg"),
        (("fox",), "e.jpg"),
    ]


def test_rows_of_compressed_json_lines(tmp_path):
    path = tmp_path / "list.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"name": "cat", "image": "a.jpg"}\n'))
    assert read(path) == [(("cat",), "a.jpg")]


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("http://h/wiki/0/1/Da%20rk.png", "Da rk.png"),
        ("https://h/a.png?width=3#top", "a.png"),
        ("ftp://h/x/b.png", "b.png"),
        ("git+ssh://h/c.png", "c.png"),
        ("pictures/Da%20rk.png", "pictures/Da%20rk.png"),
    ],
)
def test_the_file_of_an_address_is_its_last_part(tmp_path, address, file):
    path = written(tmp_path / "list.jsonl", {"name": "cat", "image": address})
    assert read(path) == [(("cat",), file)]


def test_images_lie_beside_the_list_or_in_a_folder_of_their_own(tmp_path):
    path = written(tmp_path / "list.jsonl", {"name": "cat", "image": "http://h/a.jpg"})
    touched(tmp_path, "a.jpg", "pictures/deep/a.jpg")
    assert read(path) == [(("cat",), "a.jpg")]
    assert read(path, tmp_path / "pictures") == [(("cat",), "deep/a.jpg")]


# -- what is refused


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"image": "a.jpg"}, f"no article is named: a column {', '.join(NAMES)} is expected"),
        ({"name": "cat"}, f"no image: a column {', '.join(IMAGES)} is expected"),
        ({"name": "cat", "images": [7]}, "the image 7 is no name of a file"),
        (
            {"name": "cat", "image": "../a.jpg"},
            "image path '../a.jpg' leaves the image folder {folder}",
        ),
    ],
)
def test_rows_that_are_refused(tmp_path, row, problem):
    path = written(tmp_path / "list.jsonl", {"name": "ok", "image": "a.jpg"}, row)
    assert refused(path) == f"{path}, line 2: {problem.format(folder=tmp_path)}"


def test_lists_that_are_refused(tmp_path):
    for gone in (tmp_path / "gone.jsonl", tmp_path / "gone"):
        assert refused(gone) == f"no such file or folder: {gone}"
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"name": "cat", "image"', encoding="utf-8")
    assert f"{broken}, line 1" in refused(broken)


# -- names and missing images


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Eiffel_Tower", "eiffel-tower", True),
        (" Eiffel  Tower ", "Eiffel \t_Tower", True),
        ("STRASSE", "stra\u00dfe", True),
        ("Eiffel Tower", "EiffelTower", False),
        ("Mont-Blanc", "Mont Blanc (1)", False),
    ],
)
def test_case_and_separators_of_names_do_not_count(one, other, same):
    assert (plain_name(one) == plain_name(other)) == same


def test_missing_images_are_counted_with_the_first(tmp_path):
    touched(tmp_path, "a.jpg")
    rows = [{"name": name, "image": f"{name}.jpg"} for name in "abc"]
    path = written(tmp_path / "list.jsonl", *rows)
    found = list(read_gallery(path))
    assert [image.exists for image in found] == [True, False, False]
    assert missing_images(found) == (
        f"2 of 3 images of the gallery are missing, such as {tmp_path / 'b.jpg'} ({path}, line 2)"
    )
    assert missing_images(found[:1]) == ""
    assert missing_images([]) == ""
