"""The conformance suites: bundled parts pass, and each suite sees what breaks its contract."""

from dataclasses import replace

import checkpoint_files
import collection_files
import flmr_parity as parity
import numpy as np
import pytest
from own_parts import from_docs

from ravqa.core.factory import build_part
from ravqa.core.records import Description, Question, Tag
from ravqa.core.settings import Part, validate
from ravqa.describers.base import Describer
from ravqa.encoders.base import Encoded, Encoder, Label, Labelled
from ravqa.encoders.flmr import FLMREncoder
from ravqa.images.decode import open_image
from ravqa.indexes import INDEXES
from ravqa.indexes.base import Index
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerMetric
from ravqa.metrics.judges.base import Judge, NotAttempted
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever, to_hits
from ravqa.testing import (
    check_describer,
    check_encoder,
    check_index,
    check_judge,
    check_metric,
    check_retriever,
)
from ravqa.testing.retrievers import small_corpus

FlatIndex = from_docs("flat.py")["FlatIndex"]
Titles = from_docs("titles.py")["Titles"]
TokenF1 = from_docs("token_f1.py")["TokenF1"]


# -- indexes


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("auto", {}),
        ("exact", {"storage": "float32"}),
        ("exact", {"storage": "int8"}),
        ("compressed", {}),
        ("faiss", {}),
        ("sharded", {"shards": 3}),
    ],
    ids=str,
)
def test_bundled_indexes(name, options):
    kind = INDEXES.get(name)
    check_index(kind, kind.Config(**options))


@pytest.mark.slow
def test_the_embedded_engine_of_qdrant():
    pytest.importorskip("qdrant_edge")
    check_index(INDEXES.get("qdrant"))


def test_the_index_of_the_docs():
    check_index(FlatIndex)


class Unsorted(FlatIndex):
    def search(self, queries, k, *, allowed_ids=None, **params):
        return [r[::-1] for r in super().search(queries, k, allowed_ids=allowed_ids, **params)]


class TooMany(FlatIndex):
    def search(self, queries, k, *, allowed_ids=None, **params):
        return super().search(queries, k + 1, allowed_ids=allowed_ids, **params)


class Dot(FlatIndex):
    def scores(self, queries):
        return super().scores(queries) * 2


class NotANumber(FlatIndex):
    def scores(self, queries):
        return super().scores(queries) * np.float32(np.nan)


class Transposed(FlatIndex):
    def scores(self, queries):
        return super().scores(queries).T


class Finds(FlatIndex):
    """Gives a passage without vectors a score."""

    def scores(self, queries):
        return np.nan_to_num(super().scores(queries), neginf=0)


class Forgets(FlatIndex):
    @classmethod
    def build(cls, *arguments, **options):
        super().build(*arguments, **options)


class Silent(FlatIndex):
    reports = True

    @classmethod
    def build(cls, *arguments, progress=None, **options):
        return super().build(*arguments, **options)


class TooFar(FlatIndex):
    reports = True

    @classmethod
    def build(cls, *arguments, progress=None, **options):
        progress("building", 9, 5)
        return super().build(*arguments, **options)


class TakesAny(FlatIndex):
    @classmethod
    def open(cls, path, config=None, *, fingerprint=None):
        return cls(path)


class Grows(FlatIndex):
    grows = True


class Nothing(FlatIndex):
    scores = Index.scores


class Broken(FlatIndex):
    def verify(self):
        return [1 / 0]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Unsorted, "a ranking does not begin with its best passage"),
        (TooMany, "at most 1 passages are expected, got 2"),
        (Dot, "is MaxSim within"),
        (NotANumber, "scores returns numbers, got nan"),
        (Transposed, r"scores returns \[queries, passages\]"),
        (Finds, "minus infinity for a passage without vectors"),
        (Forgets, "Forgets.build returns the index, opened"),
        (Silent, r"Silent, which sets `reports`, calls progress\(what, done, total\) in `build`"),
        (TooFar, "TooFar, which sets `reports`, calls progress"),
        (TakesAny, "TakesAny.open refuses an index that was built from something else"),
        (Grows, "the index flat cannot change once it is built"),
        (Nothing, "defines neither `scores` nor `search` and `score`"),
        (Broken, "Broken raises ZeroDivisionError: division by zero"),
        (Index, "Index defines build, built, open"),
        (dict, "dict is a subclass of ravqa.indexes.base.Index"),
    ],
)
def test_an_index_that_breaks_its_contract(kind, sentence):
    with pytest.raises(AssertionError, match=f"{sentence}.*ravqa.indexes.base.Index"):
        check_index(kind)


# -- encoders


def test_bundled_encoders(encoder):
    check_encoder(encoder)


def test_an_encoder_that_sees_images():
    check_encoder(FLMREncoder(FLMREncoder.Config(model=str(parity.checkpoint("preflmr")))))


class Words(Encoder):
    """A unit vector a word."""

    dim = 4
    fingerprint = "words/1"
    labels = True

    def _rows(self, text):
        return np.eye(4, dtype=np.float32)[[len(word) % 4 for word in text.split()]]

    def encode_document(self, texts, progress=None):
        return Encoded([self._rows(text) for text in texts])

    def encode_query(self, queries):
        return Encoded([self._rows(" ".join(s.text for s in spans)) for spans in queries])

    def label_passage(self, passage):
        return self._labelled(passage.content)

    def label_query(self, spans):
        return self._labelled(" ".join(span.text for span in spans))

    def _labelled(self, text):
        return Labelled(text, [Label("word", word, (0, 1), (0, 1)) for word in text.split()])


def test_an_encoder_of_ones_own():
    check_encoder(Words())


class Colours(Words):
    """A passage's image is one more vector, by its first pixel."""

    supports_passage_images = True

    def encode_passages(self, passages, progress=None):
        return Encoded([self._rows(" ".join(self._words(p))) for p in passages])

    def label_passage(self, passage):
        return self._labelled(" ".join(self._words(passage)))

    def _words(self, passage):
        words = passage.content.split()
        if passage.image is not None:
            words.append("x" * (open_image(passage.image).getpixel((0, 0))[0] // 64 + 1))
        return words


def test_an_encoder_of_ones_own_that_sees_passages():
    check_encoder(Colours())


class Unseeing(Words):
    supports_passage_images = True


class HalfLabelled(Colours):
    def label_passage(self, passage):
        return self._labelled(passage.content)


class Long(Words):
    def _rows(self, text):
        return super()._rows(text) * 2


class Wide(Words):
    dim = 5


class Zeros(Words):
    def encode_query(self, queries):
        return Encoded([np.zeros((1, 4), np.float32) for _ in queries])


class Shuffled(Words):
    def encode_document(self, texts, progress=None):
        return super().encode_document(texts[::-1])


class Unlabelled(Words):
    label_passage = Encoder.label_passage


class Few(Words):
    def _labelled(self, text):
        return Labelled(text, [])


class Blind(Words):
    supports_images = True


@pytest.mark.parametrize(
    ("encoder", "sentence"),
    [
        (Long(), "vectors of unit length"),
        (Wide(), r"arrays \[vectors, 5\] are expected, got"),
        (Zeros(), "no vector of zeros"),
        (Shuffled(), "whatever is encoded with it, in order"),
        (Few(), "a label for each vector"),
        (Unlabelled(), "cannot say which words its vectors are for"),
        (Unseeing(), "sees passages' images: with two images, a text has different vectors"),
        (HalfLabelled(), "label_passage gives a label for each vector of text and image"),
        (Blind(), "it sees images and does not define `encode_question`"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_encoder_that_breaks_its_contract(encoder, sentence):
    with pytest.raises(AssertionError, match=f"{sentence}.*ravqa.encoders.base.Encoder"):
        check_encoder(encoder)


# -- retrievers


@pytest.mark.parametrize(
    "options",
    [
        {"name": "none"},
        {"name": "random"},
        {"name": "bm25"},
        {"name": "oracle", "base": {"name": "bm25"}},
        {"name": "fusion", "retrievers": [{"name": "bm25"}, {"name": "random"}]},
        {"name": "late-interaction", "encoder": {"name": "hashed"}},
        {"name": "late-interaction", "encoder": {"name": "hashed"}, "index": {"name": "sharded"}},
    ],
    ids=lambda options: options["name"],
)
def test_bundled_retrievers(options, fresh_cache):
    collection_files.register()
    check_retriever(build_part(RETRIEVERS, validate(Part, options, "retriever"), "retriever"))


def test_rankings_from_a_file(tmp_path):
    run = tmp_path / "run.trec"
    run.write_text("".join(f"{q} Q0 p{p} {p + 1} {9 - p} x\n" for q in (1, 2, 3) for p in (0, 1)))
    part = Part(name="static", file=str(run))
    check_retriever(build_part(RETRIEVERS, part, "retriever"), small_corpus())


def test_the_retriever_of_the_docs():
    check_retriever(Titles(Titles.Config()))


class Listed(Retriever):
    fingerprint = "listed"
    ranking = (("p1", 1.0), ("p0", 0.5))

    def prepare(self, corpus, progress=None):
        pass

    def retrieve(self, questions, k):
        return [to_hits(self.ranking[:k]) for _ in questions]


class Everything(Listed):
    def retrieve(self, questions, k):
        return [to_hits(self.ranking) for _ in questions]


class Twice(Listed):
    ranking = (("p1", 1.0), ("p1", 0.5))


class Unknown(Listed):
    ranking = (("p7", 1.0),)


class Nan(Listed):
    ranking = (("p1", float("nan")),)


class Pairs(Listed):
    def retrieve(self, questions, k):
        return [list(self.ranking[:k]) for _ in questions]


class First(Listed):
    def retrieve(self, questions, k):
        return super().retrieve(questions[:1], k)


class Moody(Listed):
    asked = 0

    def retrieve(self, questions, k):
        self.asked += 1
        return super().retrieve(questions, self.asked % 2)


class Unnamed(Listed):
    fingerprint = ""


@pytest.mark.parametrize(
    ("retriever", "sentence"),
    [
        (Everything(), "2 hits where at most 1 are asked for"),
        (Twice(), "passage 'p1' twice for one question"),
        (Unknown(), r"finds \['p7', 'p7', 'p7'\], which the corpus does not have"),
        (Nan(), "a score of passage .* that is not a number"),
        (Pairs(), "tuple instead of a Hit"),
        (First(), "it returned 1 results from retrieve for 3 items"),
        (Moody(), "the same passages for the same questions"),
        (Unnamed(), "Unnamed.fingerprint is a text that is not blank"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_retriever_that_breaks_its_contract(retriever, sentence):
    check_retriever(Listed())
    with pytest.raises(AssertionError, match=f"{sentence}.*ravqa.retrievers.base.Retriever"):
        check_retriever(retriever)


# -- describers


def test_bundled_describers(tagger):
    check_describer(tagger)


class Caption(Describer):
    fingerprint = "caption/1"

    def describe(self, images):
        return [Description(caption=str(open_image(image).size)) for image in images]


class Certain(Caption):
    def describe(self, images):
        tag = Tag(("koala",), 1.5)
        return [Description(tags=(tag,), caption=one.caption) for one in super().describe(images)]


class Skips(Caption):
    def describe(self, images):
        return super().describe(images[1:])


class Ignores(Caption):
    def describe(self, images):
        return [Description(caption="a photo") for _ in images]


@pytest.mark.parametrize(
    ("describer", "sentence"),
    [
        (Certain(), "a probability from 0 to 1"),
        (Skips(), "one Description per image"),
        (Ignores(), "raises DataError for an image that cannot be decoded"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_describer_that_breaks_its_contract(describer, sentence):
    check_describer(Caption())
    with pytest.raises(AssertionError, match=f"{sentence}.*ravqa.describers.base.Describer"):
        check_describer(describer)


# -- metrics


@pytest.mark.parametrize(
    "name", ["vqa_accuracy", "exact_match", "infoseek", "evqa_score", "aokvqa_direct_answer"]
)
def test_bundled_metrics(name):
    asked = [
        Question(
            number,
            "What does it eat?",
            answers=("leaves", "leaf"),
            answer_eval=("leaves", "leaf"),
            question_type="String" if name == "infoseek" else "templated",
            split=split,
        )
        for number, split in enumerate(("val_unseen_entity", "val_unseen_question"))
    ]
    if name == "vqa_accuracy":
        asked = None  # ten answers each
    check_metric(METRICS.get(name)(), asked)


@pytest.mark.parametrize("name", ["multiple_choice", "aokvqa_multiple_choice"])
def test_bundled_metrics_of_choices(name):
    asked = Question(1, "What does it eat?", choices=("fish", "leaves"), correct_choice=1)
    check_metric(METRICS.get(name)(), [asked, replace(asked, question_id=2, correct_choice=0)])


def test_the_metric_of_the_docs():
    check_metric(TokenF1())


class Percent(TokenF1):
    def score(self, question, record, judge=None):
        return 100 * super().score(question, record, judge)


class Never(TokenF1):
    def score(self, question, record, judge=None):
        return 0.0


class Nameless(TokenF1):
    label = ""


class Eager(TokenF1):
    def scores(self, questions, records, judge=None):
        return [1.0 for _ in questions]


class Takes(TokenF1):
    def problem(self, question):
        return ""


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        (Percent(), "score is a number from 0 to 1, got 100"),
        (Never(), "gives a reference more than nothing, got 0"),
        (Nameless(), "Nameless.label is a text that is not blank"),
        (Eager(), "0 where there is no answer"),
        (Takes(), "why a question without answers cannot be scored"),
        (object(), "object is a subclass of ravqa.metrics.base.AnswerMetric"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_metric_that_breaks_its_contract(metric, sentence):
    assert issubclass(TokenF1, AnswerMetric)
    with pytest.raises(AssertionError, match=f"{sentence}.*ravqa.metrics.base.AnswerMetric"):
        check_metric(metric)


# -- judges


def test_bundled_judges(tmp_path):
    checkpoint_files.bert(tmp_path, "BertForSequenceClassification", num_labels=2)
    check_judge(checkpoint_files.build("bem", tmp_path))


class Same(Judge):
    name = fingerprint = "same/1"

    def judge(self, questions, references, candidates):
        return [float(a == b) for a, b in zip(references, candidates, strict=True)]


class Sure(Same):
    def judge(self, *texts):
        return [2 * value for value in super().judge(*texts)]


class Hasty(Same):
    def judge(self, *texts):
        return super().judge(*texts)[:2]


class Silent(Same):
    def judge(self, *texts):
        return [value or NotAttempted() for value in super().judge(*texts)]


class ThreeLabels(Silent):
    labels = 3


class Lazy(Same):
    def judge_each(self, *texts):
        yield 0, 1.0


@pytest.mark.parametrize(
    ("judge", "sentence"),
    [
        (Sure(), "0 to 1 or nan, got 2.0"),
        (Hasty(), "one number per triple, got 2 of 4"),
        (Silent(), "sets `labels` to 3, if it returns NotAttempted"),
        (Lazy(), "judge_each gives each place once"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_judge_that_breaks_its_contract(judge, sentence):
    check_judge(Same())
    check_judge(ThreeLabels())
    with pytest.raises(AssertionError, match=f"{sentence}.*ravqa.metrics.judges.base.Judge"):
        check_judge(judge)
