"""Query forms by hand: which texts, which weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.records import Description, Question, Region, Tag
from ravqa.encoders.base import Span
from ravqa.retrievers.query_text import Parts, QueryText, forms

KOALA = Tag(("koala", "koala bear", "native bear"), 0.6, ("marsupial", "animal"))
TABBY = Tag(("tabby", "tabby cat"), 0.2, ("cat", "feline", "animal"))
CHAIR = Tag(("rocking chair",), 0.2, ("chair", "furniture", "thing"))


def ask(text, *tags):
    return Question(1, text, description=Description(tags=tags) if tags else None)


def flat(found):
    """Forms as (rounded weight, texts of the alternatives); several spans are joined by " + "."""
    return [
        (
            round(form.weight, 6),
            [" + ".join(span.text for span in spans) for spans in form.alternatives],
        )
        for form in found
    ]


def test_default_forms_of_a_question_about_this_animal():
    found = forms(ask("Where does this animal live?", KOALA, TABBY, CHAIR), QueryText())
    # The chair is no animal. Replaced: 1 in all, shared .6 to .2; appended: .5; divided by 1.5.
    assert flat(found) == [
        (
            0.5,
            [
                "Where does the koala live?",
                "Where does the koala bear live?",
                "Where does the native bear live?",
            ],
        ),
        (
            round(0.25 / 1.5, 6),
            ["Where does the tabby live?", "Where does the tabby cat live?"],
        ),
        (round(0.5 / 1.5, 6), ["Where does this animal live? + koala + tabby"]),
    ]
    assert found[2].alternatives == (
        (Span("Where does this animal live?", 1.0), Span("koala", 0.6), Span("tabby", 0.2)),
    )
    assert all(
        span.weight == 1.0 for form in found[:2] for spans in form.alternatives for span in spans
    )


@pytest.mark.parametrize(
    "question",
    [ask("What is it?"), Question(1, "What is it?", description=Description(caption="a cat"))],
)
def test_without_tags_the_question_alone_is_the_query(question):
    for config in (QueryText(), QueryText(question=0.3)):
        assert flat(forms(question, config)) == [(1.0, ["What is it?"])]


def test_with_every_weight_nought_the_question_alone_is_the_query():
    config = QueryText(question=0, replaced=0, appended=0)
    assert flat(forms(ask("Where does this animal live?", KOALA), config)) == [
        (1.0, ["Where does this animal live?"])
    ]


def test_each_form_can_be_had_alone():
    question = ask("Where does this animal live?", KOALA)
    assert flat(forms(question, QueryText(question=2, replaced=0, appended=0))) == [
        (1.0, ["Where does this animal live?"])
    ]
    assert flat(forms(question, QueryText(question=0, replaced=2, appended=0, names=1))) == [
        (1.0, ["Where does the koala live?"])
    ]
    assert flat(forms(question, QueryText(question=0, replaced=0, appended=2))) == [
        (1.0, ["Where does this animal live? + koala"])
    ]


def test_the_caption_follows_the_question_if_it_is_wanted():
    seen = Description(tags=(KOALA,), caption="a koala in a tree")
    question = Question(1, "Where does this animal live?", description=seen)
    captioned = "Where does this animal live? + a koala in a tree"
    alone = QueryText(replaced=0, appended=0, captioned=1)
    assert flat(forms(question, alone)) == [(1.0, [captioned])]
    assert (0.25, [captioned]) in flat(forms(question, QueryText(appended=2, captioned=1)))
    assert captioned not in str(flat(forms(question, QueryText())))
    # Without a caption the question is asked by itself.
    assert flat(forms(ask("What is it?"), alone)) == [(1.0, ["What is it?"])]


def test_weights_are_shared_among_all_three_forms():
    config = QueryText(question=1, replaced=2, appended=1, names=1)
    assert flat(forms(ask("What eats this bird?", KOALA, TABBY, CHAIR), config)) == [
        (0.25, ["What eats this bird?"]),
        (0.3, ["What eats the koala?"]),  # no tag is a bird, so that all are used
        (0.1, ["What eats the tabby?"]),
        (0.1, ["What eats the rocking chair?"]),
        (0.25, ["What eats this bird? + koala + tabby + rocking chair"]),
    ]


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("What do these animals eat?", "What do the koala eat?"),
        ("Is this kind of animal rare?", "Is the koala rare?"),
        ("THIS ANIMAL eats what?", "the koala eats what?"),
        ("Where are those marsupials found?", "Where are the koala found?"),
        ("How old does this  animal get?", "How old does the koala get?"),
        ("What is it?", "What is it? koala"),  # nothing to replace: the name follows
        ("Is thistle this animal's food?", "Is thistle the koala's food?"),
    ],
)
def test_what_is_replaced(text, replaced):
    config = QueryText(replaced=1, appended=0, names=1, tags=1)
    assert flat(forms(ask(text, KOALA, CHAIR), config)) == [(1.0, [replaced])]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("How is this chair made?", "rocking chair"),
        ("How are these chairs made?", "rocking chair"),
        ("How is this Furniture made?", "rocking chair"),
        ("What does this cat eat?", "tabby"),
        ("Where do these animals live?", "koala"),
        ("Which park is this?", "koala"),  # no kind given: the most probable tag
        ("Who owns this ship?", "koala"),  # a kind that no tag is of
    ],
)
def test_the_kind_that_is_asked_about_is_preferred(text, first):
    config = QueryText(replaced=0, appended=1, tags=1)
    [form] = forms(ask(text, KOALA, TABBY, CHAIR), config)
    assert form.alternatives[0][1].text == first


def test_the_kind_is_not_looked_at_when_told_so():
    config = QueryText(replaced=0, appended=1, tags=1, prefer_kind=False)
    [form] = forms(ask("How is this chair made?", KOALA, CHAIR), config)
    assert form.alternatives[0][1].text == "koala"


def test_tags_and_names_are_limited():
    config = QueryText(appended=0, tags=2, names=2, prefer_kind=False)
    assert flat(forms(ask("What is this?", KOALA, TABBY, CHAIR), config)) == [
        (0.75, ["What is this? koala", "What is this? koala bear"]),
        (0.25, ["What is this? tabby", "What is this? tabby cat"]),
    ]


def test_an_improbable_tag_is_left_out():
    rare = Tag(("rare",), 0.05)
    config = QueryText(appended=0, names=1, min_share=0.1)
    # .05 of .6 + .2 + .05 is 6 %
    found = forms(ask("What is this?", KOALA, TABBY, rare), config)
    assert [texts for _, texts in flat(found)] == [["What is this? koala"], ["What is this? tabby"]]
    all_in = forms(
        ask("What is this?", KOALA, TABBY, rare), config.model_copy(update={"min_share": 0})
    )
    assert len(all_in) == 3


def test_the_most_probable_tag_always_stays():
    tags = [Tag((name,), 0.05) for name in "abcdefghijklmnopqrst"]
    config = QueryText(appended=0, tags=20, min_share=0.1)
    assert flat(forms(ask("What is this?", *tags), config)) == [(1.0, ["What is this? a"])]


words = st.text(st.characters(categories=["L", "P", "Zs"]), max_size=12)
tags = st.builds(
    Tag,
    names=st.lists(words.filter(str.strip), min_size=1, max_size=5).map(tuple),
    probability=st.floats(1e-6, 1),
    kinds=st.lists(st.sampled_from(["animal", "bird", "thing"])).map(tuple),
)
weights = st.sampled_from([0.0, 0.25, 1.0])


@given(
    text=st.lists(st.sampled_from(["this", "bird", "These", "of", "kind", "animals", "?"])).map(
        " ".join
    )
    | words,
    tags=st.lists(tags, max_size=6),
    config=st.builds(
        QueryText,
        question=weights,
        replaced=weights,
        appended=weights,
        tags=st.integers(1, 4),
        names=st.integers(1, 3),
        min_share=st.floats(0, 1),
        prefer_kind=st.booleans(),
    ),
)
def test_weights_always_sum_to_one_and_no_form_is_empty(text, tags, config):
    tags.sort(key=lambda tag: -tag.probability)
    found = forms(ask(text, *tags), config)
    assert sum(form.weight for form in found) == pytest.approx(1)
    for form in found:
        assert form.weight > 0
        assert 1 <= len(form.alternatives) <= config.names
        assert all(spans for spans in form.alternatives)
    if tags and (config.replaced or config.appended):
        assert found != forms(ask(text), config)  # what is seen is in the query


SEEN = Description(
    tags=(KOALA, CHAIR),
    caption="a koala in a tree",
    ocr=("ZOO", "open daily"),
    objects=(
        Region("tree", (0, 0, 9, 9), (("tall", 0.9), ("dim", 0.05)), ocr=("ZOO", "No 4")),
        Region("koala", (0, 0, 5, 5)),
        Region("koala", (5, 5, 9, 9)),
    ),
)
DESCRIBED = {"replaced": 0.0, "appended": 0.0, "described": 1.0}


def parts(described=SEEN, **weights):
    config = QueryText(**DESCRIBED, parts=Parts(**weights))
    [form] = forms(Question(1, "Where is it?", description=described), config)
    [[question, *spans]] = form.alternatives
    assert question == Span("Where is it?")
    return [(span.text, span.weight) for span in spans]


def test_parts_of_the_description_follow_the_question_by_their_weights():
    assert parts() == [
        ("a koala in a tree", 1.0),
        ("tall tree, koala", 1.0),
        ("ZOO open daily No 4", 1.0),
    ]
    assert parts(tags=0.5, caption=0, objects=0.25, ocr=2) == [
        ("koala", 0.3),
        ("rocking chair", 0.1),
        ("tall tree, koala", 0.25),
        ("ZOO open daily No 4", 2.0),
    ]


def test_parts_that_are_missing_are_left_out():
    assert parts(Description(ocr=("EXIT",))) == [("EXIT", 1.0)]
    assert parts(Description(caption=" ")) == parts(caption=0, objects=0, ocr=0) == []


def test_parts_are_a_form_beside_the_others():
    config = QueryText(question=1.0, replaced=0, appended=0, captioned=2.0, described=1.0)
    found = forms(Question(1, "Where is it?", description=SEEN), config)
    assert [form.weight for form in found] == [0.25, 0.5, 0.25]


def test_choices_are_in_the_query_only_by_their_weight():
    asked = Question(1, "What is it?", choices=("an oak", "an ash"))
    for config in (QueryText(), QueryText(question=1.0, captioned=1.0, described=1.0)):
        [form] = forms(asked, config)
        assert form.alternatives == ((Span("What is it?"),),)
    config = QueryText(question=1.0, choices=3.0)
    plain, chosen = forms(asked, config)
    assert (plain.weight, chosen.weight) == (0.25, 0.75)
    assert chosen.alternatives == ((Span("What is it?"), Span("an oak, an ash")),)
    assert [form.weight for form in forms(Question(2, "What?"), config)] == [1.0]
