"""The encoder image: one vector per photo, from each kind of model, against the model itself."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ravqa.core.errors import UserError
from ravqa.core.records import Passage, Question
from ravqa.encoders import image
from ravqa.encoders.image import ImageEncoder
from ravqa.images.decode import open_image
from ravqa.images.efficientnet import PACKAGES, EfficientNetLite0, pooled

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


@pytest.fixture
def photos(tmp_path, fresh_cache):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).save(path)
    return paths


def processor():
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return transformers.CLIPImageProcessor(**sides)


def unit(rows):
    return torch.nn.functional.normalize(rows.float(), dim=1).numpy()


def stacked(arrays):
    return np.concatenate(list(arrays))


def vision_tower(folder):
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(**VISION)).eval()
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return model


@pytest.mark.slow
def test_a_vision_tower_of_transformers(tmp_path, photos):
    model = vision_tower(tmp_path / "vit")
    tested = ImageEncoder(ImageEncoder.Config(model=str(tmp_path / "vit"), batch_size=2))
    assert tested.dim == 16
    pixels = processor()(images=[Image.open(p) for p in photos], return_tensors="pt").pixel_values
    with torch.inference_mode():
        expected = unit(model(pixels).pooler_output)
    found = tested.encode_question([Question(i, "?", image=p) for i, p in enumerate(photos)])
    np.testing.assert_allclose(stacked(found), expected, atol=1e-5)
    passages = [Passage("a", "x"), Passage("b", "y", image=photos[1])]
    without, one = tested.encode_passages(passages)
    assert without.shape == (0, 16)
    np.testing.assert_allclose(one, expected[1:2], atol=1e-5)
    assert [v.shape for v in tested.encode_document(["text"])] == [(0, 16)]


class Halves:
    """A stand-in for a tower: the mean colours of an image's red and green."""

    dim, fingerprint, seen = 2, "halves", 0

    def vectors(self, images):
        self.seen += len(images)
        arrays = [np.asarray(open_image(image), np.float32)[..., :2] for image in images]
        return torch.tensor(np.stack([array.mean((0, 1)) for array in arrays]))


def test_images_have_a_vector_and_texts_have_none(photos, monkeypatch):
    tower = Halves()
    monkeypatch.setattr(image, "_tower", lambda config: tower)
    tested = ImageEncoder(ImageEncoder.Config(batch_size=2))
    rows = [None, photos[0], photos[1], photos[0], photos[2]]
    found = tested.encode_passages(
        [Passage(str(i), "text", image=path) for i, path in enumerate(rows)]
    )
    assert [len(array) for array in found] == [0, 1, 1, 1, 1]
    np.testing.assert_allclose(stacked(found[1:3]), unit(Halves().vectors(photos[:2])), atol=1e-6)
    assert tower.seen == 3  # one of them twice
    assert [v.shape for v in tested.encode_document(["text"])] == [(0, 2)]
    assert [v.shape for v in tested.encode_question([Question(1, "?")])] == [(0, 2)]
    # By their content, they are known to the next encoder too.
    again = ImageEncoder(ImageEncoder.Config(batch_size=2))
    copy = [Question(1, "?", image=photos[2].read_bytes())]
    np.testing.assert_allclose(again.encode_question(copy)[0], found[4], atol=1e-6)
    assert tower.seen == 3


def clip(folder):
    """A random CLIP with its processor, and the tokenizer that sentence-transformers wants."""
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=["<pad>", "<unk>"], initial_alphabet=alphabet)
    )
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 20}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 20, "eos_token_id": 1}
    text |= {"num_attention_heads": 2, "bos_token_id": 1}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    transformers.CLIPProcessor(processor(), tokenizer).save_pretrained(folder)
    return model


def clips_vectors(model, photos):
    pixels = processor()(images=[Image.open(p) for p in photos], return_tensors="pt").pixel_values
    with torch.inference_mode():
        return unit(model.visual_projection(model.vision_model(pixels).pooler_output))


@pytest.mark.slow
def test_the_projected_image_features_of_clip(tmp_path, photos):
    model = clip(tmp_path / "clip")
    tested = ImageEncoder(ImageEncoder.Config(model=str(tmp_path / "clip"), cache=False))
    found = tested.encode_question([Question(i, "?", image=p) for i, p in enumerate(photos)])
    np.testing.assert_allclose(stacked(found), clips_vectors(model, photos), atol=1e-5)
    assert tested.dim == 8


@pytest.mark.slow
def test_a_model_of_sentence_transformers(tmp_path, photos):
    library = pytest.importorskip("sentence_transformers")
    model = clip(tmp_path / "clip")
    saved = str(tmp_path / "saved")
    library.SentenceTransformer(str(tmp_path / "clip"), device="cpu").save(saved)
    tested = ImageEncoder(ImageEncoder.Config(model=saved, batch_size=2))
    assert isinstance(tested._tower, image._SentenceTransformer)
    assert tested.dim == 8
    passages = [Passage(str(i), "text", image=p) for i, p in enumerate(photos)]
    np.testing.assert_allclose(
        stacked(tested.encode_passages(passages)), clips_vectors(model, photos), atol=1e-5
    )


@pytest.mark.slow
def test_the_bundled_network(photos):
    for package in PACKAGES:
        pytest.importorskip(package)
    tested = ImageEncoder()
    expected = unit(pooled(EfficientNetLite0("the test").feature_maps(photos)))
    found = tested.encode_question([Question(i, "?", image=p) for i, p in enumerate(photos)])
    np.testing.assert_allclose(stacked(found), expected, atol=1e-5)
    assert tested.weights.startswith("EfficientNet-Lite0")


@pytest.mark.slow
def test_models_that_take_no_images(tmp_path, fresh_cache):
    config = transformers.BertConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"bert takes no images: choose a model that does$"):
        ImageEncoder(ImageEncoder.Config(model=str(tmp_path / "bert")))
