"""The retriever gallery: articles by their pictures, with an encoder that sees brightness alone."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from ravqa import evaluate
from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Passage, Question
from ravqa.core.registry import Entry
from ravqa.core.settings import Part, validate
from ravqa.corpora.corpus import Corpus
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoded, Encoder
from ravqa.images.decode import open_image
from ravqa.retrievers.gallery import GalleryRetriever

DARK, GREY, LIGHT, WHITE = 10, 120, 190, 250


class Brightness(Encoder):
    """A photo's mean brightness as an angle: similar photos have a large cosine."""

    dim, fingerprint, weights = 2, "brightness", ""
    supports_images = supports_passage_images = True

    def encode_document(self, texts, progress=None):
        return Encoded([np.zeros((0, 2), np.float32) for _ in texts])

    encode_query = encode_document

    def _seen(self, image):
        if image is None:
            return np.zeros((0, 2), np.float32)
        angle = np.asarray(open_image(image)).mean() / 255 * math.pi / 2
        return np.array([[math.cos(angle), math.sin(angle)]], np.float32)

    def encode_question(self, questions):
        return Encoded([self._seen(q.image) for q in questions])

    def encode_passages(self, passages, progress=None):
        return Encoded([self._seen(p.image) for p in passages])


@pytest.fixture(autouse=True)
def brightness(monkeypatch, fresh_cache):
    monkeypatch.setitem(ENCODERS._entries, "brightness", Entry(f"{__name__}:Brightness", ""))


def photo(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value,) * 3).save(path)
    return path


def section(number, article, image=None, **names):
    return Passage(f"{article}#{number}", f"text {number}", article=article, image=image, **names)


TOWERS = Corpus(
    section(number, article, title=title)
    for article, title in (("Q1", "Dark Tower"), ("Q2", "Grey_House"), ("Q3", "white-hall"))
    for number in range(3)
)


def gallery(corpus=TOWERS, **options):
    options = {"encoder": {"name": "brightness"}, "index": {"name": "exact"}} | options
    made = GalleryRetriever(validate(GalleryRetriever.Config, options, "retriever"))
    made.prepare(corpus)
    return made


def asked(image, number=1):
    return Question(number, "What is this?", image=image)


def folder_of_towers(root):
    photo(root / "dark tower" / "front.png", DARK)
    photo(root / "dark tower" / "side.png", WHITE)  # the best of an article's pictures counts
    photo(root / "Grey House-2.png", GREY)
    photo(root / "White Hall.png", LIGHT)
    return root


def test_articles_by_their_best_picture_and_their_sections(tmp_path):
    tested = gallery(images=folder_of_towers(tmp_path / "gallery"))
    found = tested.retrieve([asked(photo(tmp_path / "a.png", WHITE))], 20)[0]
    assert [hit.passage_id for hit in found] == [
        f"{article}#{n}" for article in ("Q1", "Q3", "Q2") for n in range(3)
    ]
    assert [hit.rank for hit in found] == list(range(1, 10))
    of = {hit.passage_id[:2]: hit.score for hit in found}
    for article, value in (("Q1", WHITE), ("Q3", LIGHT), ("Q2", GREY)):
        expected = math.cos((WHITE - value) / 255 * math.pi / 2)
        assert of[article] == pytest.approx(expected, abs=2e-3)


def test_a_number_in_the_name_of_an_article_is_not_one_of_its_pictures(tmp_path):
    corpus = Corpus([section(0, "Q1", title="Boeing"), section(0, "Q2", title="Boeing 747")])
    images = tmp_path / "gallery"
    photo(images / "Boeing-747.png", DARK)
    photo(images / "Boeing-2.png", LIGHT)
    tested = gallery(corpus, images=images)
    found = tested.retrieve([asked(photo(tmp_path / "a.png", DARK))], 2)[0]
    assert [hit.passage_id for hit in found] == ["Q2#0", "Q1#0"]
    assert [hit.score for hit in found] == pytest.approx(
        [1, math.cos(180 / 510 * math.pi)], abs=2e-3
    )


def test_a_name_that_several_articles_have_is_no_ones(tmp_path, caplog):
    names = {"M1": ("Mercury", None), "M2": ("Mercury", None), "M3": ("mercury", "Mercury (god)")}
    corpus = Corpus(section(0, key, title=title, entity=e) for key, (title, e) in names.items())
    images = tmp_path / "gallery"
    photo(images / "Mercury.png", DARK)
    with pytest.raises(DataError) as error:
        gallery(corpus, images=images)
    problem = f"pictures of {images} are of several articles of memory: Mercury"
    assert str(error.value) == f"the retriever gallery: 1 of 1 {problem}"
    photo(images / "Mercury (god).png", LIGHT)
    tested = gallery(corpus, images=images)
    assert f"1 of 2 {problem}" in caplog.text
    found = tested.retrieve([asked(photo(tmp_path / "a.png", DARK))], 9)[0]
    assert [hit.passage_id for hit in found] == ["M3#0"]


def test_the_fingerprint_changes_with_the_pictures(tmp_path):
    def of(images):
        options = {"encoder": {"name": "brightness"}, "images": images}
        return GalleryRetriever(validate(GalleryRetriever.Config, options, "r")).fingerprint

    images = folder_of_towers(tmp_path / "gallery")
    before = of(images)
    assert of(images) == before
    photo(images / "Grey House-3.png", LIGHT)
    assert of(images) != before
    towers = tmp_path / "towers.csv"
    prints = set()
    for title in ("Dark Tower", "White Hall"):
        towers.write_text(f"title,image\n{title},a.png\n", encoding="utf-8")
        prints.add(of(towers))
    assert len(prints) == 2
    towers.unlink()
    with pytest.raises(DataError) as e:
        of(towers)
    assert str(e.value) == f"{towers} cannot be read: No such file or directory"


def test_few_sections_of_few_articles(tmp_path):
    images = folder_of_towers(tmp_path / "gallery")
    tested = gallery(images=images, per_article=1, articles=2)
    found = tested.retrieve([asked(photo(tmp_path / "a.png", GREY))], 20)[0]
    assert [hit.passage_id for hit in found] == ["Q2#0", "Q3#0"]
    assert len(tested.retrieve([asked(tmp_path / "a.png")], 1)[0]) == 1


def test_an_article_with_many_pictures_does_not_crowd_out_others(tmp_path):
    images = folder_of_towers(tmp_path / "gallery")
    for n in range(50):
        photo(images / "dark tower" / f"{n}.png", WHITE - 1)
    tested = gallery(images=images, per_article=1)
    found = tested.retrieve([asked(photo(tmp_path / "a.png", WHITE))], 3)[0]
    assert [hit.passage_id for hit in found] == ["Q1#0", "Q3#0", "Q2#0"]


def test_a_question_without_a_photo_finds_nothing(tmp_path):
    tested = gallery(images=folder_of_towers(tmp_path / "gallery"))
    photo(tmp_path / "a.png", DARK)
    found = tested.retrieve([asked(None), asked(tmp_path / "a.png", 2)], 2)
    assert found[0] == []
    assert found[1][0].passage_id == "Q1#0"


def test_pictures_of_the_passages_themselves(tmp_path):
    dark, light = photo(tmp_path / "d.png", DARK), photo(tmp_path / "l.png", LIGHT)
    corpus = Corpus(
        [section(0, "A"), section(1, "A", dark), section(0, "B", light), section(0, "C")]
    )
    question = asked(photo(tmp_path / "a.png", GREY + 60))
    by_article = gallery(corpus).retrieve([question], 9)[0]
    assert [hit.passage_id for hit in by_article] == ["B#0", "A#0", "A#1"]
    alone = gallery(corpus, expand="passage").retrieve([question], 9)[0]
    assert [hit.passage_id for hit in alone] == ["B#0", "A#1"]


def listed(tmp_path, name):
    """A list in one of the published forms, and its pictures in the folder `pictures`."""
    for file, value in (("Da rk.png", DARK), ("grey.png", GREY)):
        photo(tmp_path / "pictures" / file, value)
    address = "https://upload.example/wiki/0/1/Da%20rk.png"
    rows = {
        "plain.jsonl": [
            {"entity": "Q1", "images": ["Da rk.png"]},
            {"entity": "Q2", "image": "grey.png"},
        ],
        "wiki6m.jsonl": [
            {"wikidata_id": "Q1", "wikipedia_title": "x", "wikipedia_image_url": address},
            {"wikidata_id": "Q2", "wikipedia_image_url": "http://a/grey.png?width=3"},
        ],
        "names.json": {"Q1": "Da rk.png", "Q2": ["grey.png"]},
        "encyclopedic_kb.json": {
            "Q1": {"title": "x", "image_urls": [address, "http://a/grey.png"][:1]},
            "Q2": {"title": "y", "image_urls": ["http://a/b/grey.png"]},
            "Q3": {"title": "z", "image_urls": []},
        },
    }
    path = tmp_path / name
    if name.endswith(".csv"):
        path.write_text("title,file\nDark Tower,Da rk.png\nGrey House,grey.png\n", encoding="utf-8")
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, rows[name])), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows[name]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name", ["plain.jsonl", "wiki6m.jsonl", "names.json", "encyclopedic_kb.json", "towers.csv"]
)
def test_lists_in_their_published_forms(name, tmp_path):
    pictures = tmp_path / "pictures"
    tested = gallery(images=listed(tmp_path, name), folder=pictures, per_article=1)
    found = tested.retrieve([asked(pictures / "grey.png")], 5)[0]
    assert [hit.passage_id for hit in found] == ["Q2#0", "Q1#0"]
    assert found[0].score == pytest.approx(1, abs=1e-3)


def test_pictures_that_are_missing_or_broken(tmp_path, caplog):
    images = tmp_path / "list.jsonl"
    rows = [{"entity": "Q1", "image": "a.png"}, {"entity": "Q2", "image": "b.png"}]
    rows += [{"entity": "Q3", "image": "c.png"}]
    images.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    photo(tmp_path / "a.png", DARK)
    (tmp_path / "c.png").write_bytes(b"no image")
    config = GalleryRetriever.Config(images=images)
    [problem] = config.problems()
    assert problem == (
        f"1 of 3 images of the gallery are missing, such as {tmp_path / 'b.png'} ({images}, line 2)"
        " (missing: skip leaves them out)"
    )
    with pytest.raises(DataError, match="1 of 3 images of the gallery are missing"):
        gallery(images=images)
    photo(tmp_path / "b.png", GREY)
    with pytest.raises(DataError) as error:
        gallery(images=images)
    assert str(error.value) == (
        f"the retriever gallery: {tmp_path / 'c.png'}: not an image (missing: skip leaves them out)"
    )
    (tmp_path / "b.png").unlink()
    assert GalleryRetriever.Config(images=images, missing="skip").problems() == ()
    tested = gallery(images=images, missing="skip")
    assert "2 pictures are left out" in caplog.text
    left_out = (f"no such image: {tmp_path / 'b.png'}", f"{tmp_path / 'c.png'}: not an image")
    assert sorted(tested.left_out) == sorted(left_out)
    found = tested.retrieve([asked(tmp_path / "a.png")], 9)[0]
    assert {hit.passage_id[:2] for hit in found} == {"Q1"}
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError) as error:
        gallery(images=images, missing="skip")
    assert str(error.value) == f"the retriever gallery: none of 3 pictures of {images} is left"


def test_results_list_the_pictures_that_were_left_out(tmp_path):
    images = folder_of_towers(tmp_path / "gallery")
    (images / "Grey House-2.png").write_bytes(b"no image")
    photo(tmp_path / "a.png", DARK)
    asked = {"question_id": 1, "question": "?", "image": "a.png", "answers": ["a"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(asked), encoding="utf-8")
    part = {"name": "gallery", "encoder": {"name": "brightness"}, "missing": "skip"}
    part["images"] = str(images)
    both = {"name": "fusion", "retrievers": [part, {**part, "index": {"name": "exact"}}]}
    options = {"data": tmp_path / "q.jsonl", "output": tmp_path / "out", "retrieval_only": True}
    settings = [f"retriever={json.dumps(both)}", "describer=null"]
    run = evaluate("jsonl", "bm25-retrieval", *settings, corpus=TOWERS, **options)
    line = f"{images / 'Grey House-2.png'}: not an image"
    assert run.results["provenance"]["pictures"] == {"records": 2, "first": [line, line]}


def test_a_gallery_of_other_articles(tmp_path, caplog):
    photo(tmp_path / "g" / "Castle.png", DARK)
    with pytest.raises(DataError, match=r"1 of 1 pictures .* are of no article of .*: Castle"):
        gallery(images=tmp_path / "g")
    photo(tmp_path / "g" / "dark_tower.png", DARK)
    gallery(images=tmp_path / "g")
    assert "1 of 2 pictures" in caplog.text


def test_a_name_as_it_is_written_comes_before_one_that_is_like_it(tmp_path):
    corpus = Corpus([section(0, "the-tower"), section(0, "The Tower"), section(0, "other")])
    photo(tmp_path / "g" / "The Tower.png", DARK)
    photo(tmp_path / "g" / "the-tower.png", LIGHT)
    tested = gallery(corpus, images=tmp_path / "g", articles=1)
    for name in ("The Tower", "the-tower"):
        found = tested.retrieve([asked(tmp_path / "g" / f"{name}.png")], 1)[0]
        assert [hit.passage_id for hit in found] == [f"{name}#0"]


def test_what_cannot_be_a_gallery(tmp_path):
    with pytest.raises(DataError, match="no passage of memory has an image: set images to a list"):
        gallery()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder has no images"):
        gallery(images=tmp_path / "empty")
    nameless = tmp_path / "nameless.jsonl"
    nameless.write_text('{"image": "a.png"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"nameless.jsonl, line 1: no article is named"):
        gallery(images=nameless)
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"entity": "Q1", "image": "../a.png"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"outside.jsonl, line 1: .*leaves the image folder"):
        gallery(images=outside)
    with pytest.raises(UserError, match="needs passages: give a file with --corpus"):
        gallery(None, images=nameless)
    with pytest.raises(UserError, match="passage is for the images of the passages themselves"):
        gallery(images=nameless, expand="passage")


def test_an_encoder_that_sees_no_images(monkeypatch):
    monkeypatch.setattr(Brightness, "supports_passage_images", False)
    message = "encoder brightness sees no images of passages: choose the encoder image"
    with pytest.raises(UserError, match=message):
        GalleryRetriever(GalleryRetriever.Config(encoder=Part(name="brightness")))


def test_missing_images_of_passages_are_counted_before_a_model_is_loaded(tmp_path):
    there, gone = photo(tmp_path / "a.png", DARK), tmp_path / "b.png"
    corpus = Corpus([section(0, "A", there), section(0, "B", gone), section(0, "C")])
    problem = GalleryRetriever.corpus_problem(GalleryRetriever.Config(), corpus)
    assert problem == (
        f"1 of 2 images of the gallery are missing, such as {gone} (passage B#0) (missing: skip "
        "leaves them out)"
    )
    skip = GalleryRetriever.Config(missing="skip")
    assert GalleryRetriever.corpus_problem(skip, corpus) == ""
