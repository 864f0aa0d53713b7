"""Folders of pages and pictures as passages."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from document_files import pdf

from ravqa.core.errors import DataError
from ravqa.core.locations import SAMPLE
from ravqa.corpora import pages
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.kb import Sections
from ravqa.corpora.pages import Pages
from ravqa.corpora.remarks import Remarks

KOALA = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"

GUIDE = """---
title: Field guide
year: 2021
---
Read this first.

# Animals

## Koala

Eats leaves.

```
# no heading
```

Birds
-----

## Koala

Sleeps.
"""


def texts(corpus):
    return {i: p.text for i, p in corpus.items()}


def test_a_text_is_cut_and_numbered(tmp_path):
    (tmp_path / "two_notes.txt").write_text("One two three.\nFour five six.\n", encoding="utf-8")
    corpus = Corpus.read(tmp_path, sections=Sections(words=3))
    assert texts(corpus) == {
        "two_notes.txt#0": "One two three.",
        "two_notes.txt#1": "Four five six.",
    }
    assert corpus["two_notes.txt#1"].content == "two notes: Four five six."
    assert corpus["two_notes.txt#1"].article == "two_notes.txt"


def test_markdown_is_cut_at_its_headings(tmp_path):
    (tmp_path / "guide.md").write_text(GUIDE, encoding="utf-8")
    corpus = Corpus.read(tmp_path / "guide.md")
    assert list(corpus) == ["guide.md#top", "guide.md#koala", "guide.md#koala-1"]
    first = corpus["guide.md#koala"]
    assert first.content.startswith("Field guide - Animals > Koala: Eats leaves.")
    assert "# no heading" in first.text
    assert first.extra == {"year": 2021}
    assert corpus["guide.md#koala-1"].section == "Animals > Koala"


# Characters at which str.splitlines ends a line, and neither Markdown nor files do.
NO_LINE_ENDS = "\u2028\u2029\x85\f\v\x1c\x1d\x1e"


@pytest.mark.parametrize("mark", [*NO_LINE_ENDS, "\r", "\r\n", "\n"], ids=ascii)
def test_every_heading_keeps_its_own_text(tmp_path, mark):
    text = f"# Zoo\n\nOpen{mark}nine{mark}daily\n\n## Koala\n\nLeaves.\n\n## Panda\n\nBamboo.\n"
    (tmp_path / "zoo.md").write_bytes(text.encode())
    found = {p.section: p.text for p in Pages(tmp_path).passages()}
    assert list(found) == [None, "Koala", "Panda"]
    assert (found["Koala"], found["Panda"]) == ("Leaves.", "Bamboo.")
    assert found[None].split() == ["Open", "nine", "daily"]


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"], ids=ascii)
def test_the_ends_of_lines_make_no_difference(tmp_path, end):
    (tmp_path / "a.md").write_bytes(GUIDE.replace("\n", end).encode())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.md").write_text(GUIDE, encoding="utf-8", newline="\n")
    one, two = (list(Pages(folder).passages()) for folder in (tmp_path / "a.md", tmp_path / "b"))
    assert one == two
    (tmp_path / "n.txt").write_bytes(end.join(["One two three.", "Four five six."]).encode())
    assert len(list(Pages(tmp_path / "n.txt", words=3).passages())) == 2


@pytest.mark.parametrize(
    "lead",
    [
        "The lion is fed at noon.",
        "\nThe lion is fed at noon.\n",
        "Lion: fed: at noon.",
        "\nLion: at noon.\n",  # a mapping, but a blank line begins it
        "Opening hours: the *lion*: at noon",
        "- The lion\n- at noon",
        "The lion is fed: at noon.",
        "Fed: the lion.\nAt noon: the bear.",
        "12:30: lion, noon",
        "'lion' noon",
        "lion \u2028 noon: [x] y: z",
        "# lion, noon",
        "lion\n\nnoon",
        "\tlion: noon",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("close", ["---", "..."])
@pytest.mark.parametrize("rest", ["The bear is fed at ten.", "## Bear\n\nat ten"])
def test_text_between_two_rules_stays(tmp_path, lead, close, rest):
    (tmp_path / "a.md").write_text(f"---\n{lead}\n{close}\n\n{rest}\n", encoding="utf-8")
    found = " ".join(p.content for p in Pages(tmp_path).passages()).lower()
    assert "lion" in found
    assert "noon" in found
    assert "bear" in found
    assert "ten" in found


def test_front_matter_is_a_mapping_and_its_values_are_as_written(tmp_path):
    page = tmp_path / "a.md"

    def read(front, close="---"):
        page.write_text(f"---\n{front}\n{close}\nText.\n", encoding="utf-8")
        [passage] = Pages(page).passages()
        assert passage.text == "Text."
        return passage.title, dict(passage.extra)

    assert read("title: Zoo\nyear: 2021", "...") == ("Zoo", {"year": 2021})
    assert read("title: 007") == ("007", {})
    assert read("title: 1.10") == ("1.10", {})
    assert read("title: yes") == ("yes", {})
    assert read("title: 2024-01-02\nday: 2024-01-02") == ("2024-01-02", {"day": "2024-01-02"})
    assert read("title: .nan\nyear: 5") == ("a", {"year": 5})
    assert read("title: null\ntags: [a, b]") == ("a", {"tags": ["a", "b"]})
    # YAML 1.1 reads these as 750, 668, true and a date.
    assert read("opens: 12:30\nzip: 01234\nfree: yes\nday: 2024-13-01\nn: null") == (
        "a",
        {"opens": "12:30", "zip": "01234", "free": "yes", "day": "2024-13-01"},
    )
    assert read("n: 3\nx: 2.5\nok: true") == ("a", {"n": 3, "x": 2.5, "ok": True})
    page.write_text("---\ntitle: [a]\n---\nText.\n")
    with pytest.raises(DataError, match=r"a\.md: 'title': text is expected, not a list"):
        list(Pages(page).passages())
    for front in ("title: A\nyear: 1\nyear: 2", "title: A\nm: {a: 1, a: 2}", "1: a\n'1': b"):
        page.write_text(f"---\n{front}\n---\nText.\n")
        with pytest.raises(DataError, match=r"a\.md: the key '(year|a|1)' occurs twice"):
            list(Pages(page).passages())
    page.write_text("---\ntitle: A\ns: !!set {a, b}\n---\nText.\n")
    line = "a value in the part between --- at its start is neither text nor a number"
    with pytest.raises(DataError, match=rf"^a\.md: {line} \(--on-error "):
        list(Pages(page).passages())
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)
    )
    page.write_text(f"---\n{bomb}---\nText.\n")
    with pytest.raises(
        DataError,
        match=r"^a\.md: aliases \(\*NAME\) in the part between --- at its start are refused ",
    ):
        list(Pages(page).passages())


def test_pictures_are_known_by_their_content(tmp_path):
    photo = KOALA.read_bytes()
    for name in ("a.jfif", "b.jpe", "0123abcd", "c.dat"):
        (tmp_path / name).write_bytes(photo + name.encode())
        (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}")
    (tmp_path / "notes.org").write_text("no picture")
    remarks = Remarks()
    found = {p.passage_id: p.text for p in Pages(tmp_path, remarks=remarks).passages()}
    assert found == {n: f"caption of {n}" for n in ("0123abcd", "a.jfif", "b.jpe", "c.dat")}
    assert dict(remarks.others) == {".org": 1}
    assert pages.is_pages(tmp_path / "0123abcd")
    assert not pages.is_pages(tmp_path / "notes.org")


def test_a_heading_without_text_is_not_lost(tmp_path):
    page = tmp_path / "a.md"
    page.write_text(
        "# Zoo\n\n## Lion\n\nNoon.\n\n## Closed on Mondays\n\n## A\n### B\n\nTen.\n## Z\n"
    )
    found = {p.section: p.text for p in Pages(page).passages()}
    assert found == {"Lion": "Noon.\n\n## Closed on Mondays", "A > B": "Ten.\n## Z"}
    page.write_text("---\nlion\n---\nbear\n---\ncat\n---\ndog\n")
    text = " ".join(p.content for p in Pages(page).passages())
    assert {"lion", "bear", "cat", "dog"} <= set(text.replace(":", " ").split())


def test_the_first_heading_is_the_title(tmp_path):
    (tmp_path / "a.md").write_text("# The `A`\n\nLead.\n\n## Top\n\nMore.\n\n## Top\n\nLast.\n")
    corpus = Corpus.read(tmp_path)
    assert {i: p.content for i, p in corpus.items()} == {
        "a.md#the-a": "The A: Lead.",
        "a.md#top-1": "The A - Top: More.",
        "a.md#top-2": "The A - Top: Last.",
    }


def test_an_edit_leaves_other_ids_alone(tmp_path):
    page = tmp_path / "guide.md"
    page.write_text("# A\n\none\n\n# B\n\ntwo\n")
    before = texts(Corpus.read(tmp_path))
    page.write_text("# A\n\none\n\n# New\n\nnew\n\n# B\n\ntwo\n")
    after = texts(Corpus.read(tmp_path))
    assert after == before | {"guide.md#new": "new"}


def test_pages_of_a_pdf_keep_their_numbers(tmp_path):
    (tmp_path / "paper.pdf").write_bytes(pdf("The koala eats euca-\nlyptus leaves.", "", "Third."))
    remarks = Remarks()
    corpus = Corpus.read(tmp_path, remarks=remarks)
    assert texts(corpus) == {
        "paper.pdf#page=1": "The koala eats eucalyptus leaves.",
        "paper.pdf#page=3": "Third.",
    }
    assert corpus["paper.pdf#page=3"].extra == {"page": 3}
    assert (remarks.blank, remarks.scans) == ([], ["paper.pdf#page=2"])


def test_broken_files_are_named_or_skipped(tmp_path):
    whole = pdf("Text.")
    (tmp_path / "a-locked.pdf").write_bytes(pdf("Secret.", password="xyz"))
    (tmp_path / "b-cut.pdf").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "c-none.pdf").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes(b"caf\xe9")
    (tmp_path / "e.jpg").write_bytes(b"no image")
    (tmp_path / "f.md").write_text("---\na: [\n---\ntext\n")
    (tmp_path / "g.txt").write_text("fine")
    with pytest.raises(
        DataError, match=r"^a-locked\.pdf: encrypted: it needs a password; b-cut"
    ) as e:
        Corpus.read(tmp_path, remarks=Remarks())
    assert str(e.value).endswith("YAML (--on-error skip leaves them out)")
    with pytest.raises(DataError, match=r"^a-locked\.pdf: .*; f\.md: .* is not YAML \(--on-error"):
        Corpus.read(tmp_path)
    remarks = Remarks("skip")
    assert list(Corpus.read(tmp_path, remarks=remarks)) == ["g.txt#0"]
    names = ["a-locked.pdf", "b-cut.pdf", "c-none.pdf", "d.txt", "e.jpg", "f.md"]
    assert [line.partition(":")[0] for line in remarks.broken] == names
    assert "no PDF file" in remarks.broken[1]
    assert remarks.broken[2] == "c-none.pdf: an empty file"
    assert "UTF-8" in remarks.broken[3]
    assert "not an image" in remarks.broken[4]
    assert "not YAML" in remarks.broken[5]


def test_empty_files_are_no_copies(tmp_path):
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "d.txt").write_text("text")
    (tmp_path / "e.txt").write_text("text")
    remarks = Remarks()
    assert list(Corpus.read(tmp_path, remarks=remarks)) == ["d.txt#0"]
    assert (remarks.blank, remarks.copies) == (["a.txt", "b.txt", "c.md"], ["e.txt (d.txt)"])


def test_scanned_pages_alone_are_said_to_be_scans(tmp_path):
    (tmp_path / "scan.pdf").write_bytes(pdf("", ""))
    with pytest.raises(
        DataError,
        match=r"^no text in scan\.pdf#page=1; scan\.pdf#page=2 \(--ocr of ravqa collection,",
    ):
        Corpus.read(tmp_path / "scan.pdf", remarks=Remarks())


def test_the_broken_files_of_all_folders_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_bytes(b"caf\xe9")
    with pytest.raises(
        DataError, match=r"a\.txt: not a text in UTF-8 .*; b\.txt: not a text in UTF"
    ):
        Corpus.read(tmp_path / "a", tmp_path / "b", remarks=Remarks())


def test_a_broken_table_does_not_hide_other_broken_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.csv").write_text("id,text\n1\n")
    (tmp_path / "c.jsonl").write_text("no JSON\n")
    paths = [tmp_path / name for name in ("a.txt", "b.csv", "c.jsonl")]
    with pytest.raises(DataError) as raised:
        Corpus.read(*paths, remarks=Remarks())
    one, *_, two, three = str(raised.value).split("; ")
    assert one.startswith("a.txt: not a text in UTF-8")
    assert two == f"{paths[1]}, line 2: 2 fields are expected as in the header, not 1"
    assert three.startswith(f"{paths[2]}, line 1: not JSON")
    for remarks in (None, Remarks("skip")):
        with pytest.raises(DataError, match=r"b\.csv, line 2: 2 fields|a\.txt: not a text"):
            Corpus.read(*paths, remarks=remarks)


def test_files_and_folders_without_access_are_named_or_skipped(tmp_path, monkeypatch):
    # Modes would not do: they do not keep the superuser out.
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_text("closed")
    (tmp_path / "c.txt").write_text("goes away")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "d.txt").write_text("closed")
    scan, access, digest = os.scandir, os.access, pages.file_digest

    def refusing(call, name):
        def answer(path, *arguments):
            if str(path) == str(tmp_path / name):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments)

        return answer

    monkeypatch.setattr(os, "scandir", refusing(scan, "closed"))
    with pytest.raises(DataError, match=r"closed: cannot be read: Permission denied \(--on"):
        Corpus.read(tmp_path)
    monkeypatch.setattr(os, "access", lambda p, mode: p.name != "b.txt" and access(p, mode))
    monkeypatch.setattr(pages, "file_digest", refusing(digest, "c.txt"))
    remarks = Remarks("skip")
    assert list(Corpus.read(tmp_path, remarks=remarks)) == ["a.txt#0"]
    assert sorted(line.partition(":")[0] for line in remarks.broken) == ["b.txt", "c.txt", "closed"]
    with pytest.raises(DataError, match="leave out --prune"):
        remarks.check_prune()


def test_an_index_in_the_folder_is_left_out(tmp_path):
    import collection_files

    from ravqa.collections import Collection

    folder = tmp_path / "docs"
    (folder / "board").mkdir(parents=True)
    (folder / "a.txt").write_text("text")
    (folder / "board" / "collection.json").write_text('{"name": "another program\'s"}')
    (folder / "board" / "b.txt").write_text("more text")
    shutil.copy(KOALA, folder / "koala.jpg")
    (folder / "koala.txt").write_text("A koala.")
    collection = Collection.create(folder / "index", collection_files.pipeline(tmp_path))
    assert collection.add_files(folder).added == 3
    (folder / "koala.jpg").unlink()  # else the copy counted as one, and would be passed over
    remarks = Remarks()
    found = list(Corpus.read(folder, remarks=remarks))
    assert found == ["a.txt#0", "koala.txt#0", "board/b.txt#0"]
    assert remarks.lines()[0] == "a collection, left out: index"
    with pytest.raises(DataError, match="is a collection"):
        Corpus.read(folder / "index")


def test_every_cut_of_a_pdf_is_one_clear_error_or_text(tmp_path):
    whole = pdf("Some text.", "And more.")
    path = tmp_path / "x.pdf"
    for length in range(0, len(whole), 41):
        path.write_bytes(whole[:length] + b"\xff" * 10)
        remarks = Remarks("skip")
        found = list(Pages(path, remarks=remarks).passages())
        assert found or len(remarks.broken) == 1
        assert all(p.text for p in found)
        assert not any("\n" in line for line in remarks.lines())


def test_what_is_passed_over(tmp_path):
    folder = tmp_path / "docs"
    (folder / ".git").mkdir(parents=True)
    (folder / "sub").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    for path in (folder / ".git" / "a.txt", folder / ".b.txt", outside / "c.txt"):
        path.write_text("hidden or outside")
    (folder / "link.txt").symlink_to(outside / "c.txt")
    (folder / "linked").symlink_to(outside)
    (folder / "a.txt").write_text("text")
    (folder / "sub" / "copy.txt").write_text("text")
    (folder / "inner.txt").symlink_to(folder / "a.txt")
    (folder / "blank.txt").write_text(" \n")
    (folder / "sheet.xlsx").write_text("x")
    remarks = Remarks()
    assert texts(Corpus.read(folder, remarks=remarks)) == {"a.txt#0": "text"}
    assert sorted(remarks.links) == ["link.txt", "linked"]
    assert remarks.copies == ["inner.txt (a.txt)", "sub/copy.txt (a.txt)"]
    assert remarks.blank == ["blank.txt"]
    assert remarks.others == {".xlsx": 1}
    assert len(remarks.lines()) == 4


def test_pictures_have_captions(tmp_path):
    other = SAMPLE / "val2014" / "COCO_val2014_000009000001.jpg"
    shutil.copy(KOALA, tmp_path / "koala.jpg")
    (tmp_path / "koala.txt").write_text("A koala in a tree.\n")
    (tmp_path / "more").mkdir()
    shutil.copy(other, tmp_path / "more" / "x.JPG")
    row = {"file_name": "x.JPG", "text": "Another photo.", "title": "X", "year": 2020}
    (tmp_path / "more" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    corpus = Corpus.read(tmp_path)
    assert texts(corpus) == {"koala.jpg": "A koala in a tree.", "more/x.JPG": "Another photo."}
    assert corpus["koala.jpg"].image == tmp_path / "koala.jpg"
    assert corpus["more/x.JPG"].extra == {"year": 2020}
    assert corpus["more/x.JPG"].title == "X"
    (tmp_path / "koala.txt").unlink()
    with pytest.raises(DataError, match=r"koala\.jpg: no caption: write one into koala\.txt"):
        Corpus.read(tmp_path)
    assert Corpus.read(tmp_path, uncaptioned=True)["koala.jpg"].text == ""


def test_a_corpus_knows_its_images(tmp_path):
    shutil.copy(KOALA, tmp_path / "koala.jpg")
    line = {"id": "k", "text": "A koala.", "image": "koala.jpg"}
    (tmp_path / "p.jsonl").write_text(json.dumps(line) + "\n")
    corpus = Corpus.read(tmp_path / "p.jsonl")
    assert corpus["k"].image == tmp_path / "koala.jpg"
    shutil.copy(SAMPLE / "val2014" / "COCO_val2014_000009000001.jpg", tmp_path / "koala.jpg")
    assert Corpus.read(tmp_path / "p.jsonl").fingerprint != corpus.fingerprint
    for name, reason in (("gone.jpg", "no image 'gone.jpg'"), ("../x.jpg", "leaves the image")):
        (tmp_path / "p.jsonl").write_text(json.dumps(line | {"image": name}) + "\n")
        with pytest.raises(DataError, match=reason):
            Corpus.read(tmp_path / "p.jsonl")


def test_a_caption_of_no_file_is_told(tmp_path):
    shutil.copy(KOALA, tmp_path / "koala.jpg")
    rows = "file_name,text\nkoala.jpg,A koala.\nkaola.jpg,A typing error.\n"
    (tmp_path / "metadata.csv").write_text(rows)
    remarks = Remarks()
    assert list(Corpus.read(tmp_path, remarks=remarks)) == ["koala.jpg"]
    assert remarks.lines() == ["listed in a metadata file, but missing: kaola.jpg"]


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_broken_images_of_a_table_are_named_or_skipped(tmp_path, name):
    shutil.copy(KOALA, tmp_path / "koala.jpg")
    (tmp_path / "broken.jpg").write_bytes(KOALA.read_bytes()[:500])
    rows = [("a", "No image.", ""), ("b", "A koala.", "koala.jpg"), ("c", "None.", "broken.jpg")]
    lines = {
        "p.jsonl": [json.dumps(dict(zip(("id", "text", "image"), r, strict=True))) for r in rows],
        "p.csv": ["id,text,image", *(",".join(row) for row in rows)],
    }
    (tmp_path / name).write_text("\n".join(lines[name]) + "\n")
    with pytest.raises(DataError, match=rf"{name}, passage 'c': .*broken\.jpg.*\(--on-error skip"):
        Corpus.read(tmp_path / name, remarks=Remarks())
    remarks = Remarks("skip")
    assert list(Corpus.read(tmp_path / name, remarks=remarks)) == ["a", "b"]
    assert "broken.jpg" in remarks.broken[0]


def test_a_table_without_ids_names_its_columns(tmp_path):
    (tmp_path / "p.csv").write_text("number,text\n1,Text.\n")
    with pytest.raises(DataError, match=r"no passage id \(column .*; the columns are number, text"):
        Corpus.read(tmp_path / "p.csv")


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=f"^{tmp_path}: nothing to read: .+ are read$"):
        Corpus.read(tmp_path)


def test_two_sources_with_the_same_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    expected = ["a/x.txt#0", "b/x.txt#0"]
    assert list(Corpus.read(tmp_path / "a", tmp_path / "b")) == expected
    assert list(Corpus.read(tmp_path)) == expected
    with pytest.raises(DataError, match=r"'x\.txt#0' occurs twice"):
        Corpus.read(tmp_path / "a" / "x.txt", tmp_path / "b" / "x.txt")


def test_pipes_and_broken_links_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "d.txt").symlink_to("d.txt")
    remarks = Remarks()
    assert [p.passage_id for p in Pages(tmp_path, remarks=remarks).passages()] == ["a.txt#0"]
    assert dict(remarks.others) == {"pipe, device or broken link": 3}


@pytest.mark.parametrize(
    "name", ["p.jsonl", "p.csv", "p.parquet", "p.json", "p.zip", "p.txt", "p.md", "p.pdf", "p.png"]
)
def test_a_pipe_is_no_corpus(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="a pipe, socket or device, where a file is expected"):
        Corpus.read(tmp_path / name, remarks=Remarks())


def test_captions_are_found_however_accents_are_written(tmp_path):
    short, long = "caf\u00e9", "cafe\u0301"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / f"{long}.jpg").write_bytes(KOALA.read_bytes() + folder.encode())
    (tmp_path / "a" / f"{short}.txt").write_text("beside")
    row = {"file_name": f"{short}.jpg", "text": "listed"}
    (tmp_path / "b" / "metadata.jsonl").write_text(json.dumps(row))
    remarks = Remarks()
    found = [p.text for p in Pages(tmp_path, remarks=remarks).passages()]
    assert (found, remarks.lines()) == (["beside", "listed"], [])


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"caf\xe9.md", b"d\xe9/a.txt", b"caf\xe9.jpg"])
def test_names_that_are_not_utf8_are_reported_or_left_out(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(KOALA.read_bytes() if name.endswith(b"jpg") else b"text")
    path.with_suffix(".txt").write_text("text")
    (tmp_path / "other.txt").write_text("another text")
    with pytest.raises(DataError, match=r"\.(txt|md|jpg): passage: the text .* is not UTF-8"):
        list(Pages(tmp_path).passages())
    remarks = Remarks("skip")
    assert [p.passage_id for p in Pages(tmp_path, remarks=remarks).passages()] == ["other.txt#0"]
    assert remarks.broken


def test_a_name_that_no_file_system_allows_is_one_line():
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        Corpus.read(Path("x" * 5000 + ".jsonl"))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n"


@pytest.mark.parametrize(
    "name", ["p.jsonl", "p.csv", "p.parquet", "p.json", "p.zip", "p.txt", "p.md", "p.pdf", "p.png"]
)
def test_a_pointer_of_git_lfs_is_no_corpus(tmp_path, name):
    (tmp_path / name).write_bytes(LFS)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "p.png", "text": "caption"}')
    with pytest.raises(DataError, match="Git LFS pointer: `git lfs pull` fetches the"):
        Corpus.read(tmp_path / name, remarks=Remarks())


@pytest.mark.parametrize("suffix", [".txt", ".md", ".pdf"])
def test_pictures_with_the_suffix_of_a_text_are_pictures(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(KOALA.read_bytes())
    (tmp_path / "b.txt").write_text("GIF89a is the first word of this text.")
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": f"a{suffix}", "text": "listed"})
    )
    found = {p.passage_id: (p.text, p.image) for p in Pages(tmp_path).passages()}
    assert found == {
        f"a{suffix}": ("listed", tmp_path / f"a{suffix}"),
        "b.txt#0": ("GIF89a is the first word of this text.", None),
    }


def metadata_of(folder, *rows):
    (folder / "a.jpg").write_bytes(KOALA.read_bytes())
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    remarks = Remarks("skip")
    return [p.text for p in Corpus.read(folder, remarks=remarks).values()], remarks


def test_of_two_captions_none_is_dropped_in_silence(tmp_path):
    one, two = ({"file_name": "a.jpg", "text": text} for text in ("one", "two"))
    (tmp_path / "a.txt").write_text("beside")
    found, remarks = metadata_of(tmp_path, one, two, one)
    assert found == ["one"]
    assert [line.partition("metadata.jsonl, ")[2] for line in remarks.broken] == [
        "line 2: 'a.jpg' already has another row"
    ]
    assert remarks.lines()[-1] == "a caption besides one in a metadata file, left out: a.txt"
    (tmp_path / "a.txt").write_text("one")
    assert metadata_of(tmp_path, one)[1].lines() == []


@pytest.mark.parametrize("name", [None, 5, ["a.jpg"], ""])
def test_a_row_without_a_file_name_can_be_left_out(tmp_path, name):
    found, remarks = metadata_of(
        tmp_path, {"file_name": name, "text": "x"}, {"file_name": "a.jpg", "text": "caption"}
    )
    assert found == ["caption"]
    [line] = remarks.broken
    assert line.endswith("metadata.jsonl, line 1: no 'file_name'")


@pytest.mark.parametrize("name", ["/etc/passwd", "../b.jpg", "gone.jpg"])
def test_names_of_metadata_that_are_not_there_are_listed(tmp_path, name):
    row = {"file_name": "a.jpg", "text": None, "caption": "seen", "year": float("nan"), "n": 5}
    found, remarks = metadata_of(tmp_path, row, {"file_name": name, "text": "x"})
    assert (found, remarks.absent) == (["seen"], [name])
    [passage] = Corpus.read(tmp_path, remarks=Remarks()).values()
    assert passage.extra == {"n": 5}


def test_many_headings_of_one_name_take_linear_time(tmp_path):
    (tmp_path / "a.md").write_text("# T\n\n" + "## Fixed\n\nx\n\n" * 12_000 + "## Fixed-2\n\ny\n")
    began = time.process_time()
    found = [p.passage_id for p in Pages(tmp_path).passages()]
    assert time.process_time() - began < 4  # ten seconds if each looked at all before it
    assert found[:3] == ["a.md#fixed", "a.md#fixed-1", "a.md#fixed-2"]
    assert found[-2:] == ["a.md#fixed-11999", "a.md#fixed-2-1"]
