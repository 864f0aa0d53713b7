"""Images as servers get them: unchanged if any program reads them, else written again, upright."""

import io
import threading
import warnings

import numpy as np
import PIL.Image
import PIL.JpegImagePlugin
import pytest

from ravqa.core.errors import DataError
from ravqa.images import decode
from ravqa.images.decode import open_image, sendable, small_image, to_rgb

NOISE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def written(form, mode="RGB", values=NOISE, **options):
    out = io.BytesIO()
    PIL.Image.fromarray(values).convert(mode).save(out, form, **options)
    return out.getvalue()


def turned(form, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return written(form, exif=exif)


def reopened(data):
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("form", "kind"), [("JPEG", "image/jpeg"), ("PNG", "image/png")])
def test_common_images_are_sent_as_they_are(tmp_path, form, kind, mode):
    data = written(form, mode)
    path = tmp_path / "a"
    path.write_bytes(data)
    for source in (data, path):
        for longest in (None, 20, 21):
            assert sendable(source, longest) == (data, kind)
    plain = turned(form, 1)
    assert sendable(plain) == (plain, kind)


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "P"), ("PNG", "RGBA"), ("BMP", "RGB"), ("TIFF", "RGB"), ("GIF", "P")]
)
def test_others_that_lose_nothing_are_sent_as_png(form, mode):
    data = written(form, mode)
    sent, kind = sendable(data)
    assert kind == "image/png"
    assert (reopened(sent).format, reopened(sent).mode) == ("PNG", "RGB")
    assert (np.asarray(reopened(sent)) == np.asarray(open_image(data))).all()


@pytest.mark.parametrize("made", ["CMYK", "WEBP", "MPO", "turned"])
def test_others_that_have_lost_detail_are_sent_as_fine_jpeg(made):
    second = PIL.Image.fromarray(NOISE[::-1])
    data = {
        "CMYK": lambda: written("JPEG", "CMYK"),
        "WEBP": lambda: written("WEBP"),
        "MPO": lambda: written("MPO", save_all=True, append_images=[second]),
        "turned": lambda: turned("JPEG", 6),
    }[made]()
    assert reopened(data).format == {"WEBP": "WEBP", "MPO": "MPO"}.get(made, "JPEG")
    sent, kind = sendable(data)
    assert kind == "image/jpeg"
    found, seen = reopened(sent), open_image(data)
    assert (found.format, found.mode, found.size) == ("JPEG", "RGB", seen.size)
    best = io.BytesIO()
    seen.save(best, "JPEG", quality=95)
    assert found.quantization == reopened(best.getvalue()).quantization
    assert PIL.JpegImagePlugin.get_sampling(found) == 0  # colours as fine as the light
    assert np.abs(np.asarray(found, int) - np.asarray(seen, int)).mean() < 4


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP"])
def test_the_first_of_several_pictures_is_sent(form):
    values = [np.full_like(NOISE, 200), np.full_like(NOISE, 10)]
    second = PIL.Image.fromarray(values[1])
    data = written(form, values=values[0], save_all=True, append_images=[second], duration=100)
    assert reopened(data).n_frames == 2
    sent, _ = sendable(data)
    assert sent != data
    assert getattr(reopened(sent), "n_frames", 1) == 1
    assert np.abs(np.asarray(reopened(sent), int) - 200).max() <= 3
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.seek(1)
        assert np.abs(np.asarray(to_rgb(image), int) - 200).max() <= 3


@pytest.mark.parametrize("longest", [10, 19])
def test_larger_images_are_scaled_down(longest):
    data = written("PNG")
    expected = PIL.Image.fromarray(NOISE)
    expected.thumbnail((longest, longest), PIL.Image.Resampling.LANCZOS)
    sent, kind = sendable(data, longest)
    assert kind == "image/png"
    assert max(reopened(sent).size) == longest
    assert (np.asarray(reopened(sent)) == np.asarray(expected)).all()


def test_a_turned_image_is_scaled_by_its_upright_sides():
    sent, kind = sendable(turned("JPEG", 8), 10)
    assert kind == "image/jpeg"
    assert reopened(sent).size == (6, 10)


def test_a_small_image_has_no_longer_side_and_is_never_enlarged():
    with decode.quiet():
        assert small_image(written("JPEG"), 10).size == (10, 6)
        assert small_image(turned("JPEG", 6), 10).size == (6, 10)
        assert small_image(written("PNG"), 50).size == (20, 12)
        whole = np.asarray(small_image(written("PNG"), 20))
    assert (whole == NOISE).all()


def test_a_small_image_is_decoded_at_no_less_than_twice_its_size(monkeypatch):
    asked = []
    draft = PIL.JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(
        PIL.JpegImagePlugin.JpegImageFile,
        "draft",
        lambda self, *given: (asked.append(given), draft(self, *given))[1],
    )
    big = written("JPEG", values=np.zeros((640, 320, 3), np.uint8))
    assert small_image(big, 40).size == (20, 40)
    assert asked == [("RGB", (80, 80))]


@pytest.mark.parametrize("read", [open_image, sendable, decode.image_size])
def test_the_limit_of_pixels_is_the_largest_allowed(tmp_path, monkeypatch, read):
    path = tmp_path / "a.png"
    path.write_bytes(written("PNG"))
    monkeypatch.setattr(decode, "MAX_PIXELS", 240)
    read(path)
    monkeypatch.setattr(decode, "MAX_PIXELS", 239)
    for source, name in ((path, str(path)), (path.read_bytes(), "image given as bytes")):
        with pytest.raises(DataError) as error:
            read(source)
        assert str(error.value) == f"{name}: 20x12 pixels, more than the limit of 239"
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit is twice that
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value) == f"{path}: more than the limit of 239 pixels"


def test_the_reason_of_the_library_is_given():
    cut = written("JPEG")[:-40]
    with pytest.raises(DataError, match=r"^image given as bytes: broken image \(.*truncated"):
        open_image(cut)

    def silent(image):
        raise RuntimeError

    with pytest.raises(DataError) as error:
        decode._open(written("PNG"), silent)
    assert str(error.value) == "image given as bytes: broken image (RuntimeError)"


def test_warnings_are_as_before_once_the_last_thread_has_left():
    before, entered, left = warnings.filters[:], threading.Event(), threading.Event()

    def other():
        with decode.quiet():
            entered.set()
            left.wait(20)

    thread = threading.Thread(target=other)
    with decode.quiet():
        thread.start()
        assert entered.wait(20)
    assert warnings.filters[0][0] == "ignore"
    left.set()
    thread.join(20)
    assert warnings.filters == before
