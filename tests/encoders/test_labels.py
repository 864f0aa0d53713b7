"""What each vector of an encoder stands for, written out by hand, beside the vectors themselves."""

import copy
import functools

import flmr_parity as parity
import numpy as np
import pytest

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage, Question
from ravqa.encoders.base import Encoded, Encoder, Label, Labelled, Span, word_label
from ravqa.encoders.flmr import INSTRUCTION, FLMREncoder
from ravqa.encoders.token_bert import TokenBertEncoder
from ravqa.flmr import FLMRConfig, FLMRModelForRetrieval, FLMRProcessor

PHOTO = min((SAMPLE / "val2014").glob("*.jpg"))
WHOLE_TEXT, WHOLE_IMAGE = Label("global", "the whole text"), Label("global", "the whole image")


def word(text, token, part, within=None):
    """The label of a token that stands for `part` of a text, in a word."""
    begin = text.index(part if within is None else within)
    end = begin + len(part if within is None else within)
    start = text.index(part, begin)
    return Label("word", token, (start, start + len(part)), (begin, end))


def mark(name):
    return Label("mark", name)


def test_spaces_at_a_spans_start_belong_to_no_word():
    assert word_label("a  b c", "b", (1, 4), (2, 6)) == Label("word", "b", (3, 4), (3, 6))
    assert word_label("a \n", "x", (1, 3), (0, 1)) == Label("word", "x", (3, 3), (0, 1))


# -- token-bert


def test_passages_of_token_bert_are_labelled(encoder):
    text = "The koalas, wombatzy eat."
    made = encoder.label_passage(Passage("a", text))
    assert made == Labelled(
        text,
        [
            word(text, "the", "The"),
            word(text, "ko", "ko", "koalas"),
            word(text, "##ala", "ala", "koalas"),
            word(text, "##s", "s", "koalas"),
            word(text, "womb", "womb", "wombatzy"),
            word(text, "##atz", "atz", "wombatzy"),
            word(text, "##y", "y", "wombatzy"),
            word(text, "eat", "eat"),
            WHOLE_TEXT,
        ],
    )
    assert len(made.labels) == len(encoder.encode_document([text])[0])
    titled = Passage("a", "It eats.", title="Koala")
    made = encoder.label_passage(titled)
    assert made.text == titled.content
    assert len(made.labels) == len(encoder.encode_passages([titled])[0])


def test_queries_of_token_bert_are_labelled_span_by_span(encoder):
    spans = [Span("What,  koala's?"), Span("wombatzy", 0.5), Span("no", 0), Span("cat", 2)]
    made = encoder.label_query(spans)
    text = "What, koala's? wombatzy no cat"
    assert made == Labelled(
        text,
        [
            word(text, "what", "What"),  # without the comma, which has no vector
            word(text, "ko", "ko", "koala's"),
            word(text, "##ala", "ala", "koala's"),
            word(text, "s", "s", "koala's"),
            word(text, "womb", "womb", "wombatzy"),
            word(text, "##atz", "atz", "wombatzy"),
            word(text, "##y", "y", "wombatzy"),
            word(text, "cat", "cat"),
            WHOLE_TEXT,
        ],
    )
    [vectors] = encoder.encode_query([spans])
    assert len(made.labels) == len(vectors)
    weights = [1, 1, 1, 1, 0.5, 0.5, 0.5, 2]
    np.testing.assert_allclose(np.linalg.norm(vectors[:-1], axis=1), weights, atol=1e-5)
    assert encoder.label_query([Span("?!")]) == Labelled("?!", [])
    assert encoder.label_query([]) == Labelled("", [])


def test_labels_of_token_bert_follow_its_options():
    options = {"global_weight": 0, "skip_punctuation": False}
    options |= {"max_query_length": 6, "max_document_length": 4}
    plain = TokenBertEncoder(TokenBertEncoder.Config(**options))
    text = "Yes, it is so"
    expected = [("yes", "Yes", "Yes,"), (",", ",", "Yes,"), ("it", "it", "it"), ("is", "is", "is")]
    made = plain.label_query([Span(text)])
    assert made == Labelled(text, [word(text, *each) for each in expected])
    made = plain.label_passage(Passage("a", text))
    assert made == Labelled(text, [word(text, "yes", "Yes"), word(text, ",", ",")])


# -- flmr


@functools.cache
def loaded(name, **options):
    return FLMREncoder(FLMREncoder.Config(model=str(parity.checkpoint(name)), **options))


def flmr(name="preflmr", **options):
    """An encoder with options that are read when it encodes."""
    made = copy.copy(loaded(name))
    made.config = made.config.model_copy(update=options)
    return made


def labels_of_question(text):
    return [
        mark("[CLS]"),
        mark("[unused0]"),
        word(text, "what", "what"),
        word(text, "c", "C", "Cxz"),
        word(text, "##x", "x", "Cxz"),
        word(text, "##z", "z", "Cxz"),
        word(text, "?", "?"),
        mark("[SEP]"),
    ]


PATCHES = [
    Label("patch", f"patch {i // 4 + 1}, {i % 4 + 1}", place=(i // 4, i % 4)) for i in range(16)
]


@pytest.mark.parametrize(
    ("wanted", "of_image"),
    [
        ("all", [WHOLE_IMAGE] * 4 + PATCHES),
        ("global", [WHOLE_IMAGE] * 4),
        ("patches", PATCHES),
        ("none", []),
    ],
)
def test_questions_of_preflmr_are_labelled_text_image_patches(wanted, of_image):
    encoder = flmr(instruction="Using it", image_tokens=wanted)
    assert encoder.grid == (None if wanted == "none" else (4, 4))
    for instruction, put_before in ((None, "Using it: "), ("of a", "of a: ")):
        question = Question(0, "what Cxz?", image=PHOTO, instruction=instruction)
        made = encoder.label_question(question)
        text = put_before + "what Cxz?"
        assert made.text == text
        own = labels_of_question(text)
        fillers = [Label("filler", "[MASK]")] * (len(made.labels) - len(own) - len(of_image))
        assert list(made.labels) == own + fillers + of_image
        assert len(made.labels) == len(encoder.encode_question([question])[0])
    alone = Question(0, "what Cxz?")
    made = encoder.label_question(alone)
    assert made.labels[-1] == Label("filler", "[MASK]")
    assert len(made.labels) == len(encoder.encode_question([alone])[0])


def test_queries_of_preflmr_are_their_spans_that_count():
    encoder = flmr(instruction=None)
    spans = [Span("what"), Span("no", 0), Span("Cxz?", 0.1)]
    made = encoder.label_query(spans)
    assert made == encoder.label_question(Question(0, "what Cxz?"))
    assert list(made.labels[:8]) == labels_of_question("what Cxz?")
    assert len(made.labels) == len(encoder.encode_query([spans])[0]) == 32


def test_passages_of_preflmr_are_labelled_without_punctuation():
    encoder = flmr()
    text = "The  paris, xz."
    made = encoder.label_passage(Passage("a", text, image=PHOTO))  # it sees no passages' images
    assert made == Labelled(
        text,
        [
            mark("[CLS]"),
            mark("[unused1]"),
            word(text, "the", "The"),
            word(text, "paris", "paris"),
            word(text, "x", "x", "xz"),
            word(text, "##z", "z", "xz"),
            mark("[SEP]"),
        ],
    )
    assert len(made.labels) == len(encoder.encode_document([text])[0])


def test_images_of_passages_come_first(tmp_path):
    config = FLMRConfig.from_pretrained(parity.checkpoint("preflmr"))
    config.context_concat_output_from_vision_encoder = True
    FLMRModelForRetrieval(config).save_pretrained(tmp_path)
    FLMRProcessor.from_pretrained(parity.checkpoint("preflmr")).save_pretrained(tmp_path)
    encoder = FLMREncoder(FLMREncoder.Config(model=str(tmp_path)))
    for image, whole in ((PHOTO, 4), (None, 0)):
        passage = Passage("a", "the", image=image)
        made = encoder.label_passage(passage)
        text = [mark("[CLS]"), mark("[unused1]"), word("the", "the", "the"), mark("[SEP]")]
        assert made == Labelled("the", [WHOLE_IMAGE] * whole + text)
        assert len(made.labels) == len(encoder.encode_passages([passage])[0])


def test_words_of_a_vocabulary_without_markers_and_its_row_of_padding():
    encoder = loaded("preflmr_encn", instruction=None, doc_maxlen=16)
    text = "The paris, is."
    made = encoder.label_passage(Passage("a", text))
    tokens = [
        ("T", "T", "The"),
        ("h", "h", "The"),
        ("e", "e", "The"),
        ("▁p", "p", "paris,"),
        ("ar", "ar", "paris,"),
        ("is", "is", "paris,"),
        (",", ",", "paris,"),
        ("is", "is", " is."),
        (".", ".", " is."),
    ]
    words = [word(text, *each) for each in tokens[:-2]]
    words += [Label("word", "is", (11, 13), (11, 14)), Label("word", ".", (13, 14), (11, 14))]
    assert made == Labelled(text, [mark("."), *words, mark("</s>"), mark("<pad>")])
    assert len(made.labels) == len(encoder.encode_document([text])[0])
    # A passage that is cut has no row of padding.
    made = encoder.label_passage(Passage("a", text * 9))
    assert made.labels[-1] == mark("</s>")
    assert len(made.labels) == len(encoder.encode_document([text * 9])[0])
    made = encoder.label_question(Question(0, "what is"))
    assert [(x.name, x.span) for x in made.labels] == [
        ("▁", None),
        (".", None),
        ("▁wh", (0, 2)),
        ("at", (2, 4)),
        ("▁", (5, 5)),
        ("is", (5, 7)),
        ("</s>", None),
    ]


def test_a_models_image_is_shown_as_it_is_seen():
    encoder = flmr()
    seen = encoder.seen_image(PHOTO)
    assert (seen.size, seen.mode) == ((32, 32), "RGB")
    expected = encoder._processor.image_processor([seen])
    assert np.array_equal(expected, encoder._processor.image_processor([PHOTO]))
    assert np.array_equal(encoder.seen_image(PHOTO.read_bytes()), seen)
    with pytest.raises(DataError, match="image given as bytes: not an image"):
        encoder.seen_image(b"no image")
    assert encoder.config.instruction == INSTRUCTION
    assert flmr("flmr").grid is None  # it has no vectors of patches


# -- encoders without labels


class Plain(Encoder):
    """An encoder with nothing but the two methods that every encoder has."""

    dim, fingerprint = 3, "plain"

    def encode_document(self, texts, progress=None):
        return Encoded(np.full((len(text), 3), 3**-0.5, np.float32) for text in texts)

    def encode_query(self, queries):
        return Encoded()


def test_an_encoder_without_labels_says_so():
    plain = Plain()
    assert not plain.labels
    assert not plain.supports_images
    assert not plain.supports_passage_images
    assert plain.grid is None
    assert plain.passages_fingerprint == "plain"
    assert isinstance(plain.config, Plain.Config)
    assert Plain("given").config == "given"
    message = "^the encoder Plain cannot say which words its vectors are for$"
    for call in (
        lambda: plain.label_passage(Passage("a", "b")),
        lambda: plain.label_query([Span("b")]),
        lambda: plain.label_question(Question(0, "b")),
    ):
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(UserError, match=r"^the encoder Plain has no vectors of patches of images$"):
        plain.seen_image(PHOTO)
    made = plain.encode_passages([Passage("a", "b", title="T"), Passage("c", "dd")])
    assert list(map(len, made)) == [len(Passage("a", "b", title="T").content), 2]
