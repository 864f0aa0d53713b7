"""The encoder image: vectors of photos and patches, from each kind of model, against the model."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ravqa.collections import Collection
from ravqa.core.errors import UserError
from ravqa.core.records import Passage, Question
from ravqa.core.settings import validate
from ravqa.corpora.corpus import Corpus
from ravqa.encoders import image
from ravqa.encoders.image import ImageEncoder
from ravqa.images.decode import open_image
from ravqa.images.efficientnet import PACKAGES, EfficientNetLite0, pooled
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.late_interaction import LateInteractionRetriever

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


class Quarters:
    """A stand-in for patches: the mean colours of a 7 x 7 grid; black ones have no direction."""

    dim, fingerprint = 3, "quarters"

    def vectors(self, images):
        grids = [open_image(image).resize((7, 7), Image.Resampling.BOX) for image in images]
        return torch.tensor(np.stack([np.asarray(g, np.float32).reshape(49, 3) for g in grids]))


@pytest.fixture
def black_corner(tmp_path):
    pixels = np.random.default_rng(1).integers(1, 255, (7, 7, 3), np.uint8)
    pixels[0, 1] = 0
    Image.fromarray(pixels).save(tmp_path / "corner.png")
    return tmp_path / "corner.png", pixels.reshape(49, 3).astype(np.float64)


def test_patches_have_a_vector_each_and_their_places(photos, black_corner, monkeypatch):
    monkeypatch.setattr(image, "_tower", lambda config: Quarters())
    path, pixels = black_corner
    tested = ImageEncoder(ImageEncoder.Config(patches=True))
    kept = [i for i in range(49) if i != 1]
    expected = pixels[kept] / np.linalg.norm(pixels[kept], axis=1, keepdims=True)
    passages = [Passage("a", "text"), Passage("b", "", image=path)]
    for _ in range(2):  # made, and from the cache
        without, found = tested.encode_passages(passages)
        assert without.shape == (0, 3)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    labels = tested.label_passage(passages[1]).labels
    assert [label.place for label in labels] == [divmod(i, 7) for i in kept]
    assert tested.label_question(Question(0, "?", image=path)).labels == labels
    assert (labels[0].kind, labels[0].name) == ("patch", "patch 1, 1")
    assert tested.label_passage(passages[0]).labels == tested.label_query([]).labels == []
    assert tested.grid == (7, 7)
    assert tested.seen_image(photos[0]).size == (224, 224)


def test_one_vector_is_the_whole_image(photos, monkeypatch):
    monkeypatch.setattr(image, "_tower", lambda config: Halves())
    tested = ImageEncoder()
    [label] = tested.label_passage(Passage("a", "", image=photos[0])).labels
    assert (label.kind, label.place) == ("global", None)
    assert tested.grid is None
    with pytest.raises(UserError, match=r"^the encoder ImageEncoder has no vectors of patches of"):
        tested.seen_image(photos[0])


def test_patches_are_of_the_bundled_model_and_another_encoder(monkeypatch):
    with pytest.raises(UserError) as error:
        validate(ImageEncoder.Config, {"patches": True, "model": "some/clip"}, "encoder")
    assert str(error.value) == "encoder: patches are those of efficientnet-lite0, not of some/clip"
    monkeypatch.setattr(image, "_tower", lambda config: Quarters())
    whole, patches = (ImageEncoder(ImageEncoder.Config(patches=p)) for p in (False, True))
    assert whole.fingerprint != patches.fingerprint


def best_by_hand(query, galleries):
    """MaxSim of a query's patches with those of each picture, written down again."""
    unit = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in (query, *galleries)]
    return [float((unit[0] @ other.T).max(1).sum()) for other in unit[1:]]


@pytest.mark.parametrize("kind", ["gallery", "late-interaction"])
def test_pictures_are_found_by_their_patches(photos, black_corner, monkeypatch, kind):
    monkeypatch.setattr(image, "_tower", lambda config: Quarters())
    places = [*photos, black_corner[0]]
    corpus = Corpus(Passage(str(i), "text", image=path) for i, path in enumerate(places))
    options = {
        "encoder": {"name": "image", "patches": True},
        "index": {"name": "exact", "storage": "float32"},
    }
    kind = RETRIEVERS.get(kind)
    retriever = kind(validate(kind.Config, options, "retriever"))
    retriever.prepare(corpus)
    [hits] = retriever.retrieve([Question(0, "?", image=photos[1])], 4)
    rows = Quarters().vectors(places).numpy().astype(np.float64)
    rows = [grid[grid.any(1)] for grid in rows]
    expected = best_by_hand(rows[1], rows)
    assert [h.passage_id for h in hits] == [str(i) for i in np.argsort(expected)[::-1]]
    np.testing.assert_allclose([h.score for h in hits], sorted(expected)[::-1], atol=1e-4)


def test_pages_of_a_collection_are_found_by_a_photo(tmp_path, monkeypatch, fresh_cache):
    pytest.importorskip("pypdfium2", reason="pip install 'ravqa[pdf]'")
    monkeypatch.setattr(image, "_tower", lambda config: Quarters())
    pages = [Image.new("RGB", (48, 40), colour) for colour in ("red", "green", "blue")]
    pages[0].save(tmp_path / "scan.pdf", save_all=True, append_images=pages[1:], resolution=72)
    settings = {
        "retriever": {
            "name": "late-interaction",
            "encoder": {"name": "image", "patches": True},
        },
        "reader": {"name": "first-words"},
    }
    (tmp_path / "seen.yaml").write_text(json.dumps(settings))
    made = Collection.create(tmp_path / "c", str(tmp_path / "seen.yaml"), pages="images", dpi=72)
    assert made.add_files(tmp_path / "scan.pdf").added == 3
    for number, page in enumerate(pages, 1):
        page.save(tmp_path / "photo.png")
        [(hit, passage)] = made.search("", tmp_path / "photo.png", k=1)
        assert hit.passage_id == f"scan.pdf#page={number}"
        assert (passage.text, passage.extra) == ("", {"page": number})
    assert made.search("what is it?") == []  # texts have no vectors


def test_what_matched_between_images_is_explained(photos, monkeypatch):
    monkeypatch.setattr(image, "_tower", lambda config: Quarters())
    options = {"encoder": {"name": "image", "patches": True}}
    retriever = LateInteractionRetriever(validate(LateInteractionRetriever.Config, options, "r"))
    asked = Question(0, "?", image=photos[0])
    passages = [Passage("a", "", title="T", image=photos[0]), Passage("b", "text")]
    same, other = retriever.explain_passages(asked, passages)
    [part] = same.parts
    np.testing.assert_array_equal(part.found, np.arange(49))  # each patch is most like itself
    np.testing.assert_allclose(same.score, 49, atol=1e-4)
    assert (other.parts, other.score) == ([], 0)


@pytest.mark.slow
def test_the_bundled_networks_patches(photos):
    for package in PACKAGES:
        pytest.importorskip(package)
    tested = ImageEncoder(ImageEncoder.Config(patches=True))
    maps = EfficientNetLite0("the test").feature_maps(photos)
    found = tested.encode_question([Question(i, "?", image=p) for i, p in enumerate(photos)])
    for i, array in enumerate(found):
        expected = [maps[i, :, row, column] for row in range(7) for column in range(7)]
        np.testing.assert_allclose(array, unit(torch.stack(expected)), atol=1e-5)


@pytest.mark.slow
def test_models_that_take_no_images(tmp_path, fresh_cache):
    config = transformers.BertConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"bert takes no images: choose a model that does$"):
        ImageEncoder(ImageEncoder.Config(model=str(tmp_path / "bert")))
