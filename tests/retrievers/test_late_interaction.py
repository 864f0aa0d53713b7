"""Where late interaction keeps what, what it passes on, and the vectors that it scores."""

import json

import collection_files
import numpy as np
import pytest
from messages import said

from ravqa.core.errors import DataError, PromptError, UserError
from ravqa.core.records import Passage, Question
from ravqa.core.settings import fingerprint, validate
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import Encoded, EncodingStats, Label, Labelled
from ravqa.indexes.exact import ExactIndex
from ravqa.indexes.segmented.store import FORMAT
from ravqa.retrievers.late_interaction import LateInteractionRetriever, _float32, _unit

collection_files.register()
pytestmark = pytest.mark.usefixtures("fresh_cache")

TEXTS = ["koala eats leaves", "tower of iron", "river at night"]
CORPUS = Corpus([Passage(f"p{i}", text) for i, text in enumerate(TEXTS)])
PLAIN = {"question": 1.0, "replaced": 0.0, "appended": 0.0}


def retriever(**options):
    given = {"encoder": {"name": "hashed"}, "index": {"name": "exact"}, "query": PLAIN, **options}
    return LateInteractionRetriever(validate(LateInteractionRetriever.Config, given, "retriever"))


def prepared(**options):
    made = retriever(**options)
    made.prepare(CORPUS)
    return made


def ask(text, **options):
    return Question(1, text, **options)


def test_its_fingerprint_is_made_of_encoder_index_query_and_depth():
    tested = retriever(depth=7)
    config = tested.config
    assert tested.fingerprint == fingerprint(
        "late-interaction/1",
        "hashes/0",
        config.index.model_dump(),
        config.query.model_dump(),
        7,
    )
    assert LateInteractionRetriever.depth(config) == 7
    assert tested.weights == "hashes of seed 0"
    assert (tested.supports_images, tested.encodes) == (False, True)
    assert (tested.explainer, LateInteractionRetriever.explains(config)) == (None, False)
    assert dict(tested.encoded) == {"queries": EncodingStats()}
    assert tested.seen_image(b"") is None


def test_an_image_without_text_needs_an_encoder_that_sees_it(tmp_path, monkeypatch):
    image = tmp_path / "page.png"
    image.write_bytes(b"never opened")
    blank = Passage("b", " ", image=image)
    corpus = Corpus([Passage("a", "text", image=image), blank], source="pages.jsonl")
    expected = (
        "pages.jsonl: the passage 'b' is an image without text, which the encoder hashed does not "
        "see: give it a text, or choose an encoder that sees images of passages"
    )
    tested = retriever()
    assert said(DataError, tested.prepare, corpus) == expected
    assert said(DataError, tested.encode, corpus) == expected
    tested.prepare(Corpus([Passage("a", "text"), Passage("c", "", title="T", image=image)]))
    monkeypatch.setattr(type(tested.encoder), "supports_passage_images", True)
    tested.prepare(corpus)
    gone = tmp_path / "gone.png"
    passages = [Passage("a", "text", image=image), Passage("b", "text", image=gone)]
    assert said(DataError, tested.encode, Corpus(passages, source="pages.jsonl")) == (
        f"pages.jsonl: 1 of 2 images of passages are missing, such as {gone} (passage b)"
    )


def test_its_index_is_kept_by_corpus_encoder_kind_and_what_is_fixed_in_it(fresh_cache, monkeypatch):
    opened = []
    real = ExactIndex.open

    def watched(path, config=None, *, fingerprint):
        opened.append((path, fingerprint))
        return real(path, config, fingerprint=fingerprint)

    monkeypatch.setattr(ExactIndex, "open", watched)
    tested = prepared()
    fixed = ExactIndex.fixed(tested._index_config)
    key = fingerprint(CORPUS.fingerprint, "hashes/0", f"exact/{FORMAT}", fixed)
    path = fresh_cache / "indexes" / key
    assert [entry.name for entry in (fresh_cache / "indexes").iterdir()] == [key]
    prepared()
    assert opened == [(path, key)] * 2
    # The vectors were needed for the index alone.
    assert list((fresh_cache / "embeddings").rglob("*.npy")) == []


def test_passages_are_encoded_before_the_index_is_built(fresh_cache):
    seen = []
    tested = retriever()
    words = sum(len(text.split()) for text in TEXTS)
    stats = tested.encode(CORPUS, lambda *step: seen.append(step))
    assert (stats.items, stats.vectors) == (3, words)
    assert seen[-1] == ("encoding passages", 3, 3)
    name = fingerprint(CORPUS.fingerprint, "hashes/0")
    assert (fresh_cache / "embeddings" / name).is_dir()
    assert not (fresh_cache / "indexes").is_dir() or not list((fresh_cache / "indexes").iterdir())
    del seen[:]
    tested.prepare(CORPUS, lambda *step: seen.append(step))
    encoded = [done for what, done, _ in seen if what == "encoding passages"]
    assert set(encoded) == {3}  # nothing is encoded again
    assert ("writing the index", 3, 3) in seen
    assert tested.encode(CORPUS) is None
    assert retriever().encode(CORPUS) is None
    assert tested.encoded["passages"] == stats
    assert prepared().encoded["passages"] == stats  # kept with the index


def test_vectors_for_an_index_of_the_callers_are_deleted_in_the_end(fresh_cache):
    tested, seen = retriever(), []

    def folders():
        return [p for p in (fresh_cache / "embeddings").iterdir() if p.is_dir()]

    def stop():
        with tested.embedded(CORPUS, lambda *step: seen.append(step)) as vectors:
            assert [len(rows) for rows in vectors] == [3, 3, 3]
            raise KeyError("stopped")

    with pytest.raises(KeyError):
        stop()
    assert seen[-1] == ("encoding passages", 3, 3)
    assert len(folders()) == 1
    with tested.embedded(CORPUS) as vectors:
        assert len(list(vectors)) == 3
    assert folders() == []


def test_what_is_asked_too_early_or_without_passages():
    assert said(ValueError, retriever().retrieve, [ask("x")], 1) == "call prepare(corpus) first"
    assert said(UserError, retriever().prepare, None) == (
        "the retriever late-interaction needs passages: give a file with --corpus, or choose "
        "--retriever none"
    )


def test_the_index_of_a_collection_is_searched_as_it_is(fresh_cache):
    """A corpus that comes with its own index is not encoded."""
    index = prepared()._index

    class Indexed(Corpus):
        def index_for(self, encoder, kind):
            self.asked = encoder, kind
            return self.index

    corpus = Indexed([Passage("p0", "not encoded")])
    corpus.index = index
    tested = retriever()
    assert tested.encode(corpus) is None
    tested.prepare(corpus)
    assert corpus.asked == ("hashes/0", "exact")
    assert [hits[0].passage_id for hits in tested.retrieve([ask("iron tower")], 1)] == ["p1"]
    assert tested._corpus == index.content


def test_a_question_without_a_vector_is_named(caplog):
    tested = prepared()
    assert tested.retrieve([ask("koala"), ask(" "), ask("")], 2)[1:] == [[], []]
    [line] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert line == (
        "the retriever late-interaction finds nothing for 2 questions, such as ' ': the encoder "
        "has no vector for any of their words"
    )


@pytest.mark.parametrize(("allowed", "named"), [(["p1"], True), (["gone"], False)])
def test_a_question_without_a_vector_is_named_among_chosen_passages(caplog, allowed, named):
    assert prepared().retrieve([ask(" " * 100)], 2, allowed_ids=allowed) == [[]]
    lines = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [f"such as {' ' * 80 + '...'!r}: the encoder" in line for line in lines] == [
        True
    ] * named


def test_rankings_are_kept_by_depth_and_cut_to_what_is_asked(monkeypatch):
    tested = prepared(depth=2)
    searched = []
    search = type(tested)._search
    monkeypatch.setattr(
        type(tested),
        "_search",
        lambda self, index, plans, *rest: (
            searched.append((len(plans), *rest)),
            search(self, index, plans, *rest),
        )[1],
    )
    assert [len(hits) for hits in tested.retrieve([ask("iron"), ask("night")], 1)] == [1, 1]
    assert [len(hits) for hits in tested.retrieve([ask("iron")], 2)] == [2]
    assert [len(hits) for hits in tested.retrieve([ask("iron")], 3)] == [3]
    assert [len(hits) for hits in tested.retrieve([ask("iron")], 1, allowed_ids=["p0"])] == [1]
    assert searched == [(2, 2), (1, 3), (1, 2, frozenset({"p0"}))]


class Labelling(collection_files.HashEncoder):
    """Labels the words that have vectors, and perhaps one more."""

    labels = True
    more = 0

    def label_query(self, spans):
        return self.labelled(" ".join(span.text for span in spans))

    def label_passage(self, passage):
        return self.labelled(passage.content)

    def labelled(self, text):
        words = [*text.split(), *["more"] * self.more]
        return Labelled(text, [Label("word", word) for word in words])


def test_matches_are_the_terms_of_the_score():
    tested = prepared()
    encoder = tested.encoder = Labelling(tested.encoder.config)
    assert tested.explainer is tested
    question = ask("iron tower zebra")
    [[hit]] = tested.retrieve([question], 1)
    [explanation] = tested.explain(question, ["p1"])
    assert (explanation.passage_id, explanation.text) == ("p1", "tower of iron")
    assert explanation.score == pytest.approx(hit.score, abs=1e-3)
    [part] = explanation.parts
    assert (part.text, part.weight) == ("iron tower zebra", 1.0)
    assert [label.name for label in part.labels] == ["iron", "tower", "zebra"]
    assert part.found[:2].tolist() == [2, 0]
    expected = encoder.vectors("iron tower zebra") @ encoder.vectors("tower of iron").T / 3
    np.testing.assert_allclose(part.products, expected, atol=1e-6)
    assert part.products.dtype == np.float32
    np.testing.assert_allclose(part.gains, expected.max(1), atol=1e-6)
    [nothing] = tested.explain_passages(question, [Passage("blank", " ")])
    assert (nothing.parts, nothing.score) == ([], 0.0)
    Labelling.more = 1
    try:
        expected = "the encoder's labels do not fit its vectors: 4 and 3"
        assert said(UserError, tested.explain, question, ["p1"]) == expected
    finally:
        Labelling.more = 0
    encoder.labels = False
    expected = "the encoder hashed cannot say which words its vectors are for"
    assert said(UserError, tested.explain, question, ["p1"]) == expected
    assert tested.explainer is None


def test_of_several_wordings_the_best_is_explained():
    from ravqa.core.records import Description, Tag

    tested = prepared(query={"question": 0.0, "replaced": 1.0, "appended": 1.0})
    tested.encoder = Labelling(tested.encoder.config)
    tags = (Tag(("zebra", "koala"), 1.0),)
    question = ask("this animal eats", description=Description(tags=tags))
    [[hit]] = tested.retrieve([question], 1)
    [explanation] = tested.explain(question, ["p0"])
    assert [part.text for part in explanation.parts] == ["the koala eats", "this animal eats zebra"]
    assert [part.weight for part in explanation.parts] == [0.5, 0.5]
    assert hit.passage_id == "p0"
    assert explanation.score == pytest.approx(hit.score, abs=1e-3)


class Seeing(collection_files.HashEncoder):
    """Takes questions with their images: the words, and one vector for the image."""

    supports_images = True
    grid = (2, 3)

    def encode_question(self, questions):
        if any(question.question == "bad" for question in questions):
            raise PromptError("cannot be processed")
        return Encoded([self.seen(question) for question in questions])

    def seen(self, question):
        more = [] if question.image is None else [question.image.decode()]
        return self.vectors(" ".join([question.question, question.instruction or "", *more]))

    def seen_image(self, image):
        return f"seen {image!r}"


def test_an_encoder_that_sees_gets_the_question_itself():
    tested = prepared()
    encoder = tested.encoder = Seeing(tested.encoder.config)
    assert tested.supports_images
    assert tested.seen_image(b"x") == ("seen b'x'", (2, 3))
    questions = [ask("iron"), ask("iron", image=b"koala"), ask("iron", instruction="night")]
    found = tested.retrieve(questions, 3)
    for question, hits in zip(questions, found, strict=True):
        scores = {
            f"p{i}": float((encoder.seen(question) @ encoder.vectors(text).T).max(1).sum())
            for i, text in enumerate(TEXTS)
        }
        assert {h.passage_id: h.score for h in hits} == pytest.approx(scores, abs=5e-3)
    assert tested.retrieve(questions, 3) == found
    assert tested.encoded["queries"].items == 3  # the second time from the cache
    assert len({json.dumps([h.score for h in hits]) for hits in found}) == 3
    with pytest.raises(PromptError, match="cannot be processed"):
        tested.retrieve([ask("bad")], 1)


def test_vectors_are_scaled_by_the_sum_of_their_lengths():
    rows = np.array([[3.0, 4.0], [0.0, 5.0]], np.float16)
    np.testing.assert_allclose(_unit(rows), [[0.3, 0.4], [0.0, 0.5]], atol=1e-6)
    assert _unit(rows).dtype == np.float32
    assert _unit(np.zeros((2, 2), np.float32)).tolist() == [[0, 0], [0, 0]]
    assert _unit(np.zeros((0, 2), np.float32)).shape == (0, 2)
    label = Label("word", "x")
    assert _float32([label] * 2, rows).dtype == np.float32
