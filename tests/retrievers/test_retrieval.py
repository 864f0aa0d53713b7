"""Fusion against brute force over all passages, the caches of retrieval, and the controls."""

import hashlib
import math
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ravqa.core.errors import UserError
from ravqa.core.records import Description, Hit, Passage, Question, Tag
from ravqa.core.registry import Entry
from ravqa.core.settings import Part, Strict, validate
from ravqa.corpora.corpus import Corpus
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoder
from ravqa.retrievers.controls import NoRetriever, OracleRetriever, RandomRetriever
from ravqa.retrievers.late_interaction import LateInteractionRetriever
from ravqa.retrievers.query_text import QueryText, forms

DIM = 24
CALLS = Counter()


class WordEncoder(Encoder):
    """A vector a word, made from the word's hash. Documents drop words without letters."""

    class Config(Strict):
        salt: str = ""

    dim = DIM
    weights = "hashed words"

    def __init__(self, config):
        self.config = config
        self.fingerprint = f"words/{config.salt}"

    def vector(self, word):
        seed = hashlib.sha256((self.config.salt + word.lower()).encode()).digest()[:8]
        row = np.random.default_rng(int.from_bytes(seed, "little")).normal(size=self.dim)
        return (row / np.linalg.norm(row)).astype(np.float32)

    def rows(self, words):
        return np.array([self.vector(w) for w in words], dtype=np.float32).reshape(-1, self.dim)

    def encode_document(self, texts, progress=None):
        CALLS["encode_document"] += 1
        CALLS["documents"] += len(texts)
        if progress:
            progress(len(texts))
        return [self.rows(re.findall(r"[a-z]+", text.lower())) for text in texts]

    def encode_query(self, queries):
        CALLS["encode_query"] += 1
        CALLS["queries"] += len(queries)
        return [
            np.concatenate(
                [self.rows(s.text.split()) * np.float32(s.weight) for s in spans]
            ).astype(np.float32)
            for spans in queries
        ]


class AxisEncoder(WordEncoder):
    """Four words are the axes; other words are zero rows in queries, nothing in documents."""

    dim = 4
    axes = ("koala", "cat", "eats", "animal")

    def vector(self, word):
        return np.array([float(word == axis) for axis in self.axes], dtype=np.float32)

    def encode_document(self, texts, progress=None):
        return [rows[rows.any(axis=1)] for rows in super().encode_document(texts, progress)]


@pytest.fixture(autouse=True)
def own_encoders(monkeypatch, fresh_cache):
    CALLS.clear()
    for name, kind in (("words", WordEncoder), ("axes", AxisEncoder)):
        entry = Entry(f"{__name__}:{kind.__name__}", "for tests")
        monkeypatch.setitem(ENCODERS._entries, name, entry)


def retriever(encoder="words", **options):
    options.setdefault("index", {"name": "exact", "storage": "float32"})
    options["encoder"] = {"name": encoder, **options.pop("encoder_options", {})}
    return LateInteractionRetriever(validate(LateInteractionRetriever.Config, options, "retriever"))


def ask(text, *tags, question_id=1, answers=()):
    description = Description(tags=tags) if tags else None
    return Question(question_id, text, answers=tuple(answers), description=description)


KOALA = Tag(("koala", "koala bear"), 0.6, ("animal",))
TABBY = Tag(("tabby", "cat"), 0.2, ("animal",))
VOCABULARY = (
    "koala bear tabby cat lives eats leaves tree house old wood iron built where what "
    "animal big small night river"
).split()


def corpus(seed=0, size=40, source="corpus.jsonl"):
    rng = np.random.default_rng(seed)
    passages = [
        Passage(f"d{i}", " ".join(rng.choice(VOCABULARY, size=rng.integers(1, 12))))
        for i in range(size)
    ]
    passages[7] = Passage("d7", "1234 !")  # gives no vectors
    return Corpus(passages, source=source)


QUESTIONS = [
    ask("Where does this animal live?", KOALA, TABBY),
    ask("What is it built of?", Tag(("house", "old house"), 0.9), question_id=2),
    ask("river at night", question_id=3),
    ask("Where does this animal live?", TABBY, question_id=4),
]


def brute_force(found, question, encoder, query):
    """Every passage's score by the definition, in float64.

    score(z) = sum over forms of weight * max over alternatives of maxsim / sum of query lengths
    """
    vectors = dict(
        zip(found, encoder.encode_document([p.content for p in found.values()]), strict=True)
    )
    plan = [
        (form.weight, [encoder.encode_query([spans])[0] for spans in form.alternatives])
        for form in forms(question, query)
    ]
    return {
        passage_id: sum(
            weight * max(maxsim(rows, vectors[passage_id]) for rows in alternatives)
            for weight, alternatives in plan
        )
        for passage_id in found
    }


def maxsim(rows, vectors):
    rows, vectors = rows[rows.any(axis=1)].astype(np.float64), vectors.astype(np.float64)
    if not len(vectors):
        return -math.inf
    if not len(rows):
        return 0.0
    return (rows @ vectors.T).max(axis=1).sum() / np.linalg.norm(rows, axis=1).sum()


def assert_best(hits, k, expected, atol=1e-5):
    """The k best of `expected`; passages within float32's rounding of a tie may change places.

    Those without vectors are not found.
    """
    best = sorted((s for s in expected.values() if s > -math.inf), reverse=True)[:k]
    assert [h.rank for h in hits] == list(range(1, len(best) + 1))
    assert len({h.passage_id for h in hits}) == len(hits)
    scores = [h.score for h in hits]
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, best, rtol=0, atol=atol)
    np.testing.assert_allclose(scores, [expected[h.passage_id] for h in hits], rtol=0, atol=atol)


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"question": 1, "replaced": 0, "appended": 0},
        {"question": 0.3, "replaced": 0.7, "appended": 2, "tags": 1},
    ],
    ids=str,
)
def test_fusion_equals_brute_force_over_all_passages(query):
    passages = corpus()
    tested = retriever(query=query)
    tested.prepare(passages)
    plain = WordEncoder(WordEncoder.Config())
    found = tested.retrieve(QUESTIONS, 40)
    for question, hits in zip(QUESTIONS, found, strict=True):
        assert_best(hits, 40, brute_force(passages, question, plain, QueryText(**query)))
        assert {hit.passage_id for hit in hits} == set(passages) - {"d7"}  # without vectors


def test_fused_scores_by_hand():
    passages = Corpus(
        [
            Passage("cat", "cat eats"),
            Passage("koala", "koala eats"),
            Passage("animal", "animal"),
            Passage("none", "nothing known"),
            Passage("twin", "cat eats too"),
        ]
    )
    tested = retriever("axes")
    tested.prepare(passages)
    tags = (Tag(("koala",), 0.75), Tag(("zebra", "cat"), 0.25))
    # "the koala eats": rows koala, eats; lengths sum to 2. "koala eats" 2/2, "cat eats" 1/2.
    # "the zebra eats": row eats; the alternative "the cat eats": rows cat, eats. The better one
    #   of the two counts: for "koala eats" 1/1 (zebra), for "cat eats" 2/2, for "animal" 0.
    # appended: rows animal 1, eats 1, koala .75 (zebra is not known); lengths sum to 2.75.
    #   "koala eats" 1.75/2.75, "cat eats" 1/2.75, "animal" 1/2.75.
    # weights: .75, .25 and .5, divided by 1.5
    expected = {
        "koala": (0.75 * 1 + 0.25 * 1 + 0.5 * 1.75 / 2.75) / 1.5,
        "cat": (0.75 * 0.5 + 0.25 * 1 + 0.5 * 1 / 2.75) / 1.5,
        "animal": (0.5 * 1 / 2.75) / 1.5,
    }
    [hits] = tested.retrieve([ask("this animal eats", *tags)], 5)
    # the twin of "cat" comes later in the corpus; of "none" no word is known
    assert [h.passage_id for h in hits] == ["koala", "cat", "twin", "animal"]
    expected["twin"] = expected["cat"]
    assert [h.score for h in hits] == pytest.approx([expected[h.passage_id] for h in hits])


@pytest.mark.parametrize(("depth", "k"), [(3, 3), (5, 2), (2, 6), (1, 1)])
def test_little_depth_still_finds_the_best_of_all_passages(depth, k):
    passages = corpus(1)
    tested = retriever(depth=depth)
    tested.prepare(passages)
    plain = WordEncoder(WordEncoder.Config())
    for question, hits in zip(QUESTIONS, tested.retrieve(QUESTIONS, k), strict=True):
        assert_best(hits, k, brute_force(passages, question, plain, QueryText()))


def test_many_queries_are_scored_in_several_rounds(monkeypatch):
    passages = corpus(2)
    tested = retriever()
    tested.prepare(passages)
    monkeypatch.setattr("ravqa.retrievers.late_interaction._MAX_SCORES", 100)
    plain = WordEncoder(WordEncoder.Config())
    for question, hits in zip(QUESTIONS, tested.retrieve(QUESTIONS, 9), strict=True):
        assert_best(hits, 9, brute_force(passages, question, plain, QueryText()))


@pytest.mark.slow
def test_the_default_encoder_with_the_default_storage(encoder, okvqa_sample):
    some = [
        p
        for p in okvqa_sample.corpus.values()
        if p.entity in ("Koala", "Jaguar", "Hedgehog") and p.extra["aspect"] != "gloss"
    ]
    assert len(some) >= 16
    passages = Corpus(some)
    tested = retriever("token-bert", index={"name": "exact"})
    tested.prepare(passages)
    question = ask("What is the main food of this animal?", Tag(("jaguar", "panther"), 0.8))
    [hits] = tested.retrieve([question], len(some))
    assert hits[0].passage_id == "jaguar.diet"
    expected = brute_force(passages, question, encoder, QueryText())
    assert_best(hits, len(some), expected, atol=5e-4)  # float16
    assert hits[0].score < 1


def test_the_order_of_questions_does_not_matter_and_repeats_cost_nothing():
    passages = corpus()
    tested = retriever()
    tested.prepare(passages)
    together = tested.retrieve([*QUESTIONS, QUESTIONS[0]], 5)
    assert together[0] == together[-1]
    assert tested.retrieve(QUESTIONS[::-1], 5) == together[:4][::-1]
    assert tested.retrieve([], 5) == []
    assert CALLS["encode_query"] == 1  # the others came from the cache


def test_asking_for_more_than_there_is_gives_all_that_have_vectors():
    passages = corpus(size=12)
    tested = retriever()
    tested.prepare(passages)
    [hits] = tested.retrieve(QUESTIONS[:1], 500)
    assert {hit.passage_id for hit in hits} == set(passages) - {"d7"}


# --- caches


def test_a_corpus_is_encoded_once_and_its_index_used_again():
    passages = corpus()
    retriever().prepare(passages)
    assert CALLS["documents"] == len(passages)
    again = retriever()
    again.prepare(corpus(source="read from elsewhere"))
    assert CALLS["encode_document"] == 1
    assert again.retrieve(QUESTIONS, 3) == _fresh_answer(passages)


def _fresh_answer(passages):
    tested = retriever()
    tested.prepare(passages)
    return tested.retrieve(QUESTIONS, 3)


def test_another_corpus_with_the_same_name_and_ids_gets_another_index():
    first, second = corpus(0), corpus(5)
    assert first.source == second.source
    assert list(first) == list(second)
    tested = retriever()
    tested.prepare(first)
    before = tested.retrieve(QUESTIONS, 5)
    tested.prepare(second)
    assert CALLS["documents"] == len(first) + len(second)
    after = tested.retrieve(QUESTIONS, 5)
    plain = WordEncoder(WordEncoder.Config())
    for question, hits in zip(QUESTIONS, after, strict=True):
        assert_best(hits, 5, brute_force(second, question, plain, QueryText()))
    assert after != before
    tested.prepare(first)
    assert tested.retrieve(QUESTIONS, 5) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p[:-1],
        lambda p: [*p, Passage("extra", "more")],
        lambda p: [p[1], p[0], *p[2:]],
        lambda p: [Passage("d0", p[0].text, title="a title"), *p[1:]],
        lambda p: [Passage("other id", p[0].text), *p[1:]],
    ],
    ids=["one less", "one more", "another order", "a title", "another id"],
)
def test_any_change_of_the_corpus_is_another_index(change):
    passages = list(corpus().values())
    retriever().prepare(Corpus(passages))
    retriever().prepare(Corpus(change(passages)))
    assert CALLS["encode_document"] == 2


def test_another_encoder_or_storage_is_another_index():
    passages = corpus()
    retriever().prepare(passages)
    retriever(encoder_options={"salt": "x"}).prepare(passages)
    assert CALLS["encode_document"] == 2
    retriever(index={"name": "exact", "storage": "float16"}).prepare(passages)
    assert CALLS["encode_document"] == 3


def test_another_way_to_search_opens_the_same_index():
    passages = corpus()
    for options in ({}, {"effort": "careful"}, {"candidates": 5, "device": "cpu"}):
        retriever(index={"name": "compressed", **options}).prepare(passages)
    assert CALLS["encode_document"] == 1
    retriever(index={"name": "compressed", "storage": "4bit"}).prepare(passages)
    assert CALLS["encode_document"] == 2
    for effort in ("fast", "careful"):
        shard = {"name": "compressed", "effort": effort}
        retriever(index={"name": "sharded", "shard": shard}).prepare(passages)
    assert CALLS["encode_document"] == 3


def test_an_index_of_an_older_format_is_made_anew_beside_it(fresh_cache, monkeypatch):
    first = retriever()
    first.prepare(corpus())
    monkeypatch.setattr("ravqa.retrievers.late_interaction.FORMAT", 0)
    retriever().prepare(corpus())
    assert len(list((fresh_cache / "indexes").iterdir())) == 2


def test_other_query_settings_share_the_index():
    passages = corpus()
    retriever().prepare(passages)
    retriever(query={"tags": 1}, depth=7).prepare(passages)
    assert CALLS["encode_document"] == 1


def test_an_interrupted_encoding_is_repeated(monkeypatch):
    passages = corpus()

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WordEncoder, "rows", fail)
        with pytest.raises(KeyboardInterrupt):
            retriever().prepare(passages)
    CALLS.clear()
    retriever().prepare(passages)
    assert CALLS["documents"] == len(passages)


def test_a_damaged_index_in_the_cache_is_named_and_made_again(fresh_cache, caplog):
    passages = corpus()
    retriever().prepare(passages)
    [vectors] = (fresh_cache / "indexes").rglob("vectors.npy")
    data = vectors.read_bytes()
    vectors.write_bytes(data[:200])
    retriever().prepare(passages)
    assert "damaged" in caplog.text
    assert str(vectors.parent.parent) in caplog.text
    assert vectors.read_bytes() == data


def test_a_question_is_searched_once():
    passages = corpus()
    tested = retriever()
    tested.prepare(passages)
    first = tested.retrieve(QUESTIONS, 10)
    calls = CALLS["encode_query"]
    again = retriever()
    again.prepare(passages)
    assert again.retrieve(QUESTIONS, 10) == first
    assert again.retrieve(QUESTIONS, 4) == [hits[:4] for hits in first]
    assert CALLS["encode_query"] == calls


def test_what_is_seen_is_part_of_what_was_asked():
    passages = corpus()
    tested = retriever()
    tested.prepare(passages)
    text = "Where does this animal live?"
    [koala] = tested.retrieve([ask(text, KOALA)], 5)
    [tabby] = tested.retrieve([ask(text, TABBY)], 5)
    assert [h.passage_id for h in koala] != [h.passage_id for h in tabby]
    plain = WordEncoder(WordEncoder.Config())
    assert_best(tabby, 5, brute_force(passages, ask(text, TABBY), plain, QueryText()))


def test_other_settings_are_not_answered_from_the_cache():
    passages = corpus()
    for options in ({}, {"query": {"appended": 3}}, {"encoder_options": {"salt": "x"}}):
        tested = retriever(**options)
        tested.prepare(passages)
        [hits] = tested.retrieve(QUESTIONS[:1], 5)
        plain = WordEncoder(WordEncoder.Config(**options.get("encoder_options", {})))
        query = QueryText(**options.get("query", {}))
        assert_best(hits, 5, brute_force(passages, QUESTIONS[0], plain, query))


def test_progress_reaches_the_number_of_passages():
    seen = []
    retriever().prepare(corpus(size=600), lambda *step: seen.append(step))
    for stage in ("encoding passages", "reading vectors", "writing the index"):
        steps = [done for what, done, _ in seen if what == stage]
        assert steps == sorted(steps)
        assert steps[-1] == 600
    assert seen[-1] == ("writing the index", 600, 600)


def test_retrieval_without_a_corpus_says_what_to_do():
    with pytest.raises(UserError, match="--corpus"):
        retriever().prepare(None)


# --- a part of the corpus, and several threads


@pytest.mark.parametrize("index", ["exact", "compressed"])
def test_only_allowed_passages_are_searched(index):
    found = corpus(size=60)
    tested = retriever(index={"name": index})
    tested.prepare(found)
    allowed = ["d3", "d30", "d7", "d59", "nowhere"]
    for question, hits in zip(QUESTIONS, tested.retrieve(QUESTIONS, 60), strict=True):
        expected = [(hit.passage_id, hit.score) for hit in hits if hit.passage_id in allowed]
        [few] = tested.retrieve([question], 60, allowed_ids=iter(allowed))
        assert {hit.passage_id for hit in few} == {"d3", "d30", "d59"}  # d7 has no vectors
        assert [hit.passage_id for hit in few] == [passage_id for passage_id, _ in expected]
        assert [hit.score for hit in few] == pytest.approx([s for _, s in expected], abs=1e-4)
        assert [hit.rank for hit in few] == [1, 2, 3]
        assert tested.retrieve([question], 60) == [hits]  # nothing kept of the narrower search
    assert tested.retrieve(QUESTIONS[:1], 3, allowed_ids=[]) == [[]]
    [two] = tested.retrieve(QUESTIONS[:1], 2, allowed_ids=allowed)
    assert len(two) == 2


def test_threads_find_what_one_finds_and_encode_one_at_a_time(monkeypatch):
    inside, most = [], []
    encode = WordEncoder.encode_query

    def watched(self, queries):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return encode(self, queries)

    monkeypatch.setattr(WordEncoder, "encode_query", watched)
    found = corpus()
    tested = retriever()
    tested.prepare(found)
    questions = [ask(f"{word} {other}") for word in VOCABULARY[:4] for other in VOCABULARY[4:8]]
    with ThreadPoolExecutor(8) as pool:
        several = list(pool.map(lambda q: tested.retrieve([q], 5)[0], questions))
    assert max(most) == 1
    assert len(most) == len(questions)
    assert tested.encoded["queries"].items == len(questions)
    again = retriever()
    again.prepare(found)
    again.fingerprint += "x"  # not answered from the cache
    assert [hits for [hits] in (again.retrieve([q], 5) for q in questions)] == several


# --- controls


class Fixed:
    """A retriever with a ranking of its own for every question."""

    fingerprint = "fixed"
    weights = "nothing"
    stores = ()

    def __init__(self, ranking):
        self.ranking = ranking
        self.asked = []

    def prepare(self, corpus, progress=None):
        self.prepared = corpus

    def retrieve(self, questions, k):
        self.asked.append(k)
        hits = [Hit(i, 10.0 - n, n + 1) for n, i in enumerate(self.ranking)]
        return [hits[:k] for _ in questions]


ZOO = Corpus(
    [
        Passage("a", "The koala eats leaves."),
        Passage("b", "Nothing here.", title="Eucalyptus"),
        Passage("c", "Koalas like EUCALYPTUS."),
        Passage("d", "A tower of stone."),
        Passage("e", "Eucalyptus oil."),
    ]
)


def oracle(ranking, depth=3):
    tested = OracleRetriever(OracleRetriever.Config(depth=depth), Fixed(ranking))
    tested.prepare(ZOO)
    return tested


def test_no_retriever_finds_nothing_and_needs_nothing():
    tested = NoRetriever()
    tested.prepare(None)
    assert tested.retrieve(QUESTIONS, 5) == [[], [], [], []]


def test_the_oracle_puts_answer_bearing_passages_first_and_keeps_the_order():
    question = ask("What does it eat?", answers=["eucalyptus "])
    # titles count, case and outer spaces do not; the base's order stays among both groups
    [hits] = oracle(["d", "c", "a", "b"], depth=4).retrieve([question], 4)
    assert hits == [Hit("c", 9.0, 1), Hit("b", 7.0, 2), Hit("d", 10.0, 3), Hit("a", 8.0, 4)]
    [two] = oracle(["d", "c", "a", "b"], depth=4).retrieve([question], 2)
    assert [h.passage_id for h in two] == ["c", "b"]


def test_the_oracle_looks_as_deep_as_its_depth_or_k():
    tested = oracle(["d", "a", "c", "b", "e"], depth=2)
    question = ask("?", answers=["eucalyptus"])
    # none of the best two has it: the corpus's first, b, is put in front
    [hits] = tested.retrieve([question], 2)
    assert [(h.passage_id, h.rank) for h in hits] == [("b", 1), ("d", 2)]
    [hits] = tested.retrieve([question], 4)
    assert [h.passage_id for h in hits] == ["c", "b", "d", "a"]
    assert tested.base.asked == [2, 4]


def test_the_oracle_without_any_answer_keeps_the_base_ranking():
    [hits] = oracle(["d", "a"]).retrieve([ask("?", answers=["granite", " "])], 3)
    assert hits == [Hit("d", 10.0, 1), Hit("a", 9.0, 2)]


def test_the_oracle_never_lacks_an_answer_that_the_corpus_has(okvqa_sample):
    corpus = okvqa_sample.corpus
    tested = OracleRetriever(OracleRetriever.Config(depth=5), Fixed(list(corpus)[:5]))
    tested.prepare(corpus)
    questions = okvqa_sample.questions
    for question, hits in zip(questions, tested.retrieve(questions, 3), strict=True):
        text = corpus[hits[0].passage_id].content.lower()
        assert any(answer.strip().lower() in text for answer in question.answers)
        assert [h.rank for h in hits] == [1, 2, 3]
        assert len({h.passage_id for h in hits}) == 3


def test_the_oracle_builds_the_base_that_its_options_name():
    options = {"base": {"name": "random", "seed": 3}, "depth": 5}
    tested = OracleRetriever(validate(OracleRetriever.Config, options, "retriever"))
    tested.prepare(ZOO)
    [hits] = tested.retrieve([ask("?", answers=["stone"])], 5)
    assert hits[0].passage_id == "d"
    assert sorted(h.passage_id for h in hits) == list("abcde")
    assert OracleRetriever.Config().base == Part(name="late-interaction")


@pytest.mark.parametrize(
    ("tested", "name"),
    [
        (OracleRetriever(OracleRetriever.Config(), Fixed([])), "oracle"),
        (RandomRetriever(RandomRetriever.Config()), "random"),
    ],
)
def test_controls_that_need_passages_say_so(tested, name):
    with pytest.raises(UserError, match=f"{name} needs passages"):
        tested.prepare(None)


def drawn(questions, k, seed=0, passages=ZOO):
    tested = RandomRetriever(RandomRetriever.Config(seed=seed))
    tested.prepare(passages)
    return tested.retrieve(questions, k)


def test_random_passages_depend_on_seed_and_question_id_only():
    questions = [ask(f"text {i}", question_id=i) for i in range(20)]
    hits = drawn(questions, 3)
    assert drawn(questions[7:9], 3) == hits[7:9]
    assert drawn([ask("other words", KOALA, question_id=7)], 3) == [hits[7]]
    assert drawn(questions, 3, seed=1) != hits
    assert len({tuple(h.passage_id for h in found) for found in hits}) > 5
    for found in hits:
        assert len({h.passage_id for h in found}) == 3
        assert [(h.score, h.rank) for h in found] == [(0.0, 1), (0.0, 2), (0.0, 3)]


def test_random_passages_are_spread_evenly():
    passages = corpus()
    counts = Counter(
        hit.passage_id
        for found in drawn([ask("?", question_id=i) for i in range(2000)], 4, passages=passages)
        for hit in found
    )
    mean = 2000 * 4 / 40
    deviation = math.sqrt(2000 * 0.1 * 0.9)
    assert all(abs(counts[i] - mean) < 5 * deviation for i in passages)


def test_random_gives_all_passages_if_there_are_no_more():
    [hits] = drawn([ask("?")], 100)
    assert sorted(h.passage_id for h in hits) == list("abcde")


def test_fingerprints_of_retrievers_differ_with_their_settings():
    kinds = [
        NoRetriever(),
        RandomRetriever(RandomRetriever.Config(seed=0)),
        RandomRetriever(RandomRetriever.Config(seed=1)),
        oracle([], depth=1),
        oracle([], depth=2),
        retriever(),
        retriever(depth=7),
        retriever(query={"tags": 1}),
        retriever(encoder_options={"salt": "x"}),
    ]
    assert len({r.fingerprint for r in kinds}) == len(kinds)
    assert retriever().fingerprint == kinds[5].fingerprint
