"""Texts and titles of PDF files: letters, words that line ends break, names of files as titles."""

import pytest
from document_files import pdf

from ravqa.core.errors import DataError
from ravqa.corpora import pdf as reading
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.titles import real_title


@pytest.fixture
def read(tmp_path):
    def read(*pages, **options):
        path = tmp_path / "two.pdf"
        path.write_bytes(pdf(*pages, **options))
        return list(Corpus.read(path).values())

    return read


def test_ligatures_are_letters(read):
    [passage] = read("Tariﬀs: grease the slewing ring ﬁrst, ﬂoor by ﬂoor")
    assert passage.text == "Tariffs: grease the slewing ring first, floor by floor"


def test_numbers_stay_the_same_numbers(read):
    [passage] = read("10² m, 5½ m, 3 µm")
    assert passage.text == "10² m, 5½ m, 3 μm"


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("The mainte-\nnance of it", "The maintenance of it"),
        ("A state-of-the-\nart crane", "A state-of-the-art crane"),
        ("A state-\nof-the-art crane", "A state-of-the-art crane"),
        ("A state-\nof-the-\nart crane", "A state-of-the-art crane"),
        ("The Franco-\nPrussian war", "The Franco-Prussian war"),
        ("From 1999-\n2004", "From 1999-2004"),
        ("The MAINTE-\nNANCE", "The MAINTENANCE"),
        ("In pre-\nand post-war times", "In pre- and post-war times"),
        ("A dash -\nand more", "A dash - and more"),
        ("an-\nother, an apple or other", "another, an apple or other"),
        # What the document itself has:
        ("A well-\nknown crane", "A wellknown crane"),
        ("A well-\nknown crane. It is known well.", "A well-known crane. It is known well."),
        ("A co-\noperative is co-operative", "A co-operative is co-operative"),
        ("A co-\noperative is cooperative", "A cooperative is cooperative"),
        ("under-\nstand: stand under it, understand?", "understand: stand under it, understand?"),
        # "mainte-nance-hall" is not a word of three parts where "maintenance" is one:
        ("mainte-\nnance-hall, maintenance", "maintenance-hall, maintenance"),
        ("The mainte{shy}nance, and equip{shy}-\nment", "The maintenance, and equipment"),
        # A soft hyphen is never part of a word.
        ("Franco\xad\nPrussian and mainte\xadnance", "FrancoPrussian and maintenance"),
    ],
)
def test_words_that_the_end_of_a_line_breaks(read, lines, text):
    [passage] = read(lines)
    assert passage.text == text


def test_another_page_decides_about_a_hyphen(read):
    first, second = read("A long-\nterm plan", "The term is long: twelve years")
    assert (first.text, second.text) == ("A long-term plan", "The term is long: twelve years")


def test_a_hyphen_that_the_library_sets_apart_is_joined():
    # The browser Chromium writes U+2010, before which pypdf inserts a space.
    words = reading._words(["equip \u2010\nment"])
    assert not words
    assert reading._unbroken("the equip \u2010\nment", words) == "the equipment"


def test_the_title_is_that_of_the_properties(read):
    [passage] = read("Text.", title="On cranes")
    assert passage.content == "On cranes: Text."
    [passage] = read("Text.", title="Microsoft Word - cranes_v2.doc")
    assert passage.title == "two"


@pytest.mark.parametrize(
    "name",
    ["", "  ", "---", "Untitled", "untitled-1", "two.dvi", "report_2.indd", "Document1", "Slide 1"]
    + ["PowerPoint Presentation", "about:blank", "file:///home/a/b", "Microsoft Word - Dokument2"]
    + ["x" * 301],
)
def test_a_default_or_the_name_of_a_file_is_no_title(name):
    assert real_title(name) is None


def test_titles_that_look_a_little_like_others_are_kept():
    for title in ("Untamed: the lion", "Titles of cranes", "Koalas in brief", "日本の動物", "U.S."):
        assert real_title(f" {title}\n") == title
    assert real_title("On\ncranes") == "On cranes"
    assert real_title(None) is None


def test_a_mark_without_properties_is_passed_over():
    """It is no valid mark, and no reason to refuse the page."""
    hyphens = reading._SoftHyphens()
    hidden = {"/ActualText": "\u00ad"}
    for operands, kept in (
        (["/Span"], " "),
        ([], " "),
        (["/Span", "/Named"], " "),
        (["/Span", {}], " "),
        (["/Span", hidden], ""),
    ):
        hyphens(b"BDC", operands)
        drawn = [" "]
        hyphens(b"Tj", drawn)
        assert drawn == [kept]
    hyphens(b"EMC", [])
    drawn = [" "]
    hyphens(b"Tj", drawn)
    assert drawn == [" "]


def test_words_are_counted_whole_and_by_their_parts():
    found = reading._words(["Co\u2010operate, a well-\nknown co-operative\xad"])
    once = dict.fromkeys(["co-operate", "operate", "a", "co-operative", "operative"], 1)
    assert found == once | {"co": 2}


def test_how_much_text_a_file_may_have(read, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_LINE", 6)
    assert [passage.text for passage in read("one", "two")] == ["one", "two"]
    with pytest.raises(DataError, match=r"^two\.pdf: more than 6 characters of text: split it"):
        read("one", "four")
