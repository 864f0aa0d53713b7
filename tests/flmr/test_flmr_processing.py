"""Questions, documents and images on their way into the FLMR models."""

import io
import json
import shutil
import time

import flmr_parity as parity
import numpy as np
import pytest
import torch
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import CLIPImageProcessorPil

from ravqa.core.errors import DataError, UserError
from ravqa.flmr import (
    FLMRContextEncoderTokenizer,
    FLMRInputError,
    FLMRProcessor,
    FLMRQueryEncoderTokenizer,
    FLMRVisionConfig,
)
from ravqa.flmr.processing import FLMRImageProcessor, read_image, with_instruction
from ravqa.images.efficientnet import pixels_of


@pytest.fixture(scope="module")
def processor():
    return FLMRProcessor.from_pretrained(parity.checkpoint("preflmr"))


def photo(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# -- questions and documents


def test_instructions_end_in_one_colon():
    assert with_instruction("Using the image", "what?") == "Using the image: what?"
    assert with_instruction(" Using the image: ", "what?") == "Using the image: what?"
    assert with_instruction("", "what?") == "what?"


def test_instruction_question_and_image_become_the_models_inputs(processor):
    question = "what is the capital of France?"
    text = "Using the provided image, obtain documents that address the subsequent question"
    inputs = processor([question], [photo(50, 40)], text)
    truth = parity.golden("preflmr")
    assert torch.equal(inputs["input_ids"], truth["query_input_ids"][:1])
    assert torch.equal(inputs["attention_mask"], truth["query_attention_mask"][:1])
    model, _ = parity.load("preflmr")
    with torch.no_grad():
        output = model.query(**inputs)
    assert output.late_interaction_output.shape == (1, 52, 16)


@pytest.mark.parametrize("text", ["[SEP] a", "what [MASK] is", "[CLS][PAD][SEP]", "[unused0] [Q]"])
def test_control_tokens_in_texts_are_text(processor, text):
    special = {4, 5, 6}  # [CLS], [SEP], [MASK]
    query = processor.query_tokenizer
    ids = query([text], return_tensors=None)["input_ids"][0]
    end = ids.index(query.sep_token_id)
    assert not special & set(ids[2:end])
    assert set(ids[end + 1 :]) <= {6}
    [document] = processor.context_tokenizer([text], padding=False, return_tensors=None)[
        "input_ids"
    ]
    assert not special & set(document[2:-1])
    assert document[-1] == 5


def test_what_was_cut_is_told(processor):
    given = parity.inputs("preflmr")
    assert processor(given["queries"]).truncated == [False, False, False, True]
    assert processor.documents(given["documents"]).truncated == [i == 4 for i in range(8)]


def test_empty_texts_and_no_texts_are_texts_too(processor):
    inputs = processor("")
    # [CLS] [Q] [SEP], then [MASK] as filling.
    assert inputs["input_ids"][0, :4].tolist() == [4, 1, 5, 6]
    assert processor([]).input_ids.shape == (0, 32)
    documents = processor.documents(["", ""])
    assert documents["input_ids"].tolist() == [[4, 2, 5]] * 2
    assert processor.documents([]).truncated == []
    model, _ = parity.load("preflmr")
    with torch.no_grad():
        output = model.doc(**documents)
    assert output.context_mask.all()


def test_tokenizers_count_instruction_and_markers_in_the_length():
    folder = parity.checkpoint("preflmr")
    tokenizer = FLMRQueryEncoderTokenizer.from_pretrained(folder, query_maxlen=8)
    encoding = tokenizer("what is the capital of france paris using")
    # [CLS] [Q] five words [SEP]
    words = tokenizer.convert_ids_to_tokens(encoding["input_ids"][0])
    assert words == ["[CLS]", "[unused0]", "what", "is", "the", "capital", "of", "[SEP]"]
    assert encoding.truncated == [True]
    fitting = tokenizer("what is the capital of")
    assert fitting.truncated == [False]
    assert fitting["input_ids"].tolist() == encoding["input_ids"].tolist()


def test_lists_come_back_on_request():
    tokenizer = FLMRContextEncoderTokenizer.from_pretrained(parity.checkpoint("preflmr"))
    one = tokenizer("paris is", padding=False, return_tensors=None)
    assert one["input_ids"] == [4, 2, 117, 112, 5]
    several = tokenizer(["paris", "paris is"], padding=False, return_tensors=None)
    assert [len(ids) for ids in several["input_ids"]] == [4, 5]
    arrays = tokenizer(["paris"], return_tensors="np")
    assert isinstance(arrays["input_ids"], np.ndarray)


def test_mask_tokens_can_be_attended_to():
    tokenizer = FLMRQueryEncoderTokenizer.from_pretrained(
        parity.checkpoint("preflmr"), attend_to_mask_tokens=True
    )
    assert tokenizer(["paris"])["attention_mask"].all()


def test_tokenizers_are_found_in_their_own_folder_too(tmp_path):
    root = parity.checkpoint("preflmr")
    by_root = FLMRQueryEncoderTokenizer.from_pretrained(root)
    by_name = FLMRQueryEncoderTokenizer.from_pretrained(root, subfolder="query_tokenizer")
    own = FLMRQueryEncoderTokenizer.from_pretrained(root / "query_tokenizer", text_config=None)
    ids = [t("which bird")["input_ids"].tolist() for t in (by_root, by_name, own)]
    assert ids[0] == ids[1] == ids[2]
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no tokenizer in query_tokenizer/"):
            FLMRQueryEncoderTokenizer.from_pretrained(place)
    broken = tmp_path / "query_tokenizer"
    shutil.copytree(root / "query_tokenizer", broken)
    (broken / "vocab.txt").write_text("only\nwords\n")
    with pytest.raises(UserError, match=r"lacks the tokens \[UNK\]"):
        FLMRQueryEncoderTokenizer.from_pretrained(tmp_path)
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        FLMRQueryEncoderTokenizer.from_pretrained(tmp_path)


# -- images


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (32, 32), (20, 31), (501, 77)])
def test_images_are_prepared_as_by_clips_own_processor(size):
    own = FLMRImageProcessor.for_tower(FLMRVisionConfig())
    image = photo(*size)
    truth = CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(own([image]), truth, rtol=0, atol=1e-5)


def test_the_preparation_follows_the_checkpoint(tmp_path):
    assert FLMRProcessor.from_pretrained(parity.checkpoint("flmr")).image_processor.size == (32, 32)
    siglip = {"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 16}
    prepared = FLMRImageProcessor.for_tower(FLMRVisionConfig(vision_tower=siglip))
    white = Image.new("RGB", (30, 90), "white")
    assert torch.equal(prepared([white]), torch.ones(1, 3, 64, 64))
    dino = {"model_type": "dinov2", "image_size": 224, "patch_size": 14}
    prepared = FLMRImageProcessor.for_tower(FLMRVisionConfig(vision_tower=dino))
    assert (prepared.shortest_edge, prepared.size) == (256, (224, 224))
    other = {"model_type": "hiera"}
    with pytest.raises(UserError) as error:
        FLMRImageProcessor.for_tower(FLMRVisionConfig(vision_tower=other))
    assert str(error.value) == (
        "how images are prepared for a tower of type 'hiera' is not known: put its "
        "preprocessor_config.json into the checkpoint's folder"
    )


def test_a_preparation_of_another_checkpoint_is_refused(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(parity.checkpoint("preflmr"), folder)
    CLIPImageProcessorPil().save_pretrained(folder)  # of images of 224
    line = (
        "^preprocessor_config.json makes images of 224x224 and the vision tower takes 32x32: it "
        "belongs to another checkpoint$"
    )
    with pytest.raises(UserError, match=line):
        FLMRProcessor.from_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size=32, image_mean=[0.1, 0.2, 0.3]
    ).save_pretrained(folder)
    made = FLMRProcessor.from_pretrained(folder).image_processor
    assert (made.shortest_edge, made.size, made.mean) == (40, (32, 32), (0.1, 0.2, 0.3))
    truth = CLIPImageProcessorPil.from_pretrained(folder)(photo(70, 50), return_tensors="pt")
    torch.testing.assert_close(made([photo(70, 50)]), truth["pixel_values"], rtol=0, atol=1e-5)


def test_a_saved_processor_is_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)  # the folders are there now
    shutil.copy(parity.checkpoint("preflmr") / "config.json", tmp_path)
    again = FLMRProcessor.from_pretrained(tmp_path)
    assert again.image_processor == processor.image_processor
    assert again.context_tokenizer.doc_maxlen == 64
    values = json.loads((tmp_path / "image_processor" / "preprocessor_config.json").read_text())
    truth = CLIPImageProcessorPil(**values)(photo(50, 60), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(again.image_processor([photo(50, 60)]), truth, rtol=0, atol=1e-5)


def test_images_of_every_mode_become_rgb():
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    grey16 = Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16))
    floats = Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32))
    wide = Image.fromarray(np.full((4, 4), 40000, dtype=np.int32))
    animated = encoded(
        red, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), (0, 0, 255))]
    )
    cases = [
        (red.convert("P"), (255, 0, 0)),
        (Image.new("LA", (4, 4), (90, 128)), (90, 90, 90)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "TIFF"), (0, 0, 0)),
        (grey16, (100, 100, 100)),
        (encoded(grey16, "PNG"), (100, 100, 100)),
        (wide, (156, 156, 156)),
        (floats, (128, 128, 128)),
        (Image.new("RGBA", (4, 4), (1, 2, 3, 128)), (1, 2, 3)),
        (animated, (255, 0, 0)),
        (np.full((4, 4, 3), 7, dtype=np.uint8), (7, 7, 7)),
        (np.full((4, 4), 9, dtype=np.uint8), (9, 9, 9)),
    ]
    for image, expected in cases:
        made = read_image(image)
        assert made.mode == "RGB"
        assert made.getpixel((1, 2)) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_are_turned_upright(kind, tmp_path):
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (0, 0, 16, 16))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left comes to the top
    path = tmp_path / f"image.{kind.lower()}"
    image.save(path, kind, exif=exif)
    upright = read_image(path)
    assert upright.size == (16, 32)
    assert upright.getpixel((8, 4))[0] > 250
    assert upright.getpixel((8, 28))[0] < 5


def test_unreadable_images_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"text\.jpg: not an image"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(DataError, match="no such image"):
        read_image(str(tmp_path / "none.jpg"))
    with pytest.raises(DataError, match="image given as bytes: broken image"):
        read_image(encoded(photo(64, 64), "PNG")[:500])
    with pytest.raises(DataError, match="neither a Pillow image"):
        read_image(5)


def test_a_png_is_read_whatever_text_it_holds(tmp_path):
    info = PngInfo()
    info.add_text("workflow", "A" * 2_000_000, zip=True)
    path = tmp_path / "image.png"
    Image.new("RGB", (4, 4), (200, 10, 10)).save(path, pnginfo=info)
    for image in (path, str(path), path.read_bytes()):
        assert read_image(image).getpixel((1, 2)) == (200, 10, 10)


def test_questions_without_images_are_switched_to_text(processor):
    inputs = processor(["which bird", "which animal"], [photo(40, 40), None])
    assert inputs["concat_output_from_vision_encoder"].tolist() == [True, False]
    model, _ = parity.load("preflmr")
    with torch.no_grad():
        vectors = model.query(**inputs).late_interaction_output
    assert vectors[0, 32:].norm(dim=-1).min() > 0.999
    assert not vectors[1, 32:].any()
    nothing = processor(["which bird"], [None])
    assert not nothing["concat_output_from_vision_encoder"].any()


def test_regions_of_interest_become_a_fifth_dimension():
    processor = FLMRProcessor.from_pretrained(parity.checkpoint("flmr"))
    regions = [[photo(40, 40, i), photo(50, 30, i), photo(33, 60, i)] for i in range(2)]
    inputs = processor(["which bird", "which animal"], regions)
    assert inputs["pixel_values"].shape == (2, 3, 3, 32, 32)
    alone = processor(["which bird"], [regions[1][2]])["pixel_values"]
    assert torch.equal(inputs["pixel_values"][1, 2], alone[0])
    with pytest.raises(
        FLMRInputError, match=r"^different numbers of regions for each question: \[2, 3\]$"
    ):
        processor(["which bird", "which animal"], [regions[0], regions[1][:2]])


def test_numbers_that_do_not_match_are_an_error(processor):
    with pytest.raises(FLMRInputError, match=r"^1 images for 2 texts$"):
        processor(["a", "b"], [photo(40, 40)])
    with pytest.raises(FLMRInputError, match=r"^1 instructions for 2 questions$"):
        processor(["a", "b"], None, ["i:"])
    with pytest.raises(UserError, match=r"^this processor has no tokenizer of documents$"):
        FLMRProcessor(processor.query_tokenizer).documents(["a"])
    with pytest.raises(UserError, match=r"^this checkpoint takes no images$"):
        FLMRProcessor(processor.query_tokenizer)(["a"], [photo(40, 40)])


def test_documents_with_images_become_the_models_inputs():
    processor = FLMRProcessor.from_pretrained(parity.checkpoint("flmr"))
    inputs = processor.documents(["a bird", "a cat"], [photo(40, 40), None])
    model, _ = parity.load("flmr")
    with torch.no_grad():
        mask = model.doc(**inputs).context_mask[:, :, 0]
    assert mask[:, :4].int().tolist() == [[1] * 4, [0] * 4]


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_line_of_pixels_is_cut_before_it_is_scaled(size):
    """Scaled whole, its longer side would have millions of pixels."""
    line = Image.new("RGB", size)
    began = time.process_time()
    assert FLMRImageProcessor((224, 224), 224)([line]).shape == (1, 3, 224, 224)
    assert pixels_of(line).shape == (3, 224, 224)
    assert time.process_time() - began < 2
