"""Pictures of PDF pages: their pixels, numbers and sizes, and files that cannot be rendered."""

import io
import sys

import numpy as np
import PIL.Image
import pytest
from document_files import pdf

from ravqa.core.errors import DataError, MissingExtraError
from ravqa.corpora import pdf as reading

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
