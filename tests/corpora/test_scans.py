"""Scanned pages of PDF files, whose text OCR reads."""

import io

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
from document_files import pdf

from ravqa.core.errors import DataError, MissingExtraError, PromptError
from ravqa.core.records import TextLine
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.kb import Sections
from ravqa.corpora.pages import Pages
from ravqa.corpora.pdf import PageForm, render_pages
from ravqa.corpora.remarks import Remarks
from ravqa.images import ocr
from ravqa.images.decode import open_image

pytest.importorskip("pypdfium2", reason="pip install 'ravqa[pdf]'")

READ = Sections(ocr=True)


@pytest.fixture
def reads(monkeypatch, fresh_cache):
    """Build a stand-in for OCR, and return the sizes of the pictures that it was given."""

    def build(*texts, weights="one"):
        asked = []

        class Standin:
            def __init__(self, why):
                assert why == "reading scanned pages"
                self.weights = [weights]

            def lines(self, picture):
                asked.append(open_image(picture).size)
                text = texts[len(asked) - 1]
                if isinstance(text, Exception):
                    raise text
                return tuple(TextLine(line, (0, 0, 9, 9), 1.0) for line in text.split("\n"))

        monkeypatch.setattr("ravqa.corpora.scans.OCR", Standin)
        return asked

    return build


def read(path, sections=READ, **options):
    return list(Corpus.read(path, sections=sections, **options).stream())


@pytest.fixture
def mixed(tmp_path):
    """A file with a page of text, and an empty one, 300 x 300 points."""
    path = tmp_path / "mixed.pdf"
    path.write_bytes(pdf("A koala-\nbear sleeps.", ""))
    return path


def test_pages_without_text_are_read_and_marked(mixed, reads):
    asked = reads("The koala bear\neats the eucalyp-\ntus leaves.")
    first, second = read(mixed)
    assert (first.passage_id, first.text) == ("mixed.pdf#page=1", "A koala-bear sleeps.")
    assert (second.passage_id, second.text) == (
        "mixed.pdf#page=2",
        "The koala bear eats the eucalyptus leaves.",
    )
    assert (dict(first.extra), dict(second.extra)) == ({"page": 1}, {"page": 2, "ocr": True})
    assert asked == [(625, 625)]  # 150 dots an inch, and the page of text not at all


def test_a_page_is_read_once_for_its_pixels_and_the_weights(mixed, reads):
    reads("One.")
    assert read(mixed)[1].text == "One."
    assert reads("Two.") == []
    assert read(mixed)[1].text == "One."
    asked = reads("Three.", weights="two")
    assert (read(mixed)[1].text, len(asked)) == ("Three.", 1)
    asked = reads("Four.")
    assert read(mixed, READ.model_copy(update={"dpi": 72}))[1].text == "Four."
    assert asked == [(300, 300)]


def test_a_page_can_be_seen_too(mixed, reads):
    reads("It eats leaves.")
    _, second = read(mixed, Sections(ocr=True, pages="images"))
    assert (second.text, second.image is not None) == ("It eats leaves.", True)


def test_pages_that_were_not_to_be_read_name_the_option(mixed, reads):
    remarks = Remarks()
    assert len(read(mixed, Sections(), remarks=remarks)) == 1
    hint = "(--ocr of ravqa collection, or --corpus-option ocr=true of a run, reads scans)"
    line = f"a page without text, perhaps a scan {hint}: mixed.pdf#page=2"
    assert remarks.lines() == [line]
    mixed.write_bytes(pdf("", ""))
    with pytest.raises(DataError) as error:
        read(mixed, Sections(), remarks=Remarks())
    assert str(error.value) == f"no text in mixed.pdf#page=1; mixed.pdf#page=2 {hint}"


def test_pages_on_which_nothing_is_found_are_listed(mixed, reads):
    reads("")
    remarks = Remarks()
    assert len(read(mixed, remarks=remarks)) == 1
    assert remarks.lines() == ["without text: mixed.pdf#page=2"]


def test_a_page_that_cannot_be_read_costs_its_file(mixed, reads):
    reads(PromptError("reading scanned pages: odd"))
    with pytest.raises(DataError) as error:
        read(mixed)
    assert str(error.value) == (
        "mixed.pdf: page 2: reading scanned pages: odd (--on-error skip leaves it out)"
    )


def test_without_the_package_the_extra_is_named(mixed, monkeypatch, fresh_cache):
    def missing(module, extra, *, why):
        raise MissingExtraError(f"{why}: {module}, {extra}")

    monkeypatch.setattr(ocr, "import_extra", missing)
    with pytest.raises(MissingExtraError) as error:
        read(mixed)
    assert str(error.value) == "reading scanned pages: rapidocr, ocr"


def test_what_is_read_changes_the_key(mixed):
    forms = [PageForm(), PageForm(ocr=True), PageForm(ocr=True, dpi=90), PageForm("images", 90)]
    forms.append(PageForm("images", 90, ocr=True))
    assert len({Pages(mixed, page_form=form).key() for form in forms}) == 5


@pytest.mark.slow
def test_a_scan_is_found_by_what_ocr_reads_on_it(tmp_path, fresh_cache):
    """Of each of its pages, OCR reads nearly every word of the file from which it was made."""
    pytest.importorskip("rapidocr")
    texts = [
        "An adult koala weighs up to\nfourteen kilograms. It eats\nthe leaves of eucalyptus.",
        "The lighthouse of white stone\nguards the harbour since 1856.\nIts keeper was Ada Moore.",
    ]
    whole, scan = tmp_path / "whole.pdf", tmp_path / "scan.pdf"
    whole.write_bytes(pdf(*texts))
    pages = [PIL.Image.open(io.BytesIO(png)).convert("L") for _, png in render_pages(whole)]
    noise = np.random.default_rng(0)
    pages = [np.clip(np.asarray(p) + noise.normal(0, 12, p.size[::-1]), 0, 255) for p in pages]
    first, second = (PIL.Image.fromarray(p.astype(np.uint8)) for p in pages)
    first.save(scan, save_all=True, append_images=[second], resolution=150)
    remarks = Remarks()
    with pytest.raises(DataError):
        read(scan, Sections(), remarks=remarks)
    assert remarks.scans == ["scan.pdf#page=1", "scan.pdf#page=2"]
    expected = [passage.text.split() for passage in read(whole, Sections())]
    found = [passage.text.split() for passage in read(scan)]
    assert found == expected
