"""BM25 against the formula, against bm25s itself, and what is kept in the cache."""

import itertools
import math
import os
import re
import shutil
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.errors import DataError, MissingExtraError, UserError
from ravqa.core.records import Description, Passage, Question, Tag
from ravqa.core.settings import validate
from ravqa.corpora.corpus import IN_MEMORY, Corpus
from ravqa.datasets import okvqa
from ravqa.datasets.base import DatasetRequest
from ravqa.metrics.prrecall import pseudo_recall_at_k
from ravqa.retrievers import bm25
from ravqa.retrievers.bm25 import BM25Retriever

bm25s = pytest.importorskip("bm25s")

SNIPPETS = Path(__file__).parents[3] / "shared" / "data" / "okvqa-snippets"


def retriever(corpus=None, **options):
    found = BM25Retriever(validate(BM25Retriever.Config, options, "retriever"))
    if corpus is not None:
        found.prepare(corpus)
    return found


def corpus_of(*texts):
    return Corpus(Passage(f"p{i}", text) for i, text in enumerate(texts))


def ask(text, *tags, caption=""):
    seen = Description(tags=tags, caption=caption) if tags or caption else None
    return Question(1, text, description=seen)


def ranking(tested, question, k=100):
    [hits] = tested.retrieve([question], k)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    return [(hit.passage_id, hit.score) for hit in hits]


def formula(texts, query, k1=1.5, b=0.75):
    """The definition, word by word, over words that are no stop words."""
    documents = [re.findall(r"\w\w+", text.lower()) for text in texts]
    length = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        counts, score = Counter(words), 0.0
        for word in re.findall(r"\w\w+", query.lower()):
            found = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - found + 0.5) / (found + 0.5))
            norm = k1 * (1 - b + b * len(words) / length)
            score += idf * counts[word] / (counts[word] + norm) if counts[word] else 0.0
        scores.append(score)
    return scores


def test_scores_by_hand(fresh_cache):
    # Two of three passages have "bridge"; lengths 2, 4, 3, on average 3.
    corpus = corpus_of("tower bridge", "bridge bridge over river", "red wooden boat")
    found = dict(ranking(retriever(corpus), ask("Bridge?")))
    idf = math.log(1 + 1.5 / 2.5)
    assert found == pytest.approx(
        {
            "p0": idf * 1 / (1 + 1.5 * (0.25 + 0.75 * 2 / 3)),
            "p1": idf * 2 / (2 + 1.5 * (0.25 + 0.75 * 4 / 3)),
        }
    )


WORDS = st.sampled_from(["koala", "leaf", "tree", "eats", "old", "iron"])
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=8)


@given(
    texts=TEXTS,
    query=st.lists(WORDS | st.just("unheard"), max_size=5).map(" ".join),
    k1=st.sampled_from([0.0, 0.9, 1.5]),
    b=st.sampled_from([0.0, 0.4, 1.0]),
    k=st.integers(1, 9),
)
@pytest.mark.slow
def test_rankings_equal_the_formula_with_ties_in_corpus_order(texts, query, k1, b, k):
    found = ranking(retriever(corpus_of(*texts), k1=k1, b=b), ask(query), k)
    expected = formula(texts, query, k1, b)
    matching = [score for score in expected if score > 0]
    assert len(found) == min(k, len(matching))
    scores = dict(found)
    assert len(scores) == len(found)
    for passage_id, score in found:
        assert score == pytest.approx(expected[int(passage_id[1:])], rel=1e-5)
    np.testing.assert_allclose(list(scores.values()), sorted(matching, reverse=True)[:k], rtol=1e-5)
    for (one, a), (other, z) in itertools.pairwise(found):
        assert a > z or (a == z and int(one[1:]) < int(other[1:]))


def test_rankings_equal_the_librarys_own():
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(60)]
    texts = [" ".join(rng.choice(vocabulary, size=rng.integers(5, 30))) for _ in range(300)]
    words = bm25s.tokenize(texts, stopwords="en", show_progress=False)
    library = bm25s.BM25()
    library.index(words, show_progress=False)
    tested = retriever(corpus_of(*texts))
    for _ in range(20):
        query = " ".join(rng.choice(vocabulary, size=4))
        given = bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)
        documents, scores = library.retrieve(given, k=10, show_progress=False)
        found = ranking(tested, ask(query), 10)
        assert [score for _, score in found] == pytest.approx(scores[0].tolist())
        least = scores[0].min()  # of equal last places, either may be given
        assert {i for i, score in found if score > least * 1.0001} == {
            f"p{row}"
            for row, score in zip(documents[0], scores[0], strict=True)
            if score > least * 1.0001
        }


@pytest.mark.parametrize("stemming", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_passages_are_indexed_batch_by_batch(monkeypatch, fresh_cache, batch, stemming):
    monkeypatch.setattr(bm25, "_STEP", batch)
    texts = ["koala tree", "the", "tree iron tree", "leaf old old koala", "iron"]
    corpus = Corpus.build(
        (Passage(f"p{i}", text) for i, text in enumerate(texts)),
        source="here",
        size=IN_MEMORY + 1,  # on disk
        key=lambda: "k",
    )
    found = dict(ranking(retriever(corpus, stemming=stemming), ask("old koala tree")))
    expected = formula([text.replace("the", "") for text in texts], "old koala tree")
    assert found == pytest.approx({f"p{i}": expected[i] for i in (0, 2, 3)})


def test_the_title_counts_and_stop_words_and_case_do_not():
    corpus = Corpus(
        [
            Passage("titled", "It is in London.", title="Tower Bridge"),
            Passage("other", "The, is, in and of: a boat."),
        ]
    )
    assert [i for i, _ in ranking(retriever(corpus), ask("where is the TOWER of it in"))] == [
        "titled"
    ]


def test_a_query_without_known_words_finds_nothing():
    tested = retriever(corpus_of("a boat", "a river"))
    for text in ("", "the", "zebra crossing"):
        assert ranking(tested, ask(text)) == []


def test_stemming_joins_forms_of_a_word():
    corpus = corpus_of("koalas eating leaves", "an iron boat")
    question = ask("koala eats leaf")
    assert ranking(retriever(corpus), question) == []
    assert [i for i, _ in ranking(retriever(corpus, stemming=True), question)] == ["p0"]


def test_the_caption_goes_into_the_query_if_it_is_wanted():
    texts = ["koala loves gum tree", "animal lives long", "house made brick"]
    question = ask("Where lives this animal?", caption="koala climbing tree")
    plain = {"replaced": 0, "appended": 0}
    both = {**plain, "captioned": 1}
    corpus = corpus_of(*texts)
    assert dict(ranking(retriever(corpus, query=plain), question)).keys() == {"p1"}
    found = dict(ranking(retriever(corpus, query=both), question))
    joined = formula(texts, f"lives animal {question.description.caption}")
    assert found == pytest.approx({"p0": joined[0], "p1": joined[1]})
    mixed = dict(ranking(retriever(corpus, query={**both, "question": 3}), question))
    alone = formula(texts, "lives animal")
    assert mixed == pytest.approx({f"p{i}": (joined[i] + 3 * alone[i]) / 4 for i in (0, 1)})


def test_tags_replace_and_follow_the_subject_with_their_weights():
    texts = ["koala lives here", "tabby cat lives", "animal lives", "brick house"]
    tags = (Tag(("tabby", "cat"), 0.3, ("animal",)), Tag(("koala",), 0.2, ("animal",)))
    question = ask("Where lives this animal?", *tags)
    found = dict(ranking(retriever(corpus_of(*texts)), question))
    tabby, cat, koala, appended = (
        np.array(formula(texts, text))
        for text in ("lives tabby", "lives cat", "lives koala", "lives animal")
    )
    appended = appended + sum(
        tag.probability * np.array(formula(texts, tag.names[0])) for tag in tags
    )
    replaced = 0.6 * np.maximum(tabby, cat) + 0.4 * koala
    expected = (replaced + 0.5 * appended) / 1.5
    assert found == pytest.approx({f"p{i}": expected[i] for i in (0, 1, 2)})


# --- what is kept


def test_an_index_is_built_once_per_corpus_and_setting_and_memory_mapped(fresh_cache, monkeypatch):
    built = []
    index = bm25s.BM25.index

    def counted(self, *args, **kwargs):
        built.append(1)
        return index(self, *args, **kwargs)

    monkeypatch.setattr(bm25s.BM25, "index", counted)
    corpus = corpus_of("tower bridge", "a boat")
    first = ranking(retriever(corpus), ask("bridge"))
    again = retriever(corpus_of("tower bridge", "a boat"), query={"captioned": 1})
    assert ranking(again, ask("bridge")) == first
    assert len(built) == 1
    assert isinstance(again._index.scores["data"], np.memmap)
    retriever(corpus, k1=1.2)
    retriever(corpus, b=0.5)
    retriever(corpus, stemming=True)
    retriever(corpus_of("tower bridge", "the boat of a man"))
    assert len(built) == 5
    assert len(list((fresh_cache / "bm25").iterdir())) == 5
    assert not any(p.name.startswith(".") for p in (fresh_cache / "bm25").iterdir())


def test_a_failed_build_leaves_nothing(fresh_cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bm25s.BM25, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retriever(corpus_of("tower bridge", "a boat"))
    assert list((fresh_cache / "bm25").iterdir()) == []


def test_a_damaged_index_in_the_cache_is_made_again_with_a_note(fresh_cache, caplog):
    corpus = corpus_of("tower bridge", "a boat", "the bridge of boats")
    found = ranking(retriever(corpus), ask("bridge"))
    [folder] = (fresh_cache / "bm25").iterdir()
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        middle = len(data) // 2
        changed = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
        for bad in (changed, b"[" * 100_000 if file.suffix == ".json" else data[:-1]):
            (fresh_cache / "rankings.sqlite").unlink(missing_ok=True)
            file.write_bytes(bad)
            caplog.clear()
            assert ranking(retriever(corpus), ask("bridge")) == found
            [record] = [r for r in caplog.records if r.name.startswith("ravqa")]
            assert f"{folder} is damaged" in record.getMessage()
            assert "\n" not in record.getMessage()
        assert file.read_bytes() == data


@pytest.mark.parametrize("instead", ["file", "pipe", "empty folder"])
def test_what_is_no_index_in_the_cache_is_replaced(fresh_cache, instead):
    corpus = corpus_of("tower bridge", "a boat")
    retriever(corpus)
    [folder] = (fresh_cache / "bm25").iterdir()
    shutil.rmtree(folder)
    {"file": Path.touch, "pipe": os.mkfifo, "empty folder": Path.mkdir}[instead](folder)
    assert len(ranking(retriever(corpus), ask("boat"))) == 1


@pytest.mark.parametrize(
    "value", ["null", "7", "[]", '[["p0"]]', "[[1, 2]]", '[["p0", "x"]]', "{}"]
)
def test_a_kept_ranking_of_another_kind_is_made_again(fresh_cache, value):
    corpus = corpus_of("tower bridge", "a boat")
    found = ranking(retriever(corpus), ask("bridge"))
    with sqlite3.connect(fresh_cache / "rankings.sqlite") as connection:
        connection.execute("UPDATE kept SET value = ?", [value])
    connection.close()
    again = ranking(retriever(corpus), ask("bridge"))
    assert again == ([] if value == "[]" else found)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o002, 0o775), (0, 0o777)])
def test_the_cache_has_the_permissions_that_the_umask_leaves(fresh_cache, umask, mode):
    before = os.umask(umask)
    try:
        retriever(corpus_of("tower bridge", "a boat"))
    finally:
        os.umask(before)
    [folder] = (fresh_cache / "bm25").iterdir()
    assert folder.stat().st_mode & 0o777 == mode
    assert {f.stat().st_mode & 0o777 for f in folder.iterdir()} == {mode & 0o666}


# --- scripts without spaces


@pytest.mark.parametrize(
    ("texts", "query", "found"),
    [
        (["考拉吃桉树叶。", "铁塔在巴黎。"], "考拉吃什么", ["p0"]),  # Chinese
        (["コアラはユーカリの葉を食べます。", "塔は鉄でできている。"], "コアラの食べ物", ["p0"]),
        (["กินใบยูคาลิปตัส", "หอคอยเหล็ก"], "หอคอย", ["p1"]),  # Thai, with vowel signs
        (["သစ်ရွက်", "သံမျှော်စင်"], "မျှော်စင်", ["p1"]),  # Burmese
        (["ស៊ីស្លឹក", "ប៉មដែក"], "ប៉ម", ["p1"]),  # Khmer
        (["The 考拉 eats leaves", "A tower"], "考拉", ["p0"]),
        (["考拉", "塔"], "塔", ["p1"]),  # a letter that stands alone
        (["iPhone手机", "tower塔"], "iphone", ["p0"]),  # Latin letters beside others
        (["𠮷野家", "铁塔"], "𠮷野", ["p0"]),  # beyond 16 bits
        (["코알라는 잎을 먹는다", "철탑"], "코알라는", ["p0"]),  # Korean has spaces
        (["café au lait", "Tee"], "CAFÉ", ["p0"]),
    ],
)
def test_texts_without_spaces_are_found_by_pairs_of_letters(fresh_cache, texts, query, found):
    assert [i for i, _ in ranking(retriever(corpus_of(*texts)), ask(query))] == found


def test_pairs_are_scored_as_words_are(fresh_cache):
    chinese = ranking(retriever(corpus_of("考拉吃叶", "铁塔")), ask("考拉"))
    spelt = ranking(retriever(corpus_of("kaola lachi chiye", "tieta")), ask("kaola"))
    assert chinese == spelt


@pytest.mark.parametrize("query", ["the of a", "? !", "a b c", "", "\U0001f428", "·、。"])
def test_a_question_of_which_nothing_is_left_is_reported(fresh_cache, caplog, query):
    tested = retriever(corpus_of("考拉 eats leaves", "a boat"))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        assert ranking(tested, ask(query)) == []
        [record] = [r for r in caplog.records if r.levelname == "WARNING"]
        assert "finds nothing for 1 question" in record.getMessage()
        assert repr(query) in record.getMessage()


def test_a_question_with_words_that_no_passage_has_is_not_reported(fresh_cache, caplog):
    assert ranking(retriever(corpus_of("a boat")), ask("zebra 斑马")) == []
    assert "finds nothing" not in caplog.text


def test_the_fingerprint_holds_every_setting():
    settings = [{}, {"k1": 1.0}, {"b": 0.1}, {"stemming": True}, {"query": {"captioned": 1}}]
    assert len({retriever(**options).fingerprint for options in settings}) == len(settings)
    assert retriever().fingerprint == retriever().fingerprint


def test_progress_reaches_the_number_of_passages(fresh_cache):
    seen = []
    corpus = corpus_of(*["a boat"] * 3)
    BM25Retriever(BM25Retriever.Config()).prepare(corpus, lambda *step: seen.append(step))
    assert ("indexing passages", 3, 3) in seen
    assert seen[-1] == ("building the index of words", 1, 1)


# --- mistakes


def test_passages_are_needed_and_one_of_them_needs_a_word(fresh_cache):
    with pytest.raises(UserError, match="bm25 needs passages"):
        retriever().prepare(None)
    with pytest.raises(DataError, match="no passage has a word"):
        retriever(corpus_of("the", "! ?"))


@pytest.mark.parametrize(("module", "options"), [("bm25s", {}), ("Stemmer", {"stemming": True})])
def test_a_missing_package_names_the_extra(monkeypatch, module, options):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"ravqa\[bm25\]"):
        retriever(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b": 2}, "'b'"),
        ({"k": 1}, "unknown key 'k'"),
        ({"query": {"caption": 1}}, "did you mean captioned"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        retriever(**options)


# --- real data


@pytest.mark.parametrize(("captioned", "expected"), [(0, 0.47), (1, 0.54)])
@pytest.mark.slow
def test_known_figures_on_real_snippets(captioned, expected):
    if not SNIPPETS.is_dir():
        pytest.skip("no ../shared/data/okvqa-snippets beside the project: not tested")
    options = {"captions": str(SNIPPETS / "captions.jsonl")}
    dataset = okvqa.load(DatasetRequest(data=SNIPPETS, need_images=False, options=options))
    corpus = Corpus.read(SNIPPETS / "passages.jsonl")
    tested = retriever(corpus, query={"captioned": captioned})
    recall = [
        pseudo_recall_at_k([corpus[h.passage_id].content for h in hits], q.answers, [5])[5]
        for q, hits in zip(dataset.questions, tested.retrieve(dataset.questions, 5), strict=True)
    ]
    assert len(recall) == 498
    assert round(sum(recall) / len(recall), 2) == expected
