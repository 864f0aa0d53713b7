"""FLMR's regions of interest, against the published rule written out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.factory import build_part
from ravqa.core.records import Description, Question, Region
from ravqa.core.settings import Part
from ravqa.describers import DESCRIBERS
from ravqa.describers.base import Describer
from ravqa.describers.regions import regions_of


def box(label, left, top, width, height):
    return Region(label, (left, top, left + width, top + height))


SMALL_CAT = box("cat", 50, 50, 2, 2)
BIG_DOG, DOG_INSIDE = box("dog", 0, 0, 30, 30), box("dog", 5, 5, 10, 10)
DOG_ACROSS = box("dog", 25, 25, 10, 10)
CAR_INSIDE = box("car", 6, 6, 8, 8)
OBJECTS = [DOG_INSIDE, SMALL_CAT, CAR_INSIDE, BIG_DOG, DOG_ACROSS]


def test_what_the_question_names_comes_first_then_the_largest():
    # The dog inside of the big one is not chosen; the car is, being another thing.
    assert regions_of(OBJECTS, "Which Cat is this?", 9) == (
        SMALL_CAT, BIG_DOG, DOG_ACROSS, CAR_INSIDE,
    )  # fmt: skip
    assert regions_of(OBJECTS, "Where is it?", 2) == (BIG_DOG, DOG_ACROSS)


def test_all_that_the_question_names_are_chosen_as_they_come():
    # As published: the rule about those inside of others holds for the rest alone.
    named = (DOG_INSIDE, BIG_DOG, DOG_ACROSS)
    assert regions_of(OBJECTS, "What breed are the dogs?", 3) == named
    assert regions_of(OBJECTS, "What breed are the dogs?", 2) == named[:2]
    assert regions_of([], "What?", 9) == ()


boxes = st.builds(
    box,
    st.sampled_from(["cat", "dog"]),
    *[st.integers(0, 9)] * 2,
    *[st.integers(1, 9)] * 2,
)


@given(st.lists(boxes, max_size=8), st.integers(1, 9), st.sampled_from(["?", "a dog?"]))
def test_the_rule_as_published(objects, count, question):
    chosen = [one for one in objects if one.label in question]
    areas = {id(one): (one.box[2] - one.box[0]) * (one.box[3] - one.box[1]) for one in objects}
    for one in sorted(objects, key=lambda one: -areas[id(one)]):
        inside = any(
            other.label == one.label
            and other.box[0] <= one.box[0]
            and other.box[1] <= one.box[1]
            and other.box[2] >= one.box[2]
            and other.box[3] >= one.box[3]
            for other in chosen
        )
        if len(chosen) < count and not inside:
            chosen.append(one)
    assert regions_of(objects, question, count) == tuple(chosen[:count])


class Fixed(Describer):
    """Sees the same objects in every image; regions too, in one of the bytes "b"."""

    fingerprint = "fixed"
    weights = "eyes"

    def describe(self, images):
        regions = (CAR_INSIDE, SMALL_CAT)
        return [
            Description(
                caption="a street", objects=tuple(OBJECTS), regions=regions if i == b"b" else ()
            )
            for i in images
        ]


@pytest.fixture
def chooser(tmp_path, monkeypatch):
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path))
    get = DESCRIBERS.get
    monkeypatch.setattr(DESCRIBERS, "get", lambda name: Fixed if name == "fixed" else get(name))

    def build(**options):
        return build_part(
            DESCRIBERS, Part(name="regions", describer={"name": "fixed"}, **options), "x"
        )

    return build


def test_regions_of_another_describers_objects(chooser):
    made = chooser(count=2)
    asked = [Question(1, "A cat?", b"a"), Question(2, "A car?", b"a"), Question(3, "What?", b"b")]
    found = made.describe_questions(asked)
    assert [one.regions for one in found] == [
        (SMALL_CAT, BIG_DOG),
        (CAR_INSIDE, BIG_DOG),
        (CAR_INSIDE, SMALL_CAT),  # those of the other describer
    ]
    assert {one.caption for one in found} == {"a street"}
    assert found[0].objects == tuple(OBJECTS)
    assert made.describe([b"a"])[0].regions == (BIG_DOG, DOG_ACROSS)
    assert (made.weights, made.reads_questions) == ("eyes", True)
    assert made.asked(asked[0]) != made.asked(asked[1])
    assert made.fingerprint != chooser(count=3).fingerprint
