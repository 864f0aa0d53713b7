"""FLMR with regions of interest: the original's vectors, and which pictures it sees."""

import io

import flmr_parity as parity
import numpy as np
import pytest
import torch
from PIL import Image

from ravqa.cli import main
from ravqa.core.errors import PromptError, UserError
from ravqa.core.records import Description, Question, Region
from ravqa.encoders.flmr import FLMREncoder
from ravqa.encoders.regions import pictures_of

REGIONS = 3


def striped(row):
    """A photo of four stripes, 8 pixels wide each, whose colours name the row and the stripe."""
    pixels = np.zeros((8, 32, 3), np.uint8)
    for stripe in range(4):
        pixels[:, 8 * stripe : 8 * stripe + 8] = (10 * row, 10 * stripe, 200)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def stripe(number, left=0, width=8, height=8):
    return Region(f"thing {number}", (8 * number + left, 0, 8 * number + left + width, height))


def asked(row, text="What?", regions=(1, 2, 3)):
    chosen = tuple(stripe(number) for number in regions)
    return Question(row, text, striped(row), description=Description(regions=chosen))


def encoder(**options):
    model = str(parity.checkpoint("flmr"))
    return FLMREncoder(
        FLMREncoder.Config(model=model, instruction=None, batch_queries=3, device="cpu", **options)
    )


@pytest.fixture(scope="module")
def made():
    return encoder(regions=REGIONS)


@pytest.fixture
def originals_pixels(made, monkeypatch):
    """The image processor gives the fixture's pixels for the stripe in a picture's first pixel."""
    truth = parity.golden("flmr")["roi_pixel_values"]

    def pixels(images):
        corners = [image.getpixel((0, 0)) for image in images]
        return torch.stack([truth[red // 10, green // 10] for red, green, _ in corners])

    monkeypatch.setattr(FLMREncoder, "_image_processor", property(lambda self: pixels))


def test_queries_with_regions_are_the_originals(made, originals_pixels):
    texts = parity.inputs("flmr")["queries"]
    found = made.encode_question([asked(row, text) for row, text in enumerate(texts)])
    expected = parity.golden("flmr")["query_embeddings_rois"].numpy()
    for vectors, original in zip(found, expected, strict=True):
        kept = original[np.any(original != 0, axis=1)]
        np.testing.assert_allclose(vectors, kept, atol=1e-5)


def test_the_order_of_regions_counts_and_missing_ones_repeat_the_last(made, originals_pixels):
    def vectors(*regions):
        [found] = made.encode_question([asked(0, regions=regions)])
        return found

    np.testing.assert_allclose(vectors(1, 2), vectors(1, 2, 2), atol=1e-6)
    np.testing.assert_allclose(vectors(), vectors(0, 0, 0), atol=1e-6)
    assert np.abs(vectors(1, 2, 3) - vectors(2, 1, 3)).max() > 1e-3
    assert len(vectors(1, 2, 3)) == len(made.label_question(asked(0)).labels)
    names = [label.name for label in made.label_question(asked(0, regions=(1, 2))).labels]
    assert names[-1] == "thing 2"


def test_a_question_without_a_photo_has_its_text_alone(made, originals_pixels):
    text = Question(9, "What?")
    mixed = made.encode_question([asked(0), text])
    [alone] = made.encode_question([text])
    np.testing.assert_allclose(mixed[1], alone, atol=1e-5)
    assert len(alone) < len(mixed[0])


def test_rankings_and_fingerprints_tell_regions_apart(made):
    plain = encoder()
    assert plain.fingerprint != made.fingerprint
    assert plain.passages_fingerprint == made.passages_fingerprint
    assert plain.seen_beside(asked(0)) is None
    assert made.seen_beside(asked(0)) != made.seen_beside(asked(0, regions=(1, 3)))


def test_regions_that_cannot_be_seen_are_refused(made):
    with pytest.raises(UserError, match="regions: 3, but the questions have no description"):
        made.encode_question([Question(1, "What?", striped(0))])
    preflmr = str(parity.checkpoint("preflmr"))
    with pytest.raises(UserError, match=r"regions: 9, but .* takes one picture of a question"):
        FLMREncoder(FLMREncoder.Config(model=preflmr, regions=9))


def sizes(*regions, count=REGIONS):
    question = Question(1, "?", striped(0), description=Description(regions=regions))
    whole, *crops = pictures_of(question, count)
    assert whole == question.image
    return [Image.open(io.BytesIO(crop)).size for crop in crops]


def test_crops():
    assert sizes(stripe(1), stripe(2, width=16, height=4)) == [(8, 8), (16, 4), (16, 4)]
    assert sizes(*map(stripe, range(4))) == [(8, 8)] * 3  # the first three
    # Less than 5 pixels in both directions: 2.5 more on each side, inside of the photo. The box is
    # from 9.5 to 16.5 and from 0 to 5.5; Pillow rounds halves to even numbers.
    assert sizes(stripe(1, left=4, width=2, height=3), count=1) == [(6, 6)]
    assert sizes(stripe(1, width=2, height=6), count=1) == [(2, 6)]
    assert pictures_of(Question(1, "?"), 2) == [None] * 3
    for box in ([40, 0, 50, 8], [5, 0, 5, 8]):
        with pytest.raises(PromptError, match=r"the region .* is not inside the picture of 32x8"):
            sizes(Region("cat", tuple(map(float, box))))


@pytest.mark.parametrize(
    ("option", "others"), [("regions", ["text_prompt=null"]), ("text_prompt", ["regions=0"])]
)
def test_a_run_without_descriptions_stops_before_anything_is_encoded(option, others, capsys):
    settings = [f"model={parity.checkpoint('flmr')}", *others]
    changes = [word for value in settings for word in ("--set", f"retriever.encoder.{value}")]
    command = ["run", "--dataset", "okvqa", "--limit", "2", "--retrieval-only"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--pipeline", "flmr-retrieval", *changes])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"error: retriever.encoder: {option} needs a description of the images, and 2 of 2 "
        "questions with an image have none: name a describer"
    )


def test_what_needs_descriptions():
    def needed(**options):
        return FLMREncoder.described_by(FLMREncoder.Config(model="x", instruction=None, **options))

    assert needed() == needed(regions=9, image_tokens="none") == ""
    assert needed(text_prompt={"caption": 0, "objects": 0, "ocr": 0}) == ""
    assert needed(regions=9, text_prompt={}) == "regions"
    assert needed(text_prompt={"caption": 0, "objects": 0}) == "text_prompt"
