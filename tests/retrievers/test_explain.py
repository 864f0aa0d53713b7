"""Matches of late interaction: their sum is the index's score, their labels are where they say."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import slow_but
from flmr_parity import one_thread  # noqa: F401

from ravqa.core.errors import UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Description, Passage, Question, Tag
from ravqa.core.settings import Part
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import Span
from ravqa.retrievers.late_interaction import LateInteractionRetriever

FLMR = Path(__file__).parents[1] / "data" / "flmr-parity"
PHOTOS = sorted((SAMPLE / "val2014").glob("*.jpg"))
EXACT = Part(name="exact", storage="float32")
PASSAGES = [
    Passage("koala", "The koala's diet: eucalyptus leaves, and little else.", title="Koala"),
    Passage("panda", "The giant panda lives almost wholly on bamboo.", title="Giant panda"),
    Passage("umlaut", "K\u00f6nigspinguine fressen Fische \u2014 \U0001f41f!"),
]
QUESTION = Question(
    1,
    "What does this animal mainly eat?",
    image=PHOTOS[0],
    description=Description(tags=(Tag(("koala", "native bear"), 0.8), Tag(("sloth bear",), 0.2))),
)


def retriever(encoder, index=EXACT):
    made = LateInteractionRetriever(
        LateInteractionRetriever.Config(encoder=encoder, index=index, depth=10)
    )
    made.prepare(Corpus(PASSAGES))
    return made


def words(text, labels):
    return [text[slice(*label.span)] for label in labels if label.kind == "word"]


@pytest.fixture(scope="module")
def text_retriever(minilm_folder):
    return retriever(Part(name="token-bert", model=str(minilm_folder)))


@pytest.mark.parametrize(
    ("name", "tokens"),
    slow_but(
        [("preflmr", "all"), ("flmr", "none"), ("preflmr_encn", "global")],
        list(itertools.product(["preflmr", "flmr", "preflmr_encn"], ["all", "global", "none"])),
    ),
)
def test_matches_of_question_and_image_add_up_to_the_index_score(name, tokens):
    checkpoint = FLMR / name / "checkpoint_context_names"
    made = retriever(Part(name="flmr", model=str(checkpoint), image_tokens=tokens))
    questions = [
        QUESTION,
        Question(2, "Where?"),
        Question(3, "Which, \U0001f43c?", image=PHOTOS[1]),
    ]
    for question in questions:
        hits = made.retrieve([question], 3)[0]
        explained = made.explain(question, [hit.passage_id for hit in hits])
        for hit, explanation in zip(hits, explained, strict=True):
            assert explanation.score == pytest.approx(hit.score, abs=1e-4)


def test_matches_of_text_forms_add_up_to_the_index_score(text_retriever):
    plain = Question(2, "What is eaten?")
    for question in (QUESTION, plain):
        hits = text_retriever.retrieve([question], 3)[0]
        explained = text_retriever.explain(question, [hit.passage_id for hit in hits])
        for hit, explanation in zip(hits, explained, strict=True):
            assert explanation.score == pytest.approx(hit.score, abs=1e-4)
    assert [hit.passage_id for hit in text_retriever.retrieve([QUESTION], 1)[0]] == ["koala"]


def test_words_are_where_their_labels_say(text_retriever):
    [explanation] = text_retriever.explain(QUESTION, ["koala"])
    text = explanation.text
    assert text == "Koala: The koala's diet: eucalyptus leaves, and little else."
    # Punctuation has no vector; the last one is the whole text's.
    found = words(text, explanation.labels)
    assert "".join(found) == "KoalaThekoalasdieteucalyptusleavesandlittleelse"
    assert [label.kind for label in explanation.labels].count("global") == 1
    assert explanation.labels[-1].kind == "global"
    wholes = dict.fromkeys(text[slice(*label.word)] for label in explanation.labels if label.word)
    assert list(wholes) == ["Koala", "The", "koala", "s", "diet", "eucalyptus", "leaves"] + [
        "and",
        "little",
        "else",
    ]
    asked = {part.text: part for part in explanation.parts}
    # The best of a class's names, and the tags behind the question.
    assert "What does the koala mainly eat?" in asked
    assert "What does this animal mainly eat? koala sloth bear" in asked
    part = asked["What does the koala mainly eat?"]
    assert "".join(words(part.text, part.labels)) == "Whatdoesthekoalamainlyeat"
    koala = next(i for i, x in enumerate(part.labels) if part.text[slice(*x.word)] == "koala")
    best = explanation.labels[part.found[koala]]
    assert text[slice(*best.word)].lower() == "koala"


def test_letters_beyond_ascii_keep_their_places(text_retriever):
    [explanation] = text_retriever.explain(QUESTION, ["umlaut"])
    text = explanation.text
    wholes = dict.fromkeys(text[slice(*x.word)] for x in explanation.labels if x.word)
    assert "K\u00f6nigspinguine" in wholes
    assert "Fische" in wholes


# In the vocabulary of two languages ":" alone begins with another token than behind a word: the end
# of the instruction is not found and all of it counts, as in the original.
@pytest.mark.parametrize(("name", "counted"), [("preflmr", ""), ("preflmr_encn", "Usingtheimage:")])
def test_a_question_has_words_global_vectors_and_a_grid_of_patches(name, counted):
    model = str(FLMR / name / "checkpoint_context_names")
    made = retriever(Part(name="flmr", model=model, instruction="Using the image"))
    [explanation] = made.explain(QUESTION, ["koala"])
    [part] = explanation.parts
    kinds = [label.kind for label in part.labels]
    assert [kind for kind, _ in itertools.groupby(kinds) if kind in ("global", "patch")] == [
        "global",
        "patch",
    ]
    assert part.text.startswith("Using the image: What")
    seen = words(part.text, part.labels)
    assert "".join(seen) == f"{counted}Whatdoesthisanimalmainlyeat?"
    image, (rows, columns) = made.seen_image(QUESTION.image)
    places = [label.place for label in part.labels if label.kind == "patch"]
    assert places == list(itertools.product(range(rows), range(columns)))
    assert image.size == (32, 32)
    gains = part.gains
    assert gains.shape == (len(part.labels),)
    np.testing.assert_allclose(
        gains, part.products[np.arange(len(part.labels)), part.found], atol=1e-7
    )


def test_a_patch_is_at_its_place_in_the_image():
    """Changing the pixels of one patch changes the tower's features of that patch the most."""
    import torch
    from PIL import Image

    made = retriever(Part(name="flmr", model=str(FLMR / "preflmr" / "checkpoint_context_names")))
    encoder = made.encoder
    image, (rows, columns) = made.seen_image(QUESTION.image)
    pixels = np.asarray(image).copy()
    side = pixels.shape[0] // rows
    row, column = 1, 2
    pixels[row * side : (row + 1) * side, column * side : (column + 1) * side] = 255
    both = encoder._processor.image_processor([image, Image.fromarray(pixels)])
    with torch.inference_mode():
        first, second = encoder._model.encode_images(both).patches
    changed = (first - second).norm(dim=-1)
    assert int(changed.argmax()) == row * columns + column


def test_a_passages_image_is_part_of_its_matches(tmp_path):
    import torch

    from ravqa.flmr import FLMRConfig, FLMRModelForRetrieval, FLMRProcessor

    checkpoint = str(FLMR / "preflmr" / "checkpoint_context_names")
    config = FLMRConfig.from_pretrained(checkpoint)
    config.context_concat_output_from_vision_encoder = True
    torch.manual_seed(0)
    FLMRModelForRetrieval(config).save_pretrained(tmp_path)
    FLMRProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    made = retriever(Part(name="flmr", model=str(tmp_path)))
    made.prepare(Corpus([replace(PASSAGES[0], image=PHOTOS[2]), PASSAGES[1]]))
    hits = made.retrieve([QUESTION], 2)[0]
    explained = made.explain(QUESTION, ["koala", "panda"])
    scores = {hit.passage_id: hit.score for hit in hits}
    for explanation in explained:
        assert explanation.score == pytest.approx(scores[explanation.passage_id], abs=1e-4)
    counts = [[label.name for label in e.labels].count("the whole image") for e in explained]
    assert counts == [config.mapping_network_prefix_length, 0]


def test_what_cannot_be_explained_is_said(text_retriever, monkeypatch):
    with pytest.raises(KeyError):
        text_retriever.explain(QUESTION, ["nothing"])
    monkeypatch.setattr(type(text_retriever.encoder), "labels", False)
    with pytest.raises(UserError, match="token-bert cannot say which words"):
        text_retriever.explain(QUESTION, ["koala"])


def test_labels_of_weighted_and_cut_spans(encoder):
    spans = [Span("what eats"), Span("nothing", 0.0), Span("koala bear", 0.5)]
    labelled = encoder.label_query(spans)
    [vectors] = encoder.encode_query([spans])
    assert len(labelled.labels) == len(vectors)
    assert "".join(words(labelled.text, labelled.labels)) == "whateatskoalabear"
    asked = encoder.label_query([Span("Isn't it a koala?")])
    wholes = dict.fromkeys(asked.text[slice(*x.word)] for x in asked.labels if x.word)
    assert list(wholes) == ["Isn't", "it", "a", "koala"]
    long = [Span(" ".join(["word"] * 100))]
    assert len(encoder.label_query(long).labels) == len(encoder.encode_query([long])[0])
    assert encoder.label_query([Span("")]).labels == []
