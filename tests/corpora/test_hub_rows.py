"""Splits of the hub with a stand-in for `datasets`, and the images of rows in every form."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from messages import said

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Passage
from ravqa.corpora import hub, row_images
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.remarks import Remarks
from ravqa.corpora.row_images import RowImage, image_of, unread_image
from ravqa.images.decode import kept_image
from ravqa.images.folder import ImageFolder

pytestmark = pytest.mark.usefixtures("fresh_cache")


def png(color=0):
    out = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (color, 0, 0)).save(out, "PNG")
    return out.getvalue()


# Splits of the hub


class Rows:
    """What is used of a split as `datasets` gives it."""

    _fingerprint = "as stored"

    def __init__(self, rows):
        self.rows = rows
        self.column_names = list(rows[0])

    def __len__(self):
        return len(self.rows)

    def select_columns(self, names):
        return Rows([{name: row[name] for name in names} for row in self.rows])

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def iter(self, size):
        for start in range(0, len(self.rows), size):
            yield Batch(self.rows[start : start + size])


class Batch(list):
    def to_pylist(self):
        return list(self)


class Library:
    """A stand-in for `datasets`."""

    def __init__(self, rows):
        self.rows = rows
        self.asked = []

    def load_dataset(self, name, config, *, split):
        self.asked.append((name, config, split))
        if name == "no/body":
            raise ValueError("no such dataset\nor so")
        return Rows(self.rows)

    def get_dataset_split_names(self, name, config):
        if name == "no/body":
            raise ValueError("no such dataset\nor so")
        return [f"{config}-{i}" for i in range(2)]


@pytest.fixture
def library(monkeypatch):
    made = Library([{"id": str(i), "text": f"text {i}", "page": i} for i in range(300)])
    monkeypatch.setattr(hub, "_datasets", lambda name: made)
    return made


def test_a_split_of_the_hub_is_a_corpus(library):
    corpus = Corpus.read("hf:a/b:test")
    assert list(corpus) == [str(i) for i in range(300)]
    assert corpus["7"] == Passage("7", "text 7", extra={"page": 7})
    assert corpus.source == "hf:a/b:test"
    assert list(Corpus.read("hf:a/b:plain:test")) == list(corpus)
    assert library.asked == [("a/b", None, "test"), ("a/b", "plain", "test")]


def test_a_row_of_the_hub_that_cannot_be_used(library):
    library.rows = [{"id": "1", "text": "a"}, {"id": "2", "text": None}]
    texts = "text or passage_content or content or contents"
    expected = f"a/b/test, row 2: no text (column {texts}); the columns are id, text"
    assert said(DataError, Corpus.read, "hf:a/b:test") == expected
    remarks = Remarks("skip")
    assert list(Corpus.read("hf:a/b:test", remarks=remarks)) == ["1"]
    assert remarks.broken == [expected]


def test_images_of_the_hub_are_checked(library):
    whole, broken = png(), b"\x89PNG\r\n\x1a\n broken"
    library.rows = [
        {"id": str(i), "text": "a", "image": {"bytes": data, "path": None}}
        for i, data in enumerate((whole, broken))
    ]
    remarks = Remarks("skip")
    assert list(Corpus.read("hf:a/b:c:test", remarks=remarks)) == ["0"]
    [line] = remarks.broken
    assert line.startswith("a/b/c/test, passage '1': ")
    assert Corpus.read("hf:a/b:test")["0"].image == kept_image(whole)


def test_a_table_of_the_hub(library):
    table = hub.Table(Path("hf:a/b"), "plain", "test")
    assert (table.where, table.rows, table.key) == ("a/b/plain/test", 300, "as stored")
    assert hub.Table(Path("hf:a/b"), None, "test").where == "a/b/test"
    assert table.columns == ["id", "text", "page"]
    rows = list(table.read(["page", "gone"]))
    assert rows[0] == ("a/b/plain/test, row 1", {"page": 0})
    assert rows[299] == ("a/b/plain/test, row 300", {"page": 299})
    assert next(table.read())[1] == {"id": "0", "text": "text 0", "page": 0}
    assert hub.split_names(Path("hf:a/b"), "plain") == ["plain-0", "plain-1"]


def test_a_dataset_that_the_hub_lacks(library):
    for config, name in ((None, "no/body"), ("plain", "no/body (plain)")):
        expected = (
            f"the dataset {name} cannot be read from the hub or its local cache: no such dataset"
        )
        assert said(UserError, hub.Table, Path("hf:no/body"), config, "test") == expected
        assert said(UserError, hub.split_names, Path("hf:no/body"), config) == expected


# Images of rows


@pytest.fixture
def images(tmp_path):
    (tmp_path / "a.png").write_bytes(png(9))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.png").write_bytes(png(8))
    return ImageFolder(tmp_path)


def uri(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


HELD = {
    "bytes": png(),
    "bytearray": bytearray(png()),
    "object": {"bytes": png(), "path": None},
    "array": np.array([png()], object),
    "list": [None, {"bytes": png(), "path": ""}],
    "URI": uri(png()),
    "base64": base64.encodebytes(png() + bytes(99)).decode(),
    "JSON": f'["{uri(png())}"]',
}


@pytest.mark.parametrize("form", HELD)
def test_an_image_in_the_row_is_kept_by_its_bytes(images, form):
    data = png() + bytes(99) if form == "base64" else png()
    kept = kept_image(data)
    expected = RowImage(kept, kept.name, held=True)
    assert image_of({"x": 1, "Image": HELD[form]}, images) == expected


def test_the_name_of_an_image_in_the_row_is_told(images):
    kept = kept_image(png())
    found = image_of({"image": {"bytes": png(), "path": "a.png"}}, images)
    assert found == RowImage(kept, kept.name, held=True, source="a.png")
    found = image_of({"image": {"bytes": None, "path": "a.png"}}, images)
    assert found == RowImage(images.root / "a.png", "a.png", source="a.png")
    found = image_of({"anything": {"bytes": png(), "path": 7}}, images)
    assert found == RowImage(kept, kept.name, held=True)


@pytest.mark.parametrize(
    ("row", "name", "path"),
    [
        ({"image": "a.png"}, "a.png", "a.png"),
        ({"IMG-Path": " a.jpg "}, "a.jpg", "a.png"),
        ({"image": "gone.png", "img_path": "a.png"}, "a.png", "a.png"),
        ({"img_path": "a.png", "image_path": "sub/b.png"}, "a.png", "a.png"),
        ({"image_path": ["", "sub/b.png"]}, "sub/b.png", "sub/b.png"),
        ({"image": "gone.png", "img_path": "gone too.png"}, "gone.png", "gone.png"),
    ],
)
def test_an_image_is_found_by_its_name(images, row, name, path):
    assert image_of(row, images) == RowImage(images.root / path, name)


def test_an_absolute_name_is_told_as_one_below_the_folder(images):
    found = image_of({"image": str(images.root / "sub" / "b.png")}, images)
    assert found == RowImage(images.root / "sub" / "b.png", "sub/b.png")
    expected = RowImage(images.root / "sub" / "b.png", "other/b.png")
    for value in ("other/b.png", ["other/b.png"], '["other/b.png"]'):
        assert image_of({"image": value}, images, by_stem=True) == expected
        assert image_of({"image": value}, images).path == images.root / "other" / "b.png"
    found = image_of({"image": {"path": "other/b.png"}}, images, by_stem=True)
    assert found == replace(expected, source="other/b.png")


@pytest.mark.parametrize(
    ("row", "empty"),
    [
        ({"text": "x"}, False),
        ({"image": " "}, True),
        ({"image": b""}, True),
        ({"images": [None, {"bytes": None, "path": " "}]}, True),
        ({"img_path": None}, False),
        ({"image": {}}, True),
    ],
)
def test_a_row_without_an_image(images, row, empty):
    assert image_of(row, images) == RowImage(empty=empty)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([png(), png(1)], "'image' holds 2 images: one is expected"),
        ('["a", "b"]', "'image' holds 2 images: one is expected"),
        ([["a", "b"]], "'image' holds 2 images: one is expected"),
        ({"path": ["a", "b"]}, "'image' holds 2 images: one is expected"),
        ([1, 2.0, [3]], "'image' holds numbers: an encoded image or a path is expected"),
        (np.zeros((2, 2)), "'image' holds numbers: an encoded image or a path is expected"),
        (
            {"x": 1, "y": 2},
            "'image' holds an object (x, y): bytes or path are expected",
        ),
        (True, "'image': text is expected, not the truth value true"),
        (
            "data:image/png;base64,@@@",
            "'image' is not an image in base64: 'data:image/png;base64,@",
        ),
        (
            "data:image/svg+xml,<svg>",
            "'image' is a data URI that is not in base64: 'data:image/svg",
        ),
        (
            "https://x/y.png",
            "the image 'https://x/y.png' is an address, which is not fetched: download it and give "
            "the name of the file",
        ),
        ("A" * 5000, f"'image' is not an image in base64: '{'A' * 40}'..."),
    ],
)
def test_an_image_that_cannot_be_had(images, value, reason):
    found = image_of({"image": value}, images)
    assert found.missing.startswith(reason)
    assert found.path == images.root / f"<{found.missing[:100]}>"
    assert (found.held, found.name, found.empty) == (False, None, False)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"image": png(), "image2": png()}, ["image", "image2"]),
        ({"Image": "a.png", "IMG_12": "b.png"}, ["Image", "IMG_12"]),
        ({"image_path": "a.png", "image path 2": uri(b"abc")}, ["image_path", "image path 2"]),
        ({"image_1": png(), "image_2": {"bytes": png(), "path": None}}, ["image_1", "image_2"]),
        ({"image_1": "a.png", "image_2": "b.png"}, ["image_1", "image_2"]),
        ({"image": None, "left": png(), "right": png()}, ["left", "right"]),
        ({"image": png(), "mask": png()}, None),
        ({"image": png(), "img": png(), "image_path": "a.png"}, None),
        ({"image": png(), "image2": "7", "image_3": None, "image_width2": "a.png"}, None),
        ({"image_1": png(), "image_2": None, "image 3": {"bytes": None, "path": None}}, None),
        ({"image": png(), "picture2d": "a.png", "x2": "a.png"}, None),
    ],
)
def test_of_two_images_none_is_taken_for_the_one_that_is_meant(images, row, columns):
    found = image_of(row, images)
    if columns is None:
        assert (found.missing, found.held) == ("", True)
    else:
        names = ", ".join(map(repr, columns))
        expected = f"{names} hold 2 images: one is expected, in a column 'image'"
        assert found == RowImage(images.root / f"<{expected[:100]}>", missing=expected)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"photo of it": "a.png"}, "photo of it"),
        ({"x": [1, {"y": "b.JPEG "}]}, "x"),
        ({"x": uri(b"abc")}, "x"),
        ({"x": "{'bytes': b'\\x89PNG"}, "x"),
        ({"x": "[{'path': None, 'bytes': b'\\xff\\xd8"}, "x"),
        ({"x": "a\nb.png"}, None),
        ({"x": "a.txt"}, None),
        ({"x": "a.png", "image": None}, None),
        ({"known": "a.png"}, None),
        ({"x": 7}, None),
        ({"x": "a" * 4093 + ".png"}, None),
        ({"x": "a" * 4092 + ".png"}, "x"),
    ],
)
def test_a_column_that_seems_to_hold_an_image_is_named(row, column):
    hint = "call that column 'image' (which is blank for a question without an image)"
    expected = "" if column is None else f"{column!r} seems to hold an image: {hint}"
    assert unread_image(row, {"known"}) == expected


def test_columns_are_known_by_name_or_by_what_they_hold():
    row = {"Image Path": 1, "photo": 2, "IMAGE": 3, "image": 4, "x": png(), "y": [png()], "z": b"x"}
    assert row_images.named_columns(row, ("image", "photo", "img", "image_path")) == [
        "IMAGE",
        "photo",
        "Image Path",
    ]
    assert row_images.held_columns(row) == ["x", "y"]
    assert row_images.held_columns(row, ["x"]) == ["y"]
    assert row_images.held_columns({"x": {"bytes": b"any", "path": None}}) == ["x"]
    assert row_images.held_columns({"x": {"bytes": b"any"}, "y": {"bytes": 1, "path": 2}}) == []


def test_a_path_leads_to_a_file_or_into_one(images, tmp_path):
    there = ("a.png", "sub", "sub/b.png", "a.png/inside")
    assert [name for name in there if row_images.is_there(tmp_path / name)] == list(there)
    assert not row_images.is_there(tmp_path / "gone.png")
    assert not row_images.is_there(tmp_path / "a\0b")
