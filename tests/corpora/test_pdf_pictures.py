"""Pictures of PDF pages: their pixels, numbers and sizes, and files that cannot be rendered."""

import io
import sys

import numpy as np
import PIL.Image
import pytest
from document_files import pdf

from ravqa.core.errors import DataError, MissingExtraError, UserError
from ravqa.corpora import pdf as reading
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.kb import Sections
from ravqa.corpora.pages import Pages
from ravqa.corpora.remarks import Remarks

pytest.importorskip("pypdfium2", reason="pip install 'ravqa[pdf]'")

SHAPE = 24, 40


@pytest.fixture
def scan(tmp_path):
    """A PDF of two scans, 72 pixels an inch, and their pixels."""
    scans = [np.random.default_rng(seed).integers(0, 2, SHAPE).astype(bool) for seed in (0, 1)]
    path = tmp_path / "scan.pdf"
    first, second = map(PIL.Image.fromarray, scans)
    first.save(path, resolution=72, save_all=True, append_images=[second])
    return path, scans


def opened(png):
    with PIL.Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


@pytest.mark.parametrize("times", [1, 2, 4])
def test_a_rendered_scan_has_its_pixels(scan, times):
    path, scans = scan
    found = dict(reading.render_pages(path, dpi=72 * times))
    assert list(found) == [1, 2]
    for png, expected in zip(found.values(), scans, strict=True):
        pixels = opened(png)
        assert pixels.shape == (SHAPE[0] * times, SHAPE[1] * times, 3)
        white = np.kron(expected, np.ones((times, times)))
        for channel in range(3):  # edges are smooth between the pixels of the scan
            np.testing.assert_array_equal(pixels[..., channel] > 127, white)


def test_only_the_wanted_pages_are_rendered(scan):
    path, _ = scan
    every = dict(reading.render_pages(path, dpi=72))
    assert list(reading.render_pages(path, [2], dpi=72)) == [(2, every[2])]


def test_text_is_drawn_where_it_stands(tmp_path):
    path = tmp_path / "text.pdf"
    path.write_bytes(pdf("koala", ""))  # at 20, 200 from the lower left of 300 x 300, 12 high
    (_, text), (_, blank) = reading.render_pages(path, dpi=72)
    assert opened(blank).min() == 255
    rows, columns = np.nonzero(opened(text).min(2) < 128)
    assert 88 <= rows.min() < rows.max() <= 100
    assert 20 <= columns.min() < columns.max() <= 55


def test_a_large_page_has_fewer_pixels(tmp_path, monkeypatch):
    path = tmp_path / "large.pdf"
    path.write_bytes(pdf("koala"))
    monkeypatch.setattr(reading, "MOST_PIXELS", 10_000)
    [(_, png)] = reading.render_pages(path, dpi=600)
    assert opened(png).shape == (100, 100, 3)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (pdf("Secret.", password="xyz"), "encrypted: it needs a password"),
        (
            pdf("Text.")[:200],
            "no PDF file that can be rendered (Failed to load document (PDFium: Data format "
            "error).)",
        ),
    ],
)
def test_a_file_that_cannot_be_rendered_says_why(tmp_path, content, problem):
    path = tmp_path / "a.pdf"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(reading.render_pages(path))
    assert str(error.value) == problem


def test_every_cut_of_a_file_is_rendered_or_one_clear_error(tmp_path):
    whole = pdf("Some text.", "And more.")
    path = tmp_path / "x.pdf"
    for length in range(1, len(whole), 40):
        path.write_bytes(whole[:length])
        try:
            found = [number for number, _ in reading.render_pages(path, dpi=20)]
        except DataError as e:
            found = str(e)
        assert found == [1, 2] or "rendered (" in found


def test_a_page_that_is_not_there(scan):
    with pytest.raises(DataError) as error:
        list(reading.render_pages(scan[0], [3]))
    assert str(error.value) == "page 3 cannot be rendered (Failed to load page.)"


def test_the_package_that_renders(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingExtraError) as error:
        list(reading.render_pages(tmp_path / "own.pdf"))
    assert str(error.value) == (
        "rendering own.pdf needs the package 'pypdfium2', which is not installed: "
        "pip install 'ravqa[pdf]'"
    )


# What passages are made of them


@pytest.fixture
def report(tmp_path):
    """A report of two pages with text, the second without."""
    path = tmp_path / "docs" / "report.pdf"
    path.parent.mkdir()
    path.write_bytes(pdf("Koalas eat leaves.\n\nThey sleep a lot.", "", title="Koalas at home"))
    (path.parent / "notes.txt").write_text("A note.")
    return path


def passages(path, remarks=None, **options):
    found = Corpus.read(path, sections=Sections(**options), remarks=remarks, uncaptioned=True)
    return {
        p.passage_id: (p.content, None if p.image is None else p.image.read_bytes(), dict(p.extra))
        for p in found.values()
        if "#page" in p.passage_id
    }


def test_pages_as_images_have_their_text_beside_them(report):
    first, second = (png for _, png in reading.render_pages(report, dpi=50))
    remarks = Remarks()
    assert passages(report.parent, remarks, words=3, pages="images", dpi=50) == {
        "report.pdf#page=1": (
            "Koalas at home: Koalas eat leaves. They sleep a lot.",
            first,
            {"page": 1},
        ),
        "report.pdf#page=2": ("Koalas at home", second, {"page": 2}),
    }
    assert remarks.blank == []


def test_pages_as_both_are_pieces_of_text_with_the_image_of_their_page(report):
    first, second = (png for _, png in reading.render_pages(report))
    assert passages(report, words=4, pages="both") == {
        "report.pdf#page=1": ("Koalas at home: Koalas eat leaves.", first, {"page": 1}),
        "report.pdf#page=1.1": ("Koalas at home: They sleep a lot.", first, {"page": 1}),
        "report.pdf#page=2": ("Koalas at home", second, {"page": 2}),
    }


def test_pages_as_text_have_no_image(report):
    expected = {
        "report.pdf#page=1": (
            "Koalas at home: Koalas eat leaves. They sleep a lot.",
            None,
            {"page": 1},
        )
    }
    assert passages(report) == passages(report, pages="text") == expected


def test_a_page_needs_text_where_images_need_captions(report):
    remarks = Remarks()
    found = Corpus.read(report, sections=Sections(pages="images"), remarks=remarks)
    assert list(found) == ["report.pdf#page=1"]
    assert remarks.scans == ["report.pdf#page=2"]


def test_a_file_without_pages_has_no_images(report):
    (report.parent / "empty.pdf").write_bytes(pdf())
    remarks = Remarks()
    found = passages(report.parent, remarks, pages="images")
    assert list(found) == ["report.pdf#page=1", "report.pdf#page=2"]
    assert remarks.blank == ["empty.pdf"]


def test_what_cannot_be_rendered_is_listed(report, monkeypatch):
    (report.parent / "locked.pdf").write_bytes(pdf("Secret.", password="xyz"))
    remarks = Remarks("skip")
    found = passages(report.parent, remarks, pages="images")
    assert list(found) == ["report.pdf#page=1", "report.pdf#page=2"]
    assert remarks.broken == ["locked.pdf: encrypted: it needs a password"]

    def broken(page, scale):
        raise ValueError("no content")

    monkeypatch.setattr(reading, "_render", broken)
    with pytest.raises(DataError) as error:
        passages(report.parent, Remarks(), pages="both")
    assert str(error.value) == (
        "locked.pdf: encrypted: it needs a password; report.pdf: page 1 cannot be rendered (no "
        "content) (--on-error skip leaves them out)"
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"dpi": 90},
            "dpi is the resolution of images of pages: choose pages images or both, or ocr",
        ),
        ({"pages": "images", "dpi": 19}, "dpi 19: 20 to 1200 are possible"),
        ({"pages": "both", "dpi": 1201}, "dpi 1201: 20 to 1200 are possible"),
    ],
)
def test_a_resolution_that_cannot_be_used(report, options, problem):
    with pytest.raises(UserError) as error:
        passages(report, **options)
    assert str(error.value) == problem


def test_a_corpus_on_disk_is_made_again_for_other_images(report):
    forms = [reading.PageForm(), reading.PageForm("images"), reading.PageForm("images", 90)]
    assert len({Pages(report, page_form=form).key() for form in forms}) == 3
    assert Pages(report, page_form=forms[0]).key() == Pages(report).key()
