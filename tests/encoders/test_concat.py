"""The encoder concat: its products against the weighted cosines of the encoders that it joins."""

import numpy as np
import pytest

from ravqa.core.errors import UserError
from ravqa.core.records import Passage, Question
from ravqa.core.registry import Entry
from ravqa.core.settings import validate
from ravqa.corpora.corpus import Corpus
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoded, Encoder
from ravqa.encoders.concat import ConcatEncoder
from ravqa.images.decode import open_image
from ravqa.retrievers.late_interaction import LateInteractionRetriever
from ravqa.testing import check_encoder

IMAGES = {b"red": (1, 0), b"blue": (0, 1), b"violet": (0.6, 0.8)}
TEXTS = {"tower": (1, 0, 0), "river": (0, 1, 0), "old tower": (0.8, 0, 0.6), "": None}


def seen(image):
    """The vector of an image; of one that is not listed, by its mean brightness."""
    if image is None or image in IMAGES:
        return IMAGES.get(image)
    angle = np.asarray(open_image(image)).mean() / 255
    return np.cos(angle), np.sin(angle)


def read(text):
    """The vector of a text; of one that is not listed, how often it has some letters."""
    counts = np.array([text.count(letter) for letter in "aeo"], float)
    return TEXTS.get(text, counts / np.linalg.norm(counts) if counts.any() else None)


def rows(vectors, dim):
    return Encoded(
        [np.array([] if v is None else [v], np.float32).reshape(-1, dim) for v in vectors],
        tokens=len(vectors),
    )


class Colours(Encoder):
    dim, fingerprint, weights = 2, "colours", "colours"
    supports_images = supports_passage_images = True

    def encode_document(self, texts, progress=None):
        return rows([None] * len(texts), 2)

    encode_query = encode_document

    def encode_question(self, questions):
        return rows([seen(q.image) for q in questions], 2)

    def encode_passages(self, passages, progress=None):
        return rows([seen(p.image) for p in passages], 2)


class Words(Encoder):
    dim, fingerprint, weights = 3, "words", "words"

    def encode_document(self, texts, progress=None):
        return rows([read(text) for text in texts], 3)

    def encode_query(self, queries):
        return rows([read(" ".join(s.text for s in spans)) for spans in queries], 3)


class Several(Words):
    def encode_document(self, texts, progress=None):
        return Encoded([np.eye(3, dtype=np.float32)[:2] for _ in texts])


@pytest.fixture(autouse=True)
def encoders(monkeypatch, fresh_cache):
    for name, kind in (("colours", "Colours"), ("words", "Words"), ("several", "Several")):
        monkeypatch.setitem(ENCODERS._entries, name, Entry(f"{__name__}:{kind}", ""))


def concat(*names, **options):
    parts = [{"name": name} for name in names or ("colours", "words")]
    values = {"encoders": parts, **options}
    return ConcatEncoder(validate(ConcatEncoder.Config, values, "encoder"))


PASSAGES = [
    Passage("a", "tower", image=b"red"),
    Passage("b", "river", image=b"blue"),
    Passage("c", "old tower", image=b"violet"),
]


@pytest.mark.parametrize("weights", [(), (1.0, 1.0), (0.3, 2.0)])
def test_products_are_cosines_weighted_by_the_squares(weights):
    made = concat(weights=weights)
    of_images, of_texts = (weight**2 for weight in weights or (1.0, 1.0))
    questions = [Question(1, "tower", b"violet"), Question(2, "river", b"red")]
    queries, passages = made.encode_question(questions), made.encode_passages(PASSAGES)
    assert made.dim == 5
    for question, query in zip(questions, queries, strict=True):
        for passage, vector in zip(PASSAGES, passages, strict=True):
            image = np.dot(IMAGES[question.image], IMAGES[passage.image])
            text = np.dot(TEXTS[question.question], TEXTS[passage.text])
            expected = (of_images * image + of_texts * text) / (of_images + of_texts)
            assert (query @ vector.T).item() == pytest.approx(expected, abs=1e-6)


def test_what_an_item_lacks_is_zero_and_an_item_that_lacks_all_has_no_vector():
    made = concat(weights=(2, 1))
    blank = [Passage("a", "tower"), Passage("b", "", image=b"blue"), Passage("c", "")]
    found = made.encode_passages(blank)
    assert [array.tolist() for array in found] == [[[0, 0, 1, 0, 0]], [[0, 1, 0, 0, 0]], []]
    assert found[2].shape == (0, 5)
    assert found.stats.tokens == 6
    [text] = made.encode_document(["river"])
    assert text.tolist() == [[0, 0, 0, 1, 0]]
    assert made.encode_question([Question(1, "river")])[0].tolist() == text.tolist()


def test_a_search_by_both():
    options = {"encoder": {"name": "concat", "encoders": [{"name": "colours"}, {"name": "words"}]}}
    config = validate(LateInteractionRetriever.Config, options | {"index": {"name": "exact"}}, "r")
    tested = LateInteractionRetriever(config)
    assert tested.supports_images
    tested.prepare(Corpus(PASSAGES))
    [found] = tested.retrieve([Question(1, "tower", b"blue")], 3)
    scores = {hit.passage_id: hit.score for hit in found}
    assert scores == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.8}, abs=1e-3)
    assert found[0].passage_id == "c"


def test_the_conformance_suite():
    check_encoder(concat("words", "colours", weights=(1, 2)))


def test_abilities_and_fingerprints_are_those_of_the_encoders():
    assert not concat("words", "words").supports_images
    assert not concat("words", "words").supports_passage_images
    made = [
        concat(),
        concat(weights=(2, 1)),
        concat("words", "colours"),
        concat("words", "words"),
    ]
    assert len({one.fingerprint for one in made}) == 4
    assert len({one.passages_fingerprint for one in made}) == 4
    assert concat().weights == "colours, words"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"weights": [1]}, "1 weights for 2 encoders"),
        ({"weights": [1, 0]}, "weights are numbers above 0"),
        ({"encoders": [{"name": "words"}]}, "at least 2"),
        ({"encoders": [{"name": "wrods"}, {"name": "words"}]}, "wrods"),
    ],
)
def test_settings_that_are_refused(options, problem):
    with pytest.raises(UserError, match=problem):
        concat(**options)


def test_encoders_of_several_vectors_are_refused():
    with pytest.raises(UserError) as error:
        concat("colours", "several").encode_document(["tower"])
    assert str(error.value) == (
        "the encoder concat: it joins encoders with one vector per item; several has 2 of one"
    )
