"""Uploads: what is within the limits is kept without metadata, what is not is refused."""

import io
import struct
import zlib

import pytest
from PIL import Image

from ravqa.core.errors import DataError
from ravqa.images.uploads import Limits, photo, uploaded


def encoded(image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def split_image():
    """Return an image that is red on its left half, and blue on its right."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    return image


def png_header(width, height):
    """Return a PNG whose header claims a size that its content does not have."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(64)))


def test_a_photo_is_turned_and_loses_its_metadata():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    exif[0x010E] = "at home, 52.5 N"
    kept = uploaded(encoded(split_image(), "JPEG", exif=exif, quality=95))
    assert b"at home" not in kept
    with Image.open(io.BytesIO(kept)) as image:
        assert (image.format, image.size, dict(image.getexif())) == ("JPEG", (20, 40), {})
        top, bottom = image.getpixel((10, 5)), image.getpixel((10, 35))
    assert (top[0] > 200, top[2] < 60) == (True, True)
    assert (bottom[2] > 200, bottom[0] < 60) == (True, True)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF"])
def test_other_forms_become_png(form):
    options = {"lossless": True} if form == "WEBP" else {}
    kept = uploaded(encoded(split_image(), form, **options))
    with Image.open(io.BytesIO(kept)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert image.tobytes() == split_image().tobytes()


def test_large_images_are_scaled_down():
    kept = uploaded(encoded(split_image(), "PNG"), Limits(side=10))
    with Image.open(io.BytesIO(kept)) as image:
        assert image.size == (10, 5)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"#!/bin/sh\necho hello", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (encoded(split_image(), "PNG")[:60], "broken image"),
        (png_header(60_000, 60_000), "more than the limit of"),
        (png_header(9_000, 9_000), "9000x9000 pixels, more than the limit of 25,000,000"),
        (bytes(20_000_001), "more than the limit of 20.0 MB"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(data, said):
    with pytest.raises(DataError) as error:
        uploaded(data)
    assert said in str(error.value)
    assert "given as bytes" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_small_photo_that_is_only_looked_at_stays_as_it_is():
    data = encoded(split_image(), "JPEG")
    assert photo(data) is data
    limits = Limits(side=20)
    assert photo(data, limits) == uploaded(data, limits) != data
    for bad, said in (
        (b"", "empty"),
        (b"<svg>", "not an image"),
        (png_header(9000, 9000), "pixels"),
    ):
        with pytest.raises(DataError, match=said):
            photo(bad)
