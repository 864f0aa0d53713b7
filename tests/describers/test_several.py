"""Several describers at once: merged, each kept on its own, built from settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravqa.core.errors import UserError
from ravqa.core.factory import Session, build_part, parts_of
from ravqa.core.records import Description, Question, Region, Tag, TextLine
from ravqa.core.settings import Part, PipelineConfig
from ravqa.describers import DESCRIBERS
from ravqa.describers.base import Describer
from ravqa.describers.merging import merged

CAT, DOG = Region("cat", (0, 0, 9, 9)), Region("dog", (1, 1, 5, 5))
ASKED = [Question(1, "What?", b"a"), Question(2, "Who?", b"a"), Question(3, "Who?", b"b")]


class Size(Describer):
    """Gives the number of bytes as caption, in words of its own."""

    class Config(Describer.Config):
        word: str = "bytes"

    calls = ()

    def __init__(self, config):
        super().__init__(config)
        self.fingerprint = config.word
        self.weights = f"weights of {config.word}"

    def describe(self, images):
        Size.calls = (*Size.calls, (self.config.word, len(images)))
        return [Description(caption=f"{len(image)} {self.config.word}") for image in images]


class Asked(Size):
    """Gives the question as text in the image."""

    reads_questions = True

    def asked(self, question):
        return question.question

    def describe_questions(self, questions):
        return [Description(ocr=(q.question,)) for q in questions]


@pytest.fixture(autouse=True)
def own_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path))
    monkeypatch.setattr(Size, "calls", ())
    kinds = {"size": Size, "asked": Asked}
    get = DESCRIBERS.get
    monkeypatch.setattr(DESCRIBERS, "get", lambda name: kinds.get(name) or get(name))


def several(*parts, session=None):
    part = Part(name="several", describers=list(parts))
    return build_part(DESCRIBERS, part, "describer", session=session)


def test_kinds_are_merged_in_order_and_each_thing_once():
    line = TextLine("EXIT", (0, 0, 5, 2), 0.9)
    first = Description((Tag(("cat",), 0.5),), "a cat", ("EXIT",), (CAT,), (CAT,))
    second = Description(
        (Tag(("cat",), 0.5),), " a cat", ("EXIT", "42"), (DOG, CAT), (DOG,), (line,)
    )
    assert merged([first, second, Description(caption="at night")]) == Description(
        tags=(Tag(("cat",), 0.5),),
        caption="a cat at night",
        ocr=("EXIT", "42"),
        objects=(CAT, DOG),
        regions=(CAT,),
        lines=(line,),
    )
    assert merged([]) == merged([Description()]) == Description()


def test_the_most_probable_tags_come_first_and_each_name_once():
    koala = Tag(("koala", "koala bear"), 0.6, ("animal",))
    first = Description((koala, Tag(("wombat",), 0.2), Tag(("fox",), 0.1)))
    second = Description((Tag(("tree",), 0.9), Tag(("Koala",), 0.5)))
    assert merged([first, second]).tags == (Tag(("tree",), 0.9), *first.tags)
    assert merged([second, first]).tags == (Tag(("tree",), 0.9), *first.tags)


texts = st.lists(st.sampled_from(["EXIT", "42", "ZOO"]), unique=True).map(tuple)


@settings(max_examples=25)
@given(st.lists(st.builds(Description, ocr=texts), max_size=4))
def test_merging_can_be_done_in_steps(found):
    for cut in range(len(found)):
        assert merged([merged(found[:cut]), *found[cut:]]).ocr == merged(found).ocr
    assert merged([merged(found)]) == merged(found)


def test_each_describes_an_image_once_and_is_kept_on_its_own():
    made = several({"name": "size"}, {"name": "asked"})
    found = made.describe_questions(ASKED)
    assert [(one.caption, one.ocr) for one in found] == [
        ("1 bytes", ("What?",)),
        ("1 bytes", ("Who?",)),
        ("1 bytes", ("Who?",)),
    ]
    assert Size.calls == (("bytes", 2),)
    more = several({"name": "size", "word": "letters"}, {"name": "size"})
    assert [one.caption for one in more.describe([b"a", b"bb"])] == [
        "1 letters 1 bytes",
        "2 letters 2 bytes",
    ]
    assert Size.calls == (("bytes", 2), ("letters", 2), ("bytes", 1))  # b"a" was known
    assert more.weights == "weights of letters, weights of bytes"
    assert (made.reads_questions, more.reads_questions) == (True, False)
    assert made.fingerprint != more.fingerprint


def test_the_session_shares_the_parts():
    session = Session()
    several({"name": "size"}, session=session)
    several({"name": "size"}, {"name": "asked"}, session=session)
    assert session.loads == {"describer": 4}  # two of several, size and asked once each


def test_a_mistake_in_one_is_named_by_its_place():
    with pytest.raises(UserError, match=r"describers\.1: unknown key 'words': .*word"):
        several({"name": "size"}, {"name": "size", "words": "x"})
    config = PipelineConfig(
        describer={"name": "several", "describers": [{"name": "size"}, {"name": "asked"}]},
        retriever={"name": "none"},
        reader={"name": "first-words"},
    )
    places = [place for place, registry, *_ in parts_of(config) if registry is DESCRIBERS]
    assert places == ["describer", "describer.describers.0", "describer.describers.1"]
