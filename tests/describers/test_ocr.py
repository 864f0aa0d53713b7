"""The describer ocr: lines in reading order, and what RapidOCR really reads."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from ravqa.core.errors import DataError, MissingExtraError, PromptError, UserError
from ravqa.core.records import Description, TextLine
from ravqa.describers.ocr import OCRDescriber
from ravqa.images import ocr
from ravqa.images.ocr import in_reading_order


def line(text, left, top, width=40, height=10):
    return TextLine(text, (left, top, left + width, top + height), 0.9)


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


BLANK = png(Image.new("RGB", (80, 60), "white"))


@pytest.fixture
def described(monkeypatch):
    """Build the describer on a stand-in for RapidOCR, which returns what it is given."""

    def build(boxes, texts, scores, **options):
        asked = []

        def read(pixels):
            asked.append(pixels)
            return SimpleNamespace(boxes=boxes, txts=texts, scores=scores)

        def session(path, providers):
            if path.read_bytes() == b"junk":
                raise RuntimeError("Load model failed\nmore")

        library = SimpleNamespace(
            __file__="/nowhere/__init__.py",
            RapidOCR=lambda params: (asked.append(params), read)[1],
            InferenceSession=session,
        )
        monkeypatch.setattr(ocr, "import_extra", lambda *args, **kwargs: library)
        return OCRDescriber(OCRDescriber.Config(**options)), asked

    return build


def test_lines_are_read_from_top_to_bottom_and_across():
    lines = [line("third", 0, 40), line("second", 60, 3), line("first", 0, 0), line("last", 5, 52)]
    assert [one.text for one in in_reading_order(lines)] == ["first", "second", "third", "last"]


def test_lines_side_by_side_differ_by_less_than_half_of_the_lower_box():
    tall, low = line("tall", 50, 0, height=40), line("low", 0, 20, height=8)  # middles 20 and 24
    assert [one.text for one in in_reading_order([low, tall])] == ["tall", "low"]
    low = line("low", 0, 19, height=8)  # middles 20 and 23
    assert [one.text for one in in_reading_order([tall, low])] == ["low", "tall"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), unique=True))
def test_a_page_of_rows_is_read_like_text(cells):
    lines = [line(f"{row},{column}", 50 * column, 20 * row) for row, column in cells]
    expected = [f"{row},{column}" for row, column in sorted(cells)]
    assert [one.text for one in in_reading_order(lines)] == expected


def test_lines_have_upright_boxes_and_each_string_counts_once(described):
    boxes = np.array(
        [
            [[0, 30], [20, 30], [20, 40], [0, 40]],
            [[2.5, 1.5], [40, 4], [39, 14], [1.2, 11]],
            [[0, 50], [9, 50], [9, 59], [0, 59]],
            [[20, 50], [29, 50], [29, 59], [20, 59]],
        ],
        np.float32,
    )
    describer, _ = described(boxes, ("Exit", " KINGS CROSS", "Exit", " "), (0.7, 0.98764, 0.9, 0.9))
    assert describer.describe([BLANK]) == [
        Description(
            ocr=("KINGS CROSS", "Exit"),
            lines=(
                TextLine("KINGS CROSS", (1, 1, 40, 14), 0.9876),
                TextLine("Exit", (0, 30, 20, 40), 0.7),
                TextLine("Exit", (0, 50, 9, 59), 0.9),
            ),
        )
    ]


def test_an_image_without_text_is_described_by_nothing(described):
    describer, _ = described(None, None, None)
    assert describer.describe([BLANK, BLANK]) == [Description(), Description()]


def test_the_image_is_given_in_bgr_with_the_settings(described):
    options = {"min_score": 0.8, "side": 320, "threads": 2, "turns": True}
    describer, asked = described(None, None, None, **options)
    describer.describe([png(Image.new("RGB", (3, 2), (255, 128, 0)))])
    settings, pixels = asked
    assert settings["Global.text_score"] == 0.8
    assert settings["Det.limit_side_len"] == 320
    assert settings["EngineConfig.onnxruntime.intra_op_num_threads"] == 2
    assert settings["Global.use_cls"]
    assert not described(None, None, None)[1][0]["Global.use_cls"]
    assert (pixels.shape, pixels[0, 0].tolist()) == ((2, 3, 3), [0, 128, 255])


def test_the_fingerprint_has_what_changes_lines_alone(described, tmp_path):
    def of(**options):
        return described(None, None, None, **options)[0].fingerprint

    weights = tmp_path / "arabic.onnx"
    weights.write_bytes(b"one")
    prints = [of(), of(min_score=0.6), of(side=800), of(turns=True), of(recogniser=weights)]
    weights.write_bytes(b"two")
    prints.append(of(recogniser=weights))
    assert len(set(prints)) == 6
    assert of(threads=1) == of()


def test_what_cannot_be_read_is_one_line(described, tmp_path):
    describer, _ = described(None, None, None)
    with pytest.raises(DataError, match="not an image"):
        describer.describe([b"no image"])
    with pytest.raises(PromptError, match="3000x5"):
        describer.describe([png(Image.new("RGB", (3000, 5)))])
    with pytest.raises(UserError, match=r"the describer ocr: no such file: .*none\.onnx"):
        OCRDescriber(OCRDescriber.Config(recogniser=tmp_path / "none.onnx"))
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"junk")
    with pytest.raises(UserError) as error:
        described(None, None, None, recogniser=junk)
    assert str(error.value) == f"the describer ocr: {junk} cannot be loaded: Load model failed"

    def broken(pixels):
        raise ValueError("odd\nmore")

    describer._ocr._engine = broken
    with pytest.raises(PromptError, match=r"^the describer ocr: odd$"):
        describer.describe([BLANK])


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ravqa\[ocr\]'"):
        OCRDescriber(OCRDescriber.Config())


@pytest.mark.slow
def test_what_is_written_is_read():
    pytest.importorskip("rapidocr")
    from ravqa.testing import check_describer

    image = Image.new("RGB", (640, 300), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(40)
    written = {"KINGS CROSS": (20, 20), "Exit 42": (400, 24), "Mind the gap": (20, 150)}
    for text, place in written.items():
        draw.text(place, text, fill="black", font=font)
    describer = OCRDescriber(OCRDescriber.Config(side=256, threads=1))
    [found] = describer.describe([png(image)])
    assert found.ocr == tuple(written)
    for one, (text, place) in zip(found.lines, written.items(), strict=True):
        true = draw.textbbox(place, text, font=font)
        assert np.abs(np.subtract(one.box, true)).max() < 16, text
        assert 0.5 < one.score <= 1
    check_describer(describer)


@pytest.mark.slow
def test_a_line_upside_down_is_read_if_lines_are_turned():
    pytest.importorskip("rapidocr")
    image = Image.new("RGB", (500, 160), "white")
    font = ImageFont.load_default(40)
    ImageDraw.Draw(image).text((20, 50), "Departures 42 Zoo", fill="black", font=font)
    photo = png(image.rotate(180))
    read = [
        OCRDescriber(OCRDescriber.Config(side=256, threads=1, turns=turns)).describe([photo])[0].ocr
        for turns in (True, False)
    ]
    assert read[0] == ("Departures 42 Zoo",)
    assert read[1] != read[0]
