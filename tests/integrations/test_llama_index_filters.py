"""LlamaIndex's metadata filters: decided as its own vector store does, and before the search."""

import flmr_parity as parity
import pytest
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.errors import UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage
from ravqa.corpora.corpus import Corpus
from ravqa.pipeline import Pipeline

pytest.importorskip("llama_index.core", reason="pip install 'ravqa[llama-index]'")
from llama_index.core import QueryBundle
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from ravqa.integrations.llama_index import PreFLMRRetriever
from ravqa.integrations.llama_index.filters import filter_of, matches

PREFLMR = (f"retriever.encoder.model={parity.checkpoint('preflmr')}",)
PHOTO = sorted((SAMPLE / "val2014").glob("*.jpg"))[0]


def on(key, operator, value=None):
    return MetadataFilter(key=key, operator=operator, value=value)


def every(*filters):
    return MetadataFilters(filters=list(filters), condition=FilterCondition.AND)


def some(*filters):
    return MetadataFilters(filters=list(filters), condition=FilterCondition.OR)


def none_of(*filters):
    return MetadataFilters(filters=list(filters), condition=FilterCondition.NOT)


# --- against LlamaIndex's own

words = st.sampled_from(["red", "Red", "re", "blue", ""])
numbers = st.integers(-2, 2) | st.sampled_from([0.5, 1.5])
word_lists = st.lists(words, max_size=3)
number_lists = st.lists(st.integers(-2, 2), max_size=3)
operators = st.sampled_from(FilterOperator)
metadata = st.fixed_dictionaries(
    {}, optional={"word": words, "number": numbers, "list": word_lists, "nothing": st.none()}
)
tests = st.builds(
    on,
    st.sampled_from(["word", "number", "list", "nothing", "missing"]),
    operators,
    words | numbers | word_lists | number_lists,
)
flat = st.builds(
    lambda filters, condition: MetadataFilters(filters=filters, condition=condition),
    st.lists(tests, max_size=3),
    st.sampled_from([*FilterCondition, None]),
)


@given(metadata, flat)
def test_flat_filters_decide_as_llama_index_does(found, filters):
    try:
        expected = build_metadata_filter_fn(lambda _: found, filters)("id")
    except TypeError:  # it decides every filter, also where one has settled the matter
        return
    assert matches(found, filters) is expected


@given(metadata, st.lists(flat, min_size=1, max_size=3), st.sampled_from(FilterCondition))
def test_nested_filters_are_decided_from_the_inside(found, inner, condition):
    try:
        results = [matches(found, filters) for filters in inner]
    except UserError:
        return
    nested = MetadataFilters(filters=inner, condition=condition)
    expected = {
        FilterCondition.AND: all(results),
        FilterCondition.OR: any(results),
        FilterCondition.NOT: not any(results),
    }[condition]
    assert matches(found, nested) is expected


@pytest.mark.parametrize(
    ("metadata", "test"),
    [
        ({"year": "1999"}, on("year", FilterOperator.GT, 1990)),
        ({"year": 1999}, on("year", FilterOperator.TEXT_MATCH, "19")),
        ({"year": 1999}, on("year", FilterOperator.CONTAINS, 9)),
        ({"year": 1999}, on("year", FilterOperator.IN, 1999)),
    ],
)
def test_what_cannot_be_compared_is_named(metadata, test):
    passage = Passage("p7", "text", extra=metadata)
    with pytest.raises(UserError, match=r"filter year .*'p7'.*1999.*cannot be compared"):
        filter_of(every(test))(passage)


def test_filters_see_fields_ids_and_what_else_there_is():
    passage = Passage("p", "text", title="Koala", article="a", extra={"page": 3, "passage": "no"})
    for key, value in {"title": "Koala", "passage_id": "p", "ref_doc_id": "a", "page": 3}.items():
        assert filter_of(every(on(key, FilterOperator.EQ, value)))(passage)
        assert not filter_of(every(on(key, FilterOperator.NE, value)))(passage)


# --- in the search


@pytest.fixture(scope="module")
def passages():
    found = list(Corpus.read(SAMPLE / "passages.jsonl").values())[:30]
    years = [None if i % 5 == 0 else 1990 + i for i in range(len(found))]
    return [
        Passage(p.passage_id, p.text, title=p.title, extra={**p.extra, "year": year})
        for p, year in zip(found, years, strict=True)
    ]


CASES = {
    "eq": every(on("aspect", FilterOperator.EQ, "diet")),
    "gt and lt": every(on("year", FilterOperator.GT, 1995), on("year", FilterOperator.LTE, 2005)),
    "in or empty": some(
        on("aspect", FilterOperator.IN, ["diet", "habitat"]),
        on("year", FilterOperator.IS_EMPTY),
    ),
    "not": none_of(
        on("aspect", FilterOperator.TEXT_MATCH_INSENSITIVE, "DI"),
        on("year", FilterOperator.GTE, 2010),
    ),
    "nested": every(
        on("kind", FilterOperator.EQ, "animal"),
        some(
            on("year", FilterOperator.EQ, 1992),
            none_of(on("aspect", FilterOperator.NIN, ["diet"])),
        ),
    ),
    "nothing": every(on("aspect", FilterOperator.EQ, "no such aspect")),
}


@pytest.fixture(scope="module")
def sources(passages, tmp_path_factory):
    """The same passages in a collection with an exact index, and in a pipeline's compressed one."""
    folder = tmp_path_factory.mktemp("filters") / "collection"
    made = PreFLMRRetriever.from_documents([], folder, overrides=PREFLMR)
    made.collection.add(passages)
    compressed = (*PREFLMR, "retriever.index.name=compressed")
    pipeline = Pipeline.load("preflmr-l-retrieval", *compressed, retrieval_only=True)
    pipeline.prepare(Corpus(passages))
    return [made.collection, pipeline]


@pytest.mark.parametrize("name", CASES)
def test_only_what_is_let_through_is_searched(sources, passages, name):
    query = QueryBundle("What does it eat?", image_path=str(PHOTO))
    allowed = {p.passage_id for p in passages if filter_of(CASES[name])(p)}
    assert name == "nothing" or 0 < len(allowed) < len(passages)
    for source in sources:
        ranking = [n.node_id for n in PreFLMRRetriever(source, 30).retrieve(query)]
        expected = [i for i in ranking if i in allowed]
        assert expected or name == "nothing"
        tested = PreFLMRRetriever(source, 3, filters=CASES[name])
        # All that fit come, however few of them are among the best of all passages.
        assert [n.node_id for n in tested.retrieve(query)] == expected[:3]


def test_passages_that_come_later_are_filtered_too(tmp_path):
    made = PreFLMRRetriever.from_documents([], tmp_path / "collection", overrides=PREFLMR)
    made.collection.add(
        [Passage("a", "one", extra={"page": 1}), Passage("b", "two", extra={"page": 2})]
    )
    tested = PreFLMRRetriever(made.collection, filters=every(on("page", FilterOperator.EQ, 1)))
    assert [n.node_id for n in tested.retrieve("what?")] == ["a"]
    made.collection.add([Passage("c", "three", extra={"page": 1})])
    assert {n.node_id for n in tested.retrieve("what?")} == {"a", "c"}


def test_filters_are_decided_once_for_each_state(sources, tmp_path):
    made = PreFLMRRetriever.from_documents([], tmp_path / "collection", overrides=PREFLMR)
    made.collection.add([Passage("a", "one", extra={"page": 1}), Passage("b", "two")])
    tested = PreFLMRRetriever(made.collection, filters=every(on("page", FilterOperator.EQ, 1)))
    where, decided = tested._searcher._where, []
    tested._searcher._where = lambda p: (decided.append(p.passage_id), where(p))[1]
    for _ in range(2):
        assert [n.node_id for n in tested.retrieve("what?")] == ["a"]
    assert sorted(decided) == ["a", "b"]
    made.collection.delete(["b"])
    assert [n.node_id for n in tested.retrieve("what?")] == ["a"]
    assert sorted(decided) == ["a", "a", "b"]


def test_a_retriever_that_cannot_filter_says_so(passages):
    pipeline = Pipeline.load("bm25-retrieval", retrieval_only=True)
    pipeline.prepare(Corpus(passages))
    assert PreFLMRRetriever(pipeline).retrieve("jaguar")
    with pytest.raises(UserError, match="BM25Retriever searches all passages"):
        PreFLMRRetriever(pipeline, filters=CASES["eq"])
