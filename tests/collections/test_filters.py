"""Filters by metadata against their definition, and what is said of a key that nothing has."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravqa.collections.filters import FIELDS, matching, value_of
from ravqa.core.errors import UserError
from ravqa.core.records import Passage

FULL = Passage(
    "a",
    "text",
    title="Title",
    section="Section",
    article="Article",
    entity="Entity",
    url="http://x",
    extra={"page": 1, "title": "another", "tags": ["red", 2], "none": None},
)
BARE = Passage("b", "text", extra={"page": "2", "tags": ("green",)})


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_of_a_passage_can_be_asked_for(name):
    assert FIELDS == ("passage_id", "title", "section", "article", "entity", "url")
    assert value_of(FULL, name) == getattr(FULL, name)
    assert matching([FULL, BARE], {name: getattr(FULL, name)}) == {"a"}
    assert matching([FULL, BARE], {name: "other"}) == frozenset()


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({}, {"a", "b"}),
        ({"page": 1}, {"a"}),
        ({"page": "1"}, {"a"}),
        ({"page": 2}, {"b"}),
        ({"page": [1, 2]}, {"a", "b"}),
        ({"page": (1, "2")}, {"a", "b"}),
        ({"page": {2, 3}}, {"b"}),
        ({"page": frozenset({1})}, {"a"}),
        ({"page": []}, set()),
        ({"page": 3}, set()),
        ({"tags": "red"}, {"a"}),
        ({"tags": 2}, {"a"}),
        ({"tags": ["green", "red"]}, {"a", "b"}),
        ({"tags": "['red', 2]"}, set()),
        ({"page": 1, "tags": "green"}, set()),
        ({"page": 2, "tags": "green"}, {"b"}),
        ({"title": "another"}, set()),
        ({"none": None}, set()),
        ({"none": "None"}, set()),
        ({"title": None}, set()),
        (lambda passage: passage.extra["page"] == 1, {"a"}),
        (lambda passage: "", set()),
    ],
)
def test_passages_have_what_is_asked_for(where, found):
    assert matching([FULL, BARE], where) == found
    assert matching([BARE, FULL], where) == found
    assert isinstance(matching([FULL, BARE], where), frozenset)


VALUES = st.one_of(st.integers(0, 2), st.sampled_from(["0", "1", "x"]), st.none())


@settings(max_examples=30)
@given(
    metadata=st.lists(
        st.dictionaries(st.sampled_from("xy"), st.one_of(VALUES, st.lists(VALUES))), max_size=5
    ),
    where=st.dictionaries(st.sampled_from("xy"), st.one_of(VALUES, st.lists(VALUES))),
)
def test_filters_are_as_defined(metadata, where):
    def texts(value):
        if value is None:
            return set()
        return {str(item) for item in value} if isinstance(value, list) else {str(value)}

    passages = [Passage(str(i), "", extra=extra) for i, extra in enumerate(metadata)]
    found = {
        p.passage_id
        for p in passages
        if all(texts(p.extra.get(key)) & texts(value) for key, value in where.items())
    }
    known = {key for extra in metadata for key in extra}
    if not found and not where.keys() <= known:
        with pytest.raises(UserError, match="no passage has"):
            matching(passages, where)
    else:
        assert matching(passages, where) == found


def test_a_key_that_no_passage_has_is_named_with_those_like_it():
    with pytest.raises(UserError) as error:
        matching([FULL, BARE], {"page": 9, "pagge": 1})
    known = "article, entity, none, page, passage_id, section, tags, title, url"
    near = "did you mean page or passage_id?"
    assert str(error.value) == f"no passage has 'pagge': {near} (known: {known})"
    with pytest.raises(UserError) as error:
        matching([BARE], {"zzz": 1})
    assert str(error.value).startswith("no passage has 'zzz': known: article, entity, page, ")
