"""The conformance suite of encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ravqa.core.errors import UserError
from ravqa.core.records import Passage, Question
from ravqa.encoders.base import Encoded, Encoder, Span, Vectors, checked_vectors
from ravqa.testing.asserting import conformance, picture, refused, require, require_names

_TEXTS = (
    "Koalas eat the leaves of eucalyptus trees.",
    "A lighthouse, built of stone in 1856, guards the harbour.",
    "water",
)
_QUERIES = (
    (Span("what does this animal eat", 1.0), Span("koala bear", 0.5)),
    (Span("where is it"),),
)


@conformance(Encoder)
def check_encoder(encoder: Encoder, *, atol: float = 1e-3) -> None:
    """Check an encoder: it encodes a few texts, queries and, if it sees them, images.

    Args:
        encoder: the encoder, built.
        atol: how far a component may be from that of the same text in another batch.

    Raises:
        AssertionError: the encoder breaks the contract of `ravqa.encoders.base.Encoder`.
    """
    name = type(encoder).__name__
    require_names(encoder, "fingerprint", "passages_fingerprint")
    require(isinstance(encoder.weights, str), f"{name}.weights is a text, blank without weights")
    dim = encoder.dim
    require(isinstance(dim, int) and dim > 0, f"{name}.dim is the length of a vector, got {dim!r}")
    progress: list[int] = []
    texts = encoder.encode_document(list(_TEXTS), progress.append)
    found = _checked(encoder, texts, len(_TEXTS), f"{name}.encode_document")
    require(sum(progress) in (0, len(_TEXTS)), f"{name} reports each passage once to `progress`")
    for text, array in zip(_TEXTS, found, strict=True):
        require(len(array), f"{name}.encode_document gives vectors of {text!r}")
        lengths = np.linalg.norm(array.astype(np.float64), axis=1)
        require(
            float(np.abs(lengths - 1).max()) < 0.01,
            f"{name}.encode_document gives vectors of unit length, got {lengths.tolist()}",
        )
    alone = [encoder.encode_document([text])[0] for text in _TEXTS]
    _same(f"{name}.encode_document", found, alone, atol)
    queries = [list(spans) for spans in _QUERIES]
    asked = _checked(encoder, encoder.encode_query(queries), 2, f"{name}.encode_query")
    _same(f"{name}.encode_query", asked, [encoder.encode_query([q])[0] for q in queries], atol)
    require(list(encoder.encode_document([])) == [], f"{name}.encode_document returns [] for []")
    require(list(encoder.encode_query([])) == [], f"{name}.encode_query returns [] for []")
    _checked(encoder, encoder.encode_document(["", " "]), 2, f"{name} for texts without a word")
    passages = [Passage(str(i), text) for i, text in enumerate(_TEXTS)]
    own = _checked(encoder, encoder.encode_passages(passages), 3, f"{name}.encode_passages")
    _same(f"{name}.encode_passages of text alone", own, found, atol)
    if encoder.supports_images:
        _check_questions(encoder, atol)
    if encoder.supports_passage_images:
        _check_passage_images(encoder, atol)
    if encoder.labels:
        _check_labels(encoder, passages, own, queries, asked)
    else:
        sentence = f"{name} does not set `labels`: label_passage raises UserError"
        refused(UserError, lambda: encoder.label_passage(passages[0]), sentence)


def _check_questions(encoder: Encoder, atol: float) -> None:
    name = type(encoder).__name__
    questions = [
        Question(1, "What is this?", image=picture(64, 48, 200)),
        Question(2, "And without a picture?"),
        Question(3, "What is this?", image=picture(48, 64, 20)),
    ]
    found = _checked(encoder, encoder.encode_question(questions), 3, f"{name}.encode_question")
    require(all(map(len, found)), f"{name}.encode_question gives vectors of each question")
    alone = [encoder.encode_question([question])[0] for question in questions]
    _same(f"{name}.encode_question", found, alone, atol)
    one, other = found[0], found[2]
    require(
        one.shape != other.shape or not np.allclose(one, other, atol=1e-6),
        f"{name} sees images: two images with the same question have different vectors",
    )
    if encoder.labels:
        labels = encoder.label_question(questions[0]).labels
        require(len(labels) == len(one), f"{name}.label_question gives a label for each vector")


def _check_passage_images(encoder: Encoder, atol: float) -> None:
    name = type(encoder).__name__
    with TemporaryDirectory() as folder:
        files = [Path(folder, f"{shade}.png") for shade in (200, 20)]
        for file in files:
            file.write_bytes(picture(64, 48, int(file.stem)))
        passages = [
            Passage("0", _TEXTS[0], image=files[0]),
            Passage("1", _TEXTS[1]),
            Passage("2", _TEXTS[0], image=files[1]),
        ]
        what = f"{name}.encode_passages of images"
        found = _checked(encoder, encoder.encode_passages(passages), 3, what)
        _same(what, found, [encoder.encode_passages([p])[0] for p in passages], atol)
        require(
            found[0].shape != found[2].shape or not np.allclose(found[0], found[2], atol=1e-6),
            f"{name} sees passages' images: with two images, a text has different vectors",
        )
        if encoder.labels:
            labels = encoder.label_passage(passages[0]).labels
            sentence = f"{name}.label_passage gives a label for each vector of text and image"
            require(len(labels) == len(found[0]), sentence)


def _check_labels(
    encoder: Encoder,
    passages: Sequence[Passage],
    vectors: Encoded,
    queries: Sequence[Sequence[Span]],
    asked: Encoded,
) -> None:
    name = type(encoder).__name__
    made = [(encoder.label_passage(p), v) for p, v in zip(passages, vectors, strict=True)]
    made += [(encoder.label_query(q), v) for q, v in zip(queries, asked, strict=True)]
    for labelled, own in made:
        require(
            len(labelled.labels) == len(own),
            f"{name} gives a label for each vector of {labelled.text!r}: {len(own)} are expected, "
            f"got {len(labelled.labels)}",
        )
        for label in labelled.labels:
            for span in (label.span, label.word):
                inside = span is None or 0 <= span[0] <= span[1] <= len(labelled.text)
                require(inside, f"{name}: the span {span} lies in the text {labelled.text!r}")


def _checked(encoder: Encoder, found: Sequence[Vectors], items: int, what: str) -> Encoded:
    arrays = checked_vectors(encoder, found, items)
    for array in arrays:
        require(
            array.dtype in (np.float32, np.float16),
            f"{what} gives float32 or float16, got {array.dtype}",
        )
        require(bool(np.any(array != 0, axis=1).all()), f"{what} gives no vector of zeros")
    return arrays


def _same(what: str, some: Sequence[Vectors], others: Sequence[Vectors], atol: float) -> None:
    for one, other in zip(some, others, strict=True):
        require(
            one.shape == other.shape and np.allclose(one, other, rtol=0, atol=atol),
            f"{what} gives a text the same vectors whatever is encoded with it, in order",
        )
