"""Pages and pictures as whole passages, and what is said of those that cannot be used."""

import json

import PIL.Image
import pytest
from messages import said

from ravqa.core.errors import DataError
from ravqa.core.locations import file_digest
from ravqa.core.records import Passage
from ravqa.core.settings import fingerprint
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.pages import Pages, is_collection, is_pages
from ravqa.corpora.remarks import Remarks


def put(root, files):
    """Write texts, and pictures of different colours for None."""
    for number, (name, content) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            PIL.Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        else:
            path.write_text(content, encoding="utf-8")
    return root


def read(root, skip=False, **options):
    remarks = Remarks("skip" if skip else "fail")
    found = list(Pages(root, remarks=remarks, **options).passages())
    remarks.check()
    return found, remarks


GUIDE = """---
title: 1.10
year: 2021
blank:
---
Lead one two.

# First

Of the first.

## A *b* c!

x y z

# Second

### Deep

deep

## Empty

# Empty too
"""


def test_a_page_of_markdown_as_a_whole(tmp_path):
    put(tmp_path, {"sub/guide.md": GUIDE})
    found, remarks = read(tmp_path)

    def passage(place, text, section):
        name = "sub/guide.md"
        return Passage(
            f"{name}#{place}", text, "1.10", section=section, article=name, extra={"year": 2021}
        )

    assert found == [
        passage("top", "Lead one two.", None),
        passage("first", "Of the first.", "First"),
        passage("a-b-c", "x y z", "First > A b c!"),
        passage("deep", "deep\n\n## Empty\n\n# Empty too", "Second > Deep"),
    ]
    assert remarks.lines() == []


def test_a_long_section_is_cut_and_numbered(tmp_path):
    put(tmp_path, {"my/guide.md": "# T\n\n## A\n\none two. three four. five", "n.txt": "a b\nc"})
    found, _ = read(tmp_path, words=2)
    assert [(p.passage_id, p.text, p.title, p.section) for p in found] == [
        ("n.txt#0", "a b", "n", None),
        ("n.txt#1", "c", "n", None),
        ("my/guide.md#a", "one two.", "T", "A"),
        ("my/guide.md#a.1", "three four.", "T", "A"),
        ("my/guide.md#a.2", "five", "T", "A"),
    ]
    assert found[0].extra == {}
    assert [p.article for p in found] == ["n.txt"] * 2 + ["my/guide.md"] * 3


@pytest.mark.parametrize(
    ("name", "title"), [("field-guide_of  animals", "field guide of animals"), ("_-_", "_-_")]
)
def test_a_page_without_a_title_has_the_one_of_its_file(tmp_path, name, title):
    (tmp_path / f"{name}.txt").write_text("text")
    [passage] = Pages(tmp_path).passages()
    assert passage.title == title


def test_pictures_as_a_whole(tmp_path):
    put(tmp_path, {"a.png": None, "b.png": None, "c.png": None, "sub/d.png": None})
    put(tmp_path, {"b.txt": " A bear.\n", "c.txt": "another"})
    rows = [
        {"file_name": "a.png", "text": " A koala. ", "title": "K", "by": "me", "none": None},
        {"file_name": "c.png", "caption": "A cat.", "text": None},
        {"file_name": "sub/d.png", "caption": "A dog."},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "../out.png", "text": "x"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, remarks = read(tmp_path)
    assert found == [
        Passage("a.png", "A koala.", "K", tmp_path / "a.png", article="a.png", extra={"by": "me"}),
        Passage("b.png", "A bear.", None, tmp_path / "b.png", article="b.png"),
        Passage("c.png", "A cat.", None, tmp_path / "c.png", article="c.png"),
        Passage("sub/d.png", "A dog.", None, tmp_path / "sub" / "d.png", article="sub/d.png"),
    ]
    assert remarks.absent == ["gone.png", "../out.png"]
    assert remarks.second == ["c.txt"]
    assert found == list(Corpus.read(tmp_path).values())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "x"}, "no 'file_name'"),
        ({"file_name": "", "text": "x"}, "no 'file_name'"),
        ({"file_name": 7, "text": "x"}, "no 'file_name'"),
        ({"file_name": "a.png", "text": "y"}, "'a.png' already has another row"),
    ],
)
def test_a_row_of_metadata_that_cannot_be_used(tmp_path, row, reason):
    put(tmp_path, {"a.png": None})
    rows = [{"file_name": "a.png", "text": "x"}, row, {"file_name": "a.png", "text": "x"}]
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, remarks = read(tmp_path, skip=True)
    assert [p.text for p in found] == ["x"]
    assert remarks.broken == [f"{path}, line 2: {reason}"]
    expected = f"{path}, line 2: {reason} (--on-error skip leaves it out)"
    assert said(DataError, read, tmp_path) == expected


def test_a_picture_without_a_caption(tmp_path):
    put(tmp_path, {"a.png": None, "b.txt": "text"})
    reason = (
        "no caption: write one into a.txt or metadata.jsonl; a collection (ravqa collection build) "
        "describes images itself"
    )
    expected = f"a.png: {reason} (--on-error skip leaves it out)"
    assert said(DataError, read, tmp_path) == expected
    found, remarks = read(tmp_path, skip=True)
    assert [p.passage_id for p in found] == ["b.txt#0"]
    assert remarks.broken == [f"a.png: {reason}"]
    found, remarks = read(tmp_path, uncaptioned=True)
    image = tmp_path / "a.png"
    assert found[0] == Passage("a.png", "", None, image, article="a.png")
    assert remarks.lines() == []


def test_files_without_text_and_copies_are_told(tmp_path):
    put(tmp_path, {"a.txt": "text", "b.txt": "text", "c.txt": " \n", "d.md": "# Title\n"})
    put(tmp_path, {"e.xyz": "x", "f": "no suffix", "sub/a.txt": "text"})
    found, remarks = read(tmp_path)
    assert [p.passage_id for p in found] == ["a.txt#0"]
    assert remarks.copies == ["b.txt (a.txt)", "sub/a.txt (a.txt)"]
    assert remarks.blank == ["c.txt", "d.md"]
    assert dict(remarks.others) == {".xyz": 1, "without suffix": 1}


def test_links_out_of_the_folder_are_told(tmp_path):
    folder = put(tmp_path / "docs", {"a.txt": "x", ".hidden/b.txt": "y", ".c.txt": "z"})
    put(tmp_path / "outside", {"d.txt": "secret"})
    (folder / "link.txt").symlink_to(tmp_path / "outside" / "d.txt")
    (folder / "more").symlink_to(tmp_path / "outside")
    (folder / "broken.txt").symlink_to(folder / "gone.txt")
    found, remarks = read(folder)
    assert [p.passage_id for p in found] == ["a.txt#0"]
    assert remarks.links == ["link.txt", "more"]
    assert dict(remarks.others) == {"pipe, device or broken link": 1}


def test_a_folder_without_pages(tmp_path):
    (tmp_path / "x.xyz").touch()
    message = said(DataError, Pages, tmp_path)
    assert message.startswith(f"{tmp_path}: nothing to read: .txt, .md, .markdown, .html, ")
    assert message.endswith(".parquet, images are read, not 1 .xyz")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"caf\xe9", "not a text in UTF-8 (byte 3); --encoding can name another"),
        (b"---\na: [\n---\n", "the part between --- at its start is not YAML"),
        (
            b"---\na: &x 1\nb: *x\n---\n",
            "aliases (*NAME) in the part between --- at its start are refused",
        ),
        (
            b"---\na: !!set {x}\n---\n",
            "a value in the part between --- at its start is neither text nor a number",
        ),
        (b"---\ntitle: [a]\n---\n", "'title': text is expected, not a list"),
    ],
)
def test_a_page_that_cannot_be_used(tmp_path, content, reason):
    path = tmp_path / "a.md"
    path.write_bytes(content)
    for root in (tmp_path, path):
        expected = f"a.md: {reason} (--on-error skip leaves it out)"
        assert said(DataError, read, root) == expected


def test_a_key_of_front_matter_that_occurs_twice(tmp_path):
    (tmp_path / "a.md").write_text("---\na: 1\na: 2\n---\ntext")
    message = said(DataError, read, tmp_path)
    assert message.startswith("a.md: ")
    assert "in the part between --- at its beginning (--on-error" in message


@pytest.mark.parametrize(
    ("front", "metadata"),
    [
        (
            "a: 0123\nb: 12:30\nc: yes\nd: 2024-01-31\ne: 7\nf: true\ng: 1.5\nh: ~\ni: [x, 1]",
            {
                "a": "0123",
                "b": "12:30",
                "c": "yes",
                "d": "2024-01-31",
                "e": 7,
                "f": True,
                "g": 1.5,
                "i": ["x", 1],
            },
        ),
        ("title: T\nThe lion is fed: at noon", {"The lion is fed": "at noon"}),
    ],
)
def test_values_of_front_matter(tmp_path, front, metadata):
    (tmp_path / "a.md").write_text(f"---\n{front}\n---\ntext")
    [passage] = Pages(tmp_path).passages()
    assert (passage.extra, passage.text) == (metadata, "text")
    assert passage.title == ("T" if "title" in front else "a")


@pytest.mark.parametrize(
    "front", ["The lion is fed: at noon", "12:30: lions", "- a\n- b", "7: x", "", "\na: 1", "text"]
)
def test_text_between_two_rules_is_text(tmp_path, front):
    (tmp_path / "a.md").write_text(f"---\n{front}\n---\ntext")
    [passage] = Pages(tmp_path).passages()
    assert passage.text.split() == ["---", *front.split(), "---", "text"]
    assert passage.extra == {}


def test_the_size_and_key_of_pages(tmp_path):
    put(tmp_path, {"a.txt": "x" * 70, "b.png": None})
    pages = Pages(tmp_path, words=9, uncaptioned=True)
    assert pages.size == 570
    files = [[name, file_digest(tmp_path / name)] for name in ("a.txt", "b.png")]
    assert pages.key() == fingerprint("pages/4", files, 9, True, None, None, None)
    assert Pages(tmp_path).key() == fingerprint("pages/4", files, 150, False, None, None, None)
    [source] = [Pages(tmp_path / "a.txt")]
    assert source.key() == fingerprint("pages/4", files[:1], 150, False, None, None, None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"settings": 1, "encoder": 2, "checksum": 3}', True),
        ('{"settings": 1, "encoder": 2}', False),
        ("[1]", False),
        ("{", True),
        (None, False),
    ],
)
@pytest.mark.parametrize("name", ["collection.json", "library.json"])
def test_a_folder_is_a_collection_by_its_file(tmp_path, name, content, expected):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert is_collection(tmp_path) is expected


def test_what_is_a_page(tmp_path):
    put(tmp_path, {"a.txt": "x", "b.MD": "x", "c.xyz": "x", "e.png": None})
    (tmp_path / "picture").write_bytes((tmp_path / "e.png").read_bytes())
    names = ("a.txt", "b.MD", "c.xyz", "e.png", "picture", ".", "gone.txt", "x" * 5000)
    found = [name for name in names if is_pages(tmp_path / name)]
    assert found == ["a.txt", "b.MD", "e.png", "picture", "."]
