"""The describer objects: boxes and labels as each kind of model gives them."""

import io

import numpy as np
import pytest
from PIL import Image

from ravqa.core.errors import DataError, UserError
from ravqa.describers.objects import ObjectDetector, label_of

CLASSES = {"id2label": {0: "cat", 1: "N/A", 2: "dog"}, "label2id": {"cat": 0, "N/A": 1, "dog": 2}}
LAYERS = {"encoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
LAYERS |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
SIZES = {"hidden_size": 16, "intermediate_size": 16}
SIZES |= {"num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("cat", "cat"),
        ("a red dog. [SEP]", "red dog"),
        ("cat. red dog. [SEP]", "red dog"),
        ("[CLS] red", "red"),
        ("Category", "Category"),
        ("cat st. bernard", "cat"),
        ("", ""),
    ],
)
def test_words_of_grounding_dino_become_labels(words, label):
    assert label_of(words, ("cat", "red dog")) == label


def png():
    """A picture of noise, 80 x 60, always the same."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def detr(folder):
    import transformers as t

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    backbone = t.ResNetConfig(**sizes, layer_type="basic", out_features=["stage4"])
    own = {"use_timm_backbone": False, "backbone_config": backbone, "backbone": None}
    own |= {"use_pretrained_backbone": False, "d_model": 16, "num_queries": 9}
    config = t.DetrConfig(**own, **LAYERS, decoder_layers=1, **CLASSES)
    images = t.DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    return saved(folder, t.DetrForObjectDetection(config), images)


def rt_detr(folder):
    import transformers as t

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    stages = ["stage2", "stage3", "stage4"]
    backbone = t.RTDetrResNetConfig(**sizes, layer_type="basic", out_features=stages)
    own = {"encoder_hidden_dim": 16, "encoder_in_channels": [8, 16, 16], "d_model": 16}
    own |= {"decoder_in_channels": [16, 16, 16], "num_denoising": 0, "hidden_expansion": 0.5}
    own |= {"num_queries": 8, "anchor_image_size": None}
    config = t.RTDetrConfig(backbone_config=backbone, **own, **LAYERS, decoder_layers=1, **CLASSES)
    images = t.RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    return saved(folder, t.RTDetrForObjectDetection(config), images)


def owl(folder):
    import transformers as t
    from reader_models import tokenizer

    tok = tokenizer(model_max_length=16)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    text = {**SIZES, **ids, "vocab_size": len(tok), "max_position_embeddings": 16}
    vision = {**SIZES, "image_size": 64, "patch_size": 16}
    config = t.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    images = t.Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    model = t.Owlv2ForObjectDetection(config)
    for parameter in model.box_head.parameters():  # else boxes have no area
        parameter.data *= 0.1
    return saved(folder, model, t.Owlv2Processor(images, tok))


def grounding_dino(folder):
    import transformers as t

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "cat", "dog", "red"]
    tok = t.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    backbone = t.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = {**SIZES, "model_type": "bert", "vocab_size": len(words), "max_position_embeddings": 64}
    own = {"d_model": 32, "num_queries": 9, "num_feature_levels": 3, "max_text_len": 32}
    config = t.GroundingDinoConfig(
        backbone_config=backbone, text_config=text, **own, **LAYERS, decoder_layers=2
    )
    images = t.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    processor = t.GroundingDinoProcessor(images, tok)
    return saved(folder, t.GroundingDinoForObjectDetection(config), processor)


def saved(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def detector(model, **options):
    return ObjectDetector(ObjectDetector.Config(model=model, device="cpu", **options))


@pytest.fixture(autouse=True)
def one_seed(request):
    if request.node.get_closest_marker("slow"):
        import torch

        torch.manual_seed(0)


@pytest.mark.slow
def test_boxes_of_detr_are_those_of_its_outputs(tmp_path):
    """By hand: softmax without the last class, centre and size in shares of the picture."""
    import torch
    import transformers as t

    folder = detr(tmp_path)
    model = t.DetrForObjectDetection.from_pretrained(folder).eval()
    images = t.DetrImageProcessorPil.from_pretrained(folder)
    with torch.no_grad(), Image.open(io.BytesIO(png())) as image:
        found = model(**images(image, return_tensors="pt"))
    scores, classes = found.logits[0].softmax(-1)[:, :3].max(-1)
    expected = []
    for score, number, (x, y, width, height) in zip(
        scores.tolist(), classes.tolist(), found.pred_boxes[0].tolist(), strict=True
    ):
        box = ((x - width / 2) * 80, (y - height / 2) * 60)
        box += ((x + width / 2) * 80, (y + height / 2) * 60)
        if number != 1:
            expected.append((["cat", "N/A", "dog"][number], score, box))
    expected.sort(key=lambda one: -one[1])
    assert expected

    [made] = detector(folder, min_score=0.0, most=100).describe([png()])
    assert [one.label for one in made.objects] == [label for label, _, _ in expected]
    for one, (_, score, box) in zip(made.objects, expected, strict=True):
        assert one.score == pytest.approx(score, abs=1e-3)
        assert one.box == pytest.approx(box, abs=0.05)

    middle = expected[len(expected) // 2][1]
    [some] = detector(folder, min_score=middle).describe([png()])
    assert len(some.objects) < len(expected)
    assert detector(folder, min_score=0.0, most=2).describe([png()])[0].objects == made.objects[:2]


@pytest.mark.slow
@pytest.mark.parametrize("build", [detr, rt_detr, owl, grounding_dino], ids=lambda f: f.__name__)
def test_models_of_every_kind(build, tmp_path):
    from ravqa.testing import check_describer

    folder = build(tmp_path)
    in_words = build in (owl, grounding_dino)
    labels = ("cat", "red dog") if in_words else ()
    made = detector(folder, labels=labels, min_score=0.0)
    [found] = made.describe([png()])
    assert found.objects
    for one in found.objects:
        xmin, ymin, xmax, ymax = one.box
        assert 0 <= xmin < xmax <= 80
        assert 0 <= ymin < ymax <= 60
        assert 0 <= one.score <= 1
        assert one.label in {"cat", "dog", "red dog"}
    assert list(found.objects) == sorted(found.objects, key=lambda one: -one.score)
    check_describer(made)
    if in_words:
        assert made.fingerprint != detector(folder, labels=("cat",), min_score=0.0).fingerprint
        with pytest.raises(UserError, match="finds what `labels` name: set labels"):
            detector(folder)
    else:
        with pytest.raises(UserError, match="has classes of its own: leave out labels"):
            detector(folder, labels=("cat",))


@pytest.mark.slow
def test_what_is_no_detector_is_refused(tmp_path):
    import reader_models

    reader_models.llama(tmp_path)
    with pytest.raises(UserError, match="is not a model that detects objects"):
        detector(str(tmp_path))
    with pytest.raises(UserError, match="the describer objects: no such model file or folder"):
        detector(str(tmp_path / "none"))
    made = detector(detr(tmp_path / "detr"))
    with pytest.raises(DataError, match="not an image"):
        made.describe([b"no image"])
