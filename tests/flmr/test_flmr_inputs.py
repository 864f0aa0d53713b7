"""What the processor does with each form of a checkpoint's image values, and of its inputs."""

import json
import shutil

import flmr_parity as parity
import numpy as np
import pytest
import torch
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from PIL import Image
from transformers import CLIPImageProcessorPil

from ravqa.core.errors import DataError, UserError
from ravqa.flmr import FLMRInputError, FLMRProcessor, FLMRVisionConfig
from ravqa.flmr.processing import FLMRImageProcessor, read_image

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def photo(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def fields(made):
    return made.size, made.shortest_edge, (made.mean, made.std), made.resample


def vision(size=32, kind=None):
    if kind is None:
        return FLMRVisionConfig(image_size=size)
    config = FLMRVisionConfig(vision_tower={"model_type": "dinov2", "image_size": 32})
    config.vision_tower, config.image_size = {"model_type": kind}, size
    return config


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        (None, 224, ((224, 224), 224, CLIP, 3)),
        ("clip_vision_model", 336, ((336, 336), 336, CLIP, 3)),
        ("siglip_vision_model", 384, ((384, 384), None, HALF, 3)),
        ("siglip2_vision_model", (384, 256), ((384, 256), None, HALF, 3)),
        ("dinov2", 224, ((224, 224), 256, IMAGENET, 3)),
        ("dinov2_with_registers", 518, ((518, 518), 592, IMAGENET, 3)),
        ("vit", [112, 96], ((112, 96), 128, IMAGENET, 3)),
    ],
)
def test_each_kind_of_tower_has_its_usual_preparation(kind, size, expected):
    assert fields(FLMRImageProcessor.for_tower(vision(size, kind))) == expected


def test_a_kind_that_is_not_known_is_told_where_its_values_go():
    message = r"type 'hiera' is not known: put its preprocessor_config\.json into the checkpoint's"
    with pytest.raises(UserError, match=message):
        FLMRImageProcessor.for_tower(vision(32, "hiera"))


OWN = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (32, CLIP, 3)),
        ({"size": 40}, None),  # a crop of 40
        ({"size": 32, "image_mean": OWN[0], "image_std": OWN[1]}, (32, OWN, 3)),
        ({"size": 40, "crop_size": 32, "resample": 2}, (40, CLIP, 2)),
        ({"size": {"shortest_edge": 32}}, (32, CLIP, 3)),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, (40, CLIP, 3)),
        ({"size": {"shortest_edge": 40}, "crop_size": 32, "do_center_crop": True}, (40, CLIP, 3)),
        ({"size": {"shortest_edge": 32}, "crop_size": 40, "do_center_crop": False}, (32, CLIP, 3)),
        ({"size": {"height": 32, "width": 32}}, (None, CLIP, 3)),
        ({"size": {"height": 32, "width": 32}, "crop_size": 9}, (None, CLIP, 3)),
        ({"crop_size": 32}, (32, CLIP, 3)),
    ],
)
def test_every_form_of_a_files_values_is_understood(values, expected):
    if expected is None:
        with pytest.raises(UserError, match="makes images of 40x40 and the vision tower takes 32x"):
            FLMRImageProcessor.from_values(values, vision())
        return
    made = FLMRImageProcessor.from_values(values, vision())
    assert fields(made) == ((32, 32), *expected)
    assert isinstance(made.mean, tuple)


def test_a_tower_of_no_known_kind_takes_its_files_values():
    made = FLMRImageProcessor.from_values({"size": 32}, vision(32, "hiera"))
    assert fields(made) == ((32, 32), 32, CLIP, 3)
    assert fields(FLMRImageProcessor.from_values({}, vision(24, "hiera")))[:2] == ((24, 24), 24)


@pytest.mark.parametrize("size", [(70, 50), (50, 70), (24, 24), (200, 60)])
@pytest.mark.parametrize(
    "values",
    [
        {"size": {"shortest_edge": 48}, "crop_size": {"height": 24, "width": 40}, "resample": 2},
        {"size": {"height": 24, "width": 40}, "do_center_crop": False, "image_mean": OWN[0]},
    ],
    ids=["cut", "scaled"],
)
def test_images_that_are_not_square_are_prepared_as_by_transformers(values, size):
    config = FLMRVisionConfig()
    config.image_size = (24, 40)
    made = FLMRImageProcessor.from_values(values, config)
    truth = CLIPImageProcessorPil(**values)(photo(*size), return_tensors="pt")["pixel_values"]
    found = made([photo(*size)])
    assert found.shape == (1, 3, 24, 40)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)
    # What is written is understood by transformers, and comes back as it was.
    again = CLIPImageProcessorPil(**made.values())(photo(*size), return_tensors="pt")
    torch.testing.assert_close(again["pixel_values"], truth, rtol=0, atol=1e-5)
    assert FLMRImageProcessor.from_values(made.values(), config) == made
    # What a user is shown has the same pixels.
    seen = np.asarray(made.seen(photo(*size))).astype(np.float64) / 255
    expected = (seen - np.array(made.mean)) / np.array(made.std)
    np.testing.assert_allclose(found[0].permute(1, 2, 0), expected, rtol=0, atol=1e-5)


def test_without_images_there_are_no_pixels():
    assert FLMRImageProcessor((24, 40), 24)([]).shape == (0, 3, 24, 40)


def test_images_that_cannot_be_read_are_told_apart():
    with pytest.raises(DataError, match=r"an image \(int\): not a readable image \(neither a Pil"):
        read_image(5)
    with pytest.raises(DataError, match=r"an image \(ndarray\): not a readable image \(.+\)$"):
        read_image(np.zeros((2, 2, 9), np.uint8))


# -- of a checkpoint


def values_at(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    text = values if isinstance(values, str) else json.dumps(values)
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def test_a_checkpoints_own_folder_of_values_comes_before_its_file(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(parity.checkpoint("preflmr"), folder)
    assert FLMRProcessor.from_pretrained(folder).image_processor.shortest_edge == 32
    crop = {"crop_size": 32}
    values_at(folder, {"size": 40, **crop})
    assert FLMRProcessor.from_pretrained(folder).image_processor.shortest_edge == 40
    values_at(folder / "image_processor", {"size": 50, **crop})
    assert FLMRProcessor.from_pretrained(folder).image_processor.shortest_edge == 50
    values_at(folder / "image_processor", "{")
    with pytest.raises(UserError, match=r"image_processor/preprocessor_config\.json is not JSON"):
        FLMRProcessor.from_pretrained(folder)


def test_lengths_and_missing_towers_of_a_checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(parity.checkpoint("preflmr"), folder)
    made = FLMRProcessor.from_pretrained(folder, query_maxlen=9)
    assert (made.query_tokenizer.max_tokens, made.context_tokenizer.max_tokens) == (9, 64)
    made = FLMRProcessor.from_pretrained(folder, doc_maxlen=7)
    assert (made.query_tokenizer.max_tokens, made.context_tokenizer.max_tokens) == (32, 7)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_vision_encoder": False}))
    without = FLMRProcessor.from_pretrained(folder)
    assert without.image_processor is None
    without.context_tokenizer = None
    without.save_pretrained(tmp_path / "saved")
    assert [p.name for p in (tmp_path / "saved").iterdir()] == ["query_tokenizer"]


# -- inputs


@pytest.fixture(scope="module")
def processor():
    return FLMRProcessor.from_pretrained(parity.checkpoint("flmr"))


def test_one_question_is_a_list_of_one(processor):
    [several] = [processor(["what is"], [photo(40, 40)], ["look"])]
    for images in (photo(40, 40), [photo(40, 40)], (photo(40, 40),)):
        one = processor("what is", images, "look")
        assert one.keys() == several.keys() == {"input_ids", "attention_mask", "pixel_values"}
        assert all(torch.equal(one[k], several[k]) for k in several)
        assert one.truncated == [False]
    plain = processor("look: what is")
    assert torch.equal(plain["input_ids"], several["input_ids"])
    assert plain.keys() == {"input_ids", "attention_mask"}


def test_every_question_may_have_its_own_instruction(processor):
    made = processor(["what is", "which bird"], None, ["look", ""])
    expected = processor(["look: what is", "which bird"])
    assert torch.equal(made["input_ids"], expected["input_ids"])
    shared = processor(["what is", "which bird"], None, "look")
    expected = processor(["look: what is", "look: which bird"])
    assert torch.equal(shared["input_ids"], expected["input_ids"])


def test_one_document_is_a_list_of_one(processor):
    several = processor.documents(["a bird"], [photo(40, 40)])
    for images in (photo(40, 40), [photo(40, 40)], (photo(40, 40),)):
        one = processor.documents("a bird", images)
        assert one.keys() == several.keys()
        assert all(torch.equal(one[k], several[k]) for k in several)
    assert processor.documents("a bird").keys() == {"input_ids", "attention_mask"}
    padded = processor.documents(["a bird"], padding="max_length")
    assert padded["input_ids"].shape == (1, processor.context_tokenizer.max_tokens)
    with pytest.raises(FLMRInputError, match="1 images for 2 texts"):
        processor.documents(["a bird", "a cat"], [photo(40, 40)])
    with pytest.raises(FLMRInputError, match="2 images for 1 texts"):
        processor.documents("a bird", [photo(40, 40), photo(40, 40)])


@pytest.mark.parametrize("kind", [list, tuple])
def test_regions_of_some_questions_stand_where_their_questions_do(processor, kind):
    regions = kind([photo(40, 40, 1), photo(50, 30, 2)])
    made = processor(["a", "b", "c"], [None, regions, None])
    assert made["pixel_values"].shape == (3, 2, 3, 32, 32)
    expected = processor.image_processor(list(regions))
    assert torch.equal(made["pixel_values"][1], expected)
    assert not made["pixel_values"][[0, 2]].any()
    assert made["concat_output_from_vision_encoder"].tolist() == [False, True, False]
    with pytest.raises(FLMRInputError, match=r"different numbers of regions.*: \[0, 2\]$"):
        processor(["a", "b"], [photo(40, 40), regions])


def test_questions_without_any_image_have_black_ones_that_do_not_count(processor):
    made = processor(["a", "b"], [None, None])
    assert made["pixel_values"].shape == (2, 3, 32, 32)
    assert not made["pixel_values"].any()
    assert made["concat_output_from_vision_encoder"].tolist() == [False, False]
    everyone = processor(["a", "b"], [photo(40, 40), photo(32, 32)])
    assert "concat_output_from_vision_encoder" not in everyone
    assert torch.equal(everyone["pixel_values"][1:], processor.image_processor([photo(32, 32)]))
